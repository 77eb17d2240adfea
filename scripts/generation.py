# ---
# title: "Can tokens be merged in a generator?"
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
# [ViTAR](https://arxiv.org/abs/2403.18361) merges tokens for recognition, where much may be forgotten. A diffusion model has to give every pixel back. **Question:** does a small diffusion transformer whose tokens are merged two by two by GridAttention,
# and unmerged behind the blocks, draw as well as one without, and for how much less, at the size of training and at twice that size?
#
# **Protocol.** The model, its loss, the sampler and the measures are those of the chapter on [diffusion](../19_diffusion.ipynb). Three models draw plain scenes of a class that is asked for: one with small patches; one with the same patches, merged
# (Adaptive Token Merger, fixed ratio 2) and unmerged; and, since a merger that is worth its name must beat it, one with **patches of twice the side**, whose blocks see as many tokens as those of the second. The third predicts pictures and the others velocities, because what a patch holds
# is as wide as a token there: no model shall lose for want of a fitting objective. All have a learned table of positions and are trained at a single size, for the same number of steps, on the
# same scenes with the same settings. Each then draws pictures at that size and at twice it, from the same noise. A classifier, trained on real scenes at both sizes, gives the Fréchet distance to real scenes and the share of samples that show what was asked for. The same
# is measured for *real* scenes in the place of samples, which is the best that can be had. No guidance; at twice the size, time is shifted by 2.
#
# Run it yourself: `papermill nbs/experiments/generation.ipynb out.ipynb -p profile cpu`

# %%
import hashlib
import json
import tempfile
import time

import joblib
import matplotlib.pyplot as plt
import pandas as pd
import torch
from einops import rearrange
from IPython.display import Markdown
from torchvision.io import encode_png

from sivit.core import figure_style, from_dict, look, to_dict, write_atomic
from sivit.cost import count_macs
from sivit.diffusion import sample, sample_quality
from sivit.report import save_numbers
from sivit.scenes import SceneConfig, draw_scenes
from sivit.study import provenance, results_folder, sign_figure, surroundings
from sivit.train import TrainConfig, train
from sivit.vit import ViT

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# A generator needs far longer than a classifier. `quick` is a few hundred steps at a dozen pixels: enough for colours and rough shapes, not for edges. It shows that all parts work and what they cost, and gives a first hint at the answer. `cpu` has larger
# pictures and more steps, and `gpu` scenes that are not plain.

# %%
PLAIN = {"rotation": 0.0, "half_width": (0.4, 0.45), "background": (0.0, 0.1), "background_texture": 0.0, "contrast": 0.8}
PROFILES = {
    "quick": {
        "seeds": 3, "side": 12, "drawn": 150, "real": 600, "steps": 16, "scenes": PLAIN | {"classes": 3},
        "vit": {"patch_size": 2, "dim": 48, "depth": 3, "heads": 4},
        "training": {"epochs": 8, "batch_size": 32, "learning_rate": 4e-3}, "pictures": {"length": 1024},
        "judge": {"epochs": 6, "learning_rate": 2e-3}, "judge_pictures": {"length": 2048},
    },
    "cpu": {
        "seeds": 3, "side": 24, "drawn": 300, "real": 1200, "steps": 20, "scenes": PLAIN | {"classes": 4},
        "vit": {"patch_size": 2, "dim": 64, "depth": 4, "heads": 4},
        "training": {"epochs": 11, "batch_size": 32, "learning_rate": 2e-3}, "pictures": {"length": 4096},
        "judge": {"epochs": 8, "learning_rate": 2e-3}, "judge_pictures": {"length": 4096},
    },
    "gpu": {
        "seeds": 3, "side": 64, "drawn": 5000, "real": 10_000, "steps": 50, "scenes": {"classes": 10},
        "vit": {"patch_size": 4, "dim": 256, "depth": 8, "heads": 8},
        "training": {"epochs": 25, "batch_size": 128, "learning_rate": 1e-3, "ema": 0.999}, "pictures": {"length": 50_000, "device": "cuda"},
        "judge": {"epochs": 10, "learning_rate": 1e-3}, "judge_pictures": {"length": 20_000, "device": "cuda"},
    },
}  # fmt: skip
chosen = PROFILES[profile]
SIDES = (chosen["side"], 2 * chosen["side"])
patch = chosen["vit"]["patch_size"]
SMALL, MERGED, LARGE, REAL = f"patches of {patch} px", f"{patch} px, merged and unmerged", f"patches of {2 * patch} px", "real scenes"
VARIANTS = {SMALL: {}, MERGED: {"merger": "atm", "merger_options": {"ratio": 2}}, LARGE: {"patch_size": 2 * patch}}
TASK_OPTIONS = {LARGE: {"predicts": "picture"}}
LOOKS = {SMALL: look("none"), MERGED: look("atm"), LARGE: look("avgpool"), REAL: {"color": "0.5", "linestyle": "--"}}

