# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: "FCOS: boxes without anchors"
#     minutes: {read: 40, do: 90, run: 1}
#     needs: [PyTorch and convolutions, "lesson 0 for the score (AP)"]
#     gives: [how a map of features becomes boxes, why several levels are needed, focal and GIoU loss from scratch]
#     papers:
#       - condinst:locations
#       - condinst:center-region
#       - condinst:eq-1
#       - condinst:inference
#       - slides:fcos-ambiguity
#       - slides:fcos-recall
#       - slides:centerness
# ---

# %%
from condinst_edu import doctor

doctor.quick("fcos")

# %% [markdown]
# ## A result first
#
# A small FCOS looks at drawn shapes that it has never seen. Left is the truth, right its answer: a box, a class and a
# score for each thing that it finds. **AP** is its mark on held-out images, from 0 to 1 (lesson 0 derives it). At the
# end you know every step from the pixels to these boxes. Names such as `condinst:locations` and
# `slides:fcos-recall` are ids of passages in papers and tutorial slides; `condinst-edu trace` lists them.

# %% tags=["first-result", "demo"]
import torch

from condinst_edu.engine.evaluate import evaluate
from condinst_edu.teach import pictures as pic
from condinst_edu.teach.tiny import held_out, load_tiny

torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save

model, _, class_names, _ = load_tiny("fcos")
data = held_out(50)


@torch.no_grad()
def found_in(image):
    """The model's detections in an image (3, H, W) in [0, 1] that score 0.4 or more."""
    found = model([image])[0]
    return {name: value[found["scores"] >= 0.4] for name, value in found.items()}


panels = {}
for k in (7, 11):
    image, target = data[k]
    panels[f"image {k}: the truth"] = (image / 255, {n: target[n] for n in ("boxes", "labels")})
    panels[f"image {k}: FCOS"] = (image / 255, found_in(image / 255))
right = evaluate(model, data, progress=False)["box"]
print(f"AP {right['AP']:.3f} on {len(data)} images")
pic.show_panels(panels, class_names)

# %% [markdown] tags=["instructor"]
# minutes: 5
# Ask: a convolution gives an output of fixed size. How can it answer with two boxes here and six there? Collect
# ideas on the board; most classes invent anchors or a sliding window, and somebody usually invents FCOS.
#
# Misconception to expect: "the network outputs a list of boxes". It outputs maps; the list is made from them at the
# end.

# %% [markdown]
# ## The problem
#
# A network turns an image into maps of fixed size, but the number of objects is unknown. For years the answer was
# **anchors**: lay out a set of template boxes (nine is common) at every location of a map, and predict a class and a
# correction for each. This has a price: the templates are chosen by hand for one data set, do not transfer to
# another, and the last layer computes everything nine times.

# %% [markdown] tags=["instructor"]
# minutes: 5
# The papers that use anchors spend pages on their sizes. "Paper and miniature" below measures it on our shapes: sizes
# from 4 strides on, RetinaNet's choice for COCO, fit them badly, and have to be searched again.

# %% [markdown]
# ## The idea, equation by equation
#
# FCOS drops the templates. **Every location of a feature map answers for itself**: "I lie on an object of class
# $c$, and from here it is so far to its left, top, right and bottom side." Three questions follow. Where is a
# location in the image? For which object does it answer? How is the answer trained?
#
# ### Locations and strides
#
# A map of **stride** $s$ has one cell for every $s \times s$ pixels. Cell $(x, y)$ stands for the pixel in the
# middle of its square (`condinst:locations`):
#
# $$(x, y) \mapsto \left(\lfloor s/2 \rfloor + x s,\ \lfloor s/2 \rfloor + y s\right).$$
#
# Maps of several strides make up a **pyramid**. Ours has the levels P3, P4 and P5 with strides $2^3 = 8$, 16 and 32.
# (`same_as` compares two results, or two functions on random inputs, and stops with an error where they differ.
# `targets_of` gives an image's locations, and the targets that they are trained with.)

# %% tags=["demo"]
from condinst_edu import fcos
from condinst_edu.coordinates import locations
from condinst_edu.datasets.shapes import ShapesConfig, generate
from condinst_edu.teach import check, same_as, targets_of


def drawn(index, seed, config):
    """A generated picture (3, H, W) in [0, 1] and its target."""
    sample = generate(index, seed, config)
    names = ("boxes", "labels", "masks")
    target = {name: torch.from_numpy(getattr(sample, name)) for name in names}
    return torch.from_numpy(sample.image).permute(2, 0, 1) / 255, target


scene, truth = drawn(0, 5, ShapesConfig(size=(96, 160), objects=(4, 6)))
by_hand = torch.tensor([[x * 8 + 4, y * 8 + 4] for y in range(12) for x in range(20)])
same_as(by_hand.float(), locations((12, 20), stride=8), name="locations")
found = targets_of(scene, truth, strides=(8, 16, 32), ranges=(32, 64), radius=1.5)
pic.show_levels(scene, found.points)

