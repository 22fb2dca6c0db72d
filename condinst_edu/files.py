"""Writing files so that a reader never meets half of one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from condinst_edu.errors import UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` once the block ends without an error.

    Creates the folder. Errors: UserError where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # what a killed process left there is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a failed write: what could not be written and why."""
    return UserError(f"cannot write {path}: {error.strerror or error}")


def writable_folder(path: Path) -> Path:
    """The folder, created if need be; UserError where it cannot be created or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error) from None
    return path
