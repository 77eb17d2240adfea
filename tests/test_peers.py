"""Against peers: with the same weights our models are timm's and torchvision's, also at sizes not laid out for."""

import pytest
import timm
import torch
import torchvision
from einops import rearrange
from timm.layers import apply_rot_embed_cat, build_sincos2d_pos_embed, resample_abs_pos_embed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    _get_relative_position_bias,
)

from sivit.interop import from_timm, from_torchvision
from sivit.position import create_position, resize_table, sample_table
from sivit.relative import offset_index

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
TIMM = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch32_224": {"depth": 12},
    "vit_base_patch8_224": {"depth": 1},
    "vit_small_patch14_dinov2": {},  # layer-scale
    "vit_small_patch14_reg4_dinov2": {},  # layer-scale, registers without positions
    "vit_small_patch16_36x1_224": {"depth": 4},  # layer-scale
    "vit_medium_patch16_gap_240": {},  # mean of the map, no class token
    "vit_medium_patch16_reg4_gap_256": {},  # mean, registers, no class token
    "vit_betwixt_patch16_reg1_gap_256": {},
    "vit_base_patch16_224_miil": {},  # queries, keys and values without bias
    "vit_tiny_patch16_384": {"qk_norm": True},
    "vit_small_patch16_224": {"global_pool": "avg", "reg_tokens": 2},  # beside a class token
    "vit_small_patch16_384": {"pos_embed": "none"},
    "deit_tiny_patch16_224": {"depth": 12},
    "deit3_small_patch16_224": {},  # layer-scale, class token without position
    "deit_base_patch16_384": {"depth": 1},
}


def randomise(model):
    "Every parameter as training might leave it: no zeros, ones or equal tokens that would hide a mistake."
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.3 if parameter.ndim == 1 else 0.0, 0.3 if parameter.ndim == 1 else 0.05)
    return model.eval()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", TIMM)
@torch.inference_mode()
def test_logits_equal_timm(name, seed):
    torch.manual_seed(seed)
    with torch.inference_mode(False):
        theirs = timm.create_model(name, **{"num_classes": 7, "dynamic_img_size": True, "depth": 2} | TIMM[name])
    ours, patch = from_timm(randomise(theirs)), theirs.patch_embed.patch_size[0]
    for grid in [theirs.patch_embed.grid_size, (6, 6), (3, 18), (20, 13)]:
        images = torch.randn(2, 3, grid[0] * patch, grid[1] * patch)
        torch.testing.assert_close(ours(images), theirs(images), **CLOSE)
    maps = theirs.forward_intermediates(images, indices=[0], norm=True, intermediates_only=True)
    torch.testing.assert_close(ours.forward_intermediates(images, [0], norm=True)[1], maps, **CLOSE)
    read = [model.forward_head(model.forward_features(images), pre_logits=True) for model in (ours, theirs)]
    torch.testing.assert_close(*read, **CLOSE)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_32"])
@torch.inference_mode()
def test_logits_equal_torchvision(name, seed, monkeypatch):
    torch.manual_seed(seed)
    make = torchvision.models.vision_transformer.VisionTransformer
    monkeypatch.setattr(
        "torchvision.models.vision_transformer.VisionTransformer",
        lambda num_layers, **widths: make(num_layers=2, **widths),  # the real widths, fewer blocks
    )
    theirs = randomise(getattr(torchvision.models, name)(num_classes=7, image_size=96 if name == "vit_b_16" else 160))
    images = torch.randn(2, 3, theirs.image_size, theirs.image_size)
    ours = from_torchvision(theirs)
    torch.testing.assert_close(ours(images), theirs(images), **CLOSE)
    assert ours(torch.randn(1, 3, 64, 192)).shape == (1, 7)


def test_a_model_keeps_its_type():
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3).bfloat16()
    assert from_timm(theirs).head[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [(14, 14), (7, 28), (20, 9), (1, 1)])
def test_interpolation_and_sampling_agree(grid):
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    table, places = torch.randn(14, 14, 8), torch.stack([rows, columns], -1)[None].float()
    torch.testing.assert_close(sample_table(table, places, grid)[0], resize_table(table, grid, mode="bilinear"))


