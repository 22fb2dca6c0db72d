"""Truth in place of a part of a model's answers."""

import pytest
import torch
from torch import Tensor

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.shapes_coco import write_shapes
from condinst_edu.teach.oracles import answers_ap, perfect_cells, repair


def rectangles(*corners: tuple[int, int, int, int]) -> Tensor:
    """Masks (N, 24, 40) of rectangles x0, y0, x1, y1."""
    masks = torch.zeros(len(corners), 24, 40, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


TARGET = {"masks": rectangles((0, 0, 10, 10), (20, 5, 36, 21)), "labels": torch.tensor([3, 1])}
ANSWER = {
    "masks": rectangles((0, 0, 10, 8), (22, 5, 36, 21), (0, 0, 5, 10), (30, 21, 40, 24), (11, 0, 19, 3)),
    "labels": torch.tensor([3, 2, 1, 2, 1]),
    "scores": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]),
}


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("once", [False, True])
def test_repair(masks: bool, labels: bool, once: bool) -> None:
    """The first three lie on objects 0, 1, 0; the fourth only touches object 1, the fifth nothing."""
    found = repair(ANSWER, TARGET, masks=masks, labels=labels, once=once)
    stay = [0, 1, 3, 4] if once else [0, 1, 2, 3, 4]
    owner = {0: 0, 1: 1, 2: 0}
    assert found["scores"].tolist() == ANSWER["scores"][stay].tolist()
    for n, k in enumerate(stay):
        right = k in owner
        assert found["labels"][n] == (TARGET["labels"][owner[k]] if labels and right else ANSWER["labels"][k])
        assert torch.equal(found["masks"][n], TARGET["masks"][owner[k]] if masks and right else ANSWER["masks"][k])


def test_above_a_tenth_an_answer_lies_on_an_object() -> None:
    """A fifth of object 0 is enough, and an answer that lies on nothing takes no object from a later one."""
    nothing, fifth, tenth = (30, 21, 40, 24), (0, 0, 4, 5), (0, 0, 2, 5)
    answer = {"masks": rectangles(nothing, fifth, tenth), "labels": torch.tensor([2, 2, 2])}
    answer["scores"] = torch.tensor([0.9, 0.8, 0.7])
    first = {key: value[:1] for key, value in TARGET.items()}
    found = repair(answer, first, labels=True, once=True)
    assert found["scores"].tolist() == answer["scores"].tolist()
    assert found["labels"].tolist() == [2, 3, 2]


def test_no_answer_stays_none() -> None:
    nothing = {key: value[:0] for key, value in ANSWER.items()}
    assert repair(nothing, TARGET, masks=True, labels=True, once=True)["masks"].shape == (0, 24, 40)


def test_perfect_cells() -> None:
    """Each object once, exact where its borders lie on the maps' grid, and none that no range takes."""
    target = {
        "masks": torch.zeros(3, 64, 96, dtype=torch.bool),
        "labels": torch.tensor([3, 1, 2]),
        "boxes": torch.tensor([[8.0, 8, 24, 24], [40, 16, 80, 56], [90, 60, 92, 62]]),
    }
    for mask, (x0, y0, x1, y1) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    found = perfect_cells(target, (6, 4), (8, 16), ((10, 30), (12, 64)))
    order = found["labels"].argsort(descending=True)  # of the third there is nothing
    assert found["labels"][order].tolist() == [3, 1]
    overlap = (found["masks"][order] & target["masks"][:2]).sum(dim=(1, 2))
    union = (found["masks"][order] | target["masks"][:2]).sum(dim=(1, 2))
    assert (overlap / union > 0.95).all()
    found = perfect_cells(target, (4, 6), (16, 8), ((31, 64), (10, 30)))
    assert found["labels"].tolist() == [1, 3]  # the large one first, and with its own label
    assert (found["masks"][0] & target["masks"][1]).any()
    assert len(perfect_cells(target, (6,), (8,), ((100, 200),))["masks"]) == 0


def test_the_truth_scores_100(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=1, val=3, show_progress=False)
    images = CocoDataset(folder / "val", folder / "annotations" / "instances_val.json")
    truth = [
        {"masks": t["masks"].bool(), "labels": t["labels"], "scores": torch.ones(len(t["labels"]))}
        for t in (images[n][1] for n in range(3))
    ]
    assert answers_ap(images, truth) == pytest.approx(100)
    assert answers_ap(images, truth[:2]) == pytest.approx(100)  # of the first two images
    wrong = [{**answer, "labels": answer["labels"] % 5 + 1} for answer in truth]
    assert answers_ap(images, wrong) < 50
    assert answers_ap(images, [repair(a, images[n][1], labels=True) for n, a in enumerate(wrong)]) == pytest.approx(100)
