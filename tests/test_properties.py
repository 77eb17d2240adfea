"""What every position encoding and every merger must do, by the registries: a new one is tested the day it is added."""

import copy
import inspect
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import sivit.relative  # noqa: F401 (registers the encodings inside attention)
from sivit.attention import Attention
from sivit.merge import create_merger, list_mergers
from sivit.position import POSITIONS, Position, create_position, list_positions
from sivit.vit import create_model, list_models

DIM, HEADS, DEPTH, REFERENCE = 32, 4, 2, (6, 6)
GRIDS = {
    "square": (6, 6), "larger": (11, 11), "smaller": (3, 3), "wide": (4, 9), "tall": (9, 4), "odd": (5, 3),
    "row": (1, 8), "column": (7, 1), "one": (1, 1),
}  # fmt: skip


def cases(names, variants):
    "Every name as it comes, and with the options that are worth a test of their own."
    settings = [(name, options) for name in names for options in ({}, *variants.get(name, ()))]
    label = lambda options: "".join(f"-{key}={value}" for key, value in options.items())  # noqa: E731
    return [pytest.param(name, options, id=name + label(options)) for name, options in settings]


def every(grids):
    return pytest.mark.parametrize("grid", grids.values(), ids=grids.keys())


def randomise(module, std):
    "Random parameters everywhere, so that nothing hides behind zeros; small biases, so that few ReLUs are dead."
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std if parameter.ndim > 1 else std / 5)
    return module


def round_weights(module):
    "Weights that bfloat16 can hold: what is left to differ is the computation, with its constants."
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16())
    return module


def difference(found, expected):
    "Relative distance of two tensors."
    assert found.shape == expected.shape and found.isfinite().all() and expected.isfinite().all()
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def answer(module, x):
    with torch.inference_mode():
        return module(x)


def unreached(module):
    "Parameters of which more than a twentieth gets no gradient, and the share that gets one."
    shares = {
        name: 0.0 if parameter.grad is None else (parameter.grad.abs() > 1e-6).float().mean().item()
        for name, parameter in module.named_parameters()
    }
    return {name: share for name, share in shares.items() if share < 0.95}


# Position encodings

VARIANTS = {
    "learned": [{"antialias": True}, {"mode": "bilinear"}],
    "sincos": [{"coordinates": "fractional"}],
    "factorized": [{"coordinates": "integer"}],
    "fourier": [{"coordinates": "integer"}],
    "conditional": [{"after": (0, 1)}],
    "glpe": [{"shared_heads": False}],
    "shaw": [{"clip": 2}],
    "log_cpb": [{"shared": True}, {"bound": None}],
    "lookhere": [{"field_of_view": 45}, {"field_of_view": 180}],
    "rope_axial": [{"coordinates": "normalised"}],
    "rope_mixed": [{"coordinates": "normalised"}],
}
ENCODINGS = cases(list_positions(), VARIANTS)
BIASES = [case for case in ENCODINGS if POSITIONS[case.values[0]].bias is not Position.bias]
JITTERS = [
    pytest.param(name, option, id=f"{name}-{option}")
    for name in list_positions()
    for option in inspect.signature(POSITIONS[name]).parameters
    if option in ("jitter", "rescale", "shift")
]
every_encoding = pytest.mark.parametrize("name, options", ENCODINGS)
every_bias = pytest.mark.parametrize("name, options", BIASES)


def make_position(name, options, heads=HEADS, seed=0):
    "An encoding with random parameters, for evaluation."
    torch.manual_seed(seed)
    return randomise(create_position(name, 8 * heads, heads, DEPTH, REFERENCE, **options), 0.5).eval()


