"""Which official models there are, what their files must hold, and the way from a file to a photograph's masks."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import official_file, official_json
from official_model import official_state, weight
from PIL import Image
from test_engine import tiny_recipe

from condinst_edu.cli import run
from condinst_edu.engine.checkpoint import load_model
from condinst_edu.engine.recipe import build_model
from condinst_edu.engine.train import train
from condinst_edu.errors import UserError
from condinst_edu.official import (
    CLASSIFIERS,
    COCO,
    NO_WEIGHTS,
    begin_with,
    convert_state,
    fetch,
    find_official,
    load_official,
    official_models,
    official_recipe,
    open_official,
    read_pth,
)
from condinst_edu.official_names import official_shapes
from condinst_edu.recipes import RECIPES, get_recipe

NAME = "FCOS_R_50_1x"
SEMANTIC = "CondInst_MS_R_50_3x_sem"


def bare(name: str, num_classes: int = 80) -> Any:
    """The model without memory for its weights."""
    recipe = official_recipe(find_official(name))
    with torch.device("meta"):
        return build_model(recipe.model, num_classes, recipe.model_args)


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CondInst_MS_R_50_1x", "CondInst_MS_R_50_1x"),
        ("CondInst/MS_R_50_3x_sem", "CondInst_MS_R_50_3x_sem"),
        ("configs/CondInst/MS_R_50_BiFPN_1x.yaml", "CondInst_MS_R_50_BiFPN_1x"),
        ("FCOS-Detection/R_50_1x.yaml", "FCOS_R_50_1x"),
        ("FCOS_RT_MS_DLA_34_4x_shtw", "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers"),
        ("FCOS-Detection/FCOS_RT/MS_R_50_4x_syncbn_bn_head", "FCOS_RT_MS_R_50_4x_syncbn_bn_head"),
        ("BlendMask/R_101_dcni3_5x.yaml", "BlendMask_R_101_dcni3_5x"),
        ("550_R_50_3x", "BlendMask_550_R_50_3x"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert find_official(name).name == expected


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"no official model 'CondInst_R_50_1x': near are .*CondInst_MS_R_50_1x"):
        find_official("CondInst_R_50_1x")
    with pytest.raises(UserError, match=r"no official model 'yolo' \(condinst-edu weights lists them all\)$"):
        load_official("yolo")
    with pytest.raises(UserError) as error:  # capitals aside, and each model once, though its path is near, too
        find_official("blendmask/r_50_2x")
    near = re.search(r": near are (.+) \(condinst-edu", str(error.value))[1].split(", ")  # type: ignore[index]
    assert {"BlendMask_R_50_1x", "BlendMask_R_50_3x"} <= set(near)
    assert len(near) == len(set(near)) == 3
    assert {find_official(name).name for name in near} == set(near)


def test_the_table_is_the_published_one() -> None:
    """Every model of the three families, with its repository, file, speed and AP, but for those out of scope."""
    rows = [row.split("\t") for row in official_file("published.tsv").read_text().splitlines()[1:]]
    table = {(model.repository, model.file): model for model in official_models()}
    published = {}
    for name, config, repository, file, figures in rows:
        if not any(word in name for word in ("X_101", "iou", "MEInst", "totaltext", "BoxInst", "?")):
            published[repository, file] = (name, config, figures)
    assert table.keys() == published.keys()
    for key, (name, config, figures) in published.items():
        model = table[key]
        assert name in (model.name, model.alias)
        assert model.config.endswith(config)
        assert figures.split(" / ")[:3] == [f"{model.fps} FPS", *filter(None, (model.box_ap, model.mask_ap))]
        assert model.licence == "non-commercial"
    names = [key for model in official_models() for key in {model.name, model.alias} - {""}]
    assert len(set(names)) == len(names)


def test_sizes_in_the_table() -> None:
    for model in official_models():
        count = sum(
            int(np.prod(shape)) for key, (_, shape) in official_shapes(bare(model.name)).items() if "running" not in key
        )
        assert float(model.parameters) == pytest.approx(count / 1e6, abs=0.051), model.name


def test_classes_are_cocos() -> None:
    assert len(COCO) == 80
    assert list(COCO) == sorted(COCO)
    assert set(range(1, 91)) - set(COCO) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert (COCO[1], COCO[44], COCO[62], COCO[90]) == ("person", "bottle", "chair", "toothbrush")


# ------------------------------------------------------------------------------------------------------------ tensors

MANIFESTS = {
    "FCOS_R_50_1x": ["FCOS_R_50_1x", "FCOS_MS_R_50_2x"],
    "FCOS_MS_R_101_2x": ["FCOS_MS_R_101_2x"],
    "CondInst_MS_R_50_1x": ["CondInst_MS_R_50_1x", "CondInst_MS_R_50_3x"],
    "CondInst_MS_R_50_3x_sem": ["CondInst_MS_R_50_3x_sem"],
    "CondInst_MS_R_101_3x": ["CondInst_MS_R_101_3x"],
    "CondInst_MS_R_50_BiFPN_1x": ["CondInst_MS_R_50_BiFPN_1x", "CondInst_MS_R_50_BiFPN_3x"],
    "CondInst_MS_R_50_BiFPN_3x_sem": ["CondInst_MS_R_50_BiFPN_3x_sem"],
    "BlendMask_R_50_1x": ["BlendMask_R_50_1x", "BlendMask_R_50_3x"],
    **{
        name: [name]
        for name in (
            "FCOS_RT_MS_DLA_34_4x_syncbn",
            "FCOS_RT_MS_DLA_34_4x_syncbn_bn_head",
            "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers",
            "FCOS_RT_MS_R_50_4x_syncbn",
            "FCOS_RT_MS_R_50_4x_syncbn_bn_head",
            "BlendMask_DLA_34_syncbn_4x",
            "BlendMask_R_101_dcni3_5x",
            "BlendMask_RT_R_50_4x_syncbn_shtw",
        )
    },
}


@pytest.mark.parametrize(("manifest", "name"), [(m, name) for m, names in MANIFESTS.items() for name in names])
def test_every_tensor_has_its_place(manifest: str, name: str) -> None:
    """Ours and the official tensors are the same, by name and shape, one to one."""
    expected = {key: tuple(shape) for key, shape, _ in official_json(f"manifest_{manifest}.json")}
    shapes = official_shapes(bare(name))
    assert {key: shape for key, (_, shape) in shapes.items()} == {
        key: shape for key, shape in expected.items() if not NO_WEIGHTS.search(key)
    }


def test_models_without_a_manifest() -> None:
    """They are put together from models that have one."""

    def names(name: str) -> set[str]:
        return set(official_shapes(bare(name)))

    semantic = names("CondInst_MS_R_50_3x_sem") - names("CondInst_MS_R_50_3x")
    assert {key.split(".")[1] for key in semantic} == {"seg_head", "logits"}
    assert names("CondInst_MS_R_101_3x_sem") == names("CondInst_MS_R_101_3x") | semantic
    deep = {key for key in names("CondInst_MS_R_101_3x") - names("CondInst_MS_R_50_3x")}
    deep = {key.replace("bottom_up.", "bottom_up.backbone.") for key in deep}
    assert names("CondInst_MS_R_101_BiFPN_3x") == names("CondInst_MS_R_50_BiFPN_3x") | deep
    assert names("CondInst_MS_R_101_BiFPN_3x_sem") == names("CondInst_MS_R_101_BiFPN_3x") | semantic
    shared = names("FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers_bn_head")
    norms = {key for key in names("FCOS_RT_MS_DLA_34_4x_syncbn_bn_head") if "bbox_tower" in key}
    assert {key for key in shared if "tower" in key} == {key.replace("bbox", "share") for key in norms}

    deep = names("FCOS_MS_R_101_2x") - names("FCOS_R_50_1x")
    assert names("BlendMask_R_101_3x") == names("BlendMask_R_50_1x") | deep
    quick = names("BlendMask_RT_R_50_4x_syncbn_shtw")
    norms = {key for key in names("FCOS_RT_MS_R_50_4x_syncbn_bn_head") if re.search(r"bbox_tower\.[147]\.", key)}
    towers = {key for key in quick if re.search(r"share_tower\.\d\.", key)}
    per_level = names("BlendMask_RT_R_50_4x_bn-head_syncbn_shtw")
    assert per_level - quick == {key.replace("bbox", "share") for key in norms}
    assert {key for key in towers if re.search(r"\.[147]\.", key)} == quick - per_level
    assert quick ^ names("BlendMask_550_R_50_3x") == {f"backbone.top_block.p6.{kind}" for kind in ("weight", "bias")}


def empty_state(name: str) -> dict[str, Any]:
    return {key: torch.empty(shape, device="meta") for key, (_, shape) in official_shapes(bare(name)).items()}


def test_names_every_tensor_that_does_not_fit() -> None:
    state = empty_state(NAME)
    head = "proposal_generator.fcos_head."
    for key in ("backbone.bottom_up.res4.5.conv2.norm.running_var", head + "scales.3.scale", head + "ctrness.bias"):
        del state[key]
    state["mask_branch.refine.0.0.weight"] = torch.zeros(1)
    state[head + "cls_logits.weight"] = torch.zeros(20, 256, 3, 3)
    state[head + "bbox_pred.bias"] = "text"
    with pytest.raises(UserError) as error:
        convert_state(state, bare(NAME), "file.pth", NAME)
    sentence = str(error.value)
    assert sentence.startswith("file.pth is no checkpoint of FCOS_R_50_1x: ")
    for part in (
        "backbone.bottom_up.res4.5.conv2.norm.running_var is missing",
        head + "scales.3.scale is missing",
        head + "ctrness.bias is missing",
        "mask_branch.refine.0.0.weight is unexpected",
        head + "cls_logits.weight has shape (20, 256, 3, 3) instead of (80, 256, 3, 3)",
        head + "bbox_pred.bias is no tensor",
    ):
        assert part in sentence
    assert sentence.count(", ") == 5 + 6  # six tensors; the rest is inside the shapes
    assert "\n" not in sentence


def test_takes_what_released_files_hold_beside_the_weights() -> None:
    """Old spelling, constants that were saved for a while, counters; half precision becomes single."""
    state = empty_state(SEMANTIC)
    for key in [key for key in state if ".ctrness." in key]:
        state[key.replace("ctrness", "centerness")] = state.pop(key).half()
    state |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1), "mask_head._iter": torch.zeros(1)}
    state |= {"mask_head.sizes_of_interest": torch.zeros(5)}
    state |= {"backbone.bottom_up.stem.conv1.norm.num_batches_tracked": torch.tensor(0)}
    model = bare(SEMANTIC)
    converted = convert_state(state, model, "file.pth", SEMANTIC)
    assert converted.keys() == model.state_dict().keys()
    assert converted["fcos.head.centerness.weight"].dtype == torch.float32


def test_what_goes_into_the_weights() -> None:
    """Red, green, blue in the first convolution; the signs of the mask heads' weights on x and y; nothing else."""
    model = bare("CondInst_MS_R_50_1x")
    shapes = official_shapes(model)
    changed = {"fcos.backbone.stem.0.weight", "fcos.head.top.weight", "fcos.head.top.bias"}
    state = {
        key: weight(key, shape) if ours in changed | {"fcos.head.scales"} else torch.zeros(shape)
        for key, (ours, shape) in shapes.items()
    }
    ours = convert_state(state, model, "file.pth", "CondInst_MS_R_50_1x")
    assert torch.equal(ours["fcos.backbone.stem.0.weight"], state["backbone.bottom_up.stem.conv1.weight"][:, [2, 1, 0]])
    assert ours["fcos.head.scales"].tolist() == [
        state[f"proposal_generator.fcos_head.scales.{level}.scale"].item() for level in range(5)
    ]
    for kind in ("weight", "bias"):
        for row, (a, b) in enumerate(zip(ours[f"fcos.head.top.{kind}"], state[f"controller.{kind}"], strict=True)):
            coordinate = row < 80 and row % 10 < 2  # w1 is (8, 10), row-major; x and y come first
            assert torch.equal(a, -b if coordinate else b)


