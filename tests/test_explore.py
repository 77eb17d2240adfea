"""The two pages that answer to the reader, in a browser: what is chosen is shown, and every number is a result's."""

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from sivit.merge import token_cells
from sivit.study import load_results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "paper/results"
AGAIN = "Run the pages again: 'jupyter execute --inplace nbs/explore.ipynb nbs/results.ipynb', then 'make fix'."
THEMES = {"light": "background: #fff; color: #222", "dark": "color-scheme: dark; background: #1e1e1e; color: #ddd"}


def shown(name):
    "The page's HTML, as the notebook has stored it."
    cells = json.loads((ROOT / f"nbs/{name}.ipynb").read_text())["cells"]
    outputs = [output["data"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
    return "".join(next(data["text/html"] for data in outputs if "text/html" in data))


def data_of(name):
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', shown(name), re.DOTALL)[1])


@pytest.fixture
def visit(browser, tmp_path):
    "Open a page; an error that it reports, or a request that it makes, fails the test."
    faults, pages = [], []

    def open_page(name, theme="light", width=900, change=lambda text: text):
        file = tmp_path / f"{name}.html"
        head = f"<!doctype html><html lang=en><meta charset=utf-8><style>body {{ {THEMES[theme]} }}</style>"
        file.write_text(f"{head}<body>{change(shown(name))}")
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(5000)
        page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not faults


def choose(page, key):
    for name, value in zip(("position", "merger", "schedule"), key.split("|"), strict=True):
        page.select_option(f"select[name={name}]", value)


def move_to(page, axis, value):
    if page.eval_on_selector("select[name=axis]", "node => node.value") != axis:
        page.select_option("select[name=axis]", axis)
    values = [stop["value"] for stop in data_of("explore")["stops"][axis]]
    page.locator("input[type=range]").fill(str(min(range(len(values)), key=lambda i: abs(values[i] - value))))


def percentages(text):
    return [int(number) for number in re.findall(r"(\d+) %", text)]


# Explore


@pytest.mark.parametrize("theme", THEMES)
def test_explorer_takes_the_colours_of_the_page(visit, theme):
    page = visit("explore", theme)
    text = page.evaluate("getComputedStyle(document.body).color")
    for part in (".told", "select", ".chart text", ".about"):
        property_name = "fill" if "text" in part else "color"
        assert page.eval_on_selector(part, f"node => getComputedStyle(node).{property_name}") == text, part
    assert page.locator(".chart svg .curve").count() == 1


def test_slider_moves_everything_by_keyboard(visit):
    page = visit("explore")
    choose(page, next(key for key in data_of("explore")["curves"] if "|atm|" in key))
    look = """() => [document.querySelector(".panels image").getAttribute("href"),
        document.querySelectorAll(".panels line").length, document.querySelector(".told").textContent,
        document.querySelector(".point").getAttribute("cx"),
        document.querySelector("input").getAttribute("aria-valuetext")]"""
    page.focus("input[type=range]")
    before = page.evaluate(look)
    for _ in range(2):  # from 24 px over 28 to 32
        page.keyboard.press("ArrowRight")
    after = page.evaluate(look)
    assert all(was != now for was, now in zip(before, after, strict=True)), (before, after)
    assert after[2].startswith("At 32 px") and "64 tokens → 9" in after[2] and after[4] == "32 px"
    page.keyboard.press("Home")
    assert page.inner_text(".told").startswith("At 8 px") and "4 tokens → 9" in page.inner_text(".told")
    page.keyboard.press("End")
    assert page.locator(".panels figure").count() == 4  # 24 × 24 patches, and three passes
    assert "24 × 24 → 12 × 12" in page.inner_text(".panels")


def test_explorer_shows_the_runs_of_the_grid_and_no_others():
    shown_runs = [run for curve in data_of("explore")["curves"].values() for run in curve["runs"]]
    assert sorted(shown_runs) == sorted(json.loads((RESULTS / "factors/grid.json").read_text())["runs"])


@pytest.mark.parametrize("axis", ["resolution", "object_scale", "canvas"])
def test_sentence_says_what_the_results_say(visit, axis):
    curves, frame = data_of("explore")["curves"], load_results(RESULTS)
    page, drawn = visit("explore"), set()
    for key in list(curves)[:: max(1, len(curves) // 6)]:
        choose(page, key)
        runs = frame[frame.key.isin(curves[key]["runs"]) & (frame.axis == axis)]
        assert set(runs[["position", "merger", "schedule"]].agg("|".join, axis=1)) == {key}
        for value, points in runs.groupby("value"):
            move_to(page, axis, value)
            spread = [points.accuracy.mean()]
            spread += [points.accuracy.min(), points.accuracy.max()] if len(points) > 1 else []
            told = percentages(page.inner_text(".told"))[: len(spread)]
            assert told == pytest.approx([100 * share for share in spread], abs=0.51), (key, value)
        drawn.add(page.get_attribute(".chart .curve", "d"))
    assert len(drawn) == len(list(curves)[:: max(1, len(curves) // 6)])


def test_between_measured_sizes_the_sentence_says_so(visit):
    page = visit("explore")
    key = next(iter(data_of("explore")["curves"]))
    choose(page, key)
    move_to(page, "resolution", 40)
    told, ends = page.inner_text(".told"), []
    assert "about" in told and "between the measured 32 px and 48 px" in told
    for side in (32, 48):
        move_to(page, "resolution", side)
        ends.append(percentages(page.inner_text(".told"))[0])
    assert min(ends) <= percentages(told)[0] <= max(ends)


def test_choice_without_a_result_cannot_be_taken(visit):
    keys = list(data_of("explore")["curves"])
    position, merger, _ = keys[0].split("|")
    keep = [key for key in keys if not key.startswith(f"{position}|") or key.startswith(f"{position}|{merger}|")]
    page = visit("explore", change=lambda text: kept(text, keep))
    page.select_option("select[name=position]", position)
    disabled = page.locator("select[name=merger] option:disabled").all_text_contents()
    assert len(disabled) == 3 and all(text.endswith("no result yet") for text in disabled)
    page.focus("select[name=merger]")
    for press in ["ArrowDown"] * 4 + ["ArrowUp"] * 4:
        page.keyboard.press(press)
        assert page.eval_on_selector("select[name=merger]", "node => node.value") == merger


def kept(text, keys):
    "The page with the curves of some models alone."
    data = data_of("explore")
    data["curves"] = {key: data["curves"][key] for key in keys}
    start = text.index(">", text.index('<script type="application/json"')) + 1
    return text[:start] + json.dumps(data) + text[text.index("</script>", start) :]


def test_explorer_without_the_plain_model_or_any(visit):
    data = data_of("explore")
    keys = [key for key in data["curves"] if key != data["plain"]]
    page = visit("explore", change=lambda text: kept(text, keys))
    assert "no result yet" in page.inner_text(".legend") and page.locator(".plain").count() == 0
    page = visit("explore", change=lambda text: kept(text, []))
    assert page.inner_text("#explore") == "No run of the grid has a result yet."


def test_cells_are_those_of_the_merger():
    for n, cells in data_of("explore")["cells"].items():
        borders, own = cells["passes"][-1], token_cells(int(n), 3).tolist()
        middles = [token + 0.5 for token in range(int(n))]
        assert own == [sum(border <= middle for border in borders[1:]) for middle in middles], n
        assert cells["regions"] == [[i * int(n) // 3, -(-(i + 1) * int(n) // 3)] for i in range(3)], n


# All results


def column(page, name):
    i = page.locator("th button").all_text_contents().index(name) + 1
    return page.locator(f"tbody td:nth-child({i})").all_text_contents()


@pytest.mark.parametrize("theme", THEMES)
def test_table_sorts_by_keyboard(visit, theme):
    page, name = visit("results", theme), "At the training size, %"
    for direction in ("ascending", "descending"):
        page.get_by_role("button", name=name).focus()
        page.keyboard.press("Enter")
        assert page.get_by_role("columnheader", name=name).get_attribute("aria-sort") == direction
        cells = column(page, name)
        there = [float(cell) for cell in cells if cell != "–"]
        absent = ["–"] * (len(cells) - len(there))
        assert cells == [f"{number:.1f}" for number in there] + absent
        assert there == sorted(there, reverse=direction == "descending") and len(set(there)) > 10
    page.get_by_role("button", name="Merger").click()
    assert page.locator("th[aria-sort]").count() == 1
    assert column(page, "Merger") == sorted(column(page, "Merger"), key=lambda text: (text == "–", text))


def test_table_filters_and_saves_what_it_shows(visit, tmp_path):
    page, data = visit("results"), data_of("results")
    at = {name: i for i, name in enumerate(data["columns"])}
    wanted = [row for row in data["rows"] if row[at["Merger"]] == "atm" and row[at["Schedule"]] == "single"]
    page.get_by_label("Merger").select_option("atm")
    page.get_by_label("Schedule").select_option("single")
    assert page.inner_text("[role=status]") == f"{len(wanted)} of {len(data['rows'])} runs"
    file = wanted[0][at["File"]]
    page.get_by_label("Rows with these words").fill(f"ATM {file.upper()}")
    assert column(page, "File") == [file]
    page.get_by_label("Rows with these words").fill("")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    download.value.save_as(tmp_path / "saved.csv")
    with (tmp_path / "saved.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == data["columns"] and len(rows) == len(wanted) == page.locator("tbody tr").count()
    assert [row[at["File"]] for row in rows] == column(page, "File")
    assert [float(row[at["Training, s"]]) for row in rows] == [row[at["Training, s"]] for row in wanted]


def test_table_has_the_committed_results_and_no_others():
    data = data_of("results")
    at = {name: i for i, name in enumerate(data["columns"])}
    listed = {Path(row[at["File"]]).stem: row for row in data["rows"]}
    assert len(listed) == len(data["rows"])
    git = subprocess.run(["git", "ls-files", "paper/results/runs/*.json"], cwd=ROOT, capture_output=True, text=True)
    missing = {Path(name).stem for name in git.stdout.split() if (ROOT / name).exists()} - set(listed)
    assert not missing, f"{len(missing)} committed results are not in the table. {AGAIN}"
    for key, row in list(listed.items())[::20]:
        path = RESULTS / f"runs/{key}.json"
        assert path.exists(), f"{path.name} is in the table, and not among the results. {AGAIN}"
        result = json.loads(path.read_text())
        at_size = {point["value"]: point for point in result["metrics"].get("resolution", [])}
        trained = at_size.get(max(result["config"]["train"]["sizes"]), {})
        expected = trained.get(row[at["Measure"]])
        assert row[at["At the training size, %"]] == (expected and pytest.approx(100 * expected, abs=1e-3)), key
        assert row[at["Training operations, G"]] == pytest.approx(result["training_forward_macs"] / 1e9, abs=1e-3)


@pytest.mark.parametrize("name", ["explore", "results"])
def test_nothing_overflows_on_a_narrow_screen(visit, name):
    page = visit(name, width=390)
    page.eval_on_selector_all("details", "nodes => nodes.forEach(node => node.open = true)")
    for axis in ("resolution", "object_scale", "canvas") if name == "explore" else ("",):
        if axis:
            move_to(page, axis, 1 if axis != "resolution" else 96)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, axis
    assert len(shown(name)) < 1_000_000
