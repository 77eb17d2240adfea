# ---
# title: "Do fuzzy positions help a longer text?"
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

# %% [markdown]
# [ViTAR](https://arxiv.org/abs/2403.18361) jitters a table of positions in training so that it can be stretched over larger pictures. **Question:** does the same trick let a small causal language model read texts of up to eight
# times the length it was trained on, and how does it compare with a table without jitter, with sine and cosine, with RoPE, with ALiBi, and with no encoding at all?
#
# **Protocol.** The model, the text and the measure are those of the chapter on [text](../20_language.ipynb): characters of the project's own notebooks, whole chapters held out. All models are trained on windows of one length $L$, with
# the same settings and on the same windows. They are judged at $L$, $2L$, $4L$ and $8L$ by the loss on the last quarter of a window, and the last quarters cover the same characters at every length: only the context differs. Tables and
# sine-cosine codes are read in two ways, *stretched* over the longer text, as vision does, and *continued*, as language models do; at $L$ the two are the same. What a longer context must beat is the loss
# at $L$ itself, since any text can be cut into windows of that length. Means over seeds with Student's 95 % interval.
#
# Run it yourself: `papermill nbs/experiments/language.ipynb out.ipynb -p profile cpu`

# %%
import hashlib
import json
import math
import time

import joblib
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown

from sivit.core import PALETTE, figure_style, look, write_atomic
from sivit.language import (
    LanguageModelConfig, TextTraining, encode_text, project_text, read_positions, split_text, text_loss, train_on_text,
)  # fmt: skip
from sivit.report import save_numbers
from sivit.study import provenance, results_folder, sign_figure, summarise, surroundings

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# The smallest profile has one block. Two learn more in the end, but need several times as many steps before they use positions at all, and without that there is nothing to compare.

# %%
TIMES = (1, 2, 4, 8)
TWO_READINGS = ("learned", "fuzzy", "sincos")
POSITIONS = (*TWO_READINGS, "rope_axial", "alibi", "none")
PROFILES = {
    "quick": {"seeds": 3, "scored": 4096, "model": {"length": 32, "dim": 48, "depth": 1, "heads": 4},
              "training": {"steps": 700, "batch_size": 16, "learning_rate": 1e-2}},
    "cpu": {"seeds": 3, "scored": 16384, "model": {"length": 64, "dim": 96, "depth": 3, "heads": 6},
            "training": {"steps": 2000, "batch_size": 16, "learning_rate": 5e-3}},
    "gpu": {"seeds": 5, "scored": 49152, "model": {"length": 128, "dim": 192, "depth": 4, "heads": 6},
            "training": {"steps": 3000, "batch_size": 64, "learning_rate": 2e-3, "weight_decay": 0.1}},
}  # fmt: skip
chosen = PROFILES[profile]
runs = [
    {"model": chosen["model"] | {"position": position}, "training": chosen["training"] | {"seed": seed}, "times": TIMES, "scored": chosen["scored"]}
    for seed in range(chosen["seeds"]) for position in POSITIONS
]  # fmt: skip


# %% [markdown]
# ## Runs
#
# A run is one training and all its measurements, in a file of its own. The text changes with every chapter that is written, and losses on different texts cannot be compared. So every result names its text by a checksum. If all results are there and are of one text, they
# stand, whatever has been written since; otherwise those that are missing or of another text are made with the text of today.

# %%
def path_of(run):
    "The file of a run, named by its settings."
    key = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]
    return results / "language" / f"{key}.json"


