"""BlendMask: the blender and its relatives against loops over cells, cropping and pasting, the model as a whole."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    TINY,
    check_gradients,
    empty_target,
    enliven,
    gradients,
    mask_boxes,
    random_boxes,
    random_targets,
    same,
    seeded,
)
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from condinst_edu.blendmask import (
    BasisModule,
    BlendMask,
    DeepLabBases,
    blend,
    crop_bases,
    crop_masks,
    merge_bases,
    paste_masks,
)
from condinst_edu.condinst import semantic_map
from condinst_edu.engine.recipe import build_model
from condinst_edu.errors import UserError
from condinst_edu.fcos import centerness, to_output_size
from condinst_edu.layers.images import make_batch
from condinst_edu.papers import naive_slides as naive
from condinst_edu.recipes import get_recipe

SIZE = (117, 203)


def tiny_blendmask(num_classes: int = 3, **options: Any) -> BlendMask:
    """A whole BlendMask that runs in milliseconds."""
    head = {"tower_convs": 1, **options.pop("head", {})}
    bases = {"channels": 16, **options.pop("bases", {})}
    small = {"attention": 7, "size": 28}
    return BlendMask(num_classes, bases=bases, **{**TINY, **small, **options}, head=head)


def lively(**options: Any) -> BlendMask:
    torch.manual_seed(0)
    model = tiny_blendmask(**options)
    enliven(model, seeded(0))
    return model.eval()


def random_image(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(3, *size, generator=seeded(seed))


# ------------------------------------------------------------------------------------------------------------ blender


def naive_blend(bases: Tensor, boxes: Sequence[Tensor], attention: Tensor, stride: float, size: int) -> Tensor:
    """All boxes, one after the other."""
    owners = [(image, box) for image, found in enumerate(boxes) for box in found.tolist()]
    each = zip(owners, attention, strict=True)
    return torch.stack([naive.blend(naive.crop(bases[image], box, stride, size), a) for (image, box), a in each])


def scene(cells: int, bases: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Tensor], Tensor]:
    """Bases of three images of 44 x 76 pixels at stride 4, boxes in two of them (some over the edge), attention."""
    generator = seeded(cells)
    maps = torch.randn(3, bases, 11, 19, generator=generator, dtype=dtype)
    over_the_edge = torch.tensor([[-9.0, -6.0, 20.0, 17.5], [60.0, 30.0, 90.0, 52.0], [13.0, 7.0, 14.0, 8.0]])
    boxes = [random_boxes(2, (44, 76), generator).to(dtype), torch.zeros(0, 4, dtype=dtype), over_the_edge.to(dtype)]
    return maps, boxes, torch.randn(5, bases, cells, cells, generator=generator, dtype=dtype) * 2


@pytest.mark.parametrize(("cells", "size"), [(1, 5), (3, 7), (7, 7), (5, 4)])
def test_blend_by_cells(cells: int, size: int) -> None:
    """Values and gradients, with boxes over the edge, a box of one pixel, an image without boxes."""
    bases, boxes, attention = scene(cells)
    bases.requires_grad_()
    attention.requires_grad_()
    expected, ours = naive_blend(bases, boxes, attention, 4, size), blend(bases, boxes, attention, 4, size)
    same(ours.detach(), expected.detach())
    weight = torch.randn(ours.shape, generator=seeded(1), dtype=torch.float64)
    inputs = [bases, attention]
    for a, b in zip(
        gradients((ours * weight).sum(), inputs), gradients((expected * weight).sum(), inputs), strict=True
    ):
        assert b.abs().sum() > 0
        same(a, b)


def test_attention_of_one_cell_is_yolact() -> None:
    """A vector of weights: the weighted sum of whole maps, cropped, as good as cropping first: both are linear."""
    bases, boxes, attention = scene(1, bases=6)
    found = blend(bases, boxes, attention, 4, 7, softmax=False)
    images = [0, 0, 2, 2, 2]
    for mask, image, box, weights in zip(found, images, torch.cat(boxes).tolist(), attention, strict=True):
        whole = naive.yolact(bases[image], weights.flatten().tolist())
        same(mask, naive.crop(whole[None], box, 4, 7)[0])


@pytest.mark.parametrize("size", [6, 7])
def test_one_hot_attention_is_fcis(size: int) -> None:
    """Nine bases, one for each part of a 3 x 3 grid over the box: every cell is a copy of its part's basis."""
    bases, boxes, _ = scene(3, bases=9)
    attention = torch.eye(9, dtype=torch.float64).view(1, 9, 3, 3).expand(5, -1, -1, -1)
    found = blend(bases, boxes, attention, 4, size, softmax=False, mode="nearest")
    for mask, image, box in zip(found, [0, 0, 2, 2, 2], torch.cat(boxes).tolist(), strict=True):
        same(mask, naive.fcis(naive.crop(bases[image], box, 4, size), grid=3))


