# ---
# title: "What does the frame cost?"
# skip_exec: true
# skip_showdoc: true
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
profile = "quick"  # "quick": minutes on two cores; "cpu": more rounds and a larger model; "gpu": the same on a GPU
results = "paper/results"  # folder of results, from the project's root

# %% [markdown]
# An encoder in which every part can be exchanged has to pay for its hooks somewhere, and so has a loop that survives being killed. **Questions:** what does it cost to run a plain ViT in this frame rather than in
# [timm](https://github.com/huggingface/pytorch-image-models), whose ViT is the one that people compare with? What does the training loop add to the bare steps inside it? Does a step at all sizes cost more than its tokens?
#
# **Protocol.** Contestants take turns in one process, in an order that is reversed every round. What is reported is the ratio of times within a round, the median over rounds with its bootstrap interval. A training step is forward, backward, clipping and an
# AdamW update. On a CPU everything runs in one thread. Memory is the most that tensors hold beyond weights and input.
#
# Run it yourself: `papermill nbs/experiments/speed.ipynb out.ipynb -p profile cpu`

# %%
import json

import math
import time

import matplotlib.pyplot as plt
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from IPython.display import Markdown
from torch import nn

from sivit.core import figure_style, look, write_atomic
from sivit.cost import peak_of, race
from sivit.data import DATASETS, PictureDataset, View
from sivit.interop import from_timm
from sivit.patch import patch_grid
from sivit.report import save_numbers
from sivit.scenes import draw_scenes
from sivit.study import results_folder, surroundings
from sivit.task import create_task
from sivit.train import TrainConfig, TrainingModel, train, train_step
from sivit.vit import create_model

results = results_folder(results)
figure_style()

# %%
PROFILES = {
    "quick": {"model": "vit_tiny_patch16_224", "batch": 4, "sizes": ((224, 224), (160, 320)), "rounds": 14, "loop_run": ("vit_tiny_patch16", 96, 16, 8, 3)},
    "cpu": {"model": "vit_small_patch16_224", "batch": 8, "sizes": ((224, 224), (160, 320), (384, 384)), "rounds": 30, "loop_run": ("vit_small_patch16", 96, 16, 20, 9)},
    "gpu": {"model": "vit_small_patch16_224", "batch": 64, "sizes": ((224, 224), (160, 320), (384, 384)), "rounds": 50, "loop_run": ("vit_small_patch16", 224, 128, 60, 9)},
}
chosen = PROFILES[profile]
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(1)  # what else the machine does then disturbs least; on a GPU it does not matter


# %% [markdown]
# ## Against timm
#
# The same architecture with the same weights, taken over by `from_timm`.

# %%
def contestants(training):
    "Both models by name, with equal weights, and the step that each does on a batch."
    theirs = timm.create_model(chosen["model"], num_classes=1000, dynamic_img_size=True).to(device)
    pair = {"timm": theirs, "sivit": from_timm(theirs)}
    steps = {}
    for name, model in pair.items():
        model.train(training)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)
        steps[name] = step_of(model, optimiser) if training else torch.inference_mode()(model)
    return steps


def step_of(model, optimiser):
    "A training step on a batch of pictures."
    def step(images):
        loss = F.cross_entropy(model(images), torch.arange(len(images), device=device) % 10)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return step


# %%
#| output: false
path = results / "speed" / f"{chosen['model']}-{profile}.json"
if not path.exists():
    torch.manual_seed(0)
    rows = []
    for work, training in [("forward", False), ("training step", True)]:
        steps = contestants(training)
        for size in chosen["sizes"]:
            images = torch.randn(chosen["batch"], 3, *size, device=device)
            calls = {name: lambda step=step, images=images: step(images) for name, step in steps.items()}
            times = race(calls, device, chosen["rounds"])
            times["peak_bytes"] = [peak_of(calls[name], device) for name in times["name"]]
            rows += times.assign(work=work, size=f"{size[0]}×{size[1]}").to_dict("records")
    record = {"profile": profile, **chosen, "rows": rows, **surroundings()}
    write_atomic(path, json.dumps(record, indent=1) + "\n")
