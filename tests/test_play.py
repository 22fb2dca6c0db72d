"""`make play`: the pages in Python, and in a browser through Voila: shown, clicked, no code, no network."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import time
import types
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_browser import ROOT

from condinst_edu.teach import play
from condinst_edu.teach.fusion import ExploreFusion
from condinst_edu.teach.side_by_side import crowded
from condinst_edu.teach.tiny import held_out
from condinst_edu.teach.widgets import ClickToSegment

FOLDER = ROOT / "lessons" / "play"


def test_each_page_has_its_notebook_of_one_call() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(play.PAGES)
    for path in FOLDER.glob("*.ipynb"):
        (cell,) = json.loads(path.read_text())["cells"]
        assert cell["outputs"] == []
        name, call = re.fullmatch(r"from condinst_edu.teach.play import (\w+)\n\n(\w+)\(.*\)", cell["source"]).groups()  # type: ignore[union-attr]
        assert name == call
        assert hasattr(play, name)


@pytest.mark.parametrize("name", ["condinst", "adaptis"])
def test_click_page_changes_image_and_answers(name: str) -> None:
    head, slider, place = play.click_page(name).children
    assert all(f"{other}.ipynb" in head.value for other in play.PAGES if other != name)
    (widget,) = place.children
    assert isinstance(widget, ClickToSegment)
    before, picture = widget.overlay, widget.picture
    widget.move(3, 3)
    assert widget.overlay != before
    slider.value = 2
    assert place.children[0].picture != picture


def test_threshold_page() -> None:
    _, place = play.threshold_page().children
    (widget,) = place.children
    assert isinstance(widget, ExploreFusion)
    before = widget.line.value
    widget.min_score.value = 0.9
    assert widget.line.value != before


def test_compare_page() -> None:
    _, slider, place = play.compare_page().children
    table, picture = place.children[0].children
    before = table.value, picture.value
    assert all(title in table.value for title in ("CondInst", "Mask R-CNN", "SOLO"))
    images = held_out(50)
    assert slider.value - 1 == crowded(images)
    assert f" of {len(images.target(slider.value - 1)['labels'])}<" in table.value
    slider.value = slider.value % 50 + 1
    assert f" of {len(images.target(slider.value - 1)['labels'])}<" in place.children[0].children[0].value
    assert place.children[0].children[0].value != before[0]
    assert place.children[0].children[1].value != before[1]


def serve(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[Any]]:
    """Exit status of tools/play.py, and what Voila was started with, in whose place nothing is served."""
    spec = importlib.util.spec_from_file_location("play_tool", ROOT / "tools" / "play.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    started: list[Any] = []
    app = types.ModuleType("voila.app")
    app.Voila = types.SimpleNamespace(launch_instance=lambda argv, config: started.append((argv, config)))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "voila", types.ModuleType("voila"))
    monkeypatch.setitem(sys.modules, "voila.app", app)
    monkeypatch.setattr(sys, "argv", ["play.py", "--no-browser", *arguments])
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "")
    return tool.main(), started


def test_pages_are_for_this_machine_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Kernels of pages that were left end; a page loads nothing from elsewhere; a port that is taken is named."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    status, [(arguments, config)] = serve(monkeypatch, f"--port={port}")
    assert status == 0
    assert arguments == [str(FOLDER), f"--port={port}"]
    assert f"http://localhost:{port}/voila/render/condinst.ipynb" in capsys.readouterr().out
    assert (config.Voila.ip, config.Voila.open_browser) == ("127.0.0.1", False)
    policy = config.Voila.tornado_settings["headers"]["Content-Security-Policy"]
    assert not re.search(r"\*|https?:", policy)
    assert 0 < config.AsyncMappingKernelManager.cull_idle_timeout <= 600
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve(monkeypatch, f"--port={port}") == (1, [])
    assert f'port {port} is taken: make play ARGS="--port {port + 1}"' in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if importlib.util.find_spec("voila") is None:
        pytest.skip("Voila is missing: pip install -e '.[play]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("play") / "play.log"
    command = [sys.executable, str(ROOT / "tools" / "play.py"), f"--port={port}", "--no-browser"]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/static/", timeout=5).close()
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/voila/render"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1600, 900), (390, 800)])
@pytest.mark.parametrize("name", list(play.PAGES))
def test_page_in_a_browser(browser: Any, address: str, name: str, size: tuple[int, int], tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())  # no network
    page.goto(f"{address}/{name}.ipynb", timeout=120_000)
    shown = page.locator(".click-to-segment canvas, .widget-image").first
    shown.wait_for(timeout=120_000)
    assert page.locator(".jp-InputArea, .highlight pre").count() == 0  # no code
    line = page.locator('[role="status"]').first
    before = line.inner_text()
    if name in ("thresholds", "compare"):
        handle = page.locator(".noUi-handle").first
        handle.focus()
        for _ in range(6):
            handle.press("ArrowRight")
    else:
        shown.click(position={"x": 15, "y": 15})  # a corner is on no object
    for _ in range(300):
        if line.inner_text() != before:
            break
        page.wait_for_timeout(100)
    assert line.inner_text() != before
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    box = shown.bounding_box()
    assert box["width"] > 0.35 * size[0]
    page.close()
