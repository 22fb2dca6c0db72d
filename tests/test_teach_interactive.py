"""What one location draws is what the model draws there; the targets' counts; widgets without a browser."""

import base64
import itertools
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from helpers import empty_target, enliven, random_targets, same, same_to_scale, seeded, tiny_condinst, tiny_fcos
from matplotlib.backends.backend_agg import FigureCanvasAgg

from condinst_edu.condinst import CondInst
from condinst_edu.coordinates import mass_centers
from condinst_edu.layers.images import make_batch
from condinst_edu.layers.upsample import resize_masks
from condinst_edu.papers import naive_fcos
from condinst_edu.teach import (
    click_to_segment,
    deviate,
    explore_targets,
    look,
    redraw,
    segment_at,
    show_segment,
    strip_widgets,
    targets_of,
)
from condinst_edu.teach.interactive import Segment, describe, describe_targets
from condinst_edu.teach.segment_pictures import mask_overlay
from condinst_edu.teach.stored import WIDGET

SIZE = (90, 134)  # neither side is divisible by a stride
PNG = b"\x89PNG\r\n\x1a\n"


def live_condinst(seed: int = 1, **options: Any) -> CondInst:
    """In evaluation mode, with random weights that find something."""
    torch.manual_seed(seed)
    model = tiny_condinst(**options)
    enliven(model, seeded(seed))
    return model.eval()


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, *SIZE, generator=seeded(seed))


