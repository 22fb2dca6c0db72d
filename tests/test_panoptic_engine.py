"""Training on panoptic files, panoptic quality of a model, and panoptic results from the command line."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import enliven, same, seeded
from PIL import Image
from torch import nn

from condinst_edu.blendmask import BasisModule, BlendMask, DeepLabBases
from condinst_edu.cli import run
from condinst_edu.condinst import BottomBranch, CondInst
from condinst_edu.datasets.coco_panoptic import PanopticDataset, PanopticFiles, PanopticWriter
from condinst_edu.datasets.shapes_coco import write_shapes
from condinst_edu.engine.checkpoint import load_model
from condinst_edu.engine.evaluate import evaluate, headline
from condinst_edu.engine.panoptic import draw_panoptic, named
from condinst_edu.engine.recipe import build_model
from condinst_edu.errors import UserError
from condinst_edu.panoptic import PanopticModel, evaluate_coco_panoptic
from condinst_edu.panoptic_models import UnifiedPanopticModel, panoptic_condinst
from condinst_edu.recipes import get_recipe

REAL = Path(os.environ.get("CONDINST_REAL", Path(__file__).resolve().parents[2] / "shared" / "real"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panoptic") / "shapes"
    write_shapes(folder, train=8, val=3, show_progress=False)
    return folder


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two iterations, by the command line."""
    out = tmp_path_factory.mktemp("panoptic") / "run"
    torch.manual_seed(0)
    options = ["--data", str(shapes), "--out", str(out), "--iterations", "2", "--batch-size", "4", "--eval-every", "2"]
    assert run(["train", "shapes-panoptic-condinst", *options]) == 0
    return out


