"""Memory and time of training against the side of the picture, with activations kept or computed a second time.

A call is forward and backward. Gradients lie ready and are added to, so what is counted is activations; `peak_bytes` is
per picture. `speed` is the time of the same model with all activations kept, over this row's: gradient checkpointing
runs the forward pass twice, so 0.75 is what a backward pass of twice the forward's time lets one expect. timm's ViT
with equal weights stands beside ours.
"""

import bench
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sivit.cost import peak_of, race
from sivit.interop import from_timm
from sivit.vit import create_model

PROFILES = {  # sizes, sides in px, batch, rounds
    "quick": (("tiny",), (112, 224), 1, 3),
    "cpu": (("tiny", "small"), (112, 224, 448, 672, 896), 1, 7),
    "gpu": (("tiny", "small", "base"), (224, 448, 896, 1344, 1792), 4, 20),
}


def models_of(size: str, device: str) -> dict[str, nn.Module]:
    "timm's plain ViT, ours with the same weights, and ViTAR, by name."
    theirs = timm.create_model(f"vit_{size}_patch16_224", dynamic_img_size=True)
    models = {"timm": theirs, "sivit": from_timm(theirs), "vitar": create_model(f"vitar_{size}_patch16")}
    return {f"{name} {size}": model.to(device).train() for name, model in models.items()}


def train_once(model: nn.Module, images: torch.Tensor, again: bool) -> None:
    "Forward and backward; what is inside blocks is computed again, or kept."
    model.set_grad_checkpointing(again)
    F.cross_entropy(model(images), torch.arange(len(images), device=images.device)).backward()


def measure(name: str, model: nn.Module, images: torch.Tensor, rounds: int) -> list[dict]:
    "A row for activations that are kept, and one for those that are not."
    calls = {again: lambda again=again: train_once(model, images, again) for again in (False, True)}
    facts = {"model": name, "px": images.shape[-1]}
    rows = [
        facts | {"checkpointing": again, "peak_bytes": peak_of(call, images.device) // len(images)}
        for again, call in calls.items()
    ]
    times = race(calls, images.device, rounds, warmup=0).drop(columns="name").to_dict("records")
    return [row | time for row, time in zip(rows, times, strict=True)]


if __name__ == "__main__":
    options, device = bench.start(bench.Options, __doc__), bench.device()
    sizes, sides, batch, rounds = PROFILES[options.profile]
    rows = []
    for size in sizes:
        for name, model in models_of(size, device).items():
            for px in sides:
                rows += measure(name, model, torch.randn(batch, 3, px, px, device=device), rounds)
    bench.keep(rows, options)