def test_weights_sum_to_one() -> None:
    """Where all bases are the same, no attention changes the mask; without softmax it does."""
    bases, boxes, attention = scene(7)
    bases = bases[:, :1].expand(-1, 3, -1, -1)
    crops = crop_bases(bases, boxes, 4, 9)
    same(merge_bases(crops, attention), crops[:, 0])
    assert not torch.allclose(merge_bases(crops, attention, softmax=False), crops[:, 0])


def test_blend_of_nothing() -> None:
    bases = torch.randn(2, 4, 8, 9, requires_grad=True)
    logits = blend(bases, [torch.zeros(0, 4)] * 2, torch.zeros(0, 4, 7, 7), 4)
    assert logits.shape == (0, 56, 56)
    logits.sum().backward()
    assert bases.grad is not None
    assert bases.grad.abs().sum() == 0


def test_blend_in_half_precision() -> None:
    """Bases and attention of a network under mixed precision are blended in float32."""
    bases, boxes, attention = scene(7, dtype=torch.float32)
    half = blend(bases.bfloat16(), boxes, attention.bfloat16(), 4, 14)
    assert half.dtype == torch.float32
    same(half, blend(bases.bfloat16().float(), boxes, attention.bfloat16().float(), 4, 14), 1e-5)


# --------------------------------------------------------------------------------------------------- masks and boxes


def naive_crop_mask(mask: Tensor, box: Sequence[float], size: int) -> Tensor:
    """Shares (size, size): the mean of the samples in each part, as many along a side as it has pixels."""
    x0, y0, x1, y1 = box
    shares = torch.zeros(size, size, dtype=torch.float64)
    high, wide = (y1 - y0) / size, (x1 - x0) / size
    rows, columns = max(ceil(high), 1), max(ceil(wide), 1)
    for i in range(size):
        for j in range(size):
            points = [
                (y0 + (i + (p + 0.5) / rows) * high - 0.5, x0 + (j + (q + 0.5) / columns) * wide - 0.5)
                for p in range(rows)
                for q in range(columns)
            ]
            shares[i, j] = sum(naive.read(mask[None].double(), y, x)[0] for y, x in points) / len(points)
    return shares


@pytest.mark.parametrize("size", [5, 14])
def test_crop_masks_by_cells(size: int) -> None:
    target = random_targets(5, (61, 43), seeded(2))
    boxes = target["boxes"].double() + torch.randn(5, 4, generator=seeded(3)).double()
    found = crop_masks(target["masks"], boxes, size)
    assert found.dtype == torch.bool
    assert 0.1 < found.double().mean() < 0.95
    for mask, box, cropped in zip(target["masks"], boxes.tolist(), found, strict=True):
        shares = naive_crop_mask(mask, box, size)
        certain = (shares - 0.5).abs() > 1e-9
        assert torch.equal(cropped[certain], (shares >= 0.5)[certain])


def test_crop_masks_of_nothing() -> None:
    target = empty_target((20, 30))
    assert crop_masks(target["masks"], target["boxes"], 14).shape == (0, 14, 14)


