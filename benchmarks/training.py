"""What the training loop adds to the bare steps inside it, what a step at all sizes costs, and what torch.compile does.

`loop`: within one run, steps of the loop and plain PyTorch steps take turns, with the same model, optimiser and batch.
A plain step is forward, backward, clipping and AdamW; the loop also gets batches, moves them, seeds, logs, keeps the
account and maybe a running average. `speed` is the plain time over the loop's: 0.97 is 3 % of overhead. The dataset
hands out the same tensors again and again, so that drawing pictures is not counted.

`all sizes`: a step that shows every picture at three sizes, beside one at the largest; `tokens` is the ratio of tokens.

`graphs` (not in `quick`): the graphs that torch.compile makes of a training step in the first round over the sizes,
and in two more, of which there should be none. `compiled`: compiled steps beside eager ones, once all is compiled.
"""

import dataclasses
import itertools
import math
import tempfile
import time
from unittest import mock

import bench
import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch._dynamo.utils import counters

from sivit.cost import race
from sivit.data import DATASETS, PictureDataset, View
from sivit.patch import patch_grid
from sivit.task import create_task
from sivit.train import TrainConfig, TrainingModel, train, train_step
from sivit.vit import create_model

LOOPS = {"plain": {}, "log_every=1": {"log_every": 1}, "log_every=50": {"log_every": 50}, "EMA": {"ema": 0.999}}
GRAPHS = {"vit_micro_patch4": ("learned", "fuzzy", "lookhere", "rope_mixed"), "vitar_micro_patch4": ("fuzzy",)}
SIDES = {"vit_tiny_patch16": (224, 160, 128), "vit_small_patch16": (224, 160, 128), "vit_micro_patch4": (48, 32, 24)}
SIDES["vitar_micro_patch4"] = (64, 48, 36)  # which take equally many passes of the merger


@dataclasses.dataclass(frozen=True)
class Profile:
    model: str = "vit_micro_patch4"
    batch: int = 16
    lap: int = 10  # steps of a turn
    laps: int = 4  # turns
    loops: tuple[str, ...] = ("EMA",)
    rounds: int = 4  # of the races
    graphs: bool = False  # count graphs, and race the compiled model


PROFILES = {
    "quick": Profile(),
    "cpu": Profile("vit_tiny_patch16", 8, 5, laps=8, loops=tuple(LOOPS), rounds=16, graphs=True),
    "gpu": Profile("vit_small_patch16", 128, 50, 12, tuple(LOOPS), 30, True),
}


class StillPictures(PictureDataset):
    "The same random pictures, whichever are asked for."

    def __init__(self, count):
        super().__init__("still", torch.arange(count) % 10, [str(i) for i in range(10)], 3, View())
        self.store = {}

    def show(self, pictures, sizes, seeds):
        return tuple(self.store.setdefault((len(pictures), *s), torch.rand(len(pictures), 3, *s)) for s in sizes)


DATASETS.register("still")(lambda split, root, seed, count=64: StillPictures(count))


def bare_step(whole, images, targets, optimiser):
    "A training step as PyTorch's manual has it."
    whole(images, targets).backward()
    nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


class Turns:
    "In the place of `train_step`: now and then as many bare steps as the loop has made since."

    def __init__(self, lap):
        self.lap, self.step, self.since, self.seconds = lap, 0, time.perf_counter(), {"bare": [], "loop": []}

    def __call__(self, whole, images, targets, optimiser, *others):
        if self.step % self.lap == 0:
            self.note("loop")
            for _ in range(self.lap):
                bare_step(whole, images, targets, optimiser)
            self.note("bare")
        self.step += 1
        return train_step(whole, images, targets, optimiser, *others)

    def note(self, name):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name].append(now - self.since)
        self.since = now


