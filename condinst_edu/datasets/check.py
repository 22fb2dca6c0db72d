"""`condinst-edu data check`: is a folder of images and COCO annotations complete?

condinst-edu data check data/coco            all annotations/instances*.json of the folder
condinst-edu data check photos/train.json --images photos/images
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from condinst_edu.datasets.coco import read_image
from condinst_edu.datasets.coco_json import Item, encode_segmentation, read_coco
from condinst_edu.errors import UserError
from condinst_edu.progress import progress_bar

# Images and annotations of COCO's own files.
COCO_COUNTS = {"instances_train2017.json": (118_287, 860_001), "instances_val2017.json": (5_000, 36_781)}


def check_folder(root: Path, images: Path | None = None, decode: bool = False) -> Iterator[str]:
    """One line for each annotation file that is complete with its images; UserError, in one sentence, for what is not.

    root: a folder with annotations/*.json, or one file; images: folder of the images, found by the file's name by
    default; decode=True reads every image whole, which finds one that is cut off; otherwise its size alone is read.
    """
    files = annotation_files(root)
    problems = []
    for file in files:
        folder = images or image_folder(file, root if root.is_dir() else file.parent)
        coco = read_coco(file)
        found = [*count_problems(file, len(coco["images"]), len(coco["annotations"]))]
        sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
        for i, annotation in enumerate(coco["annotations"]):
            encode_segmentation(annotation["segmentation"], sizes[annotation["image_id"]], f"{file}: annotations[{i}]")
        found += image_problems(coco["images"], folder, decode)
        problems += [f"{file.name}: {problem}" for problem in found]
        if not found:
            yield f"{file}: complete, {len(coco['images'])} images in {folder}, {len(coco['annotations'])} annotations"
    if problems:
        raise UserError(f"{root} is not complete: {'; '.join(problems)}")


def annotation_files(root: Path) -> list[Path]:
    """The annotation files to check: `root` itself, or its annotations/instances*.json, or all in annotations/."""
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f"{root} does not exist")
    files = sorted((root / "annotations").glob("instances*.json")) or sorted((root / "annotations").glob("*.json"))
    if not files:
        raise UserError(f"{root} has no annotations/*.json: name a COCO file, and its --images")
    return files


def image_folder(file: Path, root: Path) -> Path:
    """Where the images of an annotation file are: instances_NAME.json -> NAME/, or leftImg8bit/NAME/, or images/."""
    name = file.stem.rpartition("_")[2]
    for parent in (root, root.parent):
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


def image_problems(images: list[Item], folder: Path, decode: bool) -> list[str]:
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
        f"{len(examples)} of {len(images)} images {'is' if len(examples) == 1 else 'are'} {kind} (first: {examples[0]})"
        for kind, examples in kinds.items()
    ]
