# ---
# title: "What does masked pre-training give?"
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

# %% tags=["injected-parameters"]
# Parameters
profile = "cpu"


# %% [markdown]
# [ViTAR](https://arxiv.org/abs/2403.18361) reports that fuzzy positions go well with masked pre-training, and sine-cosine positions less (its Table 8). **Questions:** which encoding can still fill in hidden patches at sizes that
# pre-training never showed? And does an encoder that begins there end up better, at the size it was trained at and at others?
#
# **Protocol.** All training is at one size. A [masked autoencoder](../17_mae.ipynb) is trained without labels, three quarters of the tokens hidden; encoder and decoder have the same kind of positions, so that what happens at other sizes is the
# encoding's doing. Targets are pixels as they are: of a patch of few pixels and hardly more than one colour, normalising would leave little but the hue. The encoder then goes on to classification, on the same digits in the profile `quick`, and on fewer textured
# scenes than it has seen without labels in the others. The comparison from scratch has **like compute**: so many epochs more that the forward passes of the whole cost
# as much as with pre-training. In the larger profiles there is another one with the **same epochs**, which takes the pre-training away and leaves the rest as it is. Means over seeds with Student's 95 % interval; differences are taken seed by seed.
#
# Run it yourself: `papermill nbs/experiments/pretraining.ipynb out.ipynb -p profile cpu`

# %%
import dataclasses

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from sivit.core import figure_style, look
from sivit.cost import count_macs
from sivit.curve import plot_curve
from sivit.report import save_numbers
from sivit.study import Run, areas, paired, percent, points, provenance, results_folder, run_grid, sign_figure, summarise, verdict
from sivit.task import create_task
from sivit.train import TrainConfig

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings

# %%
POSITIONS = ("learned", "sincos", "fuzzy")
TEXTURED = {"config": {"classes": 6, "texture": 0.1, "background_texture": 0.1}}
PROFILES = {
    "quick": {
        "seeds": 2, "dataset": "digits", "side": 16, "resolutions": (12, 16, 24, 40), "learning_rate": 4e-3, "batch_size": 64,
        "encoder": {"patch_size": 4, "dim": 48, "depth": 2, "heads": 4}, "decoder": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4},
        "pretraining": {"epochs": 5}, "tuning": {"epochs": 5}, "test": {}, "same_epochs": False,
    },
    "cpu": {
        "seeds": 3, "dataset": "scenes", "side": 24, "resolutions": (12, 16, 24, 36, 48, 72, 96), "learning_rate": 3e-3, "batch_size": 64,
        "encoder": {"patch_size": 4, "dim": 64, "depth": 3, "heads": 4}, "decoder": {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 4},
        "pretraining": {"epochs": 10, "dataset_options": TEXTURED | {"length": 8192}},
        "tuning": {"epochs": 25, "dataset_options": TEXTURED | {"length": 1024}}, "test": {"length": 1000}, "same_epochs": True,
    },
    "gpu": {
        "seeds": 3, "dataset": "scenes", "side": 64, "resolutions": (32, 48, 64, 96, 128, 192, 256), "learning_rate": 1e-3, "batch_size": 256,
        "encoder": {"patch_size": 8, "dim": 192, "depth": 6, "heads": 6}, "decoder": {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 6},
        "pretraining": {"epochs": 40, "dataset_options": {"config": "hard", "device": "cuda", "length": 50_000}},
        "tuning": {"epochs": 50, "dataset_options": {"config": "hard", "device": "cuda", "length": 10_000}}, "test": {"length": 2000}, "same_epochs": True,
    },
}  # fmt: skip
chosen = PROFILES[profile]


# %% [markdown]
# ## Runs
#
# How many epochs like compute is follows from what one picture costs each of the two models.

