"""What teaches has to be right: every exercise's checker against right, wrong and careless answers."""

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, seeded
from torch import Tensor

from condinst_edu import fcos
from condinst_edu.engine.evaluate import coco_ap, encode_masks
from condinst_edu.teach import DEVIATIONS, EXERCISES, check, same_as, should_fail
from condinst_edu.teach.checker import CheckResult, judge
from condinst_edu.teach.compare import difference, map_tensors
from condinst_edu.teach.exercises import Exercise
from condinst_edu.teach.scoring import ImageScores, coco_average_precision, mask_iou

Function = Callable[..., Any]
everywhere = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=list(EXERCISES))


def changed(exercise: Exercise, change: Callable[[Any], Any]) -> Function:
    """The right answer with every tensor and number in it changed."""

    def answer(*args: Any) -> Any:
        result = exercise.reference(*args)
        if isinstance(result, (int, float)):
            return change(result)
        if isinstance(result, list) and isinstance(result[0], int):
            return [change(x) for x in result]
        return map_tensors(change, result)

    return answer


def fails(exercise: Exercise, answer: Function) -> CheckResult:
    result = judge(exercise, answer)
    assert not result.passed, f"{exercise.id}: {result.message}"
    assert result.attempted
    return result


# The mutation test of LESSONS.md


@everywhere
def test_reference_passes(exercise: Exercise) -> None:
    for seed in (0, 10):
        result = judge(exercise, exercise.reference, seed)
        assert result.passed, result.message


@everywhere
def test_every_deviation_is_named(exercise: Exercise) -> None:
    assert len(exercise.deviations) >= 2
    for name in exercise.deviations:
        for seed in (0, 1, 2):
            result = fails_with_seed(exercise, DEVIATIONS[name].function, seed)
            assert result.deviation == name, f"{name} was taken for {result.deviation}: {result.message}"
            assert DEVIATIONS[name].line in result.message


def fails_with_seed(exercise: Exercise, answer: Function, seed: int) -> CheckResult:
    result = judge(exercise, answer, seed)
    assert not result.passed
    return result


@everywhere
def test_zeros_and_nan_fail(exercise: Exercise) -> None:
    fails(exercise, changed(exercise, lambda x: torch.zeros_like(x) if isinstance(x, Tensor) else type(x)(0)))
    nan = fails(exercise, changed(exercise, lambda x: x * torch.nan))
    assert "NaN" in nan.message or "dtype" in nan.message or "shape" in nan.message


