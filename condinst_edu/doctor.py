"""What keeps a lesson from running on this machine, and the command that mends it: `condinst-edu doctor`.

    python -m condinst_edu.doctor                                  the same, where the command itself does not start
    from condinst_edu import doctor; doctor.quick("condinst")      first cell of a lesson: one line when all is well

Only the standard library is imported at the top: the doctor has to speak where torch, rich or anything else is missing.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

ROOT = Path(__file__).resolve().parents[1]  # the checkout: the package is installed in place
MODULES = {"pillow": "PIL"}  # packages that are imported under another name
CARD = ("command", "seed", "seconds", "data", "metrics", "bytes", "sha256")  # what a checkpoint's card tells at least
FRONT_ENDS = {"ipywidgets": "@jupyter-widgets/jupyterlab-manager", "anywidget": "anywidget"}  # JupyterLab's half
LOW_DISK, FULL_DISK = 2e9, 2e8  # bytes
MARKS = {"ok": "✓", "warning": "!", "broken": "✗"}

# Run by JupyterLab's Python: the folder of the kernel "python3", then how it is started.
ASK_LAB = """
import json
from jupyter_client.kernelspec import KernelSpecManager
manager = KernelSpecManager()
print(manager.find_kernel_specs()["python3"])
spec = manager.get_kernel_spec("python3")
print(json.dumps([spec.argv, spec.env]))
"""
# Run by the kernel's Python.
ASK_KERNEL = "import sys, importlib.util as u; print(u.find_spec('ipykernel') is not None); print(sys.prefix)"


class Check(NamedTuple):
    """What one check found; mend: the command to run where it is not ok."""

    name: str
    state: Literal["ok", "warning", "broken"]
    found: str
    mend: str = ""


# --------------------------------------------------------------------------------------------------- commands that mend


def quoted(program: str) -> str:
    return f'"{program}"' if " " in program else program


def in_checkout(command: str) -> str:
    """The command, run in the checkout's folder wherever it is typed."""
    return command if Path.cwd() == ROOT else f'cd "{ROOT}" && {command}'


def install() -> str:
    """Install what is missing here; `make setup` alone does nothing once it has come to its end."""
    return in_checkout(f'{quoted(sys.executable)} -m pip install -e ".[dev]"')


# --------------------------------------------------------------------------------------------------------- the checks


def python() -> Check:
    """Python is as new as pyproject.toml asks."""
    from packaging.specifiers import SpecifierSet

    project = ROOT / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    needed = re.search(r'^requires-python\s*=\s*"([^"]+)"', text, re.MULTILINE)
    bound = needed.group(1) if needed else ">=3.11"
    version = platform.python_version()
    if SpecifierSet(bound).contains(version, prereleases=True):
        return Check("python", "ok", f"Python {version}")
    mend = in_checkout("make PYTHON=python3.12 setup")
    return Check("python", "broken", f"Python {version} at {sys.executable}, and {bound} is needed", mend)


def packages(load: bool = True) -> Check:
    """Every package that condinst_edu needs is there, in a version that fits; load: import each, too."""
    distribution = installed()
    if distribution is None:
        return Check("packages", "broken", f"condinst_edu is not installed in {sys.prefix}", install())
    problems = unmet(distribution)
    names = [one.name for one in requirements(distribution)]
    damaged = []
    for name in [name for name in names if name not in problems]:
        module = MODULES.get(name.lower(), name.replace("-", "_"))
        try:
            if load:
                importlib.import_module(module)
            elif importlib.util.find_spec(module) is None:
                raise ImportError("its files are not there")
        except Exception as error:
            damaged.append(name)
            problems[name] = f"{name} cannot be imported ({type(error).__name__}: {first_line(error)})"
    if problems:
        mend = install()
        if all(name in damaged for name in problems):  # pip takes these for installed
            mend = f"{quoted(sys.executable)} -m pip install --force-reinstall {' '.join(damaged)}"
        return Check("packages", "broken", "; ".join(problems.values()), mend)
    return Check("packages", "ok", f"{len(names)} packages in versions that fit")


