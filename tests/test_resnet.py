"""The convolutional peer: torchvision's network, a merger's cells, the same loop, and a measure against brute force."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torchvision
from einops import rearrange
from torch import nn
from torch._dynamo.testing import CompileCounter

from sivit.data import create_dataset, create_loader
from sivit.merge import AdaptiveTokenMerger
from sivit.resnet import DOWNSAMPLES, GridAttentionPool, ResNet, ResNetConfig, shift_equivariance_error
from sivit.task import create_task, score
from sivit.train import TrainConfig, load_model, train
from sivit.vit import MODELS, create_model

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
SIZES = [(24, 24), (16, 32), (13, 21)]
every_downsample = pytest.mark.parametrize("downsample", DOWNSAMPLES)


def randomise(model):
    "Parameters and statistics as training might leave them."
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.2 if parameter.ndim == 1 else 0.05)
    for name, buffer in model.named_buffers():
        if name.endswith(("mean", "var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model


def small(downsample="stride", **changes):
    "A network for digits."
    options = {"channels": 1, "num_classes": 10, "downsample": downsample, **changes}
    return create_model("resnet8", **options)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_logits_statistics_and_gradients_equal_torchvision(name, seed):
    torch.manual_seed(seed)
    theirs, ours = randomise(getattr(torchvision.models, name)(num_classes=7)), create_model(name, num_classes=7)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    for size in [(64, 64), (40, 96), (33, 47)]:
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), **CLOSE)
    for model in (ours, theirs):
        model.train()(images).square().mean().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **CLOSE)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (5, 7), (1, 9), (1, 1), (2, 3)])
def test_the_pool_is_the_attention_of_a_merging_pass(grid):
    torch.manual_seed(0)
    pool, merger = GridAttentionPool(12, 3), AdaptiveTokenMerger(12, 3, (1, 1), ratio=2)
    merger.attention.load_state_dict(pool.attention.state_dict())
    nn.init.zeros_(merger.mlp[2].weight)
    nn.init.zeros_(merger.mlp[2].bias)
    maps = torch.randn(2, 12, *grid)
    expected = rearrange(merger(rearrange(maps, "b c h w -> b h w c")), "b h w c -> b c h w")
    torch.testing.assert_close(pool(maps), expected)
    assert pool(maps).shape[-2:] == tuple((side + 1) // 2 for side in grid)


@every_downsample
def test_every_parameter_learns(downsample):
    for stem in ("small", "imagenet"):
        model = small(downsample, stem=stem)
        model(torch.randn(4, 1, 37, 50)).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@every_downsample
def test_half_precision_stays_half(downsample):
    torch.manual_seed(0)
    model, images = small(downsample).eval(), torch.randn(2, 1, 21, 16)
    exact = model(images)
    halved = model.bfloat16()(images.bfloat16())
    assert halved.dtype == torch.bfloat16
    assert (halved.float() - exact).norm() < 0.1 * exact.norm()


@every_downsample
def test_one_graph_for_all_sizes(downsample):
    torch.compiler.reset()
    model, counter = small(downsample, stem="imagenet").eval(), CompileCounter()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in [(48, 64), (50, 50), (61, 47), (96, 80)]:
            images = torch.randn(2, 1, *size)
            torch.testing.assert_close(compiled(images), model(images), **CLOSE)
    assert counter.frame_count <= 2


@every_downsample
def test_it_overfits_one_batch_by_the_loss_of_its_task_and_reloads_equal(downsample, tmp_path):
    torch.manual_seed(0)
    task = create_task(
        TrainConfig(model="resnet8", model_options={"downsample": downsample}, label_smoothing=0.0, consistency=0.0)
    )
    digits = task.dataset("train")
    batch = next(iter(create_loader(digits, 24, lambda step: SIZES[:2], train=True)))
    model = task.model(digits)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, targets = task.prepare(batch, digits, seed=0)
    for _ in range(40):
        loss = task.loss(model, images, targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss < 0.1
    model.save_pretrained(tmp_path)
    loaded = ResNet.from_pretrained(tmp_path)
    for size in SIZES:
        images = torch.randn(2, 1, *size)
        assert torch.equal(loaded(images), model.eval()(images))
    assert all(torch.equal(one, other) for one, other in zip(loaded.buffers(), model.buffers(), strict=True))


@every_downsample
def test_the_loop_trains_it_and_judges_it_at_three_sizes(downsample, tmp_path):
    options = {"downsample": downsample, "width": 8}
    config = TrainConfig(
        model="resnet8",
        model_options=options,
        sizes=(8, 12),
        schedule="all",
        epochs=1,
        ema=0.5,
        learning_rate=4e-3,
        layer_decay=0.9,
    )
    trained = train(config, tmp_path, progress=False)
    assert isinstance(trained.model, ResNet) and trained.model.config.downsample == downsample
    loaded, pictures = load_model(tmp_path, "last"), create_dataset("digits", "val")
    task = create_task(config)
    for size in [12, (12, 16), (9, 14)]:
        found = score(task, loaded, pictures, size)
        assert found == score(task, trained.model, pictures, size) and 0.2 < found["accuracy"] <= 1


def test_gradient_checkpointing_does_not_count_a_batch_twice():
    config = TrainConfig(
        model="resnet8", model_options={"width": 8}, sizes=(8,), schedule="single", epochs=1, evaluate_every=0
    )
    plain, recomputed = (
        train(dataclasses.replace(config, grad_checkpointing=again), progress=False).model for again in (False, True)
    )
    assert recomputed.grad_checkpointing and not plain.grad_checkpointing
    for one, other in zip(plain.state_dict().values(), recomputed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_names_say_what_they_are():
    for name in MODELS.names("resnet*"):
        config = MODELS[name]()
        assert isinstance(config, ResNetConfig)
        base, _, suffix = name.partition("_")
        assert config.downsample.replace("_", "") == (suffix or "stride") and config.layers == MODELS[base]().layers


# The equivariance error, against sums written out place by place


def by_brute_force(features, images, down, right, stride, margin):
    "The definition with loops."
    before = features(images).double().numpy()
    after = features(images.roll((down, right), (-2, -1))).double().numpy()
    k, m = down // stride, right // stride
    b, _, h, w = before.shape
    places = [
        (n, i, j)
        for n, i, j in itertools.product(range(b), range(margin, h - margin - k), range(margin, w - margin - m))
    ]
    moved = np.array([before[n, :, i, j] for n, i, j in places])
    found = np.array([after[n, :, i + k, j + m] for n, i, j in places])
    return ((found - moved) ** 2).sum() / ((moved - moved.mean(0)) ** 2).sum()


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, 6), (4, 2)])
@pytest.mark.parametrize("margin", [0, 1, 2])
def test_the_error_is_its_definition(shift, margin):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1)).requires_grad_(False)
    images = torch.randn(3, 3, 20, 26)
    found = shift_equivariance_error(features, images, shift, stride=2, margin=margin)
    assert found == pytest.approx(by_brute_force(features, images, *shift, 2, margin), rel=1e-4, abs=1e-12)


def test_pooled_features_of_a_band_limited_picture_do_not_alias():
    "A wave that the places can show is summed up alike wherever it starts; one that is too fast for them is not."
    phase = torch.arange(4.0).view(4, 1, 1, 1)
    column = torch.arange(24.0).view(1, 1, 24, 1)
    every_third = lambda x: x[:, :, ::3] ** 2  # noqa: E731
    slow, fast = (torch.sin(2 * torch.pi * cycles * column / 24 + phase) * (1 + phase) for cycles in (1, 4))
    for shift in (1, 2, 5):
        assert shift_equivariance_error(every_third, slow, (shift, 0), stride=3, pooled=True) < 1e-9
        assert shift_equivariance_error(every_third, fast, (shift, 0), stride=3, pooled=True) > 0.1
    assert shift_equivariance_error(every_third, fast, (3, 0), stride=3, pooled=True) < 1e-9


@every_downsample
def test_inside_its_field_of_view_a_network_is_equivariant_at_whole_strides(downsample):
    torch.manual_seed(0)
    model = small(downsample).eval()
    features = lambda images: rearrange(model.forward_features(images).map, "b h w d -> b d h w")  # noqa: E731
    images = torch.randn(4, 1, 64, 64)
    assert shift_equivariance_error(features, images, 4, stride=4, margin=6) < 1e-9
    assert shift_equivariance_error(features, images, 4, stride=4) > 1e-3
