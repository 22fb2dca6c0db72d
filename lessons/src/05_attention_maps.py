# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: From a vector to an attention map
#     minutes: {read: 30, do: 65, run: 1}
#     needs: ["lesson 1 (FCOS)", "lesson 3 (where a cell sits)", "lesson 4 (CondInst, whole)"]
#     gives: ["a mask put together by hand from four maps", "YOLACT, FCIS, BlendMask and factored attention as one family", "what they cost, and what cropping costs"]
#     papers: ["slides:blendmask-blender", "slides:yolact-vector", "slides:fcis", "dr1mask:eq-7", "dr1mask:eq-8", "dr1mask:table-4"]
# ---

# %%
from condinst_edu import doctor

doctor.quick("blendmask", "condinst")

# %% [markdown]
# ## A result first
#
# A tiny BlendMask has found an object. Its mask was not drawn by filters, as CondInst's are. It was **mixed** from four
# maps, the *bases*, which all objects of the image share. Upper row: the box, then the bases cut out at the box. Below:
# how much of each basis the object takes, cell by cell, and the sum.

# %% tags=["first-result", "demo"]
import torch
import torch.nn.functional as F

from condinst_edu.teach import pictures as pic
from condinst_edu.teach.blending import blends_of
from condinst_edu.teach.tiny import held_out, load_tiny

torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save

trained = load_tiny("blendmask")
model, class_names = trained.model, trained.class_names
photo, target = held_out(50)[17]
photo = photo / 255  # (3, 128, 128)
instances = blends_of(model, photo)  # by falling score
first = instances[0]
pic.show_blend(photo, first, f"{class_names[first.label - 1]} {first.score:.2f}")

# %% [markdown]
# The weights are blurred: the detector predicted 7 x 7 numbers for each basis, no more. The outline is sharp all the
# same. Where does it come from? And why does one basis know lower parts only, another upper left ones? That is this
# lesson.

# %% [markdown] tags=["instructor"]
# minutes: 5
# Ask what each basis seems to have learnt, then what the weights do near the border of the box. Two things to take
# along: sharp edges are in the bases, and the attention only says which basis counts where.

# %% [markdown]
# ## The problem
#
# Four maps for all objects: each of them can say "here is an object", but not "here is *this* object". CondInst tells
# objects apart by coordinates (lesson 3). BlendMask **cuts out the box** first, and whatever is not in the box is gone.
# What remains is the hard part: the neighbour that reaches into the box.
#
# A scene to work on. The object is the L. The disc has its colour, and lies in its box. The dark patch belongs to the
# L. Four bases, made by hand at half the resolution: *yellow?* finds both objects and misses the patch, *dark?* finds
# the patch, *yes* and *no* say the same everywhere.

# %% tags=["demo"]
H, W, stride = 64, 96, 2
y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
upright = (x >= 20) & (x < 34) & (y >= 6) & (y < 58)
shape = upright | ((x >= 20) & (x < 74) & (y >= 44) & (y < 58))  # the L
disc = (x - 56) ** 2 + (y - 20) ** 2 <= 13**2
patch = (x >= 22) & (x < 32) & (y >= 47) & (y < 55)
yellow = (shape | disc) & ~patch
scene = torch.full((3, H, W), 0.55)
scene[:, yellow] = torch.tensor([0.95, 0.85, 0.35])[:, None]
scene[:, patch] = torch.tensor([0.25, 0.2, 0.3])[:, None]


def basis(where):
    """Logits (H / 2, W / 2): 6 where the mask (H, W) is, -6 where it is not."""
    return 12 * F.avg_pool2d(where[None].float(), stride)[0] - 6


everywhere = torch.ones(H, W)
names = ("yellow?", "dark?", "yes", "no")
bases = torch.stack([basis(yellow), basis(patch), basis(everywhere), basis(0 * everywhere)])
box = torch.tensor([[18.0, 4, 76, 60]])  # (1, 4)
figure, axes = pic.new_figure(1, 5, 2.2, 1.7)
pic.draw_image(axes[0], scene)
pic.draw_boxes(axes[0], box)
for ax, name, values in zip(axes[1:], names, bases, strict=True):
    pic.draw_map(ax, values, name, 6)
figure

# %% [markdown] tags=["instructor"]
# minutes: 5
# Let the class colour a 7 x 7 grid over the box by hand: which basis in which cell? There is more than one solution,
# and none of them needs a fine grid.