def torch_and_torchvision() -> Check:
    """Both are of one build: torchvision's compiled NMS runs."""
    mend = f'{quoted(sys.executable)} -m pip install --force-reinstall "torch>=2.11" "torchvision>=0.26"'
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5).tolist()
    except ModuleNotFoundError:
        raise
    except Exception as error:
        found = f"torch {version('torch')} and torchvision {version('torchvision')} do not fit together: "
        return Check("torch and torchvision", "broken", found + first_line(error), mend)
    if kept != [1, 2]:
        return Check("torch and torchvision", "broken", f"NMS of three boxes keeps {kept}, not [1, 2]", mend)
    found = f"torch {torch.__version__}, torchvision {torchvision.__version__}: NMS runs"
    return Check("torch and torchvision", "ok", found)


def environment() -> Check:
    """The environment that this Python, or this notebook's kernel, runs in is the one condinst_edu is installed in."""
    here = "this notebook's kernel" if in_notebook() else "this Python"
    distribution = installed()
    if distribution is not None:
        where = Path(str(distribution.locate_file(""))).resolve()
        homes = [sys.prefix, sys.base_prefix, site.getuserbase()]  # a venv may show the system's packages
        if any(where.is_relative_to(Path(home).resolve()) for home in homes):
            return Check("environment", "ok", f"{here} runs in {sys.prefix}, and condinst_edu is installed there")
    mend = install()
    if in_notebook():
        mend = in_checkout("make lab") + "   (or, in the notebook: Kernel > Change Kernel > Python 3 of .venv)"
    found = f"{here} runs in {sys.prefix}, and condinst_edu is installed in another environment or not at all"
    return Check("environment", "broken", found, mend)


def kernel() -> Check:
    """The kernel "python3" that `make lab` starts runs in the environment that JupyterLab and this Python run in."""
    own_venv = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    lab = str(own_venv) if own_venv.exists() else sys.executable
    prefix = ROOT / ".venv" if own_venv.exists() else Path(sys.prefix)
    asked = ask([lab, "-c", ASK_LAB], {"JUPYTER_PREFER_ENV_PATH": "1"})
    folder, *how = asked.stdout.splitlines() or [str(prefix)]
    mend = f"{quoted(lab)} -m ipykernel install --sys-prefix"
    listed = [Path(p).resolve() for p in os.environ.get("JUPYTER_PATH", "").split(os.pathsep) if p]
    if any(Path(folder).resolve().is_relative_to(p) for p in listed):  # hides whatever the environment has
        mend = ("set JUPYTER_PATH=" if os.name == "nt" else "unset JUPYTER_PATH") + "   (then `make lab` again)"
    if "No module named" in asked.stderr:
        mend = in_checkout(f'{quoted(lab)} -m pip install -e ".[dev]"')
    if asked.returncode != 0 or not how:
        return Check("kernel", "broken", f"no kernel python3 in {folder}: {last_line(asked.stderr)}", mend)
    argv, variables = json.loads(how[0])
    argv = argv or ["(nothing)"]
    if re.fullmatch(r"python(3(\.\d+)?)?", argv[0]):  # Jupyter puts its own Python for these
        argv[0] = lab
    start = argv[: argv.index("-m")] if "-m" in argv else argv[:1]
    try:
        answer = ask([*start, "-c", ASK_KERNEL], {name: os.path.expandvars(v) for name, v in variables.items()})
        failure = last_line(answer.stderr) if answer.returncode else ""
    except OSError as error:
        failure = str(error.strerror)
    if failure:
        return Check("kernel", "broken", f"{folder} starts {argv[0]}, and that fails: {failure}", mend)
    has_ipykernel, runs_in = answer.stdout.splitlines()
    if Path(runs_in).resolve() != prefix.resolve():
        return Check("kernel", "broken", f"a notebook runs in {runs_in} (says {folder}), JupyterLab in {prefix}", mend)
    if has_ipykernel != "True":
        return Check("kernel", "broken", f"{prefix} has no ipykernel", f"{quoted(lab)} -m pip install ipykernel")
    if prefix.resolve() != Path(sys.prefix).resolve():
        found = f"`make lab` runs notebooks in {prefix}, and this report is about {sys.prefix}"
        return Check("kernel", "warning", found, in_checkout(f"{quoted(lab)} -m condinst_edu.doctor"))
    return Check("kernel", "ok", f"notebooks run in {runs_in}")


