"""The package as a stranger meets it: after `pip install -e .`, with none of the notebook tooling."""

import subprocess
import sys
from pathlib import Path

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


def test_one_version():
    import configparser

    import sivit

    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    cited = next(line.split()[1] for line in lines if line.startswith("version:"))
    assert sivit.__version__ == settings["DEFAULT"]["version"] == cited