# %% [markdown]
# ## The idea, equation by equation
#
# **1. Cut out** (`slides:blendmask-blender`). The bases $B \in \mathbb{R}^{K \times H \times W}$ sit at stride $s$, the
# box is $(x_0, y_0, x_1, y_1)$ in pixels. Cell $(i, j)$ of the crop $R \in \mathbb{R}^{K \times m \times m}$ reads the
# bases bilinearly at its own middle,
#
# $$u_{ij} = \Big(x_0 + \tfrac{j + 1/2}{m} (x_1 - x_0), \;\; y_0 + \tfrac{i + 1/2}{m} (y_1 - y_0)\Big),
# \qquad \text{which is } \; u_{ij} / s - \tfrac12 \; \text{in cells of } B.$$
#
# This is RoIAlign with one sample in a cell. The half cell: cell 0 covers the pixels from 0 to $s$, so its middle,
# where its value belongs, is at $s / 2$. Plain loops, against the library:

# %%
from condinst_edu.blendmask import blend, crop_bases, crop_masks, merge_bases, paste_masks
from condinst_edu.teach import check, deviate, same_as


def crop_by_loops(maps, box, stride, size):
    """Crop (K, size, size) of maps (K, H, W); the box must lie within the map."""
    x0, y0, x1, y1 = box.tolist()
    crop = torch.zeros(len(maps), size, size)
    last_i, last_j = maps.shape[1] - 1, maps.shape[2] - 1
    for i in range(size):
        for j in range(size):
            v = min(max((y0 + (i + 0.5) / size * (y1 - y0)) / stride - 0.5, 0), last_i)
            u = min(max((x0 + (j + 0.5) / size * (x1 - x0)) / stride - 0.5, 0), last_j)
            p, q = int(v), int(u)
            below, right = min(p + 1, last_i), min(q + 1, last_j)
            upper = (1 - (u - q)) * maps[:, p, q] + (u - q) * maps[:, p, right]
            lower = (1 - (u - q)) * maps[:, below, q] + (u - q) * maps[:, below, right]
            crop[:, i, j] = (1 - (v - p)) * upper + (v - p) * lower
    return crop


noise = torch.randn(3, 17, 29, generator=torch.Generator().manual_seed(0))
some_box = torch.tensor([[7.3, 2.1, 51.0, 30.6]])
same_as(crop_by_loops(noise, some_box[0], 2, 9), crop_bases(noise[None], [some_box], 2, 9)[0])

# %% [markdown]
# **2. Mix.** Instance $n$ has an attention $A_n \in \mathbb{R}^{K \times a \times a}$: for each basis a coarse map, the
# output of one convolution on FCOS's box tower. It is resized to the crop, made to sum to 1 over the bases, and weighs
# them:
#
# $$M_n = \sum_{k=1}^{K} \operatorname{softmax}_k \big( \uparrow A_n \big)_k \circ R_{n,k}
# \quad \in \mathbb{R}^{m \times m}.$$
#
# BlendMask has $K = 4$, $a = 14$, $m = 56$. By hand, with $a = 7$: *no* where the disc is, *yes* around the patch,
# *yellow?* along the rest of the L. The digit in a cell is the number of the basis.

# %% tags=["demo"]
from condinst_edu.teach.blending import blended

choice = torch.tensor([[0, 0, 3, 3, 3, 3, 3]] * 4 + [[0] * 7] + [[2, 2, 0, 0, 0, 0, 0]] * 2)
attention = 8 * F.one_hot(choice, 4).permute(2, 0, 1).float()  # (4, 7, 7)
crops = crop_bases(bases[None], [box], stride)  # (1, 4, 56, 56)
weights = F.interpolate(attention[None], (56, 56), mode="bilinear").softmax(dim=1)
by_hand = (weights * crops).sum(dim=1)  # (1, 56, 56)
same_as(by_hand, blend(bases[None], [box], attention[None], stride))


def iou(a, b):
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())


mixed = blended(box[0], box[0], 1, 1.0, crops[0], attention, (H, W))
print(choice)
print(f"IoU with the L: {iou(mixed.mask, shape):.3f}")
pic.show_blend(scene, mixed, "by hand")

