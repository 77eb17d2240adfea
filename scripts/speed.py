# ---
# title: "How near to the limit is it?"
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
profile = "quick"  # "quick": a minute and a half on two cores; "cpu": two hours and a half; "gpu": on a GPU
results = "paper/results"  # folder of results, from the project's root

# %% tags=["injected-parameters"]
# Parameters
profile = "cpu"


# %% [markdown]
# An encoder in which every part can be exchanged has to pay for its hooks somewhere, and a promise to take any picture is worth nothing if a large one cannot be waited for. **Questions:** what does a plain ViT cost in this frame, beside the one that people compare with,
# [timm](https://github.com/huggingface/pytorch-image-models)'s? How large a picture fits on a small machine, and how near is its time to what the machine's arithmetic allows? What do a bias inside attention, the training loop, checkpointing, the start of a process cost?
#
# **Protocol.** Every claim is a ratio of two things that take turns in one process, in an order that is reversed every round. What is reported is the ratio within a round, the median over rounds with its bootstrap interval: above 1 is faster than the peer. The measurements are scripts in `benchmarks/`, one to a claim,
# which this notebook runs if their results are missing. On a CPU they keep to one thread unless the text says otherwise. Memory is the most that tensors hold beyond weights and input. A *floor* is the time that the operations would take as products of two large matrices, measured in the same minute.
#
# Run it yourself: `papermill nbs/experiments/speed.ipynb out.ipynb -p profile cpu`, or one claim alone: `python benchmarks/plain.py --profile cpu`

# %%
import json
import math
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from sivit.core import PALETTE, figure_style, look
from sivit.report import save_numbers
from sivit.study import results_folder, sign_figure

folder, benchmarks = results_folder(results) / "speed", results_folder("benchmarks")
figure_style()


# %%
def measured(name: str) -> tuple[dict, pd.DataFrame]:
    "The record of a benchmark and its rows; it is run if there is no record of this profile."
    path = folder / f"{name}-{profile}.json"
    if not path.exists():
        command = [sys.executable, benchmarks / f"{name}.py", "--profile", profile, "--out", path]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}.py ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    record = json.loads(path.read_text())
    return record, pd.DataFrame(record["rows"])


