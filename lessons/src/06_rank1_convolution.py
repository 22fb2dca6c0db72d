# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: Rank-1 dynamic convolution
#     minutes: {read: 30, do: 50, run: 1}
#     needs: ["lesson 1 (FCOS)", "lesson 5 (bases and attention maps)", "outer products"]
#     gives:
#       - a convolution that differs at every position, and costs no more
#       - why one of its factors comes before and the other after
#       - DR1Basis, an inverted pyramid
#       - attention maps from shared factors
#       - upsampling that undoes strided convolutions
#     papers: ["dr1mask:eq-1", "dr1mask:eq-2", "dr1mask:eq-3", "dr1mask:eq-4", "dr1mask:eq-6", "dr1mask:eq-8"]
# ---

# %%
from condinst_edu import doctor

doctor.quick("dr1mask", "condinst")

# %% [markdown]
# ## A result first
#
# A tiny DR1Mask finds the shapes in an image that it has never seen. In its mask branch convolutions are steered, cell by
# cell, by two maps, $A$ and $B$, which the detector's tower computes. In the last picture the weights are the same, but
# all numbers of $A$ and $B$ are 1, so that the convolutions are plain ones. Can you see a difference?

# %% tags=["first-result", "demo"]
import torch

from condinst_edu.teach import pictures as pic
from condinst_edu.teach.tiny import held_out, load_tiny, read_card

torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save

trained = load_tiny("dr1mask")
model, class_names = trained.model, trained.class_names
image, target = held_out(50)[7]
image = image / 255  # (3, 128, 128)


def segment(model, image):
    """The detections that the model is sure of."""
    with torch.no_grad():
        result = model([image])[0]
    return {name: value[result["scores"] > 0.5] for name, value in result.items()}


panels = {"the truth": (image, {"masks": target["masks"]}), "DR1Mask": (image, segment(model, image))}
context, model.context = model.context, None  # no factors: plain convolutions
panels["A = B = 1"] = (image, segment(model, image))
model.context = context
pic.show_panels(panels, columns=3)

# %% [markdown] tags=["instructor"]
# minutes: 5
# There is next to none. Leave it open why: a model of 128-pixel images that has P2 may do without context. The lesson
# measures it under "Break it", and docs/results.md has models trained without A and B.

# %% [markdown]
# ## The problem
#
# CondInst lets each instance bring filters of its own, 169 numbers, for features of 8 channels. That is enough for
# masks without a class. To tell classes of *stuff* apart, a map needs more channels, and filters grow with the square
# of their number. It is worse if not each instance but each *position* is to have a kernel of its own: a 3x3 kernel
# from $D$ to $D$ channels has $9 D^2$ numbers. DR1Conv makes do with $2 D$.

# %%
from condinst_edu.mask_head import DynamicMaskHead

print("channels   filters of a CondInst instance   3x3 kernel of a position   DR1Conv's factors")
for channels in (4, 8, 32, 64):
    filters = DynamicMaskHead(channels, width=channels).num_parameters
    print(f"{channels:8}   {filters:30}   {9 * channels**2:24}   {2 * channels:17}")

# %% [markdown] tags=["instructor"]
# minutes: 4
# Let the class guess how a kernel of 9216 numbers can be described by 64, before Eq. 1.

# %% [markdown]
# ## The idea, equation by equation
#
# **On a matrix** (`dr1mask:eq-1`). Take a static matrix $W \in \mathbb{R}^{m \times d}$ and multiply it, number by
# number, with a matrix of rank one:
#
# $$W' = W \circ M, \quad M = b \, a^\top, \qquad a \in \mathbb{R}^d, \; b \in \mathbb{R}^m.$$
#
# Row $i$ of $W$ is scaled by $b_i$, column $j$ by $a_j$. A product with $W'$ never needs $W'$ itself:
#
# $$(W' x)_i = \sum_j W_{ij} \, b_i a_j \, x_j = b_i \sum_j W_{ij} (a_j x_j)
# \quad\Longrightarrow\quad W' x = \big(W (x \circ a)\big) \circ b.$$
#
# $a$ belongs to the inputs and goes in front; $b$ belongs to the outputs and can only come after the sum.

