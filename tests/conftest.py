"""What several files of tests share."""

import shutil

import pytest


@pytest.fixture(scope="module")  # its event loop would be in the way of other files
def browser():
    "Chromium without a window."
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]' brings playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