def other_type(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.double() if x.dtype == torch.float32 else x.float()
    return float(x) if isinstance(x, int) else int(x)


@everywhere
def test_wrong_dtype_fails(exercise: Exercise) -> None:
    assert "dtype" in fails(exercise, changed(exercise, other_type)).message


@everywhere
def test_transposed_result_fails(exercise: Exercise) -> None:
    result = exercise.reference(*exercise.inputs(seeded(0)))
    if isinstance(result, Tensor) and result.dim() >= 2:
        assert "transposed" in fails(exercise, changed(exercise, lambda x: x.mT)).message


@everywhere
def test_detached_gradient_fails(exercise: Exercise) -> None:
    answer = changed(exercise, lambda x: x.detach() if isinstance(x, Tensor) else x)
    if exercise.gradient:
        assert "no gradient" in fails(exercise, answer).message
    else:
        assert judge(exercise, answer).passed


@pytest.mark.parametrize("exercise", [e for e in EXERCISES.values() if e.gradient], ids=lambda e: e.id)
def test_wrong_gradient_fails(exercise: Exercise) -> None:
    answer = changed(exercise, lambda x: x.detach() + 2 * (x - x.detach()))
    assert "gradient is not" in fails(exercise, answer).message


def test_targets_of_a_loss_need_no_gradient() -> None:
    """0 or 1 may be looked up as well as multiplied with: what the loss does between the two is nobody's concern."""

    def looked_up(logits: Tensor, targets: Tensor) -> Tensor:
        p, alpha = logits.sigmoid(), torch.where(targets == 1, 0.25, 0.75)
        p_t = torch.where(targets == 1, p, 1 - p)
        return (-alpha * (1 - p_t) ** 2 * p_t.log()).sum()

    def multiplied(logits: Tensor, targets: Tensor) -> Tensor:
        p = logits.sigmoid()
        p_t, alpha = p * targets + (1 - p) * (1 - targets), 0.25 * targets + 0.75 * (1 - targets)
        return (-alpha * (1 - p_t) ** 2 * p_t.log()).sum()

    assert judge(EXERCISES["01-focal-loss"], looked_up).passed
    assert judge(EXERCISES["01-focal-loss"], multiplied).passed


@everywhere
def test_input_changed_in_place_fails(exercise: Exercise) -> None:
    def answer(*args: Any) -> Any:
        result = map_tensors(torch.clone, exercise.reference(*map_tensors(torch.clone, args)))
        map_tensors(lambda x: x.zero_() if x.dtype == torch.bool or not x.is_floating_point() else x.mul_(2), args)
        return result

    if any(isinstance(x, Tensor) for arg in exercise.inputs(seeded(0)) for x in (arg if type(arg) is tuple else [arg])):
        assert "in place" in fails(exercise, answer).message


@everywhere
def test_students_own_output_is_never_the_reference(exercise: Exercise, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that replaces the library's function by its own wrong one is still found out."""
    wrong = DEVIATIONS[exercise.deviations[0]]
    module, name = wrong.of.rsplit(".", 1)
    monkeypatch.setattr(__import__(module, fromlist=[name]), name, wrong.function)
    result = fails(exercise, wrong.function)
    assert result.deviation in (wrong.name, None)


@everywhere
def test_careless_answers(exercise: Exercise) -> None:
    def raises(*args: Any) -> Any:
        raise NotImplementedError

    for stub in (raises, lambda *args: None, lambda *args: ...):
        result = judge(exercise, stub)
        assert not result.passed
        assert not result.attempted
        assert result.message == "not attempted yet"
    message = fails(exercise, lambda *args: torch.cat([torch.zeros(2), torch.zeros(2, 2)])).message
    assert "RuntimeError" in message
    assert "of <lambda>)" in message
    assert "TypeError" in fails(exercise, lambda: None).message  # takes no arguments
    for nonsense in ("text", (), torch.zeros(1, 1, 1, 1, 1), {"x": 1}):
        fails(exercise, lambda *args, nonsense=nonsense: nonsense)


def test_counts() -> None:
    assert len(EXERCISES) >= 15
    assert len(DEVIATIONS) >= 30
    assert {e.lesson for e in EXERCISES.values()} == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
    used = [name for e in EXERCISES.values() for name in e.deviations]
    assert sorted(used) == sorted(DEVIATIONS)  # each belongs to one exercise
    for e in EXERCISES.values():
        assert e.id.startswith(f"{e.lesson:02}-")
        assert e.hints
        assert e.difficulty in (1, 2, 3)


def test_deviations_are_of_functions_that_exist() -> None:
    references = {f"{e.reference.__module__}.{e.reference.__name__}" for e in EXERCISES.values()}
    assert {d.of for d in DEVIATIONS.values()} == references


def test_check_prints_and_knows_its_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("01-centerness", fcos.centerness).passed
    assert not check("01-centerness", lambda distances: 2 * fcos.centerness(distances)).passed
    out = capsys.readouterr().out
    assert "✓ 01-centerness: correct" in out
    assert "2 times what it should be" in out
    with pytest.raises(ValueError, match="did you mean '01-centerness'"):
        check("01-centreness", fcos.centerness)


# Comparing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.T, "transposed"),
        (lambda x: -x, "sign is flipped"),
        (lambda x: 3 * x, "3 times"),
        (lambda x: x + 0.5, "too large by 0.5"),
        (lambda x: x.flip(1), "axis 1 is reversed"),
        (lambda x: x.flatten()[torch.tensor([1, 0, *range(2, 15)])].view(3, 5), "their order is not"),
        (lambda x: x.flatten(), "only the shape is not"),
        (lambda x: x.double(), "dtype float64 should be float32"),
        (lambda x: x.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(9.0)), r"first at index \(1, 2\): 9 "),
        (lambda x: x.clone().fill_(torch.nan), "15 of 15 values are NaN"),
        (lambda x: x[:2], r"shape \(2, 5\) should be \(3, 5\)"),
        (lambda x: (x, x), "is a list of 2 parts and should be a number or tensor"),
        (lambda x: "text", "type str"),
    ],
)
def test_same_as_says_what_differs(change: Function, words: str) -> None:
    x = torch.rand(3, 5, generator=seeded(0))
    with pytest.raises(AssertionError, match=words):
        same_as(change(x), x)


