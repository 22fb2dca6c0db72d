"""The recipes against the papers' tables, the official networks and schedules; and steps of some of them."""

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from coco_folder import random_folder
from helpers import ROOT, official_json
from huggingface_hub.errors import LocalEntryNotFoundError
from rich.console import Console
from torch import Tensor, nn

from condinst_edu.bench import PeakMemory
from condinst_edu.cli import run
from condinst_edu.condinst import CondInst
from condinst_edu.engine.checkpoint import load_model, plain
from condinst_edu.engine.recipe import MODELS, Recipe, adopt_model, build_model, check_recipe, override_model
from condinst_edu.engine.schedule import rate_factor
from condinst_edu.engine.train import train
from condinst_edu.errors import UserError
from condinst_edu.fcos import FCOS
from condinst_edu.official import find_official, official_models, official_recipe
from condinst_edu.panoptic import PanopticModel
from condinst_edu.papers import TABLES
from condinst_edu.papers.reproduce import DEFAULT
from condinst_edu.recipes import RECIPES, get_recipe
from condinst_edu.recipes.ablations import ablations
from condinst_edu.recipes.listing import (
    PUBLISHED,
    authors_ap,
    network_memory,
    notes,
    paper_ap,
    recipe_facts,
    show_recipes,
    untrained,
)

COCO = [name for name in RECIPES if name.startswith(("coco-fcos", "coco-condinst"))]
CITYSCAPES = [name for name in RECIPES if name.startswith("cityscapes-condinst")]


def network(recipe: Recipe, num_classes: int = 80) -> nn.Module:
    """The recipe's model without numbers in it; no weights are fetched."""
    recipe, num_classes = untrained(recipe), num_classes if recipe.train_panoptic is None else 133
    with torch.device("meta"):
        return build_model(recipe.model, num_classes, recipe.model_args)


def condinst(name: str) -> CondInst:
    model = network(get_recipe(name))
    assert isinstance(model, CondInst)
    return model


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# -------------------------------------------------------------------------------------------------------- all recipes


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_sense_and_builds_its_model(name: str) -> None:
    recipe = get_recipe(name)
    check_recipe(recipe)
    assert RECIPES[name].__doc__
    assert RECIPES[name].__name__ == name.replace("-", "_")
    assert sum(p.numel() for p in network(recipe).parameters()) > 100_000


def test_recipes_do_not_share_what_can_be_changed() -> None:
    first = get_recipe("coco-condinst-r50-1x")
    first.model_args["backbone_options"]["weights"] = "changed"
    assert get_recipe("coco-condinst-r50-1x").model_args["backbone_options"]["weights"] == "IMAGENET1K_V1"


def test_every_full_size_recipe_has_its_figures() -> None:
    """Each printed model of ours in Tables 6 to 9 has one recipe; val + train and other methods have none."""
    assert set(COCO + CITYSCAPES) <= set(PUBLISHED) <= set(RECIPES)
    for number, rows in {6: 8, 7: 3, 8: 5, 9: 4}.items():
        table = f"condinst:table-{number}"
        wanted = [
            i
            for i in range(len(TABLES[table].rows))
            if str(TABLES[table].row(i)["method"]).startswith("CondInst")
            and TABLES[table].row(i).get("data") != "train+val+COCO"
        ]
        found = [TABLES[table].find(**(p.where or {})) for p in PUBLISHED.values() if p.table == table]
        assert all(len(match) == 1 for match in found)
        assert sorted(str(match[0]) for match in found) == sorted(str(TABLES[table].row(i)) for i in wanted)
        assert len(wanted) == rows


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if published.where])
def test_recipe_is_what_its_row_says(name: str) -> None:
    """Backbone, neck, semantic task, scales, length and start as the cells of the paper's row tell them."""
    published, recipe = PUBLISHED[name], get_recipe(name)
    row, model = published.where or {}, network(get_recipe(name))
    assert isinstance(model, PanopticModel) == (published.table == "condinst:table-9")
    model = model.instances if isinstance(model, PanopticModel) else model
    assert isinstance(model, CondInst)
    backbone = str(row["backbone"])
    real_time = published.table == "condinst:table-7"
    blocks = {"R-50": 6, "ResNet-50": 6, "R-101": 23, "DCN-101": 23}
    wanted = next((count for key, count in blocks.items() if backbone.startswith(key)), None)
    if wanted is None:
        assert backbone == "DLA-34"
        assert recipe.model_args["backbone"] == "timm:dla34"
    else:
        stages: Any = model.fcos.backbone.stages
        assert len(stages[2]) == wanted
    assert ("BiFPN" in backbone) == (recipe.model_args.get("neck") == "bifpn")
    assert ("DCN" in backbone) == any("offset" in key for key in model.state_dict())
    assert (real_time or "sem." in str(row["method"])) == (model.semantic is not None)
    assert ("shtw." in str(row["method"])) == model.fcos.head.shared_towers
    if "schedule" in row or real_time:
        length = int(str(row.get("schedule", "4x")).removesuffix("x"))
        assert recipe.iterations == 90_000 * length
        assert recipe.batch_size == 16
        scales = row.get("augmented", True)
        assert scales == (len(recipe.short_sides) > 1)
    if "data" in row:
        assert ("COCO" in str(row["data"])) == (recipe.start is not None)
        assert model.mask_stride == 2