def excerpt(chapters, characters):
    "Equal parts of the held-out chapters, from the middle of each."
    share = -(-characters // len(chapters))
    text = "".join(chapter[max(0, len(chapter) - share) // 2 :][:share] for chapter in chapters.values())[:characters]
    if len(text) < characters:
        raise ValueError(f"The held-out chapters give {len(text)} characters; {characters} are needed. Lower 'scored'.")
    return text


def readings(model):
    "The trained model as it may be read beyond its length."
    if model.config.position in TWO_READINGS:
        return {reading: read_positions(model, reading) for reading in ("stretched", "continued")}
    return {"continued": model}


def execute(run, split, path, threads):
    "Train a model, measure it, write the file."
    torch.set_num_threads(threads)
    vocabulary = "".join(sorted({*split.training, *"".join(split.validation.values())}))
    config, start = LanguageModelConfig(vocabulary, **run["model"]), time.perf_counter()
    model, losses = train_on_text(config, encode_text(split.training, vocabulary), TextTraining(**run["training"]))
    seconds = time.perf_counter() - start
    skip, quarter = max(run["times"]) * config.length, config.length // 4
    codes = encode_text(excerpt(split.validation, skip + run["scored"]), vocabulary)
    points, places = [], {}
    for reading, reader in readings(model).items():
        for times in run["times"]:
            loss = text_loss(reader, codes, times * config.length, skip=skip)
            points.append({"reading": reading, "times": times, "late": loss.late, "whole": loss.whole})
        parts = torch.tensor(loss.by_place).view(-1, quarter)  # of the longest window
        places[reading] = parts.mean(1).tolist()
    result = {
        "config": run, "seed": run["training"]["seed"], "metrics": points, "by_place": places,
        "text": {"sha256": split.sha256, "characters": split.characters, "vocabulary": len(vocabulary), "held_out": list(split.validation)},
        "final_loss": sum(losses[-20:]) / 20, "train_seconds": round(seconds, 2), "total_seconds": round(time.perf_counter() - start, 2),
        **surroundings(),
    }  # fmt: skip
    write_atomic(path, json.dumps(result, indent=1) + "\n")


# %%
#| output: false
def text_of(run):
    "The checksum of the text a result belongs to; None: there is no result."
    return json.loads(path_of(run).read_text())["text"]["sha256"] if path_of(run).exists() else None


split = split_text(project_text(results_folder(".")))
texts = {text_of(run) for run in runs}
if None in texts or len(texts) > 1:
    jobs = 1 if torch.cuda.is_available() else joblib.cpu_count()
    threads = 1 if jobs > 1 else torch.get_num_threads()
    missing = [run for run in runs if text_of(run) != split.sha256]
    joblib.Parallel(n_jobs=jobs)(joblib.delayed(execute)(run, split, path_of(run), threads) for run in missing)

# %%
found = [json.loads(path_of(run).read_text()) for run in runs]
text = found[0]["text"]
table = pd.DataFrame([
    {"position": result["config"]["model"]["position"], "seed": result["seed"], "device": result["device"],
     "seconds": result["train_seconds"], "training loss": result["final_loss"], **point}
    for result in found for point in result["metrics"]
])  # fmt: skip
length = chosen["model"]["length"]
origin = provenance(table, profile)
summary = summarise(table, ["position", "reading", "times"], measure="late", bounds=(0, math.inf)).rename(columns={"late": "loss"})
still = "which is the text of today" if text["sha256"] == split.sha256 else "which has been written on since"
Markdown(
    f"The text: {text['characters']:,} characters of {text['vocabulary']} kinds, SHA-256 `{text['sha256'][:16]}…`, {still}. Held out: {', '.join(text['held_out'])}. "
    f"Training: $L = {length}$, {chosen['training']['steps']:,} steps of {chosen['training']['batch_size']} windows. Scored: {chosen['scored']:,} characters. Trained and measured: {origin}."
)


# %% [markdown]
# ## Loss along length

# %%
#| label: fig-language
#| fig-cap: "Loss on the same held-out characters, seen at the end of windows of one to eight times the training length, with positions that are stretched over the window (left) or continue (right); bands are 95 % intervals over seeds. Dotted lines carry the loss at the training length on: it is what cutting the text into such windows gives. Black: no encoding, only the causal mask."
def style_of(position):
    "The look of an encoding; those that would share a colour here are told apart."
    return look(position) | {"color": {"none": "black", "alibi": PALETTE["purple"]}.get(position, look(position)["color"])}


fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.6), sharey=True)
for ax, reading in zip(axes, ("stretched", "continued")):
    for position in POSITIONS:
        shown = summary[(summary.position == position) & summary.reading.isin([reading] if position != "none" else ["continued"])]
        if len(shown):
            ax.plot(shown.times, shown.loss, label=position, **style_of(position))
            ax.fill_between(shown.times, shown.low, shown.high, color=style_of(position)["color"], alpha=0.12, linewidth=0)
            ax.axhline(shown.loss.iloc[0], color=style_of(position)["color"], linewidth=0.6, linestyle=":")
    ax.set(xscale="log", xlabel="length of the window", title=reading)
    ax.set_xticks(TIMES, [f"{times}×" for times in TIMES])
    ax.minorticks_off()
axes[0].set_ylabel("loss, nats per character")
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
sign_figure(fig, origin)
plt.show()

# %%
#| label: tbl-language
#| tbl-cap: "Loss in nats per character on the last quarter of the window, mean over seeds, by encoding, by how its positions are read, and by length in units of the training length."
wide = summary.pivot(index=["position", "reading"], columns="times", values="loss").loc[[(p, r) for p in POSITIONS for r in ("stretched", "continued") if p in TWO_READINGS or r == "continued"]]
shown = wide.rename(columns=lambda times: f"{times}×").reset_index().rename(columns={"position": "encoding"})
Markdown(shown.to_markdown(index=False, floatfmt=".3f"))


# %% [markdown]
# ## Where in the window
#
# The whole window of the greatest length, by place. Where positions continue, the first training length of it is familiar ground, and what comes behind shows how far an encoding carries. Where they are stretched, the whole window is strange.
# Some characters are harder than others, for all models alike; so the loss without an encoding, on the same characters, is taken off.

# %%
#| label: fig-language-places
#| fig-cap: "What an encoding gains over none, by place in a window of eight training lengths, with stretched (left) and continued positions (right); means over seeds and over quarters of a training length. Below zero the encoding helps, above it does harm. Grey: the training length."
def by_place(position, reading):
    "Loss of every seed at the places of the longest window; None: there is no such reading."
    curves = [result["by_place"].get(reading) for result in found if result["config"]["model"]["position"] == position]
    return None if None in curves else torch.tensor(curves)


fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.4), sharey=True)
for ax, reading in zip(axes, ("stretched", "continued")):
    for position in POSITIONS[:-1]:
        curves = by_place(position, reading)
        if curves is not None:
            gain = (curves - by_place("none", "continued")).mean(0)
            ax.plot((torch.arange(len(gain)) + 0.5) / 4, gain, label=position, markevery=4, **style_of(position))
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axvspan(0, 1, color="0.92", zorder=0)
    ax.set(xlabel="place in the window, training lengths", title=reading, xlim=(0, max(TIMES)))
