# ---
# title: "Positions, mergers, schedules: what brings the gain?"
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
profile = "quick"  # "quick": two minutes on two cores; "cpu": two hours on two cores, the whole grid; "gpu": larger, for a GPU
results = "paper/results"  # folder of results, from the project's root
encodings = ""  # names separated by spaces, or "all"; "": those of the profile

# %% tags=["injected-parameters"]
# Parameters
profile = "cpu"


# %% [markdown]
# Each cure has been published with a recipe of its own. **Question:** when position encoding, token merger and training schedule are crossed, all else equal, which of them keeps a transformer's accuracy when the resolution, the object or the canvas changes?
# Does a fixed number of tokens help? Are absolute or relative positions better? Is it the architecture that brings the gain, or training at several sizes?
#
# **Protocol.** One encoder behind a [stem of two convolutions](../03_patch.ipynb#a-hybrid-stem), which learns quickly; every position encoding × every merger × three schedules: one size, one size per batch, and all sizes in every step with the [consistency loss](../10_multires.ipynb). All see the same scenes for the same number of epochs;
# scenes are drawn at every size anew and never cropped. The largest training size is the one that the single schedule sees. A model is judged by its accuracy there and by the *area* under its accuracy over the logarithm of an axis: the accuracy to expect if a halving is as likely as a doubling.
# Differences are of pairs that agree in all other factors and the seed, with [Student's interval over seeds](../25_study.ipynb#what-a-factor-is-worth); probabilities are corrected by Holm's method over the whole table of paired differences.
#
# Run it yourself: `papermill nbs/experiments/factors.ipynb out.ipynb -p profile cpu`

# %%
import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from sivit.core import PALETTE, figure_style, look, write_atomic
from sivit.data import create_dataset
from sivit.merge import list_mergers
from sivit.report import save_numbers
from sivit.study import Run, areas, holm, paired, percent, points, provenance, results_folder, run_grid, sign_figure, summarise, verdict
from sivit.train import TrainConfig
from sivit.vit import create_model, list_positions

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# Mergers bring every picture to 3×3 tokens, the grid of the smallest training size. An encoding inside attention then sees these 3×3 and no more, whatever the picture's size; one on the input map is added before merging.

# %%
SIDE, SIZES, GRID = 24, (12, 16, 24), (3, 3)
SCHEDULES = {"single": (SIDE,), "per_batch": SIZES, "all": SIZES}
AXES = {"resolution": "resolution", "object_scale": "object scale", "canvas": "canvas"}
POINTS = {"resolutions": (8, 12, 16, 20, 24, 32, 48, 96), "object_scales": (0.35, 0.5, 0.7, 1, 1.2), "canvases": (0.5, 0.75, 1, 1.5, 2)}
PROFILES = {
    "quick": {
        "encodings": "learned fuzzy lookhere", "mergers": ("none", "atm"), "seeds": 2, "length": 800, "epochs": 2, "batch_size": 32, "learning_rate": 2e-3, "depth": 1,
        "scenes": {"config": {"classes": 4, "half_width": [0.3, 0.45]}}, "test": 60, "longer": (3,),
    },
    "cpu": {
        "encodings": "all", "mergers": list_mergers(), "seeds": 3, "length": 6400, "epochs": 3, "batch_size": 32, "learning_rate": 2e-3, "depth": 2,
        "scenes": {"config": {"classes": 10, "half_width": [0.25, 0.4]}}, "test": 300, "longer": (6, 12),
    },
    "gpu": {
        "encodings": "all", "mergers": list_mergers(), "seeds": 5, "length": 50_000, "epochs": 20, "batch_size": 128, "learning_rate": 1e-3, "depth": 6,
        "scenes": {"config": "hard", "device": "cuda"}, "test": 2000, "longer": (60,),
    },
}  # fmt: skip
chosen = PROFILES[profile]
named = encodings or chosen["encodings"]
POSITIONS = list_positions() if named == "all" else [name for name in list_positions() if name in named.split()]
MERGERS = [name for name in ("none", "avgpool", "convpool", "atm") if name in chosen["mergers"]]


