"""Detection: a batch learned by heart, any size, masks to the pixel, COCO's measure by its definition, the loop."""

import dataclasses
import itertools
import json
import math

import PIL.Image
import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

import sivit.train
from sivit.core import from_dict, to_dict
from sivit.cost import count_macs
from sivit.data import create_dataset, create_loader
from sivit.detect import Detection, DetectionConfig, DetectionMeasures, Detector, _at_corners, _paste
from sivit.task import create_task, load_encoder, score
from sivit.train import TrainConfig, train
from sivit.vit import ViTConfig, create_model

SMALL = {
    "pyramid": (2.0, 1.0, 0.5), "pyramid_dim": 32, "anchor_sizes": (4.0,), "anchor_samples": 64, "proposals": 32,
    "box_samples": 24, "box_dim": 64, "mask_layers": 2,
}  # fmt: skip
MERGERS = {
    "none": {},
    "cells of one": {"merger": "atm", "merger_options": {"ratio": 1}},
    "cells of two": {"merger": "atm", "merger_options": {"ratio": 2}},
}
every_merger = pytest.mark.parametrize("merger", MERGERS.values(), ids=MERGERS.keys())
SCENES = {"target": "objects", "config": {"classes": 3, "objects": 3}}


def make(seed=0, masks=True, encoder=None, **changes):
    "A tiny detector."
    torch.manual_seed(seed)
    base = {"image_size": 48, "patch_size": 4, "dim": 32, "depth": 2, "heads": 4, "pool": "mean"}
    return Detector(DetectionConfig(ViTConfig(**base | (encoder or {})), 3, masks, **SMALL | changes))


def scenes(count, size, split="train"):
    "Pictures and their objects."
    batch = next(iter(create_loader(create_dataset("scenes", split, length=count, **SCENES), count, size)))
    return batch.images[0], batch.targets[0]


def entropy_of_mask_targets(targets):
    "What the loss of a perfect mask is, since targets are no whole numbers at the border of an object."
    parts = [(_at_corners(t["masks"]), t["boxes"], torch.arange(len(t["labels"]))) for t in targets]
    soft = torch.cat([project_masks_on_boxes(*part, 28) for part in parts])
    return nn.functional.binary_cross_entropy(soft, soft).item()


@pytest.mark.parametrize("merger", ["none", "cells of two"])
def test_one_batch_is_learned_by_heart(merger):
    detector, (images, targets) = make(encoder=MERGERS[merger]), scenes(2, 48)
    optimiser = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=150)
    for _ in range(150):
        losses = detector.train()(images, targets)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    losses = {name: loss.item() for name, loss in losses.items()}
    losses["loss_mask"] -= entropy_of_mask_targets(targets)
    assert all(abs(loss) < 0.1 for loss in losses.values()), losses
    measures = DetectionMeasures(masks=True)
    with torch.no_grad():
        measures.update(detector.eval()(images), targets)
    result = measures.compute()
    assert result["map_50"] == result["mask_map_50"] == 1 and min(result["map"], result["mask_map"]) > 0.8


@every_merger
@pytest.mark.parametrize("masks", [True, False])
def test_any_size_and_a_saved_detector_returns(merger, masks, tmp_path):
    encoder = {"class_token": True, "registers": 2, "stem": "hybrid", "position": "rope_mixed", **merger}
    detector = make(masks=masks, encoder=encoder).eval()
    detector.save_pretrained(tmp_path)
    loaded = Detector.from_pretrained(tmp_path)
    assert loaded.config == detector.config and not loaded.training
    for size in [(48, 48), (21, 64), (100, 9)]:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            found, again = detector(images), loaded(images)
        for one, other in zip(found, again, strict=True):
            assert set(one) == {"boxes", "labels", "scores"} | ({"masks"} if masks else set())
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
            assert len(one["boxes"]) and (one["boxes"] <= torch.tensor([size[1], size[0]] * 2)).all()
        images, targets = scenes(2, size)
        losses = detector.train()(images, targets)
        sum(losses.values()).backward()
        assert ("loss_mask" in losses) == masks
        missing = [name for name, p in detector.named_parameters() if p.grad is None and p.requires_grad]
        assert not missing and all(p.grad.isfinite().all() for p in detector.parameters())
        detector.eval()