# %% [markdown]
# ## Runs
#
# A run is one model, or real scenes in its place, with all that was measured, in a file of its own; what is there already is not done again. Runs with the first seed leave a few of their pictures too. The judge is trained when it is needed, always in the same way.

# %%
judge_config = TrainConfig(
    dataset="scenes", dataset_options={"config": chosen["scenes"], **chosen["judge_pictures"]}, schedule="per_batch", sizes=SIDES, evaluate_every=0, seed=1000,
    model_options={"stem": "hybrid", "pool": "mean", "image_size": max(SIDES), "dim": 32, "depth": 2, "heads": 4}, **chosen["judge"],
)  # fmt: skip


def recipe(variant, seed):
    "How a model is trained."
    return TrainConfig(
        task="generation", task_options=TASK_OPTIONS.get(variant, {}), dataset="scenes", dataset_options={"config": chosen["scenes"], **chosen["pictures"]}, schedule="single", sizes=SIDES[:1],
        model_options={"position": "learned", "image_size": SIDES[0], **chosen["vit"], **VARIANTS[variant]},
        evaluate_every=0, seed=seed, **chosen["training"],
    )  # fmt: skip


drawing = {name: chosen[name] for name in ("drawn", "real", "steps", "scenes")} | {"sides": SIDES, "judge": to_dict(judge_config)}
runs = [
    {"variant": variant, "seed": seed, "train": None if variant == REAL else to_dict(recipe(variant, seed)), "drawing": drawing}
    for seed in range(chosen["seeds"]) for variant in (*VARIANTS, REAL)
]  # fmt: skip


def path_of(run):
    "The file of a run, named by its settings."
    key = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]
    return results / "generation" / f"{key}.json"


def sheet_of(run, side):
    "The file of a few pictures of a run."
    return path_of(run).with_name(f"{path_of(run).stem}-{side}.png")


# %%
def scenes(count, side, world, drawing, device):
    "Real scenes in [-1, 1], and their classes; every world holds others."
    scene = draw_scenes(range(count), side, seed=world, config=from_dict(SceneConfig, drawing["scenes"]), device=device)
    return 2 * scene.image - 1, scene.label


def draw(model, side, drawing, device):
    "Samples of every class in turn, what was asked for, and the seconds it took; the noise is the same for all models of a size."
    classes, count, drawn = drawing["scenes"]["classes"], drawing["drawn"], []
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))
    labels, start = torch.arange(count) % classes, time.perf_counter()
    for part, wanted in zip(noise.split(250), labels.split(250), strict=True):
        shift = side / min(drawing["sides"])
        drawn.append(sample(model, part.to(device), wanted.to(device), drawing["steps"], shift).cpu())
    return torch.cat(drawn).to(device), labels.to(device), time.perf_counter() - start


def sheet(pictures, labels, classes):
    "Two pictures of every class, side by side, as the content of a PNG file."
    picked = torch.cat([pictures[labels == k][:2] for k in range(classes)])
    strip = rearrange(picked, "(k n) c h w -> c (n h) (k w)", n=2)
    return encode_png(((strip + 1) * 127.5).round().clamp(0, 255).byte().cpu()).numpy().tobytes()


def execute(run, judge_folder, threads):
    "Train a model, let it draw, have it judged, write the files."
    torch.set_num_threads(threads)
    device, drawing, seed = "cuda" if torch.cuda.is_available() else "cpu", run["drawing"], run["seed"]
    judge, trained = ViT.from_pretrained(judge_folder).to(device), None
    if run["train"]:
        start = time.perf_counter()
        trained = train(from_dict(TrainConfig, run["train"]), progress=False)
        training = time.perf_counter() - start
    points = []
    for side in drawing["sides"]:
        if trained:
            pictures, labels, seconds = draw(trained.model, side, drawing, device)
            cost = {"seconds": seconds / len(labels), "macs": count_macs(trained.model, side)}
        else:
            (pictures, labels), cost = scenes(drawing["drawn"], side, 102 + seed, drawing, device), {}
        quality = sample_quality(judge, scenes(drawing["real"], side, 101, drawing, device)[0], pictures, labels)
        points.append({"side": side, **quality, **cost})
        if seed == 0:
            write_atomic(sheet_of(run, side), sheet(pictures, labels, drawing["scenes"]["classes"]))
    result = {"config": run, "seed": seed, "metrics": points, **surroundings()}
    if trained:
        done = trained.history[-1]
        result |= {"train_seconds": round(training, 2), "updates": done["step"], "final_loss": done["loss"]}
    write_atomic(path_of(run), json.dumps(result, indent=1) + "\n")


