"""Grids under attack: processes are killed -9 at any moment, and still no run is lost and none is done twice."""

import collections
import contextlib
import json
import logging
import os
import random
import signal
import time

import dask
import distributed
import joblib
import pytest

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from sivit.study import Run, load_results, run_grid
from sivit.train import TrainConfig

# What every process of a test notes: that it begins or goes on with a run, and that it writes a result. It can also be
# told to die at the start of a run, so many times.
HOOK = """
import collections, os, sys

def _note(event, arguments):
    if event != "os.rename":
        return
    parts = os.fspath(arguments[1]).split("/")
    start = parts[-1] == "train.json" and parts[-3] == "runs"
    finish = parts[-1].endswith(".json") and parts[-2] == "runs"
    if not (start or finish):
        return
    what, key = ("start", parts[-2]) if start else ("finish", parts[-1][:-5])
    with open(os.environ["GRID_NOTES"], "a+") as notes:
        notes.write(f"{what} {key} {os.getpid()}\\n")
        notes.flush(), notes.seek(0)
        deaths = dict(pair.split("=") for pair in os.environ.get("GRID_DEATHS", "").split())
        times, signal = map(int, deaths.get(key, "0:0").split(":"))
        if start and notes.read().count(f"start {key} ") <= times:
            os.kill(os.getpid(), signal)

if "GRID_NOTES" in os.environ:
    sys.addaudithook(_note)
"""


@pytest.fixture(autouse=True)
def notes(tmp_path, monkeypatch):
    "The file of notes; every Python process that is started from here writes to it."
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    monkeypatch.setenv("GRID_NOTES", str(tmp_path / "notes"))
    (tmp_path / "notes").touch()
    torch.set_num_threads(1)
    return tmp_path / "notes"


def count(notes, what):
    "How often each run was started, or finished."
    lines = [line.split() for line in notes.read_text().splitlines()]
    return collections.Counter(key for noted, key, _ in lines if noted == what)


def grid(runs, **settings):
    "Small runs in which everything is drawn that can be: sizes, crops, dropped branches, mixed pictures."
    options = {"depth": 1, "dim": 16, "heads": 2, "merged_grid": (2, 2), "merger": "avgpool", "drop_path": 0.1}
    shared = {"model_options": options, "sizes": (8, 16), "epochs": 2, "cutmix": 1.0, "ema": 0.9, "save_every": 5}
    configs = [TrainConfig(seed=seed, **{**shared, **settings}) for seed in range(runs)]
    return [Run(config, resolutions=(8, 16)) for config in configs]


def measured(folder):
    "All results of a folder, without the times."
    results = [json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")]
    return {one["key"]: {name: value for name, value in one.items() if "seconds" not in name} for one in results}


def left_over(folder):
    "What is in a folder of results that does not belong there."
    return [path.name for path in (folder / "runs").iterdir() if path.suffix != ".json" and path.name != ".lock"]


@contextlib.contextmanager
def forked(function, *arguments):
    "A process that is a copy of this one and does something."
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            exec(HOOK, {})
            function(*arguments)
            code = 0
        finally:
            os._exit(code)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def in_this_process(runs, folder):
    with joblib.parallel_config(backend="sequential"):
        return run_grid(runs, folder, progress=False)


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not happen."
        time.sleep(0.02)


@pytest.fixture(scope="module")
def peace(tmp_path_factory):
    "The results of runs that were left in peace, and how long one takes."
    folder, runs = tmp_path_factory.mktemp("peace"), grid(4)
    in_this_process(runs[:1], folder)
    start = time.monotonic()
    in_this_process(runs, folder)
    return measured(folder), (time.monotonic() - start) / 3


def test_killed_at_twenty_random_moments(tmp_path, notes, peace):
    expected, seconds = peace
    draw, kills, grids = random.Random(0), 0, 0
    while kills < 20:
        folder, finished = tmp_path / f"grid{grids}", False
        grids += 1
        notes.write_text("")
        while not finished:
            with forked(in_this_process, grid(4), folder) as pid:
                delay = draw.uniform(0, 0.7 * seconds) if kills < 20 else 60
                end = time.monotonic() + delay
                while time.monotonic() < end and not finished:
                    finished = os.waitpid(pid, os.WNOHANG) != (0, 0)
                    time.sleep(0.002)
            if not finished:
                os.waitpid(pid, 0)
                kills += 1
        assert measured(folder) == expected and left_over(folder) == []
        assert count(notes, "finish") == dict.fromkeys(expected, 1)
    assert kills == 20


def test_a_worker_that_dies_loses_only_its_run(tmp_path, notes, peace, monkeypatch, capsys):
    "One run is killed, one is told to stop, one always kills its process, and one is left in peace."
    runs = grid(4)
    hit, doomed, stopped = (run.key for run in runs[:3])
    monkeypatch.setenv("GRID_DEATHS", f"{hit}=1:9 {doomed}=99:9 {stopped}=1:15")
    blamed = rf"1 of 4 runs failed(?s:.*){doomed} .*its process died with SIGKILL\(-9\), for the 2. time"
    with pytest.raises(RuntimeError, match=blamed):
        run_grid(runs, tmp_path, jobs=2, retries=1)
    assert measured(tmp_path) == {key: result for key, result in peace[0].items() if key != doomed}
    assert count(notes, "start") == {hit: 2, doomed: 2, stopped: 2, runs[3].key: 1}
    assert set(count(notes, "finish").values()) == {1}
    said = capsys.readouterr().out
    assert said.count("it will be gone on with") == 3 and said.count("its process was told to stop") == 1
    assert "4/4" in said and "5/4" not in said


def test_workers_do_not_outlive_their_grid(tmp_path, notes, capsys):
    "The grid is killed, and started again at once, while its worker is still at it."
    runs = grid(2, epochs=12, save_every=1000, evaluate_every=0)
    in_this_process(runs, tmp_path / "peace")
    with forked(run_grid, runs, tmp_path, 1) as pid:
        wait_until(lambda: count(notes, "start"))
        worker = int(notes.read_text().split()[-1])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with joblib.parallel_config(backend="sequential"):
        run_grid(runs, tmp_path)
    assert "another process is at it; we come back" in capsys.readouterr().out
    assert measured(tmp_path) == measured(tmp_path / "peace") and left_over(tmp_path) == []
    wait_until(lambda: not running(worker), 10)


def running(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_on_a_cluster(tmp_path, notes, peace, monkeypatch):
    "Two processes of a Dask cluster; one dies at its run, and one run always kills its worker."
    runs = grid(4)
    hit, doomed = runs[0].key, runs[1].key
    monkeypatch.setenv("GRID_DEATHS", f"{hit}=1:9 {doomed}=99:9")
    local = {"n_workers": 2, "processes": True, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(**local, threads_per_worker=1) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
        pytest.raises(RuntimeError, match=f"1 of 4 runs failed(?s:.*){doomed} .*KilledWorker"),
    ):
        run_grid(runs, tmp_path)
    assert measured(tmp_path) == {key: result for key, result in peace[0].items() if key != doomed}
    assert count(notes, "start") == {hit: 2, doomed: 2, runs[2].key: 1, runs[3].key: 1}
    assert set(count(notes, "finish").values()) == {1} and len(load_results(tmp_path)) == 3 * 2
