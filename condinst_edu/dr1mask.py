"""DR1Mask: context from the detector's tower steers every convolution of the mask branch; instances weigh its maps.

Order of the data: images -> FCOS, whose top layer gives two factors A, B for every cell and an embedding for each
instance -> DR1Basis merges pyramid and factors, from the coarsest level to the finest, into one map F -> an attention
layer turns the crop of F in an instance's box, and its embedding, into a mask -> (panoptic) one layer gives the logits
of stuff and things. DR1Mask, sections 2 and 3. Its code was never published: where the paper leaves a choice, the
docstring names ours, and docs/details.md gathers them.

Legend: B images, L locations, N instances, S positive locations of an image, D channels of DR1Basis, K projected bases,
r factors of a base, E numbers of an embedding, H, W map, R side of an attention map, Q side of a crop.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condinst_edu.blendmask import crop_bases, crop_masks, merge_bases, paste_masks, semantic_head
from condinst_edu.condinst import sample_locations, semantic_map, semantic_targets
from condinst_edu.fcos import (
    FCOS,
    Assignment,
    Outputs,
    Points,
    centerness,
    fcos_losses,
    to_output_size,
)
from condinst_edu.layers.blocks import Norm, conv_block
from condinst_edu.layers.images import Batch, Size, Target, check_targets, make_batch
from condinst_edu.layers.losses import normaliser
from condinst_edu.layers.unified import PanopticLayer, mean_embeddings, paste_logits
from condinst_edu.layers.upsample import upsample_to

Factors = tuple[Tensor | None, Tensor | None]  # A and B of one level, (B, D, H, W) each; None where there is none


# ------------------------------------------------------------------------------------------------------------ DR1Conv


def rank1_weight(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W' = W o (b a^T): row i of a matrix times b_i, column j times a_j.

    weight (m, d); a (d,) for the input's numbers, b (m,) for the output's. Returns (m, d). Source: dr1mask:eq-1.
    """
    return weight * torch.outer(b, a)


