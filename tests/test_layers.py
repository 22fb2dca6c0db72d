"""Layers against loops over single cells, against torchvision, and against numbers of the official code."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import official, same, same_to_scale, seeded
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, generalized_box_iou_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from condinst_edu.layers import FPN, aligned_upsample, build_backbone, conv_block, dice_loss, giou_loss, resize_masks
from condinst_edu.papers import naive_condinst, naive_fcos

# ------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_conv_block_keeps_the_size(norm: Any, kernel: int) -> None:
    block = conv_block(3, 12, kernel, norm=norm)
    result = block(torch.randn(2, 3, 7, 10))
    assert result.shape == (2, 12, 7, 10)
    assert result.min() == 0
    assert conv_block(3, 12, kernel, norm=norm, relu=False)(torch.randn(2, 3, 7, 10)).min() < 0
    assert conv_block(3, 12, 3, stride=2, norm=norm)(torch.randn(2, 3, 7, 10)).shape == (2, 12, 4, 5)
    assert (block[0].bias is None) == (norm == "bn")  # batch norm has a bias of its own


def test_conv_block_groups() -> None:
    for channels, groups in ((256, 32), (64, 32), (48, 16), (24, 8), (5, 1)):
        norm = conv_block(3, channels, norm="gn")[1]
        assert isinstance(norm, nn.GroupNorm)
        assert norm.num_groups == groups
    with pytest.raises(ValueError, match="norm must be"):
        conv_block(3, 8, norm="layer")  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- upsampling


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("size", [(5, 7), (2, 3), (1, 4), (1, 1)])
def test_aligned_upsample_by_loop(factor: int, size: tuple[int, int]) -> None:
    x = torch.randn(*size, generator=seeded(factor), dtype=torch.float64)
    same(aligned_upsample(x, factor), naive_condinst.upsampling(x, factor), 1e-14)


def test_aligned_upsample_gradient_by_loop() -> None:
    x = torch.randn(3, 4, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 12, generator=seeded(1), dtype=torch.float64)
    (ours,) = torch.autograd.grad((aligned_upsample(x, 3) * weight).sum(), x)
    (expected,) = torch.autograd.grad((naive_condinst.upsampling(x, 3) * weight).sum(), x)
    same(ours, expected, 1e-13)


def test_aligned_upsample_of_stacks() -> None:
    """Any leading dimensions, none of the maps mixed with another, and no maps at all."""
    x = torch.randn(2, 3, 4, 6, generator=seeded(2), dtype=torch.float64)
    result = aligned_upsample(x, 2)
    for i in range(2):
        for c in range(3):
            same(result[i, c], naive_condinst.upsampling(x[i, c], 2), 1e-14)
    assert aligned_upsample(x[:0], 4).shape == (0, 3, 16, 24)


def test_aligned_upsample_keeps_cells_on_their_pixels() -> None:
    """A map of the pixels that its cells stand for stays one, up to half a new stride and but for the border."""
    for stride, factor in ((8, 8), (8, 2), (4, 4), (16, 4)):
        pixels = (stride * torch.arange(6, dtype=torch.float64) + stride // 2).expand(4, -1)
        finer = stride // factor
        inside = slice(factor, -factor)
        expected = finer * torch.arange(6 * factor, dtype=torch.float64)[inside]
        offset = stride // 2 - finer * (factor // 2)  # 0: cell j's own pixel reads exactly cell j
        same(aligned_upsample(pixels, factor)[2, inside], expected + offset, 1e-13)


def test_aligned_upsample_against_the_official_code() -> None:
    numbers = official("component_misc.npz")
    for factor in (2, 3, 4, 8):
        result = aligned_upsample(torch.from_numpy(numbers["x"]), factor)
        same(result, numbers[f"aligned_bilinear_{factor}"], 1e-6)


def test_aligned_upsample_needs_a_factor() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        aligned_upsample(torch.zeros(1, 2, 2), 0)


def whole_map_scores(
    logits: Tensor, stride: int, input_size: tuple[int, int], output_size: tuple[int, int], factor: int
) -> Tensor:
    """The way of the official code: every mask whole, at the input's size, then resized; before the threshold."""
    scores = aligned_upsample(aligned_upsample(logits, factor).sigmoid(), stride // factor)
    scores = scores[:, None, : input_size[0], : input_size[1]]
    return F.interpolate(scores, size=output_size, mode="bilinear", align_corners=False)[:, 0]


def smooth_maps(count: int, size: tuple[int, int], seed: int, level: float = 0.0) -> Tensor:
    """Random maps that change slowly; level: how far most of them lies below 0."""
    coarse = torch.randn(count, 1, 4, 5, generator=seeded(seed), dtype=torch.float64)
    return 6 * F.interpolate(coarse, size=size, mode="bicubic")[:, 0] - level


def check_resize(
    logits: Tensor, stride: int, input_size: tuple[int, int], output_size: tuple[int, int], factor: int
) -> Tensor:
    """Masks equal to the whole-map way but for pixels within 1e-4 of the threshold; returns them."""
    masks = resize_masks(logits, stride, input_size, output_size, factor)
    assert masks.dtype == torch.bool
    assert masks.shape == (len(logits), *output_size)
    scores = whole_map_scores(logits.double(), stride, input_size, output_size, factor)
    ties = (scores - 0.5).abs() < 1e-4
    assert ties.float().mean() < 1e-3  # so few that the comparison means something
    assert not (masks != (scores > 0.5))[~ties].any()
    return masks


RESIZES = [
    # map, stride, input, output
    ((12, 17), 8, (96, 136), (96, 136)),
    ((12, 17), 8, (89, 130), (89, 130)),  # padded
    ((12, 17), 8, (93, 129), (233, 301)),  # up, unequal factors
    ((12, 17), 8, (96, 133), (40, 31)),  # down
    ((12, 17), 8, (90, 133), (200, 37)),  # both
    ((25, 9), 4, (97, 33), (151, 200)),
    ((5, 6), 16, (75, 91), (60, 101)),
]


@pytest.mark.parametrize(("size", "stride", "input_size", "output_size"), RESIZES)
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("level", [0.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resize_masks_equals_whole_maps(
    size: tuple[int, int],
    stride: int,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    factor: int,
    level: float,
    dtype: torch.dtype,
) -> None:
    masks = check_resize(smooth_maps(7, size, 3, level).to(dtype), stride, input_size, output_size, factor)
    assert 0 < masks.float().mean() < 1


@pytest.mark.parametrize(("size", "stride", "input_size", "output_size"), RESIZES)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_resize_masks_of_special_masks(
    size: tuple[int, int], stride: int, input_size: tuple[int, int], output_size: tuple[int, int], factor: int
) -> None:
    """Nothing, everything, single cells (also in corners and in the padding), and two cells far apart."""
    height, width = size
    logits = torch.full((8, height, width), -0.3)
    logits[1] = 0.3
    logits[2, height // 2, width // 2] = 9
    logits[3, 0, 0] = 9
    logits[4, -1, -1] = 9
    logits[5, 0, 0] = logits[5, -1, -1] = logits[5, height // 3, 1] = 9
    logits[6, 0, -1] = 9
    logits[7, :, width // 2] = 4
    masks = check_resize(logits, stride, input_size, output_size, factor)
    assert not masks[0].any()
    assert masks[1].all()
    assert masks[3, 0, 0]


@pytest.mark.parametrize("output_size", [(107, 60), (64, 96), (300, 333), (300, 1), (3, 5), (1, 1)])
def test_resize_masks_of_noise(output_size: tuple[int, int]) -> None:
    """Neighbouring cells of any sign: borders everywhere, and no two masks that need the same parts."""
    logits = 5 * torch.randn(30, 9, 13, generator=seeded(5), dtype=torch.float64) - 6
    check_resize(logits, 8, (71, 99), output_size, 2)


def test_resize_masks_of_gaps() -> None:
    """Full but for single cells that are just not positive, at any place."""
    logits = torch.full((12 * 17, 12, 17), 2.0)
    logits.flatten(1).fill_diagonal_(-3)
    masks = check_resize(logits, 8, (96, 136), (150, 121), 2)
    assert not masks.flatten(1).all(dim=1).any()


def test_resize_masks_of_none() -> None:
    assert resize_masks(torch.zeros(0, 12, 17), 8, (90, 130), (45, 65), 2).shape == (0, 45, 65)


# ------------------------------------------------------------------------------------------------------------- losses


def test_dice_loss_by_loop() -> None:
    scores = torch.rand(4, 3, 5, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    targets = torch.rand(4, 3, 5, generator=seeded(1)) < 0.4
    targets[1], targets[2] = False, True
    expected = torch.stack([naive_condinst.dice(p, t) for p, t in zip(scores, targets, strict=True)])
    result = dice_loss(scores, targets)
    same(result, expected, 1e-13)
    weight = torch.arange(1, 5, dtype=torch.float64)
    (ours,) = torch.autograd.grad((result * weight).sum(), scores)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), scores)
    same(ours, theirs, 1e-13)


def test_dice_loss_of_special_masks() -> None:
    empty, full = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    assert dice_loss(empty, empty).item() == 1  # there is no overlap to be right about
    assert dice_loss(full, full).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(full, empty).item() == 1
    assert dice_loss(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4)).shape == (0,)


def test_dice_loss_against_the_official_code() -> None:
    numbers = official("component_misc.npz")
    same(dice_loss(torch.from_numpy(numbers["dice_p"]), torch.from_numpy(numbers["dice_t"])), numbers["dice"], 1e-6)


def as_boxes(distances: Tensor) -> Tensor:
    """Boxes of (left, top, right, bottom) distances from (0, 0)."""
    return distances * distances.new_tensor([-1, -1, 1, 1])


def test_giou_loss_against_torchvision() -> None:
    generator = seeded(0)
    distances = (5 * torch.rand(200, 4, generator=generator, dtype=torch.float64) + 1e-3).requires_grad_()
    targets = 5 * torch.rand(200, 4, generator=generator, dtype=torch.float64) + 1e-3
    ours = giou_loss(distances, targets)
    theirs = generalized_box_iou_loss(as_boxes(distances), as_boxes(targets))
    same(ours, theirs, 1e-6)  # it adds 1e-7 where we clamp
    weight = torch.rand(200, generator=generator, dtype=torch.float64)
    (our_gradient,) = torch.autograd.grad((ours * weight).sum(), distances)
    (their_gradient,) = torch.autograd.grad((theirs * weight).sum(), distances)
    same(our_gradient, their_gradient, 1e-5)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_giou_loss_by_loop(smooth: float) -> None:
    generator = seeded(1)
    distances = (4 * torch.rand(30, 4, generator=generator, dtype=torch.float64) + 0.01).requires_grad_()
    targets = 4 * torch.rand(30, 4, generator=generator, dtype=torch.float64) + 0.01
    ours = giou_loss(distances, targets, smooth)
    expected = torch.stack([naive_fcos.giou_loss(a, b, smooth) for a, b in zip(distances, targets, strict=True)])
    same(ours, expected, 1e-12)
    (our_gradient,) = torch.autograd.grad(ours.square().sum(), distances)
    (their_gradient,) = torch.autograd.grad(expected.square().sum(), distances)
    same(our_gradient, their_gradient, 1e-10)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_giou_loss_of_special_boxes(smooth: float) -> None:
    """Equal boxes cost nothing; a predicted box without any extent costs much and has a finite gradient."""
    box = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert giou_loss(box, box, smooth).item() == pytest.approx(0, abs=1e-6)
    nothing = torch.zeros(1, 4, requires_grad=True)
    loss = giou_loss(nothing, box, smooth)
    assert 0.9 < loss.item() <= 2
    loss.backward()
    assert nothing.grad is not None
    assert torch.isfinite(nothing.grad).all()
    assert giou_loss(box[:0], box[:0], smooth).shape == (0,)


def test_giou_loss_against_the_official_code() -> None:
    numbers = official("component_misc.npz")
    result = giou_loss(torch.from_numpy(numbers["iou_pred"]), torch.from_numpy(numbers["iou_target"]), smooth=1)
    same(result, 1 - numbers["giou"], 1e-5)


# ---------------------------------------------------------------------------------------------------------------- FPN


def backbone_maps(channels: dict[int, int], size: tuple[int, int], seed: int = 0) -> dict[int, Tensor]:
    generator = seeded(seed)
    return {
        level: torch.randn(2, c, -(-size[0] // 2**level), -(-size[1] // 2**level), generator=generator).double()
        for level, c in channels.items()
    }


@pytest.mark.parametrize("size", [(128, 192), (117, 203)])
def test_fpn_against_torchvision(size: tuple[int, int]) -> None:
    """P3..P7 with the same weights: equal maps and gradients, for sizes that are no multiple of a stride, too."""
    channels = {2: 4, 3: 6, 4: 8, 5: 10}
    ours = FPN(channels, 12, (3, 4, 5, 6, 7)).double()
    theirs = FeaturePyramidNetwork([6, 8, 10], 12, LastLevelP6P7(12, 12)).double()
    pairs: list[tuple[Any, Any]] = [
        *zip(ours.lateral, (block[0] for block in theirs.inner_blocks), strict=True),
        *zip(ours.output, (block[0] for block in theirs.layer_blocks), strict=True),
        *zip(ours.extra, (theirs.extra_blocks.p6, theirs.extra_blocks.p7), strict=True),
    ]
    for mine, other in pairs:
        nn.init.normal_(mine.bias)
        other.load_state_dict(mine.state_dict())
    maps = backbone_maps(channels, size)
    result = ours(maps)
    expected = list(theirs(OrderedDict((str(level), maps[level]) for level in (3, 4, 5))).values())
    assert [tuple(x.shape[-2:]) for x in result[:3]] == [tuple(maps[level].shape[-2:]) for level in (3, 4, 5)]
    for x, y in zip(result, expected, strict=True):
        same(x, y, 1e-12)
    sum((x**2).mean() for x in result).backward()
    sum((x**2).mean() for x in expected).backward()
    for mine, other in pairs:
        same(mine.weight.grad, other.weight.grad, 1e-12)
        same(mine.bias.grad, other.bias.grad, 1e-12)


@pytest.mark.parametrize("levels", [(3,), (2, 3), (3, 4, 5), (2, 3, 4, 5, 6), (5, 6, 7, 8)])
def test_fpn_levels(levels: tuple[int, ...]) -> None:
    channels = {2: 4, 3: 6, 4: 8, 5: 10}
    fpn = FPN(channels, 12, levels).double()
    result = fpn(backbone_maps(channels, (256, 512)))
    assert [tuple(x.shape) for x in result] == [(2, 12, 256 // 2**level, 512 // 2**level) for level in levels]
    sum(x.sum() for x in result).backward()
    assert all(p.grad is not None for p in fpn.parameters())


@pytest.mark.parametrize("levels", [(1, 2, 3), (6, 7), (3, 5), (5, 4, 3)])
def test_fpn_refuses_levels(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="FPN levels must rise by one"):
        FPN({2: 4, 3: 6, 4: 8, 5: 10}, 12, levels)


# ---------------------------------------------------------------------------------------------------------- backbones

BACKBONES: list[tuple[str, dict[str, Any], dict[int, int]]] = [
    ("tiny", {}, {2: 24, 3: 48, 4: 64, 5: 96}),
    ("tiny", {"widths": (4, 6, 8, 10)}, {2: 6, 3: 8, 4: 10}),
    ("resnet18", {}, {2: 64, 3: 128, 4: 256, 5: 512}),
    ("resnet50", {}, {2: 256, 3: 512, 4: 1024, 5: 2048}),
    ("resnet50", {"stride_in_1x1": True}, {2: 256, 3: 512, 4: 1024, 5: 2048}),
    ("timm:resnet10t", {"pretrained": False}, {2: 64, 3: 128, 4: 256, 5: 512}),
]


@pytest.mark.parametrize(("name", "options", "channels"), BACKBONES)
def test_backbone_maps(name: str, options: dict[str, Any], channels: dict[int, int]) -> None:
    backbone = build_backbone(name, **options).eval()
    assert backbone.channels == channels
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    for level, c in channels.items():
        assert maps[level].shape == (1, c, 64 // 2**level, 96 // 2**level)


def test_resnet_is_torchvisions() -> None:
    """The same numbers as the model that the parts come from."""
    import torchvision

    torch.manual_seed(0)
    ours = build_backbone("resnet18", norm="bn").eval()
    torch.manual_seed(0)
    theirs: Any = torchvision.models.resnet18(weights=None).eval()
    x = torch.randn(1, 3, 64, 96)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    with torch.no_grad():
        maps = ours(x)
        for level, layer in enumerate((theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), start=2):
            expected = layer(expected)
            assert torch.equal(maps[level], expected)


def test_stride_in_1x1_moves_the_stride() -> None:
    """The first 1x1 convolution of a stage halves the map, so the 3x3 that follows it sees the small one."""
    for moved, strides in ((True, (2, 1)), (False, (1, 2))):
        stage: Any = build_backbone("resnet50", stride_in_1x1=moved).stages[1]  # type: ignore[index]
        block = stage[0]
        assert (block.conv1.stride[0], block.conv2.stride[0], block.downsample[0].stride[0]) == (*strides, 2)
        assert all(b.conv1.stride == b.conv2.stride == (1, 1) for b in stage[1:])


@pytest.mark.parametrize("frozen_stages", [0, 2, 5])
@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
def test_frozen_parts_have_no_gradient(frozen_stages: int, norm: str) -> None:
    backbone: Any = build_backbone("resnet18", norm=norm, frozen_stages=frozen_stages).train()
    parts = [backbone.stem, *backbone.stages]
    loss = sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64)).values())
    if frozen_stages < 5:
        loss.backward()
    for i, part in enumerate(parts):
        for parameter in part.parameters():
            assert parameter.requires_grad == (i >= frozen_stages)
            assert (parameter.grad is not None) == (i >= frozen_stages)
    norms = {type(module) for module in backbone.modules() if "BatchNorm" in type(module).__name__}
    assert norms == {FrozenBatchNorm2d if norm == "frozen_bn" else nn.BatchNorm2d}
    if norm == "frozen_bn":
        assert not any("bn" in name for name, _ in backbone.named_parameters())


def test_frozen_bn_keeps_its_statistics() -> None:
    backbone = build_backbone("resnet18").train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_backbone("vgg16"), "unknown backbone 'vgg16'"),
        (lambda: build_backbone("resnet51"), "unknown backbone 'resnet51'"),
        (lambda: build_backbone("timm:no_such_model"), "unknown backbone 'timm:no_such_model'"),
        (lambda: build_backbone("resnet18", norm="gn"), "norm must be one of"),
    ],
)
def test_backbone_errors(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_float32_upsampling_is_near_float64() -> None:
    x = torch.randn(3, 20, 30, generator=seeded(9))
    same_to_scale(aligned_upsample(x, 4), aligned_upsample(x.double(), 4), 1e-6)
