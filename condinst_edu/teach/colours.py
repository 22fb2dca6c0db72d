"""A small COCO folder with classes of its own, for lesson 10: shapes again, but named by their colours."""

import json
from pathlib import Path

from condinst_edu.datasets.shapes import ShapesConfig, generate
from condinst_edu.datasets.shapes_coco import VAL_START, write_shapes
from condinst_edu.files import whole_file

NAMES = ("red", "green", "blue")
CONFIG = ShapesConfig(size=(96, 160), objects=(2, 5))
SEED = 10


def write_colours(folder: Path, train: int = 60, val: int = 30) -> None:
    """Write train/, val/ and annotations/instances_{train,val}.json: an object's class is its strongest colour.

    A folder that is written already stays as it is. Errors: UserError where it holds something else.
    """
    write_shapes(folder, train, val, SEED, CONFIG, show_progress=False)
    for split, first, count in (("train", 0, train), ("val", VAL_START, val)):
        path = folder / "annotations" / f"instances_{split}.json"
        data = json.loads(path.read_text())
        things = [thing for i in range(first, first + count) for thing in generate(i, SEED, CONFIG).things]
        for annotation, thing in zip(data["annotations"], things, strict=True):
            annotation["category_id"] = 1 + max(range(3), key=thing.color.__getitem__)
        data["categories"] = [{"id": k, "name": name} for k, name in enumerate(NAMES, start=1)]
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(data))