# %% [markdown]
# ### One object for each location
#
# Let a location $(x, y)$ lie in the box $(x_0, y_0, x_1, y_1)$. Its four distances are
#
# $$l = x - x_0, \quad t = y - y_0, \quad r = x_1 - x, \quad b = y_1 - y,$$
#
# all above 0 exactly when it lies inside. The network predicts them, divided by the stride (so that all levels see
# numbers of one size). But boxes overlap. Which one, if a location lies in two? FCOS has three rules.
#
# 1. **Levels.** A level answers only for objects whose longest distance $\max(l, t, r, b)$ is in its range: ours
#    are up to 32, 32 to 64, and above 64 pixels.
# 2. **Centre region** (`condinst:center-region`). Only locations within $1.5\, s$ of the object's centre, along
#    both axes.
# 3. Where several objects still remain, **the smallest box wins**.
#
# A location that has an object is **positive**, one without is background, label 0. The rules as a loop, for one
# location:


# %% tags=["demo"]
def answers_for(x, y, stride, low, high, boxes, radius=1.5):
    """Index of the object that location (x, y) answers for, -1 for background."""
    best, smallest = -1, float("inf")
    for k, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        distances = (x - x0, y - y0, x1 - x, y1 - y)
        offset = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2))
        area = (x1 - x0) * (y1 - y0)
        inside, central = min(distances) > 0, offset < radius * stride
        if inside and central and low <= max(distances) <= high and area < smallest:
            best, smallest = k, area
    return best


points, assigned = found.points, found.assignment  # the library's answer, for a batch of one image
rows = zip(points.xy.tolist(), points.stride.tolist(), points.reach.tolist(), strict=True)
by_loop = [answers_for(*xy, stride, *reach, truth["boxes"]) for xy, stride, reach in rows]
in_one_go = torch.where(assigned.labels[0] > 0, assigned.matched[0], -1)
same_as(torch.tensor(by_loop), in_one_go, name="assign_targets")
pic.show_targets(scene, points, assigned, boxes=truth["boxes"])

# %% [markdown]
# A dot has the colour of the box that it answers for; grey is background. Which dots does the small square in front of
# the large one own? And see how the large green box is shared: from its middle no side is farther than 32 pixels, so
# the middle belongs to stride 8, and the ring around it to stride 16.
#
# ### Count it: ambiguity and best possible recall
#
# The slides name two worries about this approach, and we can count both.
#
# - **Ambiguity** (`slides:fcos-ambiguity`): the share of positive locations that could answer for more than one object.
#   Only one can be the target.
# - **Best possible recall**, BPR (`slides:fcos-recall`): the share of objects that own at least one location. No
#   training finds the others.
#
# We count on the held-out images, whose objects are of similar size, and on 50 in which sizes differ tenfold, as in
# photographs. "Whole boxes" means without the second rule.


# %% tags=["hide-input", "demo"]
def count(targets, size, strides, ranges=(), radius=0):
    """Ambiguous share of the positives, and best possible recall, over all images; radius 0: whole boxes."""
    every = [targets_of(torch.zeros(3, *size), target, strides, ranges, radius) for target in targets]
    positives, ambiguous = (sum(x) for x in zip(*((sum(f.positives), f.ambiguous) for f in every), strict=True))
    missed, objects = (sum(x) for x in zip(*((len(f.missed), len(f.per_object)) for f in every), strict=True))
    return ambiguous / max(positives, 1), 1 - missed / objects


targets = [data.target(k) for k in range(len(data))]
wide_config = ShapesConfig(size=(160, 224), objects=(5, 12), object_size=(12, 140))
wide = [drawn(k, 7, wide_config)[1] for k in range(50)]
three = {"strides": (8, 16, 32), "ranges": (32, 64)}
settings = {f"stride {s} alone, whole boxes": {"strides": (s,)} for s in (8, 16, 32)}
settings["three levels, whole boxes"] = three
settings["three levels, centre regions"] = {**three, "radius": 1.5}
print(f"{'':28} held out: ambiguous    BPR   sizes mixed: ambiguous    BPR")
for name, setting in settings.items():
    counts = [*count(targets, (128, 128), **setting), *count(wide, (160, 224), **setting)]
    print("{:28} {:19.1%} {:6.1%} {:24.1%} {:6.1%}".format(name, *counts))

