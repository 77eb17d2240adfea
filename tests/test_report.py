"""The report, end to end on a small project: experiments run, website and PDF come out, what is missing stops it."""

import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sivit import report, typeset
from sivit.report import ReportConfig, ReportError, build_report

ROOT = Path(__file__).resolve().parents[1]
QUARTO_YML = """
project: {type: website, output-dir: _site}
execute: {enabled: false}
website:
  title: Small
  repo-url: https://example.org/small/
  repo-branch: trunk
  sidebar:
    contents:
      - nbs/index.ipynb
      - paper/index.qmd
      - section: Experiments
        contents: [auto: nbs/experiments/*.ipynb]
      - section: Chapters
        contents: [nbs/00_chapter.ipynb]
format: {html: {html-math-method: mathml}}
"""
SETTINGS = """[DEFAULT]
lib_name = small
lib_path = small
nbs_path = .
doc_path = _site
version = 0.0.1
min_python = 3.10
license = apache2
branch = main
user = small
author = small
author_email = small@example.org
description = small
keywords = small
copyright = small
status = 3
audience = Science/Research
language = English
title = small
git_url = https://example.org/small
doc_host = https://example.org
doc_baseurl = /small
recursive = True
custom_quarto_yml = True
custom_sidebar = True
readme_nb = nbs/index.ipynb
update_pyproject = False
"""
PAPER = r"""---
title: A small paper
author: [{name: A. Author, affiliation: Somewhere}]
abstract: The best is {{< meta numbers.toy.best >}}.
bibliography: references.bib
citeproc: true
number-sections: true
metadata-files: [results/numbers.yml, build.yml]
format:
  html: default
  typst:
    template-partials: [layout/typst-template.typ, layout/typst-show.typ]
---

## First {#sec-first}

@fig-curve and @tbl-rows show @eq-law of @sec-second; the best is {{< meta numbers.toy.best >}} [@knuth84, p. 3],
see [the toy](../nbs/experiments/toy.ipynb) and [the chapter](../nbs/00_chapter.ipynb).

{{< embed ../nbs/experiments/toy.ipynb#fig-curve >}}

{{< embed ../nbs/experiments/toy.ipynb#tbl-rows >}}

## Second

### Within {#sec-second}

$$
y = \frac{x}{2}
$$ {#eq-law}

## References {.unnumbered}

::: {#refs}
:::
"""
BOOK = "@book{knuth84, author={Donald E. Knuth}, title={The {TeX}book}, publisher={Addison-Wesley}, year={1984}}\n"
IMPORTS = """from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from sivit.report import save_numbers

root = Path("../..")"""
QUOTE = """best = {"quick": "12.30 ± 0.4 %", "cpu": "13 %"}[profile]
save_numbers("toy", {"best": best}, root / results)
(root / results / "run.json").exists()"""
TOY = [
    "---\ntitle: A toy question\nskip_showdoc: true\n---",
    'profile = "quick"\nresults = "paper/results"',
    IMPORTS,
    QUOTE,
    "Path(root / results / 'run.json').write_text('{}')",
    '#| label: fig-curve\n#| fig-cap: "A *curve*, $y = x/2$."\nplt.plot([0, 2], [0, 1])\nplt.show()',
    "#| label: tbl-rows\n#| tbl-cap: Two rows.\npd.DataFrame({'size': [96, 128], 'tokens': [36, 64]})",
]
CHAPTER = [
    "# A chapter\n> A claim.",
    "#| default_exp chapter",
    "#| export\ndef exported(\n    x: int,  # a number\n):\n    return x",
    "#| hide\nsecret = 1",
    "# Once more\n\nSee [the paper](../paper/index.qmd#sec-first).",
]


def write_notebook(path: Path, sources: list[str]) -> None:
    "A notebook that was never run, of the sources: front matter, prose that begins with #, or code."
    cells = []
    for number, source in enumerate(sources):
        kind = "raw" if source.startswith("---") else "markdown" if source.startswith("# ") else "code"
        cell = {"cell_type": kind, "id": f"cell{number}", "metadata": {}, "source": source}
        if kind == "code":
            cell |= {"outputs": [], "execution_count": None}
            cell["metadata"] = {"tags": ["parameters"]} if source.startswith("profile =") else {}
        cells.append(cell)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}))


