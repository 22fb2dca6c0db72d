"""How much of our code a reader passes from an image to its masks: one inference of CondInst, traced."""

import ast
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from helpers import enliven, seeded, tiny_condinst

import condinst_edu

PACKAGE = Path(condinst_edu.__file__).resolve().parent

MAX_FILES, MAX_LINES, MAX_DEPTH = 8, 1500, 6


class Tracer:
    """Records which of our functions are entered and how deeply they call each other.

    Frames of torch, such as `Module.__call__`, are passed over, and so are comprehensions and generator expressions.
    """

    def __init__(self) -> None:
        self.entered: set[CodeType] = set()
        self.stack: list[CodeType] = []
        self.deepest: list[CodeType] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)) or code.co_name[0] == "<":
            return
        if event == "return":
            assert self.stack.pop() is code
            return
        self.stack.append(code)
        self.entered.add(code)
        if len(self.stack) > len(self.deepest):
            self.deepest = self.stack.copy()


def trace(function: Callable[[], Any]) -> tuple[Tracer, Any]:
    tracer = Tracer()
    sys.setprofile(tracer)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return tracer, result


def lines_to_read(path: Path, first_lines: set[int]) -> set[int]:
    """Lines of the functions that start at `first_lines` (with their decorators), and of the classes around them."""
    lines: set[int] = set()
    for node in ast.parse(path.read_text()).body:  # a method, or a function in a function, brings all that it is in
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            span = set(range(start, (node.end_lineno or start) + 1))
            if span & first_lines:
                lines |= span
    return lines


@pytest.mark.parametrize("nms", ["box", "mask"])
def test_reading_path(nms: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = tiny_condinst(nms=nms)
    enliven(model, seeded(3))
    model.eval()
    with torch.no_grad():
        tracer, results = trace(lambda: model([torch.rand(3, 117, 203, generator=seeded(0))]))
    assert len(results[0]["masks"]) > 3  # the whole way has been gone

    starts = defaultdict(set)
    for code in tracer.entered:
        starts[Path(code.co_filename)].add(code.co_firstlineno)
    lines = {path: len(lines_to_read(path, first)) for path, first in starts.items()}
    total = sum(lines.values())

    with capsys.disabled():
        print(f"\n\nFrom image to mask, NMS by {nms} (a function counts with its class):")
        for path in sorted(lines):
            names = sorted(code.co_qualname for code in tracer.entered if Path(code.co_filename) == path)
            print(f"  {path.relative_to(PACKAGE)!s:22} {lines[path]:5} lines: {', '.join(names)}")
        print(f"  files {len(lines)} (at most {MAX_FILES}), lines {total} (at most {MAX_LINES})")
        chain = " > ".join(code.co_qualname for code in tracer.deepest)
        print(f"  depth {len(tracer.deepest)} (at most {MAX_DEPTH}): {chain}")

    assert {"condinst.py", "fcos.py", "mask_head.py"} <= {path.name for path in lines}
    assert len(lines) <= MAX_FILES
    assert total <= MAX_LINES
    assert len(tracer.deepest) <= MAX_DEPTH


def test_lines_to_read_counts_whole_classes(tmp_path: Path) -> None:
    """A method counts with its class, a decorated function with its decorators, and nothing counts twice."""
    path = tmp_path / "module.py"
    functions = ["def f(self): ...", "", "    def g(self): ...", "", "@abc", "def h():", "    pass", "def other(): ..."]
    path.write_text("import abc\nclass A:\n    " + "\n".join(functions))
    assert lines_to_read(path, {3}) == lines_to_read(path, {3, 5}) == {2, 3, 4, 5}
    assert lines_to_read(path, {7}) == {7, 8, 9}
    assert lines_to_read(path, {5, 7}) == {2, 3, 4, 5, 7, 8, 9}
    assert lines_to_read(path, set()) == set()
