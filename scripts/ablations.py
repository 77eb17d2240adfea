# ---
# title: "Does the answer hold? Budgets, training sizes, model sizes, tasks"
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
profile = "quick"  # "quick": a minute on two cores; "cpu": an hour on two cores; "gpu": larger, for a GPU
results = "paper/results"  # folder of results, from the project's root

# %% tags=["injected-parameters"]
# Parameters
profile = "cpu"


# %% [markdown]
# The [grid of encodings, mergers and schedules](factors.ipynb) was trained for equal epochs, at three sizes, with one small model, for one task. **Question:** which of its answers depend on that?
#
# **Protocol.** The grid's recipe, in which one thing is changed: the budget is compute instead of epochs; the number of training sizes goes from one to five; the merger's open choices are taken the other way; the encoder is deeper or wider; the task is segmentation.
# Everything else, the pictures included, stays as it was, so that many of the runs are the grid's own. Intervals are over seeds; differences are paired by seed.
#
# Run it yourself: `papermill nbs/experiments/ablations.ipynb out.ipynb -p profile cpu`

# %%
import itertools

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from sivit.core import PALETTE, figure_style, look
from sivit.cost import count_macs
from sivit.report import save_numbers
from sivit.study import Run, areas, paired, percent, points, provenance, results_folder, run_grid, sign_figure, summarise
from sivit.train import TrainConfig
from sivit.vit import create_model

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings

# %%
SIDE, SIZES, GRID = 24, (12, 16, 24), (3, 3)
POINTS = {"resolutions": (8, 12, 16, 20, 24, 32, 48, 96), "object_scales": (0.35, 0.5, 0.7, 1, 1.2), "canvases": (0.5, 0.75, 1, 1.5, 2)}
SEGMENTATION = {"length": 448, "epochs": 4, "test": 48, "side": 40, "sizes": (20, 40), "resolutions": (16, 20, 28, 40, 80), "encoder": {"patch_size": 4, "dim": 48, "depth": 2, "heads": 3}}
PROFILES = {
    "quick": {
        "seeds": 2, "length": 320, "points": {"resolutions": (8, 12, 16, 24, 48)}, "epochs": 2, "depth": 1, "scenes": {"config": {"classes": 4, "half_width": [0.3, 0.45]}}, "test": 60, "train": {"batch_size": 32, "learning_rate": 2e-3},
        "compute": (("fuzzy",), 2), "sets": ((24,), (12, 16, 24)), "set_epochs": 2, "encodings": ("fuzzy",), "models": {"depth 1": {}, "depth 2": {"depth": 2}},
        "segmentation": SEGMENTATION | {"encodings": ("fuzzy",), "length": 224, "epochs": 2},
    },
    "cpu": {
        "seeds": 3, "points": POINTS, "length": 6400, "epochs": 3, "depth": 2, "scenes": {"config": {"classes": 10, "half_width": [0.25, 0.4]}}, "test": 300, "train": {"batch_size": 32, "learning_rate": 2e-3},
        "compute": (("fuzzy", "log_cpb"), 5), "sets": ((24,), (12, 24), (12, 16, 24), (12, 16, 20, 24), (12, 16, 24, 32, 48)), "set_epochs": 6, "encodings": ("learned", "fuzzy", "log_cpb", "lookhere", "rope_axial"),
        "models": {"depth 1": {"depth": 1}, "depth 2": {}, "depth 4": {"depth": 4}, "twice as wide": {"dim": 128, "heads": 8}},
        "segmentation": SEGMENTATION | {"encodings": ("learned", "fuzzy", "log_cpb", "lookhere", "rope_axial")},
    },
    "gpu": {
        "seeds": 5, "points": POINTS, "length": 50_000, "epochs": 20, "depth": 6, "scenes": {"config": "hard", "device": "cuda"}, "test": 2000, "train": {"batch_size": 128, "learning_rate": 1e-3},
        "compute": (("fuzzy", "log_cpb"), 34), "sets": ((24,), (12, 24), (12, 16, 24), (12, 16, 20, 24), (12, 16, 24, 32, 48)), "set_epochs": 40, "encodings": ("learned", "fuzzy", "log_cpb", "lookhere", "rope_axial"),
        "models": {"depth 3": {"depth": 3}, "depth 6": {}, "depth 12": {"depth": 12}, "three times as wide": {"dim": 192, "heads": 6}},
        "segmentation": SEGMENTATION | {"encodings": ("learned", "fuzzy", "log_cpb", "lookhere", "rope_axial"), "length": 16_384, "epochs": 10, "test": 1024},
    },
}  # fmt: skip
chosen = PROFILES[profile]
seeds = range(chosen["seeds"])
NAMES = {"none": "plain", "atm": "ATM"}
SCHEDULES = {"single": "one size", "per_batch": "one size per batch", "all": "all sizes, consistent"}


