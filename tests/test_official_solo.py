"""mmdetection's SOLO models against its numbers, and the way from a file to a photograph's masks."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_model import as_image
from PIL import Image
from pycocotools import mask as coco_mask
from solo_golden import DECOUPLED, LIGHT, SOLO, golden, golden_file, golden_json, mmdet_model, mmdet_state, mmdet_weight
from test_official import close, read_input, selection, statistics, training_batch
from torch import Tensor

from condinst_edu.cli import run
from condinst_edu.engine.checkpoint import load_model
from condinst_edu.engine.recipe import build_model
from condinst_edu.errors import UserError
from condinst_edu.layers.images import make_batch
from condinst_edu.official import COCO, convert_state, find_official, load_official, official_recipe, solo_models
from condinst_edu.official_solo import fetch_url, solo_shapes
from condinst_edu.solo import Outputs, exact_centers, points_nms, resize

NAMES = [SOLO, DECOUPLED, LIGHT]
SLOW = pytest.mark.slow

# What float32 may differ by, absolutely; beside it 1e-4 relatively.
TOLERANCES = {"input": 5e-4, "fpn": 5e-4, "cls_nms": 1e-4, "cls": 1e-3, "mask_prob": 1e-3, "mask": 2e-3}

Get = Callable[[str], Any]


@pytest.fixture(scope="module")
def get(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """Models with the golden weights by name, each built once."""
    models: dict[str, Any] = {}

    def model_of(name: str) -> Any:
        if name not in models:
            models[name] = mmdet_model(name, tmp_path_factory.mktemp("official"))
        return models[name].eval()

    yield model_of
    models.clear()


# ---------------------------------------------------------------------------------------------------------- inference


def network(model: Any, image: Tensor) -> tuple[Outputs, dict[str, Tensor]]:
    """Raw outputs of one image, and what the golden files hold of the network under mmdetection's names."""
    batch = make_batch([image], model.mean, model.std, model.divisor)
    pyramid = model.pyramid(batch.images)
    size = (batch.images.shape[2], batch.images.shape[3])
    outputs = model.head(model.split(pyramid, size))
    numbers = {"input": batch.images, **{f"fpn_p{level}": x for level, x in pyramid.items()}}
    names = ["mask"] if len(outputs.maps[0]) == 1 else ["maskx", "masky"]
    quarter = (size[0] // 4, size[1] // 4)
    for level, (logits, maps) in enumerate(zip(outputs.logits, outputs.maps, strict=True)):
        numbers[f"cls_{level}"] = logits
        numbers[f"cls_nms_{level}"] = points_nms(logits.sigmoid())
        for name, x in zip(names, maps, strict=True):
            numbers[f"{name}_{level}"] = x
            numbers[f"{name}_prob_{level}"] = resize(x.sigmoid(), quarter)
    return outputs, numbers


def check_network(
    numbers: dict[str, np.ndarray], ours: dict[str, Tensor], factor: float = 1, rtol: float = 1e-4
) -> int:
    """Everything that a golden file holds of a network's inside; returns how many tensors were compared."""
    compared = 0
    for key, expected in numbers.items():
        name = key.removesuffix("_ch").removesuffix("_stats")
        if name not in ours:
            continue
        plain = name.replace("maskx", "mask").replace("masky", "mask")
        tolerance = factor * next(value for prefix, value in TOLERANCES.items() if plain.startswith(prefix))
        if "prob" in name:
            tolerance = factor * TOLERANCES["mask_prob"]
        x = ours[name]
        if key.endswith("_stats"):
            ten = statistics(x)
            for i in range(10):
                close(f"{key}[{i}]", ten[i], expected[i], tolerance * (x.numel() if i == 2 else 1), rtol)
        elif key.startswith("cls_"):
            step = -(-x.shape[1] // expected.shape[1])
            close(key, x[:, ::step], expected, tolerance, rtol)
        elif "prob" in name:
            part = x[:, torch.from_numpy(numbers[f"{key}_index"]), ::4, ::4]
            close(key, part, expected, tolerance, rtol)
        elif name.startswith("fpn") and x.dtype == torch.float64:
            close(key, x[:, torch.from_numpy(numbers["fpn_channel_subset"][:3]), ::4, ::4], expected, tolerance, rtol)
        else:
            close(key, selection(numbers, key, x), expected, tolerance, rtol)
        compared += 1
    return compared


def check_detections(
    model: Any, outputs: Outputs, numbers: dict[str, np.ndarray], size: tuple[int, int], tight: float = 1
) -> None:
    """The candidates, which of them are large enough, and what is left in the end, in its order."""
    cells = model.find_cells(outputs, 0)
    starts = torch.tensor([0, 1600, 2896, 3472, 3728])
    assert (starts[cells.level] + cells.k).tolist() == numbers["cand_cell"].tolist()
    assert (cells.labels - 1).tolist() == numbers["cand_label"].tolist()
    assert cells.level.tolist() == numbers["cand_level"].tolist()
    close("score", cells.scores, numbers["cand_score"], 1e-4 * tight, 0)
    soft = model.draw_cells(outputs, 0, cells)
    area = (soft > 0.5).sum(dim=(1, 2))
    assert (area - torch.from_numpy(numbers["cand_area"])).abs().max() <= (4 if tight == 1 else 0)
    assert (area > torch.tensor(model.strides)[cells.level]).tolist() == numbers["cand_keep"].tolist()
    found, soft = model.detect(outputs, 0)
    chosen = torch.from_numpy(numbers["im0_cand"])
    assert (starts[found.level] + found.k).tolist() == numbers["cand_cell"][chosen].tolist()
    assert (found.labels - 1).tolist() == numbers["im0_labels"].tolist()
    close("scores", found.scores, numbers["im0_scores"], 3e-4 * max(tight, 1e-3), 0)  # theirs: Matrix NMS in float32
    expected = numbers["mask_scores_s4_top4"]
    step = soft.shape[1] // expected.shape[1]
    close("soft", soft[: len(expected), ::step, ::step], expected, 5e-4 * tight, 0)


def check_masks(result: dict[str, Tensor], numbers: dict[str, np.ndarray], rles: list[Any]) -> None:
    """The final masks, but for pixels that are as good as on the threshold."""
    assert (result["labels"] - 1).tolist() == numbers["im0_labels"].tolist()
    close("scores", result["scores"], numbers["im0_scores"], 3e-4, 0)
    near = torch.from_numpy(numbers["im0_near_half_1e-3"])
    areas = result["masks"].sum(dim=(1, 2))
    assert ((areas - torch.from_numpy(numbers["im0_mask_area"])).abs() <= near).all()
    expected = torch.stack([torch.from_numpy(coco_mask.decode(rle)).bool() for rle in rles])
    wrong = (result["masks"][: len(expected)] ^ expected).sum(dim=(1, 2))
    assert (wrong <= near[: len(expected)]).all()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools under numpy 2
@pytest.mark.parametrize("name", [SOLO, pytest.param(DECOUPLED, marks=SLOW), LIGHT])
@pytest.mark.parametrize("image", ["synthA", pytest.param("photo2_small", marks=SLOW)])
@torch.no_grad()
def test_inference(get: Get, name: str, image: str) -> None:
    """Pyramid, logits, maps, candidates, scores, labels and masks."""
    part = name == SOLO and image == "synthA"
    numbers = golden("mmdet_solo", f"infer_{name}_{image}.npz", part)
    facts = golden_json("mmdet_solo", f"infer_{name}_{image}.json", part)
    rgb, size = read_input(image)
    model = get(name)
    outputs, ours = network(model, as_image(rgb))
    assert check_network(numbers, ours) >= 16
    check_detections(model, outputs, numbers, size)
    (result,) = model([as_image(rgb)], output_sizes=[size])
    check_masks(result, numbers, facts["im0_rle"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_inference_in_float64(get: Get, name: str) -> None:
    """Where rounding cannot hide a difference; mean, coordinates and Matrix NMS are float32 there."""
    numbers = golden("mmdet_solo", f"infer64_{name}_synthA.npz")
    numbers["fpn_channel_subset"] = golden("mmdet_solo", f"infer_{name}_synthA.npz")["fpn_channel_subset"]
    rgb, size = read_input("synthA")
    model = get(name).double()
    try:
        outputs, ours = network(model, as_image(rgb, torch.float64))
        assert check_network(numbers, ours, 1e-5, 1e-7) >= 16
        check_detections(model, outputs, numbers, size, tight=1e-4)
    finally:
        model.float()


@pytest.mark.parametrize("name", [pytest.param(SOLO, marks=SLOW), pytest.param(DECOUPLED, marks=SLOW), LIGHT])
@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("lowthr", {"score_threshold": 0.02, "min_score": 0.01, "candidates": 150}),
        ("linear", {"score_threshold": 0.05, "kernel": "linear"}),
        ("none", {"score_threshold": 0.97}),
    ],
)
@torch.no_grad()
def test_settings(get: Get, name: str, variant: str, settings: dict[str, Any]) -> None:
    """More candidates than enter NMS and more results than are kept; the linear kernel; none at all.

    Among equal scores the order is open, and so is a candidate on a threshold: they are matched by their cells.
    """
    facts = golden_json("mmdet_solo", f"infer_{name}_synthA_{variant}.json")
    rgb, size = read_input("synthA")
    model = get(name)
    before = {key: getattr(model, key) for key in settings}
    for key, value in settings.items():
        setattr(model, key, value)
    outputs, _ = network(model, as_image(rgb))
    found, _ = model.detect(outputs, 0)
    (result,) = model([as_image(rgb)], output_sizes=[size])
    for key, value in before.items():
        setattr(model, key, value)
    if variant == "none":
        assert facts["n_final"] == len(found.scores) == len(result["masks"]) == 0
        assert (result["masks"].shape, result["masks"].dtype) == ((0, *size), torch.bool)
        return
    numbers = golden("mmdet_solo", f"infer_{name}_synthA_{variant}.npz")
    starts = torch.tensor([0, 1600, 2896, 3472, 3728])
    ours = {
        (cell, label): score
        for cell, label, score in zip(
            (starts[found.level] + found.k).tolist(),
            (found.labels - 1).tolist(),
            found.scores.tolist(),
            strict=True,
        )
    }
    chosen = numbers["im0_cand"]
    theirs = dict(
        zip(
            zip(numbers["cand_cell"][chosen].tolist(), numbers["im0_labels"].tolist(), strict=True),
            numbers["im0_scores"].tolist(),
            strict=True,
        )
    )
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, abs=3e-4)


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", [pytest.param(SOLO, marks=SLOW), pytest.param(DECOUPLED, marks=SLOW), LIGHT])
@pytest.mark.parametrize(
    "batch", ["A", pytest.param("wide", marks=SLOW), pytest.param("empty", marks=SLOW), "allempty"]
)
def test_training(get: Get, name: str, batch: str) -> None:
    """Both losses and all gradients; of two images, of a long one, with one that has no object, and without any."""
    table = golden_json("mmdet_solo", "train64.json")[f"{name}/{batch}"]  # has the float64 values of all batches
    images, targets = training_batch("A" if batch == "allempty" else batch)
    if batch == "allempty":
        targets = [{key: value[:0] for key, value in target.items()} for target in targets]
    model = get(name).train()
    model.zero_grad(set_to_none=True)
    losses = model(images, targets)
    sum(losses.values()).backward()
    expected = table["losses"]
    assert losses["loss_mask"].item() == pytest.approx(expected["loss_mask"], abs=1e-4)
    assert losses["loss_class"].item() == pytest.approx(expected["loss_cls"], abs=1e-4)
    parameters = dict(model.named_parameters())
    gradients = {
        theirs: parameters[ours].grad
        for theirs, (ours, _) in solo_shapes(model).items()
        if ours in parameters and parameters[ours].requires_grad
    }
    norms = {key: gradient.norm().item() for key, gradient in gradients.items()}  # of all: 0 is not None
    assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(table["grad_norm_total"], rel=2e-3)
    if batch in ("A", "empty"):
        expected = golden_json("mmdet_solo", f"train_{name}_{batch}.json")["grad_norms"]
        assert norms == pytest.approx(expected, rel=2e-2, abs=1e-6)
        assert {key for key, norm in norms.items() if not norm} == {key for key, norm in expected.items() if not norm}
    model.zero_grad(set_to_none=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_in_float64(get: Get, name: str) -> None:
    """Where rounding cannot hide a difference: losses, and the length of every gradient."""
    table = golden_json("mmdet_solo", "train64.json")[f"{name}/A"]
    images, targets = training_batch("A", torch.float64)
    model = get(name).double().train()
    try:
        model.zero_grad(set_to_none=True)
        losses = model(images, targets)
        sum(losses.values()).backward()
        norms = {
            theirs: parameter.grad.norm().item()
            for theirs, (ours, _) in solo_shapes(model).items()
            if (parameter := dict(model.named_parameters()).get(ours)) is not None and parameter.grad is not None
        }
    finally:
        model.zero_grad(set_to_none=True)
        model.float()
    assert losses["loss_mask"].item() == pytest.approx(table["losses"]["loss_mask"], abs=1e-7)
    assert losses["loss_class"].item() == pytest.approx(table["losses"]["loss_cls"], abs=1e-7)
    assert norms == pytest.approx(table["grad_norms"], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", [SOLO, LIGHT])
@pytest.mark.parametrize("batch", ["A", "empty"])
def test_training_targets(get: Get, name: str, batch: str) -> None:
    """Every cell's label and the mask of every positive, on all levels; exact."""
    numbers = golden("mmdet_solo", f"train_{name}_{batch}.npz")
    images, targets = training_batch(batch)
    model = get(name)
    padded = make_batch(images, model.mean, model.std, model.divisor).images
    centers = [exact_centers(target["masks"].bool()) for target in targets]
    for level in range(5):
        labels, truth = model.assign(level, centers, targets, (padded.shape[2], padded.shape[3]))
        masks = iter(truth)
        for i in range(len(images)):
            expected = torch.from_numpy(numbers[f"t_labels_{i}_{level}"]).flatten().long()
            assert labels[i].tolist() == torch.where(expected == 80, 0, expected + 1).tolist()
            places = numbers[f"t_pos_{i}_{level}"]
            assert sorted(places.tolist()) == labels[i].nonzero().flatten().tolist()
            shape = tuple(numbers[f"t_masks_{i}_{level}_shape"])
            bits = np.unpackbits(numbers[f"t_masks_{i}_{level}"], count=int(np.prod(shape))).reshape(shape)
            for n in np.argsort(places):
                assert torch.equal(next(masks), torch.from_numpy(bits[n]).bool())


# -------------------------------------------------------------------------------------------------------------- names


def bare(name: str) -> Any:
    """The model without memory for its weights."""
    recipe = official_recipe(find_official(name))
    with torch.device("meta"):
        return build_model(recipe.model, 80, recipe.model_args)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("solo_r50_fpn_3x_coco", "solo_r50_fpn_3x_coco"),
        ("configs/solo/decoupled-solo_r50_fpn_1x_coco.py", "decoupled-solo_r50_fpn_1x_coco"),
        ("decoupled_solo_light_r50_fpn_3x_coco", "decoupled-solo-light_r50_fpn_3x_coco"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert find_official(name).name == expected


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"no official model 'solo_r101_fpn_3x_coco': near are .*solo_r50_fpn_3x_coco"):
        find_official("solo_r101_fpn_3x_coco")


def test_the_table_is_the_published_one() -> None:
    rows = [row.split("\t") for row in golden_file("mmdet_solo", "published.tsv").read_text().splitlines()[1:]]
    assert {row[0] for row in rows} == {model.name for model in solo_models()}
    for name, config, path, ap, _, milliseconds, scale, _ in rows:
        model = find_official(name)
        assert (model.repository, model.file) == ("https://download.openmmlab.com", path)
        assert f"configs/{model.config}" == config
        assert model.mask_ap == ap
        assert float(model.fps) == pytest.approx(1000 / float(milliseconds), abs=0.05)
        recipe = official_recipe(model)
        assert f"({recipe.max_size}, {recipe.test_short_side})" == scale
        assert float(model.parameters) == pytest.approx(
            sum(p.numel() for p in bare(name).parameters()) / 1e6, abs=0.051
        )


@pytest.mark.parametrize("name", [model.name for model in solo_models()])
def test_every_tensor_has_its_place(name: str) -> None:
    manifest = {
        key: tuple(shape)
        for key, shape, _ in golden_json("mmdet_solo", f"manifest_{name}.json")
        if not key.endswith("num_batches_tracked")
    }
    model = bare(name)
    assert {key: shape for key, (_, shape) in solo_shapes(model).items()} == manifest
    index = golden_json("mmdet_solo", "index.json")
    facts = index[index[name]["same_model_as"] or name]
    theirs = {ours: key for key, (ours, _) in solo_shapes(model).items()}
    frozen = {theirs[key] for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == set(facts["frozen_parameters"])
    assert sum(p.numel() for p in model.parameters()) == facts["numel_parameters"]
    head = facts["head"]
    assert list(model.head.grids) == head["num_grids"]
    assert [list(r) for r in model.ranges] == head["scale_ranges"]
    assert list(model.strides) == head["strides"]


def test_the_synthetic_weights_are_the_golden_ones() -> None:
    facts = golden_json("mmdet_solo", "index.json")[SOLO]["fill_samples"]
    shapes = {key: tuple(shape) for key, shape, _ in golden_json("mmdet_solo", f"manifest_{SOLO}.json")}
    for key, (total, size) in facts.items():
        tensor = mmdet_weight(key, shapes[key]).double()
        assert tensor.sum().item() == pytest.approx(total, abs=1e-4)
        assert tensor.abs().sum().item() == pytest.approx(size, rel=1e-6)


def test_names_every_tensor_that_does_not_fit() -> None:
    state = mmdet_state(LIGHT)
    model = bare(SOLO)
    with pytest.raises(
        UserError, match=r"file is no checkpoint of it: .*conv_mask_list\.0\.weight is missing, .*_x\.0\.weight"
    ):
        convert_state(state, model, "file", "it")


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as the published ones: metadata beside an ordered dictionary that knows its versions."""
    path = tmp_path_factory.mktemp("solo") / "light.pth"
    model = torch.nn.Linear(1, 1)
    state = model.state_dict()  # an OrderedDict with _metadata
    state.clear()
    state.update(mmdet_state(LIGHT))
    meta = {"env_info": "sys.platform: linux", "seed": 0, "CLASSES": ("person",), "epoch": 36, "hook_msgs": {}}
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 85, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((340, 240)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_convert_and_predict(checkpoint: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = tmp_path / "ours.safetensors"
    assert run(["convert", str(checkpoint), "--config", LIGHT, "--out", str(ours)]) == 0
    assert f"holds {LIGHT}" in capsys.readouterr().out
    trained, direct = load_model(ours), load_official(LIGHT, checkpoint)
    assert trained.category_ids == list(COCO)
    assert (trained.recipe["test_short_side"], trained.recipe["max_size"]) == (512, 852)
    for key, tensor in direct.state_dict().items():
        assert torch.equal(tensor, trained.model.state_dict()[key])
    with pytest.raises(UserError, match="is no solo_r50_fpn_1x_coco: its model has other arguments"):
        load_official(SOLO, ours)
    assert run(["predict", str(photo), "--weights", str(ours), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results
    assert {result["category_id"] for result in results} <= set(COCO)
    for result in results:
        assert result["segmentation"]["size"] == [240, 340]


def test_another_class_list(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_official(LIGHT, checkpoint).state_dict()
    fresh = load_official(LIGHT, checkpoint, num_classes=3).state_dict()
    assert "head.class_logits.bias, head.class_logits.weight, which are new" in capsys.readouterr().err
    for key, tensor in fresh.items():
        assert torch.equal(tensor, whole[key]) != key.startswith("head.class_logits."), key


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "trapped",))

    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Trap()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="cannot be read as tensors and plain data"):
        load_official(SOLO, tmp_path / "bad.pth")
    assert not (tmp_path / "trapped").exists()


def test_weights_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights"]) == 0
    text = capsys.readouterr().out
    for model in solo_models():
        (row,) = [row for row in text.splitlines() if model.name in row.split()]
        assert all(word in row.split() for word in (model.fps, model.mask_ap, model.parameters))
    assert "Apache 2.0" in text


# --------------------------------------------------------------------------------------------------------------- host


class Host(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012 (set by the test)

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local server in the host's place, and an empty folder of downloads."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    Host.files = {}
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_fetch(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once from the host, then from the folder; a name with a sum is checked."""
    data = b"weights" * 1000
    right, wrong = (f"/solo-{digits}.pth" for digits in (hashlib.sha256(data).hexdigest()[:8], "00c0ffee"))
    Host.files = {right: data, wrong: data, "/plain.pth": data}
    path = fetch_url(host + right)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / right[1:]
    assert path.read_bytes() == data
    assert fetch_url(f"http://127.0.0.1:9{right}") == path  # nobody is there
    assert fetch_url(f"{host}/plain.pth").read_bytes() == data
    with pytest.raises(
        UserError, match=r"came with the SHA256 sum .*, expected 00c0ffee.*that you have is taken by its"
    ):
        fetch_url(host + wrong)
    with pytest.raises(UserError, match="the server answers 404"):
        fetch_url(f"{host}/missing.pth")
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["plain.pth", right[1:]])


def test_load_from_the_host(host: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`official:NAME` where the file has been fetched before."""
    model = find_official(LIGHT)
    assert model.file.endswith("-e70e226f.pth")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(checkpoint, folder / model.file.rpartition("/")[2])
    ours, direct = load_official(LIGHT).state_dict(), load_official(LIGHT, checkpoint).state_dict()
    assert all(torch.equal(ours[key], direct[key]) for key in direct)