def pasting(count: int, size: tuple[int, int], cells: int) -> tuple[Tensor, Tensor]:
    """Scores (N, m, m) that vary smoothly, and boxes of which some reach over the edge, one has less than a pixel."""
    coarse = torch.rand(count, 1, 4, 4, generator=seeded(0), dtype=torch.float64)
    scores = F.interpolate(coarse, (cells, cells), mode="bicubic")[:, 0].clamp(0, 1)
    boxes = random_boxes(count, size, seeded(1)) * 1.4 - 8
    boxes[0] = torch.tensor([5.2, 7.4, 5.9, 7.7])
    return scores, boxes


@pytest.mark.parametrize(("size", "cells"), [((37, 61), 7), ((50, 40), 28), ((9, 100), 56)])
def test_paste_masks_reads_every_pixel(size: tuple[int, int], cells: int) -> None:
    """The same by grid_sample at the centre of each pixel of the image, with zeros outside the box."""
    scores, boxes = pasting(100, size, cells)
    found = paste_masks(scores, boxes, size)
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    x0, y0, x1, y1 = (side[:, None, None] for side in boxes.unbind(dim=1))
    grid = torch.stack([(x - x0) / (x1 - x0), (y - y0) / (y1 - y0)], dim=-1) * 2 - 1
    soft = F.grid_sample(scores[:, None], grid, align_corners=False)[:, 0]
    certain = (soft - 0.5).abs() > 1e-9
    assert torch.equal(found[certain], (soft >= 0.5)[certain])
    assert found.any(dim=(1, 2)).sum() > 30


def test_paste_masks_beside_torchvision() -> None:
    """torchvision rounds the boxes to pixels first: for large boxes nearly the same, for small ones not quite."""
    scores, boxes = pasting(60, (120, 200), 28)
    boxes = random_boxes(60, (120, 200), seeded(2))
    theirs = paste_masks_in_image(scores[:, None].float(), boxes.float(), (120, 200))[:, 0] >= 0.5
    found = paste_masks(scores, boxes, (120, 200))
    iou = (found & theirs).sum(dim=(1, 2)) / (found | theirs).sum(dim=(1, 2)).clamp(min=1)
    large = ((boxes[:, 2:] - boxes[:, :2]).amin(dim=1) > 30) & (found.sum(dim=(1, 2)) > 300)
    assert large.sum() > 20
    assert iou[large].min() > 0.9
    assert not torch.equal(found, theirs)


def test_paste_masks_of_little() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (30, 40)).shape == (0, 30, 40)
    boxes = torch.tensor([[3.0, 4, 4, 5], [3, 4, 3, 9], [50, 60, 70, 80], [-20, -20, -3, -4], [-5, -5, 45, 35]])
    masks = paste_masks(torch.ones(5, 28, 28), boxes, (30, 40))
    assert masks.sum(dim=(1, 2)).tolist() == [1, 0, 0, 0, 1200]
    assert masks[0, 4, 3]


def test_cropped_and_pasted_again() -> None:
    """At 56 x 56 masks of up to 56 pixels come back as they were."""
    target = random_targets(8, (90, 110), seeded(4))
    sides = (target["boxes"][:, 2:] - target["boxes"][:, :2]).amax(dim=1)
    small = sides < 56
    assert small.sum() >= 3
    cropped = crop_masks(target["masks"], target["boxes"])
    pasted = paste_masks(cropped.float(), target["boxes"], (90, 110))
    wrong = (pasted ^ target["masks"]).sum(dim=(1, 2)) / target["masks"].sum(dim=(1, 2))
    assert wrong[small].max() < 0.01
    assert wrong.max() < 0.03


# -------------------------------------------------------------------------------------------------------------- bases


