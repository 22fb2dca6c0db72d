"""Set-up: what it says when something is missing, when it acts and when not, and that the files beside it agree.

Nothing is downloaded here: venv, pip and the smoke check are replaced by notes of what was asked for.
"""

import ast
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import condinst_edu

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "setup_env.py"
GB = 1e9


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def env() -> Any:
    return load_script()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


class Calls(list[str]):
    """What the set-up asked for, in order; `pip` may be told to fail or to be interrupted."""

    pip: BaseException | None = None


@pytest.fixture
def calls(env: Any, monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    version = "{}.{}".format(*sys.version_info[:2])

    def make_venv(venv: Path, clear: bool) -> None:
        calls.append("clear" if clear else "create")
        fake_venv(env, venv, version)

    def install(root: Path, options: Any, plan: Any) -> None:
        calls.append("install " + options.torch_index if options.torch_index else "install")
        if calls.pip is not None:
            raise calls.pip

    def smoke_check(venv: Path, options: Any) -> str:
        calls.append("smoke")
        return "torch"

    for function in (make_venv, install, smoke_check):
        monkeypatch.setattr(env, function.__name__, function)
    monkeypatch.setattr(env, "plan_space", lambda *_: env.Plan(own_temp=False, cache=True))
    return calls


def fake_venv(env: Any, venv: Path, version: str) -> None:
    env.venv_python(venv).parent.mkdir(parents=True, exist_ok=True)
    env.venv_python(venv).touch()
    (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}.1\n")


# --- when it acts ---------------------------------------------------------------------------------


def test_first_call_installs_and_the_second_does_nothing(env: Any, root: Path, calls: Calls) -> None:
    assert env.main([], root) == 0
    assert calls == ["create", "install", "smoke"]
    assert env.main([], root) == 0
    assert len(calls) == 3


def test_an_extra_is_added_once_and_again_after_an_installation(
    env: Any, root: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(env, "run_pip", lambda root, options, commands, environment: asked.extend(commands))
    assert env.main(["--extra=site"], root) == 0
    assert calls == ["create", "install", "smoke"]
    assert asked[0][-2:] == ["-e", ".[dev,site]"]
    for arguments in (["--extra=site"], []):
        assert env.main(arguments, root) == 0
    assert len(asked) == 1
    assert env.main(["--extra=play"], root) == 0
    assert env.main(["--extra=site"], root) == 0
    assert len(asked) == 2
    with (root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert env.main(["--extra=site"], root) == 0
    assert len(asked) == 3
    assert len(calls) == 5  # one more installation, and its smoke check


def test_extras_of_the_makefile_exist_and_the_default_does_without() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"^(?:\w+): EXTRA := (\w+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named == {"play", "site"}
    assert named <= set(extras)
    assert not {line for name in named for line in extras[name]} & set(extras["dev"])


def test_changed_requirements_are_installed_on_top(env: Any, root: Path, calls: Calls) -> None:
    env.main([], root)
    with (root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert env.main([], root) == 0
    assert calls[3:] == ["install", "smoke"]


def test_an_interrupted_call_is_begun_again(
    env: Any, root: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.pip = KeyboardInterrupt()
    assert env.main([], root) == 130
    calls.pip = None
    assert env.main([], root) == 0
    assert calls == ["create", "install", "clear", "install", "smoke"]
    assert "did not come to its end" in capsys.readouterr().out


def test_pip_failing_costs_nothing_that_was_there(
    env: Any, root: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.pip = env.Problem("no network")
    assert env.main([], root) == 1
    assert "no network" in capsys.readouterr().err
    calls.pip = None
    assert env.main([], root) == 0
    assert calls == ["create", "install", "install", "smoke"]


def test_a_note_that_was_cut_off_is_no_note(env: Any, root: Path, calls: Calls) -> None:
    env.main([], root)
    env.note_path(root / ".venv").write_text('{"state": "rea')
    assert not env.ready(root, env.Options())


def test_a_moved_folder_is_set_up_anew(env: Any, root: Path, calls: Calls) -> None:
    env.main([], root)
    moved = root.parent / (root.name + "_moved")
    shutil.copytree(root, moved)
    assert env.main([], moved) == 0
    assert calls[3:] == ["clear", "install", "smoke"]


def test_another_torch_is_asked_for_once_and_then_kept(env: Any, root: Path, calls: Calls) -> None:
    env.main([], root)
    env.main(["--torch-index", "URL/cpu"], root)
    assert calls[3:] == ["clear", "install URL/cpu", "smoke"]
    assert env.main([], root) == 0
    assert env.main(["--torch-index", "URL/cpu"], root) == 0
    assert len(calls) == 6
    with (root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    env.main([], root)
    assert calls[6:] == ["install URL/cpu", "smoke"]


def test_another_python_asked_for_by_name(env: Any, root: Path, calls: Calls) -> None:
    env.main([], root)
    note = env.read_note(root / ".venv")
    env.note_path(root / ".venv").write_text(json.dumps({**note, "python": "3.99"}))
    assert env.ready(root, env.Options())
    assert env.main(["--explicit"], root) == 0
    assert calls[3:] == ["clear", "install", "smoke"]


def test_a_venv_made_by_hand_is_used_and_never_emptied(
    env: Any, root: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_venv(env, root / ".venv", "3.12")
    calls.pip = KeyboardInterrupt()
    assert env.main([], root) == 130
    calls.pip = None
    assert env.main([], root) == 0
    assert calls == ["install", "install", "smoke"]
    env.note_path(root / ".venv").unlink()
    (root / ".venv" / "pyvenv.cfg").write_text("version = 3.9.2\n")
    assert env.main([], root) == 1
    assert "is of Python 3.9: remove or rename it" in capsys.readouterr().err


# --- what it says ---------------------------------------------------------------------------------

Version = namedtuple("Version", "major minor micro")


def test_old_python(env: Any, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(env.sys, "version_info", Version(3, 8, 1))
    monkeypatch.setattr(env.sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(env, "newer_python", lambda: "")
    assert env.main(["--make"], root) == 1
    message = capsys.readouterr().err
    assert "Python 3.11 or newer is needed; found 3.8 at /usr/bin/python3" in message
    assert "`make PYTHON=python3.12 setup`" in message


def test_old_python_hands_over_to_a_newer_one(env: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []

    def call(command: list[str]) -> int:
        handed.append(command)
        return 0

    monkeypatch.setattr(env.sys, "version_info", Version(3, 8, 1))
    monkeypatch.setattr(env, "newer_python", lambda: "/opt/python3.12")
    monkeypatch.setattr(env.subprocess, "call", call)
    assert env.main(["--make"], root) == 0
    assert handed == [["/opt/python3.12", str(SCRIPT), "--make"]]


@pytest.mark.skipif(os.name == "nt", reason="shell scripts stand for interpreters")
def test_newer_python_passes_over_what_does_not_run(env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in [("python3.13", "exit 127"), ("python3.12", "exit 0")]:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert env.newer_python() == str(tmp_path / "python3.12")
    (tmp_path / "python3.12").unlink()
    assert env.newer_python() == ""


def test_no_venv_module(
    env: Any, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert env.main(["--make"], root) == 1
    message = capsys.readouterr().err
    assert "sudo apt-get install python{}.{}-venv".format(*sys.version_info[:2]) in message
    assert message.rstrip().endswith("then `make setup`.")
    assert not (root / ".venv").exists()


def disks(env: Any, monkeypatch: pytest.MonkeyPatch, home: Any, temp: Any, cache: Any) -> None:
    """Each place as (number of its disk, bytes free)."""
    monkeypatch.setattr(env.tempfile, "gettempdir", lambda: "/t")
    monkeypatch.setattr(env, "pip_cache", lambda: Path("/c"))
    places = {"t": temp, "c": cache}
    monkeypatch.setattr(env, "disk_of", lambda path: places.get(path.name, home))


def test_no_disk_space(env: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks(env, monkeypatch, home=(1, 5.0 * GB), temp=(1, 5.0 * GB), cache=(1, 5.0 * GB))
    with pytest.raises(env.Problem) as problem:
        env.plan_space(root, env.Options(by_make=True), env.CUDA_SIZE)
    message = str(problem.value)
    assert "9.7 GB" in message
    assert "has 5.0 GB free" in message
    assert 'make setup TORCH_INDEX="' in message
    disks(env, monkeypatch, home=(1, 1.0 * GB), temp=(1, 1.0 * GB), cache=(1, 1.0 * GB))
    with pytest.raises(env.Problem, match=r"move this folder to a larger disk\.$"):
        env.plan_space(root, env.Options(), env.CPU_SIZE)


@pytest.mark.parametrize(
    ("home", "temp", "cache", "own_temp", "keep"),
    [
        ((1, 14.0), (1, 14.0), (1, 14.0), False, True),  # one large disk
        ((1, 11.0), (1, 11.0), (1, 11.0), False, False),  # one disk without room for a second copy of the downloads
        ((1, 11.0), (2, 1.0), (3, 5.0), True, True),  # a small temporary folder
        ((1, 7.0), (2, 4.0), (1, 7.0), False, False),
        ((1, 7.0), (2, 4.0), (2, 4.0), False, False),
        ((1, 7.0), (2, 7.0), (2, 7.0), False, True),
    ],
)
def test_where_there_is_room(
    env: Any, root: Path, monkeypatch: pytest.MonkeyPatch, home: Any, temp: Any, cache: Any, own_temp: bool, keep: bool
) -> None:
    home, temp, cache = ((number, room * GB) for number, room in (home, temp, cache))
    disks(env, monkeypatch, home, temp, cache)
    assert env.plan_space(root, env.Options(), env.CUDA_SIZE) == (own_temp, keep)


def test_disk_of_a_path_that_is_not_there_yet(env: Any, tmp_path: Path) -> None:
    assert env.disk_of(tmp_path / "a" / "b") == env.disk_of(tmp_path)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for torch>=2.11",
            "check the network",
        ),
        ("ERROR: No matching distribution found for torch>=2.11", "no torch for this system"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", "PIP_CERT=FILE make setup"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", '`make setup PIP_ARGS="--no-cache-dir"`'),
        ("error: metadata-generation-failed", "no ready build"),
        ("ERROR: something new", "Run `make setup` to try again"),
        ("", "(none)"),
    ],
)
def test_what_pip_failed_of(env: Any, log: str, expected: str) -> None:
    stamped = "\n".join("2026-01-02T03:04:05,678 " + line for line in log.splitlines())
    message = env.explain_pip(stamped, env.Options(by_make=True))
    assert expected in message
    assert "2026-01" not in message
    assert log.splitlines()[-1:] == [] or log.splitlines()[-1] in message


def test_pip_is_asked_for_torch_first_where_an_index_is_named(env: Any, root: Path) -> None:
    options = env.parse(["--torch-index=URL", "--pip-args=--proxy 'a b'"])
    first, second = env.pip_commands(root, options, env.Plan(own_temp=False, cache=False))
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = [line for line in required if line.startswith("torch")]
    assert first[-4:] == [*wanted, "--index-url", "URL"]
    assert second[-2:] == ["-e", ".[dev]"]
    assert "URL" not in second
    for command in (first, second):
        assert "--no-cache-dir" in command
        assert command[command.index("--proxy") + 1] == "a b"
    (only,) = env.pip_commands(root, env.Options(), env.Plan(own_temp=False, cache=True))
    assert "--no-cache-dir" not in only


def test_size_announced(env: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(env.sys, "platform", "linux")
    assert env.size_of(env.Options()) == env.CUDA_SIZE
    assert env.size_of(env.Options(torch_index="URL/cpu/")) == env.CPU_SIZE
    monkeypatch.setattr(env.sys, "platform", "darwin")
    assert env.size_of(env.Options()) == env.CPU_SIZE
    env.announce(env.CUDA_SIZE, env.Plan(own_temp=True, cache=False))
    said = capsys.readouterr().out
    assert "about 3.2 GB to download" in said
    assert "CPU-only" in said


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("RuntimeError: operator torchvision::nms does not exist", "two different builds"),
        ("OSError: [WinError 126] Error loading fbgemm.dll", "Visual C++"),
        ("ModuleNotFoundError: No module named 'numpy'", "install everything anew"),
    ],
)
def test_smoke_check_says_what_to_do(
    env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, expected: str
) -> None:
    monkeypatch.setattr(env, "run_quietly", lambda *_: (1, "Traceback\n" + output))
    with pytest.raises(env.Problem, match=re.escape(expected)) as problem:
        env.smoke_check(tmp_path, env.Options())
    assert output in str(problem.value)


def test_smoke_check_passes_here(env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "venv_python", lambda _: Path(sys.executable))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert env.smoke_check(tmp_path, env.Options()).startswith("torch 2.")


def test_script_needs_nothing_new() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    imported = {alias.name.split(".")[0] for node in imports for alias in node.names}
    assert imported <= sys.stdlib_module_names


@pytest.mark.skipif(os.name == "nt" or not shutil.which("make"), reason="needs make")
def test_make_without_any_python(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run(
        [make, "setup"],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "SHELL": "/bin/sh"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed and python3 was not found" in done.stderr


# --- the files agree ------------------------------------------------------------------------------

CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def conda_dependencies(text: str) -> tuple[list[str], list[str]]:
    """The conda and the pip part of an environment.yml of the plain shape that ours has."""
    lines = text[text.index("dependencies:") :].splitlines()[1:]
    conda = [line[4:].strip() for line in lines if line.startswith("  - ") and not line.endswith(":")]
    pip = [line.strip()[2:].strip() for line in lines if line.startswith("      - ")]
    return conda, pip


def test_environment_yml_is_in_step() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = ["python" + project["requires-python"], "pip"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name, bound = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        wanted.append(CONDA_NAMES.get(name, name) + bound)
    conda, pip = conda_dependencies((ROOT / "environment.yml").read_text())
    assert sorted(conda) == sorted(wanted)
    assert pip == ["-e ."]


def test_python_version_is_the_same_everywhere(env: Any) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = "{}.{}".format(*env.NEEDED)
    assert pyproject["project"]["requires-python"] == ">=" + version
    assert pyproject["tool"]["ruff"]["target-version"] == "py" + version.replace(".", "")
    assert f"Python {version} or newer" in (ROOT / "README.md").read_text()
    assert f"Python {version} or newer" in (ROOT / "Makefile").read_text()


def test_version_has_one_source() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["dynamic"] == ["version"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "condinst_edu.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", condinst_edu.__version__)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_makefile_has_the_targets_and_each_sets_up() -> None:
    text = (ROOT / "Makefile").read_text()
    assert make_targets() >= {"setup", "demo", "lab", "test", "test-all", "lint"}
    for target in make_targets() - {"setup", "help"}:
        assert re.search(rf"^{target}: setup\b", text, re.MULTILINE), target
        assert re.search(rf"^\.PHONY:.*\b{target}\b", text, re.MULTILINE), target


def test_readme_names_only_targets_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`make ([a-z-]+)", text))
    named |= set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert named <= make_targets()
    assert named >= make_targets() - {"help"}
    assert text.index("make demo") < text.index("make test") < text.index("## Lessons")


def test_readme_sizes_are_those_announced(env: Any) -> None:
    text = (ROOT / "README.md").read_text()
    for size in (env.CUDA_SIZE, env.CPU_SIZE):
        assert f"{size.download / GB:.1f} GB" in text
        assert f"{size.installed / GB:.3g} GB" in text


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License")
    assert "The condinst_edu authors" in text


def test_ci_script_is_sound() -> None:
    script = ROOT / ".ci" / "run"
    if os.name != "nt":
        assert script.stat().st_mode & stat.S_IXUSR
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", str(script)], check=True)
    for command in ("make setup", "make test", "-m slow", "make lint"):
        assert command in script.read_text()


def test_written_sample_is_not_ignored() -> None:
    lines = (ROOT / ".gitignore").read_text().split()
    assert {".venv/", "runs/", "data/coco/"} <= set(lines)
    assert not any(line.rstrip("/") in ("data", "data/shapes") for line in lines)


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert "://" in link or (ROOT / link).exists(), link


def test_the_example_in_the_readme_runs() -> None:
    """The README's Python block, as it stands."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(block, names)
    losses, results = names["losses"], names["results"]
    assert isinstance(losses, dict)
    assert set(losses) == {"loss_class", "loss_box", "loss_centerness", "loss_mask"}
    assert isinstance(results, list)
    assert set(results[0]) == {"boxes", "labels", "scores", "masks"}
