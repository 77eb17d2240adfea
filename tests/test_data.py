"""Sets as their archives leave them, files as the world leaves them, batches whoever makes them."""

import contextlib
import hashlib
import io
import json
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from sivit.data import (
    PIXEL_LIMIT,
    BrokenPicture,
    CocoDetection,
    EpochSampler,
    ResampledDataset,
    SceneParse150,
    View,
    central_view,
    create_dataset,
    create_loader,
    random_view,
    read_picture,
)

torch.set_num_threads(1)
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


# ---------------------------------------------------------------- order


def sizes(step):
    return ((16,), (24, 8), ((16, 32),))[step % 3]


def batch_size(step):
    return (12, 24, 36)[step % 3]


def sampler(train=True, size=12, count=100, seed=3, **process):
    return EpochSampler(count, size, sizes, train, seed, **process)


def epoch(sampler, number, skip=0):
    sampler.set_epoch(number, skip)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", [12, batch_size], ids=["constant", "by_step"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 12])
def test_ranks_share_every_batch(train, size, ranks):
    alone = sampler(train, size)
    shared = [sampler(train, size, rank=rank, ranks=ranks) for rank in range(ranks)]
    for number in (0, 1, 4):
        whole, parts = epoch(alone, number), [epoch(part, number) for part in shared]
        assert len({part.steps(number + 1) for part in [alone, *shared]}) == 1
        for step, keys in enumerate(whole):
            got = [part[step] for part in parts if step < len(part)]
            assert sorted(key for part in got for key in part) == sorted(keys)
            assert {key[1] for part in got for key in part} == {keys[0][1]}
            if train:
                assert [len(part) for part in got] == [len(keys) // ranks] * ranks
        seen = [key[0] for part in parts for keys in part for key in keys]
        assert len(seen) == len(set(seen)) and (train or sorted(seen) == list(range(100)))


def test_a_last_evaluation_batch_smaller_than_the_ranks_goes_to_some_of_them():
    parts = [epoch(sampler(False, 8, count=10, rank=rank, ranks=4), 0) for rank in range(4)]
    assert [[len(keys) for keys in part] for part in parts] == [[2, 1], [2, 1], [2], [2]]


@pytest.mark.parametrize("size", [12, batch_size], ids=["constant", "by_step"])
def test_skipping_gives_the_tail_of_the_epoch(size):
    for number in range(3):
        whole = epoch(sampler(size=size), number)
        for skip in range(len(whole) + 1):
            assert epoch(sampler(size=size), number, skip) == whole[skip:]


def test_a_run_can_be_resumed_by_another_number_of_ranks():
    whole = epoch(sampler(), 2)
    parts = [epoch(sampler(rank=rank, ranks=3), 2, skip=5) for rank in range(3)]
    assert [[*a, *b, *c] for a, b, c in zip(*parts, strict=True)] == whole[5:]


def test_steps_are_counted_over_all_epochs():
    loose, seen = sampler(size=batch_size), []
    for number in range(7):
        assert loose.steps(number) == len(seen)
        seen += epoch(loose, number)
    assert [len(keys) for keys in seen] == [batch_size(step) for step in range(len(seen))]
    wanted = (((16, 16),), ((24, 24), (8, 8)), ((16, 32),))
    assert [keys[0][1] for keys in seen] == [wanted[step % 3] for step in range(len(seen))]


def test_one_seed_one_order_two_seeds_two():
    first, again, other = (epoch(sampler(seed=seed), 1) for seed in (3, 3, 4))
    assert first == again and first != other and first != epoch(sampler(), 0)


def test_a_batch_size_that_outgrows_the_dataset_is_named():
    late = sampler(size=lambda step: 24 if step < 4 else 240)
    assert late.steps(1) == 4
    with pytest.raises(ValueError, match="100 pictures are too few for one training batch of 240"):
        late.set_epoch(1)


def flat(targets):
    "All tensors in the targets of a batch."
    for target in targets:
        yield from [target] if isinstance(target, torch.Tensor) else (v for one in target for v in one.values())


def equal(first, second):
    def parts(batches):
        return [part for b in batches for part in (b.indices, b.labels, *b.images, *flat(b.targets))]

    return all(torch.equal(a, b) for a, b in zip(parts(first), parts(second), strict=True))


@pytest.fixture(scope="module")
def noise():
    pictures = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (50, 3, 20, 24), dtype=np.uint8))
    view = View(rand_augment=2, rand_magnitude=27, erasing=0.5, color_jitter=0.4)
    return ResampledDataset("noise", pictures, [i % 5 for i in range(50)], "abcde", view)


def test_pictures_are_the_same_from_any_worker_and_rank(noise):
    whole = create_loader(noise, 12, sizes, train=True, seed=5)
    whole.set_epoch(1, skip=1)
    expected = list(whole)
    assert len(expected) == 3
    parts = [create_loader(noise, 12, sizes, train=True, seed=5, workers=1, rank=rank, ranks=2) for rank in range(2)]
    for part in parts:
        part.set_epoch(1, skip=1)
    for batch, *shared in zip(expected, *parts, strict=True):
        for j, images in enumerate(batch.images):
            assert torch.equal(images, torch.cat([part.images[j] for part in shared]))


STILL = {"crop_scale": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "flip": 0.0}
AUGMENTATIONS = {"crop_scale": (0.1, 0.9), "rand_augment": 2, "color_jitter": 0.5, "erasing": 1.0}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_differs_between_sizes_pictures_and_epochs(noise, name):
    view = View(**STILL | {name: AUGMENTATIONS[name]})
    same = ResampledDataset("same", noise.pictures[:1].repeat(50, 1, 1, 1), [0] * 50, "a", view)
    loader = create_loader(same, 25, lambda step: (16, 16), train=True)
    batches = list(loader)
    loader.set_epoch(1)
    for a, b in zip(batches, loader, strict=True):
        different = (a.images[0] != a.images[1]).flatten(1).any(1)
        assert different.sum() > 20 and (a.images[0] != b.images[0]).flatten(1).any(1).sum() > 20
        assert len(a.images[0].unique(dim=0)) > 10
    same.view = View(**STILL)
    assert len(next(iter(create_loader(same, 25, 16, train=True))).images[0].unique(dim=0)) == 1


