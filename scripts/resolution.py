# ---
# title: "Does a fixed token grid help?"
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
profile = "quick"  # "quick": minutes on two cores; "cpu": a quarter of an hour; "gpu": larger, for a GPU
results = "paper/results"  # folder of results, from the project's root

# %% tags=["injected-parameters"]
# Parameters
profile = "cpu"


# %% [markdown]
# A picture arrives at another size than those seen in training. The plain vision transformer then runs on another number of tokens; a
# merger brings every picture to the same grid first. **Question:** how much of the accuracy lost at unseen sizes does a merger give back, and is
# the learned merger of ViTAR better than plain averaging?
#
# **Protocol.** One encoder, one position encoding (a learned table), four mergers; the schedule shows one size per batch. One more model, the plain
# transformer trained at a single size, shows what happens without any cure. All models are trained for the same number of epochs from scratch, and tested from
# well below the smallest training size to four times the middle one. All sizes are whole numbers of patches, so that padding plays no part. Accuracy is the mean over seeds with Student's 95 % interval.
#
# Run it yourself: `papermill nbs/experiments/resolution.ipynb out.ipynb -p profile cpu`

# %%
import dataclasses
import itertools

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from sivit.core import figure_style, look
from sivit.curve import plot_curve
from sivit.merge import merge_schedule
from sivit.report import save_numbers
from sivit.study import Run, percent, provenance, results_folder, run_grid, sign_figure, summarise
from sivit.train import TrainConfig

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# Digits are real pictures of 8×8 px that are scaled up. The profile `gpu` adds scenes, which are drawn at every size anew, so that a larger picture really holds more; for smaller machines these are in the [grid of all factors](factors.ipynb).

# %%
DIGITS = {
    "dataset": "digits", "sizes": (12, 24, 48), "learning_rate": 2e-3, "single": 24,
    "resolutions": (8, 12, 16, 20, 24, 36, 48, 72, 96),
}  # fmt: skip
SCENES = {
    "dataset": "scenes", "sizes": (16, 32, 48), "learning_rate": 1e-3, "single": 32, "test_options": {"length": 1000},
    "resolutions": (8, 12, 16, 24, 32, 48, 64, 96, 128),
}  # fmt: skip
PROFILES = {
    "quick": {"seeds": 2, "depth": 3, "tasks": [DIGITS | {"epochs": 4}]},
    "cpu": {"seeds": 3, "depth": 4, "tasks": [DIGITS | {"epochs": 40}]},
    "gpu": {"seeds": 5, "depth": 6, "tasks": [DIGITS | {"epochs": 100}, SCENES | {"epochs": 60, "dataset_options": {"length": 50_000}}]},
}  # fmt: skip
MERGERS = ["none", "avgpool", "convpool", "atm"]
NAMES = {
    "none": "plain ViT", "avgpool": "average pool", "convpool": "conv + pool", "atm": "ATM (ViTAR)", "single": "plain ViT, one size",
}  # fmt: skip
chosen = PROFILES[profile]


# %% [markdown]
# ## Runs
#
# Mergers bring every picture to the grid of the smallest training size, as ViTAR does with 14×14 for 224 px.

