# ---
# title: "Four report cards, read aloud"
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
profile = "quick"  # "quick": two minutes on one core; "cpu": less than an hour on two cores; "gpu": larger, for a GPU
results = "paper/results"  # folder of results, from the project's root
seeds = 0  # trainings of each model with seeds of their own, to see how far they differ; 0: none, or two or more

# %% tags=["injected-parameters"]
# Parameters
seeds = 3


# %% [markdown]
# A [report card](../27_evaluate.ipynb) follows a model along three axes. On photographs they are hard to tell apart; scenes are drawn anew on each, so here the three can be read against each other. **Questions:** does a model that stands one of them stand the others?
# And when accuracy falls with the resolution, what is it about the resolution?
#
# For that changes two things at once. A picture of twice the side shows its object in twice the pixels, as if the object had grown; and it has twice the pixels on a side, as if the canvas had. Each of the two has an axis of its own,
#
# $$ \text{resolution} \times f = \text{object scale} \times f \ \text{ on } \ \text{canvas} \times f , $$
#
# so that the loss can be split into the two steps, and each step is the difference of two points of the card.
#
# **Protocol.** Four transformers learn the same kind of scenes with the same recipe and **equal compute**: of each, training sees as many different scenes as cost the same operations. They differ in the sizes that are shown, in the position encoding and in the merger. A [stem of two convolutions](../03_patch.ipynb#a-hybrid-stem) makes all of them
# quick learners. All are judged on the same scenes, which none has seen. Scenes are never cropped, so the [FixRes effect](../27_evaluate.ipynb) has no part in the curves. There is **one training of each** on a card: intervals and tests are about the pictures, and cannot tell a good model from a lucky one.
#
# Run it yourself: `papermill nbs/experiments/card.ipynb out.ipynb -p profile cpu`

# %%
from pathlib import Path

import joblib
import pandas as pd
import torch
from IPython.display import Markdown

from sivit.core import figure_style
from sivit.cost import count_macs
from sivit.data import create_dataset
from sivit.evaluate import Card, card_figures, card_summary, compare, comparison_figure, load_card, redraw, report_card, save_card
from sivit.report import save_numbers
from sivit.study import Run, paired, provenance, results_folder, run_grid, sign_figure
from sivit.subject import load_subject
from sivit.train import TrainConfig, train
from sivit.vit import create_model

results = results_folder(results)
figure_style()

# %% [markdown]
# ## Settings
#
# The reference is the size of the model that sees one size only, and the largest that the others see.

