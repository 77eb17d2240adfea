"""The house rules that a notebook cannot check about itself. Every failure says how to mend it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(*command, cwd=ROOT):
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def snapshot(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(folder): path.read_bytes() for path in files}


def changed(before, after):
    return sorted(str(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@pytest.fixture
def copy(tmp_path):
    "A copy of what the tools below rewrite, so that a check never changes the checkout."
    project = tmp_path / "project"
    for name in ("nbs", "sivit"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "README.md", "jupytext.toml"):
        shutil.copy(ROOT / name, project / name)
    return project


def test_the_package_is_what_the_notebooks_export(copy):
    before = snapshot(copy / "sivit")
    run("nbdev_export", cwd=copy)
    stale = changed(before, snapshot(copy / "sivit"))
    assert not stale, f"sivit/ is not what the notebooks export: {stale}. Edit the notebook, then run 'make fix'."


def test_notebooks_are_clean(copy):
    before = snapshot(copy / "nbs")
    run("nbdev_clean", cwd=copy)
    dirty = changed(before, snapshot(copy / "nbs"))
    assert not dirty, f"These notebooks carry metadata that does not belong in git: {dirty}. Run 'make fix'."


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs/experiments").glob("*.ipynb")), ids=lambda path: path.stem)
def test_twins_are_in_sync(notebook, copy):
    twin = ROOT / "scripts" / f"{notebook.stem}.py"
    assert twin.exists(), f"{twin.relative_to(ROOT)} is missing. Run 'make fix'."
    (copy / "scripts").mkdir()
    made = f"scripts/{notebook.stem}.py"
    run("jupytext", "--quiet", "--to", "py:percent", "--output", made, f"nbs/experiments/{notebook.name}", cwd=copy)
    wanted = (copy / made).read_text()
    mend = "Run 'make fix' to take the notebook's text, or 'jupytext --sync' to take the script's."
    assert twin.read_text() == wanted, f"{twin.relative_to(ROOT)} differs from its notebook. {mend}"


def test_no_twin_without_a_notebook():
    notebooks = {path.stem for path in (ROOT / "nbs/experiments").glob("*.ipynb")}
    twins = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert twins == notebooks, "Remove the script, or restore its notebook."


def test_papermill_finds_the_parameters():
    import papermill

    for notebook in (ROOT / "nbs/experiments").glob("*.ipynb"):
        found = set(papermill.inspect_notebook(notebook))
        assert {"profile", "results"} <= found, f"{notebook.name} has lost its tag 'parameters'."


def test_exports_are_short():
    import nbformat

    for notebook in (ROOT / "nbs").glob("*.ipynb"):
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type == "code" and cell.source.lstrip().startswith("#| export"):
                lines = cell.source.count("\n") + 1
                assert lines <= 80, f"{notebook.name}: an export cell of {lines} lines; split it:\n{cell.source[:200]}"


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs/experiments").glob("*.ipynb")), ids=lambda path: path.stem)
def test_figures_of_experiments_say_what_made_them(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if "#| label: fig-" in "".join(cell["source"])]
    assert cells, "An experiment without a figure."
    for cell in cells:
        source, stored = "".join(cell["source"]), json.dumps(cell["outputs"])
        name = source.partition("label: ")[2].split()[0]
        assert "sign_figure(" in source, f"{name} names neither profile nor device: use sign_figure(fig, origin)."
        assert "<!-- profile " in stored or "image/png" in stored, f"{name} is older than its code. Run it again."


def test_no_page_names_somebody_s_machine():
    homes = {f"{ROOT}/", f"{Path.home()}/", "/site-packages/"}
    for notebook in (ROOT / "nbs").rglob("*.ipynb"):
        text = notebook.read_text()
        named = sorted(path for path in homes if path in text)
        assert not named, f"{notebook.name} shows {named}, from somebody's machine. Silence it and run it again."