# %% [markdown]
# ## Runs

# %%
def encoder(position: str, merger: str, **changed) -> dict:
    "Options of the grid's encoder; a merger brings every picture to the grid of the smallest training size."
    merged = {} if merger == "none" else {"merged_grid": GRID}
    return {"stem": "hybrid", "position": position, "merger": merger, "pool": "mean", "image_size": SIDE, "depth": chosen["depth"]} | merged | changed


def run_of(model: dict, seed: int, schedule: str = "per_batch", sizes: tuple = SIZES, **changed) -> Run:
    "A run by the grid's recipe, or with settings of it changed."
    recipe = {
        "model": "vit_micro_patch4", "model_options": model, "dataset": "scenes", "dataset_options": {"length": chosen["length"], **chosen["scenes"]},
        "schedule": schedule, "sizes": sizes, "epochs": chosen["epochs"], "evaluate_every": 0, "seed": seed, **chosen["train"],
    }  # fmt: skip
    return Run(TrainConfig(**(recipe | changed)), test_options={"length": chosen["test"]}, **chosen["points"])


def trained(cells: dict[tuple, Run], factors: list[str]) -> pd.DataFrame:
    "The measured points of named runs, with a column for every factor in the names."
    table = run_grid(list(cells.values()), results)
    for i, name in enumerate(factors):
        if name not in table:
            table.insert(0, name, table.key.map({run.key: names[i] for names, run in cells.items()}))
    return table


def where(frame: pd.DataFrame, **same) -> pd.DataFrame:
    "The rows whose factors have these values."
    return frame[(frame[list(same)] == pd.Series(same)).all(axis=1)]


def told(frame: pd.DataFrame, factor: str, first: str, second: str, by: tuple[str, ...] = ()) -> str:
    "A paired difference in points, with its interval over seeds."
    return points(paired(frame, factor, first, second, by))


# %% [markdown]
# ## At equal compute
#
# A batch at all sizes costs as much as a batch at each of them, one at a small size less than one at a large, and a merger takes tokens out of the blocks. Here every run may spend the operations that the plain model with the same encoding needs for the stated number of epochs at the largest size alone, as nearly as whole epochs allow. What is cheaper goes on for longer.

# %%
#| output: false
encodings, epochs = chosen["compute"]
SPENT = {
    (position, merger): count_macs(create_model("vit_micro_patch4", num_classes=10, **encoder(position, merger)), (3, SIDE, SIDE))
    for position, merger in itertools.product(encodings, NAMES)
}  # fmt: skip
cells = {
    (position, merger, schedule, seed): run_of(
        encoder(position, merger), seed, schedule, (SIDE,) if schedule == "single" else SIZES, budget="compute", budget_size=SIDE, epochs=round(epochs * SPENT[position, "none"] / SPENT[position, merger])
    )
    for seed, position, merger, schedule in itertools.product(seeds, encodings, NAMES, SCHEDULES)
}  # fmt: skip
FACTORS = ["position", "merger", "schedule", "seed"]
compute = trained(cells, FACTORS)
equal_epochs = trained({name: run_of(encoder(*name[:2]), name[3], name[2], cells[name].train.sizes) for name in cells}, FACTORS)
AXES = {"resolution": "resolution", "object_scale": "object scale", "canvas": "canvas"}
measured = {axis: name for axis, name in AXES.items() if axis in set(compute.axis)}
budgets = {budget: {axis: areas(where(frame, axis=axis)) for axis in measured} for budget, frame in (("equal epochs", equal_epochs), ("equal compute", compute))}