record = json.loads(path.read_text())
table = pd.DataFrame(record["rows"])

# %%
#| label: fig-speed
#| fig-cap: "timm's time over ours, same architecture and weights, taking turns; above 1 this package is faster. Bars are 95 % bootstrap intervals of the median over rounds."
ours = table[table.name == "sivit"].reset_index(drop=True)
fig, ax = plt.subplots(figsize=(5.6, 2.6))
labels = ours.work + "\n" + ours["size"]
ax.errorbar(ours.index, ours.speed, yerr=[ours.speed - ours.low, ours.high - ours.speed], fmt="o", capsize=3, color=look("learned")["color"])
ax.axhline(1, color="black", lw=0.8, ls=":")
ax.set(ylabel="times as fast as timm", xlim=(-0.5, len(ours) - 0.5))
ax.set_xticks(ours.index, labels, fontsize=8)
plt.show()

# %%
#| label: tbl-speed
#| tbl-cap: "Time and memory of a plain ViT here and in timm. Speed is timm's time over ours."
wide = table.pivot(index=["work", "size"], columns="name", values=["milliseconds", "peak_bytes"])
shown = pd.DataFrame({
    "work": ours.work, "picture, px": ours["size"],
    "timm, ms": [f"{wide.loc[key]['milliseconds', 'timm']:.1f}" for key in zip(ours.work, ours["size"])],
    "sivit, ms": [f"{wide.loc[key]['milliseconds', 'sivit']:.1f}" for key in zip(ours.work, ours["size"])],
    "speed": [f"{row.speed:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in ours.itertuples()],
    "timm, MiB": [f"{wide.loc[key]['peak_bytes', 'timm'] / 2**20:.1f}" for key in zip(ours.work, ours["size"])],
    "sivit, MiB": [f"{wide.loc[key]['peak_bytes', 'sivit'] / 2**20:.1f}" for key in zip(ours.work, ours["size"])],
})  # fmt: skip
Markdown(shown.to_markdown(index=False))


# %% [markdown]
# ## The loop around the steps
#
# `train` schedules sizes, draws and moves batches, mixes, logs, keeps the account of what was seen and listens for signals. The bare contestant does none of this: it takes the same steps on one batch that lies ready. So that drawing
# pictures is not counted, the loop's dataset hands out the same tensors again and again. A run's fixed beginning and end are taken off by comparing a run with one of a quarter of its length.

# %%
class StillPictures(PictureDataset):
    "The same random pictures, whichever are asked for."

    def __init__(self, count):
        super().__init__("still", torch.arange(count) % 10, [str(i) for i in range(10)], 3, View())
        self.store = {}

    def show(self, pictures, sizes, seeds):
        return tuple(self.store.setdefault((len(pictures), *size), torch.rand(len(pictures), 3, *size)) for size in sizes)


DATASETS.register("still")(lambda split, root, seed, count=64: StillPictures(count))


def loop_overhead(model, side, batch, steps, rounds):
    "Seconds of so many steps in the loop, and bare, per round."
    def looped(count):
        config = TrainConfig(
            model=model, model_options={"image_size": side}, dataset="still", dataset_options={"count": batch * count}, schedule="single",
            sizes=(side,), epochs=1, batch_size=batch, evaluate_every=0, log_every=10, precision="fp32",
        )  # fmt: skip
        start = time.perf_counter()
        train(config, progress=False)
        return time.perf_counter() - start

    bare_model = create_model(model, image_size=side, num_classes=10).to(device).train()
    bare = step_of(bare_model, torch.optim.AdamW(bare_model.parameters(), lr=1e-5))
    images, rows = torch.randn(batch, 3, side, side, device=device), []
    bare(images)
    for number in range(rounds):
        short, start = looped(steps), time.perf_counter()
        for _ in range(3 * steps):
            bare(images)
        middle = time.perf_counter() - start
        rows.append({"round": number, "loop": looped(4 * steps) - short, "bare": middle, "steps": 3 * steps})
    return rows


# %%
#| output: false
if "loop" not in record:
    torch.manual_seed(0)
    record["loop"] = loop_overhead(*chosen["loop_run"])
    write_atomic(path, json.dumps(record, indent=1) + "\n")
laps = pd.DataFrame(record["loop"])

# %% [markdown]
# ## All sizes in one step
#
# ResFormer's step shows every picture at every size. It costs at least its tokens; the question is whether it costs more. Sizes of 224, 160 and 128 px have 196, 100 and 64 tokens.

# %%
#| output: false
SIDES = (224, 160, 128)
if "all_sizes" not in record:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=device == "cpu")
    steps = {}
    for name, sides in {"single": SIDES[:1], "all": SIDES}.items():
        whole = TrainingModel(create_model(chosen["loop_run"][0], num_classes=10), create_task(TrainConfig())).to(device).train()
        optimiser = torch.optim.AdamW(whole.parameters(), lr=1e-5)
        images = tuple(torch.randn(chosen["batch"], 3, side, side, device=device) for side in sides)
        labels = torch.arange(chosen["batch"], device=device) % 10
        steps[name] = lambda w=whole, i=images, o=optimiser, y=labels: train_step(w, i, y, o, accelerator, 1.0)
    record["all_sizes"] = race(steps, device, chosen["rounds"]).to_dict("records")
    write_atomic(path, json.dumps(record, indent=1) + "\n")
