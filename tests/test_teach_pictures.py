"""Pictures are not blank and opaque; the X-ray tells the shapes and leaves the model as it was."""

import numpy as np
import pytest
import torch
from helpers import enliven, random_targets, seeded, tiny_condinst, tiny_fcos
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from condinst_edu.coordinates import relative_coordinates
from condinst_edu.fcos import Points, assign_targets, make_points
from condinst_edu.teach import pictures
from condinst_edu.teach.scoring import precision_recall
from condinst_edu.teach.xray import xray

SIZE = (96, 128)


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def small_points() -> Points:
    maps = [torch.zeros(1, 1, SIZE[0] // s, SIZE[1] // s) for s in (8, 16, 32)]
    return make_points(maps, (8, 16, 32), [(-1, 24), (24, 48), (48, torch.inf)])


def figures() -> dict[str, Figure]:
    generator = seeded(1)
    image = 0.7 + 0.3 * torch.rand(3, *SIZE, generator=generator)
    target = random_targets(4, SIZE, generator)
    boxes, labels = target["boxes"][None], target["labels"][None]
    points = small_points()
    assignment = assign_targets(points, boxes, labels, (boxes[..., :2] + boxes[..., 2:]) / 2)
    centers = torch.tensor([[20.0, 30.0], [100.0, 60.0]])
    curve = precision_recall(torch.rand(30, generator=generator), torch.rand(30, generator=generator) < 0.6, 24)
    prediction = {**target, "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])}
    return {
        "panels": pictures.show_panels({"truth": (image, target), "one": (image, prediction), "x": (image, {})}),
        "masks": pictures.show_masks(image, prediction, ["circle", "square", "star"]),
        "coordinates": pictures.show_coordinate_maps(
            relative_coordinates((12, 16), 8, centers, torch.tensor([64.0, 128.0]))
        ),
        "outlines": pictures.show_outlines(
            image, target["masks"][0], {"same": target["masks"][0], "other": target["masks"][1]}
        ),
        "filters": pictures.show_filters(torch.randn(169, generator=generator)),
        "features": pictures.show_feature_maps(torch.randn(8, 12, 16, generator=generator)),
        "maps": pictures.show_maps(
            {"a": torch.randn(12, 16, generator=generator), "b": torch.eye(12, 16) > 0}, limit=2
        ),
        "curves": pictures.show_curves({"a": torch.rand(9, generator=generator), "b": torch.arange(9)}, "step", "IoU"),
        "levels": pictures.show_levels(image, points),
        "targets": pictures.show_targets(image, points, assignment),
        "targets with boxes": pictures.show_targets(image, points, assignment, boxes=target["boxes"]),
        "curve": pictures.show_precision_recall(*curve),
        "chosen": pictures.show_chosen(image, points, {"a": (torch.tensor([5, 90]), torch.tensor([0, 3]))}),
        "chosen, legend": pictures.show_chosen(image, points, {"none": (torch.zeros(0).long(),) * 2}, ["circle"]),
        "labels": pictures.show_label_maps(
            image, {"half": torch.arange(12).view(3, 4) % 4, "none": torch.zeros(3, 4)}, ["circle", "square", "star"]
        ),
        "curves over x": pictures.show_curves({"time": torch.tensor([1.0, 1.5])}, "instances", "ms", at=[10, 100]),
        "bars": pictures.show_bars({"backbone": 3.5, "masks": 0.25}, "milliseconds"),
    }


FIGURES = figures()


@pytest.mark.parametrize("name", FIGURES)
def test_picture_is_opaque_and_not_blank(name: str) -> None:
    shot = pixels(FIGURES[name])
    assert (shot[..., 3] == 255).all()
    assert (shot[0, 0] == 255).all()  # a white margin
    assert (shot[..., :3] < 250).any(axis=-1).mean() > 0.02
    assert len(np.unique(shot.reshape(-1, 4), axis=0)) > 20


def test_targets_draw_every_box_on_every_level() -> None:
    plain, boxed = (FIGURES[name].axes for name in ("targets", "targets with boxes"))
    assert len(plain) == len(boxed) == 3
    assert all(not ax.lines for ax in plain)
    assert all(len(ax.lines) == 4 for ax in boxed)


def test_panels_without_captions_keep_their_boxes() -> None:
    image, target = torch.rand(3, *SIZE, generator=seeded(2)), random_targets(3, SIZE, seeded(2))
    with_captions, without = (pictures.show_panels({"x": (image, target)}, captions=c).axes[0] for c in (True, False))
    assert (len(with_captions.texts), len(without.texts)) == (3, 0)
    assert len(without.lines) == 3


def test_masks_without_instances() -> None:
    image = torch.rand(3, *SIZE, generator=seeded(0))
    assert pixels(pictures.show_masks(image, {})).std() > 0


def test_outlines_lie_around_their_masks() -> None:
    truth, mask = torch.zeros(2, *SIZE, dtype=torch.bool)
    truth[20:50, 30:70], mask[40:80, 90:120] = True, True
    figure = pictures.show_outlines(torch.ones(3, *SIZE), truth, {"moved": mask, "empty": mask & truth})
    moved, empty = (
        [[*map(float, c.get_paths()[0].get_extents().extents)] for c in ax.collections] for ax in figure.axes
    )
    assert moved == [[29.5, 19.5, 69.5, 49.5], [89.5, 39.5, 119.5, 79.5]]  # pixel (x, y) is drawn around (x, y)
    assert empty == moved[:1]


def test_coordinate_maps_have_their_rows_names() -> None:
    maps = relative_coordinates((6, 8), 8, torch.tensor([[20.0, 30.0], [9.0, 2.0]]), torch.tensor([64.0, 128.0]))
    titles = [ax.get_title() for ax in pictures.show_coordinate_maps(maps, ["fine", "coarse"]).axes]
    assert titles[:4] == ["fine: x", "fine: y", "coarse: x", "coarse: y"]


def test_xray_tells_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_condinst()
    enliven(model, seeded(0))
    rows = {row.symbol: row.shape for row in xray(model, torch.rand(3, *SIZE, generator=seeded(0)))}
    (n,) = rows["scores"]
    assert n > 0
    assert rows["batch"] == (1, 3, 96, 128)
    assert rows["P3"] == (1, 16, 12, 16)
    assert rows["C5"][2:] == (3, 4)
    assert rows["logits"] == (1, 12 * 16 + 6 * 8 + 3 * 4, 3)
    assert rows["theta"] == (n, 169)
    assert rows["F_bottom"] == (1, 8, 12, 16)
    assert rows["mask logits"] == (n, 12, 16)
    assert rows["masks"] == (n, *SIZE)
    assert "theta" in capsys.readouterr().out
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_xray_of_fcos_has_no_masks() -> None:
    symbols = [row.symbol for row in xray(tiny_fcos(), torch.rand(3, *SIZE, generator=seeded(0)))]
    assert "logits" in symbols
    assert "theta" not in symbols


def test_maps_have_one_range_or_each_its_own() -> None:
    maps = {"small": torch.tensor([[0.0, 1.0, -2.0]]), "large": torch.tensor([[0.0, 8.0, 4.0]])}
    tops = {k: [ax.images[0].get_clim()[1] for ax in pictures.show_maps(maps, limit=k).axes[:2]] for k in (None, 5.0)}
    assert tops == {None: [2, 8], 5.0: [5, 5]}
    assert len(pictures.show_maps({str(i): maps["small"] for i in range(5)}, columns=3).axes) == 6
    bars = [pictures.show_maps({"only": maps[name]}, limit=8).axes[1].get_ylim() for name in ("small", "large")]
    assert bars == [(-8, 8), (0, 8)]  # where nothing is negative, the bar begins at 0


def test_spotlight_keeps_what_the_mask_covers_and_fades_the_rest() -> None:
    image = 0.8 * torch.rand(3, 4, 6, generator=seeded(2))
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1:3, 2:5] = True
    shown = pictures.spotlight(image, mask)
    assert torch.equal(shown[:, mask], image[:, mask])
    assert (shown[:, ~mask] > image[:, ~mask]).all()
    assert shown.max() <= 1