# %% [markdown]
# ## Runs

# %%
def run_of(position: str, merger: str, schedule: str, seed: int, epochs: int | None = None, **merger_options) -> Run:
    "One cell of the grid, or the same for more epochs and with other options of the merger."
    options = {"stem": "hybrid", "position": position, "merger": merger, "pool": "mean", "image_size": SIDE, "depth": chosen["depth"]}
    options |= {} if merger == "none" else {"merged_grid": GRID}
    options |= {"merger_options": merger_options} if merger_options else {}
    recipe = TrainConfig(
        model="vit_micro_patch4", model_options=options, dataset="scenes", dataset_options={"length": chosen["length"], **chosen["scenes"]},
        schedule=schedule, sizes=SCHEDULES[schedule], epochs=epochs or chosen["epochs"], evaluate_every=0, seed=seed,
        batch_size=chosen["batch_size"], learning_rate=chosen["learning_rate"],
    )  # fmt: skip
    return Run(recipe, test_options={"length": chosen["test"]}, **POINTS)


# %%
#| output: false
table = run_grid([run_of(*cell) for cell in itertools.product(POSITIONS, MERGERS, SCHEDULES, range(chosen["seeds"]))], results)
validation = create_dataset("scenes", "val", length=1, **chosen["scenes"])
chance = 1 / len(validation.classes)
grid = {"profile": profile, "side": SIDE, "sizes": SCHEDULES, "grid": GRID, "scenes": chosen["scenes"], "chance": chance, "runs": sorted(table.key.unique())}
write_atomic(results / "factors/grid.json", json.dumps(grid, indent=1) + "\n")  # for the explorer
area = areas(table)
summary = summarise(area, ["position", "merger", "schedule"], measure="area")
at_side = summarise(table[(table.axis == "resolution") & (table.value == SIDE)], ["position", "merger", "schedule"])
origin = provenance(table, profile)

# %% [markdown]
# ## The whole grid

# %%
#| label: fig-factors
#| fig-cap: "Area under the accuracy along resolution, in percent, mean over seeds: every encoding (rows) with every merger (columns) under every schedule (panels). Rows are in the order of their mean; one scale of colour for all panels."
names = {"none": "plain", "avgpool": "average", "convpool": "conv + pool", "atm": "ATM"}
SCHEDULE_NAMES = {"single": "one size", "per_batch": "one per batch", "all": "all sizes"}
titles = {"single": f"one size, {SIDE} px", "per_batch": "one size per batch", "all": "all sizes, consistent"}
resolution = summary[summary.axis == "resolution"]
order = resolution.groupby("position").area.mean().sort_values(ascending=False).index
fig, axes = plt.subplots(1, 3, figsize=(8.4, 1.2 + 0.27 * len(order)), sharey=True)
low, high = 100 * resolution.area.min(), 100 * resolution.area.max()
for ax, schedule in zip(axes, SCHEDULES, strict=True):
    shown = 100 * resolution[resolution.schedule == schedule].pivot(index="position", columns="merger", values="area").loc[order, MERGERS]
    ax.imshow(shown, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(shown):
        ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value < (low + high) / 2 else "black")
    ax.set_xticks(range(len(MERGERS)), [names[name] for name in MERGERS], rotation=20)
    ax.set(title=titles[schedule])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)
axes[0].set_yticks(range(len(order)), order)
sign_figure(fig, origin)
plt.show()

