"""The order in which images are visited, and the loaders that follow it.

Nothing here has a state: what iteration i sees depends on (seed, i, batch size, the set) alone. So a run that
goes on at iteration i sees what it would have seen, whatever the number of loader processes, and each of several ranks
knows its own share of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from condinst_edu.datasets.transforms import Size, Target, resize_image, to_float
from condinst_edu.errors import UserError

Transform = Callable[[Tensor, Target, int], tuple[Tensor, Target]]
Batch = tuple[list[Tensor], list[Target]]


class Samples(Protocol):
    """A data set: indexable from 0, each sample an image (3, H, W) uint8 and its target."""

    sizes: list[Size]  # (height, width) of each

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, Target]: ...


@lru_cache(maxsize=4)
def epoch_order(epoch: int, length: int, seed: int) -> NDArray[np.int64]:
    """A permutation of 0..length - 1, the same for the same arguments in every version of NumPy."""
    # NumPy promises the raw numbers of a bit generator for good, but not what `permutation` makes of them.
    order = np.argsort(np.random.PCG64([seed, epoch]).random_raw(length), kind="stable")
    order.flags.writeable = False  # the cache hands out the same array again
    return order


def batch_indices(iteration: int, batch_size: int, length: int, seed: int, rank: int = 0, world: int = 1) -> list[int]:
    """Which images iteration `iteration` (from 0) visits: every image once per epoch, batches may straddle two.

    batch_size counts the images of all `world` ranks, of which rank `rank` gets an equal share. seed >= 0.
    """
    positions = (iteration * batch_size + p for p in _share(batch_size, rank, world))
    return [int(epoch_order(p // length, length, seed)[p % length]) for p in positions]


def shape_groups(sizes: Sequence[Size], batch_size: int) -> list[NDArray[np.int64]]:
    """The images that are wider than high and all others, so that a batch of one kind needs little padding.

    Where there are too few of a kind to fill a batch, all images are one group.
    """
    wide = np.array([width > height for height, width in sizes], bool)
    groups = [np.flatnonzero(wide), np.flatnonzero(~wide)]
    return groups if min(map(len, groups)) >= batch_size else [np.arange(len(sizes))]


def grouped_indices(
    iteration: int, batch_size: int, groups: Sequence[NDArray[np.int64]], seed: int, rank: int = 0, world: int = 1
) -> list[int]:
    """As `batch_indices`, with all images from one of one or two groups, which take turns in proportion to their size.

    Each image is visited once per epoch of its group.
    """
    if len(groups) == 1:
        return batch_indices(iteration, batch_size, len(groups[0]), seed, rank, world)
    share, total = len(groups[1]), len(groups[0]) + len(groups[1])
    before = iteration * share // total  # batches of the second group so far, which come as evenly as whole numbers can
    second = (iteration + 1) * share // total > before
    members, turn = (groups[1], before) if second else (groups[0], iteration - before)
    return [int(members[i]) for i in batch_indices(turn, batch_size, len(members), seed, rank, world)]


def visit_seeds(iteration: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> list[int]:
    """A seed for the augmentation of each image of a batch, in the order of `batch_indices`."""
    seeds = np.random.SeedSequence([seed, iteration]).generate_state(batch_size)
    return [int(seeds[p]) for p in _share(batch_size, rank, world)]


def _share(batch_size: int, rank: int, world: int) -> range:
    if batch_size % world:
        raise UserError(f"a batch of {batch_size} images cannot be shared equally by {world} processes.")
    return range(rank * batch_size // world, (rank + 1) * batch_size // world)


class Visit(NamedTuple):
    """One image of one batch: its place in the data set and the seed of its augmentation."""

    image: int
    seed: int


class BatchOrder(Sampler[list[Visit]]):
    """The visits of iterations `start` to `iterations` - 1, batch after batch; sizes: (height, width) of all images."""

    def __init__(
        self,
        sizes: Sequence[Size],
        batch_size: int,
        start: int,
        iterations: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        group_shapes: bool = True,
    ) -> None:
        if seed < 0 or batch_size < 1:
            raise UserError(f"the seed is at least 0 and a batch holds an image or more, not {seed} and {batch_size}.")
        self.groups = shape_groups(sizes, batch_size) if group_shapes else [np.arange(len(sizes))]
        self.batch_size, self.seed = batch_size, seed
        self.iterations = range(start, iterations)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return len(self.iterations)

    def __iter__(self) -> Iterator[list[Visit]]:
        for i in self.iterations:
            indices = grouped_indices(i, self.batch_size, self.groups, self.seed, self.rank, self.world)
            seeds = visit_seeds(i, self.batch_size, self.seed, self.rank, self.world)
            yield [Visit(image, seed) for image, seed in zip(indices, seeds, strict=True)]


class TrainLoader:
    """Training batches, iteration after iteration; UserError where an image cannot be read."""

    def __init__(
        self, dataset: Samples, transform: Transform, order: BatchOrder, workers: int = 0, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.loader: DataLoader[Any] = DataLoader(
            _Visits(dataset, transform),
            batch_sampler=order,
            collate_fn=_pack,
            pin_memory=self.device.type == "cuda",
            **_loader_options(workers),
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for samples in self.loader:
            images, targets = zip(*map(_checked, samples), strict=True)
            yield [self.unpack_image(image) for image in images], [self.unpack(target) for target in targets]

    def unpack_image(self, image: Tensor) -> Tensor:
        """The image as float32 on the device; on the way there uint8 is a quarter of the bytes."""
        image = _move(image, self.device)
        return to_float(image) if image.dtype == torch.uint8 else image

    def unpack(self, target: Target) -> Target:
        """The target as tensors on the device."""
        return {
            k: _move(torch.from_numpy(v), self.device) if isinstance(v, np.ndarray) else v for k, v in target.items()
        }


def build_train_loader(
    dataset: Samples,
    transform: Transform,
    batch_size: int,
    start_iteration: int,
    iterations: int,
    seed: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    group_shapes: bool = True,
    device: str = "cpu",
) -> TrainLoader:
    """Batches of iterations start_iteration..iterations - 1, each (images, targets): two lists, images still unpadded.

    iterations: of the whole schedule; workers: loader processes, 0 loads in this one; the batches are the same.
    group_shapes: wide and high images in batches of their own (`shape_groups`), as the official code does; device:
    where batches are wanted, a GPU copies them from page-locked memory while it computes.
    """
    order = BatchOrder(dataset.sizes, batch_size, start_iteration, iterations, seed, rank, world, group_shapes)
    return TrainLoader(dataset, transform, order, workers, device)


class EvalLoader:
    """Every image once, in order: (image (3, H, W) float32 in [0, 1], resized; image id; stored (height, width))."""

    def __init__(self, dataset: Samples, short_side: int | None, max_size: int | None, workers: int = 0) -> None:
        images = _EvalImages(dataset, short_side, max_size)
        self.loader: DataLoader[Any] = DataLoader(
            images, batch_size=None, collate_fn=_as_is, **_loader_options(workers)
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, int, Size]]:
        for sample in self.loader:
            yield _checked(sample)


def build_eval_loader(
    dataset: Samples, short_side: int | None = None, max_size: int | None = None, workers: int = 0
) -> EvalLoader:
    """The images of a set at the size to evaluate at: None keeps the stored size; max_size None sets no limit."""
    return EvalLoader(dataset, short_side, max_size, workers)


def eval_image(image: Tensor, short_side: int | None, max_size: int | None) -> Tensor:
    """Image (3, H, W) uint8 as a model sees it in evaluation: resized before it becomes float32 in [0, 1]."""
    if short_side is not None:
        image = resize_image(image, short_side, max_size or 2**31)
    return to_float(image)


# What runs in the loader processes


class _Visits(Dataset[Any]):
    """Turns a visit into a sample. An error travels as a value: raised in a process, it would arrive as a traceback."""

    def __init__(self, dataset: Samples, transform: Transform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, visit: Visit) -> tuple[Tensor, Target] | UserError:
        try:
            return self.transform(*self.dataset[visit.image], visit.seed)
        except UserError as error:
            return error


class _EvalImages(Dataset[Any]):
    def __init__(self, dataset: Samples, short_side: int | None, max_size: int | None) -> None:
        self.dataset, self.short_side, self.max_size = dataset, short_side, max_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Size] | UserError:
        try:
            image, target = self.dataset[index]
        except UserError as error:
            return error
        return eval_image(image, self.short_side, self.max_size), target["image_id"], (image.shape[1], image.shape[2])


def _pack(samples: list[tuple[Tensor, Target] | UserError]) -> list[Any]:
    """Targets as arrays, which travel by value: each tensor would take a file descriptor, of which there are 1024."""
    return [
        sample if isinstance(sample, UserError) else (sample[0], {k: _to_array(v) for k, v in sample[1].items()})
        for sample in samples
    ]


def _to_array(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the host does not wait for a GPU's copy, which only page-locked memory allows."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _as_is(sample: Any) -> Any:
    return sample


def _checked(sample: Any) -> Any:
    if isinstance(sample, UserError):
        raise sample
    return sample


def _loader_options(workers: int) -> dict[str, Any]:
    # A generator of its own: a loader draws from torch's otherwise, and a resumed run would draw once more.
    return {"num_workers": workers, "generator": torch.Generator().manual_seed(0)}
