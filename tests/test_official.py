"""Our models with official weights against numbers that the official code produced, from the image to every loss."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import official, official_file, official_json
from official_model import as_image, flip_coordinates, official_model, official_numbers
from pycocotools import mask as coco_mask
from torch import Tensor

from condinst_edu.blendmask import BlendMask
from condinst_edu.fcos import Assignment, Outputs
from condinst_edu.official_names import official_shapes

CONDINST, FCOS_R50, BIFPN = "CondInst_MS_R_50_1x", "FCOS_R_50_1x", "CondInst_MS_R_50_BiFPN_3x_sem"
SEMANTIC, REAL_TIME = "CondInst_MS_R_50_3x_sem", "FCOS_RT_MS_DLA_34_4x_syncbn_shared_towers"
BLENDMASK = "BlendMask_R_50_1x"

# What float32 may differ by, absolutely; beside it 1e-4 relatively. Convolutions computed in another order differ so.
TOLERANCES = {
    "input": 5e-4,
    "fpn": 5e-4,
    "cls_logits": 1e-3,
    "bbox_reg": 1e-3,
    "ctrness": 1e-3,
    "top_feats": 5e-4,
    "mask_head_params": 5e-4,
    "mask_feats": 2e-3,
    "mask_logits": 3e-2,
    "mask_scores_s4": 5e-3,
    "mask_inst_scores": 1e-4,
    "mask_inst": 0,
    "rel_coords": 1e-5,
    "bases": 2e-3,
    "attn": 5e-4,
    "roi_bases": 6e-3,
    "blend_logits": 6e-3,
}

# BiFPN rounds in more layers, and the maps of this FPN are five times as large.
FACTORS = {BIFPN: 2.5, REAL_TIME: 2.5}

Get = Callable[[str], Any]


@pytest.fixture(scope="module")
def get(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """Models with the golden weights by name, each built once."""
    models: dict[str, Any] = {}

    def model_of(name: str) -> Any:
        if name not in models:
            models[name] = official_model(name, tmp_path_factory.mktemp("official"))
        return models[name].eval()

    yield model_of
    models.clear()


def close(key: str, ours: Tensor, expected: np.ndarray, atol: float, rtol: float) -> None:
    expected_ = torch.from_numpy(np.asarray(expected)).double()
    assert ours.shape == expected_.shape, f"{key}: {tuple(ours.shape)} instead of {tuple(expected_.shape)}"
    excess = ((ours.double() - expected_).abs() - rtol * expected_.abs()).max().item() if expected_.numel() else 0
    assert excess <= atol, f"{key} differs by {excess:.2e} more than {rtol:.0e} of its values, instead of {atol:.0e}"


def statistics(x: Tensor) -> Tensor:
    """Ten numbers of a tensor: mean, standard deviation, sum of absolute values, extremes, values at five places."""
    flat = x.double().flatten()
    places = torch.tensor([int((len(flat) - 1) * share) for share in (0, 0.25, 0.5, 0.75, 1)])
    ten = [flat.mean(), flat.std(correction=0), flat.abs().sum(), flat.min(), flat.max(), *flat[places]]
    return torch.stack(ten)


def selection(numbers: dict[str, np.ndarray], key: str, x: Tensor) -> Tensor:
    """The part of a whole tensor that the golden file holds under a key."""
    if key.endswith("_ch"):
        name = key.removesuffix("_ch")
        if name.startswith("fpn"):
            channels, step = numbers["fpn_channel_subset"], 1
            if x.shape[-2] * x.shape[-1] > 6000:
                channels, step = channels[:3], 4
        else:
            channels, step = numbers[f"{key}_index"], int(numbers[f"{name}_stride"])
        x = x[:, torch.from_numpy(channels), ::step, ::step]
    if key == "bases" and x.shape != numbers[key].shape:
        x = x[..., ::2, ::2]
    steps = numbers.get(f"{key}_subsampling", np.ones(0, int)).tolist()
    for axis, step in enumerate(steps, start=x.dim() - len(steps)):
        x = x.index_select(axis, torch.arange(0, x.shape[axis], step))
    return x[: len(numbers[key])]


def check_numbers(numbers: dict[str, np.ndarray], ours: dict[str, Any], factor: float = 1, rtol: float = 1e-4) -> int:
    """Everything that a golden file holds of a network's inside; returns how many tensors were compared."""
    compared = 0
    for key, expected in numbers.items():
        name = re.sub(r"(_ch|_stats)$", "", key)
        if name not in ours or key.endswith(("_index", "_stride", "_subsampling")):
            continue
        tolerance = next(value for prefix, value in TOLERANCES.items() if name.startswith(prefix)) * factor
        x = ours[name].detach()
        if key.endswith("_stats"):
            single = expected.ndim == 1
            ten = statistics(x) if single else torch.stack([statistics(row) for row in x[: len(expected)]])
            count = x.numel() if single else x[0].numel()
            for i in range(10):
                close(f"{key}[{i}]", ten[..., i], expected[..., i], tolerance * (count if i == 2 else 1), rtol)
        else:
            close(key, selection(numbers, key, x), expected, tolerance, rtol)
        compared += 1
    return compared


