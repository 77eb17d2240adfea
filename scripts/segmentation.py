# ---
# title: "What does merging cost where outlines matter?"
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
profile = "quick"  # "quick": a minute on two cores; "cpu": twenty minutes on two cores; "gpu": larger, for a GPU
results = "paper/results"  # folder of results, from the project's root
dataset = "scenes"  # or "ade20k", for profile "gpu"
root = ""  # for ADE20K: the folder that holds ADEChallengeData2016/

# %% tags=["injected-parameters"]
# Parameters
profile = "cpu"


# %% [markdown]
# A merger that leads to a fixed grid makes large pictures cheap, and throws away where things were, which is what segmentation asks for. **Question:** what does a fixed grid cost in segmentation, how much of it
# does a learned way back restore, and how do both stand against merging at a fixed ratio, which is what ViTAR does?
#
# **Protocol.** One encoder with fuzzy positions; what changes is the way from pictures to logits, as in the [chapter](../15_segment.ipynb): a plain transformer with a linear and with a pyramid head; the Adaptive Token Merger with cells of one
# token (1×1) and of four (2×2); merged to a fixed grid; and merged to a fixed grid and unmerged. With cells of one token nothing is merged: that pass is one more layer before the blocks, and sets apart what the layer is worth from what
# merging costs. All mergers have a linear head and even padding. The schedule shows one of two sizes per batch; all models are trained for the same number of epochs from scratch, with the same settings, and tested
# on unseen scenes from below the smallest training size to above the largest. Scenes are drawn at every size anew, so a larger picture really holds more. Every picture is judged whole and at its own size. Means over seeds with
# Student's 95 % interval.
#
# Run it yourself: `papermill nbs/experiments/segmentation.ipynb out.ipynb -p profile cpu`. Photographs instead of scenes: `-p profile gpu -p dataset ade20k -p root FOLDER`.

# %%
import itertools

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from sivit.core import PALETTE, figure_style
from sivit.cost import count_macs
from sivit.curve import plot_curve
from sivit.report import save_numbers
from sivit.study import Run, paired, percent, points, provenance, results_folder, run_grid, sign_figure, summarise, verdict
from sivit.task import create_task
from sivit.train import TrainConfig

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# The fixed grid is that of the smallest training size, as in ViTAR.

