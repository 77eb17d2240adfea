"""Segmentation: every way learns, every size works, and the measures equal those worked out by other means."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import binary_erosion
from torch._dynamo.testing import CompileCounter

from sivit.data import create_loader
from sivit.segment import (
    HEADS,
    BoundaryIoU,
    SegmentationConfig,
    SegmentationModel,
    segmentation_loss,
    segmentation_metrics,
    slide,
)
from sivit.task import create_task, score
from sivit.train import TrainConfig, train
from sivit.vit import ViTConfig, list_mergers, list_positions

torch.set_num_threads(1)

VIT = {"image_size": 32, "patch_size": 4, "dim": 32, "depth": 2, "heads": 2, "position": "sincos"}
FIXED = {"merger": "atm", "merged_grid": (4, 4)}
PYRAMID = {"head": "pyramid", "head_options": {"width": 16}}
WAYS = {
    "linear": ({}, {}),
    "pyramid": ({}, PYRAMID),
    "ratio 1": ({"merger": "atm", "merger_options": {"ratio": 1}}, {}),
    "ratio 2": ({"merger": "atm", "merger_options": {"ratio": 2}}, {}),
    "ratio 2, pyramid": ({"merger": "atm", "merger_options": {"ratio": 2}}, PYRAMID),
    "fixed": (FIXED, {}),
    "fixed, unmerge": (FIXED, {"upsample": "unmerge"}),
    "fixed, unmerge, pyramid": (FIXED, PYRAMID | {"upsample": "unmerge"}),
}
every_way = pytest.mark.parametrize("way", WAYS)
SIZES = [(32, 32), (24, 44), (37, 18)]  # square, not square, not divisible


def make(way="linear", num_classes=3, **changes):
    torch.manual_seed(0)
    vit, dense = WAYS[way]
    return SegmentationModel(SegmentationConfig(ViTConfig(**VIT | vit | changes), num_classes, **dense))


def rectangles(count=4, side=32, cell=8):
    "Noise with two rectangles of whole cells, tinted by their class, and the mask that tells which is where."
    generator = torch.Generator().manual_seed(1)
    images, masks = torch.randn(count, 3, side, side, generator=generator) / 4, torch.zeros(count, side, side).long()
    for mask in masks:
        for label in (1, 2):
            top, left = (cell * torch.randint(side // cell - 1, (2,), generator=generator)).tolist()
            mask[top : top + cell, left : left + 2 * cell] = label
    tint = F.one_hot(masks, 3).permute(0, 3, 1, 2)
    return images + tint, masks


# Learning


@every_way
def test_every_way_overfits_a_batch(way):
    "The rectangles end where cells of 2×2 tokens do, so that even a linear head can follow them."
    model, (images, masks) = make(way), rectangles()
    steps, rate = (120, 5e-3) if "pyramid" in way else (200, 1e-2)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    for _ in range(steps):
        loss = segmentation_loss(model(images), masks)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    assert loss < 0.05
    assert (model.eval()(images).argmax(1) == masks).float().mean() > 0.98


SMALL = TrainConfig(
    task="segmentation", model="vit_micro_patch4", dataset="scenes", sizes=(16, 24), epochs=2, batch_size=8,
    model_options={"image_size": 24, "dim": 16, "depth": 1, "heads": 2, "pool": "mean", **FIXED}, label_smoothing=0.0,
    dataset_options={"target": "mask", "length": 24, "config": {"objects": 3, "classes": 4}}, save_minutes=1e-6,
)  # fmt: skip


@pytest.mark.parametrize("options", [{}, PYRAMID | {"upsample": "unmerge"}], ids=["linear", "pyramid, unmerge"])
def test_the_loop_trains_and_saves_it(options, tmp_path):
    config = dataclasses.replace(SMALL, task_options=options, schedule="all")
    done = train(config, tmp_path, progress=False)
    assert {"miou", "pixel_accuracy", "boundary_iou"} <= set(done.history[-1])
    images, saved = torch.randn(2, 3, 20, 33), SegmentationModel.from_pretrained(tmp_path)
    assert saved.config == done.model.config and torch.equal(saved(images), done.model(images))
    for again in (train(config, None, progress=False), train(config, tmp_path, progress=False, resume="must")):
        assert torch.equal(saved(images), again.model(images))


def test_an_encoder_that_has_learned_something_begins_it(tmp_path):
    options = SMALL.dataset_options | {"target": "label"}
    labels = dataclasses.replace(SMALL, task="classification", dataset_options=options)
    classifier = train(labels, None, progress=False).model
    classifier.save_pretrained(tmp_path)
    still = dataclasses.replace(SMALL, learning_rate=1e-30, weight_decay=0.0)
    begun = train(still, None, progress=False, start=tmp_path).model
    for name, value in begun.encoder.state_dict().items():
        torch.testing.assert_close(value, classifier.encoder.state_dict()[name])


def test_it_reads_ade20k_where_most_of_150_classes_are_absent(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    draw = np.random.default_rng(0)
    for part, number in itertools.product(("training", "validation"), range(4)):
        for kind, values, suffix in (("images", draw.integers(256, size=(40, 52, 3)), "jpg"),
                                     ("annotations", draw.integers(4, size=(40, 52)), "png")):  # fmt: skip
            (root / kind / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(root / kind / part / f"{number}.{suffix}")
    names = "".join(f"{i}\t0.1\t1\t1\tthing {i}\n" for i in range(1, 151))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + names)
    options = {"dataset_options": {"root": str(tmp_path)}, "batch_size": 2, "epochs": 1}
    config = dataclasses.replace(SMALL, dataset="ade20k", **options)
    task = create_task(config)
    model = train(config, None, progress=False).model
    assert model.config.num_classes == 150
    measured = score(task, model, task.dataset("val"), (24, 32))
    assert all(0 <= value <= 1 for value in measured.values())


# Any size


@every_way
def test_a_training_step_at_three_sizes(way):
    task, model = create_task(SMALL), make(way, 5)
    data = task.dataset("train")
    batch = next(iter(create_loader(data, 4, lambda step: SIZES)))
    assert [tuple(mask.shape[1:]) for mask in batch.targets] == SIZES
    loss = task.loss(model, batch.images, batch.targets)
    loss.backward()
    by_size = [F.cross_entropy(model(x), mask) for x, mask in zip(batch.images, batch.targets, strict=True)]
    torch.testing.assert_close(loss, sum(by_size) / 3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_way
@torch.no_grad()
def test_score_at_three_sizes_is_the_count_over_all_pixels(way):
    task, model = create_task(SMALL), make(way, 5)
    data = task.dataset("val", length=6)
    model.train()
    for size in SIZES:
        measured = score(task, model, data, size, batch_size=4)
        assert model.training
        whole = next(iter(create_loader(data, 6, size)))
        predicted = model.eval()(whole.images[0]).argmax(1)
        model.train()
        assert measured["pixel_accuracy"] == pytest.approx((predicted == whole.targets[0]).float().mean().item())
        once = segmentation_metrics(5)
        once.update(predicted, whole.targets[0])
        assert measured == pytest.approx({name: value.item() for name, value in once.compute().items()})


@torch.no_grad()
def test_every_encoding_with_every_merger_and_head():
    images = torch.randn(2, 3, 19, 30)
    for position, merger, head in itertools.product(list_positions(), list_mergers(), HEADS.names()):
        for upsample in ("none", "unmerge") if merger != "none" else ("none",):
            torch.manual_seed(0)
            parts = {"dim": 16, "depth": 1, "position": position, "merger": merger, "merged_grid": (3, 4)}
            vit = ViTConfig(**VIT | parts)
            options = {"width": 4} if head == "pyramid" else {}
            model = SegmentationModel(SegmentationConfig(vit, 3, head, options, upsample)).eval()
            logits = model(images)
            assert logits.shape == (2, 3, 19, 30) and logits.isfinite().all()
            torch.testing.assert_close(model(images[:1]), logits[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["linear", "fixed, unmerge"])
@torch.no_grad()
def test_one_graph_serves_all_sizes_with_as_many_passes(way):
    torch._dynamo.reset()
    model, counter = make(way, depth=1).eval(), CompileCounter()
    model(torch.randn(2, 3, 32, 28))
    fast = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for size in [(32, 28), (20, 32), (22, 23)]:  # five to eight tokens on an axis are one pass to four cells
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(fast(images), model(images), atol=1e-5, rtol=1e-4)
        assert counter.frame_count == 1


@torch.no_grad()
def test_in_half_precision():
    for way in WAYS:
        model, images = make(way).eval(), torch.randn(2, 3, 24, 36)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images)
        torch.testing.assert_close(half.float(), model(images), atol=0.2, rtol=0.1)


# Inference by windows


def test_sliding_is_the_mean_of_all_windows():
    generator = torch.Generator().manual_seed(0)

    def noisy(x):
        "An answer of its own for every window."
        return torch.stack([x.sum(1), x.mean() + torch.randn(x.shape[0], *x.shape[2:], generator=generator)], dim=1)

    cases = [((20, 31), (8, 8), (5, 3)), ((9, 9), (4, 7), (4, 7)), ((12, 5), (5, 9), (2, 1))]
    for (H, W), (h, w), (down, right) in cases:
        images, answers = torch.randn(2, 3, H, W), []
        found = slide(lambda x, answers=answers: answers.append(noisy(x)) or answers[-1], images, (h, w), (down, right))
        total, count, answers = torch.zeros(2, 2, H, W), torch.zeros(H, W), iter(answers)
        rows = sorted({min(down * i, max(H - h, 0)) for i in range(H)})
        columns = sorted({min(right * j, max(W - w, 0)) for j in range(W)})
        for top, left in itertools.product(rows, columns):
            answer = next(answers)
            for i, j in itertools.product(range(answer.shape[-2]), range(answer.shape[-1])):
                total[..., top + i, left + j] += answer[..., i, j]
                count[top + i, left + j] += 1
        assert next(answers, None) is None and count.min() >= 1
        torch.testing.assert_close(found, total / count)


@every_way
@torch.no_grad()
def test_one_window_is_whole_inference(way):
    model = make(way).eval()
    for size, window in itertools.product(SIZES, [(44, 44), (40, 1000), (1000, 44)]):
        if window[0] >= size[0] and window[1] >= size[1]:
            images = torch.randn(2, 3, *size)
            assert torch.equal(slide(model, images, window, (3, 3)), model(images))


@pytest.mark.parametrize("window, stride", [((8, 8), (9, 8)), (0, 1), ((8,), 4), (8, 0), (8.0, 4)], ids=str)
def test_windows_that_cannot_be_are_refused(window, stride):
    with pytest.raises(ValueError, match=r"leave gaps|A size is"):
        slide(torch.nn.Identity(), torch.randn(1, 3, 16, 16), window, stride)


# Measures


def pictures(count, h, w, classes, ignored=0.0, seed=0):
    "Blobs of classes as mask, a shifted copy of it as prediction, and rectangles that do not count."
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(classes, (count, 1, 5, 6), generator=generator).float()
    true = F.interpolate(coarse, (h, w), mode="nearest")[:, 0].long()
    pred = true.roll((1, 2), (1, 2))
    gaps = torch.rand(count, 1, 3, 3, generator=generator) < ignored
    return pred, true.masked_fill(F.interpolate(gaps.float(), (h, w))[:, 0] > 0, 255)


def boundary_iou_by_erosion(pairs, classes, width=0.02):
    "A mask's edge is the mask without its erosion, class by class, with scipy's morphology."
    shared, union = np.zeros(classes), np.zeros(classes)
    for pred, true in pairs:
        steps = max(1, round(width * math.hypot(*true.shape)))
        for label in range(classes):
            masks = [((x == label) & (true != 255)).numpy() for x in (pred, true)]
            edge = [mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0) for mask in masks]
            shared[label] += (edge[0] & edge[1]).sum()
            union[label] += (edge[0] | edge[1]).sum()
    return (shared[union > 0] / union[union > 0]).mean()


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_boundary_iou_is_that_of_eroded_masks(ignored):
    sizes = [(3, 20, 31), (2, 64, 48), (1, 120, 150), (2, 5, 7)]  # edges 1, 2, 4 and 1 pixels wide
    for width in (0.02, 0.1):
        measure, pairs = BoundaryIoU(6, width=width), []
        for seed, size in enumerate(sizes):
            pred, true = pictures(*size, classes=4, ignored=ignored, seed=seed)
            measure.update(pred, true)
            pairs += zip(pred, true, strict=True)
        assert measure.compute().item() == pytest.approx(boundary_iou_by_erosion(pairs, 6, width), rel=1e-6)


def test_measures_add_up_over_batches_and_processes():
    processes, whole = [segmentation_metrics(5) for _ in range(2)], segmentation_metrics(5)
    for seed in range(6):
        pred, true = pictures(2, 30, 40, classes=4, ignored=0.2, seed=seed)
        processes[seed % 2].update(pred, true)
        whole.update(pred, true)
    for name, measure in whole.items():
        one, other = (process[name] for process in processes)
        one.merge_state(other)
        assert one.compute() == measure.compute(), name


def test_ignored_pixels_play_no_part_in_loss_or_measures():
    pred, true = pictures(3, 24, 31, classes=4, ignored=0.4)
    logits, gaps = torch.randn(3, 4, 24, 31, requires_grad=True), true == 255
    segmentation_loss(logits, true).backward()
    assert gaps.any() and torch.equal(logits.grad.abs().sum(1) == 0, gaps)
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[~gaps], true[~gaps], label_smoothing=0.1)
    torch.testing.assert_close(segmentation_loss(logits, true, label_smoothing=0.1), expected)
    for measure in segmentation_metrics(4).values():
        value = measure(pred, true)
        measure.reset()
        assert measure(torch.where(gaps, (pred + 1) % 4, pred), true) == value


def test_a_perfect_answer_and_a_wrong_one():
    _, true = pictures(2, 40, 30, classes=4, ignored=0.2)
    for guess, expected in [(true, 1.0), ((true + 1) % 4, 0.0)]:
        measures = segmentation_metrics(4)
        measures.update(torch.where(true == 255, 0, guess), true)
        assert all(value == expected for value in measures.compute().values())


# What is refused, and what nothing means


def test_masks_that_say_nothing_leave_the_model_alone():
    task, model = create_task(SMALL), make("fixed, unmerge", 5)
    images = tuple(torch.randn(2, 3, *size) for size in SIZES)
    loss = task.loss(model, images, tuple(torch.full((2, *size), 255) for size in SIZES))
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("label", [-1, 3, 150, 254])
def test_labels_out_of_range_are_named(label):
    mask = torch.zeros(2, 8, 8, dtype=torch.long)
    mask[1, 3, 3] = label
    with pytest.raises(ValueError, match=rf"The mask holds \[{label}\], and the classes are 0 to 2. Mark pixels"):
        segmentation_loss(torch.randn(2, 3, 8, 8), mask)


@pytest.mark.parametrize("shape", [(2, 8, 9), (1, 8, 8), (2, 1, 8, 8), (2, 64)], ids=str)
def test_masks_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"need a mask \(b, h, w\)"):
        segmentation_loss(torch.randn(2, 3, 8, 8), torch.zeros(shape, dtype=torch.long))


def test_pictures_that_cannot_be_are_refused():
    for images, needed in [(torch.randn(1, 3, 3, 32), "smaller than one patch"), (torch.randn(1, 1, 32, 32), "channel"),
                           (torch.randn(3, 32, 32), "shape")]:  # fmt: skip
        with pytest.raises(ValueError, match=needed):
            make()(images)