# %%
from condinst_edu.dr1mask import DR1Conv2d, dr1conv, rank1_weight
from condinst_edu.papers import naive_dr1mask as naive
from condinst_edu.teach import check, deviate, same_as, show_equation

random = torch.Generator().manual_seed(0)
W, a, b, x = (torch.randn(*s, generator=random) for s in ((5, 3), (3,), (5,), (3,)))
same_as(rank1_weight(W, a, b), naive.eq_1(W, a, b), name="Eq. 1 in loops")
same_as(rank1_weight(W, a, b) @ x, (W @ (x * a)) * b, name="(W (x o a)) o b")
print("rank of b a^T:", int(torch.linalg.matrix_rank(rank1_weight(torch.ones(5, 3), a, b))))

# %% [markdown]
# **On a map, 1x1 kernel** (`dr1mask:eq-2`). Now $a$ and $b$ are other vectors at every position $(h, w)$, columns of
# two maps $A, B \in \mathbb{R}^{C \times H \times W}$. So is $W'_{hw}$, a $C \times C$ matrix:
#
# $$y_{hw} = W'_{hw} \, x_{hw} = \big(W (x_{hw} \circ a_{hw})\big) \circ b_{hw}.$$
#
# **Any kernel** (`dr1mask:eq-4`): $\quad Y = \mathrm{DR1Conv}_{A,B}(X) = \mathrm{Conv}(X \circ A) \circ B.$
#
# $A$ scales what a position *gives* to its neighbours, $B$ what it *takes* from them. It is two products around an
# ordinary convolution:

# %%
X, A, B = (torch.randn(1, 4, 5, 7, generator=random) for _ in range(3))
with torch.no_grad():
    for kernel in (1, 3):
        conv = DR1Conv2d(4, kernel)
        weight = conv.conv.weight
        same_as(conv(X, A, B)[0], naive.eq_4(weight, X[0], A[0], B[0]), name=f"Eq. 4 in loops, {kernel}x{kernel}")
        if kernel == 1:
            same_as(conv(X, A, B)[0], naive.eq_2(weight[:, :, 0, 0], X[0], A[0], B[0]), name="Eq. 2 in loops")
show_equation("dr1mask:eq-4")

# %% [markdown]
# **What Eq. 3 as printed would compute.** The paper writes the general kernel out as a sum (`dr1mask:eq-3`)
#
# $$y_{hw} = \sum_j \sum_k \big(W[j, k] \, (X[h - j, w - k] \circ A[h - j, w - k]) \circ B[h - j, w - k]\big)$$
#
# and says that Eq. 4 computes it in parallel. Look at the index of $B$. It is that of the *neighbour*, inside the sum;
# in Eq. 4 it is $(h, w)$, outside. For a 1x1 kernel there is one term, $j = k = 0$, and no difference. For 3x3:

# %%
with torch.no_grad():
    for kernel in (1, 3):
        weight = torch.randn(4, 4, kernel, kernel, generator=random)
        printed, parallel = naive.eq_3(weight, X[0], A[0], B[0]), naive.eq_4(weight, X[0], A[0], B[0])
        apart = float((printed - parallel).abs().max() / parallel.abs().max())
        print(f"{kernel}x{kernel}: Eq. 3 and Eq. 4 differ by at most {apart:.1%} of the largest value")

# %% [markdown]
# Which one is meant? The text says "before and after the static convolution": Eq. 4. It is also the more useful one. A
# gate shows why: let $B$ be 1 inside a disc and 0 outside, $A$ be 1, $X$ noise. How much comes out, and where?

# %% tags=["demo"]
from condinst_edu.teach.deviations import DEVIATIONS

