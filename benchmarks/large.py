"""Large pictures: time against the floor of matrix products, and memory of tensors and of the process.

The floor is products of large matrices with as many operations as the model has; `speed` is its time over the
model's, so 0.5 is a model that takes twice the floor. timm's plain ViT stands beside ours.
"""

import dataclasses
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import bench
import timm
import torch

from sivit.cost import count_macs, peak_memory, race
from sivit.vit import create_model

SIDE = 1024  # of the square matrices whose product sets the floor
MODELS = ("vitar_small_patch16", "timm vit_small_patch16", "vitar_base_patch16", "timm vit_base_patch16")
SIDES = (224, 448, 896, 1120, 1792, 2800, 4032)
PROFILES = {  # sides in px of each model
    "quick": ((224, 896, 4032), (224, 448), (), ()),
    "cpu": (SIDES, SIDES[:4], SIDES[:4], (224, 448, 1120)),
    "gpu": (SIDES, SIDES[:5], SIDES, SIDES[:5]),
}
ROUNDS = {"quick": (3, 8), "cpu": (15, 60), "gpu": (20, 60)}  # of large pictures, and of small ones


@dataclasses.dataclass(frozen=True)
class Options(bench.Options):
    threads: int = 2  # of the CPU


def build(name: str, side: int) -> torch.nn.Module:
    "A model of this package, or timm's for this side: it lays its table of positions out once and for all."
    if name.startswith("timm "):
        return timm.create_model(f"{name.removeprefix('timm ')}_224", img_size=side).eval()
    return create_model(name).eval()


def resident_bytes(name: str, side: int, threads: int) -> int:
    "The most memory that this process ever held, when it has seen one picture; of Linux."
    torch.set_num_threads(threads)
    with torch.inference_mode():
        build(name, side)(torch.rand(1, 3, side, side))
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def in_fresh_process(function, *arguments):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@torch.inference_mode()
def measure(name: str, side: int, options: Options) -> dict:
    "One picture through one model, in turns with as many products of matrices as have its operations."
    device = bench.device()
    model, images = build(name, side).to(device), torch.rand(1, 3, side, side, device=device)
    macs, (left, right) = count_macs(model, side), torch.randn(2, SIDE, SIDE, device=device)
    products, rest = divmod(round(macs / SIDE**2), SIDE)

    def floor():
        for _ in range(products):
            left @ right
        left[:rest] @ right

    fewest, most = ROUNDS[options.profile]
    rounds = min(max(fewest, round(2e11 / macs)), most)
    times = race({"floor": floor, "model": lambda: model(images)}, device, rounds, warmup=1).set_index("name")
    return {"model": name, "size": side, "macs": macs, **times.loc["model"], "peak_bytes": peak_memory(model, side)}


if __name__ == "__main__":
    options = bench.start(Options, __doc__)
    rows = []
    for name, sides in zip(MODELS, PROFILES[options.profile], strict=True):
        rows += [measure(name, side, options) for side in sides]
        if sides and bench.device() == "cpu":
            rows[-1]["resident_bytes"] = in_fresh_process(resident_bytes, name, sides[-1], options.threads)
    bench.keep(rows, options)