def interval(rows: pd.DataFrame) -> list[str]:
    "Ratios with their intervals, as text."
    return [f"{row.speed:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in rows.itertuples()]


def typeset(table: pd.DataFrame, words: int) -> Markdown:
    "A table whose first columns are words and the others numbers, written as they are."
    sides = ["left"] * words + ["right"] * (table.shape[1] - words)
    return Markdown(table.to_markdown(index=False, disable_numparse=True, colalign=sides))


def mebibytes(column: pd.Series) -> pd.Series:
    "Bytes as text."
    return (column / 2**20).map("{:,.1f}".format)


ELSEWHERE = ("base_1120_ratio", "largest_process", "graphs", "recompiled", "graph_settings", "compiled_speed")
numbers = dict.fromkeys(ELSEWHERE, "– (not measured here)")  # in every profile or on every device

# %% [markdown]
# ## A plain ViT, against timm
#
# The same architecture with the same weights, taken over by `from_timm`. A training step is forward, backward, clipping and an AdamW update. What does such a ratio look like where there is nothing to find? timm's model also runs against a second timm model with the same weights, in the same rounds;
# where weights and activations happen to lie in memory is enough to move the ratio, and an interval over rounds does not know of it.

# %%
#| output: false
record, plain = measured("plain")
numbers["provenance"] = f"profile {profile} · {record['device']}"

# %%
#| label: fig-speed
#| fig-cap: "timm's time over ours, same architecture and weights, taking turns; right of the line this package is faster. Bars are 95 % bootstrap intervals of the median over rounds. Grey: the range, over all settings, of timm's model against itself."
works, precisions = ["forward", "training step"], sorted(plain.precision.unique(), key=["fp32", "bf16 autocast", "bf16"].index)
settings = plain.drop_duplicates(["model", "batch", "px"])[["model", "batch", "px"]].reset_index(drop=True)
fig, axes = plt.subplots(1, 2, figsize=(7.0, 0.9 + 0.26 * max(3, len(settings))), sharey=True, sharex=True)
for ax, work in zip(axes, works, strict=True):
    for number, (precision, color) in enumerate(zip(precisions, ("blue", "vermilion", "green"), strict=False)):
        rows = settings.reset_index().merge(plain[(plain.work == work) & (plain.precision == precision)])
        spread = [rows.speed - rows.low, rows.high - rows.speed]
        ax.errorbar(rows.speed, rows["index"] + 0.2 * (number - 1), xerr=spread, fmt="o", markersize=3.5, capsize=2, color=PALETTE[color], label=precision)
    itself = plain[plain.work == work].again_speed
    ax.axvspan(itself.min(), itself.max(), color="0.92", lw=0, zorder=0, label="timm against itself")
    ax.axvline(1, color="black", lw=0.8, ls=":")
    ax.set(title=work, xlabel="times as fast as timm")
axes[0].set_yticks(settings.index, [f"{row.model}, {row.batch} × {row.px} px" for row in settings.itertuples()], fontsize=8)
axes[0].set_ylim(len(settings) - 0.5, -0.5)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
sign_figure(fig, numbers["provenance"])
plt.show()

# %%
#| label: tbl-speed
#| tbl-cap: "Time and memory of a plain ViT here and in timm, for a batch of pictures of so many pixels a side. Speed is timm's time over ours; *itself* is that of timm over a second copy of timm, with a star where the interval, not shown, excludes 1; memory is our peak over timm's; *floor* is the share of our time that the matrix products would take at the machine's rate for large ones."
order = ["model", "batch", "px", "precision", "work"]
shown = plain.sort_values(order, key=lambda column: column.map({"tiny": 0, "small": 1, "base": 2}) if column.name == "model" else column)
table = pd.DataFrame({
    "setting": [f"{row.model}, {row.batch} × {row.px}" for row in shown.itertuples()], "precision": shown.precision, "work": shown.work,
    "ms": shown.milliseconds.map("{:,.1f}".format), "speed": interval(shown), "itself": [f"{row.again_speed:.2f}{'*' * (row.again_low > 1 or row.again_high < 1)}" for row in shown.itertuples()], "memory": (shown.peak_bytes / shown.timm_peak_bytes).map("{:.2f}".format), "floor": shown.mfu.map("{:.0%}".format),
})  # fmt: skip
typeset(table, words=3)

# %%
for work, precision in plain[["work", "precision"]].drop_duplicates().itertuples(index=False):
    rows, name = plain[(plain.work == work) & (plain.precision == precision)], f"{work}_{precision}".replace(" ", "_")
    numbers[f"{name}_speed"] = f"{rows.speed.median():.2f}"
    numbers[f"{name}_range"] = f"{rows.speed.min():.2f} to {rows.speed.max():.2f}"
numbers |= {"settings": f"{len(plain)}", "slower": f"{(plain.high < 1).sum()}", "faster": f"{(plain.low > 1).sum()}"}
numbers |= {"itself_differs": f"{((plain.again_high < 1) | (plain.again_low > 1)).sum()}", "itself_range": f"{plain.again_speed.min():.2f} to {plain.again_speed.max():.2f}"}
numbers["worst_memory"] = f"{(plain.peak_bytes / plain.timm_peak_bytes).max():.2f}"

# %% [markdown]
# ## Cheaper than the paper
#
# The Adaptive Token Merger [makes no keys and no values](../07_merge.ipynb): it carries the one query of a cell to the tokens. What that is worth in time, beside the same merger with both projections, everything else equal:

# %%
#| output: false
record, merging = measured("merging")

# %%
#| label: tbl-merging
#| tbl-cap: "The Adaptive Token Merger with absorbed projections beside the printed equation: speed is the printed one's time over ours, memory our peak over its. Both give the same map."
table = pd.DataFrame({
    "work": merging.work, "width": merging.dim, "tokens": merging.tokens, "batch": merging.batch, "ours, ms": merging.milliseconds.map("{:,.1f}".format),
    "speed": interval(merging), "memory": (merging.absorbed_peak_bytes / merging.projected_peak_bytes).map("{:.2f}".format),
    "largest difference": merging.largest_difference.map("{:.0e}".format),
})  # fmt: skip
typeset(table, words=1)

# %%
for work, rows in merging.groupby("work"):
    numbers[f"absorbed_{work.replace(' ', '_')}"] = f"{rows.speed.min():.2f} to {rows.speed.max():.2f}"
numbers["absorbed_difference"] = f"{merging.largest_difference.max():.0e}"
macs = pd.DataFrame(record["macs"]).set_index("size")
numbers |= {"absorbed_macs": f"{macs.absorbed[4032] / 1e9:.0f}", "projected_macs": f"{macs.projected[4032] / 1e9:.0f}"}

# %% [markdown]
# ## A picture of 4032 px
#
# One picture at a time, on two threads. The fitted line says how time and memory grow: an exponent of 1 is in proportion to the pixels.

# %%
#| output: false
record, large = measured("large")
large["pixels"] = large["size"] ** 2


def exponent(rows: pd.DataFrame, column: str) -> float:
    "Slope of a column over the pixels, both logarithmic."
    return float(np.polyfit(np.log(rows.pixels), np.log(rows[column]), 1)[0])


# %%
#| label: fig-large
#| fig-cap: "Time of one forward pass (left) and the most memory that tensors held (right), against the side of the picture. Thin lines: the time that the model's operations would take as products of large matrices."
fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.2))
styles = {name: look("atm" if name.startswith("vitar") else "none") for name in large.model.unique()}
for name, rows in large.groupby("model", sort=False):
    filled = "small" in name
    style = styles[name] | {"markerfacecolor": None if filled else "white", "linestyle": "-" if filled else "--"}
    letter = "S" if filled else "B"
    label = f"ViTAR-{letter}" if name.startswith("vitar") else f"ViT-{letter} in timm"
    axes[0].plot(rows["size"], rows.milliseconds / 1000, label=label, **style)
    axes[0].plot(rows["size"], rows.milliseconds * rows.speed / 1000, color=style["color"], lw=0.7, ls=style["linestyle"])
    axes[1].plot(rows["size"], rows.peak_bytes / 2**20, label=label, **style)
