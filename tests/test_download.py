"""Downloads from a local server that breaks off, sends wrong bytes or knows no ranges; archives that are not safe."""

import hashlib
import io
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condinst_edu.cli import run
from condinst_edu.datasets import download
from condinst_edu.datasets.download import Archive, count_files, download_coco, download_panoptic, fetch, unpack
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file
from condinst_edu.progress import bytes_bar


class Killed(Exception):
    pass


class Server:
    """Files by path, and how to misbehave; `asked` is the list of (path, Range header)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = True
        self.breaks: list[int] = []  # after so many bytes of each of the next answers
        self.status: list[int] = []  # of the next answers
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted))
        if self.status:
            return request.send_error(self.status.pop(0))
        if request.path not in self.files:
            return request.send_error(404)
        data, start = self.files[request.path], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(data)}")
                return request.end_headers()
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start:][: self.breaks.pop(0) if self.breaks else None])
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def make_zip(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return box.getvalue()


def random_files(folder: str, count: int, seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    return {f"{folder}/{i:04}.jpg": rng.bytes(int(rng.integers(0, 3000))) for i in range(count)}


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def read_all(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


DATA = np.random.default_rng(1).bytes(50_000)


def fetch_data(server: Server, path: Path, sum: str = md5(DATA)) -> None:
    server.files["/data"] = DATA
    with bytes_bar(False) as progress:
        fetch(f"{server.address}/data", path, sum, progress)


@pytest.mark.parametrize("ranges", [True, False])
def test_goes_on_where_it_broke_off(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges, server.breaks = ranges, [20_000, 0, 0, 10_000]
    fetch_data(server, tmp_path / "data")
    assert read_all(tmp_path) == {"data": DATA}
    asked = [wanted for _, wanted in server.asked]
    assert asked[:4] == [None, "bytes=20000-", *(["bytes=20000-"] * 2 if ranges else [None] * 2)]
    assert len(asked) == 5


def test_goes_on_in_a_later_call(server: Server, tmp_path: Path) -> None:
    server.breaks = [20_000, 0, 0, 0, 0, 0]
    with pytest.raises(
        UserError, match=r"the connection broke off after 20000 of 50000 bytes .the same command goes on"
    ):
        fetch_data(server, tmp_path / "data")
    assert read_all(tmp_path) == {"data.part": DATA[:20_000]}
    server.breaks = []
    fetch_data(server, tmp_path / "data")
    assert server.asked[-1] == ("/data", "bytes=20000-")
    assert read_all(tmp_path) == {"data": DATA}


@pytest.mark.parametrize("part", [DATA, DATA + b"more", b""])
def test_part_of_any_length(server: Server, tmp_path: Path, part: bytes) -> None:
    """All of it is there already (killed before the check), or more than all, or nothing yet."""
    (tmp_path / "data.part").write_bytes(part)
    fetch_data(server, tmp_path / "data")
    assert read_all(tmp_path) == {"data": DATA}


def test_wrong_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.part").write_bytes(b"from elsewhere")
    with pytest.raises(
        UserError, match=f"/data came with the MD5 sum [0-9a-f]{{32}}, expected {md5(DATA)}: it was remov"
    ):
        fetch_data(server, tmp_path / "data")
    assert read_all(tmp_path) == {}
    fetch_data(server, tmp_path / "data")
    assert read_all(tmp_path) == {"data": DATA}


def test_answers_that_are_errors(server: Server, tmp_path: Path) -> None:
    server.status = [503, 500, 429]
    fetch_data(server, tmp_path / "data")
    server.status = [403]
    with pytest.raises(
        UserError, match=r"cannot download http://127\.0\.0\.1:\d+/data: the server answers 403 Forbidden"
    ):
        fetch_data(server, tmp_path / "other")
    assert len(server.asked) == 5


def test_no_network(server: Server, tmp_path: Path) -> None:
    address = server.address
    server.http.server_close()
    with bytes_bar(False) as progress, pytest.raises(UserError, match=r"cannot download .*: Connection refused"):
        fetch(f"{address}/data", tmp_path / "data", md5(DATA), progress)
    with bytes_bar(False) as progress, pytest.raises(UserError, match=r"cannot download http://nowhere\.invalid/data"):
        fetch("http://nowhere.invalid/data", tmp_path / "data", md5(DATA), progress)


def test_no_space(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=40_000))
    with pytest.raises(UserError, match=r"/data needs 0\.00 GB, but \S+ has 0\.00 GB free"):
        fetch_data(server, tmp_path / "data")
    assert read_all(tmp_path) == {}
    assert len(server.asked) == 1


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def archives(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Three small archives at COCO's paths; returns the files that they hold."""
    contents = [random_files("annotations", 6), random_files("val2017", 20, 1), random_files("train2017", 50, 2)]
    small = []
    for archive, files in zip(download.COCO, contents, strict=True):
        data = make_zip(files, zipfile.ZIP_DEFLATED)
        server.files[f"/{archive.path}"] = data
        small.append(archive._replace(md5=md5(data), files=len(files)))
    monkeypatch.setattr(download, "COCO", tuple(small))
    return {name: content for files in contents for name, content in files.items()}


