"""Creates `.venv` and installs condinst_edu into it: what `make setup` runs, and what to run where there is no make.

    python3 tools/setup_env.py [--torch-index URL] [--pip-args "..."] [--extra site]

Any Python from 3.6 on can run this file, so that an old one can say what is needed: standard library only, old syntax.
A call that finds everything in place costs a few hundredths of a second. How far a set-up came is kept in a note inside
`.venv`; "ready" is the last thing written there, so the call after an interrupted set-up begins it again.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

NEEDED = (3, 11)
# Tried where the Python at hand is too old.
NEWER = ("python3.13", "python3.12", "python3.11", "python3.14", "python3.15")
ROOT = Path(__file__).resolve().parent.parent
GB = 1e9

# One tiny NMS: it fails at once where torch and torchvision are not of one build.
SMOKE = """
import torch, torchvision
boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
assert torchvision.ops.nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5).tolist() == [1, 2]
import condinst_edu, numpy, pycocotools.mask
pycocotools.mask.encode(numpy.zeros((3, 4), dtype=numpy.uint8, order="F"))
gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU that this torch can use, so the CPU"
print("torch " + torch.__version__ + ", torchvision " + torchvision.__version__ + ", " + gpu)
"""


class Problem(Exception):
    """Something the user has to mend: one sentence that says what and how."""


class Options(NamedTuple):
    """What the command line asked for."""

    explicit: bool = False  # the user named this interpreter: never look for another one
    by_make: bool = False  # only changes how the commands in messages are written
    torch_index: str = ""
    pip_args: Tuple[str, ...] = ()
    extra: str = ""  # of pyproject.toml, beside "dev": what one command alone needs

    def command(self, python: str = "", **settings: str) -> str:
        """The command that runs the set-up again, as the user would type it."""
        if self.by_make:
            words = ["make"] + (["PYTHON=" + python] if python else []) + [self.extra or "setup"]
            return " ".join(words + ['%s="%s"' % item for item in settings.items()])
        flags = ['--%s="%s"' % (key.lower().replace("_", "-"), value) for key, value in settings.items()]
        interpreter = python or ("python" if os.name == "nt" else "python3")
        return " ".join([interpreter, os.path.join("tools", "setup_env.py")] + flags)


class Size(NamedTuple):
    """What an installation takes, in bytes (README, "Download size")."""

    download: float
    installed: float


CUDA_SIZE = Size(download=3.2 * GB, installed=6.5 * GB)  # Linux, with NVIDIA's libraries; measured with torch 2.15
CPU_SIZE = Size(download=0.4 * GB, installed=2.0 * GB)  # macOS, Windows, Linux with a CPU-only torch; estimated


# --- what is there --------------------------------------------------------------------------------


def venv_python(venv: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def note_path(venv: Path) -> Path:
    return venv / "condinst_setup.json"


def read_note(venv: Path) -> Dict[str, str]:
    """What the last set-up wrote down about itself; empty where there was none, or it was cut off."""
    try:
        note = json.loads(note_path(venv).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def write_note(root: Path, options: Options, state: str, made_by: str = "set-up") -> None:
    """Write the note: `state` is "installing", "failed" (pip gave up, nothing is half-installed) or "ready"."""
    venv = root / ".venv"
    note = {
        "made_by": read_note(venv).get("made_by", made_by),
        "state": state,
        "where": str(venv.resolve()),
        "python": python_version(venv),
        "requirements": fingerprint(root),
        "torch_index": options.torch_index,
    }
    save_note(venv, note)


def save_note(venv: Path, note: Dict[str, str]) -> None:
    half = note_path(venv).with_suffix(".half")
    half.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    os.replace(str(half), str(note_path(venv)))


def note_extra(venv: Path, extra: str) -> None:
    """Add to the note that the packages of an extra are there; the next installation forgets it."""
    note = read_note(venv)
    note["extras"] = " ".join(sorted(set(note.get("extras", "").split()) | {extra}))
    save_note(venv, note)


def fingerprint(root: Path) -> str:
    """Changes whenever pyproject.toml does."""
    return hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()


def python_version(venv: Path) -> str:
    """ "3.12" for a virtual environment of Python 3.12.1, from its pyvenv.cfg; empty if it cannot be told."""
    try:
        text = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", text, re.MULTILINE)
    return found.group(1) if found else ""


def ready(root: Path, options: Options) -> bool:
    """Whether `.venv` is complete, of these requirements, and what the command line asks for."""
    venv = root / ".venv"
    note = read_note(venv)
    complete = note.get("state") == "ready" and note.get("requirements") == fingerprint(root)
    return complete and why_rebuild(root, options, note) is None


def why_rebuild(root: Path, options: Options, note: Dict[str, str]) -> Optional[str]:
    """Why an existing `.venv` has to be made anew, or None. One that the user made by hand is never thrown away."""
    venv = root / ".venv"
    if not venv.exists():
        return None
    if note.get("made_by") != "set-up":
        return foreign_venv(venv)
    if note.get("state") not in ("ready", "failed"):
        return "the last set-up did not come to its end"
    if not venv_python(venv).exists():
        return "the Python it was made with is gone"
    if note.get("where") != str(venv.resolve()):
        return "the folder has moved"
    if options.explicit and note.get("python") != "%d.%d" % sys.version_info[:2]:
        return "it was made with Python %s" % note.get("python")
    if options.torch_index and note.get("torch_index") != options.torch_index:
        return "it has another build of torch"
    return None


def foreign_venv(venv: Path) -> Optional[str]:
    """The same question for a `.venv` that the user made: use it if it can be used, or ask the user to remove it."""
    version = python_version(venv)
    usable = bool(version) and venv_python(venv).exists() and tuple(map(int, version.split("."))) >= NEEDED
    if usable or not any(venv.iterdir()):
        return None
    what = "is of Python %s" % version if version else "is no virtual environment that works"
    raise Problem("%s was not made by this set-up and %s: remove or rename it, then run this again." % (venv, what))


# --- what is needed -------------------------------------------------------------------------------


def newer_python() -> str:
    """The path of an interpreter on PATH that is new enough, or an empty string; one that exists may still not run."""
    test = "import sys; sys.exit(sys.version_info < %r)" % (NEEDED,)
    for name in NEWER:
        path = shutil.which(name)
        if path and subprocess.call([path, "-c", test], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            return path
    return ""


def check_python(options: Options) -> None:
    """Python's version, and whether it is of a kind that torch is built for."""
    if sys.version_info[:2] < NEEDED:
        raise Problem(
            "Python %d.%d or newer is needed; found %d.%d at %s: install it, then run `%s`."
            % (NEEDED + sys.version_info[:2] + (sys.executable, options.command(python="python3.12")))
        )
    if sys.maxsize <= 2**32:
        raise Problem(
            "This Python at %s is a 32-bit one and torch needs 64 bits: install a 64-bit Python, then run `%s`."
            % (sys.executable, options.command(python="python3.12"))
        )


