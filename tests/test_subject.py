"Models of all kinds as their users run them: every way, every source, and nothing that is run without being named."

import json
import pickle
import subprocess
import sys
import urllib.error
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import sivit.train
from sivit import create_dataset, create_model
from sivit.cost import count_macs, latency, peak_memory
from sivit.curve import predict
from sivit.resnet import ResNet, ResNetConfig
from sivit.subject import WAYS, Subject, load_subject

THIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
FLAT = {"depth": 2, "embed_dim": 48, "num_heads": 4}


class Plain(nn.Module):
    "A small model without a notion of its size."

    def __init__(self, outputs=3):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, outputs)

    def forward(self, images):
        return self.head(self.stem(images).mean((2, 3)))


def vit(**options):
    "A small ViT of timm whose answers are not all zero."
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=5, **{"img_size": 64, "depth": 2, "embed_dim": 48} | options
    )
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.pos_embed, std=0.3)
    return model


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- ways


ZOO = [
    ("vit_tiny_patch16_224", FLAT, "dynamic_img_size", "blocks.1"),
    ("deit3_small_patch16_224", FLAT, "dynamic_img_size", "blocks.1"),
    ("deit_tiny_distilled_patch16_224", FLAT, "dynamic_img_size", "blocks.1"),
    ("eva02_tiny_patch14_224", {"depth": 2}, "dynamic_img_size", "blocks.1"),
    ("vit_tiny_r_s16_p8_224", {"depth": 2}, "dynamic_img_size", "blocks.1"),
    ("swin_tiny_patch4_window7_224", THIN, "dynamic_img_size", "layers.3"),
    ("swinv2_cr_tiny_224", THIN, "dynamic_img_size", "stages.3"),
    ("beit_base_patch16_224", FLAT, "set_input_size", "blocks.1"),
    ("maxvit_pico_rw_256", {}, "set_input_size", "stages.3"),
    ("vit_relpos_small_patch16_224", {"depth": 2}, "set_input_size", "blocks.1"),
    ("convnext_atto", {}, "as it is", "stages.3"),
    ("resnet10t", {}, "as it is", "layer4"),
    ("mobilenetv3_small_050", {}, "as it is", "blocks.5"),
    ("mixer_s32_224", {}, "resized input", "blocks.7"),
    ("cait_xxs24_224", {"depth": 2}, "resized input", "blocks.1"),
    ("pit_ti_224", {}, "resized input", "transformers.2"),
]


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize("name, options, way, deepest", ZOO, ids=[row[0] for row in ZOO])
def test_models_of_timm_take_other_sizes_in_their_best_way(name, options, way, deepest, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *given, **more: create(*given, **options, **more))
    subject = load_subject(f"timm:{name}", weights="random", num_classes=5)
    before, height = state(subject.module), subject.native[0]
    images = {
        size: torch.randn(2, 3, *size)
        for size in [subject.native, (height * 3 // 2, height * 3 // 2), (height // 2, height)]
    }
    assert subject.way == way and subject.layers[-1] == deepest and subject.classes is None
    assert {"mean", "std", "crop_ratio"} <= set(subject.view) and subject.native == subject.module.pretrained_cfg[
        "input_size"
    ][1:]
    with torch.no_grad():
        for size, x in images.items():
            assert subject(x).shape == (2, 5) and subject(x).isfinite().all()
            maps = subject.feature_maps(x)
            assert tuple(maps) == subject.layers and all(m.ndim == 4 and len(m) == 2 for m in maps.values())
            grids = [m.shape[-1] / m.shape[-2] for m in maps.values()]
            assert grids[0] == pytest.approx(1 if way == "resized input" else size[1] / size[0], rel=0.25), (
                "a map is not turned"
            )
    assert same(before, subject.module.state_dict()), "the original is left alone"


def test_a_way_can_be_asked_for():
    images = torch.randn(2, 3, 96, 48)
    for way in ("dynamic_img_size", "set_input_size", "resized input"):
        subject = load_subject(vit(dynamic_img_size=True), way=way)
        assert subject.way == way and subject.native == (64, 64) and subject(images).shape == (2, 5)
    assert load_subject("timm:vit_tiny_patch16_224", weights="random", way="set_input_size").way == "set_input_size"
    with pytest.raises(
        ValueError, match=r"'stretch' is no way to give a model another size; there are as it is, dynamic_img_size"
    ):
        load_subject(Plain(), native=32, way="stretch")
    with pytest.raises(
        ValueError, match=r"cannot take another size by 'set_input_size'; it can by 'as it is', 'resized input'"
    ):
        load_subject("timm:resnet10t", weights="random", way="set_input_size")
    with pytest.raises(
        ValueError, match=r"cannot take another size by 'dynamic_img_size'; it can by 'set_input_size', 'resized input'"
    ):
        load_subject(vit(), way="dynamic_img_size")


def test_a_resized_input_is_what_a_user_would_compute():
    module = vit()
    subject, images = load_subject(module, way="resized input"), torch.randn(2, 3, 100, 40)
    resized = F.interpolate(images, (64, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(subject(images), module(resized))
    torch.testing.assert_close(
        subject.feature_maps(images)["blocks.1"], module.forward_intermediates(resized, intermediates_only=True)[1]
    )
    assert subject.about()["why"].startswith("The model takes 64×64 px only")


def test_two_ways_of_one_vit_agree():
    dynamic = load_subject(vit(dynamic_img_size=True))
    laid_out = load_subject(vit(), way="set_input_size")
    for size in [(64, 64), (96, 96), (32, 112), (160, 64)]:
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(dynamic(images), laid_out(images), atol=1e-5, rtol=1e-5)
        for a, b in zip(dynamic.feature_maps(images).values(), laid_out.feature_maps(images).values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_masks_come_back_at_the_size_of_the_picture():
    class Segmenter(nn.Module):
        def forward(self, images):
            assert images.shape[-2:] == (32, 32)
            return {"out": images[:, :2] * 2, "aux": None}

    subject = load_subject(Segmenter(), native=32, way="resized input")
    smooth = torch.linspace(0, 1, 64).expand(1, 3, 48, 64)
    assert subject(smooth).shape == (1, 2, 48, 64) and (subject(smooth) - 2 * smooth[:, :2]).abs().max() < 0.1
    network = load_subject("torchvision:lraspp_mobilenet_v3_large", weights="random", num_classes=4)
    assert network.native == (520, 520) and network.classes is None and network.way == "as it is"
    assert network(torch.randn(1, 3, 64, 96)).shape == (1, 4, 64, 96)


# -- the copy for a size


def test_the_copy_follows_modes_types_devices_and_weights():
    subject, images = load_subject(vit(drop_rate=0.9), way="set_input_size"), torch.randn(2, 3, 96, 96)
    assert torch.equal(subject(images), subject(images))
    subject.train()
    assert not torch.equal(subject(images), subject(images)), "dropout is on"
    subject.eval()
    first = subject(images)
    with torch.no_grad():
        subject.module.pos_embed.mul_(2)
    assert not torch.allclose(subject(images), first), "a changed table is seen"
    assert subject.double()(images.double()).dtype == torch.float64
    assert subject.to("meta")(images.to("meta").double()).device.type == "meta"


def test_only_one_copy_is_kept_and_it_shares_what_is_not_resized():
    subject = load_subject(vit(), way="set_input_size")
    parameters = len(list(subject.parameters()))
    for side in (96, 128, 96):
        subject(torch.randn(1, 3, side, side))
        copied = subject._at(torch.randn(1, 3, side, side))
        assert copied is subject._at(torch.randn(1, 3, side, side))
        own = [name for name, value in copied.named_parameters() if value is not subject.module.get_parameter(name)]
        assert own == ["pos_embed"] and len(list(subject.parameters())) == parameters
    assert set(subject.state_dict()) == {f"module.{name}" for name in subject.module.state_dict()}


def test_measures_of_cost_and_curves_take_a_subject():
    laid_out, dynamic = load_subject(vit(), way="set_input_size"), load_subject(vit(dynamic_img_size=True))
    for size in (64, 96, (48, 128)):
        assert count_macs(laid_out, size) == count_macs(dynamic, size) > 0
    assert count_macs(load_subject(vit(), way="resized input"), 96) == count_macs(dynamic, 64)
    assert latency(laid_out, 96, repeats=2)["median"] > 0 and peak_memory(laid_out, 128) > peak_memory(laid_out, 64) > 0
    dataset = create_dataset("scenes", "val", length=6)
    subject = load_subject(
        timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=len(dataset.classes), **FLAT),
        way="set_input_size",
    ).train()
    logits, labels = predict(subject, dataset, 96, batch_size=4)
    assert (
        logits.shape == (6, len(dataset.classes)) and len(labels) == 6 and subject.training and subject.module.training
    )
    images = torch.randn(2, 3, 96, 96)
    subject(images).sum().backward()  # after a pass in inference mode
    assert not any(p.is_inference() for p in subject._at(images).parameters())
    count_macs(laid_out, 160)  # which works with tensors that hold nothing
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(laid_out(images), dynamic(images), atol=1e-5, rtol=1e-5)


# -- refusals


def failing(error):
    class Failing(Plain):
        def forward(self, images):
            if images.shape[-1] != 32:
                raise error
            return super().forward(images)

    return load_subject(Failing(), native=32, name="it")


def test_a_refused_size_is_told_with_its_reason():
    for error in (AssertionError("no such grid"), RuntimeError("no such\n grid"), IndexError("no such grid")):
        with pytest.raises(ValueError, match=r"it takes no pictures of 32×48 px \(as it is\): no such grid") as caught:
            failing(error)(torch.zeros(1, 3, 32, 48))
        assert caught.value.__cause__ is error
    with pytest.raises(RuntimeError, match=r"expected input.* to have 3 channels"):
        failing(AssertionError())(torch.zeros(1, 2, 32, 32))  # at its own size it has no excuse
    with pytest.raises(ValueError, match=r"\(as it is\): AssertionError"):
        failing(AssertionError())(torch.zeros(1, 3, 32, 48))


def test_want_of_memory_is_no_refusal():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ):
        with pytest.raises(type(error)) as caught:
            failing(error)(torch.zeros(1, 3, 64, 64))
        assert caught.value is error


# -- inside


def test_maps_of_torchvision_are_those_of_its_blocks():
    torch.manual_seed(0)
    transformer = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=3).eval()
    subject, images = load_subject(transformer), torch.randn(2, 3, 64, 64)
    assert subject.native == (64, 64) and subject.way == "resized input"
    maps = subject.feature_maps(images)
    assert list(maps) == ["conv_proj", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1", "encoder"]
    tokens = transformer.encoder(
        torch.cat([transformer.class_token.expand(2, -1, -1), transformer._process_input(images)], dim=1)
    )
    torch.testing.assert_close(maps["encoder"][:, :, 1, 2], tokens[:, 1 + 4 + 2])

    swin = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 4], [7, 7], num_classes=3).eval()
    maps = load_subject(swin, native=64).feature_maps(torch.randn(1, 3, 64, 128))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (16, 16, 32),
        (16, 16, 32),
        (32, 8, 16),
        (32, 8, 16),
        (32, 8, 16),
    ]

    network = load_subject("torchvision:resnet18", weights="random", num_classes=3)
    assert network.layers == ("conv1", "relu", "maxpool", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2)))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_model_that_shows_nothing_has_no_layers():
    class Blind(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    subject = load_subject(Blind(), native=(8, 12))
    assert (
        subject.layers == ()
        and subject.feature_maps(torch.zeros(1, 3, 8, 12)) == {}
        and subject.about()["layers"] == []
    )


def test_layers_can_be_named():
    subject = load_subject(vit(), layers=["blocks.1"])
    assert list(subject.feature_maps(torch.randn(1, 3, 64, 64))) == ["blocks.1"]
    subject = load_subject(vit(), way="set_input_size", layers=["patch_embed.proj"])
    assert subject.feature_maps(torch.randn(1, 3, 96, 64))["patch_embed.proj"].shape == (1, 48, 6, 4)
    with pytest.raises(ValueError, match=r"has no layer 'block.1'; it has blocks.1"):
        load_subject(vit(), layers=["block.1"]).layers  # noqa: B018
    with pytest.raises(ValueError, match=r"The layer 'head' of VisionTransformer gives no map"):
        load_subject(vit(), layers=["head"]).layers  # noqa: B018


def test_looking_leaves_modes_and_statistics_alone():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    subject = load_subject(module, native=16).train()
    before = state(module)
    assert (
        subject.layers == ("0", "1")
        and same(before, module.state_dict())
        and all(part.training for part in module.modules())
    )


# -- classes


def test_outputs_are_found_by_name():
    ours = load_subject("torchvision:resnet18", weights="random")
    theirs = load_subject("timm:test_convnext", weights="random")
    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert (
        ours.answering(names).outputs is None
        and theirs.answering(timm.data.ImageNetInfo().label_names()).outputs is None
    )
    reversed_ids = timm.data.ImageNetInfo().label_names()[::-1]
    assert theirs.answering(reversed_ids).outputs == list(range(1000))[::-1]
    imagenette = [
        "tench",
        "English springer",
        "cassette player",
        "chain saw",
        "church",
        "French horn",
        "garbage truck",
        "gas pump",
        "golf ball",
        "parachute",
    ]
    expected = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert ours.answering(imagenette).outputs == theirs.answering(imagenette).outputs == expected
    assert theirs.answering(["N01440764", "french_HORN"]).outputs == [0, 566] and theirs.answering(
        ["harp"]
    ).outputs == [594]
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs.answering(imagenette)(images), theirs(images)[:, expected])
    for subject in (ours, theirs):
        for name in ("crane", "maillot"):
            with pytest.raises(ValueError, match=rf"Several outputs of .* are called '{name}'"):
                subject.answering([name, "tench"])
    assert ours.answering(["crane bird", "maillot tank suit"]).outputs == [134, 639]
    with pytest.raises(
        ValueError, match=r"has no output for unicorn, griffin; its outputs are tench, goldfish, .* and 992 more"
    ):
        ours.answering(["tench", "unicorn", "griffin"])
    assert ours.outputs is None