# %%
PROFILES = {
    "quick": {
        "sizes": (16, 32), "scenes": {"config": {"classes": 5, "half_width": [0.2, 0.35]}}, "length": 3500, "test": 300, "probes": 64, "epochs": 2, "batch_size": 32,
        "learning_rate": 2e-3, "encoder": {"depth": 2},
        "resolutions": (16, 24, 32, 48, 64, 96), "object_scales": (0.5, 0.7, 1, 1.4, 2), "canvases": (0.5, 0.75, 1, 1.5, 2),
    },
    "cpu": {
        "sizes": (16, 24, 32), "scenes": {"config": {"classes": 10, "half_width": [0.2, 0.35]}}, "length": 20_000, "test": 1000, "probes": 256, "epochs": 4, "batch_size": 32,
        "learning_rate": 2e-3, "encoder": {"depth": 4},
        "resolutions": (16, 20, 24, 32, 40, 48, 64, 96), "object_scales": (0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.4, 1.7, 2), "canvases": (0.5, 0.75, 1, 1.25, 1.5, 2, 3),
    },
    "gpu": {
        "sizes": (32, 48, 64), "scenes": {"config": "hard", "device": "cuda"}, "length": 50_000, "test": 4000, "probes": 512, "epochs": 20, "batch_size": 128,
        "learning_rate": 1e-3, "encoder": {"depth": 6, "dim": 192, "heads": 6},
        "resolutions": (32, 48, 64, 80, 96, 128, 192), "object_scales": (0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.4, 1.7, 2), "canvases": (0.5, 0.75, 1, 1.25, 1.5, 2, 3),
    },
}  # fmt: skip
chosen = PROFILES[profile]
sizes, side = chosen["sizes"], max(chosen["sizes"])
merged = (min(sizes) // 4, min(sizes) // 4)
MODELS = {  # model, what it has different, sizes of training
    "ViT at one size": ("vit_micro_patch4", {}, (side,)),
    "ViT at several": ("vit_micro_patch4", {}, sizes),
    "RoPE at several": ("vit_micro_patch4", {"position": "rope_axial"}, sizes),
    "ViTAR at several": ("vitar_micro_patch4", {"merged_grid": merged}, sizes),
}
ONE, SEVERAL, ROPE, VITAR = MODELS


# %% [markdown]
# ## Training and judging
#
# What is kept of a model is its card, under the name of the model and a hash of how it was trained and where it is judged. A card that is there already is read.

# %%
def options_of(name: str) -> dict:
    "Settings of a model."
    return {"stem": "hybrid", "pool": "mean", "image_size": side} | chosen["encoder"] | MODELS[name][1]


def cost_of(name: str) -> float:
    "Operations of one forward pass in training, the mean over the sizes."
    model, _, shown = MODELS[name]
    network = create_model(model, num_classes=len(scenes.classes), **options_of(name))
    return sum(count_macs(network, (3, size, size)) for size in shown) / len(shown)


def run_of(name: str, seed: int = 0) -> Run:
    "How a model is trained, and the points of its card."
    model, _, shown = MODELS[name]
    recipe = TrainConfig(
        model=model, model_options=options_of(name), dataset="scenes",
        dataset_options={"length": round(chosen["length"] * cost_of(ONE) / cost_of(name)), **chosen["scenes"]},
        schedule="single" if len(shown) == 1 else "per_batch", sizes=shown, evaluate_every=0, seed=seed,
        **{setting: chosen[setting] for setting in ("epochs", "batch_size", "learning_rate")},
    )  # fmt: skip
    points = {axis: chosen[axis] for axis in ("resolutions", "object_scales", "canvases")}
    return Run(recipe, test_options={"length": chosen["test"]}, **points)


def place_of(name: str, run: Run, folder: str) -> Path:
    "Where a model or its card is kept."
    return results / "card" / folder / f"{name.lower().replace(' ', '-')}-{run.key}"


def train_at(config: TrainConfig, place: Path) -> None:
    "Train a model, or go on with it."
    train(config, place, progress=False)


def card_of(name: str, run: Run) -> Card:
    "The card of a model that is trained."
    folder, place = place_of(name, run, profile), place_of(name, Run(run.train), "models")
    if not (folder / "card.json").exists():
        subject, axes = load_subject(place, name=name), (run.resolutions, run.object_scales, run.canvases)
        save_card(report_card(subject, scenes, *axes, directory=place, reference=side, probes=chosen["probes"], progress=False), folder, page=False)
    return load_card(folder)


# %%
#| output: false
scenes = create_dataset("scenes", "val", length=chosen["test"], **chosen["scenes"])
runs = {name: run_of(name) for name in MODELS}
missing = [(run.train, place_of(name, Run(run.train), "models")) for name, run in runs.items() if not (place_of(name, run, profile) / "card.json").exists()]
joblib.Parallel(n_jobs=1 if torch.cuda.is_available() else joblib.cpu_count())(joblib.delayed(train_at)(*one) for one in missing)
cards = {name: card_of(name, run) for name, run in runs.items()}
origin = provenance(pd.DataFrame({"seed": [0], "device": [cards[ONE].surroundings["device"]]}), profile)
tables = {name: {axis: card.table(axis).set_index("value") for axis in card.axes} for name, card in cards.items()}
comparison = compare(list(cards.values()))
AXES = cards[ONE].axes

# %%
#| label: tbl-cards-models
#| tbl-cap: "The four models: sizes of training, parameters, operations of a forward pass at the reference, different scenes in training and how often each is seen, and the operations of all forward passes of training."
rows = [
    {"model": name, "trained at, px": ", ".join(map(str, run.train.sizes)), "10³ parameters": f"{cards[name].model['parameters'] / 1e3:.0f}",
     "10⁶ MACs": f"{tables[name]['resolution'].macs[side] / 1e6:.1f}", "scenes": f"{run.train.dataset_options['length']} × {run.train.epochs}",
     "10⁹ MACs, training": f"{run.train.dataset_options['length'] * run.train.epochs * cost_of(name) / 1e9:.0f}"}
    for name, run in runs.items()
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# The plain ViT has a learned table of positions, and RoPE turns queries and keys instead. ViTAR has a table that jitters in training, and merges every picture to the grid of the smallest training size.

# %% [markdown]
# ## The cards, side by side

# %%
#| label: fig-cards
#| fig-cap: "Accuracy of the four models along the three axes, with 95 % bootstrap intervals over the pictures, and below it the difference from the model trained at one size, with paired intervals. Broad grey lines: the reference. Dotted: chance."
sign_figure(comparison_figure(comparison), origin)


# %%
#| label: tbl-cards
#| tbl-cap: "Each curve in a few numbers, in percent. Retained: the share of the accuracy at the reference that is left at the worst point. Mean: over the logarithm of the axis, with a 95 % interval over the pictures. Flips: answers that change from one point to the next."
def shares(value: float, low: float, high: float, sign: str = "") -> str:
    "In percent, with the interval."
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


summaries = {name: card_summary(card).set_index("axis") for name, card in cards.items()}
rows = [
    {"axis": axis.replace("_", " "), "model": name, "at reference": f"{100 * row['at reference']:.1f}",
     "worst": f"{100 * row['worst']:.1f} at {row['worst at']:g}", "retained": f"{100 * row['retention']:.1f}",
     "mean": shares(*row[["area", "area low", "area high"]]), "flips": f"{100 * row['flip rate']:.1f}"}
    for axis in AXES for name, row in ((name, summaries[name].loc[axis]) for name in MODELS)
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


# %% [markdown]
# ## Read aloud
#
# Differences are in points of accuracy on the same pictures, with paired 95 % intervals. That something helps or harms is said where a [paired test](../27_evaluate.ipynb#comparing) shows it, at 5 % for all points and pairs together.

# %%
def effect(first: str, second: str, axis: str, value: float, where: str) -> str:
    "What one model has over an earlier one at a point, in words."
    rows = comparison.points
    row = rows[(rows.axis == axis) & (rows.value == value) & (rows["first"] == second) & (rows["second"] == first)].iloc[0]
    verb = "is not shown to matter" if row.p_holm >= 0.05 else "helps" if row.difference < 0 else "harms"
    return f"*{verb}* {where} ({shares(-row.difference, -row.high, -row.low, '+')})"


def each(text) -> str:
    "What there is to say of every model, one after the other."
    said = {name: text(name) for name in MODELS}
    if len(set(said.values())) == 1:
        return f"{said[ONE]} (all four)"
    return ", ".join(f"{words} ({name})" for name, words in said.items())


def at(name: str, axis: str, value: float, measure: str = "accuracy") -> float:
    "A share at a point, in percent."
    return 100 * tables[name][axis].loc[value, measure]


def listed(names: list[str]) -> str:
    "Some of the models."
    if len(names) in (0, len(MODELS)):
        return "all four" if names else "none"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def loses(card: Card, axis: str) -> bool:
    "Whether a model is shown to lose accuracy somewhere on an axis: at 5 % for all its points together (Bonferroni)."
    values, tallies = card.curve(axis)
    start = tallies[values.index(card.reference_value(axis))]
    level = 1 - 0.05 / (len(values) - 1)
    return any(redraw([tally, start], lambda drawn: drawn[:, 0] - drawn[:, 1], level=level, resamples=4000)[1] < 0 for tally in tallies if tally is not start)


def losing(axis: str) -> str:
    "Models that are shown to lose accuracy somewhere on an axis."
    return listed([name for name in MODELS if loses(cards[name], axis)])


low, high = min(chosen["resolutions"]), max(chosen["resolutions"])
assert low == min(sizes) == side / 2 < side < high, "the text speaks of these"
best = each(lambda name: f"{tables[name]['resolution'].accuracy.idxmax():g} px")
beyond = each(lambda name: f"{at(name, 'resolution', high) - at(name, 'resolution', side):+.1f}")
Markdown(
    f"**Resolution.** Training at several sizes {effect(SEVERAL, ONE, 'resolution', low, f'at {low} px')}, which is a size that the other model was not shown. It {effect(SEVERAL, ONE, 'resolution', side, f'at {side} px')}, which all were shown, and "
    f"{effect(SEVERAL, ONE, 'resolution', high, f'at {high} px')}, which nobody was shown. RoPE instead of the learned table {effect(ROPE, SEVERAL, 'resolution', side, f'at {side} px')} and {effect(ROPE, SEVERAL, 'resolution', high, f'at {high} px')}; "
    f"ViTAR instead of the plain transformer {effect(VITAR, SEVERAL, 'resolution', side, f'at {side} px')} and {effect(VITAR, SEVERAL, 'resolution', high, f'at {high} px')}. "
    f"Curves peak at {best}, and accuracy is lost somewhere on this axis by {losing('resolution')}: from {side} to {high} px it changes by {beyond} points."
)

# %%
Markdown(
    f"**Object scale.** Every picture has {side} px here, and the object alone changes. Training at several sizes {effect(SEVERAL, ONE, 'object_scale', 0.5, 'at half the size')}: such a model has seen objects of so few pixels, though never on so many pixels of canvas. "
    f"It {effect(SEVERAL, ONE, 'object_scale', 2, 'at twice the size')}. RoPE {effect(ROPE, SEVERAL, 'object_scale', 0.5, 'at half')} and {effect(ROPE, SEVERAL, 'object_scale', 2, 'at twice the size')}; ViTAR {effect(VITAR, SEVERAL, 'object_scale', 0.5, 'at half')} and "
    f"{effect(VITAR, SEVERAL, 'object_scale', 2, 'at twice the size')}. Accuracy is lost somewhere on this axis by {losing('object_scale')}."
)


# %%
def touching(**place: float) -> float:
    "Share of objects that touch the border of their picture."
    drawn = scenes.at(**place).scenes(range(len(scenes)), side)
    height, width = drawn.image.shape[-2:]
    left, top, right, bottom = drawn.boxes[:, 0].T
    return ((left <= 0) | (top <= 0) | (right >= width) | (bottom >= height)).double().mean().item()


cut = {(axis, factor): touching(**{axis: factor}) for axis in ("object_scale", "canvas") for factor in (0.5, 2)}
wide = max(chosen["canvases"])
changed = each(lambda name: f"{at(name, 'canvas', wide) - at(name, 'canvas', 1):+.1f}")
same = each(lambda name: f"{at(name, 'canvas', wide, 'agreement'):.1f} %")
Markdown(
    f"**Canvas.** To the right of the reference nothing is added but background. At {wide:g} times the canvas accuracy has changed by {changed} points, and the answers are those at the reference for {same} of the pictures. "
    f"Training at several sizes {effect(SEVERAL, ONE, 'canvas', wide, 'there')}, RoPE {effect(ROPE, SEVERAL, 'canvas', wide, 'there')}, and ViTAR {effect(VITAR, SEVERAL, 'canvas', wide, 'there')}. "
    f"To the left the canvas cuts objects: at half of it, {100 * cut['canvas', 0.5]:.0f} % of them touch the border. The axis before has such an end, too: at twice the object scale, {100 * cut['object_scale', 2]:.0f} % do. Both ends are hard for a reason that has little to do with scale."
)

# %% [markdown]
# ## Where the three disagree
#
# First, about who is better. For every pair of models and every axis there is a difference of the means over the axis. Where its interval leaves out zero on two axes, with different signs, whoever looks along one axis alone would choose the other model.

# %%
#| label: tbl-cards-pairs
#| tbl-cap: "The first model's mean over each axis less the second's, in points, with paired 95 % intervals over the pictures, and whether the axes agree about which is better."
areas = comparison.areas.set_index(["first", "second", "axis"])[["difference", "low", "high"]]
pairs = list(dict.fromkeys(index[:2] for index in areas.index))
signs = {pair: {axis: int(areas.loc[(*pair, axis), "low"] > 0) - int(areas.loc[(*pair, axis), "high"] < 0) for axis in AXES} for pair in pairs}


def verdict(shown: dict) -> str:
    "What the axes say together about which of two is better."
    known = [sign for sign in shown.values() if sign]
    if len(set(known)) > 1:
        return "they disagree"
    return f"{'first' if known[0] > 0 else 'second'}, on {len(known)} of {len(shown)}" if known else "not shown"


rows = [
    {"models": " − ".join(pair), **{axis.replace("_", " "): shares(*areas.loc[(*pair, axis)], "+") for axis in AXES}, "better": verdict(signs[pair])}
    for pair in pairs
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))

# %%
shown = comparison.points[comparison.points.p_holm < 0.05]
turns = []
for first, second in pairs:
    rows = shown[(shown["first"] == first) & (shown["second"] == second)].sort_values("difference")
    if len(rows) and rows.difference.iloc[0] < 0 < rows.difference.iloc[-1]:
        behind, before = (f"{100 * abs(row.difference):.0f} points at {row.axis.replace('_', ' ')} {row.value:g}" for row in (rows.iloc[0], rows.iloc[-1]))
        turns.append(f"{first} is ahead of {second} by {before}, and behind by {behind}")
opposed = [pair for pair in pairs if verdict(signs[pair]) == "they disagree"]
partly = [pair for pair in pairs if pair not in opposed and 0 < sum(map(abs, signs[pair].values())) < len(AXES)]
Markdown(
    f"So of {len(pairs)} pairs the means contradict each other about {len(opposed) or 'none'}, and about {len(partly) or 'none'} some axes show a difference and others do not. But a mean over an axis hides where on it a model fails. Which of two is better depends on the point in {len(turns) or 'none'} of the pairs"
    + (": " + "; ".join(turns) if turns else "") + "."
)

# %% [markdown]
# Second, about what is lost. A change of the resolution is walked in two steps, on which no object is ever cut: to a larger picture, the canvas grows first, and then the object on it; to a smaller one, the object shrinks first, and then the canvas round it. The two steps sum up to the whole. (They meet the
# picture of the other resolution but for two small things: how wide the waves of the background are, and where the object stands.)

# %%
assert cut["canvas", 2] == cut["object_scale", 0.5] == 0, "no object is cut on the way"


def step(name: str, there: tuple[str, float], here: tuple[str, float]) -> tuple[float, float, float]:
    "Accuracy at one point, an axis and a factor on the reference, less that at another, with the paired interval."
    tallies, accuracies = [], []
    for axis, factor in (there, here):
        values, known = cards[name].curve(axis)
        value = factor * cards[name].reference_value(axis)
        tallies.append(known[values.index(value)])
        accuracies.append(tables[name][axis].accuracy[value])
    return accuracies[0] - accuracies[1], *redraw(tallies, lambda drawn: drawn[:, 0] - drawn[:, 1])


REFERENCE, DOUBLE, HALF = ("canvas", 1), ("resolution", 2), ("resolution", 0.5)
STEPS = {  # by factor: the part's name, where it leads and where it begins
    2: {"canvas": (("canvas", 2), REFERENCE), "object": (DOUBLE, ("canvas", 2)), "both": (DOUBLE, REFERENCE)},
    0.5: {"object": (("object_scale", 0.5), REFERENCE), "canvas": (HALF, ("object_scale", 0.5)), "both": (HALF, REFERENCE)},
}
steps = {(name, factor): {part: step(name, *ends) for part, ends in parts.items()} for factor, parts in STEPS.items() for name in MODELS}

# %%
#| label: tbl-cards-steps
#| tbl-cap: "Points of accuracy that twice and half the resolution bring (negative: cost), and how much of it each of the two steps brings, with paired 95 % intervals over the pictures."
rows = [
    {"resolution": f"× {factor:g}", "model": name, **{part: shares(*parts[part], "+") for part in ("object", "canvas", "both")}}
    for (name, factor), parts in steps.items()
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


# %%
def losers(part: str, factor: float) -> str:
    "Models that are shown to lose accuracy by a step."
    return listed([name for name in MODELS if steps[name, factor][part][2] < 0])


def winners(part: str, factor: float) -> str:
    "Models that are shown to win accuracy by a step."
    return listed([name for name in MODELS if steps[name, factor][part][1] > 0])


canvas_parts = each(lambda name: f"{100 * steps[name, 2]['canvas'][0]:+.1f} and {100 * steps[name, 0.5]['canvas'][0]:+.1f}")
Markdown(
    f"At **twice** the resolution, accuracy is lost to the larger canvas by {losers('canvas', 2)}, and to the larger object by {losers('object', 2)}. At **half**, it is lost to the smaller object by {losers('object', 0.5)}, and to the smaller canvas round it by {losers('canvas', 0.5)}; by the latter it is won by "
    f"{winners('canvas', 0.5)}. The canvas's parts, at twice and at half, are {canvas_parts} points. "
    f"ViTAR makes something else of a canvas than the others do: it divides any into {merged[0]}×{merged[1]} cells. So an object has as many cells at every resolution, and fewer when it alone shrinks or the canvas alone grows. To the others more canvas is more tokens of background, and an object keeps the tokens of its pixels."
)

# %% [markdown]
# ### Would another training say the same?
#
# The intervals so far are about pictures. The steps once more, of several trainings of each model, with intervals over their seeds:

# %%
#| output: false
trainings = {run.key: name for name in MODELS for seed in range(seeds) for run in [run_of(name, seed)]}
repeated = run_grid([run_of(name, seed) for name in MODELS for seed in range(seeds)], results) if seeds else pd.DataFrame()
if seeds:
    factor = repeated.value / repeated.axis.map({"resolution": side}).fillna(1)
    repeated = repeated.assign(point=[f"{axis} {value:g}" for axis, value in zip(repeated.axis, factor, strict=True)], name=repeated.key.map(trainings))


def over_seeds(name: str, part: str, factor: float) -> str:
    "A step's mean over the trainings of a model, with Student's interval."
    if not seeds:
        return "not run in this profile"
    there, here = (f"{axis} {value:g}" for axis, value in STEPS[factor][part])
    found = paired(repeated[repeated.name == name], "point", there, here, [], "accuracy")
    return shares(found["difference"], found["low"], found["high"], "+")


# %%
#| label: tbl-cards-seeds
#| tbl-cap: "The steps of the table before, mean over trainings with different seeds and 95 % intervals over them."
rows = [
    {"resolution": f"× {factor:g}", "model": name, **{part: over_seeds(name, part, factor) for part in ("object", "canvas", "both")}}
    for factor in STEPS for name in MODELS
]  # fmt: skip
Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# ## What else is on a card
#
# A model can be as often right and yet answer otherwise, and a probability should be right about as often as it says.

# %%
modesty = 100 * TrainConfig().label_smoothing * (1 - 1 / len(scenes.classes))
same = each(lambda name: f"{at(name, 'resolution', high, 'agreement'):.1f} %")
bits = each(lambda name: f"{tables[name]['resolution'].divergence[high]:.2f}")
near, far = (each(lambda name, value=value: f"{at(name, 'resolution', value, 'calibration_error'):.1f} %") for value in (side, high))
Markdown(
    f"**Consistency.** At {high} px the answers agree with those at the reference on {same} of the pictures, and the divergence is {bits} bits. "
    f"**Calibration.** The error is {near} at the reference and {far} at {high} px. "
    f"Labels are softened in training, so a model that is always right and has learned just that claims {modesty:.0f} % too little; an error of that size at the reference is modesty, not a fault."
)

# %% [markdown]
# And inside? Similarity of each block with itself at the reference, in the plain model and in ViTAR, both trained at several sizes:

# %%
#| label: fig-cards-layers-plain
#| fig-cap: "Plain transformer trained at several sizes: linear CKA of each block's mean activations with those of the same block at the reference, along the three axes."
sign_figure(card_figures(cards[SEVERAL])["layers"], origin)

# %%
#| label: fig-cards-layers-vitar
#| fig-cap: "The same of ViTAR."
sign_figure(card_figures(cards[VITAR])["layers"], origin)


# %%
def similarity(name: str, axis: str, value: float) -> float:
    "CKA of the deepest layer with itself at the reference."
    point = next(point for point in cards[name].points if (point["axis"], point["value"]) == (axis, value))
    return list(point["cka"].values())[-1]


places = {("resolution", 2 * side): "at twice the resolution", ("object_scale", 0.5): "with half the object", ("canvas", 2): "on twice the canvas"}
found = [f"{similarity(SEVERAL, *place):.2f} in the plain model and {similarity(VITAR, *place):.2f} in ViTAR {where}" for place, where in places.items()]
Markdown(f"The last block is similar to itself at the reference by {'; '.join(found)}.")

# %% [markdown]
# ## Limits
#
# One training of each model is no comparison of methods: with another seed, the recipe that is best here may be second. For that there are experiments with several seeds, above all the [grid of encodings, mergers and schedules](factors.ipynb). The models are small and the scenes plain; a network without the convolutional stem, or one that reads a class token instead
# of a mean over the map, may take a canvas otherwise. What carries over is how to read a card: *no axis alone says how a model stands a change of scale, and the resolution, which is the one that everybody measures, is a mixture of the two others.*

# %% [markdown]
# ## Numbers for the paper

# %%
numbers = {
    "provenance": origin, "side": f"{side}", "small": f"{low}", "large": f"{high}", "sizes": " and ".join(map(str, sizes)),
    "opposed": f"{len(opposed)}", "turns": f"{len(turns)}", "pairs": f"{len(pairs)}", "cut_object": f"{100 * cut['object_scale', 2]:.0f} %", "cut_canvas": f"{100 * cut['canvas', 0.5]:.0f} %",
}  # fmt: skip
for short, name in zip(("one", "several", "rope", "vitar"), MODELS, strict=True):
    numbers |= {f"{short}_{word}": f"{at(name, 'resolution', value):.1f} %" for word, value in (("reference", side), ("small", low), ("large", high))}
    numbers |= {f"{short}_object": f"{at(name, 'object_scale', 0.5):.1f} %", f"{short}_canvas": f"{at(name, 'canvas', 2):.1f} %"}
    numbers |= {f"{short}_{part}_{word}": shares(*steps[name, factor][part], "+") for part in ("object", "canvas", "both") for word, factor in (("double", 2), ("half", 0.5))}
    numbers |= {f"{short}_{part}_{word}_seeds": over_seeds(name, part, factor) for part in ("object", "canvas", "both") for word, factor in (("double", 2), ("half", 0.5))}
numbers["seeds"] = f"{seeds}"
save_numbers("card", numbers, results)
pd.Series(numbers)