# %%
#| output: false
missing = [run for run in runs if not path_of(run).exists()]
jobs = 1 if torch.cuda.is_available() else max(1, min(joblib.cpu_count(), len(missing)))
threads = 1 if jobs > 1 else torch.get_num_threads()
if missing:
    with tempfile.TemporaryDirectory() as folder:
        train(judge_config, progress=False).model.save_pretrained(folder)
        joblib.Parallel(n_jobs=jobs)(joblib.delayed(execute)(run, folder, threads) for run in missing)

# %%
found = [json.loads(path_of(run).read_text()) for run in runs]
table = pd.DataFrame([
    {"variant": result["config"]["variant"], "seed": result["seed"], "device": result["device"], "training": result.get("train_seconds"), **point}
    for result in found for point in result["metrics"]
])  # fmt: skip
origin = provenance(table, profile)
means = table.groupby(["variant", "side"], sort=False)[["frechet", "agreement", "seconds", "macs", "training"]].mean()
updates = found[0]["updates"]
Markdown(f"Each model: {updates:,} updates with {chosen['training']['batch_size']} scenes of {SIDES[0]} px; {chosen['drawn']:,} samples of each size in {chosen['steps']} steps, compared with {chosen['real']:,} real scenes. {origin}.")

# %% [markdown]
# ## What they draw

