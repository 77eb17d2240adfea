"""The website as a reader meets it: this project's pages, opened from a folder in a headless browser."""

import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from sivit.report import ReportConfig, build_report
from sivit.typeset import reading_order

ROOT = Path(__file__).resolve().parents[1]
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 844}

FACTS = """() => ({
  width: document.documentElement.scrollWidth,
  title: document.querySelector("h1").innerText,
  names: [...document.querySelectorAll("[id]")].map((element) => element.id),
  links: [...document.querySelectorAll("a[href]")].map((link) => link.getAttribute("href")),
  silent: [...document.images].filter((image) => !image.alt).map((image) => image.src),
  broken: [...document.images].filter((image) => image.complete && !image.naturalWidth).map((image) => image.src),
})"""


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    "The folder of the website, built from the committed results."
    config = ReportConfig(
        project=str(ROOT), build=str(tmp_path_factory.mktemp("site")), renderer="pandoc", skip_experiments=True
    )
    return build_report(config, io.StringIO()).page.parent


@pytest.fixture(scope="module")
def visited(site, browser) -> dict[str, dict]:
    "What the browser found on each page: errors, requests, links, names, and its width in a narrow window."
    context = browser.new_context(viewport=NARROW)
    page, errors, asked, facts = context.new_page(), [], [], {}
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"{request.url} failed"))
    page.on("request", lambda request: asked.append(request.url))
    for path in sorted(site.glob("*.html")):
        page.goto(path.as_uri())
        facts[path.name] = page.evaluate(FACTS) | {"errors": list(errors), "asked": list(asked)}
        errors.clear(), asked.clear()
    context.close()
    return facts


@pytest.fixture
def reader(browser):
    "A new reader with a wide window and a system that is light."
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    yield context.new_page()
    context.close()


