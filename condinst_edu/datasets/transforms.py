"""From a stored image and its target to what a model is trained on: resized, mirrored, with masks at the mask stride.

Boxes are xyxy in pixels, so that pixel i covers i..i + 1; all of it keeps image, boxes and masks in step. Sizes follow
detectron2's rule, which the official code uses.

Legend: N objects, H, W image, h, w mask map.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as tv

from condinst_edu.condinst import smallest_label
from condinst_edu.datasets.outlines import Drawn, Placement, Segmentation, decode_masks, draw_polygons
from condinst_edu.layers.images import Size

Target = dict[str, Any]


def resized_size(size: Size, short_side: int, max_size: int) -> Size:
    """(height, width) with the short side at `short_side`, or less where the long side would exceed `max_size`.

    Rounded as detectron2 rounds: int(x + 0.5).
    """
    height, width = size
    scale = short_side / min(height, width)
    new_height, new_width = scale * height, scale * width
    longest = max(new_height, new_width)
    if longest > max_size:
        new_height, new_width = new_height * (max_size / longest), new_width * (max_size / longest)
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: Tensor, short_side: int, max_size: int) -> Tensor:
    """Image (3, H, W), uint8 or float, at `resized_size`; bilinear, smoothed where it shrinks."""
    size = resized_size((image.shape[1], image.shape[2]), short_side, max_size)
    return image if size == tuple(image.shape[1:]) else tv.resize(image, list(size), antialias=True)


def resize(image: Tensor, target: Target, short_side: int, max_size: int) -> tuple[Tensor, Target]:
    """Image (3, H, W) and target at `resized_size`; masks by the nearest pixel, boxes by the same two factors."""
    resized = resize_image(image, short_side, max_size)
    height, width = resized.shape[1] / image.shape[1], resized.shape[2] / image.shape[2]
    target = {**target, "boxes": target["boxes"] * torch.tensor([width, height, width, height])}
    if "masks" in target:
        target["masks"] = resize_nearest(target["masks"], (resized.shape[1], resized.shape[2]))
    return resized, target


def hflip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Image (3, H, W) and target, mirrored left to right."""
    x1, y1, x2, y2 = target["boxes"].unbind(dim=1)
    target = {**target, "boxes": torch.stack([image.shape[2] - x2, y1, image.shape[2] - x1, y2], dim=1)}
    if "masks" in target:
        target["masks"] = target["masks"].flip(2)
    return image.flip(2), target


def vflip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Image (3, H, W) and target, turned upside down."""
    x1, y1, x2, y2 = target["boxes"].unbind(dim=1)
    target = {**target, "boxes": torch.stack([x1, image.shape[1] - y2, x2, image.shape[1] - y1], dim=1)}
    if "masks" in target:
        target["masks"] = target["masks"].flip(1)
    return image.flip(1), target


def resize_nearest(masks: Tensor, size: Size) -> Tensor:
    """Masks (N, H, W) at another size: each pixel reads the one that its centre falls into ("nearest-exact")."""
    if size == tuple(masks.shape[1:]):
        return masks
    rows, columns = (nearest_pixels(old, new) for old, new in zip(masks.shape[1:], size, strict=True))
    return read_masks(masks, rows, columns)


def nearest_pixels(old: int, new: int) -> Tensor:
    """For each of `new` pixels of a line, the one of `old` pixels over the same length that its centre falls into."""
    return ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new)).long().clamp(max=old - 1)


def read_masks(masks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The masks (N, H, W) made of these rows (h,) and columns (w,) of masks: (N, h, w)."""
    # NumPy's take is several times quicker than indexing in torch.
    return torch.from_numpy(masks.numpy().take(rows.numpy(), axis=1).take(columns.numpy(), axis=2))


