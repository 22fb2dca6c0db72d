# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: Location as a category
#     minutes: {read: 35, do: 70, run: 1}
#     needs: ["lesson 1 (focal loss, pyramid levels)", "lesson 2 (dice loss)", "lesson 3 (coordinates)"]
#     gives: ["instance segmentation as classification of cells", "why a network has to be told where it is", "Matrix NMS from scratch", "S + S maps in place of S x S"]
#     papers: ["slides:solo-grid", "slides:solo-losses", "slides:solo-coordconv", "slides:solo-levels", "slides:solo-grid-number", "slides:decoupled-solo"]
# ---

# %%
from condinst_edu import doctor

names = ("solo", "solo-no-coordconv", "decoupled-solo")
doctor.quick("condinst", "panoptic-adaptis", *names)

# %% [markdown]
# ## A result first
#
# A tiny **SOLO** on a held-out image. It predicts no box and no filter. It lays grids over the image, and gives every
# cell of a grid one channel of its output. *Which object?* becomes *which channel?*. Each panel shows one grid; a mask
# has the colour of the cell that drew it.

# %% tags=["first-result", "demo"]
import torch

from condinst_edu.layers.images import make_batch
from condinst_edu.teach import cells as see
from condinst_edu.teach import pictures as pic
from condinst_edu.teach.tiny import held_out, load_tiny

torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save

solo, class_names = load_tiny("solo").model, load_tiny("solo").class_names
photo, target = held_out(50)[17]
photo, truth = photo / 255, target["masks"].bool()  # (3, H, W), (M, H, W)
seen = see.look_at_cells(solo, photo)
found, soft = solo.detect(seen.outputs, 0)
found, soft = found.pick(found.scores > 0.3), soft[found.scores > 0.3]
masks = solo.to_output_size(soft, seen.padded, (128, 128), (128, 128))
panels = {}
for level, grid in enumerate(solo.head.grids):
    mine = found.level == level
    owners = {divmod(int(k), grid): n for n, k in enumerate(found.k[mine])}
    panels[f"{grid} x {grid} cells: {len(owners)} objects"] = (
        photo,
        {"masks": masks[mine]},
        grid,
        owners,
    )
    for (i, j), n in owners.items():
        label = class_names[found.labels[mine][n] - 1]
        print(f"grid {grid:2}: cell ({i}, {j}), k = {i} * {grid} + {j} = {i * grid + j}: {label}")
see.show_grids(panels)

# %% [markdown] tags=["instructor"]
# minutes: 5
# Let the class find the object of one printed channel in the picture before anything is explained. Why do some objects
# sit in the left panel and some in the right? (Their size.) The boxes of lesson 1 are nowhere.

# %% [markdown]
# ## The problem
#
# Semantic segmentation classifies every pixel, and a network is good at that. It cannot tell two objects of one class
# apart: both are "disc". The slides ask what *does* differ between two objects in one image, and answer: where they
# are, and their shape. So make **where** a class. Cut the image into $S \times S$ cells; an object belongs to the cell
# that its centre lies in. Two objects are different as long as their cells are.
#
# When are they not? Count it on the data: how many of the objects have the centre of another one in their cell?

# %% tags=["demo"]
from condinst_edu.solo import assign_cells, exact_centers, grid_cells

data = held_out(50)
targets = [data[n][1] for n in range(50)]
centers = [exact_centers(t["masks"].bool()) for t in targets]
count = sum(map(len, centers))
sizes = list(range(2, 33, 2))
shared, lost = [], []
for grid in sizes:
    together = gone = 0
    for t, c in zip(targets, centers, strict=True):
        cell = grid_cells(c, (128, 128), grid)  # (M, 2): column, row
        same = (cell[:, None] == cell).all(dim=2).sum(dim=1) > 1  # itself and another one
        together += int(same.sum())
        labels, owner = assign_cells(c, t, (128, 128), grid, (1, 128))
        gone += len(c) - len(owner[labels > 0].unique())
    shared.append(together / count)
    lost.append(gone / count)
for grid in (4, 8, 12):
    n = sizes.index(grid)
    print(f"S = {grid:2}: {shared[n]:5.1%} of {count} objects share a cell, {lost[n]:.1%} get none")
curves = {"shares the cell of its centre": shared, "gets no cell at all": lost}
curves = {name: torch.tensor(values) for name, values in curves.items()}
pic.show_curves(curves, "cells along a side, S", "share of the objects", at=sizes)

# %% [markdown]
# A dozen cells along a side already separate nearly all objects, and eight most of them: centres that close together
# are rare, even where masks touch. That is the whole bet of SOLO. (The second curve is lower: an object may claim up to
# 3 x 3 cells, and loses only when others take all of them.)