def check_results(
    numbers: dict[str, np.ndarray],
    found: list[dict[str, Tensor]],
    rles: Any = None,
    ties: bool = False,
    score_atol: float = 1e-4,
) -> None:
    """The same detections in the same order, boxes within 0.02 pixels; masks where they are known.

    ties: scores that are the same but for rounding may come in another order.
    """
    for i, result in enumerate(found):
        if ties:
            close("scores", result["scores"], numbers[f"im{i}_scores"], score_atol, 0)
            result = reorder(result, numbers[f"im{i}_boxes"], numbers[f"im{i}_classes"] + 1)
        assert result["labels"].tolist() == (numbers[f"im{i}_classes"] + 1).tolist()
        close("boxes", result["boxes"], numbers[f"im{i}_boxes"], 0.02, 0)
        close("scores", result["scores"], numbers[f"im{i}_scores"], score_atol, 0)
        if rles is None:
            continue
        expected = torch.stack([torch.from_numpy(coco_mask.decode(rle)).bool() for rle in rles[f"im{i}_rle"]])
        masks = result["masks"][: len(expected)]
        union = (masks | expected).sum(dim=(1, 2)).clamp(min=1)
        wrong = (masks ^ expected).sum(dim=(1, 2))
        # Of a mask of a few pixels, one that is as good as on the threshold is more than 0.005.
        near = numbers.get(f"im{i}_mask_pixels_within_1e-3_of_half", result.get("near_half"))
        allowed = torch.zeros(len(masks)) if near is None else torch.as_tensor(near)[: len(masks)]
        assert ((1 - wrong / union >= 0.995) | (wrong <= allowed)).all()
        if near is not None:
            areas = result["masks"].sum(dim=(1, 2))
            off = (areas - torch.from_numpy(numbers[f"im{i}_mask_area"])).abs()
            assert (off <= torch.maximum(torch.as_tensor(near), 0.005 * areas)).all()


def sort_instances(numbers: dict[str, np.ndarray], ours: dict[str, Any], atol: float) -> None:
    """Bring the instances that enter the mask head into the official order where scores tie."""
    close("scores", ours["mask_inst_scores"], numbers["mask_inst_scores"], atol, 0)
    keys = [
        torch.cat([n["mask_inst_locations"], n["mask_inst_classes"][:, None]], dim=1) for n in (ours, tensors(numbers))
    ]
    same = (keys[1][:, None] == keys[0]).all(dim=2)  # (official, ours)
    assert (same.sum(dim=0) == 1).all()
    assert (same.sum(dim=1) == 1).all()
    for key in ours:
        if key.startswith(("mask_inst", "mask_head", "mask_logits", "mask_scores", "rel_coords")):
            ours[key] = ours[key][same.int().argmax(dim=1)]


def tensors(numbers: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in numbers.items()}


def reorder(result: dict[str, Tensor], boxes: np.ndarray, labels: np.ndarray) -> dict[str, Tensor]:
    """The detections in the order of those given, each of which takes the nearest box of its class."""
    distance = (result["boxes"] - torch.from_numpy(boxes)[:, None]).abs().amax(dim=2)
    other = result["labels"] != torch.from_numpy(labels)[:, None]
    index = distance.masked_fill(other, torch.inf).argmin(dim=1)
    assert len(set(index.tolist())) == len(index) == len(result["labels"])
    return {key: value[index] for key, value in result.items()}


