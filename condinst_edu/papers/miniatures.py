"""The tables that can be run at small scale: the rows as arguments of tiny models, and what the papers claim of them.

What such a run can show is which way a figure goes from row to row, never the figure itself.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from condinst_edu import papers
from condinst_edu.errors import UserError
from condinst_edu.papers.claims import Claim
from condinst_edu.papers.forms import Table, cell_text
from condinst_edu.papers.tables import TABLES


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table as arguments of the model, KEY=VALUE as in `condinst-edu train --set`; none: the recipe's own.

    train: arguments that another model is trained for; test: arguments that only matter once it is trained.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


DEFAULT = Row()


@dataclasses.dataclass(frozen=True)
class Miniature:
    """How a table is run.

    recipe: that all rows start from; rows: in the paper's order, then those that the paper does not have; iterations:
    of the stored result.
    """

    recipe: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    iterations: int = 150
    names: tuple[str, ...] = ()
    """Of the rows that the paper does not print."""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the recipe that differ."""
    note: str = ""
    """Where it is not the paper's set-up at another size."""
    because: str = ""
    """Why its claims do not show, as far as we know, where a claim says nothing of its own."""
    skip: int = 0
    """Rows at the top of the paper's table that are not run."""


NO_TIME = "The time of the mask head is not measured here: see condinst-edu bench mask-head."
WIDE = "The paper's channels, 32, 64 and 128, are a quarter each here."
VECTOR = "attention=vector"
ONE_LEVEL = ("levels=(2,)", "strides=(4,)", "ranges=((1, 128),)")

# Why claims do not show, as far as we know, where several share the reason.
SMALL_OBJECTS = (
    "Objects here are small: P2 draws their outlines, and the steered levels P3 to P5 hardly matter (lesson 6)."
)

# Images of 108 pixels, which none of the three paddings leaves alike: to 112, 128 and 108.
PADDED = {"short_sides": (108,), "test_short_side": 108}

# SOLO's head starts from nothing: it takes the training of its own recipe, half as long.
SOLO_TRAINING = {"batch_size": 8, "lr": 5e-3}

