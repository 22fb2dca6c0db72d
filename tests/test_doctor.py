"""`condinst-edu doctor`: each check on a machine that it should find fault with, and what a student reads then."""

import hashlib
import importlib
import json
import re
import subprocess
import sys
import types
import venv
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from condinst_edu import doctor
from condinst_edu.cli import run
from condinst_edu.doctor import Check

ROOT = Path(__file__).parents[1]


class Stub:
    """A distribution: what it needs, where it is, and the files that pip wrote beside it."""

    def __init__(self, requires: list[str], where: Path = Path(sys.prefix), url: str = "") -> None:
        self.requires, self.where, self.url = requires, where, url

    def locate_file(self, name: str) -> Path:
        return self.where / name

    def read_text(self, name: str) -> str | None:
        return json.dumps({"url": self.url}) if self.url else None


def installs(monkeypatch: pytest.MonkeyPatch, distribution: Stub | None) -> None:
    monkeypatch.setattr(doctor, "installed", lambda: distribution)


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout with two checkpoints, installed in this environment; the folder of the checkpoints."""
    root = tmp_path / "checkout"
    folder = root / "data" / "checkpoints"
    folder.mkdir(parents=True)
    (root / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (root / "data" / "shapes").mkdir()
    (root / "data" / "shapes" / "shapes.json").write_text("{}")
    (root / "condinst_edu").mkdir()
    (root / "condinst_edu" / "doctor.py").write_text("")
    for name in ("condinst", "fcos"):
        stored = name.encode() * 1000
        (folder / f"{name}.safetensors").write_bytes(stored)
        card: dict[str, Any] = dict.fromkeys(doctor.CARD, "told")
        card |= {"bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}
        (folder / f"{name}.json").write_text(json.dumps(card))
    tiny: Any = types.ModuleType("condinst_edu.teach.tiny")
    tiny.TINY = {"condinst": "a spec", "fcos": "a spec"}
    tiny.tiny_folder = lambda: folder
    tiny.broken = lambda name: None
    monkeypatch.setitem(sys.modules, "condinst_edu.teach.tiny", tiny)
    monkeypatch.setattr(doctor, "ROOT", root)
    monkeypatch.chdir(root)
    installs(monkeypatch, Stub(["torch>=2.11", "pillow>=11", 'nosuch>=3; extra == "dev"'], url=root.as_uri()))
    return folder


def expect(check: Check, state: str, found: str, mend: str = "") -> None:
    """The state; `found` and `mend` are patterns that occur in what was found and in the command."""
    assert check.state == state, check
    assert re.search(found, check.found), check
    assert re.search(mend, check.mend), check
    assert bool(check.mend) == (state != "ok"), check


# ---------------------------------------------------------------------------------------------------- each check fails


def test_python(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(doctor.python(), "ok", r"^Python 3\.\d+\.\d+")
    monkeypatch.setattr("platform.python_version", lambda: "3.10.12")
    expect(doctor.python(), "broken", r"Python 3\.10\.12 at .*>=3\.11 is needed", r"^make PYTHON=python3\.12 setup$")
    monkeypatch.setattr("platform.python_version", lambda: "3.12.4")
    assert doctor.python().state == "ok"
    (doctor.ROOT / "pyproject.toml").write_text('requires-python = ">=3.13"\n')
    expect(doctor.python(), "broken", ">=3.13 is needed")


def test_packages(healthy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expect(doctor.packages(), "ok", "^2 packages")
    pip = f"^{re.escape(doctor.quoted(sys.executable))} -m pip install"
    installs(monkeypatch, Stub(["torch>=2.11", "numpy>=99", "no-such>=1", 'old<1; python_version < "3"']))
    for load in (True, False):
        check = doctor.packages(load)
        expect(
            check, "broken", r"^numpy is \d+\.\S+, and >=99 is needed; no-such is missing$", pip + r' -e "\.\[dev\]"$'
        )
    installs(monkeypatch, Stub(["torch==" + str(doctor.version("torch")).split("+")[0]]))  # 2.15.0+cpu is 2.15.0
    assert doctor.packages().state == "ok"
    installs(monkeypatch, None)
    expect(doctor.packages(), "broken", "condinst_edu is not installed in", pip)

    # Installed, and of no use: pip has to be forced.
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "PIL.py").write_text("raise OSError('libjpeg.so: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path / "damaged"))
    monkeypatch.delitem(sys.modules, "PIL", raising=False)
    installs(monkeypatch, Stub(["pillow>=11"]))
    expect(
        doctor.packages(), "broken", "pillow cannot be imported .OSError: libjpeg", pip + " --force-reinstall pillow$"
    )


def test_torch_and_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    expect(doctor.torch_and_torchvision(), "ok", "NMS runs")

    def absent(*arguments: Any) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nat line 3")

    monkeypatch.setattr("torchvision.ops.nms", absent)
    expect(doctor.torch_and_torchvision(), "broken", "do not fit together: operator torchvision::nms.*exist$", "pip")
    monkeypatch.setattr("torchvision.ops.nms", lambda *arguments: torch.tensor([0, 1]))
    expect(doctor.torch_and_torchvision(), "broken", r"keeps \[0, 1\], not \[1, 2\]", "--force-reinstall")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    expect(doctor.attempt(doctor.torch_and_torchvision), "broken", "ModuleNotFoundError.*torchvision", "pip install -e")


def test_environment(healthy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expect(doctor.environment(), "ok", "this Python runs in")
    for distribution in (None, Stub([], where=tmp_path / "other" / "site-packages")):
        installs(monkeypatch, distribution)
        monkeypatch.setattr(doctor, "in_notebook", lambda: False)
        expect(doctor.environment(), "broken", f"this Python runs in {sys.prefix}, and .*another", "pip install -e")
        monkeypatch.setattr(doctor, "in_notebook", lambda: True)
        expect(doctor.environment(), "broken", "^this notebook's kernel runs in", "^make lab .*Change Kernel")


def test_a_notebook_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not doctor.in_notebook()
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert doctor.in_notebook()


@pytest.fixture
def kernel_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kernel python3 that hides this environment's own; still to be written."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    path.parent.mkdir(parents=True)
    return path


def kernel_text(program: str) -> str:
    argv = [program, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})


def test_kernel_of_another_environment(kernel_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "other", with_pip=False)
    kernel_file.write_text(kernel_text(str(tmp_path / "other" / "bin" / "python")))
    found = f"a notebook runs in {tmp_path / 'other'} .says {kernel_file.parent}., JupyterLab in {sys.prefix}"
    expect(doctor.kernel(), "broken", found, "^unset JUPYTER_PATH ")
    # The command does mend it; and where the same kernel is in the user's own folder, the environment's goes before.
    monkeypatch.delenv("JUPYTER_PATH")
    expect(doctor.kernel(), "ok", f"notebooks run in {sys.prefix}$")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    expect(doctor.kernel(), "ok", f"notebooks run in {sys.prefix}$")


def test_kernel_of_the_environment_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that the environment's own folder gives is registered anew."""
    answer = f"{sys.prefix}/share/jupyter/kernels/python3\n" + json.dumps([["/gone/python", "-m", "ipykernel"], {}])
    real = doctor.ask

    def ask(command: list[str], variables: dict[str, str]) -> Any:
        asks_lab = command[-1] == doctor.ASK_LAB
        return subprocess.CompletedProcess(command, 0, answer, "") if asks_lab else real(command, variables)

    monkeypatch.setattr(doctor, "ask", ask)
    expect(doctor.kernel(), "broken", "starts /gone/python", "python -m ipykernel install --sys-prefix$")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (kernel_text("/no/such/python"), "starts /no/such/python, and that fails: No such file"),
        (kernel_text("false"), "starts false, and that fails: no reason given"),
        ("{", "no kernel python3 in .*JSON"),
        ("{}", r"starts \(nothing\), and that fails"),
    ],
)
def test_broken_kernel(kernel_file: Path, text: str, found: str) -> None:
    kernel_file.write_text(text)
    expect(doctor.kernel(), "broken", found, "unset JUPYTER_PATH|ipykernel install")


