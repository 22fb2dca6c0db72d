"""CondInst's dynamic mask head: per-instance 1x1 convolutions whose filters the controller predicts.

theta (169 numbers by default) is cut into the weights and biases of a tiny fully convolutional network, which runs on
the bottom branch's features and on coordinates relative to the instance. CondInst 2.1-2.3, 3.2 (`condinst:controller`).

The coordinates are never materialised. Relative coordinates are affine in the pixel, so in layer 1
    W_xy ((pixel - center) / scale) + W_f F + b  =  [W_xy / scale, W_f] [pixel; F] + (b - W_xy center / scale):
one matrix product of all instances' folded weights with maps that they share, and an offset per instance.

Legend: N instances of one image, P parameters, C feature channels, H, W map.
"""

import functools
import itertools
import shutil
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from condinst_edu.coordinates import locations

Coordinates = Literal["relative", "absolute", "none"]
Layers = tuple[list[Tensor], list[Tensor]]


def split_parameters(theta: Tensor, channels: Sequence[int]) -> Layers:
    """Weights and biases of the mask heads from the controller's output.

    theta (N, P); channels: of the input and of each layer's output, (10, 8, 8, 1) by default. Returns the weights
    [(N, out, in)] and the biases [(N, out)]. Order, as in the official code: all weights first, then all biases; a
    weight is row-major (out, in), and the first layer's inputs are x, y, features.
    Errors: ValueError where P does not fit the channels. Source: condinst:controller.
    """
    pairs = list(itertools.pairwise(channels))
    sizes = [i * o for i, o in pairs] + [o for _, o in pairs]
    if theta.shape[-1] != sum(sizes):
        raise ValueError(f"theta has {theta.shape[-1]} numbers; layers {tuple(channels)} need {sum(sizes)}")
    parts = theta.split(sizes, dim=-1)
    weights = [part.unflatten(-1, (o, i)) for part, (i, o) in zip(parts, pairs, strict=False)]
    return weights, list(parts[len(pairs) :])


