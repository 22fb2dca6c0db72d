"""Points of AdaptIS in the lessons: what `segment_at` gives, the widget on top, pictures, and how quickly."""

import time

import numpy as np
import pytest
import torch
from helpers import same, seeded
from torch import Tensor
from traitlets import TraitError

from condinst_edu.adaptis import AdaptIS, aggregate
from condinst_edu.adaptis_greedy import RandomPoints
from condinst_edu.teach import click_to_segment, look, segment_at, show_segment
from condinst_edu.teach.interactive import describe
from condinst_edu.teach.point_pictures import show_heat_maps, show_steps
from condinst_edu.teach.segment_pictures import figure_png, small_pictures


@pytest.fixture(scope="module")
def model() -> AdaptIS:
    torch.manual_seed(0)
    return AdaptIS(num_classes=2, backbone_options={"width": 8, "max_width": 16, "depth": 2}, branch_width=4).eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(3, 40, 57, generator=seeded(0))


def test_segment_is_what_the_model_draws(model: AdaptIS, image: Tensor) -> None:
    segment = segment_at(model, image, 50, 12)
    probability = model.look(image).draw(torch.tensor([[50.0, 12.0]]))[0]
    same(segment.probability, probability, 1e-6)
    same(segment.logits.sigmoid(), probability, 1e-6)
    assert torch.equal(segment.mask, probability > model.threshold)
    assert segment.location == (50, 12)
    assert segment.label in (1, 2)
    same(segment.embedding, model.look(image).features[0, :, 12, 50], 1e-6)


def test_segment_holds_what_adain_did(model: AdaptIS, image: Tensor) -> None:
    segment = look(model, image).segment_at(3, 30)
    x = segment.before
    normal = (x - x.mean(dim=(1, 2), keepdim=True)) / (x.var(dim=(1, 2), keepdim=True, unbiased=False) + 1e-5).sqrt()
    same(normal * segment.scale[:, None, None] + segment.shift[:, None, None], segment.after, 1e-4)
    same(model.head.adain.scale(segment.vector).detach(), segment.scale, 1e-6)
    assert segment.coordinates is not None
    assert segment.coordinates[:, 30, 3].tolist() == [0, 0]
    assert not model.head.adain._forward_hooks  # nothing is left behind


def test_training_mode_stays(image: Tensor) -> None:
    training = AdaptIS(backbone_options={"width": 4, "depth": 1}, branch_width=4).train()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    segment_at(training, image, 5, 5)
    assert training.training
    assert all(torch.equal(value, training.state_dict()[name]) for name, value in before.items())


def test_wrong_points(model: AdaptIS, image: Tensor) -> None:
    for x, y in ((-1, 0), (57, 0), (0, 40)):
        with pytest.raises(ValueError, match=r"off the image, whose pixels go to \(56, 39\)"):
            segment_at(model, image, x, y)
    with pytest.raises(ValueError, match="AdaptIS has no levels"):
        segment_at(model, image, 1, 1, level=3)
    with pytest.raises(TypeError, match="knows CondInst and AdaptIS, not Linear"):
        look(torch.nn.Linear(2, 2), image)


def test_widget(model: AdaptIS, image: Tensor) -> None:
    widget = click_to_segment(model, image, 10, 20, class_names=["cell", "blob"])
    assert widget.levels == []
    assert (widget.x, widget.y) == (10, 20)
    first, text = widget.panels[0]["source"], widget.text
    assert text.startswith("point (10, 20), ")
    widget.move(40, 5)
    assert widget.location == [40, 5]
    assert widget.panels[0]["source"] != first
    assert widget.text == describe(widget.segment, ["cell", "blob"])
    captions = [panel["caption"] for panel in widget.panels]
    assert captions[0].startswith("heat map")
    assert any("coordinates" in caption for caption in captions)
    with pytest.raises(TraitError):
        widget.x = 57
    x, y = click_to_segment(model, image).seen.surest_pixel()
    seen = model.look(image)
    assert seen.proposals[y, x] == (seen.proposals * ~seen.stuff).max()


def test_a_click_is_answered_within_a_tenth_of_a_second() -> None:
    """The model of the lesson at its size, random weights: the backbone is not run again. Processor time, the best of
    five, so that a busy machine does not matter."""
    torch.manual_seed(0)
    model = AdaptIS(backbone_options={"width": 16, "max_width": 64}, branch_width=16).eval()
    widget = click_to_segment(model, torch.rand(3, 96, 96, generator=seeded(0)))
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    times = []
    for k in range(5):
        begin = time.process_time()
        widget.move(10 + k, 20)
        times.append(time.process_time() - begin)
    assert not calls
    assert min(times) < 0.1


def test_pictures(model: AdaptIS, image: Tensor) -> None:
    segment = segment_at(model, image, 20, 20)
    assert figure_png(show_segment(segment, image))[:4] == b"\x89PNG"
    assert all(picture[:4] == b"\x89PNG" for _, picture in small_pictures(segment))
    seen = model.look(image)
    points = torch.tensor([[5.0, 6.0], [40.0, 30.0]])
    figure = show_heat_maps(image, points, seen.draw(points))
    assert len(figure.axes) == 3
    stuff = torch.zeros(40, 57, dtype=torch.bool)
    stuff[:5] = True
    found = aggregate(seen.draw, RandomPoints(3, seeded(0)), stuff, threshold=0.1, limit=4)
    figure = show_steps(image, found, [1, 3], stuff)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "image"
    assert titles[1].startswith("step 1")
    assert any("objects" in title for title in titles)
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert (shown[:5] == 1).all() or found.steps[0].mask[:5].any()


def test_without_coordinates(image: Tensor) -> None:
    plain = AdaptIS(backbone_options={"width": 4, "depth": 1}, branch_width=4, head={"coordinates": False}).eval()
    segment = segment_at(plain, image, 4, 4)
    assert segment.coordinates is None
    assert figure_png(show_segment(segment, image))[:4] == b"\x89PNG"
    assert not any("coordinates" in caption for caption, _ in small_pictures(segment))
