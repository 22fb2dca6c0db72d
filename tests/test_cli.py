"""The command line as a user meets it: what it prints, its exit status, and what it leaves behind."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_engine import SAMPLE, tiny_recipe

from condinst_edu.cli import COMMANDS, run
from condinst_edu.engine.train import train

SETTINGS = (
    "backbone_options.widths=(4,4,8,8,8)",
    "channels=8",
    "head.tower_convs=1",
    "bottom.channels=8",
    "bottom.convs=1",
)
TINY = [word for setting in SETTINGS for word in ("--set", setting)] + ["--iterations", "2", "--batch-size", "2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights")
    train(tiny_recipe(iterations=2), out, show_progress=False)
    return out / "model.safetensors"


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    """Exit status 2, and one line on stderr that holds the sentence (a pattern)."""
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("condinst-edu: ")
    assert error.count("\n") == 1, error
    assert re.search(sentence, error), error


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command}" in text for command in COMMANDS)
    assert run([]) == 0


@pytest.mark.parametrize(
    "command", [["demo"], ["train", "shapes-condinst"], ["evaluate"], ["predict"], ["data", "shapes"]]
)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run([*command, "--help"])
    assert error.value.code == 0
    assert "--" in capsys.readouterr().out


def test_unknown_command_recipe_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["trian"], "unknown command 'trian': expected one of demo, train")
    fails(capsys, ["train", "coco"], "unknown recipe 'coco': expected one of shapes-fcos, shapes-condinst")
    fails(capsys, ["train", "shapes-condinst", "--set", "colour=red"], "condinst has no argument 'colour'")
    fails(capsys, ["train", "shapes-condinst", "--colour", "red"], "--colour")
    fails(capsys, ["train", "shapes-condinst", "--iterations", "many"], "iterations.*many")
    fails(capsys, ["predict"], "at least one image")
    fails(capsys, ["data", "circles"], "unknown kind of data 'circles': expected one of shapes, coco")
    for jobs in ("0", "-1", "5000"):
        fails(capsys, ["data", "shapes", "--jobs", jobs], f"--jobs is between 1 and 1024 processes, not {jobs}")
    fails(capsys, ["data", "shapes", "--objects", "400", "400"], r"most <= 256, .* not \(400, 400\)")
    fails(capsys, ["demo", "--minutes", "nan"], "at least half a minute")
    fails(capsys, ["demo", "--seed", "-1"], "seed")


def test_labels_mean_the_same_in_both_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The held-out file need not list all the categories that the training file has."""
    shutil.copytree(SAMPLE, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_val.json"
    coco = json.loads(path.read_text())
    coco["categories"] = [c for c in coco["categories"] if c["id"] != 1]
    coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] != 1]
    path.write_text(json.dumps(coco))
    command = ["train", "shapes-condinst", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *TINY]
    assert run([*command, "--set", "score_threshold=0.0"]) == 0


