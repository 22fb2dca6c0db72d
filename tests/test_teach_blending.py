"""What the lesson on BlendMask looks at: each instance's parts make the model's own masks."""

import pytest
import torch
from helpers import seeded
from test_blendmask import SIZE, lively, random_image

from condinst_edu.blendmask import crop_bases
from condinst_edu.layers.images import make_batch
from condinst_edu.teach import explore_blend
from condinst_edu.teach.blending import averaged, blends_of, truncated, with_attention
from condinst_edu.teach.pictures import show_blend


def test_parts_make_the_models_masks() -> None:
    model, image = lively(), random_image(SIZE)
    with torch.no_grad():
        (result,) = model([image])
    found = blends_of(model, image)
    assert len(found) == len(result["scores"]) > 20
    for i, blend in enumerate(found):
        assert torch.equal(blend.mask, result["masks"][i])
        assert torch.equal(blend.clipped, result["boxes"][i])
        assert (blend.label, blend.score) == (int(result["labels"][i]), float(result["scores"][i]))
        assert (blend.crops.shape, blend.attention.shape) == ((4, 28, 28), (4, 7, 7))
        torch.testing.assert_close(blend.weights.sum(dim=0), torch.ones(28, 28))
        torch.testing.assert_close((blend.weights * blend.crops).sum(dim=0), blend.logits)
    batch = make_batch([image], model.fcos.mean, model.fcos.std, model.fcos.divisor)
    with torch.no_grad():
        bases = model.bases(model.fcos.run(batch)[0])
        crops = crop_bases(bases, [torch.stack([blend.box for blend in found])], model.stride, 28)
    assert torch.equal(torch.stack([blend.crops for blend in found]), crops)
    same = with_attention(found[0], found[0].attention)
    assert torch.equal(same.mask, found[0].mask)
    assert not torch.equal(with_attention(found[0], -found[0].attention).logits, found[0].logits)


def test_nothing_found() -> None:
    assert blends_of(lively(score_threshold=0.999999), random_image(SIZE)) == []


def test_coarser_attention() -> None:
    attention = torch.randn(4, 6, 6, generator=seeded(0))
    torch.testing.assert_close(averaged(attention, 2)[1, 0, 1], attention[1, :3, 3:].mean())
    for rank in (1, 3, 6):
        cut = truncated(attention, rank)
        assert torch.linalg.matrix_rank(cut, rtol=1e-4).tolist() == [rank] * 4
        rest = torch.linalg.svdvals(attention)[:, rank:].square().sum(dim=1)
        torch.testing.assert_close((attention - cut).square().sum(dim=(1, 2)), rest, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(truncated(attention, 6), attention)


def test_picture() -> None:
    image = random_image(SIZE)
    blend = blends_of(lively(), image)[0]
    figure = show_blend(image, blend, "triangle 0.40")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "triangle 0.40"
    assert titles[1:6] == [*(f"basis {k}" for k in range(4)), "their sum: logits"]
    assert titles[6:10] == [f"weight of basis {k}" for k in range(4)]
    assert (torch.tensor(figure.axes[6].images[0].get_array()) == blend.weights[0]).all()


def test_widget() -> None:
    model, image = lively(), random_image(SIZE)
    found = blends_of(model, image)
    widget = explore_blend(model, image, ["a", "b", "c"])
    assert torch.equal(widget.blend.mask, found[0].mask)
    whole = widget.text
    picture = bytes(widget.picture.value)
    assert (
        whole
        == f"{'abc'[found[0].label - 1]} {found[0].score:.2f}, attention of 7 x 7, mask {found[0].mask.sum()} pixels"
    )
    widget.cells.value = 1
    assert torch.equal(widget.blend.mask, with_attention(found[0], averaged(found[0].attention, 1)).mask)
    assert "1 x 1" in widget.text
    assert bytes(widget.picture.value) != picture
    widget.instance.value, widget.cells.value = 3, 7
    assert torch.equal(widget.blend.mask, found[3].mask)
    data, _ = widget._repr_mimebundle_()
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= data.keys()
    with pytest.raises(ValueError, match="finds nothing"):
        explore_blend(lively(score_threshold=0.999999), image)
