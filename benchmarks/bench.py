"""What the benchmarks share: options, a device, and a place for the result."""

import dataclasses
import json
from pathlib import Path
from typing import Literal, TypeVar

import pandas as pd
import torch
import tyro

from sivit.core import write_atomic
from sivit.study import surroundings


@dataclasses.dataclass(frozen=True)
class Options:
    profile: Literal["quick", "cpu", "gpu"] = "quick"  # quick: seconds; cpu: minutes, plain.py 90; gpu: for a large GPU
    out: Path | None = None  # JSON file for the result; without it the table is only printed
    threads: int = 1  # of the CPU; one is disturbed least by what else the machine does


AnyOptions = TypeVar("AnyOptions", bound=Options)


def start(kind: type[AnyOptions], description: str) -> AnyOptions:
    "Options from the command line; the process keeps to their threads."
    options = tyro.cli(kind, description=description)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def device() -> str:
    "The accelerator, where there is one."
    return "cuda" if torch.cuda.is_available() else "cpu"


def _part(options: Options) -> Path | None:
    return options.out and options.out.with_suffix(f".{options.threads}.part")


def begun(options: Options) -> list[dict]:
    "The rows of a run with these options that was stopped."
    part = _part(options)
    return json.loads(part.read_text()) if part and part.exists() else []


def begin(rows: list[dict], options: Options) -> None:
    "Keep the rows of a run that is not at its end."
    if part := _part(options):
        write_atomic(part, json.dumps(rows))


def keep(rows: list[dict], options: Options, **facts) -> None:
    "Print the rows as a table, and write them with what they were measured on."
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".4g"))
    if options.out:
        record = {"profile": options.profile, "threads": options.threads, **facts, "rows": rows}
        record |= surroundings(None, "timm")
        write_atomic(options.out, json.dumps(record, indent=1) + "\n")
        _part(options).unlink(missing_ok=True)