def test_train_evaluate_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run(["train", "shapes-condinst", "--data", str(SAMPLE), "--out", str(out), *TINY]) == 0
    assert {path.name for path in out.iterdir()} == {
        "last.pt", "log.jsonl", "model.safetensors", "recipe.json", "result.json",
    }  # fmt: skip
    trained = json.loads((out / "result.json").read_text())
    assert run(["evaluate", str(out / "model.safetensors"), "--out", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text()) == trained
    assert "AP" in capsys.readouterr().out
    photo = next((SAMPLE / "val").glob("*.png"))
    command = ["predict", str(photo), "--weights", str(out / "model.safetensors"), "--out", str(tmp_path / "drawn")]
    assert run(command) == 0
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {photo.name, "results.json"}


def test_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(change: Any, sentence: str) -> None:
        data = tmp_path / "data"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(SAMPLE, data)
        change(data)
        command = ["train", "shapes-condinst", "--data", str(data), "--out", str(tmp_path / "out"), *TINY]
        fails(capsys, command, sentence)
        assert not list(tmp_path.glob("out/.*"))

    def rewrite(**changes: Any) -> Any:
        def change(data: Path) -> None:
            path = data / "annotations" / "instances_train.json"
            coco = json.loads(path.read_text())
            coco["annotations"][0] |= changes
            path.write_text(json.dumps(coco))

        return change

    def cut(path: str, share: float) -> Any:
        def change(data: Path) -> None:
            whole = (data / path).read_bytes()
            (data / path).write_bytes(whole[: int(len(whole) * share)])

        return change

    broken(lambda data: shutil.rmtree(data / "train"), r"train.* does not exist")
    broken(cut("annotations/instances_train.json", 0.5), r"instances_train\.json.*line")
    broken(lambda data: (data / "annotations/instances_train.json").write_text("[1]"), r"instances_train\.json")
    broken(rewrite(image_id=999), r"annotations\[0\].*image.*999")
    broken(rewrite(category_id=77), r"annotations\[0\].*77")
    broken(lambda data: next((data / "train").iterdir()).unlink(), r"1 of 8 images are missing")


def test_all_images_are_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(SAMPLE, tmp_path / "data")
    for path in (tmp_path / "data" / "train").iterdir():
        path.write_bytes(path.read_bytes()[:3000])
    command = ["train", "shapes-condinst", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *TINY]
    fails(capsys, command, r"\d+\.png cannot be read as an image")


def test_bad_weights(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["evaluate", str(tmp_path / "no.safetensors")], r"no such file: .*no\.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-100])
    fails(capsys, ["evaluate", str(tmp_path / "cut.safetensors")], r"cut\.safetensors is no whole safetensors file")
    (tmp_path / "text.safetensors").write_text("hello")
    fails(capsys, ["evaluate", str(tmp_path / "text.safetensors")], "is no whole safetensors file")
    last = weights.with_name("last.pt")
    fails(capsys, ["evaluate", str(last)], r"last\.pt is no whole safetensors file")


def test_bad_photographs_and_folders(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    fails(capsys, ["predict", *common], "at least one image")
    fails(capsys, ["predict", str(tmp_path / "no.jpg"), *common], r"no such image: .*no\.jpg")
    fails(capsys, ["predict", "a" * 5000, *common], "File name too long")
    (tmp_path / "text.jpg").write_text("hello")
    fails(capsys, ["predict", str(tmp_path / "text.jpg"), *common], r"text\.jpg cannot be read as an image")
    photo = str(next((SAMPLE / "val").glob("*.png")))
    (tmp_path / "file").write_text("")
    fails(capsys, ["predict", photo, *common[:2], "--out", str(tmp_path / "file" / "x")], "cannot write")
    fails(capsys, ["predict", photo, *common, "--device", "cuda:77"], "device 'cuda:77' cannot be used here")
    fails(capsys, ["bench", "mask-head", "--device", "cuda:77"], "device 'cuda:77' cannot be used here")
    fails(capsys, ["predict", photo, *common, "--min-score", "nan"], "--min-score is between 0 and 1, not nan")
    command = ["weights", "condinst", "--data", str(tmp_path / "shapes"), "--work", str(tmp_path / "file")]
    fails(capsys, command, "cannot write")
    assert not (tmp_path / "shapes").exists()


def test_data_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "shapes", "--out", str(tmp_path / "s"), "--train", "2", "--val", "1"]
    assert run(command) == 0
    assert run(command) == 0  # the same again: nothing to do
    fails(capsys, [*command, "--seed", "3"], "holds other shapes")
    fails(capsys, ["data", "shapes", "--out", str(SAMPLE.parent.parent / "tests"), "--train", "2"], "something else")
    fails(capsys, [*command[:-1], "0"], "at least one image")
    fails(capsys, ["data", "shapes", "--out", str(tmp_path / "t"), "--object-size", "90", "40"], "object_size")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