class Probe(nn.Module):
    "The least encoder that calls all five hooks: attention with residuals, and one token without a place."

    def __init__(self, name, options, heads=HEADS, seed=0):
        super().__init__()
        self.position = make_position(name, options, heads, seed)
        dim = self.position.dim
        self.blocks = nn.ModuleList(randomise(Attention(dim, heads), dim**-0.5) for _ in range(DEPTH))
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.eval()

    def forward(self, x):
        b, h, w, d = x.shape
        x = self.position.embed(x)
        token = self.token.expand(b, -1, -1)
        for layer, block in enumerate(self.blocks):
            x = torch.cat([token, rearrange(x, "b h w d -> b (h w) d", h=h, w=w)], dim=1)
            x = x + block(F.layer_norm(x, (d,)), self.position, (h, w), layer, prefix=1)
            token, x = x[:, :1], self.position.between(rearrange(x[:, 1:], "b (h w) d -> b h w d", h=h), layer)
        return x


def tokens(grid, b=2, dim=DIM):
    return torch.randn(b, *grid, dim)


def heads_of(grid, b=2):
    "Queries, keys or values `(b, heads, N, e)`."
    return torch.randn(b, HEADS, grid[0] * grid[1], DIM // HEADS)


@every_encoding
def test_an_encoding_says_what_it_is_in_known_words(name, options):
    position = make_position(name, options)
    assert isinstance(position, Position) and position.site in ("input", "attention")
    assert set(position.invariant_to) <= {"shift", "flip", "transpose", "permutation"}
    assert isinstance(position.reads_neighbours, bool) and isinstance(position.per_block, bool)


@every(GRIDS)
@every_encoding
def test_any_grid_keeps_its_shape(name, options, grid):
    probe, x = Probe(name, options), tokens(grid)
    out = answer(probe, x)
    assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()


@every(GRIDS)
@every_encoding
def test_hooks_keep_shapes_and_leave_what_they_are_given(name, options, grid):
    position, n = make_position(name, options), grid[0] * grid[1]
    x, q, k, v = tokens(grid), *(heads_of(grid) for _ in range(3))
    given, before = (x, q, k, v), [t.clone() for t in (x, q, k, v)]
    with torch.no_grad():
        assert position.embed(x).shape == x.shape
        for layer in range(DEPTH):
            assert position.between(x, layer).shape == x.shape
            new_q, new_k = position.rotate(q, k, grid, layer)
            assert new_q.shape == new_k.shape and new_q.shape[:3] == q.shape[:3] and new_q.shape[3] >= q.shape[3]
            local, bias = position.local(v, grid, layer), position.bias(grid, layer)
            assert local is None or local.shape == v.shape
            assert bias is None or bias.shape == (HEADS, n, n)
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True)), "a hook writes into its input"


@every_encoding
def test_the_grid_matters_and_not_the_count(name, options):
    probe = Probe(name, options)
    square = tokens((14, 14))
    wide = square.reshape(2, 7, 28, DIM)
    found = difference(answer(probe, wide).reshape(square.shape), answer(probe, square))
    if "permutation" in probe.position.invariant_to:
        assert found < 1e-5, "a bag of tokens has no shape"
    else:
        assert found > 1e-2, "14×14 and 7×28 tokens get the same answer"