def test_patches_whose_side_is_no_power_of_two():
    detector = make(encoder={"patch_size": 14, "image_size": 84}, pyramid=(2.0, 1.0)).eval()
    assert detector.config.strides == (7, 14) and detector.multiple == 14
    images, targets = scenes(2, (84, 100))
    assert all(torch.isfinite(loss) for loss in detector.train()(images, targets).values())
    with pytest.raises(ValueError, match=r"cells of \(3.5, 7.0\) px.*Begin with a smaller number"):
        make(encoder={"patch_size": 14, "image_size": 84}, pyramid=(4.0, 2.0))


def test_a_loss_is_the_same_with_blocks_computed_twice_and_nearly_so_in_half_precision():
    detector, (images, targets) = make(), scenes(2, 48)

    def losses(**options):
        torch.manual_seed(0)  # of the anchors and proposals that are looked at
        with torch.autocast("cpu", torch.bfloat16, **options):
            return detector(images, targets)

    plain, half = losses(enabled=False), losses()
    detector.set_grad_checkpointing()
    torch.testing.assert_close(losses(enabled=False), plain)
    assert all(loss.dtype == torch.float32 for loss in half.values())
    torch.testing.assert_close(half["loss_objectness"], plain["loss_objectness"], atol=0.02, rtol=0)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = detector.eval()(images)[0]
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64, torch.bool}


def test_masks_go_to_boxes_and_back_by_bilinear_interpolation():
    torch.manual_seed(0)
    picture = torch.rand(7, 9)
    corners = _at_corners(picture[None])[0]
    for i in range(7):
        for j in range(9):
            near = [picture[max(i - a, 0), max(j - b, 0)] for a in (0, 1) for b in (0, 1)]
            torch.testing.assert_close(corners[i, j], sum(near) / 4)
    assert _at_corners(torch.zeros(0, 7, 9, dtype=torch.bool)).shape == (0, 7, 9)

    masks, boxes = torch.rand(20, 4, 4), torch.rand(20, 4) * torch.tensor([9, 7, 9, 7])
    boxes[:, 2:] += boxes[:, :2] + 1
    pasted = _paste(masks, boxes, (7, 9))
    for n in range(20):
        x1, y1, x2, y2 = boxes[n].tolist()
        x, y = (2 * (torch.arange(9) + 0.5 - x1) / (x2 - x1) - 1), (2 * (torch.arange(7) + 0.5 - y1) / (y2 - y1) - 1)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        value = nn.functional.grid_sample(masks[None, None, n], grid[None], align_corners=False)[0, 0]
        clear = (value - 0.5).abs() > 1e-4
        assert torch.equal(pasted[n][clear], (value > 0.5)[clear])
    assert _paste(masks[:0], boxes[:0], (7, 9)).shape == (0, 7, 9)


def average_precision(found, truth, label, threshold):
    "AP of one class at one threshold, from its definition: a list in the order of scores, a rank at a time."
    ranked = sorted(
        ((score, picture, box) for picture, f in enumerate(found) for score, box, own in
         zip(f["scores"].tolist(), f["boxes"], f["labels"].tolist(), strict=True) if own == label),
        key=lambda entry: -entry[0],
    )  # fmt: skip
    objects = [t["boxes"][t["labels"] == label] for t in truth]
    total, taken, right, curve = sum(map(len, objects)), set(), 0, []
    if not total:
        return math.nan
    for rank, (_, picture, box) in enumerate(ranked, start=1):
        overlaps = [] if not len(objects[picture]) else box_iou(box[None], objects[picture])[0].tolist()
        free = [(o, i) for i, o in enumerate(overlaps) if (picture, i) not in taken and o >= threshold]
        if free:
            taken.add((picture, max(free)[1]))
            right += 1
        curve.append((right / total, right / rank))
    return sum(max((p for recall, p in curve if recall >= i / 100 - 1e-9), default=0.0) for i in range(101)) / 101