def test_command(
    server: Server, archives: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "coco", "--root", str(tmp_path / "coco"), "--address", server.address]
    server.breaks = [500, 500]
    assert run(command) == 0
    assert read_all(tmp_path / "coco") == archives
    assert f"50 + 20 images and their annotations are in {tmp_path / 'coco'}" in capsys.readouterr().out
    asked = len(server.asked)
    assert run(command) == 0
    assert len(server.asked) == asked  # all is there
    (tmp_path / "coco" / "val2017" / "0003.jpg").unlink()
    assert run(command) == 0
    assert len(server.asked) == asked + 1
    assert read_all(tmp_path / "coco") == archives
    server.files.clear()
    shutil.rmtree(tmp_path / "coco" / "val2017")
    assert run(command) == 2
    assert "val2017.zip: the server answers 404 Not Found" in capsys.readouterr().err
    assert run([*command[:-1], "ftp://elsewhere"]) == 2
    assert "--address begins with http:// or https://" in capsys.readouterr().err


def test_official_archives() -> None:
    """What the issue and COCO's page state."""
    assert {archive.name: archive.md5 for archive in download.COCO} == {
        "train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
        "val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
        "annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
    }
    assert {name.split("_")[1]: count for name, count in download.PNGS.items()} == {
        archive.folder: archive.files for archive in download.COCO if archive.folder != "annotations"
    }