# %%
#| label: fig-ablations-compute
#| fig-cap: "Area along each axis by schedule, without a merger and behind ATM: with equal operations for every run (filled), and trained for equal epochs (open). Mean over encodings and seeds; small dots are seeds at equal operations."
fig, axes = plt.subplots(1, len(measured), figsize=(1.4 + 2.4 * len(measured), 3.2), sharey=True, squeeze=False)
for ax, (axis, title) in zip(axes[0], measured.items(), strict=True):
    for (budget, frames), (shift, merger) in itertools.product(budgets.items(), ((-0.13, "none"), (0.13, "atm"))):
        of_seeds = 100 * where(frames[axis], merger=merger).groupby(["schedule", "seed"]).area.mean().unstack().loc[list(SCHEDULES)]
        places, style = [i + shift for i in range(len(SCHEDULES))], look(merger) | {"linestyle": ""}
        filled = budget == "equal compute"
        ax.plot(places, of_seeds.mean(axis=1), label=f"{NAMES[merger]}, {budget}", **style | {"markersize": 7} | ({} if filled else {"markerfacecolor": "none"}))
        for seed in of_seeds if filled else []:
            ax.plot(places, of_seeds[seed], **style | {"marker": ".", "markersize": 4, "alpha": 0.7})
    ax.set_xticks(range(len(SCHEDULES)), ["one\nsize", "one per\nbatch", "all\nsizes"])
    ax.set(title=title, ylim=(0, 100), xlim=(-0.5, 2.5))
axes[0, 0].set(ylabel="area, %")
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
sign_figure(fig, provenance(compute, profile))
plt.show()

# %%
#| label: tbl-ablations-compute
#| tbl-cap: "Differences in area, in points with 95 % intervals over seeds, at equal epochs and at equal compute."
questions = {
    f"{first}_over_{second}_{merger}": (f"{NAMES[merger]}: {SCHEDULES[first]} − {SCHEDULES[second]}", "schedule", first, second, {"merger": merger})
    for merger, (first, second) in itertools.product(NAMES, (("per_batch", "single"), ("all", "single"), ("per_batch", "all")))
}  # fmt: skip
questions |= {f"atm_over_none_{schedule}": (f"ATM − plain: {SCHEDULES[schedule]}", "merger", "atm", "none", {"schedule": schedule}) for schedule in SCHEDULES}
answers = {
    (name, budget): {axis: told(where(frames[axis], **same), factor, first, second, ("position",)) for axis in measured}
    for (name, (_, factor, first, second, same)), (budget, frames) in itertools.product(questions.items(), budgets.items())
}  # fmt: skip
rows = [{"compared": questions[name][0], "budget": budget, **{measured[axis]: answer for axis, answer in found.items()}} for (name, budget), found in answers.items()]
Markdown(pd.DataFrame(rows).to_markdown(index=False))

# %% [markdown]
# ## How many sizes?
#
# A merger that has met a pass in training may know what to do with it. With more sizes between the same bounds it meets more ways to fill a gap with cells of one token; up to 48 px it learns passes that halve twice.

# %%
#| output: false
sets = {", ".join(map(str, sizes)): sizes for sizes in chosen["sets"]}
cells = {
    (name, merger, seed): run_of(encoder("fuzzy", merger), seed, "single" if len(sizes) == 1 else "per_batch", sizes, epochs=chosen["set_epochs"])
    for seed, merger, (name, sizes) in itertools.product(seeds, NAMES, sets.items())
}  # fmt: skip
SETS = ["set", "merger", "seed"]
several = trained(cells, SETS)
several_area = areas(where(several, axis="resolution"))
by_set = summarise(several_area, SETS[:2], measure="area").set_index(SETS[:2])