def test_measures_are_their_definition():
    generator = torch.Generator().manual_seed(0)

    def some(count):
        corner, side = (torch.rand(count, 2, generator=generator) * high for high in (60, 30))
        labels = torch.randint(3, (count,), generator=generator)
        return {"boxes": torch.cat([corner, corner + side + 5], 1), "labels": labels}

    truth = [some(count) for count in (4, 0, 7, 2, 5, 1)]
    found = []
    for target, more in zip(truth, (2, 3, 0, 0, 4, 1), strict=True):  # objects that were nearly found, and inventions
        near = target["boxes"] + torch.randn(target["boxes"].shape, generator=generator)
        extra = some(more)
        boxes, labels = torch.cat([near, extra["boxes"]]), torch.cat([target["labels"], extra["labels"]])
        found.append({"boxes": boxes, "labels": labels, "scores": torch.rand(len(labels), generator=generator)})
    found[3] = {name: value[:0] for name, value in found[3].items()}
    measures = DetectionMeasures()
    for start in (0, 2, 4):
        measures.update(found[start : start + 2], truth[start : start + 2])
    result, thresholds = measures.compute(), [0.5 + 0.05 * i for i in range(10)]
    by_threshold = [sum(average_precision(found, truth, label, t) for label in range(3)) / 3 for t in thresholds]
    assert result["map"].item() == pytest.approx(sum(by_threshold) / 10, abs=1e-6)
    assert result["map_50"].item() == pytest.approx(by_threshold[0], abs=1e-6)
    assert result["map_75"].item() == pytest.approx(by_threshold[5], abs=1e-6)
    assert 0.2 < result["map"] < 0.8


@pytest.mark.parametrize("masks", [True, False])
def test_measures_of_nothing(masks):
    def objects(count, **more):
        box, mask = torch.tensor([[2.0, 2, 9, 9]]).expand(count, 4), torch.ones(count, 12, 12, dtype=torch.bool)
        return {"boxes": box, "labels": torch.zeros(count, dtype=torch.long), "masks": mask, **more}

    def measured(found, truth):
        measures = DetectionMeasures(masks)
        measures.update(found, truth)
        return [measures.compute()[name].item() for name in (("map", "mask_map") if masks else ("map",))]

    one, none = objects(1, scores=torch.ones(1)), objects(0, scores=torch.ones(0))
    assert set(measured([none, none], [objects(1), objects(0)])) == {0.0}
    assert set(measured([one, none], [objects(1), objects(0)])) == {1.0}
    assert all(math.isnan(value) for value in measured([one], [objects(0)]))
    crowd = {"iscrowd": torch.ones(1, dtype=torch.long)}
    assert set(measured([one, one], [objects(1), objects(1, **crowd)])) == {1.0}  # in a crowd nothing is wrong


RUN = TrainConfig(
    task="detection", task_options={"detector": SMALL},
    model_options={"dim": 16, "depth": 1, "heads": 2, "image_size": 32}, dataset="scenes",
    dataset_options={"length": 16, **SCENES}, sizes=(24, 32), schedule="all", batch_size=4, epochs=2,
)  # fmt: skip