def test_without_names_only_the_number_can_be_checked():
    subject = load_subject(Plain(), native=16)
    assert torch.equal(subject.answering("abc")(torch.ones(1, 3, 16, 16)), subject(torch.ones(1, 3, 16, 16)))
    with pytest.raises(ValueError, match=r"Plain has 3 outputs and no names for them, and there are 2 classes"):
        subject.answering("ab")


# -- what it says of itself


def test_a_fingerprint_is_of_everything_that_changes_the_answer():
    first, again = load_subject(vit()), load_subject(vit(), name="another name")
    prints = {first.fingerprint()}
    assert again.fingerprint() in prints and len(first.fingerprint()) == 12 and int(first.fingerprint(), 16) >= 0
    first(torch.randn(1, 3, 96, 96))
    assert first.fingerprint() in prints
    prints.add(load_subject(vit(), way="resized input").fingerprint())
    prints.add(load_subject(vit(num_heads=4)).fingerprint())
    with torch.no_grad():
        first.module.head.bias[3] += 1e-6
    prints.add(first.fingerprint())
    prints.add(load_subject(vit().bfloat16()).fingerprint())
    prints.add(load_subject(nn.AvgPool2d(2), native=8).fingerprint())
    prints.add(load_subject(nn.AvgPool2d(4), native=8).fingerprint())
    assert len(prints) == 7


