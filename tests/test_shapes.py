"""The generated shapes: what is promised about the pictures, and that the written COCO files say the same."""

import dataclasses
import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from condinst_edu.datasets import shapes_coco
from condinst_edu.datasets.shapes import (
    STUFF,
    THINGS,
    ShapesConfig,
    ShapesSample,
    arrange,
    categories,
    generate,
)
from condinst_edu.datasets.shapes_coco import VAL_START, id_colors, write_shapes
from condinst_edu.errors import UserError

SAMPLE = Path(__file__).parent.parent / "data" / "shapes"
WIDE = ShapesConfig(size=(96, 160), objects=(2, 5), object_size=(12, 40))


@pytest.fixture(scope="module")
def samples() -> list[ShapesSample]:
    return [generate(index) for index in range(200)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(out, train=5, val=3, seed=4, config=WIDE, show_progress=False)
    return out


def fields(sample: ShapesSample) -> list[Any]:
    return [np.asarray(getattr(sample, field.name)).tolist() for field in dataclasses.fields(sample)]


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_same_seed_and_index_give_the_same_picture() -> None:
    generate(8)  # nothing is carried over from one call to the next
    assert fields(generate(7, seed=3)) == fields(generate(7, seed=3))
    first = generate(7, seed=3).image
    assert (first != generate(7, seed=4).image).mean() > 0.8
    assert (first != generate(8, seed=3).image).mean() > 0.8


@pytest.mark.parametrize(
    "config",
    [
        ShapesConfig(),
        WIDE,
        ShapesConfig(size=(120, 72), objects=(10, 14), object_size=(8, 20), min_visible=0.3),
        ShapesConfig(size=(240, 320), object_size=(40, 160)),
        ShapesConfig(size=(64, 64), objects=(0, 0)),
    ],
)
def test_ground_truth_agrees_with_itself(config: ShapesConfig) -> None:
    for index in range(8):
        sample = generate(index, seed=1, config=config)
        count, size = len(sample.labels), config.size
        assert config.objects[0] <= count <= config.objects[1]
        assert (sample.image.shape, sample.image.dtype) == ((*size, 3), np.uint8)
        assert (sample.boxes.shape, sample.boxes.dtype) == ((count, 4), np.float32)
        assert (sample.masks.shape, sample.masks.dtype) == ((count, *size), np.bool_)
        assert (sample.labels.dtype, sample.semantic.dtype, sample.panoptic.dtype) == (np.int64, np.uint8, np.int32)
        assert sample.masks.sum(0).max(initial=0) <= 1  # visible parts do not overlap
        for mask, box, label in zip(sample.masks, sample.boxes, sample.labels, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (sample.semantic[mask] == label).all()
        assert (np.isin(sample.semantic, range(1, 6)) == sample.masks.any(0)).all()
        check_segments(sample)


def check_segments(sample: ShapesSample) -> None:
    """Every pixel belongs to a listed segment; the things come first and are the masks."""
    ids = [segment["id"] for segment in sample.segments_info]
    assert sorted(ids) == np.unique(sample.panoptic).tolist()
    assert 0 not in ids
    assert [s["category_id"] for s in sample.segments_info if s["isthing"]] == sample.labels.tolist()
    assert len({s["category_id"] for s in sample.segments_info if not s["isthing"]}) == len(ids) - len(sample.labels)
    for n, segment in enumerate(sample.segments_info):
        region = sample.panoptic == segment["id"]
        rows, columns = np.nonzero(region)
        x, y, width, height = segment["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert segment["area"] == region.sum()
        assert (sample.semantic[region] == segment["category_id"]).all()
        assert n >= len(sample.masks) or (region == sample.masks[n]).all()


def test_things_are_as_large_and_as_visible_as_promised(samples: Sequence[ShapesSample]) -> None:
    for sample in samples:
        assert 3 <= len(sample.labels) <= 8
        for thing, mask in zip(sample.things, sample.masks, strict=True):
            assert 18 <= thing.size <= 54
            assert thing.visible >= 0.45
            points = np.argwhere(mask)
            reach = np.hypot(*(points - np.array(thing.center)[::-1]).T).max()
            assert reach <= thing.size * 0.58 + 1  # a triangle's corner is size / sqrt(3) from its centre
    sizes = [thing.size for sample in samples for thing in sample.things]
    assert min(sizes) < 20
    assert max(sizes) > 52


@pytest.mark.parametrize("label", range(1, len(THINGS) + 1))
def test_a_whole_thing_reaches_as_far_as_its_size(label: int) -> None:
    """The farthest two of its pixels are `size` apart; only a ring shows what is behind its middle."""
    config = ShapesConfig(objects=(1, 1), object_size=(30, 50), min_visible=1)
    whole = [s for s in (generate(i, seed=2, config=config) for i in range(25)) if s.labels[0] == label]
    assert whole
    for sample in whole:
        (thing,) = sample.things
        points = np.argwhere(sample.masks[0]).astype(float)
        apart = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)).max()
        assert apart == pytest.approx(thing.size, abs=3)  # pixels blunt a star's corners
        x, y = round(thing.center[0]), round(thing.center[1])
        assert sample.masks[0][y, x] == (THINGS[label - 1] != "ring")


def test_visible_is_the_share_that_earlier_things_leave() -> None:
    stamps = arrange(np.random.default_rng(5), ShapesConfig(objects=(8, 8)))
    taken = np.zeros((128, 128), bool)
    for stamp in stamps:  # front to back
        assert not (taken[stamp.window] & stamp.seen).any()
        in_image = np.count_nonzero(stamp.distance <= 0)
        assert np.count_nonzero(stamp.seen) == np.count_nonzero((stamp.distance <= 0) & ~taken[stamp.window])
        assert stamp.visible <= np.count_nonzero(stamp.seen) / in_image + 1e-9  # the edge of the image hides as well
        taken[stamp.window] |= stamp.seen


def test_what_makes_it_hard_is_there(samples: Sequence[ShapesSample]) -> None:
    """Bounds are three standard errors wide: dominated images, borrowed colours, rims, classes, stuff, contact."""
    many = [s for s in samples if len(s.labels) >= 6]
    assert 0.25 < np.mean([np.bincount(s.labels).max() >= 0.7 * len(s.labels) for s in many]) < 0.55
    things = [thing for s in samples for thing in s.things]
    distinct = sum(len({t.color for t in s.things}) for s in samples)
    assert 0.28 < 1 - distinct / len(things) < 0.39
    assert 0.75 < np.mean([t.rim for t in things]) < 0.85
    assert (np.bincount([t.label for t in things], minlength=6)[1:] > 0.13 * len(things)).all()
    kinds = [len(np.unique(s.semantic[s.semantic > len(THINGS)])) for s in samples]
    assert min(kinds) >= 1
    assert np.mean(np.array(kinds) >= 2) > 0.95
    assert np.mean([t.visible < 0.95 for t in things]) > 0.25


def test_a_borrowed_colour_comes_from_near(samples: Sequence[ShapesSample]) -> None:
    def gap(s: ShapesSample, a: int, b: int) -> float:
        return float(np.hypot(*np.subtract(s.things[a].center, s.things[b].center)))

    pairs = [(s, a, b) for s in samples for a in range(len(s.things)) for b in range(a)]
    same = [gap(s, a, b) for s, a, b in pairs if s.things[a].color == s.things[b].color]
    assert np.mean(same) < 0.75 * np.mean([gap(s, a, b) for s, a, b in pairs])


def test_noise_has_the_deviation_asked_for() -> None:
    noise = 0.035
    quiet = generate(3, config=ShapesConfig(noise=0)).image.astype(float)
    noisy = generate(3, config=ShapesConfig(noise=noise)).image.astype(float)
    middle = (quiet > 60) & (quiet < 195)  # nothing is cut off there
    assert (noisy - quiet)[middle].std() / 255 == pytest.approx(noise, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (8, 128)}, "at least 16 pixels"),
        ({"objects": (5, 4)}, "least <= most"),
        ({"objects": (400, 400)}, "most <= 256, one for every 8 x 8 pixels"),
        ({"size": (24, 40), "objects": (3, 16), "object_size": (8, 9)}, "most <= 15"),
        ({"object_size": (18, 200)}, "shorter side"),
        ({"object_size": (4, 20)}, "8 <= least"),
        ({"noise": -0.1}, "noise is a share"),
        ({"min_visible": 45}, "min_visible is a share"),
        ({"noise": float("nan")}, "noise is a share"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesConfig(**settings)


def test_more_than_fits_is_refused() -> None:
    crowded = ShapesConfig(size=(40, 40), objects=(25, 25), object_size=(20, 30), min_visible=0.9)
    with pytest.raises(ValueError, match="do not fit"):
        generate(0, config=crowded)
    with pytest.raises(ValueError, match="at least 0"):
        generate(-1)


@pytest.mark.parametrize(("split", "start", "count"), [("train", 0, 5), ("val", VAL_START, 3)])
def test_pycocotools_reads_back_the_very_masks(written: Path, split: str, start: int, count: int) -> None:
    coco = COCO(str(written / "annotations" / f"instances_{split}.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(THINGS)
    assert len(coco.imgs) == count
    for offset, (image_id, entry) in enumerate(sorted(coco.imgs.items())):
        sample = generate(start + offset, seed=4, config=WIDE)
        assert (entry["height"], entry["width"]) == WIDE.size
        assert (np.asarray(Image.open(written / split / entry["file_name"])) == sample.image).all()
        found = coco.loadAnns(coco.getAnnIds([image_id]))
        assert [a["category_id"] for a in found] == sample.labels.tolist()
        for annotation, mask, box in zip(found, sample.masks, sample.boxes, strict=True):
            assert (coco.annToMask(annotation) == mask).all()
            x, y, width, height = annotation["bbox"]
            assert [x, y, x + width, y + height] == box.tolist()
            assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), 0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_pngs_agree_with_their_json(written: Path, split: str) -> None:
    panoptic = load(written / "annotations" / f"panoptic_{split}.json")
    assert [c["name"] for c in panoptic["categories"]] == [*THINGS, *STUFF]
    assert len(panoptic["annotations"]) == len(panoptic["images"])
    for entry in panoptic["annotations"]:
        png = np.asarray(Image.open(written / f"panoptic_{split}" / entry["file_name"])).astype(int)
        ids, areas = np.unique(png @ [1, 256, 65536], return_counts=True)
        listed = {s["id"]: s["area"] for s in entry["segments_info"]}
        assert listed == dict(zip(ids.tolist(), areas.tolist(), strict=True))


def test_segment_ids_fill_three_bytes() -> None:
    ids = np.array([[0, 255, 256], [65535, 65536, 2**24 - 1]], np.int32)
    assert (id_colors(ids).astype(int) @ [1, 256, 65536] == ids).all()


def test_train_and_val_share_no_image(written: Path) -> None:
    images = [path.read_bytes() for split in ("train", "val") for path in (written / split).iterdir()]
    assert len(set(images)) == len(images) == 8


def test_the_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    small = ShapesConfig(size=(32, 32), objects=(1, 2), object_size=(8, 16))
    for jobs in (1, 2):
        write_shapes(tmp_path / str(jobs), 50, 1, config=small, jobs=jobs, show_progress=False)
    one, two = (sorted(p for p in (tmp_path / j).rglob("*") if p.is_file()) for j in ("1", "2"))
    assert [p.relative_to(tmp_path / "1") for p in one] == [p.relative_to(tmp_path / "2") for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    assert not multiprocessing.active_children()


def test_same_settings_are_reused_and_others_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draws_nothing(*_: object) -> None:
        raise AssertionError("the folder is complete")

    monkeypatch.setattr(shapes_coco, "generate", draws_nothing)
    write_shapes(written, train=5, val=3, seed=4, config=WIDE, show_progress=False)
    with pytest.raises(UserError, match="seed is 4, not 5"):
        write_shapes(written, train=5, val=3, seed=5, config=WIDE, show_progress=False)
    with pytest.raises(UserError, match="something else than shapes"):
        write_shapes(written.parent, train=5, val=3, seed=4, config=WIDE, show_progress=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("broken")])
@pytest.mark.parametrize("empty_before", [False, True])
def test_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, empty_before: bool
) -> None:
    def fails_midway(index: int, *rest: Any) -> ShapesSample:
        if index == 2:
            raise error
        return generate(index, *rest)

    out = tmp_path / "shapes"
    if empty_before:
        out.mkdir()
    monkeypatch.setattr(shapes_coco, "generate", fails_midway)
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_shapes(out, train=4, val=1, config=WIDE, show_progress=False)
    assert list(tmp_path.rglob("*")) == ([out] if empty_before else [])
    monkeypatch.undo()
    write_shapes(out, train=4, val=1, config=WIDE, show_progress=False)  # and it works the next time
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_no_folder_of_no_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one image"):
        write_shapes(tmp_path / "shapes", train=0, val=1, show_progress=False)


def test_the_sample_in_the_repository_is_what_the_generator_draws() -> None:
    """One grey level is left to the arithmetic of another processor."""
    settings = load(SAMPLE / "shapes.json")
    config = ShapesConfig()
    assert {k: settings[k] for k in dataclasses.asdict(config)} == load_again(dataclasses.asdict(config))
    assert settings["generator"] == shapes_coco.GENERATOR
    for split, start in (("train", 0), ("val", VAL_START)):
        for n, path in enumerate(sorted((SAMPLE / split).glob("*.png"))):
            stored = np.asarray(Image.open(path)).astype(int)
            assert np.abs(stored - generate(start + n, settings["seed"]).image).max() <= 1
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*.*")) < 450_000


def load_again(value: Any) -> Any:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))


def test_categories_are_things_then_stuff() -> None:
    assert [(c["id"], c["isthing"]) for c in categories()] == [(i, int(i <= 5)) for i in range(1, 10)]