def read_input(name: str) -> tuple[np.ndarray, tuple[int, int]]:
    if name.endswith("_800"):
        file = official(f"inputs_{name}.npz")
        rgb, size = file["rgb"], file["out_hw"]
    else:
        file = official("inputs_small.npz")
        rgb, size = file[f"{name}_rgb"], file[f"{name}_out_hw"]
    return rgb, (int(size[0]), int(size[1]))


# --------------------------------------------------------------------------------------------------------- inference

SLOW = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools under numpy 2
@pytest.mark.parametrize(
    ("name", "image"),
    [
        (FCOS_R50, "synthA"),
        pytest.param(FCOS_R50, "photo2_small", marks=SLOW),
        pytest.param(FCOS_R50, "photo2_800", marks=SLOW),
        (CONDINST, "synthA"),
        (CONDINST, "photo2_small"),
        pytest.param(CONDINST, "photo2_800", marks=SLOW),
        pytest.param(SEMANTIC, "synthA", marks=SLOW),
        (BIFPN, "synthA"),
        pytest.param(BIFPN, "photo2_small", marks=SLOW),
        pytest.param(BIFPN, "photo2_800", marks=SLOW),
        (REAL_TIME, "synthA"),
        pytest.param(REAL_TIME, "photo2_small", marks=SLOW),
        (BLENDMASK, "synthA"),
        pytest.param(BLENDMASK, "photo2_small", marks=SLOW),
        pytest.param(BLENDMASK, "photo2_800", marks=SLOW),
    ],
)
def test_inference(get: Get, name: str, image: str) -> None:
    """Every map, the controller's output, the bottom features, and the detections: one image, padded or not."""
    numbers = official(f"infer_{name}_{image}.npz", part=True)
    rles = None if name.startswith("FCOS") else official_json(f"infer_{name}_{image}.json", part=True)
    rgb, size = read_input(image)
    model = get(name)
    with torch.no_grad():
        ours = official_numbers(model, [as_image(rgb)], [size])
    factor = FACTORS.get(name, 1)
    ties = image.endswith("_800")  # scores that rounding may swap; the small images have none
    if ties and name.startswith("CondInst"):
        sort_instances(numbers, ours, 1e-4 * factor)
    assert check_numbers(numbers, ours, factor) >= 15
    if name == REAL_TIME:  # one detection has a score within float32's rounding of the threshold
        with torch.no_grad():
            ours["found"] = model.double()([as_image(rgb, torch.float64)], output_sizes=[size])
        model.float()
    check_results(numbers, ours["found"], rles, ties, 1e-4 * factor)


VARIANTS: dict[str, dict[str, Any]] = {
    "lowthr": {"score_threshold": 0.015, "detections": -1},
    "smalltopk": {"candidates": 40, "detections": 25, "nms_threshold": 0.35, "score_threshold": 0.02},
    "ctrthresh": {"threshold_product": True},
    "noctrthresh": {"threshold_product": False},
}


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "variant"),
    [(FCOS_R50, "ctrthresh"), (FCOS_R50, "lowthr"), (CONDINST, "lowthr"), (CONDINST, "noctrthresh")],
)
def test_inference_with_other_thresholds(get: Get, monkeypatch: pytest.MonkeyPatch, name: str, variant: str) -> None:
    numbers = official(f"infer_{name}_synthA_{variant}.npz")
    rles = official_json(f"infer_{name}_synthA_{variant}.json") if name == CONDINST else None
    model = get(name)
    for option, value in VARIANTS[variant].items():
        monkeypatch.setattr(getattr(model, "fcos", model), option, value)
    rgb, size = read_input("synthA")
    with torch.no_grad():
        found = model([as_image(rgb)], output_sizes=[size])
    check_results(numbers, found, rles, ties=variant == "lowthr")


