"""Looks through a model: every stage's shape on the way from an image to its masks, with the papers' symbols."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condinst_edu.condinst import CondInst
from condinst_edu.fcos import FCOS, Outputs


class Row(NamedTuple):
    """One tensor: the papers' symbol for it, its shape, and what it is."""

    symbol: str
    shape: tuple[int, ...]
    meaning: str


def xray(model: FCOS | CondInst, image: Tensor) -> list[Row]:
    """Run a model on one image (3, H, W) in [0, 1], print a row for every stage's output, and return the rows.

    Hooks see the stages; the model and its training mode are left as they were. theta and the mask logits are those
    of the instances that are detected, none if nothing is.
    """
    fcos = model.fcos if isinstance(model, CondInst) else model
    rows: list[Row] = [Row("image", tuple(image.shape), "in [0, 1]")]
    with ExitStack() as stack:
        for module, describe in _stages(model, fcos):
            hook = module.register_forward_hook(lambda _, args, out, tell=describe: rows.extend(tell(args, out)))
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        result = model([image])[0]
    rows += [Row(name, tuple(value.shape), "result, in the image's pixels") for name, value in result.items()]
    width = max(len(row.symbol) for row in rows)
    for row in rows:
        print(f"{row.symbol:{width}}  {' x '.join(map(str, row.shape)):22}  {row.meaning}")
    return rows


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation without gradients; training mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _stages(model: FCOS | CondInst, fcos: FCOS) -> list[tuple[nn.Module, Any]]:
    """Modules, and what to tell of their arguments and outputs."""

    def backbone(args: Any, out: dict[int, Tensor]) -> list[Row]:
        batch = Row("batch", tuple(args[0].shape), "normalised, padded")
        return [batch, *(Row(f"C{k}", tuple(v.shape), f"backbone, stride {2**k}") for k, v in out.items())]

    def pyramid(args: Any, out: list[Tensor]) -> list[Row]:
        levels = zip(fcos.levels, out, strict=True)
        return [Row(f"P{k}", tuple(v.shape), f"pyramid, stride {2**k}") for k, v in levels]

    def head(args: Any, out: Outputs) -> list[Row]:
        return [
            Row("logits", tuple(out.logits.shape), "classes of all locations (B, L, K)"),
            Row("(l, t, r, b)", tuple(out.distances.shape), "distances to the box's sides, in strides"),
            Row("centre-ness", tuple(out.centerness.shape), "one logit per location"),
        ]

    stages: list[tuple[nn.Module, Any]] = [(fcos.backbone, backbone), (fcos.fpn, pyramid), (fcos.head, head)]
    if isinstance(model, CondInst):
        stages += [(model.bottom, _bottom), (model.mask_head, _mask_head)]
    return stages


def _bottom(args: Any, out: Tensor) -> list[Row]:
    return [Row("F_bottom", tuple(out.shape), "features that all instances share")]


def _mask_head(args: Any, out: Tensor) -> list[Row]:
    theta = Row("theta", tuple(args[1].shape), "filters of each instance's mask head (N, P)")
    return [theta, Row("mask logits", tuple(out.shape), "at the bottom branch's stride (N, H, W)")]