# %%
#| label: fig-factors-curves
#| fig-cap: "Accuracy along the three axes, mean over all encodings and seeds, by merger (colours) and schedule (columns). Grey lines mark what training showed."
fig, axes = plt.subplots(3, 3, figsize=(8.4, 6.6), sharey=True, sharex="row")
seen = {"resolution": SIZES, "object_scale": (1,), "canvas": (1,)}
for (row, axis), (column, schedule) in itertools.product(enumerate(AXES), enumerate(SCHEDULES)):
    ax = axes[row, column]
    for mark in (SIDE,) if (axis, schedule) == ("resolution", "single") else seen[axis]:
        ax.axvline(mark, color="0.85", lw=1, zorder=0)
    for merger in MERGERS:
        chosen_rows = table[(table.axis == axis) & (table.schedule == schedule) & (table.merger == merger)]
        curve = chosen_rows.groupby("value").accuracy.mean()
        ax.plot(curve.index, 100 * curve, label=names[merger], **look(merger))
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(chosen_rows.value.unique()), [f"{value:g}" for value in sorted(chosen_rows.value.unique())], fontsize=7)
    ax.minorticks_off()
    ax.axhline(100 * chance, color="0.6", lw=0.8, ls=":")
    ax.set(ylim=(0, 100), title=titles[schedule] if row == 0 else None, ylabel="accuracy, %" if column == 0 else None)
    ax.set_xlabel({"resolution": "side of the test picture, px", "object_scale": "size of the object, relative", "canvas": "side of the canvas, relative"}[axis])
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
sign_figure(fig, origin)
plt.show()


# %% [markdown]
# ## Which factor matters?
#
# How much of the differences between all cells of the grid would be there if only one factor were known? The sum of squares of the area around its mean falls into a part of each factor, a part that only combinations explain, and the part of the seeds within a cell.

# %%
def shares(frame: pd.DataFrame, value: str = "area") -> dict:
    "Shares of the sum of squares: of each factor alone, of combinations, and of seeds."
    mean, total = frame[value].mean(), ((frame[value] - frame[value].mean()) ** 2).sum()
    part = {name: ((frame.groupby(name)[value].transform("mean") - mean) ** 2).sum() / total for name in ("schedule", "merger", "position")}
    cell = ((frame.groupby(["schedule", "merger", "position"])[value].transform("mean") - mean) ** 2).sum() / total
    return part | {"combinations": cell - sum(part.values()), "seeds": 1 - cell}


# %%
#| label: fig-factors-shares
#| fig-cap: "What explains the differences in area along each axis, and in accuracy at the training size: shares of the sum of squares over all cells and seeds."
parts = {AXES[axis]: shares(area[area.axis == axis]) for axis in AXES}
parts[f"at {SIDE} px"] = shares(table[(table.axis == "resolution") & (table.value == SIDE)], "accuracy")
colours = dict(zip(("schedule", "merger", "position", "combinations", "seeds"), (*(PALETTE[name] for name in ("blue", "orange", "green", "purple")), "0.8"), strict=True))
fig, ax = plt.subplots(figsize=(7.4, 2.3))
left = np.zeros(len(parts))
for name, colour in colours.items():
    width = np.array([100 * part[name] for part in parts.values()])
    ax.barh(range(len(parts)), width, left=left, color=colour, label=name)
    for y, (start, size) in enumerate(zip(left, width, strict=True)):
        if size > 5:
            ax.text(start + size / 2, y, f"{size:.0f}", ha="center", va="center", fontsize=8, color="black" if name == "seeds" else "white")
    left += width
ax.set_yticks(range(len(parts)), parts)
ax.set(xlabel="share of the sum of squares, %", xlim=(0, 100))
ax.invert_yaxis()
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5)
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## The questions, as paired differences

# %%
KINDS = {
    "absolute": ["learned", "factorized", "fuzzy", "sincos", "fourier"], "relative": ["shaw", "rpb", "log_cpb", "alibi", "lookhere", "rope_axial", "rope_mixed"],
    "convolution": ["conditional", "glpe"], "none": ["none"],
}  # fmt: skip
kind_of = {name: kind for kind, kinds in KINDS.items() for name in kinds}
by_kind = area.assign(kind=area.position.map(kind_of).fillna("other")).groupby(["kind", "merger", "schedule", "seed", "axis"], as_index=False).area.mean()
tests = []


def compare(question: str, frame: pd.DataFrame, factor: str, first: str, second: str, by: list[str], where: str) -> None:
    "Add a comparison to the family."
    for axis in AXES:
        found = paired(frame[frame.axis == axis], factor, first, second, by)
        tests.append({"question": question, "where": where, "first": first, "second": second, "axis": AXES[axis], **found})