for ax, label in zip(axes, ("seconds", "MiB"), strict=True):
    ax.set(xscale="log", yscale="log", xlabel="side of the picture, px", ylabel=label)
    ax.set_xticks([224, 448, 896, 1792, 4032], [224, 448, 896, 1792, 4032])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:g}")
axes[0].legend(fontsize=8)
sign_figure(fig, numbers["provenance"])
plt.show()

# %%
#| label: tbl-large
#| tbl-cap: "Large pictures, one at a time: operations, time, the part of it that the floor would take, which is as many operations in products of large matrices, the most that tensors held, and the most that a fresh process held with Python, torch, weights and picture."
resident = mebibytes(large.resident_bytes).replace("nan", "") if "resident_bytes" in large else ""
table = pd.DataFrame({
    "model": large.model, "side, px": large["size"], "10⁹ MACs": (large.macs / 1e9).map("{:,.1f}".format), "ms": large.milliseconds.map("{:,.0f}".format),
    "floor / time": interval(large), "tensors, MiB": mebibytes(large.peak_bytes), "process, MiB": resident,
})  # fmt: skip
typeset(table, words=1)

# %%
at = large.set_index(["model", "size"])
largest = at.loc["vitar_small_patch16", 4032]
rows = large[large.model == "vitar_small_patch16"]
numbers |= {
    "largest_seconds": f"{largest.milliseconds / 1000:.1f}", "largest_over_floor": f"{1 / largest.speed:.1f}", "largest_macs": f"{largest.macs / 1e9:.0f}",
    "largest_tensors": f"{largest.peak_bytes / 2**30:.2f}", "time_exponent": f"{exponent(rows, 'milliseconds'):.2f}", "memory_exponent": f"{exponent(rows, 'peak_bytes'):.2f}",
}  # fmt: skip
if "resident_bytes" in large:
    numbers["largest_process"] = f"{largest.resident_bytes / 2**30:.2f}"
if ("timm vit_base_patch16", 1120) in at.index:
    times = [at.loc[name, 1120].milliseconds for name in ("timm vit_base_patch16", "vitar_base_patch16")]
    numbers["base_1120_ratio"] = f"{times[0] / times[1]:.0f}"