MINIATURES: dict[str, Miniature] = {
    "condinst:table-1a": Miniature(
        "shapes-condinst",
        (
            Row(("mask_head.depth=1",)),
            Row(("mask_head.depth=2",)),
            DEFAULT,  # depth 3, width 8
            Row(("mask_head.depth=4",)),
        ),
        (
            Claim("One layer, a linear map, is too weak: two are ahead.", 1, 0),
            Claim("One layer is too weak: three are ahead.", 2, 0),
            Claim("Two layers are as good as three.", 1, 2, "="),
            Claim("Four layers are as good as three.", 3, 2, "="),
        ),
        note=NO_TIME,
    ),
    "condinst:table-1b": Miniature(
        "shapes-condinst",
        (
            Row(("mask_head.width=2",)),
            Row(("mask_head.width=4",)),
            DEFAULT,
            Row(("mask_head.width=16",)),
        ),
        (
            Claim("Two channels are too few: eight are ahead.", 2, 0),
            Claim("Four channels are as good as eight.", 1, 2, "="),
            Claim("Sixteen channels are as good as eight.", 3, 2, "="),
        ),
        note=NO_TIME,
    ),
    "condinst:table-2": Miniature(
        "shapes-condinst",
        (
            Row(("bottom.out_channels=1",)),
            Row(("bottom.out_channels=2",)),
            Row(("bottom.out_channels=4",)),
            DEFAULT,  # 8
            Row(("bottom.out_channels=16",)),
        ),
        (
            Claim("One channel is fewer than it takes: eight are ahead.", 3, 0),
            Claim("Two channels are almost as good as eight.", 1, 3, "="),
            Claim("Four channels are almost as good as eight.", 2, 3, "="),
            Claim("Sixteen channels are almost as good as eight.", 4, 3, "="),
        ),
    ),
    "condinst:table-3": Miniature(
        "shapes-condinst",
        (
            Row(("mask_head.coordinates=none",)),
            Row(("mask_head.use_features=False",)),
            Row(("mask_head.coordinates=absolute",)),
            DEFAULT,  # relative coordinates and features
        ),
        (
            Claim("Without relative coordinates AP drops.", 3, 0),
            Claim("Absolute coordinates do not replace relative ones.", 3, 2),
            Claim("Relative coordinates without features lose as well.", 3, 1),
            Claim(
                "Relative coordinates alone are about as good as features alone.",
                1,
                0,
                "=",
                because="The training is too short: features alone have hardly begun to tell objects apart. After 3000 "
                "iterations they are ahead, mask AP 69.0 against 48.6 (docs/results.md, one seed).",
            ),
            Claim("Absolute coordinates bring little over none.", 2, 0, "="),
        ),
    ),
    "condinst:table-4": Miniature(
        "shapes-condinst",
        (Row(("factor=1",)), DEFAULT, Row(("factor=4",))),
        (
            Claim(
                "Masks have to be upsampled: factor 2 is ahead of 1.",
                1,
                0,
                because="Each seed by itself has it ahead, but seeds differ by more. Our masks are at 1/4 of the input "
                "already where the paper's are at 1/8. After 3000 iterations the gap is 73.0 against 62.4 "
                "(docs/results.md, one seed).",
            ),
            Claim(
                "Small objects need it too.", 1, 0, ">", "APs", because="As for AP: nearly all objects here are small."
            ),
            Claim("Factor 4 brings no more than 2.", 2, 1, "="),
            Claim(
                "Factor 4 is worse than 2 for small objects.",
                1,
                2,
                ">",
                "APs",
                because="The paper blames COCO's rough outlines; the outlines of drawn shapes are exact.",
            ),
        ),
        note="The tiny bottom branch is on P2: our masks have 1/4, 1/2 and 1/1 of the input's resolution.",
    ),
    "condinst:table-5": Miniature(
        "shapes-condinst",
        (DEFAULT, Row(test=("nms=mask",))),
        (Claim("Duplicates can be removed by masks as well as by boxes.", 1, 0, "="),),
        note="Both rows are the same trained models.",
    ),
    "dr1mask:table-1": Miniature(
        "shapes-dr1mask",
        (
            Row((VECTOR, "factors=none")),
            Row((VECTOR, "factors=a")),
            Row((VECTOR, "factors=b")),
            Row((VECTOR,)),
        ),
        (
            Claim("A and B together are ahead of neither.", 3, 0),
            Claim("A and B together are ahead of neither in AP75 too.", 3, 0, ">", "AP75"),
            Claim("Both are ahead of A alone.", 3, 1),
            Claim("Both are ahead of B alone.", 3, 2),
            Claim("A alone is slightly ahead of neither.", 1, 0),
            Claim("B alone is slightly ahead of neither.", 2, 0),
        ),
        because=SMALL_OBJECTS,
    ),
    "dr1mask:table-2": Miniature(
        "shapes-panoptic-dr1mask",
        (Row(("factors=none",)), DEFAULT),
        (
            Claim("A and B help things.", 1, 0, ">", "PQ thing"),
            Claim("A and B help stuff.", 1, 0, ">", "PQ stuff"),
        ),
        iterations=1000,
        because=SMALL_OBJECTS,
    ),
    "dr1mask:table-3": Miniature(
        "shapes-dr1mask",
        (
            Row((VECTOR, "factors=none")),
            Row((VECTOR, "context=fpn")),
            Row((VECTOR, "context=class")),
            Row((VECTOR,)),
        ),
        (
            Claim("Context from the box tower is ahead of context from the pyramid.", 3, 1, ">", "AP75"),
            Claim("Context from the pyramid is worse than none.", 0, 1, ">", "AP75"),
            Claim("Context from the box tower is ahead of context from the class tower.", 3, 2),
            Claim("Context from the box tower is ahead of none.", 3, 0),
        ),
        because=SMALL_OBJECTS,
    ),
    "dr1mask:table-4": Miniature(
        "shapes-dr1mask",
        (Row((VECTOR,)), Row(("attention=full",)), DEFAULT),  # factored
        (
            Claim("Factored attention is ahead of a vector.", 2, 0),
            Claim("Full attention is ahead of a vector.", 1, 0),
            Claim("Factored attention is as good as full.", 2, 1, "="),
        ),
        iterations=1500,
        note="The time is not measured here. Attention of 7x7 for masks of 28x28.",
        because="Factored attention is ahead. The order depends on the length of training: after 150 iterations, in "
        "place of 1500, full attention was ahead by 4.8.",
    ),
    "dr1mask:table-5": Miniature(
        "shapes-panoptic-dr1mask",
        (Row(("divisor=8", "basis.aligned=False")), Row(("divisor=32", "basis.aligned=False")), DEFAULT),
        (
            Claim("Aligned upsampling is ahead of the small padding.", 2, 0, ">", "PQ stuff"),
            Claim("So is the large padding.", 1, 0, ">", "PQ stuff"),
            Claim(
                "Aligned upsampling is as good as the large padding.",
                2,
                1,
                "=",
                "PQ",
                because="The large padding is ahead in things, 32.7 against 28.5. They are far from learned: the "
                "shipped model, with four times the images, has 54.3 (docs/results.md).",
            ),
        ),
        iterations=1000,
        changes=PADDED,
        note="The tiny pyramid ends at stride 32: paddings to 8 and 32 stand for the paper's 32 and 128, on images of "
        "108 pixels.",
        because="The paper's gain is of one point, and our seeds differ by as much.",
    ),
    "dr1mask:table-6": Miniature(
        "shapes-panoptic-dr1mask",
        (Row(("basis.width=8",)), DEFAULT, Row(("basis.width=32",))),
        (
            Claim("The narrowest basis is behind in stuff.", 1, 0, ">", "PQ stuff"),
            Claim("The widest brings no more.", 2, 1, "=", "PQ stuff"),
        ),
        iterations=1000,
        note=WIDE,
        because="Our widest basis, 32 channels, is the paper's narrowest: its gain ends only at 64.",
    ),
    "dr1mask:table-7": Miniature(
        "shapes-panoptic-dr1mask",
        (DEFAULT, Row(("attention=factored",))),
        (
            Claim("Factored attention harms stuff.", 0, 1, ">", "PQ stuff"),
            Claim("For things both are alike.", 0, 1, "=", "PQ thing"),
        ),
        iterations=1000,
        because="A vector has one number for each channel of the basis, 16 here and 64 in the paper, with which to "
        "tell apart all things of an image: too few, it seems. With 32 channels things rise from 29.9 to 39.9 "
        "(Table 6).",
    ),
    "adaptis:table-1": Miniature(
        "bacteria-adaptis",
        (DEFAULT,),
        iterations=5000,
        note="Our images are made to the paper's description, since its own were never published: its figures stand "
        "beside ours as an indication.",
        skip=1,  # Mask R-CNN
    ),
    "adaptis:table-7": Miniature(
        "bacteria-adaptis",
        (
            DEFAULT,
            Row(("head.coordinates=False",)),
            Row(("loss=focal",)),
            Row(("loss=bce",)),
            Row(("loss=focal", "head.coordinates=False")),
            Row(("loss=bce", "head.coordinates=False")),
        ),
        (
            Claim("Without coordinates objects are lost.", 0, 1, ">", "PQ thing", "AP@0.5"),
            Claim("NFL is ahead of FL.", 0, 2, ">", "PQ", "AP@0.5"),
            Claim("NFL is slightly ahead of BCE.", 0, 3, ">", "PQ", "AP@0.5"),
        ),
        iterations=600,
        names=("FL, without coordinates", "BCE, without coordinates"),
        note="The paper's figures are PQ on Cityscapes; ours are AP in percent on toy images, after so short a "
        "training that NFL is much farther ahead than there. The last two rows are not in the paper.",
    ),
    "slides:solo-grid-number": Miniature(
        "shapes-solo",
        (
            Row((*ONE_LEVEL, "grids=(4,)")),
            Row((*ONE_LEVEL, "grids=(8,)")),
            Row((*ONE_LEVEL, "grids=(12,)")),
        ),
        (Claim("Twice as many cells along each side are ahead (the slide: by 1.8 points).", 1, 0),),
        iterations=1500,
        names=("4 cells a side", "8 cells a side", "12 cells a side"),
        changes=SOLO_TRAINING,
        note="One level, as in the slide, which we have without its figures but for the gain. No map of 4 cells a side "
        "can pass 71.8 here, of 8 cells 81.7, of 12 cells 83.2: the rest shares its cell with another object.",
    ),
    "slides:solo-levels": Miniature(
        "shapes-solo",
        (Row((*ONE_LEVEL, "grids=(12,)")), DEFAULT),
        (Claim("More levels than one are ahead (the slide: by 6.8 points).", 1, 0),),
        iterations=1500,
        names=("one level, 12 cells a side", "two levels, 12 and 8 cells a side"),
        changes=SOLO_TRAINING,
        note="Two levels where the paper has five. We have the slide without its figures but for the gain.",
        because="No object here is too large for the first level, and the second draws its own at half the resolution, "
        "from fewer cells. The larger ones lose most.",
    ),
    "slides:solo-coordconv": Miniature(
        "shapes-solo",
        (Row(("head.coordinates=False",)), DEFAULT),
        (Claim("The mask branch needs coordinates (the slide: 3.6 points).", 1, 0),),
        iterations=1500,
        names=("without CoordConv", "with CoordConv"),
        changes=SOLO_TRAINING,
        note="We have the slide without its figures but for the gain.",
        because="In images of 128 pixels the zeros of the padding tell a convolution where it is (lesson 8).",
    ),
}

