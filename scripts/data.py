# ---
# title: "Do transformers need data, and do convolutions bring a bias?"
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
profile = "quick"  # "quick": minutes on two cores; "cpu": less than an hour on two cores; "gpu": larger, for a GPU
results = "paper/results"  # folder of results, from the project's root

# %% [markdown]
# With few pictures a residual network beats a transformer, with many it is the other way round, and what makes the difference is that a convolution knows beforehand that the world looks the same everywhere: this is how
# [Dosovitskiy et al. (2021)](https://arxiv.org/abs/2010.11929) (§4.3) explain what they saw between one million pictures and three hundred million. **Question:** does the lead of a residual network shrink as pictures become more, at the scale of this study? And are its features, and those of a transformer with a
# convolutional stem, indeed more shift-equivariant?
#
# **Protocol.** A transformer that reads patches, one that reads patches from a small convolutional map (the [hybrid stem](../03_patch.ipynb#a-hybrid-stem)), and a [residual network](../18_resnet.ipynb) with the same stride and about the same operations per picture learn to
# classify procedural scenes. The number of training scenes grows tenfold twice. **All take equally many steps with batches of equal size**, so that nothing but the number of different pictures changes: few scenes are seen often, many seldom. There is no augmentation. The
# smaller sets are parts of the larger ones; each seed draws its own scenes and its own weights, and all are tested on the same scenes that nobody has seen. Accuracy is the mean over seeds with Student's 95 % interval.
#
# Run it yourself: `papermill nbs/experiments/data.ipynb out.ipynb -p profile cpu`

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown

from sivit.core import PALETTE, figure_style
from sivit.cost import count_macs
from sivit.data import create_dataset
from sivit.report import save_numbers
from sivit.resnet import ShiftedClassification
from sivit.study import Run, percent, provenance, results_folder, run_grid, sign_figure, summarise
from sivit.task import score
from sivit.train import TrainConfig
from sivit.vit import create_model

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# Widths and depths are chosen for like operations, which the table below counts. The learning rate is one that each kind of network learns well with.

# %%
VIT = {"patch_size": 4, "pool": "mean"}
HYBRID = VIT | {"stem": "hybrid"}
PROFILES = {
    "quick": {
        "seeds": 3, "side": 16, "scenes": {"classes": 4, "rotation": 0.0}, "pictures": (80, 800, 8000), "batch_size": 40, "steps": 200, "test": 500,
        "vit": VIT | {"dim": 32, "depth": 2, "heads": 2}, "hybrid": HYBRID | {"dim": 28, "depth": 2, "heads": 2},
        "resnet": {"width": 6}, "learning_rates": (4e-3, 4e-3, 4e-3),
    },
    "cpu": {
        "seeds": 3, "side": 24, "scenes": {"classes": 10}, "pictures": (80, 800, 8000), "batch_size": 40, "steps": 2000, "test": 2000,
        "vit": VIT | {"dim": 48, "depth": 3, "heads": 3}, "hybrid": HYBRID | {"dim": 45, "depth": 3, "heads": 3},
        "resnet": {"width": 11}, "learning_rates": (2e-3, 2e-3, 4e-3),
    },
    "gpu": {
        "seeds": 3, "side": 32, "scenes": "hard", "pictures": (500, 5000, 50_000), "batch_size": 100, "steps": 5000, "test": 5000,
        "vit": VIT | {"dim": 96, "depth": 6, "heads": 3}, "hybrid": HYBRID | {"dim": 90, "depth": 6, "heads": 3},
        "resnet": {"width": 17, "layers": (3, 3, 3)}, "learning_rates": (1e-3, 1e-3, 2e-3),
    },
}  # fmt: skip
chosen = PROFILES[profile]
side, seeds, pictures = chosen["side"], chosen["seeds"], chosen["pictures"]
NAMES = {"vit": "ViT", "hybrid": "hybrid ViT", "resnet": "ResNet"}
LOOK = {"vit": ("blue", "o"), "hybrid": ("orange", "s"), "resnet": ("green", "^")}
RATES = dict(zip(NAMES, chosen["learning_rates"]))


def model_of(kind: str) -> tuple[str, dict]:
    "Name and options of a model."
    return ("resnet8", chosen[kind]) if kind == "resnet" else ("vit_micro_patch4", chosen[kind] | {"image_size": side})


