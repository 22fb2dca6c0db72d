"""Training, checkpoints and prediction on the written sample of shapes."""

import contextlib
import dataclasses
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import Record, random_targets, seeded, tiny_condinst
from torch import Tensor, nn

from condinst_edu.engine.checkpoint import load_model, load_run, load_state, plain, save_model
from condinst_edu.engine.predict import draw, picture_names, predict
from condinst_edu.engine.recipe import Recipe, build_model, override_model
from condinst_edu.engine.schedule import build_optimizer, rate_factor, set_rate
from condinst_edu.engine.state import start_state
from condinst_edu.engine.train import check_shares, open_split, step, train
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file
from condinst_edu.mask_head import can_compile
from condinst_edu.recipes import get_recipe
from condinst_edu.recipes.shapes import shapes_condinst

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "shapes"


def tiny_recipe(**changes: Any) -> Recipe:
    """A model of a few thousand parameters on the written sample."""
    recipe = override_model(
        shapes_condinst(),
        (
            "backbone_options.widths=(4, 4, 8, 8, 8)",
            "channels=8",
            "head.tower_convs=1",
            "bottom.channels=8",
            "bottom.convs=1",
        ),
    )
    settings = {"data": SAMPLE, "iterations": 6, "batch_size": 2, "save_every": 2, "log_every": 1, "ema": 0.9}
    return dataclasses.replace(recipe, **{**settings, **changes})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    out = tmp_path_factory.mktemp("run")
    return out, weights_of(train(tiny_recipe(), out, show_progress=False))


class Stop(Exception):
    pass