# %% [markdown] tags=["instructor"]
# minutes: 7
# Ask for the objects that will never be separated: concentric ones, a ring and the disc in it, however fine the grid.
# How many cells can the network afford? S squared channels at mask resolution; that is what "decoupled" is about.

# %% [markdown]
# ## The idea, equation by equation
#
# **Address** (`slides:solo-grid`). Cell $(i, j)$ is row $i$, column $j$. Its mask is channel
#
# $$k = i \cdot S + j, \qquad k \in \{0, \dots, S^2 - 1\}.$$
#
# The *category branch* resizes its features to $S \times S$ and gives class probabilities $c_{ij} \in [0, 1]^K$ for each
# cell. The *mask branch* gives $m \in [0, 1]^{S^2 \times H \times W}$, one whole mask for each cell.
#
# **Which cells learn an object?** Those that its *centre region* touches: $0.2$ times the box, around the mass centre,
# and at most one cell beyond the centre's on each side. With loops:

# %%
from condinst_edu.solo import claimed_cells
from condinst_edu.teach import check, deviate, same_as


def cells_by_loops(centers, boxes, size, grid, sigma=0.2):
    """Which cells each object claims, (M, S, S), one cell at a time."""
    height, width = size
    claimed = torch.zeros(len(centers), grid, grid, dtype=torch.bool)
    for n in range(len(centers)):
        (x, y), (x0, y0, x1, y1) = centers[n].tolist(), boxes[n].tolist()
        half_w, half_h = sigma * (x1 - x0) / 2, sigma * (y1 - y0) / 2
        middle = int(y / height * grid), int(x / width * grid)
        for i in range(grid):
            for j in range(grid):
                rows = int((y - half_h) / height * grid) <= i <= int((y + half_h) / height * grid)
                columns = int((x - half_w) / width * grid) <= j <= int((x + half_w) / width * grid)
                near = abs(i - middle[0]) <= 1 and abs(j - middle[1]) <= 1
                claimed[n, i, j] = rows and columns and near
    return claimed


generator = torch.Generator().manual_seed(0)
corner = torch.rand(20, 2, generator=generator) * torch.tensor([150.0, 90.0])
boxes = torch.cat([corner, corner + 10 + 50 * torch.rand(20, 2, generator=generator)], dim=1)
middles = (boxes[:, :2] + boxes[:, 2:]) / 2
arguments = (middles, boxes, (160, 224), 12)
same_as(cells_by_loops(*arguments), claimed_cells(*arguments))

# %% [markdown]
# **Levels** (`slides:solo-levels`). Small objects need fine grids, large ones do not. Each level of the pyramid has a
# grid of its own, and takes the objects whose size $\sqrt{w h}$ is in its range; ranges overlap. Of several objects that
# claim a cell, the last one has it. These are all positive cells of our image:

# %% tags=["demo"]
panels = {}
for level, grid in enumerate(solo.head.grids):
    low, high = solo.ranges[level]
    labels, owner = assign_cells(centers[17], target, (128, 128), grid, (low, high))
    owners = {divmod(k, grid): int(owner[k]) for k in labels.nonzero().flatten().tolist()}
    title = f"{low} to {high} pixels: {len(owners)} of {grid * grid} cells"
    panels[title] = (photo, {"masks": truth}, grid, owners)
see.show_grids(panels)

# %% [markdown]
# **Losses** (`slides:solo-losses`). Focal loss on the classes of all cells; dice loss (lesson 2) on the masks of the
# $N$ positive cells, with $M_k$ the mask of the object that cell $k$ answers for:
#
# $$L = L_{focal}(c) + \frac{3}{N} \sum_{k\ \text{positive}} L_{dice}(m_k, M_k).$$
#
# Nothing tells channel $k$ to look at cell $k$, except that its targets are always there. But convolutions do the same
# thing everywhere. How can channel 0 draw in the upper left corner, and the last one at the lower right?
#
# **CoordConv** (`slides:solo-coordconv`): by being told. Two maps, $x$ and $y$ from $-1$ to $1$, go into the mask branch
# beside the features. A test that needs nothing else: two equal discs, far from the border, and a SOLO that learns this
# one image by heart, first with the two maps, then without.

# %% tags=["demo"]
from condinst_edu.solo import SOLO


