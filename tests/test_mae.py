"""Masked pre-training against its definition: masks, targets, nothing hidden is seen, from run to fine-tuned run."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from sivit.core import from_dict, to_dict
from sivit.cost import count_macs
from sivit.mae import (
    MaskedAutoencoder,
    MaskedAutoencoderConfig,
    Pretraining,
    fixed_visible,
    merge_pixels,
    normalise_patches,
    pixel_places,
    random_visible,
)
from sivit.merge import list_mergers, merge_schedule, token_cells
from sivit.patch import list_stems, patch_grid
from sivit.position import POSITIONS
from sivit.study import Run, run_grid
from sivit.task import create_task, score
from sivit.train import TrainConfig, train
from sivit.vit import ViTConfig, list_positions

SIZES = [(24, 24), (32, 60), (29, 42)]
TINY = ViTConfig(image_size=24, patch_size=4, dim=16, depth=2, heads=2, num_classes=0, registers=1)
LIGHT = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
SUITABLE = [name for name in list_positions() if not POSITIONS[name].reads_neighbours]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def make(options=None, **encoder):
    "A small masked autoencoder in evaluation mode."
    return MaskedAutoencoder(
        MaskedAutoencoderConfig(dataclasses.replace(TINY, **encoder), **LIGHT | (options or {}))
    ).eval()


def mask_for(model, size, batch=2):
    return random_visible(batch, math.prod(model.grid(size)), model.config.mask_ratio)[0]


def pixel_mask(model, size, mask):
    "Which pixels `(b, 1, H, W)` belong to hidden tokens, cell by cell."
    p, padding = model.config.encoder.patch_size, getattr(model.encoder.merger, "padding", "paper")
    before, after = patch_grid(size, p), model.grid(size)
    rows, columns = (
        token_cells(n, cells, padding).repeat_interleave(p) for n, cells in zip(before, after, strict=True)
    )
    return mask[:, rows[: size[0], None], columns[: size[1]]][:, None]


# Masks


def test_every_subset_is_as_likely():
    "Chi-squared over all subsets of 2 of 6 tokens."
    visible, _ = random_visible(30_000, 6, 0.6)
    subsets = list(itertools.combinations(range(6), 2))
    counts = np.array([int((visible == torch.tensor(subset)).all(1).sum()) for subset in subsets])
    assert counts.sum() == 30_000 and ((counts - 2000) ** 2 / 2000).sum() < 36.1  # 14 degrees of freedom, p = 0.001


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.6, 0.75, 0.9])
def test_the_share_that_is_hidden(ratio):
    for tokens in range(1, 200):
        wanted = math.floor(round(tokens * (1 - ratio), 9))
        if not 0 < wanted < tokens:
            with pytest.raises(ValueError, match=f"leaves {wanted} of {tokens} tokens visible"):
                random_visible(1, tokens, ratio)
            continue
        visible, masked = random_visible(3, tokens, ratio)
        assert visible.shape == (3, wanted)
        assert torch.equal(torch.cat([visible, masked], 1).sort(1).values, torch.arange(tokens).expand(3, -1))


def test_fixed_masks_know_only_the_picture():
    numbers = torch.randperm(500)
    together, _ = fixed_visible(numbers, 36)
    for at in (0, 17, 499):
        assert torch.equal(fixed_visible(numbers[at : at + 1], 36)[0][0], together[at])
    assert len(together.unique(dim=0)) == 500
    before = torch.get_rng_state()
    fixed_visible(numbers, 36)
    assert torch.equal(torch.get_rng_state(), before)


# Targets


@pytest.mark.parametrize("padding", ["paper", "even"])
def test_pixels_of_an_axis_follow_the_cells(padding):
    for tokens, cells, p in itertools.product(range(1, 41), (1, 2, 5, 14), (1, 3)):
        if cells > tokens:
            continue
        places, cell = pixel_places(tokens, cells, p, padding), token_cells(tokens, cells, padding)
        assert torch.equal(places // p, cell.repeat_interleave(p))
        widths = cell.bincount(minlength=cells)
        assert torch.equal(places.bincount(), widths.repeat_interleave(p))
        assert (places.diff() >= 0).all()


def test_constant_and_mean_survive_merging():
    rows, columns = pixel_places(28, 7, 2), pixel_places(12, 3, 2)
    assert torch.equal(
        merge_pixels(torch.full((1, 3, 56, 24), 0.5), rows, columns, (14, 6)), torch.full((1, 3, 14, 6), 0.5)
    )
    picture = torch.rand(2, 3, 56, 24)
    torch.testing.assert_close(merge_pixels(picture, rows, columns, (14, 6)).mean((2, 3)), picture.mean((2, 3)))


def slow_loss(model, images, made):
    "The loss with NumPy, cell by cell and pixel by pixel."
    p, errors = model.config.encoder.patch_size, []
    before, after = patch_grid(images.shape[-2:], p), model.grid(images.shape[-2:])
    padding = getattr(model.encoder.merger, "padding", "paper")
    rows, columns = (token_cells(n, cells, padding).numpy() for n, cells in zip(before, after, strict=True))
    padded = [(0, 0), (0, 0), *((0, p * n - side) for n, side in zip(before, images.shape[-2:], strict=True))]
    pixels = np.pad(images.double().numpy(), padded, mode="edge")
    for b, i, j in made.mask.nonzero().tolist():
        (top,), (left,) = (np.flatnonzero(cell == at)[:1] for cell, at in ((rows, i), (columns, j)))
        r, s = (rows == i).sum(), (columns == j).sum()
        x = np.empty((p, p, images.shape[1]))
        for u, v, c in itertools.product(range(p), range(p), range(images.shape[1])):
            x[u, v, c] = pixels[
                b, c, p * top + u * r : p * top + (u + 1) * r, p * left + v * s : p * left + (v + 1) * s
            ].mean()
        x = x.ravel()
        if model.config.normalise_target:
            x = (x - x.mean()) / np.sqrt(x.var(ddof=1) + 1e-6)
        errors.append(((made.prediction[b, i, j].detach().numpy() - x) ** 2).mean())
    return np.mean(errors)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("options", [None, {}, {"padding": "even"}, {"ratio": 2}, {"ratio": (1, 2)}])
def test_loss_against_the_definition(options, normalise):
    parts = {} if options is None else {"merger": "atm", "merger_options": options, "merged_grid": (4, 6)}
    model = make({"normalise_target": normalise}, **parts)
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        made = model(images)
        assert made.loss.item() == pytest.approx(slow_loss(model, images, made), rel=1e-4)


def test_visible_tokens_do_not_count():
    model, images = make(), torch.rand(2, 3, 24, 24)
    made = model(images, mask_for(model, (24, 24)))
    made.prediction.retain_grad()
    made.loss.backward()
    slope = made.prediction.grad
    assert not slope[~made.mask].any() and slope[made.mask].abs().sum(-1).min() > 0


def test_flat_patches_and_half_precision():
    flat = normalise_patches(torch.full((3, 48), 0.3))[0]
    assert flat.abs().max() < 1e-3
    model, images = make(merger="atm", merged_grid=(3, 3)), torch.rand(2, 3, 40, 24)
    visible = mask_for(model, (40, 24))
    exact = model(images, visible)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, visible)
    assert rough.loss.dtype == torch.float32 and torch.equal(rough.target, exact.target)
    torch.testing.assert_close(rough.loss, exact.loss, rtol=0.05, atol=0)


# Any encoding that can, any size


@pytest.mark.parametrize("merger", ["none", "atm"])
@pytest.mark.parametrize("position", SUITABLE)
def test_hidden_pixels_have_no_influence(position, merger):
    model = make(position=position, merger=merger, merged_grid=(4, 6) if merger == "atm" else None)
    for size in SIZES:
        images, visible = torch.rand(2, 3, *size), mask_for(model, size)
        made = model(images, visible)
        hidden = pixel_mask(model, size, made.mask).expand_as(images)
        assert made.prediction.shape == (2, *model.grid(size), 48) and made.prediction.isfinite().all()
        assert torch.equal(model(images.masked_fill(hidden, torch.nan), visible).prediction, made.prediction)
        changed = torch.where(hidden, torch.rand_like(images), images)
        assert torch.equal(model(changed, visible).prediction, made.prediction)
        assert not torch.equal(model(changed, visible).loss, made.loss)
        alone = model(images[1:], visible[1:]).prediction
        torch.testing.assert_close(alone, made.prediction[1:], atol=1e-5, rtol=1e-4)


def test_in_training_mode_too():
    model = make(position="fuzzy", merger="atm", merged_grid=(4, 4), drop_path=0.3).train()
    images, visible = torch.rand(2, 3, 40, 28), mask_for(model, (40, 28))
    torch.manual_seed(5)
    made = model(images, visible)
    hidden = pixel_mask(model, (40, 28), made.mask).expand_as(images)
    torch.manual_seed(5)
    assert torch.equal(model(images.masked_fill(hidden, torch.nan), visible).prediction, made.prediction)


def test_two_encodings_convolve():
    assert set(list_positions()) - set(SUITABLE) == {"conditional", "glpe"}


@pytest.mark.parametrize("position", sorted(set(list_positions()) - set(SUITABLE)))
def test_what_convolves_is_refused_and_says_why(position):
    with pytest.raises(ValueError, match=f"'{position}' convolves the map of tokens.*Choose one without a convolution"):
        make(position=position)


def test_only_disjoint_cells_and_patches_pass():
    for merger in list_mergers():
        if merger in ("none", "atm"):
            make(merger=merger)
        else:
            with pytest.raises(
                ValueError, match=f"Cells of the merger '{merger}' share patches.*visible tokens would know"
            ):
                make(merger=merger)
    for stem in list_stems():
        if stem == "patch":
            make(stem=stem)
        else:
            with pytest.raises(ValueError, match=f"stem '{stem}' reads pixels round each patch"):
                make(stem=stem)


@pytest.mark.parametrize("merger", ["none", "atm"])
def test_overfits_one_batch(merger):
    "Remembers three pictures of noise under one mask."
    torch.manual_seed(0)
    model = make(
        {"decoder_dim": 64, "decoder_depth": 2, "normalise_target": False}, dim=64, merger=merger, merged_grid=(3, 4)
    ).train()
    images = torch.rand(3, 3, 12, 16) if merger == "none" else torch.rand(3, 3, 24, 32)
    images, visible = 2 * images - 1, mask_for(model, images.shape[-2:], 3)
    optimiser, first = torch.optim.Adam(model.parameters()), None
    for step in range(400):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * min(1, (step + 1) / 20, 2 - step / 200)
        loss = model(images, visible).loss
        first = loss.item() if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.01 < 0.1 < first


def test_saved_and_loaded(tmp_path):
    model = make(merger="atm", merged_grid=(4, 4), position="fuzzy")
    loaded = MaskedAutoencoder.from_pretrained(model.save_pretrained(tmp_path))
    assert (
        loaded.config
        == model.config
        == from_dict(MaskedAutoencoderConfig, json.loads((tmp_path / "config.json").read_text()))
    )
    for size in SIZES:
        images, visible = torch.rand(2, 3, *size), mask_for(model, size)
        assert all(torch.equal(a, b) for a, b in zip(model(images, visible), loaded(images, visible), strict=True))


def test_shown_pictures():
    for merger, size in itertools.product(("none", "atm"), SIZES):
        model, images = make(merger=merger, merged_grid=(4, 4) if merger == "atm" else None), torch.rand(2, 3, *size)
        made = model(images)
        hidden = pixel_mask(model, size, made.mask).expand_as(images)
        seen, filled = model.show(images, made)
        assert (
            not seen[hidden].any()
            and torch.equal(seen[~hidden], images[~hidden])
            and torch.equal(filled[~hidden], images[~hidden])
        )
        flat = torch.full_like(
            images, 0.5
        )  # every prediction of a flat picture leaves it flat but for 1e-3 of the prediction
        assert (model.show(flat, made)[1] - 0.5).abs().max() < 0.01


# Bad input


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_impossible_ratios(ratio):
    with pytest.raises(ValueError, match="mask_ratio must lie between 0 and 1"):
        MaskedAutoencoderConfig(TINY, mask_ratio=ratio)


def test_wrong_masks_and_pictures():
    model, images = make(), torch.rand(2, 3, 24, 24)
    shape = r"visible must be int64 \(2, n\) with n from 1 to 35"
    index = torch.arange(9).expand(2, -1)
    for wrong in (index.int(), index[:1], index[0], index[:, :0], torch.arange(36).expand(2, -1)):
        with pytest.raises(ValueError, match=shape):
            model(images, wrong)
    for wrong in (index - 1, index + 28, index * 0):
        with pytest.raises(ValueError, match="different tokens from 0 to 35 in every row"):
            model(images, wrong)
    with pytest.raises(ValueError, match="leaves 0 of 2 tokens visible"):
        model(torch.rand(2, 3, 4, 8))
    with pytest.raises(ValueError, match="the model needs 3"):
        model(torch.rand(2, 1, 24, 24))
    with pytest.raises(ValueError, match="merger would enlarge"):
        make(merger="atm", merged_grid=(8, 8))(images)


# The task


ENCODER = {"image_size": 16, "dim": 16, "depth": 1, "heads": 2, "pool": "mean"}
SETTINGS = TrainConfig(
    model_options=ENCODER, dataset="digits", schedule="all", sizes=(12, 16), epochs=1, learning_rate=2e-3,
    task="pretraining", task_options={**LIGHT, "mask_ratio": 0.5},
)  # fmt: skip


def test_options_reach_the_model():
    options = {"mask_ratio": 0.6, "decoder_dim": 24, "decoder_depth": 2, "decoder_heads": 3,
               "decoder_position": "fourier",
               "decoder_position_options": {"gamma": 3.0}, "normalise_target": False}  # fmt: skip
    task = create_task(dataclasses.replace(SETTINGS, task_options=options))
    config = task.model(task.dataset("val")).config
    assert {name: getattr(config, name) for name in options} == options and config.encoder.channels == 1
    assert task.rebuild(to_dict(config)).config == config
    with pytest.raises(ValueError, match=r"has no option 'mask_ration'\. Did you mean 'mask_ratio'"):
        create_task(dataclasses.replace(SETTINGS, task_options={"mask_ration": 0.5}))
    with pytest.raises(ValueError, match="convolves the map"):
        train(dataclasses.replace(SETTINGS, model_options=ENCODER | {"position": "conditional"}), progress=False)


def test_scores_do_not_depend_on_chance_or_batches():
    task = Pretraining(SETTINGS)
    pictures = task.dataset("val")
    model = task.model(pictures)
    torch.manual_seed(1)
    first = score(task, model, pictures, (12, 16), batch_size=64)
    torch.manual_seed(2)
    assert score(task, model, pictures, (12, 16), batch_size=64) == first
    assert score(task, model, pictures, (12, 16), batch_size=29) == pytest.approx(first, rel=1e-5)
    assert set(first) == {"explained", "masked_loss"}


def test_the_price_is_that_of_masked_pictures():
    model = make({"mask_ratio": 0.5})
    fewer = make({"mask_ratio": 0.75})
    assert count_macs(fewer, (3, 24, 24)) < count_macs(model, (3, 24, 24))
    blocks = [12 * 16**2 * n + 2 * n**2 * 16 for n in (2 + 18, 2 + 9)]  # one class token, one register
    assert count_macs(model, (3, 24, 24)) - count_macs(fewer, (3, 24, 24)) == 2 * (blocks[0] - blocks[1]) + 9 * 16 * 16


def test_a_study_begins_with_the_encoder(tmp_path):
    labelled = dataclasses.replace(SETTINGS, task="classification", task_options={}, evaluate_every=0)
    before = dataclasses.replace(SETTINGS, evaluate_every=0)
    runs = [Run(before, resolutions=(12, 24)), Run(labelled, resolutions=(12, 24), pretraining=before)]
    table = run_grid(runs, tmp_path, jobs=1, progress=False)
    masked, tuned = (table[table.key == run.key] for run in runs)
    assert masked.explained.notna().all() and masked.accuracy.isna().all() and tuned.accuracy.notna().all()
    assert sorted(masked.value) == [12, 24]
    encoder = MaskedAutoencoder.from_pretrained(next((tmp_path / "pretrained").glob("*/"))).encoder
    frozen = train(
        dataclasses.replace(labelled, learning_rate=1e-9),
        progress=False,
        start=next((tmp_path / "pretrained").glob("*/")),
    )
    for a, b in zip(frozen.model.encoder.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_masks_differ_between_steps_and_repeat_with_the_seed(tmp_path):
    twice = [train(SETTINGS, progress=False) for _ in range(2)]
    assert twice[0].history[0]["loss"] == twice[1].history[0]["loss"]
    assert (
        twice[0].history[0]["loss"] != train(dataclasses.replace(SETTINGS, seed=1), progress=False).history[0]["loss"]
    )


def test_passes_of_the_merger_are_those_of_the_target():
    "The target deals rows to cells in the merger's own passes."
    model = make(merger="atm", merged_grid=(3, 5))
    for grid in [(7, 11), (3, 5), (12, 9), (6, 10)]:
        sizes = [
            n for axis, cells in zip(grid, (3, 5), strict=True) for n in merge_schedule(axis, cells)[-1:] or [axis]
        ]
        assert tuple(sizes) == (3, 5) == model.grid((4 * grid[0], 4 * grid[1]))