# %%
#| label: fig-ablations-sizes
#| fig-cap: "Accuracy along the resolution by the sizes shown in training (one size per batch, fuzzy positions, equal epochs), without a merger and behind ATM. Bands are 95 % intervals over seeds; ticks under the curves mark the sizes of each set in its colour."
curves = summarise(several[several.axis == "resolution"], SETS[:2])
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
shades = plt.get_cmap("viridis")([0.9 - 0.8 * i / max(1, len(sets) - 1) for i in range(len(sets))])
for ax, merger in zip(axes, NAMES, strict=True):
    for i, ((name, sizes), colour) in enumerate(zip(sets.items(), shades, strict=True)):
        rows = where(curves, set=name, merger=merger)
        ax.plot(rows.value, 100 * rows.accuracy, "o-", ms=4, color=colour, label=f"{name} px")
        ax.fill_between(rows.value, 100 * rows.low, 100 * rows.high, color=colour, alpha=0.12, linewidth=0)
        ax.plot(sizes, [-4 - 4 * i] * len(sizes), "|", color=colour, ms=5, mew=2)
    ax.set_xscale("log", base=2)
    ax.set_xticks(chosen["points"]["resolutions"], chosen["points"]["resolutions"])
    ax.minorticks_off()
    ax.set(title=NAMES[merger], xlabel="side of the test picture, px", ylim=(-4 - 4 * len(sets), 102))
    ax.set_yticks(range(0, 101, 20))
axes[0].set(ylabel="accuracy, %")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
sign_figure(fig, provenance(several, profile))
plt.show()

# %%
#| label: tbl-ablations-sizes
#| tbl-cap: "Area along the resolution by the sizes shown in training, in percent with 95 % intervals over seeds, and the paired difference between the two in points."
rows = [
    {"sizes, px": name, **{NAMES[merger]: percent(by_set.loc[name, merger], measure="area") for merger in NAMES}, "ATM − plain": told(where(several_area, set=name), "merger", "atm", "none")}
    for name in sets
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False))

# %% [markdown]
# ## What the paper leaves open
#
# ViTAR does not say what an empty slot of a cell is to attention, nor whether a last pass of single tokens follows when the grid is reached; and its figure puts all cells of one token first, which bends the picture ([chapter](../07_merge.ipynb)). Each is taken the other way, with fuzzy positions and one size per batch.

# %%
#| output: false
CHOICES = {"as printed": {}, "spread evenly": {"padding": "even"}, "empty slots attended to": {"masked": False}, "a last pass": {"final_pass": True}}
cells = {
    (name, seed): run_of(encoder("fuzzy", "atm", **({"merger_options": options} if options else {})), seed, epochs=chosen["set_epochs"])
    for seed, (name, options) in itertools.product(seeds, CHOICES.items())
}  # fmt: skip
open_choices = trained(cells, ["choice", "seed"])
choice_area = areas(where(open_choices, axis="resolution"))