def make_project(root: Path) -> Path:
    write_notebook(root / "nbs/index.ipynb", ["# Small\n> A front page."])
    write_notebook(root / "nbs/00_chapter.ipynb", CHAPTER)
    write_notebook(root / "nbs/experiments/toy.ipynb", TOY)
    (root / "_quarto.yml").write_text(QUARTO_YML)
    (root / "settings.ini").write_text(SETTINGS)
    (root / "small").mkdir()
    (root / "small/__init__.py").write_text("")
    (root / "paper").mkdir()
    (root / "paper/index.qmd").write_text(PAPER)
    (root / "paper/references.bib").write_text(BOOK)
    shutil.copytree(ROOT / "paper/layout", root / "paper/layout")
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The small project, built by the fallback under MPLBACKEND=Agg: project, what was made, what was said."
    project = make_project(tmp_path_factory.mktemp("report") / "project")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")
        made = build_report(ReportConfig(project=str(project), renderer="pandoc"), said)
    return project, made, said.getvalue()


@pytest.fixture
def staged(built, tmp_path):
    "A copy of the sources as they were rendered, to be broken by a test."
    return Path(shutil.copytree(built[0] / ".build/report/quick/sources", tmp_path / "sources"))


def words(*pages: Path) -> str:
    "What a reader sees of pages, with plain spaces."
    body = re.sub(r"(?s)<(style|script|head|annotation)\b.*?</\1>", "", "\n".join(page.read_text() for page in pages))
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", body)))


def pages(built) -> list[Path]:
    "The pages of the website."
    return sorted(built[1].page.parent.glob("*.html"))


# The whole way


def test_pages_resolve_everything(built):
    shown = words(*pages(built))
    for text in (
        "Figure 1 and Table 1 show Equation 1 of Section 2.1; the best is 12.30 ± 0.4 % (Knuth 1984, 3)",
        "The best is 12.30 ± 0.4 %.",
        "Figure 1: A curve",
        "Table 1: Two rows.",
        "1 First",
        "2.1 Within",
        "Source: A toy question",
        "A. Author, Somewhere",
        "The TeXbook",
        "# a number",
        "A claim.",
        "Built with pandoc",
    ):
        assert text in shown, text
    for text in ("#|", "{{<", "?@", "?meta", "secret", "default_exp", ":::", "skip_showdoc"):
        assert text not in shown, text


def test_every_source_has_a_page_and_nothing_is_left_over(built):
    folder = built[1].page.parent
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    expected = {"index.html", "paper.html", "experiments-toy.html", "00_chapter.html", "paper.pdf"}
    assert {name for name in names if not name.startswith("media/")} == expected | {"site.css", "site.js", "search.js"}
    assert any(re.fullmatch(r"media/\w+\.(svg|png)", name) for name in names)


def test_pages_load_only_what_lies_beside_them(built):
    for page in pages(built):
        text = page.read_text()
        loaded = re.findall(r"<(?:img|script|link|iframe|source|object)\b[^>]*(?:src|href|data)=[\"']([^\"']+)", text)
        assert {"site.css", "site.js"} <= set(loaded)
        assert all(address == "data:," or (page.parent / address).is_file() for address in loaded)
        assert not re.search(r"url\((?![\"']?data:)|@import", text)
    assert "url(" not in (built[1].page.parent / "site.css").read_text()
    assert "<math" in (built[1].page.parent / "paper.html").read_text()


def test_links_lead_to_pages_and_sections(built):
    folder = built[1].page.parent
    paper, chapter = ((folder / name).read_text() for name in ("paper.html", "00_chapter.html"))
    links = set(re.findall(r'href="([^"]+)"', paper))
    assert {"experiments-toy.html", "00_chapter.html", "#fig-curve", "#sec-second"} <= links
    assert 'id="fig-curve"' in paper and 'href="paper.html#sec-first"' in chapter and 'id="sec-first"' in paper