# -------------------------------------------------------------------------------------------------------------- files


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_official(NAME, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"model": Bomb()}))
    torch.save({"model": Bomb()}, tmp_path / "bomb2.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    for name in ("text", "bomb", "bomb2"):
        with pytest.raises(UserError, match=f"{name}.pth cannot be read as tensors and plain data"):
            load_official(NAME, tmp_path / f"{name}.pth")
    assert not (tmp_path / "exploded").exists()
    for name in ("list", "empty"):
        with pytest.raises(UserError, match=f"{name}.pth holds no weights"):
            load_official(NAME, str(tmp_path / f"{name}.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pth")
    assert list(read_pth(tmp_path / "plain.pth")) == ["a"]
    with pytest.raises(UserError, match="num_classes is at least 1"):
        load_official(NAME, tmp_path / "plain.pth", num_classes=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file such as the authors': FCOS_R_50_1x with synthetic weights, and what the optimiser left."""
    folder = tmp_path_factory.mktemp("published")
    path = folder / "FCOS_R_50_1x.pth"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60000, 80000])
    leftovers = {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict(), "iteration": 89999}
    leftovers |= {"best": np.float64(38.7), "seen": np.int64(1440000)}
    torch.save({"model": official_state(NAME), **leftovers}, path)
    yield path
    shutil.rmtree(folder)


def test_open_official(checkpoint: Path) -> None:
    trained = open_official("FCOS-Detection/R_50_1x", checkpoint)
    assert not trained.model.training
    assert trained.category_ids == list(COCO)
    assert trained.class_names == list(COCO.values())
    assert (trained.recipe["test_short_side"], trained.recipe["max_size"]) == (800, 1333)


def test_another_class_list(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_official(NAME, checkpoint).state_dict()
    trained = open_official(NAME, checkpoint, num_classes=3)
    said = capsys.readouterr().err
    new = "head.class_logits.bias, head.class_logits.weight"
    assert said == f"FCOS_R_50_1x: all weights are kept but {new}, which are new for the classes\n"
    ours = trained.model.state_dict()
    for key, tensor in ours.items():
        assert torch.equal(tensor, whole[key]) != key.startswith("head.class_logits."), key
    assert ours["head.class_logits.weight"].shape == (3, 256, 3, 3)
    assert (trained.category_ids, len(trained.class_names)) == ([1, 2, 3], 3)
    model = trained.model.train()
    target = {"boxes": torch.tensor([[8.0, 8, 60, 50]]), "labels": torch.tensor([3])}
    assert all(torch.isfinite(loss) for loss in model([torch.rand(3, 64, 96)], [target]).values())


def test_both_classifiers_are_new() -> None:
    """The semantic task has one too."""
    old, new = (bare(SEMANTIC, classes).state_dict() for classes in (80, 3))
    assert {key for key in new if new[key].shape != old[key].shape} == {
        "fcos.head.class_logits.weight",
        "fcos.head.class_logits.bias",
        "semantic.2.weight",
        "semantic.2.bias",
    }


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (120, 170, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((340, 240)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_convert_and_predict(checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = tmp_path / "ours.safetensors"
    assert run(["convert", str(checkpoint), "--config", NAME, "--out", str(ours)]) == 0
    assert "ours.safetensors" in capsys.readouterr().out
    trained, direct = load_model(ours), load_official(NAME, checkpoint)
    assert (trained.category_ids, trained.class_names) == (list(COCO), list(COCO.values()))
    for key, tensor in direct.state_dict().items():
        assert torch.equal(tensor, trained.model.state_dict()[key])
    again = load_official(NAME, ours)
    image = torch.rand(3, 96, 128)
    with torch.no_grad():
        assert torch.equal(again([image])[0]["boxes"], direct([image])[0]["boxes"])
    with pytest.raises(UserError, match=r"ours.safetensors is no FCOS_MS_R_101_2x: its model has other arguments"):
        load_official("FCOS_MS_R_101_2x", ours)
    assert run(["predict", str(photo), "--weights", str(ours), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results
    assert {result["category_id"] for result in results} <= set(COCO)

    shutil.copy(photo, tmp_path / "out")
    annotations = {
        "images": [{"id": 7, "file_name": "photo.png", "height": 240, "width": 340}],
        "categories": [{"id": number, "name": name} for number, name in COCO.items()],
        "annotations": [
            {
                **{key: results[0][key] for key in ("bbox", "category_id")},
                **{"id": 1, "image_id": 7, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9]], "area": 40},
            }
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    words = [
        "--data",
        str(tmp_path),
        "--images",
        "out",
        "--annotations",
        "val.json",
        "--out",
        str(tmp_path / "ap.json"),
    ]
    assert run(["evaluate", str(ours), *words]) == 0
    assert json.loads((tmp_path / "ap.json").read_text())["box"]["AP"] > 0  # its own best box is the ground truth


def test_convert_refuses(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["--config", "FCOS_R_50"], "there is no official model 'FCOS_R_50'"),
        (["--config", "CondInst_MS_R_50_1x"], "controller.weight is missing"),
        (["--config", NAME, "--out", str(tmp_path / "x.pth")], "--out ends in .safetensors"),
    ):
        assert run(["convert", str(checkpoint), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_lists_the_official_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights"]) == 0
    text = capsys.readouterr().out
    for model in official_models():
        row = next((row for row in text.splitlines() if model.short in row.split()), "")
        assert all(word in row for word in (model.fps, model.box_ap, model.mask_ap, model.parameters))
        assert model.short.startswith(("FCOS_", "CondInst_", "BlendMask_"))
    assert "non-commercial" in text


def test_training_begins_with_trained_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same classes: all weights are taken; others: all but the classifier."""
    recipe = tiny_recipe(iterations=1)
    first = train(recipe, tmp_path / "a", show_progress=False)
    weights = tmp_path / "a" / "model.safetensors"
    words = ["--data", str(recipe.data), "--start", str(weights), "--lr", "0", "--iterations", "1", "--workers", "0"]
    assert run(["train", "shapes-condinst", *words, "--out", str(tmp_path / "b"), "--batch-size", "2"]) == 0
    second = load_model(tmp_path / "b" / "model.safetensors").model
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    capsys.readouterr()
    other = build_model(recipe.model, 9, recipe.model_args)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    begin_with(other, str(weights), [f"class {i}" for i in range(9)])
    assert "all weights are kept but fcos.head.class_logits.bias, fcos" in capsys.readouterr().err
    trained = first.state_dict()
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[key] if "class_logits" in key else trained[key]), key
    with pytest.raises(UserError, match="belongs to another model"):
        begin_with(bare(NAME), str(weights), ["a"])


# ---------------------------------------------------------------------------------------------------------------- hub


class Hub(BaseHTTPRequestHandler):
    """What the client asks of the hub for one file: commit and hash by HEAD, bytes by GET, from any place on."""

    files: dict[str, Path] = {}  # noqa: RUF012 (set by the test)
    requests: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        path = self.files.get(self.path)
        if path is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        start = int(self.headers["Range"].split("=")[1].split("-")[0]) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(data[start:])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A local server in the hub's place, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    Hub.files, Hub.requests = {}, []
    yield Hub
    server.shutdown()
    server.server_close()


def url(name: str) -> str:
    model = find_official(name)
    return f"/{model.repository}/resolve/main/{model.file}"


def test_fetch(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once from the hub, then from the cache, without a network too."""
    (tmp_path / "file").write_bytes(b"weights" * 1000)
    hub.files[url(NAME)] = tmp_path / "file"
    path = fetch(find_official(NAME))
    assert path.read_bytes() == (tmp_path / "file").read_bytes()
    assert [request.split()[0] for request in hub.requests] == ["HEAD", "HEAD", "GET"]
    assert fetch(find_official(NAME)) == path
    assert sum(request.startswith("GET") for request in hub.requests) == 1
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    assert fetch(find_official(NAME)) == path


def test_fetch_refuses(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot fetch tianzhi/AdelaiDet-FCOS/FCOS_R_50_1x.pth: .*404"):
        fetch(find_official(NAME))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as offline:
        load_official(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as unreachable:
        load_official(NAME)
    for error in (offline, unreachable):
        assert str(error.value) == (
            "cannot fetch tianzhi/AdelaiDet-FCOS/FCOS_R_50_1x.pth: the Hugging Face hub cannot be reached, "
            "and it is not in the cache; a file that you have is taken by its path"
        )


@pytest.mark.slow
def test_predict_from_the_hub(hub: type[Hub], checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    """The README's command, as a process of its own."""
    hub.files[url(NAME)] = checkpoint
    words = ["predict", str(photo), "--weights", f"official:{NAME}", "--out", str(tmp_path / "out")]
    code = "import sys; from condinst_edu.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())
    assert (tmp_path / "out" / "photo.png").is_file()
    assert len([r for r in hub.requests if r.startswith(f"GET {url(NAME)}")]) == 1


TINY = [name for name in RECIPES if name.startswith(("shapes-", "bacteria-")) and not name.endswith("-paper")]


@pytest.mark.parametrize("name", TINY)
def test_what_depends_on_the_classes_is_known_as_a_classifier(name: str) -> None:
    """Of every model: tensors whose shape follows the number of classes are new, and with them few others."""
    recipe = get_recipe(name)
    few, many = (build_model(recipe.model, classes, recipe.model_args).state_dict() for classes in (9, 10))
    differing = {key for key in few if few[key].shape != many[key].shape}
    new = {key for key in few if CLASSIFIERS.search(key)}
    assert differing
    assert differing <= new
    assert all("class_logits" in key for key in new - differing)
