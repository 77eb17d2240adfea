"""A plain ViT here and in timm: the same architecture and weights, forward and in training.

A training step is forward, cross entropy, backward, clipping and AdamW. "bf16 autocast" computes products in bfloat16;
"bf16" is a model of bfloat16, for inference. Where a model's weights happen to lie in memory changes its time by a few
percent, so every contestant has several copies, made and called in turn. `speed` is timm's time over ours; timm's model
also runs against itself (`again`), which shows what such a ratio is when there is nothing to find. `mfu` is the share
of the measured rate of large matrix products that a model's own products reach; a backward pass counts as two forward
ones. Calls of more multiply-accumulates than `most` are left out, and listed. Rows are kept as they come: a run that is
stopped goes on from there when it is started again.
"""

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable

import bench
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sivit.cost import count_macs, matmul_rate, peak_of, race
from sivit.interop import from_timm

SETTING = "model", "batch", "px", "work", "precision"
SIZES, PRECISIONS = ("tiny", "small", "base"), ("fp32", "bf16 autocast", "bf16")
PROFILES = {  # sizes, batches, sides in px, precisions, seconds for the rounds of a row
    "quick": (SIZES[:1], (4,), (224,), PRECISIONS[:2], 1),
    "cpu": (SIZES, (1, 16), (224, 448), PRECISIONS, 6),
    "gpu": (SIZES, (1, 16, 128), (224, 448), PRECISIONS, 6),
}


@dataclasses.dataclass(frozen=True)
class Options(bench.Options):
    most: float = math.inf  # multiply-accumulates of a call; more is left out: 2.2e11 makes a CPU's 90 minutes ten
    copies: int = 2  # of either model


def call_of(model: nn.Module, work: str, precision: str, images: Tensor) -> Callable[[], None]:
    "What a contestant does once."
    labels = torch.arange(len(images), device=images.device)
    optimiser = torch.optim.AdamW(model.train(work == "training step").parameters(), lr=1e-5, fused=True)
    cast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16 autocast")

    def step():
        with cast:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    def forward():
        with torch.inference_mode(), cast:
            model(images)

    return {"training step": step, "forward": forward}[work]


def compete(theirs: nn.Module, work: str, precision: str, images: Tensor, copies: int, seconds: float) -> dict:
    "Times and peaks of timm's model, of ours with its weights and of timm's once more, in at least five rounds."
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    models = {"timm": theirs, "sivit": from_timm(theirs), "again": theirs}
    made = {name: [] for name in models}
    for _, (name, model) in itertools.product(range(copies), models.items()):
        made[name].append(call_of(copy.deepcopy(model).to(dtype), work, precision, images.to(dtype)))
    peaks = [peak_of(made[name][0], images.device) for name in ("timm", "sivit")]
    turns = {name: itertools.cycle(calls) for name, calls in made.items()}
    calls = {name: lambda turn=turn: next(turn)() for name, turn in turns.items()}
    start = time.perf_counter()
    race(calls, images.device, rounds=copies, warmup=0)
    rounds = round(seconds * copies / (time.perf_counter() - start))
    peer, ours, again = race(calls, images.device, min(max(rounds, 5), 60), warmup=0).to_dict("records")
    times = {"timm_milliseconds": peer["milliseconds"], "timm_peak_bytes": peaks[0], "peak_bytes": peaks[1]}
    spread = {f"again_{name}": again[name] for name in ("speed", "low", "high")}
    return {name: ours[name] for name in ("speed", "low", "high", "milliseconds")} | times | spread


if __name__ == "__main__":
    options, device = bench.start(Options, __doc__), bench.device()
    sizes, batches, sides, precisions, seconds = PROFILES[options.profile]
    kinds = {name: torch.float32 if name == "fp32" else torch.bfloat16 for name in precisions}
    rates = {name: matmul_rate(device, dtype, 8192 if device == "cuda" else 1024) for name, dtype in kinds.items()}
    jobs = set(itertools.product(("forward", "training step"), precisions)) - {("training step", "bf16")}
    rows, left_out = bench.begun(options), []
    done = {tuple(row[name] for name in SETTING) for row in rows}
    for size, batch, px in itertools.product(sizes, batches, sides):
        theirs = timm.create_model(f"vit_{size}_patch16_224", dynamic_img_size=True).to(device)
        macs, images = count_macs(theirs, px, batch), torch.randn(batch, 3, px, px, device=device)
        for work, precision in sorted(jobs):
            row = dict(zip(SETTING, (size, batch, px, work, precision), strict=True))
            products = macs if work == "forward" else 3 * macs
            if products > options.most:
                left_out.append(row)
            elif tuple(row.values()) not in done:
                row |= compete(theirs, work, precision, images, options.copies, seconds)
                floor = 1000 * products / rates[precision]
                rows.append(row | {"mfu": floor / row["milliseconds"], "timm_mfu": floor / row["timm_milliseconds"]})
                bench.begin(rows, options)
    bench.keep(rows, options, macs_per_second=rates, left_out=left_out)
    if left_out:
        print(f"\nLeft out, more than {options.most:.1e} multiply-accumulates:", *left_out, sep="\n")