def test_page_says_where_it_is_and_where_it_comes_from(built):
    toy = (built[1].page.parent / "experiments-toy.html").read_text()
    assert 'href="experiments-toy.html" aria-current="page"' in toy and toy.count('aria-current="page"') == 1
    assert 'rel="prev" href="paper.html"' in toy and 'rel="next" href="00_chapter.html"' in toy
    assert 'href="https://example.org/small/blob/trunk/nbs/experiments/toy.ipynb">Source<' in toy
    assert toy.count('href="paper.pdf"') == 1
    assert (built[1].page.parent / "paper.html").read_text().count('href="paper.pdf"') == 2


def test_search_knows_every_section(built):
    text = (built[1].page.parent / "search.js").read_text()
    entries = json.loads(text.removeprefix("window.searchIndex = ").removesuffix(";\n"))
    found = {entry["address"]: entry for entry in entries}
    assert found["paper.html#sec-second"]["heading"] == "2.1 Within" and "00_chapter.html#once-more" in found
    assert "def exported" in found["00_chapter.html"]["text"] and "secret" not in text
    assert found["experiments-toy.html"]["title"] == "A toy question"


def test_interactive_output_stays_as_it_is_and_leaves_a_line_in_the_pdf(built, staged, tmp_path):
    html = '<table id="game"></table>\n<script>document.getElementById("game").title = "a < b && c";</script>'
    toy = staged / "nbs/experiments/toy.ipynb"
    notebook = json.loads(toy.read_text())
    shown = {"output_type": "display_data", "metadata": {}, "data": {"text/html": html, "text/plain": "<HTML>"}}
    cell = {"cell_type": "code", "id": "play", "metadata": {}, "source": "play()", "outputs": [shown]}
    toy.write_text(json.dumps({**notebook, "cells": [*notebook["cells"], cell | {"execution_count": 1}]}))
    embedding = PAPER.replace("## Second", "{{< embed ../nbs/experiments/toy.ipynb#play >}}\n\n## Second", 1)
    (staged / "paper/index.qmd").write_text(embedding)
    made = typeset.render_pandoc(staged, tmp_path / "out")
    assert all(html in (made.page.parent / name).read_text() for name in ("paper.html", "experiments-toy.html"))
    page = typeset.read_page(staged, "paper/index.qmd", tmp_path / "media")
    source = typeset.typst_source(page, "a renderer", staged / "paper/layout")
    assert "This part is interactive; it is on the website" in source and "<script" not in source


def test_two_sources_of_one_name_stop_the_build(staged, tmp_path):
    write_notebook(staged / "nbs/experiments-toy.ipynb", ["# The same name"])
    listed = QUARTO_YML.replace("[nbs/00_chapter.ipynb]", "[nbs/00_chapter.ipynb, nbs/experiments-toy.ipynb]")
    (staged / "_quarto.yml").write_text(listed)
    with pytest.raises(ReportError, match=r"nbs/experiments-toy\.ipynb: another page is called experiments-toy\.html"):
        typeset.render_pandoc(staged, tmp_path / "out")


def test_pdf_has_pages(built):
    pdf = built[1].paper.read_bytes()
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")
    assert re.search(rb"/Type\s*/Page\b", pdf) and re.search(rb"/Count\s+[1-9]", pdf)


def test_pdf_holds_the_same_things_as_the_page(built, tmp_path):
    sources = built[0] / ".build/report/quick/sources"
    page = typeset.read_page(sources, "paper/index.qmd", tmp_path / "media")
    source = typeset.typst_source(page, "a renderer", sources / "paper/layout")
    for text in ("Figure~1: A", "Table~1: Two rows", "#equation([(1)])", "12.30 ± 0.4 %", "The TeXbook"):
        assert text in source.replace("\u00a0", "~"), text
    for text in ("a renderer", "a run of the profile quick", "A. Author"):
        assert text in source, text
    assert page.problems == [] and "Source:" not in source
    (first, *_) = typeset.write_pdf(source, tmp_path, "png")
    assert first.startswith(b"\x89PNG")