for schedule, merger in itertools.product(SCHEDULES, MERGERS[1:]):
    compare("a fixed grid", area[area.schedule == schedule], "merger", merger, "none", ["position"], titles[schedule])
for merger, schedule in itertools.product(MERGERS, ("per_batch", "all")):
    compare("several sizes", area[area.merger == merger], "schedule", schedule, "single", ["position"], names[merger])
plain = by_kind[by_kind.merger == "none"]
for schedule in SCHEDULES:
    for kind in sorted(set(plain.kind) - {"absolute"}):
        compare("the kind of position", plain[plain.schedule == schedule], "kind", kind, "absolute", [], titles[schedule])
tests = pd.DataFrame(tests)
tests["p_holm"] = holm(tests.p)

# %%
#| label: tbl-factors
#| tbl-cap: "Paired differences in area, in points, with 95 % intervals over seeds. A star marks what is left at 5 % after Holm's correction over the whole table; in brackets, the share of pairs in which the first is ahead."
tests["shown"] = [f"{points(row)}{' *' if row.p_holm < 0.05 else ''} ({100 * row.wins:.0f} %)" for _, row in tests.iterrows()]
spoken = [{"none": "no encoding"} if question == "the kind of position" else names | SCHEDULE_NAMES for question in tests.question]
tests["compared"] = [f"{name.get(row.first, row.first)} − {name.get(row.second, row.second)}" for name, row in zip(spoken, tests.itertuples(), strict=True)]
tests["row"] = range(len(tests))
wide = tests.pivot_table(index=["question", "where", "compared"], columns="axis", values="shown", aggfunc="first", sort=False)[list(AXES.values())]
Markdown(wide.reset_index().to_markdown(index=False))

# %% [markdown]
# ## Which encoding would we take?
#
# Trained at all sizes and without a merger every encoding is at its best, and they are close together. They are ranked by the mean of the areas along the three axes, and the first is compared with each of the others, seed by seed.

# %%
#| label: tbl-factors-ranking
#| tbl-cap: "Encodings of the plain transformer trained at all sizes: mean of the areas along the three axes, by which they are ranked, how far each is behind the first, in points with the 95 % interval over seeds, and the areas in percent. In brackets, the rank after training at one size."
whole = area[area.merger == "none"].groupby(["position", "schedule", "seed"], as_index=False).area.mean()
ranking = {schedule: whole[whole.schedule == schedule].groupby("position").area.mean().sort_values(ascending=False) for schedule in SCHEDULES}
leader = ranking["all"].index[0]
by_axis = area[(area.merger == "none") & (area.schedule == "all")].groupby(["position", "axis"]).area.mean().unstack()
behind = {leader: ""}
for name in ranking["all"].index[1:]:
    behind[name] = points(paired(whole[whole.schedule == "all"], "position", name, leader, []))
ranks = {schedule: {name: i + 1 for i, name in enumerate(ranked.index)} for schedule, ranked in ranking.items()}
rows = [
    {"rank": f"{rank} ({ranks['single'][name]})", "encoding": name, "mean of areas": f"{100 * ranking['all'][name]:.1f}", "behind the first": behind[name],
     **{AXES[axis]: f"{100 * by_axis.loc[name, axis]:.1f}" for axis in AXES}}
    for name, rank in ranks["all"].items()
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False))

# %% [markdown]
# ## Is the merger only slow to learn?
#
# Behind a merger the training sizes themselves are learned more slowly, and a comparison after few epochs may say no more than that. So ViTAR's own combination, fuzzy positions and one size per batch, is trained for longer: without a merger, with ATM, and with ATM whose cells of one token are
# [spread evenly](../07_merge.ipynb) instead of put first.

# %%
#| output: false
VARIANTS = {"plain": ("none", {}), "ATM": ("atm", {}), "ATM, even": ("atm", {"padding": "even"})}
LENGTHS = (chosen["epochs"], *chosen["longer"])
frames = []
for (name, (merger, options)), epochs in itertools.product(VARIANTS.items(), LENGTHS):
    runs = [run_of("fuzzy", merger, "per_batch", seed, epochs, **options) for seed in range(chosen["seeds"])]
    frames.append(run_grid(runs, results, progress=False))
    frames[-1].insert(0, "variant", name)
    frames[-1].insert(0, "epochs", epochs)
