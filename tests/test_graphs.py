"""One graph serves many sizes: under torch.compile, in an exported program, and in ONNX."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from sivit.merge import list_mergers
from sivit.position import list_positions
from sivit.task import create_task
from sivit.train import TrainConfig, TrainingModel
from sivit.vit import create_model

SIZES = [(32, 32), (48, 48), (24, 64), (40, 36), (64, 24), (56, 80)]
SMALL = {"depth": 1, "dim": 32, "heads": 2, "num_classes": 5}


def compiled(model):
    torch._dynamo.reset()
    counter = CompileCounter()
    return torch.compile(model, backend=counter, dynamic=True, fullgraph=True), counter


PARTS = [(name, "none") for name in list_positions()]
PARTS += [("learned", name) for name in list_mergers() if name not in ("none", "atm")]


@pytest.mark.parametrize("position, merger", PARTS)
@torch.no_grad()
def test_two_graphs_serve_six_sizes(position, merger):
    model = create_model("vit_micro_patch4", position=position, merger=merger, **SMALL).eval()
    fast, counter = compiled(model)
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(fast(images), model(images), atol=1e-5, rtol=1e-4)
    assert counter.frame_count <= 2


@torch.no_grad()
def test_one_graph_per_number_of_passes():
    model = create_model("vitar_micro_patch4", **SMALL).eval()
    fast, counter = compiled(model)
    # PyTorch takes sides that are equal at first for one and the same, so the first picture is not square
    by_passes = {
        1: [(52, 40), (44, 44), (64, 60), (36, 64)],
        2: [(68, 72), (100, 68), (128, 80)],
        3: [(132, 140), (160, 200)],
    }
    for graphs, sizes in by_passes.items():
        for size in sizes:
            images = torch.randn(2, 3, *size)
            torch.testing.assert_close(fast(images), model(images), atol=1e-5, rtol=1e-4)
        assert counter.frame_count <= graphs, f"{counter.frame_count} graphs for {graphs} iteration counts, at {size}"


TRAINED = [("vit_micro_patch4", name, "per_batch") for name in ("learned", "fuzzy", "lookhere", "rope_mixed")]
TRAINED += [("vitar_micro_patch4", "fuzzy", schedule) for schedule in ("per_batch", "all")]


@pytest.mark.parametrize("name, position, schedule", TRAINED)
def test_training_compiles_nothing_after_its_first_round(name, position, schedule):
    "As `train` does with `compile`; the backend traces the backward pass, too."
    torch._dynamo.reset()
    whole = TrainingModel(create_model(name, position=position, drop_path=0.1, **SMALL), create_task(TrainConfig()))
    whole.train().compile(dynamic=True, backend="aot_eager")
    rounds = [[(36,), (64,), (48,)] if schedule == "per_batch" else [(64, 48, 36)]] * 3
    made = []
    for sizes in rounds:
        before = counters["stats"]["unique_graphs"]
        for sides in sizes:
            images = tuple(torch.randn(4, 3, side, side) for side in sides)
            whole(images, torch.arange(4)).backward()
        made.append(counters["stats"]["unique_graphs"] - before)
    assert 1 <= made[0] <= 2 and made[1:] == [0, 0]


@pytest.mark.parametrize("position", list_positions())
@torch.no_grad()
def test_exported_program_takes_any_size(position):
    model = create_model("vit_micro_patch4", position=position, **SMALL).eval()
    height, width = (torch.export.Dim(name, min=4, max=64) for name in ("rows", "columns"))
    program = torch.export.export(model, (torch.randn(2, 3, 48, 40),), dynamic_shapes=({2: 4 * height, 3: 4 * width},))
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(program.module()(images), model(images), atol=1e-5, rtol=1e-4)


def answers(program, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


@torch.no_grad()
def test_onnx_gives_equal_logits_at_two_sizes_of_one_file():
    model = create_model("vit_micro_patch4", **SMALL).eval()
    height, width = (torch.export.Dim(name, min=4, max=64) for name in ("rows", "columns"))
    program = torch.onnx.export(
        model, (torch.randn(2, 3, 48, 40),), dynamo=True, verbose=False, dynamic_shapes=({2: 4 * height, 3: 4 * width},)
    )
    for size in [(48, 40), (32, 64)]:
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(answers(program, images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(36, 52), (80, 64)])
@torch.no_grad()
def test_onnx_gives_equal_logits_of_vitar(size):
    model = create_model("vitar_micro_patch4", **SMALL).eval()
    images = torch.randn(2, 3, *size)
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    torch.testing.assert_close(answers(program, images), model(images), atol=1e-4, rtol=1e-4)