def checkout() -> Check:
    """condinst_edu is imported from the checkout it was installed from, which is that of this folder, with its data."""
    if not (ROOT / "pyproject.toml").is_file():
        mend = f'{quoted(sys.executable)} -m pip install -e ".[dev]"   (in the folder of the lessons)'
        return Check("checkout", "broken", f"{ROOT} is a copy of the package alone, without lessons and data", mend)
    if not (ROOT / "data" / "shapes" / "shapes.json").is_file():
        found = f"{ROOT / 'data' / 'shapes'} is not whole"
        return Check("checkout", "broken", found, in_checkout("git restore data/shapes"))
    here = Path.cwd()
    of = next((p for p in (here, *here.parents) if (p / "condinst_edu" / "doctor.py").is_file()), ROOT)
    if of != ROOT:
        found = f"this folder is of the checkout {of}, and condinst_edu is imported from {ROOT}"
        return Check("checkout", "warning", found, f'cd "{of}" && {quoted(sys.executable)} -m pip install -e ".[dev]"')
    distribution = installed()
    source = json.loads((distribution and distribution.read_text("direct_url.json")) or "{}").get("url", "")
    place = Path(url2pathname(urlparse(source).path)) if source.startswith("file:") else ROOT
    if place.resolve() != ROOT:
        found = f"condinst_edu is imported from {ROOT}, and was installed from {place}"
        return Check("checkout", "warning", found, install())
    return Check("checkout", "ok", f"condinst_edu is imported from {ROOT}")


def devices() -> Check:
    """What torch can compute with: information only."""
    import torch

    found = [count(cores(), "CPU core"), count(torch.get_num_threads(), "torch thread")]
    found += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found += ["MPS"] if torch.backends.mps.is_available() else []
    return Check("devices", "ok", ", ".join(found))


def disk() -> Check:
    """There is room where runs/ is written."""
    here = Path.cwd()
    runs = (ROOT if ROOT in here.parents else here) / "runs"  # a notebook runs in lessons/, and writes beside that
    folder = next(p for p in (runs, *runs.parents) if p.exists())
    if not os.access(folder, os.W_OK):
        return Check("disk", "broken", f"{folder} cannot be written to", f'chmod u+w "{folder}"')
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free for {runs}"
    if free >= LOW_DISK:
        return Check("disk", "ok", found)
    mend = f'du -sh "{runs}"/*   (what old runs take; remove what you no longer need, or name a larger disk with --out)'
    return Check("disk", "broken" if free < FULL_DISK else "warning", found, mend)


def checkpoints() -> Check:
    """The tiny trained models of the lessons are all there and undamaged."""
    tiny: Any = importlib.import_module("condinst_edu.teach.tiny")  # late: it imports torch and timm
    folder = tiny.tiny_folder()
    return report_checkpoints({name: tiny.broken(name) or file_problem(folder, name) for name in tiny.TINY})


def checkpoint_files(names: Sequence[str] = ()) -> Check:
    """The same by the files alone, in milliseconds: those named, or all that are there."""
    folder = ROOT / "data" / "checkpoints"
    names = names or sorted({path.stem for path in folder.glob("*.*")})
    if not names:
        return Check("checkpoints", "broken", f"there are none in {folder}", in_checkout("git restore data"))
    return report_checkpoints({name: file_problem(folder, name) for name in names})


def widgets() -> Check:
    """What draws in a notebook: the Python half fits the half that JupyterLab loads."""
    from jupyter_core.paths import jupyter_path

    importlib.import_module("jupyterlab_widgets")
    halves = {name: front for name, front in FRONT_ENDS.items() if version(name)}
    problems = [problem for name in halves for problem in unmet(metadata.distribution(name)).values()]
    for name, front in halves.items():
        if not any(Path(folder, front, "package.json").is_file() for folder in jupyter_path("labextensions")):
            problems += [f"JupyterLab does not find the extension {front} of {name}"]
    if problems:
        again = " ".join(dict.fromkeys(["ipywidgets", "jupyterlab_widgets", "widgetsnbextension", *halves]))
        mend = f"{quoted(sys.executable)} -m pip install --force-reinstall --no-deps {again}"
        return Check("widgets", "broken", "; ".join(problems), mend)
    return Check("widgets", "ok", ", ".join(f"{name} {version(name)}" for name in [*halves, "jupyterlab_widgets"]))


CHECKS: list[Callable[[], Check]] = [
    python, packages, torch_and_torchvision, environment, kernel, checkout, devices, disk, checkpoints, widgets,
]  # fmt: skip


# ------------------------------------------------------------------------------------------------- what the checks use


def installed() -> metadata.Distribution | None:
    """condinst_edu as pip installed it; the checkout's own notes (egg-info), found by its folder, do not count."""
    for distribution in metadata.distributions(name="condinst_edu"):
        if Path(str(distribution.locate_file(""))).resolve() != ROOT:
            return distribution
    return None