def pyramid_of(sizes: Sequence[tuple[int, int]], channels: int = 6) -> list[Tensor]:
    return [torch.randn(2, channels, *size, generator=seeded(i)) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("module", [BasisModule, DeepLabBases])
@pytest.mark.parametrize("levels", [1, 3])
def test_bases_have_twice_the_finest_resolution(module: Any, levels: int) -> None:
    """Whatever the sizes of the coarser levels; levels beyond those asked for are not read."""
    bases = module(6, num_bases=5, num_levels=levels, channels=8)
    pyramid = pyramid_of([(15, 21), (8, 11), (4, 6), (2, 3)])
    for x in pyramid:
        x.requires_grad_()
    found = bases(pyramid)
    assert found.shape == (2, 5, 30, 42)
    given = torch.autograd.grad(found.square().sum(), pyramid, allow_unused=True)
    read = [g is not None and bool(g.abs().sum() > 0) for g in given]
    expected = [True, True, True, False] if levels == 3 and module is BasisModule else [True, False, levels == 3, False]
    assert read == expected


def test_basis_module_step_by_step() -> None:
    """Each level's convolution, bilinear to the finest level's size, the sum, the tower; no activation at the end."""
    bases: Any = BasisModule(6, channels=8, convs=2, norm="none").double()
    pyramid = [x.double() for x in pyramid_of([(9, 14), (5, 7), (3, 4)])]
    total = torch.zeros(2, 8, 9, 14, dtype=torch.float64)
    for x, block in zip(pyramid, bases.refine, strict=True):
        y = F.relu(F.conv2d(x, block[0].weight, block[0].bias, padding=1))
        a, b = y.shape[-2:]
        for i in range(9):
            for j in range(14):
                at = [min(max((n + 0.5) * s / full - 0.5, 0), s - 1) for n, s, full in ((i, a, 9), (j, b, 14))]
                total[:, :, i, j] += torch.stack([naive.read(image, *at) for image in y])
    x = total
    for block in bases.tower[:2]:
        x = F.relu(F.conv2d(x, block[0].weight, block[0].bias, padding=1))
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    x = F.relu(F.conv2d(x, bases.tower[3][0].weight, bases.tower[3][0].bias, padding=1))
    x = F.conv2d(x, bases.tower[4].weight, bases.tower[4].bias)
    same(bases(pyramid).detach(), x.detach())
    with torch.no_grad():
        bases.tower[4].bias.copy_(bases.tower[4].bias - x.mean(dim=(0, 2, 3)))
    shifted = bases(pyramid)
    assert shifted.min() < 0 < shifted.max()  # no activation cuts them off


def test_deeplab_reads_far() -> None:
    """A 3x3 convolution of rate r reads cells r apart; the mean over the map reaches everywhere."""
    module: Any = DeepLabBases(6, channels=8, rates=(2, 5)).eval()
    for branch, rate in zip(module.context[1:], (2, 5), strict=True):
        x = torch.randn(1, 6, 13, 17, requires_grad=True)
        y = branch[0](x)
        assert y.shape[-2:] == x.shape[-2:]
        (gradient,) = torch.autograd.grad(y[0, 0, 6, 8], x)
        reached = gradient[0].abs().sum(dim=0).nonzero().tolist()
        assert reached == [[6 + i * rate, 8 + j * rate] for i in (-1, 0, 1) for j in (-1, 0, 1)]


def test_wrong_arguments() -> None:
    for options, sentence in (
        ({"basis_module": "unet"}, "'proto' or 'deeplab'"),
        ({"attention": 0}, "a cell or more"),
        ({"attention": 29}, "29 of 28"),
        ({"bases": {"num_bases": 0}}, "at least one level and one basis"),
        ({"bases": {"num_levels": 4}}, "take 4 levels of 3"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tiny_blendmask(**options)
    with pytest.raises(UserError, match="blendmask has no argument 'factor'"):
        build_model("blendmask", 3, {"factor": 2})


# -------------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("basis_module", ["proto", "deeplab"])
@torch.no_grad()
def test_results(basis_module: str) -> None:
    """Several images of different sizes, one smaller than a cell of the coarsest level, each at a size of its own."""
    model = lively(basis_module=basis_module)
    images = [random_image(SIZE), random_image((64, 90), 1), random_image((5, 3), 2)]
    sizes = [SIZE, (101, 55), (5, 3)]
    found = model(images, output_sizes=sizes)
    assert len(found[0]["boxes"]) > 20
    for result, size in zip(found, sizes, strict=True):
        count = len(result["boxes"])
        assert result["boxes"].shape == (count, 4)
        assert (result["masks"].shape, result["masks"].dtype) == ((count, *size), torch.bool)
        assert result["labels"].shape == result["scores"].shape == (count,)
        assert bool((result["scores"][1:] <= result["scores"][:-1]).all())
        for mask, box in zip(result["masks"], result["boxes"], strict=True):
            if mask.any():  # every pixel's centre is in the box
                tight = mask_boxes(mask[None])[0] + torch.tensor([0.5, 0.5, -0.5, -0.5])
                assert (tight[:2] >= box[:2]).all()
                assert (tight[2:] <= box[2:]).all()
    assert 0.01 < found[0]["masks"].float().mean() < 0.95


@torch.no_grad()
def test_batched_is_single() -> None:
    model = lively().double()
    images = [random_image(size, i).double() for i, size in enumerate([(128, 160), (120, 130)])]
    for together, image in zip(model(images), images, strict=True):
        (alone,) = model([image])
        for key in together:
            assert torch.allclose(together[key].double(), alone[key].double(), atol=1e-9), key


@torch.no_grad()
def test_masks_are_blended_over_the_predicted_box_and_pasted_into_the_clipped_one() -> None:
    """As the official code has it: a mask that reaches over the edge is squeezed into the image."""
    model = lively()
    image = random_image(SIZE)
    batch = make_batch([image], model.fcos.mean, model.fcos.std, model.fcos.divisor)
    pyramid, points, outputs = model.fcos.run(batch)
    found = model.fcos.detect(points, outputs, 0)
    boxes, keep = to_output_size(found.boxes, SIZE, SIZE)
    attention = torch.stack([model.attention_at(points, outputs, 0, one)[0] for one in found.location[keep][:, None]])
    logits = blend(model.bases(pyramid), [found.boxes[keep]], attention, model.stride, 28)
    (result,) = model([image])
    assert (boxes[keep] != found.boxes[keep]).any()
    assert torch.equal(result["masks"], paste_masks(logits.sigmoid(), boxes[keep], SIZE))


@torch.no_grad()
def test_nothing_found() -> None:
    (result,) = lively(score_threshold=0.999999)([random_image(SIZE)], output_sizes=[(50, 60)])
    assert result["boxes"].shape == (0, 4)
    assert (result["masks"].shape, result["masks"].dtype) == ((0, 50, 60), torch.bool)


@torch.no_grad()
def test_many_instances() -> None:
    (result,) = lively(score_threshold=1e-4, nms_threshold=1.0, detections=1000)([random_image(SIZE)])
    assert len(result["masks"]) >= 900


@pytest.mark.parametrize("semantic", [True, False])
def test_every_parameter_learns(semantic: bool) -> None:
    torch.manual_seed(0)
    model = tiny_blendmask(semantic=semantic).train()
    images = [random_image(SIZE), random_image((64, 90), 1)]
    targets = [random_targets(6, SIZE, seeded(1)), random_targets(3, (64, 90), seeded(2))]
    names = {"loss_class", "loss_box", "loss_centerness", "loss_mask"} | ({"loss_semantic"} if semantic else set())
    assert set(model(images, targets)) == names
    assert model.semantic_stride == (8 if semantic else None)
    with torch.no_grad():  # some convolutions read nothing on maps of a few cells
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(3)) * 0.05)
    check_gradients(lambda: torch.stack(list(model(images, targets).values())).sum(), model)


def test_images_without_objects() -> None:
    """No positive location anywhere: the mask loss is 0, and every parameter still has a gradient."""
    model = tiny_blendmask().train()
    images = [random_image(SIZE), random_image((64, 90), 1)]
    targets = [empty_target(SIZE), empty_target((64, 90))]
    assert model(images, targets)["loss_mask"] == 0
    check_gradients(lambda: torch.stack(list(model(images, targets).values())).sum(), model, all_nonzero=False)


def test_objects_of_one_pixel_and_many_objects() -> None:
    model = tiny_blendmask().train()
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, 40, 52] = True
    dot = {"boxes": torch.tensor([[52.0, 40, 53, 41]]), "labels": torch.tensor([2]), "masks": masks}
    images = [random_image(SIZE), random_image(SIZE, 1)]
    losses = model(images, [dot, random_targets(150, SIZE, seeded(5))])
    assert all(torch.isfinite(loss) for loss in losses.values())
    cropped = crop_masks(masks, dot["boxes"], 4)[0]  # read bilinearly: its corners are nearer to four empty pixels
    assert cropped.int().tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]


