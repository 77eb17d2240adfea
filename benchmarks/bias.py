"""Attention with a bias, against attention without: the whole product, making the bias included.

`speed` is the time of the fused product without a bias over the row's, for the same queries, keys and values. The ways:
"table" reads the bias from its table of offsets, "spread" gives every pair of tokens its number and calls the fused
product, "spread, 3-D" does so without a dimension for pictures, which PyTorch's fused kernel for the CPU does not take.
A training step is forward and backward, with gradients of queries, keys, values and what the encoding has learned.
"""

from collections.abc import Callable

import bench
import torch
import torch.nn.functional as F
from torch import Tensor

from sivit.attention import offset_attention
from sivit.cost import peak_of, race
from sivit.position import Position, create_position

HEADS, WIDTH = 6, 64
NAMES, WAYS = ("rpb", "log_cpb", "alibi", "lookhere"), ("table", "spread", "spread, 3-D")
PROFILES = {  # encodings, ways, side of the grid in tokens, pictures, rounds of inference and of training, precision
    "quick": (("rpb", "alibi"), WAYS[:2], 40, 1, 5, 2, torch.float32),
    "cpu": (NAMES, WAYS, 64, 1, 9, 3, torch.float32),
    "gpu": (NAMES, WAYS[:2], 64, 8, 50, 20, torch.bfloat16),
}


def product(qkv: list[Tensor], position: Position, way: str, grid: tuple[int, int]) -> Tensor:
    "Attention in one of the ways."
    if way == "none":
        return F.scaled_dot_product_attention(*qkv)
    if way == "table":
        return offset_attention(*qkv, position.logit_table(grid, 0, qkv[0].dtype))
    bias = position.bias(grid, 0).to(qkv[0].dtype)
    return F.scaled_dot_product_attention(*qkv, attn_mask=bias if way == "spread, 3-D" else bias[None])


def call_of(work: str, qkv: list[Tensor], position: Position, way: str, grid: tuple[int, int]) -> Callable[[], None]:
    "What a contestant does once."

    def forward():
        position.train()  # which forgets the table that was kept
        with torch.inference_mode():
            product(qkv, position, way, grid)

    def step():
        given = [t.detach().requires_grad_() for t in qkv]
        out = product(given, position, way, grid)
        out.backward(torch.ones_like(out))
        position.zero_grad()

    return {"forward": forward, "training step": step}[work]


if __name__ == "__main__":
    options = bench.start(bench.Options, __doc__)
    names, ways, side, pictures, *rounds, dtype = PROFILES[options.profile]
    device, grid, rows = bench.device(), (side, side), []
    qkv = torch.randn(pictures, side**2, 3, HEADS, WIDTH, device=device, dtype=dtype).permute(2, 0, 3, 1, 4).unbind()
    for work, count in zip(("forward", "training step"), rounds, strict=True):
        for name in names:
            position = create_position(name, HEADS * WIDTH, HEADS, 1, (14, 14)).to(device)
            calls = {way: call_of(work, qkv, position, way, grid) for way in ("none", *ways)}
            for row in race(calls, device, count, warmup=1).to_dict("records"):
                way = row.pop("name")
                rows.append(
                    {"work": work, "encoding": name, "way": way, "peak_bytes": peak_of(calls[way], device), **row}
                )
    bench.keep(rows, options, tokens=side**2, heads=HEADS, width=WIDTH, pictures=pictures, dtype=str(dtype))
