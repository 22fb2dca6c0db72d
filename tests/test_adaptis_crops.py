"""AdaptIS crop by crop: where crops lie, how their objects are put together; official numbers in another file."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from helpers import same, seeded
from torch import Tensor

from condinst_edu.adaptis import AdaptIS
from condinst_edu.adaptis_crops import Crop, crop_offsets, iou_of_labels, join_crops, segment_large
from condinst_edu.adaptis_greedy import Aggregate, cut_around


@pytest.mark.parametrize(("length", "crop"), [(256, 96), (97, 96), (96, 96), (50, 96), (1000, 333)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_crop_offsets(length: int, crop: int, overlap: float) -> None:
    """They cover the image, none ends beyond it, and neighbours share at least what was asked for."""
    offsets, shared = crop_offsets(length, crop, overlap)
    assert offsets[0] == 0
    assert offsets[-1] == max(0, length - crop)
    assert all(0 < b - a <= crop - shared for a, b in pairwise(offsets))
    assert len(offsets) == 1 or shared >= int(overlap * crop)


def crop_of(x: int, y: int, instances: list[list[int]], probability: float = 0.9) -> Crop:
    """A crop whose objects have this probability on their pixels and 0.1 elsewhere."""
    labels = torch.tensor(instances)
    count = int(labels.max())
    masks = labels == torch.arange(1, count + 1).view(-1, 1, 1)
    points = torch.stack([m.nonzero()[0].flip(0) for m in masks]).float() if count else torch.zeros(0, 2)
    confidence = torch.where(masks, probability, 0.1)
    return Crop(x, y, Aggregate(labels, confidence, points, confidence.amax(dim=(1, 2)), []))


def test_objects_of_two_crops() -> None:
    """Crops of 2 x 4 share two columns; of what lies there, an IoU above 0.3 makes two objects one."""
    left = crop_of(0, 0, [[1, 1, 2, 2], [0, 0, 3, 2]])
    right = crop_of(2, 0, [[1, 1, 1, 0], [2, 0, 3, 3]], probability=0.7)
    confidence, points = join_crops([left, right], (2, 6), (0, 2))
    assert points.tolist() == [[0, 0], [2, 0], [2, 1], [4, 1]]
    same(confidence[1, 0], [0.1, 0.1, 0.8, 0.8, 0.7, 0.1], 1e-6)  # IoU 2 of 3
    same(confidence[2, 1], [0.1, 0.1, 0.8, 0.1, 0.1, 0.1], 1e-6)  # the same pixel
    same(confidence[3, 1], [0, 0, 0.1, 0.1, 0.7, 0.7], 1e-6)  # new, and unknown in the first crop
    same(confidence[0, 0], [0.9, 0.9, 0.1, 0.1, 0, 0], 1e-6)


def test_objects_below() -> None:
    """Below, the IoU must be above 0.5, or in the left part above 0.3; without either an object is new."""
    top = [crop_of(0, 0, [[0, 0, 0, 0], [1, 1, 1, 1]]), crop_of(2, 0, [[0, 0, 0, 0], [1, 1, 1, 1]])]
    same_object = crop_of(0, 1, [[1, 1, 1, 0], [0, 0, 0, 0]])
    half = crop_of(0, 1, [[1, 1, 0, 0], [0, 0, 0, 0]])
    assert len(join_crops([*top, same_object], (3, 6), (1, 2))[1]) == 1
    assert len(join_crops([*top, half], (3, 6), (1, 2))[1]) == 2  # exactly half
    right = crop_of(2, 1, [[0, 0, 1, 0], [1, 1, 1, 1]])
    confidence, _ = join_crops([*top, half, right], (3, 6), (1, 2))
    assert len(confidence) == 3
    row = crop_of(0, 1, [[1, 1, 0, 0], [1, 1, 1, 1]])  # new above; goes on to the right
    assert len(join_crops([*top, row, right], (3, 6), (1, 2))[1]) == 2


def test_seams() -> None:
    """Above, the rows that crops share count, and not in the first row of crops; on the left the columns, above 0.3."""
    full, none = [1, 1, 1, 1], [0, 0, 0, 0]
    above, below = crop_of(0, 0, [none, none, none, full]), crop_of(0, 3, [full, full, full, none])
    assert len(join_crops([above, below], (7, 4), (1, 3))[1]) == 1  # one row is shared, in which they are the same
    left = crop_of(0, 0, [[0, 0, 1, 1]] * 4)
    right = crop_of(2, 0, [[1, 1, 0, 0], none, none, none])
    assert len(join_crops([left, right], (4, 6), (1, 2))[1]) == 2  # a quarter; all of it in the first row
    left = crop_of(0, 0, [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0], none])
    right = crop_of(2, 0, [[1, 1, 0, 0], none, none, none])
    assert len(join_crops([left, right], (4, 6), (1, 2))[1]) == 1  # 2 of 5


def test_the_first_object_of_each_crop_in_the_published_code() -> None:
    left = crop_of(0, 0, [[1, 1, 2, 2]])
    right = crop_of(2, 0, [[1, 1, 0, 2]])
    assert join_crops([left, right], (1, 6), (0, 2))[1].tolist() == [[0, 0], [2, 0], [5, 0]]
    confidence, points = join_crops([left, right], (1, 6), (0, 2), first_is_one=True)
    assert points.tolist() == [[0, 0], [2, 0], [5, 0]]
    same(confidence[0, 0], [0.9, 0.9, 0.5, 0.5, 0.1, 0.1], 1e-6)
    crops = [left, crop_of(2, 0, [[2, 2, 1, 1]]), crop_of(4, 0, [[2, 2, 0, 1]])]
    assert len(join_crops(crops, (1, 8), (0, 2))[1]) == 4
    points = join_crops(crops, (1, 8), (0, 2), first_is_one=True)[1]
    assert points.tolist() == [[0, 0], [2, 0], [4, 0]]  # the last lies on a first object, which is none


def test_crops_without_objects() -> None:
    empty = crop_of(0, 0, [[0, 0, 0]])
    confidence, points = join_crops([empty, crop_of(2, 0, [[0, 1, 1]])], (1, 5), (0, 1))
    same(confidence[0, 0], [0, 0, 0.1, 0.9, 0.9], 1e-6)
    assert points.tolist() == [[3, 0]]
    assert join_crops([empty], (1, 3), (0, 0))[0].shape == (0, 1, 3)


def naive_iou(a: Tensor, b: Tensor, counts: Sequence[int]) -> list[list[float]]:
    rows = []
    for i in range(1, counts[0] + 1):
        pairs = [((a == i) & (b == j), (a == i) | (b == j)) for j in range(1, counts[1] + 1)]
        rows.append([float(both.sum() / either.sum()) if either.any() else 0.0 for both, either in pairs])
    return rows


def test_iou_of_labels() -> None:
    a, b = (torch.randint(n, (13, 17), generator=seeded(n)) for n in (4, 7))
    same(iou_of_labels(a, b, 5, 7), naive_iou(a, b, (5, 7)), 1e-6)
    assert iou_of_labels(a[:0], b[:0], 5, 0).shape == (5, 0)


def test_cut_around() -> None:
    cut = cut_around(torch.ones(2, 6, 9), torch.tensor([[4.0, 2], [0, 5]]), 2)
    assert cut[0].nonzero().tolist() == [[y, x] for y in range(4) for x in range(2, 6)]
    assert cut[1].nonzero().tolist() == [[y, x] for y in (3, 4, 5) for x in (0, 1)]


def tiny(**options: int | float) -> AdaptIS:
    torch.manual_seed(0)
    model = AdaptIS(backbone_options={"width": 4, "depth": 1}, branch_width=4, limit=6, threshold=0.3, **options)  # type: ignore[arg-type]
    model.state_dict()["head.after.1.bias"] += 5
    model.state_dict()["semantic.3.bias"][0] -= 3
    return model.eval()


def test_an_image_of_one_crop() -> None:
    """Nothing changes where the crop holds the whole image."""
    model, image = tiny(), torch.rand(3, 21, 30, generator=seeded(0))
    whole = model.look(image).aggregate(seeded(1))
    for crop in ((21, 30), (40, 30)):
        found = segment_large(model, image, crop, generator=seeded(1))
        assert torch.equal(found.instances, whole.instances)
        same(found.probabilities, whole.probabilities, 0)
        same(found.points, whole.points, 0)
        same(found.scores, whole.scores, 1e-6)
    assert len(whole.points)


def test_a_large_image() -> None:
    """Each crop is looked at by itself, in the size of the crops; a mask ends where its point is far."""
    model, image = tiny(cut_radius=7), torch.rand(3, 33, 50, generator=seeded(0))
    sizes = []
    model.backbone.register_forward_hook(lambda _, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
    found = segment_large(model, image, (16, 24), 0.2, seeded(1))
    assert set(sizes) == {(16, 24)}
    assert len(sizes) == 3 * 3
    assert found.instances.shape == (33, 50)
    assert found.instances.max() <= len(found.points) == len(found.probabilities) > 0
    highest, index = found.probabilities.max(dim=0)
    assert torch.equal(found.instances, (index + 1) * (highest > 0.3))
    assert 0 < (found.instances == 0).sum() < 33 * 50
    x, y = found.points.T
    assert ((x >= 0) & (x < 50) & (y >= 0) & (y < 33)).all()
    drawn = model.look(image[:, :16, :24]).draw(torch.tensor([[12.0, 3.0]]))[0]
    assert drawn[:, :5].sum() == drawn[10:].sum() == 0 < drawn[3, 12]


def test_a_large_image_without_an_object() -> None:
    model = tiny()
    model.threshold = 1.0
    found = segment_large(model, torch.rand(3, 33, 50), (16, 24))
    assert found.instances.shape == (33, 50)
    assert found.instances.sum() == 0
    assert found.masks.shape == (0, 33, 50)