def test_about_is_plain_data():
    for subject in (
        load_subject(vit()),
        load_subject("torchvision:vit_b_32", weights="random"),
        load_subject(Plain(), native=(16, 24)),
    ):
        about = subject.about()
        assert json.loads(json.dumps(about)) == about and about["way"] in WAYS
        keys = ["name", "parameters", "native", "way", "why", "view", "weights", "layers"]
        keys += ["trained_on", "fingerprint", "outputs"]
        assert list(about) == keys
    assert about["native"] == [16, 24] and about["parameters"] == sum(p.numel() for p in Plain().parameters())


# -- sources


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    options = {"mean": (0.25,), "crop_ratio": 0.9}
    config = sivit.train.TrainConfig(
        epochs=1, sizes=(8, 16), model_options={"depth": 1, "dim": 16}, dataset_options=options, batch_size=512
    )
    sivit.train.train(config, folder, progress=False)
    return folder


def test_a_run_brings_its_task_its_data_and_its_sizes(run):
    subject = load_subject(run)
    assert type(subject.task).__name__ == "Classification" and subject.native == (16, 16) and subject.way == "as it is"
    assert subject.dataset == ("digits", {"mean": (0.25,), "crop_ratio": 0.9}) and subject.view == dict(
        subject.dataset[1]
    )
    assert (
        subject.name == str(run)
        and subject.layers == ("encoder.blocks.0",)
        and load_subject(str(run), name="mine").name == "mine"
    )
    images = torch.randn(2, 1, 20, 24)
    for which in ("best", "last"):
        chosen = load_subject(run, checkpoint=which)
        assert torch.equal(chosen(images), sivit.train.load_model(run, which)(images)) and which in chosen.weights
    dataset = subject.task.dataset("val")
    assert predict(subject.answering(dataset.classes), dataset, 24)[0].shape == (len(dataset), 10)
    assert count_macs(subject, (1, 16, 16)) > 0