# ----------------------------------------------------------------------------------------------------------- schedules


def test_coco_schedules_are_the_official_ones() -> None:
    """The rate at every recorded iteration, batch, scales, decay and momentum of the official solver."""
    official = official_json("solver_and_config.json", part=True)
    for ours, theirs in {
        "coco-fcos-r50-1x": "FCOS_R_50_1x",
        "coco-condinst-r50-1x": "CondInst_MS_R_50_1x",
        "coco-condinst-r50-3x-sem": "CondInst_MS_R_50_3x_sem",
        "coco-fcos-rt-dla34-4x-shtw": "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers",
    }.items():
        recipe, solver = get_recipe(ours), official[theirs]
        assert recipe.iterations == solver["max_iter"]
        assert recipe.batch_size == solver["ims_per_batch"]
        for iteration, rate in solver["lr_at_iteration"].items():
            assert recipe.lr * rate_factor(recipe, int(iteration)) == pytest.approx(rate, rel=1e-9)
        assert {group["momentum"] for group in solver["groups"]} == {recipe.momentum}
        assert [group["weight_decay"] for group in solver["groups"]] == [recipe.weight_decay, 0]
        sizes = solver["input"]
        assert list(recipe.short_sides) == sizes["min_size_train"]
        assert recipe.max_size == sizes["max_size_train"]
        assert recipe.test_short_side == sizes["min_size_test"]
        assert (recipe.test_max_size or recipe.max_size) == sizes["max_size_test"]
        assert recipe.flip == 0.5
        assert recipe.clip == 0
        assert not solver["clip_gradients"]


@pytest.mark.parametrize("name", COCO)
def test_all_coco_recipes_share_the_papers_solver(name: str) -> None:
    """Section 3.1: SGD, 0.01, batches of 16; steps at two thirds and eight ninths of 1x; 1000 iterations of warm-up."""
    recipe = get_recipe(name)
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (recipe.batch_size, recipe.schedule, recipe.warmup_factor) == (16, "step", 0.001)
    assert round(recipe.warmup * recipe.iterations, 6) == 1000
    steps = {90_000: [60_000, 80_000], 270_000: [210_000, 250_000], 360_000: [300_000, 340_000]}[recipe.iterations]
    assert [round(share * recipe.iterations, 6) for share in recipe.milestones] == steps
    for step in steps:  # to the iteration
        assert rate_factor(recipe, step - 1) == pytest.approx(10 * rate_factor(recipe, step))
    real_time = "-rt-" in name
    assert recipe.sync_bn == (real_time or "bifpn" in name)
    assert recipe.short_sides in ((800,), tuple(range(256, 609, 32) if real_time else range(640, 801, 32)))


@pytest.mark.parametrize("name", CITYSCAPES)
def test_cityscapes_follow_section_3_8(name: str) -> None:
    recipe = get_recipe(name)
    assert (recipe.iterations, recipe.batch_size, recipe.lr) == (24_000, 8, 0.01)
    assert [rate_factor(recipe, i) for i in (17_999, 18_000, 23_999)] == pytest.approx([1, 0.1, 0.1])
    assert recipe.short_sides == (800, 832, 864, 896, 928, 960, 992, 1024)
    assert (recipe.test_short_side, recipe.max_size) == (1024, 2048)
    assert recipe.model_args["factor"] == 4


# ----------------------------------------------------------------------------------------------------------- official


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if published.official])
def test_network_is_the_official_one(name: str) -> None:
    """Equal arguments, but for what the module's docstring tells, and tensors of the same names and shapes."""
    ours, theirs = untrained(get_recipe(name)), official_recipe(find_official(PUBLISHED[name].official))
    assert ours.model == theirs.model
    assert shapes(network(ours)) == shapes(network(theirs))

    def reduced(recipe: Recipe) -> dict[str, Any]:
        args = dict(recipe.model_args)
        told = {"mean", "std", "sampling", "mask_limit"}  # pixels and positives
        options = {"norm": "frozen_bn", **args.pop("backbone_options", {})}
        head = {"shared_towers": False, **args.pop("head", {})}
        return {
            **{"semantic": False} | {key: value for key, value in args.items() if key not in told},
            "backbone_options": {key: value for key, value in options.items() if key != "stride_in_1x1"},
            "head": head,
        }

    assert reduced(ours) == reduced(theirs)
    assert (theirs.test_short_side, theirs.max_size) == (ours.test_short_side, ours.test_max_size or ours.max_size)