def test_the_loop_trains_measures_and_resumes(tmp_path, monkeypatch):
    whole, step, left = Detection.dataset, sivit.train.train_step, iter(range(5))

    def interrupted(*given, **named):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*given, **named)

    monkeypatch.setattr(Detection, "dataset", lambda self, split, **o: whole(self, split, **{"length": 16} | o))
    straight = train(RUN, tmp_path / "straight", progress=False)
    saving = dataclasses.replace(RUN, save_every=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sivit.train, "train_step", interrupted)
        train(saving, tmp_path / "again", progress=False)
    resumed = train(saving, tmp_path / "again", progress=False)
    pairs = zip(straight.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    rows = [json.loads(line) for line in (tmp_path / "again" / "history.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all({"map", "mask_map_50", "loss"} <= row.keys() for row in rows)


def test_the_loss_of_several_sizes_is_their_mean():
    task = create_task(RUN)
    pictures = task.dataset("train")
    model = task.model(pictures)
    batch = next(iter(create_loader(pictures, 3, lambda step: (32, 24))))
    images, targets = task.prepare(batch, pictures, seed=0)
    torch.manual_seed(0)
    together = task.loss(model, images, targets)
    torch.manual_seed(0)
    alone = [sum(model(view, objects).values()) for view, objects in zip(images, targets, strict=True)]
    torch.testing.assert_close(together, sum(alone) / 2)
    assert targets[0][0]["boxes"].max() > targets[1][0]["boxes"].max()


def test_the_task_in_full(tmp_path):
    task = create_task(dataclasses.replace(RUN, task_options={"detector": SMALL | {"proposals": 8}, "masks": False}))
    model = task.model(task.dataset("train"))
    assert model.config.num_classes == 3 and model.config.proposals == 8 and not model.config.masks
    assert task.rebuild(to_dict(model.config)).config == model.config
    assert from_dict(DetectionConfig, json.loads(json.dumps(to_dict(model.config)))) == model.config
    measured = score(task, model, task.dataset("val", length=4), (24, 40))
    assert task.measure in measured and "mask_map" not in measured
    other = create_model("vit_micro_patch4", **RUN.model_options, num_classes=7)
    other.save_pretrained(tmp_path)
    load_encoder(model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.parameters(), other.encoder.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"no setting 'proposal'. Did you mean 'proposals'"):
        create_task(dataclasses.replace(RUN, task_options={"detector": {"proposal": 3}})).model(task.dataset("train"))


def test_pictures_and_crowds_in_the_layout_of_coco(tmp_path):
    def one(number, image, box, crowd=0):
        x, y, w, h = box
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if crowd:
            column = [0] * y + [1] * h + [0] * (30 - y - h)
            mask = [value for i in range(40) for value in (column if x <= i < x + w else [0] * 30)]
            lengths = [len(list(group)) for _, group in itertools.groupby([0, *mask])]
            outline = {"size": [30, 40], "counts": [lengths[0] - 1, *lengths[1:]]}
        return {"id": number, "image_id": image, "category_id": 7, "bbox": box, "area": w * h, "iscrowd": crowd,
                "segmentation": outline}  # fmt: skip

    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in (1, 2)],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [one(1, 1, [4, 5, 12, 9]), one(2, 1, [20, 10, 15, 18], crowd=1)],
    }
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        for image in content["images"]:
            PIL.Image.new("RGB", (40, 30), (90, 60, 30)).save(tmp_path / f"{split}2017" / image["file_name"])
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    run = dataclasses.replace(
        RUN, dataset="coco", dataset_options={"root": str(tmp_path)}, schedule="single", sizes=(32,)
    )
    task = create_task(run)
    pictures = task.dataset("val")
    model = task.model(pictures)
    batch = next(iter(create_loader(pictures, 2, (30, 40), train=True)))
    assert {len(objects["labels"]) for objects in batch.targets[0]} <= {0, 1}  # never the crowd
    assert task.loss(model, *task.prepare(batch, pictures, seed=0)).isfinite()
    truth = next(iter(create_loader(pictures, 2, (30, 40)))).targets[0]
    assert [objects["iscrowd"].tolist() for objects in truth] == [[0, 1], []]
    perfect = [objects | {"scores": torch.ones(len(objects["labels"]))} for objects in truth]
    measures = task.metrics(pictures)
    measures.update(perfect, truth)
    assert measures.compute()["map"] == measures.compute()["mask_map"] == 1
    assert 0 <= score(task, model, pictures, (30, 40))["map"] <= 1


def test_operations_grow_with_the_boxes_that_are_allowed():
    few, many = (count_macs(make(proposals=n), (48, 64)) for n in (10, 20))
    per_box = 32 * 49 * 64 + 64 * 64 + 64 * 4 * 5  # two hidden layers, four classes, four boxes of four numbers
    assert many - few == 10 * per_box