@torch.no_grad()
def by_model(model: CondInst, image: torch.Tensor, location: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (H, W) and mask of one location, by the model's own methods."""
    pyramid, points, outputs = model.fcos.run(make_batch([image], model.fcos.mean, model.fcos.std, model.fcos.divisor))
    logits = model.mask_logits(points, outputs, model.bottom(pyramid), 0, torch.tensor([location]))
    return logits[0], resize_masks(logits, model.stride, SIZE, SIZE, model.factor)[0]


# ------------------------------------------------------------------------------------------------------------ segments

HEADS = [
    *({"coordinates": c, "use_features": f} for c, f in itertools.product(("relative", "absolute"), (True, False))),
    {"coordinates": "none"},
    {"depth": 1},
    {"depth": 4, "width": 5},
    {"depth": 1, "coordinates": "absolute", "use_features": False},
]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_segment_is_what_the_model_draws(head: dict[str, Any]) -> None:
    model, image = live_condinst(mask_head=head), picture()
    seen = look(model, image)
    for x, y, level in ((0, 0, 3), (133, 89, 4), (61, 40, 5), (70.5, 12, None)):
        segment = seen.segment_at(x, y, level)
        logits, mask = by_model(model, image, seen.nearest(x, y, level))
        same(segment.logits, logits)
        assert torch.equal(segment.mask, mask)
        same_to_scale(segment.activations[-1][0], logits, 1e-5)
        channels = model.mask_head.channels
        assert [len(maps) for maps in segment.activations] == list(channels[1:])
        assert all((maps >= 0).all() for maps in segment.activations[:-1])
        assert segment.theta.shape == (model.mask_head.num_parameters,)
        assert (segment.coordinates is None) == (model.mask_head.coordinates == "none")
        assert segment.features.shape == (8, *logits.shape)


@pytest.mark.parametrize(("factor", "nms"), [(1, "box"), (2, "mask"), (4, "box")])
def test_every_detection_has_the_mask_of_its_location(factor: Any, nms: Any) -> None:
    """In float64: a batch of instances and a single one are rounded differently, which can move a pixel in float32."""
    model, image = live_condinst(factor=factor, nms=nms).double(), picture().double()
    with torch.no_grad():
        (found,) = model([image])
    seen = look(model, image)
    with torch.no_grad():
        instances = model.detect(seen.points, seen.outputs, seen.features[None], 0)
    assert len(found["masks"]) == len(instances.location) > 3
    on_image = 0
    for mask, score, location in zip(found["masks"], found["scores"], instances.location.tolist(), strict=True):
        assert torch.equal(seen.segment_of(location).mask, mask)
        assert seen.scores[location] >= score
        x, y = seen.points.xy[location].tolist()
        if x < SIZE[1] and y < SIZE[0]:  # others are in the padding
            on_image += 1
            level = seen.levels[int(seen.points.level[location])]
            segment = segment_at(model, image, x, y, level)
            assert segment.location == (x, y)
            assert torch.equal(segment.mask, mask)
    assert on_image > 3


def test_score_and_label_are_those_of_a_detection() -> None:
    model, image = live_condinst(), picture()
    with torch.no_grad():
        (found,) = model([image])
    seen = look(model, image)
    best = seen.segment_of(int(seen.scores.argmax()))
    assert best.score == pytest.approx(float(found["scores"].max()))
    assert best.label == int(found["labels"][found["scores"].argmax()])


def test_nearest_location_and_level() -> None:
    seen = look(live_condinst(), picture())
    for x, y in ((0, 0), (133, 0), (7.6, 31), (64, 89)):
        segments = {level: seen.segment_at(x, y, level) for level in (3, 4, 5)}
        for level, segment in segments.items():
            of_level = seen.points.xy[seen.points.stride == 2**level].tolist()
            nearest = min(of_level, key=lambda p: (p[0] - x) ** 2 + (p[1] - y) ** 2)
            assert (segment.level, segment.stride) == (level, 2**level)
            assert segment.location == tuple(nearest)
        assert seen.segment_at(x, y).level == max(segments, key=lambda level: segments[level].score)
    x, y = seen.surest_pixel()
    assert 0 <= x < SIZE[1]
    assert 0 <= y < SIZE[0]


def test_head_from_a_coarser_level_than_the_masks() -> None:
    model = live_condinst(levels=(2, 3, 4, 5), head_from=3)
    segment = segment_at(model, picture(), 60, 40, 3)
    assert segment.stride == 8
    assert segment.logits.shape == (24, 40)  # stride 4 on the padded image
    with pytest.raises(ValueError, match="level must be"):
        segment_at(model, picture(), 60, 40, 2)


@pytest.mark.parametrize(("x", "y"), [(-1, 3), (134, 3), (3, 90), (float("nan"), 3)])
def test_pixel_off_the_image(x: float, y: float) -> None:
    with pytest.raises(ValueError, match=r"off the image, whose pixels go to \(133, 89\)"):
        segment_at(live_condinst(), picture(), x, y)


def test_unknown_model() -> None:
    with pytest.raises(TypeError, match="not FCOS"):
        segment_at(tiny_fcos(), picture(), 3, 3)


def test_training_mode_and_gradients_are_left_alone() -> None:
    model = live_condinst().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    segment = segment_at(model, picture(), 30, 30)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not segment.logits.requires_grad
    assert not segment.theta.requires_grad


def test_redraw_swaps_filters_and_moves_the_origin() -> None:
    model, image = live_condinst(), picture()
    seen = look(model, image)
    a, b = seen.segment_at(30, 30, 3), seen.segment_at(100, 60, 3)
    as_b = redraw(a, theta=b.theta, origin=b.location)  # same level, so same scale: it is b
    same(as_b.logits, b.logits)
    assert torch.equal(as_b.mask, b.mask)
    assert (as_b.label, as_b.score) == (a.label, a.score)
    assert not torch.equal(redraw(a, theta=b.theta).logits, a.logits)
    moved = redraw(a, origin=(a.location[0] + 16, a.location[1] - 8))
    assert a.coordinates is not None
    assert moved.coordinates is not None
    same(
        a.coordinates - moved.coordinates, torch.tensor([16.0, -8.0])[:, None, None].expand_as(a.coordinates) / 64, 1e-5
    )
    assert torch.equal(redraw(a).mask, a.mask)


def test_origin_shifts_the_mask_where_nothing_but_coordinates_is_read() -> None:
    """Without features, moving the origin by two cells moves the logits by two cells."""
    segment = segment_at(live_condinst(mask_head={"use_features": False}), picture(), 60, 40, 3)
    x, y = segment.location
    moved = redraw(segment, origin=(x + 16, y))
    same(moved.logits[:, 2:], segment.logits[:, :-2], 1e-4)


def test_origin_means_nothing_to_absolute_coordinates() -> None:
    segment = segment_at(live_condinst(mask_head={"coordinates": "absolute"}), picture(), 60, 40)
    assert torch.equal(redraw(segment, origin=(3, 3)).logits, segment.logits)


def test_one_line_about_a_segment() -> None:
    segment = segment_at(live_condinst(), picture(), 60, 40, 3)
    pixels = int(segment.mask.sum())
    rest = f" {segment.score:.2f}, mask {pixels} pixels"
    assert describe(segment) == f"P3, stride 8, location (60, 36), class {segment.label}{rest}"
    assert describe(segment, ["a", "b", "c"]).endswith(f", {'abc'[segment.label - 1]}{rest}")


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    "head", [{}, {"coordinates": "none", "width": 11}, {"depth": 1, "use_features": False}], ids=str
)
def test_figure_of_a_segment_is_opaque_and_not_blank(head: dict[str, Any]) -> None:
    segment = segment_at(live_condinst(mask_head=head), picture(), 60, 40)
    canvas = FigureCanvasAgg(show_segment(segment, picture()))
    canvas.draw()
    shot = torch.from_numpy(np.array(canvas.buffer_rgba()))
    assert (shot[..., 3] == 255).all()
    assert (shot[0, 0] == 255).all()
    assert (shot[..., :3] < 250).any(dim=-1).float().mean() > 0.05