def test_official_models_without_a_recipe_are_those_of_no_paper_here() -> None:
    named = {published.official for published in PUBLISHED.values()}
    left = {model.name for model in official_models() if model.name.startswith("CondInst")} - named
    assert left == {f"CondInst_MS_R_50_BiFPN_{end}" for end in ("1x", "3x", "3x_sem")}


# ---------------------------------------------------------------------------------------------------------- ablations


def test_every_row_of_tables_1_to_5_is_a_recipe() -> None:
    """As many as the paper has, none twice; those without a change are the base recipe."""
    rows = ablations()
    tables = ("1a", "1b", "2", "3", "4", "5")
    assert len(rows) == sum(len(TABLES[f"condinst:table-{number}"].rows) for number in tables)
    base = get_recipe("coco-condinst-r50-1x")
    for name, ablation in rows.items():
        recipe = get_recipe(name)
        assert dataclasses.replace(recipe, model_args=base.model_args) == base
        assert (recipe == base) == (not ablation.row.train + ablation.row.test)


def test_rows_are_what_their_cells_say() -> None:
    """The built networks against the tables' cells, and the controller's outputs against the formula of section 2.2."""
    for name, ablation in ablations().items():
        model, row, number = condinst(name), ablation.table.row(ablation.position), ablation.table.id.split("-")[-1]
        depth, width = int(row.get("depth", 3) or 0), int(row.get("width", 8) or 0)
        inputs = 2 + int(row.get("C_bottom", 8) or 0)
        if number == "3":
            inputs = 2 * bool(row["relative"] or row["absolute"]) + 8 * bool(row["features"])
            kind = "relative" if row["relative"] else "absolute" if row["absolute"] else "none"
            assert model.mask_head.coordinates == kind
        layers = [inputs, *[width] * (depth - 1), 1]
        wanted = sum((layers[i] + 1) * layers[i + 1] for i in range(depth))
        top = model.fcos.head.top
        assert top is not None
        assert top.out_channels == wanted, name
        if number == "4":
            assert 8 // model.mask_stride == row["factor"]
            assert f"1/{model.mask_stride}" == row["resolution"]
        if number == "5":
            assert model.nms == row["NMS"]
    default = condinst("condinst:table-1a:depth-3").fcos.head.top
    assert default is not None
    assert default.out_channels == 169


def test_rows_are_named_after_their_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = list(ablations())
    assert len(set(names)) == len(names)
    for name in ("condinst:table-1b:width-16", "condinst:table-3:absolute-features", "condinst:table-5:nms-mask"):
        assert name in names
    with pytest.raises(UserError, match=r"unknown row 'condinst:table-4:factor-3': expected one of condinst:table-4:f"):
        get_recipe("condinst:table-4:factor-3")
    with pytest.raises(UserError, match=r"expected one of condinst:table-1a:depth-1, .*condinst:table-5:nms-mask"):
        get_recipe("condinst:table-9")
    missing = tmp_path / "nothing"
    assert run(["train", "condinst:table-4:factor-1", "--data", str(missing)]) == 2
    assert str(missing) in capsys.readouterr().err


def test_weights_to_start_from_bring_their_network_but_not_how_masks_are_drawn() -> None:
    recipe = get_recipe("cityscapes-condinst-r50-coco")
    theirs = plain(official_recipe(find_official("CondInst_MS_R_50_3x")))["model_args"]
    assert recipe.model_args == {**theirs, "factor": 4, "sampling": "score", "mask_limit": 64}
    assert recipe.model_args["backbone_options"]["stride_in_1x1"]
    changed = adopt_model(get_recipe("folder-condinst"), "condinst", theirs)
    assert changed.model_args == theirs
    assert changed.iterations == get_recipe("folder-condinst").iterations


