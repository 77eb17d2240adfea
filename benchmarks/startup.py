"""What the first use of a public name, and the help of each command, cost next to importing torch and torchvision.

`import sivit` alone loads nothing, so what counts is the first name that is used. Every contestant is a process of its
own; they take turns. `speed` is the time of `import torch, torchvision` over theirs, so a name that costs
1.1 × as much has 0.91. Where other work shares the machine, processor time is the more reliable of the two.
"""

import resource
import statistics
import subprocess
import sys
from functools import partial

import bench

import sivit
from sivit.cost import race

BASE = "import torch, torchvision"
HEAVY = ("pandas", "matplotlib", "scipy", "sklearn", "torchmetrics", "accelerate", "joblib", "transformers", "timm")
COMMANDS = ("", "train", "evaluate", "compare", "models", "report")
FEW = (BASE, "import sivit", "import sivit; sivit.create_model", "sivit --help")
ALL = (BASE, "import sivit", *(f"import sivit; sivit.{name}" for name in sivit.__all__ if name != "__version__"))
CONTESTANTS = {"quick": FEW, "cpu": ALL, "gpu": ALL}
ROUNDS = {"quick": 2, "cpu": 3, "gpu": 9}


def command_of(text: str) -> list[str]:
    "A shell's line, or Python code, as arguments of a process."
    if text.startswith("sivit"):
        return [sys.executable, "-m", "sivit.cli", *text.split()[1:]]
    return [sys.executable, "-c", text]


def spend(text: str, spent: list[float]) -> None:
    "Run a contestant, and note the processor seconds that it took."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command_of(text), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def loaded(text: str) -> str:
    "Which heavy packages Python code has imported in the end."
    code = f"{text}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    return subprocess.run(command_of(code), check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    options = bench.start(bench.Options, __doc__)
    texts = CONTESTANTS[options.profile]
    if texts is ALL:
        texts += tuple(f"sivit {command} --help".replace("  ", " ") for command in COMMANDS)
    spent = {text: [] for text in texts}
    calls = {text: partial(spend, text, times) for text, times in spent.items()}
    rows = race(calls, rounds=ROUNDS[options.profile], warmup=0).to_dict("records")
    for row in rows:
        row["processor_seconds"] = statistics.median(spent[row["name"]])
        row["processor_ratio"] = row["processor_seconds"] / statistics.median(spent[BASE])
        row["packages"] = "" if row["name"].startswith("sivit") or options.profile == "quick" else loaded(row["name"])
    bench.keep(rows, options)
