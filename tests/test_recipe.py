"""The recipe against timm's, with which DeiT, ResFormer and ViTAR were trained."""

from collections import Counter
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torchvision.transforms import v2

from sivit.recipe import RECIPES, create_ema, create_optimiser, mix, parameter_groups
from sivit.vit import create_model


def sizes_by_rate_and_decay(groups, rate):
    "Numbers of parameters, in each group of one learning rate and weight decay."
    count = Counter()
    for group in groups:
        for parameter in group["params"]:
            count[round(rate(group), 9), group["weight_decay"]] += parameter.numel()
    return count


@pytest.mark.parametrize("layer_decay", [1.0, 0.65, 0.9])
def test_parameter_groups_are_timm_s(layer_decay):
    from timm.optim import param_groups_layer_decay

    peer = timm.create_model("vit_tiny_patch16_224", depth=3, class_token=False, global_pool="avg", fc_norm=False)
    theirs = param_groups_layer_decay(peer, 0.05, peer.no_weight_decay(), layer_decay=layer_decay)
    model = create_model("vit_tiny_patch16", depth=3, pool="mean")
    ours = parameter_groups(model, 0.05, 1e-3, layer_decay)
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in model.parameters())
    expected = sizes_by_rate_and_decay(theirs, lambda group: 1e-3 * group["lr_scale"])
    final_norm = sum(p.numel() for p in peer.norm.parameters())  # timm: last block; BEiT and we: head
    expected[round(1e-3 * layer_decay, 9), 0.0] -= final_norm
    expected[1e-3, 0.0] += final_norm
    assert sizes_by_rate_and_decay(ours, lambda group: group["lr"]) == expected


def test_the_cosine_is_timm_s():
    from timm.scheduler import CosineLRScheduler

    model, steps, rising = create_model("vit_micro_patch4", depth=1), 60, 6
    rates = {"learning_rate": 2e-3, "minimum_rate": 1e-4, "warmup": rising / steps}
    settings = SimpleNamespace(weight_decay=0.05, layer_decay=1.0, **rates)
    optimiser, scheduler = create_optimiser(model, settings, steps)
    other = torch.optim.SGD(model.parameters(), lr=2e-3)
    peer = CosineLRScheduler(other, steps - rising, lr_min=1e-4, warmup_t=rising, warmup_prefix=True, t_in_epochs=False)
    for step in range(steps):
        peer.step_update(step)
        if step >= rising:
            assert scheduler.get_last_lr()[0] == pytest.approx(other.param_groups[0]["lr"], rel=1e-6)
        optimiser.step()
        scheduler.step()


def test_mixed_targets_and_pictures_are_timm_s():
    from timm.data.mixup import mixup_target

    labels = torch.tensor([2, 0])  # of two pictures each is the other's partner, in timm as here
    for seed in range(10):
        images = torch.rand(2, 3, 16, 16)
        _, plain = mix((images,), labels, 5, mixup=0.8, seed=seed)
        share = plain[0, 2].item()
        (mixed,), targets = mix((images,), labels, 5, mixup=0.8, label_smoothing=0.1, seed=seed)
        torch.testing.assert_close(targets, mixup_target(labels, 5, lam=share, smoothing=0.1))
        torch.testing.assert_close(mixed, images * share + images.flip(0) * (1 - share))


def test_averages_are_timm_s():
    from timm.utils import ModelEmaV3

    model = nn.Linear(3, 2)
    ours, theirs = create_ema(model, 0.9), ModelEmaV3(model, decay=0.9)
    for _ in range(5):
        nn.init.normal_(model.weight)
        ours.update_parameters(model)
        if ours.n_averaged == 1:
            theirs.set(model)  # timm's starts before the first step, torch's after it
        else:
            theirs.update(model)
    torch.testing.assert_close(ours.module.weight, theirs.module.weight)


def test_magnitude_27_of_30_is_timm_s_9_of_10():
    from timm.data import auto_augment

    magnitude, space = RECIPES["deit"]()["dataset_options"]["rand_magnitude"], v2.RandAugment._AUGMENTATION_SPACE
    theirs = {
        "Rotate": auto_augment._rotate_level_to_arg(9, {})[0], "ShearX": auto_augment._shear_level_to_arg(9, {})[0],
        "Color": auto_augment._enhance_increasing_level_to_arg(9, {})[0] - 1,
        "TranslateX": auto_augment._translate_rel_level_to_arg(9, {})[0] * 224,
    }  # fmt: skip
    for name, value in theirs.items():
        strength = space[name][0](31, 224, 224)[magnitude].item()
        assert abs(value) == pytest.approx(strength, rel=0.01), name
    applied = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    mean = applied.num_layers * applied.ops[0].prob
    assert mean == RECIPES["deit"]()["dataset_options"]["rand_augment"]