# %%
SCENES = {"target": "mask", "config": {"objects": 3, "classes": 2}}
MORE_SCENES = {"target": "mask", "config": {"objects": 3, "classes": 4}}
HARD_SCENES = {"target": "mask", "config": {"objects": 3, "rotation": 180.0, "texture": 0.15, "distractors": 4}}
PROFILES = {
    "quick": {
        "seeds": 2, "sizes": (20, 40), "resolutions": (16, 20, 28, 40, 80), "width": 16, "test": {"length": 48},
        "vit": {"patch_size": 4, "dim": 48, "depth": 2, "heads": 3},
        "train": {"epochs": 4, "batch_size": 16, "learning_rate": 4e-3, "dataset_options": SCENES | {"length": 448}},
    },
    "cpu": {
        "seeds": 3, "sizes": (32, 64), "resolutions": (16, 24, 32, 48, 64, 96, 128), "width": 24, "test": {"length": 256},
        "vit": {"patch_size": 4, "dim": 64, "depth": 4, "heads": 4},
        "train": {"epochs": 7, "batch_size": 16, "learning_rate": 2e-3, "dataset_options": MORE_SCENES | {"length": 2048}},
    },
    "gpu": {
        "seeds": 3, "sizes": (128, 256), "resolutions": (64, 96, 128, 192, 256, 384, 512), "width": 128, "test": {"length": 1024},
        "vit": {"patch_size": 8, "dim": 192, "depth": 6, "heads": 3},
        "train": {"epochs": 6, "batch_size": 32, "learning_rate": 1e-3, "dataset_options": HARD_SCENES | {"length": 16_384}, "workers": 8},
    },
}  # fmt: skip
ADE20K = {
    "sizes": (256, 512), "resolutions": (128, 192, 256, 384, 512, 768), "test": {},
    "vit": {"patch_size": 16, "dim": 384, "depth": 12, "heads": 6},
    "train": {"epochs": 20, "batch_size": 16, "learning_rate": 5e-4, "dataset_options": {"root": root}, "workers": 8},
}  # fmt: skip
chosen = PROFILES[profile] | (ADE20K if dataset == "ade20k" else {})
patch = chosen["vit"]["patch_size"]
GRID = (min(chosen["sizes"]) // patch,) * 2
EVEN = {"padding": "even"}
METHODS = {  # name: what is special about the encoder, and what about the head
    "plain, linear": ({}, {}),
    "plain, pyramid": ({}, {"head": "pyramid", "head_options": {"width": chosen["width"]}}),
    "ATM 1×1": ({"merger": "atm", "merger_options": EVEN | {"ratio": 1}}, {}),
    "ATM 2×2": ({"merger": "atm", "merger_options": EVEN | {"ratio": 2}}, {}),
    "ATM fixed": ({"merger": "atm", "merged_grid": GRID, "merger_options": EVEN}, {}),
    "ATM fixed, unmerged": ({"merger": "atm", "merged_grid": GRID, "merger_options": EVEN}, {"upsample": "unmerge"}),
}
LOOKS = dict(zip(METHODS, zip(("blue", "sky", "purple", "orange", "vermilion", "green"), "osvD^P", strict=True), strict=True))


# %% [markdown]
# ## Runs

# %%
def run_for(method: str, seed: int) -> Run:
    "One method trained with one seed."
    vit, head = METHODS[method]
    recipe = TrainConfig(
        task="segmentation", task_options=head, model="vit_micro_patch4", dataset=dataset, schedule="per_batch", sizes=chosen["sizes"],
        model_options={"image_size": max(chosen["sizes"]), "position": "fuzzy", "pool": "mean", **chosen["vit"], **vit},
        label_smoothing=0.0, evaluate_every=0, seed=seed, **chosen["train"],
    )  # fmt: skip
    return Run(recipe, test_options=chosen["test"], resolutions=chosen["resolutions"])


# %%
#| output: false
runs = {(method, seed): run_for(method, seed) for seed in range(chosen["seeds"]) for method in METHODS}
table = run_grid(list(runs.values()), results)
table["method"] = table.key.map({run.key: method for (method, _), run in runs.items()})
curves = {name: summarise(table, ["method"], measure=name) for name in ("miou", "boundary_iou")}
origin = provenance(table, profile)

# %% [markdown]
# ## Along resolution

# %%
#| label: fig-segmentation
#| fig-cap: "Segmentation of unseen scenes against the side of the test picture: mean IoU over classes (left), and the same for the edges of objects alone (right). Grey lines mark the two sizes seen in training; bands are 95 % intervals over seeds. An edge is a whole number of pixels wide, so boundary IoU takes a step wherever that number does."
fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.4))
for (name, curve), title, ax in zip(curves.items(), ("mean IoU", "boundary IoU"), axes, strict=True):
    for method, (color, marker) in LOOKS.items():
        rows = curve[curve.method == method].rename(columns={"value": "size"})
        plot_curve(rows, "size", measure=name, seen=chosen["sizes"], ax=ax, label=method, color=PALETTE[color], marker=marker)
    ax.set(xlabel="side of the test picture, px", ylabel=title, ylim=(0, None))
    ax.get_legend().remove()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## What it costs
#
# Operations are those of one picture, in layers and in the attention of the blocks. Not counted is the attention of merger and unmerger: some $18D$ products for a token, next to $12D^2$ in the layers of one block.