def test_kernel_that_names_python_alone(kernel_file: Path) -> None:
    kernel_file.write_text(kernel_text("python3"))  # whatever python3 is on PATH: Jupyter takes its own
    assert doctor.kernel().state == "ok"


def test_kernel_where_the_lab_has_no_jupyter(kernel_file: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / ".venv", with_pip=False)
    kernel_file.write_text(kernel_text("python"))
    expect(doctor.kernel(), "broken", "No module named 'jupyter_client'", r"\.venv/bin/python -m pip install -e")


def test_checkout(healthy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expect(doctor.checkout(), "ok", f"imported from {doctor.ROOT}")
    installs(monkeypatch, Stub([], url=(tmp_path / "second copy").as_uri()))
    expect(doctor.checkout(), "warning", f"from {doctor.ROOT}, and was installed from .*second copy$", "pip install -e")
    other = tmp_path / "other checkout"
    (other / "condinst_edu").mkdir(parents=True)
    (other / "condinst_edu" / "doctor.py").write_text("")
    (other / "lessons").mkdir()
    monkeypatch.chdir(other / "lessons")
    expect(doctor.checkout(), "warning", f"of the checkout {other}, and .* from {doctor.ROOT}", f'^cd "{other}" && ')
    monkeypatch.chdir(tmp_path)
    (doctor.ROOT / "data" / "shapes" / "shapes.json").unlink()
    expect(doctor.checkout(), "broken", "shapes is not whole", f'^cd "{doctor.ROOT}" && git restore data/shapes$')
    (doctor.ROOT / "pyproject.toml").unlink()
    expect(doctor.checkout(), "broken", "a copy of the package alone", "pip install -e")


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    usage = namedtuple("usage", "free")
    for free, state in ((5e9, "ok"), (1.9e9, "warning"), (0.1e9, "broken")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: usage(free))
        expect(doctor.disk(), state, f"^{free / 1e9:.1f} GB free for {tmp_path / 'runs'}$", "du -sh|^$")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(5e9))
    (tmp_path / "lessons").mkdir()
    monkeypatch.chdir(tmp_path / "lessons")  # as a notebook: what counts is the checkout's own runs/
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    expect(doctor.disk(), "ok", f"GB free for {tmp_path / 'runs'}$", "^$")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    expect(doctor.disk(), "broken", f"{tmp_path} cannot be written to", "chmod")


