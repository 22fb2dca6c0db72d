"""AdaptIS's full-size recipes against section 7 of the paper, line by line."""

from typing import Any

import pytest
import torch
from torch import nn

from condinst_edu.adaptis import AdaptIS
from condinst_edu.datasets.transforms import resized_size
from condinst_edu.engine.recipe import build_model
from condinst_edu.engine.schedule import build_optimizer, rate_factor, set_rate
from condinst_edu.papers import TABLES
from condinst_edu.recipes import RECIPES, get_recipe
from condinst_edu.recipes.listing import untrained

# By data set: table, things, epochs, drops, images, batch, points, crop, T
SECTION_7 = {
    "cityscapes": (2, 8, 260, (240, 255), 2975, 8, 6, (400, 800), 0.4),
    "mapillary": (3, 37, 65, (50, 60), 18_000, 8, 6, (400, 800), 0.35),
    "coco": (5, 80, 20, (15, 19), 118_000, 16, 8, (544, 544), 0.35),
}
BACKBONES = {"r50": ("ResNet-50", "resnet50"), "r101": ("ResNet-101", "resnet101")}
BACKBONES |= {"rx101": ("ResNeXt-101", "resnext101_32x8d")}
NAMES = [f"{data}-adaptis-{backbone}" for data in SECTION_7 for backbone in BACKBONES]


@pytest.mark.parametrize("name", NAMES)
def test_adaptis_follows_section_7(name: str) -> None:
    data, _, backbone = name.split("-")
    table, things, epochs, drops, images, batch, points, crop, threshold = SECTION_7[data]
    recipe = get_recipe(name)
    args = recipe.model_args
    assert args["backbone"] == BACKBONES[backbone][1]
    method = "AdaptIS (ours)" if table == 2 else "AdaptIS"
    assert len(TABLES[f"adaptis:table-{table}"].find(method=method, backbone=BACKBONES[backbone][0])) == 1
    assert (args["num_things"], args["points"], args["threshold"]) == (things, points, threshold)
    assert (recipe.batch_size, recipe.crop, recipe.iterations) == (batch, crop, epochs * images // batch)
    assert (args["head"]["radius"], args["flip"], args["propose"]) == (280, True, "branch")
    # "Adam optimizer with the starting learning rate 5e-5 for pre-trained backbone and 1e-4 for all other parameters"
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.beta2) == ("adamw", 1e-4, 0.9, 0.999)
    assert (recipe.weight_decay, recipe.warmup, recipe.clip, recipe.schedule) == (0, 0, 0, "step")
    assert args["backbone_options"] == {"weights": "IMAGENET1K_V1"}
    assert recipe.backbone_lr == 0.5
    for epoch, factor in ((0, 1), (drops[0] - 0.1, 1), (drops[0] + 0.1, 0.1), (drops[1] + 0.1, 0.01)):
        assert rate_factor(recipe, round(epoch / epochs * recipe.iterations)) == pytest.approx(factor), epoch
    assert recipe.train_panoptic is not None
    assert recipe.val_panoptic is not None


def test_each_row_of_adaptis_has_a_recipe() -> None:
    rows = [t.row(i) for n in (2, 3, 5) for t in [TABLES[f"adaptis:table-{n}"]] for i in range(len(t.rows))]
    assert sum(str(row["method"]).startswith("AdaptIS") for row in rows) == len(NAMES)
    assert set(NAMES) == {name for name in RECIPES if name.startswith(tuple(f"{data}-adaptis" for data in SECTION_7))}


def test_sizes_of_adaptis() -> None:
    """Images of each data set at the paper's sizes, in training and in testing."""
    cityscapes, mapillary, coco = (get_recipe(f"{data}-adaptis-rx101") for data in SECTION_7)
    long_sides = {side: resized_size((1024, 2048), side, cityscapes.max_size)[1] for side in cityscapes.short_sides}
    assert min(long_sides.values()) / 2048 == pytest.approx(0.2, abs=1e-3)
    assert max(long_sides.values()) / 2048 == pytest.approx(1.2, abs=1e-3)
    assert cityscapes.test_short_side == 1024  # "images of original resolution"
    four_to_three = [max(resized_size((3000, 4000), side, mapillary.max_size)) for side in mapillary.short_sides]
    assert (min(four_to_three), max(four_to_three)) == (500, 2200)
    assert mapillary.test_short_side is not None
    assert mapillary.test_max_size is not None
    for size in ((3000, 4000), (2448, 3264), (1080, 1920), (4000, 4000), (4032, 3024)):
        assert max(resized_size(size, mapillary.test_short_side, mapillary.test_max_size)) == 2000, size
    assert (min(coco.short_sides), max(coco.short_sides), coco.test_short_side) == (350, 700, 600)
    assert resized_size((300, 1200), 700, coco.max_size) == (700, 2800)


def test_the_backbone_learns_at_half_the_rate() -> None:
    recipe = untrained(get_recipe("coco-adaptis-r50"))
    with torch.device("meta"):
        model: Any = build_model(recipe.model, 133, recipe.model_args)
    assert isinstance(model, AdaptIS)
    optimizer = build_optimizer(model, recipe)
    set_rate(optimizer, recipe, 0)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    names = {p: name for name, p in model.named_parameters()}
    slow = tuple(f"backbone.{part}." for part in ("stem", "fine", "coarse"))
    assert {rates[p] for p in rates if names[p].startswith(slow)} == {5e-5}
    assert {rates[p] for p in rates if not names[p].startswith(slow)} == {1e-4}
    assert model.semantic[-1].out_channels == 133
    assert isinstance(model.proposals[-1], nn.Conv2d)
    assert not any(p in rates for p in model.proposals.parameters())  # trained afterwards