def test_mask_loss_location_by_location() -> None:
    """Mean entropy over each object's box, weighted by the centre-ness target, over the sum of the weights."""
    torch.manual_seed(0)
    model = tiny_blendmask(semantic=False, size=9).double().train()
    images = [random_image(SIZE).double(), random_image((90, 64), 1).double()]
    targets = [random_targets(5, SIZE, seeded(1)), random_targets(4, (90, 64), seeded(2))]
    targets = [{**target, "boxes": target["boxes"].double()} for target in targets]
    batch = make_batch(images, model.fcos.mean, model.fcos.std, model.fcos.divisor)
    pyramid, points, outputs = model.fcos.run(batch)
    assignment = model.fcos.assign(points, targets)
    bases = model.bases(pyramid)
    total, weights = 0.0, 0.0
    truths = [
        [naive_crop_mask(mask, box, 9) >= 0.5 for mask, box in zip(t["masks"], t["boxes"].tolist(), strict=True)]
        for t in targets
    ]
    for i, location in (assignment.labels > 0).nonzero().tolist():
        number = int(assignment.matched[i, location])
        boxes = [targets[i]["boxes"][number : number + 1] if i == image else torch.zeros(0, 4) for image in range(2)]
        attention = model.attention_at(points, outputs, i, torch.tensor([location]))
        probability = blend(bases, boxes, attention, 4, 9).sigmoid()[0]
        weight = centerness(assignment.distances[i, location]).item()
        total += weight * -torch.where(truths[i][number], probability, 1 - probability).log().mean().item()
        weights += weight
    assert (assignment.labels > 0).sum() > 10
    loss = model.mask_loss(points, outputs, assignment, bases, targets)
    assert loss.item() == pytest.approx(total / weights, rel=1e-3)  # a share of 0.5 may fall to either side