def test_a_run_that_is_not_finished_has_its_checkpoints(run, tmp_path):
    import shutil

    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "config.json").unlink()
    (unfinished / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"unfinished is not finished; take its state by checkpoint='last'"):
        load_subject(unfinished)
    assert load_subject(unfinished, checkpoint="last")(torch.randn(1, 1, 16, 16)).shape == (1, 10)
    (unfinished / "train.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"train.json must hold a JSON object; it holds a list"):
        load_subject(unfinished)
    (unfinished / "train.json").write_text("{")
    with pytest.raises(ValueError, match=r"train.json cannot be read as JSON"):
        load_subject(unfinished)


def saved_models():
    from sivit.detect import DetectionConfig, Detector
    from sivit.mae import MaskedAutoencoder, MaskedAutoencoderConfig
    from sivit.segment import SegmentationConfig, SegmentationModel
    from sivit.vit import ViTConfig

    vit = ViTConfig(image_size=(16, 24), patch_size=4, dim=16, depth=2, heads=2, num_classes=3)
    yield vit.build()
    yield SegmentationModel(SegmentationConfig(vit, 3))
    yield MaskedAutoencoder(MaskedAutoencoderConfig(vit, decoder_dim=16, decoder_depth=1, decoder_heads=2))
    yield Detector(DetectionConfig(vit, 3, pyramid_dim=16, box_dim=16))


def test_a_saved_model_is_recognised(tmp_path):
    for model in saved_models():
        folder = tmp_path / type(model).__name__
        model.eval().save_pretrained(folder)
        subject = load_subject(folder)
        assert (
            type(subject.module) is type(model)
            and subject.native == (16, 24)
            and subject.task is subject.dataset is None
        )
        maps = subject.feature_maps(torch.randn(1, 3, 20, 12))
        assert {name: tuple(m.shape) for name, m in maps.items()} == {
            f"encoder.blocks.{i}": (1, 16, 5, 3) for i in range(2)
        }
    ResNet(ResNetConfig(width=8, num_classes=3)).save_pretrained(tmp_path / "resnet")
    subject = load_subject(tmp_path / "resnet", native=32)
    assert isinstance(subject.module, ResNet) and all(name.startswith(("stem", "blocks")) for name in subject.layers)
    (folder / "config.json").write_text('{"colour": "red"}')
    with pytest.raises(ValueError, match=r"holds no model of this package: config.json has colour"):
        load_subject(folder)
    with pytest.raises(ValueError, match=r"checkpoint='best' is of the folder of a run, with a train.json"):
        load_subject(folder, checkpoint="best")
    with pytest.raises(ValueError, match=r"checkpoint='best' is of the folder of a run; timm:test_vit is none"):
        load_subject("timm:test_vit", checkpoint="best")


def test_a_model_on_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    vit = next(saved_models()).eval()
    vit.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.append((name, allow_patterns)) or tmp_path,
    )
    subject = load_subject("somebody/something")
    assert (
        torch.equal(subject(torch.ones(1, 3, 16, 24)), vit(torch.ones(1, 3, 16, 24)))
        and subject.name == "somebody/something"
    )
    assert asked == [("somebody/something", ["config.json", "model.safetensors"])]

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"'somebody/else' is neither a directory here .* nor a reachable model"):
        load_subject("somebody/else")