# ---------------------------------------------------------------- files


def png(width, height, depth, colour, pixels, *chunks):
    "A PNG by hand, for what Pillow cannot write; `pixels` holds whole rows, each after its filter byte."

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    between = b"".join(chunk(kind, content) for kind, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + between + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")


def encoded(picture, kind, **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def rgb(array):
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def read(content, tmp_path, name="picture"):
    path = tmp_path / name
    path.write_bytes(content)
    return read_picture(path)


PICTURE = Image.fromarray(NOISE)
INDEXED = PICTURE.quantize(16)


def every_mode():
    "All modes that the formats hold."
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        for mode in ("RGB", "L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr"):
            with contextlib.suppress(OSError, ValueError):
                content = encoded(PICTURE.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
                yield pytest.param(content, id=f"{kind}-{mode}")


@pytest.mark.parametrize("content", list(every_mode()))
def test_every_mode_becomes_rgb(content, tmp_path):
    assert torch.equal(read(content, tmp_path), rgb(Image.open(io.BytesIO(content)).convert("RGB")))


def test_cmyk_photographs_are_not_inverted(tmp_path):
    black = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG", quality=100)
    white = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=100)
    assert read(black, tmp_path).max() < 5 and read(white, tmp_path).min() > 250


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.random.default_rng(2).integers(0, 65536, (9, 11), dtype=np.uint16)
    values[0, :4] = 0, 256, 65280, 65535
    exact = torch.from_numpy(values.astype(np.float64)) / 257
    for kind in ("PNG", "TIFF"):
        grey = read(encoded(Image.fromarray(values), kind), tmp_path)
        assert torch.equal(grey[0], grey[2]) and (grey[0] - exact).abs().max() <= 0.5
    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in values)
    colour = read(png(11, 9, 16, 2, rows), tmp_path)
    assert (colour - exact).abs().max() <= 1 and colour[:, 0, 3].tolist() == [255] * 3  # Pillow keeps the upper 8 bits
    rows = b"".join(b"\0" + np.stack([row, np.full_like(row, 65535)], -1).astype(">u2").tobytes() for row in values)
    assert (read(png(11, 9, 16, 4, rows), tmp_path)[0] - exact).abs().max() <= 1  # grey with an opaque alpha


def test_what_is_transparent_is_laid_on_white(tmp_path):
    alpha = np.linspace(0, 255, 24 * 32).astype(np.uint8).reshape(24, 32, 1)
    expected = rgb(NOISE).float() * (rgb(alpha) / 255) + 255 * (1 - rgb(alpha) / 255)
    glass = Image.fromarray(np.concatenate([NOISE, alpha], -1))
    for content in (encoded(glass, "PNG"), encoded(glass, "TIFF")):
        assert (read(content, tmp_path) - expected).abs().max() <= 1
    keyed = png(2, 1, 8, 2, b"\0" + bytes([9, 8, 7, 1, 2, 3]), (b"tRNS", struct.pack(">HHH", 9, 8, 7)))
    assert read(keyed, tmp_path).flatten(1).T.tolist() == [[255, 255, 255], [1, 2, 3]]
    palette = read(encoded(INDEXED, "PNG", transparency=3), tmp_path)
    holes = torch.from_numpy(np.array(INDEXED)) == 3
    assert holes.any() and (palette[:, holes] == 255).all()
    assert torch.equal(palette[:, ~holes], rgb(INDEXED.convert("RGB"))[:, ~holes])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation, tmp_path):
    tag = Image.Exif()
    tag[0x0112] = orientation
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        content = encoded(PICTURE, kind, exif=tag, **options)
        stored = np.array(PICTURE)
        turns = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1], stored.transpose(1, 0, 2)]
        turns += [np.rot90(stored, -1), stored[::-1, ::-1].transpose(1, 0, 2), np.rot90(stored)]
        assert torch.equal(read(content, tmp_path), rgb(turns[orientation - 1].copy()))
        if kind != "TIFF":  # these Pillow turns by itself
            assert torch.equal(read_picture(tmp_path / "picture", upright=False), rgb(stored))
    depth = read(encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG", exif=tag), tmp_path)
    assert torch.equal(depth[0], rgb(turns[orientation - 1].copy())[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (40, 20_000), (20_000, 1)])
def test_extreme_shapes_are_read_and_seen(shape, tmp_path):
    values = np.linspace(0, 255, shape[0] * shape[1]).astype(np.uint8).reshape(shape)
    picture = read(encoded(Image.fromarray(values), "PNG"), tmp_path)
    assert picture.shape == (3, *shape) and torch.equal(picture[0], torch.from_numpy(values))
    for target in ((32, 32), (16, 48), (48, 16)):
        with mock.patch.object(v2, "Resize", wraps=v2.Resize) as resize:
            assert central_view([picture], target, View(crop_ratio=0.875)).shape == (1, 3, *target)
        (height, width), *_ = resize.call_args.args
        assert height * width <= 60_000  # never the 32 × 640,000 that cover the target
        for seed in range(5):
            assert random_view([picture], target, View(), [seed]).shape == (1, 3, *target)


def test_a_long_picture_shows_its_middle():
    wide = torch.zeros(3, 10, 2001, dtype=torch.uint8)
    wide[..., 996:1005] = 200
    seen = central_view([wide], (30, 30), View())
    assert seen[..., 3:-3].float().mean() > 190 and seen.shape == (1, 3, 30, 30)
    assert torch.equal(seen.mT, central_view([wide.mT], (30, 30), View()))


FORMATS = {"PNG": {}, "JPEG": {}, "GIF": {}, "BMP": {}, "TIFF": {}, "WEBP": {}, "PPM": {}}


@pytest.mark.parametrize("kind", [*FORMATS, "progressive JPEG"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_truncated_file_is_refused_or_was_complete_already(kind, tmp_path):
    options = {"progressive": True} if kind.startswith("progressive") else {}
    content = encoded(PICTURE, kind.split()[-1], **options)
    whole, refused = read(content, tmp_path), 0
    for length in {*range(40), *range(40, len(content) - 40, 97), *range(len(content) - 40, len(content))}:
        try:
            assert torch.equal(read(content[:length], tmp_path), whole)
        except BrokenPicture as error:
            refused += 1
            assert str(tmp_path / "picture") in str(error)
    assert refused >= 40


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_never_raises_anything_else(kind, tmp_path):
    content, generator = encoded(PICTURE, kind), np.random.default_rng(4)
    for _ in range(150):
        damaged = bytearray(content)
        for place in generator.integers(0, min(len(content), 400), 4):
            damaged[place] = generator.integers(0, 256)
        try:
            picture = read(bytes(damaged), tmp_path)
            assert picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3
        except BrokenPicture:
            pass


REFUSED = {
    "empty": (b"", "no known picture format"),
    "page": (b"<html>404 Not Found</html>", "no known picture format"),
    "header": (encoded(PICTURE, "JPEG")[:100], "Truncated"),
    "truncated": (encoded(PICTURE, "JPEG")[:-200], "truncated"),
    "bomb": (png(60_000, 60_000, 1, 0, bytes(100_000)), "more than 89,478,485 pixels"),
    "float": (encoded(Image.new("F", (4, 4)), "TIFF"), "32 bits.*white"),
    "integer": (encoded(Image.new("I", (4, 4), 70_000), "TIFF"), "32 bits.*white"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_right_is_refused_by_path(name, tmp_path):
    content, why = REFUSED[name]
    with pytest.raises(BrokenPicture, match=rf"{name} cannot be read \(.*({why}).*take it out"):
        read(content, tmp_path, name)


@pytest.mark.parametrize("pillows_limit", [None, 10**12, PIXEL_LIMIT])
def test_bombs_are_refused_whatever_pillow_is_told(pillows_limit, tmp_path, recwarn):
    with mock.patch.object(Image, "MAX_IMAGE_PIXELS", pillows_limit):
        for side in (9460, 60_000):
            with pytest.raises(BrokenPicture, match="more than 89,478,485 pixels"):
                read(png(side, side, 1, 0, b"\0"), tmp_path)
    assert not recwarn


# ---------------------------------------------------------------- broken pictures in a run


@pytest.fixture
def mixed(tmp_path):
    "Two classes of ten pictures each, of all kinds; numbers 3, 4 and 19 are broken."
    kinds = [
        encoded(PICTURE, "JPEG"), encoded(PICTURE.convert("CMYK"), "JPEG"), encoded(INDEXED, "PNG"),
        REFUSED["truncated"][0], REFUSED["empty"][0], encoded(PICTURE.convert("RGBA"), "PNG"),
        encoded(Image.new("L", (1, 90), 9), "PNG"), encoded(Image.new("L", (20_000, 2), 9), "PNG"),
        encoded(Image.new("I;16", (8, 8), 999), "PNG"), encoded(PICTURE, "WEBP"),
    ]  # fmt: skip
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "val" / name).mkdir(parents=True)
        for i, content in enumerate(kinds):
            if label:
                content = REFUSED["bomb"][0] if i == 9 else encoded(PICTURE, "PNG")
            for split in ("train", "val"):
                (tmp_path / split / name / f"{i}.png").write_bytes(content)
    return tmp_path


BROKEN = {3, 4, 19}


def test_raise_names_the_file(mixed):
    for split, workers in (("val", 0), ("train", 1)):
        dataset = create_dataset("image_folder", split, root=mixed)
        with pytest.raises(BrokenPicture, match=rf"{split}.(cat.[34]|dog.9)\.png cannot be read"):
            list(create_loader(dataset, 10, 16, train=split == "train", workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_broken_pictures_out_and_counts_them(mixed, workers):
    dataset = create_dataset("image_folder", "val", root=mixed, errors="skip")
    loader = create_loader(dataset, 4, 16, workers=workers)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.labels) for batch in batches] == [3, 3, 4, 4, 3]
        indices = torch.cat([batch.indices for batch in batches])
        assert indices.tolist() == [i for i in range(20) if i not in BROKEN]
        assert torch.equal(torch.cat([batch.labels for batch in batches]), dataset.labels[indices])
        assert all(len(batch.images[0]) == len(batch.labels) for batch in batches)
        assert [len(batch.skipped) for batch in batches] == [1, 1, 0, 0, 1]
        assert set(dataset.skipped) == {dataset.describe(i) for i in BROKEN} and len(dataset.skipped) == 3
    assert all(path in why for path, why in dataset.skipped.items()) and "3 broken ones skipped" in repr(dataset)


def test_a_batch_of_which_nothing_is_left_is_left_out(mixed):
    dataset = create_dataset("image_folder", "val", root=mixed, errors="skip")
    left = [batch.indices.item() for batch in create_loader(dataset, 1, 16)]
    assert left == [i for i in range(20) if i not in BROKEN]


def test_training_replaces_broken_pictures_whoever_reads_them(mixed):
    def loader(**options):
        dataset = create_dataset("image_folder", "train", root=mixed, errors="skip")
        return create_loader(dataset, 10, lambda step: (16, (8, 24)), train=True, seed=1, **options)

    alone = loader()
    first = list(alone)
    with mock.patch("sivit.data.read_picture", wraps=read_picture) as reading:
        again = list(alone)
    assert reading.call_count == 20  # the broken ones are known by now, and not tried again
    asked = [[key[0] for key in keys] for keys in alone.batch_sampler]
    assert equal(first, again) and equal(first, loader(workers=2))
    for batch, indices in zip(first, asked, strict=True):
        assert [tuple(images.shape) for images in batch.images] == [(10, 3, 16, 16), (10, 3, 8, 24)]
        assert batch.indices.tolist() == [{3: 5, 4: 5, 19: 0}.get(i, i) for i in indices]
        assert torch.equal(batch.labels, alone.dataset.labels[batch.indices])
    assert set(alone.dataset.skipped) == {alone.dataset.describe(i) for i in BROKEN}
    resumed, parts = loader(), [loader(rank=rank, ranks=2) for rank in range(2)]
    resumed.set_epoch(0, skip=1)
    assert equal(resumed, first[1:])
    for batch, *shared in zip(first, *parts, strict=True):
        assert torch.equal(batch.images[0], torch.cat([part.images[0] for part in shared]))
    assert set(parts[0].dataset.skipped) | set(parts[1].dataset.skipped) == set(alone.dataset.skipped)


def test_a_missing_file_is_never_skipped(mixed):
    dataset = create_dataset("image_folder", "val", root=mixed, errors="skip")
    Path(dataset.describe(7)).unlink()
    with pytest.raises(FileNotFoundError, match=r"7\.png"):
        list(create_loader(dataset, 4, 16))


def test_running_out_of_memory_is_never_skipped(mixed):
    dataset = create_dataset("image_folder", "val", root=mixed, errors="skip")
    with mock.patch.object(ImageOps, "exif_transpose", side_effect=MemoryError), pytest.raises(MemoryError):
        list(create_loader(dataset, 4, 16))


# ---------------------------------------------------------------- public sets, as their archives leave them


def jpeg(value=90, size=(20, 16)):
    return encoded(Image.new("RGB", size, (value, value, value)), "JPEG")


def archive(entries, mode="w"):
    "A tar archive of {path: content}."
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as made:
        for path, data in entries.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return content.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


def serving(files):
    "Stands in for `urlopen`, with {end of the address: content}."

    def respond(request):
        content = next(content for name, content in files.items() if request.full_url.endswith(name))
        response = io.BytesIO(content)
        response.url, response.length = request.full_url, len(content)
        return response

    return mock.patch("urllib.request.urlopen", respond)


offline = mock.patch("urllib.request.urlopen", side_effect=OSError("no route to host"))


def visible(folder):
    return sorted(path.name for path in Path(folder).iterdir())


CIFARS = {
    "cifar10": (datasets.CIFAR10, "labels", "batches.meta", "label_names", ["data_batch_1"], ["test_batch"]),
    "cifar100": (datasets.CIFAR100, "fine_labels", "meta", "fine_label_names", ["train"], ["test"]),
}


def cifar(kind, labels, meta, names, train, test):
    "An archive with 6 training and 4 test pictures, and what torchvision must believe about it."
    generator, base = np.random.default_rng(0), kind.base_folder
    entries = {meta: pickle.dumps({names: ["cat", "dog"]})}
    for part, count in ((train, 6), (test, 4)):
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        entries[part[0]] = pickle.dumps({"data": pixels, labels: [i % 2 for i in range(count)]})
    content = archive({f"{base}/{name}": data for name, data in entries.items()}, "w:gz")
    lists = {f"{split}_list": [[part[0], md5(entries[part[0]])]] for split, part in (("train", train), ("test", test))}
    known = {"filename": meta, "key": names, "md5": md5(entries[meta])}
    return content, {"tgz_md5": md5(content), "meta": known, **lists}


@pytest.mark.parametrize("name", CIFARS)
def test_cifar(name, tmp_path):
    content, facts = cifar(*CIFARS[name])
    kind = CIFARS[name][0]
    with mock.patch.multiple(kind, **facts):
        with serving({".tar.gz": content[:-100]}), pytest.raises(ConnectionError, match="corrupted"):
            create_dataset(name, root=tmp_path)
        assert not visible(tmp_path)
        with serving({".tar.gz": content}):
            train, val = (create_dataset(name, split, root=tmp_path) for split in ("train", "val"))
        assert len(train) == 6 and len(val) == 4 and train.classes == ("cat", "dog")
        assert val.labels.tolist() == [0, 1, 0, 1] and val.crop_ratio == 1.0
        assert train.picture(0, 32).shape == (3, 32, 32) and visible(tmp_path) == [kind.base_folder]
        assert train.picture(0, 32).mul(255).round().byte().equal(train.pictures[0])
        with offline:  # the second time needs no network
            assert len(create_dataset(name, root=tmp_path)) == 6
            (tmp_path / kind.base_folder / CIFARS[name][-1][0]).unlink()
            with pytest.raises(RuntimeError, match=rf"is not a complete '{name}'.*Remove it"):
                create_dataset(name, "val", root=tmp_path)
        assert visible(tmp_path) == [kind.base_folder]  # a damaged set is named, never deleted


def test_imagenette(tmp_path):
    entries = {
        f"imagenette2-160/{split}/{wnid}/{wnid}_{i}.JPEG": jpeg(40 * i)
        for split, count in (("train", 3), ("val", 1)) for wnid in ("n01440764", "n03888257") for i in range(count)
    }
    content = archive(entries, "w:gz")
    known = {"160px": ("https://example.org/imagenette2-160.tgz", md5(content))}
    with mock.patch.dict(datasets.Imagenette._ARCHIVES, known), serving({".tgz": content}):
        parts = [create_dataset("imagenette", split, root=tmp_path, version="160px") for split in ("train", "val")]
    assert [p.labels.tolist() for p in parts] == [[0, 0, 0, 1, 1, 1], [0, 1]] and parts[0].crop_ratio == 0.875
    assert parts[0].classes == ("tench", "parachute") and parts[1].picture(1, 12).shape == (3, 12, 12)
    assert visible(tmp_path) == ["imagenette2-160"]


def matlab(**arrays):
    from scipy.io import savemat

    content = io.BytesIO()
    savemat(content, arrays)
    return content.getvalue()


def test_flowers(tmp_path):
    labels = np.array([1, 1, 102, 5, 5, 102], np.uint8)
    files = {
        "102flowers.tgz": archive({f"jpg/image_{i:05d}.jpg": jpeg(30 * i) for i in range(1, 7)}, "w:gz"),
        "imagelabels.mat": matlab(labels=labels),
        "setid.mat": matlab(trnid=np.array([2, 3]), valid=np.array([5, 5]), tstid=np.array([1, 4, 6])),
    }
    known = {part: (name, md5(files[name])) for part, name in zip(("image", "label", "setid"), files, strict=True)}
    with mock.patch.object(datasets.Flowers102, "_file_dict", known), serving(files):
        train, val = (create_dataset("flowers102", split, root=tmp_path) for split in ("train", "val"))
    assert train.labels.tolist() == [0, 101, 4, 4] and val.labels.tolist() == [0, 4, 101] and len(train.classes) == 102
    assert [Path(train.describe(i)).name for i in range(3)] == ["image_00002.jpg", "image_00003.jpg", "image_00005.jpg"]
    assert not set(train.pictures) & set(val.pictures) and visible(tmp_path) == ["flowers-102"]
    assert val.picture(0, 8).mul(255).round().unique().tolist() == [30] and val.view == View(crop_ratio=0.875)


def test_pets(tmp_path):
    lists = {"trainval": ["Abyssinian_100 1 1 1", "Abyssinian_9 1 1 1", "yorkshire_terrier_3 2 2 25"],
             "test": ["Abyssinian_201 1 1 1", "yorkshire_terrier_102 2 2 25"]}
    names = [line.split()[0] for lines in lists.values() for line in lines]
    texts = {f"annotations/{part}.txt": ("\n".join(lines) + "\n").encode() for part, lines in lists.items()}
    trimaps = {f"annotations/trimaps/{name}.png": encoded(Image.new("L", (20, 16), 1), "PNG") for name in names}
    files = {
        "images.tar.gz": archive({f"images/{name}.jpg": jpeg() for name in names}, "w:gz"),
        "annotations.tar.gz": archive({**texts, **trimaps}, "w:gz"),
    }
    known = tuple((f"https://example.org/{name}", md5(content)) for name, content in files.items())
    with mock.patch.object(datasets.OxfordIIITPet, "_RESOURCES", known), serving(files):
        train, val = (create_dataset("pets", split, root=tmp_path) for split in ("train", "val"))
    assert train.labels.tolist() == [0, 0, 1] and val.labels.tolist() == [0, 1]
    assert visible(tmp_path) == ["oxford-iiit-pet"]
    assert train.classes == ("Abyssinian", "Yorkshire Terrier") and val.picture(1, 8).shape == (3, 8, 8)


def test_an_interrupted_download_leaves_nothing_behind(tmp_path):
    files = {"images.tar.gz": archive({"images/Abyssinian_1.jpg": jpeg()}, "w:gz"), "annotations.tar.gz": b"<html>"}
    known = tuple((f"https://example.org/{name}", md5(files["images.tar.gz"])) for name in files)
    refused = pytest.raises(ConnectionError, match=r"'pets' could not be downloaded.*annotations\.tar\.gz.*by hand")
    with mock.patch.object(datasets.OxfordIIITPet, "_RESOURCES", known), serving(files), refused:
        create_dataset("pets", root=tmp_path)
    assert not visible(tmp_path)


WNIDS = {"n02123045": "tabby, tabby cat", "n01440764": "tench, Tinca tinca"}


@pytest.fixture
def ilsvrc(tmp_path):
    "The three archives; their own numbers of the classes are not the sorted ones."
    fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
    synsets = np.empty(3, [(name, object) for name in fields.split()])
    for i, (wnid, words) in enumerate(WNIDS.items()):
        synsets[i] = (i + 1, wnid, words, "a thing", 0, np.zeros(0), 0, 2)
    synsets[2] = (1001, "n00001740", "entity", "everything", 2, np.array([1, 2]), 5, 0)
    truth, base = b"1\n2\n2\n", "ILSVRC2012_devkit_t12/data"
    classes = {f"{wnid}.tar": archive({f"{wnid}_{i}.JPEG": jpeg() for i in (7, 10026)}) for wnid in WNIDS}
    files = {
        "ILSVRC2012_devkit_t12.tar.gz": archive({f"{base}/meta.mat": matlab(synsets=synsets),
                                                 f"{base}/ILSVRC2012_validation_ground_truth.txt": truth}, "w:gz"),
        "ILSVRC2012_img_train.tar": archive(classes),
        "ILSVRC2012_img_val.tar": archive({f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(50 * i) for i in (1, 2, 3)}),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    known = {part: (name, md5(files[name])) for part, name in zip(("devkit", "train", "val"), files, strict=True)}
    with mock.patch.dict(datasets.imagenet.ARCHIVE_META, known):
        yield tmp_path


def test_imagenet_from_its_archives(ilsvrc):
    train, val = (create_dataset("imagenet", split, root=ilsvrc) for split in ("train", "val"))
    assert train.classes == val.classes == ("tench", "tabby") and train.labels.tolist() == [0, 0, 1, 1]
    assert val.labels.tolist() == [0, 0, 1]  # 2, 2 and 1 in the archive's numbers
    assert Path(val.describe(2)).parts[-3:] == ("val", "n02123045", "ILSVRC2012_val_00000001.JPEG")
    assert train.picture(3, 8).shape == (3, 8, 8) and train.interpolation == "bicubic" and train.crop_ratio == 0.875
    archives = [path for path in ilsvrc.iterdir() if path.name.startswith("ILSVRC")]
    assert len(archives) == 3 and visible(ilsvrc)[3:] == ["meta.bin", "train", "val"]
    for path in archives:
        path.unlink()
    assert len(create_dataset("imagenet", "val", root=ilsvrc)) == 3  # unpacked, it needs them no more


def test_imagenet_leaves_nothing_half_unpacked(ilsvrc):
    before = visible(ilsvrc)
    (ilsvrc / "ILSVRC2012_img_val.tar").write_bytes(b"cut off")
    with pytest.raises(RuntimeError, match=r"ILSVRC2012_img_val\.tar in .* cannot be unpacked: .*corrupted"):
        create_dataset("imagenet", "val", root=ilsvrc)
    assert visible(ilsvrc) == before


def test_imagenet_from_plain_folders(tmp_path):
    for split in ("train", "val"):
        for wnid in WNIDS:
            (tmp_path / split / wnid).mkdir(parents=True)
            (tmp_path / split / wnid / "0.JPEG").write_bytes(jpeg())
    (tmp_path / "val" / ".cache").mkdir()
    val = create_dataset("imagenet", "val", root=tmp_path)
    assert val.classes == tuple(sorted(WNIDS)) and val.labels.tolist() == [0, 1] and val.name == "imagenet"
    (tmp_path / "train" / "n09999999").mkdir()
    with pytest.raises(ValueError, match=r"need the same classes; they differ in \['n09999999'\]"):
        create_dataset("imagenet", "val", root=tmp_path)


# ---------------------------------------------------------------- masks and boxes


@pytest.fixture
def ade(tmp_path):
    base = tmp_path / "ADEChallengeData2016"
    for part, kind in (("training", "train"), ("validation", "val")):
        for folder in ("images", "annotations"):
            (base / folder / part).mkdir(parents=True)
        for i in (1, 2):
            mask = np.arange(151, dtype=np.uint8).repeat(2).reshape(2, 151)
            Image.fromarray(mask).save(base / "annotations" / part / f"ADE_{kind}_{i:08}.png")
            (base / "images" / part / f"ADE_{kind}_{i:08}.jpg").write_bytes(jpeg(60 * i, (151, 2)))
    (base / "images" / "training" / "._ADE_train_00000001.jpg").write_bytes(b"left by a file manager")
    (base / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n" + "".join(f"{i} \t0.1\t9\t9\tthing {i}, object \n" for i in range(1, 151)))
    (base / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return tmp_path


def test_ade20k_shifts_its_classes(ade):
    for split in ("train", "val"):
        dataset = create_dataset("ade20k", split, root=ade)
        image, mask = dataset.read(1)
        assert isinstance(image, tv_tensors.Image) and isinstance(mask, tv_tensors.Mask) and mask.dtype == torch.uint8
        assert mask.flatten().tolist() == [255, 255, *np.arange(150).repeat(2)] and image.shape == (3, 2, 151)
        assert len(dataset) == 2 and len(dataset.classes) == 150 and dataset.classes[149] == "thing 150"
        assert dataset.describe(0).endswith(f"ADE_{split}_00000001.jpg") and dataset.labels.tolist() == [0, 0]
    batch = next(iter(create_loader(dataset, 2, (2, 151))))
    assert batch.targets[0].dtype == torch.int64 and type(batch.targets[0]) is torch.Tensor
    assert batch.targets[0].tolist() == [mask[0].tolist()] * 2 and dataset.ignore_index == 255


def halved(ade):
    "Both training pictures: the right half white and of class 0, the left black and ignored."
    halves, base = np.zeros((40, 60), np.uint8), ade / "ADEChallengeData2016"
    halves[:, 30:] = 1
    for i in (1, 2):
        Image.fromarray(halves).save(base / f"annotations/training/ADE_train_0000000{i}.png")
        (base / f"images/training/ADE_train_0000000{i}.jpg").write_bytes(
            encoded(Image.fromarray(halves * 255).convert("RGB"), "JPEG", quality=100))


@pytest.mark.parametrize("train", [True, False])
def test_ade20k_moves_mask_and_picture_together(ade, train):
    halved(ade)
    dataset = create_dataset("ade20k", root=ade, crop_scale=(0.1, 1.0), color_jitter=0.1, interpolation="bilinear")
    loader = create_loader(dataset, 2, lambda step: (16, (24, 8), (80, 120)), train=train)
    shares = []
    for epoch in range(10):
        loader.set_epoch(epoch)
        for images, masks in zip(*(next(iter(loader))[i] for i in (0, 4)), strict=True):
            assert masks.shape == images[:, 0].shape and set(masks.unique().tolist()) <= {0, 255}
            agree = (images.mean(1) > 0) == (masks == 0)
            assert agree.float().mean() > 0.93  # but for the border
            shares += (masks == 0).float().mean((1, 2)).tolist()
    assert train == (max(shares) - min(shares) > 0.5)


def test_narrow_pictures_are_enlarged_with_their_masks(ade):
    dataset = create_dataset("ade20k", root=ade)  # 2 × 151 px
    for size in ((16, 16), (96, 16), (16, 96)):
        batch = dataset.__getitems__([(i, (size,), 5) for i in (0, 1)])
        assert batch.images[0].shape[-2:] == batch.targets[0].shape[1:] == size


def test_broken_masks_are_skipped_like_broken_pictures(ade):
    base = ade / "ADEChallengeData2016"
    for part, kind in (("training", "train"), ("validation", "val")):
        for i in range(3, 9):
            for folder, suffix in (("images", "jpg"), ("annotations", "png")):
                first = base / folder / part / f"ADE_{kind}_00000001.{suffix}"
                (base / folder / part / f"ADE_{kind}_0000000{i}.{suffix}").write_bytes(first.read_bytes())
        (base / "annotations" / part / f"ADE_{kind}_00000003.png").write_bytes(b"no mask")
        (base / "images" / part / f"ADE_{kind}_00000006.jpg").write_bytes(b"no picture")
    seen = []
    for workers in (0, 2):
        train, val = (create_dataset("ade20k", split, root=ade, errors="skip") for split in ("train", "val"))
        kept = list(create_loader(val, 3, (8, 16), workers=workers))
        assert [batch.indices.tolist() for batch in kept] == [[0, 1], [3, 4], [6, 7]]
        assert all(len(batch.targets[0]) == len(batch.images[0]) == 2 for batch in kept)
        assert list(val.skipped) == [val.describe(2), val.describe(5)]
        assert "00000003.png" in val.skipped[val.describe(2)]
        seen.append(list(create_loader(train, 4, lambda step: (8, (6, 12)), train=True, workers=workers)))
        assert all(len(batch.indices) == 4 and not {2, 5} & set(batch.indices.tolist()) for batch in seen[-1])
    assert equal(*seen)


def test_ade20k_says_what_is_missing(ade):
    base = ade / "ADEChallengeData2016"
    val = create_dataset("ade20k", "val", root=ade)
    wrong = {
        "cannot be read": b"", "no mask of 150 classes for ADE_val_00000002": encoded(Image.new("L", (9, 9)), "PNG"),
        "no mask of 150": encoded(Image.new("L", (151, 2), 151), "PNG"),
        "no mask": encoded(Image.new("RGB", (151, 2)), "PNG"), "it is no": encoded(Image.new("I;16", (151, 2)), "PNG"),
    }  # fmt: skip
    for why, content in wrong.items():
        (base / "annotations/validation/ADE_val_00000002.png").write_bytes(content)
        with pytest.raises(BrokenPicture, match=rf"annotations.validation.ADE_val_00000002\.png.*{why}"):
            list(create_loader(val, 2, 8))
    (base / "images/validation/ADE_val_00000001.jpg").unlink()
    with pytest.raises(ValueError, match=r"ADE_val_00000001 is missing for validation.*ADEChallengeData2016\.zip"):
        create_dataset("ade20k", "val", root=ade)
    for name in ("rand_augment", "erasing"):
        with pytest.raises(ValueError, match=f"Masks and boxes cannot follow {name}=1; leave it at 0"):
            create_dataset("ade20k", root=ade, **{name: 1})
        assert getattr(create_dataset("ade20k", root=ade, **{name: 0}).view, name) == 0
    (base / "objectInfo150.txt").unlink()
    with pytest.raises(ValueError, match=r"objectInfo150\.txt is missing"):
        create_dataset("ade20k", root=ade)
    with pytest.raises(ValueError, match="'test' is neither"):
        SceneParse150(ade, "test")


@pytest.fixture
def coco(tmp_path):
    "80 classes numbered up to 90 with gaps; one picture with objects and a crowd, one without, one not used."
    numbers = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        folder = tmp_path / f"{split}2017"
        folder.mkdir()
        for i in (9, 25, 30):
            (folder / f"{i:012}.jpg").write_bytes(jpeg(i, (64, 48)))
        box = {"image_id": 25, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]], "area": 32.0}
        crowd = {"counts": [0, 10, 48 * 64 - 10], "size": [48, 64]}
        tree = {
            "info": {"year": 2017}, "licenses": [],
            "images": [{"id": i, "file_name": f"{i:012}.jpg", "height": 48, "width": 64} for i in (25, 9)],
            "annotations": [box | {"id": 5, "bbox": [1.5, 2, 10, 20], "category_id": 90},
                            box | {"id": 6, "bbox": [0, 0, 64, 48], "category_id": 1, "iscrowd": 1,
                                   "segmentation": crowd}],
            "categories": [{"id": i, "name": f"thing {i}", "supercategory": "all"} for i in numbers],
        }  # fmt: skip
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(tree))
    return tmp_path


def test_coco(coco, capsys):
    dataset = create_dataset("coco", "val", root=coco)
    assert capsys.readouterr().out == "" and len(dataset) == 2 and len(dataset.classes) == 80
    image, target = dataset.read(1)
    assert isinstance(image, tv_tensors.Image) and image.shape == (3, 48, 64) and dataset.image_ids == (9, 25)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes) and target["boxes"].canvas_size == (48, 64)
    assert target["boxes"].tolist() == [[1.5, 2, 11.5, 22], [0, 0, 64, 48]]
    assert target["labels"].tolist() == [79, 0] and [dataset.category_ids[i] for i in target["labels"]] == [90, 1]
    assert target["iscrowd"].tolist() == [0, 1] and dataset.describe(1).endswith("000000000025.jpg")
    assert target["masks"].shape == (2, 48, 64) and target["masks"][1].sum() == 10
    image, empty = dataset.read(0)
    assert empty.keys() == target.keys() and empty["boxes"].shape == (0, 4) and empty["labels"].dtype == torch.int64
    (coco / "images").mkdir()
    (coco / "val2017").rename(coco / "images" / "val2017")
    moved = pickle.loads(pickle.dumps(create_dataset("coco", "val", root=coco)))  # as worker processes get it
    assert torch.equal(moved.read(0)[0], image)


def test_training_leaves_crowds_out(coco):
    for train, count in ((True, 1), (False, 2)):
        loader = create_loader(create_dataset("coco", root=coco, crop_scale=(1.0, 1.0)), 2, (48, 64), train=train)
        batch = next(iter(loader))
        counts = {i: len(t["iscrowd"]) for i, t in zip(batch.indices.tolist(), batch.targets[0], strict=True)}
        assert counts == {0: 0, 1: count}


@pytest.fixture
def framed(coco):
    "One white rectangle in each picture; its box and its outline are its border."
    file = coco / "annotations" / "instances_train2017.json"
    tree = json.loads(file.read_text()) | {"annotations": []}
    dataset = create_dataset("coco", root=coco)
    for i, path in enumerate(dataset.paths):
        x, y, width, height = 6 + 24 * i, 5, 31, 25
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[y : y + height, x : x + width] = 255
        Path(path).write_bytes(encoded(Image.fromarray(pixels), "PNG"))
        outline = [x, y, x + width, y, x + width, y + height, x, y + height]
        tree["annotations"].append({"id": i, "image_id": dataset.image_ids[i], "iscrowd": 0, "category_id": 1 + i,
                                    "bbox": [x, y, width, height], "segmentation": [outline]})
    file.write_text(json.dumps(tree))
    return coco


def three_sizes(step):
    return (32, (24, 40), (96, 64))


@pytest.mark.parametrize("train", [True, False])
def test_coco_moves_boxes_masks_and_picture_together(framed, train):
    dataset = create_dataset("coco", root=framed, crop_scale=(0.1, 1.0), interpolation="bilinear")
    loader, gone, lefts = create_loader(dataset, 2, three_sizes, train=train), 0, set()
    for epoch in range(15):
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        for images, targets in zip(batch.images, batch.targets, strict=True):
            for image, index, objects in zip(images, batch.indices.tolist(), targets, strict=True):
                white = image.mean(0) > 0
                if not len(objects["labels"]):
                    gone += 1
                    assert white.sum() <= white.shape[0] or white.sum() <= white.shape[1]
                    continue
                (box,), (mask,) = objects["boxes"], objects["masks"]
                assert objects["labels"].tolist() == [index] and type(box) is type(mask) is torch.Tensor
                rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
                around = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                assert (box - around).abs().max() <= 1.0 and (white == mask).float().mean() > 0.9
                lefts.add(round(box[0].item()))
    assert (gone > 0) == train and len(lefts) > (10 if train else 1)


@pytest.mark.parametrize("name", ["scenes mask", "scenes objects", "coco"])
def test_targets_are_the_same_from_any_worker_and_rank(name, framed):
    if name == "coco":
        dataset = create_dataset("coco", root=framed)
    else:
        dataset = create_dataset("scenes", length=24, config={"objects": 3}, target=name.split()[1])
    size = 2 if name == "coco" else 8
    whole = create_loader(dataset, size, three_sizes, train=True, seed=3)
    whole.set_epoch(1)
    expected = list(whole)
    whole.set_epoch(1, skip=1)
    assert equal(whole, expected[1:]) and all(len(batch.targets) == 3 for batch in expected)
    shared = {"train": True, "seed": 3, "workers": 1, "ranks": 2}
    parts = [create_loader(dataset, size, three_sizes, rank=rank, **shared) for rank in (0, 1)]
    for part in parts:
        part.set_epoch(1)
    for batch, *halves in zip(expected, *parts, strict=True):
        for j, found in enumerate(batch.targets):
            joined = [one for half in halves for one in half.targets[j]]
            joined = torch.stack(joined) if isinstance(found, torch.Tensor) else joined
            assert all(torch.equal(a, b) for a, b in zip(flat([found]), flat([joined]), strict=True))


BAD_BOXES = {  # box and what is left of it in 48 × 64
    "leaves at two sides": ([-5, -4, 12, 9], [[0, 0, 7, 5]]), "outside": ([70, 3, 9, 9], []),
    "no width": ([5, 5, 0, 9], []), "no height": ([5, 5, 9, 0], []), "turned over": ([9, 9, -4, 9], []),
}  # fmt: skip
BAD_ANNOTATIONS = {
    "bbox": ([[1, 2, 3], "not four finite"], [[1, 2, float("inf"), 3], "not four finite"], [None, "TypeError"]),
    "category_id": ([12, "category_id 12 is none"],),
    "segmentation": ([[], "no outline"], [None, "no outline"], [[[1, 2]], "not supported"],
                     [{"counts": [0, 100], "size": [10, 10]}, r"of \(10, 10\), not \(48, 64\)"],
                     [{"counts": [9, 9_000_000], "size": [48, 64]}, "Invalid RLE"], [{"size": [48, 64]}, "counts"]),
}  # fmt: skip


def with_annotation(coco, **changes):
    file = coco / "annotations" / "instances_train2017.json"
    tree = json.loads(file.read_text())
    tree["annotations"][0] |= changes
    file.write_text(json.dumps(tree))
    return create_dataset("coco", root=coco, errors="skip")


@pytest.mark.parametrize("name", BAD_BOXES)
def test_boxes_are_clipped_or_left_out(coco, name):
    box, left = BAD_BOXES[name]
    dataset = with_annotation(coco, bbox=box)
    for _, objects in (batch.targets[0] for batch in create_loader(dataset, 2, (48, 64))):
        assert objects["boxes"].tolist() == [*left, [0, 0, 64, 48]]
        assert len(objects["labels"]) == len(objects["masks"]) == len(objects["iscrowd"]) == len(left) + 1
    assert not dataset.skipped


@pytest.mark.parametrize(("name", "value", "why"), [(k, *case) for k, v in BAD_ANNOTATIONS.items() for case in v])
def test_wrong_annotations_break_their_picture_alone(coco, name, value, why):
    dataset = with_annotation(coco, **{name: value})
    assert [batch.indices.tolist() for batch in create_loader(dataset, 2, 16)] == [[0]]
    next(iter(create_loader(dataset, 2, 16, train=True)))
    dataset.errors = "raise"
    with pytest.raises(BrokenPicture, match=rf"Annotation 5 of .*25\.jpg cannot be read \(.*{why}.*take the picture"):
        dataset.read(1)


def test_an_annotated_picture_of_another_size_is_refused(coco):
    dataset = CocoDetection(coco)
    Path(dataset.describe(1)).write_bytes(jpeg(9, (48, 64)))
    with pytest.raises(BrokenPicture, match=r"picture of \(48, 64\), not \(64, 48\)"):
        dataset.read(1)


def test_coco_says_what_is_wrong(coco):
    dataset = CocoDetection(coco)
    Path(dataset.describe(0)).write_bytes(b"")
    with pytest.raises(BrokenPicture, match=r"000000000009\.jpg cannot be read"):
        dataset.read(0)
    file = coco / "annotations" / "instances_train2017.json"
    for content in ("", "[]", '{"images": [{}]}', '{"images": [], "categories": []}'):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"instances_train2017\.json (cannot be read|names no).*download it again"):
            CocoDetection(coco)
    file.unlink()
    with pytest.raises(ValueError, match=r"needs annotations/instances_train2017\.json and the folder train2017/"):
        CocoDetection(coco)


# ---------------------------------------------------------------- drawing where the model is


def test_scenes_from_workers_are_the_same():
    scenes = create_dataset("scenes", length=12)
    loaders = [create_loader(scenes, 4, sizes, train=True, workers=workers) for workers in (0, 1)]
    assert equal(*loaders)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("target", ["label", "mask", "objects"])
def test_scenes_are_drawn_on_the_gpu(target):
    there, here = (create_dataset("scenes", length=12, device=device, target=target) for device in ("cuda", None))
    for a, b in zip(*(create_loader(scenes, 4, sizes, train=True) for scenes in (there, here)), strict=True):
        assert {images.device.type for images in a.images} == {"cuda"} and a.labels.device.type == "cpu"
        assert torch.equal(a.labels, b.labels) and all(
            (x.cpu() - y).abs().mean() < 1e-3 for x, y in zip(a.images, b.images, strict=True))
        assert len(a.targets) == len(b.targets) and {found.device.type for found in flat(a.targets)} <= {"cuda"}
        for x, y in zip(flat(a.targets), flat(b.targets), strict=True):
            assert x.dtype == y.dtype and (x.cpu().float() - y.float()).abs().mean() < 1e-2
