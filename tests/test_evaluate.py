"""The report card as a shell and a browser meet it, and its numbers once more by plain numpy."""

import html
import json
import os
import re
import shutil
import subprocess
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sivit.cli import main
from sivit.core import PALETTE
from sivit.data import create_dataset
from sivit.evaluate import card_html, card_summary, card_tables, compare, report_card, save_card, save_comparison
from sivit.segment import SegmentationConfig, SegmentationModel, segmentation_metrics
from sivit.subject import load_subject
from sivit.train import TrainConfig, train
from sivit.vit import ViTConfig

torch.set_num_threads(1)
IMAGENET = {
    "n01440764": (20, 150, 90),
    "n01443537": (240, 120, 20),
    "n01518878": (90, 90, 90),
}  # tench, goldfish, ostrich


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    "A folder of pictures of many sizes, one folder for each of three classes of ImageNet."
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, colour in IMAGENET.items():
        (root / name).mkdir()
        for number in range(5):
            height, width = generator.integers(60, 300, 2)
            noise = generator.integers(-20, 20, (height, width, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                root / name / f"{number}.png"
            )
    return root


class Small(nn.Module):
    "A convolutional network of any size, with random weights that matter."

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1), nn.Linear(8, 10)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, images):
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def entropy(p):
    return -(p * np.log2(np.maximum(p, 1e-300))).sum(1)


def numpy_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def numpy_calibration(logits, labels):
    "Guo et al. 2017, with 15 bins."
    p = softmax(logits)
    confidence, right = p.max(1), p.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    return sum(abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))


def test_every_number_by_numpy():
    model, digits, sizes = Small().eval(), create_dataset("digits", "val"), (10, 16, 22)
    card = report_card(
        load_subject(model, native=16, name="small"), digits, sizes, probes=len(digits), cost=False, progress=False
    )
    pictures = {size: torch.stack([digits.picture(i, size) for i in range(len(digits))]) * 2 - 1 for size in sizes}
    labels = digits.labels.numpy()
    with torch.no_grad():
        logits = {size: model(images).double().numpy() for size, images in pictures.items()}
        maps = {size: (model.first(x), model.second(model.first(x).relu())) for size, x in pictures.items()}
    before, start = None, softmax(logits[16])
    for point, size in zip(card.points, sizes, strict=True):
        said, p = logits[size].argmax(1), softmax(logits[size])
        divergence = entropy((p + start) / 2) - (entropy(p) + entropy(start)) / 2
        expected = {
            "value": size, "accuracy": (said == labels).mean(), "agreement": (said == logits[16].argmax(1)).mean(),
            "divergence": divergence.mean(), "calibration_error": numpy_calibration(logits[size], labels),
        }  # fmt: skip
        if before is not None:
            expected["flips"] = (said != before).mean()
        for name, value in expected.items():
            assert np.isclose(point[name], value, atol=2e-5), (size, name)
        for layer, here, there in zip(("first", "second"), maps[size], maps[16], strict=True):
            means = (features.double().mean((2, 3)).numpy() for features in (here, there))
            assert np.isclose(point["cka"][layer], numpy_cka(*means), atol=1e-4), (size, layer)
        before = said
        drawn = np.random.default_rng(1).integers(len(labels), size=(3000, len(labels)))
        interval = np.quantile((said == labels)[drawn].mean(1), [0.025, 0.975])
        assert np.allclose([point["low"], point["high"]], interval, atol=0.012)
    accuracies = [(logits[size].argmax(1) == labels).mean() for size in sizes]
    x = np.log2(sizes)
    row = card_summary(card).iloc[0]
    assert np.isclose(row["area"], np.trapezoid(accuracies, x) / (x[-1] - x[0]))
    assert np.isclose(row["worst"], min(accuracies)) and np.isclose(row["retention"], min(accuracies) / accuracies[1])
    assert row["area low"] < row["area"] < row["area high"]


