# ---
# title: "Can a token merger pool for a convolutional network?"
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
# Grid attention turns the tokens of a cell into their mean plus what the mean finds when it attends to them. In ViTAR it stands in front of a transformer. But nothing in it needs one: whatever halves a map could be replaced by it, and the discussion of [ViTAR](https://arxiv.org/abs/2403.18361) leaves open whether that would
# help networks of convolutions, too. **Question:** in a residual network, is grid attention over 2×2 places better than a strided convolution, or than an average over the same places, at equal operations?
#
# **Protocol.** One [residual network](../18_resnet.ipynb) with two halvings, done in [three ways](../18_resnet.ipynb#three-ways-to-halve-a-map). Grid attention costs operations of its own, so the two others get wider channels instead, by as much as makes the counts most alike. All
# train from scratch for equally many epochs at one size, and are tested at that and at others. (Training at several sizes would ask something else as well: batch normalisation keeps one set of statistics, and a mixture of sizes fits none of them.) Accuracy is the mean over seeds with Student's 95 % interval; what is compared is compared seed by seed.
#
# Run it yourself: `papermill nbs/experiments/pooling.ipynb out.ipynb -p profile cpu`

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from sivit.core import PALETTE, figure_style
from sivit.cost import count_macs
from sivit.data import create_dataset
from sivit.curve import plot_curve
from sivit.report import save_numbers
from sivit.resnet import DOWNSAMPLES
from sivit.study import Run, paired, percent, points, provenance, results_folder, run_grid, sign_figure, summarise, verdict
from sivit.train import TrainConfig
from sivit.vit import create_model

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# Digits are real pictures of 8×8 px that are scaled up; scenes are drawn at every size anew. Sizes are multiples of the network's stride of 4 px, so that no cell is incomplete.

# %%
DIGITS = {"dataset": "digits", "learning_rate": 4e-3, "dataset_options": {}, "test_options": {}}
SCENES = {"dataset": "scenes", "learning_rate": 4e-3, "test_options": {"length": 1000}}
PROFILES = {
    "quick": {
        "seeds": 3, "width": 12, "layers": (1, 1, 1),
        "tasks": [SCENES | {"epochs": 2, "dataset_options": {"length": 4800}, "test_options": {"length": 500}, "side": 16, "resolutions": (8, 12, 16, 20, 24, 32, 48)}],
    },
    "cpu": {
        "seeds": 3, "width": 16, "layers": (1, 1, 1),
        "tasks": [
            DIGITS | {"epochs": 40, "side": 24, "resolutions": (8, 12, 16, 20, 24, 28, 36, 48, 72)},
            SCENES | {"epochs": 6, "dataset_options": {"length": 12_000}, "side": 24, "resolutions": (8, 12, 16, 20, 24, 28, 36, 48, 72)},
        ],
    },
    "gpu": {
        "seeds": 5, "width": 32, "layers": (2, 2, 2),
        "tasks": [
            DIGITS | {"epochs": 100, "side": 32, "resolutions": (8, 12, 16, 24, 32, 40, 48, 64, 96, 128)},
            SCENES | {"epochs": 8, "dataset_options": {"length": 50_000, "config": "hard"}, "test_options": {"length": 4000}, "side": 32,
                      "resolutions": (8, 12, 16, 24, 32, 40, 48, 64, 96, 128)},
        ],
    },
}  # fmt: skip
chosen = PROFILES[profile]
seeds, tasks = chosen["seeds"], {task["dataset"]: task for task in chosen["tasks"]}
NAMES = {"stride": "strided convolution", "average": "average", "grid_attention": "grid attention"}
LOOK = {"stride": ("blue", "o"), "average": ("orange", "s"), "grid_attention": ("vermilion", "D")}


# %% [markdown]
# ## Like operations
#
# The width of the two cheaper networks is the one whose count is nearest to that with grid attention.

# %%
def options_of(downsample: str, width: int) -> dict:
    "Settings of a network."
    return {"layers": chosen["layers"], "downsample": downsample, "width": width}


def network(downsample: str, width: int, dataset: str):
    "An untrained network for the pictures of a dataset."
    pictures = create_dataset(dataset, "val", **{"length": 1} if dataset == "scenes" else {})
    return create_model("resnet8", channels=pictures.channels, num_classes=len(pictures.classes), **options_of(downsample, width))


def macs_of(downsample: str, width: int, task: dict) -> int:
    "Operations for a picture of the training size."
    model = network(downsample, width, task["dataset"])
    return count_macs(model, (model.config.channels, task["side"], task["side"]))


first = chosen["tasks"][0]
goal = macs_of("grid_attention", chosen["width"], first)
widths = dict.fromkeys(DOWNSAMPLES, chosen["width"])
for downsample in ("stride", "average"):
    widths[downsample] = min(range(chosen["width"], 2 * chosen["width"]), key=lambda width: abs(macs_of(downsample, width, first) - goal))

# %%
#| label: tbl-resnet-pooling-macs
#| tbl-cap: "Channels of the first stage, parameters, and operations per picture at the training size."
rows = []
for dataset, task in tasks.items():
    macs = {downsample: macs_of(downsample, width, task) for downsample, width in widths.items()}
    assert max(macs.values()) < 1.15 * min(macs.values()), "the networks are to be of like cost"
    for downsample, width in widths.items():
        parameters = sum(p.numel() for p in network(downsample, width, dataset).parameters())
        rows.append({"dataset": dataset, "halved by": NAMES[downsample], "channels": width, "10³ parameters": f"{parameters / 1e3:.1f}", "side, px": task["side"], "10⁶ MACs": f"{macs[downsample] / 1e6:.2f}"})  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


