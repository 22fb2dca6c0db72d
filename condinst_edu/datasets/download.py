"""COCO 2017 from its own address into a folder, with one copy of the data on the disk at any time.

    condinst-edu data coco --root data/coco
    condinst-edu data coco --root data/coco --panoptic     # the panoptic files, too

Archive by archive: download into a hidden file (an interrupted download goes on where it stopped), check its MD5 sum,
unpack. Unpacking begins with the archive's last file and cuts off the archive what has been unpacked, so that both
together never take more room than one of them, but for a few megabytes; it can be interrupted as well.
"""

import contextlib
import hashlib
import http.client
import io
import os
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from rich.progress import Progress, TaskID

from condinst_edu.errors import UserError
from condinst_edu.files import cannot_write, whole_file, writable_folder
from condinst_edu.progress import bytes_bar

ADDRESS = "http://images.cocodataset.org"
BLOCK = 1 << 20
STEP = 64 << 20  # bytes of an archive that are unpacked before it is cut
TIMEOUT = 30.0  # seconds without a byte


class Archive(NamedTuple):
    """A zip file: its path at the address, its MD5 sum, the folder that it unpacks to, how many files that has then."""

    path: str
    md5: str
    folder: str
    files: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


COCO = (
    Archive("annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", "annotations", 6),
    Archive("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", "val2017", 5_000),
    Archive("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", "train2017", 118_287),
)

# Two JSON files, and beside each an archive of PNGs.
PANOPTIC = Archive(
    "annotations/panoptic_annotations_trainval2017.zip", "4170db65fc022c9c296af880dbca6055", "annotations", 4
)
PNGS = {"panoptic_train2017": 118_287, "panoptic_val2017": 5_000}


def download_coco(root: Path, address: str = ADDRESS, archives: tuple[Archive, ...] = COCO, show: bool = True) -> None:
    """Bring all archives into `root`, unpacked; what is there already stays, and so an interrupted call goes on.

    Errors: UserError, one sentence, without network or space, for a wrong sum, and for an archive that is not safe.
    """
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address begins with http:// or https://, not {address!r}")
    writable_folder(root)
    with bytes_bar(show) as progress:
        for archive in archives:
            target = root / f".{archive.name}"
            directory = root / f".{archive.name}.directory"
            if not directory.exists() and not target.exists():
                if count_files(root / archive.folder) >= archive.files:
                    continue
                fetch(f"{address.rstrip('/')}/{archive.path}", target, archive.md5, progress)
            unpack(target, directory, root, archive.folder, progress)
            if (found := count_files(root / archive.folder)) < archive.files:
                raise UserError(f"{root / archive.folder} has {found} files, but {archive.name} holds {archive.files}")


def download_panoptic(root: Path, address: str, archive: Archive, pngs: Mapping[str, int], show: bool = True) -> None:
    """Bring COCO's panoptic files into root/annotations: for each name of `pngs` a JSON file and a folder of PNGs.

    archive: it holds name.json and name.zip, the PNGs; pngs: how many each has. What is there already stays.
    Errors: as of `download_coco`.
    """
    writable_folder(root)
    folder, target = root / archive.folder, root / f".{archive.name}"
    directory = target.with_name(target.name + ".directory")
    with bytes_bar(show) as progress:
        if not (target.exists() or directory.exists()):
            if all(count_files(folder / name) >= count for name, count in pngs.items()):
                return
            if not any((folder / f"{name}.zip").exists() for name in pngs):
                fetch(f"{address.rstrip('/')}/{archive.path}", target, archive.md5, progress)
        if target.exists() or directory.exists():
            unpack(target, directory, root, archive.folder, progress)
        for name, count in pngs.items():
            inner, contents = folder / f"{name}.zip", folder / f".{name}.directory"
            if inner.exists() or contents.exists():
                unpack(inner, contents, folder, name, progress)
            if (found := count_files(folder / name)) < count:
                raise UserError(f"{folder / name} has {found} files, but {name}.zip of {archive.name} holds {count}")