# %%
def runs_for(task: dict) -> list[Run]:
    "All runs of one dataset: four mergers at many sizes, and the plain transformer at one."
    shared = {key: task[key] for key in ("dataset", "epochs", "learning_rate")}
    shared["dataset_options"] = task.get("dataset_options", {})
    grid = (min(task["sizes"]) // 4, min(task["sizes"]) // 4)
    runs = []
    for seed in range(chosen["seeds"]):
        for merger in MERGERS:
            options = {"merger": merger, "pool": "mean", "position": "learned", "image_size": max(task["sizes"]), "depth": chosen["depth"]}
            options |= {} if merger == "none" else {"merged_grid": grid}
            recipe = TrainConfig(
                model="vit_micro_patch4", model_options=options, schedule="per_batch", sizes=task["sizes"], evaluate_every=0,
                seed=seed, **shared,
            )
            recipes = [recipe, dataclasses.replace(recipe, schedule="single", sizes=(task["single"],))]
            test = {"test_options": task.get("test_options", {}), "resolutions": task["resolutions"]}
            runs += [Run(recipe, **test) for recipe in (recipes if merger == "none" else recipes[:1])]
    return runs


# %%
#| output: false
runs = [run for task in chosen["tasks"] for run in runs_for(task)]
table = run_grid(runs, results)
table["method"] = table.merger.where(table.schedule == "per_batch", "single")
summary = summarise(table, ["dataset", "method"])
origin = provenance(table, profile)

# %% [markdown]
# ## Accuracy along resolution

# %%
#| label: fig-resolution
#| fig-cap: "Accuracy against the side of the test picture, by merger. Grey lines mark the sizes seen in training (the dashed model saw the middle one only); bands are 95 % intervals over seeds."
names = {task["dataset"]: task for task in chosen["tasks"]}
fig, axes = plt.subplots(1, len(names), figsize=(3.2 + 4.0 * len(names), 3.5), squeeze=False)
for ax, (dataset, task) in zip(axes[0], names.items()):
    for method, name in NAMES.items():
        rows = summary[(summary.dataset == dataset) & (summary.method == method)]
        style = look(method) if method != "single" else {"color": "#7f7f7f", "marker": "o", "linestyle": "--"}
        plot_curve(rows.rename(columns={"value": "size"}), "size", seen=task["sizes"], ax=ax, label=name, **style)
    ax.set(xlabel="side of the test picture, px", ylabel="accuracy", title=dataset, ylim=(0, 1))
    ax.get_legend().remove()
fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center")
fig.savefig(results / "resolution.svg", metadata={"Date": None})
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## The same in numbers

# %%
#| label: tbl-resolution
#| tbl-cap: "Accuracy in percent at every test size, mean over seeds."
order = [NAMES[m] for m in ("single", *MERGERS)]
shown = summary.assign(method=summary.method.map(NAMES), percent=(100 * summary.accuracy).round(1))
wide = shown.pivot(index=["dataset", "method"], columns="value", values="percent")
Markdown(wide.loc[[(d, m) for d in names for m in order]].reset_index().to_markdown(index=False, floatfmt=".1f"))

# %% [markdown]
# ## What it costs
#
# Equal epochs are not equal compute: a merger makes every step cheaper. The table shows the forward multiply-accumulates of a whole training run and of one picture at
# the largest test size.

# %%
#| label: tbl-resolution-cost
#| tbl-cap: "Forward operations of the whole training, and seconds it took on one core, mean over seeds."
cost = table.drop_duplicates("key").groupby(["dataset", "method"], sort=False)[["training_forward_macs", "train_seconds"]].mean()
cost = cost.rename(columns={"training_forward_macs": "training, 10⁹ MACs", "train_seconds": "training, s"})
cost["training, 10⁹ MACs"] /= 1e9
Markdown(cost.round(1).rename(index=NAMES).reset_index().to_markdown(index=False, floatfmt=".1f"))


# %% [markdown]
# ## Whole and padded passes
#
# A pass of the Adaptive Token Merger halves a side where it can, and else fills the gap with cells of one token. The unseen sizes above the smallest training size fall into two
# kinds: those whose every pass is a whole halving, and those that need padded cells. Does the difference matter?

# %%
#| label: tbl-passes
#| tbl-cap: "Mean accuracy in percent at unseen sizes above the smallest training size: where ATM's passes all halve exactly, and where some pass needs cells of one token. The other methods see the same sizes and know no passes."
def halves_exactly(size: int, task: dict) -> bool:
    "Whether every pass of the merger at this size halves the grid without padding."
    sides = [size // 4, *merge_schedule(size // 4, min(task["sizes"]) // 4)]
    return all(before == 2 * after for before, after in itertools.pairwise(sides))


unseen = pd.concat(
    rows[(rows.value > min(task["sizes"])) & ~rows.value.isin(task["sizes"])].assign(passes=lambda f, task=task: [
        "whole" if halves_exactly(size, task) else "padded" for size in f.value])
    for task in chosen["tasks"] for rows in [summary[summary.dataset == task["dataset"]]]
)  # fmt: skip
passes = (100 * unseen.groupby(["dataset", "method", "passes"], sort=False).accuracy.mean()).unstack("passes")
Markdown(passes.round(1).rename(index=NAMES).reset_index().to_markdown(index=False, floatfmt=".1f"))

# %% [markdown]
# ## Numbers for the paper

# %%
first = chosen["tasks"][0]
cells = summary[summary.dataset == first["dataset"]].set_index(["method", "value"])
places = {"small": min(first["resolutions"]), "seen": first["single"], "large": max(first["resolutions"])}
numbers = {
    "provenance": origin, "dataset": first["dataset"], "epochs": f"{first['epochs']}",
    "sizes": ", ".join(map(str, first["sizes"][:-1])) + f" and {first['sizes'][-1]}",
}  # fmt: skip
numbers |= {place: f"{size}" for place, size in places.items()}
for method in NAMES:
    numbers |= {f"{method}_{place}": percent(cells.loc[(method, size)]) for place, size in places.items()}
ranked = {place: cells.xs(size, level="value").drop("single").accuracy.sort_values() for place, size in places.items()}
numbers |= {f"best_{place}": NAMES[accuracy.index[-1]] for place, accuracy in ranked.items()}
numbers |= {f"worst_{place}": NAMES[accuracy.index[0]] for place, accuracy in ranked.items()}
whole = unseen[(unseen.dataset == first["dataset"]) & (unseen.passes == "whole")].value.unique()
numbers["whole_sizes"] = ", ".join(f"{size:g}" for size in whole)
for method in ("none", "atm"):
    numbers |= {f"{method}_{kind}": f"{passes.loc[(first['dataset'], method), kind]:.1f} %" for kind in ("whole", "padded")}
save_numbers("resolution", numbers, results)
pd.Series(numbers)
