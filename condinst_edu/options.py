"""Options of a command as a dataclass: read from the command line, mistakes in one sentence."""

import contextlib
import io
import itertools
import re
from typing import Any, TypeVar

import tyro

from condinst_edu.errors import UserError

Options = TypeVar("Options")


def parse(options: type[Options], command: str, arguments: list[str], default: Options | None = None) -> Options:
    """Options from the command line; UserError, in one sentence, for those that are not right."""
    extra: dict[str, Any] = {} if default is None else {"default": default}
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(options, prog=f"condinst-edu {command}", args=arguments, **extra)
    except SystemExit as error:
        if error.code in (0, None):  # --help
            raise
        # tyro draws a box; what is wrong stands in its first part, above a line across.
        rows = [re.sub(r"\x1b\[[0-9;]*m", "", row).strip("│ ") for row in box.getvalue().splitlines()[1:]]
        said = " ".join(itertools.takewhile(lambda row: not row.startswith("─"), rows))
        said = " ".join(said.split()) or "wrong options"
        raise UserError(f"{said} (condinst-edu {command} --help lists the options)") from None
