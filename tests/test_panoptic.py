"""Panoptic quality and fusion against panopticapi's numbers and loops over pixels; the semantic branch by steps."""

import copy
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN, ROOT, check_gradients, enliven, gradients, random_targets, same, seeded, tiny_condinst
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from condinst_edu.datasets.shapes_coco import id_colors
from condinst_edu.errors import UserError
from condinst_edu.layers import aligned_upsample, resize_masks
from condinst_edu.layers.upsample import resize_logits
from condinst_edu.panoptic import (
    Counts,
    PanopticModel,
    SemanticBranch,
    climb,
    count_overlaps,
    evaluate_coco_panoptic,
    fuse,
    match_segments,
    panoptic_quality,
    split_target,
    stuff_loss,
    stuff_segments,
)
from condinst_edu.papers import naive_condinst as naive

OFFICIAL = GOLDEN.parent / "panoptic"
DATA = ROOT / "tests" / "data" / "panoptic"  # a part of it: maps as runs, {"size", "ids", "lengths"}

# ----------------------------------------------------------------------------------------- quality against panopticapi


def unpack(runs: dict[str, Any]) -> NDArray[np.int32]:
    return np.repeat(np.array(runs["ids"], np.int32), runs["lengths"]).reshape(runs["size"])


def write_case(folder: Path, name: str, data: dict[str, Any]) -> Path:
    """A JSON file and its PNGs out of a packed case."""
    (folder / name).mkdir(parents=True)
    (folder / f"{name}.json").write_text(json.dumps(data))
    for file_name, runs in data["maps"].items():
        Image.fromarray(id_colors(unpack(runs))).save(folder / name / file_name)
    return folder / f"{name}.json"


def same_scores(scores: dict[str, Any], case: dict[str, Any]) -> None:
    """Equal to 1e-12; a group that panopticapi cannot average, since it has no class, is 0 with n = 0 here."""
    for group in ("All", "Things", "Stuff"):
        expected = case["result"].get(group, {"pq": 0, "sq": 0, "rq": 0, "n": 0})
        assert scores[group] == pytest.approx(expected, abs=1e-12), group
    assert scores["per_class"] == {int(k): pytest.approx(v, abs=1e-12) for k, v in case["per_class"].items()}


@pytest.mark.parametrize("case", json.loads((DATA / "pq.json").read_text()), ids=lambda case: case["name"])
def test_quality_against_panopticapi(case: dict[str, Any], tmp_path: Path) -> None:
    truth, found = (write_case(tmp_path, name, case[name]) for name in ("truth", "found"))
    if "error" in case:
        with pytest.raises(UserError, match=r"found\.json, image 1: "):
            evaluate_coco_panoptic(truth, found)
    else:
        same_scores(evaluate_coco_panoptic(truth, found), case)


def test_quality_against_panopticapi_on_photographs() -> None:
    """Every stored case, perturbed real annotations among them."""
    if not (OFFICIAL / "pq" / "results.json").is_file():
        pytest.skip(f"{OFFICIAL} is not there (set CONDINST_GOLDEN)")
    cases = json.loads((OFFICIAL / "pq" / "results.json").read_text())
    assert len(cases) >= 20
    for case in (c for c in cases if "error" not in c):
        truth, found = OFFICIAL / case["gt_json"], OFFICIAL / case["pred_json"]
        same_scores(evaluate_coco_panoptic(truth, found, truth.with_suffix(""), found.with_suffix("")), case)


def test_missing_and_extra_images(tmp_path: Path) -> None:
    case = next(c for c in json.loads((DATA / "pq.json").read_text()) if c["name"] == "syn_extra_image")
    truth, found = (write_case(tmp_path, name, case[name]) for name in ("truth", "found"))
    assert len(case["found"]["annotations"]) > len(case["truth"]["annotations"])  # the extra one is not looked at
    scores = evaluate_coco_panoptic(truth, found, tmp_path / "truth", tmp_path / "found")
    assert scores == evaluate_coco_panoptic(truth, found)
    found.write_text(json.dumps({"annotations": []}))
    with pytest.raises(UserError, match=r"found\.json has no segments of image 1\."):
        evaluate_coco_panoptic(truth, found)