@pytest.mark.parametrize("fill", [0, 1])
def test_empty_and_full_masks_can_be_shown(fill: int) -> None:
    segment = segment_at(live_condinst(), picture(), 60, 40)
    segment = segment._replace(mask=torch.full_like(segment.mask, bool(fill)))
    show_segment(segment, picture())
    assert mask_overlay(segment.mask).startswith(PNG)


# -------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("radius", [1.5, 0.5])
def test_targets_counts_agree_with_a_loop(radius: float) -> None:
    target, strides, ranges = random_targets(7, SIZE, seeded(5)), (8, 16, 32), (24, 48)
    found = targets_of(picture(), target, strides, ranges, radius)
    boxes = target["boxes"].tolist()
    centers = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
    taken, per_level, ambiguous = [], [0] * 3, 0
    for k, stride in enumerate(strides):
        low, high = (-1, *ranges)[k], (*ranges, float("inf"))[k]
        for x, y in naive_fcos.locations((-(-SIZE[0] // stride), -(-SIZE[1] // stride)), stride):
            owners = naive_fcos.candidates((x, y), stride, (low, high), boxes, centers, radius)
            if owners:
                taken.append(naive_fcos.smallest(owners, boxes)[0])
                per_level[k] += 1
                ambiguous += len(owners) > 1
    assert found.per_object == [taken.count(m) for m in range(7)]
    assert found.positives == per_level
    assert found.ambiguous == ambiguous
    assert found.missed == naive_fcos.missed(taken, 7)
    assert ambiguous if radius == 1.5 else {0, 1} <= set(found.per_object)  # objects with none, and with just one


def test_an_object_between_the_locations_is_missed() -> None:
    boxes = torch.tensor([[5.0, 5, 11, 11], [10, 10, 60, 60]])  # the first has no multiple of 8, plus 4, inside
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    found = targets_of(picture(), target)
    assert found.missed == [0]
    assert "1 of 2 objects without a location" in describe_targets(found)


def test_targets_follow_a_deviation() -> None:
    target = random_targets(7, SIZE, seeded(5))
    right = targets_of(picture(), target)
    with deviate("assign-radius-in-pixels"):
        wrong = targets_of(picture(), target)
    assert sum(wrong.positives) < sum(right.positives)
    assert wrong.ambiguous < right.ambiguous
    assert targets_of(picture(), target).positives == right.positives


def test_targets_without_objects() -> None:
    found = targets_of(picture(), empty_target(SIZE))
    assert (sum(found.positives), found.per_object, found.missed, found.ambiguous) == (0, [], [], 0)


def test_targets_by_mass_centre_differ() -> None:
    """An L whose mass is at its lower left corner."""
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, 10:80, 10:16] = masks[0, 74:80, 10:80] = True
    target = {"boxes": torch.tensor([[10.0, 10, 80, 80]]), "labels": torch.tensor([1]), "masks": masks}
    ranges = (128.0, 256.0)  # all of it is the first level's
    box = targets_of(picture(), target, ranges=ranges, radius=1, center="box")
    mass = targets_of(picture(), target, ranges=ranges, radius=1, center="mass")
    for found, middle in ((box, [45, 45]), (mass, mass_centers(masks)[0].tolist())):
        positive = found.points.xy[found.assignment.labels[0] > 0]
        assert len(positive) > 0
        assert ((positive - torch.tensor(middle)).abs() < 8).all()
    assert not torch.equal(box.assignment.labels, mass.assignment.labels)


@pytest.mark.parametrize(
    ("strides", "ranges", "message"),
    [
        ((8, 16), (32, 64), "2 strides need 1 ends"),
        ((8, 16, 32), (64, 32), "ranges must be"),
        ((16, 8), (9,), "strides"),
    ],
)
def test_levels_that_make_no_sense(strides: Any, ranges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        targets_of(picture(), random_targets(2, SIZE, seeded(0)), strides, ranges)


# -------------------------------------------------------------------------------------------------------------- widgets


def test_click_widget_does_what_the_function_does() -> None:
    model, image = live_condinst(), picture()
    widget = click_to_segment(model, image, class_names=["a", "b", "c"])
    assert (widget.x, widget.y) == look(model, image).surest_pixel()

    def agrees(expected: Segment) -> None:
        assert torch.equal(widget.segment.mask, expected.mask)
        assert widget.location == list(expected.location)
        assert widget.text == describe(expected, ["a", "b", "c"])

    widget.move(20, 70)
    agrees(segment_at(model, image, 20, 70))
    before = widget.overlay, widget.panels
    widget.x = 110
    agrees(segment_at(model, image, 110, 70))
    assert widget.overlay != before[0]
    assert widget.panels != before[1]
    widget.level = 5
    agrees(segment_at(model, image, 110, 70, 5))
    assert [panel["caption"].split()[0] for panel in widget.panels] == [
        "relative",
        "theta:",
        "layer",
        "layer",
        "logits",
    ]
    json.dumps(widget.get_state())  # a browser can be sent all of it


@pytest.mark.parametrize(("name", "value"), [("x", 134), ("y", -1), ("level", 6)])
def test_click_widget_refuses_what_is_off_the_image(name: str, value: int) -> None:
    widget = click_to_segment(live_condinst(), picture())
    before = getattr(widget, name)
    with pytest.raises(traitlets.TraitError, match=f"{name} must be in"):
        setattr(widget, name, value)
    assert getattr(widget, name) == before
    with pytest.raises(traitlets.TraitError, match="x must be in"):
        click_to_segment(live_condinst(), picture(), x=500)


def test_target_widget_counts() -> None:
    target = random_targets(5, SIZE, seeded(5))
    widget = explore_targets(picture(), target, ranges=(24, 48))
    assert widget.found.per_object == targets_of(picture(), target, ranges=(24, 48)).per_object
    shown = widget.picture.value
    widget.radius.value = 0.5
    assert widget.text == describe_targets(targets_of(picture(), target, ranges=(24, 48), radius=0.5))
    assert widget.text in widget.line.value
    assert widget.picture.value != shown
    widget.levels.value = (16, 32)
    assert widget.found.positives == targets_of(picture(), target, (16, 32), (48,), 0.5).positives
    assert [end.disabled for end in widget.ends] == [True, False]
    widget.levels.value = (8, 16, 32)
    widget.ends[0].value = 60  # above the next one: it says so and keeps the picture
    assert "rising" in widget.line.value
    widget.ends[0].value = 20
    assert "positive locations" in widget.line.value


def make_widgets() -> list[Any]:
    image, target = picture(), random_targets(3, SIZE, seeded(5))
    return [click_to_segment(live_condinst(), image), explore_targets(image, target)]


def test_output_holds_widget_picture_and_text() -> None:
    for widget in make_widgets():
        data, _ = widget._repr_mimebundle_()
        assert set(data) == {WIDGET, "image/png", "text/plain"}
        assert base64.b64decode(data["image/png"]).startswith(PNG)
        assert data["text/plain"] == widget.text


def test_strip_widgets_keeps_pictures_and_text() -> None:
    bundle, metadata = make_widgets()[0]._repr_mimebundle_()
    outputs = [
        {"output_type": "display_data", "data": bundle, "metadata": {**metadata, WIDGET: {}}},
        {"output_type": "execute_result", "data": {WIDGET: {}, "text/plain": "7"}, "metadata": {}},
        {"output_type": "stream", "name": "stdout", "text": "hello"},
    ]
    cells: list[Any] = [{"cell_type": "code", "outputs": outputs}, {"cell_type": "markdown", "source": "text"}]
    notebook: dict[str, Any] = {"metadata": {"widgets": {"state": 1}, "kernelspec": {}}, "cells": cells}
    text = json.dumps(notebook)
    stripped = strip_widgets(notebook)
    assert json.dumps(notebook) == text  # a copy
    assert WIDGET not in json.dumps(stripped)
    assert stripped["metadata"] == {"kernelspec": {}}
    first, second, third = stripped["cells"][0]["outputs"]
    assert set(first["data"]) == {"image/png", "text/plain"}
    assert second["data"] == {"text/plain": "7"}
    assert third == outputs[2]


@pytest.mark.slow
def test_teach_is_imported_without_matplotlib_and_widgets() -> None:
    code = (
        "import sys, condinst_edu.teach as teach\n"
        "assert not {'matplotlib', 'ipywidgets', 'anywidget'} & set(sys.modules)\n"
        "teach.click_to_segment, teach.explore_targets, teach.show_segment\n"
        "assert all(hasattr(teach, name) for name in teach.__all__) and not hasattr(teach, 'other')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_click_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """x and y are two values of the widget, and a click changes both."""
    widget = click_to_segment(live_condinst(), picture())
    calls = []
    right = type(widget.seen).segment_at

    def counted(self: Any, *arguments: Any) -> Segment:
        calls.append(arguments)
        return right(self, *arguments)

    monkeypatch.setattr(type(widget.seen), "segment_at", counted)
    widget.move(20, 30)
    assert calls == [(20, 30, None)]
    assert widget.segment.location == right(widget.seen, 20, 30).location