def requirements(distribution: metadata.Distribution) -> list[Any]:
    """What a distribution needs on this machine, without its extras."""
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in distribution.requires or []]
    return [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]


def unmet(distribution: metadata.Distribution) -> dict[str, str]:
    """What a distribution needs and does not find: a phrase for each such package."""
    problems = {}
    for one in requirements(distribution):
        found = version(one.name)
        if found is None:
            problems[one.name] = f"{one.name} is missing"
        elif not one.specifier.contains(found, prereleases=True):
            problems[one.name] = f"{one.name} is {found}, and {one.specifier} is needed"
    return problems


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def file_problem(folder: Path, name: str) -> str | None:
    """What is wrong with a checkpoint's two files, NAME.safetensors and the card NAME.json; None if nothing is."""
    try:
        card = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        stored = (folder / f"{name}.safetensors").read_bytes()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except ValueError as error:
        return f"{name}.json is no card: {error}"
    missing = [field for field in CARD if field not in card]
    if missing:
        return f"{name}.json does not tell {', '.join(missing)}"
    if len(stored) != card["bytes"]:
        return f"{name}.safetensors has {len(stored)} bytes, and its card tells of {card['bytes']}"
    if hashlib.sha256(stored).hexdigest() != card["sha256"]:
        return f"{name}.safetensors is damaged: it is not the file that its card tells of"
    return None


def report_checkpoints(problems: dict[str, str | None]) -> Check:
    """One check from what is wrong with each checkpoint."""
    bad = [name for name, problem in problems.items() if problem]
    if not bad:
        return Check("checkpoints", "ok", count(len(problems), "checkpoint"))
    command = shutil.which("condinst-edu") and "condinst-edu"  # not on PATH where no environment is activated
    command = command or quoted(str(Path(sys.executable).with_name("condinst-edu")))
    mend = in_checkout(f"{command} weights {' '.join(bad)}")
    if (ROOT / ".git").exists():
        mend += f"   (trains again, minutes; at once, from git: {in_checkout('git restore data/checkpoints')})"
    return Check("checkpoints", "broken", "; ".join(problem for problem in problems.values() if problem), mend)


def ask(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)


def in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


# ------------------------------------------------------------------------------------------------------------- reports


def attempt(check: Callable[..., Check], *arguments: Any) -> Check:
    """The check's result; one that itself fails is reported as broken."""
    try:
        return check(*arguments)
    except Exception as error:
        name = check.__name__.replace("_", " ")
        mend = install() if isinstance(error, ImportError) else "no command is known: ask, and show this report"
        return Check(name, "broken", f"{type(error).__name__}: {first_line(error)}", mend)


def quick(*names: str) -> None:
    """For the first cell of a lesson: print one line when all is well, or one for each problem; never raises.

    names: the tiny checkpoints that the lesson needs; all that are there without them.
    """
    checks = [attempt(python), attempt(packages, False), attempt(environment), attempt(checkout), attempt(disk)]
    checks += [attempt(devices), attempt(checkpoint_files, names)]
    problems = [check for check in checks if check.state != "ok"]
    for check in problems:
        print(as_line(check))
    if not problems:
        print(f"✓ {checks[0].found}, torch {version('torch')}, {count(cores(), 'CPU core')}, {checks[-1].found}")


def as_line(check: Check) -> str:
    return f"{MARKS[check.state]} {check.name}: {check.found}" + (f"  ->  {check.mend}" if check.mend else "")


def show(checks: Sequence[Check]) -> None:
    """Print a row for each check, and under them the commands that mend, each unbroken so that it can be copied."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(*map(as_line, checks), sep="\n")
        return
    table = Table("check", "state", "found")
    colors = {"ok": "green", "warning": "yellow", "broken": "red"}
    for check in checks:
        table.add_row(check.name, Text(f"{MARKS[check.state]} {check.state}", colors[check.state]), Text(check.found))
    Console().print(table)
    for check in checks:
        if check.mend:
            print(f"to mend {check.name}:\n    {check.mend}")


def examine(as_json: bool = False) -> int:
    """Run all checks and print them, as a table or as JSON; 0 where nothing is broken, else 1."""
    checks = [attempt(check) for check in CHECKS]
    if as_json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        show(checks)
    return int(any(check.state == "broken" for check in checks))


if __name__ == "__main__":
    sys.exit(examine("--json" in sys.argv[1:]))