@pytest.mark.parametrize("check", [doctor.checkpoints, doctor.checkpoint_files])
def test_checkpoints(healthy: Path, check: Any) -> None:
    expect(check(), "ok", "^2 checkpoints$")
    weights, card = healthy / "fcos.safetensors", healthy / "fcos.json"
    whole, told = weights.read_bytes(), card.read_text()
    mend = r"condinst-edu weights fcos$"
    weights.write_bytes(whole[:-1])
    expect(check(), "broken", r"^fcos.safetensors has 3999 bytes, and its card tells of 4000$", mend)
    weights.write_bytes(whole[:-1] + b"?")
    expect(check(), "broken", r"^fcos.safetensors is damaged", mend)
    weights.unlink()
    expect(check(), "broken", r"fcos.safetensors: No such file", mend)
    weights.write_bytes(whole)
    card.write_text(told.replace('"seed"', '"seeds"'))
    expect(check(), "broken", r"^fcos.json does not tell seed$", mend)
    card.write_text(told[:20])
    expect(check(), "broken", r"^fcos.json is no card", mend)
    card.unlink()
    (healthy / "condinst.json").unlink()
    (doctor.ROOT / ".git").mkdir()
    expect(
        check(), "broken", r"condinst.json: No such file.*; .*fcos.json: No such", "weights condinst fcos .*git restore"
    )


