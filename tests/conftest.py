"""Settings for all tests."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_browser import ARGUMENTS, find_browser


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: on the small tensors of tests, threads that wait for each other cost several times more."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Random weights and inputs do not depend on which tests ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, for pages that are looked at; skips and says why where it cannot be."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[browser]'")
    if find_browser() is None:
        pytest.skip("no Chromium: install the system's package `chromium`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)
        yield browser
        browser.close()
