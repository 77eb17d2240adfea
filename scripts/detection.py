# ---
# title: "Can objects be found in merged tokens?"
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
dataset = "scenes"  # or "coco", for profile "gpu"
root = ""  # for COCO: the folder that holds annotations/, train2017/ and val2017/

# %% tags=["injected-parameters"]
# Parameters
profile = "cpu"


# %% [markdown]
# Detectors read large pictures, and there the blocks of a transformer cost most. ViTAR runs its Adaptive Token Merger once before them: with cells of one token (1×1), which saves nothing, or of four (2×2), which leaves a quarter of the tokens.
# For Mask R-CNN on COCO it reports about half the operations for 0.4 points of box and of mask precision ([Fan et al., 2024](https://arxiv.org/abs/2403.18361), Tables 2 and 3). **Question:** what does merging cost here, in boxes and in outlines, and how much does it save?
#
# **Protocol.** [Mask R-CNN](../16_detect.ipynb) on one encoder with fuzzy positions; what changes is the merger. (It is a block of its own, so the encoder with cells of one token is one block deeper than the plain one.) Pyramid, anchors and heads are the same for all, at the same places of the picture. The schedule shows one of two sizes per batch; all models are trained for
# the same number of epochs from scratch, with the same settings, and tested on unseen scenes from below the smallest training size to above the largest. Scenes hold three objects and are drawn at every size anew. The measure is COCO's average
# precision, over overlaps from 0.50 to 0.95. Means over seeds with Student's 95 % interval.
#
# Run it yourself: `papermill nbs/experiments/detection.ipynb out.ipynb -p profile cpu`

# %%
import dataclasses
import itertools
import json

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from sivit.core import PALETTE, figure_style, write_atomic
from sivit.cost import count_macs
from sivit.detect import DetectionConfig, Detector
from sivit.curve import plot_curve
from sivit.report import save_numbers
from sivit.study import Run, paired, percent, points, provenance, results_folder, run_grid, sign_figure, summarise, verdict
from sivit.train import TrainConfig
from sivit.vit import MODELS

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# Patches are small, so that an object is several cells wide even where four patches make one: objects of a photograph are.

# %%
SCENES = {"target": "objects", "config": {"objects": 3, "classes": 3}}
HARD_SCENES = {"target": "objects", "config": {"objects": 3, "rotation": 180.0, "texture": 0.15, "distractors": 4}}
PROFILES = {
    "quick": {
        "seeds": 2, "sizes": (32, 48), "resolutions": (24, 32, 48, 64), "test": {"length": 32},
        "vit": {"patch_size": 2, "dim": 32, "depth": 2, "heads": 4},
        "detector": {
            "pyramid": (1.0, 0.5, 0.25), "anchor_sizes": (4.0,), "pyramid_dim": 32, "anchor_samples": 32, "proposals": 24,
            "box_samples": 20, "box_dim": 128, "mask_layers": 2, "detections": 16,
        },
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 3e-3, "warmup": 0.15, "dataset_options": SCENES | {"length": 280}},
    },
    "cpu": {
        "seeds": 3, "sizes": (32, 64), "resolutions": (24, 32, 48, 64, 96), "test": {"length": 120},
        "vit": {"patch_size": 2, "dim": 48, "depth": 3, "heads": 3},
        "detector": {
            "pyramid": (1.0, 0.5, 0.25), "anchor_sizes": (4.0,), "pyramid_dim": 48, "anchor_samples": 64, "proposals": 64,
            "box_samples": 32, "box_dim": 256, "mask_layers": 2, "detections": 16,
        },
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 2e-3, "warmup": 0.15, "dataset_options": SCENES | {"length": 4000}},
    },
    "gpu": {
        "seeds": 3, "sizes": (64, 128), "resolutions": (48, 64, 96, 128, 192), "test": {"length": 500},
        "vit": {"patch_size": 4, "dim": 192, "depth": 6, "heads": 3},
        "detector": {
            "pyramid": (1.0, 0.5, 0.25), "anchor_sizes": (4.0,), "pyramid_dim": 128, "proposals": 200, "box_samples": 64,
            "box_dim": 512, "detections": 50,
        },
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "warmup": 0.1, "dataset_options": HARD_SCENES | {"length": 16_384}},
    },
}  # fmt: skip
COCO = {
    "sizes": (384, 640), "resolutions": (256, 384, 512, 640, 800), "test": {}, "detector": {"pyramid": (4.0, 2.0, 1.0, 0.5, 0.25)},
    "vit": {"patch_size": 16, "dim": 384, "depth": 12, "heads": 6},
    "train": {"epochs": 12, "batch_size": 16, "learning_rate": 2e-4, "dataset_options": {"root": root}, "workers": 8},
}  # fmt: skip
chosen = PROFILES[profile] | (COCO if dataset == "coco" else {})
METHODS = {
    "plain ViT": {},
    "ATM 1×1": {"merger": "atm", "merger_options": {"ratio": 1}},
    "ATM 2×2": {"merger": "atm", "merger_options": {"ratio": 2}},
}
LOOKS = dict(zip(METHODS, zip(("blue", "purple", "orange"), "ovD", strict=True), strict=True))


