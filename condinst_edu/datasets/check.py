"""`condinst-edu data check`: is a folder of images and COCO annotations complete?

condinst-edu data check data/coco            all annotations/instances*.json of the folder
condinst-edu data check photos/train.json --images photos/images
condinst-edu data check data/mapillary       its panoptic files, with their PNGs
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from condinst_edu.datasets.coco import read_image
from condinst_edu.datasets.coco_json import Item, encode_segmentation, read_coco
from condinst_edu.datasets.coco_panoptic import PanopticFiles
from condinst_edu.errors import UserError
from condinst_edu.progress import progress_bar

# Images and annotations of COCO's own files.
COCO_COUNTS = {"instances_train2017.json": (118_287, 860_001), "instances_val2017.json": (5_000, 36_781)}


def check_folder(root: Path, images: Path | None = None, decode: bool = False) -> Iterator[str]:
    """One line for each annotation file that is complete with its images; UserError, in one sentence, for what is not.

    root: a folder with annotations/*.json, or one file; images: folder of the images, found by the file's name by
    default; decode=True reads every image whole, which finds one that is cut off; otherwise its size alone is read.
    """
    problems = []
    for file in annotation_files(root):
        kind = check_panoptic_file if "panoptic" in file.name else check_file
        folder = images or image_folder(file, root if root.is_dir() and kind is check_file else file.parent)
        found, contents = kind(file, folder, decode)
        problems += [f"{file.name}: {problem}" for problem in found]
        if not found:
            yield f"{file}: complete, {contents}"
    if problems:
        raise UserError(f"{root} is not complete: {'; '.join(problems)}")


def check_file(file: Path, folder: Path, decode: bool) -> tuple[list[str], str]:
    """What is wrong with a COCO file and its images, and what it holds."""
    coco = read_coco(file)
    found = [*count_problems(file, len(coco["images"]), len(coco["annotations"]))]
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    for i, annotation in enumerate(coco["annotations"]):
        encode_segmentation(annotation["segmentation"], sizes[annotation["image_id"]], f"{file}: annotations[{i}]")
    found += image_problems(coco["images"], folder, decode)
    return found, f"{len(coco['images'])} images in {folder}, {len(coco['annotations'])} annotations"


def check_panoptic_file(file: Path, folder: Path, decode: bool) -> tuple[list[str], str]:
    """What is wrong with a panoptic file, its PNGs, in a folder of its name or in its own, and the images."""
    places = (file.with_suffix(""), file.parent.parent / file.stem, file.parent)
    files = PanopticFiles(file, next(place for place in places if place.is_dir()), truth=True)
    images = [files.images[image_id] for image_id in files.image_ids if image_id in files.images]
    if len(images) < len(files.image_ids):
        raise UserError(f"{file} has segments of images that it does not list")
    pngs = [image | {"file_name": files.rows[image["id"]]["file_name"]} for image in images]
    found = image_problems(images, folder, decode) + image_problems(pngs, files.folder, decode, "PNGs")
    segments = sum(len(row["segments_info"]) for row in files.rows.values())
    things = sum(files.isthing.values())
    classes = f"{things} classes of things and {len(files.isthing) - things} of stuff"
    return found, f"{len(images)} images in {folder}, {segments} segments of {classes}"


def annotation_files(root: Path) -> list[Path]:
    """The annotation files to check: `root` itself, or its annotations/instances*.json, or all in annotations/, or
    Mapillary's SPLIT/panoptic/panoptic*.json."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f"{root} does not exist")
    ours = ("annotations/instances*.json", "annotations/*.json")
    for pattern in (*ours, "*/panoptic/panoptic*.json", "*/v1.2/panoptic/panoptic*.json"):
        if files := sorted(root.glob(pattern)):
            return files
    if (root / "training" / "instances").is_dir():
        raise UserError(f"{root} has no training/panoptic/*.json: `condinst-edu data mapillary {root}` writes it")
    raise UserError(f"{root} has no annotations/*.json: name a COCO file, and its --images")


def image_folder(file: Path, root: Path) -> Path:
    """Where the images of an annotation file are: instances_NAME.json -> NAME/, or leftImg8bit/NAME/, or images/.

    root: where to look, and in two folders above it.
    """
    name = file.stem.rpartition("_")[2]
    for parent in (root, root.parent, root.parent.parent):
        for folder in (parent / name, parent / "leftImg8bit" / name, parent / "images"):
            if folder.is_dir():
                return folder
    raise UserError(
        f"there is no folder of images {root / name} or {root / 'images'} for {file}: name it with --images"
    )


def count_problems(file: Path, images: int, annotations: int) -> Iterator[str]:
    """What COCO's own files must hold."""
    for what, count, expected in zip(
        ("images", "annotations"), (images, annotations), COCO_COUNTS.get(file.name, (images, annotations)), strict=True
    ):
        if count != expected:
            yield f"lists {count} {what}, COCO's has {expected}"


def image_problems(images: list[Item], folder: Path, decode: bool, noun: str = "images") -> list[str]:
    """How many images are missing, of another size or broken, each with an example."""

    def look(image: Item) -> tuple[str, str] | None:
        path, expected = folder / image["file_name"], (image["height"], image["width"])
        try:
            if not path.is_file():
                return "missing", image["file_name"]
            if decode:
                read_image(path)
            with Image.open(path) as file:
                size = (file.height, file.width)
        except (UserError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return "broken", image["file_name"]
        if size != expected:
            return (
                "of a wrong size",
                f"{image['file_name']}, {size[1]} x {size[0]} instead of {expected[1]} x {expected[0]}",
            )
        return None

    kinds: dict[str, list[str]] = {}
    with progress_bar() as progress, ThreadPoolExecutor() as pool:
        task = progress.add_task(str(folder), total=len(images), note="")
        for problem in pool.map(look, images):
            progress.advance(task)
            if problem is not None:
                kinds.setdefault(problem[0], []).append(problem[1])
    return [
        f"{len(examples)} of {len(images)} {noun} {'is' if len(examples) == 1 else 'are'} {kind} (first: {examples[0]})"
        for kind, examples in kinds.items()
    ]
