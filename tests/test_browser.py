"""The widgets in JupyterLab under a headless Chromium: run all cells, click, drag, arrow keys, a slider, both themes.

Needs the `browser` extra (Playwright) and a Chromium of the system's; skips with its reason where one is missing.
CONDINST_SCREENSHOTS names a folder that is given pictures of the page.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jupyter_browser import ARGUMENTS, ROOT, find_browser, jupyter_lab, open_notebook, run_all_cells, wait_until_idle
from PIL import Image

from condinst_edu.teach.stored import WIDGET, strip_widgets

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[browser]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium: install the system's package `chromium`"),
]

MODEL = """
import torch
from condinst_edu.condinst import CondInst
from condinst_edu.teach import click_to_segment, explore_targets

torch.manual_seed(0)
image = 0.7 + 0.1 * torch.rand(3, 96, 128)
image[:, 20:60, 20:60] = torch.tensor([0.2, 0.4, 0.7])[:, None, None]
image[:, 40:90, 70:120] *= torch.tensor([0.5, 0.9, 0.6])[:, None, None]
boxes = torch.tensor([[20.0, 20, 60, 60], [70, 40, 120, 90]])
masks = torch.zeros(2, 96, 128, dtype=torch.bool)
masks[0, 20:60, 20:60] = masks[1, 40:90, 70:120] = True
target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks}
model = CondInst(
    2, backbone="tiny", backbone_options={"widths": (4, 8, 12, 16, 16)}, levels=(3, 4, 5), ranges=(32, 64),
    channels=16, bottom={"channels": 16, "convs": 1}, head={"tower_convs": 1},
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(60):  # enough to know this one image by heart
    optimizer.zero_grad()
    sum(model([image], [target]).values()).backward()
    optimizer.step()
"""
OWN = "widgets.ipynb"
MARKERS = 1500  # pixels of the canvas that a ring and a cross cover, where they were and where they are, are fewer
# Lessons join by themselves: those that hold the widget. Each is run whole, from the Run menu.
LESSONS = sorted((ROOT / "lessons").glob("*.ipynb"))


def lessons_with(name: str) -> list[str]:
    return [path.name for path in LESSONS if name in path.read_text(encoding="utf-8")]


def write_notebook(path: Path, *cells: str, outputs: list[Any] | None = None) -> None:
    """A notebook of code cells; outputs: of the last one, as if it had been run."""
    plain: dict[str, Any] = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    written = [{**plain, "id": f"cell-{i}", "source": source.strip()} for i, source in enumerate(cells)]
    written[-1]["outputs"] = outputs or []
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": written}
    path.write_text(json.dumps(notebook))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a student has: the lessons and all beside them, and the notebook made here."""
    folder = tmp_path_factory.mktemp("lessons")
    shutil.copytree(ROOT / "lessons", folder, dirs_exist_ok=True)
    write_notebook(
        folder / OWN,
        MODEL,
        "click_to_segment(model, image, class_names=['square', 'field'])",
        "explore_targets(image, target)",
    )
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["Light", "Dark"])
def lab(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Server and theme."""
    with jupyter_lab(folder, tmp_path_factory.mktemp("home"), f"JupyterLab {request.param}") as server:
        yield server, request.param


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())  # lessons need no network
    yield page
    screenshot(page, "last-" + re.sub(r"\W+", "-", request.node.name))
    page.close()


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("CONDINST_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def shown(widget: Any) -> tuple[str, str]:
    """The pixels of the canvas and the line of text."""
    canvas = widget.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    return canvas, widget.locator('p[role="status"]').inner_text()


def changed(page: Any, widget: Any, before: tuple[str, str], line: bool = True) -> tuple[str, str]:
    """What is shown once both (or, without `line`, the canvas) have changed and then stayed so for half a second."""
    now, since = shown(widget), 0
    for _ in range(100):
        page.wait_for_timeout(100)
        last, now = now, shown(widget)
        since = since + 1 if now == last else 0
        if since >= 5 and now[0] != before[0] and (now[1] != before[1] or not line):
            return now
    raise AssertionError(f"no change of both within 10 s: canvas {now[0] != before[0]}, {before[1]!r} -> {now[1]!r}")


def differing_pixels(first: str, second: str) -> int:
    """How many pixels differ between two canvases."""
    pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in (first, second)]
    return int((pictures[0] != pictures[1]).any(axis=-1).sum())


@pytest.mark.parametrize("name", [OWN, *lessons_with("click_to_segment")])
def test_click_to_segment(page: Any, lab: Any, name: str) -> None:
    server, theme = lab
    notebook = open_notebook(page, server, name)
    run_all_cells(page)
    widget = notebook.locator(".click-to-segment").first
    canvas = widget.locator("canvas")
    canvas.scroll_into_view_if_needed()
    start = shown(widget)
    where = r"(P\d, stride \d+, location|point) \(\d+, \d+\)"  # AdaptIS takes any point, and has no levels
    assert re.match(where + r", .+ \d\.\d\d, mask \d+ pixels$", start[1])
    box = canvas.bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    here, there = (0.3, 0.4), (0.7, 0.65)
    clicked = start
    for spot in (here, there):  # where one of them lies on the object that is shown at first, the other does not
        page.mouse.click(*at(*spot))
        clicked = changed(page, widget, clicked, line=False)  # it may be the very location that is shown at first
        if differing_pixels(start[0], clicked[0]) > MARKERS:
            break
    assert differing_pixels(start[0], clicked[0]) > MARKERS
    here, there = (here, there) if spot == here else (there, here)
    screenshot(page, f"{Path(name).stem}-click-{theme}")

    page.mouse.move(*at(*here))
    page.mouse.down()
    page.mouse.move(*at(0.5, 0.3), steps=8)
    during = changed(page, widget, clicked)  # before the button is up
    page.mouse.move(*at(*there), steps=8)
    page.mouse.up()
    dragged = changed(page, widget, during)
    assert differing_pixels(clicked[0], dragged[0]) > MARKERS
    page.mouse.move(*at(*here), steps=4)  # the button is up: nothing moves any more
    page.wait_for_timeout(700)
    assert shown(widget) == dragged

    for _ in range(6):
        canvas.press("ArrowLeft")  # six cells
    moved = changed(page, widget, dragged)
    if not moved[1].startswith("point"):
        other = "P3" if moved[1].startswith("P5") else "P5"
        widget.locator("select").select_option(other)
        assert changed(page, widget, moved)[1].startswith(other)
    for image in widget.locator("figure img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")


@pytest.mark.parametrize("name", [OWN, *lessons_with("explore_targets")])
def test_explore_targets(page: Any, lab: Any, name: str) -> None:
    server, theme = lab
    notebook = open_notebook(page, server, name)
    run_all_cells(page)
    cell = notebook.locator(".jp-CodeCell", has=page.locator(".widget-slider")).last
    slider = cell.locator(".widget-slider").last
    slider.scroll_into_view_if_needed()
    line, picture = cell.locator('p[role="status"]'), cell.locator(".widget-image")
    assert "positive locations" in line.inner_text()
    before = line.inner_text(), picture.get_attribute("src")
    handle = slider.locator(".noUi-handle")
    handle.focus()
    for _ in range(4):
        handle.press("ArrowLeft")  # the centre radius, four steps of a quarter
    for _ in range(100):
        if line.inner_text() != before[0] and picture.get_attribute("src") != before[1]:
            break
        page.wait_for_timeout(100)
    else:
        raise AssertionError(f"the slider changed nothing: {before[0]!r}")
    wait_until_idle(page, 30)
    screenshot(page, f"{Path(name).stem}-targets-{theme}")


@pytest.mark.parametrize("state", ["fresh", "trusted", "trusted and stripped"])
def test_a_stored_output_without_its_kernel(page: Any, lab: Any, folder: Path, state: str) -> None:
    """The picture is shown, but not for a widget in a notebook that is trusted: the build strips the reference to it.

    Trusted is what one has run oneself, fresh is what comes with a clone of the repository.
    """
    server, theme = lab
    if theme == "Dark":
        pytest.skip("the theme changes nothing here")
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
    view = {"model_id": "0" * 32, "version_major": 2, "version_minor": 0}
    data = {WIDGET: view, "image/png": pixel, "text/plain": "P3"}
    path = folder / f"stored {state}.ipynb"
    write_notebook(path, "1", outputs=[{"output_type": "display_data", "data": data, "metadata": {}}])
    if "stripped" in state:
        path.write_text(json.dumps(strip_widgets(json.loads(path.read_text()))))
    if "trusted" in state:
        trust = [sys.executable, "-m", "jupyter", "trust", str(path)]
        subprocess.run(trust, check=True, env=server.environment)
    notebook = open_notebook(page, server, path.name)
    output = notebook.locator(".jp-OutputArea-output").first
    if state == "trusted":
        output.get_by_text("model not found").wait_for(timeout=60_000)
    else:
        output.locator("img").wait_for(state="attached")
        assert output.locator("img").evaluate("image => image.naturalWidth") == 1