def ground(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_every_source_is_a_page(visited):
    assert len(visited) == sum(len(files) for _, files in reading_order(ROOT))
    assert all(facts["title"] for facts in visited.values())


def test_pages_load_without_errors_and_without_a_network(visited):
    assert {name: facts["errors"] for name, facts in visited.items() if facts["errors"]} == {}
    assert {name: facts["broken"] for name, facts in visited.items() if facts["broken"]} == {}
    assert {name: facts["silent"] for name, facts in visited.items() if facts["silent"]} == {}  # pictures without words
    asked = {url for facts in visited.values() for url in facts["asked"]}
    assert {url for url in asked if not url.startswith(("file:", "data:", "blob:"))} == set()


def test_every_link_within_the_site_resolves(visited, site):
    wrong = []
    for name, facts in visited.items():
        for link in facts["links"]:
            if re.match(r"[\w+.-]+:", link):
                continue
            path, _, fragment = link.partition("#")
            target = visited.get(path or name)
            if target is None and not (site / path).is_file():
                wrong.append(f"{name}: {link}: no such page")
            elif target and fragment and unquote(fragment) not in target["names"]:
                wrong.append(f"{name}: {link}: no such place on the page")
    assert not wrong, "\n".join(wrong)


def test_names_on_a_page_are_unique(visited):
    for name, facts in visited.items():
        twice = {identifier for identifier in facts["names"] if facts["names"].count(identifier) > 1}
        assert not twice, f"{name}: {twice}"


def test_no_page_is_wider_than_a_narrow_window(visited):
    assert {name: facts["width"] for name, facts in visited.items() if facts["width"] > NARROW["width"]} == {}


def test_menu_unfolds_on_a_narrow_screen(site, reader):
    reader.set_viewport_size(NARROW)
    reader.goto((site / "index.html").as_uri())
    sidebar, menu = reader.locator("#site-sidebar"), reader.locator("#site-menu")
    assert not sidebar.is_visible() and menu.get_attribute("aria-expanded") == "false"
    menu.click()
    assert sidebar.is_visible() and menu.get_attribute("aria-expanded") == "true"
    assert reader.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    sidebar.get_by_role("link", name="Positions on the grid").click()
    reader.wait_for_url("**/04_position.html")
    assert not sidebar.is_visible()


def test_search_finds_a_chapter_and_enter_opens_it(site, reader):
    reader.goto((site / "paper.html").as_uri())
    reader.keyboard.press("/")
    reader.keyboard.type("fuzzy positions")
    found = reader.locator("#site-results a")
    found.first.wait_for()
    assert any("Positions on the grid › Fuzzy positions" in text for text in found.all_inner_texts())
    assert found.first.get_attribute("aria-selected") == "true" and reader.locator("#site-results mark").count()
    reader.keyboard.press("ArrowDown")
    assert found.nth(1).get_attribute("aria-selected") == "true"
    address = found.nth(1).get_attribute("href")
    reader.keyboard.press("Enter")
    reader.wait_for_url(f"**/{address}")
    reader.keyboard.press("/")
    reader.keyboard.type("Positions on the grid")
    found.first.wait_for()
    reader.keyboard.press("Enter")
    reader.wait_for_url("**/04_position.html*")


def test_search_reads_code_says_when_there_is_nothing_and_closes(site, reader):
    reader.goto((site / "index.html").as_uri())
    field, results = reader.get_by_label("Search all pages"), reader.locator("#site-results")
    field.fill("AdaptiveTokenMerger")
    results.locator("a").first.wait_for()
    assert any("Mergers" in text for text in results.locator("a").all_inner_texts())
    field.fill("no such words anywhere xyzzy")
    reader.get_by_text("Nothing found on any page.").wait_for()
    field.press("Escape")
    assert not results.is_visible() and field.get_attribute("aria-expanded") == "false"


def test_dark_follows_the_system_until_the_reader_chooses(site, reader):
    reader.goto((site / "index.html").as_uri())
    light = ground(reader)
    reader.emulate_media(color_scheme="dark")
    dark = ground(reader)
    assert light == "rgb(255, 255, 255)" and dark != light
    reader.emulate_media(color_scheme="light")
    assert ground(reader) == light
    switch = reader.locator("#site-theme")
    assert switch.inner_text() == "Dark"
    switch.click()
    assert ground(reader) == dark and switch.inner_text() == "Light"
    reader.goto((site / "paper.html").as_uri())
    assert ground(reader) == dark
    assert reader.evaluate("getComputedStyle(document.querySelector('figure img')).backgroundColor") == light
    switch.click()
    reader.goto((site / "index.html").as_uri())
    assert ground(reader) == light


def test_sidebar_follows_the_reading_order(site, reader):
    reader.goto((site / "index.html").as_uri())
    addresses = reader.eval_on_selector_all(
        "#site-sidebar nav a:not(.pdf)", "links => links.map((link) => link.getAttribute('href'))"
    )
    assert len(addresses) == len(set(addresses)) == sum(len(files) for _, files in reading_order(ROOT))
    for address in addresses[1:5]:
        reader.locator("a[rel=next]").click()
        reader.wait_for_url(f"**/{address}")
        assert reader.locator("[aria-current]").get_attribute("href") == address
    reader.locator("a[rel=prev]").click()
    reader.wait_for_url(f"**/{addresses[3]}")
    indexed = json.loads((site / "search.js").read_text().removeprefix("window.searchIndex = ").removesuffix(";\n"))
    assert list(dict.fromkeys(entry["address"].split("#")[0] for entry in indexed)) == addresses


def test_paper_offers_its_pdf_and_every_page_its_source(site, reader):
    reader.goto((site / "paper.html").as_uri())
    assert reader.locator("main").get_by_role("link", name="PDF").get_attribute("href") == "paper.pdf"
    assert reader.locator("#site-sidebar").get_by_role("link", name="PDF").get_attribute("href") == "paper.pdf"
    assert (site / "paper.pdf").read_bytes().startswith(b"%PDF-")
    for path in site.glob("*.html"):
        source = re.search(r'<a href="[^"]+/blob/main/([^"]+)">Source</a>', path.read_text())
        assert source and (ROOT / source[1]).is_file(), path.name


@pytest.mark.parametrize("experiment", sorted(path.stem for path in ROOT.glob("nbs/experiments/*.ipynb")))
def test_experiment_says_how_to_run_it(experiment, site):
    text = (site / f"experiments-{experiment}.html").read_text()
    assert f"papermill nbs/experiments/{experiment}.ipynb" in " ".join(text.split())