# %% [markdown]
# ## A bias inside attention
#
# Four encodings add a bias to the logits that depends on the offset of two tokens only. Spread out to pairs it is $N \times N$ numbers for every head, 400 MB for 64×64 tokens and six heads. [Attention reads it from the table of offsets](../06_attention.ipynb) instead.

# %%
#| output: false
record, bias = measured("bias")
tokens = record["tokens"]

# %%
#| label: tbl-bias
#| tbl-cap: "Attention with a bias: the time of the fused product without one over the time with it, the making of the bias included, and the most memory. *Table*: read from the table of offsets. *Spread*: a number for each pair of tokens. *Spread, 3-D*: the same as a mask that the fused kernel of processors does not take."
ways = bias[bias.way != "none"]
table = pd.DataFrame({
    "work": ways.work, "encoding": ways.encoding, "way": ways.way, "ms": ways.milliseconds.map("{:,.0f}".format), "speed": interval(ways), "peak, MiB": mebibytes(ways.peak_bytes),
})  # fmt: skip
typeset(table, words=3)

# %%
forward = bias[bias.work == "forward"].set_index(["way", "encoding"])
numbers |= {"bias_tokens": f"{tokens:,}", "bias_slowdown": " and ".join(f"{1 / value:.2f}" for value in (forward.loc["table"].speed.max(), forward.loc["table"].speed.min()))}
numbers["bias_slowdown_spread"] = f"{1 / forward.loc['spread'].speed.max():.1f} to {1 / forward.loc['spread'].speed.min():.1f}"
steps = bias[bias.work == "training step"].set_index(["way", "encoding"])
numbers["bias_training_slowdown"] = " and ".join(f"{1 / value:.2f}" for value in (steps.loc["table"].speed.max(), steps.loc["table"].speed.min()))
numbers["bias_training_memory"] = f"{steps.loc['table'].peak_bytes.max() / 2**20:,.0f}"
numbers["bias_training_memory_spread"] = f"{steps.loc['spread'].peak_bytes.max() / 2**20:,.0f}"

# %% [markdown]
# ## Training
#
# The loop schedules sizes, draws and moves batches, logs, keeps the account of what was seen and listens for signals. Plain PyTorch steps with the same model and batch take turns with it. A step at all sizes should cost its tokens and no more. `torch.compile` should make one graph for all training sizes.

# %%
#| output: false
_, training = measured("training")
_, scenes = measured("scenes")

# %%
#| label: tbl-training
#| tbl-cap: "What is around the bare steps of training. *Loop*: time of plain steps over that of the loop's. *All sizes*: time of a step at the largest size over one at three sizes; *tokens* is the ratio of their tokens. *Compiled*: time of eager steps over compiled ones. *Scenes*: time of a training step over that of drawing its pictures."
rows = training[training.what != "graphs"]
table = pd.DataFrame({
    "what": rows.what, "setting": rows.name, "ms": rows.milliseconds.map("{:,.1f}".format), "speed": interval(rows),
    "tokens": rows.tokens.map(lambda value: "" if math.isnan(value) else f"{value:.2f}"),
})  # fmt: skip
drawing = pd.DataFrame({"what": "scenes", "setting": [f"{row.batch} of {row.px} px" for row in scenes.itertuples()],
                        "ms": scenes.milliseconds.map("{:,.1f}".format), "speed": interval(scenes), "tokens": ""})  # fmt: skip
typeset(pd.concat([table, drawing]), words=2)

# %%
of = training.set_index(["what", "name"])
loop, together = of.loc["loop", "EMA"], of.loc["all sizes", "all sizes"]
overhead = [f"{100 * (1 / value - 1):.1f}" for value in (loop.speed, loop.high, loop.low)]
numbers |= {"loop_overhead": f"{overhead[0]} % [{overhead[1]}, {overhead[2]}]",
            "all_sizes_cost": f"{1 / together.speed:.2f}", "all_sizes_tokens": f"{together.tokens:.2f}",
            "scenes_per_second": f"{scenes.scenes_per_second.max():,.0f}"}  # fmt: skip
if "graphs" in set(training.what):
    graphs, compiled = of.loc["graphs"], of.loc["compiled", "compiled"]
    numbers |= {"graphs": f"{graphs.graphs.max():.0f}", "recompiled": f"{graphs.recompiled.sum():.0f}", "graph_settings": f"{len(graphs)}"}
    numbers["compiled_speed"] = f"{compiled.speed:.2f} [{compiled.low:.2f}, {compiled.high:.2f}]"