# %% [markdown]
# 49 digits put a sharp mask together: the edges are the basis's. And *one number for each basis* in the whole box? That
# is an older method.
#
# **3. A family.** Everything else stays, only what an instance predicts changes:
#
# | | bases | attention of an instance | |
# |---|---|---|---|
# | FCIS | 49 | a one-hot grid, the same for all: part $k$ of the box copies basis $k$ | `slides:fcis` |
# | YOLACT | 32 | a vector $w \in \mathbb{R}^{K}$: $a = 1$, no softmax | `slides:yolact-vector` |
# | BlendMask | 4 | a full map, $4 \times 14 \times 14$ | `slides:blendmask-blender` |
# | factored | 32, projected to 4 | $r = 4$ factors for each of 4 maps, and the projection | `dr1mask:eq-7`, `dr1mask:eq-8` |
#
# YOLACT's vector is constant over the box, so it does not matter whether one cuts first or mixes first: both are
# linear. FCIS needs no mixing at all. With `blend`:

# %%
generator = torch.Generator().manual_seed(1)
vector = torch.randn(1, 4, 1, 1, generator=generator)
whole = (vector * bases[None]).sum(dim=1, keepdim=True)  # mixed over the whole image, then cut out
yolact = blend(bases[None], [box], vector, stride, softmax=False)
same_as(crop_bases(whole, [box], stride)[:, 0], yolact, name="YOLACT: mix, then crop")

parts = torch.randn(1, 49, 32, 48, generator=generator)  # one basis for each part of the box
one_hot = torch.eye(49).view(1, 49, 7, 7)
fcis = blend(parts, [box], one_hot, stride, softmax=False, mode="nearest")[0]
assembled = crop_bases(parts, [box], stride)[0].unflatten(1, (7, 8)).unflatten(3, (7, 8))
copied = torch.stack([assembled[7 * p + q, p, :, q] for p in range(7) for q in range(7)])
same_as(copied.view(7, 7, 8, 8).permute(0, 2, 1, 3).reshape(56, 56), fcis, name="FCIS: copy 7 x 7 parts")

# %% [markdown]
# **Factored attention** (lesson 6 has the rest of DR1Mask) first projects $D$ bases to $K = 4$ with a matrix $t_n$ of
# the instance's own, `dr1mask:eq-7`, and builds the four maps from matrices that all instances share, `dr1mask:eq-8`:
#
# $$R'_n = t_n * R_n, \qquad Q_{n,k} = U_k^\top \, \operatorname{diag}(s_{n,k}) \, V_k
# = \sum_{d=1}^{r} s_{n,k,d} \; u_{k,d} \, v_{k,d}^\top, \qquad U_k, V_k \in \mathbb{R}^{r \times 14}.$$
#
# Each $u_{k,d} v_{k,d}^\top$ is a pattern of rows times columns; an instance only says how much of each it wants.

# %%
from condinst_edu.dr1mask import FactoredAttention


def factored(crops, t, s, u, v):
    """Logits (N, m, m): crops (N, D, m, m), t (N, K, D), s (N, K, r), u and v (K, r, a)."""
    projected = torch.einsum("nkd,ndij->nkij", t, crops)
    maps = torch.einsum("kri,nkr,krj->nkij", u, s, v)
    return (projected * F.interpolate(maps, crops.shape[-2:], mode="bilinear")).sum(dim=1)


layer = FactoredAttention(width=32, bases=4, rank=4, size=14)
wide = torch.randn(2, 32, 56, 56, generator=generator)
t, s = torch.randn(2, 4, 32, generator=generator), torch.randn(2, 4, 4, generator=generator)
embedding = torch.cat([t.flatten(1), s.flatten(1)], dim=1)  # (2, 144)
with torch.no_grad():
    same_as(factored(wide, t, s, layer.u, layer.v), layer(wide, embedding), name="the library's layer")

# %% [markdown]
# **What can each of them draw?** Fit the best attention of each kind to the L, by gradient descent on its own numbers.
# The bases stay as they are. (No detector has to predict it here: this is what the *form* allows.)

# %% tags=["demo"]
truth = crop_masks(shape[None], box)  # (1, 56, 56) bool