@pytest.mark.parametrize("sampling", ["score", "random"])
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(
    trained: tuple[Path, dict[str, Tensor]], tmp_path: Path, sampling: str
) -> None:
    """Also where the masks to train are drawn at random, which a run that goes on draws as if it had not stopped."""
    recipe, whole = tiny_recipe(), trained[1]
    if sampling == "random":
        recipe = override_model(recipe, ("sampling=random", "mask_limit=3"))
        whole = weights_of(train(recipe, tmp_path / "whole", show_progress=False))

    def stop_at(iteration: int) -> Any:
        def on_step(done: int, model: nn.Module) -> None:
            if done == iteration:
                raise Stop

        return on_step

    for moment in (3, 5):  # after the checkpoints of iterations 2 and 4
        with pytest.raises(Stop):
            train(recipe, tmp_path, on_step=stop_at(moment), show_progress=False)
    resumed = weights_of(train(recipe, tmp_path, show_progress=False))
    assert_same_weights(resumed, whole)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_another_seed_gives_other_weights(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    other = weights_of(train(tiny_recipe(seed=1), tmp_path, show_progress=False))
    assert any(not torch.equal(other[name], trained[1][name]) for name in other)


def test_loader_processes_do_not_change_the_result(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    assert_same_weights(weights_of(train(tiny_recipe(workers=2), tmp_path, show_progress=False)), trained[1])


def test_running_mean_is_what_is_saved(tmp_path: Path) -> None:
    """Against the mean worked out step by step from the weights themselves."""
    recipe = tiny_recipe(ema=0.5, iterations=3)
    seen: list[dict[str, Tensor]] = []
    plain = dataclasses.replace(recipe, ema=0.0)
    train(plain, tmp_path / "plain", on_step=lambda _, model: seen.append(weights_of(model)), show_progress=False)
    torch.manual_seed(recipe.seed)
    start = weights_of(build_model(recipe.model, 5, recipe.model_args))
    averaged = weights_of(train(recipe, tmp_path / "mean", show_progress=False))
    name = "fcos.head.class_logits.weight"
    expected = seen[0][name]  # torch's averaged model takes over the first weights whole
    for weights in seen[1:]:
        expected = 0.5 * expected + 0.5 * weights[name]
    assert not torch.equal(start[name], seen[0][name])
    torch.testing.assert_close(averaged[name], expected)


def test_a_checkpoint_of_another_run_is_refused(trained: tuple[Path, dict[str, Tensor]]) -> None:
    out, _ = trained
    with pytest.raises(UserError, match=r"belongs to another run: lr was 0\.\d+ and is now 0\.5"):
        train(tiny_recipe(lr=0.5), out, show_progress=False)
    with pytest.raises(UserError, match="trained on other images or classes"):
        load_run(out / "last.pt", tiny_recipe(), {"category_ids": [7, 8]})


@pytest.mark.parametrize("name", ["last.pt", "model.safetensors"])
def test_a_cut_off_checkpoint_is_refused(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path, name: str) -> None:
    whole = (trained[0] / name).read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"nonsense"):
        (tmp_path / name).write_bytes(part)
        reads: dict[str, Callable[[Path], Any]] = {
            "last.pt": lambda path: load_run(path, tiny_recipe(), {}),
            "model.safetensors": load_model,
        }
        with pytest.raises(UserError, match="is no whole"):
            reads[name](tmp_path / name)


def test_a_checkpoint_from_before_a_field_was_there(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    """It was trained with what is now the default: a run with another value is another run."""
    state = torch.load(trained[0] / "last.pt")
    del state["recipe"]["vertical_flip"]
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"another run: vertical_flip was 0\.0 and is now 0\.5"):
        train(tiny_recipe(vertical_flip=0.5), tmp_path, show_progress=False)
    assert_same_weights(weights_of(train(tiny_recipe(), tmp_path, show_progress=False)), trained[1])


def test_the_scale_of_losses_is_kept(tmp_path: Path) -> None:
    recipe = tiny_recipe(amp="fp16", ema=0.0)
    data = open_split(recipe, "train")
    first = start_state(recipe, data, tmp_path, "cpu")
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 48.0})
    first.save(tmp_path)
    assert start_state(recipe, data, tmp_path, "cpu").scaler.get_scale() == 48


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path, value: float) -> None:
    recipe = tiny_recipe()
    state = start_state(recipe, open_split(recipe, "train"), tmp_path, "cpu")
    with torch.no_grad():
        list(state.model.parameters())[-1].view(-1)[-1] = value
    with pytest.raises(UserError, match="no longer numbers at iteration 0: a lower --lr may help"):
        state.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_code_runs_from_a_checkpoint(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model": Evil()}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="is no whole checkpoint"):
        load_run(tmp_path / "last.pt", tiny_recipe(), {})
    assert not (tmp_path / "ran").exists()


def test_saved_model_gives_the_same_detections(trained: tuple[Path, dict[str, Tensor]]) -> None:
    loaded = load_model(trained[0] / "model.safetensors")
    assert_same_weights(weights_of(loaded.model), trained[1])
    assert loaded.category_ids == [1, 2, 3, 4, 5]
    assert len(loaded.class_names) == 5
    assert not loaded.model.training


def test_a_checkpoint_of_another_model_names_the_tensor(
    trained: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    model = build_model("condinst", 5, {**tiny_recipe().model_args, "factor": 1})
    tensors = weights_of(model)
    tensors["fcos.head.scales"] = torch.ones(9)
    del tensors["bottom.tower.0.0.weight"]
    with pytest.raises(UserError, match=r"bottom\.tower\.0\.0\.weight is missing \(2 such tensors\)"):
        load_state(model, tensors, Path("x"))
    save_model(tmp_path / "m.safetensors", nn.Linear(2, 2), tiny_recipe(), [1, 2, 3, 4, 5], list("abcde"))
    with pytest.raises(UserError, match="belongs to another model"):
        load_model(tmp_path / "m.safetensors")


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no longer a number at iteration \d+ \(images \[\d+, \d+\]\)"):
        train(tiny_recipe(lr=1e9, clip=0.0, optimizer="sgd", warmup=0.0, save_every=9), tmp_path, show_progress=False)


def test_the_step_that_went_wrong_is_named_though_losses_are_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def broken_step(model: nn.Module, optimizer: Any, clip: float, images: Any, targets: Any, *_: Any) -> Any:
        seen.append([target["image_id"] for target in targets])
        return {"class": torch.tensor(math.nan if len(seen) == 3 else 1.0)}

    monkeypatch.setattr("condinst_edu.engine.train.step", broken_step)
    with pytest.raises(UserError) as caught:
        train(tiny_recipe(log_every=5, save_every=9), tmp_path, show_progress=False)
    assert len(seen) == 5
    assert f"at iteration 3 (images {seen[2]})" in str(caught.value)


def test_a_step_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a number, or how many there are, makes the program wait for a GPU: only the positives are counted.

    So does a tensor made of a list, which is copied there.
    """

    def one_hot(labels: Tensor, classes: int) -> Tensor:
        return (labels[..., None] == torch.arange(classes)).long()

    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)  # torch's checks its input on a CPU, not on a GPU
    model = tiny_condinst(semantic=True).train()
    images = [torch.rand(3, 96, 128) for _ in range(2)]
    targets = [random_targets(3, (96, 128), seeded(i)) for i in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step(model, optimizer, 5.0, images, targets)  # the first also sends constants
    with Record() as record:
        step(model, optimizer, 5.0, images, targets)
    waits = ("nonzero", "local_scalar", "lift_fresh", "masked_select", "unique", "aten.equal")
    found = {name: n for name, n in record.counts.items() if any(word in name for word in waits)}
    assert found == {"aten.nonzero.default": 1}


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_learns(tmp_path: Path, amp: Any) -> None:
    recipe = tiny_recipe(iterations=30, amp=amp, ema=0.0, accumulate=2, batch_size=4, schedule="poly")
    model = train(recipe, tmp_path, show_progress=False)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    totals = [sum(line[name] for name in ("class", "box", "centerness", "mask")) for line in lines]
    assert sum(totals[-5:]) < 0.93 * sum(totals[:5])
    assert all(p.dtype == torch.float32 for p in model.parameters())
    exact = train(dataclasses.replace(recipe, amp="none"), tmp_path / "none", show_progress=False)
    assert not torch.equal(next(model.parameters()), next(exact.parameters()))  # it was another precision


def test_parts_of_a_batch_add_up() -> None:
    """One image twice, in two parts or in one: the same losses and gradients, though not the same sums."""
    found = []
    image, target = torch.rand(3, 96, 128, generator=seeded(0)), random_targets(4, (96, 128), seeded(1))
    for accumulate in (1, 2):
        torch.manual_seed(0)
        model = tiny_condinst().train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        losses = step(model, torch.optim.SGD(model.parameters(), lr=0.0), 0.0, [image] * 2, [target] * 2, accumulate)
        found.append((losses, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="4 images cannot be shared equally by 1 processes that take it in 3 parts"):
        check_shares(tiny_recipe(batch_size=4, accumulate=3))


def test_rate_rises_and_falls() -> None:
    cosine = Recipe(iterations=100, schedule="cosine", warmup=0.1, warmup_factor=0.0)
    assert rate_factor(cosine, 0) == 0
    assert rate_factor(cosine, 5) == pytest.approx(0.5)
    assert rate_factor(cosine, 10) == 1
    assert rate_factor(cosine, 55) == pytest.approx(0.5)
    assert rate_factor(cosine, 99) == pytest.approx((1 + math.cos(math.pi * 89 / 90)) / 2)


def test_rate_falls_by_a_power() -> None:
    poly = Recipe(iterations=100, schedule="poly", warmup=0.1, warmup_factor=0.0)
    assert rate_factor(poly, 5) == pytest.approx(0.5 * 0.95**0.9)
    assert rate_factor(poly, 50) == pytest.approx(0.5**0.9)
    assert 0 < rate_factor(poly, 99) < 0.02


def test_rate_of_the_papers_schedule() -> None:
    """90 000 iterations, a tenth at 60 000 and 80 000, warm-up over 1000 from a thousandth: the official figures."""
    recipe = Recipe(iterations=90_000)
    for iteration, factor in ((0, 0.001), (500, 0.5005), (1000, 1), (59_999, 1), (60_000, 0.1), (80_000, 0.01)):
        assert rate_factor(recipe, iteration) == pytest.approx(factor), iteration


def test_normalisation_is_not_decayed() -> None:
    model = build_model("condinst", 3, tiny_recipe().model_args)
    others, norms = build_optimizer(model, Recipe(weight_decay=0.1)).param_groups
    assert (others["weight_decay"], norms["weight_decay"]) == (0.1, 0)
    expected = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for p in m.parameters()]
    assert {id(p) for p in norms["params"]} == {id(p) for p in expected}
    assert len(others["params"]) + len(norms["params"]) == len(list(model.parameters()))


def test_the_pretrained_part_has_a_rate_of_its_own() -> None:
    """Of AdaptIS, the ResNet alone; each parameter is in one group, and the rate of each is followed."""
    args = {"backbone": "resnet50", "head": {"width": 8}, "branch_width": 8}
    model: Any = build_model("adaptis", 3, args)
    recipe = Recipe(lr=1e-4, backbone_lr=0.5, weight_decay=0.1, warmup=0.0)
    optimizer = build_optimizer(model, recipe)
    groups = optimizer.param_groups
    assert [(g["share"], g["weight_decay"]) for g in groups] == [(1, 0.1), (1, 0), (0.5, 0.1), (0.5, 0)]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(len(g["params"]) for g in groups) == len(trained)
    slow = {id(p) for g in groups[2:] for p in g["params"]}
    parts = (model.backbone.stem, model.backbone.fine, model.backbone.coarse)
    assert slow == {id(p) for part in parts for p in part.parameters()}
    set_rate(optimizer, recipe, 60_000)
    assert [g["lr"] for g in groups] == pytest.approx([1e-5, 1e-5, 5e-6, 5e-6])
    assert get_recipe("cityscapes-adaptis-r50").backbone_lr == 0.5
    second = build_optimizer(build_model("adaptis", 3, args | {"stage": "proposals"}), recipe)
    assert [len(g["params"]) > 0 for g in second.param_groups] == [True, True, False, False]
    whole: Any = build_model("condinst", 3, tiny_recipe().model_args)
    norms = build_optimizer(whole, recipe).param_groups[2:]
    assert {id(p) for g in norms for p in g["params"]} == {id(p) for p in whole.fcos.backbone.parameters()}


def test_model_settings_reach_the_model() -> None:
    recipe = override_model(shapes_condinst(), ("factor=1", "mask_head.coordinates=none", "nms=mask"))
    model: Any = build_model(recipe.model, 5, recipe.model_args)
    assert (model.factor, model.mask_head.coordinates, model.nms) == (1, "none", "mask")
    for setting, sentence in {
        "factor": "KEY=VALUE",
        "colour=4": "no argument 'colour'",
        "factor=3": "factor must be",
        "head.depth=3": "unexpected keyword argument 'depth'",
        "num_classes=3": "no argument 'num_classes'",
        "channels=abc": "channels is a number",
        "mask_limit=true": "mask_limit is a number",
        "mask_limit=True": "mask_limit is int",
        "semantic=maybe": "semantic is bool",
        "ranges=(64,32)": "rising",
        "mask_head.depth=0": "a layer and a channel or more",
        "backbone=timm:nope": "nope",
        "backbone_options.widths=()": "cannot be built",
        "channels=0": "cannot be built with these arguments: .* would have no numbers",
    }.items():
        with pytest.raises(UserError, match=sentence):
            build_model("condinst", 5, override_model(shapes_condinst(), (setting,)).model_args)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": math.nan},
        {"iterations": 0},
        {"batch_size": 0},
        {"log_every": 0},
        {"flip": 3.0},
        {"ema": 2.0},
        {"seed": -1},
        {"short_sides": (0,)},
        {"short_sides": (640, 1_000_000)},
        {"crop": (0, 64)},
        {"milestones": (math.nan,)},
        {"milestones": (0.5, -1.0)},
        {"backbone_lr": math.nan},
        {"test_short_side": -5},
    ],
)
def test_numbers_that_make_no_sense_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        train(tiny_recipe(**change), tmp_path / "out", show_progress=False)
    assert not (tmp_path / "out").exists()


def test_broken_metadata_is_refused(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for text in ("no json", "[1]", "{}", '{"category_ids": 5, "class_names": [], "recipe": {}}', "[" * 100_000):
        safetensors.torch.save_file({"a": torch.ones(1)}, path, {"condinst_edu": text})
        with pytest.raises(UserError, match="broken condinst_edu metadata"):
            load_model(path)
    recipe = tiny_recipe()
    model = build_model(recipe.model, 1, recipe.model_args)
    fields = ("model", ["condinst"]), ("data", 5), ("val_json", None), ("val_panoptic", 3), ("max_size", "x")
    for field, value in (*fields, ("test_short_side", 0), ("max_size", None)):
        facts = {"recipe": {**plain(recipe), field: value}, "category_ids": [1], "class_names": ["cell"]}
        safetensors.torch.save_file(model.state_dict(), path, {"condinst_edu": json.dumps(facts)})
        with pytest.raises(UserError, match="broken condinst_edu metadata"):
            load_model(path)
    save_model(path, model, recipe, [], [])
    with pytest.raises(UserError, match="0 categories, 0 names"):
        load_model(path)


def test_weights_that_are_no_numbers_are_refused(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    """One number in one tensor is enough; the variance of a batch norm may be infinite."""
    whole = trained[0] / "model.safetensors"
    with safetensors.safe_open(whole, framework="pt") as file:
        facts = file.metadata()
    name, variance = "fcos.head.class_logits.weight", "bottom.tower.0.1.running_var"
    for key, value in ((name, math.nan), (name, math.inf), (name, -math.inf), (variance, math.inf)):
        tensors = safetensors.torch.load_file(whole)
        tensors[key].view(-1)[-1] = value
        safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", facts)
        if key == variance:
            load_model(tmp_path / "m.safetensors")
            continue
        with pytest.raises(UserError, match=rf"holds weights that are no numbers: {re.escape(name)} \(1 such"):
            load_model(tmp_path / "m.safetensors")
    tensors = {key: tensor.half() for key, tensor in safetensors.torch.load_file(whole).items()}
    tensors[name].fill_(5e4)  # the sum is too large for half precision, the weights are not
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", facts)
    load_model(tmp_path / "m.safetensors")


def test_a_damaged_checkpoint_never_ends_in_a_traceback(
    trained: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    whole = (trained[0] / "last.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        damaged = bytearray(whole)
        for place in torch.randint(0, 3000, (3,), generator=generator).tolist():
            damaged[place] ^= 0x55
        (tmp_path / "last.pt").write_bytes(damaged)
        with contextlib.suppress(UserError):
            train(tiny_recipe(), tmp_path, show_progress=False)


def test_a_broken_checkpoint_gives_way_to_the_one_before(
    trained: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    last, previous = tmp_path / "run" / "last.pt", tmp_path / "run" / "previous.pt"
    whole = last.read_bytes()
    assert (torch.load(last)["iteration"], torch.load(previous)["iteration"]) == (6, 4)
    for broken in (whole[: len(whole) // 2], b""):
        last.write_bytes(broken)
        (tmp_path / "run" / "model.safetensors").unlink()
        assert_same_weights(weights_of(train(tiny_recipe(), tmp_path / "run", show_progress=False)), trained[1])
        assert "going on from previous.pt" in capsys.readouterr().err
    last.unlink()  # killed between the two renames
    assert_same_weights(weights_of(train(tiny_recipe(), tmp_path / "run", show_progress=False)), trained[1])
    with pytest.raises(UserError, match="belongs to another run: lr"):  # that is no broken file
        train(tiny_recipe(lr=0.5), tmp_path / "run", show_progress=False)
    previous.write_bytes(b"nonsense")
    last.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"previous\.pt is no whole checkpoint"):
        train(tiny_recipe(), tmp_path / "run", show_progress=False)


@pytest.mark.parametrize(("rated", "best"), [([0.2, 0.3, 0.1], 1), ([0.3, 0.3, 0.3], 0)])
def test_the_best_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rated: list[float], best: int) -> None:
    """AP of three evaluations rises, then falls, or stays; of equals the first; a run that goes on knows the best."""
    values = iter(rated)
    weights = []

    def fake(model: nn.Module, *_: Any, **__: Any) -> dict[str, Any]:
        weights.append(weights_of(model))
        return {"mask": {"AP": next(values)}, "box": {"AP": 0.9}}

    def stop(done: int, model: nn.Module) -> None:
        if done == 4:
            raise Stop

    monkeypatch.setattr("condinst_edu.engine.train.evaluate", fake)
    with pytest.raises(Stop):
        train(tiny_recipe(eval_every=2), tmp_path, on_step=stop, show_progress=False)
    train(tiny_recipe(eval_every=2), tmp_path, show_progress=False)
    assert_same_weights(weights_of(load_model(tmp_path / "best.safetensors").model), weights[best])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["mask_AP"] for line in lines if "mask_AP" in line] == rated


def test_tensorboard_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"TensorBoard is not installed: pip install"):
        train(tiny_recipe(tensorboard=True), tmp_path, show_progress=False)


def test_what_tensorboard_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path / "tensorboard"), 1)

        def add_scalar(self, *arguments: Any) -> None:
            told.append(arguments)

        def flush(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(tiny_recipe(tensorboard=True, iterations=4, log_every=2), tmp_path, show_progress=False)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert told == [(k, v, line["iteration"]) for line in lines for k, v in line.items() if k != "iteration"]
    assert {name for name, _, _ in told} == {"lr", "class", "box", "centerness", "mask"}


@pytest.mark.slow
def test_compiled_parts_compute_the_same(tmp_path: Path) -> None:
    if not can_compile():
        pytest.skip("no C++ compiler")
    plain = tiny_recipe(optimizer="sgd", lr=1e-3, iterations=2)
    one = weights_of(train(plain, tmp_path / "a", show_progress=False))
    two = weights_of(train(dataclasses.replace(plain, compile=True), tmp_path / "b", show_progress=False))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_pictures_of_photographs_that_share_a_name(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    assert picture_names([Path("a.png"), Path("b.jpg")]) == ["a.png", "b.png"]
    names = picture_names([Path("a.png"), Path("x/A.png"), Path("a-1.png")])
    assert names == ["001-a.png", "002-A.png", "003-a-1.png"]
    photo = tmp_path / "p.png"
    photo.write_bytes(next((SAMPLE / "val").glob("*.png")).read_bytes())
    before = photo.read_bytes()
    with pytest.raises(UserError, match="is one of the photographs"):
        predict(load_model(trained[0] / "model.safetensors"), [photo], tmp_path)
    assert photo.read_bytes() == before


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.json"

    def write(error: Exception) -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(RuntimeError):
        write(RuntimeError())
    with pytest.raises(UserError, match=r"cannot write .*file\.json: No space left"):
        write(OSError(28, "No space left on device"))
    assert list(path.parent.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), whole_file(tmp_path / "file" / "x"):
        pass


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    """Who reads the old file while the new one is written goes on reading the old one, whole."""
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        with whole_file(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """A limit on the size of files makes the write itself fail, as a full disk does."""
    train(tiny_recipe(iterations=6), tmp_path, on_step=None, show_progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.jsonl"}
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_engine import *\n"
        "from condinst_edu.engine.checkpoint import data_of\n"
        "data = data_of(open_split(tiny_recipe(), 'train'))\n"
        "state = load_run(Path(sys.argv[2]) / 'last.pt', tiny_recipe(), data)\n"
        "from condinst_edu.engine.checkpoint import save_run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    save_run(Path(sys.argv[2]) / 'last.pt', tiny_recipe(), data, state)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cannot write" in result.stdout, result.stderr
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log.jsonl"}
    assert after == before


def test_predict_writes_pictures_and_results(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    loaded = load_model(trained[0] / "model.safetensors")
    photos = sorted((SAMPLE / "val").glob("*.png"))[:2]
    written = predict(loaded, photos, tmp_path, min_score=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(p.name for p in photos), "results.json"])
    results = json.loads(written.read_text())
    assert {result["file_name"] for result in results} <= {photo.name for photo in photos}


def test_predict_leaves_nothing_of_an_unreadable_photo(trained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    loaded = load_model(trained[0] / "model.safetensors")
    broken = tmp_path / "broken.png"
    broken.write_bytes(next((SAMPLE / "val").glob("*.png")).read_bytes()[:500])
    with pytest.raises(UserError, match=r"broken\.png"):
        predict(loaded, [broken], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_drawing_changes_only_what_was_found() -> None:
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 5:10, 8:20] = True
    found = {
        "boxes": torch.tensor([[8.0, 5.0, 20.0, 10.0]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.9]),
        "masks": mask,
    }
    drawn = draw(image, found, ["star"], 0.5)
    assert (drawn[:, mask[0]] != 100).any()
    assert torch.equal(draw(image, found, ["star"], 0.95), image)
    inside = (slice(None), 7, 10)  # away from the box and the text that are drawn over the mask
    twice = {key: torch.cat([value, value]) for key, value in found.items()}
    twice["scores"] = torch.tensor([0.9, 0.6])
    assert torch.equal(draw(image, twice, ["star"], 0.5)[inside], drawn[inside])  # the surer one is on top


def test_training_set_leaves_out_empty_images_and_held_out_set_does_not() -> None:
    recipe = tiny_recipe()
    assert len(open_split(recipe, "train")) > 0
    assert open_split(recipe, "val").category_ids == open_split(recipe, "train").category_ids


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(tmp_path: Path) -> None:
    """SIGKILL at 20 random moments, checkpoint writing included; the end is the uninterrupted run's."""
    moments = random.Random(0)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_engine import *\n"
        "train(tiny_recipe(iterations=400, save_every=1), Path(sys.argv[2]), show_progress=False)\n"
    )

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(out)])

    def written(path: Path) -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    assert start(tmp_path / "whole").wait() == 0
    last = tmp_path / "killed" / "last.pt"
    for _ in range(20):
        before, process = written(last), start(tmp_path / "killed")
        deadline = time.monotonic() + 300  # a busy machine takes its time; it is no hang
        while written(last) == before:  # it trains: every iteration writes a checkpoint
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.3))  # of the step or of the writing
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    left = last if last.exists() else last.with_name("previous.pt")  # killed between the two renames
    assert torch.load(left)["iteration"] < 400
    assert start(tmp_path / "killed").wait() == 0
    names = ("model.safetensors", "recipe.json")
    assert all((tmp_path / "killed" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.mark.slow
def test_asked_to_stop_and_resumed(tmp_path: Path) -> None:
    """SIGTERM to the whole group, loader processes included, as torchrun and job schedulers send it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_engine import *\n"
        "recipe = tiny_recipe(iterations=100, save_every=1000, workers=2)\n"
        "train(recipe, Path(sys.argv[2]), show_progress=False)\n"
    )

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(out)]
        return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)

    assert start(tmp_path / "whole").wait() == 0
    process, log = start(tmp_path / "stopped"), tmp_path / "stopped" / "log.jsonl"
    deadline = time.monotonic() + 300  # a busy machine takes its time; it is no hang
    while not (log.exists() and log.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert b"stopped by SIGTERM after iteration" in said
    assert b"Traceback" not in said
    assert 0 < torch.load(tmp_path / "stopped" / "last.pt")["iteration"] < 100
    assert start(tmp_path / "stopped").wait() == 0
    for name in ("model.safetensors", "log.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
