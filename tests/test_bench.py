"""The benches on tiny inputs: what they report, and that the forms they compare agree. No test is about time."""

import functools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from torchvision.models import detection

from condinst_edu import bench
from condinst_edu.bench import Bench, PeakMemory, Variant
from condinst_edu.bench import evaluation as bench_evaluation
from condinst_edu.bench import instances as bench_instances
from condinst_edu.bench import loader as bench_loader
from condinst_edu.bench import mask_head as bench_mask_head
from condinst_edu.bench import panoptic as bench_panoptic
from condinst_edu.bench import targets as bench_targets
from condinst_edu.bench.mask_head import Scene
from condinst_edu.condinst import CondInst
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.transforms import TrainTransform, to_float
from condinst_edu.engine.evaluate import coco_ap
from condinst_edu.errors import UserError
from condinst_edu.layers.upsample import resize_masks
from condinst_edu.mask_head import DynamicMaskHead
from condinst_edu.mask_rcnn import MaskRCNN
from condinst_edu.panoptic import evaluate_coco_panoptic

TINY_HEAD: dict[str, Any] = {"instances": 5, "locations": 6, "size": (12, 16), "output_size": (50, 61)}
TINY_MODEL: dict[str, Any] = {
    "num_classes": 2,
    "backbone": "tiny",
    "backbone_options": {"widths": (4, 4, 4, 4, 4)},
    "channels": 8,
    "bottom": {"channels": 8, "convs": 1},
    "head": {"tower_convs": 1, "norm": "bn"},
}
TINY_TARGETS: dict[str, Any] = {"images": 2, "objects": 3, "size": (130, 150), "model_args": TINY_MODEL}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, tiny in (
        (bench_mask_head, "bench_mask_head", TINY_HEAD),
        (bench_targets, "bench_targets", TINY_TARGETS),
    ):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), **tiny))
    monkeypatch.setattr(bench_mask_head, "can_compile", lambda: False)


