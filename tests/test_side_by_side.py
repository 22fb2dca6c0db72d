"""The comparison of models on one image: how detections are matched, and the shipped models."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from condinst_edu.errors import UserError
from condinst_edu.teach.side_by_side import (
    MODELS,
    compare,
    compare_models,
    crowded,
    matched,
    show_comparison,
    table_of,
)
from condinst_edu.teach.tiny import ROOT, TINY, broken, held_out, read_card


def stripes(*ends: tuple[int, int]) -> torch.Tensor:
    """Masks (N, 6, 20) of columns from a to b."""
    masks = torch.zeros(len(ends), 6, 20, dtype=torch.bool)
    for mask, (a, b) in zip(masks, ends, strict=True):
        mask[:, a:b] = True
    return masks


TARGET = {"masks": stripes((0, 10), (12, 20)), "labels": torch.tensor([1, 2])}


def test_an_object_is_taken_once_by_its_own_class_above_one_half() -> None:
    masks = stripes((0, 8), (0, 10), (12, 20), (12, 20), (12, 16))
    labels = torch.tensor([1, 1, 1, 2, 2])
    expected = [(0, 0.8), (-1, 0), (-1, 0), (1, 1), (-1, 0)]
    assert [(m, round(iou, 6)) for m, iou in matched(masks, labels, TARGET)] == expected
    assert matched(stripes((12, 16)), torch.tensor([2]), TARGET) == [(-1, 0.0)]  # one half is not above one half
    assert matched(masks, labels, {"masks": stripes(), "labels": torch.zeros(0)}) == [(-1, 0.0)] * 5
    assert matched(stripes(), torch.zeros(0), TARGET) == []


class Fixed(nn.Module):
    """Finds the same in every image."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        scores = torch.tensor([0.3, 0.9, 0.1])
        return [{"scores": scores, "labels": torch.tensor([2, 1, 2]), "masks": stripes((12, 18), (0, 10), (12, 20))}]


def test_as_many_detections_count_as_there_are_objects() -> None:
    one = compare(Fixed(), torch.rand(3, 6, 20), TARGET, ap=0.5)
    assert (one.drawn, one.found, round(one.iou, 6), one.ap) == (2, 2, round((1 + 6 / 8) / 2, 6), 0.5)
    swapped = compare(Fixed(), torch.rand(3, 6, 20), {**TARGET, "labels": torch.tensor([2, 1])}, ap=0.5)
    assert (swapped.drawn, swapped.found) == (2, 0)
    assert torch.equal(one.masks, stripes((0, 10), (12, 18)))
    assert one.owners == [0, 1]
    assert swapped.owners == [0, 1]  # drawn, though with the wrong class
    empty = {"masks": stripes(), "labels": torch.zeros(0)}
    none = compare(Fixed(), torch.rand(3, 6, 20), empty, ap=0.5)
    assert (none.drawn, none.found) == (0, 0)
    assert math.isnan(none.iou)
    assert table_of(0, {"SOLO": none})[1][4] == "-"


def test_boxes_crowd_where_their_iou_is_above_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three boxes that touch are less of a crowd than two that overlap by a third."""
    rows = [[[0, 0, 10, 10], [9, 0, 19, 10], [18, 0, 28, 10]], [[0, 0, 10, 10], [5, 0, 15, 10]]]
    images = held_out(3)
    boxes = [torch.zeros(0, 4), *(torch.tensor(row, dtype=torch.float32) for row in rows)]
    monkeypatch.setattr(images, "target", lambda i: {"boxes": boxes[i]})
    assert crowded(images) == 2


def test_a_mask_has_the_colour_of_its_object_and_black_where_it_covers_none() -> None:
    target = {"masks": stripes((12, 20), (0, 10)), "labels": torch.tensor([1, 2])}  # the surest covers the second
    one = compare(Fixed(), torch.zeros(3, 6, 20), target, ap=0.5)
    assert one.owners == [1, 0]
    lost = {"lost": one._replace(owners=[1, -1])}
    axes = show_comparison(torch.ones(3, 6, 20), target, lost).axes
    truth, found = (np.asarray(ax.images[0].get_array()) for ax in axes[1:3])
    assert (truth[0, 5] == found[0, 5]).all()
    assert found[0, 15].tolist() == pytest.approx([0.45] * 3)


def test_the_shipped_models_on_the_most_crowded_image() -> None:
    images = held_out(20)
    index = crowded(images)
    image, target = images[index][0] / 255, images.target(index)
    compared = compare_models(image, target)
    there = [title for name, (title, _) in MODELS.items() if name in TINY and broken(name) is None]
    assert list(compared) == there
    assert {"CondInst", "Mask R-CNN", "SOLO"} <= set(there)
    assert compared["CondInst"].found >= 1
    titles = [ax.get_title() for ax in show_comparison(image, target, compared).axes]
    one = compared["CondInst"]
    assert f"CondInst: {one.drawn} drawn, {one.found} with class" in titles
    heads, *rows = table_of(len(target["masks"]), compared)
    assert [row[0] for row in rows] == there
    assert {len(row) for row in (heads, *rows)} == {7}
    text = (ROOT / "docs" / "comparison.md").read_text()
    for name in (name for name, (title, _) in MODELS.items() if title in there):
        assert f"{read_card(name)['metrics']['mask']['AP']:.3f}" in text  # the page is that of these models


def test_no_model_at_all_is_said_in_words() -> None:
    with pytest.raises(UserError, match="no-such-model"):
        compare_models(torch.rand(3, 6, 20), TARGET, names=["no-such-model"])
