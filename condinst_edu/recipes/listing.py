"""`condinst-edu train --list`: every recipe with the figures that were published for it, its length and its memory.

Figures come from the papers' tables (`condinst_edu.papers`) and the authors' list of models (`official_models.tsv`).
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Screen

from condinst_edu.bench import PeakMemory
from condinst_edu.blendmask import BlendMask
from condinst_edu.condinst import CondInst
from condinst_edu.datasets.download import COCO
from condinst_edu.engine.recipe import Recipe, build_model
from condinst_edu.fcos import FCOS
from condinst_edu.official import find_official
from condinst_edu.panoptic import PanopticModel
from condinst_edu.papers import TABLES
from condinst_edu.papers.forms import Cell, cell_text
from condinst_edu.progress import progress_bar
from condinst_edu.recipes import RECIPES, get_recipe
from condinst_edu.recipes.ablations import Ablation, ablations

GPUS = 8  # of the papers
INDENT = 4 * " "


class Published(NamedTuple):
    """Where a recipe's figures are: the cells that find its row of a paper's table, the authors' model; "" for none."""

    table: str = ""
    where: dict[str, Cell] | None = None
    official: str = ""
    column: str = "AP"


def table_6(backbone: str, length: str, official: str, sem: bool = False, augmented: bool = True) -> Published:
    method = "CondInst w/ sem." if sem else "CondInst"
    where: dict[str, Cell] = {"method": method, "backbone": backbone, "schedule": length, "augmented": augmented}
    return Published("condinst:table-6", where, official)


def table_7(method: str, backbone: str) -> Published:
    return Published("condinst:table-7", {"method": method, "backbone": backbone})


def table_8(backbone: str, data: str, sem: bool = False) -> Published:
    method = "CondInst w/ sem." if sem else "CondInst"
    return Published("condinst:table-8", {"method": method, "backbone": backbone, "data": data}, column="AP val")


def table_9(backbone: str, length: str) -> Published:
    where: dict[str, Cell] = {"method": "CondInst", "backbone": backbone, "schedule": length}
    return Published("condinst:table-9", where, column="PQ")


FIRST_VERSION: dict[str, Cell] = {"method": "CondInst", "backbone": "R-50-FPN", "schedule": "1x", "augmented": True}
PUBLISHED = {
    "coco-fcos-r50-1x": Published(official="FCOS_R_50_1x"),
    "coco-condinst-r50-1x": table_6("R-50-FPN", "1x", "CondInst_MS_R_50_1x"),
    "coco-condinst-r50-1x-800": table_6("R-50-FPN", "1x", "", augmented=False),
    "coco-condinst-r50-3x": table_6("R-50-FPN", "3x", "CondInst_MS_R_50_3x"),
    "coco-condinst-r50-3x-sem": table_6("R-50-FPN", "3x", "CondInst_MS_R_50_3x_sem", sem=True),
    "coco-condinst-r101-3x": table_6("R-101-FPN", "3x", "CondInst_MS_R_101_3x"),
    "coco-condinst-r101-3x-sem": table_6("R-101-FPN", "3x", "CondInst_MS_R_101_3x_sem", sem=True),
    "coco-condinst-r101-bifpn-3x": Published(official="CondInst_MS_R_101_BiFPN_3x"),
    "coco-condinst-r101-bifpn-3x-sem": table_6("R-101-BiFPN", "3x", "CondInst_MS_R_101_BiFPN_3x_sem", sem=True),
    "coco-condinst-r101-dcn-bifpn-3x-sem": table_6("R-101-DCN-BiFPN", "3x", "", sem=True),
    "coco-condinst-eccv-r50-1x": Published("condinst-eccv:table-6", FIRST_VERSION),
    "coco-fcos-rt-dla34-4x": Published(official="FCOS_RT_MS_DLA_34_4x_syncbn"),
    "coco-fcos-rt-dla34-4x-shtw": Published(official="FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers"),
    "coco-fcos-rt-r50-4x": Published(official="FCOS_RT_MS_R_50_4x_syncbn"),
    "coco-condinst-rt-dla34-4x": table_7("CondInst-RT", "DLA-34"),
    "coco-condinst-rt-dla34-4x-shtw": table_7("CondInst-RT shtw.", "DLA-34"),
    "coco-condinst-rt-r50-4x-shtw": table_7("CondInst-RT shtw.", "R-50"),
    "coco-blendmask-r50-1x": Published(official="BlendMask_R_50_1x"),
    "coco-blendmask-r50-3x": Published(official="BlendMask_R_50_3x"),
    "coco-blendmask-r101-3x": Published(official="BlendMask_R_101_3x"),
    "coco-blendmask-550-r50-3x": Published(official="BlendMask_550_R_50_3x"),
    "coco-blendmask-rt-r50-4x-shtw": Published(official="BlendMask_RT_R_50_4x_syncbn_shtw"),
    "coco-panoptic-condinst-r50-1x": table_9("R-50-FPN", "1x"),
    "coco-panoptic-condinst-r50-3x": table_9("R-50-FPN", "3x"),
    "coco-panoptic-condinst-r101-3x": table_9("R-101-FPN", "3x"),
    "coco-panoptic-condinst-dcn101-3x": table_9("DCN-101-FPN", "3x"),
    "cityscapes-condinst-r50": table_8("ResNet-50-FPN", "train"),
    "cityscapes-condinst-r50-sem": table_8("ResNet-50-FPN", "train", sem=True),
    "cityscapes-condinst-r50-coco": table_8("ResNet-50-FPN", "train+COCO"),
    "cityscapes-condinst-r50-coco-sem": table_8("ResNet-50-FPN", "train+COCO", sem=True),
    "cityscapes-condinst-dcn101-coco-sem": table_8("DCN-101-BiFPN", "train+COCO", sem=True),
}
GROUPS = {  # by the beginning of their names
    "shapes-": "Generated shapes: minutes on a laptop",
    "folder-": "A COCO-format folder of your own",
    "coco-panoptic-": "COCO 2017, things and stuff. Paper: PQ, test-dev",
    "coco-": "COCO 2017. Paper: mask AP, test-dev; authors: box / mask AP of their model, val2017",
    "cityscapes-": "Cityscapes, fine annotations. Paper: mask AP, val",
}
OTHERS = "Others"