def fit(draw, *numbers, steps=200):
    """IoU with the L after fitting these numbers to it."""
    optimizer = torch.optim.Adam(numbers, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(draw(), truth.float()).backward()
        optimizer.step()
    return iou(paste_masks(draw().detach().sigmoid(), box, (H, W))[0], shape)


fits = {}
vector = torch.zeros(1, 4, 1, 1, requires_grad=True)
fits["vector"] = fit(lambda: merge_bases(crops, vector, softmax=False), vector)
for a in (2, 7, 14):
    full = torch.zeros(1, 4, a, a, requires_grad=True)
    fits[f"full, {a} x {a}"] = fit(lambda full=full: merge_bases(crops, full), full)
torch.manual_seed(0)
for rank in (1, 4):
    u, v = torch.rand(4, rank, 14).requires_grad_(), torch.rand(4, rank, 14).requires_grad_()
    s, t = torch.ones(1, 4, rank, requires_grad=True), torch.eye(4)[None].requires_grad_()
    drawn = lambda s=s, t=t, u=u, v=v: factored(crops, t, s, u, v)  # noqa: E731
    fits[f"factored, rank {rank}"] = fit(drawn, s, t, u, v)
pic.show_bars(fits, "IoU with the L", digits=3)

# %% [markdown]
# A vector has to give the disc what it gives the L: no choice of four numbers separates them. 2 x 2 numbers for each
# basis already do, and rank 1 does. (In a real factored layer $U$ and $V$ are shared by all objects, so one object
# cannot have them to itself as here.)

# %% [markdown] tags=["instructor"]
# minutes: 15
# Misconception: "a finer attention gives a finer mask". The fit says otherwise: the edges come from the bases. Let the
# class find a scene in which 2 x 2 is not enough (two neighbours at opposite corners and one in the middle).

# %% [markdown]
# ### Counted and timed
#
# What an instance has to predict, what the top module needs for it (a 3x3 convolution from 256 channels), how many
# products a mask takes after the crop, and the time for 100 instances, best of five, one thread. Beside them CondInst's
# filters, which run over the whole image, here 800 x 1024 at stride 8.

# %%
from timeit import repeat

from condinst_edu.layers import aligned_upsample
from condinst_edu.mask_head import DynamicMaskHead

N, C = 100, 256
generator = torch.Generator().manual_seed(0)
corner = torch.rand(N, 2, generator=generator) * torch.tensor([700, 500])
boxes = torch.cat([corner, corner + 40 + 260 * torch.rand(N, 2, generator=generator)], dim=1)
patches = torch.randn(N, 9 * C, generator=generator)  # what the 3x3 convolution reads at 100 locations
few, many = (torch.randn(1, k, 200, 256, generator=generator) for k in (4, 32))  # bases at stride 4
features = torch.randn(8, 100, 128, generator=generator)
head, scales = DynamicMaskHead(), torch.full((N,), 64.0)


def best_of_five(function, *arguments):
    """Seconds."""
    return min(repeat(lambda: function(*arguments), number=1, repeat=5))


# %% tags=["demo"]
masks = {
    "vector, 32 bases": (32, 32 * 56**2, lambda e: blend(many, [boxes], e[:, :, None, None], 4, 56, False)),
    "full, 4 bases": (784, 4 * 56**2, lambda e: blend(few, [boxes], e.view(N, 4, 14, 14), 4)),
    "factored, 32 bases": (144, (4 * 32 + 4) * 56**2, lambda e: layer(crop_bases(many, [boxes], 4), e)),
    "CondInst": (169, 152 * 100 * 128, lambda e: aligned_upsample(head(features, e, corner, scales, 8), 2)),
}
print(f"{'':20} numbers  weights of the top module  products a mask  ms for 100: top module, masks")
for name, (numbers, products, draw) in masks.items():
    weight = torch.randn(numbers, 9 * C, generator=generator) / 50
    with torch.inference_mode():
        e = patches @ weight.T
        times = [best_of_five(torch.matmul, patches, weight.T), best_of_five(draw, e)]
    print(f"{name:20} {numbers:7} {weight.numel():26,} {products:16,}", end=" ")
    print(f"{1e3 * times[0]:16.1f} {1e3 * times[1]:12.1f}")

# %% [markdown]
# The full attention is cheap to use and expensive to *predict*; that is the point that `dr1mask:eq-8` addresses. And
# what CondInst pays grows with the image, BlendMask's price does not: it depends on $m$ alone.

# %% [markdown] tags=["instructor"]
# minutes: 8
# Times are of this machine and this run. Which rows change if the image is four times as large? (Only CondInst's, and
# the bases' own convolutions, which are not in the table.) Which if there are 20 instances? (All, in proportion.)

# %% [markdown]
# ## Look inside
#
# The six surest objects of the image above, cut out, and the basis with the largest weight in each cell; the paler, the
# less it outweighs the others.

# %% tags=["demo"]
figure, axes = pic.new_figure(2, 6, 1.7, 1.8)
for column, instance in enumerate(instances[:6]):
    x0, y0, x1, y1 = (round(side) for side in instance.clipped.tolist())
    pic.draw_image(axes[column], photo[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)])
    axes[column].set_title(f"{class_names[instance.label - 1]} {instance.score:.2f}", fontsize=9)
    strength, winner = instance.weights.max(dim=0)
    axes[6 + column].imshow(winner, cmap="tab10", vmin=0, vmax=9, alpha=strength)
    axes[6 + column].set(xticks=[], yticks=[])
