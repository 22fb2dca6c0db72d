"""The order of images: every image once per epoch, the same after a resume, on any number of processes and ranks."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import odd_folder, random_folder
from torch import Tensor

from condinst_edu.datasets.batching import (
    batch_indices,
    build_eval_loader,
    build_train_loader,
    epoch_order,
    grouped_indices,
    shape_groups,
    visit_seeds,
)
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.transforms import TrainTransform, resize_image
from condinst_edu.errors import UserError


def assert_equal_batches(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for (images, targets), (images_, targets_) in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, images_, strict=True))
        for a, b in zip(targets, targets_, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                assert torch.equal(value, b[key]) if isinstance(value, Tensor) else value == b[key]


@pytest.mark.parametrize(("length", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 2), (1000, 16)])
def test_every_image_once_per_epoch(length: int, batch_size: int) -> None:
    visits = [index for i in range(3 * length) for index in batch_indices(i, batch_size, length, seed=5)]
    epochs = [visits[k : k + length] for k in range(0, len(visits) - length + 1, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    if length > 3:
        assert epochs[0] != epochs[1]
        assert epochs[0] != list(range(length))
        assert [i for k in range(3 * length) for i in batch_indices(k, batch_size, length, seed=6)] != visits


def test_order_is_the_same_everywhere() -> None:
    """Fixed numbers: a checkpoint from another machine or version of NumPy goes on with the same order."""
    assert epoch_order(0, 8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert visit_seeds(3, 2, 1) == [4010755824, 4093133998]
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 8, 0)[0] = 1


def test_order_is_even() -> None:
    """Each image is first in its epoch about equally often."""
    first = [batch_indices(0, 1, 5, seed)[0] for seed in range(1000)]
    assert all(150 < first.count(i) < 250 for i in range(5))
    seeds = [s for i in range(500) for s in visit_seeds(i, 8, seed=0)]
    assert len(set(seeds)) > 3990


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_batch(world: int) -> None:
    for i in range(5):
        shares = [batch_indices(i, 8, 11, 0, rank, world) for rank in range(world)]
        assert [len(share) for share in shares] == [8 // world] * world
        assert list(chain(*shares)) == batch_indices(i, 8, 11, 0)
        seeds = [visit_seeds(i, 8, 0, rank, world) for rank in range(world)]
        assert list(chain(*seeds)) == visit_seeds(i, 8, 0)
    with pytest.raises(UserError, match="a batch of 8 images cannot be shared equally by 3 processes"):
        batch_indices(0, 8, 11, 0, 0, 3)


SIZES = [(48, 64)] * 23 + [(64, 48)] * 9 + [(50, 50)] * 2
GROUPS = shape_groups(SIZES, 4)


def test_shape_groups() -> None:
    """Square images go with the high ones; a kind that cannot fill a batch is no group of its own."""
    assert [group.tolist() for group in GROUPS] == [list(range(23)), list(range(23, 34))]
    assert [group.tolist() for group in shape_groups(SIZES, 12)] == [list(range(34))]
    assert [len(group) for group in shape_groups([(9, 9)] * 5, 2)] == [5]


@pytest.mark.parametrize("start", [0, 1000])
def test_grouped_batches(start: int) -> None:
    """Batches are of one kind, each image as frequent as any other, and within its group's epoch visited once."""
    batches = [grouped_indices(i, 4, GROUPS, seed=3) for i in range(start, start + 34 * 11)]
    kinds = [{index < 23 for index in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert kinds.count({True}) == 23 * 11
    assert all({False} in kinds[k : k + 4] for k in range(len(kinds) - 4))  # 11 of 34 are high: one in four at least
    counts = [sum(batch.count(image) for batch in batches) for image in range(34)]
    assert max(counts) - min(counts) <= 2
    if start == 0:
        for low, high in ((0, 23), (23, 34)):
            visits = [image for batch in batches for image in batch if low <= image < high]
            epochs = [visits[k : k + high - low] for k in range(0, len(visits), high - low)]
            assert all(sorted(epoch) == list(range(low, high)) for epoch in epochs)


def test_grouped_batches_of_one_group_or_several_ranks() -> None:
    for i in range(40):
        assert grouped_indices(i, 4, shape_groups(SIZES[:23], 4), 3) == batch_indices(i, 4, 23, 3)
        shares = [grouped_indices(i, 4, GROUPS, 3, rank, 2) for rank in range(2)]
        assert list(chain(*shares)) == grouped_indices(i, 4, GROUPS, 3)


def test_loader_groups(tmp_path: Path) -> None:
    folder = odd_folder(tmp_path / "odd")
    mixed = CocoDataset(folder.images, folder.annotations)
    mixed.sizes = [(size[1], size[0]) if i % 2 else size for i, size in enumerate(mixed.sizes)]
    order = build_train_loader(mixed, TRANSFORM, 2, 5, 9, seed=1).loader.batch_sampler
    assert [[visit.image for visit in batch] for batch in order or ()] == [
        grouped_indices(i, 2, [np.array([0, 2, 4]), np.array([1, 3])], 1) for i in range(5, 9)
    ]
    order = build_train_loader(mixed, TRANSFORM, 2, 5, 9, seed=1, group_shapes=False).loader.batch_sampler
    assert [[visit.image for visit in batch] for batch in order or ()] == [
        batch_indices(i, 2, 5, 1) for i in range(5, 9)
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_batches_on_a_gpu(dataset: CocoDataset) -> None:
    expected = list(build_train_loader(dataset, TRANSFORM, 3, 0, 2, seed=1))
    found = list(build_train_loader(dataset, TRANSFORM, 3, 0, 2, seed=1, workers=1, device="cuda"))
    for images, targets in found:
        assert all(image.is_cuda for image in images)
        assert all(value.is_cuda for target in targets for value in target.values() if isinstance(value, Tensor))
    moved = [
        (
            [image.cpu() for image in images],
            [{k: v.cpu() if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets],
        )
        for images, targets in found
    ]
    for (images, targets), (images_, targets_) in zip(expected, moved, strict=True):
        torch.testing.assert_close(images, images_)
        torch.testing.assert_close(targets, targets_)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder = random_folder(tmp_path_factory.mktemp("data") / "images", 7)
    return CocoDataset(folder.images, folder.annotations, cache=True)


TRANSFORM = TrainTransform((40, 48, 56), 100, 0.5, 0.5, 4)


def test_batches(dataset: CocoDataset) -> None:
    loader = build_train_loader(dataset, TRANSFORM, 3, 2, 6, seed=1)
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    for i, (images, targets) in enumerate(batches, start=2):
        ids = [dataset.image_ids[index] for index in batch_indices(i, 3, 7, 1)]
        assert [target["image_id"] for target in targets] == ids
        for image, target in zip(images, targets, strict=True):
            assert image.dtype == torch.float32
            assert 0.9 < image.max() <= 1
            assert target["masks"].shape == (len(target["boxes"]), *image[0, 2::4, 2::4].shape)
            assert target["masks"].dtype == torch.bool


def test_resumed_run_sees_the_same(dataset: CocoDataset) -> None:
    whole = list(build_train_loader(dataset, TRANSFORM, 3, 0, 8, seed=1))
    resumed = list(build_train_loader(dataset, TRANSFORM, 3, 5, 8, seed=1))
    assert_equal_batches(whole[5:], resumed)
    assert not list(build_train_loader(dataset, TRANSFORM, 3, 8, 8, seed=1))


def test_workers_give_the_same(dataset: CocoDataset) -> None:
    alone = list(build_train_loader(dataset, TRANSFORM, 4, 1, 6, seed=2))
    assert_equal_batches(alone, list(build_train_loader(dataset, TRANSFORM, 4, 1, 6, seed=2, workers=2)))


def test_loaders_leave_the_random_state_alone(dataset: CocoDataset) -> None:
    """What the model draws must not depend on whether a loader was started in between."""
    state = torch.get_rng_state()
    list(build_train_loader(dataset, TRANSFORM, 4, 0, 2, seed=2))
    list(build_eval_loader(dataset))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_sentence(tmp_path: Path, workers: int) -> None:
    folder = random_folder(tmp_path / "images", 4)
    broken = CocoDataset(folder.images, folder.annotations)
    (folder.images / "2.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^\S+2\.png cannot be read as an image: [^\n]*$"):
        list(build_train_loader(broken, TRANSFORM, 2, 0, 4, seed=0, workers=workers))
    with pytest.raises(UserError, match=r"^\S+2\.png cannot be read as an image: [^\n]*$"):
        list(build_eval_loader(broken, workers=workers))


def test_impossible_settings(dataset: CocoDataset) -> None:
    for batch_size, seed in ((0, 0), (2, -1)):
        with pytest.raises(UserError, match="the seed is at least 0 and a batch holds an image or more"):
            build_train_loader(dataset, TRANSFORM, batch_size, 0, 2, seed)


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_loader(tmp_path: Path, workers: int) -> None:
    folder = odd_folder(tmp_path / "odd")
    odd = CocoDataset(folder.images, folder.annotations)
    native = list(build_eval_loader(odd, workers=workers))
    resized = list(build_eval_loader(odd, 64, 90, workers))
    assert [image_id for _, image_id, _ in native] == [image_id for _, image_id, _ in resized] == odd.image_ids
    assert [size for _, _, size in native] == [size for _, _, size in resized] == odd.sizes
    for i in range(len(odd)):
        assert torch.equal(native[i][0], odd.image(i) / 255)
        assert torch.equal(resized[i][0], resize_image(odd.image(i), 64, 90) / 255)
