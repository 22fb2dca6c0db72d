"""Mask R-CNN: torchvision's own forward pass is the reference, with its resizing set to a factor of one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import check_gradients, empty_target, random_targets, seeded
from torch import Tensor
from torchvision.models import detection

from condinst_edu.engine.checkpoint import load_model, save_model
from condinst_edu.engine.evaluate import evaluate
from condinst_edu.engine.predict import predict
from condinst_edu.engine.recipe import build_model, override_model
from condinst_edu.engine.train import open_split, train, train_batches
from condinst_edu.errors import UserError
from condinst_edu.mask_rcnn import MaskRCNN
from condinst_edu.recipes import get_recipe

SAMPLE = Path(__file__).parent.parent / "data" / "shapes"
LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
SIZE = (117, 203)


def tiny_mask_rcnn(num_classes: int = 3, **options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    small = {"backbone_options": {"widths": (4, 8, 12, 16, 16)}, "channels": 16, "box_units": 16, "mask_channels": 8}
    return MaskRCNN(num_classes, **{**small, "proposals": 30, **options})


def random_image(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(3, *size, generator=seeded(seed))


def own_forward(model: MaskRCNN, size: tuple[int, int], *arguments: Any) -> Any:
    """torchvision's forward pass of the same model; its transform is told the size that the image has."""
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    model.transform._skip_resize = True  # no random choice among sizes in training
    torch.manual_seed(1)  # of the samples that train the heads
    return detection.MaskRCNN.__base__.__base__.forward(model, *arguments)


@pytest.mark.parametrize("size", [SIZE, (128, 128), (203, 64), (20, 31)])
@torch.no_grad()
def test_inference_is_torchvisions(size: tuple[int, int]) -> None:
    model = tiny_mask_rcnn().eval()
    image = random_image(size)
    expected = own_forward(model, size, [image])[0]
    found = model([image])[0]
    assert len(found["boxes"]) > 5
    for key in ("boxes", "labels", "scores"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-4)
    assert found["masks"].dtype == torch.bool
    assert found["masks"].shape == (len(found["boxes"]), *size)
    probability = expected["masks"][:, 0]
    assert torch.equal(found["masks"] | ((probability - 0.5).abs() < 1e-4), (probability > 0.5 - 1e-4))
    assert 0 < found["masks"].float().mean() < 1


def test_losses_are_torchvisions() -> None:
    model = tiny_mask_rcnn().train()
    images = [random_image(SIZE, seed) for seed in (0, 1)]
    targets = [random_targets(n, SIZE, seeded(n)) for n in (3, 7)]
    expected = own_forward(model, SIZE, images, targets)
    torch.manual_seed(1)
    losses = model(images, targets)
    assert set(losses) == set(expected) == LOSSES
    for name in LOSSES:
        torch.testing.assert_close(losses[name], expected[name])


def test_images_keep_their_size() -> None:
    """The backbone sees every pixel, normalised, in the upper left corner of the padded batch."""
    model = tiny_mask_rcnn().eval()
    seen: list[Tensor] = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = [random_image(size) for size in (SIZE, (40, 300), (1, 1))]
    with torch.no_grad():
        results = model(images)
    assert seen[0].shape == (3, 3, 128, 320)
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for image, padded, result in zip(images, seen[0], results, strict=True):
        height, width = image.shape[1:]
        torch.testing.assert_close(padded[:, :height, :width], (image - mean) / std)
        assert result["masks"].shape[1:] == (height, width)
        assert padded[:, height:].abs().sum() == padded[:, :, width:].abs().sum() == 0