# %%
#| label: tbl-data-macs
#| tbl-cap: "What the three networks cost per picture, and how many parameters they have."
test_options = {"length": chosen["test"], "seed": 0}
classes = len(create_dataset("scenes", "val", length=1, config=chosen["scenes"]).classes)
built = {kind: create_model(model_of(kind)[0], num_classes=classes, **model_of(kind)[1]) for kind in NAMES}
macs = {kind: count_macs(model, side) for kind, model in built.items()}
assert max(macs.values()) < 1.15 * min(macs.values()), "the networks are to be of like cost"
sizes = [{"network": NAMES[kind], "10⁶ MACs": macs[kind] / 1e6, "10³ parameters": sum(p.numel() for p in model.parameters()) / 1e3} for kind, model in built.items()]
Markdown(pd.DataFrame(sizes).round(2).to_markdown(index=False, floatfmt=".2f"))


# %% [markdown]
# ## Runs

# %%
def run_of(kind: str, count: int, seed: int) -> Run:
    "A network trained on so many scenes."
    name, options = model_of(kind)
    recipe = TrainConfig(
        task="shifted_classification", model=name, model_options=options, dataset="scenes",
        dataset_options={"length": count, "config": chosen["scenes"], "seed": seed}, schedule="single", sizes=(side,),
        epochs=chosen["steps"] * chosen["batch_size"] // count, batch_size=chosen["batch_size"], learning_rate=RATES[kind], evaluate_every=0,
        seed=seed,
    )  # fmt: skip
    return Run(recipe, test_options=test_options, resolutions=(side,))


# %%
#| output: false
runs = {(kind, count, seed): run_of(kind, count, seed) for seed in range(seeds) for count in pictures for kind in NAMES}
table = run_grid(list(runs.values()), results)
known = pd.DataFrame([{"key": run.key, "kind": kind, "pictures": count} for (kind, count, _), run in runs.items()])
table = table.merge(known, on="key")
accuracy = summarise(table, ["kind", "pictures"])
moved = {name: summarise(table, ["kind", "pictures"], measure=name, bounds=(0, 2)) for name in ("shift_error", "pooled_shift_error")}
origin = provenance(table, profile)

# %% [markdown]
# ## Accuracy, and what moves with the picture
#
# The error of shift-equivariance $E$ is the one [of the chapter](../18_resnet.ipynb#does-the-map-move-with-the-picture): 0 if the map moves with the picture, 2 if the two maps have nothing to do with each other. It is measured on the test scenes, moved by one stride. On maps as
# small as these, rims of zeros are near everywhere, and a residual network is no more than nearly equivariant.

# %%
#| label: fig-data
#| fig-cap: "Accuracy (left) and error of shift-equivariance (right: of the last map, at a shift of one stride) against the number of training scenes, at equally many steps. Means and 95 % intervals over seeds."
fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.4))
panels = [(accuracy, "accuracy", "accuracy"), (moved["shift_error"], "shift_error", "error of shift-equivariance")]
for ax, (frame, measure, label) in zip(axes, panels):
    for kind, name in NAMES.items():
        rows = frame[frame.kind == kind].sort_values("pictures")
        color, marker = LOOK[kind]
        ax.plot(rows.pictures, rows[measure], color=PALETTE[color], marker=marker, label=name)
        ax.fill_between(rows.pictures, rows.low, rows.high, color=PALETTE[color], alpha=0.12, linewidth=0)
    ax.set(xscale="log", xlabel="training scenes", ylabel=label, ylim=(0, 1 if measure == "accuracy" else None))
    ax.set_xticks(pictures, [f"{count:,}".replace(",", " ") for count in pictures])
    ax.minorticks_off()
axes[0].axhline(1 / classes, color="black", linewidth=0.8, linestyle=":")
axes[0].annotate("chance", (pictures[0], 1 / classes), xytext=(0, 4), textcoords="offset points", fontsize=8)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# Before training, a transformer's table of positions is quiet, and its map moves almost as the picture does: the row without scenes shows it. What its other rows have more is *learned*. Between whole strides no network can be equivariant; the pooled features at half a
# stride show what aliasing and places together do to the answer.

# %%
#| label: tbl-data
#| tbl-cap: "Accuracy in percent, and errors of shift-equivariance (of the map at one stride; of the pooled features at half a stride), means over seeds. Without scenes: as initialised."
untrained = []
for kind in NAMES:
    for seed in range(seeds):
        task = ShiftedClassification(run_of(kind, pictures[0], seed).train)
        unseen = task.dataset("val", **test_options | {"length": 200})
        torch.manual_seed(seed)
        untrained.append({"kind": kind, "pictures": 0, **score(task, task.model(unseen), unseen, side)})