# %% [markdown]
# ## Runs

# %%
def run_for(method: str, seed: int) -> Run:
    "One method trained with one seed."
    recipe = TrainConfig(
        task="detection", task_options={"detector": chosen["detector"]}, model="vit_micro_patch4", dataset=dataset, schedule="per_batch",
        sizes=chosen["sizes"], seed=seed, evaluate_every=0, label_smoothing=0.0, **chosen["train"],
        model_options={"image_size": max(chosen["sizes"]), "position": "fuzzy", "pool": "mean", **chosen["vit"], **METHODS[method]},
    )  # fmt: skip
    return Run(recipe, test_options=chosen["test"], resolutions=chosen["resolutions"])


# %%
#| output: false
runs = {(method, seed): run_for(method, seed) for seed in range(chosen["seeds"]) for method in METHODS}
table = run_grid(list(runs.values()), results)
table["method"] = table.key.map({run.key: method for (method, _), run in runs.items()})
curves = {name: summarise(table, ["method"], measure=name) for name in ("map", "map_50", "mask_map", "mask_map_50")}
origin = provenance(table, profile)

# %% [markdown]
# ## Along resolution

# %%
#| label: fig-detection
#| fig-cap: "Average precision on unseen scenes against the side of the test picture, for boxes (left) and masks (right). Grey lines mark the two sizes seen in training; bands are 95 % intervals over seeds."
fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.3), sharey=True)
for name, title, ax in zip(("map", "mask_map"), ("boxes", "masks"), axes, strict=True):
    for method, (color, marker) in LOOKS.items():
        rows = curves[name][curves[name].method == method].rename(columns={"value": "size"})
        plot_curve(rows, "size", measure=name, seen=chosen["sizes"], ax=ax, label=method, color=PALETTE[color], marker=marker)
    ax.set(xlabel="side of the test picture, px", ylabel="average precision", title=title, ylim=(0, None))
    ax.get_legend().remove()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## The same in numbers

# %%
#| label: tbl-detection
#| tbl-cap: "Average precision in percent, mean over seeds, at the smallest test size, the larger training size and the largest test size; the operations of one picture there, with as many proposals and masks as the settings allow; and seconds of training."
places = {"small": min(chosen["resolutions"]), "seen": max(chosen["sizes"]), "large": max(chosen["resolutions"])}
columns = {}
for size in places.values():
    for name, title in (("map", "boxes"), ("map_50", "boxes, 0.50"), ("mask_map", "masks")):
        at = curves[name][curves[name].value == size].set_index("method")[name]
        columns[f"{title}, {size} px"] = 100 * at.loc[list(METHODS)]
stored = {method: json.loads((results / "runs" / f"{runs[method, 0].key}.json").read_text()) for method in METHODS}
macs = pd.DataFrame({place: {method: stored[method]["macs"][str(size)] for method in METHODS} for place, size in places.items()})
columns[f"10⁶ MACs, {places['large']} px"] = macs["large"] / 1e6
columns["training, s"] = table.drop_duplicates("key").groupby("method").train_seconds.mean()
Markdown(pd.DataFrame(columns).loc[list(METHODS)].rename_axis("method").reset_index().to_markdown(index=False, floatfmt=".1f"))

# %% [markdown]
# ## Seed by seed
#
# How many points the first method is ahead of the second where both begin with the same seed. An interval that holds zero leaves the question open.