longer = pd.concat(frames, ignore_index=True)

# %%
#| label: fig-factors-epochs
#| fig-cap: "Training for longer, fuzzy positions and one size per batch: accuracy at the largest training size, area along the resolution, and accuracy along the resolution after the longest training. Bands are 95 % intervals over seeds; grey lines mark the training sizes."
by_length = summarise(areas(longer), ["variant", "epochs"], measure="area")
longest = summarise(longer, ["variant", "epochs"])
fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.9), sharey=True)
for (name, (merger, options)) in VARIANTS.items():
    style = look(merger) | ({"markerfacecolor": "white", "linestyle": "--"} if options else {})
    drawn = (
        longest[(longest.variant == name) & (longest.axis == "resolution") & (longest.value == SIDE)].assign(y=lambda rows: rows.accuracy, x=lambda rows: rows.epochs),
        by_length[(by_length.variant == name) & (by_length.axis == "resolution")].assign(y=lambda rows: rows.area, x=lambda rows: rows.epochs),
        longest[(longest.variant == name) & (longest.axis == "resolution") & (longest.epochs == LENGTHS[-1])].assign(y=lambda rows: rows.accuracy, x=lambda rows: rows.value),
    )
    for ax, rows in zip(axes, drawn, strict=True):
        ax.plot(rows.x, 100 * rows.y, label=name, **style)
        ax.fill_between(rows.x, 100 * rows.low, 100 * rows.high, color=style["color"], alpha=0.12, linewidth=0)
for ax, title, label in zip(axes, (f"accuracy at {SIDE} px", "area along resolution", f"after {LENGTHS[-1]} epochs"), ("epochs", "epochs", "side of the test picture, px"), strict=True):
    ticks = LENGTHS if label == "epochs" else POINTS["resolutions"]
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, ticks, fontsize=7)
    ax.minorticks_off()
    ax.set(title=title, xlabel=label, ylim=(0, 100))
for size in SIZES:
    axes[2].axvline(size, color="0.85", lw=1, zorder=0)
axes[0].set(ylabel="%")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## Beside what is published
#
# The same contrasts have been reported on ImageNet, each under its own recipe ([the numbers](../../paper/published.json) are copied from the papers' tables). Sizes are multiples of the reference, 224 px there and the largest training size here. Models and pictures differ by orders of magnitude, so that signs and their order can be compared, and sizes of effects cannot.

# %%
#| label: tbl-factors-published
#| tbl-cap: "Differences in accuracy, in points: as printed, and here in the cells that come nearest, ± half of the 95 % interval over seeds; × is the side of the test picture over the reference. At 384 px, 1.7 times the reference, ours is at twice; at 1024 px, 4.6 times, at 4 times."
AUTHORS = {"fan2024vitar": "ViTAR", "tian2023resformer": "ResFormer", "fuller2024lookhere": "LookHere", "heo2024rope": "RoPE-ViT"}
published = json.loads(results_folder("paper/published.json").read_text())
by_size = table[table.axis == "resolution"].assign(cell=lambda frame: frame.position + " " + frame.merger + " " + frame.schedule)
rows, clear = [], []
for told in published["comparisons"]:
    first, second = " ".join(told["ours_first"]), " ".join(told["ours_second"])
    if not {first, second} <= set(by_size.cell):
        continue
    for px, (one, other) in told["accuracy"].items():
        times = int(px) / published["reference"]
        side = min(POINTS["resolutions"], key=lambda value: abs(value - SIDE * min(times, 4)))
        here = paired(by_size[by_size.value == side], "cell", first, second, [], "accuracy")
        rows.append({
            "question": told["question"], "published": f"{told['first']} − {told['second']} ({AUTHORS[told['source']]}, {told['table']})", "×": f"{times:.1f}", "there": f"{one - other:+.1f}",
            "here": f"{100 * here['difference']:+.1f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{50 * (here['high'] - here['low']):.1f}", "cells here": f"{first} − {second}",
        })
        clear.append(here["low"] > 0 or here["high"] < 0)