pic.add_legend(figure, [f"basis {k}" for k in range(4)])
figure

# %% [markdown]
# Three bases divide the box among them **by place**, and the fourth takes the corners, for rings and triangles alike.
# The bases came out *position-sensitive*: one fires on lower parts, whatever they are parts of. So two neighbours can
# be told apart where they touch: there one's lower part meets the other's upper part, and each belongs to another
# basis.
#
# If so, the maps must be redundant. Four ways to make less of them: give all objects the *same* map, the mean over the
# objects of other images; make that one-hot, which is FCIS with 4 bases; cut each 7 x 7 matrix to rank $r$, the sum of
# its first $r$ singular vectors' products; average it to one cell.

# %% tags=["demo"]
from functools import partial

from condinst_edu.engine.evaluate import evaluate
from condinst_edu.teach.blending import averaged, truncated

data = held_out(20)


def mask_ap(model, change=None):
    """Mask AP on 20 held-out images, with the attention of every instance changed."""
    if change:
        own = type(model).attention_at
        model.attention_at = lambda *where: change(own(model, *where))
    try:
        with torch.no_grad():
            return 100 * evaluate(model, data, progress=False)["mask"]["AP"]
    finally:
        model.__dict__.pop("attention_at", None)


others = [b for k in range(20, 50) for b in blends_of(model, held_out(50)[k][0] / 255)]
mean = torch.stack([b.attention for b in others if b.score > 0.5]).mean(dim=0)  # (4, 7, 7)
assembly = 8 * F.one_hot(mean.argmax(dim=0), 4).permute(2, 0, 1).float()
print(f"mask AP as trained            {mask_ap(model):.1f}")
print(f"one attention for all         {mask_ap(model, lambda q: mean.expand_as(q)):.1f}")
print(f"one for all, and one-hot      {mask_ap(model, lambda q: assembly.expand_as(q)):.1f}")
for rank in (2, 1):
    print(f"own attention, of rank {rank}      {mask_ap(model, partial(truncated, rank=rank)):.1f}")
print(f"own attention, one cell       {mask_ap(model, partial(averaged, cells=1)):.1f}")

# %% [markdown]
# In this miniature the map is worth nearly everything, and an *own* map nearly nothing: our shapes fill their boxes
# alike. (COCO's people and skis do not.) Rank 2 is enough, which is what factored attention builds on. One cell fails
# altogether: the bases were made for places. A YOLACT learns other bases, for which a vector is right.

# %% [markdown] tags=["instructor"]
# minutes: 8
# The surprise is the second row. Ask which objects would need a map of their own (long ones, slanted ones, hidden
# ones), and why a truncated map is not the same as factored attention (there all instances share the patterns).

# %% [markdown]
# ## Does it learn?
#
# The same backbone, data, seed and number of iterations as tiny CondInst; 4 bases at stride 2, attention of 7 x 7,
# masks of 28 x 28. Computed now, on 50 held-out images:

# %% tags=["demo"]
from condinst_edu.teach.tiny import read_card, score_tiny

for name in ("blendmask", "condinst"):
    found, card = score_tiny(name), read_card(name)
    print(
        f"{card['about']:10} mask AP {100 * found['mask']['AP']:.1f}  box AP {100 * found['box']['AP']:.1f}", end="  "
    )
    print(f"{card['parameters'] / 1e6:.2f} M parameters, {card['iterations']} iterations")
shares = []
for k in range(20):
    objects = held_out(50)[k][1]
    full = crop_masks(objects["masks"], objects["boxes"], 28).float().mean()
    shares.append(torch.stack([full, objects["masks"].float().mean()]))
