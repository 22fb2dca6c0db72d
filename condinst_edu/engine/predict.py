"""Photographs in, pictures with boxes, masks, labels and scores out, and the same as COCO results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageColor
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from condinst_edu.datasets.batching import eval_image
from condinst_edu.datasets.coco import read_image
from condinst_edu.engine.checkpoint import Trained
from condinst_edu.engine.evaluate import encode_results
from condinst_edu.engine.panoptic import predict_panoptic
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.progress import progress_bar

# Okabe and Ito's colours, which stay apart for colour-blind eyes.
COLORS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF"]


def predict(
    trained: Trained,
    images: Sequence[Path],
    out: Path,
    min_score: float = 0.3,
    device: str = "cpu",
    panoptic: bool = False,
) -> Path:
    """Segment photographs; writes one PNG each and results.json to `out`, and returns the latter's path.

    min_score: what is drawn; results.json holds all detections, in pixels of the upright photograph, `image_id`
    counting the photographs from 1, with `file_name` beside it. panoptic: things and stuff, see `predict_panoptic`.
    Errors: UserError for an unreadable photograph (nothing of it is written) or folder.
    """
    for path in images:
        if not path.is_file():
            raise UserError(f"no such image: {path}")
    names = picture_names(images)
    for name in names:
        if (out / name).resolve() in {path.resolve() for path in images}:
            raise UserError(f"{out / name} is one of the photographs: name another folder to write to")
    if panoptic:
        return predict_panoptic(trained, images, names, out, device)
    writable_folder(out)
    model = trained.model.to(device)
    results: list[dict[str, Any]] = []
    with progress_bar() as progress:
        task = progress.add_task("predicting", total=len(images), note="")
        for number, (path, name) in enumerate(zip(images, names, strict=True), start=1):
            image = read_image(path, upright=True)
            found = detect(model, image, trained.recipe, device)
            found_here = encode_results(found, number, trained.category_ids)
            results += [{**result, "file_name": path.name} for result in found_here]
            picture = draw(image, found, trained.class_names, min_score)
            with whole_file(out / name) as temporary:
                Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, format="png")
            progress.update(task, completed=number, note=path.name)
    with whole_file(out / "results.json") as temporary:
        temporary.write_text(json.dumps(results))
    return out / "results.json"


@torch.inference_mode()
def detect(model: torch.nn.Module, image: Tensor, recipe: dict[str, Any], device: str = "cpu") -> dict[str, Tensor]:
    """Detections of a photograph (3, H, W) uint8, in its own pixels, at the size that the recipe evaluates at."""
    resized = eval_image(image, recipe["test_short_side"], recipe["test_max_size"] or recipe["max_size"])
    size = (image.shape[1], image.shape[2])
    found = model([resized.to(device)], output_sizes=[size])[0]
    return {key: value.cpu() for key, value in found.items() if isinstance(value, Tensor)}


def draw(image: Tensor, found: dict[str, Tensor], class_names: list[str], min_score: float) -> Tensor:
    """The photograph (3, H, W) uint8 with what was found in it at `min_score` or above."""
    keep = found["scores"] >= min_score
    if not keep.any():
        return image
    colors = [COLORS[i % len(COLORS)] for i in range(int(keep.sum()))]
    labels = [
        f"{class_names[label - 1]} {score:.2f}"
        for label, score in zip(found["labels"][keep].tolist(), found["scores"][keep].tolist(), strict=True)
    ]
    if "masks" in found:
        painted = image.clone()
        for mask, color in reversed(list(zip(found["masks"][keep], colors, strict=True))):  # the surest is on top
            painted[:, mask] = torch.tensor(ImageColor.getrgb(color), dtype=torch.uint8)[:, None]
        image = ((image.int() + painted.int()) // 2).to(torch.uint8)
    return draw_bounding_boxes(image, found["boxes"][keep], labels, colors=colors)


def picture_names(images: Sequence[Path]) -> list[str]:
    """The photographs' own names with .png; all with their number in front where two would share one."""
    stems = [path.stem for path in images]
    if len({stem.lower() for stem in stems}) == len(stems):
        return [f"{stem}.png" for stem in stems]
    return [f"{number:03}-{stem}.png" for number, stem in enumerate(stems, start=1)]