def measure(name: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the bench prints with --json, and nothing else on the same stream."""
    bench.run_bench(Bench(name, json=True, runs=3))
    return json.loads(capsys.readouterr().out)


def test_mask_head_report(capsys: pytest.CaptureFixture[str]) -> None:
    result = measure("mask-head", capsys)
    assert (result["bench"], result["threads"], result["runs"]) == ("mask-head", 1, 3)
    assert result["machine"]["torch"] == torch.__version__
    groups = {group["name"]: group for group in result["groups"]}
    assert list(groups) == ["inference", "training", "drawing", "drawing large objects"]
    for group in groups.values():
        reference = group["variants"][0]
        assert reference["name"] == group["reference"]
        for v in group["variants"]:
            if "skipped" not in v:
                assert len(v["times_ms"]) == 3
                assert v["median_ms"] == statistics.median(v["times_ms"])
                assert v["speedup"] == pytest.approx(reference["median_ms"] / v["median_ms"])


def test_forms_agree(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {g["name"]: {v["name"]: v for v in g["variants"]} for g in measure("mask-head", capsys)["groups"]}
    assert groups["inference"]["folded"]["difference"] < 1e-5
    folded, grouped = groups["training"]["folded"], groups["training"]["grouped"]
    assert folded["gradient_difference"] < 1e-10
    assert folded["memory_ratio"] == pytest.approx(folded["memory_mb"] / grouped["memory_mb"])
    for name in ("drawing", "drawing large objects"):
        drawn = groups[name]["resize_masks"]
        assert drawn["pixels_differ"] == drawn["ties"]


def test_without_compiler(capsys: pytest.CaptureFixture[str]) -> None:
    inference = measure("mask-head", capsys)["groups"][0]
    assert inference["variants"][2]["name"] == "compiled"
    assert "compiler" in inference["variants"][2]["skipped"]
    assert "speedup" not in inference["variants"][2]


def test_with_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_mask_head, "can_compile", lambda: True)
    monkeypatch.setattr("condinst_edu.mask_head.can_compile", lambda: False)  # compiling takes long: tested elsewhere
    with Progress(disable=True) as progress:
        group = bench_mask_head.inference(1, progress, Scene(3, (6, 7)))
    assert [v.name for v in group.variants] == ["grouped", "folded", "compiled"]
    assert group["compiled"].skipped is None
    assert group["compiled"].facts["difference"] < 1e-5


def test_targets_report(capsys: pytest.CaptureFixture[str]) -> None:
    result = measure("targets", capsys)
    step, assignment = result["groups"][0]["variants"]
    assert assignment["share"] == pytest.approx(assignment["median_ms"] / (2 * step["median_ms"]))
    assert assignment["goal"] == {"share": 0.1}


@pytest.mark.parametrize("name", ["mask-head", "targets"])
def test_table(name: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run_bench(Bench(name, runs=1))
    out = capsys.readouterr().out
    assert "medians of 1 interleaved runs, threads: 1" in out
    assert out.rstrip().endswith(".")
    if name == "mask-head":
        assert "no C++ compiler" in " ".join(out.split())


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    measure("targets", capsys)
    assert torch.get_num_threads() == before
    for wrong in (Bench("targets", runs=0), Bench("targets", threads=0)):
        with pytest.raises(UserError, match="at least one"):
            bench.run_bench(wrong)


def test_goals() -> None:
    def describe(**values: Any) -> str:
        return bench.describe_goal({"name": "x", **values})

    assert describe(goal={"speedup": 6}, speedup=7) == "speedup ≥ 6"
    assert describe(goal={"speedup": 6}, speedup=5) == "speedup ≥ 6, missed"
    assert describe(goal={"memory_ratio": 0.25}, memory_ratio=0.3) == "memory ratio ≤ 0.25, missed"
    assert describe() == ""


def test_runs_take_turns() -> None:
    calls: list[str] = []
    functions = {name: functools.partial(calls.append, name) for name in "abc"}
    with Progress(disable=True) as progress:
        variants: list[Variant] = bench.race("", functions, 2, progress)
    assert calls == list("abc" * 3)
    assert [len(v.times_ms) for v in variants] == [2, 2, 2]


def test_peak_memory() -> None:
    with PeakMemory() as memory:
        a = torch.ones(1000)
        b = a + 1
        del a
        b.view(10, 100).relu_()  # the same storage
        c = b + 1
        del b
    assert memory.peak == 8000
    assert memory.bytes == 4000
    del c
    assert memory.bytes == 0


def test_peak_memory_counts_what_backward_needs() -> None:
    x = torch.ones(1000, requires_grad=True)
    with PeakMemory() as memory:
        y = x.exp().exp()  # both results are kept for the backward pass
        assert memory.bytes == 8000
        y.sum().backward()
        del y
    assert memory.peak >= 12000
    assert memory.bytes == 4000  # the gradient


def test_grouped_form_is_the_mask_head() -> None:
    scene = Scene(4, (5, 7))
    torch.testing.assert_close(scene.logits(bench_mask_head.grouped_mask_head), scene.logits(DynamicMaskHead()))


@pytest.mark.parametrize(
    "logits", [bench_mask_head.coco_like_logits(6, (12, 16)), bench_mask_head.large_logits(6, (12, 16))]
)
def test_drawn_logits(logits: torch.Tensor) -> None:
    assert logits.shape == (6, 12, 16)
    assert (logits > 0).any()
    assert (logits <= 0).any()
    arguments = (8, (96, 123), (50, 61), 2)
    scores = bench_mask_head.whole_maps(logits, *arguments)
    wrong = resize_masks(logits, *arguments) != (scores > 0.5)
    assert not (wrong & ((scores - 0.5).abs() > 1e-6)).any()


def small_models() -> tuple[CondInst, MaskRCNN]:
    small: dict[str, Any] = {"backbone_options": {"widths": (4, 4, 8, 8, 8)}, "channels": 8, "box_units": 8}
    return CondInst(**TINY_MODEL), MaskRCNN(3, **small)


def test_instances_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_instances, "full_size_models", small_models)
    bench.run_bench(Bench("instances", json=True, runs=2, counts=(5, 2), size=(64, 96)))
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [g["name"] for g in groups] == ["full size", "full size, masks alone", "tiny", "tiny, masks alone"]
    for group in groups:
        variants = {v["name"]: v for v in group["variants"]}
        assert list(variants) == ["CondInst, 2", "Mask R-CNN, 2", "CondInst, 5", "Mask R-CNN, 5"]
        times = {name: v["median_ms"] for name, v in variants.items()}
        last = variants["Mask R-CNN, 5"]
        assert last["instances"] == 5
        assert last["ratio_to_fewest"] == pytest.approx(times["Mask R-CNN, 5"] / times["Mask R-CNN, 2"])
        assert last["ratio_to_condinst"] == pytest.approx(times["Mask R-CNN, 5"] / times["CondInst, 5"])
        assert variants["CondInst, 5"]["ratio_to_condinst"] == 1
    bench.run_bench(Bench("instances", runs=1, counts=(1, 2), size=(64, 96)))
    out = " ".join(capsys.readouterr().out.split())
    assert "With 2 instances instead of 1, CondInst takes" in out
    assert "goal" not in out  # columns without a number are left out


@pytest.mark.parametrize("size", [(64, 96), (117, 203)])
@torch.inference_mode()
def test_masks_alone_are_those_of_the_whole_forward_pass(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    condinst, mask_rcnn = small_models()
    image = torch.rand(3, *size)
    torchvisions = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=32)
    for case in (
        bench_instances.CondInstCase(condinst, image),
        bench_instances.MaskRCNNCase(mask_rcnn, image),
        bench_instances.MaskRCNNCase(torchvisions, image),
    ):
        for n in (1, 7):
            whole = case.whole(n)
            assert whole.dtype == torch.bool
            assert whole.shape == (n, *size)
            assert torch.equal(case.masks(n)(), whole)


def test_instances_that_cannot_be() -> None:
    for wrong in ({"counts": (0,)}, {"counts": ()}, {"size": (0, 5)}):
        with pytest.raises(UserError, match="are positive"):
            bench.run_bench(Bench("instances", json=True, **wrong))
    with pytest.raises(UserError, match="finds 3 instances, not 4"):
        bench_instances.run_and_count("it", 4, lambda: torch.zeros(3))


def test_loader_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = functools.partial(bench_loader.bench_loader, size=(60, 80), short_side=100)
    monkeypatch.setattr(bench_loader, "bench_loader", small)
    bench.run_bench(Bench("loader", json=True, runs=2, images=3))
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert [v["name"] for v in group["variants"]] == ["torchvision v2", "stored masks", "outlines"]
    for v in group["variants"]:
        assert v["images_per_second"] == pytest.approx(3000 / v["median_ms"])
    bench.run_bench(Bench("loader", runs=1, images=2))
    out = " ".join(capsys.readouterr().out.split())
    assert "One core loads" in out
    assert "speedup ≥ 2.5" in out
    with pytest.raises(UserError, match="--images is at least 1, not 0"):
        bench.run_bench(Bench("loader", runs=1, images=0))


def test_loader_variants_agree(tmp_path: Path) -> None:
    """What is compared is the same work: image, boxes and masks of torchvision's way are ours, whichever it mirrors."""
    bench_loader.write_synthetic(tmp_path, 8, (60, 80))
    masks, outlines = (CocoDataset(tmp_path / "images", tmp_path / "instances.json", outlines=o) for o in (False, True))
    flips = []
    for i in range(8):
        image, target = bench_loader.TorchvisionTransform(90, 1000)(*masks[i], seed=i)
        for dataset in (masks, outlines):
            results = [TrainTransform((90,), 1000, flip, mask_stride=4)(*dataset[i], seed=i) for flip in (0.0, 1.0)]
            flip = torch.allclose(to_float(results[1][0]), image)
            ours, found = results[flip]
            flips.append(flip)
            torch.testing.assert_close(to_float(ours), image)
            torch.testing.assert_close(found["boxes"], target["boxes"], rtol=0, atol=1e-4)
            assert found["masks"].shape == target["masks"][:, 2::4, 2::4].shape
            assert (found["masks"] != target["masks"][:, 2::4, 2::4]).float().mean() < 0.02
    assert set(flips) == {False, True}


def test_evaluation_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = functools.partial(bench_evaluation.bench_evaluation, masks=9, size=(60, 80))
    monkeypatch.setattr(bench_evaluation, "bench_evaluation", small)
    bench.run_bench(Bench("evaluation", json=True, runs=2, images=5))
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    encode, score, both = group["variants"]
    assert both["times_ms"] == [a + b for a, b in zip(encode["times_ms"], score["times_ms"], strict=True)]
    assert both["seconds_for_5000"] == pytest.approx(both["median_ms"])  # 5 images
    assert both["goal"] == {"seconds_for_5000": 240}
    bench.run_bench(Bench("evaluation", runs=1, images=2))
    assert "COCO's 5000 images with as many masks each take" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="--images is at least 1, not 0"):
        bench.run_bench(Bench("evaluation", runs=1, images=0))