y, x = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
gate = (((y - 9) ** 2 + (x - 14) ** 2) <= 49).float()  # (20, 30)
noise = torch.randn(1, 8, 20, 30, generator=random)
weight = torch.randn(8, 8, 3, 3, generator=random)
ways = {"Eq. 4": dr1conv}
ways |= {name: DEVIATIONS[name].function for name in ("dr1conv-as-printed", "dr1conv-b-before")}
maps = {"B": gate}
for name, way in ways.items():
    size = way(noise, weight, torch.ones_like(noise), gate.expand_as(noise))[0].norm(dim=0)  # (20, 30)
    outside = float(size[gate == 0].square().sum() / size.square().sum())
    maps[f"{name.removeprefix('dr1conv-')}: {outside:.0%} outside"] = size / size.max()
pic.show_maps(maps, columns=4, limit=1, width=2.2)

# %% [markdown]
# With Eq. 4 a position decides for itself whether it takes anything. With $B$ before the sum, as printed or as a second
# $A$, what is inside leaks out by one cell, and cells at the border inside get less. A mask's outline is exactly there.

# %% [markdown] tags=["instructor"]
# minutes: 12
# Write Eq. 3 and 4 side by side and let the class find the index. Then: is Eq. 3 "B before the convolution"? No: there
# B scales output channels at the neighbour, while Conv(X o A o B) scales input channels. Three different operations,
# which only agree where B is constant (the second and third not even then).

# %% [markdown]
# ### What it costs
#
# One map like P5's of an image of 800 x 1088 pixels, 32 channels. *Dynamic* is a kernel of its own for every position,
# given. $A$ and $B$ come from a tower of 256 channels. The best of ten runs each, one after the other:

# %% tags=["demo"]
from timeit import repeat

from condinst_edu.bench.dr1conv import dynamic_convolution
from condinst_edu.dr1mask import ContextLayer

conv, layer = DR1Conv2d(32), ContextLayer(256, 32)
X, A, B = (torch.randn(1, 32, 25, 34, generator=random) for _ in range(3))
tower = torch.randn(1, 256, 25, 34, generator=random)
kernels = conv.conv.weight.detach().flatten(1).expand(25 * 34, -1, -1).contiguous()  # (850, 32, 288)
with torch.inference_mode():
    rows = {
        "plain convolution": lambda: conv.conv(X),
        "DR1Conv, A and B given": lambda: conv(X, A, B),
        "making A and B": lambda: layer([tower]),
        "fully dynamic, kernels given": lambda: dynamic_convolution(X[0], kernels),
    }
    times = {name: min(repeat(way, number=1, repeat=10)) for name, way in rows.items()}
for name, seconds in times.items():
    print(f"{name:30} {1e3 * seconds:7.2f} ms, {seconds / times['plain convolution']:5.1f} times a plain one")

# %% [markdown]
# DR1Conv itself is hardly dearer than the convolution in it. What costs is *making* $A$ and $B$, a convolution on a map
# of 256 channels; the fully dynamic one would need that layer to make 9216 numbers a cell instead of 64.
# `condinst-edu bench dr1conv` measures it with care, on a map like P3's too.

# %% [markdown] tags=["instructor"]
# minutes: 4
# "Very computationally efficient" is true of Eq. 4, and less so of Eq. 5, which makes its inputs.

# %% [markdown]
# ## Look inside: DR1Basis, an inverted pyramid
#
# The top layer (`dr1mask:eq-5`) reads the box tower at every level $l$ and gives $C_l = [A_l, B_l]$ for all cells, and
# an embedding for each instance (`dr1mask:table-3` tries other places to read). From the coarsest level down, each step merges the pyramid's $P_l$ with what came from
# above, steered by $A_l$ and $B_l$ (`dr1mask:eq-6`):
#
# $$F_l = \mathrm{DR1Conv}_{A_l, B_l}\big(\mathrm{Conv}_{3 \times 3}(P_l) + \uparrow_2(F_{l+1})\big).$$
#
# The paper goes from P7 to P3. Our images are small: P5 to P3, then P2, which has no tower above it and is merged by a
# plain convolution. Each row is a level, coarsest first. All maps are sums of squares over channels, but for the last.