def test_checkpoints_says_what_tiny_says(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny: Any = sys.modules["condinst_edu.teach.tiny"]
    monkeypatch.setattr(tiny, "broken", lambda name: "it is odd" if name == "condinst" else None)
    expect(doctor.checkpoints(), "broken", "^it is odd$", "weights condinst$")


def test_the_quick_form_looks_where_tiny_does() -> None:
    try:
        tiny = importlib.import_module("condinst_edu.teach.tiny")
    except ModuleNotFoundError:
        pytest.skip("no condinst_edu.teach.tiny")
    assert tiny.tiny_folder() == doctor.ROOT / "data" / "checkpoints"


def test_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    expect(doctor.widgets(), "ok", r"ipywidgets 8.*jupyterlab_widgets 3")
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *parts: [])
    expect(doctor.widgets(), "broken", "does not find the extension @jupyter-widgets", "--force-reinstall.*ipywidgets")
    monkeypatch.undo()
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "1.1" if name == "jupyterlab_widgets" else real(name))
    expect(doctor.widgets(), "broken", r"jupyterlab_widgets is 1\.1, and ~=3\S+ is needed", "jupyterlab_widgets")
    monkeypatch.setitem(sys.modules, "jupyterlab_widgets", None)
    expect(doctor.attempt(doctor.widgets), "broken", "ModuleNotFoundError", "pip install -e")


def test_a_check_that_fails_itself_is_a_row() -> None:
    def odd_check() -> Check:
        raise OSError(5, "Input/output error")

    expect(doctor.attempt(odd_check), "broken", "^OSError: .*Input/output error", "no command is known")


# ------------------------------------------------------------------------------------------------------------- reports


def test_quick(healthy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.quick()
    assert re.fullmatch(
        r"✓ Python 3\.\d+\.\d+, torch 2\.\d+\S*, \d+ CPU cores?, 2 checkpoints\n", capsys.readouterr().out
    )
    doctor.quick("fcos")
    assert capsys.readouterr().out.endswith(", 1 checkpoint\n")
    (healthy / "condinst.safetensors").unlink()
    doctor.quick("fcos")  # a lesson minds its own checkpoints alone
    assert capsys.readouterr().out.startswith("✓")
    installs(monkeypatch, Stub(["torch>=99"]))
    doctor.quick("condinst", "fcos")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.search(r"^✗ packages: torch is .*>=99 is needed  ->  .* -m pip install -e", lines[0])
    assert re.search(r"^✗ checkpoints: .*condinst\.safetensors.*  ->  .*condinst-edu weights condinst$", lines[1])


def test_quick_where_there_are_no_checkpoints(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in healthy.iterdir():
        path.unlink()
    doctor.quick()
    assert capsys.readouterr().out == f"✗ checkpoints: there are none in {healthy}  ->  git restore data\n"


def test_command(healthy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command prints: a row for each check, and the command that mends, unbroken however long it is."""
    long = "python -m pip install " + "a-long-name " * 20 + "[dev]"
    fine, low = Check("python", "ok", "Python [3.12]"), Check("disk", "warning", "1.0 GB free", "du -sh runs/*")
    monkeypatch.setattr(doctor, "CHECKS", [lambda: fine, lambda: low])
    assert run(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("✓ ok", "Python [3.12]", "! warning", "1.0 GB", "\n    du -sh runs/*\n"))
    monkeypatch.setattr(doctor, "CHECKS", [lambda: fine, lambda: Check("kernel", "broken", "of another", long)])
    with pytest.raises(SystemExit) as stop:
        run(["doctor"])
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert f"to mend kernel:\n    {long}\n" in captured.out
    assert captured.err == ""
    with pytest.raises(SystemExit) as stop:
        run(["doctor", "--json"])
    assert stop.value.code == 1
    row = json.loads(capsys.readouterr().out)[1]
    assert row == {"name": "kernel", "state": "broken", "found": "of another", "mend": long}
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert doctor.examine() == 1  # without rich: plain lines
    assert capsys.readouterr().out == f"✓ python: Python [3.12]\n✗ kernel: of another  ->  {long}\n"


def test_all_checks_together(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On this machine, whatever it has: every check gives a row of its own."""
    doctor.examine(as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [check.__name__.replace("_", " ") for check in doctor.CHECKS]
    assert all(row["state"] == "ok" or row["mend"] for row in rows)
    assert all("Error: " not in row["found"] for row in rows), rows


def test_it_speaks_where_nothing_is_installed() -> None:
    """A Python without any package at all: no traceback, and the exit status tells."""
    command = [sys.executable, "-S", "-m", "condinst_edu.doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 1
    assert done.stderr == ""
    assert "✗ packages: condinst_edu is not installed" in done.stdout