def test_training_learns_and_scores_stuff(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert {"class", "box", "centerness", "mask", "stuff"} <= lines[0].keys()
    scores = json.loads((trained / "result.json").read_text())
    assert lines[-1]["PQ"] == pytest.approx(scores["All"]["pq"], abs=1e-3)
    assert set(scores) == {"All", "Things", "Stuff", "per_class"}
    assert (trained / "best.safetensors").exists()
    stored = load_model(trained / "model.safetensors")
    assert isinstance(stored.model, PanopticModel)
    assert (len(stored.category_ids), stored.model.num_things) == (9, 5)


class Oracle(nn.Module):
    """Says what the truth is, in the images' order, with one thing less and labels for categories."""

    def __init__(self, dataset: PanopticDataset, leave_out: int) -> None:
        super().__init__()
        self.dataset, self.leave_out, self.next = dataset, leave_out, 0

    def forward(self, images: Any, output_sizes: Any) -> list[dict[str, Any]]:
        truth = self.dataset.files[self.dataset.image_ids[self.next]]
        self.next += 1
        kept = [s for s in truth["segments_info"] if s["id"] != self.leave_out]
        rows = [{**s, "category_id": self.dataset.category_ids.index(s["category_id"]) + 1} for s in kept]
        panoptic = truth["panoptic"].masked_fill(truth["panoptic"] == self.leave_out, 0)
        return [{"panoptic": panoptic, "segments_info": rows}]


def open_val(folder: Path) -> PanopticDataset:
    return PanopticDataset(folder / "val", folder / "annotations" / "panoptic_val.json", folder / "panoptic_val")


def test_quality_of_a_model_is_that_of_its_files(shapes: Path, tmp_path: Path) -> None:
    dataset = open_val(shapes)
    assert headline(evaluate(Oracle(dataset, 0), dataset, progress=False)) == 1
    scores = evaluate(Oracle(dataset, 1), dataset, progress=False)
    assert 0.3 < headline(scores) < 1
    oracle = Oracle(dataset, 1)
    with PanopticWriter(tmp_path / "found.json") as writer:
        for image_id in dataset.image_ids:
            writer.add(dataset.files.images[image_id], named(oracle([], [])[0], dataset.category_ids))
    annotations = shapes / "annotations" / "panoptic_val.json"
    by_files = evaluate_coco_panoptic(annotations, tmp_path / "found.json", shapes / "panoptic_val")
    assert {k: scores[k] for k in ("All", "Things", "Stuff")} == {k: by_files[k] for k in ("All", "Things", "Stuff")}
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    assert scores["per_class"] == {names[k]: v for k, v in by_files["per_class"].items()}


def test_evaluate_command(trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, out = str(trained / "model.safetensors"), tmp_path / "scores.json"
    assert run(["evaluate", weights, "--panoptic", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == json.loads((trained / "result.json").read_text())
    assert "Stuff" in capsys.readouterr().out
    assert run(["evaluate", weights]) == 2
    assert "is a panoptic file: --panoptic scores it" in capsys.readouterr().err
    assert run(["evaluate", weights, "--annotations", "annotations/instances_val.json"]) == 0  # AP of its instances
    assert "mask" in capsys.readouterr().out
    moved = ["--annotations", "annotations/panoptic_val.json", "--segments", "panoptic_val"]
    assert run(["evaluate", weights, "--panoptic", *moved]) == 0
    capsys.readouterr()
    plain = ["--annotations", "annotations/instances_val.json", "--segments", "panoptic_val"]
    assert run(["evaluate", weights, *plain]) == 2
    assert capsys.readouterr().err == "condinst-edu: --segments are those of panoptic annotations: it needs --panoptic\n"
    assert run(["evaluate", weights, "--panoptic", "--annotations", "annotations/panoptic_val.json"]) == 2
    assert "does not exist or is no folder" in capsys.readouterr().err


def test_predict_command(trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = sorted((shapes / "val").iterdir())
    arguments = ["predict", *map(str, photographs), "--weights", str(trained / "model.safetensors"), "--out"]
    assert run([*arguments, str(tmp_path / "a"), "--panoptic"]) == 0
    files = PanopticFiles(tmp_path / "a" / "panoptic.json", truth=True)
    assert (len(files.image_ids), sum(files.isthing.values()), len(files.isthing)) == (3, 5, 9)
    for k, path in enumerate(photographs, start=1):
        assert Image.open(tmp_path / "a" / path.name).size == (128, 128)
        ids = set(files[k]["panoptic"].unique().tolist()) - {0}
        assert ids == {s["id"] for s in files[k]["segments_info"]}
    assert run([*arguments, str(tmp_path / "b")]) == 0  # its instances alone
    assert (tmp_path / "b" / "results.json").exists()
    assert run(["predict", str(photographs[0]), "--panoptic", "--weights", str(tmp_path / "none")]) == 2
    capsys.readouterr()


def test_models_without_stuff_are_refused(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from condinst_edu.teach.tiny import tiny_folder

    weights = str(tiny_folder() / "fcos.safetensors")
    assert run(["evaluate", weights, "--data", str(shapes), "--panoptic"]) == 2
    assert "this model finds instances alone: --panoptic needs one" in capsys.readouterr().err
    photograph = next((shapes / "val").iterdir())
    assert run(["predict", str(photograph), "--weights", weights, "--panoptic", "--out", str(tmp_path)]) == 2
    assert "this model finds instances alone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------- the model's form


def test_bottom_branch_can_pass_over_a_level() -> None:
    torch.manual_seed(0)
    branch = BottomBranch(6, 2, 8, 5, 1, first=1).double().eval()
    pyramid = [torch.randn(1, 6, 32 >> i, 48 >> i, generator=seeded(i), dtype=torch.float64) for i in range(4)]
    plain = BottomBranch(6, 2, 8, 5, 1).double().eval()
    plain.load_state_dict(branch.state_dict())
    same(branch(pyramid), plain(pyramid[1:]))
    with pytest.raises(ValueError, match="takes 3 levels of 2"):
        CondInst(3, backbone="tiny", channels=16, levels=(3, 4, 5), ranges=(32, 64), bottom={"first": 1})


@pytest.mark.parametrize("basis_module", ["proto", "deeplab"])
def test_bases_can_pass_over_a_level(basis_module: Any) -> None:
    torch.manual_seed(0)
    modules: dict[str, Any] = {"proto": BasisModule, "deeplab": DeepLabBases}
    module, plain = (modules[basis_module](6, 4, 2, 8, first=first).double().eval() for first in (1, 0))
    plain.load_state_dict(module.state_dict())
    pyramid = [torch.randn(1, 6, 32 >> i, 48 >> i, generator=seeded(i), dtype=torch.float64) for i in range(4)]
    same(module(pyramid), plain(pyramid[1:]))
    with pytest.raises(ValueError, match="the bases take 3 levels of 2"):
        BlendMask(3, backbone="tiny", channels=16, levels=(3, 4, 5), ranges=(32, 64), bases={"first": 1})


def test_full_size_model_is_that_of_the_paper() -> None:
    """Masks at 1/4 from a bottom branch on P3, stuff at 1/4 from P2..P5, 54 classes of COCO beside 80 of things."""
    model = panoptic_condinst(backbone_options={"weights": None})
    condinst: Any = model.instances
    assert (model.stride, model.mask_stride, condinst.stride) == (4, 4, 8)
    assert condinst.fcos.strides == (8, 16, 32, 64, 128)
    branch: Any = model.branch
    assert branch.logits.weight.shape == (54, 4 * 256, 1, 1)
    assert (model.weight, model.min_score, model.max_lost, model.min_stuff) == (0.5, 0.45, 0.4, 4096)
    assert condinst.fcos.head.class_logits.out_channels == 80
    plain = sum(p.numel() for p in CondInst(80, backbone_options={"weights": None}).parameters())
    # P2's lateral and output convolution, and the branch
    more = 256 * 256 + 256 + 256 * 256 * 9 + 256 + 54 * 1024 + 54
    assert sum(p.numel() for p in model.parameters()) == plain + more


def test_unified_model_reads_out_the_largest_logit() -> None:
    """Pixel by pixel: the largest of the stuff's logits and those of the instances that are sure enough."""

    class Fixed(nn.Module):
        def forward(self, images: Any, output_sizes: Any) -> list[dict[str, Any]]:
            return [{**results, "panoptic_logits": logits}]

    logits = torch.randn(5, 9, 14, generator=seeded(0))  # two classes of stuff, three instances
    results = {"labels": torch.tensor([2, 1, 2]), "scores": torch.tensor([0.9, 0.6, 0.3])}
    model = UnifiedPanopticModel(Fixed(), num_things=3, stride=1, min_stuff=30).eval()
    (found,) = model([torch.zeros(3, 9, 14)])
    assert "panoptic_logits" not in found
    expected = torch.zeros(9, 14, dtype=torch.int64)
    for y, x in np.ndindex(9, 14):
        best = int(logits[:4, y, x].argmax())  # the third instance does not compete
        expected[y, x] = {2: 1, 3: 2, 0: 3, 1: 4}[best]  # things come first
    areas = expected.flatten().bincount().tolist()
    rows = [(1, 2, 1), (2, 1, 1), (3, 4, 0), (4, 5, 0)]
    kept = [row for row in rows if row[2] or areas[row[0]] >= 30]
    assert [(s["category_id"], s["isthing"]) for s in found["segments_info"]] == [row[1:] for row in kept]
    for segment, row in zip(found["segments_info"], kept, strict=True):
        assert torch.equal(found["panoptic"] == segment["id"], expected == row[0])
        assert segment["area"] == areas[row[0]]


def test_unified_model_by_the_command_line(shapes: Path, tmp_path: Path) -> None:
    """DR1Mask's panoptic layer learns from panoptic files and is scored like the others."""
    out = ["--data", str(shapes), "--out", str(tmp_path / "run"), "--iterations", "2", "--batch-size", "4"]
    assert run(["train", "shapes-panoptic-dr1mask", *out]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert "panoptic" in lines[0]
    stored = load_model(tmp_path / "run" / "model.safetensors").model
    assert isinstance(stored, UnifiedPanopticModel)
    assert stored.num_things == 5
    assert json.loads((tmp_path / "run" / "result.json").read_text())["All"]["n"] > 0


def test_unified_model_hands_on_things_and_stuff() -> None:
    """What DR1Mask gets is the things' masks and a map of stuff, 0 for things and void; its losses are its own."""
    torch.manual_seed(0)
    recipe = get_recipe("shapes-panoptic-dr1mask")
    model: Any = build_model(recipe.model, 9, recipe.model_args).train()
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, 10:40, 10:50], masks[1, 40:60, :], masks[2, :10, :] = True, True, True
    boxes = torch.tensor([[10.0, 10, 50, 40], [0, 40, 96, 60], [0, 0, 96, 10]])
    target = {"masks": masks, "boxes": boxes, "labels": torch.tensor([2, 7, 9])}
    stuff = masks[1] * 2 + masks[2] * 4  # classes 7 and 9 of 5 + 4
    own = {"masks": masks[:1], "boxes": boxes[:1], "labels": torch.tensor([2]), "stuff": stuff}
    image = torch.rand(3, 64, 96, generator=seeded(0))
    losses, expected = model([image], [target]), model.instances([image], [own])
    assert losses.keys() == expected.keys() >= {"loss_panoptic", "loss_mask"}
    for name in losses:
        same(losses[name], expected[name], 1e-6)


def test_adaptis_by_the_command_line(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--data", str(shapes), "--out", str(tmp_path / "run"), "--iterations", "2", "--batch-size", "2"]
    assert run(["train", "shapes-panoptic-adaptis", *out, "--set", "limit=3"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"mask", "semantic"} <= lines[0].keys()
    weights = str(tmp_path / "run" / "model.safetensors")
    assert run(["evaluate", weights, "--panoptic"]) == 0
    photograph = str(next((shapes / "val").iterdir()))
    assert run(["predict", photograph, "--weights", weights, "--panoptic", "--out", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / "panoptic.json").exists()
    capsys.readouterr()


def test_model_arguments_are_checked() -> None:
    recipe = get_recipe("shapes-panoptic-condinst")
    model = build_model(recipe.model, 9, recipe.model_args)
    assert isinstance(model, PanopticModel)
    summing = build_model(recipe.model, 9, {**recipe.model_args, "branch": {"form": "sum", "channels": 32}})
    assert len(summing.get_submodule("branch.scales")._modules) == 4
    with pytest.raises(UserError, match="panoptic-condinst has no argument 'stufff'"):
        build_model(recipe.model, 9, {"stufff": 3})


# -------------------------------------------------------------------------------------------------- COCO's photographs


def test_photographs_are_learned_predicted_and_drawn(tmp_path: Path) -> None:
    folder = REAL / "coco_panoptic2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (set CONDINST_REAL)")
    files = ["--train-json", "annotations/panoptic.json", "--val-json", "annotations/panoptic.json"]
    files += ["--train-panoptic", "panoptic", "--val-panoptic", "panoptic", "--train-images", "images"]
    files += ["--val-images", "images", "--set", "num_things=80", "--short-sides", "128", "--max-size", "256"]
    size = ["--iterations", "1", "--batch-size", "2", "--test-short-side", "128"]
    data = ["--data", str(folder), "--out", str(tmp_path / "run")]
    assert run(["train", "shapes-panoptic-condinst", *data, *files, *size]) == 0
    weights = str(tmp_path / "run" / "model.safetensors")
    photographs = [str(path) for path in sorted((folder / "images").iterdir())]
    assert run(["predict", *photographs, "--weights", weights, "--panoptic", "--out", str(tmp_path / "found")]) == 0
    assert len(PanopticFiles(tmp_path / "found" / "panoptic.json", truth=True).isthing) == 133
    assert run(["evaluate", weights, "--panoptic"]) == 0


def test_drawing_shows_every_segment() -> None:
    ids = torch.zeros(40, 70, dtype=torch.int64)
    ids[:20], ids[20:, :35] = 5, 9
    rows = [
        {"id": 5, "category_id": 1, "isthing": 1, "score": 0.75},
        {"id": 9, "category_id": 4, "isthing": 0, "score": None},
    ]
    image = torch.full((3, 40, 70), 100, dtype=torch.uint8)
    picture = np.asarray(draw_panoptic(image, {"panoptic": ids, "segments_info": rows}, {1: "cat", 4: "sky"}))
    assert picture.shape == (40, 70, 3)
    corners = [tuple(picture[y, x]) for y, x in ((0, 0), (39, 0), (39, 69))]
    assert len(set(corners)) == 3
    assert corners[2][0] == corners[2][1] == corners[2][2]  # void is grey
    assert (picture[:20] > 200).all(axis=-1).any()  # a name is written
    nothing = {"panoptic": torch.zeros(40, 70, dtype=torch.int64), "segments_info": []}
    assert np.unique(np.asarray(draw_panoptic(image, nothing, {}))).size == 1


def test_enlivened_tiny_model_finds_both_kinds(shapes: Path) -> None:
    recipe = get_recipe("shapes-panoptic-condinst")
    torch.manual_seed(0)
    model = build_model(recipe.model, 9, {**recipe.model_args, "fusion": {"min_stuff": 5, "min_score": 0.5}}).eval()
    enliven(model, seeded(1))
    with torch.no_grad():
        results = model([image / 255 for image, _ in (open_val(shapes)[k] for k in range(3))])
    kinds = {s["isthing"] for result in results for s in result["segments_info"]}
    assert kinds == {0, 1}
