"""The mask head against loops over pixels, against grouped convolutions with a materialised coordinate tensor, and
against numbers of the official code."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Record, gradients, official, same, same_to_scale, seeded
from torch import Tensor

from condinst_edu import mask_head
from condinst_edu.coordinates import absolute_coordinates, relative_coordinates
from condinst_edu.layers import aligned_upsample
from condinst_edu.mask_head import DynamicMaskHead, can_compile, split_parameters
from condinst_edu.papers import naive_condinst

# --------------------------------------------------------------------------------------------------------- parameters


def test_split_parameters_order() -> None:
    """w1 (8, 10), w2 (8, 8), w3 (1, 8), then b1 (8), b2 (8), b3 (1), each row by row."""
    theta = torch.arange(2 * 169).view(2, 169)
    weights, biases = split_parameters(theta, (10, 8, 8, 1))
    assert [tuple(w.shape) for w in weights] == [(2, 8, 10), (2, 8, 8), (2, 1, 8)]
    assert [tuple(b.shape) for b in biases] == [(2, 8), (2, 8), (2, 1)]
    for n in range(2):
        start = n * 169
        assert weights[0][n, 0].tolist() == list(range(start, start + 10))  # the first output's ten inputs
        assert weights[0][n, 7, 9] == start + 79
        assert weights[1][n, 0, 0] == start + 80
        assert weights[1][n, 3, 5] == start + 80 + 3 * 8 + 5
        assert weights[2][n, 0].tolist() == list(range(start + 144, start + 152))
        assert biases[0][n].tolist() == list(range(start + 152, start + 160))
        assert biases[1][n].tolist() == list(range(start + 160, start + 168))
        assert biases[2][n].tolist() == [start + 168]


@pytest.mark.parametrize("channels", [(10, 1), (3, 5, 1), (10, 4, 1), (2, 8, 8, 1), (18, 16, 16, 16, 1)])
def test_split_parameters_by_loop(channels: tuple[int, ...]) -> None:
    count = sum(i * o + o for i, o in itertools.pairwise(channels))
    theta = torch.randn(3, count, generator=seeded(0))
    weights, biases = split_parameters(theta, channels)
    for n in range(3):
        expected = naive_condinst.split_parameters(theta[n], channels)
        for ours, theirs in zip((weights, biases), expected, strict=True):
            assert len(ours) == len(theirs) == len(channels) - 1
            assert all(torch.equal(x[n], y) for x, y in zip(ours, theirs, strict=True))
    assert sum(naive_condinst.controller(channels)) == count


def test_split_parameters_refuses_other_numbers() -> None:
    with pytest.raises(ValueError, match=r"theta has 168 numbers; layers \(10, 8, 8, 1\) need 169"):
        split_parameters(torch.zeros(2, 168), (10, 8, 8, 1))
    assert split_parameters(torch.zeros(0, 169), (10, 8, 8, 1))[0][0].shape == (0, 8, 10)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 169),  # (8 + 2) * 8 + 8 * 8 + 8 * 1 weights, 8 + 8 + 1 biases
        ({"coordinates": "absolute"}, 169),
        ({"coordinates": "none"}, 153),
        ({"use_features": False}, 105),
        ({"depth": 1}, 11),
        ({"depth": 2}, 97),
        ({"depth": 4}, 241),
        ({"width": 4}, 69),
        ({"width": 16}, 465),
        ({"in_channels": 1}, 113),
        ({"in_channels": 16}, 233),
    ],
)
def test_num_parameters(options: dict[str, Any], count: int) -> None:
    head = DynamicMaskHead(**options)
    assert head.num_parameters == count == sum(naive_condinst.controller(head.channels))
    assert not list(head.parameters())
    assert naive_condinst.controller() == (152, 17)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinates": "polar"}, "coordinates must be"),
        ({"coordinates": "none", "use_features": False}, "needs coordinates, features or both"),
    ],
)
def test_mask_head_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicMaskHead(**options)


# ------------------------------------------------------------------------------------------------------ the network


def case(
    head: DynamicMaskHead,
    count: int,
    size: tuple[int, int] = (9, 13),
    stride: int = 8,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Random input of a mask head: instances of several levels, most of them on the map, some off it."""
    generator = seeded(count + size[0])
    extent = torch.tensor([size[1] * stride, size[0] * stride])
    inputs = head.channels[0]
    channels = max(inputs - (2 if head.coordinates != "none" else 0), 1)
    return {
        "features": torch.randn(channels, *size, generator=generator, dtype=torch.float64).to(dtype),
        "theta": (torch.randn(count, head.num_parameters, generator=generator, dtype=torch.float64) * 0.5).to(dtype),
        "centers": ((1.2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 0.1) * extent).to(dtype),
        "scales": (64.0 * 2 ** torch.randint(0, 5, (count,), generator=generator)).to(dtype),
        "stride": stride,
    }


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: x.to(dtype) if isinstance(x, Tensor) else x for name, x in inputs.items()}