axes[0].set_ylabel("loss minus that of none, nats")
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## Jitter, seed by seed
#
# The same seed draws the same windows for all encodings, so they are compared in pairs. Four differences tell what jitter is for: from the exact table at the same length; from it beyond what is there at the training length already; from the
# same model's loss at the training length; and between its two readings.

# %%
#| label: tbl-language-pairs
#| tbl-cap: "The stretched fuzzy table against others, nats per character: mean of the differences, and in how many seeds they are below zero."
late = table.set_index(["position", "reading", "times", "seed"]).late.sort_index()
LONGER, seeds = TIMES[1:], chosen["seeds"]


def versus(first, second):
    "Differences at every longer length, seed by seed; (position, reading), or (position, reading, times)."
    return {times: late.loc[(*first, times)[:3]] - late.loc[(*second, times)[:3]] for times in LONGER}


fuzzy, learned = ("fuzzy", "stretched"), ("learned", "stretched")
at_once = late.loc[(*fuzzy, 1)] - late.loc[(*learned, 1)]
gains = versus(fuzzy, learned)
pairs = {
    "minus learned": gains,
    "the same, beyond 1×": {times: gain - at_once for times, gain in gains.items()},
    "minus itself at 1×": versus(fuzzy, (*fuzzy, 1)),
    "minus itself, continued": versus(fuzzy, ("fuzzy", "continued")),
}
below = lambda difference: f"{(difference < 0).sum()} of {seeds}"
told = {name: {f"{times}×": f"{d.mean():+.3f} ({below(d)})" for times, d in differences.items()} for name, differences in pairs.items()}
Markdown(pd.DataFrame(told).rename_axis("length").reset_index().to_markdown(index=False))