# %%
#| label: tbl-ablations-choices
#| tbl-cap: "ATM's open choices: accuracy at the largest training size, at half and at twice of it, area along the resolution, and the paired difference of the area from what is printed, in points. 95 % intervals over seeds."
at = summarise(open_choices[open_choices.axis == "resolution"], ["choice"]).set_index(["choice", "value"])
whole = summarise(choice_area, ["choice"], measure="area").set_index("choice")
rows = [
    {"choice": name, **{f"{side} px": percent(at.loc[name, side]) for side in (SIDE // 2, SIDE, 2 * SIDE)}, "area": percent(whole.loc[name], measure="area"),
     "difference": "" if name == "as printed" else told(choice_area, "choice", name, "as printed")}
    for name in CHOICES
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False))

# %% [markdown]
# ## Does depth change the order?
#
# Encodings inside attention speak again in every block, one on the input map speaks once. A deeper encoder could favour either.

# %%
#| output: false
cells = {
    (name, position, seed): run_of(encoder(position, "none", **changed), seed)
    for seed, position, (name, changed) in itertools.product(seeds, chosen["encodings"], chosen["models"].items())
}  # fmt: skip
MODELS = ["size", "position", "seed"]
deeper = areas(where(trained(cells, MODELS), axis="resolution"))

# %%
#| label: fig-ablations-depth
#| fig-cap: "Area along the resolution by encoding and by the size of the encoder, plain transformers trained at one size per batch. 95 % intervals over seeds."
by_size = summarise(deeper, MODELS[:2], measure="area")
fig, ax = plt.subplots(figsize=(6.4, 2.9))
for i, position in enumerate(chosen["encodings"]):
    rows = where(by_size, position=position).set_index("size").loc[list(chosen["models"])]
    places = [j + (i - (len(chosen["encodings"]) - 1) / 2) * 0.12 for j in range(len(rows))]
    ax.errorbar(places, 100 * rows.area, yerr=[100 * (rows.area - rows.low), 100 * (rows.high - rows.area)], capsize=2, label=position, **look(position) | {"color": list(PALETTE.values())[i], "linestyle": ""})
ax.set_xticks(range(len(chosen["models"])), chosen["models"])
ax.set(ylabel="area along resolution, %", ylim=(0, 100), xlabel="encoder")
fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=len(chosen["encodings"]))
ax.set_xlim(-0.5, len(chosen["models"]) - 0.5)
sign_figure(fig, provenance(deeper, profile))
plt.show()

# %% [markdown]
# ## Segmentation
#
# A mask has a place in every pixel, which asks more of positions than a label does. Encodings cross two schedules and two ways to the mask: from the plain transformer's tokens, and from tokens that ATM has merged to a fixed grid and a learned layer has [unmerged](../15_segment.ipynb) again.

# %%
#| output: false
asked = chosen["segmentation"]
WAYS = {"plain": ({}, {}), "merged, unmerged": ({"merger": "atm", "merged_grid": (5, 5), "merger_options": {"padding": "even"}}, {"upsample": "unmerge"})}


def segmentation(position: str, way: str, schedule: str, seed: int) -> Run:
    "A small encoder with a linear head, on scenes of three objects in two classes."
    vit, head = WAYS[way]
    recipe = TrainConfig(
        task="segmentation", task_options=head, model="vit_micro_patch4", dataset="scenes", schedule=schedule, sizes=(asked["side"],) if schedule == "single" else asked["sizes"],
        dataset_options={"target": "mask", "config": {"objects": 3, "classes": 2}, "length": asked["length"]}, model_options={"image_size": asked["side"], "position": position, "pool": "mean", **asked["encoder"], **vit},
        label_smoothing=0.0, evaluate_every=0, seed=seed, epochs=asked["epochs"], batch_size=16, learning_rate=4e-3,
    )  # fmt: skip
    return Run(recipe, test_options={"length": asked["test"]}, resolutions=asked["resolutions"])


TASK = ["position", "way", "schedule", "seed"]
masks = trained({cell: segmentation(*cell) for cell in itertools.product(asked["encodings"], WAYS, ("single", "per_batch"), seeds)}, TASK)
masks_area = areas(masks, "miou")

# %%
#| label: tbl-ablations-segmentation
#| tbl-cap: "Mean IoU at the training size and at twice of it, and its area along the resolution, in percent with 95 % intervals over seeds: encodings, two ways to the mask, two schedules."
at = summarise(masks, TASK[:3], measure="miou").set_index([*TASK[:3], "value"])
whole = summarise(masks_area, TASK[:3], measure="area")
rows = [
    {"encoding": row.position, "way": row.way, "schedule": SCHEDULES[row.schedule], **{f"{side} px": percent(at.loc[row.position, row.way, row.schedule, side], measure="miou") for side in (asked["side"], 2 * asked["side"])},
     "area": percent(row, measure="area")}
    for _, row in whole.iterrows()
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False))

# %% [markdown]
# ## Numbers for the paper