# %% tags=["demo"]
from condinst_edu.layers.images import make_batch

with torch.no_grad():
    batch = make_batch([image], model.fcos.mean, model.fcos.std, model.fcos.divisor)
    pyramid, points, outputs = model.fcos.run(batch)
    factors = model.factors(pyramid, outputs)  # [(A_l, B_l)], finest first
    steps = model.basis.steps(pyramid, factors)  # [F_2, ..., F_5]
    F = model.features(batch, pyramid, outputs)[0]  # (16, 64, 64)
print("F_l, coarsest first:", [tuple(step.shape[1:]) for step in steps[::-1]], "then F:", tuple(F.shape))


def strength(x):
    """Root of the mean square over channels: (1, C, H, W) -> (64, 64), each cell a square; the top 5 % are cut."""
    size = x[0].square().mean(dim=0).sqrt()
    size = size.clamp(max=float(size.quantile(0.95)))
    return size.repeat_interleave(64 // len(size), 0).repeat_interleave(64 // len(size), 1)


maps = {}
for k, (a, b) in reversed(list(enumerate(factors, start=1))):
    level = model.fcos.levels[k]
    for name, x in {"P": pyramid[k], "A": a - 1, "B": b - 1, "F": steps[k]}.items():
        maps[f"{name}{level}" + (" - 1" if name in "AB" else "")] = strength(x)
pic.show_maps(maps, columns=4)

# %% tags=["hide-input"]
maps = {"the image": image.mean(dim=0)[::2, ::2] - 0.5, "F2": strength(steps[0])}
chosen = F[:, 8:-8, 8:-8].flatten(1).std(dim=1).topk(6).indices
for c in chosen:
    channel = F[c] - F[c].mean()
    limit = float(channel.abs().quantile(0.98))
    maps[f"F, channel {c}"] = channel.clamp(-limit, limit)
pic.show_maps(maps, columns=4)

# %% [markdown]
# $P_l$ responds to the objects, each level to those of its size. $A$ and $B$ vary from cell to cell, and most along the
# border, where convolutions read zeros. The coarse steps add a broad background; outlines come from below, with $P_3$ and
# $P_2$. The last rows show $F_2$ and six of the 16 channels of $F$, the *bases* of all masks: some are filled shapes, some
# their edges.

# %% [markdown] tags=["instructor"]
# minutes: 8
# Misconception: "A and B belong to an instance". They belong to a cell, and cells near each other may see different
# objects. That is what position-sensitive means here; the instance comes in with its embedding, below.

# %% [markdown]
# ### Upsampling that undoes strided convolutions
#
# What is $\uparrow_2$? A 3x3 convolution with stride 2 and padding 1 centres its output $j$ on input $2 j$, for $2 n$
# inputs as for $2 n - 1$. To come back, output $k$ has to read $k / 2$, and what is surplus on the right and at the
# bottom is cut off (`dr1mask:aligned-upsampling`). Then the input need only be divisible by 4 and not by 32 or 128, and
# no level is shifted against the next: 0.1 to 0.5 PQ in `dr1mask:table-5`. We put one bright pixel through strided means, and come back in several ways:

# %% tags=["demo"]
import torch.nn.functional as nnf

from condinst_edu.layers.upsample import upsample_to

UPSAMPLINGS = {"upsample_to": upsample_to}
UPSAMPLINGS |= {n: d.function for n, d in DEVIATIONS.items() if n.startswith("upsample-to-")}
mean = torch.tensor([1.0, 2, 1]) / 4
kernel = torch.outer(mean, mean)[None, None]


def drift(upsample, size, depth=4):
    """Pixels (x, y) by which a bright pixel has moved after `depth` halvings and as many doublings."""
    maps = [torch.zeros(1, 1, *size)]
    maps[0][..., size[0] // 2, size[1] // 2] = 1
    for _ in range(depth):
        maps.append(nnf.conv2d(maps[-1], kernel, stride=2, padding=1))
    x = maps.pop()[0]
    while maps:
        x = upsample(x, tuple(maps.pop().shape[2:]))
    x = x[0] / x.sum()
    columns, rows = (torch.arange(n, dtype=torch.float) - n // 2 for n in (size[1], size[0]))
    return float(x.sum(dim=0) @ columns), float(x.sum(dim=1) @ rows)


for size in ((97, 131), (128, 160)):
    for name, upsample in UPSAMPLINGS.items():
        dx, dy = drift(upsample, size)
        print(f"{size[0]}x{size[1]}, {name:30} moved by ({dx:+6.2f}, {dy:+6.2f}) pixels")

# %% [markdown] tags=["instructor"]
# minutes: 8
# Lesson 3's `aligned_upsample` is right where the result's cells are pixels. Here they are cells of the next level, and
# the address of a cell is where strided convolutions put it. Same word, two questions.

# %% [markdown]
# ## Factored attention
#
# BlendMask gives each instance an attention map of 14x14 for each of 4 bases, 784 numbers (lesson 5). DR1Mask has $D$
# bases, so the instance first projects its crop $R$ to $K = 4$ channels with weights $t$ of its own (`dr1mask:eq-7`),
# $R' = t * R$. And its maps are put together from parts that all instances share (`dr1mask:eq-8`):
#
# $$Q_k = U_k^\top \, \Sigma_k \, V_k = \sum_{d=1}^{4} s_{kd} \; u_{kd} \, v_{kd}^\top,$$
#
# with $U_k$ and $V_k$ learned, and only the diagonal $s_k$ the instance's. The mask is $\sum_k Q_k \circ R'_k$. Below
# are all 16 components $u_{kd} v_{kd}^\top$ that our model has learned (the paper's Figure 5): rows are $k$, columns $d$.

# %% tags=["demo"]
attention = model.attention
D, K = attention.width, attention.bases
full = K * attention.u.shape[2] ** 2
print(f"ours: {K} maps of {attention.u.shape[2]}x{attention.v.shape[2]} are {full} numbers in full,", end=" ")
print(f"{K * attention.rank} factors s here; {K * D} weights t come with them")
components = attention.components().detach()  # (4, 4, 7, 7)
parts = {f"k = {k + 1}, d = {d + 1}": components[k, d] for k in range(K) for d in range(attention.rank)}
pic.show_maps(parts, columns=4, limit=float(components.abs().max()), width=1.4)

# %% [markdown]
# All began as nearly flat maps. Some have become a bump in the middle, some a frame, some a slope across the box. Signed
# sums of four make an instance's maps. Three instances, each with its mask, its four $Q_k$ and its four $R'_k$:

# %% tags=["demo"]
from condinst_edu.teach.factoring import factored_of, show_factored, with_factors

instances = factored_of(model, image)
show_factored(image, instances[:3], class_names)

# %% [markdown]
# "Left or right", "above or below", "middle or rim": that is what the maps say here, and nearly the same for all three
# instances. A mask is a matter of where in the box a base counts, and with which sign.

# %% [markdown] tags=["instructor"]
# minutes: 8
# late: skip where lesson 5 was given, which has it (saves 8)
# The paper's "784 to 16" counts s alone. Let the class find what else the embedding carries (t: D K numbers).

# %% [markdown]
# ## Does it learn?
#
# The cards of the trained models: 200 held-out images, the same data and number of iterations for all.

# %% tags=["demo"]
CARDS = {"condinst": "CondInst", "dr1mask": "DR1Mask"}
for name, what in CARDS.items():
    card = read_card(name)
    box, mask_ap = (100 * card["metrics"][kind]["AP"] for kind in ("box", "mask"))
    print(f"{what:24} box AP {box:.1f}  mask AP {mask_ap:.1f}  ({card['iterations']} iterations)")

# %% [markdown]
# ## Break it
#
# The trained weights, with the operation changed under them. `deviate` swaps the library's function inside a block.

# %%
from condinst_edu.engine.evaluate import evaluate

data = held_out(12)
names = [
    n
    for n, d in DEVIATIONS.items()
    if d.of in ("condinst_edu.dr1mask.dr1conv", "condinst_edu.layers.upsample.upsample_to")
]
with torch.no_grad():
    print(f"{'as trained':32} mask AP {100 * evaluate(model, data, progress=False)['mask']['AP']:.1f}")
    for name in names:
        with deviate(name) as deviation:
            wrong = evaluate(model, data, progress=False)["mask"]["AP"]
        print(f"{name:32} mask AP {100 * wrong:.1f}  {deviation.line.partition(':')[0]}")

# %% [markdown]
# Two very different answers. Wrong upsampling shifts the bases against the image, and the boxes cut out the wrong place;
# the last doubling, of $F$ itself, weighs most. (On images of 128 pixels, of which every level has an even number of
# cells, *stretched* equals half-pixel centres, and where to cut does not matter.) The wrong forms of DR1Conv cost next
# to nothing: this model hardly uses what its factors say. Objects are small, P2 has their outlines, and the steered
# levels only add background. The operation is right; what it is worth, our miniature cannot show.

# %% [markdown] tags=["instructor"]
# minutes: 6
# late: say what came out, and go on (saves 4)
# Let the class explain the two groups before reading on. What would have to change for the factors to matter? Larger
# images and objects, more classes that look alike, stuff: the paper's gains in Table 2 are larger than in Table 1.

# %% [markdown]
# ## Paper and miniature
#
# `dr1mask:table-4`: what an instance weighs its bases with, on COCO. Ours is one model and one seed, on drawn shapes, so
# only its own row is filled. `condinst-edu reproduce dr1mask:table-4` trains the other two; that of `dr1mask:table-1` trains
# without A, B or both, and docs/reproduced/README.md has what came of them.

# %% tags=["demo"]
from condinst_edu.papers import ERRATA, table

metrics = read_card("dr1mask")["metrics"]["mask"]
print(f"{'':12} paper: AP   AP50   AP75       ours: AP   AP50   AP75")
for kind, _, *paper in table("dr1mask:table-4").rows:
    line = f"{kind:12} " + " ".join(f"{value:8.1f}" for value in paper)
    if kind == "Factored":
        line += "       " + " ".join(f"{100 * metrics[key]:7.1f}" for key in ("AP", "AP50", "AP75"))
    print(line)

# %% [markdown]
# ## Play
#
# Choose an instance and one of its factors $s_{kd}$, multiply it, and see what becomes of its maps (second row) and its
# mask. `with_factors` is the plain function behind the sliders.

# %% tags=["play"]
from condinst_edu.teach.factor_widget import change_factors

change_factors(model, image, class_names)

# %% tags=["play", "demo"]
first = instances[0]
for times in (1, 0, -2, 5):
    factors = first.factors.clone()
    factors[0] *= times  # all factors of the first base
    changed = with_factors(model, first, factors)
    print(f"s_1 times {times:2}: the mask has {int(changed.mask.sum()):4} pixels", end=", ")
    print(f"{int((changed.mask & first.mask).sum()):4} of which it had before")

# %% [markdown]
# ## Exercises
#
# Each answer is compared with the library on random inputs; known mistakes are named.

# %% [markdown] tags=["exercise"]
# 06-rank-one
# Write Eq. 1: `weight` (m, d), `a` (d,), `b` (m,). Return $W \circ (b a^\top)$.


# %% tags=["stub"]
def rank_one(weight, a, b):
    """W o (b a^T): (m, d)."""
    raise NotImplementedError


# %% tags=["solution"]
def rank_one(weight, a, b):
    """W o (b a^T): (m, d)."""
    return weight * b[:, None] * a[None, :]


# %% tags=["check"]
check("06-rank-one", rank_one)

# %% [markdown] tags=["exercise"]
# 06-dr1conv
# Write Eq. 4: `x`, `a`, `b` (B, D, H, W), `weight` (D, D, 3, 3). The result has the size of `x`.


# %% tags=["stub"]
def my_dr1conv(x, weight, a, b):
    """Conv(X o A) o B: (B, D, H, W)."""
    raise NotImplementedError


# %% tags=["solution"]
def my_dr1conv(x, weight, a, b):
    """Conv(X o A) o B: (B, D, H, W)."""
    return nnf.conv2d(x * a, weight, padding=1) * b


# %% tags=["check"]
check("06-dr1conv", my_dr1conv)

# %% [markdown] tags=["exercise"]
# 06-mean-embeddings
# For panoptic segmentation one layer gives the logits of stuff and of things, $Y = W^\top F$ (`dr1mask:panoptic-layer`). In
# training, an object's column of $W$ is the mean embedding of the locations that are assigned to it (`dr1mask:eq-9`).
# Write it: `embeddings` (S, E), `instance` (S,), whose each is, `count` objects. Return (count, E), 0 for an object
# without any, and how many each has, (count,).


# %% tags=["stub"]
def mean_of_each(embeddings, instance, count):
    """Mean embedding (count, E) and number (count,) of each object."""
    raise NotImplementedError


# %% tags=["solution"]
def mean_of_each(embeddings, instance, count):
    """Mean embedding (count, E) and number (count,) of each object."""
    total = torch.zeros(count, embeddings.shape[1]).index_add(0, instance, embeddings)
    number = torch.bincount(instance, minlength=count)
    return total / number.clamp(min=1)[:, None], number


# %% tags=["check"]
check("06-mean-embeddings", mean_of_each)

# %% [markdown] tags=["exercise"]
# 06-aligned-upsampling
# Write $\uparrow_2$: `x` (C, H, W), `size` (height, width) at most twice that of `x`. Output $k$ reads input $k / 2$,
# between two cells or on one; beyond the last cell is the last cell.


# %% tags=["stub"]
def upsample(x, size):
    """(C, H, W) -> (C, *size)."""
    raise NotImplementedError


# %% tags=["solution"]
def upsample(x, size):
    """(C, H, W) -> (C, *size)."""
    for axis in (-1, -2):
        x = x.transpose(axis, -1)  # the axis to work on comes last
        following = torch.cat([x[..., 1:], x[..., -1:]], dim=-1)
        between = (x + following) / 2
        x = torch.stack([x, between], dim=-1).flatten(-2)  # even outputs, odd outputs
        x = x.transpose(axis, -1)
    return x[..., : size[0], : size[1]]


# %% tags=["check"]
check("06-aligned-upsampling", upsample)

# %% [markdown]
# ## What the paper says and what the code does
#
# DR1Mask's code was never published, so what the paper leaves open had to be decided; docs/details.md lists it. And
# there are places where the paper contradicts itself, each with its witness:

# %%
for erratum in ERRATA.values():
    if erratum.id.startswith("dr1mask:"):
        print(f"{'✓' if erratum.witness() else '✗'} {erratum.where}: {erratum.says}")
        print(f"  {erratum.status}: {erratum.finding}\n")

# %% [markdown]
# ## In three lines
#
# - A matrix times one of rank one costs two vectors: $a$ in front of the product, $b$ behind it.
# - DR1Conv does that at every position; what is dear is to make $A$ and $B$, not to use them.
# - Maps keep their place only if upsampling undoes what strided convolutions did.
#
# Next: [lesson 7](07_point_and_segment.ipynb), one click, one object.