def test_evaluation_is_of_real_results() -> None:
    """The objects are found: scored alone, as detections, they are perfect."""
    pool = [bench_evaluation.random_detections(np.random.default_rng(0), 9, (60, 80))]
    results = bench_evaluation.encode_all(pool, 3)
    truth = bench_evaluation.ground_truth(results, 3, 9, (60, 80), objects=9)
    assert len(results) == len(truth["annotations"]) == 27
    scores = coco_ap(truth, results)
    assert scores["box"]["AP"] > 0.99
    assert scores["mask"]["AP"] > 0.99


def test_panoptic_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = functools.partial(bench_panoptic.bench_panoptic, regions=4, size=(60, 80))
    monkeypatch.setattr(bench_panoptic, "bench_panoptic", small)
    bench.run_bench(Bench("panoptic", json=True, runs=2, images=3))
    score = json.loads(capsys.readouterr().out)["groups"][0]["variants"][0]
    assert score["goal"] == {"seconds_for_5000": 180}
    assert score["seconds_for_5000"] == pytest.approx(score["median_ms"] / 1000 * 5000 / 3)
    bench.run_bench(Bench("panoptic", runs=1, images=2))
    assert "At this rate, COCO's 5000 images take" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="--images is at least 1, not 0"):
        bench.run_bench(Bench("panoptic", runs=1, images=0))


def test_panoptic_files_hold_matches_and_misses(tmp_path: Path) -> None:
    """The prediction is the truth moved by a few pixels: neither perfect nor without a match."""
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    bench_panoptic.write_files(truth, found, images=2, regions=12, size=(120, 160))
    assert 0.3 < evaluate_coco_panoptic(truth, found)["All"]["pq"] < 0.999
