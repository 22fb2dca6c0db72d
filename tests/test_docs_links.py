"""Markdown files: links and anchors lead somewhere without a network; commands, targets and files named are there."""

import contextlib
import io
import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers import ROOT

from condinst_edu import cli
from condinst_edu.papers.forms import anchor

PATTERNS = ("README.md", "docs/**/*.md", "lessons/*.md", "lessons/instructor/*.md", "lessons/quiz/*.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern))


FENCED = re.compile(r"^```(?:\w*)\n(.*?)^```", flags=re.S | re.M)


def without_code(text: str) -> str:
    """Markdown without its code, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))


def anchors(path: Path) -> set[str]:
    """What a link may name within a file: headings of Markdown, ids of a notebook's cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return {f"cell-id={cell['id']}" for cell in json.loads(text)["cells"]}
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), flags=re.M)
    return {anchor(heading.strip().lower().replace(" ", "-")) for heading in headings}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere; those with a scheme (https:) are not followed."""
    found = []
    for link in re.findall(r"\]\(([^()\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, place = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (place and place not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    assert broken(ROOT / name) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    links = "[a](a.md) [b](#a-title-one) ![c](c.png) [d](a.md#two) `[e](e)` [f](https://f)"
    (tmp_path / "a.md").write_text(f"# A title: one\n{links}\n")
    assert broken(tmp_path / "a.md") == ["c.png", "a.md#two"]


# ------------------------------------------------------------------------------------------------------------ commands


def commands(text: str) -> list[str]:
    """What follows `condinst-edu` in the code of a page, one line each, comments and continued lines undone."""
    code = FENCED.findall(text) + re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    lines = [line.split(" #")[0] for part in code for line in part.replace("\\\n", " ").splitlines()]
    return [m[1] for line in lines if (m := re.search(r"(?:condinst-edu|condinst_edu\.cli)(?: +|$)(.*)", line))]


@cache
def help_of(*words: str) -> str:
    """What a command prints for --help."""
    box = io.StringIO()
    with contextlib.redirect_stdout(box), contextlib.suppress(SystemExit):
        cli.run([*words, "--help"])
    return box.getvalue()


SUB = ("bench", "data")  # commands with commands of their own


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_their_options_exist(name: str) -> None:
    for command in commands((ROOT / name).read_text(encoding="utf-8")):
        words = re.sub(r"\"[^\"]*\"|'[^']*'", "x", command).split()
        if not words or words[0] in ("COMMAND", "--help"):
            continue
        assert words[0] in cli.COMMANDS, command
        path = words[:2] if words[0] in SUB and len(words) > 1 else words[:1]
        if path == ["train"] and len(words) > 1 and re.fullmatch(r"[a-z0-9-]+(?::[\w:-]+)?", words[1]):
            path = words[:2]  # options of a recipe
        shown = help_of(*path)
        for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", " ".join(words[1:])):
            assert re.search(rf"{option}(?![\w-])", shown), f"{command}: {path} has no {option}"


def test_commands_are_found() -> None:
    text = (
        "Run `condinst-edu doctor`.\n```sh\nmake x\ncondinst-edu train a \\\n    --lr 1  # why\n```\n`condinst-edu`\n"
    )
    assert [command.split() for command in commands(text)] == [["train", "a", "--lr", "1"], ["doctor"], []]
    assert len(commands((ROOT / "README.md").read_text(encoding="utf-8"))) > 30
    assert "--seeds" in help_of("reproduce")
    assert "--no-such" not in help_of("reproduce")


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        named = re.findall(r"`make ([a-z-]+)", text) + re.findall(r"^make ([a-z-]+)", text, flags=re.M)
        assert set(named) <= targets, name


def test_files_that_are_named_exist() -> None:
    """Paths in backticks that begin with a folder of the repository; what runs leave behind is not there yet."""
    folders = ("condinst_edu", "docs", "lessons", "tests", "tools")
    for name in PAGES:
        for path in re.findall(r"`([\w./-]+)`", (ROOT / name).read_text(encoding="utf-8")):
            if path.split("/")[0] in folders and "/" in path:
                assert (ROOT / path).exists(), f"{name}: {path}"