# %% [markdown] tags=["instructor"]
# minutes: 40
# late: show levels and targets, and leave the derivation of GIoU to the notebook (saves 10)
# Let the class predict before the picture of targets: which level gets the large square? (Two: the longest distance
# depends on the location.) In the purple box the middle dot of stride 16 is positive too: its longest distance is
# exactly 32, the limit that both ranges include.
#
# The table: a fine level alone has about the same recall as three, but it would have to tell large objects from what
# little a location of P3 sees.
#
# Misconceptions: "each object has one location" (it has several, all are trained); "ranges are about the size of
# the box" (about the longest distance, which depends on the location too); "the centre region is a share of the
# box" (its size is 1.5 strides, so it covers a small object whole and only the heart of a large one).

# %% [markdown]
# A single fine level reaches nearly every object, but many locations are torn between two; a single coarse level also
# loses whole objects, for which it has no cell. Three levels mend both: fine cells are there for small objects, and
# boxes that overlap often differ in size and land on different levels. The centre region removes some of the ambiguity
# that is left: boxes that overlap seldom share a centre.
#
# ### Centre-ness
#
# A location near the side of an object sees little of it, and its box is poor. So FCOS predicts one more number at
# each location, how near it is to the middle (`slides:centerness`):
#
# $$\text{centerness} = \sqrt{\frac{\min(l, r)}{\max(l, r)} \cdot \frac{\min(t, b)}{\max(t, b)}}.$$
#
# At inference it is multiplied with the class probability, so that poor boxes rank low.

# %% tags=["demo"]
y, x = torch.meshgrid(torch.arange(1, 48.0), torch.arange(1, 96.0), indexing="ij")
distances = torch.stack([x, y, 96 - x, 48 - y], dim=-1)  # (H, W, 4) in a box of 48 x 96 pixels
pic.show_maps({"centre-ness in a wide box": fcos.centerness(distances)}, limit=1, width=4)

# %% [markdown]
# ### The network
#
# A **backbone** halves the map five times; its last three maps have strides 8, 16 and 32. The **feature pyramid**
# (FPN) brings each to 48 channels by a 1x1 convolution, adds the enlarged coarser map, and smooths by a 3x3
# convolution. One **head**, *the same weights on every level*, then runs two towers of 3x3 convolutions. The class
# tower ends in $K$ logits, the box tower in four distances (times one learned number per level, then ReLU) and one
# centre-ness logit.

# %% tags=["demo"]
with torch.no_grad():
    batch = fcos.make_batch([scene], model.mean, model.std, model.divisor)
    features = model.backbone(batch.images)
    maps, points, outputs = model.run(batch)
for level, x in zip((3, 4, 5), maps, strict=True):
    print(f"backbone {tuple(features[level].shape)} -> P{level} {tuple(x.shape)}")
print("logits", tuple(outputs.logits.shape), "- image, locations of all levels, classes")
print("distances", tuple(outputs.distances.shape), "centre-ness", tuple(outputs.centerness.shape))
for name in ("backbone", "fpn", "head"):
    print(f"{name}: {sum(p.numel() for p in getattr(model, name).parameters()):,} weights")

# %% [markdown]
# ### Three losses
#
# **Classes.** Each location has one logit per class, each with a sigmoid of its own: none is "background". Nearly all
# locations are background and easy. The **focal loss** turns down what is easy. With $p$ the probability, $N_{pos}$ the
# number of positive locations, $\alpha = 0.25$ and $\gamma = 2$, summed over all locations and classes:
#
# $$L_{class} = -\frac{1}{N_{pos}} \sum \begin{cases} \alpha\, (1 - p)^\gamma \log p & \text{if the target is 1} \\
# (1 - \alpha)\, p^\gamma \log (1 - p) & \text{if it is 0.} \end{cases}$$
#
# The last two lines printed show what $\gamma$ does once a network has learned something.

# %%
from torch.nn import functional as F

from condinst_edu.teach.references import focal_loss


def focal_by_loops(logits, targets, alpha=0.25, gamma=2):
    total = torch.tensor(0.0)
    for logit, target in zip(logits.flatten(), targets.flatten(), strict=True):
        p = logit.sigmoid()
        if target == 1:
            total -= alpha * (1 - p) ** gamma * p.log()
        else:
            total -= (1 - alpha) * p**gamma * (1 - p).log()
    return total


same_as(focal_by_loops, focal_loss, torch.randn(7, 3), torch.randint(0, 2, (7, 3)).float())
one_hot = F.one_hot(assigned.labels, 1 + len(class_names))[..., 1:].float()  # (1, L, K)
for gamma in (0, 2):
    zeros, everything = (
        focal_loss(outputs.logits[part], one_hot[part], gamma=gamma) for part in (one_hot == 0, one_hot >= 0)
    )
    print(f"gamma {gamma}: {zeros / everything:.0%} of the loss comes from targets of 0")