def test_same_as_accepts_rounding_arrays_and_functions(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.rand(3, 5, generator=seeded(0))
    same_as(x + 1e-7, x)
    same_as(x.numpy(), x)
    same_as(0.5, torch.tensor(0.5))
    same_as(lambda x: x * x, torch.square, x)
    same_as(fcos.centerness, fcos.centerness, inputs=EXERCISES["01-centerness"].inputs)
    assert capsys.readouterr().out.splitlines()[-1] == "✓ the same as centerness: 45 numbers compared"
    with pytest.raises(ValueError, match="their arguments"):
        same_as(torch.square, torch.square)
    with pytest.raises(AssertionError, match="Not the same as square"):
        same_as(lambda x: x, torch.square, x)
    assert difference(torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.inf])) is None


def test_should_fail(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(error: Exception) -> None:
        raise error

    with should_fail(ValueError):
        stop(ValueError("a sentence"))
    assert "ValueError: a sentence" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="nothing broke"), should_fail():
        pass
    with pytest.raises(TypeError), should_fail(ValueError):
        stop(TypeError())


# Scoring


def random_scene(generator: torch.Generator, images: int) -> list[dict[str, Tensor]]:
    """Rectangles as objects, some of them crowds, and shaken copies of them as detections, with tied scores."""
    scenes = []
    for i in range(images):
        count = int(torch.randint(0 if i else 1, 7, (), generator=generator))
        corner = torch.randint(0, 150, (count, 2), generator=generator)
        size = torch.randint(5, 150, (count, 2), generator=generator)
        crowd = torch.rand(count, generator=generator) < 0.2
        pick = torch.arange(count).repeat(3)
        shaken = [x[pick] + torch.randint(-4, 5, (len(pick), 2), generator=generator) for x in (corner, size)]
        scores = (torch.rand(len(pick), generator=generator, dtype=torch.float64) * 20).round() / 20
        scenes.append(
            {"objects": rectangles(corner, size), "crowd": crowd, "detected": rectangles(*shaken), "scores": scores}
        )
    return scenes


def rectangles(corner: Tensor, size: Tensor) -> Tensor:
    masks = torch.zeros(len(corner), 200, 220, dtype=torch.bool)
    for mask, (x, y), (w, h) in zip(masks, corner.clamp(min=0).tolist(), size.clamp(min=2).tolist(), strict=True):
        mask[y : y + h, x : x + w] = True
    return masks