def test_predictions_need_annotations_alone(tmp_path: Path) -> None:
    """Whatever else the file holds is not looked at, as in panopticapi; a true area that cannot be is said."""
    case = next(c for c in json.loads((DATA / "pq.json").read_text()) if c["name"] == "syn_iou_exact_half")
    truth, found = (write_case(tmp_path, name, case[name]) for name in ("truth", "found"))
    expected = evaluate_coco_panoptic(truth, found)
    found.write_text(json.dumps({"annotations": case["found"]["annotations"], "categories": [{}], "images": 7}))
    assert evaluate_coco_panoptic(truth, found) == expected
    for segment in case["truth"]["annotations"][0]["segments_info"]:
        segment["area"] = 0
    truth.write_text(json.dumps(case["truth"]))
    with pytest.raises(UserError, match=r"the area of the true segment \d+ is less than what is found of it"):
        evaluate_coco_panoptic(truth, truth, pred_folder=tmp_path / "truth")


# ----------------------------------------------------------------------------------------- quality against a plain loop


def random_panoptic(size: tuple[int, int], count: int, generator: torch.Generator, crowds: bool = False) -> Any:
    """Blocks of pixels in random order over each other; some of the map stays void."""
    panoptic = torch.zeros(size, dtype=torch.int64)
    ids = (torch.randperm(2**16, generator=generator)[:count] * 251 + 1).tolist()
    for i in ids:
        y, x = (int(torch.randint(side, (), generator=generator)) for side in size)
        panoptic[max(0, y - 4) : y + 5, max(0, x - 6) : x + 7] = i
    rows: list[dict[str, Any]] = []
    for i in ids:
        if area := int((panoptic == i).sum()):
            category = int(torch.randint(1, 5, (), generator=generator))
            rows.append({"id": i, "category_id": category, "area": area, "iscrowd": int(crowds and area % 4 == 0)})
    return {"panoptic": panoptic, "segments_info": rows}


def loop_matches(truth: Any, found: Any) -> dict[int, list[float]]:
    """[sum of IoU, TP, FP, FN] of each category from the definition, with sets of pixels."""

    def pixels(image: Any, i: int) -> set[int]:
        return {p for p, v in enumerate(image["panoptic"].flatten().tolist()) if v == i}

    counts: dict[int, list[float]] = {}
    void = pixels(truth, 0)
    true = {s["id"]: (s, pixels(truth, s["id"])) for s in truth["segments_info"]}
    hit: set[int] = set()
    for segment in found["segments_info"]:
        mine, category = pixels(found, segment["id"]), segment["category_id"]
        row = counts.setdefault(category, [0, 0, 0, 0])
        for i, (other, theirs) in true.items():
            iou = len(mine & theirs) / len((mine - void) | theirs)
            if other["category_id"] == category and not other["iscrowd"] and iou > 0.5:
                row[0], row[1] = row[0] + iou, row[1] + 1
                hit.add(i)
                break
        else:
            crowd = [theirs for s, theirs in true.values() if s["iscrowd"] and s["category_id"] == category][-1:]
            forgiven = void.union(*crowd)
            row[2] += len(mine & forgiven) * 2 <= len(mine)
    for i, (segment, _) in true.items():
        if i not in hit and not segment["iscrowd"]:
            counts.setdefault(segment["category_id"], [0, 0, 0, 0])[3] += 1
    return {category: row for category, row in counts.items() if sum(row[1:])}


@pytest.mark.parametrize("seed", range(12))
def test_matches_against_a_loop(seed: int) -> None:
    generator = seeded(seed)
    truth = random_panoptic((23, 37), 9, generator, crowds=True)
    found = copy.deepcopy(truth)
    found["panoptic"] = found["panoptic"].roll((seed % 3, -(seed % 4)), (0, 1))
    if seed % 2:  # some other segments over it
        other = random_panoptic((23, 37), 3, generator)
        found["panoptic"] = torch.where(other["panoptic"] > 0, other["panoptic"], found["panoptic"])
        found["segments_info"] += other["segments_info"]
        left = set(found["panoptic"].unique().tolist())
        unique = {s["id"]: s for s in found["segments_info"]}
        found["segments_info"] = [s for i, s in unique.items() if i in left]
    counts = match_segments(truth, found, dict.fromkeys(range(1, 5), True))
    expected = loop_matches(truth, found)
    assert set(counts) == set(expected)
    for category, row in expected.items():
        c = counts[category]
        assert [c.iou, c.tp, c.fp, c.fn] == pytest.approx(row)