@pytest.fixture
def panoptic_archive(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """COCO's panoptic archive in small, with the archives in it and what macOS adds; returns the files to come out."""
    litter = {"__MACOSX/._a": b"litter"}
    pngs = {"panoptic_train2017": 12, "panoptic_val2017": 5}
    outer: dict[str, bytes] = {f"annotations/{name}.json": name.encode() for name in pngs}
    inner = {name: random_files(name, count, count) for name, count in pngs.items()}
    zips = {f"annotations/{name}.zip": make_zip(litter | files, zipfile.ZIP_DEFLATED) for name, files in inner.items()}
    data = make_zip(litter | outer | zips)
    server.files[f"/{download.PANOPTIC.path}"] = data
    monkeypatch.setattr(download, "PANOPTIC", download.PANOPTIC._replace(md5=md5(data)))
    monkeypatch.setattr(download, "PNGS", pngs)
    return outer | {f"annotations/{name}": content for files in inner.values() for name, content in files.items()}


def fetch_panoptic(server: Server, root: Path) -> None:
    download_panoptic(root, server.address, download.PANOPTIC, download.PNGS, show=False)


def test_panoptic_files(
    server: Server, archives: dict[str, bytes], panoptic_archive: dict[str, bytes], tmp_path: Path
) -> None:
    """By the command, beside all else; a second call asks for nothing, and a folder that was lost comes again."""
    command = ["data", "coco", "--root", str(tmp_path), "--address", server.address, "--panoptic"]
    assert run(command) == 0
    assert read_all(tmp_path) == archives | panoptic_archive
    asked = len(server.asked)
    assert run(command) == 0
    assert len(server.asked) == asked
    (tmp_path / "annotations" / "panoptic_val2017" / "0001.jpg").unlink()
    fetch_panoptic(server, tmp_path)
    assert len(server.asked) == asked + 1
    assert read_all(tmp_path) == archives | panoptic_archive


@pytest.mark.parametrize("at", ["annotations/panoptic_val2017.zip", "panoptic_train2017/0003.jpg", "val2017/0002.jpg"])
def test_panoptic_files_after_an_interruption(
    server: Server, panoptic_archive: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Killed while the archive, or one within it, is unpacked: the next call goes on, without another download."""

    def killed(path: Path) -> Any:
        if path.as_posix().endswith(at):
            raise Killed
        return whole_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(download, "whole_file", killed)
        with pytest.raises(Killed):
            fetch_panoptic(server, tmp_path)
    assert len(server.asked) == 1
    fetch_panoptic(server, tmp_path)
    assert len(server.asked) == 1
    assert read_all(tmp_path) == panoptic_archive


def test_panoptic_archive_that_lacks_files(
    server: Server, panoptic_archive: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(download.PNGS, "panoptic_val2017", 6)
    with pytest.raises(UserError, match=r"panoptic_val2017 has 5 files, but panoptic_val2017\.zip of .* holds 6"):
        fetch_panoptic(server, tmp_path)


# ------------------------------------------------------------------------------------------------------------ unpacking


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_unpacking_takes_no_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: int) -> None:
    """Archive and files together never exceed the archive by more than a step and the largest file; killed any time."""
    files = random_files("d", 60)
    path, directory = tmp_path / "a.zip", tmp_path / "a.directory"
    path.write_bytes(make_zip(files, compression))
    whole, step, sizes, countdown = path.stat().st_size, 5000, [], [0]
    copy = shutil.copyfileobj

    def watched(source: Any, out: Any, length: int) -> None:
        copy(source, out, length)
        out.flush()
        sizes.append(sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file() and p != directory))
        countdown[0] -= 1
        if countdown[0] == 0:
            raise Killed

    monkeypatch.setattr(download.shutil, "copyfileobj", watched)
    for n in (1, 2, 7, 11, 23, 5, -1):
        countdown[0] = n
        try:
            with bytes_bar(False) as progress:
                unpack(path, directory, tmp_path, "d", progress, step)
        except Killed:
            assert n > 0
    assert read_all(tmp_path) == files
    assert max(sizes) <= whole + step + 3000
    assert len(sizes) < 2 * len(files) + 20  # what is cut off is not unpacked again
    directory.write_bytes(b"left over")  # killed when the archive was gone already
    with bytes_bar(False) as progress:
        unpack(path, directory, tmp_path, "d", progress, step)
    assert read_all(tmp_path) == files


@pytest.mark.parametrize(
    "name", ["../evil", "d/../../evil", "/tmp/evil", "other/evil", "evil", "d\\..\\..\\evil", "C:/evil", "d/C:evil"]
)
def test_no_path_outside(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(make_zip({"d/good": b"1", name: b"2"}))
    with bytes_bar(False) as progress, pytest.raises(UserError, match="would not be written into d/"):
        unpack(path, tmp_path / "a.directory", tmp_path / "root", "d", progress)
    assert [p.name for p in tmp_path.rglob("*")] == ["a.zip"]


def test_no_links(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("d/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("d/good", b"1")
        archive.writestr(link, "/etc")
    with bytes_bar(False) as progress, pytest.raises(UserError, match="'d/link' is a link"):
        unpack(path, tmp_path / "a.directory", tmp_path / "root", "d", progress)
    assert not (tmp_path / "root").exists()


def test_broken_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    whole = make_zip(random_files("d", 5))
    spoiled = bytearray(whole)
    spoiled[60] ^= 1
    for data in (b"", b"no zip", whole[:-30], bytes(spoiled)):
        path.write_bytes(data)
        with bytes_bar(False) as progress, pytest.raises(UserError, match=r"a\.zip cannot be unpacked: .*remove it"):
            unpack(path, tmp_path / "a.directory", tmp_path / "root", "d", progress)
        (tmp_path / "a.directory").unlink(missing_ok=True)


def test_archive_with_too_few_files(server: Server, tmp_path: Path) -> None:
    data = make_zip(random_files("d", 3))
    server.files["/d.zip"] = data
    with pytest.raises(UserError, match=r"d has 3 files, but d\.zip holds 4"):
        download_coco(tmp_path, server.address, (Archive("d.zip", md5(data), "d", 4),), show=False)
    assert count_files(tmp_path / "d") == 3