def test_models_of_this_package_by_name(tmp_path):
    model = create_model("vit_micro_patch4", num_classes=3)
    file = model.save_pretrained(tmp_path) / "model.safetensors"
    subject = load_subject("sivit:vit_micro_patch4", weights=str(file), num_classes=3)
    assert (
        same(subject.module.state_dict(), model.state_dict())
        and subject.native == (32, 32)
        and subject.weights == str(file)
    )
    with pytest.raises(ValueError, match=r"do not fit this ViT: .*size mismatch for head"):
        load_subject("sivit:vit_micro_patch4", weights=str(file))
    with pytest.raises(ValueError, match=r"sivit:vit_micro_patch4 is a model without weights; give weights='random'"):
        load_subject("sivit:vit_micro_patch4")
    with pytest.raises(ValueError, match=r"Did you mean 'vit_micro_patch4'"):
        load_subject("sivit:vit_micro_patch", weights="random")


def test_the_size_a_model_was_made_for():
    with pytest.raises(
        ValueError, match=r"Plain does not say which size it was made for; give native=SIDE or \(HEIGHT, WIDTH\)"
    ):
        load_subject(Plain())
    assert load_subject(Plain(), native=48).native == (48, 48)
    assert load_subject(vit(dynamic_img_size=True), native=(96, 32)).native == (96, 32)
    for way in ("set_input_size", "resized input"):
        with pytest.raises(
            ValueError, match=r"made for 64×64 px, and .* starts from there; native=\(96, 96\) cannot be"
        ):
            load_subject(vit(), native=96, way=way)