@pytest.mark.parametrize("name", [FCOS_R50, CONDINST, pytest.param(BIFPN, marks=SLOW), BLENDMASK])
def test_inference_in_float64(get: Get, name: str) -> None:
    """Rounding hides no difference here: agreement is a thousand times as close as in float32."""
    numbers = official(f"infer64_{name}_synthA.npz", part=True)
    rgb, size = read_input("synthA")
    model = get(name).double()
    try:
        with torch.no_grad():
            ours = official_numbers(model, [as_image(rgb, torch.float64)], [size])
    finally:
        model.float()
    assert check_numbers(numbers, ours, 1e-5, 1e-9) >= 15
    check_results(numbers, ours["found"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [FCOS_R50, CONDINST, BIFPN, BLENDMASK])
@pytest.mark.parametrize("image", ["synthA", "synthB", "photo1_small", "photo2_small"])
def test_number_of_detections(get: Get, name: str, image: str) -> None:
    """On all four small inputs, of which two have an odd size: as many as the official code finds."""
    expected = official_json("stability_float64.json")[f"{name}/{image}"]
    rgb, size = read_input(image)
    with torch.no_grad():
        (found,) = get(name)([as_image(rgb)], output_sizes=[size])
    assert len(found["labels"]) == expected["n_float64"] == expected["n_float32"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [FCOS_R50, CONDINST, BLENDMASK])
def test_batches(get: Get, name: str) -> None:
    """An image in a batch gives what it gives alone, padded to the same size; each with its own output size."""
    official_file("stability_float64.json")  # there is synthB only where the whole folder is
    images = [as_image(read_input(image)[0], torch.float64) for image in ("synthA", "synthB")]
    sizes = [(256, 320), (200, 250)]
    model = get(name).double()
    with torch.no_grad():
        together = model(images, output_sizes=sizes)
        alone = [model([image], output_sizes=[size])[0] for image, size in zip(images, sizes, strict=True)]
    model.float()
    for ours, expected in zip(together, alone, strict=True):
        assert ours.keys() == expected.keys()
        for key in ours:
            assert ours[key].shape == expected[key].shape
            if key != "masks":
                assert torch.allclose(ours[key].double(), expected[key].double(), rtol=1e-9, atol=1e-9)
            else:
                assert (ours[key] != expected[key]).sum() <= 2  # pixels whose score is 0.5 but for rounding


# ---------------------------------------------------------------------------------------------------------- training

LOSSES = {
    "loss_fcos_cls": "loss_class",
    "loss_fcos_loc": "loss_box",
    "loss_fcos_ctr": "loss_centerness",
    "loss_mask": "loss_mask",
    "loss_sem": "loss_semantic",
    "loss_basis_sem": "loss_semantic",
}


def training_batch(name: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images and targets of a batch of the golden inputs."""
    file = official("train_inputs.npz")
    count = sum(f"{name}{i}_rgb" in file for i in range(2))
    targets = [
        {
            "boxes": torch.from_numpy(file[f"{name}{i}_boxes"]),
            "labels": torch.from_numpy(file[f"{name}{i}_classes"]) + 1,
            "masks": torch.from_numpy(file[f"{name}{i}_masks"]),
            # BlendMask's labels, which the official code reads at the corner of each cell of 8 pixels.
            "basis_sem": torch.from_numpy(file[f"{name}{i}_basis_sem"]).long()[::8, ::8],
        }
        for i in range(count)
    ]
    return [as_image(file[f"{name}{i}_rgb"], dtype) for i in range(count)], targets


def train_step(model: Any, dtype: torch.dtype = torch.float32) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of batch A under their official names; the model's buffers move on as in training."""
    images, targets = training_batch("A", dtype)
    if blend := isinstance(model, BlendMask):
        targets = [{**target, "semantic": target["basis_sem"]} for target in targets]
    model.train().zero_grad(set_to_none=True)
    losses = model(images, targets)
    sum(losses.values()).backward()
    names = {ours: theirs for theirs, ours in LOSSES.items() if theirs != ("loss_sem" if blend else "loss_basis_sem")}
    gradients = {}
    parameters = dict(model.named_parameters())
    for theirs, (ours, shape) in official_shapes(model).items():
        if (parameter := parameters.get(ours)) is not None and parameter.grad is not None:
            part = parameter.grad
            gradients[theirs] = part[int(theirs.split(".")[-2])].view(1) if theirs.endswith(".scale") else part.clone()
            assert tuple(gradients[theirs].shape) == shape
    model.zero_grad(set_to_none=True)
    return {names[key]: loss.item() for key, loss in losses.items()}, gradients


def by_object(assignment: Assignment, outputs: Outputs, limit: int) -> tuple[Tensor, Tensor]:
    """The official sampler TOPK_PROPOSALS_PER_IM: of each object equally many locations, by the best class's score."""
    score = outputs.logits.sigmoid().amax(dim=2) * outputs.centerness.sigmoid()
    chosen = torch.zeros_like(assignment.labels, dtype=torch.bool)
    for i, labels in enumerate(assignment.labels):
        objects = assignment.matched[i][labels > 0].unique().tolist()
        for number in objects:
            index = ((labels > 0) & (assignment.matched[i] == number)).nonzero().flatten()
            best = score[i, index].argsort(descending=True)[: max(limit // len(objects), 1)]
            chosen[i, index[best]] = True
    most = int(chosen.sum(dim=1).max())
    index = chosen.int().topk(most, dim=1).indices
    return index, chosen.gather(1, index)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *((name, "") for name in (FCOS_R50, CONDINST, SEMANTIC, BIFPN, BLENDMASK)),
        (CONDINST, "_nolimit"),
        (CONDINST, "_topk16"),
    ],
)
@pytest.mark.slow
def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variant: str) -> None:
    """Every loss, the gradient of every trainable parameter, and what batch norm remembers, on two padded images."""
    expected = official_json(f"train_{name}_A{variant}.json")
    numbers = official(f"train_{name}_A{variant}.npz")
    model = official_model(name, tmp_path)
    if variant == "_topk16":
        monkeypatch.setattr(
            "condinst_edu.condinst.sample_locations", lambda outputs, assignment, *_: by_object(assignment, outputs, 16)
        )
    losses, gradients = train_step(model)
    assert losses.keys() == expected["losses"].keys() - {"total"}
    for key, loss in losses.items():
        assert loss == pytest.approx(expected["losses"][key], abs=1e-4), key
    norms = expected["grad_norms"]
    if name == BIFPN:
        # Behind a batch norm the length of the fusion weights' vector does not matter: their gradients are small
        # differences of large numbers, in which the official code itself differs by half between float32 and float64.
        assert gradients.keys() == norms.keys()
        norms = {key: norm for key, norm in norms.items() if ".weights_f" not in key}
        gradients = {key: gradients[key] for key in norms}
    check_gradients(norms, gradients, 2e-2 if name == BIFPN else 5e-3)
    for key, after in numbers.items():
        if key.startswith("after:") and not key.endswith("_iter"):
            ours = model.state_dict()[official_shapes(model)[key.split(":")[1]][0]]
            close(key, ours, after, 1e-4, 1e-4)


def check_gradients(expected: dict[str, float], gradients: dict[str, Tensor], relative: float) -> None:
    """The same parameters are trained, with gradients of the same lengths."""
    assert gradients.keys() == expected.keys()
    rounding = 1e-6 * sum(norm**2 for norm in expected.values()) ** 0.5  # a bias before batch norm has none at all
    for key, norm in expected.items():
        assert gradients[key].norm().item() == pytest.approx(norm, rel=relative, abs=rounding), key


def check_first_entries(model: Any, gradients: dict[str, Tensor], numbers: dict[str, np.ndarray], atol: float) -> None:
    """The first 64 entries of some gradients themselves; atol: of the difference's length, relative to theirs."""
    for key, entries in numbers.items():
        if key.startswith("grad_head64:"):
            name, expected = key.split(":")[1], torch.from_numpy(entries).double()
            gradient = gradients[name]
            if name.startswith("controller."):
                gradient = flip_coordinates(model, gradient.movedim(0, -1)).movedim(-1, 0)
            difference = gradient.flatten()[: len(expected)] - expected
            assert difference.norm() <= atol * expected.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [FCOS_R50, CONDINST, SEMANTIC, BIFPN, BLENDMASK])
def test_training_in_float64(tmp_path: Path, name: str) -> None:
    """The official code computes its focal and centre-ness losses in float32 in any case, and their gradients."""
    expected = official_json("train64_A.json")[name]
    model = official_model(name, tmp_path).double()
    losses, gradients = train_step(model, torch.float64)
    for key, loss in losses.items():
        assert loss == pytest.approx(expected["losses_float64"][key], abs=3e-6), key
    check_gradients(expected["grad_norms_float64"], gradients, 1e-4 if name == BIFPN else 1e-5)
    # These are known in float32 alone, whose rounding grows on the way back through the network.
    check_first_entries(model, gradients, official(f"train_{name}_A.npz"), 0.05 if name == BIFPN else 0.01)
