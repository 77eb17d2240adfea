"""The command `sivit` as a shell, a queue and a launcher meet it: processes, signals and exit codes."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

import safetensors.torch
import torch

from sivit.cli import _write_value, main
from sivit.core import to_dict
from sivit.train import TrainConfig

SIVIT = [sys.executable, "-m", "sivit.cli"]
SMALL = ["--model-options", "depth=1", "dim=16", "heads=2", "--sizes", "8", "16"]


def shell(*arguments, **options):
    return subprocess.run([*SIVIT, *map(str, arguments)], capture_output=True, text=True, **options)


def printed(capsys, *arguments):
    "What a command prints, done in this process."
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def same_weights(a, b):
    a, b = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_needs_no_pytorch_does_not_wait_for_it():
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-X", "importtime", *SIVIT[1:], "--help"], capture_output=True, text=True)
    assert time.perf_counter() - began < 2
    assert done.returncode == 0 and all(
        name in done.stdout for name in ("train", "evaluate", "compare", "models", "report")
    )
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "tyro" in imported and not {"torch", "pandas", "matplotlib", "scipy"} & imported


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["evaluate", "--model", "timm:vit_tinny"], 2, "sivit evaluate: "),
        (["compare", "nowhere", "elsewhere"], 2, "sivit compare: nowhere holds no card"),
        (["evaluate"], 2, "required"),
        (["trian"], 2, "Available subcommands"),
        ([], 2, "Missing subcommand"),
    ],
)
def test_a_shell_sees_a_line_and_a_code(arguments, code, said):
    done = shell(*arguments)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_errors_of_a_run_are_told_apart(tmp_path, capsys, monkeypatch):
    arguments = ["train", *SMALL, "--epochs", "1", "--directory", str(tmp_path / "run")]
    for error, code in [(ValueError("wrong"), 2), (OSError(28, "disk full"), 1), (FloatingPointError("nan"), 1)]:

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr("sivit.train.train", fail)
        assert main(arguments) == code
        assert capsys.readouterr().err == f"sivit train: {error}\n"

    def bug(*arguments, **options):
        raise KeyError("a fault of the program")

    monkeypatch.setattr("sivit.train.train", bug)
    with pytest.raises(KeyError):
        main(arguments)


def random_config(draw):
    "Settings that differ from the defaults wherever the dice say so."
    choices = {
        "task": "segmentation", "task_options": {"head": "pyramid"}, "model": "vitar_micro_patch4", "dataset": "scenes",
        "schedule": "all", "sizes": (12, 20), "budget": "compute", "budget_size": 16,
        "model_options": {"depth": 2, "position": "alibi", "layer_scale": None, "merged_grid": (3, 3), "qk_norm": True},
        "dataset_options": {"config": {"classes": 4}, "seed": 3}, "clip": None, "precision": "bf16",
    }  # fmt: skip
    values = {}
    for field in dataclasses.fields(TrainConfig):
        if draw.random() < 0.5:
            default = getattr(TrainConfig(), field.name)
            changed = not default if isinstance(default, bool) else default + 1 if isinstance(default, int) else 0.625
            values[field.name] = choices.get(field.name, changed)
    return values


def as_options(values):
    "The same on the command line."
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, dict):
            yield from (f"--{option}", *(f"{key}={_write_value(item)}" for key, item in value.items()))
        else:
            yield from (f"--{option}", *(map(str, value) if isinstance(value, tuple) else [str(value)]))


def test_object_file_and_command_line_are_the_same(tmp_path, capsys):
    draw, used = random.Random(0), set()
    for _ in range(25):
        values = random_config(draw)
        used |= set(values)
        config = TrainConfig(**values)
        (tmp_path / "a.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")
        from_file = printed(capsys, "train", "--config", tmp_path / "a.json", "--print-config")
        assert from_file == (tmp_path / "a.json").read_text()
        assert printed(capsys, "train", *as_options(values), "--print-config") == from_file
    assert used == {field.name for field in dataclasses.fields(TrainConfig)}


def test_a_queue_that_takes_its_machine_back(tmp_path, capsys):
    "SIGTERM: the state is saved, the code says 75, and the same command goes on to the same weights."
    command = ["train", *SMALL, "--epochs", "12", "--evaluate-every", "6", "--log-every", "1", "--directory"]
    with subprocess.Popen([*SIVIT, *command, tmp_path / "run"], stderr=subprocess.PIPE, text=True) as process:
        log, end = tmp_path / "run/log.jsonl", time.monotonic() + 60
        while time.monotonic() < end and not (log.exists() and len(log.read_text().splitlines()) > 30):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "Told to stop: step " in said and "Traceback" not in said
    judge = ["evaluate", "--model", tmp_path / "run", "--sizes", 16, "--no-cost", "--output", tmp_path / "card"]
    printed(capsys, *judge, "--checkpoint", "last")  # a run that is not finished can be judged already
    assert json.loads((tmp_path / "card/card.json").read_text())["data"]["count"] == 359
    with contextlib.redirect_stderr(sys.stdout):
        assert main(list(map(str, judge))) == 2
    assert "checkpoint" in capsys.readouterr().out
    assert printed(capsys, *command, tmp_path / "run", "--resume", "must").startswith("Epoch 12, step 264")
    printed(capsys, *command, tmp_path / "peace")
    assert same_weights(tmp_path / "run", tmp_path / "peace")


def test_two_processes_speak_with_one_voice(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sivit.cli"]
    arguments = ["train", *SMALL, "--epochs", "1", "--directory", tmp_path / "run"]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The model is in") == 1 and (tmp_path / "run/model.safetensors").exists()


def test_scenes_are_judged_along_three_axes(tmp_path, capsys):
    scenes = ["--dataset", "scenes", "--dataset-options", "length=64"]
    printed(capsys, "train", *SMALL, *scenes, "--epochs", 1, "--directory", tmp_path / "run")
    axes = ["--sizes", 8, 16, "--object-scales", 0.5, "--canvases", 2, "--no-cost"]
    said = printed(
        capsys,
        "evaluate",
        "--model",
        tmp_path / "run",
        "--data-options",
        "length=32",
        *axes,
        "--output",
        tmp_path / "card",
    )
    titles = [line for line in said.splitlines() if line.startswith("Along the ")]
    assert titles == ["Along the resolution", "Along the object scale", "Along the canvas"]
    card = json.loads((tmp_path / "card/card.json").read_text())
    assert [(point["axis"], point["value"]) for point in card["points"]] == [
        ("resolution", 8), ("resolution", 16), ("object_scale", 0.5), ("object_scale", 1), ("canvas", 1), ("canvas", 2),
    ]  # fmt: skip
    assert card["reference"] == [16, 16] and card["data"]["count"] == 32
    assert (tmp_path / "card/figures/curves.png").read_bytes().startswith(b"\x89PNG")
