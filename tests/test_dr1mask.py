"""DR1Mask: every equation beside loops from the paper, alignment at odd sizes, the whole model at its edges."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, check_gradients, empty_target, enliven, random_targets, same, seeded
from torch import Tensor, nn

from condinst_edu import bench
from condinst_edu.bench import dr1conv as bench_dr1conv
from condinst_edu.bench.dr1conv import dynamic_convolution
from condinst_edu.blendmask import crop_bases, crop_masks
from condinst_edu.dr1mask import (
    ContextLayer,
    DR1Basis,
    DR1Conv2d,
    DR1Mask,
    FactoredAttention,
    FullAttention,
    VectorAttention,
    panoptic_targets,
    rank1_weight,
)
from condinst_edu.engine.recipe import build_model, override_model
from condinst_edu.errors import UserError
from condinst_edu.fcos import centerness
from condinst_edu.layers.fpn import FPN
from condinst_edu.layers.images import Batch, make_batch
from condinst_edu.layers.unified import OUTSIDE, PanopticLayer, mean_embeddings, paste_logits
from condinst_edu.layers.upsample import upsample_to
from condinst_edu.panoptic_models import UnifiedPanopticModel
from condinst_edu.papers import naive_dr1mask as naive
from condinst_edu.progress import progress_bar
from condinst_edu.recipes import dr1mask as dr1mask_recipes
from condinst_edu.recipes import get_recipe
from condinst_edu.recipes.dr1mask import dr1mask_rows
from condinst_edu.teach.factor_widget import change_factors
from condinst_edu.teach.factoring import factored_of, show_factored, with_factors


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).requires_grad_()


def same_with_gradients(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    """Equal values, and equal gradients of a random sum of them with respect to all inputs."""
    same(actual, expected)
    weight = torch.randn(actual.shape, generator=seeded(99), dtype=torch.float64)
    found = [torch.autograd.grad((y * weight).sum(), inputs, retain_graph=True) for y in (actual, expected)]
    for x, y in zip(*found, strict=True):
        assert y.abs().max() > 0
        same(x, y, 1e-9)


# ---------------------------------------------------------------------------------------------------------- equations


def test_rank_one_weight() -> None:
    """Eq. 1, and what it is worth: (W o b a^T) x = (W (x o a)) o b."""
    weight, a, b, x = normal(5, 3), normal(3, seed=1), normal(5, seed=2), normal(3, seed=3)
    same_with_gradients(rank1_weight(weight, a, b), naive.eq_1(weight, a, b), (weight, a, b))
    same_with_gradients(rank1_weight(weight, a, b) @ x, (weight @ (x * a)) * b, (weight, a, b, x))
    assert torch.linalg.matrix_rank(rank1_weight(torch.ones_like(weight), a, b)) == 1


def test_position_sensitive_1x1() -> None:
    """Eq. 2: with a 1x1 kernel, DR1Conv has a matrix of its own at every position."""
    conv = DR1Conv2d(4, kernel=1).double()
    x, a, b = (normal(1, 4, 5, 7, seed=i) for i in range(3))
    expected = naive.eq_2(conv.conv.weight[:, :, 0, 0], x[0], a[0], b[0])
    same_with_gradients(conv(x, a, b)[0], expected, (x, a, b, conv.conv.weight))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_parallel_form(kernel: int) -> None:
    """Eq. 4, on maps that differ within a batch."""
    conv = DR1Conv2d(3, kernel).double()
    x, a, b = (normal(2, 3, 5, 8, seed=i) for i in range(3))
    expected = torch.stack([naive.eq_4(conv.conv.weight, *maps) for maps in zip(x, a, b, strict=True)])
    same_with_gradients(conv(x, a, b), expected, (x, a, b, conv.conv.weight))


def test_equation_3_as_printed() -> None:
    """Eq. 3 equals Eq. 4 for 1x1 kernels, and differs for 3x3, unless B is the same everywhere."""
    x, a, b = (normal(1, 3, 6, 9, seed=i)[0] for i in range(3))
    for kernel in (1, 3):
        conv = DR1Conv2d(3, kernel).double()
        ours, printed = conv(x[None], a[None], b[None])[0], naive.eq_3(conv.conv.weight, x, a, b)
        if kernel == 1:
            same_with_gradients(ours, printed, (x, a, b))
        else:
            assert (ours - printed).abs().max() > 0.1 * ours.abs().max()
            constant = b[:, :1, :1].expand_as(b)
            same(conv(x[None], a[None], constant[None])[0], naive.eq_3(conv.conv.weight, x, a, constant))


def test_missing_factors() -> None:
    conv = DR1Conv2d(3).double()
    x, a, b = (normal(1, 3, 5, 4, seed=i) for i in range(3))
    ones = torch.ones_like(x)
    same(conv(x, a), conv(x, a, ones))
    same(conv(x, b=b), conv(x, ones, b))
    same(conv(x), conv.conv(x))
    with pytest.raises(ValueError, match="must be odd, not 4"):
        DR1Conv2d(3, kernel=4)


SIZES = ((9, 13), (5, 7), (3, 4), (2, 2), (1, 1))  # of P3..P7 for an image of 65 to 72 by 97 to 104 pixels


def test_basis_is_equation_6() -> None:
    basis = DR1Basis(6, width=4, norm="none").double()
    pyramid = [normal(2, 6, *size, seed=i) for i, size in enumerate(SIZES)]
    factors = [(normal(2, 4, *size, seed=10 + i), normal(2, 4, *size, seed=20 + i)) for i, size in enumerate(SIZES)]
    for module in basis.reduce:
        assert isinstance(module, nn.Sequential)
        nn.init.zeros_(module[0].bias)  # type: ignore[arg-type]
    kernels: list[Any] = [module[0].weight for module in basis.reduce]  # type: ignore[index]
    merge: list[Any] = [module.conv.weight for module in basis.merge]  # type: ignore[union-attr]
    expected = torch.stack(
        [naive.eq_6(kernels, merge, [p[i] for p in pyramid], [(a[i], b[i]) for a, b in factors]) for i in range(2)]
    )
    inputs = [*pyramid, *(x for pair in factors for x in pair), *kernels, *merge]
    same_with_gradients(basis(pyramid, factors), expected, inputs)
    same(basis(pyramid, factors, (17, 25)), upsample_to(expected, (17, 25)))


def test_basis_steps_and_edges() -> None:
    """Where factors are missing the finest levels are merged by plain convolutions; F is not cut at 0."""
    basis = DR1Basis(6, width=4, levels=3).double().eval()
    pyramid = [normal(1, 6, *size, seed=i) for i, size in enumerate(SIZES[:3])]
    ones = [(torch.ones(1, 4, *size).double(), torch.ones(1, 4, *size).double()) for size in SIZES[:3]]
    steps = basis.steps(pyramid, [])
    assert [step.shape[2:] for step in steps] == list(SIZES[:3])
    for count in (1, 2, 3):
        same(basis(pyramid, ones[-count:]), steps[0])
    changed = basis.steps(pyramid, [(2 * ones[-1][0], None)])  # the one factor there is belongs to the coarsest level
    assert not torch.equal(changed[2], steps[2])
    assert steps[0].min() < 0 < steps[0].max()
    assert steps[1].min() >= 0  # behind a ReLU
    for maps, factors in ((pyramid[:2], []), (pyramid, [*ones, ones[0]])):
        with pytest.raises(ValueError, match="DR1Basis has 3 levels"):
            basis(maps, factors)


def test_projection_and_factored_maps() -> None:
    """Eq. 7 and 8, and the mask: a sum over K of attention times projected crop."""
    attention = FactoredAttention(width=6, bases=3, rank=2, size=5).double()
    assert attention.num_parameters == 3 * 6 + 3 * 2
    assert FactoredAttention().num_parameters == 4 * 32 + 4 * 4 == 144
    crops, t, s = normal(2, 6, 7, 7), normal(2, 3, 6, seed=1), normal(2, 3, 2, seed=2)
    projected = torch.stack([naive.eq_7(t[i], crops[i]) for i in range(2)])
    maps = torch.stack([naive.eq_8(attention.u, attention.v, s[i]) for i in range(2)])
    same_with_gradients(attention.project(crops, t), projected, (crops, t))
    same_with_gradients(attention.maps(s), maps, (s, attention.u, attention.v))
    resized = F.interpolate(maps, (7, 7), mode="bilinear", align_corners=False)
    embedding = torch.cat([t.flatten(1), s.flatten(1)], dim=1)
    expected = (projected * resized).sum(dim=1)
    same_with_gradients(attention(crops, embedding), expected, (crops, t, s, attention.u, attention.v))


def test_components() -> None:
    """Figure 5: the map of a one-hot s is one component, of rank 1; 4 x 4 of them by default."""
    attention = FactoredAttention(width=6).double()
    components = attention.components()
    assert components.shape == (4, 4, 14, 14)
    one_hot = torch.eye(4, dtype=torch.float64)[:, None].expand(4, 4, 4)  # (instance d, base k, factor)
    same(attention.maps(one_hot), components.transpose(0, 1))
    assert torch.linalg.matrix_rank(components).eq(1).all()


def test_other_attention() -> None:
    crops = normal(3, 6, 8, 8)
    vector, full = VectorAttention(6), FullAttention(6, bases=4, size=5).double()
    e = normal(3, 6, seed=1)
    expected = torch.stack([sum(e[i, d] * crops[i, d] for d in range(6)) for i in range(3)])  # type: ignore[misc]
    same_with_gradients(vector(crops, e), expected, (crops, e))
    assert full.num_parameters == 4 * 5 * 5
    assert FullAttention(32).num_parameters == 784
    e = normal(3, 100, seed=2)
    weights = F.interpolate(e.unflatten(1, (4, 5, 5)), (8, 8), mode="bilinear").softmax(dim=1)
    same_with_gradients(full(crops, e), (full.project(crops) * weights).sum(dim=1), (crops, e, full.project.weight))


@pytest.mark.parametrize("layer", [VectorAttention(6), FullAttention(6), FactoredAttention(6)])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_attention_is_interchangeable(layer: Any, count: int) -> None:
    embedding = layer.start() + 0.1 * torch.randn(count, layer.num_parameters, generator=seeded(0))
    assert layer(torch.randn(count, 6, 12, 12, generator=seeded(1)), embedding).shape == (count, 12, 12)


def test_factored_attention_begins_flat() -> None:
    """With the embedding that training begins with, all attention maps are around 1."""
    torch.manual_seed(0)
    attention = FactoredAttention(8)
    start = attention.start()
    assert (start[:-16] == 0).all()
    maps = attention.maps(start[-16:].view(1, 4, 4))
    assert (maps - 1).abs().max() < 0.7


def test_mean_embeddings() -> None:
    """Eq. 9, with an instance that no location is assigned to."""
    e, instance = normal(6, 4), torch.tensor([0, 2, 2, 3, 0, 2])
    mean, number = mean_embeddings(e, instance, 5)
    same_with_gradients(mean.T, naive.eq_9(e, instance.tolist(), 5), (e,))
    assert number.tolist() == [2, 0, 3, 1, 0]
    assert mean_embeddings(e[:0], instance[:0], 0)[0].shape == (0, 4)


def test_panoptic_layer() -> None:
    layer = PanopticLayer(4, num_stuff=3).double()
    features, things = normal(4, 5, 7), normal(4, 2, seed=1)
    expected = naive.panoptic_logits(layer.stuff, things, features)
    same_with_gradients(layer(features, things), expected, (features, things, layer.stuff))
    assert layer(features, things[:, :0]).shape == (3, 5, 7)


# ----------------------------------------------------------------------------------------------------------- top layer


def test_top_layer_is_one_convolution() -> None:
    """Eq. 5: factors of all cells and embeddings of some are what one convolution with all outputs would give."""
    model = tiny_dr1mask(basis={"width": 5}).double().eval()
    enliven(model, seeded(0))
    top, context = model.fcos.head.top, model.context
    assert top is not None
    assert context is not None
    pyramid, points, outputs = run(model, normal(3, 75, 103).detach())
    factors = model.factors(pyramid, outputs)
    start = 0
    for (a, b), x in zip(factors, pyramid, strict=True):
        tower = model.fcos.head.box_tower(x)
        weight, bias = (torch.cat([getattr(conv, name) for conv in (context.conv, top)]) for name in ("weight", "bias"))
        both = F.conv2d(tower, weight, bias, padding=1)
        assert a is not None
        assert b is not None
        same(torch.cat([a, b], dim=1), both[:, :10])
        location = torch.arange(start, start + x.shape[2] * x.shape[3])
        same(model.fcos.head.top_at(outputs, points, 0, location), both[0, 10:].flatten(1).T)
        start += len(location)


def test_context_positions() -> None:
    for context in ("box", "class", "fpn"):
        torch.manual_seed(0)
        model = tiny_dr1mask(context=context).eval()
        enliven(model, seeded(0))
        pyramid, _, outputs = run(model, torch.rand(3, 75, 103, generator=seeded(1)))
        head = model.fcos.head
        read: Callable[[Tensor], Tensor] = {"box": head.box_tower, "class": head.class_tower, "fpn": lambda x: x}[
            context
        ]
        assert model.context is not None
        for (a, _), x in zip(model.factors(pyramid, outputs), pyramid, strict=True):
            assert a is not None
            same(a, model.context.conv(read(x))[:, : a.shape[1]], 1e-5)
    assert tiny_dr1mask(factors="none").context is None


def test_factors_begin_at_one() -> None:
    """At first every DR1Conv is nearly a plain convolution; one factor alone takes half of the channels."""
    torch.manual_seed(0)
    maps = [torch.randn(1, 16, 4, 6), torch.randn(1, 16, 2, 3)]
    for factors in ("ab", "a", "b"):
        layer = ContextLayer(16, 5, factors)
        assert layer.conv.out_channels == 5 * len(factors)
        for a, b in layer(maps):
            assert (a is None) == ("a" not in factors)
            assert (b is None) == ("b" not in factors)
            for x in (a, b):
                assert x is None or (x - 1).abs().max() < 1


# ---------------------------------------------------------------------------------------------------------- alignment


@pytest.mark.parametrize("size", [(5, 7), (6, 8), (5, 8), (1, 1)])
def test_upsampling(size: tuple[int, int]) -> None:
    coarse = tuple(-(-side // 2) for side in size)
    x = normal(2, *coarse)
    same_with_gradients(upsample_to(x, size), naive.upsample(x, size), (x,))


@pytest.mark.parametrize("side", [97, 131, 257, 391, 128])
def test_upsampling_undoes_strided_convolutions(side: int) -> None:
    """What a chain of 3x3 convolutions with stride 2 has averaged comes back to where it was: a ramp stays a ramp."""
    ramp = torch.arange(side, dtype=torch.float64)[None, None].expand(1, 1, side, side).contiguous()
    mean = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    maps = [ramp]
    for _ in range(4):
        maps.append(F.conv2d(F.pad(maps[-1], (1, 1, 1, 1), mode="replicate"), mean, stride=2))
    x = maps[-1]
    for finer in maps[-2::-1]:
        x = upsample_to(x, (finer.shape[2], finer.shape[3]))
    inner = slice(32, side // 2)  # the last cells only know what is within the map
    assert (x - ramp)[..., inner].abs().max() < 1e-9


class Path(nn.Module):
    """Strided convolutions without norms, FPN on P3..P5, DR1Basis with factors from the pyramid."""

    def __init__(self, top: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.top = top
        self.stages = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(top))
        self.fpn = FPN({level: 4 for level in range(3, top + 1)}, 4, range(3, top + 1))
        self.context = ContextLayer(4, 4)
        self.basis = DR1Basis(4, width=4, levels=top - 2, norm="none")

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """F_l by level."""
        features = {}
        for level, conv in enumerate(self.stages, start=1):
            features[level] = x = conv(x).relu()
        pyramid = self.fpn({level: features[level] for level in range(3, self.top + 1)})
        return dict(enumerate(self.basis.steps(pyramid, self.context(pyramid)), start=3))


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("level", [3, 4, 5])
def test_a_shift_by_a_stride_is_a_shift_by_a_cell(level: int, axis: str) -> None:
    """A map of 257x391 and what it shows one stride of a level further: that level's F moves by one cell.

    A shift by less than their strides changes the coarser levels, which are left out; the finer ones move by 2, 4.
    Along y it is 391x257, since 9 cells of P5 are all border.
    """
    path, stride = Path(level).double(), 2**level
    scene = 30 * torch.randn(1, 3, 257, 391 + stride, generator=seeded(level), dtype=torch.float64)
    before, after = scene[..., stride:], scene[..., :-stride]
    if axis == "y":
        before, after = before.mT, after.mT
    for finer, x in path(before).items():
        step, border = 2 ** (level - finer), 5 * 2 ** (level - finer)
        y = path(after)[finer]
        assert x.shape[2:] == torch.Size(-(-side // 2**finer) for side in before.shape[2:])
        x, y = (z if axis == "x" else z.mT for z in (x, y))
        inner, moved = x[..., border : -border - step], y[..., border + step : -border]
        assert inner.shape[3] >= 1
        same(moved, inner)
        assert (y[..., border : -border - step] - inner).abs().max() > 1e-2


@pytest.mark.parametrize(("aligned", "size"), [(True, (97, 131)), (True, (128, 192)), (False, (128, 192))])
def test_no_drift(aligned: bool, size: tuple[int, int]) -> None:
    """What is at a pixel of the image is, in F, on that pixel to within half a cell of F, whatever level it came by.

    All convolutions of DR1Basis are identities, the pyramid is a chain of strided means, and one level alone is not 0.
    """
    basis = DR1Basis(1, width=1, norm="none", aligned=aligned).double()
    for conv in basis.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.dirac_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
    mean = torch.tensor([1.0, 2, 1], dtype=torch.float64)
    kernel = torch.outer(mean, mean)[None, None] / 16
    row, column = 48, 64
    maps = [torch.zeros(1, 1, *size, dtype=torch.float64)]
    maps[0][..., row, column] = 1
    for _ in range(7):
        maps.append(F.conv2d(maps[-1], kernel, stride=2, padding=1))
    drifts = []
    for level in (3, 4):  # a pixel's share of P5 reaches the border
        pyramid = [m if i == level else 0 * m for i, m in enumerate(maps)][3:]
        result = basis(pyramid, [], (-(-size[0] // 4), -(-size[1] // 4)))[0, 0].detach()
        y, x = (torch.arange(n, dtype=torch.float64) for n in result.shape)
        where = (4 * result.sum(1) @ y / result.sum(), 4 * result.sum(0) @ x / result.sum())
        drifts += [abs(where[0].item() - row), abs(where[1].item() - column)]
    assert (max(drifts) <= 0.5 * 4) == aligned
    assert not aligned or max(drifts) < 1e-9
    for level in (5, 6):  # so here a cell of the level itself
        pyramid = [0 * m for m in maps[3:]]
        pyramid[level - 3][..., 1, 1] = 1
        peak = int(basis(pyramid, [], (-(-size[0] // 4), -(-size[1] // 4)))[0, 0].argmax())
        width = -(-size[1] // 4)
        assert not aligned or (4 * (peak // width), 4 * (peak % width)) == (2**level, 2**level)


# -------------------------------------------------------------------------------------------------------- whole model


def tiny_dr1mask(num_classes: int = 3, **options: Any) -> DR1Mask:
    """A whole DR1Mask that runs in milliseconds."""
    head = {"tower_convs": 1, **options.pop("head", {})}
    basis = {"width": 8, **options.pop("basis", {})}
    return DR1Mask(num_classes, basis=basis, size=options.pop("size", 14), **{**TINY, **options}, head=head)


def batch_of(model: DR1Mask, images: Sequence[Tensor]) -> Batch:
    return make_batch(images, model.fcos.mean, model.fcos.std, model.fcos.divisor)


def run(model: DR1Mask, *images: Tensor) -> Any:
    """Pyramid, points and outputs."""
    return model.fcos.run(batch_of(model, images))


def images_and_targets(counts: Sequence[int], size: tuple[int, int] = (97, 131), stuff: bool = False) -> Any:
    images = [torch.rand(3, *size, generator=seeded(i)) for i in range(len(counts))]
    targets = [random_targets(n, size, seeded(10 + i)) if n else empty_target(size) for i, n in enumerate(counts)]
    if stuff:
        for i, target in enumerate(targets):
            target["stuff"] = torch.randint(0, 3, size, generator=seeded(20 + i))
    return images, targets


VARIANTS: list[dict[str, Any]] = [
    {},
    {"factors": "none"},
    {"factors": "a", "context": "fpn"},
    {"factors": "b", "context": "class"},
    {"attention": "vector", "num_stuff": 2},
    {"attention": "factored", "num_stuff": 2, "semantic": 0.3},
    {"attention": "full", "mask_limit": 5, "basis": {"aligned": False}, "divisor": 32},
    {"levels": (2, 3, 4, 5), "head_from": 3},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("counts", [(0, 0), (1,), (30, 0)])
def test_every_parameter_learns(options: dict[str, Any], counts: tuple[int, ...]) -> None:
    """No object, one, many: all losses are finite and all parameters get a gradient."""
    torch.manual_seed(0)
    model = tiny_dr1mask(**options).train()
    images, targets = images_and_targets(counts, stuff=bool(options.get("num_stuff")))
    losses = model(images, targets)
    names = {"loss_class", "loss_box", "loss_centerness", "loss_mask"}
    names |= {"loss_panoptic"} if options.get("num_stuff") else set()
    names |= {"loss_semantic"} if options.get("semantic") else set()
    assert set(losses) == names
    if counts == (0, 0):
        assert losses["loss_mask"] == 0
    check_gradients(lambda: sum(model(images, targets).values()), model, all_nonzero=False)
    if counts == (30, 0):
        for part in (model.basis, model.attention, model.context, model.panoptic):
            for name, parameter in part.named_parameters() if part is not None else ():
                assert parameter.grad is not None
                assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("options", VARIANTS)
def test_results(options: dict[str, Any]) -> None:
    """In torchvision's form at odd sizes and other output sizes; one image or several, the same results."""
    torch.manual_seed(0)
    model = tiny_dr1mask(**options)
    enliven(model, seeded(4))
    if isinstance(model.attention, FullAttention):
        nn.init.zeros_(model.attention.project.bias)  # type: ignore[arg-type]
    model.eval()
    images, _ = images_and_targets((0, 0, 0))
    with torch.no_grad():
        together = model(images, output_sizes=[(97, 131), (50, 70), (200, 262)])
        for image, size, result in zip(images, [(97, 131), (50, 70), (200, 262)], together, strict=True):
            (alone,) = model([image], output_sizes=[size])
            assert len(result["labels"]) > 3
            assert result["masks"].shape == (len(result["labels"]), *size)
            assert result["masks"].dtype == torch.bool
            assert result["masks"].any()
            assert (result["scores"].diff() <= 0).all()
            for key in ("boxes", "scores", "labels"):
                same(alone[key], result[key], 1e-4)
            assert (alone["masks"] != result["masks"]).float().mean() < 1e-3
            if model.panoptic is not None:
                stride = model.stride
                n = model.num_stuff + len(result["labels"])
                assert result["panoptic_logits"].shape == (n, -(-97 // stride), -(-131 // stride))


def test_no_detection() -> None:
    model = tiny_dr1mask(score_threshold=0.999, num_stuff=2, attention="vector").eval()
    (result,) = model([torch.rand(3, 60, 41, generator=seeded(0))])
    assert result["masks"].shape == (0, 60, 41)
    assert result["panoptic_logits"].shape == (2, 15, 11)


def test_mixed_precision() -> None:
    """In bfloat16 all losses stay float32 and finite, and masks come out."""
    torch.manual_seed(0)
    model = tiny_dr1mask(attention="vector", num_stuff=2, semantic=0.3, score_threshold=0.005)
    images, targets = images_and_targets((3, 0), stuff=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(images, targets)
        assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
        enliven(model, seeded(1))
        with torch.no_grad():
            results = model.eval()(images)
    assert any(len(result["masks"]) for result in results)


def test_gradients_reach_the_factors() -> None:
    """The mask loss alone reaches A, B, the tower that they come from, and the embeddings."""
    torch.manual_seed(0)
    model = tiny_dr1mask().train()
    images, targets = images_and_targets((4,))
    model(images, targets)["loss_mask"].backward()
    assert model.context is not None
    assert model.fcos.head.top is not None
    for parameter in (model.context.conv.weight, model.fcos.head.top.weight, *model.fcos.head.box_tower.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_mask_loss_is_the_mean_of_crops() -> None:
    """By hand: crops of the objects' boxes, entropy weighted by centre-ness; masks in float64."""
    torch.manual_seed(0)
    model = tiny_dr1mask().double().train()
    images, targets = images_and_targets((4, 2))
    images = [image.double() for image in images]
    pyramid, points, outputs = run(model, *images)
    features = model.features(batch_of(model, images), pyramid, outputs)
    assignment = model.fcos.assign(points, targets)
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for i, location in assignment.labels.nonzero().tolist():
        m = int(assignment.matched[i, location])
        box = targets[i]["boxes"][m : m + 1].double()
        e = model.fcos.head.top_at(outputs, points, i, torch.tensor([location]))
        logits = model.attention(crop_bases(features[i : i + 1], [box], 4, 14), e)
        truth = crop_masks(targets[i]["masks"][m : m + 1], targets[i]["boxes"][m : m + 1], 14)
        weight = float(centerness(assignment.distances[i, location]))
        total = total + weight * F.binary_cross_entropy_with_logits(logits, truth.double())
        weights += weight
    losses = model.mask_losses(points, outputs, assignment, features, targets)
    same(losses["loss_mask"], total / weights, 1e-6)


# ----------------------------------------------------------------------------------------------------------- panoptic


def test_pasted_logits_are_read_where_they_were_cut() -> None:
    """A crop of a smooth map, pasted back, is that map within the box, and OUTSIDE beyond."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    smooth = (x / 10 - y / 7)[None]
    boxes = torch.tensor([[16.0, 12, 72, 52], [40, 20, 100, 76]])
    crops = crop_bases(smooth[None], [boxes], 4, 40)[:, 0]
    pasted = paste_logits(crops, boxes, 4, (20, 30))
    for result, (x0, y0, x1, y1) in zip(pasted, boxes.tolist(), strict=True):
        within = (4 * x + 2 > x0) & (4 * x + 2 < x1) & (4 * y + 2 > y0) & (4 * y + 2 < y1)
        assert (result[~within] == OUTSIDE).all()
        # Beyond half a cell from the sides, where the crop's outermost cells end.
        inner = (4 * x + 2 > x0 + 2) & (4 * x + 2 < x1 - 2) & (4 * y + 2 > y0 + 2) & (4 * y + 2 < y1 - 2)
        same(result[inner], smooth[0][inner], 1e-4)


def test_panoptic_targets() -> None:
    masks = torch.zeros(2, 12, 20, dtype=torch.bool)
    masks[0, :8, :12] = True
    masks[1, 4:8, 4:8] = True  # the smaller one, on top
    stuff = torch.zeros(12, 20, dtype=torch.int64)
    stuff[:, 8:] = 2
    result = panoptic_targets({"masks": masks, "stuff": stuff}, 4, (4, 5), num_stuff=3)
    assert result.tolist() == [[3, 3, 3, 1, 1], [3, 4, 3, 1, 1], [-1, -1, 1, 1, 1], [-1, -1, -1, -1, -1]]
    empty = panoptic_targets({"masks": masks[:0], "stuff": stuff}, 4, (3, 5), num_stuff=3)
    assert empty.tolist() == [[-1, -1, 1, 1, 1]] * 3


def test_panoptic_loss_by_hand() -> None:
    """A softmax over stuff and the objects that have a location; cells of the others do not count."""
    torch.manual_seed(0)
    model = tiny_dr1mask(attention="vector", num_stuff=2).double()
    _, (target,) = images_and_targets((3,), stuff=True)
    features = normal(8, 25, 33)
    e, matched = normal(4, 8, seed=1), torch.tensor([0, 2, 2, 0])  # nobody found object 1
    truth = panoptic_targets(target, 4, (25, 33), 2)
    assert model.panoptic is not None
    weights = torch.cat([model.panoptic.stuff, naive.eq_9(e, matched.tolist(), 3)], dim=1)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for h in range(25):
        for w in range(33):
            if (channel := int(truth[h, w])) in (0, 1, 2, 4):
                logits = (weights.T @ features[:, h, w])[[0, 1, 2, 4]]
                total = total - logits.log_softmax(0)[[0, 1, 2, 4].index(channel)]
                count += 1
    expected = total / count
    same_with_gradients(
        model.panoptic_loss(features, target, e, matched), expected, (features, e, model.panoptic.stuff)
    )


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "soft"}, "attention must be one of vector, full, factored, not 'soft'"),
        ({"factors": "ba"}, "factors must be one of ab, a, b, none, not 'ba'"),
        ({"context": "none"}, "context must be one of box, class, fpn"),
        ({"context": "class", "head": {"shared_towers": True}}, "needs a class tower"),
        ({"divisor": 6}, "multiple of 4"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_dr1mask(**options)


def test_bad_targets() -> None:
    images, targets = images_and_targets((1,))
    with pytest.raises(ValueError, match="needs a 'stuff' map"):
        tiny_dr1mask(num_stuff=2).train()(images, targets)
    with pytest.raises(ValueError, match="no panoptic layer"):
        tiny_dr1mask().panoptic_logits(torch.zeros(8, 3, 3), torch.zeros(0, 4), torch.zeros(0, 8))


# ------------------------------------------------------------------------------------------------------------ recipes


def test_recipes_and_rows() -> None:
    """Every row of Tables 1 to 7 is a recipe with that row's arguments; all models can be built."""
    expected: dict[str, dict[str, Any]] = {
        "dr1mask:table-1:baseline": {"factors": "none", "attention": "vector"},
        "dr1mask:table-1:w-a": {"factors": "a"},
        "dr1mask:table-1:w-b": {"factors": "b"},
        "dr1mask:table-1:w-a-b": {"attention": "vector"},
        "dr1mask:table-2:wo-a-b": {"factors": "none", "num_things": 80, "attention": "vector"},
        "dr1mask:table-2:w-a-b": {"num_things": 80},
        "dr1mask:table-3:none": {"factors": "none"},
        "dr1mask:table-3:fpn": {"context": "fpn"},
        "dr1mask:table-3:class-tower": {"context": "class"},
        "dr1mask:table-3:box-tower": {"attention": "vector"},
        "dr1mask:table-4:vector": {"attention": "vector"},
        "dr1mask:table-4:full": {"attention": "full"},
        "dr1mask:table-4:factored": {},
        "dr1mask:table-5:32": {"divisor": 32, "basis": {"width": 32, "aligned": False}},
        "dr1mask:table-5:128": {"divisor": 128, "basis": {"width": 32, "aligned": False}},
        "dr1mask:table-5:4-w-aligned": {"num_things": 80},
        "dr1mask:table-6:32": {"basis": {"width": 32}},
        "dr1mask:table-6:64": {"basis": {"width": 64}},
        "dr1mask:table-6:128": {"basis": {"width": 128}},
        "dr1mask:table-7:vector": {"attention": "vector"},
        "dr1mask:table-7:factored": {"attention": "factored", "num_things": 80},
    }
    assert dr1mask_rows() == list(expected)
    for name, settings in expected.items():
        recipe = get_recipe(name)
        assert settings.items() <= recipe.model_args.items(), name
        assert recipe.iterations == (270_000 if ":table-6" in name else 90_000)
        small = override_model(
            recipe, ("backbone=resnet18", "backbone_options={}", "head.tower_convs=1", "channels=16")
        )
        model: Any = build_model(small.model, 80 if recipe.train_panoptic is None else 133, small.model_args)
        assert (recipe.train_panoptic is not None) == isinstance(model, UnifiedPanopticModel)
    with pytest.raises(UserError, match=r"expected one of dr1mask:table-4:vector, dr1mask:table-4:full"):
        get_recipe("dr1mask:table-4:half")


@pytest.mark.parametrize("name", dr1mask_recipes.RECIPES)
def test_full_size_models(name: str) -> None:
    """On the meta device, where 50 million parameters take no memory: the paper's sizes and schedules."""
    recipe = get_recipe(name)
    args = {**recipe.model_args, "backbone_options": {**recipe.model_args["backbone_options"], "weights": None}}
    with torch.device("meta"):
        model: Any = build_model(recipe.model, 80 if recipe.train_panoptic is None else 133, args)
    model = model.instances if isinstance(model, UnifiedPanopticModel) else model
    assert isinstance(model, DR1Mask)
    assert model.stride == 4
    assert model.fcos.divisor == 4
    assert [round(m * recipe.iterations) for m in recipe.milestones] == (
        [60_000, 80_000] if "1x" in name else [180_000, 240_000]
    )
    if "panoptic" in name:
        assert model.panoptic is not None
        assert model.panoptic.stuff.shape == (32 if "1x" in name else 64, 53)
        assert isinstance(model.attention, VectorAttention)
    else:
        assert model.attention.num_parameters == 144
    deformable = sum(type(module).__name__ == "DeformableConv" for module in model.modules())
    assert (deformable > 0) == ("dcn" in name)


def test_tiny_recipe() -> None:
    recipe = get_recipe("shapes-dr1mask")
    model = build_model(recipe.model, 5, recipe.model_args)
    assert isinstance(model, DR1Mask)
    assert model.stride == 2
    assert len(model.basis.merge) == 4
    assert sum(p.numel() for p in model.parameters()) < 720_000


# -------------------------------------------------------------------------------------------------------------- bench


def test_dynamic_convolution() -> None:
    """With one kernel everywhere it is the plain convolution, with each position's times b_hw it is DR1Conv with B."""
    conv = DR1Conv2d(3)
    x, b = (torch.randn(1, 3, 5, 7, generator=seeded(i)) for i in range(2))
    kernels = conv.conv.weight.flatten(1).expand(35, -1, -1)
    same(dynamic_convolution(x[0], kernels), conv(x)[0], 1e-5)
    scaled = kernels * b[0].flatten(1).T[:, :, None]  # row i of a position's kernel times its b_i
    same(dynamic_convolution(x[0], scaled), conv(x, b=b)[0], 1e-5)


def test_bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_bar(False) as progress:
        large, small = bench_dr1conv.bench_dr1conv(2, progress, width=4, channels=8, size=(9, 13), small=(3, 4))
    assert [variant.name for variant in large.variants] == ["plain", "DR1Conv", "A and B"]
    assert [variant.name for variant in small.variants] == ["plain", "DR1Conv", "A and B", "dynamic"]
    assert small["dynamic"].facts["numbers_a_position"] == 9 * 4**2
    assert large["DR1Conv"].goal == {"ratio": 1.35}
    monkeypatch.setattr(bench_dr1conv, "run", lambda *_: [large, small])
    bench.run_bench(bench.Bench("dr1conv", runs=1))
    assert "DR1Conv takes" in capsys.readouterr().out


def test_dr1conv_is_hardly_dearer_than_a_convolution() -> None:
    """The goal of `condinst-edu bench dr1conv`, on P3's map; the best of a few tries, since other work disturbs."""
    ratios = [torch.inf]
    while min(ratios) > 1.35 and len(ratios) < 8:
        with progress_bar(False) as progress, torch.inference_mode():
            group = bench_dr1conv.compare(9, progress, "P3", 32, 8, (100, 136))
        ratios.append(group["DR1Conv"].facts["ratio"])
    assert min(ratios) <= 1.35


# ------------------------------------------------------------------------------------------------------------- lesson


def test_factored_instances() -> None:
    """What lesson 6 shows of each instance is what the model does; unchanged factors change nothing."""
    torch.manual_seed(0)
    model = tiny_dr1mask(attention_size=5)
    enliven(model, seeded(4))
    model.eval()
    image = torch.rand(3, 97, 131, generator=seeded(0))
    with torch.no_grad():
        (result,) = model([image])
    instances = factored_of(model, image)
    assert len(instances) >= len(result["labels"]) > 3
    masks = torch.stack([instance.mask for instance in instances])
    assert all((masks == mask).all(dim=(1, 2)).any() for mask in result["masks"])
    first = instances[0]
    assert first.maps.shape == (4, 5, 5)
    assert first.projected.shape == (4, 14, 14)
    same(with_factors(model, first, first.factors).logits, first.logits, 1e-5)
    none = with_factors(model, first, 0 * first.factors)
    assert (none.logits == 0).all()
    assert show_factored(image, instances[:2]).axes
    with pytest.raises(ValueError, match="VectorAttention, not FactoredAttention"):
        factored_of(tiny_dr1mask(attention="vector"), image)


def test_change_factors() -> None:
    torch.manual_seed(0)
    model = tiny_dr1mask()
    enliven(model, seeded(4))
    image = torch.rand(3, 97, 131, generator=seeded(0))
    widget = change_factors(model.eval(), image, ["a", "b", "c"])
    before = widget.changed.maps.clone()
    widget.base.value, widget.times.value = 2, -3.0
    assert torch.equal(widget.changed.maps[0], before[0])
    assert not torch.equal(widget.changed.maps[1], before[1])
    assert "s_21 = " in widget.text
    assert bytes(widget.picture.value).startswith(b"\x89PNG")
    model.fcos.score_threshold = 0.999
    with pytest.raises(ValueError, match="finds nothing"):
        change_factors(model, image)