def test_semantic_loss() -> None:
    """Cross-entropy over all cells, 0 for no object, of the map of the smallest object at each cell's pixel."""
    torch.manual_seed(0)
    model = tiny_blendmask(semantic_weight=0.5).train()
    images, targets = [random_image((64, 96))], [random_targets(4, (64, 96), seeded(1))]
    batch = make_batch(images, model.fcos.mean, model.fcos.std, model.fcos.divisor)
    assert model.semantic is not None
    logits = model.semantic(model.fcos.run(batch)[0][0])
    labels = semantic_map(targets[0]["masks"], targets[0]["labels"], 8)
    log = logits[0].log_softmax(dim=0)
    expected = -torch.stack([log[labels[i, j], i, j] for i in range(8) for j in range(12)]).mean() * 0.5
    torch.testing.assert_close(model(images, targets)["loss_semantic"], expected)
    stored = [{**targets[0], "semantic": labels}]
    torch.testing.assert_close(model(images, stored)["loss_semantic"], expected)


def test_masks_must_be_full_size() -> None:
    model = tiny_blendmask(semantic=False).train()
    target = random_targets(2, SIZE, seeded(1))
    sampled = {**target, "masks": target["masks"][:, 1::2, 1::2], "centers": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="full-size masks must have the image's size"):
        model([random_image(SIZE)], [sampled])
    assert torch.isfinite(model([random_image(SIZE)], [{**target, "centers": torch.zeros(2, 2)}])["loss_mask"])


def test_the_recipe_builds() -> None:
    recipe = get_recipe("shapes-blendmask")
    model = build_model(recipe.model, 3, recipe.model_args)
    assert isinstance(model, BlendMask)
    assert sum(p.numel() for p in model.parameters()) < 750_000