# The conference version has the same rows; its Table 4 is left out, for its own models have another factor.
MINIATURES |= {
    name.replace("condinst:", "condinst-eccv:"): dataclasses.replace(
        miniature,
        note="The journal version's models beside the conference's figures. " + miniature.note,
    )
    for name, miniature in MINIATURES.items()
    if name.startswith("condinst:") and name != "condinst:table-4"
}


def find_miniature(name: str) -> tuple[str, Miniature]:
    """The id and how it is run; UserError where the id is unknown or has no miniature."""
    entry = papers.item(name)
    if entry.id not in MINIATURES:
        raise UserError(f"{entry.id} cannot be run here, it has no miniature: choose from {', '.join(MINIATURES)}")
    return entry.id, MINIATURES[entry.id]


def printed(name: str, index: int) -> Mapping[str, Any]:
    """The paper's own row that belongs to a miniature's, {} where it prints none."""
    table, miniature = TABLES.get(name), MINIATURES[name]
    if table is None or index + miniature.skip >= len(table.rows):
        return {}
    return table.row(index + miniature.skip)


def label(name: str, index: int) -> str:
    """What a row is: "depth 3", the names of the columns that have a tick, or the miniature's own name for it."""
    row, miniature = printed(name, index), MINIATURES[name]
    if not row:
        return miniature.names[index - (len(miniature.rows) - len(miniature.names))]
    scores = score_names(TABLES[name])
    words = []
    for key, cell in row.items():
        if isinstance(cell, bool):
            words += [key] if cell else []
        elif isinstance(cell, str):
            words.append(cell)
        elif key not in scores and key != "time":
            words.append(f"{key} {cell_text(cell)}")
    return ", ".join(words)


def score_names(table: Table) -> tuple[str, ...]:
    """Columns that are a quality: AP, PQ and the like."""
    return tuple(c.name for c in table.columns if c.unit == "%")