def test_committed_sources_are_never_written(built):
    project = built[0]
    assert not any(cell.get("outputs") for cell in typeset.read_notebook(project / "nbs/experiments/toy.ipynb"))
    assert not (project / "paper/results").exists() and not (project / "paper/build.yml").exists()


def test_progress_without_a_terminal_is_lines(built):
    assert "[1/1] toy" in built[2] and "elapsed" in built[2] and "\r" not in built[2]
    assert str(built[1].page) in built[2] and str(built[1].paper) in built[2] and "pandoc" in built[2]


def test_rerun_keeps_results_and_force_forgets_them(built):
    project, made, _ = built
    toy = project / ".build/report/quick/sources/nbs/experiments/toy.ipynb"
    config = ReportConfig(project=str(project), renderer="pandoc")

    def found_the_run() -> str:
        cells = typeset.read_notebook(toy)
        return next(cell["outputs"][0]["data"]["text/plain"] for cell in cells if "save_numbers(" in cell["source"])[0]

    assert found_the_run() == "False"
    said = io.StringIO()
    build_report(config, said)
    assert found_the_run() == "True" and "left" in said.getvalue()
    build_report(dataclasses.replace(config, force=True), io.StringIO())
    assert found_the_run() == "False" and made.page.exists()


# What must not pass: (what is changed in the paper, into what, the line it stands on, what is said of it)

