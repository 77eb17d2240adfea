"""The package as a stranger meets it: after `pip install -e .`, with none of the notebook tooling."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLING = ["nbdev", "fastcore", "execnb", "IPython", "ipykernel", "jupytext", "papermill", "nbformat", "nbclient",
           "timm", "sklearn", "pypandoc", "typst", "pytest", "tabulate"]  # fmt: skip

BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({TOOLING}))\n"  # None there makes an import fail


def python(code, blocked=True):
    code = (BLOCKED if blocked else "") + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")


def test_everything_works_without_the_tooling():
    modules = sorted(path.stem for path in (ROOT / "sivit").glob("[a-z]*.py"))
    assert len(modules) > 10
    done = python(f"""
import importlib, torch, sivit
for name in {modules}: importlib.import_module('sivit.' + name)
for name in sivit.__all__: getattr(sivit, name)
model = sivit.create_model('vitar_micro_patch4', num_classes=10)
assert model(torch.randn(1, 3, 50, 70)).shape == (1, 10)
print(sivit.draw_scenes([0, 1], 32).image.shape)
""")
    assert done.returncode == 0, done.stderr
    assert "[2, 3, 32, 32]" in done.stdout


def test_digits_say_what_is_missing():
    done = python("import sivit; sivit.create_dataset('digits')")
    assert done.returncode != 0 and "pip install 'sivit[dev]'" in done.stderr


def test_an_unknown_name_lists_the_known_ones():
    done = python("import sivit; sivit.crate_model", blocked=False)
    assert "no attribute 'crate_model'" in done.stderr and "create_model" in done.stderr


def test_importing_is_lazy():
    done = python("import sys, sivit; assert 'torch' not in sys.modules; print(sivit.__version__)")
    assert done.returncode == 0, done.stderr


HEAVY = ["pandas", "matplotlib", "scipy", "sklearn", "torchmetrics", "accelerate", "joblib", "transformers", "timm",
         "IPython"]  # fmt: skip
LIGHT = ["create_model", "ViT", "list_models", "create_position", "create_merger", "from_timm", "from_torchvision",
         "draw_scenes", "create_dataset"]  # fmt: skip


@pytest.mark.parametrize(
    "names, heavy",
    [
        (["create_position", "create_merger", "draw_scenes"], [*HEAVY, "torchvision", "torch._dynamo"]),
        (LIGHT, HEAVY),
    ],
)
def test_what_a_model_does_not_need_is_not_imported(names, heavy):
    used = f"import sys, sivit\nfor name in {names}: getattr(sivit, name)\n"
    done = python(f"{used}print([name for name in {heavy} if name in sys.modules])", blocked=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_the_help_of_these_commands_needs_no_pytorch():
    for command in ("evaluate", "compare", "models", "report"):
        said = f"import sys, sivit.cli\ntry: sivit.cli.main([{command!r}, '--help'])\n"
        done = python(f"{said}finally: assert 'torch' not in sys.modules", blocked=False)
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_one_version():
    import configparser

    import sivit

    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    cited = next(line.split()[1] for line in lines if line.startswith("version:"))
    assert sivit.__version__ == settings["DEFAULT"]["version"] == cited