def test_overlaps_against_a_loop() -> None:
    truth = torch.randint(0, 2**24, (4,), generator=seeded(0))[torch.randint(4, (9, 14), generator=seeded(1))]
    found = torch.randint(0, 2**24, (5,), generator=seeded(2))[torch.randint(5, (9, 14), generator=seeded(3))]
    expected: dict[tuple[int, int], int] = {}
    for pair in zip(truth.flatten().tolist(), found.flatten().tolist(), strict=True):
        expected[pair] = expected.get(pair, 0) + 1
    assert count_overlaps(truth, found) == expected


def test_quality_of_the_truth_itself_and_of_nothing() -> None:
    truth = random_panoptic((30, 20), 6, seeded(4))
    isthing = {1: True, 2: True, 3: False, 4: False, 5: True}
    scores = panoptic_quality([truth], [truth], isthing)
    assert scores["All"]["pq"] == scores["Stuff"]["sq"] == scores["Things"]["rq"] == 1
    assert scores["All"]["n"] == scores["Things"]["n"] + scores["Stuff"]["n"] == len(scores["per_class"])
    nothing: Any = {"panoptic": torch.zeros(30, 20, dtype=torch.int64), "segments_info": []}
    assert panoptic_quality([truth], [nothing], isthing)["All"] == {**scores["All"], "pq": 0, "sq": 0, "rq": 0}
    assert panoptic_quality([nothing], [nothing], isthing)["All"] == {"pq": 0, "sq": 0, "rq": 0, "n": 0}
    with pytest.raises(ValueError, match="what is found has 20 x 30 pixels, the truth 30 x 20"):
        panoptic_quality([truth], [{**nothing, "panoptic": nothing["panoptic"].mT}], isthing)
    with pytest.raises(ValueError, match="shorter"):
        panoptic_quality([truth], [], isthing)


def test_counts_add_up_before_the_ratio() -> None:
    """PQ is no mean over images: one match in one image and a miss in another are 2 / 3, not (1 + 0) / 2."""
    assert Counts(iou=0.9, tp=1, fn=1).quality() == {"pq": 0.9 / 1.5, "sq": 0.9, "rq": 1 / 1.5}
    one = {"panoptic": torch.ones(4, 5, dtype=torch.int64), "segments_info": [{"id": 1, "category_id": 7, "area": 20}]}
    nothing = {"panoptic": torch.zeros(4, 5, dtype=torch.int64), "segments_info": []}
    scores = panoptic_quality([one, one], [one, nothing], {7: 1})
    assert scores["per_class"][7]["pq"] == pytest.approx(2 / 3)


# -------------------------------------------------------------------------------------------------------------- fusion


def official_scenes() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    data = json.loads((DATA / "combine.json").read_text())
    return data, data["runs"]


def decode(rows: Sequence[Any], size: tuple[int, int]) -> Tensor:
    masks = [coco_mask.decode({**r["segmentation"], "counts": r["segmentation"]["counts"].encode()}) for r in rows]
    return torch.from_numpy(np.stack(masks)).bool() if rows else torch.zeros((0, *size), dtype=torch.bool)