def test_the_number_of_outputs():
    assert load_subject("timm:test_vit", weights="random", num_classes=7)(torch.randn(1, 3, 160, 160)).shape == (1, 7)
    assert load_subject(Plain(4), native=16, num_classes=4).native == (16, 16)
    with pytest.raises(
        ValueError, match=r"Plain has 3 outputs, not 4; to have another number, name a model of a library"
    ):
        load_subject(Plain(), native=16, num_classes=4)


# -- libraries


def test_unknown_names_are_refused_with_those_that_are_near():
    wrong = {
        "timm:vit_tiny_patch16_242": "Did you mean vit_tiny_patch16_224",
        "torchvision:resnet19": "Did you mean resnet1",
        "timm:vit_tiny_patch16_224.nobody": "timm has no model 'vit_tiny_patch16_224.nobody'",
        "timm:local-dir:/tmp": "timm:local-dir:/tmp is not opened here",
    }
    for source, reason in wrong.items():
        with pytest.raises(ValueError, match=reason):
            load_subject(source, weights="random")
    with pytest.raises(
        ValueError, match=r"timm publishes no weights of vit_base_patch32_plus_256; give weights='random'"
    ):
        load_subject("timm:vit_base_patch32_plus_256")


def test_weights_that_cannot_be_had_are_told_with_what_else_there_is(monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    for source in ("timm:test_vit", "timm:resnet10t.c3_in1k", "torchvision:resnet18"):
        with pytest.raises(
            OSError,
            match=r"could not be had \(.*no network.*\)\. Connect to the network once, or give weights='random' or a",
        ):
            load_subject(source)


def test_published_weights_are_read_without_running_them(monkeypatch):
    weights, asked = torchvision.models.resnet18().state_dict(), []

    def download(url, *given, **options):
        asked.append(options.get("weights_only", False))
        return weights

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    subject = load_subject("torchvision:resnet18")
    assert asked[0] is True and same(subject.module.state_dict(), weights)
    assert (
        subject.weights == "pretrained"
        and (subject.classes[1][0], subject.classes[1][-1]) == ("goldfish", "n01443537")
        and subject.view["crop_ratio"] == 224 / 256
    )

    read = {}
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda model, **options: read.update(model=model))
    subject = load_subject("timm:test_vit.r160_in1k")
    assert read["model"] is subject.module and subject.way == "dynamic_img_size"


FINGERPRINTED = """
import torch
from torch import nn

class Model(nn.Sequential):
    def __init__(self):
        torch.manual_seed(3)
        super().__init__(nn.Conv2d(3, 2, 3), nn.Flatten())
        self.whatever = object()
"""


def test_another_process_without_the_optional_libraries(tmp_path):
    "A fingerprint does not depend on the process, and a library that is not there is asked for."
    (tmp_path / "mine.py").write_text(FINGERPRINTED)
    source = f"python:{tmp_path / 'mine.py'}:Model"
    code = ("import sys; sys.modules['timm'] = None; sys.modules['sklearn'] = None\n"
            "from sivit.subject import load_subject\n"
            "print(load_subject('torchvision:squeezenet1_0', weights='random').native)\n"
            "try:\n    load_subject('timm:resnet18')\nexcept ImportError as error:\n    print(error)\n"
            f"print(load_subject({source!r}, native=8).fingerprint())")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "(224, 224)",
        "Models of timm need timm: pip install timm",
        load_subject(source, native=8).fingerprint(),
    ]


# -- code and files of other people


MINE = """
from torch import nn
open({trace!r}, "a").write("run ")

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def number():
    return 3

def broken():
    raise KeyError("no such thing")
"""


@pytest.fixture
def mine(tmp_path):
    file, trace = tmp_path / "mine.py", tmp_path / "trace"
    file.write_text(MINE.format(trace=str(trace)))
    return SimpleNamespace(file=file, trace=trace)


