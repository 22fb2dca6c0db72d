"""BlendMask with Panoptic-FPN's branch against the numbers of the official code: maps, fusion, losses, gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import official, official_json
from official_model import as_image, official_model, official_numbers
from test_official import (
    LOSSES,
    check_first_entries,
    check_gradients,
    check_numbers,
    check_results,
    close,
    read_input,
    statistics,
    training_batch,
)
from torch import Tensor

from condinst_edu.engine.checkpoint import save_model
from condinst_edu.errors import UserError
from condinst_edu.layers.upsample import resize_logits
from condinst_edu.official import load_official, official_recipe, open_official
from condinst_edu.official_names import official_shapes
from condinst_edu.panoptic import PanopticModel

NAME = "BlendMask_Panoptic_R_50_1x"


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools under numpy 2
@pytest.mark.parametrize("image", ["synthA", pytest.param("photo2_small", marks=pytest.mark.slow)])
def test_inference(tmp_path: Path, image: str) -> None:
    """Instances as those of BlendMask, the branch's logits, and the same segment for every pixel."""
    numbers = official(f"infer_{NAME}_{image}.npz", part=True)
    texts = official_json(f"infer_{NAME}_{image}.json", part=True)
    rgb, size = read_input(image)
    model: Any = official_model(NAME, tmp_path)
    input_size = (rgb.shape[0], rgb.shape[1])
    with torch.no_grad():
        ours = official_numbers(model.instances, [as_image(rgb)], [size])
        logits = model.logits()
        (result,) = model([as_image(rgb)], output_sizes=[size])
    # Scores that tie but for rounding come in another order.
    blended = ours.pop("blend_logits")
    assert check_numbers(numbers, ours) >= 15
    for row in numbers.get("blend_logits", ()):
        assert (blended - torch.from_numpy(row)).abs().amax(dim=1).min() < 6e-3
    check_results(numbers, ours["found"], texts, ties=True)

    pixels = F.interpolate(logits, scale_factor=4, mode="bilinear")  # with the padding
    close("sem_seg", pixels[:, ::9, ::8, ::8], numbers["sem_seg_sub"], 1e-3, 1e-4)
    ten = statistics(pixels)
    for i in range(10):
        close(f"sem_seg[{i}]", ten[i], numbers["sem_seg_stats"][i], 1e-3 * (pixels.numel() if i == 2 else 1), 1e-4)
    classes = resize_logits(logits[0], 4, input_size, size, aligned=False).argmax(dim=0)
    assert (classes != torch.from_numpy(numbers["im0_sem_seg_argmax"])).float().mean() < 1e-3
    wrong = result["panoptic"] != torch.from_numpy(numbers["im0_panoptic_seg"]).long()
    assert wrong.float().mean() < 1e-3
    check_segments(result["segments_info"], texts["im0_panoptic_info"])


def check_segments(ours: list[dict[str, Any]], official_rows: list[dict[str, Any]]) -> None:
    """Ids, categories in their order, scores of things, areas of stuff to a thousandth."""
    assert len(ours) == len(official_rows) > 2
    for row, expected in zip(ours, official_rows, strict=True):
        assert (row["id"], bool(row["isthing"])) == (expected["id"], expected["isthing"])
        label = expected["category_id"] + (1 if expected["isthing"] else 80)  # stuff counts from 1, 0 being things
        assert row["category_id"] == label
        if expected["isthing"]:
            assert row["score"] == pytest.approx(expected["score"], abs=1e-4)
        else:
            assert row["area"] == pytest.approx(expected["area"], rel=1e-3, abs=3)


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    """Every loss and the gradient of every trained parameter, the branch's among them."""
    expected, numbers = official_json(f"train_{NAME}_A.json"), official(f"train_{NAME}_A.npz")
    model: Any = official_model(NAME, tmp_path).train()
    images, targets = training_batch("A")
    things = [{**target, "semantic": target["basis_sem"]} for target in targets]
    losses = model.instances(images, things)
    file = official("train_inputs.npz")
    maps = [torch.from_numpy(file[f"A{i}_sem_seg"]).long() for i in range(2)]
    stuff = [labels.masked_fill(labels == 255, -1) for labels in maps]
    losses["loss_stuff"] = model.weight * model.stuff_loss(model.logits(), targets, stuff)
    names = {theirs: ours for theirs, ours in LOSSES.items() if theirs != "loss_sem"} | {"loss_sem_seg": "loss_stuff"}
    for theirs, ours in names.items():
        assert losses[ours].item() == pytest.approx(expected["losses"][theirs], abs=1e-4), theirs
    assert sum(losses.values()).item() == pytest.approx(expected["losses"]["total"], abs=3e-4)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    gradients: dict[str, Tensor] = {}
    for theirs, (ours, _) in official_shapes(model).items():
        if (parameter := parameters.get(ours)) is not None and parameter.grad is not None:
            gradients[theirs] = parameter.grad
    assert any(key.startswith("panoptic_module.") for key in gradients)
    check_gradients(expected["grad_norms"], gradients, 5e-3)
    check_first_entries(model, gradients, numbers, 0.05)


def test_file_by_its_name(tmp_path: Path) -> None:
    """By name or config path, ours or theirs, with COCO's 133 classes; it was not published."""
    model = official_model(NAME, tmp_path)
    from condinst_edu.official import COCO, COCO_STUFF, find_official

    assert isinstance(model, PanopticModel)
    assert not model.training
    classes = {**COCO, **COCO_STUFF}
    recipe = official_recipe(find_official("BlendMask/Panoptic/R_50_1x"))
    save_model(tmp_path / "ours.safetensors", model, recipe, list(classes), list(classes.values()))
    again = open_official(NAME, tmp_path / "ours.safetensors")
    assert len(again.category_ids) == 133
    assert (again.class_names[0], again.class_names[80], again.class_names[-1]) == ("person", "banner", "rug-merged")
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())
    with pytest.raises(UserError, match="is not among the published models: give the path of its file"):
        load_official(NAME)
    with pytest.raises(UserError, match="has things and stuff: num_classes cannot be changed"):
        load_official(NAME, num_classes=3)