@pytest.mark.parametrize("grid", [(14, 14), (7, 28), (20, 9), (1, 1)])
@pytest.mark.parametrize("antialias", [True, False])
def test_resized_tables_equal_timm(grid, antialias):
    table = torch.randn(14, 14, 8)
    theirs = resample_abs_pos_embed(table.reshape(1, 196, 8), grid, (14, 14), num_prefix_tokens=0, antialias=antialias)
    torch.testing.assert_close(resize_table(table, grid, antialias=antialias).reshape(1, -1, 8), theirs)


@pytest.mark.parametrize("grid", [(14, 14), (5, 9)])
def test_sincos_equals_timm_up_to_the_order_of_channels(grid):
    # timm orders columns and rows by its own convention: compare the sets of channels
    ours = create_position("sincos", 32, 4, 1, grid).embed(torch.zeros(1, *grid, 32))[0].reshape(-1, 32)
    theirs = build_sincos2d_pos_embed(list(grid), dim=32)
    order = lambda code: code[:, torch.argsort((code * torch.arange(1, len(code) + 1)[:, None]).sum(0))]  # noqa: E731
    torch.testing.assert_close(order(ours), order(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("window", [(7, 7), (4, 9)])
def test_swin_bias_equals_torchvision(window, seed):
    torch.manual_seed(seed)
    theirs = ShiftedWindowAttention(32, list(window), [0, 0], 4)
    assert torch.equal(offset_index(window).flatten(), theirs.relative_position_index)
    ours = create_position("rpb", 32, 4, 1, window)
    ours.table.data[0] = theirs.relative_position_bias_table.data.reshape(2 * window[0] - 1, 2 * window[1] - 1, 4)
    index = theirs.relative_position_index
    expected = _get_relative_position_bias(theirs.relative_position_bias_table, index, list(window))
    torch.testing.assert_close(ours.bias(window, 0), expected[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("window", [(7, 7), (4, 9)])
def test_log_spaced_bias_equals_torchvision(window, seed):
    torch.manual_seed(seed)
    theirs = randomise(ShiftedWindowAttentionV2(32, list(window), [0, 0], 4))
    ours = create_position("log_cpb", 32, 4, 3, window)
    ours.mlps[2].load_state_dict(theirs.cpb_mlp.state_dict())
    torch.testing.assert_close(ours.bias(window, 2), theirs.get_relative_position_bias()[0])


GRIDS = [(14, 14), (7, 28), (1, 15), (20, 9)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("coordinates", ["integer", "normalised"])
def test_axial_rotation_equals_timm(coordinates, grid, seed):
    torch.manual_seed(seed)
    q, k = torch.randn(2, 2, 4, grid[0] * grid[1], 16)
    ours = create_position("rope_axial", 64, 4, 1, (14, 14), coordinates=coordinates)
    theirs = {
        "integer": RotaryEmbeddingCat(16, temperature=100.0, in_pixels=False, rotate_half=True),
        "normalised": RotaryEmbeddingDinoV3(16, temperature=100.0),
    }[coordinates]
    for found, tokens in zip(ours.rotate(q, k, grid, 0), (q, k), strict=True):
        torch.testing.assert_close(found, apply_rot_embed_cat(tokens, theirs.get_embed(grid), half=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("grid", GRIDS)
def test_mixed_rotation_equals_timm(grid, seed):
    # timm pairs neighbouring channels and names the column first: products of queries and keys are what counts
    torch.manual_seed(seed)
    q, k = torch.randn(2, 2, 4, grid[0] * grid[1], 16)
    theirs = RotaryEmbeddingMixed(64, 2, 4)
    ours = create_position("rope_mixed", 64, 4, 2, (14, 14))
    ours.frequencies.data = rearrange(theirs.freqs.data, "xy l n t -> l xy n t").flip(1)
    paired = [rearrange(tokens, "b n i (two t) -> b n i (t two)", two=2) for tokens in (q, k)]
    for layer in range(2):
        found_q, found_k = ours.rotate(q, k, grid, layer)
        expected_q, expected_k = (apply_rot_embed_cat(tokens, theirs.get_embed(grid)[layer]) for tokens in paired)
        torch.testing.assert_close(found_q @ found_k.mT, expected_q @ expected_k.mT, **CLOSE)
