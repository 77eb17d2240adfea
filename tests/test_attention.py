"""A bias that is read from its table of offsets, against the same bias spread over all pairs of tokens."""

import pytest
import torch
import torch.nn.functional as F

import sivit.attention
from sivit.attention import Attention, offset_attention
from sivit.cost import count_macs, peak_of
from sivit.position import create_position
from sivit.vit import create_model

every_table = pytest.mark.parametrize("name", ["rpb", "log_cpb", "alibi", "lookhere"])


@pytest.fixture(params=[1, 4000, 2**30])
def blocks(request, monkeypatch):
    "Every bias is read from its table, in blocks of so many bytes."
    monkeypatch.setitem(sivit.attention.BLOCK_BYTES, "cpu", request.param)
    monkeypatch.setattr(sivit.attention, "SPREAD_BIAS_BYTES", 0)


def inputs(grid, prefix=0, dtype=torch.float32, batch=2):
    torch.manual_seed(0)
    table = torch.randn(4, 2 * grid[0] - 1, 2 * grid[1] - 1, dtype=dtype)
    return [t.requires_grad_() for t in (*torch.randn(3, batch, 4, prefix + grid[0] * grid[1], 8, dtype=dtype), table)]


def by_pairs(q, k, v, table, grid, prefix):
    "The equation, with the bias looked up pair by pair."
    h, w = grid
    logits = q @ k.mT / q.shape[-1] ** 0.5
    rows, columns = torch.arange(h * w) // w, torch.arange(h * w) % w
    bias = table[:, rows[:, None] - rows + h - 1, columns[:, None] - columns + w - 1]
    return (logits + F.pad(bias, (prefix, 0, prefix, 0))).softmax(-1) @ v


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (9, 1), (4, 7)])
def test_blocks_give_what_pairs_give(blocks, grid, prefix):
    given = inputs(grid, prefix)
    found, expected = offset_attention(*given, prefix), by_pairs(*given, grid, prefix)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(found)
    for a, b in zip(*(torch.autograd.grad(out, given, weights) for out in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_gradients_of_blocks(blocks):
    assert torch.autograd.gradcheck(
        lambda *given: offset_attention(*given, 1), inputs((2, 3), 1, torch.float64, batch=1)
    )


@pytest.mark.parametrize("wanted", range(4))
def test_gradients_that_are_not_wanted_are_not_made(blocks, wanted):
    given = [t.requires_grad_(i == wanted) for i, t in enumerate(inputs((3, 4)))]
    offset_attention(*given).sum().backward()
    assert [t.grad is not None for t in given] == [i == wanted for i in range(4)]


@pytest.mark.parametrize("prefix", [0, 1])
def test_half_precision_is_half_precision_of_the_result_only(blocks, prefix):
    exact, half = inputs((4, 7), prefix), [t.detach().bfloat16().requires_grad_() for t in inputs((4, 7), prefix)]
    found = offset_attention(*half, prefix)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), offset_attention(*exact, prefix), atol=0.05, rtol=0.05)
    found.float().sum().backward()
    assert all(t.grad.dtype == torch.bfloat16 and t.grad.isfinite().all() for t in half)


@every_table
@pytest.mark.parametrize("autocast", [False, True])
def test_an_encoding_says_the_same_by_its_table(name, autocast, monkeypatch):
    torch.manual_seed(0)
    position, attention, grid = create_position(name, 48, 6, 2, (4, 4)), Attention(48, 6, qk_norm=True), (6, 9)
    x, answers = torch.randn(2, 1 + 54, 48), []
    for largest in (2**30, 0):
        monkeypatch.setattr(sivit.attention, "SPREAD_BIAS_BYTES", largest)
        attention.zero_grad(), position.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = attention(x, position, grid, 1, prefix=1)
        out.float().square().mean().backward()
        answers.append(
            [out.float(), *(p.grad for p in (*attention.parameters(), *position.parameters()) if p.grad is not None)]
        )
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            answers[-1].append(attention(x, position, grid, 1, prefix=1).float())
    tolerance = {"atol": 2e-2, "rtol": 5e-2} if autocast else {"atol": 1e-5, "rtol": 1e-4}
    for spread, by_table in zip(*answers, strict=True):
        torch.testing.assert_close(by_table, spread, **tolerance)


@every_table
@torch.no_grad()
def test_models_and_their_counts_do_not_depend_on_the_way(name, monkeypatch):
    model = create_model("vit_micro_patch4", position=name, depth=2, dim=48, heads=6, num_classes=5).eval()
    images, found = torch.randn(2, 3, 24, 40), []
    for largest in (2**30, 0):
        monkeypatch.setattr(sivit.attention, "SPREAD_BIAS_BYTES", largest)
        found.append((model(images), count_macs(model, (24, 40))))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-3)


@every_table
def test_no_number_per_pair_is_held(name):
    grid, heads = (32, 32), 6
    options = {"hidden": 16} if name == "log_cpb" else {}  # its MLP holds so many numbers per offset
    position, attention = create_position(name, 48, heads, 1, (7, 7), **options), Attention(48, heads)
    x = torch.randn(1, 1024, 48)

    def step():
        attention(x, position, grid, 0).sum().backward()

    step()
    assert peak_of(step) < 0.8 * 4 * heads * 1024**2  # less than one bias spread out, and training held several


def test_weights_that_underflow_are_zero():
    q, k, v, table = (t.detach() for t in inputs((3, 5)))
    table = torch.where(table > 1, -95.0, 0.0)  # exp(-95) is a denormal number
    expected = by_pairs(q.double(), k.double(), v.double(), table.double(), (3, 5), 0)
    torch.testing.assert_close(offset_attention(q, k, v, table), expected.float(), atol=1e-6, rtol=1e-5)