class DynamicMaskHead(nn.Module):
    """The mask head; it has no parameters of its own.

    in_channels: C of the bottom branch; width, depth: channels and number of the layers; coordinates: "relative" to
    the instance in units of its scale, "absolute" within [-1, 1] over the map, or "none"; use_features: False leaves
    the coordinates alone (Table 3); compiled: fuse all layers with torch.compile in inference, where it can.
    """

    def __init__(
        self,
        in_channels: int = 8,
        width: int = 8,
        depth: int = 3,
        coordinates: Coordinates = "relative",
        use_features: bool = True,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if coordinates not in ("relative", "absolute", "none"):
            raise ValueError(f"coordinates must be 'relative', 'absolute' or 'none', not {coordinates!r}")
        if depth < 1 or width < 1:
            raise ValueError(f"a mask head has a layer and a channel or more, not depth {depth} and width {width}")
        if coordinates == "none" and not use_features:
            raise ValueError("a mask head needs coordinates, features or both")
        self.coordinates, self.use_features, self.compiled = coordinates, use_features, compiled
        inputs = (2 if coordinates != "none" else 0) + (in_channels if use_features else 0)
        self.channels = (inputs, *[width] * (depth - 1), 1)

    @property
    def num_parameters(self) -> int:
        """How many numbers the controller predicts per location (169 by default)."""
        return sum(o * (i + 1) for i, o in itertools.pairwise(self.channels))

    def forward(self, features: Tensor, theta: Tensor, centers: Tensor, scales: Tensor, stride: int) -> Tensor:
        """Mask logits of all instances of one image.

        features (C, H, W) at `stride` pixels; theta (N, P); centers (N, 2), the locations (x, y) that predicted the
        instances, and scales (N,), both in pixels. Returns (N, H, W), computed in float32 at least.
        Source: condinst:eq-2 (MaskHead).
        """
        size = (features.shape[-2], features.shape[-1])
        dtype = torch.promote_types(features.dtype, torch.float32)  # half precision is too coarse for coordinates
        with torch.autocast(features.device.type, enabled=False):
            features, centers, scales = features.to(dtype), centers.to(dtype), scales.to(dtype)
            weights, biases = split_parameters(theta.to(dtype), self.channels)
            shared, weights[0], biases[0] = self._fold(features, weights[0], biases[0], centers, scales, stride)
            fuse = self.compiled and len(theta) > 1 and not torch.is_grad_enabled() and can_compile()
            run = _fused() if fuse else run_in_chunks
            return run(shared, weights, biases).unflatten(-1, size)

    def _fold(
        self, features: Tensor, weight: Tensor, bias: Tensor, centers: Tensor, scales: Tensor, stride: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps that all instances share (inputs, H * W), and layer 1's weight and bias on them."""
        if self.coordinates == "none":
            return features.flatten(1), weight, bias
        size = (features.shape[-2], features.shape[-1])
        extent = torch.stack([features.new_full((), side * stride) for side in (size[1], size[0])])  # (2,)
        # Pixels are counted from the middle of the map: small numbers lose less in float32.
        pixels = locations(size, stride, features.device).to(features) - extent / 2  # (H * W, 2)
        if self.coordinates == "relative":
            unit, origin = scales[:, None].expand(-1, 2), centers - extent / 2
        else:
            unit, origin = (extent / 2).expand(len(weight), 2), torch.zeros_like(centers)
        folded = weight[:, :, :2] / unit[:, None]  # (N, width, 2)
        offset = (folded @ origin[:, :, None]).squeeze(-1)  # (N, width)
        shared = torch.cat([pixels.T, features.flatten(1)]) if self.use_features else pixels.T
        return shared, torch.cat([folded, weight[:, :, 2:]], dim=-1), bias - offset


def run_layers(shared: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The layers as matrix products: (inputs, L) maps -> (N, L) logits; ReLU after all layers but the last."""
    n, width, _ = weights[0].shape
    x = torch.addmm(biases[0].reshape(-1, 1), weights[0].flatten(0, 1), shared).unflatten(0, (n, width))
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        x = torch.baddbmm(bias[:, :, None], weight, x.relu_())  # (N, out, L)
    return x.squeeze(1)


def run_in_chunks(shared: Tensor, weights: list[Tensor], biases: list[Tensor], chunk: int = 4) -> Tensor:
    """`run_layers` on a few instances at a time, so that what lies between two layers stays in the cache.

    Where gradients are needed, each chunk is computed again in the backward pass: only the logits are kept.
    """
    n, width, _ = weights[0].shape
    if shared.device.type != "cpu" or n * width * shared.shape[1] <= 2**20:  # 4 MB: it stays in the cache as it is
        return run_layers(shared, weights, biases)
    pieces = []
    for low in range(0, n, chunk):
        part = slice(low, low + chunk)
        args = (shared, [w[part] for w in weights], [b[part] for b in biases])
        if torch.is_grad_enabled():
            pieces.append(checkpoint(run_layers, *args, use_reentrant=False))
        else:
            pieces.append(run_layers(*args))
    return torch.cat(pieces)


def fused_layers(shared: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """`run_layers` written as sums over channels, which torch.compile turns into one loop over pixels."""
    x = [shared[c][None] for c in range(len(shared))]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        outputs = []
        for o in range(weight.shape[1]):
            total = bias[:, o, None]
            for c, channel in enumerate(x):
                total = total + weight[:, o, c, None] * channel
            outputs.append(total if i == len(weights) - 1 else F.relu(total))
        x = outputs
    return x[0]


@functools.cache
def _fused() -> Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]:
    return torch.compile(fused_layers, dynamic=True)


@functools.cache
def can_compile() -> bool:
    """Whether torch.compile has what it needs here: a C++ compiler (or Triton, on a GPU)."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