def test_a_function_that_is_named_is_called(mine):
    modules = set(sys.modules)
    subject = load_subject(f"python:{mine.file}:build", native=16)
    assert (
        subject(torch.zeros(1, 3, 20, 24)).shape == (1, 4)
        and subject.name == "mine.py:build"
        and mine.trace.read_text() == "run "
    )
    assert all(name.startswith("_sivit_") for name in set(sys.modules) - modules) and "mine" not in sys.modules
    wrong = {
        "number": "must have a function number that takes nothing and returns an nn.Module; it gave int",
        "nothing": "mine.py has no function nothing",
        "broken": r"broken\(\) of .*mine.py failed with KeyError: .no such",
        "no-name": "must be python:FILE.py:FUNCTION",
    }
    for function, reason in wrong.items():
        with pytest.raises(ValueError, match=reason):
            load_subject(f"python:{mine.file}:{function}", native=16)
    mine.file.write_text("def build(:")
    with pytest.raises(ValueError, match=r"build\(\) of .*mine.py failed with SyntaxError"):
        load_subject(f"python:{mine.file}:build", native=16)
    with pytest.raises(ValueError, match=r"There is no file .*other.py"):
        load_subject(f"python:{mine.file.with_name('other.py')}:build", native=16)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_that_lies_in_a_folder_is_run(mine, tmp_path, run, monkeypatch):
    import shutil

    folder, sprung = shutil.copytree(run, tmp_path / "run"), tmp_path / "sprung"
    trap = Trap(str(sprung))
    code = f"open({str(sprung)!r}, 'w')\n"
    for name in ("model.py", "__init__.py", "sitecustomize.py", "modeling.py", "torch.py", "sivit.py"):
        (folder / name).write_text(code)
    for name in ("model.pt", "pytorch_model.bin", "model.pkl", "state.pt", "weights.pth"):
        torch.save({"trap": trap}, folder / name)
    (folder / "model.pickle").write_bytes(pickle.dumps(trap))
    monkeypatch.chdir(folder)
    for source in (folder, "."):
        assert load_subject(source)(torch.zeros(1, 1, 16, 16)).shape == (1, 10) and not sprung.exists()
    for name in ("model.pt", "pytorch_model.bin", "model.pkl", "weights.pth", "model.py", "model.pickle"):
        for source in (folder, "timm:test_vit", "torchvision:resnet18", Plain()):
            with pytest.raises(
                ValueError, match=r"can hold a program and is not opened here. If you trust it, convert it"
            ):
                load_subject(source, weights=str(folder / name))
        with pytest.raises(ValueError, match=r"is a file; a model is the folder that save_pretrained wrote"):
            load_subject(folder / name)
    shutil.copy(folder / "model.pickle", folder / "evil.safetensors")
    with pytest.raises(ValueError, match=r"evil.safetensors do not fit this ViT"):
        load_subject(folder, weights=str(folder / "evil.safetensors"))
    shutil.copy(folder / "model.pt", folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds no ViT that can be loaded"):
        load_subject(folder)
    assert not sprung.exists()
    torch.load(folder / "model.pt", weights_only=False)
    assert sprung.exists(), "the trap does work"


def test_weights_of_a_file_fit_exactly_or_are_refused(tmp_path):
    torch.manual_seed(1)
    source, file = Plain(), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), file)
    assert same(load_subject(Plain(), weights=str(file), native=16).module.state_dict(), source.state_dict())
    safetensors.torch.save_file({"stem.weight": source.stem.weight.detach()}, file)
    with pytest.raises(ValueError, match=r"weights.safetensors do not fit this Plain: .*Missing key"):
        load_subject(Plain(), weights=str(file), native=16)
    with pytest.raises(ValueError, match=r"There is no file .*nowhere.safetensors"):
        load_subject(Plain(), weights=str(tmp_path / "nowhere.safetensors"), native=16)
    for source in (Plain(), tmp_path):
        with pytest.raises(ValueError, match=r"weights='random' is for models by name"):
            load_subject(source, weights="random", native=16)


def test_a_subject_can_be_made_by_hand():
    subject = Subject(Plain(), "by hand", 16)
    assert (
        subject.native == (16, 16)
        and subject.way == "as it is"
        and subject.view == {}
        and subject(torch.zeros(1, 3, 9, 9)).shape == (1, 3)
    )