# %%
tables = [compute, equal_epochs, several, open_choices, deeper, masks]
numbers = {
    "provenance": provenance(pd.concat(tables), profile), "runs": f"{pd.concat(tables).key.nunique()}", "compute_epochs": f"{epochs}", "set_epochs": f"{chosen['set_epochs']}",
    "encodings": ", ".join(encodings), "depth_encodings": f"{len(chosen['encodings'])}",
}  # fmt: skip
spent = compute.drop_duplicates("key").set_index(FACTORS).training_forward_macs
numbers["compute_spread"] = f"{100 * max(abs(macs / spent[name[0], 'none', 'single', name[3]] - 1) for name, macs in spent.items()):.0f} %"
numbers |= {f"{axis}_{name}_{budget.split()[1]}": found.get(axis, "not run in this profile") for (name, budget), found in answers.items() for axis in AXES}
first, last = next(iter(sets)), list(sets)[-1]
for label, name in (("one", first), ("most", last)):
    numbers |= {f"{label}_sizes": name} | {f"{label}_{NAMES[merger].lower()}": percent(by_set.loc[name, merger], measure="area") for merger in NAMES}
    numbers[f"{label}_atm_over_plain"] = told(where(several_area, set=name), "merger", "atm", "none")
reached = summarise(where(several, axis="resolution", value=SIDE), SETS[:2]).set_index(SETS[:2])
for merger in NAMES:
    numbers[f"most_{NAMES[merger].lower()}_side"] = percent(reached.loc[last, merger])
    numbers[f"sizes_gain_{NAMES[merger].lower()}"] = told(where(several_area, merger=merger), "set", last, first)
for name, key in zip(list(CHOICES)[1:], ("even", "unmasked", "last"), strict=True):
    numbers[f"choice_{key}"] = told(choice_area, "choice", name, "as printed")
depths = {name: changed.get("depth", chosen["depth"]) for name, changed in chosen["models"].items()}
for label, name in (("shallow", min(depths, key=depths.get)), ("deep", max(depths, key=depths.get))):
    ranked = where(by_size, size=name).sort_values("area", ascending=False)
    numbers[label] = name
    for place, row in (("best", ranked.iloc[0]), ("worst", ranked.iloc[-1])):
        numbers |= {f"{label}_{place}": row.position, f"{label}_{place}_area": percent(row, measure="area")}
for way, label in zip(WAYS, ("plain", "merged"), strict=True):
    numbers[f"masks_several_{label}"] = told(where(masks_area, way=way), "schedule", "per_batch", "single", ("position",))
numbers["masks_merged"] = told(where(masks_area, schedule="per_batch"), "way", "merged, unmerged", "plain", ("position",))
for schedule in ("single", "per_batch"):
    ranked = where(whole, way="plain", schedule=schedule).sort_values("area", ascending=False)
    for label, row in (("best", ranked.iloc[0]), ("worst", ranked.iloc[-1])):
        numbers |= {f"masks_{label}_{schedule}": row.position, f"masks_{label}_{schedule}_area": percent(row, measure="area")}
own, rival = create_model("sivit_micro_patch4").config.position, encodings[-1]
wide = max(chosen["models"], key=lambda name: chosen["models"][name].get("dim", 0))
plain = next(name for name, changed in chosen["models"].items() if not changed)  # the grid's own encoder
compared = {"compute": where(budgets["equal compute"]["resolution"], merger="none", schedule="per_batch")} | {label: where(deeper, size=size) for label, size in (("grid", plain), ("deep", numbers["deep"]), ("wide", wide))}
for label, frame in compared.items():
    there = own != rival and {own, rival} <= set(frame.position)
    numbers[f"own_over_rival_{label}"] = told(frame, "position", own, rival) if there else "not run in this profile"
masks_own = where(whole, position=own, way="plain", schedule="per_batch").iloc[0]
numbers |= {"rival": rival if rival != own else "none in this profile", "wide": wide, "rival_costs": f"{100 * (SPENT[rival, 'none'] / SPENT[encodings[0], 'none'] - 1):.0f} %", "masks_own_per_batch_area": percent(masks_own, measure="area")}
save_numbers("ablations", numbers, results)
pd.Series(numbers)