def test_intervals_word_by_word():
    "Pictures drawn again with replacement, all points together: retention, agreement and area, and the score of masks."
    model, digits, sizes = Small().eval(), create_dataset("digits", "val"), (10, 16, 22)
    card = report_card(
        load_subject(model, native=16, name="small"), digits, sizes, probes=0, cost=False, progress=False
    )
    right = np.stack([tally[0, 0].numpy() for tally in card.curve("resolution")[1]])
    with torch.no_grad():
        said = [model(torch.stack([digits.picture(i, s) for i in range(359)]) * 2 - 1).argmax(1) for s in (10, 16)]
    agreeing, drawn = (said[0] == said[1]).numpy(), np.random.default_rng(7).integers(359, size=(4000, 359))
    means, x = right[:, drawn].mean(-1), np.log2(sizes)
    point, row = card.points[0], card_summary(card).iloc[0]
    for found, again in (
        ((point["retention_low"], point["retention_high"]), means[0] / means[1]),
        ((point["agreement_low"], point["agreement_high"]), agreeing[drawn].mean(1)),
        ((row["area low"], row["area high"]), np.trapezoid(means, x, axis=0) / (x[-1] - x[0])),
    ):
        low, high = np.quantile(again, [0.025, 0.975])
        assert np.allclose(found, (low, high), atol=0.08 * (high - low)), (found, low, high)
    assert point["retention"] == pytest.approx(right[0].mean() / right[1].mean())

    scenes = create_dataset("scenes", "val", length=40, target="mask")
    config = SegmentationConfig(ViTConfig(image_size=16, patch_size=4, dim=16, depth=1, heads=2, num_classes=0), 11)
    model = SegmentationModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    card = report_card(load_subject(model, name="masks"), scenes, (16,), cost=False, probes=0, progress=False)
    inside, whole = card.tallies[0].numpy().astype(float)
    drawn = np.random.default_rng(8).integers(40, size=(4000, 40))
    with np.errstate(invalid="ignore"):
        again = np.nanmean(inside[:, drawn].sum(-1) / whole[:, drawn].sum(-1), axis=0)
    low, high = np.quantile(again, [0.025, 0.975])
    assert np.allclose((card.points[0]["low"], card.points[0]["high"]), (low, high), atol=0.08 * (high - low))


class Looks(Small):
    "Looks at the values of a picture, which a count of operations does not have."

    def forward(self, images):
        return super().forward(images * (2 if images.max().item() > 5 else 1))


class Dictionary(Small):
    def forward(self, images):
        return {"logits": super().forward(images), "loss": None}


def test_any_module():
    digits = create_dataset("digits", "val")
    half = load_subject(Small().to(torch.bfloat16), native=16, name="half")
    scripted = load_subject(torch.jit.script(Small()), native=16, name="scripted")
    for subject in (half, scripted, load_subject(Dictionary(), native=16, name="dictionary")):
        card = report_card(subject, digits, (12,), probes=8, cost=False, progress=False)
        assert all(point["status"] == "measured" for point in card.points)
    card = report_card(load_subject(Looks(), native=16, name="looks"), digits, (12,), probes=8, progress=False)
    assert all(point["macs"] is None and point["latency_ms"] > 0 for point in card.points) and card_html(card)
    with pytest.raises(TypeError, match="must give its logits"):
        report_card(load_subject(nn.Sequential(Dictionary(), Strange()), native=16), digits, (12,), progress=False)

    masks = create_dataset("scenes", "val", length=4, target="mask")
    wrong = load_subject(nn.Conv2d(3, 5, 1), native=16, name="five")
    with pytest.raises(ValueError, match=r"scenes has 11 classes, so the model must give \(4, 11, 16, 16\) logits"):
        report_card(wrong, masks, (16,), progress=False)


class Strange(nn.Module):
    def forward(self, answer):
        return {"scores": answer["logits"]}


def test_what_cannot_be_compared_or_kept(tmp_path):
    digits = create_dataset("digits", "val")
    settings = {"probes": 0, "cost": False, "progress": False}
    first = report_card(load_subject(Small(), native=16, name="$first_"), digits, (12,), directory=tmp_path, **settings)
    other = report_card(load_subject(Small(), native=16, name="_other"), digits, canvases=(2,), **settings)
    with pytest.raises(ValueError, match="no axis in common"):
        compare([first, other])
    second = report_card(load_subject(Looks(), native=16, name="_second"), digits, (16,), **settings)
    save_comparison(compare([first, second]), tmp_path / "compared")  # they share the reference alone
    save_card(first, tmp_path)
    different = Small()
    nn.init.normal_(different.head.weight)
    with pytest.raises(ValueError, match=r"holds the card of .* with other weights"):
        report_card(load_subject(different, native=16, name="$first_"), digits, (12,), directory=tmp_path, **settings)
    save_card(second, tmp_path / "again" / "second"), save_card(second, tmp_path / "again" / "copy")
    names = [card.name for card in compare([tmp_path / "again" / "second", tmp_path / "again" / "copy"]).cards]
    assert names == ["second", "copy"]  # of one name, so called after their folders
    for wrong, said in (
        ({"batch_size": 0}, "batch_size=0"),
        ({"reference": 0}, "reference=0"),
        ({"device": "cuda"}, "no GPU"),
    ):
        if wrong == {"device": "cuda"} and torch.cuda.is_available():
            continue
        with pytest.raises(ValueError, match=said):
            report_card(load_subject(Small(), native=16), digits, (12,), **wrong)
    with pytest.raises(ValueError, match="create_dataset"):
        report_card(load_subject(Small(), native=16), "pictures")