columns = ["accuracy", "shift_error", "pooled_shift_error"]
means = pd.concat([pd.DataFrame(untrained), table]).groupby(["pictures", "kind"])[columns].mean().unstack("kind")[[(column, kind) for column in columns for kind in NAMES]]
means["accuracy"] *= 100
TITLES = {"accuracy": "accuracy", "shift_error": "E, map", "pooled_shift_error": "E, pooled"}
shown = means.copy()
shown.columns = [f"{TITLES[column]}: {NAMES[kind]}" for column, kind in means.columns]
shown.index.name = "scenes"
formats = {name: "{:.1f}" if name.startswith("accuracy") else "{:.3f}" for name in shown}
Markdown(shown.apply(lambda column: column.map(formats[column.name].format)).reset_index().to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# ## The claim, judged
#
# The lead of a network is its accuracy less the transformer's, for every seed on its own. The claim says that it is smaller with the most scenes than with the fewest.

# %%
cells = table.set_index(["kind", "pictures", "seed"])[["accuracy", "shift_error"]].sort_index()
few, middle, many = pictures


def leads(kind: str, count: int) -> pd.Series:
    "Points by which a network is ahead of the transformer, for each seed."
    return 100 * (cells.accuracy[kind, count] - cells.accuracy["vit", count])


def verdict(holds: int) -> str:
    "What so many of the seeds say together."
    return "holds here in every seed" if holds == seeds else "is contradicted here by every seed" if holds == 0 else "is left open here: seeds disagree"


shrinks = {kind: int((leads(kind, many) < leads(kind, few)).sum()) for kind in ("hybrid", "resnet")}
judged = [
    {"network": NAMES[kind], **{f"lead with {count} scenes, points": f"{leads(kind, count).mean():+.1f}" for count in pictures},
     "shrinks in": f"{count} of {seeds} seeds", "that data close the gap": verdict(count)}
    for kind, count in shrinks.items()
]  # fmt: skip

# %%
#| label: tbl-data-verdict
#| tbl-cap: "By how much the networks with convolutions are ahead of the plain transformer, means over seeds, and in how many seeds the lead is smaller with the most scenes than with the fewest."
Markdown(pd.DataFrame(judged).to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# Equal steps are fair to a question about data, but they may end before a slow learner has used what it was given. A network that gains little from the last tenfold of scenes and is still far from perfect does not lack scenes.

# %%
#| label: tbl-data-last
#| tbl-cap: "What the last tenfold of scenes brings each network, in points of accuracy, mean over seeds with the smallest and the largest."
last = {kind: 100 * (cells.accuracy[kind, many] - cells.accuracy[kind, middle]) for kind in NAMES}
rows = [{"network": NAMES[kind], f"from {middle} to {many} scenes": f"{gain.mean():+.1f} ({gain.min():+.1f} to {gain.max():+.1f})",
         "error left, %": f"{100 - 100 * cells.accuracy[kind, many].mean():.1f}"} for kind, gain in last.items()]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# And the bias: in how many seeds are the maps of the trained networks with convolutions the more equivariant ones, when all have seen the most scenes?

# %%
errors = cells.shift_error
steadier = {kind: int((errors[kind, many] < errors["vit", many]).sum()) for kind in ("hybrid", "resnet")}
louder = int((errors["vit", many] > pd.DataFrame(untrained).query("kind == 'vit'").shift_error.max()).sum())
Markdown(
    f"With {many} scenes the error of the map is smaller than the transformer's in **{steadier['hybrid']} of {seeds}** seeds for the hybrid, and in "
    f"**{steadier['resnet']} of {seeds}** for the residual network. The trained transformer's error is larger than that of every untrained one in {louder} of {seeds} seeds."
)

# %% [markdown]
# ## Numbers for the paper

# %%
places = accuracy.set_index(["kind", "pictures"])
numbers = {
    "provenance": origin, "few": f"{few}", "middle": f"{middle}", "many": f"{many}", "steps": f"{chosen['steps']}", "side": f"{side}",
    "macs_spread": f"{100 * (max(macs.values()) / min(macs.values()) - 1):.0f} %", "seeds": f"{seeds}",
}  # fmt: skip
for kind in NAMES:
    numbers |= {f"{kind}_few": percent(places.loc[(kind, few)]), f"{kind}_many": percent(places.loc[(kind, many)])}
    numbers |= {f"{kind}_last": f"{last[kind].mean():+.1f}", f"{kind}_error": f"{means.loc[many, ('shift_error', kind)]:.2f}", f"{kind}_error_untrained": f"{means.loc[0, ('shift_error', kind)]:.3f}"}
for kind in shrinks:
    numbers |= {f"{kind}_lead_few": f"{leads(kind, few).mean():+.1f}", f"{kind}_lead_many": f"{leads(kind, many).mean():+.1f}",
                f"{kind}_shrinks": f"{shrinks[kind]} of {seeds}", f"{kind}_verdict": verdict(shrinks[kind]), f"{kind}_steadier": f"{steadier[kind]} of {seeds}"}  # fmt: skip
save_numbers("data", numbers, results)
pd.Series(numbers)