def count_files(folder: Path) -> int:
    """How many files lie directly in a folder that may not exist, hidden ones left out."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.is_file() and not entry.name.startswith(".") for entry in entries)


# Download


def fetch(
    url: str, path: Path, digest: str, progress: Progress, tries: int = 5, pause: float = 2.0, algorithm: str = "md5"
) -> None:
    """Download to `path`, which appears once it is whole and its sum is right; until then it is `path`.part.

    digest: the sum, or its first digits. After `tries` attempts in a row that brought nothing, pause seconds apart, it
    gives up. Errors: UserError.
    """
    part = path.with_name(path.name + ".part")
    task = progress.add_task(f"{path.name.lstrip('.')}: download", total=None)
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part, progress, task)
            break
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= tries or _is_final(error):
                raise UserError(
                    f"cannot download {url}: {_reason(error)} (the same command goes on from here)"
                ) from None
        except OSError as error:
            raise cannot_write(part, error) from None
        time.sleep(pause)
    progress.update(task, description=f"{path.name.lstrip('.')}: check", completed=0)
    found = sum_of(part, algorithm, progress, task)
    if not found.startswith(digest):
        part.unlink()
        raise UserError(
            f"{url} came with the {algorithm.upper()} sum {found}, expected {digest}: "
            "it was removed, try the same command again"
        )
    os.replace(part, path)
    progress.remove_task(task)


def _fetch_rest(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    """Append what `part` lacks; a server that does not know ranges sends it all again."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        whole = error.headers.get("Content-Range", "").rpartition("/")[2]
        if whole != str(have):  # more than there is: of another file
            part.unlink()
            return _fetch_rest(url, part, progress, task)
        return None
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        if total is not None:
            check_space(part, total - have, f"{url} needs")
        progress.update(task, total=total, completed=have)
        with part.open("ab" if goes_on else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                progress.advance(task, len(block))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection broke off after {_size(part)} of {total} bytes")
    return None


def sum_of(path: Path, algorithm: str, progress: Progress, task: TaskID) -> str:
    """The sum of a file by that algorithm, in hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            progress.advance(task, len(block))
    return digest.hexdigest()


def check_space(path: Path, needed: int, what: str) -> None:
    """UserError where the disk of `path` has less room than `needed` bytes."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(f"{what} {needed / 1e9:.2f} GB, but {path.parent} has {free / 1e9:.2f} GB free")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help: the server has answered, and it is not merely busy."""
    return isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__


# Unpacking


def unpack(path: Path, directory: Path, root: Path, folder: str, progress: Progress, step: int = STEP) -> None:
    """Unpack a zip file into root/folder from its end, cutting it short every `step` bytes, until it is gone.

    directory: where the archive's table of contents is kept in the meantime, which stands at the end of a zip file.
    Errors: UserError for an archive that is broken, or would write elsewhere (nothing is written then).
    """
    if directory.exists() and not path.exists():  # killed between the last two lines below
        directory.unlink()
        return
    with _broken_archive(path):
        if not directory.exists():
            with zipfile.ZipFile(path) as archive:
                check_members(archive.infolist(), folder, path)
                start = archive.start_dir
            with path.open("rb") as whole, whole_file(directory) as temporary:
                whole.seek(start)
                temporary.write_bytes(start.to_bytes(8, "little") + whole.read())
        with path.open("r+b") as file, zipfile.ZipFile(_joined(file, directory)) as archive:
            _unpack_backwards(file, archive, root, progress, step)
    path.unlink()
    directory.unlink()


def _unpack_backwards(file: BinaryIO, archive: zipfile.ZipFile, root: Path, progress: Progress, step: int) -> None:
    left = min(archive.start_dir, file.seek(0, os.SEEK_END))  # bytes of members that are still to be unpacked
    members = [m for m in archive.infolist() if m.header_offset < left and not m.is_dir() and not is_litter(m)]
    members.sort(key=lambda member: member.header_offset, reverse=True)
    name = Path(file.name).name.lstrip(".")
    growth = sum(member.file_size - member.compress_size for member in members)
    check_space(Path(file.name), growth + min(step, left), f"unpacking {name} needs")
    task = progress.add_task(f"{name}: unpack", total=archive.start_dir)
    for member in members:
        with whole_file(root / member.filename) as temporary, temporary.open("wb") as out:
            shutil.copyfileobj(archive.open(member), out, BLOCK)
        if left - member.header_offset >= step:
            left = member.header_offset
            file.truncate(left)
        progress.update(task, completed=archive.start_dir - member.header_offset)
    progress.remove_task(task)


def check_members(members: list[zipfile.ZipInfo], folder: str, path: Path) -> None:
    """UserError for the first member that is a link, or would not lie within `folder`."""
    for member in members:
        if is_litter(member):
            continue
        place = PurePosixPath(member.filename)
        inside = place.parts[:1] == (folder,) and ".." not in place.parts
        if not inside or "\\" in member.filename or ":" in member.filename:
            raise UserError(f"{path} is not unpacked: {member.filename!r} would not be written into {folder}/")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"{path} is not unpacked: {member.filename!r} is a link")


def is_litter(member: zipfile.ZipInfo) -> bool:
    """What macOS adds to archives, which is not unpacked."""
    return member.filename.startswith("__MACOSX/")


@contextlib.contextmanager
def _broken_archive(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} cannot be unpacked: {error} (remove it to download it again)") from None


def _joined(file: BinaryIO, directory: Path) -> io.BufferedReader:
    """An archive that was cut short, with its table of contents where it was."""
    content = directory.read_bytes()
    return io.BufferedReader(_Joined(file, int.from_bytes(content[:8], "little"), content[8:]))


class _Joined(io.RawIOBase):
    def __init__(self, file: BinaryIO, start: int, tail: bytes) -> None:
        self.file, self.start, self.tail, self.position = file, start, tail, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {0: 0, 1: self.position, 2: self.start + len(self.tail)}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        if self.position < self.start:
            self.file.seek(self.position)
            data = self.file.read(min(len(buffer), self.start - self.position))
        else:
            data = self.tail[self.position - self.start :][: len(buffer)]
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