def test_cityscapes_recipe_starts_from_a_model_of_your_own(tmp_path: Path) -> None:
    """A tiny model stands for the one of COCO: other classes, another network, masks at a coarser stride."""
    coco = small("shapes-condinst", tmp_path, short_sides=(), iterations=1)
    settings = ("backbone_options.widths=(4,4,8,8,8)", "channels=8", "head.tower_convs=1", "bottom.channels=8")
    coco = override_model(coco, settings)
    train(coco, tmp_path / "coco", show_progress=False)
    weights = tmp_path / "coco" / "model.safetensors"
    path = tmp_path / "images.json"
    data = json.loads(path.read_text())
    data["categories"] = [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}]
    path.write_text(json.dumps(data))
    files = {"data": tmp_path, "train-images": "images", "train-json": "images.json"}
    files |= {"val-images": "images", "val-json": "images.json", "start": weights, "out": tmp_path / "out"}
    command = ["train", "cityscapes-condinst-r50", "--iterations", "1", "--batch-size", "2", "--workers", "0"]
    command += ["--short-sides", "96", "--test-short-side", "96"]
    assert run([*command, *(word for key, value in files.items() for word in (f"--{key}", str(value)))]) == 0
    model = load_model(tmp_path / "out" / "model.safetensors").model
    assert isinstance(model, CondInst)
    assert (model.factor, model.mask_limit) == (4, 64)
    assert shapes(model)["bottom.refine.0.0.weight"][1] == 8  # channels of the pyramid


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (URLError("no route"), r"cannot be fetched \(no route\); --set backbone_options.weights=None starts"),
        (LocalEntryNotFoundError("gone"), r"hub cannot be reached\); --set backbone_options.pretrained=False starts"),
    ],
)
def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str) -> None:
    def fails(**args: Any) -> nn.Module:
        raise error

    monkeypatch.setitem(MODELS, "fcos", fails)
    monkeypatch.setattr("condinst_edu.engine.recipe.check_model_args", lambda model, args: None)
    with pytest.raises(UserError, match=sentence):
        build_model("fcos", 80, get_recipe("coco-fcos-rt-dla34-4x").model_args)


def test_conference_version() -> None:
    """Four 3x3 convolutions on P3 alone, masks at half the image's size, positives at random."""
    model = condinst("coco-condinst-eccv-r50-1x")
    kernels = [m.kernel_size for m in model.bottom.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(3, 3)] * 4 + [(1, 1)]
    assert (len(model.bottom.refine), model.mask_stride, model.sampling, model.mask_limit) == (1, 2, "random", 250)


# ---------------------------------------------------------------------------------------------------------------- list


def printed(width: int, **options: Any) -> str:
    file = io.StringIO()
    show_recipes(console=Console(file=file, width=width), **options)
    return file.getvalue()


def test_list_has_every_recipe_and_row_whole() -> None:
    for width in (40, 80, 120):
        text = printed(width)
        words = set(text.split())
        assert set(RECIPES) <= words
        assert set(ablations()) <= words
        assert max(map(len, text.splitlines())) <= max(width, *map(len, (*RECIPES, *ablations())))


def test_list_shows_the_papers_figures() -> None:
    text = printed(100)
    for name, published in PUBLISHED.items():
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
        assert f" {paper_ap(published)} " in line
        assert authors_ap(published) in line
    assert (paper_ap(PUBLISHED["coco-condinst-r50-1x"]), authors_ap(PUBLISHED["coco-condinst-r50-1x"])) == (
        str(TABLES["condinst:table-6"].value("AP", method="CondInst", augmented=True, schedule="1x")),
        "39.7 / 35.7",
    )
    assert paper_ap(PUBLISHED["coco-condinst-rt-r50-4x-shtw"]) == "-"  # the paper leaves it out