print("an object fills {:.0%} of its box, {:.0%} of the image".format(*torch.stack(shares).mean(dim=0)))

# %% [markdown]
# Hence the mask loss, which is no longer lesson 4's: plain binary cross-entropy, the mean over the cells of an object's
# box. Within a box neither side outnumbers the other by far. On whole images it would, and CondInst needs dice.

# %% [markdown] tags=["instructor"]
# minutes: 3
# One seed each: a point is no difference. Ask which of the two would gain more from larger images (see "What cropping
# costs").

# %% [markdown]
# ## Break it
#
# `deviate` swaps one function of the library for a wrong one, with the trained weights as they are. The six surest
# objects' masks, and mask AP on 20 images:

# %% tags=["demo"]
wrong = ("merge-without-softmax", "merge-vector", "merge-nearest", "crop-not-aligned", "paste-transposed")
panels = {f"right: {mask_ap(model):.1f}": (photo, {"masks": torch.stack([b.mask for b in instances[:6]])})}
for name in wrong:
    with deviate(name) as deviation, torch.no_grad():
        panels[f"{name}: {mask_ap(model):.1f}"] = (photo, {"masks": model([photo])[0]["masks"][:6]})
    print(f"{name}: {deviation.line}")
pic.show_panels(panels, columns=3)

# %% [markdown]
# A *vector* mixes all places everywhere: next to nothing is left. *Without softmax* the amounts are wrong, the signs
# mostly right. *Nearest* costs little: the attention's edges are not the mask's. *Not aligned* reads half a cell away,
# which is one pixel here, and small objects feel it. *Transposed* pastes masks mirrored, which round things survive.

# %% [markdown] tags=["instructor"]
# minutes: 5
# late: skip (saves 5)
# Let them sort the five by damage before the cell runs.

# %% [markdown]
# ## What cropping costs
#
# **Resolution.** A crop has $m \times m$ cells, however large its object is. CondInst's map has one cell every few
# pixels, however small it is. Discs with wavy edges (3 pixels deep, every 16 pixels), from 16 to 512 pixels wide: what
# is left of the *true* mask after it went through either form?

# %% tags=["demo"]
from math import pi

from condinst_edu.layers import resize_masks


def wavy(size, depth=3, wave=16):
    """A mask (n, n) of a disc of that width with a wavy edge, and its box (1, 4)."""
    n = size + 16
    v, u = torch.meshgrid(*(torch.arange(n) + 0.5 - n / 2,) * 2, indexing="ij")
    edge = size / 2 - depth + depth * torch.cos(round(pi * size / wave) * torch.atan2(v, u))
    mask = (u**2 + v**2).sqrt() < edge
    i, j = mask.nonzero().T
    return mask, torch.stack([j.min(), i.min(), j.max() + 1, i.max() + 1])[None].float()


sizes = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
curves = {name: [] for name in ("crop 28 x 28", "crop 56 x 56", "map of stride 4")}
for size in sizes:
    mask, around = wavy(size)
    cropped = [crop_masks(mask[None], around, m).float() for m in (28, 56)]
    again = [paste_masks(scores, around, mask.shape)[0] for scores in cropped]
    sampled = 20 * mask[None, 2::4, 2::4].float() - 10
    again.append(resize_masks(sampled, 4, mask.shape, mask.shape)[0])
    for values, drawn in zip(curves.values(), again, strict=True):
        values.append(iou(drawn, mask))
curves = {name: torch.tensor(values) for name, values in curves.items()}
figure = pic.show_curves(curves, "width of the object (pixels)", "IoU with itself", at=sizes)
figure.axes[0].set_xscale("log", base=2)
figure.axes[0].set_xticks(sizes[::2], sizes[::2])
figure

# %% [markdown]
# Small objects are better off in a crop, large ones on a map. **The box** is the other price: a mask cannot be better
# than its box. Here every detected box is made larger or smaller about its middle before the mask is drawn. CondInst's
# mask does not know its box, unless we cut it there.

# %% tags=["demo"]
from condinst_edu.fcos import FCOS

condinst = load_tiny("condinst").model


def scaled(model, factor):
    """Mask AP with every detected box made larger by this factor."""

    def detect(points, outputs, image):
        found = FCOS.detect(model.fcos, points, outputs, image)
        middle, half = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2, found.boxes[:, 2:] - found.boxes[:, :2]
        half = half * factor / 2
        return found._replace(boxes=torch.cat([middle - half, middle + half], dim=1))

    model.fcos.detect = detect
    try:
        return mask_ap(model)
    finally:
        del model.fcos.detect