beside = pd.DataFrame(rows, columns=["question", "published", "×", "there", "here", "cells here"])
same_sign = beside.there.str[0] == beside.here.str[0]
Markdown(beside.to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# ## Every cell

# %%
#| label: tbl-factors-cells
#| tbl-cap: "Accuracy at the largest training size and area along resolution, object scale and canvas, in percent: mean ± half of the 95 % interval over seeds."
cells = at_side.assign(shown=[f"{100 * row.accuracy:.1f} ± {50 * (row.high - row.low):.1f}" for row in at_side.itertuples()], column=f"at {SIDE} px")
rest = summary.assign(shown=[f"{100 * row.area:.1f} ± {50 * (row.high - row.low):.1f}" for row in summary.itertuples()], column=summary.axis.map(AXES))
cells = pd.concat([cells, rest]).pivot_table(index=["position", "merger", "schedule"], columns="column", values="shown", aggfunc="first", sort=False)
Markdown(cells[[f"at {SIDE} px", *AXES.values()]].reset_index().to_markdown(index=False))

# %% [markdown]
# ## What it costs
#
# Epochs are equal, compute is not: a merger makes every step cheaper, a schedule of all sizes dearer. Against compute:

# %%
#| label: fig-factors-compute
#| fig-cap: "Area along resolution against the forward operations of the whole training, a point per encoding, mean over seeds: by merger (colours) and schedule (panels). Along a vertical line models cost the same."
macs = table.drop_duplicates("key").groupby(["position", "merger", "schedule"]).training_forward_macs.mean().rename("macs").reset_index()
against = resolution.merge(macs, on=["position", "merger", "schedule"])
fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.9), sharey=True, sharex=True)
for ax, schedule in zip(axes, SCHEDULES, strict=True):
    for merger in MERGERS:
        rows = against[(against.schedule == schedule) & (against.merger == merger)]
        ax.plot(rows.macs / 1e9, 100 * rows.area, linestyle="", label=names[merger], **look(merger), alpha=0.8)
    ax.set(title=titles[schedule], xlabel="training, 10⁹ MACs")
axes[0].set(ylabel="area along resolution, %", xlim=(0, None))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## Numbers for the paper