# %%
def pretraining(position: str, seed: int) -> TrainConfig:
    "Hidden patches from visible ones."
    return TrainConfig(
        model="vit_micro_patch4", model_options={**chosen["encoder"], "image_size": chosen["side"], "position": position, "pool": "mean"},
        dataset=chosen["dataset"], schedule="single", sizes=(chosen["side"],), batch_size=chosen["batch_size"],
        learning_rate=chosen["learning_rate"], evaluate_every=0, seed=seed, task="pretraining",
        task_options={**chosen["decoder"], "decoder_position": position, "normalise_target": False}, **chosen["pretraining"],
    )  # fmt: skip


def tuning(position: str, seed: int, extra_epochs: int = 0) -> TrainConfig:
    "Classes from labelled pictures."
    options = chosen["tuning"] | {"epochs": chosen["tuning"]["epochs"] + extra_epochs}
    return dataclasses.replace(pretraining(position, seed), task="classification", task_options={}, **options)


def epoch(config: TrainConfig) -> int:
    "Forward operations of one epoch."
    pictures = create_task(config).dataset("train")
    return len(pictures) * count_macs(create_task(config).model(pictures), (pictures.channels, chosen["side"], chosen["side"]))


before, after = pretraining(POSITIONS[0], 0), tuning(POSITIONS[0], 0)
extra = round(before.epochs * epoch(before) / epoch(after))

# %%
#| output: false
measured = {"test_options": chosen["test"], "resolutions": chosen["resolutions"]}
runs = {}
for seed in range(chosen["seeds"]):
    for position in POSITIONS:
        before = pretraining(position, seed)
        runs[Run(before, **measured).key] = "masked", Run(before, **measured)
        arms = {
            "pre-trained": Run(tuning(position, seed), **measured, pretraining=before),
            "scratch, like compute": Run(tuning(position, seed, extra), **measured),
        }
        if chosen["same_epochs"]:
            arms["scratch, same epochs"] = Run(tuning(position, seed), **measured)
        runs |= {run.key: (arm, run) for arm, run in arms.items()}
table = run_grid([run for _, run in runs.values()], results)
table.insert(0, "arm", table.key.map({key: arm for key, (arm, _) in runs.items()}))
ARMS = [arm for arm in table.arm.unique() if arm != "masked"]
masked = summarise(table[table.arm == "masked"], ["position"], measure="explained", bounds=(-float("inf"), 1.0))
labelled = summarise(table[table.arm != "masked"], ["arm", "position"])
origin = provenance(table, profile)

# %% [markdown]
# ## Along resolution

# %%
#| label: fig-pretraining
#| fig-cap: "Left: share of the variation in hidden patches that is explained, against the side of the picture, by position encoding. The others: accuracy of the classifier that begins with the pre-trained encoder, and of those from scratch. The grey line marks the one size seen in all training; bands are 95 % intervals over seeds. What is explained worse than −50 % is not drawn."
fig, axes = plt.subplots(1, 1 + len(ARMS), figsize=(1 + 2.6 * (1 + len(ARMS)), 3.1))
panels = {"hidden patches": masked} | {arm: labelled[labelled.arm == arm] for arm in ARMS}
for ax, (title, rows) in zip(axes, panels.items()):
    measure = "explained" if title == "hidden patches" else "accuracy"
    for position in POSITIONS:
        curve = rows[rows.position == position].rename(columns={"value": "size"})
        plot_curve(curve, "size", measure=measure, seen=(chosen["side"],), ax=ax, label=position, **look(position))
    ax.set(title=title, xlabel="side of the test picture, px")
    ax.set_ylim(0, 1) if measure == "accuracy" else ax.set_ylim(max(-0.5, masked.low.min() - 0.05), 1)
    ax.get_legend().remove()
handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1]))
fig.legend(handles.values(), handles, loc="outside upper center", ncols=4)
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## One number per curve
#
# The area under a curve over the logarithm of the size; and, seed by seed, what pre-training adds to it.