def documented() -> dict[str, list[str]]:
    """Cells of the table in docs/recipes.md, by recipe."""
    lines = (ROOT / "docs" / "recipes.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_documented_table_is_the_list() -> None:
    columns = ("paper", "authors", "schedule", "images")
    table = documented()
    assert list(table) == list(PUBLISHED)
    assert {name: row[:4] for name, row in table.items()} == {
        name: [recipe_facts(name)[column] for column in columns] for name in PUBLISHED
    }
    rows = [ablation.row for ablation in ablations().values()]
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert f"all {len(rows)} with their figures" in text
    assert f"so {sum(bool(row.train) for row in rows)} need a training" in text
    assert sum(row == DEFAULT for row in rows) == 6
    assert notes(None, False)[0].replace("118287", "118 287").split("1x ")[1].rstrip(" images.") in text


@pytest.mark.slow
def test_documented_memory_is_what_is_counted() -> None:
    assert {name: row[4] for name, row in documented().items()} == {
        name: recipe_facts(name, memory=True)["GB"] for name in PUBLISHED
    }


def test_documented_commands_name_recipes_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    names = re.findall(r"condinst_edu\.cli train (\S+)", text)
    assert len(names) >= 5
    for name in names:
        check_recipe(get_recipe(name))
    options = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", " ".join(re.findall(r"cli train .*|`--[^`]*`", text))))
    with pytest.raises(SystemExit):
        run(["train", "coco-condinst-r50-1x", "--help"])
    help_text = capsys.readouterr().out
    assert {option for option in options if option not in help_text} == {"--weights"}  # of evaluate and predict


def test_hours_at_a_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """90 000 batches of 16 at 100 images a second take four hours."""
    line = next(x for x in printed(100, images_per_second=100).splitlines() if x.startswith("coco-condinst-r50-1x "))
    assert line.split()[-1] == "4"
    assert "hours" not in printed(100).split("Tables 1 to 5")[0]
    assert run(["train", "--list", "--images-per-second", "0"]) == 2
    assert "positive" in capsys.readouterr().err


def test_memory_counted_without_numbers_is_that_of_a_real_pass() -> None:
    """The same network on the CPU, with numbers: as many bytes."""
    recipe = dataclasses.replace(get_recipe("coco-condinst-r50-3x-sem"), short_sides=(64,), max_size=96, batch_size=16)
    recipe = untrained(recipe)
    model = build_model(recipe.model, 80, recipe.model_args)
    assert isinstance(model, CondInst)
    assert model.semantic is not None
    images = torch.rand(2, 3, 64, 96)
    with PeakMemory() as memory:
        pyramid = model.fcos.fpn(model.fcos.backbone(images))
        outputs: list[Tensor] = [*model.fcos.head(pyramid), model.bottom(pyramid), model.semantic(pyramid[0])]
        torch.stack([output.sum() for output in outputs]).sum().backward()
    kept = sum(p.nbytes * (2 if p.requires_grad else 1) for p in model.parameters())  # weights and momentum
    assert network_memory(recipe) == pytest.approx(memory.peak + kept, rel=0.01)


def test_memory_grows_with_the_images() -> None:
    recipe = get_recipe("coco-fcos-r50-1x")
    small, large = (network_memory(dataclasses.replace(recipe, batch_size=8 * n)) for n in (1, 3))
    middle = network_memory(dataclasses.replace(recipe, batch_size=16))
    assert middle - small == pytest.approx(large - middle, rel=0.1)
    assert large > 1.5 * small


# ---------------------------------------------------------------------------------------------------------------- steps


def small(name: str, folder: Path, **changes: Any) -> Recipe:
    """The recipe on two images of 96 x 144, from random weights."""
    random_folder(folder / "images", 4, size=(96, 144))
    settings: dict[str, Any] = {
        "data": folder,
        "train_images": "images",
        "train_json": "images.json",
        "val_images": "images",
        "val_json": "images.json",
        "short_sides": (96,),
        "iterations": 2,
        "batch_size": 2,
        "workers": 0,
        "log_every": 1,
        "start": None,
        "sync_bn": False,  # one process has nothing to share
    }
    return dataclasses.replace(untrained(get_recipe(name)), **{**settings, **changes})


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        pytest.param("coco-fcos-r50-1x", set(), marks=pytest.mark.slow),
        pytest.param("coco-condinst-r50-3x-sem", {"mask", "semantic"}, marks=pytest.mark.slow),
        ("coco-condinst-rt-dla34-4x-shtw", {"mask", "semantic"}),
        pytest.param("coco-condinst-eccv-r50-1x", {"mask"}, marks=pytest.mark.slow),
        pytest.param("cityscapes-condinst-r50", {"mask"}, marks=pytest.mark.slow),
        pytest.param("cityscapes-condinst-dcn101-coco-sem", {"mask", "semantic"}, marks=pytest.mark.slow),
    ],
)
def test_a_recipe_takes_steps(tmp_path: Path, name: str, losses: set[str]) -> None:
    """Whole networks at full width on small images: finite losses with their names, weights that move."""
    recipe = small(name, tmp_path)
    torch.manual_seed(recipe.seed)
    before = build_model(recipe.model, 2, recipe.model_args).state_dict()
    model = train(recipe, tmp_path / "out", show_progress=False)
    assert isinstance(model, FCOS | CondInst)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    values = next(line for line in lines if line.get("iteration") == 2)
    losses = {"class", "box", "centerness", *losses}
    assert losses == values.keys() & {"class", "box", "centerness", "mask", "semantic"}
    assert all(torch.isfinite(torch.tensor(values[loss])) for loss in losses)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved
    assert not moved & frozen
    if isinstance(model, CondInst):
        assert any(re.search(r"^bottom\.", key) for key in moved)