# %%
EVERY = [f"{axis}_{merger}_over_none_{schedule}" for axis, merger, schedule in itertools.product(AXES, ("avgpool", "convpool", "atm"), SCHEDULES)]
EVERY += [f"{axis}_{schedule}_over_single_{merger}" for axis, schedule, merger in itertools.product(AXES, ("per_batch", "all"), names)]
EVERY += [f"{axis}_{kind}_over_absolute_{schedule}" for axis, kind, schedule in itertools.product(AXES, ("relative", "convolution", "none"), SCHEDULES)]
EVERY += [f"{axis}_{merger}_{schedule}" for axis, merger, schedule in itertools.product(AXES, names, SCHEDULES)]
EVERY += [f"{name}_verdict" for name in EVERY if "_over_" in name]
best = resolution.sort_values("area", ascending=False)
numbers = dict.fromkeys(EVERY, "not run in this profile") | {
    "provenance": origin, "cells": f"{len(resolution)}", "runs": f"{table.key.nunique()}", "encodings": f"{len(POSITIONS)}", "mergers": f"{len(MERGERS)}",
    "scenes": f"{chosen['length']:,}", "epochs": f"{chosen['epochs']}", "side": f"{SIDE}", "tests": f"{len(tests)}", "significant": f"{(tests.p_holm < 0.05).sum()}", "published": f"{len(beside)}", "same_sign": f"{same_sign.sum()}",
    "published_clear": f"{sum(clear)}", "published_opposed": f"{(np.array(clear, dtype=bool) & ~same_sign).sum()}",
    "significant_about": ", ".join(f"{count} about {question}" for question, count in (tests.p_holm < 0.05).groupby(tests.question, sort=False).sum().items()),
    "sizes": ", ".join(map(str, SIZES[:-1])) + f" and {SIZES[-1]}", "grid": "×".join(map(str, GRID)), "depth": f"{chosen['depth']}", "tested": f"{chosen['test']}",
    "resolutions": f"{POINTS['resolutions'][0]} to {POINTS['resolutions'][-1]}", "object_scales": f"{POINTS['object_scales'][0]:g} to {POINTS['object_scales'][-1]:g}", "canvases": f"{POINTS['canvases'][0]:g} to {POINTS['canvases'][-1]:g}",
    "largest_times": f"{max(POINTS['resolutions']) / SIDE:g}",
    "best_at_side": f"{100 * at_side.accuracy.max():.1f} %", "chance": f"{100 * chance:.0f} %",
    "best": "{position}, {merger}, {schedule}".format(**(best.iloc[0].to_dict() | {"merger": names[best.iloc[0].merger], "schedule": titles[best.iloc[0].schedule]})),
    "best_area": f"{100 * best.area.iloc[0]:.1f} %", "worst_area": f"{100 * best.area.iloc[-1]:.1f} %",
}  # fmt: skip
for axis in AXES:
    numbers |= {f"{axis}_{name}_share": f"{100 * value:.0f} %" for name, value in shares(area[area.axis == axis]).items()}
    for merger, schedule in itertools.product(MERGERS, SCHEDULES):
        mean = area[(area.axis == axis) & (area.merger == merger) & (area.schedule == schedule)].area.mean()
        numbers[f"{axis}_{merger}_{schedule}"] = f"{100 * mean:.1f} %"
for schedule in SCHEDULES:
    ranked = resolution[(resolution.merger == "none") & (resolution.schedule == schedule)].sort_values("area", ascending=False)
    numbers |= {f"best_plain_{schedule}": ranked.position.iloc[0], f"best_plain_{schedule}_area": f"{100 * ranked.area.iloc[0]:.1f} %", f"worst_plain_{schedule}": ranked.position.iloc[-1], f"worst_plain_{schedule}_area": f"{100 * ranked.area.iloc[-1]:.1f} %"}
own = create_model("sivit_micro_patch4").config.position
second, last = ranking["all"].index[[min(1, len(POSITIONS) - 1), -1]]
numbers |= {"own": own, "own_behind": behind.get(own, "not run in this profile"), "first": leader, "second": second, "second_behind": behind[second], "last": last, "last_behind": behind[last]}
numbers |= {f"own_rank_{schedule}": f"{ranks[schedule].get(own, 'not run in this profile')}" for schedule in SCHEDULES}
numbers["own_areas"] = ", ".join(f"{100 * by_axis.loc[own, axis]:.1f} % ({name})" for axis, name in AXES.items()) if own in POSITIONS else "not run in this profile"
short = {titles[name]: name for name in SCHEDULES} | {names[name]: name for name in names}
for row in tests.to_dict("records"):
    name = "{}_{first}_over_{second}_{}".format(row["axis"].replace(" ", "_"), short[row["where"]], **row)
    numbers[name] = points(row)
    numbers[f"{name}_verdict"] = verdict(row)
for name, label in zip(VARIANTS, ("plain", "atm", "even"), strict=True):
    for epochs, when in ((LENGTHS[0], "short"), (LENGTHS[-1], "long")):
        rows = longest[(longest.variant == name) & (longest.epochs == epochs) & (longest.axis == "resolution")].set_index("value")
        total = by_length[(by_length.variant == name) & (by_length.epochs == epochs) & (by_length.axis == "resolution")].iloc[0]
        numbers |= {f"{label}_{when}_side": percent(rows.loc[SIDE]), f"{label}_{when}_largest": percent(rows.iloc[-1]), f"{label}_{when}_area": percent(total, measure="area")}
numbers |= {"longest": f"{LENGTHS[-1]}", "largest": f"{max(POINTS['resolutions'])}"}
save_numbers("factors", numbers, results)
pd.Series(numbers)