def dr1conv(x: Tensor, weight: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """Conv(X o A) o B: a static kernel, times other factors at every position.

    x, a, b (B, D, H, W), None for a or b leaves that factor out (Table 1); weight (D, D, k, k), k odd. Returns
    (B, D, H, W). A multiplies what each position gives to its neighbours, B what each position takes from them; Eq. 3
    as printed multiplies by B inside the sum, which is another operation for all kernels but 1x1.
    Source: dr1mask:eq-2 (1x1), dr1mask:eq-4.
    """
    y = F.conv2d(x if a is None else x * a, weight, padding=weight.shape[-1] // 2)
    return y if b is None else y * b


class DR1Conv2d(nn.Module):
    """Dynamic rank-1 convolution, the layer: see `dr1conv`.

    channels: D in and out; kernel: its side, odd. It has no bias, as the equations.
    forward(x, a, b): x, a, b (B, D, H, W) -> (B, D, H, W). Source: dr1mask:eq-2 (1x1), dr1mask:eq-4.
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"the side of the kernel must be odd, not {kernel}")
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        return dr1conv(x, self.conv.weight, a, b)


# ------------------------------------------------------------------------------------------------------------ context


class ContextLayer(nn.Module):
    """The part of the top layer that gives the factors of every cell: one 3x3 convolution, shared by all levels.

    in_channels: of the tower; width: D; factors: "ab", or "a" or "b" alone (Table 1). The part that gives the
    embeddings is the top module of FCOSHead, on the same tower: two convolutions of one input are one with the outputs
    of both, and embeddings are needed at a few locations, factors at all.
    forward: [(B, C, H_l, W_l)] -> [(A_l, B_l)].
    Ours: the biases begin at 1, so that at first every DR1Conv is a plain convolution; from factors around 0 the masks
    would get no gradient. No function bounds the factors, as in Eq. 4.
    Source: dr1mask:eq-5.
    """

    def __init__(self, in_channels: int, width: int, factors: Literal["ab", "a", "b"] = "ab") -> None:
        super().__init__()
        self.factors = factors
        self.conv = nn.Conv2d(in_channels, len(factors) * width, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        assert self.conv.bias is not None
        nn.init.ones_(self.conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Factors]:
        split = [self.conv(x).chunk(len(self.factors), dim=1) for x in maps]  # evenly, A before B
        return [(s[0] if "a" in self.factors else None, s[-1] if "b" in self.factors else None) for s in split]


# ---------------------------------------------------------------------------------------------------------- DR1Basis


class DR1Basis(nn.Module):
    """The maps that all masks are made of: an inverted pyramid, from the coarsest level to the finest.

    in_channels: of the pyramid; width: D, 32 in the paper (64 for panoptic); levels: of the pyramid; norm: see below;
    aligned: `upsample_to`, or (Table 5's first rows) bilinear resizing to the finer map's size, half-pixel centres.
    forward(pyramid, factors, size): pyramid [(B, C, H_l, W_l)] and factors [(A_l, B_l)], finest level first; there may
    be fewer factors than levels, the finest of which are then merged by a plain convolution. Returns the finest F_l
    (B, D, H, W), or, with a size (height, width), that once more upsampled and cut to it: the paper upsamples at each
    step, so F has stride 4 where P3 has 8.
    Ours: norm "none" is Eq. 6 as printed, a chain without nonlinearity; else each reduction and each DR1Conv but the
    last has its norm and a ReLU behind it (B comes before them), as BlendMask's blocks. F itself is linear: bases have
    both signs. Source: dr1mask:eq-6.
    """

    def __init__(
        self, in_channels: int = 256, width: int = 32, levels: int = 5, norm: Norm = "bn", aligned: bool = True
    ) -> None:
        super().__init__()
        self.width, self.aligned = width, aligned
        relu = norm != "none"
        self.reduce = nn.ModuleList(conv_block(in_channels, width, norm=norm, relu=relu) for _ in range(levels))
        self.merge = nn.ModuleList(DR1Conv2d(width) for _ in range(levels))
        after = [conv_block(width, width, norm=norm)[1:] if i and relu else nn.Identity() for i in range(levels)]
        self.after = nn.ModuleList(after)  # norm and ReLU, without the convolution

    def forward(self, pyramid: Sequence[Tensor], factors: Sequence[Factors], size: Size | None = None) -> Tensor:
        finest = self.steps(pyramid, factors)[0]
        return finest if size is None else self.upsample(finest, size)

    def steps(self, pyramid: Sequence[Tensor], factors: Sequence[Factors]) -> list[Tensor]:
        """F_l (B, D, H_l, W_l) of all levels, finest first."""
        if len(pyramid) != len(self.merge) or len(factors) > len(pyramid):
            raise ValueError(f"DR1Basis has {len(self.merge)} levels: {len(pyramid)} maps, {len(factors)} factors")
        pairs = [(None, None)] * (len(pyramid) - len(factors)) + list(factors)
        below: list[Tensor] = []  # what is done, finest first
        for i in range(len(pyramid) - 1, -1, -1):
            x = self.reduce[i](pyramid[i])
            if below:
                x = x + self.upsample(below[0], (x.shape[-2], x.shape[-1]))
            below.insert(0, self.after[i](self.merge[i](x, *pairs[i])))
        return below

    def upsample(self, x: Tensor, size: Size) -> Tensor:
        if self.aligned:
            return upsample_to(x, size)
        return F.interpolate(x, size, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------------------------------------------------- attention


class VectorAttention(nn.Module):
    """YOLACT's: a weight for each base. forward: crops (N, D, Q, Q), embeddings (N, D) -> mask logits (N, Q, Q).

    Source: dr1mask:table-4.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.num_parameters = width

    def start(self) -> Tensor:
        """The embedding (E,) that training begins with, as the biases of the top module."""
        return torch.zeros(self.num_parameters)

    def forward(self, crops: Tensor, embedding: Tensor) -> Tensor:
        return torch.einsum("nd,ndij->nij", embedding, crops)


class FullAttention(nn.Module):
    """BlendMask's: an R x R map of weights for each of K bases. Interface as VectorAttention, E = K R^2 (784).

    Ours: a static 1x1 convolution makes K bases of DR1Basis's D; the maps are resized to the crop, then a softmax is
    taken over the bases, both as in BlendMask. Source: dr1mask:table-4.
    """

    def __init__(self, width: int = 32, bases: int = 4, size: int = 14) -> None:
        super().__init__()
        self.shape = (bases, size, size)
        self.num_parameters = bases * size**2
        self.project = nn.Conv2d(width, bases, 1)

    def start(self) -> Tensor:
        return torch.zeros(self.num_parameters)

    def forward(self, crops: Tensor, embedding: Tensor) -> Tensor:
        return merge_bases(self.project(crops), embedding.unflatten(1, self.shape))


class FactoredAttention(nn.Module):
    """The paper's: an instance's own projection of D bases to K, and attention maps of r shared components each.

    width: D; bases: K; rank: r; size: R. An embedding has K D weights t, as a 1x1 kernel (K, D), then K r factors s:
    144 numbers by default. Interface as VectorAttention.
    Ours: the maps are resized bilinearly to the crop, and there is no softmax over the bases, of which the paper says
    nothing; U, V begin around 1 and s at 1 / r, so that all maps begin around 1 and nothing is multiplied by 0.
    Source: dr1mask:eq-7, dr1mask:eq-8.
    """

    def __init__(self, width: int = 32, bases: int = 4, rank: int = 4, size: int = 14) -> None:
        super().__init__()
        self.width, self.bases, self.rank = width, bases, rank
        self.num_parameters = bases * (width + rank)
        self.u = nn.Parameter(1 + 0.1 * torch.randn(bases, rank, size))
        self.v = nn.Parameter(1 + 0.1 * torch.randn(bases, rank, size))

    def start(self) -> Tensor:
        """As VectorAttention: the projection 0, the factors 1 / r."""
        return torch.cat([torch.zeros(self.bases * self.width), torch.full((self.bases * self.rank,), 1 / self.rank)])

    def components(self) -> Tensor:
        """Outer products of the rows of U_k and V_k, whose sums the maps are: (K, r, R, R). The paper's Figure 5."""
        return self.u[..., None] * self.v[..., None, :]

    def maps(self, factors: Tensor) -> Tensor:
        """Q_k = U_k^T diag(s_k) V_k: factors s (N, K, r) -> (N, K, R, R). Source: dr1mask:eq-8."""
        return (self.u * factors[..., None]).mT @ self.v

    def project(self, crops: Tensor, kernel: Tensor) -> Tensor:
        """R' = t * R: crops (N, D, Q, Q), kernels t (N, K, D) -> (N, K, Q, Q). Source: dr1mask:eq-7."""
        return (kernel @ crops.flatten(2)).unflatten(2, crops.shape[2:])

    def forward(self, crops: Tensor, embedding: Tensor) -> Tensor:
        kernel, factors = embedding.split([self.bases * self.width, self.bases * self.rank], dim=1)
        projected = self.project(crops, kernel.unflatten(1, (self.bases, self.width)))
        attention = self.maps(factors.unflatten(1, (self.bases, self.rank)))
        return merge_bases(projected, attention, softmax=False)


ATTENTION = {"vector": VectorAttention, "full": FullAttention, "factored": FactoredAttention}


# ----------------------------------------------------------------------------------------------------------- panoptic


def panoptic_targets(target: Target, stride: int, size: Size, num_stuff: int) -> Tensor:
    """The right channel of the panoptic logits for each cell: (*size) int64, -1 where there is none.

    target: `stuff` (H, W), classes of stuff from 1, none where it is less; masks (M, H, W), the smallest counts.
    """
    result = torch.full(size, -1, dtype=torch.int64, device=target["masks"].device)
    things = torch.arange(1, len(target["masks"]) + 1, device=result.device)
    thing = semantic_map(target["masks"], things, stride)
    stuff = target["stuff"][stride // 2 :: stride, stride // 2 :: stride].long().clamp(min=0) - 1
    result[: thing.shape[0], : thing.shape[1]] = torch.where(thing > 0, num_stuff + thing - 1, stuff)
    return result


# -------------------------------------------------------------------------------------------------------------- model


class DR1Mask(nn.Module):
    """The whole model, in torchvision's interface.

    num_classes: K; basis: arguments of DR1Basis (width, norm, aligned); attention: "vector", "full" or "factored", and
    attention_size: R, of the last two; factors: "ab", "a", "b" or "none"; context: where they are computed from, the
    "box" tower, the "class" tower or the "fpn"; size: Q, cells along a side of a mask; mask_limit: positive locations
    of an image whose masks are trained, the best by score (None: all, as in BlendMask); semantic: weight of the
    auxiliary semantic loss, 0 leaves it out (the paper: 0.3); num_stuff: classes of stuff, 0 for no panoptic layer;
    panoptic_weight: of its loss; divisor: what the padded sides are divisible by, None for the stride of F (4), which
    the paper takes; all else goes to FCOS.

    forward(images, targets) in training -> FCOS's losses, "loss_mask" (and "loss_semantic", "loss_panoptic"); masks are
    full-size, and a panoptic target has `stuff` (H, W), classes from 1, 0 for none.
    forward(images, output_sizes=None) in evaluation -> [{"boxes", "labels", "scores", "masks" (N, H, W) bool}], and
    "panoptic_logits" (num_stuff + N, h, w) at the stride of F, things in the order of the scores.

    Ours: boxes, losses and masks are BlendMask's (the paper: "all hyperparameters"), but for masks, which are pasted
    where they were cut from. A panoptic model trains its masks by crops too, and its panoptic logits by a cross-entropy
    of each image's stuff and things. With an attention that has positions, a thing's logits are drawn within its box.
    Source: dr1mask:eq-5, dr1mask:eq-9, dr1mask:panoptic-layer, dr1mask:aligned-upsampling.
    """

    def __init__(
        self,
        num_classes: int = 80,
        basis: dict[str, Any] | None = None,
        attention: Literal["vector", "full", "factored"] = "factored",
        attention_size: int = 14,
        factors: Literal["ab", "a", "b", "none"] = "ab",
        context: Literal["box", "class", "fpn"] = "box",
        size: int = 56,
        mask_limit: int | None = None,
        semantic: float = 0.0,
        num_stuff: int = 0,
        panoptic_weight: float = 0.5,
        divisor: int | None = None,
        channels: int = 256,
        threshold_product: bool = True,
        head: dict[str, Any] | None = None,
        **fcos: Any,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("attention", attention, tuple(ATTENTION)),
            ("factors", factors, ("ab", "a", "b", "none")),
            ("context", context, ("box", "class", "fpn")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        width = (basis or {}).get("width", 32)
        options = {"size": attention_size} if attention != "vector" else {}
        self.attention = ATTENTION[attention](width, **options)
        head = {"learned_scales": False, **(head or {}), "top_channels": self.attention.num_parameters}
        if context == "class" and head.get("shared_towers"):
            raise ValueError("context from the class tower needs a class tower: shared_towers must be False")
        self.fcos = FCOS(num_classes, channels=channels, threshold_product=threshold_product, head=head, **fcos)
        assert self.fcos.head.top is not None
        with torch.no_grad():
            self.fcos.head.top.bias.copy_(self.attention.start())  # type: ignore[union-attr]
        self.context = ContextLayer(channels, width, factors) if factors != "none" else None
        self.context_from, self.size, self.mask_limit = context, size, mask_limit
        self.basis = DR1Basis(channels, levels=len(self.fcos.levels), **(basis or {}))
        self.stride = 2 ** (self.fcos.levels[0] - 1)  # of F
        self.fcos.divisor = divisor or self.stride
        if self.fcos.divisor % self.stride:
            raise ValueError(f"divisor must be a multiple of {self.stride}, the stride of the masks, not {divisor}")
        self.semantic = semantic_head(channels, num_classes) if semantic else None
        self.semantic_weight, self.panoptic_weight = semantic, panoptic_weight
        self.panoptic = PanopticLayer(width, num_stuff) if num_stuff else None
        self.num_stuff = num_stuff

    @property
    def semantic_stride(self) -> int | None:
        """Pixels between two cells of the semantic task's labels; None without that task."""
        return 2 * self.stride if self.semantic is not None else None

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        batch = make_batch(images, self.fcos.mean, self.fcos.std, self.fcos.divisor)
        pyramid, points, outputs = self.fcos.run(batch)
        features = self.features(batch, pyramid, outputs)  # (B, D, H, W)
        if self.training:
            targets = [{k: v for k, v in target.items() if k != "centers"} for target in targets or ()]  # full-size
            check_targets(images, targets, "masks")
            if self.num_stuff and any("stuff" not in target for target in targets):
                raise ValueError("a model with a panoptic layer needs a 'stuff' map (H, W) in every target")
            return self.losses(pyramid, points, outputs, features, targets)
        results = []
        for i, (size, output_size) in enumerate(batch.with_output(output_sizes)):
            found = self.fcos.detect(points, outputs, i)
            boxes, keep = to_output_size(found.boxes, size, output_size)
            found = found.pick(keep)
            embedding = self.fcos.head.top_at(outputs, points, i, found.location)  # (N, E)
            scores = self.mask_logits(features[i], found.boxes, embedding).sigmoid()
            scale = found.boxes.new_tensor([output_size[1] / size[1], output_size[0] / size[0]]).repeat(2)
            masks = paste_masks(scores, found.boxes * scale, output_size)
            result = {"boxes": boxes[keep], "labels": found.labels, "scores": found.scores, "masks": masks}
            if self.panoptic is not None:
                # A detection's column of W_thing is its own embedding: NMS left no other of this instance to average.
                logits = self.panoptic_logits(features[i], found.boxes, embedding)
                height, width = (-(-side // self.stride) for side in size)
                result["panoptic_logits"] = logits[:, :height, :width]
            results.append(result)
        return results

    def features(self, batch: Batch, pyramid: list[Tensor], outputs: Outputs) -> Tensor:
        """F (B, D, H, W): DR1Basis of the pyramid and the factors, at half the stride of the finest level."""
        height, width = batch.images.shape[-2:]
        factors = self.factors(pyramid, outputs)
        return self.basis(pyramid, factors, (height // self.stride, width // self.stride))

    def factors(self, pyramid: list[Tensor], outputs: Outputs) -> list[Factors]:
        """A and B of all levels of the head, finest first; none for a model without.

        The class tower, whose features nobody else needs, is run once more for its row of Table 3.
        Source: dr1mask:eq-5, dr1mask:table-3.
        """
        if self.context is None:
            return []
        maps = pyramid[-len(self.fcos.strides) :]
        if self.context_from == "class":
            maps = [self.fcos.head.class_tower(x, level) for level, x in enumerate(maps)]
        elif self.context_from == "box":
            parts = outputs.tower.split([x.shape[2] * x.shape[3] for x in maps], dim=1)
            maps = [part.mT.unflatten(2, x.shape[2:]) for part, x in zip(parts, maps, strict=True)]
        return self.context(maps)

    def mask_logits(self, features: Tensor, boxes: Tensor, embedding: Tensor) -> Tensor:
        """Mask logits (N, Q, Q) of instances of one image: F (D, H, W), boxes (N, 4) in pixels, embeddings (N, E)."""
        crops = crop_bases(features[None], [boxes], self.stride, self.size)  # (N, D, Q, Q)
        return self.attention(crops, embedding.to(crops))

    def panoptic_logits(self, features: Tensor, boxes: Tensor, embedding: Tensor) -> Tensor:
        """Logits of stuff, then of the N instances, on the cells of F: (num_stuff + N, H, W).

        features: F (D, H, W); boxes (N, 4) in pixels; embedding (N, E). Source: dr1mask:panoptic-layer.
        """
        if self.panoptic is None:
            raise ValueError("this model has no panoptic layer: num_stuff is 0")
        dtype = torch.promote_types(features.dtype, torch.float32)
        features, embedding = features.to(dtype), embedding.to(dtype)
        if isinstance(self.attention, VectorAttention):
            return self.panoptic(features, embedding.T)
        stuff = self.panoptic(features, features.new_zeros(len(features), 0))
        logits = self.mask_logits(features, boxes, embedding)
        return torch.cat([stuff, paste_logits(logits, boxes, self.stride, (features.shape[1], features.shape[2]))])

    def losses(
        self, pyramid: list[Tensor], points: Points, outputs: Outputs, features: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """All losses by name; the overall loss is their plain sum."""
        assignment = self.fcos.assign(points, targets)
        losses = fcos_losses(outputs, assignment, self.fcos.giou_smooth)
        losses["loss_box"] = losses["loss_box"] + self.fcos.idle(pyramid)
        losses |= self.mask_losses(points, outputs, assignment, features, targets)
        if self.semantic is not None:
            logits = self.semantic(pyramid[0])  # (B, num_classes + 1, h, w)
            labels = semantic_targets(targets, 2 * self.stride, (logits.shape[-2], logits.shape[-1]))
            losses["loss_semantic"] = self.semantic_weight * F.cross_entropy(logits, labels)
        return losses

    def mask_losses(
        self, points: Points, outputs: Outputs, assignment: Assignment, features: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Binary cross-entropy of the positive locations' masks over their objects' boxes, and the panoptic loss.

        A location's mean is weighted by its centre-ness target, their sum divided by the weights' sum, as in BlendMask.
        """
        limit = self.mask_limit or assignment.labels.shape[1]
        index, positive = sample_locations(outputs, assignment, limit)  # (B, S)
        masks, weights = features.sum() * 0, features.new_zeros(())  # a gradient for F where no object asks for it
        panoptic = []
        for i, target in enumerate(targets):
            location = index[i, positive[i]]
            matched = assignment.matched[i, location]
            embedding = self.fcos.head.top_at(outputs, points, i, location)  # (S, E)
            logits = self.mask_logits(features[i], target["boxes"][matched], embedding)
            truth = crop_masks(target["masks"], target["boxes"], self.size)[matched]
            entropy = F.binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="none").mean(dim=(1, 2))
            weight = centerness(assignment.distances[i, location]).to(entropy)
            masks, weights = masks + (entropy * weight).sum(), weights + weight.sum()
            if self.panoptic is not None:
                panoptic.append(self.panoptic_loss(features[i], target, embedding, matched))
        losses = {"loss_mask": masks / normaliser(weights, least=1e-6)}
        if panoptic:
            losses["loss_panoptic"] = self.panoptic_weight * torch.stack(panoptic).mean()
        return losses

    def panoptic_loss(self, features: Tensor, target: Target, embedding: Tensor, matched: Tensor) -> Tensor:
        """Cross-entropy of an image's cells, each of which is stuff or a thing; embedding (S, E), matched (S,).

        Cells of neither count for nothing, nor do those of an object without a positive location (N_c = 0), whose
        column there is none of. Source: dr1mask:eq-9.
        """
        mean, number = mean_embeddings(embedding, matched, len(target["boxes"]))
        logits = self.panoptic_logits(features, target["boxes"].to(features), mean)
        absent = torch.cat([number.new_zeros(self.num_stuff), (number == 0).long()]).bool()
        logits = logits.masked_fill(absent[:, None, None], -torch.inf)
        truth = panoptic_targets(target, self.stride, (features.shape[1], features.shape[2]), self.num_stuff)
        truth = truth.masked_fill((truth >= 0) & absent[truth.clamp(min=0)], -1)
        entropy = F.cross_entropy(logits[None], truth[None], ignore_index=-1, reduction="sum")
        return entropy / (truth >= 0).sum().clamp(min=1)
