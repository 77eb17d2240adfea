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
profile = "quick"  # "quick": a minute on two cores; "cpu": ten minutes; "gpu": larger, for a GPU
results = "paper/results"  # folder of results, from the project's root
encodings = ""  # names separated by spaces, or "all"; "": those of the profile

# %% tags=["injected-parameters"]
# Parameters
profile = "cpu"


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
from sivit.curve import plot_curve
from sivit.report import save_numbers
from sivit.study import Run, areas, percent, provenance, results_folder, run_grid, sign_figure, summarise
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
SOME = "learned lookhere"
PROFILES = {
    "quick": {"seeds": 2, "depth": 3, "encodings": SOME, "task": DIGITS | {"epochs": 6}},
    "cpu": {"seeds": 3, "depth": 3, "encodings": "all", "task": DIGITS | {"epochs": 12}},
    "gpu": {"seeds": 5, "depth": 6, "encodings": "all", "task": SCENES | {"epochs": 60, "dataset_options": {"length": 50_000}}},
}
chosen = PROFILES[profile]
task = chosen["task"]
named = encodings or chosen["encodings"]
POSITIONS = list_positions() if named == "all" else [name for name in list_positions() if name in named.split()]

# %% [markdown]
# ## Runs
#
# With `all`, every encoding of the registry takes part; a new one joins by being registered.

# %%
#| output: false
runs = [
    Run(
        TrainConfig(
            model="vit_micro_patch4",
            model_options={"position": position, "pool": "mean", "image_size": max(sizes), "depth": chosen["depth"]},
            dataset=task["dataset"], dataset_options=task.get("dataset_options", {}), schedule=schedule, sizes=sizes,
            epochs=task["epochs"], learning_rate=task["learning_rate"], evaluate_every=0, seed=seed,
        ),
        test_options=task.get("test_options", {}), resolutions=task["resolutions"],
    )
    for seed in range(chosen["seeds"])
    for schedule, sizes in task["schedules"].items()
    for position in POSITIONS
]  # fmt: skip
table = run_grid(runs, results)
summary = summarise(table, ["schedule", "position"])
origin = provenance(table, profile)

# %% [markdown]
# ## Accuracy along resolution

# %%
#| label: fig-positions
#| fig-cap: "Accuracy against the side of the test picture for the position encodings of a plain transformer, by kind. Solid: trained at one size per batch, with 95 % intervals over seeds. Dashed: trained at one size. Black: no encoding, trained at one size per batch. Grey lines mark sizes seen by both."
KINDS = {
    "tables": ["learned", "factorized", "fuzzy"], "formulas": ["sincos", "fourier"], "convolutions": ["conditional", "glpe"],
    "learned offsets": ["rpb", "log_cpb", "shaw"], "distances": ["alibi", "lookhere"], "rotations": ["rope_axial", "rope_mixed"],
}  # fmt: skip
kinds = {kind: [name for name in names if name in POSITIONS] for kind, names in KINDS.items()}
kinds["others"] = sorted(set(POSITIONS) - {"none"}.union(*kinds.values()))
kinds = {kind: names for kind, names in kinds.items() if names}
seen = sorted(set.intersection(*map(set, task["schedules"].values())))
fig, axes = plt.subplots(-(-len(kinds) // 3), 3, figsize=(8.4, 3.0 * -(-len(kinds) // 3)), sharex=True, sharey=True, squeeze=False)
for ax, (kind, names) in zip(axes.flat, kinds.items()):
    for schedule, line in (("single", "--"), ("per_batch", "-")):
        for name in [*names, "none"] if schedule == "per_batch" and "none" in POSITIONS else names:
            rows = summary[(summary.schedule == schedule) & (summary.position == name)]
            style = look(name) if name != "none" else {"color": "black", "marker": ""}
            if schedule == "per_batch":
                plot_curve(rows.rename(columns={"value": "size"}), "size", seen=seen, ax=ax, label=name, **style)
            else:
                ax.plot(rows.value, rows.accuracy, line, lw=1.1, color=style["color"])
    ax.set(ylim=(0, 1.02), xlabel="side of the test picture, px" if ax in axes[-1] else None, ylabel="accuracy" if ax in axes[:, 0] else None)
    handles = dict(zip(*ax.get_legend_handles_labels()[::-1]))
    ax.legend([handles[name] for name in names], names, title=kind, ncols=len(names), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1)
for ax in axes.flat[len(kinds):]:
    ax.set_axis_off()
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## One number per encoding
#
# The area under the curve over the logarithm of the size: the accuracy to expect when the size is as likely to halve as to double.

# %%
#| label: tbl-positions
#| tbl-cap: "Area under the accuracy curve over log₂ of the side, in percent, and accuracy at the largest training size, after training at a single size and at one size per batch; means over seeds."
sizes = {schedule: max(sizes) for schedule, sizes in task["schedules"].items()}
area = 100 * areas(table).groupby(["schedule", "position"]).area.mean()
seen = 100 * summary.set_index(["schedule", "position", "value"]).accuracy
shown = pd.DataFrame({f"area, {schedule}": area[schedule] for schedule in sizes} | {f"largest seen size, {schedule}": seen[schedule].xs(size, level="value") for schedule, size in sizes.items()})
shown = shown.sort_values(shown.columns[1], ascending=False).rename_axis("encoding").reset_index()
Markdown(shown.to_markdown(index=False, floatfmt=".1f"))

# %% [markdown]
# ## Numbers for the paper

# %%
numbers = {"provenance": origin, "dataset": task["dataset"], "count": f"{len(POSITIONS)}"}
for schedule in task["schedules"]:
    for place, position in (("best", area[schedule].idxmax()), ("worst", area[schedule].idxmin())):
        numbers |= {f"{place}_{schedule}": position, f"{place}_{schedule}_area": f"{area[schedule, position]:.1f} %"}
    for position in POSITIONS:
        largest = summary[(summary.schedule == schedule) & (summary.position == position)].iloc[-1]
        numbers[f"{position}_{schedule}_large"] = percent(largest)
save_numbers("positions", numbers, results)
pd.Series(numbers)