def test_as_it_comes_stuff_below_64_by_64_pixels_is_void() -> None:
    """panopticapi's limit, and the same defaults in the model."""
    none = {"masks": torch.zeros(0, 70, 80, dtype=torch.bool), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    for size, kept in {(64, 64): 1, (63, 65): 0}.items():
        mask = torch.zeros(1, 70, 80, dtype=torch.bool)
        mask[0, : size[0], : size[1]] = True
        assert len(fuse(none, {"masks": mask, "labels": torch.tensor([3])})["segments_info"]) == kept
    function, model = (inspect.signature(f).parameters for f in (fuse, PanopticModel.__init__))
    for name, value in {"min_score": 0.45, "max_lost": 0.4, "min_stuff": 4096}.items():
        assert function[name].default == model[name].default == value


@pytest.mark.parametrize("run", official_scenes()[1], ids=lambda run: run["name"])
def test_fusion_against_panopticapi(run: dict[str, Any]) -> None:
    """Sequence of categories, areas and the partition of pixels; official ids are random."""
    data, _ = official_scenes()
    isthing = {c["id"]: c["isthing"] for c in data["categories"]}
    rows_of = {row["image_id"]: row for row in run.get("annotations", ())}
    for image in data["images"]:
        size = (image["height"], image["width"])
        things = [r for r in data["instances"] if r["image_id"] == image["id"]]
        stuff = [r for r in data["semantic"] if r["image_id"] == image["id"] and not isthing[r["category_id"]]]
        found = fuse(
            {
                "masks": decode(things, size),
                "labels": torch.tensor([r["category_id"] for r in things], dtype=torch.int64),
                "scores": torch.tensor([r["score"] for r in things], dtype=torch.float64),
            },
            {
                "masks": decode(stuff, size),
                "labels": torch.tensor([r["category_id"] for r in stuff], dtype=torch.int64),
            },
            min_score=run["confidence_thr"],
            max_lost=run["overlap_thr"],
            min_stuff=run["stuff_area_limit"],
        )
        summary = run["summary"][str(image["id"])]
        segments, panoptic = found["segments_info"], found["panoptic"]
        assert int((panoptic == 0).sum()) == summary["void"]
        # Official rows without a pixel (a covered instance at overlap_thr 1) are no segments here, and stuff that was
        # given twice, whose official rows share an id, is one.
        stuff_rows = [tuple(row) for row in summary["segments"] if not isthing[row[0]]]
        rows = [tuple(row) for row in summary["segments"] if isthing[row[0]] and row[1]]
        assert [(s["category_id"], s["area"]) for s in segments] == [*rows, *dict.fromkeys(stuff_rows)]
        assert [s["area"] for s in segments] == [int((panoptic == s["id"]).sum()) for s in segments]
        name = image["file_name"].replace(".jpg", ".png")
        if name in run.get("maps", ()):
            official = torch.from_numpy(unpack(run["maps"][name]))
            categories = {r["id"]: r["category_id"] for r in rows_of[image["id"]]["segments_info"]}
            same(as_partition(panoptic), as_partition(official))
            assert {s["id"]: s["category_id"] for s in segments} == {
                int(panoptic[official == i][0]): k for i, k in categories.items() if (official == i).any()
            }


def as_partition(ids: Tensor) -> Tensor:
    """Ids replaced by the order in which they appear, void by 0."""
    order = {0: 0}
    for i in ids.flatten().tolist():
        order.setdefault(i, len(order))
    return torch.tensor([order[i] for i in ids.flatten().tolist()]).view_as(ids)


@pytest.mark.parametrize(("seed", "count"), [(0, 0), (1, 1), (2, 6), (3, 30)])
def test_fusion_against_a_loop(seed: int, count: int) -> None:
    size = (26, 41)
    things = random_targets(count, size, seeded(seed)) if count else {"masks": torch.zeros(0, *size).bool()}
    things |= {"labels": torch.arange(count) % 3 + 1, "scores": torch.rand(count, generator=seeded(seed))}
    classes = (torch.arange(41) // 9).expand(size)  # 0 and four bands
    stuff = stuff_segments(classes, 3)
    assert stuff["labels"].tolist() == [4, 5, 6, 7]
    found = fuse(things, stuff, 0.3, 0.4, 60)
    panoptic, rows = naive.panoptic_fusion(things, stuff, 0.3, 0.4, 60)
    same(found["panoptic"], panoptic)
    assert [(s["category_id"], s["area"]) for s in found["segments_info"]] == rows
    assert [s["id"] for s in found["segments_info"]] == list(range(1, len(rows) + 1))
    assert all((s["score"] is not None) == bool(s["isthing"]) for s in found["segments_info"])


def test_thresholds_are_as_the_paper_says() -> None:
    """Score 0.45 stays in float32 too; losing 40 % is allowed, a pixel more is not; a rejected one takes nothing."""
    masks = torch.zeros(4, 10, 30, dtype=torch.bool)
    masks[0, :, :10] = True
    masks[1, :, 6:16] = True  # loses 40 of 100
    masks[2, :, 11:21] = True  # loses 50 of 100
    masks[3, :, 18:28] = True  # loses nothing, since the third is out
    things = {"masks": masks, "labels": torch.tensor([1, 2, 1, 2]), "scores": torch.tensor([0.9, 0.8, 0.7, 0.45])}
    none = {"masks": masks[:0], "labels": things["labels"][:0]}
    found = fuse(things, none)
    assert [s["area"] for s in found["segments_info"]] == [100, 60, 100]
    masks[1, 0, 5] = True  # now 41 of 101
    assert [s["area"] for s in fuse(things, none)["segments_info"]] == [100, 100, 70]


# ----------------------------------------------------------------------------------------------------- semantic branch


def pyramid_of(channels: int, size: tuple[int, int], levels: int = 4) -> list[Tensor]:
    shapes = [(2, channels, -(-size[0] // 2**i), -(-size[1] // 2**i)) for i in range(levels)]
    return [torch.randn(shape, generator=seeded(i), dtype=torch.float64) for i, shape in enumerate(shapes)]


def test_concatenating_branch_by_steps() -> None:
    branch: Any = SemanticBranch(6, 5).double()
    pyramid = pyramid_of(6, (16, 24))
    weight, bias = branch.logits.weight[:, :, 0, 0], branch.logits.bias
    assert weight.shape == (6, 24)
    expected = torch.stack([naive.panoptic_branch([x[b] for x in pyramid], weight, bias) for b in range(2)])
    result = branch([*pyramid, torch.zeros(0)])  # P6 is not read
    same(result.detach(), expected.detach())
    direction = torch.randn(result.shape, generator=seeded(9), dtype=torch.float64)
    ours, theirs = (gradients((y * direction).sum(), list(branch.parameters())) for y in (result, expected))
    for a, b in zip(ours, theirs, strict=True):
        same(a, b)
    assert len(list(branch.parameters())) == 2


def test_summing_branch_by_steps() -> None:
    """Panoptic-FPN, Figure 3: 1/32 is doubled three times, 1/16 twice, 1/8 once, 1/4 not; then the sum."""
    branch: Any = SemanticBranch(6, 5, form="sum", channels=32).double()
    pyramid = pyramid_of(6, (16, 24))
    total: Any = 0
    for i, x in enumerate(pyramid):
        blocks = [layer for layer in branch.scales[i] if isinstance(layer, torch.nn.Sequential)]
        assert len(blocks) == max(1, i)
        for block in blocks:
            layers: list[Any] = list(block)
            conv, norm = layers[:2]
            x = F.relu(F.group_norm(F.conv2d(x, conv.weight, padding=1), 32, norm.weight, norm.bias))
            if i:
                x = F.interpolate(x, scale_factor=2, mode="bilinear")
        total = total + x
    same(branch(pyramid), F.conv2d(total, branch.logits.weight, branch.logits.bias))
    assert [len(climb(6, 32, steps)) for steps in range(4)] == [1, 2, 4, 6]


def test_branch_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="form must be 'concat' or 'sum', not 'product'"):
        SemanticBranch(6, 5, form="product")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes 4 levels, and the pyramid has 3"):
        SemanticBranch(6, 5)(pyramid_of(6, (8, 8), 3))
    with pytest.raises(ValueError, match="a class and a level or more, not 0 and 4"):
        SemanticBranch(6, 0)


def test_targets_have_one_label_per_pixel() -> None:
    masks = torch.zeros(4, 6, 9, dtype=torch.bool)
    masks[0, :3], masks[1, 3:, :4], masks[2, 3:, 4:6], masks[3, 5:, 6:] = True, True, True, True
    target: Any = {"masks": masks, "labels": torch.tensor([5, 2, 1, 4]), "boxes": torch.rand(4, 4), "image_id": 3}
    things, stuff = split_target(target, num_things=3)
    assert things["labels"].tolist() == [2, 1]
    same(things["boxes"], target["boxes"][1:3])
    same(things["masks"], masks[1:3])
    expected = torch.full((6, 9), -1)
    for y in range(6):
        for x in range(9):
            for mask, label in zip(masks, (2, 0, 0, 1), strict=True):
                if mask[y, x]:
                    expected[y, x] = label
    same(stuff, expected)
    things, stuff = split_target({k: target[k][:0] for k in ("masks", "labels", "boxes")}, 3)
    assert len(things["labels"]) == 0
    assert (stuff == -1).all()


def test_loss_is_the_mean_over_what_is_labelled() -> None:
    logits = torch.randn(2, 4, 5, 7, generator=seeded(0), dtype=torch.float64)
    stuff = torch.randint(-1, 4, (2, 5, 7), generator=seeded(1))
    terms = [
        -logits[b, :, y, x].softmax(0)[stuff[b, y, x]].log() for b, y, x in np.ndindex(2, 5, 7) if stuff[b, y, x] >= 0
    ]
    same(stuff_loss(logits, stuff), torch.stack(terms).mean(), 1e-6)  # float32
    logits.requires_grad_()
    loss = stuff_loss(logits, torch.full((2, 5, 7), -1))
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].abs().sum() == 0


def test_logits_are_resized_as_masks_are() -> None:
    logits = torch.randn(5, 12, 17, generator=seeded(0))
    for output in ((45, 66), (90, 140), (20, 31)):
        pixels = aligned_upsample(logits, 4)[:, :45, :66]
        expected = F.interpolate(pixels[None], size=output, mode="bilinear")[0]
        assert (resize_logits(logits, 4, (45, 66), output) - expected).abs().max() < 1e-5
        pixels = F.interpolate(logits[None], scale_factor=4, mode="bilinear")[..., :45, :66]
        expected = F.interpolate(pixels, size=output, mode="bilinear")[0]
        assert (resize_logits(logits, 4, (45, 66), output, aligned=False) - expected).abs().max() < 1e-5
    sure = logits.sign() * 50  # far from 0, sigmoid before or after the interpolation is the same
    masks = resize_masks(sure, 4, (45, 66), (45, 66))
    assert (masks == (resize_logits(sure, 4, (45, 66), (45, 66)) > 0)).float().mean() > 0.99


# --------------------------------------------------------------------------------------------------------------- model


def tiny_panoptic(**options: Any) -> PanopticModel:
    torch.manual_seed(0)
    instances = tiny_condinst(3, levels=(2, 3, 4, 5), head_from=3)
    return PanopticModel(instances, SemanticBranch(16, 4), 3, **{"min_stuff": 20, "min_score": 0.1, **options})


def panoptic_target(size: tuple[int, int], generator: torch.Generator) -> dict[str, Any]:
    """Three disjoint things over two bands of stuff, with a strip of void at the bottom."""
    target = random_targets(3, size, generator)
    front = target["masks"].cumsum(dim=0) <= 1
    things = target["masks"] & front
    rest = ~things.any(dim=0)
    rest[-3:] = False
    left = (torch.arange(size[1]) < size[1] // 2).expand(size)
    masks = torch.cat([things, (rest & left)[None], (rest & ~left)[None]])
    boxes = torch.cat([target["boxes"], torch.tensor([[0.0, 0, size[1], size[0]]] * 2)])
    return {"masks": masks, "boxes": boxes, "labels": torch.cat([target["labels"], torch.tensor([4, 7])])}


def test_model_learns_things_and_stuff() -> None:
    model = tiny_panoptic().train()
    sizes = [(96, 128), (70, 101)]
    images = [torch.rand(3, *size, generator=seeded(i)) for i, size in enumerate(sizes)]
    targets = [panoptic_target(size, seeded(i)) for i, size in enumerate(sizes)]
    losses = model(images, targets)
    assert set(losses) == {"loss_class", "loss_box", "loss_centerness", "loss_mask", "loss_stuff"}
    check_gradients(lambda: sum(model(images, targets).values()), model, all_nonzero=False)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.branch.parameters())
    things = [split_target(target, 3)[0] for target in targets]
    alone = model.instances(images, things)
    for name, value in alone.items():
        same(losses[name], value, 1e-6)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    empty["masks"] = torch.zeros(0, 96, 128, dtype=torch.bool)
    check_gradients(lambda: sum(model(images[:1], [empty]).values()), model, all_nonzero=False)
    with pytest.raises(ValueError, match="one target per image"):
        model(images)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_stuff_is_learned_on_the_grid_of_the_masks(factor: int) -> None:
    """Full-size maps and maps sampled at the mask stride give one loss: cross-entropy at those pixels."""
    torch.manual_seed(0)
    instances = tiny_condinst(3, levels=(2, 3, 4, 5), head_from=3, factor=factor)
    model = PanopticModel(instances, SemanticBranch(16, 4), 3)
    stride = 4 // factor
    logits = torch.randn(1, 5, 24, 32, generator=seeded(0))
    target = panoptic_target((90, 121), seeded(0))
    stuff = split_target(target, 3)[1]
    loss = model.stuff_loss(logits, [target], [stuff])
    pixels = aligned_upsample(logits, factor)[0]
    read = stuff[stride // 2 :: stride, stride // 2 :: stride]
    expected = F.cross_entropy(pixels[:, : read.shape[0], : read.shape[1]][None], read[None], ignore_index=-1)
    same(loss, expected, 1e-6)
    same(model.stuff_loss(logits, [{"centers": None}], [read]), expected, 1e-6)


def test_summing_branch_learns_full_size_maps() -> None:
    """As Panoptic-FPN: logits upsampled by 4 with half-pixel centres, at every labelled pixel."""
    torch.manual_seed(0)
    branch = SemanticBranch(16, 4, form="sum", channels=32)
    model = PanopticModel(tiny_condinst(3, levels=(2, 3, 4, 5), head_from=3), branch, 3, loss_stride=1)
    assert model.mask_stride is None  # so that the loader leaves masks as they are
    logits = torch.randn(1, 5, 24, 32, generator=seeded(0))
    target = panoptic_target((90, 121), seeded(0))
    stuff = split_target(target, 3)[1]
    pixels = F.interpolate(logits, scale_factor=4, mode="bilinear")[..., :90, :121]
    same(model.stuff_loss(logits, [target], [stuff]), F.cross_entropy(pixels, stuff[None], ignore_index=-1), 1e-6)


def test_model_fuses_what_its_parts_find() -> None:
    model = tiny_panoptic().eval()
    enliven(model, seeded(3))
    images = [torch.rand(3, *size, generator=seeded(i)) for i, size in enumerate([(96, 128), (70, 101)])]
    with torch.no_grad():
        outputs = [(96, 128), (140, 202)]
        results = model(images, output_sizes=outputs)
        alone = model.instances(images, output_sizes=outputs)
        logits = model.logits()
        for i, (result, size) in enumerate(zip(results, outputs, strict=True)):
            assert result["panoptic"].shape == size
            assert result["panoptic"].dtype == torch.int64
            same(result["masks"], alone[i]["masks"])
            classes = resize_logits(logits[i], 4, (images[i].shape[1], images[i].shape[2]), size).argmax(dim=0)
            fused = fuse(alone[i], stuff_segments(classes, 3), 0.1, 0.4, 20)
            same(result["panoptic"], fused["panoptic"])
            assert result["segments_info"] == fused["segments_info"]
        assert {s["isthing"] for s in results[0]["segments_info"]} == {0, 1}
        for image, size, result in zip(images, outputs, results, strict=True):  # one at a time finds the same
            single = model([image], output_sizes=[size])[0]
            assert (single["panoptic"] == result["panoptic"]).float().mean() > 0.99


def test_a_copy_of_the_model_has_its_own_pyramid() -> None:
    """The hook of a copy (a running mean of the weights, say) belongs to the copy."""
    model = tiny_panoptic().eval()
    twin = copy.deepcopy(model)
    image = torch.rand(3, 64, 96, generator=seeded(0))
    with torch.no_grad():
        twin.instances([image])
        assert len(twin._pyramid) == 4
        assert model._pyramid == ()
        twin([image])
    assert twin._pyramid == ()


def test_strides_must_fit() -> None:
    with pytest.raises(ValueError, match="the map of stuff has a stride that divides 4, not 8"):
        PanopticModel(tiny_condinst(3, factor=1), SemanticBranch(16, 4), 3)