# %% [markdown]
# ## Memory of training
#
# Gradient checkpointing keeps what enters a block, or a portion of the merger's cells, and computes the rest a second time.

# %%
#| output: false
_, memory = measured("memory")
memory["family"], memory["width"] = zip(*memory.model.str.split())

# %%
#| label: fig-memory
#| fig-cap: "The most that a training step holds for one picture, beyond weights and gradients, against the side of the picture: with all activations kept (filled) and with gradient checkpointing (open, dashed)."
widths = list(memory.width.unique())
fig, axes = plt.subplots(1, len(widths), figsize=(0.6 + 3.1 * len(widths), 3.1), sharey=True, squeeze=False)
looks = {"timm": {"color": PALETTE["black"], "marker": "x"}, "sivit": look("none"), "vitar": look("atm")}
for ax, width in zip(axes[0], widths, strict=True):
    for (family, again), rows in memory[memory.width == width].groupby(["family", "checkpointing"], sort=False):
        style = looks[family] | ({"linestyle": "--", "markerfacecolor": "white"} if again else {})
        ax.plot(rows.px, rows.peak_bytes / 2**20, label=None if again else {"timm": "ViT in timm", "sivit": "ViT here", "vitar": "ViTAR here"}[family], **style)
    ax.set(xscale="log", yscale="log", xlabel="side of the picture, px", title=f"ViT-{width.capitalize()}")
    ax.set_xticks(sorted(memory.px.unique()), sorted(memory.px.unique()), fontsize=8)
    ax.minorticks_off()
    bottom, top = ax.get_ylim()
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if bottom <= n <= top]
    ax.set_yticks(ticks, ticks)
axes[0, 0].set_ylabel("MiB per picture")
axes[0, 0].legend(fontsize=8)
sign_figure(fig, numbers["provenance"])
plt.show()

# %%
trade = memory.pivot(index=["family", "width", "px"], columns="checkpointing", values=["peak_bytes", "speed"])
largest_px = memory.px.max()
shown = trade.loc["sivit"].xs(largest_px, level="px")
numbers |= {
    "checkpointing_px": f"{largest_px}", "checkpointing_memory": f"{(shown['peak_bytes', False] / shown['peak_bytes', True]).iloc[-1]:.1f}",
    "checkpointing_time": f"{1 / trade['speed', True].max():.2f} to {1 / trade['speed', True].min():.2f}",
    "memory_beside_timm": f"{(trade.loc['sivit']['peak_bytes', False] / trade.loc['timm']['peak_bytes', False]).max():.2f}",
}  # fmt: skip

# %% [markdown]
# ## The start of a process
#
# `import sivit` loads nothing before a name is used, so what counts is the first name. Every contestant is a process of its own.

# %%
#| output: false
_, startup = measured("startup")

# %%
#| label: tbl-startup
#| tbl-cap: "Fresh processes in turn: seconds, and processor seconds over those of importing torch and torchvision."
table = pd.DataFrame({
    "process": "`" + startup.name + "`", "seconds": (startup.milliseconds / 1000).map("{:.2f}".format),
    "processor seconds, ratio": startup.processor_ratio.map("{:.2f}".format),
})  # fmt: skip
typeset(table, words=1)

# %%
ratios = startup.set_index("name")
numbers |= {
    "import_ratio": f"{ratios.processor_ratio['import sivit; sivit.create_model']:.2f}",
    "help_seconds": f"{ratios.milliseconds['sivit --help'] / 1000:.1f}",
}  # fmt: skip

# %% [markdown]
# ## What was tried
#
# Profile, floor, prediction, change, measurement: each of these was an idea with a number attached before it was run. They are kept as they were noted at the time, ratios of speed unless it says otherwise, and are not run again.

# %%
#| label: tbl-attempts
#| tbl-cap: "Attempts to make it faster, with what was predicted and what came of it."
attempts = pd.DataFrame(json.loads((benchmarks / "attempts.json").read_text()))
Markdown(attempts.to_markdown(index=False))

# %% [markdown]
# ## Numbers for the paper

# %%
save_numbers("speed", numbers, results_folder(results))
pd.Series(numbers)