# %% [markdown]
# ## Runs

# %%
def run_of(task: dict, downsample: str, seed: int) -> Run:
    "A network trained with one way to halve maps."
    recipe = TrainConfig(
        model="resnet8", model_options=options_of(downsample, widths[downsample]), schedule="single", sizes=(task["side"],), evaluate_every=0,
        seed=seed, **{name: task[name] for name in ("dataset", "dataset_options", "epochs", "learning_rate")},
    )  # fmt: skip
    return Run(recipe, test_options=task["test_options"], resolutions=task["resolutions"])


# %%
#| output: false
runs = {(downsample, run.key): run for task in chosen["tasks"] for downsample in DOWNSAMPLES for seed in range(seeds) for run in [run_of(task, downsample, seed)]}
table = run_grid(list(runs.values()), results)
table["halved"] = table.key.map({key: downsample for downsample, key in runs})
summary = summarise(table, ["dataset", "halved"])
origin = provenance(table, profile)

# %% [markdown]
# ## Accuracy along resolution

# %%
#| label: fig-resnet-pooling
#| fig-cap: "Accuracy of a residual network against the side of the test picture, by how it halves its maps, at like operations. A grey line marks the size of training; bands are 95 % intervals over seeds."
fig, axes = plt.subplots(1, len(tasks), figsize=(3.2 + 4.0 * len(tasks), 3.5), squeeze=False)
for ax, (dataset, task) in zip(axes[0], tasks.items()):
    for downsample, name in NAMES.items():
        rows = summary[(summary.dataset == dataset) & (summary.halved == downsample)]
        color, marker = LOOK[downsample]
        plot_curve(rows.rename(columns={"value": "size"}), "size", seen=(task["side"],), ax=ax, label=name, color=PALETTE[color], marker=marker)
    ax.set(xlabel="side of the test picture, px", ylabel="accuracy", title=dataset, ylim=(0, 1))
    ax.get_legend().remove()
fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center")
sign_figure(fig, origin)
plt.show()

# %%
#| label: tbl-resnet-pooling
#| tbl-cap: "Accuracy in percent at every test size, mean over seeds, and what the training took: seconds on one core or GPU, means over seeds."
shown = summary.assign(percent=100 * summary.accuracy).pivot(index=["dataset", "halved"], columns="value", values="percent")
shown = shown.loc[[(dataset, downsample) for dataset in tasks for downsample in DOWNSAMPLES]]
seconds = table.drop_duplicates("key").groupby(["dataset", "halved"]).train_seconds.mean()
text = shown.map(lambda value: "" if pd.isna(value) else f"{value:.1f}").assign(**{"training, s": seconds.map("{:.0f}".format)})
Markdown(text.rename(index=NAMES).rename_axis(index={"halved": "halved by"}).reset_index().to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# ## The question, answered
#
# For every seed, the accuracy with grid attention less that of each other way: at the size of training, and averaged over the smaller and over the larger ones.

# %%
PLACES = {-1: "smaller", 0: "trained", 1: "larger"}
above = table.value - table.dataset.map({dataset: task["side"] for dataset, task in tasks.items()})
places = table.assign(place=np.sign(above).map(PLACES)).groupby(["dataset", "place", "halved", "seed"], as_index=False).accuracy.mean()
compared = {
    (dataset, other, place): paired(places[(places.dataset == dataset) & (places.place == place)], "halved", "grid_attention", other, [], "accuracy")
    for dataset in tasks for other in ("stride", "average") for place in PLACES.values()
}  # fmt: skip

# %% [markdown]
# A difference counts as shown where the 95 % interval of its mean over seeds (Student's, of the differences within seeds) does not hold zero. One interval in twenty leaves it out by chance.

# %%
#| label: tbl-resnet-pooling-answer
#| tbl-cap: "Gain of grid attention over the two other ways, in points of accuracy: mean of the differences within seeds, and its 95 % interval."
rows = [
    {"dataset": dataset, "grid attention against": NAMES[other], "sizes": place, "gain, points": points(found), "grid attention": f"{verdict(found)} accuracy"}
    for (dataset, other, place), found in compared.items()
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))

# %%
verdicts = [verdict(found) for found in compared.values()]
conclusion = f"of {len(compared)} comparisons, grid attention is shown to be better in {verdicts.count('raises')} and worse in {verdicts.count('lowers')}, by intervals that are not corrected for their number"
Markdown(f"**At like operations, {conclusion}.**")

# %% [markdown]
# ## Numbers for the paper

# %%
cells = summary[summary.dataset == first["dataset"]].set_index(["halved", "value"])
sides = {"trained": first["side"], "small": min(first["resolutions"]), "large": max(first["resolutions"])}
spread = [macs_of(downsample, width, first) for downsample, width in widths.items()]
numbers = {
    "provenance": origin, "dataset": first["dataset"], "conclusion": conclusion, "epochs": f"{first['epochs']}",
    "macs_spread": f"{100 * (max(spread) / min(spread) - 1):.0f} %", **{place: f"{size}" for place, size in sides.items()},
}  # fmt: skip
for downsample in DOWNSAMPLES:
    numbers |= {f"{downsample}_{place}": percent(cells.loc[(downsample, size)]) for place, size in sides.items()}
numbers |= {f"gain_{other}_{place}": points(found) for (dataset, other, place), found in compared.items() if dataset == first["dataset"]}
save_numbers("pooling", numbers, results)
pd.Series(numbers)