def check_venv_module(options: Options) -> None:
    """Debian and Ubuntu leave a part of the venv module out of their python3 package."""
    try:
        importlib.import_module("venv")
        importlib.import_module("ensurepip")
    except ImportError:
        version = "%d.%d" % sys.version_info[:2]
        raise Problem(
            "Python %s at %s cannot make virtual environments, as a part of its venv module is missing: on Debian and "
            "Ubuntu run `sudo apt-get install python%s-venv`, then `%s`."
            % (version, sys.executable, version, options.command())
        ) from None


def size_of(options: Options) -> Size:
    """What this machine will download and store."""
    cpu = options.torch_index.rstrip("/").endswith("cpu")
    return CUDA_SIZE if sys.platform.startswith("linux") and not cpu else CPU_SIZE


def pip_cache() -> Path:
    """Where pip keeps its downloads (the usual place)."""
    if os.environ.get("PIP_CACHE_DIR"):
        return Path(os.environ["PIP_CACHE_DIR"])
    home = Path(os.path.expanduser("~"))
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", str(home))) / "pip" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "pip"
    return Path(os.environ.get("XDG_CACHE_HOME", str(home / ".cache"))) / "pip"


def disk_of(path: Path) -> Tuple[int, float]:
    """The disk that a path, which need not exist yet, is or would be on: its number, and the bytes free on it."""
    while not path.exists():
        path = path.parent
    return os.stat(str(path)).st_dev, float(shutil.disk_usage(str(path)).free)


