"""What concerns all tests: lessons run offline in this environment's kernel, their seconds stand beside their budgets.

Solution notebooks belong to the fast tests, all others to the slow ones. A lesson fails at three times its
budget only: machines are noisy (`condinst-edu bench lessons` measures).
"""

from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from condinst_edu.teach.lessons import BUDGET, LESSONS, offline_kernels

SECONDS: dict[str, float] = defaultdict(float)


def is_lesson(path: Path) -> bool:
    return path.suffix == ".ipynb" and LESSONS in path.parents


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_lesson(item.path) and item.path.parent != LESSONS / "solutions":
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    stack = ExitStack()
    stack.enter_context(offline_kernels())
    config.add_cleanup(stack.close)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.partition("::")[0]
    if name.endswith(".ipynb"):
        SECONDS[name] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if any(seconds > 3 * BUDGET for seconds in SECONDS.values()) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if SECONDS:
        terminalreporter.section("lessons: seconds, of a budget of " + str(BUDGET))
    for name, seconds in sorted(SECONDS.items()):
        verdict = f"FAILED: more than {3 * BUDGET} s" if seconds > 3 * BUDGET else "over" if seconds > BUDGET else "ok"
        terminalreporter.line(f"{seconds:6.1f}  {name}  {verdict}")