FAULTS = {
    "figure": ("@fig-curve and", "@fig-curvy and", "@fig-curvy"),
    "table": ("@tbl-rows show", "@tbl-columns show", "@tbl-columns"),
    "equation": ("@eq-law", "@eq-lore", "@eq-lore"),
    "section": ("@sec-second", "@sec-third", "@sec-third"),
    "citation": ("@knuth84", "@knuth85", "@knuth85"),
    "number": ("the best is {{< meta numbers.toy.best", "the best is {{< meta numbers.toy.worst", "numbers.toy.worst"),
    "embedded cell": ("toy.ipynb#tbl-rows", "toy.ipynb#tbl-columns", "../nbs/experiments/toy.ipynb#tbl-columns"),
    "embedded notebook": ("toy.ipynb#tbl-rows", "toys.ipynb#tbl-rows", "../nbs/experiments/toys.ipynb#tbl-rows"),
    "link": ("../nbs/00_chapter.ipynb", "../nbs/00_chapters.ipynb", "../nbs/00_chapters.ipynb"),
    "section of a page": ("../nbs/00_chapter.ipynb", "../nbs/00_chapter.ipynb#no", "../nbs/00_chapter.ipynb#no"),
    "picture": ("## Second", "![](curve.png)\n\n## Second", "curve.png"),
    "picture from the web": ("## Second", "![](https://example.org/a.png)\n\n## Second", "https://example.org/a.png"),
    "bibliography": ("bibliography: references.bib", "bibliography: reference.bib", "reference.bib"),
    "metadata file": ("results/numbers.yml, build", "results/number.yml, build", "results/number.yml"),
    "label used twice": ("## Second", "$$ 1 $$ {#eq-law}\n\n## Second", "eq-law"),
    "shortcode": ("## Second", "{{< video x.mp4 >}}\n\n## Second", "video"),
    "HTML in the PDF": ("## Second", "<b>bold</b>\n\n## Second", "<b>"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_stops_the_build_by_name(fault, staged, tmp_path):
    old, new, name = FAULTS[fault]
    text = (staged / "paper/index.qmd").read_text()
    assert old in text
    (staged / "paper/index.qmd").write_text(text.replace(old, new, 1))
    with pytest.raises(ReportError, match=rf"paper/index\.qmd:\d+: {re.escape(name)}: "):
        typeset.render_pandoc(staged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_formula_that_cannot_be_set_stops_the_build(staged, tmp_path):
    (staged / "paper/index.qmd").write_text(PAPER.replace(r"\frac{x}{2}", r"\fraction{x}{2}"))
    with pytest.raises(ReportError, match="fraction"):
        typeset.render_pandoc(staged, tmp_path / "out")


@pytest.mark.parametrize("page", ["nbs/experiments/toy.ipynb", "nbs/missing.ipynb"])
def test_unexecuted_or_missing_page_stops_the_build(page, staged, tmp_path):
    write_notebook(staged / "nbs/experiments/toy.ipynb", TOY)
    if "missing" in page:
        (staged / "_quarto.yml").write_text(QUARTO_YML.replace("nbs/00_chapter.ipynb", page))
    with pytest.raises(ReportError, match=re.escape(page)):
        typeset.render_pandoc(staged, tmp_path / "out")


def test_all_faults_are_told_at_once(staged, tmp_path):
    text = PAPER.replace("@eq-law", "@eq-lore").replace("@knuth84", "@knuth85")
    (staged / "paper/index.qmd").write_text(text)
    with pytest.raises(ReportError) as caught:
        typeset.render_pandoc(staged, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 2


# Experiments


def test_failed_experiment_is_named_and_nothing_is_replaced(built, tmp_path):
    project = Path(shutil.copytree(built[0], tmp_path / "project"))
    page = project / ".build/report/quick/html/paper.html"
    before = page.read_bytes()
    fails = "#| label: fig-curve\nraise RuntimeError('no curve today')"
    write_notebook(project / "nbs/experiments/toy.ipynb", [*TOY[:2], fails, "#| label: tbl-rows\n1"])
    said = r"toy\.ipynb: cell 3 of 4 \(fig-curve\) raised RuntimeError: no curve today\n.*toy\.partial\.ipynb"
    with pytest.raises(ReportError, match=said):
        build_report(ReportConfig(project=str(project), renderer="pandoc"), io.StringIO())
    assert page.read_bytes() == before


def test_number_no_longer_written_is_missed_not_taken_from_an_older_run(built, tmp_path):
    project = Path(shutil.copytree(built[0], tmp_path / "project"))
    report.save_numbers("toy", {"best": "99 %"}, project / "paper/results")  # committed, and in the earlier build
    draws = "#| label: fig-curve\nfrom IPython.display import SVG\nSVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')"
    write_notebook(project / "nbs/experiments/toy.ipynb", [*TOY[:2], draws, "#| label: tbl-rows\n1"])
    with pytest.raises(ReportError, match=r"paper/index\.qmd:\d+: numbers\.toy\.best: no such value"):
        build_report(ReportConfig(project=str(project), renderer="pandoc"), io.StringIO())
    assert "99 %" in (project / "paper/results/numbers.yml").read_text()


def test_committed_pages_render_without_running(built, tmp_path):
    project = make_project(tmp_path / "project")
    sources = built[0] / ".build/report/quick/sources"
    shutil.copy(sources / "nbs/experiments/toy.ipynb", project / "nbs/experiments/toy.ipynb")
    report.save_numbers("toy", {"best": "77 %"}, project / "paper/results")
    made = build_report(ReportConfig(project=str(project), renderer="pandoc", skip_experiments=True), io.StringIO())
    assert "the best is 77 %" in words(made.page.parent / "paper.html") and made.paper.stat().st_size > 5_000


def test_kernel_that_dies_is_reported(tmp_path):
    write_notebook(tmp_path / "toy.ipynb", ['profile = "quick"', "import os\nos._exit(3)"])
    with pytest.raises(ReportError, match=r"toy\.ipynb: the run broke off: .*[Kk]ernel"):
        report.run_notebook(tmp_path / "toy.ipynb", tmp_path / "done.ipynb", {}, tmp_path)
    assert not (tmp_path / "done.ipynb").exists()


def test_progress_in_a_terminal_is_one_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now, stream = [0.0], Terminal()
    progress = report.Progress({"toy": 4}, {"toy": [5.0] * 4}, stream=stream, clock=lambda: now[0])
    progress.begin("toy")
    for now[0], done in ((10.0, 1), (20.0, 2)):
        progress.update(["completed"] * done + ["running"] + ["pending"] * (3 - done))
    progress.close()
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().count("\r") == 3
    assert stream.getvalue().endswith("[1/1] toy · cell 3/4 · 0:20 elapsed · about 0:20 left\n")
    assert report.Progress({"toy": 4}, stream=stream).timed is False


# The command line


def test_importing_needs_no_tools():
    heavy = {"papermill", "pypandoc", "typst", "nbdev", "tyro", "yaml", "torch"}
    code = f"import sys, sivit.report; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["pypandoc", "typst", "yaml"])
def test_missing_tool_says_how_to_get_it(module, staged, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ReportError, match=r"pip install -e '\.\[dev\]'"):
        typeset.render_pandoc(staged, tmp_path / "out")


def test_command_line(built, capsys):
    with pytest.raises(SystemExit) as ended:
        report.main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(option in shown for option in ("--profile", "--only", "--renderer", "--skip-experiments", "--force"))
    assert report.main(["--project", str(built[0]), "--renderer", "pandoc", "--only", "toys"]) == 1
    assert "Did you mean toy?" in capsys.readouterr().err
    assert report.main(["--project", str(built[0] / "nbs"), "--renderer", "pandoc"]) == 1
    assert "_quarto.yml: missing" in capsys.readouterr().err


def test_quarto_that_is_not_there(staged, tmp_path, monkeypatch):
    monkeypatch.setattr(report.shutil, "which", lambda name: None)
    with pytest.raises(ReportError, match=r"quarto is not on the PATH: get it from https://quarto\.org"):
        report.render_quarto(staged, tmp_path / "out")


# Quarto itself, where it is installed

quarto = pytest.mark.skipif(shutil.which("quarto") is None, reason="quarto is not on the PATH")


@quarto
def test_quarto_builds_the_same_sources(staged, tmp_path):
    made = report.render_quarto(staged, tmp_path / "out", say=lambda line: None)
    shown = words(made.page.parent / "paper/index.html")
    assert "the best is 12.30 ± 0.4 % (Knuth 1984, 3)" in shown and "Figure 1: A curve" in shown
    assert "# a number" in words(made.page.parent / "nbs/chapter.html")
    assert made.paper.read_bytes().startswith(b"%PDF-") and made.renderer.startswith("Quarto ")


@quarto
@pytest.mark.parametrize("faults", [("figure", "citation", "number", "link"), ("embedded cell",)])
def test_quarto_faults_stop_the_build_by_name(faults, staged, tmp_path):
    text = PAPER
    for fault in faults:
        text = text.replace(*FAULTS[fault][:2], 1)
    (staged / "paper/index.qmd").write_text(text)
    with pytest.raises(ReportError) as caught:
        report.render_quarto(staged, tmp_path / "out", say=lambda line: None)
    for fault in faults:
        name = re.split(r"[#@]|\.\./", FAULTS[fault][2])[-1]
        told = re.search(rf"^paper/index\.qmd: .*{re.escape(name)}", str(caught.value), re.MULTILINE)
        assert told, (fault, str(caught.value))
    assert not (tmp_path / "out/html").exists() and (tmp_path / "out/quarto.log").exists()


# This project


def test_sidebar_lists_every_page_of_this_project():
    listed = [file for _, files in typeset.reading_order(ROOT) for file in files]
    notebooks = [*ROOT.glob("nbs/*.ipynb"), *ROOT.glob("nbs/experiments/*.ipynb")]
    assert sorted(listed) == sorted([*(path.relative_to(ROOT).as_posix() for path in notebooks), "paper/index.qmd"])


def test_committed_numbers_are_those_of_the_experiments():
    results = ROOT / "paper/results"
    numbers = {path.stem: json.loads(path.read_text()) for path in (results / "numbers").glob("*.json")}
    assert typeset.read_yaml((results / "numbers.yml").read_text(), "numbers.yml") == {"numbers": numbers}
    assert set(numbers) <= {path.stem for path in (ROOT / "nbs/experiments").glob("*.ipynb")}


@pytest.mark.parametrize("file", ["paper/index.qmd", "nbs/index.ipynb"])
def test_front_page_and_paper_resolve(file, tmp_path):
    assert typeset.read_page(ROOT, file, tmp_path / "media").problems == []


def test_front_page_links_every_chapter():
    linked = re.findall(r"\]\((\d+_\w+\.ipynb)\)", (ROOT / "nbs/index.ipynb").read_text())
    assert linked == sorted(path.name for path in ROOT.glob("nbs/[0-9]*.ipynb"))