def test_equivariance_by_numpy():
    "Maps of pictures of 10 px against those of 20 px, which are resized with the weights of an antialiased triangle."
    model, digits = Small().eval(), create_dataset("digits", "val")
    subject = load_subject(model, native=20, name="small")
    card = report_card(subject, digits, (10,), probes=12, cost=False, progress=False)
    chosen = np.linspace(0, len(digits) - 1, 12).round().astype(int)
    with torch.no_grad():
        small, large = (
            model.second(model.first(torch.stack([digits.picture(i, size) for i in chosen]) * 2 - 1).relu())
            for size in (10, 20)
        )
    weights = np.zeros((5, 10))  # a triangle of twice the width, for each of the new centres
    for j in range(5):
        distance = np.abs(np.arange(10) + 0.5 - 2 * (j + 0.5)) / 2
        weights[j] = np.maximum(0, 1 - distance)
    weights /= weights.sum(1, keepdims=True)
    resized = np.einsum("j y, i x, n d y x -> n d j i", weights, weights, large.double().numpy())
    expected = ((small.double().numpy() - resized) ** 2).sum() / (resized**2).sum()
    assert np.isclose(card.points[0]["equivariance_error"], expected, rtol=1e-4)


def test_masks_along_all_axes():
    config = SegmentationConfig(ViTConfig(image_size=16, patch_size=4, dim=16, depth=2, heads=2, num_classes=0), 11)
    torch.manual_seed(0)
    model, scenes = SegmentationModel(config), create_dataset("scenes", "val", length=24, target="mask")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    card = report_card(
        load_subject(model, name="outlines"), scenes, (12, 16, 24), (0.5, 2), (2,), cost=False, progress=False
    )
    assert card.measure == "miou" and card.axes == ("resolution", "object_scale", "canvas")
    for point in card.points:
        axis, value = point["axis"], point["value"]
        here = scenes if axis == "resolution" else scenes.at(**{axis: value})
        scene, metrics = here.scenes(range(24), value if axis == "resolution" else 16), segmentation_metrics(11)
        with torch.no_grad():
            metrics.update(model.eval()(scene.image * 2 - 1).argmax(1), scene.mask.long())
        assert point["miou"] == pytest.approx(metrics.compute()["miou"].item(), abs=1e-6), (axis, value)
        assert point["low"] <= point["miou"] <= point["high"]
    other = SegmentationModel(config)
    rival = report_card(load_subject(other, name="other"), scenes, (12, 16, 24), cost=False, progress=False)
    rows = compare([card, rival]).points
    assert (
        set(rows["axis"]) == {"resolution"}
        and (rows["low"] <= rows["difference"]).all()
        and rows["p"].between(0, 1).all()
    )


def test_a_run_of_another_task(tmp_path):
    "Boxes have a precision along the resolution, without an interval, and no paired test."
    detector = {"pyramid": (1.0,), "pyramid_dim": 16, "anchor_sizes": (4.0,), "anchor_samples": 32, "proposals": 8,
                "box_samples": 8, "box_dim": 16, "mask_layers": 1}  # fmt: skip
    config = TrainConfig(
        task="detection", task_options={"detector": detector}, dataset="scenes", sizes=(24,), epochs=1, batch_size=8,
        dataset_options={"length": 16, "target": "objects"}, model_options={"depth": 1, "dim": 16, "heads": 2},
    )  # fmt: skip
    train(config, tmp_path / "run", progress=False)
    subject = load_subject(tmp_path / "run")
    name, options = subject.dataset
    scenes = create_dataset(name, "val", **options)
    card = report_card(subject, scenes, (16, 24), cost=False, progress=False)
    assert card.measure == subject.task.measure and card.reference == (24, 24)
    assert all(0 <= point[card.measure] <= 1 for point in card.points) and not card.tallies
    save_card(card, tmp_path / "card")
    with pytest.raises(ValueError, match="not known picture by picture"):
        compare(
            [
                card,
                report_card(load_subject(tmp_path / "run", name="again"), scenes, (16, 24), cost=False, progress=False),
            ]
        )
    plain = load_subject(Small(), native=16, name="small")
    with pytest.raises(ValueError, match="have objects; only a model that was trained by this package"):
        report_card(plain, scenes)