def naive_mask_head(
    head: DynamicMaskHead, features: Tensor, theta: Tensor, centers: Tensor, scales: Tensor, stride: int
) -> Tensor:
    """All instances, one after the other, from the paper's words."""
    maps = features if head.use_features else features[:0]
    each = zip(theta, centers.tolist(), scales.tolist(), strict=True)
    return torch.stack(
        [naive_condinst.mask_head(maps, t, xy, unit, stride, head.channels, head.coordinates) for t, xy, unit in each]
    )


def grouped_mask_head(
    head: DynamicMaskHead, features: Tensor, theta: Tensor, centers: Tensor, scales: Tensor, stride: int
) -> Tensor:
    """The form of the official code: a coordinate tensor per instance, and convolutions with one group per instance."""
    count, size = len(theta), (features.shape[1], features.shape[2])
    inputs = []
    if head.coordinates == "relative":
        inputs.append(relative_coordinates(size, stride, centers, scales))
    elif head.coordinates == "absolute":
        inputs.append(absolute_coordinates(size, stride).to(features.dtype).expand(count, -1, -1, -1))
    if head.use_features:
        inputs.append(features.expand(count, -1, -1, -1))
    x = torch.cat(inputs, dim=1).flatten(0, 1)[None]  # (1, N * inputs, H, W)
    weights, biases = split_parameters(theta, head.channels)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = F.conv2d(x, weight.flatten(0, 1)[..., None, None], bias.flatten(), groups=count)
        x = x if layer == len(weights) - 1 else F.relu(x)
    return x[0]