# %% [markdown]
# ## Conclusion
#
# What follows is worded from the numbers.

# %%
def agreement(differences):
    "What all seeds say at all longer lengths; None: they do not agree."
    signs = {bool(sign) for difference in differences.values() for sign in difference < 0}
    return {(True,): "lower", (False,): "higher"}.get(tuple(signs))


def listed(differences):
    values = ", ".join(f"{difference.mean():+.3f}" for difference in differences.values())
    return f"{values} nats at {', '.join(f'{times}×' for times in differences)}"


best = {times: summary[summary.times == times].sort_values("loss").iloc[0] for times in TIMES}
beyond, cuts = pairs["the same, beyond 1×"], pairs["minus itself at 1×"]
answer = f"Stretched, the jittered table differs from the exact one by {listed(gains)}, and by {at_once.mean():+.3f} ({below(at_once)} seeds below zero) at the training length already. "
answer += {
    "lower": "Beyond that, jitter lowers the loss at every longer length and in every seed: it does help to stretch a table.",
    "higher": "Beyond that, jitter raises the loss at every longer length and in every seed: it does not help to stretch a table.",
    None: "What jitter does beyond that is not the same at every longer length and in every seed: that it helps to stretch a table is not shown.",
}[agreement(beyond)]
answer += {
    "higher": f" The longer window itself changes the loss of the jittered table by {listed(cuts)}, for the worse in every seed: such a text is better cut.",
    "lower": f" The longer window itself changes the loss of the jittered table by {listed(cuts)}, for the better in every seed: the longer context is put to use.",
    None: f" The longer window itself changes the loss of the jittered table by {listed(cuts)}; the seeds do not agree on whether such a text is better cut.",
}[agreement(cuts)]
winners = ", ".join(f"{row.position}{' ' + row.reading if row.position in TWO_READINGS and times > 1 else ''} at {times}× ({row.loss:.2f})" for times, row in best.items())
Markdown(f"{answer}\n\nThe lowest losses: {winners}.")

# %% [markdown]
# These are small models and a small text; what jitter does in larger ones this does not say.

# %% [markdown]
# ## Numbers for the paper

# %%
longest = max(TIMES)
numbers = {
    "provenance": origin, "length": f"{length}", "longest": f"{longest}", "steps": f"{chosen['training']['steps']:,}",
    "characters": f"{text['characters']:,}", "sha256": text["sha256"][:12], "verdict": answer, "gain_1": f"{at_once.mean():+.3f}",
}  # fmt: skip
numbers |= {f"best_{times}": row.position for times, row in best.items()}
for name, differences in {"gain": gains, "beyond": beyond, "cut": cuts}.items():
    numbers |= {f"{name}_{times}": f"{d.mean():+.3f}" for times, d in differences.items()}
    numbers |= {f"{name}_{times}_seeds": below(d) for times, d in differences.items()}
for (position, reading), row in wide.iterrows():
    numbers |= {f"{position}_{reading}_{times}": f"{row[times]:.2f}" for times in TIMES}
save_numbers("language", numbers, results)
pd.Series(numbers)
