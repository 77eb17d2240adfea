"""Mergers against their definitions: every size, every cell, the equation in plain loops, one graph for many sizes."""

import copy
import itertools
import math

import onnxruntime
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from sivit.merge import (
    PADDINGS,
    AdaptiveTokenMerger,
    GridAttention,
    TokenUnmerger,
    cell_edges,
    cell_members,
    create_merger,
    deal_tokens,
    list_mergers,
    merge_schedule,
    token_cells,
)

TARGET = (14, 14)
OPTIONS = {
    "paper": {},
    "even": {"padding": "even"},
    "unmasked": {"masked": False},
    "unmasked even": {"padding": "even", "masked": False},
    "final pass": {"final_pass": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def make(target=TARGET, dim=8, heads=2, seed=0, name="atm", **options):
    "A merger in double precision with large random weights: attention far from uniform, biases that matter."
    torch.manual_seed(seed)
    merger = create_merger(name, dim, heads, target, **options).double().eval()
    with torch.no_grad():
        for parameter in merger.parameters():
            parameter.normal_(std=0.6)
    return merger


def tokens(*grid, b=2, dim=8):
    return torch.randn(b, *grid, dim, dtype=torch.float64)


def silence(merger):
    "Leave the pooling part alone: attention and MLP add nothing."
    for layer in (merger.attention.out, merger.mlp[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return merger


# Sizes and cells


@pytest.mark.parametrize("padding", PADDINGS)
def test_cells_of_an_axis_hold_one_token_or_two(padding):
    for n in range(1, 129):
        for cells in range(math.ceil(n / 2), n + 1):
            edges = cell_edges(n, cells, padding).tolist()
            sizes = [stop - start for start, stop in itertools.pairwise(edges)]
            assert edges[0] == 0 and edges[-1] == n and len(sizes) == cells and set(sizes) <= {1, 2}
            if padding == "paper":
                assert sizes == sorted(sizes)  # the lone tokens first
            else:
                assert edges == [math.floor(i * n / cells + 0.5) for i in range(cells + 1)]


def test_index_map_of_the_papers_figure():
    "ViTAR, Fig. 4: four tokens of an axis, three cells, tokens in slots 0, 2, 4 and 5."
    column = cell_members((4, 1), (3, 1), masked=False)[:, [0, 2]].flatten()
    row = cell_members((1, 4), (1, 3), masked=False)[:, [0, 1]].flatten()
    for slots in (column, row):
        assert slots.tolist() == [0, 4, 1, 4, 2, 3]  # token 4 is the padding
        assert (slots < 4).nonzero().flatten().tolist() == [0, 2, 4, 5]
    for n, cells in [(15, 14), (20, 14), (27, 14), (5, 3), (15, 8)]:
        slots = cell_members((n, 1), (cells, 1), masked=False)[:, [0, 2]].flatten()
        p = 2 * cells - n
        assert (slots < n).nonzero().flatten().tolist() == [2 * k if k < p else k + p for k in range(n)]


@pytest.mark.parametrize("target, padding", [((14, 14), "paper"), ((8, 9), "even")])
def test_every_size_reaches_the_target_and_loses_no_token(target, padding):
    merger = AdaptiveTokenMerger(4, 2, target, padding=padding)
    halvings = lambda n, g: [max(g, math.ceil(n / 2**k)) for k in range(1, 8)]  # noqa: E731
    for h, w in itertools.product(range(1, 81), repeat=2):
        passes = merger.passes((h, w))
        needed = max(math.ceil(math.log2(h / target[0])), math.ceil(math.log2(w / target[1])), 1)
        # the equation for each axis by itself, and as many passes as the longer one needs
        assert passes == list(zip(halvings(h, target[0]), halvings(w, target[1]), strict=True))[:needed]
        assert passes[-1] == target == merger.output_grid((h, w))
        grid = max(h, target[0]), max(w, target[1])
        for cells in passes:
            members = cell_members(grid, cells, padding)
            count, number = grid[0] * grid[1], cells[0] * cells[1]
            assert members.shape == (number, 4) and members.min() == 0 and members.max() == count - 1
            owner, cell = torch.full((count,), -1), torch.arange(number)[:, None].expand(-1, 4)
            owner[members] = cell
            assert owner.min() == 0 and torch.equal(owner[members], cell), "a token lies in no cell or in two"
            grid = cells


@every_option
def test_real_maps_reach_the_target(options):
    merger = make(dim=4, **options).float()
    sides = (1, 2, 13, 14, 15, 28, 29, 35, 57, 79, 80)
    with torch.no_grad():
        for h, w in itertools.product(sides, repeat=2):
            out = merger(torch.randn(1, h, w, 4))
            assert out.shape == (1, *TARGET, 4) and out.isfinite().all(), (h, w)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("masked", [True, False])
def test_cells_of_one_axis_do_not_know_the_other(padding, masked):
    def rows_together(h, w, cells):
        "Which rows meet in a cell, read off the first column."
        grid, split = (h, w), cell_members((h, w), cells, padding, masked)[:: cells[1], ::2]
        return [sorted({member // w for member in cell if member < grid[0] * grid[1]}) for cell in split.tolist()]

    for h, gh in [(20, 14), (17, 14), (28, 14), (14, 14), (35, 18)]:
        alone = rows_together(h, 1, (gh, 1))
        for w, gw in [(14, 14), (15, 14), (27, 14), (28, 14), (3, 2)]:
            assert rows_together(h, w, (gh, gw)) == alone
            turned = cell_members((w, h), (gw, gh), padding, masked)
            there = cell_members((h, w), (gh, gw), padding, masked)
            turned_tokens = torch.where(turned < h * w, turned % h * w + turned // h, turned)
            turned_tokens = turned_tokens.view(gw, gh, 2, 2).permute(1, 0, 3, 2).reshape(-1, 4)
            assert torch.equal(turned_tokens, there)


@pytest.mark.parametrize("padding", PADDINGS)
@torch.no_grad()
def test_merging_equal_columns_leaves_the_rows_as_they_are(padding):
    merger = make(padding=padding)
    for h, widths in [(20, (14, 15, 19, 27, 28)), (35, (20, 29, 33, 56)), (9, (14, 20, 28))]:
        stripes = tokens(h, 1)
        first, *others = (merger(stripes.expand(-1, -1, w, -1)) for w in widths)
        assert len({len(merger.passes((h, w))) for w in widths}) == 1
        for other in others:
            torch.testing.assert_close(other, first)


# The equation


def groups(n, target, padding):
    "Tokens of each cell of one axis, from the rules in words; None stands for padding."
    cells = max(target, math.ceil(n / 2))
    if n == cells:
        return [[i] for i in range(n)]
    if padding == "even":
        edges = [math.floor(i * n / cells + 0.5) for i in range(cells + 1)]
        bare = [list(range(*edge)) for edge in itertools.pairwise(edges)]
    else:
        single = 2 * cells - n
        bare = [[i] if i < single else [2 * i - single, 2 * i - single + 1] for i in range(cells)]
    return [cell if len(cell) == 2 else [*cell, None] for cell in bare]


def linear(layer, x):
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + bias for row, bias in rows]


def norm(layer, x):
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-6)
    return [(v - mean) / spread * w + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def one_cell(merger, cell):
    "Lists of numbers to a list of numbers: ViTAR, Eq. 1, then the feed-forward network."
    attention, d = merger.attention, merger.dim
    e = d // merger.heads
    mean = [sum(token[i] for token in cell) / len(cell) for i in range(d)]
    query = linear(attention.query, norm(attention.norm, mean))
    both = [linear(attention.key_value, norm(attention.norm, token)) for token in cell]
    gathered = []
    for head in range(merger.heads):
        part = range(head * e, (head + 1) * e)
        scores = [math.exp(sum(query[i] * kv[i] for i in part) / math.sqrt(e)) for kv in both]
        gathered += [sum(s * kv[d + i] for s, kv in zip(scores, both, strict=True)) / sum(scores) for i in part]
    x = [m + o for m, o in zip(mean, linear(attention.out, gathered), strict=True)]
    hidden = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in linear(merger.mlp[0], norm(merger.norm, x))]
    return [v + m for v, m in zip(x, linear(merger.mlp[2], hidden), strict=True)]


def loop_by_loop(merger, x, targets):
    "The merger for one map as nested lists, no side below the target; one pass for every target given."
    for target in targets:
        rows, columns = groups(len(x), target[0], merger.padding), groups(len(x[0]), target[1], merger.padding)
        merged = []
        for row in rows:
            merged.append([])
            for column in columns:
                places = [(i, j) for i in row for j in column]
                if merger.masked:
                    places = [place for place in places if None not in place]
                cell = [[0.0] * merger.dim if None in (i, j) else x[i][j] for i, j in places]
                merged[-1].append(one_cell(merger, cell))
        x = merged
    return torch.tensor(x, dtype=torch.float64)


@every_option
@pytest.mark.parametrize("grid", [(3, 4), (6, 8), (5, 5), (5, 4), (3, 7), (8, 11), (13, 4), (7, 17)], ids=str)
@torch.no_grad()
def test_the_merger_equals_the_equation_loop_by_loop(options, grid):
    target = (3, 4)
    merger, x = make(target, **options), tokens(*grid)
    needed = max(math.ceil(math.log2(n / g)) for n, g in zip(grid, target, strict=True))
    count = max(1, needed) + (merger.final_pass and needed > 0)
    for picture, out in zip(x, merger(x), strict=True):
        torch.testing.assert_close(out, loop_by_loop(merger, picture.tolist(), [target] * count), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ratio", [1, 2, (1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("grid", [(6, 8), (5, 4), (3, 7), (1, 1)], ids=str)
@torch.no_grad()
def test_a_fixed_ratio_equals_the_equation_loop_by_loop(ratio, grid):
    per_axis = (ratio, ratio) if isinstance(ratio, int) else ratio
    target = tuple(math.ceil(n / r) for n, r in zip(grid, per_axis, strict=True))
    for padding, masked in itertools.product(PADDINGS, (True, False)):
        merger, x = make(ratio=ratio, padding=padding, masked=masked), tokens(*grid, b=1)
        assert merger.output_grid(grid) == target and merger.passes(grid) == [target]
        torch.testing.assert_close(merger(x)[0], loop_by_loop(merger, x[0].tolist(), [target]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("padding", PADDINGS)
@torch.no_grad()
def test_repeated_tokens_are_a_padding_mask(padding):
    "PyTorch's attention with an explicit mask over the empty slots, one cell to a sequence."
    attention = make(dim=12, heads=3).attention
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    theirs.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key_value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key_value.bias]))
    theirs.out_proj.load_state_dict(attention.out.state_dict())
    for grid, cells in [((20, 17), (14, 14)), ((15, 28), (14, 14)), ((9, 4), (5, 4)), ((35, 35), (18, 18))]:
        x = torch.randn(grid[0] * grid[1], 12, dtype=torch.float64)
        slots = cell_members(grid, cells, padding, masked=False)
        empty = slots == len(x)
        assert empty.any()
        dealt = torch.cat([x, torch.full((1, 12), 1e3)])[slots]  # what lies in an empty slot is no matter
        mean = torch.stack([cell[~gap].mean(0) for cell, gap in zip(dealt, empty, strict=True)])[:, None]
        key = attention.norm(dealt)
        expected = mean + theirs(attention.norm(mean), key, key, key_padding_mask=empty, need_weights=False)[0]
        found = attention(deal_tokens(x[None], cell_members(grid, cells, padding)))
        torch.testing.assert_close(found[0], expected[:, 0])


# What must not matter, and what must


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("grid", [(28, 28), (20, 17), (14, 27), (35, 30), (80, 79)], ids=str)
@torch.no_grad()
def test_the_order_inside_a_cell_does_not_matter(padding, grid):
    merger, x = make(padding=padding), tokens(*grid)
    order = torch.arange(grid[0] * grid[1])
    for cell in cell_members(grid, merger.passes(grid)[0], padding):
        together = cell.unique()
        order[together] = together[torch.randperm(len(together))]
    assert (order != torch.arange(len(order))).any()
    shuffled = x.flatten(1, 2)[:, order].unflatten(1, grid)
    torch.testing.assert_close(merger(shuffled), merger(x))
    across = x.flatten(1, 2).roll(1, 1).unflatten(1, grid)  # tokens leave their cells
    assert not torch.allclose(merger(across), merger(x), atol=1e-2)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("grid", [(14, 14), (20, 17), (35, 70), (80, 79), (1, 80), (3, 3)], ids=str)
@torch.no_grad()
def test_a_constant_map_is_a_fixed_point_of_the_pooling(padding, grid):
    constant = torch.randn(1, 1, 1, 8, dtype=torch.float64)
    x = constant.expand(1, *grid, 8)
    torch.testing.assert_close(silence(make(padding=padding))(x), constant.expand(1, *TARGET, 8))
    diluted = silence(make(padding=padding, masked=False))(x)
    whole = {n for g in TARGET for n in (g * 2**k for k in range(5))}
    nothing_padded = all(max(n, 14) in whole for n in grid)
    assert torch.allclose(diluted, constant) == nothing_padded


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("grid", [(20, 17), (35, 28), (79, 80), (15, 9), (28, 56)], ids=str)
@torch.no_grad()
def test_poisoned_padding_does_not_reach_the_result(monkeypatch, padding, grid):
    masked, unmasked = (make(padding=padding, masked=on) for on in (True, False))
    x = tokens(*grid)
    expected = masked(x)
    pad = nn.functional.pad
    poisoned = lambda x, widths, mode="constant", value=None: pad(x, widths, mode, float("nan"))  # noqa: E731
    assert unmasked(x).isfinite().all()
    monkeypatch.setattr(nn.functional, "pad", poisoned)
    assert torch.equal(masked(x), expected)
    padded = grid != (28, 56)
    assert unmasked(x).isnan().any() == padded, "the poison is not one"

    count = math.prod(map(max, grid, TARGET))
    members = cell_members(tuple(map(max, grid, TARGET)), masked.passes(grid)[0], padding)
    beyond = torch.full((2, 9, 8), torch.nan, dtype=torch.float64)
    assert masked.attention(deal_tokens(torch.cat([tokens(count), beyond], dim=1), members)).isfinite().all()


@torch.no_grad()
def test_a_spoilt_token_spoils_one_cell():
    for padding, grid in itertools.product(PADDINGS, [(20, 17), (35, 40), (28, 14)]):
        merger, x = make(padding=padding), tokens(*grid, b=1)
        expected = merger(x)
        for row, column in [(0, 0), (7, 9), (grid[0] - 1, grid[1] - 1)]:
            bad = x.clone()
            bad[0, row, column] = torch.nan
            out = merger(bad)
            spoilt = out.isnan().any(-1)
            assert spoilt.sum() == 1 and torch.equal(out[~spoilt], expected[~spoilt])


def test_all_passes_share_their_weights():
    merger = make(dim=16)
    names = [name for name, _ in merger.named_parameters()]
    assert sum(p.numel() for p in merger.parameters()) == 12 * 16**2 + 13 * 16
    for grid in [(14, 14), (28, 28), (80, 79)]:
        merger(tokens(*grid, b=1, dim=16)).sum().backward()
        assert [name for name, _ in merger.named_parameters()] == names


@pytest.mark.parametrize("grid", [(14, 14), (27, 20), (35, 70), (80, 30)], ids=str)
def test_the_gradient_is_summed_over_the_passes(grid):
    merger, x = make(), tokens(*grid)
    weight = torch.randn(2, *TARGET, 8, dtype=torch.float64)
    (merger(x) * weight).sum().backward()
    copies, out, size = [], x, grid
    for cells in merger.passes(grid):
        copies.append(copy.deepcopy(merger))
        copies[-1].zero_grad()
        copies[-1].passes = lambda grid, cells=cells: [cells]
        out, size = copies[-1](out), cells
    (out * weight).sum().backward()
    assert len(copies) == max(1, *(len(merge_schedule(n, 14)) for n in grid)) and size == TARGET
    for shared, *own in zip(merger.parameters(), *(single.parameters() for single in copies), strict=True):
        torch.testing.assert_close(shared.grad, sum(p.grad for p in own))
        assert len(own) == 1 or not torch.allclose(shared.grad, own[-1].grad)


@every_option
def test_gradients_are_those_of_the_function(options):
    merger, x = make((2, 3), dim=4, **options), tokens(3, 7, b=1, dim=4).requires_grad_()
    assert torch.autograd.gradcheck(merger, (x,))


@torch.no_grad()
def test_mirrored_and_turned_maps():
    turns = {"turn": lambda x: x.transpose(1, 2), "mirror": lambda x: x.flip(2)}
    same = lambda merger, turn, x: torch.allclose(merger(turn(x)), turn(merger(x)))  # noqa: E731
    padded, whole = tokens(20, 17), tokens(28, 56)
    for name in list_mergers():
        merger = make(name=name)
        assert same(merger, turns["turn"], padded) == (name != "convpool"), name  # kernels are not symmetric
        assert same(merger, turns["mirror"], padded) == (name in ("none", "avgpool")), name
        assert same(merger, turns["mirror"], whole) == (name != "convpool"), name
    even = make(padding="even")  # without ties in the rounding: mirrored cells are cells
    assert same(even, turns["mirror"], tokens(14, 20)) and not same(even, turns["mirror"], tokens(14, 17))


@torch.no_grad()
def test_average_pooling_equals_its_equation():
    for (gh, gw), (h, w) in itertools.product([(14, 14), (3, 5)], [(14, 14), (20, 17), (9, 31), (1, 1), (5, 80)]):
        x, expected = tokens(h, w), torch.empty(2, gh, gw, 8, dtype=torch.float64)
        for i, j in itertools.product(range(gh), range(gw)):
            rows = range(math.floor(i * h / gh), math.ceil((i + 1) * h / gh))
            columns = range(math.floor(j * w / gw), math.ceil((j + 1) * w / gw))
            expected[:, i, j] = sum(x[:, k, m] for k in rows for m in columns) / (len(rows) * len(columns))
        torch.testing.assert_close(make((gh, gw), name="avgpool")(x), expected)


# Other runtimes


def compiled(merger):
    "The merger compiled, and a counter of its graphs."
    torch._dynamo.reset()
    merger(tokens(14, 14, dim=merger.dim))  # what einops looks up once is none of the sizes' doing
    counter = CompileCounter()
    return torch.compile(merger, backend=counter, dynamic=True, fullgraph=True), counter


GRAPHS = {
    1: [(20, 22), (22, 24), (26, 18), (20, 20), (14, 14), (14, 20), (28, 28), (27, 15), (9, 20), (20, 9), (5, 7)],
    2: [(30, 50), (20, 31), (31, 20), (56, 56), (29, 5), (35, 14)],
    3: [(70, 20), (80, 79), (14, 112)],
}


@pytest.mark.parametrize("options, most", [({}, 3), ({"padding": "even", "masked": False}, 2)], ids=str)
@torch.no_grad()
def test_one_graph_per_number_of_passes(options, most):
    merger = make(**options)
    fast, counter = compiled(merger)
    counts = set()
    for grid in itertools.chain(*(GRAPHS[count] for count in range(1, most + 1))):
        x = tokens(*grid)
        torch.testing.assert_close(fast(x), merger(x))
        counts.add(len(merger.passes(grid)))
        assert counter.frame_count == len(counts), grid


@torch.no_grad()
def test_a_square_may_come_first():
    "Unless told otherwise, the compiler takes sides that are equal at first to be equal for ever, in any model."
    merger = make()
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        fast, counter = compiled(merger)
        for grid in [(20, 20), (22, 24), (14, 14), (9, 17)]:
            x = tokens(*grid)
            torch.testing.assert_close(fast(x), merger(x))
    assert counter.frame_count == 1


@torch.no_grad()
def test_a_training_step_shares_the_graph_too():
    merger = make()
    fast, counter = compiled(merger)
    for grid in GRAPHS[1]:
        with torch.enable_grad():
            fast(tokens(*grid)).square().sum().backward()
        assert all(p.grad is not None for p in merger.parameters())
    assert counter.frame_count == 1


@pytest.mark.parametrize("name, options", [("atm", {"ratio": (1, 2)}), ("avgpool", {}), ("convpool", {})], ids=str)
@torch.no_grad()
def test_one_graph_where_no_size_is_iterated_on(name, options):
    merger = make(name=name, **options)
    fast, counter = compiled(merger)
    for grid in [(20, 22), (14, 14), (9, 40), (70, 70), (28, 26), (5, 3)]:
        x = tokens(*grid)
        torch.testing.assert_close(fast(x), merger(x))
    assert counter.frame_count == 1


@torch.no_grad()
def test_what_follows_sees_a_grid_of_fixed_size():
    "Behind the merger nothing is symbolic, so that one set of kernels serves every picture."
    shapes = []

    def backend(graph, inputs):
        output = next(node for node in graph.graph.nodes if node.op == "output")
        shapes.append(output.args[0][0].meta["example_value"].shape)
        return graph.forward

    torch._dynamo.reset()
    fast = torch.compile(make(), backend=backend, dynamic=True, fullgraph=True)
    fast(tokens(30, 50))
    assert [type(n) for n in shapes[0][1:3]] == [int, int] and len(shapes) == 1


@pytest.mark.parametrize("name, options, low, high", [
    ("atm", {}, 2, 28), ("atm", {}, 29, 56), ("atm", {"padding": "even"}, 29, 56), ("atm", {"ratio": 2}, 3, 64),
    ("avgpool", {}, 2, 64), ("convpool", {}, 2, 64), ("none", {}, 2, 64),
])  # fmt: skip
@torch.no_grad()
def test_an_exported_program_takes_a_range_of_sizes(name, options, low, high):
    merger, middle = make(name=name, **options), (low + high) // 2
    height, width = (torch.export.Dim(axis, min=low, max=high) for axis in ("height", "width"))
    program = torch.export.export(merger, (tokens(middle, middle - 1),), dynamic_shapes=({1: height, 2: width},))
    for grid in [(low, high), (high, low), (low + 1, high - 3), (high, high)]:
        x = tokens(*grid)
        torch.testing.assert_close(program.module()(x), merger(x))


def onnx_answers(merger, example, grids, **settings):
    "The exported file's answers next to the merger's own."
    program = torch.onnx.export(merger, (example,), dynamo=True, verbose=False, **settings)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for grid in grids:
        x = tokens(*grid).float()
        yield torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), merger(x)


@pytest.mark.parametrize("options, grid", [
    ({}, (35, 20)), ({}, (9, 14)), ({"padding": "even", "masked": False}, (20, 17)), ({"ratio": 2}, (7, 5)),
], ids=str)  # fmt: skip
@torch.no_grad()
def test_onnx_gives_the_same_at_a_fixed_size(options, grid):
    for found, expected in onnx_answers(make(**options).float(), tokens(*grid).float(), [grid]):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_one_onnx_file_serves_all_sizes_of_one_number_of_passes():
    height, width = (torch.export.Dim(axis, min=2, max=28) for axis in ("height", "width"))
    grids = [(20, 17), (14, 14), (28, 28), (2, 5)]
    answers = onnx_answers(make().float(), tokens(15, 16).float(), grids, dynamic_shapes=({1: height, 2: width},))
    for found, expected in answers:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# The way back


def make_unmerger(dim=8, heads=2, **options):
    "An unmerger in double precision with large random weights."
    torch.manual_seed(0)
    unmerger = TokenUnmerger(dim, heads, **options).double()
    with torch.no_grad():
        for parameter in unmerger.parameters():
            parameter.normal_(std=0.6)
    return unmerger


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("target, options", [((14, 9), {}), ((3, 3), {"final_pass": True}), ((3, 3), {"ratio": 2})])
@torch.no_grad()
def test_a_token_reads_the_cell_it_was_merged_into(padding, target, options):
    "Spoil a token before the merger: the cell that is spoilt behind it is the one `token_cells` names."
    merger = make(target, padding=padding, **options)
    for grid in [(20, 17), (35, 9), (14, 40), (4, 4), (29, 57)]:
        (h, w), cells = grid, merger.output_grid(grid)
        if min(h - cells[0], w - cells[1]) < 0:
            continue  # an enlarged map mixes neighbours
        rows, columns = (token_cells(n, count, padding) for n, count in zip(grid, cells, strict=True))
        for i, j in [(0, 0), (h // 2, w // 3), (h - 1, w - 1), (h // 3, w - 2)]:
            x = tokens(*grid, b=1)
            x[0, i, j] = torch.nan
            spoilt = merger(x)[0].isnan().any(-1).nonzero().tolist()
            assert spoilt == [[rows[i].item(), columns[j].item()]], grid


def test_a_token_of_an_enlarged_axis_reads_the_cell_that_holds_its_centre():
    for n, cells in itertools.product(range(1, 15), range(1, 60)):
        if n < cells:
            expected = [math.floor((i + 0.5) * cells / n) for i in range(n)]
            assert token_cells(n, cells).tolist() == expected == token_cells(n, cells, "even").tolist()


@pytest.mark.parametrize("neighbours", [0, 1, 2])
@pytest.mark.parametrize("grid, cells", [((6, 7), (3, 2)), ((3, 3), (5, 6)), ((4, 5), (4, 5)), ((1, 9), (1, 2))])
@torch.no_grad()
def test_the_unmerger_equals_attention_with_a_mask(neighbours, grid, cells):
    "PyTorch's attention over all cells, where a mask hides those that are too far away and carries the bias."
    unmerger, (fine, coarse) = make_unmerger(neighbours=neighbours), (tokens(*grid), tokens(*cells))
    place = [token_cells(n, count) for n, count in zip(grid, cells, strict=True)]
    steps = [torch.arange(count)[None] - own[:, None] for own, count in zip(place, cells, strict=True)]  # (n, count)
    row, column = steps[0][:, None, :, None], steps[1][None, :, None, :]
    near = (row.abs() <= neighbours) & (column.abs() <= neighbours)
    index = ((row + neighbours) * (2 * neighbours + 1) + column + neighbours).clamp(0, len(unmerger.offset_bias) - 1)
    mask = unmerger.offset_bias[index].masked_fill(~near[..., None], -torch.inf)
    mask = mask.permute(4, 0, 1, 2, 3).flatten(1, 2).flatten(2, 3)

    split = lambda x: x.unflatten(-1, (2, -1)).transpose(1, 2)  # noqa: E731
    query = unmerger.query(unmerger.fine_norm(fine)).flatten(1, 2)
    key, value = unmerger.key_value(unmerger.coarse_norm(coarse)).flatten(1, 2).chunk(2, dim=-1)
    read = nn.functional.scaled_dot_product_attention(split(query), split(key), split(value), attn_mask=mask)
    expected = fine + unmerger.out(read.transpose(1, 2).flatten(2)).view_as(fine)
    torch.testing.assert_close(unmerger(coarse, fine), expected)


def test_gradients_of_the_unmerger_are_right():
    unmerger = make_unmerger(dim=4)
    inputs = tokens(3, 2, b=1, dim=4).requires_grad_(), tokens(4, 5, b=1, dim=4).requires_grad_()
    assert torch.autograd.gradcheck(unmerger, inputs)
    assert torch.autograd.gradcheck(lambda bias: torch.func.functional_call(unmerger, {"offset_bias": bias}, inputs),
                                    unmerger.offset_bias.detach().clone().requires_grad_())  # fmt: skip


@torch.no_grad()
def test_what_the_unmerger_keeps_is_linear_in_the_tokens():
    unmerger, made = make_unmerger(), []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            made[-1] += result.numel() if isinstance(result, torch.Tensor) else 0
            return result

    for side in (16, 32, 64):
        made.append(0)
        with Count():
            unmerger(tokens(8, 8), tokens(side, side))
    assert made[2] - made[1] == pytest.approx(4 * (made[1] - made[0]), rel=0.02)


@torch.no_grad()
def test_one_graph_unmerges_all_sizes_with_as_many_passes_on_each_axis():
    torch._dynamo.reset()
    unmerger, counter = make_unmerger(), CompileCounter()
    unmerger(tokens(7, 7), tokens(12, 13))
    fast = torch.compile(unmerger, backend=counter, dynamic=True, fullgraph=True)
    for graphs, grids in {1: [(12, 13), (11, 9), (14, 14), (13, 8)], 2: [(20, 17), (28, 27)]}.items():
        for grid in grids:
            coarse, fine = tokens(7, 7), tokens(*grid)
            torch.testing.assert_close(fast(coarse, fine), unmerger(coarse, fine))
            assert counter.frame_count == graphs, grid


@torch.no_grad()
def test_the_unmerger_in_half_precision():
    unmerger, coarse, fine = make_unmerger(), tokens(5, 4), tokens(11, 9)
    half = copy.deepcopy(unmerger).bfloat16()(coarse.bfloat16(), fine.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), unmerger(coarse, fine), atol=0.3, rtol=0.05)


# What is refused


@pytest.mark.parametrize("ratio", [0, 3, -1, (1,), (2, 3), (1, 1, 1), "2", 1.5], ids=str)
def test_other_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match="ratio must be 1 or 2, or a pair"):
        create_merger("atm", 8, 2, TARGET, ratio=ratio)


def test_cells_that_cannot_be_are_refused():
    for n, cells in [(7, 3), (7, 8), (0, 0), (3, 1)]:
        with pytest.raises(ValueError, match="Cells hold one or two tokens"):
            cell_members((n, 4), (cells, 2))
    with pytest.raises(ValueError, match="padding must be one of paper, even; 'zero' was given"):
        cell_members((20, 20), TARGET, "zero")
    with pytest.raises(ValueError, match="heads must divide dim"):
        GridAttention(8, 3)