# %%
#| label: fig-generation-samples
#| fig-cap: "Two samples of every class (columns) from the models with the first seed, at the size of training (left) and at twice that size (right), and real scenes. All models begin with the same noise; none was chosen by hand."
figure_style("png")
fig, axes = plt.subplots(len(VARIANTS) + 1, 2, figsize=(6.4, 1.05 * (len(VARIANTS) + 1) * 3 / chosen["scenes"]["classes"] + 1.2))
for line, (variant, run) in zip(axes, {run["variant"]: run for run in runs if run["seed"] == 0}.items(), strict=True):
    for side, ax in zip(SIDES, line, strict=True):
        ax.imshow(plt.imread(sheet_of(run, side)), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    line[0].set_ylabel(variant, rotation=0, ha="right", va="center")
for ax, side in zip(axes[0], SIDES, strict=True):
    ax.set_title(f"{side} px")
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## How good it is

# %%
#| label: fig-generation
#| fig-cap: "Fréchet distance to real scenes (left, lower is better) and the share of samples that show the class that was asked for (right), at the size of training and at twice it. Points are seeds, lines join their means. Grey: real scenes in the place of samples; dotted: chance."
figure_style()
fig, axes = plt.subplots(1, 2, figsize=(8.0, 3.2))
for ax, name in zip(axes, ("frechet", "agreement"), strict=True):
    for place, (variant, style) in enumerate(LOOKS.items()):
        rows = table[table.variant == variant]
        across = rows.side.map({side: i for i, side in enumerate(SIDES)}) + 0.05 * (place - 1)
        ax.plot(across.unique(), means.loc[variant, name], label=variant, **style)
        ax.plot(across, rows[name], linestyle="", marker=".", color=style["color"], alpha=0.6)
    ax.set(xlabel="side of the pictures, px", xlim=(-0.4, 1.4), xticks=range(2), xticklabels=[f"{side} (training)" if side == SIDES[0] else side for side in SIDES])
axes[0].set(ylabel="Fréchet distance", yscale="log")
axes[1].set(ylabel="agreement", ylim=(0, 1.03))
axes[1].axhline(1 / chosen["scenes"]["classes"], color="black", linestyle=":", linewidth=0.8)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
sign_figure(fig, origin)
plt.show()

# %% [markdown]
# ## What it costs
#
# Operations are those of one evaluation of the model for one picture; a sample takes as many evaluations as there are steps. They count layers and the attention of the blocks. What a token weighs within its own few cells, in the merger and in the unmerger, is not in it; in the time it is. Times were taken while another run used the
# other core, if there is one.

# %%
#| label: tbl-generation
#| tbl-cap: "Quality and cost, means over seeds."
shown = pd.DataFrame({
    "side, px": means.index.get_level_values("side"), "Fréchet distance": means.frechet.map("{:.2f}".format).values,
    "agreement, %": (100 * means.agreement).map("{:.0f}".format).values, "10⁶ MACs": (means.macs / 1e6).map("{:.1f}".format).values,
    "ms per sample": (1000 * means.seconds).map("{:.1f}".format).values, "training, s": means.training.map("{:.1f}".format).values,
}, index=means.index.get_level_values("variant")).replace("nan", "–")  # fmt: skip
Markdown(shown.reset_index().to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# ## Conclusion
#
# All models of a seed are trained on the same scenes in the same order, so they are compared in pairs. What follows is worded from the numbers.

# %%
cells, seeds = table.set_index(["variant", "side", "seed"]).sort_index(), chosen["seeds"]


def better(variant, other, side):
    "In how many seeds a variant has the smaller distance to real scenes."
    return int((cells.frechet.loc[variant, side] < cells.frechet.loc[other, side]).sum())


def compared(variant, other, side):
    "Both distances, and what the seeds say."
    wins = better(variant, other, side)
    word = "as good as" if 0 < wins < seeds else "better than" if wins else "worse than"
    firm = f"in {max(wins, seeds - wins)} of {seeds} seeds" if word != "as good as" else f"better in {wins} of {seeds} seeds, which decides nothing"
    word = "neither better nor worse than" if word == "as good as" else word
    return f"{word} {other} ({means.frechet[variant, side]:.2f} against {means.frechet[other, side]:.2f}; {firm})"


def saved(column, side):
    "What merging leaves of a cost."
    return f"{100 * means.loc[(MERGED, side), column] / means.loc[(SMALL, side), column]:.0f} %"


lines = [
    f"At {'the size of training' if side == SIDES[0] else 'twice that size'}, {side} px, merging and unmerging is {compared(MERGED, SMALL, side)}, and {compared(MERGED, LARGE, side)}. "
    f"It takes {saved('macs', side)} of the operations and {saved('seconds', side)} of the time of {SMALL}."
    for side in SIDES
]
gaps = {side: min(means.frechet[variant, side] for variant in VARIANTS) / means.frechet[REAL, side] for side in SIDES}
lines.append(
    f"All of this is far from what can be had: the best distance is {gaps[SIDES[0]]:.0f} times that of real scenes at the size of training, and {gaps[SIDES[1]]:.0f} times at twice it."
    if min(gaps.values()) > 2 else f"The best distances are {gaps[SIDES[0]]:.1f} and {gaps[SIDES[1]]:.1f} times that of real scenes."
)  # fmt: skip
Markdown("\n\n".join(lines))

# %% [markdown]
# Equal steps are not equal cost, and small models of plain scenes are not photographs: how the balance shifts with the number of tokens the table shows, how it shifts with the data it does not.

# %% [markdown]
# ## Numbers for the paper

# %%
numbers = {
    "provenance": origin, "side": f"{SIDES[0]}", "twice": f"{SIDES[1]}", "patch": f"{patch}", "updates": f"{updates:,}",
    "drawn": f"{chosen['drawn']:,}", "steps": f"{chosen['steps']}", "verdict": " ".join(lines),
}  # fmt: skip
for name, variant in {"small": SMALL, "merged": MERGED, "large": LARGE, "real": REAL}.items():
    for place, side in zip(("trained", "twice"), SIDES, strict=True):
        row = means.loc[(variant, side)]
        numbers |= {f"{name}_frechet_{place}": f"{row.frechet:.2f}", f"{name}_agreement_{place}": f"{100 * row.agreement:.0f} %"}
        if variant != REAL:
            numbers |= {f"{name}_macs_{place}": f"{row.macs / 1e6:.1f}", f"{name}_ms_{place}": f"{1000 * row.seconds:.1f}"}
for place, side in zip(("trained", "twice"), SIDES, strict=True):
    numbers |= {f"wins_small_{place}": f"{better(MERGED, SMALL, side)} of {seeds}", f"wins_large_{place}": f"{better(MERGED, LARGE, side)} of {seeds}"}
    numbers |= {f"macs_left_{place}": saved("macs", side), f"time_left_{place}": saved("seconds", side)}
save_numbers("generation", numbers, results)
pd.Series(numbers)