@every_encoding
@pytest.mark.parametrize("grid", [(5, 7), (1, 300)], ids=["small", "long"])
def test_half_precision_is_near_single(name, options, grid):
    probe, x = round_weights(Probe(name, options)), tokens(grid).bfloat16()
    exact = answer(probe, x.float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = answer(probe, x.float())
    half = answer(copy.deepcopy(probe).bfloat16(), x)
    assert half.dtype == torch.bfloat16
    assert difference(half, exact) < 0.015
    assert difference(mixed, exact) < 0.015


@every_encoding
def test_a_picture_does_not_depend_on_its_batch(name, options):
    probe, x = Probe(name, options), tokens((4, 7), b=3)
    torch.testing.assert_close(answer(probe, x[1:2]), answer(probe, x)[1:2], atol=1e-5, rtol=1e-5)


@every_encoding
@pytest.mark.parametrize("heads", [1, 3, 6, 12, 16])
def test_any_number_of_heads(name, options, heads):
    probe, x = Probe(name, options, heads), tokens((3, 5), dim=8 * heads)
    assert answer(probe, x).shape == x.shape and answer(probe, x).isfinite().all()


@every_encoding
def test_weights_load_into_a_new_one_and_run_at_another_grid(name, options):
    trained, fresh, x = Probe(name, options), Probe(name, options, seed=1), tokens((5, 9))
    expected, before = answer(trained, x), answer(fresh, x)
    assert difference(before, expected) > 1e-2
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(answer(fresh, x), expected)


@every_encoding
def test_gradient_reaches_every_parameter(name, options):
    probe = Probe(name, options).train()
    for grid in (REFERENCE, (5, 9)):
        x = tokens(grid)
        (probe(x) * torch.randn_like(x)).sum().backward()
    assert not unreached(probe.position)


@every_encoding
def test_training_moves_every_parameter_from_where_it_starts(name, options):
    probe = Probe(name, options).train()
    probe.position = create_position(name, DIM, HEADS, DEPTH, REFERENCE, **options).train()
    before = copy.deepcopy(probe.position.state_dict())
    optimizer = torch.optim.SGD(probe.parameters(), lr=1e-3)
    for _ in range(3):
        x = tokens(REFERENCE)
        (probe(x) * torch.randn_like(x)).sum().backward()
        optimizer.step()
    still = [name for name, parameter in probe.position.named_parameters() if torch.equal(parameter, before[name])]
    assert not still


def shift_error(position, grid):
    "How far the effect on constant content is from depending on the offset of two tokens alone."
    x = torch.randn(3, 1, 1, DIM).expand(3, *grid, DIM)
    q, k, v = (torch.randn(3, HEADS, 1, DIM // HEADS).expand_as(heads_of(grid, 3)) for _ in range(3))
    maps, logits = [position.embed(x)], []
    for layer in range(DEPTH):
        maps.append(position.between(x, layer))
        local = position.local(v, grid, layer)
        if local is not None:
            maps.append(rearrange(local, "b n (h w) e -> b h w (n e)", h=grid[0]))
        new_q, new_k = position.rotate(q, k, grid, layer)
        bias = position.logit_bias(grid, layer, 0, q.dtype)
        score = new_q @ new_k.mT * v.shape[-1] ** -0.5 + (0 if bias is None else bias)
        logits.append(score.clamp(min=-1e3).unflatten(-1, grid).unflatten(2, grid))  # (b, heads, h, w, h, w)
    errors = [m - m[:, :1, :1] for m in maps]
    errors += [s[:, :, 1:, :, 1:] - s[:, :, :-1, :, :-1] for s in logits]  # both tokens one row further
    errors += [s[:, :, :, 1:, :, 1:] - s[:, :, :, :-1, :, :-1] for s in logits]  # one column
    return max(e.abs().max().item() for e in errors)


@every_encoding
def test_shift_behaves_as_declared(name, options):
    position = make_position(name, options)
    with torch.no_grad():
        error = max(shift_error(position, grid) for grid in [(6, 6), (4, 9), (10, 3)])
    if "shift" in position.invariant_to:
        assert error < 1e-3, "declared invariant to shifts, and is not"
    else:
        assert error > 1e-2, "invariant to shifts, and does not say so"


def permute(x):
    order = torch.randperm(x.shape[1] * x.shape[2], generator=torch.Generator().manual_seed(3))
    return x.flatten(1, 2)[:, order].unflatten(1, x.shape[1:3])


SYMMETRIES = {
    "flip": [lambda x: x.flip(1), lambda x: x.flip(2)],
    "transpose": [lambda x: x.transpose(1, 2)],
    "permutation": [permute],
}


@every_encoding
@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_symmetry_is_as_declared(name, options, symmetry):
    probe = Probe(name, options)
    maps = [tokens(grid) for grid in [(6, 6), (4, 9)]]
    moves = SYMMETRIES[symmetry]
    error = max(difference(answer(probe, move(x)), move(answer(probe, x))) for x in maps for move in moves)
    if symmetry in probe.position.invariant_to:
        assert error < 1e-4, f"declared invariant to {symmetry}, and is not"
    else:
        assert error > 1e-2, f"invariant to {symmetry}, and does not say so"


@every_encoding
def test_reading_neighbours_is_as_declared(name, options):
    position, grid, place = make_position(name, options), (5, 6), (2, 3)
    elsewhere = torch.ones(grid, dtype=torch.bool).index_put(tuple(map(torch.tensor, place)), torch.tensor(False))
    x, q, k, v = tokens(grid), *(heads_of(grid) for _ in range(3))
    other_x, *others = (t.clone() for t in (x, q, k, v))
    other_x[:, place[0], place[1]] += 1
    for t in others:
        t[:, :, place[0] * grid[1] + place[1]] += 1
    other_q, other_k, other_v = others

    def changed(a, b):
        a, b = (t if t.shape[1:3] == grid else rearrange(t, "b n (h w) e -> b h w (n e)", h=grid[0]) for t in (a, b))
        return not torch.allclose(a[:, elsewhere], b[:, elsewhere], atol=1e-6)

    reads = []
    with torch.no_grad():
        reads.append(changed(position.embed(x), position.embed(other_x)))
        for layer in range(DEPTH):
            reads.append(changed(position.between(x, layer), position.between(other_x, layer)))
            if position.local(v, grid, layer) is not None:
                reads.append(changed(position.local(v, grid, layer), position.local(other_v, grid, layer)))
            rotated, other = position.rotate(q, k, grid, layer), position.rotate(other_q, other_k, grid, layer)
            assert not any(map(changed, rotated, other)), "a query or a key looks at others"
    assert any(reads) == position.reads_neighbours


@every_encoding
def test_evaluation_is_deterministic(name, options):
    probe, x, y = Probe(name, options), tokens((5, 7)), tokens((7, 5))
    first, expected = answer(probe, x), answer(Probe(name, options), y)
    assert torch.equal(answer(probe, y), expected), "the grid before makes a difference"
    torch.manual_seed(99)
    assert torch.equal(answer(probe, x), first)


@pytest.mark.parametrize("name, option", JITTERS)
def test_jitter_is_for_training_only(name, option):
    torch.manual_seed(0)
    probe, plain, x = Probe(name, {option: 2.0}), Probe(name, {}), tokens((5, 7))
    assert torch.equal(answer(probe, x), answer(plain, x))
    probe.train()
    assert difference(answer(probe, x), answer(probe, x)) > 1e-3


@every_encoding
def test_evaluation_then_training_then_evaluation(name, options):
    probe, x = Probe(name, options), tokens((5, 7))
    before = answer(probe, x)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=0.1)
    probe.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in probe.parameters())
    optimizer.step()
    fresh = Probe(name, options, seed=1)
    fresh.load_state_dict(probe.state_dict())
    after = answer(probe.eval(), x)
    torch.testing.assert_close(after, answer(fresh, x))
    assert difference(after, before) > 1e-2


@every_encoding
def test_copies_and_weights_carry_nothing_kept(name, options):
    probe = Probe(name, options)
    size, names = len(pickle.dumps(probe.position)), list(probe.position.state_dict())
    answer(probe, tokens((12, 12)))
    assert list(probe.position.state_dict()) == names
    assert len(pickle.dumps(probe.position)) < size + 10_000
    assert len(pickle.dumps(copy.deepcopy(probe).position)) < size + 10_000


@every_bias
def test_a_bias_differs_between_blocks_as_declared(name, options):
    position = make_position(name, options)
    with torch.no_grad():
        same = torch.equal(position.bias((4, 5), 0), position.bias((4, 5), 1))
    assert same != position.per_block


@every_bias
def test_a_bias_is_made_once_per_grid(name, options):
    position, made = make_position(name, options), []

    class Counting(type(position)):
        def bias(self, grid, layer):
            made.append(grid)
            return super().bias(grid, layer)

    position.__class__ = Counting
    with torch.inference_mode():
        for grid in [(3, 4), (4, 3), (3, 4), (4, 3)]:
            for layer in range(DEPTH):
                position.logit_bias(grid, layer, 1, torch.float32)
    assert len(made) == (2 * DEPTH if position.per_block else 2)


def step(optimizer, compiled=False, **settings):
    "One step of training, as a loop makes it."

    def loss(position):
        return sum(position.logit_bias((3, 4), layer, 0, torch.float32).square().mean() for layer in range(DEPTH))

    def change(position):
        position.train()
        (torch.compile(loss, backend="eager") if compiled else loss)(position).backward()
        optimizer(position.parameters(), lr=0.5, **settings).step()
        position.eval()

    return lambda position: change(position) if list(position.parameters()) else None


def load(position, **settings):
    weights = {name: torch.full_like(p, 0.7) for name, p in position.named_parameters()}
    position.load_state_dict(position.state_dict() | weights, **settings)


def load_in_inference_mode(position):
    with torch.inference_mode():
        load(position)


CHANGES = {
    "in place": lambda position: randomise(position, 1.0),
    "SGD": step(torch.optim.SGD),
    "AdamW": step(torch.optim.AdamW),
    "foreach": step(torch.optim.AdamW, foreach=True),
    "fused": step(torch.optim.AdamW, fused=True),
    "fused and compiled": step(torch.optim.AdamW, fused=True, compiled=True),
    "load": load,
    "assign": lambda position: load(position, assign=True),
    "load in inference mode": load_in_inference_mode,
    "precision and back": lambda position: position.bfloat16().float(),
}


@every_bias
@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_bias_is_never_stale(name, options, change):
    position = make_position(name, options)

    def check(position):
        for grid in [(3, 4), (4, 3), (3, 4), (2, 6)]:
            for layer, prefix, dtype in [(0, 0, torch.float32), (1, 5, torch.float32), (1, 1, torch.bfloat16)]:
                found, made = position.logit_bias(grid, layer, prefix, dtype), position.bias(grid, layer).to(dtype)
                assert found.dtype == dtype and torch.equal(found, F.pad(made, (prefix, 0, prefix, 0)))
        return made

    for seed in range(3):  # more than once, as memory is used again
        torch.manual_seed(seed)
        with torch.no_grad():
            before = check(randomise(position, 0.5))
        CHANGES[change](position)
        with torch.no_grad():
            after = check(position)
        assert not torch.equal(before, after) or not list(position.parameters())


@every_bias
def test_a_bias_made_under_autocast_is_not_kept_for_single_precision(name, options):
    position, asked = make_position(name, options), ((3, 4), 1, 0, torch.float32)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            position.logit_bias(*asked)
        assert torch.equal(position.logit_bias(*asked), position.bias((3, 4), 1))


@every_bias
def test_a_bias_made_from_weights_of_inference_mode_is_never_stale(name, options):
    with torch.inference_mode():
        position = make_position(name, options)
        for change in (lambda: None, lambda: load(position)):
            change()
            assert torch.equal(position.logit_bias((3, 4), 1, 0, torch.float32), position.bias((3, 4), 1))


@every_encoding
@pytest.mark.parametrize("prefix", [1, 5])
def test_tokens_before_the_map_have_no_place(name, options, prefix):
    position, grid = make_position(name, options), (4, 7)
    attention = randomise(Attention(DIM, HEADS), DIM**-0.5)
    x = torch.randn(2, prefix + 28, DIM)
    with torch.no_grad():
        out = attention(x, position, grid, 1, prefix)
        q, k, v = rearrange(attention.qkv(x), "b n (three heads e) -> three b heads n e", three=3, heads=HEADS)
        places = position.rotate(q[:, :, prefix:], k[:, :, prefix:], grid, 1)[1][..., : k.shape[-1]]
        plain = F.scaled_dot_product_attention(q[:, :, :prefix], torch.cat([k[:, :, :prefix], places], dim=2), v)
        expected = attention.projection(rearrange(plain, "b heads n e -> b n (heads e)"))
        torch.testing.assert_close(out[:, :prefix], expected, atol=1e-5, rtol=1e-5)
        order = torch.cat([torch.arange(prefix).roll(1), torch.arange(prefix, prefix + 28)])
        moved = attention(x[:, order], position, grid, 1, prefix)
        torch.testing.assert_close(moved, out[:, order], atol=1e-5, rtol=1e-5)


@every_encoding
def test_missing_tokens_are_refused_or_change_nothing_else(name, options):
    position, grid, kept = make_position(name, options), (4, 7), torch.randperm(28)[:11]
    attention = randomise(Attention(DIM, HEADS), DIM**-0.5)
    x = torch.randn(2, 1 + 28, DIM)
    present = torch.cat([torch.tensor([0]), 1 + kept])

    class Hiding(type(position)):
        "All tokens are there, and nobody looks at those that are not kept."

        def logit_bias(self, grid, layer, prefix, dtype):
            bias = super().logit_bias(grid, layer, prefix, dtype)
            hidden = torch.ones(29, dtype=torch.bool).index_fill(0, present, False)
            return (torch.zeros(HEADS, 29, 29) if bias is None else bias).masked_fill(hidden, -torch.inf)

    if position.reads_neighbours:
        with pytest.raises(ValueError, match="cannot serve where tokens are missing"):
            attention(x[:, present], position, grid, 1, prefix=1, visible=kept.expand(2, -1))
        return
    with torch.no_grad():
        found = attention(x[:, present], position, grid, 1, prefix=1, visible=kept.expand(2, -1))
        position.__class__ = Hiding
        torch.testing.assert_close(found, attention(x, position, grid, 1, prefix=1)[:, present], atol=1e-5, rtol=1e-5)


# Mergers

TARGET = (5, 3)
MERGER_VARIANTS = {
    "atm": [{"padding": "even"}, {"masked": False}, {"final_pass": True}, {"ratio": 2}, {"ratio": (2, 1)}],
}
MERGER_GRIDS = GRIDS | {"target": TARGET, "double": (10, 6), "four times": (20, 12), "much larger": (33, 40)}
every_merger = pytest.mark.parametrize("name, options", cases(list_mergers(), MERGER_VARIANTS))


def make_merger(name, options, heads=HEADS, seed=0):
    torch.manual_seed(seed)
    dim = 8 * heads
    return randomise(create_merger(name, dim, heads, TARGET, **options), dim**-0.5).eval()


@every(MERGER_GRIDS)
@every_merger
def test_a_merger_gives_the_grid_it_names(name, options, grid):
    merger, x = make_merger(name, options), tokens(grid)
    given, out = x.clone(), answer(merger, x)
    assert out.shape == (2, *merger.output_grid(grid), DIM) and out.dtype == x.dtype and out.isfinite().all()
    assert torch.equal(x, given), "a merger writes into its input"


@every_merger
def test_a_merger_sees_the_grid_and_not_the_count(name, options):
    merger, x = make_merger(name, options), tokens((14, 14))
    square, wide = (answer(merger, x.reshape(2, *grid, DIM)).flatten(1, 2) for grid in [(14, 14), (7, 28)])
    if merger.output_grid((14, 14)) == (14, 14):
        assert difference(wide, square) < 1e-5
    else:
        assert wide.shape != square.shape or difference(wide, square) > 1e-2


@every_merger
def test_a_merger_in_half_precision_is_near_single(name, options):
    merger, x = round_weights(make_merger(name, options)), tokens((11, 8)).bfloat16()
    exact = answer(merger, x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(answer(merger, x.float()), exact) < 0.03
    half = answer(merger.bfloat16(), x)
    assert half.dtype == torch.bfloat16 and difference(half, exact) < 0.03


@every_merger
def test_a_merger_is_deterministic_and_does_not_depend_on_the_batch(name, options):
    merger, x = make_merger(name, options), tokens((11, 8), b=3)
    first = answer(merger, x)
    answer(merger, tokens((8, 11)))
    torch.manual_seed(99)
    assert torch.equal(answer(merger, x), first)
    torch.testing.assert_close(answer(merger, x[1:2]), first[1:2], atol=1e-5, rtol=1e-5)


@every_merger
@pytest.mark.parametrize("heads", [1, 3, 6, 12, 16])
def test_a_merger_takes_any_number_of_heads(name, options, heads):
    merger = make_merger(name, options, heads)
    assert answer(merger, tokens((7, 8), dim=8 * heads)).shape == (2, *merger.output_grid((7, 8)), 8 * heads)


@every_merger
def test_a_merger_trains_after_evaluation(name, options):
    merger = make_merger(name, options)
    before = answer(merger, tokens((11, 8)))
    for grid in [(14, 14), (7, 28), TARGET]:
        out = merger.train()(tokens(grid).requires_grad_())
        (out * torch.randn_like(out)).sum().backward()
    shares = unreached(merger)
    assert shares.pop("attention.key_value.bias", 0.5) == 0.5  # what is added to all keys cancels in the softmax
    assert before.isfinite().all() and not shares


@every_merger
def test_weights_of_a_merger_load_into_a_new_one(name, options):
    trained, fresh, x = make_merger(name, options), make_merger(name, options, seed=1), tokens((11, 8))
    names, size = list(trained.state_dict()), len(pickle.dumps(trained))
    expected = answer(trained, x)
    assert list(trained.state_dict()) == names and len(pickle.dumps(trained)) < size + 10_000
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(answer(fresh, x), expected)


@every_merger
def test_constant_maps_stay_constant_where_no_border_is_seen(name, options):
    merger = make_merger(name, options)
    constant = torch.randn(2, 1, 1, DIM)
    maps = [answer(merger, constant.expand(2, *grid, DIM)) for grid in MERGER_GRIDS.values()]
    spread = max((m - m[:, :1, :1]).abs().max().item() for m in maps)
    if name == "convpool" or options.get("masked") is False:  # zeros beyond the map, zeros in empty slots
        assert spread > 1e-2
    else:
        assert spread < 1e-4


@every_merger
@pytest.mark.parametrize("shape", [(2, 30, DIM), (2, 5, 6, DIM + 1), (5, 6, DIM, 1)], ids=["rank", "width", "order"])
def test_a_merger_refuses_what_is_no_map(name, options, shape):
    needed, given = re.escape(f"(b, h, w, {DIM})"), re.escape(str(shape))
    with pytest.raises(ValueError, match=f"{needed}.*{given}"):
        make_merger(name, options)(torch.randn(shape))


# Together, and by name


@pytest.mark.parametrize("merger", list_mergers())
@pytest.mark.parametrize("position", list_positions())
def test_every_pair_makes_a_model(position, merger):
    parts = {"position": position, "merger": merger, "dim": DIM, "heads": HEADS, "depth": 1, "num_classes": 3}
    model = create_model("vit_micro_patch4", **parts).eval()
    for size in [(32, 32), (20, 47)]:
        out = answer(model, torch.randn(2, 3, *size))
        assert out.shape == (2, 3) and out.isfinite().all()


KNOWN = {"position": list_positions(), "merger": list_mergers(), "model": list_models()}
CREATE = {
    "position": lambda name, **options: create_position(name, DIM, HEADS, DEPTH, REFERENCE, **options),
    "merger": lambda name, **options: create_merger(name, DIM, HEADS, TARGET, **options),
    "model": create_model,
}
NAMES = [pytest.param(kind, name, id=f"{kind}-{name}") for kind, names in KNOWN.items() for name in names]


def misspell(name):
    return name[:-2] + name[-1] + name[-2:]


@pytest.mark.parametrize("kind, name", NAMES)
def test_a_misspelt_name_is_told_the_nearest(kind, name):
    with pytest.raises(ValueError, match=f"{misspell(name)!r}.*Did you mean .*{name!r}"):
        CREATE[kind](misspell(name))


@pytest.mark.parametrize("kind, name", NAMES)
def test_an_unknown_option_is_named(kind, name):
    with pytest.raises(ValueError, match="no_such_option"):
        CREATE[kind](name, no_such_option=1)


@pytest.mark.parametrize("kind", ["position", "merger"])
def test_a_model_passes_on_what_is_wrong_with_its_parts(kind):
    for name in KNOWN[kind]:
        with pytest.raises(ValueError, match=f"Did you mean .*{name!r}"):
            create_model("vit_micro_patch4", **{kind: misspell(name)})
    with pytest.raises(ValueError, match="no_such_option"):
        create_model("vit_micro_patch4", **{f"{kind}_options": {"no_such_option": 1}})