# %% [markdown]
# **Boxes.** What counts is overlap. The **generalised IoU** of two boxes $A$ and $B$, with $C$ the smallest box around
# both, is
#
# $$\mathrm{GIoU} = \frac{|A \cap B|}{|A \cup B|} - \frac{|C| - |A \cup B|}{|C|}, \qquad L_{giou} = 1 - \mathrm{GIoU}.$$
#
# The second term charges for the part of $C$ that neither covers: grey in the picture, where blue is the true box,
# orange a prediction, the dot their location. Both boxes contain it, so the intersection has the smaller of each
# distance, and $C$ the larger.

# %%
from torchvision.ops import box_iou, generalized_box_iou

from condinst_edu.layers.losses import giou_loss


def giou_from_corners(distances, targets):
    """Boxes around the origin: x0 = -l, y0 = -t, x1 = r, y1 = b."""
    signs = torch.tensor([-1, -1, 1, 1])
    return 1 - generalized_box_iou(distances * signs, targets * signs).diagonal()


same_as(giou_from_corners, giou_loss, 0.3 + 6 * torch.rand(5, 4), 0.3 + 6 * torch.rand(5, 4))

# %% tags=["hide-input", "demo"]
box = torch.tensor([[3.0, 2, 3, 2]])
others = {
    "too small": [[2.4, 1, 2.4, 1]],
    "shifted": [[5.0, 2, 1, 2]],
    "turned": [[1.0, 4, 1, 4]],
    "far": [[6, 0, 0, 4.0]],
}
figure, axes = pic.new_figure(1, 4, 2.1, 2.3)
for ax, (name, other) in zip(axes, others.items(), strict=True):
    other = torch.tensor(other)
    hull = torch.maximum(box, other)
    for (left, top, right_, bottom), color in ((hull[0], "0.8"), (box[0], "C0"), (other[0], "C1")):
        x, y = [-left, right_, right_, -left], [-top, -top, bottom, bottom]
        ax.fill(x, y, color=color, alpha=0.75)
    iou = box_iou(*(b * torch.tensor([-1, -1, 1, 1]) for b in (box, other))).item()
    ax.plot(0, 0, "k.")
    ax.set(xlim=(-6.5, 4), ylim=(4.5, -4.5), aspect="equal", xticks=[], yticks=[])
    loss = giou_loss(box, other).item()
    ax.set_title(f"{name}\n1 - IoU {1 - iou:.2f}, loss {loss:.2f}", fontsize=8)
figure

# %% [markdown] tags=["instructor"]
# Focal loss: let the class compute by hand what a background location with p = 0.01 contributes for gamma 0 and 2,
# then multiply by the number of locations.
#
# Misconceptions: "there is a background class" (all sigmoids low is background); "GIoU is for boxes that do not
# touch" (here they nearly always do; the grey area is what it adds); "centre-ness is the IoU" (it is computed from
# the location alone, not from the predicted box).

# %% [markdown]
# **Centre-ness** is trained with a binary cross-entropy. The whole loss (the $L_{fcos}$ of `condinst:eq-1`) is the sum
# of the three: classes over all locations, divided by the number of positives; boxes over positives only, weighted by
# their centre-ness target and divided by its sum; centre-ness over positives.
#
# ### Decoding and NMS
#
# At inference every location gives its box back: $x_0 = x - l s$ and so on. Each location and class with a probability
# $p$ above 0.02 makes a candidate, of score $\sqrt{p \cdot \text{centerness}}$. Many locations find the same object, so
# **non-maximum suppression** (NMS) goes through the boxes by falling score and drops each one whose IoU with a kept box
# *of its class* exceeds 0.6 (`condinst:inference`). Of those left the model returns the best 100. (The first two
# pictures leave out what scores below 0.1.)

# %% tags=["demo"]
candidates = model.propose(points, outputs, image=0)
assert model.score_threshold == 0.02


def nms_by_loops(boxes, scores, labels, threshold=0.6):
    kept = []
    for k in scores.argsort(descending=True, stable=True).tolist():
        rivals = [j for j in kept if labels[j] == labels[k]]
        if not rivals or box_iou(boxes[[k]], boxes[rivals]).max() <= threshold:
            kept.append(k)
    return torch.tensor(kept)


kept = nms_by_loops(candidates.boxes, candidates.scores, candidates.labels)
survivors = candidates.pick(kept)
same_as(survivors.boxes, fcos.class_nms(candidates, 0.6).boxes, name="class_nms")

# %% tags=["hide-input", "demo"]
sure = survivors.pick(survivors.scores >= 0.4)
steps = {"candidates": candidates, "after NMS": survivors, "score 0.4 or more": sure}
figure, axes = pic.new_figure(1, 3, 3.4, 2.3)
for ax, (name, found) in zip(axes, steps.items(), strict=True):
    if found is sure:
        pic.draw_instances(ax, scene, found._asdict(), class_names)
    else:
        pic.draw_image(ax, scene)
        pic.draw_boxes(ax, found.boxes[found.scores >= 0.1])
    ax.set(xlim=(0, 160), ylim=(96, 0))
    ax.set_title(f"{name}: {len(found.scores)} boxes", fontsize=9)
