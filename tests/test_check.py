"""`data check` on folders that are complete, and on each way in which one is not."""

import shutil
from pathlib import Path

import pytest
from coco_folder import Folder, odd_folder
from PIL import Image

from condinst_edu.cli import run
from condinst_edu.datasets import check
from condinst_edu.datasets.check import check_folder
from condinst_edu.errors import UserError

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "shapes"


@pytest.fixture
def odd(tmp_path: Path) -> Folder:
    """As COCO has it: annotations/instances_odd.json and odd/."""
    folder = odd_folder(tmp_path / "odd")
    (tmp_path / "annotations").mkdir()
    moved = folder.annotations.rename(tmp_path / "annotations" / "instances_odd.json")
    return folder._replace(annotations=moved)


def problem(root: Path, decode: bool = False) -> str:
    with pytest.raises(UserError) as error:
        list(check_folder(root, decode=decode))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_complete(odd: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(check_folder(tmp_path, decode=True))
    assert lines == [f"{odd.annotations}: complete, 5 images in {odd.images}, 11 annotations"]
    assert list(check_folder(odd.annotations)) == lines
    assert run(["data", "check", str(SAMPLE)]) == 0
    out = capsys.readouterr().out
    assert "instances_train.json: complete" in out
    assert "instances_val.json: complete" in out


def test_a_file_and_its_images(odd: Folder, tmp_path: Path) -> None:
    shutil.move(odd.images, tmp_path / "elsewhere")
    assert "there is no folder of images" in problem(tmp_path)
    assert len(list(check_folder(odd.annotations, tmp_path / "elsewhere"))) == 1


def test_problems(odd: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (odd.images / "12.png").unlink()
    assert "instances_odd.json: 1 of 5 images is missing (first: 12.png)" in problem(tmp_path)
    Image.new("RGB", (7, 8)).save(odd.images / "5.png")
    content = (odd.images / "9.png").read_bytes()
    (odd.images / "9.png").write_bytes(content[: len(content) // 2])
    (odd.images / "0.png").write_bytes(b"broken")
    text = problem(tmp_path)
    assert "1 of 5 images is of a wrong size (first: 5.png, 7 x 8 instead of 30 x 20)" in text
    assert "1 of 5 images is broken (first: 0.png)" in text
    assert "2 of 5 images are broken (first: 0.png)" in problem(tmp_path, decode=True)
    assert run(["data", "check", str(tmp_path)]) == 2
    assert "is not complete: instances_odd.json: " in capsys.readouterr().err


def test_broken_annotations(odd: Folder, tmp_path: Path) -> None:
    odd.data["annotations"][3]["segmentation"] = [[1, 2, 3]]
    odd.write()
    assert "annotations[3]: a polygon of 'segmentation' has an odd number" in problem(tmp_path)
    odd.annotations.write_text(odd.annotations.read_text()[:100])
    assert "is cut off" in problem(tmp_path)
    assert "no annotations/*.json" in problem(odd.images)
    assert "does not exist" in problem(tmp_path / "nowhere")


def test_counts_of_coco(odd: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.COCO_COUNTS["instances_val2017.json"] == (5000, 36781)
    monkeypatch.setitem(check.COCO_COUNTS, "instances_odd.json", (6, 11))
    assert "lists 5 images, COCO's has 6" in problem(tmp_path)