class Plan(NamedTuple):
    """Where pip may put what it needs only for a while."""

    own_temp: bool  # unpack inside .venv, as the system's temporary folder is too small
    cache: bool  # keep the downloads for the next time


def plan_space(root: Path, options: Options, size: Size) -> Plan:
    """Where things fit: the installed files, the downloads for as long as pip runs, and a copy of these to keep."""
    (home, room), (temp, temp_room) = disk_of(root / ".venv"), disk_of(Path(tempfile.gettempdir()))
    cache, cache_room = disk_of(pip_cache())
    own_temp = temp != home and temp_room < size.download
    at_home = size.installed + (size.download if own_temp or temp == home else 0.0)
    if room < at_home:
        raise Problem(lack_of_space(root, options, at_home, room))
    taken = {home: at_home}
    taken[temp] = taken.get(temp, 0.0) if own_temp or temp == home else size.download
    return Plan(own_temp, cache=cache_room >= taken.get(cache, 0.0) + size.download)


def lack_of_space(root: Path, options: Options, needed: float, room: float) -> str:
    advice = "free some space there or move this folder to a larger disk"
    smaller = CPU_SIZE.installed + CPU_SIZE.download
    if smaller < needed:
        again = options.command(TORCH_INDEX="URL OF THE CPU BUILDS")
        advice += ', or take the CPU-only torch, which needs %.1f GB (README, "Download size"): `%s`' % (
            smaller / GB,
            again,
        )
    sizes = (needed / GB, root, room / GB)
    return "Installing needs about %.1f GB and the disk of %s has %.1f GB free: " % sizes + advice + "."


# --- what is done ---------------------------------------------------------------------------------


def say(text: str) -> None:
    print("setup: " + text, flush=True)