def as_coco(scenes: list[dict[str, Tensor]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    annotations: list[dict[str, Any]] = []
    results = []
    for i, scene in enumerate(scenes, start=1):
        for mask, rle, crowd in zip(
            scene["objects"], encode_masks(scene["objects"]), scene["crowd"].tolist(), strict=True
        ):
            entry = {"id": len(annotations) + 1, "image_id": i, "category_id": 1, "segmentation": rle}
            annotations.append({**entry, "area": int(mask.sum()), "iscrowd": int(crowd), "bbox": [0, 0, 1, 1]})
        for rle, score in zip(encode_masks(scene["detected"]), scene["scores"].tolist(), strict=True):
            results.append({"image_id": i, "category_id": 1, "score": score, "bbox": [0, 0, 1, 1], "segmentation": rle})
    images = [{"id": i + 1, "height": 200, "width": 220, "file_name": f"{i}.png"} for i in range(len(scenes))]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}, results


def as_scores(scene: dict[str, Tensor]) -> ImageScores:
    areas, object_areas = (scene[key].flatten(1).sum(1) for key in ("detected", "objects"))
    iou = mask_iou(scene["detected"], scene["objects"], scene["crowd"])
    return ImageScores(iou, scene["scores"], areas, object_areas, scene["crowd"])


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_pycocotools(seed: int) -> None:
    scenes = random_scene(seeded(seed), 8)
    assert any(scene["crowd"].any() for scene in scenes)
    official = coco_ap(*as_coco(scenes), kinds=["segm"])["mask"]
    images = [as_scores(scene) for scene in scenes]
    ranges = {"AP": (0, 1e10), "APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e10)}
    ours = {name: coco_average_precision(images, limits) for name, limits in ranges.items()}
    for name, value in ours.items():
        assert abs(value - official[name]) < 1e-12, name
    assert 0.1 < ours["AP"] < 0.95
    halves = coco_average_precision(images, thresholds=torch.tensor([0.5], dtype=torch.float64))
    assert abs(halves - official["AP50"]) < 1e-12


def test_average_precision_of_nothing() -> None:
    scenes = random_scene(seeded(0), 2)
    nothing = {**scenes[0], "detected": scenes[0]["detected"][:0], "scores": scenes[0]["scores"][:0]}
    nothing["crowd"] = torch.zeros_like(nothing["crowd"])
    assert coco_average_precision([as_scores(nothing)]) == 0
    nothing["crowd"] = torch.ones_like(nothing["crowd"])
    assert coco_average_precision([as_scores(nothing)]) == -1
    with pytest.raises(ValueError, match="iou must be"):
        coco_average_precision([as_scores(scenes[0])._replace(iou=torch.zeros(1, 99))])


def test_run_lengths_are_cocos() -> None:
    from pycocotools import mask as mask_utils

    from condinst_edu.teach.scoring import rle_counts

    for i in range(5):
        mask = torch.rand(7, 12, generator=seeded(i)) < 0.5
        packed = mask_utils.frPyObjects({"size": [7, 12], "counts": rle_counts(mask)}, 7, 12)
        assert json.loads(json.dumps(np.asarray(mask_utils.decode(packed)).tolist())) == mask.int().tolist()


def test_ideas_do_not_import_teach() -> None:
    ideas = [*(ROOT / "condinst_edu").glob("*.py"), *(ROOT / "condinst_edu" / "layers").glob("*.py")]
    tools = {"cli.py", "bench.py", "doctor.py"}
    assert not [p.name for p in ideas if p.name not in tools and "condinst_edu.teach" in p.read_text()]


def test_deviate_switches_the_library_and_back() -> None:
    from condinst_edu import condinst, fcos
    from condinst_edu.layers import upsample
    from condinst_edu.teach import deviate
    from condinst_edu.teach.variants import lesson_03

    right = upsample.aligned_upsample
    with deviate("upsample-half-pixel") as deviation:
        assert condinst.aligned_upsample is upsample.aligned_upsample is lesson_03.upsample_half_pixel
        assert deviation.function is lesson_03.upsample_half_pixel
    assert condinst.aligned_upsample is upsample.aligned_upsample is right
    with contextlib.suppress(KeyError), deviate("upsample-half-pixel"):
        raise KeyError("whatever happens inside")
    assert condinst.aligned_upsample is upsample.aligned_upsample is right
    before = fcos.centerness
    with deviate("centerness-without-root"):
        assert fcos.centerness is not before
    assert fcos.centerness is before
    with pytest.raises(ValueError, match="did you mean 'upsample-half-pixel'"), deviate("upsample-halfpixel"):
        pass
    for name in ("count-without-biases", "relative-flipped"):  # an exercise's own; folded into the mask head
        with pytest.raises(ValueError, match="which the models do not call"), deviate(name):
            pass


def answers_to(exercise: str, answer: Function) -> str:
    return judge(EXERCISES[exercise], answer).message


def test_messages_that_students_asked_for() -> None:
    """An error of torch is no stub; forms are named in words; whole numbers have no distance; the input is told."""
    by_bool = judge(EXERCISES["00-mask-iou"], lambda a, b, crowd: a.flatten(1) @ b.flatten(1).T)
    assert by_bool.attempted
    assert "NotImplementedError" in by_bool.message
    rle = EXERCISES["00-rle"].reference
    assert re.search(
        r"is a list of \d+ numbers and should be a list of \d+ numbers", answers_to("00-rle", lambda m: rle(m)[1:])
    )
    assert "is a number or tensor and should be a list" in answers_to("00-rle", lambda m: torch.tensor(rle(m)))
    split = EXERCISES["02-split-parameters"].reference
    flat = answers_to("02-split-parameters", lambda theta, c: [*split(theta, c)[0], *split(theta, c)[1]])
    assert "is a list of 6 parts and should be a list of 2 parts" in flat
    assert re.search(r"\(for \(\d+, \d+, \d+, 1\)\)$", answers_to("02-count-parameters", lambda c: 169))
    match = EXERCISES["00-match"].reference
    assert "by up to" not in answers_to("00-match", lambda *args: match(*args).flip(0) + 1)