factors = (0.7, 0.85, 1.0, 1.15, 1.3)
results = {name: [scaled(m, f) for f in factors] for name, m in (("BlendMask", model), ("CondInst", condinst))}
print(f"{'boxes scaled by':16}", *(f"{factor:6.2f}" for factor in factors))
for name, values in results.items():
    print(f"{name:16}", *(f"{value:6.1f}" for value in values))

# %% [markdown]
# CondInst's row is constant. BlendMask's falls on both sides: cut off below 1, and above 1 its attention, which was
# predicted for the true box, lies in the wrong place.

# %% [markdown] tags=["instructor"]
# minutes: 7
# late: show the figure of the discs only (saves 4)
# Also here: what happens to overlapping boxes, and to objects that a thin rail cuts in two? A crop does not mind either
# of them. A box has no problem with occlusion, only with being wrong.

# %% [markdown]
# ## Paper and miniature
#
# `dr1mask:table-4`: the same network with each kind of attention, trained on COCO. What we measured above, beside it,
# is the form alone: the best each can do for one L, and the milliseconds of its masks.

# %% tags=["demo"]
from condinst_edu.papers import table

printed = table("dr1mask:table-4")
fitted = {"Vector": fits["vector"], "Full": fits["full, 14 x 14"], "Factored": fits["factored, rank 4"]}
print("            paper: time (ms)    AP   AP75     here: IoU with the L")
for name, value in fitted.items():
    (row,) = printed.find(attention=name)
    print(f"{name:10} {row['time']:16} {row['AP']:7} {row['AP75']:6} {value:17.3f}")

# %% [markdown]
# In both, the step is from a vector to any map at all; full or factored matters less. What this does not show: how much
# of the paper's gain comes from training with 32 bases instead of 4.

# %% [markdown] tags=["instructor"]
# minutes: 3
# late: skip (saves 3)
# Why is "full" the slowest row in the paper, and where did that show in our own table of times?

# %% [markdown]
# ## Play
#
# Choose an instance, and average its attention to fewer and fewer cells. Where does its mask break? Without a browser
# there is a static picture, and `with_attention` gives the same:

# %% tags=["play"]
from condinst_edu.teach import explore_blend

explore_blend(model, photo, class_names)

# %% tags=["play", "demo"]
from condinst_edu.teach.blending import with_attention

chosen = instances[1]
panels = {}
for cells in (7, 4, 2, 1):
    coarse = with_attention(chosen, averaged(chosen.attention, cells))
    panels[f"{cells} x {cells}"] = (photo, {"masks": coarse.mask[None], "boxes": coarse.clipped[None]})
pic.show_panels(panels, columns=4)

# %% [markdown]
# ## Exercises
#
# Each answer is compared with the library on random inputs; known mistakes are named.

# %% [markdown] tags=["exercise"]
# 05-merge-bases
# Write the sum: `crops` (N, K, m, m), `attention` (N, K, a, a). Resize the attention to the crops, softmax over the
# bases, weigh, add: (N, m, m).


# %% tags=["stub"]
def mix(crops, attention):
    """Mask logits (N, m, m)."""
    raise NotImplementedError


# %% tags=["solution"]
def mix(crops, attention):
    """Mask logits (N, m, m)."""
    resized = F.interpolate(attention, crops.shape[-2:], mode="bilinear", align_corners=False)
    weights = resized.exp() / resized.exp().sum(dim=1, keepdim=True)
    return torch.einsum("nkij,nkij->nij", weights, crops)


# %% tags=["check"]
check("05-merge-bases", mix)

# %% [markdown] tags=["exercise"]
# 05-factored-attention
# Write `dr1mask:eq-8`: `u`, `v` (K, r, a) of all instances, `factors` (N, K, r) of each. Return the maps (N, K, a, a).


# %% tags=["stub"]
def attention_maps(u, v, factors):
    """U_k^T diag(s_k) V_k: (N, K, a, a)."""
    raise NotImplementedError


# %% tags=["solution"]
def attention_maps(u, v, factors):
    """U_k^T diag(s_k) V_k: (N, K, a, a)."""
    patterns = u[:, :, :, None] * v[:, :, None, :]  # (K, r, a, a)
    return (factors[..., None, None] * patterns).sum(dim=2)


