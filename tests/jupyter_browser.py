"""A JupyterLab of its own and a browser in front of it, used as a student uses them."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser() -> str | None:
    """The system's Chromium; Playwright's own is not downloaded."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


class Server(NamedTuple):
    """A JupyterLab that runs, and the environment that it runs in."""

    address: str
    token: str
    environment: dict[str, str]


@contextmanager
def jupyter_lab(folder: Path, home: Path, theme: str = "JupyterLab Light") -> Iterator[Server]:
    """A server on a folder, with settings of its own below `home`."""
    settings: dict[str, dict[str, Any]] = {
        "apputils-extension/themes": {"theme": theme},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        # All cells are in the page, also those that are scrolled out of sight.
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for name, values in settings.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    with (home / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api?token={token}", server, home / "lab.log")
            yield Server(address, token, environment)
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def open_notebook(page: Any, server: Server, name: str) -> Any:
    """Open a notebook of the server's folder; returns its element on the page."""
    page.goto(f"{server.address}/lab/tree/{urllib.parse.quote(name)}?token={server.token}&reset")
    notebook = page.locator(".jp-Notebook")
    notebook.wait_for(timeout=120_000)
    return notebook


def run_all_cells(page: Any, seconds: float = 300) -> None:
    """Run, Run All Cells in the menu bar; then wait until every code cell has its number and the kernel rests.

    Errors: RuntimeError with the output of a cell that raised something.
    """
    wait_until_idle(page, 120)
    page.locator(".lm-MenuBar-item", has_text="Run").first.click()
    page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    page.wait_for_function(
        r"""() => {
            const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
            const shown = cells.filter((cell) => cell.querySelector('.cm-content'));  // not those that are folded
            const written = shown.filter((cell) => cell.querySelector('.cm-content').textContent.trim());
            const failed = document.querySelector('.jp-Notebook [data-mime-type="application/vnd.jupyter.error"]');
            const run = (cell) => /\d/.test(cell.querySelector('.jp-InputPrompt').textContent);
            return failed || (written.length > 0 && written.every(run));
        }""",
        timeout=1000 * seconds,
    )
    errors = page.locator('.jp-Notebook [data-mime-type="application/vnd.jupyter.error"]')
    if errors.count():
        raise RuntimeError(errors.first.inner_text())
    wait_until_idle(page, seconds)


def wait_until_idle(page: Any, seconds: float) -> None:
    """Wait until the notebook has a kernel that has nothing to do."""
    # The status bar tells of the kernel once the notebook has one; the notebook's own circle is there before.
    page.locator("#jp-main-statusbar").get_by_text(re.compile(r"\| Idle")).wait_for(timeout=1000 * seconds)
