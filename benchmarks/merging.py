"""Grid attention with absorbed projections, beside the printed equation with keys and values of every token.

`speed` is the time of the printed equation over that of the absorbed one, in a merger that is the same otherwise.
"""

import copy
import itertools
from functools import partial

import bench
import torch
from einops import rearrange

from sivit.cost import count_macs, peak_of, race
from sivit.merge import AdaptiveTokenMerger, GridAttention
from sivit.vit import create_model

WIDTHS = ((64, 4), (192, 3), (384, 6), (768, 12))  # and heads
PROFILES = {  # widths and heads; tokens on a side, and batch
    "quick": (WIDTHS[2:3], ((28, 4), (56, 1))),
    "cpu": (WIDTHS, ((28, 16), (70, 2), (112, 1))),
    "gpu": (WIDTHS, ((28, 256), (70, 32), (252, 2))),
}
ROUNDS = {"quick": 5, "cpu": 15, "gpu": 30}


class ProjectedGridAttention(GridAttention):
    "ViTAR's Eq. 1 at its word: every token has a key and a value."

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        mean = cells.mean(2)
        query = rearrange(self.query(self.norm(mean)), "b c (m e) -> b c 1 m e", m=self.heads)
        key_value = rearrange(self.key_value(self.norm(cells)), "b c k (two m e) -> two b c k m e", two=2, m=self.heads)
        key, value = key_value
        weights = ((query * key).sum(-1) * key.shape[-1] ** -0.5).softmax(dim=2)
        return mean + self.out(rearrange((weights[..., None] * value).sum(2), "b c m e -> b c (m e)"))


def projected(merger: AdaptiveTokenMerger) -> AdaptiveTokenMerger:
    "The same merger, weights and all, with the printed attention."
    other = copy.deepcopy(merger)
    other.attention.__class__ = ProjectedGridAttention
    return other


def call(merger: AdaptiveTokenMerger, tokens: torch.Tensor, work: str) -> None:
    with torch.inference_mode(work == "forward"):
        merged = merger(tokens)
    if work == "training step":
        merged.square().mean().backward()


def measure(dim: int, heads: int, side: int, batch: int, options: bench.Options) -> list[dict]:
    "A merger alone, forward and with gradients, and how far the two results are from each other."
    device = bench.device()
    absorbed = AdaptiveTokenMerger(dim, heads, (14, 14)).to(device)
    mergers = {"projected": projected(absorbed), "absorbed": absorbed}
    tokens = torch.randn(batch, side, side, dim, device=device, requires_grad=True)
    with torch.inference_mode():
        first, second = (merger(tokens) for merger in mergers.values())
    rows = []
    for work in ("forward", "training step"):
        calls = {name: partial(call, merger, tokens, work) for name, merger in mergers.items()}
        times = race(calls, device, ROUNDS[options.profile]).set_index("name").loc["absorbed"]
        peaks = {f"{name}_peak_bytes": peak_of(contestant, device) for name, contestant in calls.items()}
        facts = {"dim": dim, "tokens": f"{side}×{side}", "batch": batch, "work": work}
        rows.append(facts | dict(times) | peaks | {"largest_difference": (first - second).abs().max().item()})
    return rows


def macs(size: int) -> dict:
    "Operations of a whole model with either attention."
    model = create_model("vitar_small_patch16")
    absorbed, model.encoder.merger = count_macs(model, size), projected(model.encoder.merger)
    return {"size": size, "absorbed": absorbed, "projected": count_macs(model, size)}


if __name__ == "__main__":
    options = bench.start(bench.Options, __doc__)
    widths, grids = PROFILES[options.profile]
    rows = [row for width, grid in itertools.product(widths, grids) for row in measure(*width, *grid, options)]
    bench.keep(rows, options, macs=[macs(size) for size in (224, 448, 1120, 4032)])