tokens = sum(math.prod(patch_grid((side, side), 16)) for side in SIDES) / math.prod(patch_grid((224, 224), 16))
all_sizes = pd.DataFrame(record["all_sizes"]).set_index("name").loc["all"]

# %% [markdown]
# ## Drawing scenes
#
# Procedural pictures must never starve training.

# %%
#| output: false
if "scenes_per_second" not in record:
    batch, laps_of_drawing = 256, []
    for lap in range(6):
        start = time.perf_counter()
        draw_scenes(range(lap * batch, (lap + 1) * batch), 64, device=device).image.sum().item()
        laps_of_drawing.append(batch / (time.perf_counter() - start))
    record["scenes_per_second"] = sorted(laps_of_drawing)[len(laps_of_drawing) // 2]
    write_atomic(path, json.dumps(record, indent=1) + "\n")

# %%
#| label: tbl-frame
#| tbl-cap: "What the frame adds. The loop: time of its steps over that of bare steps. All sizes: time of a step at 224, 160 and 128 px over one at 224 px, and the same over the ratio of tokens. Scenes: pictures of 64 px drawn per second."
ratio = (laps.loop / laps.bare).median()
ratios = (1 / all_sizes.speed, 1 / all_sizes.high, 1 / all_sizes.low)
frame = pd.DataFrame({
    "what": ["loop over bare steps", "all sizes over one size", "the same over its tokens", "scenes per second"],
    "measured": [
        f"{ratio:.3f}", f"{ratios[0]:.2f} [{ratios[1]:.2f}, {ratios[2]:.2f}]", f"{ratios[0] / tokens:.2f} [{ratios[1] / tokens:.2f}, {ratios[2] / tokens:.2f}]",
        f"{record['scenes_per_second']:,.0f}",
    ],
})  # fmt: skip
Markdown(frame.to_markdown(index=False))

# %% [markdown]
# ## Numbers for the paper

# %%
numbers = {"provenance": f"profile {profile} · {record['device']}", "model": record["model"]}
for row in ours[ours["size"] == "224×224"].itertuples():
    work = row.work.replace(" ", "_")
    numbers[f"{work}_speed"] = f"{row.speed:.2f} [{row.low:.2f}, {row.high:.2f}]"
    peaks = wide.loc[row.work, "224×224"]["peak_bytes"]
    numbers[f"{work}_memory"] = f"{peaks['sivit'] / peaks['timm']:.2f}"
numbers |= {
    "loop_overhead": f"{100 * (ratio - 1):.1f} %", "all_sizes_cost": f"{ratios[0]:.2f}", "all_sizes_tokens": f"{tokens:.2f}",
    "scenes_per_second": f"{record['scenes_per_second']:,.0f}",
}  # fmt: skip
save_numbers("speed", numbers, results)
pd.Series(numbers)