# %%
#| label: tbl-segmentation
#| tbl-cap: "Quality in percent at the larger training size and at the largest test size, mean over seeds, and the operations of one picture at both."
places = {"small": min(chosen["resolutions"]), "seen": max(chosen["sizes"]), "large": max(chosen["resolutions"])}
macs = {}
for method in METHODS:
    task = create_task(runs[method, 0].train)
    model = task.model(task.dataset("val", **chosen["test"]))
    macs[method] = {place: count_macs(model, size) for place, size in places.items()}
columns = {}
for place in ("seen", "large"):
    for name, title in (("miou", "mIoU"), ("boundary_iou", "boundary IoU")):
        at = curves[name][curves[name].value == places[place]].set_index("method")[name]
        columns[f"{title}, {places[place]} px"] = 100 * at.loc[list(METHODS)]
    columns[f"10⁶ MACs, {places[place]} px"] = pd.Series({method: macs[method][place] / 1e6 for method in METHODS})
Markdown(pd.DataFrame(columns).rename_axis("method").reset_index().to_markdown(index=False, floatfmt=".1f"))

# %% [markdown]
# ## Which is better, seed by seed
#
# The answers to the question, one comparison to a row: how many points the first method is ahead of the second in mIoU where both begin with the same seed. An interval that holds zero leaves the question open.

# %%
#| label: tbl-segmentation-pairs
#| tbl-cap: "Mean difference in mIoU, in points, with its 95 % interval over seeds, at the smallest test size, the larger training size and the largest test size."
PAIRS = {
    "unmerging": ("ATM fixed, unmerged", "ATM fixed"),
    "fixed": ("ATM fixed", "plain, linear"),
    "unmerged_plain": ("ATM fixed, unmerged", "plain, linear"),
    "unmerged_ratio": ("ATM fixed, unmerged", "ATM 2×2"),
    "ratio": ("ATM 2×2", "ATM 1×1"),
    "merger": ("ATM 1×1", "plain, linear"),
    "pyramid": ("plain, pyramid", "plain, linear"),
}
compared = {
    (pair, place): paired(table[table.value == size], "method", first, second, [], "miou")
    for (pair, (first, second)), (place, size) in itertools.product(PAIRS.items(), places.items())
}  # fmt: skip
Markdown(pd.DataFrame({
    "comparison": [" against ".join(pair) for pair in PAIRS.values()],
    **{f"{size} px": [points(compared[pair, place]) for pair in PAIRS] for place, size in places.items()},
}).to_markdown(index=False))  # fmt: skip

# %% [markdown]
# ## Numbers for the paper

# %%
numbers = {
    "provenance": origin, "dataset": dataset, "epochs": f"{chosen['train']['epochs']}",
    "sizes": " and ".join(map(str, chosen["sizes"])), "grid": "×".join(map(str, GRID)),
    **{place: f"{size}" for place, size in places.items()},
}  # fmt: skip
short = dict(zip(METHODS, ("plain", "pyramid", "one", "two", "fixed", "unmerged"), strict=True))
for (method, key), (place, size) in itertools.product(short.items(), places.items()):
    for name, curve in curves.items():
        row = curve[(curve.method == method) & (curve.value == size)].iloc[0]
        numbers[f"{key}_{place}" if name == "miou" else f"{key}_{name}_{place}"] = percent(row, measure=name)
    numbers[f"{key}_macs_{place}"] = f"{macs[method][place] / 1e6:.1f} million"
for key in ("two", "fixed", "unmerged"):
    method = {value: name for name, value in short.items()}[key]
    numbers[f"{key}_saves_large"] = f"{100 * (1 - macs[method]['large'] / macs['plain, linear']['large']):.0f} %"
for (pair, place), found in compared.items():
    numbers |= {f"gain_{pair}_{place}": points(found), f"gain_{pair}_{place}_verdict": verdict(found)}
for place, size in places.items():
    at = curves["miou"][curves["miou"].value == size].set_index("method").miou
    numbers |= {f"best_{place}": at.idxmax(), f"worst_{place}": at.idxmin()}
save_numbers("segmentation", numbers, results)
pd.Series(numbers)
