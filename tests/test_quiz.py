"""The numbers in the answers of lessons/quiz, worked out anew; the wording around them is looked for."""

import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from condinst_edu.coordinates import locations, relative_coordinates
from condinst_edu.fcos import centerness
from condinst_edu.layers.losses import dice_loss
from condinst_edu.mask_head import DynamicMaskHead
from condinst_edu.papers import table
from condinst_edu.teach.notebooks import lesson_names, read_quiz


def answer(lesson: int, words: str) -> str:
    """The answer to the one question of a lesson that has these words in it."""
    name = next(name for name in lesson_names() if int(name[:2]) == lesson)
    (found,) = [q for q in read_quiz(name) if words in " ".join(q.question.split())]
    return " ".join(found.answer.split())


def test_run_lengths() -> None:
    mask = np.zeros((2, 3), dtype=np.uint8, order="F")
    mask[0, 2] = 1
    counts = [4, 1, 1]
    coded = coco_mask.frPyObjects({"size": [2, 3], "counts": counts}, 2, 3)
    assert np.array_equal(coco_mask.decode(coded), mask)
    assert "**4, 1, 1**" in answer(0, "run lengths")
    assert np.flatnonzero(mask.flatten("C")).tolist() == [2]
    assert "2, 1, 3" in answer(0, "run lengths")


def test_ap_of_one_detection() -> None:
    assert sum(0.5 + 0.05 * k <= 0.72 for k in range(10)) / 10 == 0.5
    assert answer(0, "IoU of 0.72").startswith("**0.5**")


def test_location_and_centerness() -> None:
    x, y = locations((5, 7), 8)[3 * 7 + 5].tolist()
    assert f"**({x:g}, {y:g})**" in answer(1, "row 3, column 5")
    value = float(centerness(torch.tensor([[10.0, 20, 30, 20]])))
    assert value == pytest.approx(math.sqrt(1 / 3))
    assert f"**{value:.2f}**" in answer(1, "centre-ness?")


def test_cross_entropy_and_focal_loss() -> None:
    easy, hard = -10_000 * math.log(0.99), -10 * math.log(0.5)
    text = answer(1, "focal loss with gamma = 2")
    for number in (f"{easy:.1f}", f"{hard:.1f}", f"{1e-4 * easy:.3f}", f"{0.25 * hard:.2f}"):
        assert number in text


def test_numbers_of_theta() -> None:
    head = DynamicMaskHead(in_channels=16)
    assert head.num_parameters - DynamicMaskHead().num_parameters == 64
    assert f"**{head.num_parameters}**" in answer(2, "16 channels instead of 8")


def test_dice_of_half_an_object() -> None:
    truth = torch.zeros(1, 6, 10, dtype=torch.bool)
    truth[:, :, :4] = True
    half = torch.zeros(1, 6, 10)
    half[:, :, :2] = 1
    assert float(dice_loss(half, truth)) == pytest.approx(1 / 3, abs=1e-4)
    assert float(dice_loss(torch.zeros(1, 6, 10), truth)) == 1
    assert "**One third, and 1.**" in answer(2, "exactly half of an object")


def test_relative_coordinates() -> None:
    place, unit = torch.tensor([[44.0, 28.0]]), torch.tensor([64.0])
    x, y = relative_coordinates((5, 9), 8, place, unit)[0, :, 3, 7].tolist()  # the cell at pixel (60, 28)
    assert f"**({x:g}, {y:g})**" in answer(3, "at pixel (60, 28)")
    assert 100 * 2 * 100 * 150 == 3_000_000


def test_figures_of_papers() -> None:
    rows = table("condinst:table-3")
    text = " ".join(q.question + q.answer for q in read_quiz("03_relative_coordinates"))
    for row in rows.rows:
        assert str(row[rows.names.index("AP")]) in text
    assert round(35.6 - 31.5, 1) == 4.1
    rows = table("dr1mask:table-1")
    text = " ".join(q.question + q.answer for q in read_quiz("06_rank1_convolution"))
    for row in rows.rows:
        assert str(row[rows.names.index("AP")]) in text


def test_sizes() -> None:
    assert f"**{4 * 14 * 14}**" in answer(5, "for its attention")
    assert f"**{4 * 56 * 56:,}**".replace(",", " ") in answer(5, "for its attention")
    assert f"**{9 * 32 * 32}**" in answer(6, "3x3 convolution from 32")
    assert f"**{12 * 12} and {12 + 12}**" in answer(8, "grid of 12 x 12")
    assert f"{40 * 40} and {40 + 40}" in answer(8, "grid of 12 x 12")


def test_panoptic_quality() -> None:
    quality = 8 / (8 + 0.5 * 2 + 0.5 * 2)
    assert f"SQ **0.8**, RQ **{quality:.1f}**" in answer(9, "Ten true segments")
    assert f"PQ **{0.8 * quality:.2f}**" in answer(9, "Ten true segments")


def test_scaling() -> None:
    assert f"**{9 / 13:.2f}**" in answer(10, "share a batch")
    assert f"**{(6 / 12 + 3 / 1) / 2:.2f}**" in answer(10, "share a batch")
    assert f"**{0.01 * 4:g} and 22 500**" in answer(10, "linear rule")
    assert 90_000 * 16 == 22_500 * 64 == 1_440_000


def test_counting_in_half_precision() -> None:
    for dtype, stop in ((torch.bfloat16, 256), (torch.float16, 2048)):
        number, one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
        for _ in range(3000):
            number = number + one
        assert number == stop
        assert str(stop) in answer(10, "Counting in bfloat16")