figure

# %% [markdown] tags=["instructor"]
# On the star three classes survive, for NMS compares within a class only; the square in front of it, in nearly the
# same colour, is not found. Ask which of the boxes left after NMS are wrong, and what would remove them: a higher
# score threshold does it in this picture, at the price of objects elsewhere. Two alike objects with an IoU above 0.6
# cannot both survive: remember this for lesson 4 (NMS by masks).

# %% [markdown]
# ## Look inside
#
# What the head says, one row for each level: the highest class probability, the centre-ness, and their product, which
# ranks the boxes; white are the true boxes. Centre-ness away from objects means nothing: it is trained on positives
# only.

# %% tags=["hide-input", "demo"]
best = outputs.logits[0].sigmoid().amax(-1)  # (L,)
middle = outputs.centerness[0].sigmoid()
columns = {"class probability": best, "centre-ness": middle, "product": best * middle}
figure, axes = pic.new_figure(3, 3, 2.9, 1.95)
cells = iter(axes)
for level, stride in enumerate(model.strides):
    for name, values in columns.items():
        ax = next(cells)
        shape = (96 // stride, 160 // stride)
        of_level = values[points.level == level].view(shape)  # (H, W)
        shown = ax.imshow(of_level, vmin=0, vmax=1, extent=(0, 160, 96, 0))
        for x0, y0, x1, y1 in truth["boxes"].tolist():
            ax.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", linewidth=0.7)
        ax.set_axis_off()
        ax.set_title(f"P{level + 3}, {shape[0]} x {shape[1]}: {name}", fontsize=8)
figure.colorbar(shown, ax=axes, shrink=0.6)
figure

# %% [markdown]
# ## Does it learn?
#
# A short training of the same network from random weights, in an ordinary PyTorch loop: in training mode the model
# returns its three losses. Do not expect much after so few steps; the shipped model took 3000.

# %% tags=["demo"]
from condinst_edu.engine.recipe import build_model
from condinst_edu.recipes import get_recipe

steps = 200
config = ShapesConfig(size=(64, 96), objects=(1, 4))
torch.manual_seed(0)
student = build_model("fcos", len(class_names), get_recipe("shapes-fcos").model_args).train()
optimizer = torch.optim.AdamW(student.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.2)
history = []
for step in range(steps):
    images, truths = zip(*(drawn(4 * step + k, 1, config) for k in range(4)), strict=True)
    losses = student(images, truths)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
    optimizer.step()
    schedule.step()
    history.append([loss.item() for loss in losses.values()])
learned = evaluate(student.eval(), data, progress=False)["box"]
print(f"{steps} steps: AP {learned['AP']:.3f}; shipped model: AP {right['AP']:.3f}")
smooth = torch.tensor(history).T.unfold(1, 20, 1).mean(-1)  # (3, steps - 19)
pic.show_curves(dict(zip(losses, smooth, strict=True)), "step", "loss, mean of 20 steps")

# %% [markdown]
# Classes and boxes improve together. The centre-ness loss hardly falls, and cannot reach 0: its targets lie
# *between* 0 and 1, and the cross-entropy of such a target with itself is not 0.

# %% [markdown] tags=["instructor"]
# minutes: 5
# late: skip, lesson 2 begins with a model that has learned (saves 5)
# Run the cell while you talk about the loss. Ask what the first step's class loss tells about the initial bias of the
# class logits (background with probability 0.99).

# %% [markdown]
# ## Break it
#
# Inside a `with deviate(...)` block the library uses a wrong variant of a function. First, four mistakes at inference,
# with the trained weights: only the way from distances to boxes changes.

# %% tags=["demo"]
from condinst_edu.teach import deviate

image = data[7][0] / 255
panels = {f"right: AP {right['AP']:.3f}": (image, found_in(image))}
for name in ("locations-at-corner", "decode-without-stride", "decode-swapped", "decode-exponential"):
    with deviate(name) as deviation:
        score = evaluate(model, data, progress=False)["box"]
        panels[f"{name}: {score['AP']:.3f}"] = (image, found_in(image))
    print(f"{name}: AP {score['AP']:.3f}, at IoU 0.5 {score['AP50']:.3f}\n    {deviation.line}")
pic.show_panels(panels, columns=3, captions=False)

# %% [markdown]
# Three are seen at once. The smallest mistake is the nastiest: a missing half stride moves each box by 4 pixels on P3
# and 8 on P4. The picture looks nearly right, and the AP at IoU 0.5 falls far less than the mean over stricter ones.
#
# Next, mistakes in the assignment. They act through training, but their harm shows in the targets already.

# %% tags=["demo"]
print(f"{'':25} ambiguous    BPR")
print("{:25} {:9.1%} {:6.1%}".format("right", *count(wide, (160, 224), **three, radius=1.5)))
for name in ("assign-radius-in-pixels", "assign-every-level", "assign-whole-box", "assign-largest"):
    with deviate(name) as deviation:
        print("{:25} {:9.1%} {:6.1%}".format(name, *count(wide, (160, 224), **three, radius=1.5)))
    print(f"    {deviation.line}")
with deviate("assign-radius-in-pixels"):
    few = targets_of(scene, truth)
pic.show_targets(scene, few.points, few.assignment, boxes=truth["boxes"])

# %% [markdown]
# A radius of 1.5 *pixels* hardly ever contains a location: not one dot is left, and nothing can be learned. The others
# leave an owner to nearly every object, and harm the quality: without ranges more locations are torn between two; in
# whole boxes, locations at the sides have to predict from what little they see; where the largest wins, it is small
# objects that lose their last location.

# %% [markdown] tags=["instructor"]
# minutes: 10
# late: one deviation instead of all (saves 6)
# Show both pictures of targets, this one (radius in pixels) and that of the rules above: why has nobody
# any dots left? Then ask why BPR hardly notices the other mistakes: one location of an object is enough for it.
#
# Swapped sides still reach some AP: they mirror a box at a diagonal through its location, which hurts least from near
# the middle of a shape about as wide as high. The checks of the exercises draw other boxes, and find it.

# %% [markdown]
# ## Paper and miniature
#
# The slides conclude from COCO that levels cut the overlaps "by a large margin", that FCOS can reach a recall "very
# similar" to that of anchors, and that boxes predicted near the middle are more reliable. On our shapes: nine anchors
# at each location, the smallest of 4 strides or of 2, and the share of objects that one fits with an IoU of at least
# 0.5 (folded); then the trained model's boxes at all positive locations, and its AP if the ranking ignores centre-ness.


# %% tags=["hide-input", "demo"]
def anchors(points, base):
    """Nine boxes around each of L locations: (9 * L, 4); base: the smallest size, in strides."""
    size = base * 2 ** (torch.arange(3) / 3)[:, None]  # (3, 1)
    shape = torch.tensor([0.5, 1, 2]).sqrt()  # height / width = 1/2, 1, 2
    half = torch.stack([size / shape, size * shape], dim=-1).reshape(9, 2) / 2
    half = half * points.stride[:, None, None]  # (L, 9, 2)
    return torch.cat([points.xy[:, None] - half, points.xy[:, None] + half], dim=-1).flatten(0, 1)


held_out_points = targets_of(torch.zeros(3, 128, 128), targets[0], **three).points
for base in (4, 2):
    boxes = anchors(held_out_points, base)
    fits = torch.cat([box_iou(t["boxes"], boxes).amax(1) >= 0.5 for t in targets])  # one entry for each object
    print(f"{len(boxes)} anchors from {base} strides on: one fits {fits.float().mean():.1%} of {len(fits)} objects")
owners = count(targets, (128, 128), **three)[1]
print(f"FCOS, {len(held_out_points.xy)} locations: {owners:.1%} own at least one")


# %% tags=["demo"]
@torch.no_grad()
def quality(image, target):
    """IoU of predicted and true box, and centre-ness, of the positive locations of one image."""
    batch = fcos.make_batch([image / 255], model.mean, model.std, model.divisor)
    _, points, outputs = model.run(batch)
    found = model.assign(points, [target])
    positive = found.labels > 0  # (1, L)
    mine, true = (fcos.decode(points, x.distances)[positive] for x in (outputs, found))
    return box_iou(mine, true).diagonal(), fcos.centerness(found.distances[positive])


def forget_centerness(module, inputs, outputs):
    return outputs._replace(centerness=torch.full_like(outputs.centerness, 20.0))  # sigmoid: 1


names = ("stride 16 alone, whole boxes", "three levels, whole boxes")
single, several = (count(wide, (160, 224), **settings[name])[0] for name in names)
print(f"ambiguous: {single:.1%} of the locations of one level, {several:.1%} with three")
ious, values = map(torch.cat, zip(*(quality(*data[k]) for k in range(len(data))), strict=True))
for k in range(5):
    part = ious[(5 * values).long().clamp(max=4) == k]
    print(f"centre-ness from {k / 5:.1f}: {len(part):4} locations, mean IoU {part.mean():.3f}")
hook = model.head.register_forward_hook(forget_centerness)
without = evaluate(model, data, progress=False)["box"]["AP"]
hook.remove()
print(f"AP {right['AP']:.3f} with centre-ness, {without:.3f} without")

# %% [markdown]
# ## Play
#
# Move strides, ranges and radius and watch the targets. Try radius 0 (whole boxes); a range so low that a level loses
# all its objects; strides so coarse that the small square owns nothing. Without the widget, `targets_of` tells the same.

# %% tags=["play"]
from condinst_edu.teach import explore_targets

explore_targets(scene, truth)

# %% [markdown]
# ## Exercises
#
# Six functions, in the order of the lesson. A check compares with the library on random inputs and knows many wrong
# answers by name. Nothing below depends on them.

# %% [markdown] tags=["exercise"]
# 01-locations
# Write `my_locations(size, stride)`: the pixels (x, y) of all cells of a map of size (height, width), row by row, as
# (H * W, 2) float32.


# %% tags=["stub"]
def my_locations(size, stride):
    """Pixels (x, y) of the cells of a map of size (height, width): (H * W, 2) float32."""
    raise NotImplementedError


# %% tags=["solution"]
def my_locations(size, stride):
    """Pixels (x, y) of the cells of a map of size (height, width): (H * W, 2) float32."""
    height, width = size
    ys = torch.arange(height).float() * stride + stride // 2
    xs = torch.arange(width).float() * stride + stride // 2
    y, x = torch.meshgrid(ys, xs, indexing="ij")  # (H, W)
    return torch.stack([x.flatten(), y.flatten()], dim=1)


# %% tags=["check"]
check("01-locations", my_locations)

# %% [markdown] tags=["exercise"]
# 01-assign-targets
# Write `my_assign_targets(points, boxes, labels, centers, radius)`, the three rules for all locations at once: closer
# to the centre than radius * stride along both axes (strictly); longest distance in the range, both ends included;
# strictly inside the box. The arguments: `points.xy` (L, 2), `points.stride` (L,) and `points.reach` (L, 2), the ends
# of each location's range, all in pixels; boxes (B, M, 4), labels (B, M) with 0 for padding (no object), centers
# (B, M, 2), the middles of the centre regions. Return labels (B, L), distances (B, L, 4) in strides, and the index of
# the object (B, L). What stands at background locations in the last two does not matter; `radius` is never 0.


# %% tags=["stub"]
def my_assign_targets(points, boxes, labels, centers, radius):
    """labels (B, L), distances (B, L, 4) in strides, matched (B, L)."""
    raise NotImplementedError


# %% tags=["solution"]
def my_assign_targets(points, boxes, labels, centers, radius):
    """labels (B, L), distances (B, L, 4) in strides, matched (B, L)."""
    xy, stride = points.xy[:, None], points.stride[:, None]  # (L, 1, 2), (L, 1)
    low, high = points.reach[:, :1], points.reach[:, 1:]  # (L, 1)
    boxes_, centers_ = boxes[:, None], centers[:, None]  # (B, 1, M, ...)
    sides = torch.cat([xy - boxes_[..., :2], boxes_[..., 2:] - xy], dim=-1)  # (B, L, M, 4)
    longest = sides.amax(-1)
    valid = (sides.amin(-1) > 0) & (low <= longest) & (longest <= high) & (labels > 0)[:, None]
    valid &= (xy - centers_).abs().amax(-1) < radius * stride  # (B, L, M)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # (B, M)
    area = torch.where(valid, area[:, None], torch.inf)
    smallest, matched = area.min(-1)  # (B, L)
    image = torch.arange(len(boxes))[:, None]
    found = torch.where(smallest < torch.inf, labels[image, matched], 0)
    distances = sides.gather(2, matched[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
    return found, distances / stride, matched


# %% tags=["check"]
check("01-assign-targets", my_assign_targets)

# %% [markdown] tags=["exercise"]
# 01-centerness
# Write `my_centerness(distances)`: from distances (..., 4) as (left, top, right, bottom) to (...).


# %% tags=["stub"]
def my_centerness(distances):
    """Centre-ness (...) of distances (..., 4)."""
    raise NotImplementedError


# %% tags=["solution"]
def my_centerness(distances):
    """Centre-ness (...) of distances (..., 4)."""
    left, top, right, bottom = distances.unbind(-1)
    x = torch.minimum(left, right) / torch.maximum(left, right)
    y = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (x * y).sqrt()


# %% tags=["check"]
check("01-centerness", my_centerness)

# %% [markdown] tags=["exercise"]
# 01-focal-loss
# Write `my_focal_loss(logits, targets)` without loops: the *sum* over all entries of (L, K) logits and targets of 0 or
# 1, with alpha 0.25 and gamma 2. It is trained through, so the check compares the gradient as well.


# %% tags=["stub"]
def my_focal_loss(logits, targets):
    """Sum of the focal loss of (L, K) logits."""
    raise NotImplementedError


# %% tags=["solution"]
def my_focal_loss(logits, targets):
    """Sum of the focal loss of (L, K) logits."""
    p = logits.sigmoid()
    p_t = torch.where(targets == 1, p, 1 - p)
    alpha_t = torch.where(targets == 1, 0.25, 0.75)
    return (-alpha_t * (1 - p_t) ** 2 * p_t.log()).sum()


# %% tags=["check"]
check("01-focal-loss", my_focal_loss)

# %% [markdown] tags=["exercise"]
# 01-giou-loss
# Write `my_giou_loss(distances, targets)`: both (N, 4) distances from the same locations, the result (N,). Do not go
# through corners: say directly how wide intersection and enclosing box are.


# %% tags=["stub"]
def my_giou_loss(distances, targets):
    """One minus GIoU (N,) of boxes given as distances (N, 4)."""
    raise NotImplementedError


# %% tags=["solution"]
def my_giou_loss(distances, targets):
    """One minus GIoU (N,) of boxes given as distances (N, 4)."""

    def area(d):
        return (d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3])

    intersection = area(torch.minimum(distances, targets))
    hull = area(torch.maximum(distances, targets))
    union = area(distances) + area(targets) - intersection
    return 1 - intersection / union + (hull - union) / hull


# %% tags=["check"]
check("01-giou-loss", my_giou_loss)

# %% [markdown] tags=["exercise"]
# 01-decode
# Write `my_decode(points, distances)`: boxes (..., L, 4) as x0, y0, x1, y1 in pixels, from distances (..., L, 4) in
# strides at the locations `points.xy` (L, 2), whose strides are `points.stride` (L,).


# %% tags=["stub"]
def my_decode(points, distances):
    """Boxes (..., L, 4) in pixels from distances (..., L, 4) in strides."""
    raise NotImplementedError


# %% tags=["solution"]
def my_decode(points, distances):
    """Boxes (..., L, 4) in pixels from distances (..., L, 4) in strides."""
    pixels = distances * points.stride[:, None]
    return torch.cat([points.xy - pixels[..., :2], points.xy + pixels[..., 2:]], dim=-1)


# %% tags=["check"]
check("01-decode", my_decode)

# %% [markdown]
# ## What the paper says and what the code does
#
# CondInst's paper describes its FCOS in half a page. The official code, which this library follows, settles the rest.
# The cell checks each line.
#
# 1. The paper says that locations in the centre region are positive. The code also wants them **inside the box**.
# 2. The centre is the mass centre of the *mask* in CondInst, the middle of the *box* in FCOS. The two differ.
# 3. The score is the **root** of class probability times centre-ness. The root changes no ranking, hence no AP; it
#    makes scores easier to read as probabilities.
# 4. The GIoU loss of the official FCOS adds 1 to intersection and union, in units of the stride. It matters for
#    small boxes only, and makes their loss smaller.

# %%
from condinst_edu.coordinates import mass_centers
from condinst_edu.engine.evaluate import coco_ap, detect_all

small = {"boxes": torch.tensor([[38.0, 38, 50, 50]]), "labels": torch.tensor([1])}
found = targets_of(scene, small)
region = (found.points.level == 0) & ((found.points.xy - 44).abs().amax(-1) < 1.5 * 8)
print(f"1. {int(region.sum())} locations in the region, {sum(found.positives)} of them positive")
masks, boxes = (torch.cat([target[name] for target in targets]) for name in ("masks", "boxes"))
shifts = (mass_centers(masks) - (boxes[:, :2] + boxes[:, 2:]) / 2).norm(dim=1)
print(f"2. mass and box centre: {shifts.mean():.1f} pixels apart, at most {shifts.max():.1f}")
results = detect_all(model, data, progress=False)
squared = [{**result, "score": result["score"] ** 2} for result in results]
ap = [coco_ap(data.annotation_file, r, ("bbox",))["box"]["AP"] for r in (results, squared)]
print(f"3. AP {ap[0]:.6f} with the root, {ap[1]:.6f} without")
for scale in (1, 8):
    pair = scale * torch.tensor([[0.5, 0.5, 0.5, 0.5]]), scale * torch.tensor([[0.5, 0.5, 1, 0.5]])
    plain, official = (giou_loss(*pair, smooth=smooth).item() for smooth in (0, 1))
    print(f"4. boxes of about {scale} stride(s): loss {plain:.3f}, with 1 added {official:.3f}")
assert ap[0] == ap[1]
assert min(region.sum() - sum(found.positives), shifts.max(), plain - official) > 0

# %% [markdown]
# ## In three lines
#
# - Every location of a pyramid predicts classes, four distances and its centre-ness: no templates, one box each.
# - Levels by size, a centre region and "the smallest wins" decide who answers for what, and leave next to no object
#   out.
# - Focal, GIoU and cross-entropy loss train it; decoding, a score and NMS make the list of boxes.
#
# Next: [lesson 2, dynamic mask heads](02_dynamic_mask_heads.ipynb): from a box to the outline of the object.