def loop_row(name: str, chosen: Profile) -> dict:
    "The loop's steps beside bare ones; the first turn is warm-up."
    config = TrainConfig(
        model=chosen.model, dataset="still", dataset_options={"count": chosen.batch * (chosen.lap * chosen.laps + 1)},
        schedule="single", sizes=SIDES[chosen.model][:1], epochs=1, batch_size=chosen.batch,
        evaluate_every=0, **LOOPS[name],
    )  # fmt: skip
    turns = Turns(chosen.lap)
    with tempfile.TemporaryDirectory() as folder, mock.patch("sivit.train.train_step", turns):
        train(config, folder, progress=False)
    bare, loop = (np.array(turns.seconds[name][1:]) for name in ("bare", "loop"))
    again = np.random.default_rng(0).integers(0, len(bare), (2000, len(bare)))
    low, high = np.percentile(bare[again].sum(1) / loop[again].sum(1), [2.5, 97.5])
    row = {"what": "loop", "name": name, "milliseconds": 1000 * loop.sum() / len(loop) / chosen.lap}
    return row | {"speed": bare.sum() / loop.sum(), "low": low, "high": high}


def training_model(name: str, **options) -> TrainingModel:
    "A model with its loss."
    model = create_model(name, num_classes=10, **options)
    return TrainingModel(model, create_task(TrainConfig())).to(bench.device()).train()


def pictures(sides: tuple[int, ...], batch: int) -> tuple:
    "A batch at every side, and its labels."
    images = tuple(torch.randn(batch, 3, side, side, device=bench.device()) for side in sides)
    return images, torch.arange(batch, device=bench.device()) % 10


def all_sizes_rows(chosen: Profile) -> list[dict]:
    "A step at all sizes beside a step at the largest."
    accelerator, sides, steps = Accelerator(cpu=bench.device() == "cpu"), SIDES[chosen.model], {}
    for name, shown in {"one size": sides[:1], "all sizes": sides}.items():
        whole, batch = training_model(chosen.model), pictures(shown, chosen.batch)
        optimiser = torch.optim.AdamW(whole.parameters(), lr=1e-5, fused=True)
        steps[name] = lambda w=whole, b=batch, o=optimiser: train_step(w, *b, o, accelerator, 1.0)
    counts = [math.prod(patch_grid((side, side), whole.model.config.patch_size)) for side in sides]
    table = race(steps, bench.device(), chosen.rounds).assign(what="all sizes", tokens=[1, sum(counts) / counts[0]])
    return table.to_dict("records")


def graph_row(name: str, position: str, schedule: str) -> dict:
    "Graphs of a training step in the first round over the sizes, and in two more."
    torch._dynamo.reset()
    whole = training_model(name, position=position, depth=2, drop_path=0.1)
    whole.compile(dynamic=True, backend="aot_eager")  # which graphs there are does not depend on who writes their code
    steps = [SIDES[name]] if schedule == "all" else [(side,) for side in SIDES[name]]
    made, counted = [], counters["stats"]
    for _ in range(3):
        before = counted["unique_graphs"]
        for sides in steps:
            images, labels = pictures(sides, 8)
            whole(images, labels).backward()
        made.append(counted["unique_graphs"] - before)
    name = f"{name}, {position}, {schedule}"
    return {"what": "graphs", "name": name, "graphs": made[0], "recompiled": made[1] + made[2]}


def compiled_rows(name: str) -> list[dict]:
    "Steps at all sizes in turn, eager and compiled, after both have seen each."
    torch._dynamo.reset()
    steps, seconds, batches = {}, [], [pictures((side,), 64) for side in SIDES[name]]
    for label in ("eager", "compiled"):
        whole = training_model(name)
        if label == "compiled":
            whole.compile(dynamic=True)
        optimiser = torch.optim.AdamW(whole.parameters(), lr=1e-5, fused=True)
        steps[label] = lambda w=whole, o=optimiser: [bare_step(w, *batch, o) for batch in batches]
        start = time.perf_counter()
        steps[label]()
        seconds.append(time.perf_counter() - start)
    return race(steps, bench.device()).assign(what="compiled", seconds_of_first_round=seconds).to_dict("records")


if __name__ == "__main__":
    options = bench.start(bench.Options, __doc__)
    chosen = PROFILES[options.profile]
    rows = [loop_row(name, chosen) for name in chosen.loops] + all_sizes_rows(chosen)
    if chosen.graphs:
        kinds = [(name, position) for name, positions in GRAPHS.items() for position in positions]
        rows += [graph_row(*kind, schedule) for kind, schedule in itertools.product(kinds, ("per_batch", "all"))]
        rows += compiled_rows("vit_micro_patch4" if bench.device() == "cpu" else chosen.model)
    bench.keep(rows, options)