# %%
#| label: tbl-detection-pairs
#| tbl-cap: "Mean difference in average precision, in points, with its 95 % interval over seeds."
PAIRS = {"merger": ("ATM 1×1", "plain ViT"), "ratio": ("ATM 2×2", "ATM 1×1"), "both": ("ATM 2×2", "plain ViT")}
compared = {}
for name in ("map", "mask_map"):
    for (pair, (first, second)), (place, size) in itertools.product(PAIRS.items(), places.items()):
        compared[pair, name, place] = paired(table[table.value == size], "method", first, second, [], name)
Markdown(pd.DataFrame({
    "comparison": [" against ".join(pair) for pair in PAIRS.values()],
    **{f"{title}, {size} px": [points(compared[pair, name, place]) for pair in PAIRS]
       for name, title in (("map", "boxes"), ("mask_map", "masks")) for place, size in places.items()},
}).to_markdown(index=False))  # fmt: skip

# %% [markdown]
# ## What merging saves
#
# In models as small as those above much of the cost is in the heads, which no merger touches. In a base model at the size of a COCO picture most of it is in the encoder. Its operations need no training to be counted, and ViTAR prints two
# totals to compare with; what exactly is in them the paper does not say.

# %%
#| label: tbl-detection-cost
#| tbl-cap: "Operations of Mask R-CNN on the base model for one picture of 800×1280 px, in 10⁹ MACs: counted here, and as printed in ViTAR's paper (Tables 2 and 3)."
path = results / "cost" / "detection-base.json"
if not path.exists():
    counted = {}
    for method, parts in METHODS.items():
        base = dataclasses.replace(MODELS["vit_base_patch16"](), **parts)
        detector = Detector(DetectionConfig(base, num_classes=80, masks=True))
        counted[method] = {"encoder": count_macs(detector.encoder, (800, 1280)), "all": count_macs(detector, (800, 1280))}
    write_atomic(path, json.dumps(counted, indent=1) + "\n")
counted = pd.DataFrame(json.loads(path.read_text())).T / 1e9
printed = pd.Series({"ATM 1×1": 836.0, "ATM 2×2": 421.0}, name="ViTAR's paper")
cost = pd.DataFrame({
    "encoder": counted["encoder"], "pyramid and heads": counted["all"] - counted["encoder"], "all": counted["all"],
    "over ATM 1×1": (counted["all"] / counted["all"]["ATM 1×1"]).map("{:.0%}".format),
    "ViTAR's paper": printed.reindex(counted.index).map("{:.0f}".format, na_action="ignore").fillna("–"),
    "theirs over ATM 1×1": (printed / printed["ATM 1×1"]).reindex(counted.index).map("{:.0%}".format, na_action="ignore").fillna("–"),
})  # fmt: skip
Markdown(cost.rename_axis("method").reset_index().to_markdown(index=False, floatfmt=".0f"))

# %% [markdown]
# ## Numbers for the paper

# %%
numbers = {
    "provenance": origin, "dataset": dataset, "epochs": f"{chosen['train']['epochs']}",
    "sizes": " and ".join(map(str, chosen["sizes"])), **{place: f"{size}" for place, size in places.items()},
}  # fmt: skip
short = dict(zip(METHODS, ("plain", "one", "two"), strict=True))
for (method, key), (place, size) in itertools.product(short.items(), places.items()):
    for name, curve in curves.items():
        row = curve[(curve.method == method) & (curve.value == size)].iloc[0]
        numbers[f"{key}_{name}_{place}"] = percent(row, measure=name)
for (pair, name, place), found in compared.items():
    numbers |= {f"{pair}_{name}_{place}": points(found), f"{pair}_{name}_{place}_verdict": verdict(found)}
for method, key in short.items():
    numbers |= {f"{key}_base_macs": f"{counted['all'][method]:.0f}", f"{key}_base_encoder_macs": f"{counted['encoder'][method]:.0f}"}
numbers["two_saves_base"] = f"{100 * (1 - counted['all']['ATM 2×2'] / counted['all']['ATM 1×1']):.0f} %"
numbers["two_saves_base_paper"] = f"{100 * (1 - printed['ATM 2×2'] / printed['ATM 1×1']):.0f} %"
numbers["two_saves_large"] = f"{100 * (1 - macs['large']['ATM 2×2'] / macs['large']['plain ViT']):.0f} %"
save_numbers("detection", numbers, results)
pd.Series(numbers)