# %%
#| label: tbl-pretraining
#| tbl-cap: "Area under the curves over log₂ of the side, in percent, mean over seeds; and what the pre-trained start adds to the area of each classifier from scratch, with its 95 % interval over seeds."
explained = areas(table[table.arm == "masked"], "explained")
by_arm = {arm: areas(table[table.arm == arm]) for arm in ARMS}
gains = {
    (arm, position): paired(pd.concat(by_arm.values()).query("position == @position"), "arm", ARMS[0], arm, [])
    for arm in ARMS[1:] for position in POSITIONS
}  # fmt: skip
rows = [
    {"encoding": position}
    | {name: f"{100 * area[area.position == position].area.mean():.1f}" for name, area in {"hidden patches": explained, **by_arm}.items()}
    | {f"added to {arm}": points(gains[arm, position]) for arm in ARMS[1:]}
    for position in POSITIONS
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))

# %%
#| label: tbl-pretraining-cost
#| tbl-cap: "Forward operations of the whole training, pre-training included."
spent = table.drop_duplicates("key").groupby(["arm", "position"]).training_forward_macs.mean().unstack() / 1e9
spent.loc["pre-trained"] += spent.loc["masked"]
Markdown(spent.loc[ARMS, list(POSITIONS)].add_suffix(", 10⁹ MACs").rename_axis("training").reset_index().to_markdown(index=False, floatfmt=".1f"))


# %% [markdown]
# ## What follows

# %%
#| label: pretraining-verdict
def ranking(area: pd.DataFrame) -> list[str]:
    "Encodings, the best first."
    return area.groupby("position").area.mean().sort_values(ascending=False).index.tolist()


def lead(area: pd.DataFrame) -> str:
    "In how many seeds the best encoding is ahead of the next."
    best, second = (area[area.position == position].set_index("seed").area for position in ranking(area)[:2])
    return f"{(best > second).sum()} of {chosen['seeds']}"


sentences = []
for arm in ARMS[1:]:
    told = "; ".join(f"with {position} positions it {verdict(gains[arm, position])} the area" for position in POSITIONS)
    sentences.append(f"Pre-training against {arm}: {told}.")
for what, area in {"Hidden patches": explained, **by_arm}.items():
    sentences.append(f"{what[0].upper()}{what[1:]}: best over all sizes is {ranking(area)[0]}, ahead of {ranking(area)[1]} in {lead(area)} seeds.")
Markdown("\n".join(f"- {sentence}" for sentence in sentences))

# %% [markdown]
# Small models, small pictures and a pre-training of seconds to minutes: this says what such a start is worth *here*. In the paper of masked autoencoders it takes hundreds of epochs, and models a thousand times as large.

# %% [markdown]
# ## Numbers for the paper

# %%
names = {arm: arm.removeprefix("scratch, ").replace("-", "").replace(" ", "_") for arm in ARMS}
numbers = {
    "provenance": origin, "dataset": chosen["dataset"], "side": f"{chosen['side']}", "largest": f"{max(chosen['resolutions'])}",
    "pretraining_epochs": f"{before.epochs}", "tuning_epochs": f"{after.epochs}", "like_compute_epochs": f"{after.epochs + extra}",
    "best_masked": ranking(explained)[0], "lead_masked": lead(explained),
}  # fmt: skip
for arm, name in names.items():
    numbers |= {f"best_{name}": ranking(by_arm[arm])[0], f"lead_{name}": lead(by_arm[arm])}
for position in POSITIONS:
    for arm in ARMS[1:]:
        found = gains[arm, position]
        numbers |= {f"{position}_added_to_{names[arm]}": points(found), f"{position}_verdict_{names[arm]}": verdict(found)}
    for place, size in {"seen": chosen["side"], "large": max(chosen["resolutions"])}.items():
        numbers[f"{position}_masked_{place}"] = percent(masked[(masked.position == position) & (masked.value == size)].iloc[0], measure="explained")
        for arm, name in names.items():
            cell = labelled[(labelled.arm == arm) & (labelled.position == position) & (labelled.value == size)].iloc[0]
            numbers[f"{position}_{name}_{place}"] = percent(cell)
save_numbers("pretraining", numbers, results)
pd.Series(numbers)