# %% tags=["check"]
check("05-factored-attention", attention_maps)

# %% [markdown] tags=["exercise"]
# 05-crop-bases
# Cut boxes out of the bases: `bases` (B, K, H, W) at `stride` pixels, `boxes` a list with (N_i, 4) for each image.
# Return (N, K, size, size), the images one after the other. The boxes lie well within the maps.


# %% tags=["stub"]
def cut_out(bases, boxes, stride, size):
    """The bases at the middle of each of size x size parts of every box."""
    raise NotImplementedError


# %% tags=["solution"]
def cut_out(bases, boxes, stride, size):
    """The bases at the middle of each of size x size parts of every box."""
    height, width = stride * bases.shape[2], stride * bases.shape[3]  # of the map, in pixels
    middle = (torch.arange(size) + 0.5) / size
    crops = []
    for maps, found in zip(bases, boxes, strict=True):
        for x0, y0, x1, y1 in found.tolist():
            x = (x0 + middle * (x1 - x0)) / width * 2 - 1  # from -1 to 1 over the map
            y = (y0 + middle * (y1 - y0)) / height * 2 - 1
            grid = torch.stack([x.expand(size, size), y[:, None].expand(size, size)], dim=-1)
            read = F.grid_sample(maps[None], grid[None], padding_mode="border", align_corners=False)
            crops.append(read[0])
    return torch.stack(crops)


# %% tags=["check"]
check("05-crop-bases", cut_out)

# %% [markdown] tags=["exercise"]
# 05-paste-masks
# Back into the image: `scores` (N, m, m) in [0, 1], `boxes` (N, 4) in pixels, `size` (height, width) of the image. Read
# the scores bilinearly at the centre of every pixel, 0 outside the box; the mask is where that is at least 0.5.


# %% tags=["stub"]
def put_back(scores, boxes, size):
    """Masks (N, height, width), bool."""
    raise NotImplementedError


# %% tags=["solution"]
def put_back(scores, boxes, size):
    """Masks (N, height, width), bool."""
    y, x = (torch.arange(side) + 0.5 for side in size)
    masks = []
    for score, (x0, y0, x1, y1) in zip(scores, boxes.tolist(), strict=True):
        u = (x - x0) / (x1 - x0) * 2 - 1  # -1 and 1 are the sides of the box
        v = (y - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack([u.expand(*size), v[:, None].expand(*size)], dim=-1)
        masks.append(F.grid_sample(score[None, None], grid[None], align_corners=False)[0, 0] >= 0.5)
    return torch.stack(masks)


# %% tags=["check"]
check("05-paste-masks", put_back)

# %% [markdown]
# ## What the slides say and what the code does
#
# The slides give the sizes and the sum; everything else below is from the official code. Each line is checked here.

# %%
from condinst_edu.papers import ERRATA

for erratum in ERRATA.values():
    if {"slides:blendmask-blender", "dr1mask:eq-8"} & set(erratum.items):
        print(f"{'✓' if erratum.witness() else '✗'} {erratum.where}: {erratum.says}")
        print(f"  {erratum.status}: {erratum.finding}\n")

outside = [b for b in instances if (b.box - b.clipped).abs().max() > 1]
print(
    f"{len(outside)} of {len(instances)} boxes reach over the edge of this image. The bases are cut out at the box as"
)
print("predicted, but the mask is pasted into the box after clipping: there it is squeezed. Kept as it is.")
with deviate("merge-softmax-first"):
    print(f"softmax before the resizing instead of after it: mask AP {mask_ap(model):.1f}")
print(f"                            after, as the code has it: {mask_ap(model):.1f}")

# %% [markdown]
# In training the crop is that of the *object's* box, not of the predicted one, and each location's loss is weighted by
# its centre-ness. The official BlendMask also learns classes of pixels beside its masks (`semantic=True`; the tiny one
# does without).
#
# ## In three lines
#
# - A few sharp maps for all, a coarse map of weights for each: cut out, mix, paste.
# - From one number to a map is the step that matters; a map of low rank is enough, and cheap to predict.
# - A crop gives every object the same number of cells, and never more than its box.
#
# Next: [lesson 6](06_rank1_convolution.ipynb), rank-1 dynamic convolution, where the bases get to know their objects.