def test_names_are_text():
    name = "<script>alert('size')</script> & co"
    card = report_card(
        load_subject(Small(), native=16, name=name), create_dataset("digits", "val"), (16,), cost=False, progress=False
    )
    page = card_html(card)
    assert "<script" not in page and "&lt;script&gt;alert(&#39;size&#39;)&lt;/script&gt; &amp; co" in page


# In a browser

LOOK = """
<script>
addEventListener("load", () => {
  const box = element => element.getBoundingClientRect().toJSON();
  const written = table => [...table.rows].map(row => [...row.cells].map(cell => cell.innerText));
  const seen = {
    title: document.title, width: innerWidth,
    fetched: performance.getEntriesByType("resource").map(entry => entry.name),
    images: [...document.images].map(image => ({alt: image.alt, natural: image.naturalWidth, box: box(image)})),
    tables: [...document.querySelectorAll("table")].map(table => ({box: box(table), cells: written(table)})),
  };
  const note = document.createElement("pre");
  note.id = "seen"; note.style.display = "none"; note.textContent = JSON.stringify(seen);
  document.body.append(note);
});
</script>
"""


def in_browser(page, folder):
    "What headless Chromium shows of a page: what is where, and a picture of it."
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium on PATH; install it to see the page in a browser")
    watched, picture = folder / "watched.html", folder / "page.png"
    watched.write_text(page.read_text().replace("</body>", LOOK + "</body>"))
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1000,4000",
        f"--user-data-dir={folder / 'profile'}",
    ]
    dom = subprocess.run(
        [browser, *quiet, "--dump-dom", watched.as_uri()], capture_output=True, text=True, timeout=120
    ).stdout
    subprocess.run([browser, *quiet, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120)
    found = re.search(r'<pre id="seen"[^>]*>(.*?)</pre>', dom, re.S)
    return json.loads(html.unescape(found[1])), np.asarray(Image.open(picture).convert("RGB")).astype(int)


def shows(picture, box, colour):
    "Number of pixels in a box that have nearly this colour."
    top, left, bottom, right = (int(box[name]) for name in ("top", "left", "bottom", "right"))
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture[top:bottom, left:right] - wanted).max(-1) < 24).sum())


