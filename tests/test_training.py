"""Runs that are killed, pre-empted, out of disk space, fed with broken files, and end as if nothing had happened."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

import sivit.task
import sivit.train
import sivit.vit
from sivit.checkpoint import checkpoint_path, checkpoint_steps, newest_checkpoint
from sivit.core import to_dict
from sivit.train import TrainConfig, load_model, train

os.environ["OMP_NUM_THREADS"] = "1"  # one thread adds numbers up in one order
FORKS = get_context("forkserver")  # one process imports everything and is copied, which takes milliseconds
FORKS.set_forkserver_preload(["sivit.train", "sklearn.datasets", "pytest", "test_training"])

SMALL = {"depth": 2, "dim": 16, "heads": 2}
CONFIG = TrainConfig(
    model_options={**SMALL, "position": "fuzzy", "merger": "atm", "merged_grid": (3, 3), "drop_path": 0.2},
    sizes=(8, 12, 16), epochs=4, batch_size=32, learning_rate=3e-3, mixup=0.8, cutmix=1.0, ema=0.95, layer_decay=0.9,
    seed=3, log_every=1, save_every=7,
)  # fmt: skip
PLAIN = dataclasses.replace(
    CONFIG, model_options=SMALL, mixup=0.0, cutmix=0.0, schedule="all", sizes=(8, 16), epochs=3
)


# ---------------------------------------------------------------------------------------------------- processes


def child(config, directory, errors, before, options):
    "What a copied process does: train, with its messages in a file."
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore of the system, which outlives a kill
    os.setsid()
    with open(errors, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    if before is not None:
        before[0](*before[1:])
    train(config, directory, **{"progress": False, **options})


def start(config, directory, before=None, **options):
    "Start a training in a process of its own."
    directory.parent.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=child, args=(config, directory, f"{directory}.err", before, options))
    process.start()
    return process


def finish(config, directory, before=None, code=0, **options):
    "Train in a process of its own and wait for its end; what it had to say."
    process = start(config, directory, before, **options)
    process.join(120)
    said = Path(f"{directory}.err").read_text()
    assert process.exitcode == code, f"exit code {process.exitcode} instead of {code}:\n{said}"
    return said


def last_step(directory):
    "The last step in the log of a run."
    log = directory / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for_step(process, directory, step):
    "Wait until the log has come so far."
    give_up = time.monotonic() + 60
    while last_step(directory) < step:
        assert process.is_alive(), Path(f"{directory}.err").read_text()
        assert time.monotonic() < give_up, "The run does not get on."
        time.sleep(0.001)


def lines(path):
    "The lines of a log, but for the speeds, which are a matter of the machine."
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def outcome(directory):
    "Everything a finished run has to show, to the last bit."
    logs = [lines(directory / name) for name in ("log.jsonl", "history.jsonl")]
    last = newest_checkpoint(directory / "checkpoints")
    files = [(directory / name).read_bytes() for name in ("model.safetensors", "config.json")]
    weights = {
        name: {key: value.numpy().tobytes() for key, value in part.items()} for name, part in last.weights.items()
    }
    progress = {key: value for key, value in last.record["progress"].items() if key in ("step", "epoch", "account")}
    return logs, files, weights, progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The run that is left in peace."
    directory = tmp_path_factory.mktemp("whole") / "run"
    finish(CONFIG, directory)
    assert not Path(f"{directory}.err").read_text()
    return directory


# ---------------------------------------------------------------------------------------------------- kill -9


def test_killed_at_twenty_random_moments(whole, tmp_path):
    "kill -9, each time at another step and at any moment of it; after each the run is started again."
    draw, directory, total = random.Random(), tmp_path / "run", last_step(whole)
    moments, writing = sorted(draw.sample(range(total - 20), 20)), 0
    directory.mkdir()
    (directory / ".log.jsonl.left.tmp").write_text("what a killed process had of the log")
    for number, step in enumerate(moments):
        process = start(CONFIG, directory)
        if number % 5 == 0:
            time.sleep(draw.uniform(0, 0.3))  # perhaps while it starts
        else:
            wait_for_step(process, directory, step)
            time.sleep(draw.uniform(0, 0.03))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        writing += bool(list(directory.glob("checkpoints/.step-*")))
    finish(CONFIG, directory)
    assert outcome(directory) == outcome(whole)
    assert sorted(os.listdir(directory)) == sorted(os.listdir(whole))
    assert not list(directory.glob("checkpoints/.*"))
    print(f"Killed about the steps {moments}; {writing} times while a checkpoint was written.")


def die_at_call(number):
    "Kill this process at its so-many-th call that changes the disk, with half of the file that is being written."
    calls = itertools.count(1)

    def guarded(call, name):
        def wrapper(*arguments, **options):
            if next(calls) == number:
                if name == "fsync" and not os.path.isdir(f"/proc/self/fd/{arguments[0]}"):
                    os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapper

    for name in ("fsync", "replace", "mkdir", "rmdir", "unlink"):
        setattr(os, name, guarded(getattr(os, name), name))


def test_killed_inside_the_writing_of_a_checkpoint(whole, tmp_path):
    "kill -9 at calls all through the writing of checkpoints, of the first and of later ones."
    directory = tmp_path / "run"
    for number in [4, 7, 10, 12, 13, 14, 16, 18, 20, 23, 25, 28, 31, 33, 36, 40]:
        finish(CONFIG, directory, before=(die_at_call, number), code=-signal.SIGKILL)
    assert checkpoint_steps(directory / "checkpoints"), "The run never got on."
    finish(CONFIG, directory)
    assert outcome(directory) == outcome(whole)


# ---------------------------------------------------------------------------------------------------- SIGTERM


SCRIPT = """
import json, torch
from sivit.core import from_dict
from sivit.train import TrainConfig, train
torch.set_num_threads(1)
train(from_dict(TrainConfig, json.load(open({config!r}))), {directory!r}, progress=False)
"""


def test_a_script_that_gets_sigterm_ends_with_75_and_goes_on(whole, tmp_path):
    "An ordinary script, as a cluster starts it."
    directory = tmp_path / "run"
    (tmp_path / "config.json").write_text(json.dumps(to_dict(CONFIG)))
    script = SCRIPT.format(config=str(tmp_path / "config.json"), directory=str(directory))
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as process:
        while last_step(directory) < 40:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "Told to stop" in said and str(directory) in said and "Traceback" not in said
    assert newest_checkpoint(directory / "checkpoints").step == last_step(directory) >= 40
    finish(CONFIG, directory, resume="must")
    assert outcome(directory) == outcome(whole)


def test_sigterm_to_the_whole_group_with_loading_processes(whole, tmp_path):
    "Schedulers signal every process of a job; those that load pictures must not die before the checkpoint is written."
    directory, config = tmp_path / "run", dataclasses.replace(CONFIG, workers=2)
    process = start(config, directory)
    wait_for_step(process, directory, 60)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 75, Path(f"{directory}.err").read_text()
    assert newest_checkpoint(directory / "checkpoints").step == last_step(directory) >= 60
    finish(CONFIG, directory)
    assert outcome(directory) == outcome(whole)


def terminate_in_evaluation(number):
    "Send this process a SIGTERM when its so-many-th evaluation is under way."
    calls, forward = itertools.count(1), sivit.vit.ViT.forward

    def wrapper(model, images):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(model, images)

    sivit.vit.ViT.forward = wrapper  # training does not come this way


def test_sigterm_during_an_evaluation(whole, tmp_path):
    directory = tmp_path / "run"
    finish(CONFIG, directory, before=(terminate_in_evaluation, 3), code=75)
    assert newest_checkpoint(directory / "checkpoints").step == 44 and not (directory / "history.jsonl").exists()
    finish(CONFIG, directory)
    assert outcome(directory) == outcome(whole)


# ---------------------------------------------------------------------------------------------------- disk full


def limit_file_size(size):
    "Let the operating system refuse to write files longer than this, as a full disk does."
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_disk_full_stops_the_run_and_spares_the_last_checkpoint(whole, tmp_path):
    directory = tmp_path / "run"
    process = start(CONFIG, directory)
    wait_for_step(process, directory, 30)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    before = newest_checkpoint(directory / "checkpoints").step
    largest = max(path.stat().st_size for path in checkpoint_path(directory / "checkpoints", before).iterdir())
    said = finish(CONFIG, directory, before=(limit_file_size, largest - 1000), code=1)
    next_save = (before // 7 + 1) * 7
    assert f"step-{next_save:08} could not be written: File too large" in said and "MiB are free" in said
    assert f"The last good one is {checkpoint_path(directory / 'checkpoints', before)}. Make room" in said
    assert newest_checkpoint(directory / "checkpoints").step == before
    assert not list(directory.glob("checkpoints/.*"))  # the half that was written gives its room back
    finish(CONFIG, directory)
    assert outcome(directory) == outcome(whole)


# ---------------------------------------------------------------------------------------------------- broken files


def interrupted(directory, step=60):
    "A run that was stopped, with its newest two checkpoints."
    process = start(CONFIG, directory)
    wait_for_step(process, directory, step)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    checkpoints = directory / "checkpoints"
    return [checkpoint_path(checkpoints, step) for step in checkpoint_steps(checkpoints)[-2:]]


class Trap:
    "Unpickling this makes a folder."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def replace_with_a_pickle(folder, name, trap):
    "Put a pickle in place of a file, with its right checksum."
    buffer = io.BytesIO()
    torch.save(Trap(str(trap)), buffer) if name == "state.pt" else buffer.write(pickle.dumps(Trap(str(trap))))
    (folder / name).write_bytes(buffer.getvalue())
    sums = json.loads((folder / "checksums.json").read_text())
    sums["files"][name] = {"bytes": len(buffer.getvalue()), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    (folder / "checksums.json").write_text(json.dumps(sums))


@pytest.mark.parametrize("damage", ["truncated", "pickle"])
def test_a_broken_checkpoint_is_named_and_the_one_before_it_used(damage, whole, tmp_path):
    directory = tmp_path / "run"
    good, broken = interrupted(directory)
    trap, name = tmp_path / "sprung", "state.pt"
    if damage == "truncated":
        name = "model.safetensors"
        os.truncate(broken / name, 1000)
    else:
        replace_with_a_pickle(broken, name, trap)
    said = finish(CONFIG, directory)
    assert f"{broken / name} " in said and f"The one of step {int(good.name[5:])} is whole and is used" in said
    assert not trap.exists()
    assert outcome(directory) == outcome(whole)


def test_nothing_good_left_is_an_error_and_no_new_start(tmp_path):
    directory = tmp_path / "run"
    for path in interrupted(directory, 20):
        (path / "checksums.json").unlink()
    before = lines(directory / "log.jsonl")
    said = finish(CONFIG, directory, code=1)
    assert "No good checkpoint is left" in said and lines(directory / "log.jsonl") == before


def test_a_model_is_loaded_without_unpickling(whole, tmp_path):
    "The safetensors of a finished run, replaced by a pickle."
    directory, trap = tmp_path / "run", tmp_path / "sprung"
    shutil.copytree(whole, directory)
    (directory / "model.safetensors").write_bytes(pickle.dumps(Trap(str(trap))))
    with pytest.raises(ValueError, match="holds no ViT that can be loaded"):
        sivit.vit.ViT.from_pretrained(directory)
    for path in (directory / "checkpoints").iterdir():
        replace_with_a_pickle(path, "ema.safetensors", trap)
    with pytest.raises(ValueError, match=r"ema\.safetensors is not what its name says"):
        load_model(directory)
    assert not trap.exists()


def test_two_processes_do_not_share_a_directory(tmp_path):
    directory = tmp_path / "run"
    process = start(CONFIG, directory)
    wait_for_step(process, directory, 3)
    with pytest.raises(BlockingIOError, match="Another process is at work in"):
        train(CONFIG, directory, progress=False)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert lines(directory / "log.jsonl")


# ---------------------------------------------------------------------------------------------------- no number


def test_a_loss_that_is_no_number_names_step_files_and_checkpoint(tmp_path):
    from PIL import Image

    for number in range(24):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), 90).convert("RGB").save(path)
    config = dataclasses.replace(
        CONFIG, dataset="image_folder", dataset_options={"root": str(tmp_path / "pictures")}, batch_size=4, epochs=9,
        save_every=1, evaluate_every=0, log_every=10,
    )  # fmt: skip
    directory = tmp_path / "run"
    said = finish(config, directory, before=(poison, 13), code=1)
    last = said.splitlines()[-1]
    good = newest_checkpoint(directory / "checkpoints")
    assert "FloatingPointError: The loss became nan at step 13 (epoch 2)" in last and good.step == 13
    assert f"The last good checkpoint: {checkpoint_path(directory / 'checkpoints', 13)}." in last
    failure = json.loads((directory / "failure.json").read_text())
    assert len(failure["pictures"]) == 4 and all(Path(path).is_file() and path in last for path in failure["pictures"])
    assert all(value.isfinite().all() for value in good.weights["model"].values())


def poison(step):
    "Let the loss of a step be no number."
    calls, mix = itertools.count(), sivit.task.mix

    def wrapper(images, *others):
        images, targets = mix(images, *others)
        return images, targets * float("nan") if next(calls) == step else targets

    sivit.task.mix = wrapper


# ---------------------------------------------------------------------------------------------------- seeds


def test_one_seed_one_run_two_seeds_two(whole, tmp_path):
    "In other processes, and with other numbers of processes that load."
    again, other = tmp_path / "again", tmp_path / "other"
    finish(dataclasses.replace(CONFIG, workers=1), again)
    finish(dataclasses.replace(CONFIG, seed=4, epochs=1), other)
    assert outcome(again) == outcome(whole)
    first, second = (lines(path / "log.jsonl") for path in (whole, other))
    assert all(a["loss"] != b["loss"] for a, b in zip(first, second, strict=False))


# ---------------------------------------------------------------------------------------------------- two devices


def be_one_of_two(rank, port):
    "What torchrun tells its processes."
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in told.items()}, MASTER_ADDR="127.0.0.1")


def start_two(config, directory):
    "Start a training on two processes that talk through gloo."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [start(config, directory, (be_one_of_two, rank, port)) for rank in range(2)]


def curve(directory):
    return torch.tensor([row["loss"] for row in lines(directory / "log.jsonl")], dtype=torch.float64)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "A run in one process, without what is drawn for each device by itself: dropped branches, partners to mix with."
    directory = tmp_path_factory.mktemp("alone") / "run"
    finish(PLAIN, directory)
    return directory


def test_torchrun_with_two_processes_gives_the_same_curve(alone, tmp_path):
    "The same global batch on two gloo processes: the same losses to 1e-5, the same accuracies."
    directory = tmp_path / "run"
    (tmp_path / "config.json").write_text(json.dumps(to_dict(PLAIN)))
    (tmp_path / "script.py").write_text(SCRIPT.format(config=str(tmp_path / "config.json"), directory=str(directory)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, tmp_path / "script.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(curve(directory)) == len(curve(alone)) == 132
    torch.testing.assert_close(curve(directory), curve(alone), atol=1e-5, rtol=0)
    one, two = (lines(path / "history.jsonl") for path in (alone, directory))
    assert [row["accuracy"] for row in one] == [row["accuracy"] for row in two]
    assert newest_checkpoint(directory / "checkpoints").record["progress"]["account"]["pictures"] == 132 * 32


def test_two_processes_are_pre_empted_killed_and_resumed_together(alone, tmp_path):
    "SIGTERM reaches only one of them, and both stop after the same step; then one is killed; then both go on."
    directory = tmp_path / "run"
    first, second = start_two(PLAIN, directory)
    wait_for_step(first, directory, 50)
    second.terminate()
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 75
    assert newest_checkpoint(directory / "checkpoints").step == last_step(directory) >= 50
    first, second = start_two(PLAIN, directory)
    wait_for_step(first, directory, 90)
    for process in (first, second):
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for process in start_two(PLAIN, directory):
        process.join(120)
        assert process.exitcode == 0, Path(f"{directory}.err").read_text()
    torch.testing.assert_close(curve(directory), curve(alone), atol=1e-5, rtol=0)


def test_accumulated_gradients_give_the_same_curve(alone, tmp_path):
    directory = tmp_path / "run"
    finish(dataclasses.replace(PLAIN, accumulate=3, grad_checkpointing=True), directory)
    torch.testing.assert_close(curve(directory), curve(alone), atol=1e-5, rtol=0)


def test_a_compiled_model_gives_the_same_curve(tmp_path):
    "With machine code for forward and backward, which serves every size of training."
    small = {**SMALL, "depth": 1}
    config = dataclasses.replace(CONFIG, model_options=small, schedule="per_batch", sizes=(8, 16, 12), epochs=1)
    for compiled in (False, True):
        finish(dataclasses.replace(config, compile=compiled), tmp_path / f"{compiled}")
    torch.testing.assert_close(curve(tmp_path / "True"), curve(tmp_path / "False"), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------- what one sees


def test_tensorboard_and_progress(tmp_path):
    "The log of a resumed run in TensorBoard is that of one run; the bar shows pictures per second and the time left."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory, config = tmp_path / "run", dataclasses.replace(CONFIG, epochs=1, tensorboard=True)
    process = start(config, directory)
    wait_for_step(process, directory, 20)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    finish(config, directory)
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("log/loss")]
    expected = [(row["step"], row["loss"]) for row in lines(directory / "log.jsonl")]
    assert [step for step, _ in losses] == [step for step, _ in expected]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected))
    assert {"log/gradient_norm", "log/learning_rate", "history/accuracy"} <= set(events.Tags()["scalars"])

    said = finish(dataclasses.replace(CONFIG, epochs=1), tmp_path / "shown", progress=True)
    assert re.search(r"train vit_micro_patch4.*\d+/44 \[.*<.*images_per_second=", said)
