"""What lesson 10 is made of: two processes on one batch, and what it measures with."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from condinst_edu import fcos
from condinst_edu.layers.losses import normaliser
from condinst_edu.recipes import get_recipe
from condinst_edu.teach import two_processes
from condinst_edu.teach.references import learning_rates, share_normalisers
from condinst_edu.teach.scaling import compare_recipes, gradient_sizes, layer_types, loader_rate, operations
from condinst_edu.teach.two_processes import KINDS, OBJECTS, global_batch, one_step, start_two


def test_two_processes_are_as_one_but_for_what_is_broken(tmp_path: Path) -> None:
    printed, two = start_two(tmp_path)
    assert sorted(printed.splitlines()) == [
        "process 0 of 2: images with 7 and 5 objects",
        "process 1 of 2: images with 1 and 0 objects",
    ]
    for kind in KINDS:
        losses, whole = one_step(kind)
        gradient = two[0][kind][1]
        assert torch.equal(gradient, two[1][kind][1])
        error = float((whole - gradient).norm() / whole.norm())
        mean = {name: (two[0][kind][0][name] + two[1][kind][0][name]) / 2 for name in losses}
        if kind == KINDS[0]:
            assert error < 1e-5
            assert mean == pytest.approx(losses, rel=1e-5)
        else:
            assert error > 0.1
            assert mean["loss_class"] != pytest.approx(losses["loss_class"], rel=0.05)
    assert fcos.normaliser is normaliser


@pytest.mark.slow
def test_a_process_that_fails_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not exist"):
        start_two(tmp_path / "nowhere")


def test_the_batch_has_the_objects_that_are_told() -> None:
    images, targets = global_batch()
    assert tuple(len(target["labels"]) for target in targets) == OBJECTS
    assert {image.shape for image in images} == {(3, *two_processes.SIZE)}


def test_normalisers_are_what_the_library_divides_by() -> None:
    """In one process; of two processes, the test above finds it."""
    for count in (0.0, 0.4, 7.0):
        mine = share_normalisers(torch.tensor([[count]]), 1.0)
        assert mine.item() == normaliser(torch.tensor(count)).item()


def test_rates_of_the_papers_schedule() -> None:
    """Numbers worked out by hand: 90 000 iterations, 1000 of them warm-up, steps at 60 000 and 80 000, 32 images."""
    rates = learning_rates(0.01, 90_000, 1000, 0.001, (60_000, 80_000), 32)
    places = {0: 0.02e-3, 500: 0.02 * 0.5005, 1000: 0.02, 59_999: 0.02, 60_000: 0.002, 80_000: 0.0002, 89_999: 0.0002}
    assert {i: rates[i].item() for i in places} == pytest.approx(places)


def test_recipes_side_by_side() -> None:
    recipe = get_recipe("shapes-condinst")
    other = dataclasses.replace(recipe, lr=0.25, model_args={**recipe.model_args, "factor": 4})
    differ, same = compare_recipes(recipe, other)
    assert differ == [("lr", "0.005", "0.25"), ("model: factor", "(default)", "4")]
    assert "model: levels" in same
    assert "iterations" in same
    assert compare_recipes(recipe, recipe)[0] == []


def test_types_of_layers() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU())
    image = torch.rand(1, 2, 4, 6)
    assert layer_types(model, lambda: model(image)) == {"Conv2d": torch.float32, "ReLU": torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert layer_types(model, lambda: model(image))["Conv2d"] == torch.bfloat16
    assert not any(module._forward_hooks for module in model.modules())


def test_sizes_of_gradients() -> None:
    """Of the mean over 4 x 6 outputs, of which those are 0 that the ReLU cuts off."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU())
    image = torch.rand(1, 2, 4, 6)
    sizes = gradient_sizes(model, lambda: -model(image).mean())
    positive = int((F.conv2d(image, model[0].weight, model[0].bias) > 0).sum())  # type: ignore[arg-type]
    assert len(sizes) == positive
    assert torch.allclose(sizes, torch.tensor(1 / 72))
    assert not any(module._forward_hooks for module in model.modules())


def test_operations_are_counted() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    rows = operations(lambda: [x.nonzero(), x.sum().item(), x.max().item()])
    calls = {row.name: row.calls for row in rows}
    assert calls["aten::nonzero"] == 1
    assert calls["aten::item"] == 2
    times = [row.milliseconds for row in rows]
    assert times == sorted(times, reverse=True)


def test_loader_rate(tmp_path: Path) -> None:
    recipe = dataclasses.replace(get_recipe("shapes-condinst"), short_sides=(64,))
    assert 1 < loader_rate(recipe, tmp_path, images=3) < 100_000
    assert len(list((tmp_path / "images").iterdir())) == 3
