"""`condinst-edu data`: folders of images to train on are drawn, downloaded, converted or checked."""

from dataclasses import dataclass, fields
from pathlib import Path

from tyro.conf import Positional

from condinst_edu.errors import UserError
from condinst_edu.options import parse

USAGE = """usage: condinst-edu data KIND [options]     (data KIND --help tells the options)

  shapes      write the generated shapes as a COCO folder
  coco        download COCO 2017 (20 GB), check it and unpack it
  cityscapes  write COCO annotations and panoptic files for a Cityscapes folder
  mapillary   write the panoptic files of a Mapillary Vistas folder that has none
  check       say whether a folder of images and COCO annotations is complete
"""


def run_data(arguments: list[str]) -> None:
    """What stands behind `condinst-edu data`. Errors: UserError, one sentence."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    kinds = {"shapes": data_shapes, "coco": data_coco, "cityscapes": data_cityscapes, "mapillary": data_mapillary}
    kinds |= {"check": data_check}
    if arguments[0] not in kinds:
        raise UserError(f"unknown kind of data {arguments[0]!r}: expected one of {', '.join(kinds)}")
    kinds[arguments[0]](arguments[1:])


def data_coco(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Coco:
        """Download COCO 2017, check and unpack it; an interrupted call goes on where it stopped."""

        root: Path = Path("data/coco")
        """The folder: train2017/, val2017/ and annotations/ come into it."""
        address: str = "http://images.cocodataset.org"
        """Where it is; another one for a mirror."""
        panoptic: bool = False
        """Bring the panoptic files, too (0.9 GB)."""

    options = parse(Coco, "data coco", arguments)
    from condinst_edu.datasets.download import COCO, PANOPTIC, PNGS, download_coco, download_panoptic

    download_coco(options.root, options.address, COCO)
    if options.panoptic:
        download_panoptic(options.root, options.address, PANOPTIC, PNGS)
    counts = {archive.folder: archive.files for archive in COCO}
    print(f"{counts['train2017']} + {counts['val2017']} images and their annotations are in {options.root}")


def data_cityscapes(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Cityscapes:
        """Write COCO annotations of a Cityscapes folder's objects (eight classes), and panoptic files (19 classes)."""

        root: Path = Path("data/cityscapes")
        """The folder with gtFine/ and leftImg8bit/; the annotations go to its annotations/."""

    options = parse(Cityscapes, "data cityscapes", arguments)
    from condinst_edu.datasets.cityscapes import write_annotations

    for path, images, contents in write_annotations(options.root):
        print(f"{path}: {images} images, {contents}")


def data_mapillary(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Mapillary:
        """Write the panoptic files of a Mapillary Vistas folder (version 1.2), where it has none."""

        root: Positional[Path]
        """The folder with training/, validation/ and config.json, as it is unpacked."""

    options = parse(Mapillary, "data mapillary", arguments)
    from condinst_edu.datasets.mapillary import write_panoptic

    for line in write_panoptic(options.root):
        print(line)


def data_check(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Check:
        """Say whether a folder is complete: images that are missing or of a wrong size, COCO's own counts."""

        root: Positional[Path]
        """The folder, or a COCO file."""
        images: Path | None = None
        """Folder of the images; found by the annotations' name by default."""
        decode: bool = False
        """Read every image whole, not its size alone."""

    options = parse(Check, "data check", arguments)
    from condinst_edu.datasets.check import check_folder

    for line in check_folder(options.root, options.images, options.decode):
        print(line)


def data_shapes(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Data:
        """Write the generated shapes as a COCO folder: images, instance and panoptic annotations."""

        out: Path = Path("data/shapes-full")
        """The folder."""
        train: int = 4000
        """Images to learn from."""
        val: int = 200
        """Held-out images."""
        seed: int = 0
        """Another seed gives other images."""
        size: tuple[int, int] = (128, 128)
        """Height and width of an image in pixels."""
        objects: tuple[int, int] = (3, 8)
        """Fewest and most objects in an image."""
        object_size: tuple[float, float] = (18, 54)
        """Smallest and largest extent of an object in pixels."""
        min_visible: float = 0.45
        """Share of its own area that each object shows at least."""
        dominated: float = 0.4
        """Share of the images in which most objects are of one class."""
        same_color: float = 1 / 3
        """Share of the objects in a neighbour's colour."""
        noise: float = 0.035
        """Standard deviation of the pixel noise, white being 1."""
        jobs: int = 2
        """Processes that draw; the result does not depend on it."""

    options = parse(Data, "data shapes", arguments)
    if not 1 <= options.jobs <= 1024:
        raise UserError(f"--jobs is between 1 and 1024 processes, not {options.jobs}")
    from condinst_edu.datasets.shapes import ShapesConfig
    from condinst_edu.datasets.shapes_coco import write_shapes

    try:
        shared = {f.name for f in fields(ShapesConfig)} & {f.name for f in fields(Data)}
        config = ShapesConfig(**{name: getattr(options, name) for name in shared})
        write_shapes(options.out, options.train, options.val, options.seed, config, jobs=options.jobs)
    except ValueError as error:
        raise UserError(str(error)) from None
    print(f"{options.train} + {options.val} images are in {options.out}")