VARIANTS: list[dict[str, Any]] = [
    {},
    {"coordinates": "absolute"},
    {"coordinates": "none"},
    {"use_features": False},
    {"coordinates": "absolute", "use_features": False},
    {"depth": 1},
    {"depth": 2, "width": 5},
    {"depth": 4, "width": 16, "in_channels": 3},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("stride", [3, 8])
def test_mask_head_by_loop(options: dict[str, Any], stride: int) -> None:
    head = DynamicMaskHead(**options)
    inputs = case(head, 3, (4, 7), stride)
    same(head(**inputs), naive_mask_head(head, **inputs), 1e-6 if options.get("coordinates") == "absolute" else 1e-12)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("count", [1, 2, 11])
def test_mask_head_equals_grouped_convolutions(options: dict[str, Any], count: int) -> None:
    """The same logits, and the same gradients for features and theta."""
    head = DynamicMaskHead(**options)
    inputs = case(head, count)
    tolerance = 1e-6 if head.coordinates == "absolute" else 1e-10  # absolute_coordinates are float32
    learned = [inputs["features"].requires_grad_(), inputs["theta"].requires_grad_()]
    ours, expected = head(**inputs), grouped_mask_head(head, **inputs)
    assert ours.dtype == torch.float64
    same(ours, expected, tolerance)
    weight = torch.randn(ours.shape, generator=seeded(0), dtype=torch.float64)
    for mine, other in zip(
        gradients((ours * weight).sum(), learned), gradients((expected * weight).sum(), learned), strict=True
    ):
        same(mine, other, 100 * tolerance)


@pytest.mark.parametrize("size", [(25, 34), (100, 136)])
def test_mask_head_in_float32(size: tuple[int, int]) -> None:
    """Folding the coordinates costs no accuracy that matters: 1e-5 of the logits' size, as for the grouped form."""
    head = DynamicMaskHead()
    exact = case(head, 12, size)
    inputs = cast(exact, torch.float32)
    result = head(**inputs)
    assert result.dtype == torch.float32
    same_to_scale(result, grouped_mask_head(head, **inputs), 1e-5)
    same_to_scale(result, grouped_mask_head(head, **cast(inputs, torch.float64)), 1e-5)


def test_gradients_in_float32() -> None:
    head = DynamicMaskHead()
    inputs = cast(case(head, 6, (25, 34)), torch.float32)
    learned = [inputs["features"].requires_grad_(), inputs["theta"].requires_grad_()]
    ours = gradients(head(**inputs).sigmoid().square().sum(), learned)
    expected = gradients(grouped_mask_head(head, **inputs).sigmoid().square().sum(), learned)
    for mine, other in zip(ours, expected, strict=True):
        same_to_scale(mine, other, 1e-5)


class Calls:
    """Counts the calls of a function that it replaces, and passes them on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.count = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(("count", "chunked"), [(9, False), (10, True), (17, True)])
def test_mask_head_in_chunks(count: int, chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2^20 numbers between two layers on, instances run a few at a time; values and gradients are the same."""
    layers, saved = Calls(mask_head.run_layers), Calls(mask_head.checkpoint)
    monkeypatch.setattr(mask_head, "run_layers", layers)
    monkeypatch.setattr(mask_head, "checkpoint", saved)
    head = DynamicMaskHead()
    inputs = case(head, count, (100, 136))
    with torch.no_grad():
        ours, expected = head(**inputs), grouped_mask_head(head, **inputs)
    same(ours, expected, 1e-10)
    assert (layers.count > 1) == chunked
    assert saved.count == 0
    pieces = layers.count

    learned = [inputs["features"].requires_grad_(), inputs["theta"].requires_grad_()]
    ours, expected = head(**inputs), grouped_mask_head(head, **inputs)
    assert saved.count == (pieces if chunked else 0)
    weight = torch.randn(1, *ours.shape[1:], generator=seeded(0), dtype=torch.float64) / 1000
    for mine, other in zip(
        gradients((ours * weight).sum(), learned), gradients((expected * weight).sum(), learned), strict=True
    ):
        same(mine, other, 1e-9)


@pytest.mark.parametrize("options", VARIANTS)
def test_mask_head_without_instances(options: dict[str, Any]) -> None:
    """No instance: no mask, and the features still have a gradient, of 0."""
    head = DynamicMaskHead(**options)
    inputs = case(head, 0)
    inputs["features"].requires_grad_()
    inputs["theta"].requires_grad_()
    result = head(**inputs)
    assert result.shape == (0, 9, 13)
    result.sum().backward()
    assert inputs["theta"].grad.shape == inputs["theta"].shape
    if head.use_features:
        assert inputs["features"].grad.abs().sum() == 0


def test_instances_do_not_mix() -> None:
    """An instance's mask does not depend on which others are computed with it."""
    head = DynamicMaskHead()
    inputs = case(head, 7)
    together = head(**inputs)
    for n in range(7):
        one = {name: x[n : n + 1] if name in ("theta", "centers", "scales") else x for name, x in inputs.items()}
        same(head(**one)[0], together[n], 1e-12)


@pytest.mark.parametrize(("count", "size"), [(7, (11, 17)), (20, (100, 136))])
@pytest.mark.parametrize("trained", [False, True])
def test_no_coordinate_tensor_is_made(count: int, size: tuple[int, int], trained: bool) -> None:
    """Nothing of shape (N, 2, H, W) or (N, 2 + C, H, W), flat or not, for all instances or a chunk of them."""
    head = DynamicMaskHead()
    inputs = case(head, count, size)
    area = size[0] * size[1]

    def coordinate_tensors(shapes: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
        flat = [(*shape[:-2], area) if shape[-2:] == size else shape for shape in shapes if len(shape) > 1]
        forbidden = {(n, c, area) for n in range(2, count + 1) for c in (2, 10)}
        return [shape for shape in flat if shape in forbidden or shape in ((count * 2, area), (count * 10, area))]

    inputs["features"].requires_grad_(trained)
    inputs["theta"].requires_grad_(trained)
    with Record() as record:
        result = head(**inputs)
        if trained:
            result.sum().backward()
    assert (count, *size) in record.shapes  # the logits: the record works
    assert not coordinate_tensors(record.shapes)
    with Record() as record:  # and the search finds them where they are made
        grouped_mask_head(head, **inputs)
    assert {(count, 2, area), (count, 10, area)} <= set(coordinate_tensors(record.shapes))


def test_mask_head_under_autocast() -> None:
    """Half precision in, float32 coordinates, products and logits."""
    head = DynamicMaskHead()
    inputs = case(head, 4, dtype=torch.bfloat16)
    exact = cast(inputs, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = head(**inputs)
    assert result.dtype == torch.float32
    same_to_scale(result, grouped_mask_head(head, **exact), 1e-5)


# ----------------------------------------------------------------------------------------------------- compiled path


def test_falls_back_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("compiled although nothing can be compiled here")

    monkeypatch.setattr(mask_head, "can_compile", lambda: False)
    monkeypatch.setattr(mask_head, "_fused", refuse)
    inputs = case(DynamicMaskHead(), 6)
    with torch.no_grad():
        assert torch.equal(DynamicMaskHead(compiled=True)(**inputs), DynamicMaskHead()(**inputs))


def test_compiles_only_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by default, not in training, not for a single instance."""
    fused = Calls(mask_head.fused_layers)
    monkeypatch.setattr(mask_head, "can_compile", lambda: True)
    monkeypatch.setattr(mask_head, "_fused", lambda: fused)
    head = DynamicMaskHead(compiled=True)
    for count, compiled, grad, expected in (
        (6, True, False, 1),
        (6, True, True, 0),
        (1, True, False, 0),
        (6, False, False, 0),
    ):
        head.compiled, fused.count = compiled, 0
        with torch.set_grad_enabled(grad):
            head(**case(head, count))
        assert fused.count == expected


def test_can_compile_looks_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not can_compile.__wrapped__()
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert can_compile.__wrapped__()


@pytest.mark.parametrize("options", VARIANTS)
def test_fused_layers_before_compilation(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_head, "can_compile", lambda: True)
    monkeypatch.setattr(mask_head, "_fused", lambda: mask_head.fused_layers)
    head = DynamicMaskHead(**options, compiled=True)
    inputs = case(head, 4)
    with torch.no_grad():
        same(head(**inputs), grouped_mask_head(head, **inputs), 1e-6 if head.coordinates == "absolute" else 1e-10)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
def test_compiled_path() -> None:
    head = DynamicMaskHead(compiled=True)
    for count, size in ((7, (20, 30)), (40, (33, 21)), (2, (20, 30))):  # one compilation serves all sizes
        inputs = cast(case(head, count, size), torch.float32)
        with torch.no_grad():
            same_to_scale(head(**inputs), grouped_mask_head(head, **inputs), 1e-5)


# ------------------------------------------------------------------------------------------------------- golden data


@pytest.mark.parametrize("name", ["CondInst_MS_R_50_1x", "CondInst_MS_R_50_BiFPN_3x_sem"])
def test_mask_head_against_the_official_code(name: str) -> None:
    """Official coordinates are location - pixel, so the sign of the first layer's weights on x and y turns."""
    numbers = {key: torch.from_numpy(value) for key, value in official(f"component_maskhead_{name}.npz").items()}
    theta = numbers["params"].clone()
    theta[:, :80].unflatten(1, (8, 10))[:, :, :2] *= -1
    scales = 64.0 * 2 ** numbers["fpn_levels"]
    assert set(numbers["fpn_levels"].tolist()) == {0, 1, 2, 3, 4}
    logits = DynamicMaskHead()(numbers["mask_feats"][0], theta, numbers["locations"], scales, 8)
    same(logits, numbers["logits_s8"], 3e-4)
    same(aligned_upsample(logits, 2)[: len(numbers["logits_s4"])], numbers["logits_s4"], 3e-4)
