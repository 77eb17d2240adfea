"""Looking inside: weights are those that attention used; measures equal plain numpy; no model is changed."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import timm
import torch
import torchvision
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import entropy
from torch import nn

import sivit
from sivit.explain import (
    attention_distance,
    attention_entropy,
    attention_maps,
    attention_on_input,
    attention_rollout,
    attention_statistics,
    cell_bounds,
    head_diversity,
    position_similarity,
    prefix_share,
    token_places,
)
from sivit.merge import AdaptiveTokenMerger
from sivit.position import Position, list_positions
from sivit.segment import SegmentationConfig, SegmentationModel
from sivit.vit import ViT, ViTConfig

torch.set_num_threads(1)

BASE = ViTConfig(image_size=16, patch_size=4, num_classes=3, dim=16, depth=2, heads=4)
ATM = {"merger": "atm", "merged_grid": (3, 4)}
VARIANTS = {
    "class token": {},
    "mean": {"pool": "mean"},
    "registers": {"registers": 3, "qk_norm": True},
    "registers, no class token": {"registers": 2, "pool": "mean", "class_token": False},
    "atm": ATM,
    "atm, even": ATM | {"merger_options": {"padding": "even", "final_pass": True}, "pool": "mean"},
    "atm, ratio": {"merger": "atm", "merger_options": {"ratio": (2, 1)}},
    "avgpool": {"merger": "avgpool", "merged_grid": (2, 5)},
    "convpool": {"merger": "convpool", "merged_grid": (2, 2), "layer_scale": 0.1},
    "hybrid": {"stem": "hybrid", "qkv_bias": False},
}
SIZES = [(16, 16), (12, 27), (5, 41)]  # square; padded; one row and a half
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_position = pytest.mark.parametrize("position", list_positions())


def make(**changes):
    "A model in double precision in which every parameter matters."
    torch.manual_seed(0)
    model = ViT(dataclasses.replace(BASE, **changes)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def noise(*size, b=2):
    return torch.randn(b, 3, *size, dtype=torch.float64)


# Weights


@torch.no_grad()
def check_weights(model, images):
    "Weights times values, and the local term, are what attention gave, by a hook on each block's attention."
    calls, encoder = [], model.encoder
    hooks = [block.attention.register_forward_hook(lambda *call: calls.append(call)) for block in encoder.blocks]
    expected = model(images)
    untouched, calls[:] = list(calls), []
    maps = attention_maps(model, images)
    for hook in hooks:
        hook.remove()
    assert len(maps) == len(calls) == len(untouched) == len(encoder.blocks)
    for weights, (attention, (x, position, grid, layer, prefix, _), output), before in zip(
        maps, calls, untouched, strict=True
    ):
        assert torch.equal(output, before[2])  # the observer changes nothing
        assert weights.shape == (len(images), attention.heads, x.shape[1], x.shape[1]) and weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        values = attention.qkv(x).chunk(3, -1)[2].unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        mixed, local = weights @ values, position.local(values[:, :, prefix:], grid, layer)
        if local is not None:
            mixed[:, :, prefix:] += local
        torch.testing.assert_close(attention.projection(mixed.transpose(1, 2).flatten(2)), output)
    assert torch.equal(model(images), expected)


@every_position
def test_weights_times_values_are_the_output_of_attention(position):
    for variant, size in itertools.product(("mean", "registers", "atm"), SIZES):
        check_weights(make(position=position, **VARIANTS[variant]), noise(*size))


@every_variant
def test_of_every_kind_of_model(variant):
    for position, size in itertools.product(("learned", "lookhere"), SIZES):
        check_weights(make(position=position, **VARIANTS[variant]), noise(*size))


def test_an_encoding_from_elsewhere_needs_no_word_here():
    class Loud(Position):
        def bias(self, grid, layer):
            return torch.full((4, 16, 16), -math.inf).index_fill(2, torch.tensor(layer), 0.0)

    model = make(pool="mean", position="none")
    model.encoder.position = Loud(16, 4, 2, (4, 4))
    for layer, weights in enumerate(attention_maps(model, noise(16, 16))):
        assert weights[..., layer].eq(1).all() and weights.sum() == 2 * 4 * 16


def test_models_of_other_tasks_and_bare_encoders():
    torch.manual_seed(0)
    segmenter = SegmentationModel(SegmentationConfig(BASE, 3)).eval()
    images = torch.randn(1, 3, 12, 27)
    for ours, bare in zip(attention_maps(segmenter, images), attention_maps(segmenter.encoder, images), strict=True):
        assert torch.equal(ours, bare)
    assert set(attention_statistics(segmenter, images)["layer"]) == {0, 1}


def test_layers_are_picked_in_the_order_asked_for():
    model, images = make(depth=4), noise(12, 27)
    maps = attention_maps(model, images)
    for picked in ([2], [-1, 0], [3, 3], []):
        assert all(map(torch.equal, attention_maps(model, images, picked), [maps[layer] for layer in picked]))


def test_later_blocks_are_not_run_for_an_early_one():
    model, ran = make(depth=4), []
    for layer, block in enumerate(model.encoder.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    attention_maps(model, noise(8, 8), [1])
    assert ran == [0, 1]


def test_a_model_in_training_is_read_in_evaluation_and_left_as_it_was():
    model = make(position="fuzzy", drop_path=0.5, **ATM)
    images = noise(20, 28)
    expected = attention_maps(model, images)
    model.train().encoder.blocks[0].eval()
    model.set_grad_checkpointing()
    modes = {name: module.training for name, module in model.named_modules()}
    for weights, wanted in zip(attention_maps(model, images), expected, strict=True):
        assert torch.equal(weights, wanted) and not weights.requires_grad and not weights.is_inference()
    attention_statistics(model, images)
    position_similarity(model, (4, 4), (1, 1))
    with pytest.raises(ValueError, match="smaller than one patch"):
        attention_maps(model, noise(2, 2))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters()) and torch.is_grad_enabled()


def test_half_precision_autocast_and_compiled_blocks():
    torch.manual_seed(0)
    model, images = ViT(dataclasses.replace(BASE, position="lookhere")).eval(), torch.randn(2, 3, 16, 24)
    maps = attention_maps(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        cast = attention_maps(model, images)
    half = attention_maps(model.bfloat16(), images.bfloat16())
    for low in (cast, half):
        for weights, wanted in zip(low, maps, strict=True):
            assert weights.dtype == torch.float32
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 25))
            torch.testing.assert_close(weights, wanted, atol=0.02, rtol=0.2)
    model.float()
    exact = attention_maps(model, images)
    for block in model.encoder.blocks:
        block.compile(backend="eager")
    torch.testing.assert_close(attention_maps(model, images), exact)
    torch.testing.assert_close(attention_maps(torch.compile(model, backend="eager"), images), exact)


def randomised(model):
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.08)
    return model.eval()


TIMM = {
    "deit": {"model_name": "deit_tiny_patch16_224"},
    "registers, qk_norm": {"model_name": "vit_tiny_patch16_224", "reg_tokens": 4, "qk_norm": True},
    "mean": {"model_name": "vit_tiny_patch16_224", "global_pool": "avg", "class_token": False, "init_values": 0.5},
}


@pytest.mark.parametrize("kind", TIMM)
def test_timm_s_own_weights(kind):
    theirs = randomised(timm.create_model(**TIMM[kind], depth=2, num_classes=3, dynamic_img_size=True))
    written = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: written.append(output))
    ours = sivit.from_timm(theirs)
    for size in [(224, 224), (64, 112)]:
        images = torch.randn(1, 3, *size)
        written.clear()
        with torch.no_grad():
            theirs(images)
        maps = attention_maps(ours, images)
        assert min(weights.std() for weights in maps) > 1e-3
        torch.testing.assert_close(maps, written, atol=1e-5, rtol=1e-5)
    assert len(attention_statistics(ours, images)) == 2 * 3


def test_torchvision_s_own_weights():
    theirs = randomised(torchvision.models.VisionTransformer(64, 16, 2, 4, 32, 64, num_classes=3))
    images, written = torch.randn(2, 3, 64, 64), []

    def ask(module, inputs, keywords):
        return inputs, keywords | {"need_weights": True, "average_attn_weights": False}

    for layer in theirs.encoder.layers:
        layer.self_attention.register_forward_pre_hook(ask, with_kwargs=True)
        layer.self_attention.register_forward_hook(lambda module, inputs, output: written.append(output[1]))
    with torch.no_grad():
        theirs(images)
    torch.testing.assert_close(attention_maps(sivit.from_torchvision(theirs), images), written, atol=1e-5, rtol=1e-5)


# On the picture


@every_variant
def test_cells_cover_the_picture_and_spread_what_they_have(variant):
    model = make(**VARIANTS[variant])
    for size in [(16, 16), (12, 28), (40, 24), (4, 8)]:
        rows, columns = cell_bounds(model, size)
        weights = attention_maps(model, noise(*size), [-1])[0]
        prefix, grid = model.encoder.prefix, (len(rows), len(columns))
        assert weights.shape[-1] == prefix + grid[0] * grid[1] == prefix + token_places(model, size)[..., 0].numel()
        for bounds, side in ((rows, size[0]), (columns, size[1])):
            assert bounds.min() == 0 and bounds.max() == side and (bounds[:, 1] > bounds[:, 0]).all()
        mean = weights.mean(1)
        look = mean[:, prefix:].mean(1) if model.encoder.class_token is None else mean[:, 0]
        mapped = attention_on_input(model, weights, size)
        assert mapped.shape == (2, *size) and mapped.min() >= 0
        torch.testing.assert_close(mapped.mean((1, 2)), look[:, prefix:].sum(1), atol=1e-6, rtol=1e-6)
        by_area = (rows.diff(dim=-1) * columns.diff(dim=-1).T).double()  # a look in proportion to area is even
        even = torch.cat([torch.zeros(prefix), by_area.flatten() / by_area.sum()]).expand_as(weights).contiguous()
        if "pool" not in variant:  # bins of pools may overlap
            torch.testing.assert_close(attention_on_input(model, even, size), torch.ones(2, *size, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"padding": "even"}, {"final_pass": True}], ids=str)
@pytest.mark.parametrize("size", [(12, 16), (36, 52), (12, 120), (120, 40)])  # no axis is enlarged
def test_cells_of_merged_tokens_are_where_the_merger_looks(options, size):
    "Poison a patch: the cells that are spoilt are those that overlap it, and no other."
    model = make(pool="mean", **ATM | {"merger_options": options})
    merger, (rows, columns) = model.encoder.merger, cell_bounds(model, size)
    assert isinstance(merger, AdaptiveTokenMerger)
    for row, column in itertools.product(range(0, size[0] // 4, 2), range(0, size[1] // 4, 3)):
        tokens = torch.zeros(1, size[0] // 4, size[1] // 4, 16, dtype=torch.float64)
        tokens[0, row, column] = math.nan
        spoilt = merger(tokens).isnan().any(-1)[0]
        held = [(b[:, 0] < 4 * i + 4) & (b[:, 1] > 4 * i) for b, i in ((rows, row), (columns, column))]
        assert torch.equal(spoilt, held[0][:, None] & held[1])


def test_places_are_centres_in_units_of_the_diagonal():
    model = make()
    for size in [(16, 16), (12, 27), (5, 41)]:
        padded = [math.ceil(side / 4) * 4 for side in size]
        places = token_places(model, size).numpy()
        for (i, j), place in zip(np.ndindex(*places.shape[:2]), places.reshape(-1, 2), strict=True):
            np.testing.assert_allclose(place, np.array([4 * i + 2, 4 * j + 2]) / math.hypot(*padded), rtol=1e-6)
    model.set_patch_size(8)
    assert token_places(model, 32).shape == (4, 4, 2)
    assert attention_on_input(model, attention_maps(model, noise(32, 32), [0])[0], 32).shape == (2, 32, 32)


def test_a_head_or_a_rollout_can_be_laid_over_the_picture():
    model, images = make(registers=1), noise(12, 20)
    maps = attention_maps(model, images)
    one_head = attention_on_input(model, maps[0][:, 2], (12, 20), query=(2, 4))
    expected = maps[0][:, 2, 2 + 2 * 5 + 4, 2:].view(2, 3, 5).repeat_interleave(4, 1).repeat_interleave(4, 2) * 15
    torch.testing.assert_close(one_head, expected)
    rolled = attention_rollout(maps)
    mapped = attention_on_input(model, rolled, (12, 20))
    torch.testing.assert_close(mapped[:, ::4, ::4], rolled[:, 0, 2:].view(2, 3, 5) * 15)


def test_rollout_by_numpy():
    for variant in ("class token", "mean", "atm"):
        maps = attention_maps(make(depth=3, **VARIANTS[variant]), noise(12, 27))
        rollout = np.eye(maps[0].shape[-1])
        for weights in maps:
            step = weights[1].numpy().mean(0) + np.eye(len(rollout))
            rollout = (step / step.sum(1, keepdims=True)) @ rollout
        np.testing.assert_allclose(attention_rollout(maps)[1], rollout)
        np.testing.assert_allclose(rollout.sum(1), 1)


# Measures


def by_numpy(weights, places, prefix):
    "Distance, entropy, diversity and prefix share of each head of one picture, (4, heads), by scipy's functions."
    heads, n, _ = weights.shape
    apart, mean = cdist(places, places), weights.mean(0)
    on_map = weights[:, prefix:, prefix:]
    return np.array(
        [
            ((on_map * apart).sum(-1) / on_map.sum(-1)).mean(-1),
            entropy(weights[:, prefix:], axis=-1).mean(-1) / math.log(n),
            entropy(weights[:, prefix:], mean[None, prefix:], axis=-1).mean(-1) / math.log(heads),
            weights[:, prefix:, :prefix].sum(-1).mean(-1),
        ]
    )


@every_variant
@pytest.mark.parametrize("position", ["learned", "lookhere"])
def test_measures_by_numpy(variant, position):
    model = make(position=position, **VARIANTS[variant])
    images, prefix = noise(12, 28, b=3), model.encoder.prefix
    table, places = attention_statistics(model, images, batch_size=2), token_places(model, (12, 28))
    for layer, weights in enumerate(attention_maps(model, images)):
        flat = places.flatten(0, 1).double().numpy()
        expected = np.mean([by_numpy(one.numpy(), flat, prefix) for one in weights], 0)
        rows = table[table["layer"] == layer].sort_values("head")
        np.testing.assert_allclose(rows[["distance", "entropy", "diversity", "prefix_share"]].T, expected, rtol=1e-5)
    assert (table["tokens"] == len(flat)).all() and (table["size"] == math.sqrt(12 * 28)).all()


def test_diversity_of_two_heads_is_scipy_s_jensen_shannon_divergence():
    weights = torch.rand(1, 2, 9, 9, dtype=torch.float64).pow(4)
    weights /= weights.sum(-1, keepdim=True)
    expected = np.mean([jensenshannon(a, b, base=2) ** 2 for a, b in zip(*weights[0].numpy(), strict=True)])
    assert head_diversity(weights, 0).mean().item() == pytest.approx(expected)


@pytest.mark.parametrize("size", [(8, 8), (12, 28), (5, 41)])
def test_known_answers(size):
    model = make(registers=2)
    places, prefix = token_places(model, size), 3
    n = prefix + places[..., 0].numel()
    even, to_self = torch.full((1, 4, n, n), 1 / n), torch.eye(n).expand(1, 4, n, n)
    flat = places.flatten(0, 1).numpy()
    pairs = [math.dist(a, b) for a in flat for b in flat]
    np.testing.assert_allclose(attention_distance(even, places), sum(pairs) / len(pairs), rtol=1e-5)
    np.testing.assert_allclose(attention_entropy(even, prefix), 1, rtol=1e-6)
    np.testing.assert_allclose(prefix_share(even, prefix), prefix / n, rtol=1e-6)
    assert attention_distance(to_self, places).eq(0).all() and attention_entropy(to_self, prefix).eq(0).all()
    assert head_diversity(to_self, prefix).eq(0).all()
    assert torch.equal(attention_rollout([to_self] * 5), to_self[:, 0])
    onto_prefix = torch.zeros(1, 1, n, n).index_fill(-1, torch.tensor(0), 1.0)
    assert prefix_share(onto_prefix, prefix).item() == 1 and attention_distance(onto_prefix, places).isnan().all()


def test_distance_does_not_depend_on_the_size_when_the_look_does_not():
    "A look at the left half, wherever from: the same in units of the picture, at any number of tokens."
    found = []
    for side in (32, 64, 128):
        places = token_places(make(), side)
        left = (places[..., 1] < places[..., 1].mean()).flatten().double()
        n = len(left)
        found.append(attention_distance((left / left.sum()).expand(1, 1, n, n).contiguous(), places).item())
    assert max(found) - min(found) < 5e-3 and min(found) > 0.3


def test_statistics_take_batches_one_by_one():
    model, sizes = make(position="rope_mixed"), [(8, 8), (12, 28), (16, 16)]
    batches = [noise(*size, b=4) for size in sizes]
    table = attention_statistics(model, iter(batches))
    assert list(table.columns) == [
        "size", "height", "width", "tokens", "layer", "head", "distance", "entropy", "diversity", "prefix_share",
    ]  # fmt: skip
    assert list(table.groupby(["height", "width"]).size()) == [8, 8, 8] and not table.isna().any().any()
    for batch_size in (1, 3, 100):
        other = attention_statistics(model, batches, batch_size)
        np.testing.assert_allclose(other.to_numpy(float), table.to_numpy(float), rtol=1e-6, atol=1e-12)


def test_a_single_head_has_no_diversity():
    table = attention_statistics(make(heads=1), noise(12, 12))
    assert table["diversity"].eq(0).all() and table["distance"].between(0, 1, inclusive="neither").all()


def test_lookhere_s_directed_heads_are_more_different_than_the_same_heads_without():
    tables = {name: attention_statistics(make(position=name), noise(24, 24)) for name in ("none", "lookhere")}
    mean = {name: table.groupby("layer")["diversity"].mean() for name, table in tables.items()}
    assert (mean["lookhere"] > mean["none"] + 0.2).all()


# Positions


@every_position
def test_what_positions_say_at_any_grid(position):
    model = make(position=position)
    kind = type(model.encoder.position)
    has_code = kind.embed is not Position.embed or kind.between is not Position.between
    for grid, place in [((4, 4), (0, 3)), ((7, 28), (6, 11)), ((1, 9), (0, 4)), ((5, 3), (2, 2))]:
        if position == "none":
            with pytest.raises(ValueError, match="NoPosition tells tokens nothing"):
                position_similarity(model, grid, place)
            continue
        said = position_similarity(model, grid, place, layer=1)
        assert said.shape == (1 if has_code else 4, *grid) and not said.isnan().any()
        if has_code:
            assert said.abs().max() <= 1 + 1e-9 and said[0, place[0], place[1]] == pytest.approx(1)
        else:
            weights = attention_of_ones(model.encoder.position, grid, place)
            torch.testing.assert_close(said.flatten(1).softmax(-1), weights)


def attention_of_ones(position, grid, place):
    "Softmax over the full logits of queries and keys of ones, in block 1: (heads, N)."
    alike = torch.ones(1, 4, grid[0] * grid[1], 4, dtype=torch.float64)
    query, key = position.rotate(alike, alike, grid, 1)
    bias = position.logit_bias(grid, 1, 0, torch.float64)
    logits = (query @ key.mT)[0] / 2 + (0 if bias is None else bias)
    return logits[:, place[0] * grid[1] + place[1]].softmax(-1)


# Errors


def test_errors_say_what_is_needed():
    model, images = make(pool="mean"), noise(12, 28)
    maps = attention_maps(model, images)
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1)
    for stranger in (nn.Linear(3, 3), torchvision.models.resnet18(), theirs):
        for call in (
            lambda m: attention_maps(m, images),
            lambda m: attention_statistics(m, images),
            lambda m: attention_on_input(m, maps[0], (12, 28)),
            lambda m: position_similarity(m, (4, 4), (0, 0)),
        ):
            with pytest.raises(ValueError, match=r"has no transformer of this package.*sivit.from_timm"):
                call(stranger)
    for layer in (2, -3):
        with pytest.raises(ValueError, match="There are blocks 0 to 1, or -2 to -1 from the end"):
            attention_maps(model, images, [0, layer])
        with pytest.raises(ValueError, match="There are blocks 0 to 1"):
            position_similarity(model, (4, 4), (0, 0), layer)
    for call in (attention_maps, attention_statistics):
        with pytest.raises(ValueError, match="3×8 px are smaller than one patch of 4×4 px"):
            call(model, noise(3, 8))
    with pytest.raises(ValueError, match="3×8 px are smaller than one patch of 4×4 px"):
        token_places(model, (3, 8))
    with pytest.raises(ValueError, match="pictures make one token only"):
        attention_statistics(model, noise(4, 4))
    assert len(attention_statistics(make(), noise(4, 4))) == 8  # a class token is a second one
    needed = "between 21 tokens are not from pictures of 28×28 px, which make 0 tokens and a grid of 7×7"
    with pytest.raises(ValueError, match=needed):
        attention_on_input(model, maps[0], 28)
    for place in [(3, 0), (0, 7), (-1, 0), (1,)]:
        with pytest.raises(ValueError, match="A token is a row and column on a grid of 3×7"):
            attention_on_input(model, maps[0], (12, 28), place)
    with pytest.raises(ValueError, match="at least one block"):
        attention_rollout([])
    with pytest.raises(ValueError, match="A size is a side in px"):
        attention_on_input(model, maps[0], (12, 28, 3))