Facts = dict[str, str]
"""What the list says of a recipe, by column."""


def show_recipes(images_per_second: float | None = None, memory: bool = False, console: Console | None = None) -> None:
    """Print all recipes. images_per_second: of training, for the hours; memory: count it, which takes some seconds."""
    console = console or Console()
    with progress_bar(memory) as progress:
        tracked = progress.track(RECIPES, task_id=progress.add_task("counting memory", total=len(RECIPES), note=""))
        facts = {name: recipe_facts(name, images_per_second, memory) for name in tracked}
    for title in (*GROUPS.values(), OTHERS):
        show_group(console, title, [facts[name] for name in facts if group_of(name) == title])
    title = "CondInst's Tables 1 to 5: coco-condinst-r50-1x with changes. Paper: mask AP, val2017"
    show_group(console, title, [ablation_facts(name, row) for name, row in ablations().items()])
    for line in notes(images_per_second, memory):
        console.print(line, highlight=False, markup=False)


def group_of(name: str) -> str:
    """Title of the group that a recipe is shown in."""
    return next((title for prefix, title in GROUPS.items() if name.startswith(prefix)), OTHERS)


def recipe_facts(name: str, images_per_second: float | None = None, memory: bool = False) -> Facts:
    """What the list says of a recipe."""
    recipe = get_recipe(name)
    facts = {"recipe": name}
    if name in PUBLISHED:
        facts |= {"paper": paper_ap(PUBLISHED[name]), "authors": authors_ap(PUBLISHED[name])}
    visits = recipe.iterations * recipe.batch_size
    schedule = f"{recipe.iterations / 1000:g}K x {recipe.batch_size}"
    facts |= {"schedule": schedule, "images": f"{visits / 1e6:.3g} M"}
    if images_per_second is not None:
        facts["hours"] = f"{visits / images_per_second / 3600:.3g}"
    if memory and name in PUBLISHED and recipe.model in ("fcos", "condinst", "blendmask", "panoptic-condinst"):
        facts["GB"] = f"{network_memory(recipe) / 2**30:.1f}"
    return facts


def ablation_facts(name: str, ablation: Ablation) -> Facts:
    """What the list says of a row; its schedule is the base recipe's."""
    paper = cell_text(ablation.table.row(ablation.position)["AP"])
    changes = [*ablation.row.train, *(f"{setting} (evaluation only)" for setting in ablation.row.test)]
    return {"recipe": name, "paper": paper, "changes": ", ".join(changes) or "none"}


def paper_ap(published: Published) -> str:
    """The figure in the paper's table, as printed; a dash where the papers have none."""
    if not published.table:
        return "-"
    (row,) = TABLES[published.table].find(**(published.where or {}))
    return cell_text(row[published.column])


