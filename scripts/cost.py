# ---
# title: "What does a larger picture cost?"
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
profile = "quick"  # "quick": minutes on two cores; "cpu": the larger model; "gpu": the same on a GPU
results = "paper/results"  # folder of results, from the project's root

# %% [markdown]
# Attention between all tokens grows with the fourth power of a picture's side. A merger that fixes the grid leaves only the patch embedding and its own passes to grow, and both are
# linear in the pixels. **Question:** how large is the difference in operations, and how much of it arrives as time?
#
# **Protocol.** Operations are counted exactly (multiply-accumulates of matrix products, convolutions and attention) and need no run. Time and memory are measured on this machine, one picture at a time, with
# the median of repeated forward passes and their quartiles.
#
# Run it yourself: `papermill nbs/experiments/cost.ipynb out.ipynb -p profile cpu`

# %%
import json

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown

from sivit.core import figure_style, look, write_atomic
from sivit.cost import cost_table
from sivit.report import save_numbers
from sivit.study import results_folder, sign_figure, surroundings
from sivit.vit import create_model

results = results_folder(results)
figure_style()

# %%
PROFILES = {
    "quick": {"model": "tiny_patch16", "sizes": (224, 320, 448, 640, 800, 1024), "repeats": 3},
    "cpu": {"model": "small_patch16", "sizes": (224, 320, 448, 640, 800, 1024), "repeats": 7},
    "gpu": {"model": "small_patch16", "sizes": (224, 448, 672, 896, 1024), "repeats": 30},
}
chosen = PROFILES[profile]
MERGERS = {"none": "plain ViT", "avgpool": "average pool", "convpool": "conv + pool", "atm": "ATM (ViTAR)"}

# %% [markdown]
# ## Measured
#
# The four models have the same blocks and differ in the merger alone, which brings every picture to 14×14 tokens. What was measured is kept with the results, so that figures can be drawn
# again without measuring again.

# %%
#| output: false
path = results / "cost" / f"{chosen['model']}-{profile}.json"
if not path.exists():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {merger: create_model(f"vit_{chosen['model']}", merger=merger, pool="mean").to(device) for merger in MERGERS}
    measured = cost_table(models, chosen["sizes"], repeats=chosen["repeats"], warmup=1)
    record = {"profile": profile, "model": chosen["model"], "rows": measured.to_dict("records"), **surroundings()}
    write_atomic(path, json.dumps(record, indent=1) + "\n")
record = json.loads(path.read_text())
table, origin = pd.DataFrame(record["rows"]), f"profile {profile} · {record['device']}"

# %%
#| label: fig-cost
#| fig-cap: "Operations (left) and time (right) of one forward pass against the side of the picture, both axes logarithmic. Bars are quartiles of repeated passes."
fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.3))
for merger, name in MERGERS.items():
    rows = table[table.model == merger]
    left.plot(rows["size"], rows.macs / 1e9, label=name, **look(merger))
    spread = [rows.latency_ms - rows.latency_low, rows.latency_high - rows.latency_ms]
    right.errorbar(rows["size"], rows.latency_ms, yerr=spread, capsize=2, label=name, **look(merger))
for ax, label in ((left, "10⁹ multiply-accumulates"), (right, "milliseconds per picture")):
    ax.set(xscale="log", yscale="log", xlabel="side of the picture, px", ylabel=label)
    ax.set_xticks(chosen["sizes"], [str(size) for size in chosen["sizes"]], fontsize=8)
    ax.minorticks_off()
left.legend(fontsize=8)
sign_figure(fig, origin)
plt.show()

# %%
#| label: tbl-cost
#| tbl-cap: "Cost of one forward pass of one picture: operations, median time, and the most memory that tensors held at once."
shown = pd.DataFrame({
    "merger": table.model.map(MERGERS), "side, px": table["size"], "10⁹ MACs": (table.macs / 1e9).round(2),
    "ms": table.latency_ms.round(0).astype(int), "peak, MiB": (table.peak_bytes / 2**20).round(0).astype(int),
})  # fmt: skip
Markdown(shown.to_markdown(index=False))

# %% [markdown]
# ## Numbers for the paper

# %%
cell = table.set_index(["model", "size"])
large, small = max(chosen["sizes"]), min(chosen["sizes"])
numbers = {
    "provenance": origin, "model": chosen["model"].split("_")[0], "small": f"{small}", "large": f"{large}",
    "plain_growth": f"{cell.macs['none', large] / cell.macs['none', small]:.0f}",
    "atm_growth": f"{cell.macs['atm', large] / cell.macs['atm', small]:.1f}",
    "atm_saves_macs": f"{cell.macs['none', large] / cell.macs['atm', large]:.1f}",
    "atm_saves_time": f"{cell.latency_ms['none', large] / cell.latency_ms['atm', large]:.1f}",
    "atm_overhead_small": f"{100 * (cell.macs['atm', small] / cell.macs['none', small] - 1):.0f} %",
}  # fmt: skip
save_numbers("cost", numbers, results)
pd.Series(numbers)
