# ---
# title: "Which position encoding survives a change of size?"
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
profile = "quick"  # "quick": minutes on two cores; "cpu": hours on two cores; "gpu": about an hour on one GPU
results = "paper/results"  # folder of results, from the project's root

# %% [markdown]
# At another size every encoding has to say something about places or offsets it was never trained on: a table is stretched, a formula is continued, a list of
# offsets is clipped. **Question:** which of these loses least, and does the answer depend on whether one size was seen in training, or several?
#
# **Protocol.** A plain transformer without a merger, so that encodings inside attention see the picture's grid, too. Every encoding is trained under two schedules, a single size and one
# size per batch, for the same number of epochs, and tested from half to four times the size that all models have seen. Accuracy is the mean over seeds with Student's 95 % interval.
#
# Run it yourself: `papermill nbs/experiments/positions.ipynb out.ipynb -p profile cpu`

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from sivit.core import figure_style, look
from sivit.evaluate import area_under_log_curve, plot_curve
from sivit.report import save_numbers
from sivit.study import Run, percent, provenance, results_folder, run_grid, summarise
from sivit.train import TrainConfig
from sivit.vit import list_positions

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings

# %%
DIGITS = {
    "dataset": "digits", "learning_rate": 2e-3, "schedules": {"single": (16,), "per_batch": (12, 16)},
    "resolutions": (8, 12, 16, 20, 24, 32, 48, 64),
}  # fmt: skip
SCENES = {
    "dataset": "scenes", "learning_rate": 1e-3, "schedules": {"single": (32,), "per_batch": (24, 32)},
    "test_options": {"length": 1000}, "resolutions": (16, 24, 32, 40, 48, 64, 96, 128),
}  # fmt: skip
PROFILES = {
    "quick": {"seeds": 3, "depth": 3, "task": DIGITS | {"epochs": 12}},
    "cpu": {"seeds": 3, "depth": 4, "task": SCENES | {"epochs": 10, "dataset_options": {"length": 12_000}}},
    "gpu": {"seeds": 5, "depth": 6, "task": SCENES | {"epochs": 60, "dataset_options": {"length": 50_000}}},
}
chosen = PROFILES[profile]
task = chosen["task"]
POSITIONS = list_positions()

# %% [markdown]
# ## Runs
#
# Every encoding of the registry takes part; a new one joins by being registered.

# %%
#| output: false
runs = [
    Run(
        TrainConfig(
            model="vit_micro_patch4",
            model_options={"position": position, "pool": "mean", "image_size": max(sizes), "depth": chosen["depth"]},
            dataset=task["dataset"], dataset_options=task.get("dataset_options", {}), schedule=schedule, sizes=sizes,
            epochs=task["epochs"], learning_rate=task["learning_rate"], seed=seed,
        ),
        test_options=task.get("test_options", {}), resolutions=task["resolutions"],
    )
    for seed in range(chosen["seeds"])
    for schedule, sizes in task["schedules"].items()
    for position in POSITIONS
]  # fmt: skip
table = run_grid(runs, results)
summary = summarise(table, ["schedule", "position"])

# %% [markdown]
# ## Accuracy along resolution

# %%
#| label: fig-positions
#| fig-cap: "Accuracy against the side of the test picture for every position encoding of a plain transformer, trained at one size (left) and at one size per batch (right). Grey lines mark sizes seen in training; bands are 95 % intervals over seeds."
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
for ax, (schedule, sizes) in zip(axes, task["schedules"].items()):
    for i, position in enumerate(POSITIONS):
        rows = summary[(summary.schedule == schedule) & (summary.position == position)]
        style = look(position) if position != "none" else {"color": "#7f7f7f", "marker": "x"}
        plot_curve(rows.rename(columns={"value": "size"}), "size", seen=sizes if i == 0 else (), ax=ax, label=position, **style)
    seen = " and ".join(map(str, sizes))
    ax.set(xlabel="side of the test picture, px", ylabel="accuracy" if ax is axes[0] else None, title=f"trained at {seen} px", ylim=(0, 1))
    ax.get_legend().remove()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
plt.show()

# %% [markdown]
# ## One number per encoding
#
# The area under the curve over the logarithm of the size: the accuracy to expect when the size is as likely to halve as to double.

# %%
#| label: tbl-positions
#| tbl-cap: "Area under the accuracy curve over log₂ of the side, in percent, and accuracy at the largest training size; means over seeds."
sizes = {schedule: max(sizes) for schedule, sizes in task["schedules"].items()}
rows = []
for (schedule, position), curve in summary.groupby(["schedule", "position"], sort=False):
    area = area_under_log_curve(curve.value.tolist(), curve.accuracy.tolist())
    at_seen = curve[curve.value == sizes[schedule]].accuracy.item()
    rows.append({"schedule": schedule, "encoding": position, "area": round(100 * area, 1), "at the seen size": round(100 * at_seen, 1)})
areas = pd.DataFrame(rows).sort_values(["schedule", "area"], ascending=[False, False])
Markdown(areas.to_markdown(index=False, floatfmt=".1f"))

# %% [markdown]
# ## Numbers for the paper

# %%
numbers = {"provenance": provenance(table, profile), "dataset": task["dataset"]}
for schedule in task["schedules"]:
    ranked = areas[areas.schedule == schedule]
    best, worst = ranked.iloc[0], ranked.iloc[-1]
    numbers |= {f"best_{schedule}": best.encoding, f"best_{schedule}_area": f"{best.area:.1f} %"}
    numbers |= {f"worst_{schedule}": worst.encoding, f"worst_{schedule}_area": f"{worst.area:.1f} %"}
    for position in POSITIONS:
        largest = summary[(summary.schedule == schedule) & (summary.position == position)].iloc[-1]
        numbers[f"{position}_{schedule}_large"] = percent(largest)
save_numbers("positions", numbers, results)
pd.Series(numbers)