def authors_ap(published: Published) -> str:
    """Box and mask AP that the authors publish for their model; a dash without one."""
    if not published.official:
        return "-"
    model = find_official(published.official)
    return " / ".join(filter(None, (model.box_ap, model.mask_ap)))


def notes(images_per_second: float | None, memory: bool) -> list[str]:
    """What the columns mean, and what is not known."""
    files = next(archive.files for archive in COCO if archive.folder == "train2017")
    epochs = Recipe().iterations * Recipe().batch_size / files
    lines = [
        f"Schedule: iterations x images of all GPUs together; 1x passes {epochs:.1f} times over COCO's {files} images.",
        "None of the COCO and Cityscapes recipes has been run to its end here: time and memory are not measured.",
        "The paper: 8 V100 (Cityscapes: one image on each); CondInst R-50 also trains on four 1080 Ti.",
    ]
    if images_per_second is None:
        lines.append(
            "condinst-edu bench training --device cuda measures images/s and memory of CondInst R-50 on your GPU; "
            "--list --images-per-second N then tells the hours."
        )
    else:
        lines.append(f"Hours: at {images_per_second:g} images/s of all GPUs together, evaluation not included.")
    if memory:
        lines.append(
            f"GB: on each of {GPUS} GPUs, for its images at the largest size in float32: weights, momentum and the "
            "tensors of the network's forward and backward pass, counted. Losses and what libraries need come on top."
        )
    else:
        lines.append("--list --memory counts the memory that each network's tensors take.")
    return [*lines, "A recipe: condinst-edu train RECIPE --help. Several GPUs: see docs/recipes.md."]


# ------------------------------------------------------------------------------------------------------------- memory


def network_memory(recipe: Recipe, gpus: int = GPUS) -> int:
    """Bytes on each GPU for weights, momentum, and the tensors of a forward and backward pass of the network.

    The pass is counted on torch's "meta" device, which computes nothing: float32, images of the recipe's largest size.
    """
    with torch.device("meta"):
        classes = 80 if recipe.train_panoptic is None else 133
        whole = build_model(recipe.model, classes, untrained(recipe).model_args).train()
    model = whole.instances if isinstance(whole, PanopticModel) else whole
    assert isinstance(model, FCOS | CondInst | BlendMask)
    detector = model if isinstance(model, FCOS) else model.fcos
    size = (-(-side // 32) * 32 for side in (max(recipe.short_sides), recipe.max_size))
    images = torch.empty(recipe.batch_size // gpus, 3, *size, device="meta")
    with PeakMemory() as memory:
        pyramid = detector.fpn(detector.backbone(images))
        outputs = list(detector.head(pyramid[-len(detector.strides) :]))
        if not isinstance(model, FCOS):
            outputs.append((model.bottom if isinstance(model, CondInst) else model.bases)(pyramid))
            if model.semantic is not None:
                outputs.append(model.semantic(pyramid[0]))
        if isinstance(whole, PanopticModel):
            outputs.append(whole.branch(pyramid))
        torch.stack([output.sum() for output in outputs]).sum().backward()
    weights = sum(p.nbytes for p in whole.parameters())
    momentum = sum(p.nbytes for p in whole.parameters() if p.requires_grad)
    return weights + momentum + memory.peak


def untrained(recipe: Recipe) -> Recipe:
    """The recipe without ImageNet weights, so that nothing is fetched to build its model."""
    options = dict(recipe.model_args.get("backbone_options") or {})
    for name in ("weights", "pretrained"):
        options.pop(name, None)
    return replace(recipe, model_args={**recipe.model_args, "backbone_options": options})


# ------------------------------------------------------------------------------------------------------------- screen


def show_group(console: Console, title: str, rows: Sequence[Facts]) -> None:
    """A table, or, where it would be wider than the screen, each recipe with its facts below it."""
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    screen = Screen(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        left = column in ("recipe", "changes")
        screen.add_column(column, justify="left" if left else "right", no_wrap=True, header_style="dim")
    for row in rows:
        screen.add_row(*(row.get(column, "") for column in columns))
    console.print(title, style="bold", highlight=False)
    if Measurement.get(console, console.options.update(max_width=1000), screen).maximum <= console.width:
        console.print(screen, highlight=False)
    else:
        for row in rows:
            facts = [f"{column} {value}" for column, value in row.items() if column != "recipe"]
            console.print(row["recipe"], highlight=False, markup=False, no_wrap=True)
            text = textwrap.fill(", ".join(facts), console.width, initial_indent=INDENT, subsequent_indent=INDENT)
            console.print(text, highlight=False, markup=False)
    console.print()
