"""SOLO's cells to look at: what the pictures show is what the model draws, and the sliders choose it."""

import pytest
import torch
from helpers import seeded
from test_solo import SIZE, lively, tiny_solo

from condinst_edu.solo import SOLO, DecoupledSOLO
from condinst_edu.teach.cells import describe_cell, explore_cells, look_at_cells, show_all_cells, show_cell, show_grids
from condinst_edu.teach.widgets import WithPicture


@pytest.mark.parametrize("kind", [SOLO, DecoupledSOLO])
def test_cells_are_the_models(kind: type[SOLO]) -> None:
    """Every detection's mask is the one of its cell."""
    model = lively(tiny_solo(kind)).eval()
    image = torch.rand(3, *SIZE, generator=seeded(0))
    seen = look_at_cells(model, image)
    assert seen.padded == (128, 224)
    found, _ = model.detect(seen.outputs, 0)
    with torch.no_grad():
        (result,) = model([image])
    assert len(found.k) > 3
    for n in range(len(found.k)):
        level, k = int(found.level[n]), int(found.k[n])
        cell = seen.cell(level, *divmod(k, model.head.grids[level]))
        assert cell.k == k
        if level == 0:  # other levels are brought to the first one's size on the way
            assert (cell.mask ^ result["masks"][n]).sum() <= 2
        assert torch.equal(cell.soft, seen.all_masks(level)[k])
    level, i, j = seen.surest()
    assert seen.cell(level, i, j).score == max(float(logits.sigmoid().max()) for logits in seen.outputs.logits)
    for i, j in ((-1, 0), (0, 9), (9, 0)):
        with pytest.raises(ValueError, match="is not on a grid of 9 x 9"):
            seen.cell(0, i, j)


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="not Linear's"):
        look_at_cells(torch.nn.Linear(1, 1), torch.rand(3, 8, 8))


def test_pictures() -> None:
    seen = look_at_cells(lively(tiny_solo()).train(), torch.rand(3, *SIZE, generator=seeded(0)))
    assert seen.model.training  # it is left as it was
    figure = show_cell(seen, 1, 2, 3, ["a", "b", "c"])
    assert [ax.get_title() for ax in figure.axes][:2] == ["grid 6 x 6, cell (2, 3)", "channel 15"]
    assert figure.axes[2].get_title() == describe_cell(seen.cell(1, 2, 3), ["a", "b", "c"])
    masks = seen.all_masks(0)
    mosaic = show_all_cells({"all": masks}, step=4).axes[0].get_images()[0].get_array()
    assert mosaic is not None
    height, width = masks[0, ::4, ::4].shape
    assert mosaic.shape == (9 * height, 9 * width)
    part = mosaic[2 * height : 3 * height, 5 * width : 6 * width]
    assert torch.equal(torch.as_tensor(part), masks[2 * 9 + 5, ::4, ::4])
    grids = show_grids({"one": (seen.image, {}, 6, {(1, 2): 0}), "two": (seen.image, {}, 4, {})}, columns=2)
    frame = grids.axes[0].patches[0].get_xy()  # type: ignore[attr-defined]
    height, width = SIZE
    assert frame[0].tolist() == pytest.approx([2 * width / 6 - 0.5, 1 * height / 6 - 0.5])
    assert not grids.axes[1].patches


def test_sliders() -> None:
    widget = explore_cells(lively(tiny_solo()).eval(), torch.rand(3, *SIZE, generator=seeded(0)))
    assert isinstance(widget, WithPicture)
    level, i, j = widget.seen.surest()
    assert (widget.level.value, widget.row.value, widget.column.value) == (level, i, j)
    widget.level.value = 0
    widget.row.value, widget.column.value = 8, 7
    before = widget.picture.value
    assert widget.text.startswith("k = 79: class ")
    assert widget.text in widget.line.value
    widget.level.value = 2  # the grid is smaller: the cell moves onto it
    assert (widget.row.value, widget.column.value) == (3, 3)
    assert widget.picture.value != before
    assert bytes(widget.picture.value)[:4] == b"\x89PNG"