def run_quietly(command: List[str], folder: Path = ROOT) -> Tuple[int, str]:
    """The exit code of a command and all that it printed."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, universal_newlines=True, cwd=str(folder))
    output = process.communicate()[0]
    return process.returncode, output


def make_venv(venv: Path, clear: bool) -> None:
    """An empty virtual environment with pip; `clear` empties what is there."""
    command = [sys.executable, "-m", "venv"] + (["--clear"] if clear else []) + [str(venv)]
    code, output = run_quietly(command)
    if code != 0:
        last = (output.strip().splitlines() or ["no reason given"])[-1]
        raise Problem("`%s` failed: %s" % (" ".join(command), last))


def torch_requirements(root: Path) -> List[str]:
    """The lines of pyproject.toml for torch and torchvision."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^\s*"((?:torch|torchvision)\b[^"]*)"', text, re.MULTILINE)


def pip_command(root: Path, options: Options, plan: Plan) -> List[str]:
    venv = root / ".venv"
    pip = [str(venv_python(venv)), "-m", "pip", "install", "--disable-pip-version-check"]
    pip += ["--log", str(venv / "pip.log")]
    pip += [] if plan.cache else ["--no-cache-dir"]
    return pip + list(options.pip_args)


def pip_commands(root: Path, options: Options, plan: Plan) -> List[List[str]]:
    """What pip is asked for: torch and torchvision from their own index first, where one was named; then the rest."""
    pip = pip_command(root, options, plan)
    first = [pip + torch_requirements(root) + ["--index-url", options.torch_index]] if options.torch_index else []
    return first + [pip + ["-e", ".[dev]"]]


def install(root: Path, options: Options, plan: Plan) -> None:
    """Run pip, its own progress on the screen."""
    venv = root / ".venv"
    environment = dict(os.environ)
    if plan.own_temp:
        (venv / "tmp").mkdir(exist_ok=True)
        environment["TMPDIR"] = environment["TEMP"] = environment["TMP"] = str(venv / "tmp")
    run_pip(root, options, pip_commands(root, options, plan), environment)
    shutil.rmtree(str(venv / "tmp"), ignore_errors=True)


def install_extra(root: Path, options: Options) -> None:
    """Add the packages of an extra to a `.venv` that is ready."""
    pip = pip_command(root, options, Plan(own_temp=False, cache=True)) + ["-q"]
    run_pip(root, options, [pip + ["-e", ".[dev,%s]" % options.extra]], dict(os.environ))


def run_pip(root: Path, options: Options, commands: List[List[str]], environment: Dict[str, str]) -> None:
    """Run pip; a Problem with its last words where it fails."""
    log = root / ".venv" / "pip.log"
    if log.exists():
        log.unlink()
    for command in commands:
        if subprocess.call(command, cwd=str(root), env=environment) != 0:
            words = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            raise Problem(explain_pip(words, options))
    with contextlib.suppress(OSError):
        log.unlink()  # 40 MB, of use only where pip failed


# What pip's log says, and what to do about it: the first that fits. The names in braces are commands.
PIP_TROUBLE = (
    (
        r"No space left|Disk quota exceeded|Errno 28\b|Errno 122\b",
        "The disk is full: free some space, or keep no second copy of the downloads with `{no_cache}`.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "The network's certificate is not trusted: if it has its own, name its file with `PIP_CERT=FILE {again}`.",
    ),
    (
        r"DO NOT MATCH THE HASHES|IncompleteRead|BadZipFile",
        "A download was cut off or damaged: fetch it anew with `{no_cache}`.",
    ),
    (
        r"Retrying \(Retry|Max retries|ConnectionError|Connection refused|timed out|Network is unreachable|ProxyError",
        "The package index could not be reached: check the network (and a proxy, if there is one), then run `{again}`.",
    ),
    (
        r"No matching distribution found for torch",
        "There is no torch for this system and Python {version} (Intel Macs and Alpine have none, a new Python only "
        "after a while): try another Python, for example `{other}`.",
    ),
    (
        r"metadata-generation-failed|Failed building wheel|failed-wheel-build|is required to build|'gcc' failed",
        "A package has no ready build for Python {version}: try another Python, for example `{other}`.",
    ),
    (r"", "Run `{again}` to try again."),
)


def explain_pip(log: str, options: Options) -> str:
    """pip's last words and one sentence on what to do about them, from its log."""
    lines = [re.sub(r"^\d{4}-\d\d-\d\dT[\d:,.]+\s?", "", line).strip() for line in log.splitlines()]
    errors = [line for line in lines if re.search(r"ERROR|[Ee]rror:", line)] or [line for line in lines if line]
    words = "\n  ".join(dict.fromkeys(errors[-5:])) or "(none)"
    version = "%d.%d" % sys.version_info[:2]
    advice = next(text for pattern, text in PIP_TROUBLE if re.search(pattern, log)).format(
        version=version,
        again=options.command(),
        other=options.command(python="python3.12" if version != "3.12" else "python3.13"),
        no_cache=options.command(PIP_ARGS="--no-cache-dir"),
    )
    return "pip could not install everything. Its last words:\n  %s\n%s" % (words, advice)


def smoke_check(venv: Path, options: Options) -> str:
    """Import what was installed and run one NMS; the versions, for the screen."""
    # Not in the checkout's folder: the installed package is what is tried.
    code, output = run_quietly([str(venv_python(venv)), "-c", SMOKE], venv)
    last = (output.strip().splitlines() or ["no reason given"])[-1]
    if code == 0:
        return last
    if "torchvision::nms" in output or "undefined symbol" in output:
        again = options.command(TORCH_INDEX="URL")
        hint = "torch and torchvision are of two different builds: give both from one index with `%s`" % again
    elif "WinError" in output or "DLL load failed" in output:
        hint = "torch needs Microsoft's Visual C++ Redistributable: install it, then run `%s`" % options.command()
    else:
        hint = "run `%s` to install everything anew" % options.command()
    raise Problem("What was installed does not work (%s): %s." % (last, hint))


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Wait while another set-up of this folder runs. (Not on Windows, nor where the disk knows no locks.)"""
    with open(str(root / "pyproject.toml")) as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another set-up of this folder is running; waiting for it.")
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield


def announce(size: Size, plan: Plan) -> None:
    sizes = (size.download / GB, size.installed / GB)
    say("about %.1f GB to download, %.1f GB on disk; it takes some minutes." % sizes)
    if size is CUDA_SIZE:
        say('most of it is for NVIDIA GPUs; README, "Download size", has the smaller CPU-only way.')
    if plan.own_temp:
        say("the system's temporary folder is too small for this; using .venv/tmp.")
    if not plan.cache:
        say("little disk space: the downloads are not kept for another time.")


def make_anew(root: Path, options: Options, reason: Optional[str]) -> Plan:
    """An empty `.venv`, after a look at whether everything will fit."""
    check_venv_module(options)
    if reason:
        say(".venv is made anew: %s." % reason)
        write_note(root, options, "installing")
        shutil.rmtree(str(root / ".venv" / "lib"), ignore_errors=True)  # so that its room counts as free
    size = size_of(options)
    plan = plan_space(root, options, size)
    announce(size, plan)
    make_venv(root / ".venv", clear=bool(reason))
    return plan


def build(root: Path, options: Options) -> None:
    """Everything that a call does when `.venv` is not ready."""
    venv = root / ".venv"
    note = read_note(venv)
    options = options if options.torch_index else options._replace(torch_index=note.get("torch_index", ""))
    reason = why_rebuild(root, options, note)
    plan = Plan(own_temp=False, cache=True)
    made_by = "set-up"
    if reason or not venv_python(venv).exists():
        plan = make_anew(root, options, reason)
    elif not note:
        made_by = "user"
    write_note(root, options, "installing", made_by)
    try:
        install(root, options, plan)
    except Problem:
        write_note(root, options, "failed")
        raise
    versions = smoke_check(venv, options)
    write_note(root, options, "ready")
    say("Python %s, %s." % (python_version(venv), versions))


def set_up(root: Path, options: Options) -> None:
    """Make `.venv` ready, or raise a Problem."""
    if options.explicit:
        check_python(options)
    if ready(root, options) and not lacks_extra(root, options):
        return
    check_python(options)
    with one_at_a_time(root):
        start = time.time()
        if not ready(root, options):
            build(root, options)
            say("ready after %.0f s. Next: `make demo`, or `make lab` for the lessons." % (time.time() - start))
        if lacks_extra(root, options):
            say("adding what `make %s` needs." % options.extra)
            install_extra(root, options)
            note_extra(root / ".venv", options.extra)


def lacks_extra(root: Path, options: Options) -> bool:
    return bool(options.extra) and options.extra not in read_note(root / ".venv").get("extras", "").split()


def parse(arguments: List[str]) -> Options:
    parser = argparse.ArgumentParser(description="Create .venv and install condinst_edu into it.")
    parser.add_argument("--torch-index", default="", help="index that torch and torchvision come from (README)")
    parser.add_argument("--pip-args", default="", help="further options for pip install, as one text")
    parser.add_argument("--extra", default="", help="also what one command alone needs: site, play")
    parser.add_argument("--explicit", action="store_true", help="use this very Python, look for no other")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    return Options(given.explicit, given.make, given.torch_index, tuple(shlex.split(given.pip_args)), given.extra)


def main(arguments: List[str], root: Path = ROOT) -> int:
    options = parse(arguments)
    try:
        if sys.version_info[:2] < NEEDED and not options.explicit and not ready(root, options):
            other = newer_python()
            if other:
                say("Python %d.%d is too old; using %s." % (sys.version_info[:2] + (other,)))
                return subprocess.call([other, str(Path(__file__).resolve())] + arguments)
        set_up(root, options)
    except Problem as problem:
        print("setup: %s" % problem, file=sys.stderr)
        return 1
    except OSError as error:
        print("setup: cannot write to %s (%s): make it writable or move it." % (root / ".venv", error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; `%s` begins it again." % options.command(), file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
