"""Drawing procedural scenes beside training on them: drawing must never be what training waits for."""

import bench
import torch
import torch.nn.functional as F

from sivit.cost import race
from sivit.scenes import draw_scenes
from sivit.vit import create_model

PROFILES = {  # model, batch, sides in px, rounds
    "quick": ("vit_micro_patch4", 64, (32,), 5),
    "cpu": ("vit_micro_patch4", 256, (32, 64, 128), 9),
    "gpu": ("vit_small_patch16", 1024, (64, 128, 224), 30),
}


def measure(name: str, batch: int, side: int, rounds: int) -> dict:
    "Training steps on a batch, in turns with drawing as many scenes; `speed` is training's time over drawing's."
    device = bench.device()
    model = create_model(name, num_classes=10).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    images, labels = torch.rand(batch, 3, side, side, device=device), torch.arange(batch, device=device) % 10

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
        optimiser.zero_grad()

    contestants = {"training": step, "drawing": lambda: draw_scenes(range(batch), side, device=device)}
    row = race(contestants, device, rounds).set_index("name").loc["drawing"]
    return {"model": name, "batch": batch, "px": side, **row, "scenes_per_second": 1000 * batch / row.milliseconds}


if __name__ == "__main__":
    options = bench.start(bench.Options, __doc__)
    name, batch, sides, rounds = PROFILES[options.profile]
    bench.keep([measure(name, batch, side, rounds) for side in sides], options)