def by_heart(coordinates, steps=200):
    """A small SOLO after some steps on two discs: the image, dice losses, what it finds."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(160), indexing="ij")
    discs = torch.stack([(x - middle) ** 2 + (y - 48) ** 2 <= 144 for middle in (44, 116)])
    image = 0.3 + 0.5 * discs.any(dim=0).expand(3, -1, -1)
    boxes = torch.tensor([[32.0, 36, 57, 61], [104, 36, 129, 61]])
    truth = {"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": discs}
    torch.manual_seed(1)
    head = {"channels": 16, "convs": 2, "coordinates": coordinates}
    tiny = {"backbone_options": {"widths": (8, 16)}, "channels": 16, "head": head, "levels": (2,)}
    model = SOLO(1, "tiny", **tiny, strides=(4,), grids=(6,), ranges=((1, 96),))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model([image], [truth])
        optimizer.zero_grad()
        sum(loss.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        losses.append(loss["loss_mask"].item() / 3)
    with torch.no_grad():
        return image, torch.tensor(losses), model.eval()([image])[0]


# %% tags=["demo"]
panels, curves = {}, {}
for name, coordinates in (("with CoordConv", True), ("without", False)):
    image, curves[name], result = by_heart(coordinates)
    for n in range(2):
        mask = {"masks": result["masks"][n : n + 1], "labels": result["labels"][n : n + 1]}
        panels[f"{name}: mask {n}, score {result['scores'][n]:.2f}"] = (image, mask)
    print(f"{name:15} dice loss {curves[name][0]:.2f} -> {curves[name][-1]:.2f}")
A = torch.tensor(441.0)  # pixels of a disc; the mask of both, measured against one:
print(f"dice loss of both discs in one mask: {1 - 2 * A / (2 * A + A):.2f}")
pic.show_panels(panels, columns=2)

# %% tags=["hide-input"]
pic.show_curves(curves, "step", "dice loss")

# %% [markdown]
# Without coordinates the network settles for *both discs in every mask*: it has no way to say which. With them it begins
# on the same plateau, finds the coordinates, and leaves it.

# %% [markdown] tags=["instructor"]
# minutes: 12
# The discs are equal, so are the features around them. Without coordinates, what can the mask branch of this small
# network know of its place? Nothing, so far from the border. What would a deeper network know? Leave it open: "Break
# it" comes back to it.

# %% [markdown]
# **From cells to objects.** A cell's class score above 0.1 makes a candidate; its mask is $m_k > 0.5$; its score is
# multiplied by the mean of $m_k$ inside. Neighbouring cells draw the same object, so two kinds of NMS follow. First a
# cell must not score less than its neighbours above and on the left (`points_nms`). Then **Matrix NMS**: for masks in
# falling order of score, mask $j$ is lowered by the worst better mask $i$ of its class,
#
# $$s_j \leftarrow s_j \cdot \min_{i < j} \frac{f(\mathrm{IoU}_{ij})}{f(c_i)}, \qquad
#   c_i = \max_{h < i} \mathrm{IoU}_{hi}, \qquad f(x) = e^{-2 x^2}.$$
#
# $f(c_i)$ makes up for an $i$ that is itself a repetition and should not count. All pairs at once, no loop:

# %%
from condinst_edu.solo import matrix_nms


def matrix_nms_by_loops(masks, scores, labels, sigma=2.0):
    """Lowered scores, one pair of masks at a time."""
    iou = torch.zeros(len(masks), len(masks))
    for i in range(len(masks)):
        for j in range(i + 1, len(masks)):
            if labels[i] == labels[j]:
                union = (masks[i] | masks[j]).sum()
                iou[i, j] = (masks[i] & masks[j]).sum() / union
    lowered = scores.clone()
    for j in range(len(masks)):
        factors = [1.0]
        for i in range(j):
            worst = float(iou[:i, i].max()) if i else 0.0
            factors.append(float(torch.exp(-sigma * (iou[i, j] ** 2 - worst**2))))
        lowered[j] = scores[j] * min(factors)
    return lowered


cells = solo.find_cells(seen.outputs, 0)
order = cells.scores.argsort(descending=True)
cells = cells.pick(order)
drawn = solo.draw_cells(seen.outputs, 0, solo.find_cells(seen.outputs, 0))[order] > 0.5
keep = drawn.any(dim=2).any(dim=1)
same_as(
    matrix_nms_by_loops(drawn[keep], cells.scores[keep], cells.labels[keep]),
    matrix_nms(drawn[keep], cells.scores[keep], cells.labels[keep]),
)

# %% [markdown]
# ## Look inside
#
# All channels of the finer grid at once, each in the place of its cell. Left: this image. An object shows up in the few
# channels around its centre, whole, wherever its pixels are. Right: the mean over 50 images. That is what a channel
# expects before it has seen anything: something around its own cell.

# %% tags=["demo"]
mean = torch.zeros_like(seen.all_masks(0))
for n in range(50):
    mean += see.look_at_cells(solo, data[n][0] / 255).all_masks(0) / 50
grid = solo.head.grids[0]
peak = mean.flatten(1).argmax(dim=1)
side = mean.shape[2]
k = torch.arange(grid * grid)
off = ((peak // side + 0.5) * grid / side - (k // grid + 0.5)).abs()
print(f"rows between a cell and the brightest place of its mean mask: {off.mean():.2f} on average")
pictures = {"this image": seen.all_masks(0), "mean of 50 images": mean / mean.max()}
see.show_all_cells(pictures, step=2)

# %% [markdown] tags=["instructor"]
# minutes: 5
# Find one object of the photo in the left mosaic: how many channels hold it, and why about that many? In the right one
# every channel has a bright spot at its own cell. Ask what a network would look like in which this picture is all grey.

# %% [markdown]
# ## Decoupled
#
# $S^2$ maps at a quarter of the image's resolution are many numbers, and nearly all of them are zeros.
# **Decoupled SOLO** (`slides:decoupled-solo`) predicts $S$ maps for the columns and $S$ for the rows. "Row $i$ and
# column $j$" is a product:
#
# $$p(k) = p(i)\, p(j), \qquad k = i \cdot S + j.$$

# %% tags=["demo"]
decoupled = load_tiny("decoupled-solo").model
twin = see.look_at_cells(decoupled, photo)
columns, rows = (m[0] for m in twin.outputs.maps[0])  # (S, H, W) logits each
level, i, j = twin.surest()
columns, rows = (m[0] for m in twin.outputs.maps[level])
p_i, p_j = rows[i].sigmoid(), columns[j].sigmoid()
same_as(p_i * p_j, twin.cell(level, i, j).soft)
pic.show_maps({f"row {i}": p_i, f"column {j}": p_j, f"cell ({i}, {j})": p_i * p_j}, limit=1)

# %% [markdown]
# Neither map is the mask; together they leave what is in both, the object in this row *and* this column.
#
# What it saves, counted for full-size models on an image of 800 x 1344 pixels, and measured on the tiny ones:

# %% tags=["demo"]
from timeit import repeat

from condinst_edu.solo import DecoupledSOLO

with torch.device("meta"):  # shapes without numbers
    large = {"SOLO": SOLO(), "Decoupled SOLO": DecoupledSOLO()}
for name, model in large.items():
    per_cell = [2 * s if name[0] == "D" else s * s for s in model.head.grids]
    area = [(800 * 1344) // (stride // 2) ** 2 for stride in model.strides]
    numbers = sum(n * a for n, a in zip(per_cell, area, strict=True))
    print(f"{name:15} {sum(per_cell):5} maps, {4 * numbers / 2**20:6.0f} MB in float32")
batch = photo[None]
for name, model in (("SOLO", solo), ("Decoupled SOLO", decoupled)):
    with torch.no_grad():
        features = model.split(model.pyramid(batch), (128, 128))
        seconds = min(repeat(lambda: model.head(features), number=1, repeat=5))  # noqa: B023
        maps = sum(m.nbytes for level in model.head(features).maps for m in level)
    print(f"tiny {name:15} {maps / 2**20:5.2f} MB of maps, head {1000 * seconds:.0f} ms")

# %% [markdown] tags=["instructor"]
# minutes: 10
# late: count the channels, skip the heat maps (saves 5)
# Look at the picture together: the row's map is a stripe through all that lies in row i, the column's holds the shape.
# Nothing asks for this division of labour; only the product is trained. Which pairs of objects can it confuse? (Those in
# the row of one and the column of the other.) `condinst-edu bench solo` measures memory and time of full-size models.

# %% [markdown]
# ## Does it learn?
#
# Three tiny SOLOs, trained alike, and CondInst from lesson 4. Mask AP on 50 held-out images, computed now:

# %% tags=["demo"]
from condinst_edu.teach.tiny import TINY, score_tiny

scores = {name: score_tiny(name)["mask"] for name in (*names, "condinst")}
for name, score in scores.items():
    recipe = load_tiny(name).recipe
    steps = f"{recipe['iterations']} steps of {recipe['batch_size']} images"
    numbers = "  ".join(f"{key} {100 * score[key]:5.1f}" for key in ("AP", "AP50", "AP75"))
    print(f"{TINY[name].about:22} {steps}: mask {numbers}")

# %% [markdown]
# What keeps tiny SOLO below CondInst? Put the truth in place of one part of its answers at a time: the mask of the object
# that an answer overlaps most, that object's class, or only the surest answer for each object. And the cells themselves:
# what if each drew its object's true mask, at the resolution of its maps?

# %% tags=["demo"]
from condinst_edu.teach.oracles import answers_ap, perfect_cells, repair

with torch.no_grad():
    given = [solo([data[n][0] / 255])[0] for n in range(50)]
parts = [{}, {"labels": True}, {"labels": True, "once": True}, {"masks": True}]
parts += [{"masks": True, "labels": True, "once": True}]
for part in parts:
    ap = answers_ap(data, (repair(*pair, **part) for pair in zip(given, targets, strict=True)))
    print(f"true {', '.join(part) or 'nothing':22} AP {ap:5.1f}")
tiny_grids = (solo.head.grids, solo.strides, solo.ranges)
drawn = answers_ap(data, (perfect_cells(t, *tiny_grids) for t in targets))
print(f"{'its cells, drawn right':27} AP {drawn:5.1f}")

# %% [markdown]
# The masks are its weakest part, then the classes; and with both right, copies of objects that NMS had taken for other
# ones are gone too. The cells are not: drawn right, at their own resolution, they would be far ahead. So the small network
# falls short, not the grid.

# %% [markdown] tags=["instructor"]
# minutes: 5
# CondInst is far ahead here; on COCO the published 3x models are within two points (`condinst-edu weights`). What is
# different? Length of training, and how many examples each channel sees: ask for an estimate. Why is AP at the cells'
# resolution not 100? (Masks of stride 2 and 4 cannot follow a star's tips.)

# %% [markdown]
# ## Break it
#
# The trained SOLO, with one thing wrong at a time, on 20 images. `deviate` swaps a function of the library for a wrong
# one.

# %% tags=["demo"]
from condinst_edu.engine.evaluate import evaluate


def quick_ap(model):
    """Mask AP, in percent, on 20 images."""
    return 100 * evaluate(model, held_out(20), progress=False)["mask"]["AP"]


print(f"{'as trained':28} AP {quick_ap(solo):5.1f}")
wrong = ["points-across-classes", "matrix-by-the-worse", "matrix-without-compensation"]
for name in (*wrong, "coordconv-missing", "coordconv-swapped"):
    with deviate(name) as deviation:
        print(f"{name:28} AP {quick_ap(solo):5.1f}  {deviation.line}")

# %% [markdown]
# NMS done wrong costs what it should. But the last two lines are a surprise: without coordinates, or with x and y
# swapped, the network that was *trained with them* hardly changes. It does not read them! So who tells channel 0 where
# the upper left corner is? A convolution pads its map with **zeros**: the border looks different from the inside. The
# tiny network's coarsest map has 4 x 4 cells, and every one of them sees the border. Take that away: pad with copies of
# the outermost cells instead, in every convolution, with the trained weights. CondInst beside it:


# %% tags=["demo"]
def pad_otherwise(name):
    """A tiny model whose convolutions repeat the border instead of padding with zeros."""
    model = load_tiny(name).model
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.padding != (0, 0):
            module.padding_mode = "replicate"
    return model


panels = {}
for name in ("solo", "condinst"):
    for padding, model in (("zeros", load_tiny(name).model), ("copies", pad_otherwise(name))):
        with torch.no_grad():
            result = model([photo])[0]
        ap, sure = quick_ap(model), result["masks"][result["scores"] > 0.3]
        panels[f"{TINY[name].about}, {padding}: AP {ap:.1f}"] = (photo, {"masks": sure})
        print(f"{TINY[name].about:8} padded with {padding:6}  AP {ap:5.1f}")
pic.show_panels(panels, columns=2)

# %% [markdown]
# And ask the features themselves, before any coordinates are added to them: fit $x$ and $y$ of every cell of SOLO's
# finest map to its features, by least squares on ten images, and read the places off ten others:

# %% tags=["demo"]
import torch.nn.functional as F

from condinst_edu.coordinates import coordconv


def places_off(model):
    """How far off the places are that a linear fit reads from the features, in pixels, on average."""
    rows = []
    for n in range(20):
        with torch.no_grad():
            batch = make_batch([data[n][0] / 255], model.mean, model.std, model.divisor)
            finest = model.split(model.pyramid(batch.images), (128, 128))[0]  # (1, C, H, W)
        rows.append(F.pad(finest[0].flatten(1).T, (0, 1), value=1))  # (H * W, C + 1)
    place = coordconv((finest.shape[2], finest.shape[3])).flatten(1).T.repeat(10, 1)  # (10 * H * W, 2)
    fit = torch.linalg.lstsq(torch.cat(rows[:10]), place).solution
    return 64 * float((torch.cat(rows[10:]) @ fit - place).abs().mean())


for name in ("solo", "solo-no-coordconv"):
    zeros, copies = places_off(load_tiny(name).model), places_off(pad_otherwise(name))
    print(f"{TINY[name].about:22} zeros: {zeros:4.1f} pixels off, copies: {copies:4.1f}")
print("who always says 'in the middle': 32.0")

# %% [markdown]
# With zeros at the border the features know where they are before anybody tells them, with copies they know nothing. So
# SOLO is lost without the zeros: its channels are places, and nothing else had told it the place. CondInst only gets
# worse: its relative coordinates come from the location that found the object (lesson 3). On images of 800 pixels the
# border is far from most cells, and CoordConv has to do what the padding does here.

# %% [markdown] tags=["instructor"]
# minutes: 10
# Let the class guess before the second cell runs. Misconception: "a convolution cannot know where it is". With zero
# padding and a receptive field that reaches the border it can. Ask how to train a tiny SOLO that needs its coordinates
# (other padding, larger images, random crops).

# %% [markdown]
# ## Paper and miniature
#
# The slides print three gains on COCO, in points of mask AP. Ours are tiny SOLOs on 128 x 128 pixels of drawn shapes,
# three seeds each, trained half as long as those above: `condinst-edu reproduce slides:solo-grid-number` does it again,
# and `docs/reproduced` has the verdicts. Below them, what no training can pass: give every positive cell the *true* mask
# of its object, at the stride of its maps, and score that.

# %% tags=["demo"]
from condinst_edu.papers import table
from condinst_edu.papers.reproduced import all_stored

told = {row[0]: row[1] for row in table("slides:table-solo-gains").rows}
stored = all_stored()
ablations = {
    "slides:solo-grid-number": "grid number",
    "slides:solo-levels": "several levels",
    "slides:solo-coordconv": "CoordConv",
}
for name, what in ablations.items():
    print(f"{name}: {told[what]:+} on COCO")
    for row in stored[name]["rows"]:
        print(f"   {row['name']:34} AP", "  ".join(f"{ap:.1f}" for ap in row["scores"]["AP"]))

print("\nat most, with the true masks:")
best = {}
for grid in (2, 4, 6, 8, 12, 24):
    best[grid] = answers_ap(data, (perfect_cells(t, [grid], [4], [(1, 128)]) for t in targets))
print("   one level:", "  ".join(f"S = {grid}: {ap:.1f}" for grid, ap in best.items()))
fine, coarse = solo.head.grids
print(f"   grids of {fine} and, for the larger things, of {coarse} with masks at stride 4: {drawn:.1f}")
ours = {name: 100 * score["AP"] for name, score in scores.items()}
print(
    f"\ndecoupled beside SOLO, this lesson's models: {ours['decoupled-solo'] - ours['solo']:+.1f} ('an equivalent variant')"
)

# %% [markdown]
# *Grids*: four cells along a side lose objects, as the counts at the beginning said; eight are far ahead, and twelve a
# little farther, although they can hardly hold more objects. (Why? Nothing here says.)
#
# *Levels* cost AP here, where the slides gain most. Our objects are 12 to 54 pixels large: the first level can draw them
# all, and the second draws the larger ones at half the resolution, from fewer cells. COCO's objects are from a few to
# hundreds of pixels large; there no single grid is fine enough for the small ones *and* cheap enough for the large ones.
#
# *CoordConv* has next to nothing to bring: at 128 pixels the features know the place without it, as the padding showed.
#
# *Decoupled* is ahead, where the slides found the two equal after a long training. Ours was short, and SOLO has to
# learn each of its places by itself: a channel learns only from objects that happen to lie in its cell. A row's map
# learns from every object in its row. CondInst learns one way to draw for all places, and needs least.

# %% [markdown] tags=["instructor"]
# minutes: 7
# late: give the gain of CoordConv and go on (saves 5)
# The ceiling separates what a design forbids from what a network fails to learn. Ask what it ignores: false positives,
# and whether the network can tell two cells apart at all.

# %% [markdown]
# ## Three answers
#
# *Which object?* CondInst answers with a **filter**: the location that found the object predicts 169 numbers, which draw
# it. AdaptIS (lesson 7) answers with a **point**: give it one, and it draws what lies there. SOLO answers with a
# **cell**: one of $S^2$ channels, chosen by an index. The first two compute a mask when asked for it; SOLO has computed
# them all, and picks. One image, one object, asked for by a pixel on it. All three models learned from the same images:

# %% tags=["demo"]
from condinst_edu.teach import look

condinst, adaptis = load_tiny("condinst").model, load_tiny("panoptic-adaptis").model
biggest = int(truth.flatten(1).sum(dim=1).argmax())
pixels = truth[biggest].nonzero()  # (y, x) each; a ring's centre is not on the ring
nearest = (pixels - centers[17][biggest].flip(0)).square().sum(dim=1).argmin()
y, x = pixels[nearest].tolist()
by_filter, by_point = look(condinst, photo).segment_at(x, y), look(adaptis, photo).segment_at(x, y)
answers = []
for level, grid in enumerate(solo.head.grids):
    column, row = grid_cells(centers[17][biggest], (128, 128), grid).tolist()
    answers.append((seen.cell(level, row, column), f"cell ({row}, {column}) of level {level}"))
by_cell, place = max(answers, key=lambda answer: answer[0].score)
masks = {
    "the truth": truth[biggest],
    f"CondInst: filter of location {by_filter.location}": by_filter.mask,
    f"AdaptIS: point ({x}, {y})": by_point.mask,
    f"SOLO: {place}": by_cell.mask,
}
pic.show_panels({name: (photo, {"masks": mask[None]}) for name, mask in masks.items()})

# %% [markdown]
# And each one's way to *all* objects: boxes or scores sorted out by NMS (CondInst), point after point until the picture
# is full (AdaptIS), NMS of masks (SOLO). A truth's IoU is that of the mask that fits it best. Compare the ways, not the
# figures: the three were not trained alike (`condinst-edu weights`).

# %% tags=["demo"]
from condinst_edu.teach.scoring import mask_iou

nothing = torch.zeros(len(truth), dtype=torch.bool)
panels = {"the truth": (photo, {"masks": truth})}
for name, model in (("CondInst", condinst), ("AdaptIS", adaptis), ("SOLO", solo)):
    with torch.no_grad():
        result = model([photo])[0]
    sure = result["masks"][result["scores"] > 0.3]
    best = mask_iou(sure, truth, nothing).amax(dim=0) if len(sure) else torch.zeros(len(truth))
    print(f"{name:8} {len(sure)} masks for {len(truth)} objects, IoU {best.mean():.2f} on average")
    panels[f"{name}: IoU {best.mean():.2f}"] = (photo, {"masks": sure})
pic.show_panels(panels)

# %% [markdown] tags=["instructor"]
# minutes: 5
# late: skip, or give it as homework (saves 5)
# Three columns on the board: filter, point, cell. What is computed once per image, what per object? What happens with a
# hundred objects, with none? Which of them needs NMS, and on what?

# %% [markdown]
# ## Play
#
# Choose a level, a row and a column: the picture shows the cell, its channel, and the mask that it would draw, sure of
# it or not. Walk across an object and watch where the channels change over to its neighbour. Without a browser:
# `see.show_cell(seen, level, i, j)`.

# %% tags=["play"]
see.explore_cells(solo, photo, class_names)

# %% [markdown]
# ## Exercises
#
# Each answer is compared with the library on random inputs; known mistakes are named.

# %% [markdown] tags=["exercise"]
# 08-coordconv
# Write CoordConv's two maps for a map of size (height, width): (2, H, W), x first, from -1 in the first column (row) to
# 1 in the last.


# %% tags=["stub"]
def coordinate_maps(size):
    """x map and y map: (2, H, W) within [-1, 1]."""
    raise NotImplementedError


# %% tags=["solution"]
def coordinate_maps(size):
    """x map and y map: (2, H, W) within [-1, 1]."""
    height, width = size
    x = torch.linspace(-1, 1, width).expand(height, width)
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    return torch.stack([x, y])


# %% tags=["check"]
check("08-coordconv", coordinate_maps)

# %% [markdown] tags=["exercise"]
# 08-decoupled-masks
# `columns` and `rows` are mask logits (S, H, W), `k` (N,) numbers of cells. Return the masks (N, H, W) of Decoupled SOLO
# as probabilities.


# %% tags=["stub"]
def masks_of_cells(columns, rows, k):
    """p(k) = p(i) p(j): (N, H, W)."""
    raise NotImplementedError


# %% tags=["solution"]
def masks_of_cells(columns, rows, k):
    """p(k) = p(i) p(j): (N, H, W)."""
    grid = rows.shape[0]
    i, j = k // grid, k % grid
    return rows[i].sigmoid() * columns[j].sigmoid()


# %% tags=["check"]
check("08-decoupled-masks", masks_of_cells)

# %% [markdown] tags=["exercise"]
# 08-points-nms
# `scores` (B, K, S, S). Keep a score if none of its three neighbours above, on the left and above left is higher, set it
# to 0 otherwise. Each class for itself, without loops.


# %% tags=["stub"]
def keep_peaks(scores):
    """(B, K, S, S) -> the same, with 0 where a neighbour scores higher."""
    raise NotImplementedError


# %% tags=["solution"]
def keep_peaks(scores):
    """(B, K, S, S) -> the same, with 0 where a neighbour scores higher."""
    padded = torch.nn.functional.pad(scores, (1, 0, 1, 0))  # a column and a row of zeros in front
    above, left, corner = padded[..., :-1, 1:], padded[..., 1:, :-1], padded[..., :-1, :-1]
    keep = (scores >= above) & (scores >= left) & (scores >= corner)
    return torch.where(keep, scores, 0)


# %% tags=["check"]
check("08-points-nms", keep_peaks)

# %% [markdown] tags=["exercise"]
# 08-claimed-cells
# Write `cells_by_loops` above without loops: (M, S, S) bool, rows first. `grid_cells(points, size, grid)` gives the
# cells (column, row) that points (M, 2) lie in, also for points off the image.


# %% tags=["stub"]
def cells_of(centers, boxes, size, grid, sigma):
    """Cells that each object claims: (M, S, S) bool."""
    raise NotImplementedError


# %% tags=["solution"]
def cells_of(centers, boxes, size, grid, sigma):
    """Cells that each object claims: (M, S, S) bool."""
    half = sigma * (boxes[:, 2:] - boxes[:, :2]) / 2  # (M, 2)
    middle = grid_cells(centers, size, grid)
    first = torch.maximum(grid_cells(centers - half, size, grid), middle - 1)
    last = torch.minimum(grid_cells(centers + half, size, grid), middle + 1)
    cell = torch.arange(grid)
    inside = (cell >= first[:, :, None]) & (cell <= last[:, :, None])  # (M, 2, S)
    columns, rows = inside.unbind(dim=1)
    return rows[:, :, None] & columns[:, None, :]


# %% tags=["check"]
check("08-claimed-cells", cells_of)

# %% [markdown] tags=["exercise"]
# 08-matrix-nms
# Write Matrix NMS (gaussian, sigma 2) without loops. `masks` (N, H, W) bool, `scores` (N,) falling, `labels` (N,);
# return the lowered scores.


# %% tags=["stub"]
def lower_scores(masks, scores, labels):
    """Scores (N,) after Matrix NMS."""
    raise NotImplementedError


# %% tags=["solution"]
def lower_scores(masks, scores, labels):
    """Scores (N,) after Matrix NMS."""
    flat = masks.flatten(1).float()
    overlap, area = flat @ flat.T, flat.sum(dim=1)
    iou = overlap / (area[:, None] + area - overlap)
    iou = (iou * (labels[:, None] == labels)).triu(diagonal=1)  # row i better than column j
    compensate = iou.max(dim=0).values  # c_i
    decay = torch.exp(-2 * (iou**2 - compensate[:, None] ** 2))
    return scores * decay.min(dim=0).values


# %% tags=["check"]
check("08-matrix-nms", lower_scores)

# %% [markdown]
# ## What the slides say and what the code does
#
# The slides give the idea and leave most of it open. Five things that the official code decides, each with a check:

# %%
from condinst_edu.solo import mask_targets

# 1. The mask target: OpenCV's bilinear filter at 1/4 reads the four pixels in the middle.
masks4 = truth.float()
filtered = F.interpolate(masks4[None], scale_factor=0.25, mode="bilinear")[0]
same_as(filtered >= 0.5, mask_targets(truth, 4, (32, 32)))

# 2. Cells are worked out in float32: k/S is not always in cell k.
k = torch.arange(12.0)
cells_at_borders = grid_cells(torch.stack([k * 32, k * 32], dim=1), (384, 384), 12)[:, 0]
print("points on the borders of 12 cells:", cells_at_borders.tolist())

# 3. Matrix NMS with the linear kernel: an exact copy is 0/0 in the official code. Here it gets 0.
twice = truth[:1].expand(3, -1, -1)
left = matrix_nms(twice, torch.tensor([0.9, 0.8, 0.7]), torch.ones(3), "linear")
print("scores of three copies:", [round(score, 2) for score in left.tolist()])

# %%
# 4. The category branch reads no coordinates: 2 inputs more in the mask branch alone.
branches = (solo.head.class_tower, solo.head.mask_tower)
inputs = [next(branch.parameters()).shape[1] for branch in branches]
print("input channels of the category and of the mask branch:", inputs)

# 5. Without an object the mask loss is 0, and every parameter still has a gradient.
solo.train()
labels = torch.zeros(0, dtype=torch.int64)
nothing = {"boxes": torch.zeros(0, 4), "labels": labels, "masks": truth[:0]}
losses = solo([photo], [nothing])
sum(losses.values()).backward()
given = all(p.grad is not None for p in solo.parameters())
print(f"no object: mask loss {losses['loss_mask'].item():g}", end=", ")
print(f"a gradient for every parameter: {given}")
solo.zero_grad()
_ = solo.eval()

# %% [markdown]
# Also decided there: Matrix NMS itself came with SOLO's successor and replaced plain NMS; a mask must be larger than a
# few cells; a score is multiplied by the mask's mean probability. `docs/details.md` has them all.
#
# ## In three lines
#
# - An object's address, the cell that its centre lies in, is a class; its mask is that class's channel.
# - Convolutions do not know where they are: coordinates tell them.
# - $S$ rows and $S$ columns can stand for $S^2$ cells: $p(k) = p(i)\,p(j)$.
#
# Next: [lesson 9](09_panoptic.ipynb), where every pixel gets a label: panoptic segmentation.