def read_centers(masks: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Area (N,) and mass centre (N, 2) of `read_masks(masks, rows, columns)`, exactly, without making those masks.

    A stored pixel counts as often as it is read, with the sum of the places that read it: two small products.
    Centres are (x, y) in pixel indices, float32; that of an empty mask is (0, 0).
    """
    along_y, along_x = (
        torch.stack([torch.bincount(i, minlength=n).double(), torch.bincount(i, torch.arange(len(i)), n).double()])
        for i, n in ((rows, masks.shape[1]), (columns, masks.shape[2]))
    )  # (2, H), (2, W): how often each is read, sum of the places
    moments = along_y @ (masks.float() @ along_x.T.float()).double()  # (N, 2, 2); float32 is exact along one row
    area = moments[:, 0, 0]
    centers = torch.stack([moments[:, 0, 1], moments[:, 1, 0]], dim=1) / area.clamp(min=1)[:, None]
    return area, centers.float()


def select(target: Target, keep: Tensor) -> Target:
    """The target with only the objects in `keep` (N,) bool."""
    if bool(keep.all()):
        return dict(target)
    return {name: _select(value, keep) for name, value in target.items()}


def _select(value: Any, keep: Tensor) -> Any:
    if isinstance(value, list):
        return [item for item, wanted in zip(value, keep.tolist(), strict=True) if wanted]
    return value[keep] if isinstance(value, Tensor) else value


def drop_crowd(target: Target) -> Target:
    """The target without crowd regions, which are no objects to learn from."""
    return select(target, ~target["iscrowd"])


def sample_masks(masks: Tensor, stride: int) -> Tensor:
    """Masks (N, H, W) read where the cells of a map of that stride sit: pixels stride//2, stride//2 + stride, ..."""
    return masks[:, stride // 2 :: stride, stride // 2 :: stride]


def to_float(image: Tensor) -> Tensor:
    """Image (3, H, W) uint8 as float32 in [0, 1]."""
    return image.to(torch.float32).div_(255)


@dataclass(frozen=True)
class TrainTransform:
    """What a training image goes through; the same (image, target, seed) always gives the same result.

    short_sides: pixels, one is drawn per visit, none keeps the stored size; max_size: of the long side, pixels; flip,
    vflip: probabilities; mask_stride: pixels between two cells of the masks, None keeps full-size masks;
    semantic_stride: the same of a map of labels, the smallest object on top, None makes none; crop: (height, width) of
    a random part of it, at most, which goes with full-size masks.
    """

    short_sides: tuple[int, ...] = ()
    max_size: int = 1333
    flip: float = 0.5
    vflip: float = 0.0
    mask_stride: int | None = None
    semantic_stride: int | None = None
    crop: tuple[int, int] | None = None

    def __call__(self, image: Tensor, target: Target, seed: int) -> tuple[Tensor, Target]:
        """Image (3, H, W) uint8 and target -> image uint8 and target without crowds and empty objects.

        The loader makes floats of it (`to_float`) where they are needed: bytes are cheaper to hand on.

        With a mask stride, masks are `sample_masks` of the full-size ones (H, W not padded; an object between the cells
        has an empty one and stays, as in the official code), and `centers` (N, 2) are those of the full-size ones.
        With a semantic stride, `semantic` (h, w) is the model's `semantic_map`.
        Where the target has `segmentations` in place of masks, polygons move with the image and are drawn in the end,
        as in the official code: quicker, and finer in an enlarged image. Stored masks are resized.
        """
        generator = torch.Generator().manual_seed(seed)
        # All numbers are drawn whatever is asked for, so that one setting does not change the luck of another.
        chance_h, chance_v, size = torch.rand(3, generator=generator).tolist()
        target = drop_crowd(target)
        # Masks wait: instead of each step in turn, they follow where pixels go in the end.
        stored = target.pop("masks") if "masks" in target else target.pop("segmentations")
        old = (image.shape[1], image.shape[2])
        if self.short_sides:
            short_side = self.short_sides[int(size * len(self.short_sides))]
            image, target = resize(image, target, short_side, self.max_size)
        place = Placement(old, (image.shape[1], image.shape[2]), chance_h < self.flip, chance_v < self.vflip)
        if place.mirror:
            image, target = hflip(image, target)
        if place.turn:
            image, target = vflip(image, target)
        draw = draw_masks if isinstance(stored, Tensor) else draw_segmentations
        semantic = None
        if self.semantic_stride is not None:
            coarse = draw(stored, place, self.semantic_stride)
            semantic = smallest_label(coarse.masks, coarse.area, target["labels"])
        target = finish_target(target, draw(stored, place, self.mask_stride), place.new)
        if semantic is not None:
            target["semantic"] = semantic
        if self.mask_stride is None:
            del target["centers"]  # full-size masks tell
            if self.crop is not None:
                return random_crop(image, target, self.crop, generator)
        return image, target


def random_crop(image: Tensor, target: Target, crop: Size, generator: torch.Generator) -> tuple[Tensor, Target]:
    """A part of image (3, H, W) and full-size masks, as large as `crop` where they are; objects that lose all go."""
    height, width = (min(side, most) for side, most in zip(image.shape[1:], crop, strict=True))
    share_y, share_x = torch.rand(2, generator=generator).tolist()
    top, left = int(share_y * (image.shape[1] - height + 1)), int(share_x * (image.shape[2] - width + 1))
    part = (slice(None), slice(top, top + height), slice(left, left + width))
    masks = target["masks"][part]
    boxes = clip_boxes_to_image(target["boxes"] - torch.tensor([left, top, left, top]), (height, width))
    keep = masks.flatten(1).any(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return image[part], select({**target, "masks": masks, "boxes": boxes}, keep)


def draw_masks(masks: Tensor, place: Placement, stride: int | None) -> Drawn:
    """Masks (N, H, W) of the stored image where it is placed, each pixel from the nearest; as `draw_polygons`."""
    rows, columns = (nearest_pixels(old, new) for old, new in zip(place.old, place.new, strict=True))
    rows = rows.flip(0) if place.turn else rows
    columns = columns.flip(0) if place.mirror else columns
    area, centers = read_centers(masks, rows, columns)
    if stride is not None:
        rows, columns = rows[stride // 2 :: stride], columns[stride // 2 :: stride]
    return Drawn(read_masks(masks, rows, columns), area, centers)


def draw_segmentations(segmentations: list[Segmentation], place: Placement, stride: int | None) -> Drawn:
    """Polygons by `draw_polygons`, RLEs by way of their full-size masks (`draw_masks`), in the order given."""
    is_rle = torch.tensor([isinstance(s, bytes) for s in segmentations], dtype=torch.bool)
    polygons = draw_polygons([s for s in segmentations if not isinstance(s, bytes)], place, stride)
    if not is_rle.any():
        return polygons
    rles = draw_masks(decode_masks([s for s in segmentations if isinstance(s, bytes)], place.old), place, stride)
    order = torch.argsort(torch.cat([torch.where(~is_rle)[0], torch.where(is_rle)[0]]))
    masks, area, centers = (torch.cat(parts)[order] for parts in zip(polygons, rles, strict=True))
    return Drawn(masks, area, centers)


def finish_target(target: Target, drawn: Drawn, size: Size) -> Target:
    """The target with its masks and their centres, boxes cut off at the image's edge; empty objects are left out."""
    target = {**target, "boxes": clip_boxes_to_image(target["boxes"], size)}
    x1, y1, x2, y2 = target["boxes"].unbind(dim=1)
    keep = (drawn.area > 0) & (x2 > x1) & (y2 > y1)
    return select({**target, "masks": drawn.masks, "centers": drawn.centers}, keep)
