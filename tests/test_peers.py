"""Against peers: with the same weights our plain transformer is timm's, also at sizes it was not laid out for."""

import pytest
import timm
import torch
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from torchvision.models.swin_transformer import ShiftedWindowAttention, _get_relative_position_bias

from sivit.position import create_position, resize_table
from sivit.relative import offset_index
from sivit.vit import ViT, ViTConfig


def from_timm(theirs, **config):
    "Our model with the weights of a timm ViT (class token, learned positions, linear head)."
    patch = theirs.patch_embed.patch_size[0]
    sizes = {"dim": theirs.embed_dim, "depth": len(theirs.blocks), "heads": theirs.blocks[0].attn.num_heads}
    ours = ViT(ViTConfig(patch_size=patch, num_classes=theirs.num_classes, **sizes, **config))
    grid = ours.config.grid
    names = {"attn.qkv": "attention.qkv", "attn.proj": "attention.projection", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
    weights = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        weights["head.0." + name.removeprefix("head.") if name.startswith("head.") else "encoder." + name] = value
    table = weights.pop("encoder.pos_embed")
    weights["encoder.class_token"] = weights.pop("encoder.cls_token") + table[:, :1]
    weights["encoder.position.table"] = table[0, 1:].reshape(*grid, -1)
    ours.load_state_dict(weights)
    return ours.eval()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch32_224", "deit_tiny_patch16_224"])
def test_logits_equal_timm(name, seed, size=224):
    torch.manual_seed(seed)
    theirs = timm.create_model(name, num_classes=7, dynamic_img_size=True).eval()
    torch.nn.init.normal_(theirs.head.weight)
    ours = from_timm(theirs, image_size=size, position_options={"antialias": True})
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)
        for other in [(96, 96), (64, 288), (320, 256)]:
            images = torch.randn(1, 3, *other)
            torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("window", [(7, 7), (4, 9)])
def test_swin_bias_equals_torchvision(window):
    theirs = ShiftedWindowAttention(32, list(window), [0, 0], 4)
    assert torch.equal(offset_index(window).flatten(), theirs.relative_position_index)
    ours = create_position("rpb", 32, 4, 1, window)
    ours.table.data[0] = theirs.relative_position_bias_table.data.reshape(2 * window[0] - 1, 2 * window[1] - 1, 4)
    index = theirs.relative_position_index
    expected = _get_relative_position_bias(theirs.relative_position_bias_table, index, list(window))
    torch.testing.assert_close(ours.bias(window, 0), expected[0])
