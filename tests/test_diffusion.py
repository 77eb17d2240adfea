"""Diffusion: learned, sampled and measured as worked out by other means, with every encoding and merger."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm
from torch import nn
from torch._dynamo.testing import CompileCounter

from sivit.core import from_dict, to_dict
from sivit.diffusion import DiffusionConfig, DiffusionTransformer, draw_times, flow_loss, sample, sample_quality
from sivit.task import create_task, score
from sivit.train import TrainConfig, load_model, train
from sivit.vit import ViT, ViTConfig, list_mergers, list_positions

torch.set_num_threads(1)

VIT = {"image_size": 12, "patch_size": 2, "dim": 32, "depth": 2, "heads": 4, "registers": 2, "pool": "mean"}
HALVED = {"merger": "atm", "merger_options": {"ratio": 2}}
SIZES = [(12, 12), (24, 24), (12, 20), (7, 9), (2, 2)]


def stirred(seed: int = 0, **options) -> DiffusionTransformer:
    "A model whose silent layers have random weights."
    torch.manual_seed(seed)
    model = DiffusionConfig(ViTConfig(**VIT | options), num_classes=3).build().eval()
    for weight in [model.head.weight] + ([model.unmerger.out.weight] if model.unmerger else []):
        nn.init.normal_(weight, std=0.2)
    return model


def settings(**changes) -> TrainConfig:
    fields = {
        "task": "generation",
        "dataset": "scenes",
        "dataset_options": {"length": 128, "config": {"classes": 3}},
        "model_options": {key: VIT[key] for key in ("image_size", "patch_size", "dim", "depth", "heads")},
        "schedule": "single",
        "sizes": (12,),
        "epochs": 2,
        "batch_size": 32,
    }
    return TrainConfig(**fields | changes)


@pytest.mark.parametrize("position, merger", list(itertools.product(list_positions(), list_mergers())))
def test_every_encoding_and_merger_at_every_size(position, merger):
    model = stirred(position=position, merger=merger, merged_grid=(3, 4))
    for size in SIZES:
        noisy, times, labels = torch.randn(2, 3, *size), torch.tensor([0.2, 0.7]), torch.tensor([1, -1])
        with torch.no_grad():
            velocities = model(noisy, times, labels)
            assert velocities.shape == noisy.shape and velocities.isfinite().all() and velocities.abs().max() > 1e-3
            torch.testing.assert_close(model(noisy[1:], times[1:], labels[1:]), velocities[1:], atol=1e-5, rtol=1e-4)


def test_the_blocks_see_a_quarter_of_the_tokens():
    seen = []
    for options, wanted in [({}, 36 + 2), (HALVED, 9 + 2), (HALVED | {"registers": 5}, 9 + 5)]:
        model = stirred(**options)
        model.encoder.blocks[0].register_forward_hook(lambda block, inputs, out: seen.append(out.shape[1]))
        model(torch.randn(1, 3, 12, 12))
        assert seen[-1] == wanted


@pytest.mark.parametrize("options", [{}, HALVED])
def test_a_step_of_the_sampler_is_small_enough_when_it_is(options):
    "The sampler leads where an adaptive solver leads, for a network that nobody knows in closed form."
    model, labels = stirred(position="sincos", **options).double(), torch.tensor([0, 2])
    noise = torch.randn(2, 3, 4, 6, dtype=torch.float64)

    def slope(t, x):
        with torch.no_grad():
            place = torch.from_numpy(x).view_as(noise)
            return model(place, torch.full((2,), t, dtype=torch.float64), labels).flatten().numpy()

    solved = solve_ivp(slope, (0, 1), noise.flatten().numpy(), rtol=1e-4, atol=1e-5)
    assert solved.success
    end, off = torch.from_numpy(solved.y[:, -1]).view_as(noise), []
    for steps in (5, 20, 80):
        off.append((sample(model, noise, labels, steps=steps, shift=2.0) - end).abs().max().item())
    assert off[2] < 0.5 * off[1] < 0.25 * off[0] and off[2] < 0.05 * (end - noise).abs().max()


@pytest.mark.parametrize("size", SIZES)
def test_samples_depend_on_noise_and_label_alone(size):
    model, noise, labels = stirred(**HALVED), torch.randn(4, 3, *size), torch.tensor([0, 1, 2, -1])
    drawn = sample(model, noise, labels, steps=5, guidance=2.0)
    assert drawn.shape == noise.shape and drawn.isfinite().all() and not drawn.requires_grad
    alone = sample(model, noise[1:3], labels[1:3], steps=5, guidance=2.0)
    torch.testing.assert_close(alone, drawn[1:3], atol=1e-5, rtol=1e-4)
    others = sample(model, noise, labels.roll(1), steps=5, guidance=2.0)
    assert all((others[i] - drawn[i]).abs().max() > 1e-4 for i in range(4))
    torch.testing.assert_close(sample(model, noise, None, steps=5), sample(model, noise, torch.full((4,), -1), steps=5))


def test_guidance_without_a_class_changes_nothing():
    model, noise = stirred(), torch.randn(2, 3, 12, 12)
    guided, plain = sample(model, noise, steps=4, guidance=3.0), sample(model, noise, steps=4)
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, HALVED])
def test_one_graph_for_many_sizes(options):
    model, counter = stirred(**options), CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for size in [(12, 16), (20, 26), (32, 14)]:
        noisy, times, labels = torch.randn(3, 3, *size), torch.rand(3), torch.tensor([0, 1, -1])
        with torch.no_grad():
            expected = model(noisy, times, labels)
            torch.testing.assert_close(compiled(noisy, times, labels), expected, atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("options", [{}, HALVED])
def test_checkpointed_gradients_are_the_same(options):
    gradients = []
    for enable in (False, True):
        model = stirred(**options).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        pictures, noise = torch.randn(2, 2, 3, 8, 8)
        flow_loss(model, pictures, noise, draw_times(2), torch.tensor([0, 2])).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("options", [{}, HALVED])
def test_trained_saved_and_gone_on_with(options, tmp_path):
    "The loop lowers the loss, keeps the best by the task's measure, and what is on disk draws the same pictures."
    config = settings(epochs=12, learning_rate=4e-3, save_every=10)
    config = dataclasses.replace(config, model_options=config.model_options | options)
    trained = train(config, tmp_path / "run", progress=False)
    assert trained.history[-1]["explained"] > 0.3 > trained.history[0]["explained"]
    assert trained.best["explained"] == max(row["explained"] for row in trained.history)
    noise, labels = torch.randn(3, 3, 12, 18), torch.tensor([0, 1, 2])
    drawn = sample(trained.model, noise, labels, steps=3)
    for other in (DiffusionTransformer.from_pretrained(tmp_path / "run"), load_model(tmp_path / "run", "last")):
        assert torch.equal(sample(other, noise, labels, steps=3), drawn)
    task = create_task(config)
    for size in (12, 24, (12, 18)):
        assert score(task, trained.model, task.dataset("val", length=64), size)["explained"] > 0
    begun = train(dataclasses.replace(config, epochs=1), progress=False, start=tmp_path / "run")
    assert begun.history[0]["explained"] > trained.history[0]["explained"]


@pytest.mark.parametrize("schedule, sizes", [("per_batch", (8, 12)), ("all", (8, 12))])
def test_several_sizes_in_parts_and_in_half_precision(schedule, sizes):
    changes = {"schedule": schedule, "sizes": sizes, "epochs": 6, "accumulate": 2, "precision": "bf16"}
    trained = train(settings(learning_rate=4e-3, **changes), progress=False)
    assert np.isfinite(trained.history[-1]["loss"]) and trained.history[-1]["explained"] > 0.1


def test_the_budget_of_compute_can_be_counted():
    "Operations are counted with pictures alone."
    changes = {"budget": "compute", "budget_size": 12, "sizes": (8,), "epochs": 1, "evaluate_every": 0}
    assert 4 < train(settings(**changes), progress=False).account.steps < 16


def test_the_distance_is_heusels():
    "Mean and covariance of the judge's features, with another matrix square root."
    torch.manual_seed(0)
    judge = ViT(ViTConfig(image_size=12, patch_size=4, dim=8, depth=1, heads=2, num_classes=3, pool="mean")).eval()
    for p in judge.parameters():
        nn.init.normal_(p, std=0.5)
    real, samples = torch.randn(90, 3, 12, 12), 0.7 * torch.randn(70, 3, 12, 12) + 0.3
    labels = torch.randint(0, 3, (70,))
    measured = sample_quality(judge, real, samples, labels, batch_size=32)
    with torch.no_grad():
        read = [judge.forward_head(judge.forward_features(x), pre_logits=True) for x in (real, samples)]
        features = [f.double().numpy() for f in read]
        agreement = (judge(samples).argmax(1) == labels).float().mean().item()
    means, covariances = zip(*[(f.mean(0), np.cov(f.T)) for f in features], strict=True)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert measured["frechet"] == pytest.approx(expected, rel=1e-4) and expected > 0.1
    assert measured["agreement"] == pytest.approx(agreement)
    near = sample_quality(judge, real, torch.randn(70, 3, 12, 12), labels)
    assert 0 < near["frechet"] < measured["frechet"]


def test_a_picture_is_learned_where_patches_are_large():
    "With as many numbers in a patch as a token is wide, the prediction of pictures explains more."
    options = settings().model_options | {"patch_size": 4, "dim": 48}
    explained = {}
    for predicts in ("velocity", "picture"):
        config = settings(model_options=options, task_options={"predicts": predicts}, epochs=16, learning_rate=4e-3)
        trained = train(config, progress=False)
        assert trained.model.config.predicts == predicts
        explained[predicts] = trained.history[-1]["explained"]
    assert explained["picture"] > explained["velocity"]


def test_configurations():
    config = DiffusionConfig(ViTConfig(**VIT | HALVED), num_classes=5)
    assert from_dict(DiffusionConfig, to_dict(config)) == config
    with pytest.raises(ValueError, match="set registers=2 and pool='mean'"):
        DiffusionConfig(ViTConfig())
    with pytest.raises(ValueError, match="holds no DiffusionTransformer"):
        DiffusionTransformer.from_pretrained(".")