@torch.no_grad()
def test_output_sizes() -> None:
    model = tiny_mask_rcnn().eval()
    image = random_image(SIZE)
    own, larger = model([image])[0], model([image], output_sizes=[(2 * SIZE[0], 3 * SIZE[1])])[0]
    torch.testing.assert_close(larger["boxes"], own["boxes"] * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    assert torch.equal(larger["scores"], own["scores"])
    assert larger["masks"].shape == (len(own["masks"]), 2 * SIZE[0], 3 * SIZE[1])
    shares = [result["masks"].float().mean(dim=(1, 2)) for result in (own, larger)]
    torch.testing.assert_close(*shares, rtol=0, atol=0.03)
    with pytest.raises(ValueError, match="as many output sizes"):
        model([image], output_sizes=[SIZE, SIZE])


@torch.no_grad()
def test_nothing_found() -> None:
    result = tiny_mask_rcnn(score_threshold=0.99).eval()([random_image(SIZE)], output_sizes=[(50, 60)])[0]
    assert result["boxes"].shape == (0, 4)
    assert (result["masks"].shape, result["masks"].dtype) == ((0, 50, 60), torch.bool)
    assert len(result["labels"]) == len(result["scores"]) == 0


@torch.no_grad()
def test_boxes_lie_in_the_image() -> None:
    model = tiny_mask_rcnn().eval()
    boxes = model([random_image((50, 90)), random_image(SIZE)])[0]["boxes"]  # the first is padded to the second's size
    assert boxes.amin() >= 0
    assert boxes[:, 0::2].amax() <= 90
    assert boxes[:, 1::2].amax() <= 50


def test_gradients_reach_all_parameters() -> None:
    model = tiny_mask_rcnn().train()
    images = [random_image(SIZE), random_image((90, 64))]
    targets = [random_targets(6, SIZE, seeded(0)), random_targets(2, (90, 64), seeded(1))]
    check_gradients(lambda: sum(model(images, targets).values()), model)


@pytest.mark.parametrize("counts", [(0,), (0, 0), (4, 0)])
def test_empty_images_train(counts: tuple[int, ...]) -> None:
    model = tiny_mask_rcnn().train()
    targets = [random_targets(n, SIZE, seeded(n)) if n else empty_target(SIZE) for n in counts]
    images = [random_image(SIZE, seed) for seed in range(len(counts))]
    check_gradients(lambda: sum(model(images, targets).values()), model, all_nonzero=False)
    losses = model(images, targets)
    assert losses["loss_objectness"] > 0  # the background is learnt
    if not any(counts):
        assert losses["loss_box_reg"] == losses["loss_mask"] == losses["loss_rpn_box_reg"] == 0


def test_losses_fall_on_one_image() -> None:
    model = tiny_mask_rcnn().train()
    image, target = random_image(SIZE), random_targets(4, SIZE, seeded(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        losses = model([image], [target])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    # The loss of the boxes rises at first: the better the proposals, the more of them have an object to fit.
    for name in ("loss_classifier", "loss_mask", "loss_objectness"):
        assert sum(h[name] for h in history[-5:]) < 0.8 * sum(h[name] for h in history[:5]), name


def test_wrong_input_is_refused() -> None:
    model = tiny_mask_rcnn().train()
    image, target = random_image(SIZE), random_targets(3, SIZE, seeded(0))
    sampled = {**target, "masks": target["masks"][:, 2::4, 2::4], "centers": torch.zeros(3, 2)}
    with pytest.raises(ValueError, match="full-size masks"):
        model([image], [sampled])
    assert set(model([image], [{**target, "centers": torch.zeros(3, 2)}])) == LOSSES  # full-size: welcome
    with pytest.raises(ValueError, match="one target per image"):
        model([image])
    with pytest.raises(ValueError, match="no masks"):
        model([image], [{"boxes": target["boxes"], "labels": target["labels"]}])
    with pytest.raises(ValueError, match="float tensors"):
        model([(255 * image).byte()], [target])


def test_anchors_fit_the_shapes() -> None:
    """Put at the middle of its box, an anchor overlaps every object of the sample by more than half."""
    recipe = get_recipe("shapes-mask-rcnn")
    model: Any = build_model(recipe.model, 5, recipe.model_args)
    dataset = open_split(dataclasses.replace(recipe, data=SAMPLE), "train")
    boxes = torch.cat([dataset[i][1]["boxes"] for i in range(len(dataset))])
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None]  # (M, 1, 2)
    cells = torch.cat(model.rpn.anchor_generator.cell_anchors)
    anchors = (cells[:, 2:] - cells[:, :2])[None]  # (1, A, 2)
    overlap = torch.minimum(sides, anchors).prod(dim=2)  # of boxes with one centre
    iou = overlap / (sides.prod(dim=2) + anchors.prod(dim=2) - overlap)
    assert len(boxes) > 40
    assert iou.amax(dim=1).amin() > 0.5
    assert iou.amax(dim=1).mean() > 0.7


def test_the_recipe_is_small(tmp_path: Path) -> None:
    recipe = get_recipe("shapes-mask-rcnn")
    model = build_model(recipe.model, 5, recipe.model_args)
    assert sum(p.numel() for p in model.parameters()) < 1_400_000
    save_model(tmp_path / "half", model.half(), recipe, [1, 2, 3, 4, 5], list("abcde"))
    assert (tmp_path / "half").stat().st_size < 3_000_000


def test_train_save_load_evaluate_predict(tmp_path: Path) -> None:
    recipe = get_recipe("shapes-mask-rcnn")
    small = ("backbone_options.widths=(4, 4, 8, 8, 8)", "channels=8", "box_units=8", "mask_channels=8", "proposals=20")
    recipe = override_model(dataclasses.replace(recipe, data=SAMPLE, iterations=3, batch_size=2), small)
    model = train(recipe, tmp_path / "run", show_progress=False)
    loaded = load_model(tmp_path / "run" / "model.safetensors")
    weights = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    image = random_image(SIZE)
    with torch.no_grad():
        before, after = model([image])[0], loaded.model([image])[0]
    for key in before:
        assert torch.equal(before[key], after[key])
    held_out = open_split(recipe, "val", loaded.category_ids)
    scores = evaluate(loaded.model, held_out, short_side=None, max_size=None)
    assert set(scores) >= {"box", "mask"}
    photo = next((SAMPLE / "val").glob("*.png"))
    assert predict(loaded, [photo], tmp_path / "pictures", 0.0).is_file()
    with pytest.raises(UserError, match="mask-rcnn has no argument 'bottom'"):
        override_model(recipe, ("bottom.convs=2",))


def test_training_reads_full_size_masks() -> None:
    recipe = dataclasses.replace(get_recipe("shapes-mask-rcnn"), data=SAMPLE, batch_size=2)
    model = build_model(recipe.model, 5, recipe.model_args)
    images, targets = next(iter(train_batches(recipe, open_split(recipe, "train"), model, 0, 1)))
    assert all(t["masks"].shape[1:] == i.shape[1:] for i, t in zip(images, targets, strict=True))
    assert not any("centers" in target for target in targets)