def test_a_card_from_the_command_line_in_a_browser(photographs, tmp_path):
    "A timm model with random weights; its figures and tables are looked at in Chromium."
    command = [
        sys.executable, "-m", "sivit.cli", "evaluate", "--model", "timm:vit_tiny_patch16_224", "--weights", "random",
        "--data", photographs, "--sizes", "96", "160", "224", "100", "--object-scales", "0.5", "--canvases", "1.5",
        "--output", tmp_path / "card",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Along the resolution" in done.stdout and f"The card is {tmp_path / 'card' / 'card.html'}." in done.stdout
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert (
        card["model"]["way"] == "dynamic_img_size" and card["data"]["count"] == 15 and card["reference"] == [224, 224]
    )
    assert (card["data"]["crop_ratio"], card["data"]["interpolation"]) == (
        0.9,
        "bicubic",
    )  # as timm's weights were judged
    statuses = {point["value"]: point["status"] for point in card["points"] if point["axis"] == "resolution"}
    assert statuses[96] == statuses[160] == statuses[224] == "measured" and statuses[100].startswith("refused")
    assert all(
        point["macs"] > 1e8 and point["peak_bytes"] > 1e5 for point in card["points"] if point["status"] == "measured"
    )

    seen, picture = in_browser(tmp_path / "card" / "card.html", tmp_path)
    assert seen["title"] == "timm:vit_tiny_patch16_224: a report card" and all(
        name.startswith("data:") for name in seen["fetched"]
    )
    assert len(seen["images"]) == 4 and len(seen["tables"]) == 3
    for image in seen["images"]:
        assert (
            image["natural"] > 0
            and image["alt"]
            and image["box"]["right"] <= seen["width"]
            and image["box"]["height"] > 100
        )
    curves, consistency, layers, cost = seen["images"]
    for image, colours in (
        (curves, ("blue", "vermilion", "green")),
        (consistency, ("blue", "vermilion", "green")),
        (cost, ("blue",)),
    ):
        assert all(shows(picture, image["box"], PALETTE[colour]) > 20 for colour in colours)
    assert shows(picture, layers["box"], "#fee838") > 500  # the yellow of a similarity of 1, at the reference
    written = re.findall(r"^\| .*\|$", (tmp_path / "card" / "card.md").read_text(), re.M)
    shown = [row for table in seen["tables"] for row in table["cells"]]
    assert [[" ".join(cell.split()) for cell in row] for row in shown] == [
        [cell.strip() for cell in line.strip("|").split("|")] for line in written
    ]
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert again.stdout == done.stdout  # latencies too: nothing was measured twice


def test_compare_from_the_command_line(photographs, tmp_path, capsys):
    for name, way in (("moved", "dynamic_img_size"), ("resized", "resized input")):
        arguments = [
            "--model",
            "timm:vit_tiny_patch16_224",
            "--weights",
            "random",
            "--way",
            way,
            "--name",
            name,
            "--no-cost",
            "--limit",
            "9",
            "--sizes",
            "112",
        ]
        assert main(["evaluate", *arguments, "--data", str(photographs), "--output", str(tmp_path / name)]) == 0
    assert (
        main(["compare", str(tmp_path / "moved"), str(tmp_path / "resized"), "--output", str(tmp_path / "both")]) == 0
    )
    said = capsys.readouterr().out
    assert "moved − resized" in said and (tmp_path / "both" / "comparison.html").exists()
    seen, picture = in_browser(tmp_path / "both" / "comparison.html", tmp_path)
    assert (
        len(seen["images"]) == 1
        and len(seen["tables"]) == 2
        and shows(picture, seen["images"][0]["box"], PALETTE["orange"]) > 50
    )
    plain = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert {point["value"] for point in plain["points"]} == {112, 224}


def test_a_torchvision_model(photographs):
    torch.manual_seed(0)
    folder = create_dataset("image_folder", "val", root=photographs, whole=True)
    assert len(folder) == 15
    subject = load_subject("torchvision:resnet18", weights="random", num_classes=3)
    card = report_card(subject, folder, (64, 224), probes=6, cost=False, progress=False)
    assert subject.way == "as it is" and len(card.points[0]["cka"]) >= 4 and "Along the resolution" in card_tables(card)
    assert card.data["crop_ratio"] == pytest.approx(224 / 256)


BUILD = """
import os
import torch
from torch import nn


class Attention(nn.Module):
    "Attention between all pixels, written out; it ends its process at 48 px."

    def __init__(self):
        super().__init__()
        self.lift, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

    def forward(self, images):
        if images.shape[-1] == 48:
            os.kill(os.getpid(), 9)
        tokens = self.lift(images).flatten(2).mT
        return self.head((tokens @ tokens.mT).softmax(-1) @ tokens).mean(1)


def build():
    torch.manual_seed(0)
    return Attention()
"""


def test_memory_that_ends_and_processes_that_die(photographs, tmp_path):
    "Real ones: an allocation that the system refuses, and a process that is killed at one size, twice."
    (tmp_path / "mine.py").write_text(BUILD)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))"  # 32 GiB of addresses
    command = [
        "--model",
        f"python:{tmp_path / 'mine.py'}:build",
        "--data",
        photographs,
        "--native",
        "16",
        "--no-cost",
    ]
    command += ["--sizes", "32", "48", "64", "2048", "--batch-size", "8", "--output", tmp_path / "card"]
    arguments = repr(["evaluate", *map(str, command)])
    code = [sys.executable, "-c", f"{limit}; import sys; from sivit.cli import main; sys.exit(main({arguments}))"]
    first, second, third = (subprocess.run(code, capture_output=True, text=True) for _ in range(3))
    assert (first.returncode, second.returncode) == (-9, -9) and third.returncode == 0, third.stderr
    points = {point["value"]: point for point in json.loads((tmp_path / "card" / "card.json").read_text())["points"]}
    assert points[48]["status"] == "ended the process twice, for lack of memory or from outside"
    assert points[2048]["status"] == "out of memory"  # 64 TiB of weights for one picture
    assert [points[size]["status"] for size in (16, 32, 64)] == ["measured"] * 3
    assert "At 2048 px: out of memory." in third.stdout and "At 48 px: ended the process twice" in third.stdout
