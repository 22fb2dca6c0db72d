# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: CondInst, whole
#     minutes: {read: 30, do: 45, run: 1}
#     needs: ["lesson 1 (FCOS)", "lesson 2 (dynamic mask heads)", "lesson 3 (relative coordinates)"]
#     gives:
#       - the bottom branch
#       - which locations train masks
#       - the whole loss
#       - inference by hand
#       - where the time goes
#     papers:
#       - condinst:bottom-branch
#       - condinst:top-64
#       - condinst:eq-1
#       - condinst:eq-2
#       - condinst:semantic-loss
#       - condinst:inference
#       - condinst:table-5
# ---

# %%
from condinst_edu import doctor

doctor.quick("condinst")

# %% [markdown]
# ## A result first
#
# An image that the model has never seen goes in, instances come out. By the end of this lesson you will have done
# every step of this call by hand, and will know what each of them costs.

# %% tags=["first-result", "demo"]
import torch

from condinst_edu.teach import pictures as pic
from condinst_edu.teach.tiny import held_out, load_tiny

torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save

trained = load_tiny("condinst")
model, class_names = trained.model, trained.class_names
image = held_out(50)[7][0] / 255  # (3, 128, 128)
with torch.no_grad():
    result = model([image])[0]
sure = {name: value[result["scores"] > 0.5] for name, value in result.items()}
pic.show_masks(image, sure, class_names)

# %% [markdown] tags=["instructor"]
# minutes: 5
# Let the class list what must happen between the image and these masks. They know FCOS (lesson 1), the mask head
# (lesson 2) and coordinates (lesson 3). What is missing on the board is this lesson: where the features come from,
# which locations are trained, how duplicates go.

# %% [markdown]
# ## The problem
#
# Lessons 1 to 3 made the parts. To make a model of them, four questions are left:
#
# 1. **Features.** The mask heads of all instances read the same map. Where does it come from?
# 2. **Training.** Dozens of locations answer for an image's objects, and each could draw a mask. Which of them do?
# 3. **Inference.** Many locations find the same object. When is a duplicate removed: before its mask is drawn, or
#    after?
# 4. **Cost.** What does it cost in time, and does it cost more when there are more objects?
#
# `xray` runs the model and prints each stage, with the papers' symbols. Everything above `F_bottom` is FCOS. Our images
# are small, so our levels are one step finer than the paper's: masks use $P_2, P_3, P_4$ here and $P_3, P_4, P_5$ there,
# and boxes are found on $P_3$ to $P_5$ (there: $P_3$ to $P_7$).

# %% tags=["demo"]
from condinst_edu.teach.xray import xray

rows = xray(model, image)

# %% [markdown] tags=["instructor"]
# minutes: 5
# Ask which rows have the number of instances in their shape: theta, mask logits and the results, nothing else.
# Misconception: "169 numbers are predicted for every location". They could be, but the controller is one convolution
# that is only evaluated where it is needed.

# %% [markdown]
# ## The bottom branch
#
# The finest level has sharp edges and knows little of what it sees; coarser levels know more and are blurred. The
# bottom branch (`condinst:bottom-branch`) adds them: each level goes through a 3x3 convolution $r_k$, is upsampled to
# the finest level's size, and what several more convolutions make of the sum is $F_{bottom}$
# ($C_{bottom} \times H \times W$):
#
# $$F_{bottom} = \mathrm{tower}\Big(\sum_k \mathrm{up}_{2^k}\big(r_k(P_{2 + k})\big)\Big), \qquad k = 0, 1, 2.$$
#
# (The paper adds the levels as they are: $r_k$ is the official code's. Its tower is four 3x3 convolutions of 128
# channels and one that goes to 8, of which `condinst:table-2` tries more and fewer; ours are two of 32. The conference
# version read P3 alone, `condinst-eccv:mask-branch`.) The batch has four images that are drawn for this lesson. In the
# picture: the brightness of the first, the three parts and their sum, averaged over channels, then the eight maps of
# $F_{bottom}$. Nothing tells a channel what to be: whatever helps the heads to draw is learned.

# %% tags=["demo"]
from condinst_edu.datasets.shapes import ShapesConfig, generate
from condinst_edu.layers.images import make_batch
from condinst_edu.layers.upsample import aligned_upsample
from condinst_edu.teach import check, deviate, same_as


def draw(index, size=(96, 128), objects=(3, 5)):
    """An image (3, H, W) in [0, 1] and its target, as a model takes them."""
    sample = generate(index, seed=4, config=ShapesConfig(size=size, objects=objects))
    names = ("boxes", "labels", "masks")
    target = {name: torch.from_numpy(getattr(sample, name)) for name in names}
    return torch.from_numpy(sample.image).permute(2, 0, 1) / 255, target


images, targets = zip(*(draw(i) for i in range(4)), strict=True)
fcos, bottom = model.fcos, model.bottom
with torch.no_grad():
    pyramid, points, outputs = fcos.run(make_batch(images, fcos.mean, fcos.std, fcos.divisor))
    levels = zip(bottom.refine, pyramid, strict=False)  # the bottom branch takes the finest three
    parts = [aligned_upsample(refine(p), 2**k) for k, (refine, p) in enumerate(levels)]
    features = bottom.tower(sum(parts))  # (B, C, H, W)
    same_as(features, bottom(pyramid), name="the bottom branch")
maps = {"brightness": images[0].mean(dim=0)}
maps |= {f"from P{k + 2}": part[0].mean(dim=0) for k, part in enumerate(parts)}
maps |= {"the sum": sum(parts)[0].mean(dim=0)} | {f"channel {c}": x for c, x in enumerate(features[0])}
pic.show_maps(maps, columns=5)

# %% [markdown] tags=["instructor"]
# minutes: 8
# Eight channels are few on purpose: every further input channel costs every instance eight more weights. Table 2 of
# the paper goes down to a single channel and loses about one point.

# %% [markdown]
# ## Which locations draw masks in training
#
# FCOS gives every object a handful of positive locations (lesson 1). Every one of them has a theta of its own, and
# could draw a mask of the object: a whole map each, which would need much memory. The conference version took up to 500
# locations of a GPU's batch at random (`condinst-eccv:random-500`); the journal version keeps the 64 of each image with
# the highest score (`condinst:top-64`). Inference looks at the surest locations only, so these are the masks that have
# to be good. Ours is the score for the object's own class (the official code takes the best class's, and gives every
# object of the image an equal share of the 64):
#
# $$\text{score}_{x,y} = p_{x,y}(c^*) \cdot \text{centre-ness}_{x,y}, \qquad c^* \text{ the object's class.}$$
#
# The tiny model keeps `mask_limit` of them. Each colour is an object; large dots are locations of coarse levels.

# %% tags=["demo"]
from condinst_edu.condinst import sample_locations

assignment = fcos.assign(points, targets)  # labels (B, L), matched (B, L)
every = assignment.labels[1].nonzero().flatten()  # of image 1
torch.manual_seed(0)
by_score, _ = sample_locations(outputs, assignment, model.mask_limit)  # (B, S)
by_chance, _ = sample_locations(outputs, assignment, model.mask_limit, by="random")
chosen = {"all positive locations": every, "best by score": by_score[1], "random": by_chance[1]}
owner = assignment.matched[1]
for name, i in chosen.items():
    per_object = owner[i].bincount(minlength=len(targets[1]["labels"])).tolist()
    print(f"{name:22} locations of each object: {per_object}")
pic.show_chosen(images[1], points, {name: (i, owner[i]) for name, i in chosen.items()})

# %% [markdown] tags=["instructor"]
# minutes: 8
# Point out the object without any location in the middle panel: a limit per image says nothing about objects. The
# tiny model's limit of ten is tight; 64 leaves more room.
#
# Misconception: "the score needs a gradient". It only ranks; the function runs under no_grad.

# %% [markdown]
# ## The losses
#
# Eq. 2 (`condinst:eq-2`): every sampled positive location $(x, y)$ applies *its* filters $\theta_{x,y}$ to
# $\tilde F_{x,y}$ (the shared features, with coordinates relative to *its* location,
# $(C_{bottom} + 2) \times H \times W$) and is compared with the mask $M^*_{x,y}$ of the object it answers for:
#
# $$L_{mask} = \frac{1}{N_{pos}} \sum_{x,y} \mathbb{1}_{\{c^*_{x,y} > 0\}}
# L_{dice}\big(\mathrm{MaskHead}(\tilde F_{x,y}; \theta_{x,y}), M^*_{x,y}\big)$$
#
# Eq. 1 (`condinst:eq-1`) adds it to FCOS's own three losses of lesson 1, $L_{overall} = L_{fcos} + \lambda L_{mask}$
# with $\lambda = 1$. Both written as they stand, one location at a time. And do the sampled locations draw well? For
# comparison we take the loss of all that were left out, too.


# %% tags=["demo"]
@torch.no_grad()
def dice_of(b, location):
    """The dice loss of one positive location of image b."""
    theta = fcos.head.top_at(outputs, points, b, location[None])  # (1, 169)
    center, scale = points.xy[location], model.scales[points.level[location]]
    logits = model.mask_head(features[b], theta, center[None], scale[None], model.stride)
    p = aligned_upsample(logits, model.factor)[0].sigmoid()  # (h, w)
    truth, step = targets[b]["masks"][assignment.matched[b, location]], model.mask_stride
    t = truth[step // 2 :: step, step // 2 :: step].float()
    return 1 - 2 * (p * t).sum() / ((p * p).sum() + (t * t).sum() + 1e-5)


positive = assignment.labels > 0
dices = torch.zeros(positive.shape)  # (B, L)
for b, location in positive.nonzero():
    dices[b, location] = dice_of(int(b), location)
sampled, left_out = dices.gather(1, by_score), dices[positive.scatter(1, by_score, False)]
with torch.no_grad():
    losses = model.losses(pyramid, points, outputs, features, targets)
for name, value in losses.items():
    print(f"{name:16} {value:.3f}")
same_as(sampled.mean(), losses["loss_mask"], name="Eq. 2")
l_fcos = losses["loss_class"] + losses["loss_box"] + losses["loss_centerness"]
same_as(l_fcos + sampled.mean(), sum(losses.values()), name="Eq. 1, with lambda 1")
print(f"dice loss of {sampled.numel()} sampled {sampled.mean():.3f}, of {len(left_out)} others {left_out.mean():.3f}")

# %% [markdown] tags=["instructor"]
# minutes: 12
# Read Eq. 2 aloud with the code beside it; every symbol has its line. Two places where the letter and the code
# differ: the sum is over sampled locations, and it is a mean over locations, not over objects.
#
# Misconception: "the mask loss trains the bottom branch only". It goes through theta into the controller and the box
# tower as well; let somebody trace it back.

# %% [markdown]
# ## A second teacher: the semantic task
#
# In training only, a small head on the finest level may also say which *class* each cell shows
# (`condinst:semantic-loss`). It is thrown away afterwards, so inference costs nothing more; the paper gains about a
# point of AP by it (its Table 6), which we have not measured. What follows is the official code's. The target is one
# label per cell, that of the *smallest* object there (0: none). The loss is lesson 1's focal loss over all cells and
# classes, divided by the number of cells that show an object:

# %% tags=["demo"]
from condinst_edu.condinst import semantic_loss, semantic_map
from condinst_edu.teach.references import focal_loss


def semantic_by_hand(logits, labels):
    """logits (B, K, H, W); labels (B, H, W), 0 for no object."""
    classes = torch.arange(1, logits.shape[1] + 1)[:, None, None]
    wanted = (labels[:, None] == classes).float()  # (B, K, H, W)
    return focal_loss(logits, wanted) / (labels > 0).sum().clamp(min=1)


same_as(semantic_by_hand, semantic_loss, torch.randn(2, 3, 5, 7), torch.randint(0, 4, (2, 5, 7)))
example = semantic_map(targets[1]["masks"], targets[1]["labels"], 4)
pic.show_label_maps(images[1], {"the target, at stride 4": example}, class_names)

# %% [markdown] tags=["instructor"]
# minutes: 6
# late: skip, the shipped model has none (saves 6)
# The "smallest" rule matters where masks overlap, as people's annotations do; the exercise comes back to it.
#
# Why a sigmoid and not a softmax with a background class? Because the official code does, and the paper says nothing.
# `CondInst(semantic=True)` adds the head; the shipped tiny model has none.

# %% [markdown]
# ## Look inside: inference, step by step
#
# What `model([image])` did with the first picture (`condinst:inference`).
#
# **Step 1: FCOS's outputs become candidates.** A candidate is a (location, class) pair whose class probability times
# centre-ness exceeds a threshold. Its score is the square root of that product, its box is decoded from four
# distances.
#
# **Step 2: class-wise NMS.** Go by falling score; a candidate stays unless a box that stayed, of the same class,
# overlaps it by more than 0.6. Then at most 100 are kept. No mask has been drawn so far. In the picture dots sit at the
# locations that speak, a colour for each class.

# %% tags=["demo"]
from torchvision.ops import box_iou

with torch.no_grad():
    batch = make_batch([image], fcos.mean, fcos.std, fcos.divisor)
    pyramid, points, outputs = fcos.run(batch)
    features = bottom(pyramid)[0]  # (C, H, W)
product = outputs.logits[0].sigmoid() * outputs.centerness[0].sigmoid()[:, None]  # (L, K)
location, column = (product > fcos.score_threshold).nonzero(as_tuple=True)
score, order = product[location, column].sqrt().sort(descending=True, stable=True)
location, label = location[order], column[order] + 1
left, top, right, low = (outputs.distances[0, location] * points.stride[location, None]).T
x, y = points.xy[location].T
boxes = torch.stack([x - left, y - top, x + right, y + low], dim=1)  # (N, 4)
iou, kept = box_iou(boxes, boxes), []
for i in range(len(boxes)):
    if not any(label[i] == label[j] and iou[i, j] > fcos.nms_threshold for j in kept):
        kept.append(i)
kept = torch.tensor(kept)[: fcos.detections]
everything = torch.arange(len(boxes))
steps = {"candidates": everything, "after NMS": kept, "score > 0.5": kept[score[kept] > 0.5]}
panels = {name: (location[i], label[i] - 1) for name, i in steps.items()}
pic.show_chosen(image, points, panels, class_names)

# %% [markdown]
# Many weak candidates survive NMS, since no surer box of their class overlaps them enough; they do little harm to AP,
# which goes by score.
#
# **Step 3: theta, only for those that are left**, and **step 4: their masks.** The controller is one 3x3 convolution,
# read at these few locations. Each theta draws over the *whole* map: nothing is cut out, no box is used. In the picture
# red is inside, blue is outside, full colour from 10 on.
#
# **Step 5: masks at the image's size.** Upsample the logits by 2 and apply the sigmoid, as in training; upsample these
# *scores* to pixels, and ask for more than 0.5. `resize_masks` does the same, but computes along borders only.

# %% tags=["demo"]
from condinst_edu.layers.upsample import resize_masks

height, width = image.shape[1:]
box, location, label, score = boxes[kept], location[kept], label[kept], score[kept]
with torch.no_grad():
    theta = fcos.head.top_at(outputs, points, 0, location)  # (N, 169)
    centers, scales = points.xy[location], model.scales[points.level[location]]  # (N, 2), (N,)
    logits = model.mask_head(features, theta, centers, scales, model.stride)  # (N, H, W)
print(f"features {tuple(features.shape)}, theta {tuple(theta.shape)}, logits {tuple(logits.shape)}")
soft = aligned_upsample(aligned_upsample(logits, model.factor).sigmoid(), model.mask_stride)
plain = soft[:, :height, :width] > 0.5  # (N, height, width), without the padding
masks = resize_masks(logits, model.stride, (height, width), (height, width), model.factor)
differ = int((plain != masks).sum())
print(f"{differ} of {masks.numel()} pixels differ between the plain and the fast form")
box = box.clamp(min=0).minimum(box.new_tensor([width, height, width, height]))
mine = {"boxes": box, "labels": label, "scores": score, "masks": masks}
same_as(mine, result, name="model([image])[0]")
names = [f"{class_names[k - 1]} {s:.2f}" for k, s in zip(label, score, strict=True)]
pic.show_maps(dict(zip(names[:6], logits, strict=False)), columns=6, limit=10)

# %% [markdown] tags=["instructor"]
# minutes: 12
# Do it live, asking before each cell for the shape that comes out. The order is the point: detect, remove duplicates,
# then draw. Mask R-CNN also draws after its NMS, but needs the box to cut its features out.
#
# Misconception: "the mask is cut to the box". It is not; look at the logits, which are defined everywhere.

# %% [markdown]
# ## Does it learn?
#
# Before any long training, see whether the model can learn a handful of images by heart. If it cannot, something is
# wrong, and you know after seconds instead of hours. Here a new tiny CondInst starts from random weights, with the
# four images above as its whole world. `step` is what `condinst-edu train` does in each iteration. The mask loss falls
# with the others although nothing tells it what a mask is but the dice; centre-ness stays high (lesson 1 tells why).

# %% tags=["demo"]
from condinst_edu.engine.recipe import build_model
from condinst_edu.engine.train import step
from condinst_edu.recipes import get_recipe
from condinst_edu.teach.scoring import mask_iou


def learn_by_heart(steps=100):
    """A new model and its losses, {name: value} for each step."""
    torch.manual_seed(0)
    few = get_recipe("shapes-condinst").model_args | {"mask_limit": 6}  # so that it matters which are sampled
    fresh = build_model("condinst", len(class_names), few)
    optimizer = torch.optim.AdamW(fresh.train().parameters(), lr=2e-3)
    history = [step(fresh, optimizer, 5.0, images, targets) for _ in range(steps)]
    return fresh.eval(), history


fresh, history = learn_by_heart()
curves = {k: torch.stack([losses[k] for losses in history]) for k in history[0]}
pic.show_curves(curves, "step", "loss")


# %%
def drawn_by(network):
    """The masks in the four images, and the mean over objects of the best IoU of any mask."""
    with torch.no_grad():
        found = [{"masks": r["masks"][r["scores"] > 0.5]} for r in network(images)]
    best = []
    for r, t in zip(found, targets, strict=True):
        iou = mask_iou(r["masks"], t["masks"], torch.zeros(len(t["labels"]), dtype=torch.bool))  # (N, M)
        best.append(torch.cat([iou, iou.new_zeros(1, iou.shape[1])]).amax(dim=0))
    return found, torch.cat(best).mean()


found, quality = drawn_by(fresh)
print(f"mean over objects of the best mask's IoU: {quality:.2f}")
pic.show_panels({f"image {k}": (images[k], found[k]) for k in range(4)})

# %% [markdown] tags=["instructor"]
# minutes: 6
# Learning by heart is a test, not a model: ask what it would say about a fifth image.

# %% [markdown]
# ## Break it
#
# **Train the wrong locations.** `deviate` swaps `sample_locations` for a variant that takes the *lowest* scores. Same
# images, same seed, same number of steps.

# %% tags=["demo"]
with deviate("sample-the-worst") as deviation:
    worst, history_worst = learn_by_heart()
found_worst, quality_worst = drawn_by(worst)
print(f"{deviation.name}: {deviation.line}")
runs = {"best by score": (history, quality), deviation.name: (history_worst, quality_worst)}
for name, (steps, value) in runs.items():
    print(f"{name:17} mask loss at the end {steps[-1]['mask']:.3f}, IoU of masks {value:.2f}")
panels = {f"best by score, image {k}": (images[k], found[k]) for k in (1, 2)}
panels |= {f"{deviation.name}, image {k}": (images[k], found_worst[k]) for k in (1, 2)}
pic.show_panels(panels)

# %% [markdown]
# The mask loss falls all the same: it is measured where it is trained. But inference asks other locations, those with
# the highest scores, and their filters were hardly ever trained. *A loss can only vouch for what it looks at.*

# %% [markdown] tags=["instructor"]
# minutes: 8
# Before running the first cell, let the class bet on which run has the lower mask loss at its end.

# %% [markdown]
# ## Paper and miniature: NMS by box or by mask
#
# Boxes are predicted for NMS alone, so they can go: draw a mask for every candidate, and remove duplicates by the IoU
# of *masks*. Table 5 of the paper (`condinst:table-5`) finds no difference in AP. Ours: one set of weights, two ways
# to remove duplicates, 50 held-out images. Then two wrong ways to do mask NMS.

# %% tags=["demo"]
import time

from condinst_edu import papers
from condinst_edu.engine.evaluate import evaluate


def score_with(nms):
    """Mask AP of the trained weights in a model with this kind of NMS."""
    other = build_model("condinst", len(class_names), trained.recipe["model_args"] | {"nms": nms})
    other.load_state_dict(model.state_dict())
    return evaluate(other.eval(), held_out(50), progress=False)["mask"]


keys = ["AP", "AP50", "AP75"]
print(f"{'':19}", *(f"{key:>6}" for key in keys), "  seconds")
for kind in ("box", "mask"):
    (row,) = papers.table("condinst:table-5").find(NMS=kind)
    print(f"{kind + ' NMS, the paper':19}", *(f"{row[key]:6.1f}" for key in keys))
    begin = time.perf_counter()
    scores = score_with(kind)
    ours = [100 * scores[key] for key in keys] + [time.perf_counter() - begin]
    print(f"{kind + ' NMS, ours':19}", *(f"{x:6.1f}" for x in ours))
for name in ("nms-across-classes", "nms-unsorted"):
    with deviate(name) as deviation:
        print(f"{name:19} {100 * score_with('mask')['AP']:6.1f}   {deviation.line}")

# %% [markdown]
# Nearly the same AP, and more to draw: the masks of up to 300 candidates (the paper: of all) before anything can be
# removed. This is why CondInst keeps its boxes. And not every mistake shows in AP: `nms-unsorted` changes nothing here,
# since the library hands the candidates over in order. That is what comparisons such as `same_as` are for.

# %% [markdown] tags=["instructor"]
# minutes: 8
# late: give both figures of Table 5 and go on (saves 6)
# Ask what would be gained by leaving the boxes out: the box branch's time and loss. And what is lost: the GIoU loss
# also trains the tower that the controller reads.

# %% [markdown]
# ## What each part costs
#
# An image of 384 x 512 pixels with many objects, and the time of each part, measured here and now: the median of
# several runs.

# %% tags=["demo"]
from statistics import median
from timeit import repeat

crowd, _ = draw(0, size=(384, 512), objects=(40, 60))
with torch.no_grad():
    batch = make_batch([crowd], fcos.mean, fcos.std, fcos.divisor)
    maps = fcos.backbone(batch.images)
    pyramid, points, outputs = fcos.run(batch)
    features = bottom(pyramid)  # (1, C, H, W)
    at = fcos.detect(points, outputs, 0).location
    crowd_logits = model.mask_logits(points, outputs, features, 0, at)
    size, count = batch.sizes[0], len(at)
    costs = {
        "backbone": lambda: fcos.backbone(batch.images),
        "pyramid": lambda: fcos.fpn(maps),
        "FCOS head": lambda: fcos.head(pyramid[-len(fcos.strides) :]),
        "candidates, box NMS": lambda: fcos.detect(points, outputs, 0),
        "bottom branch": lambda: bottom(pyramid),
        "theta and mask heads": lambda: model.mask_logits(points, outputs, features, 0, at),
        "masks at full size": lambda: resize_masks(crowd_logits, model.stride, size, size, 2),
    }
    times = {name: 1000 * median(repeat(part, number=1, repeat=9)) for name, part in costs.items()}
of_masks = sum(list(times.values())[-3:])
print(f"all parts {sum(times.values()):.1f} ms, of them for masks {of_masks:.1f} ms")
print(f"mask heads of {count} instances: {times['theta and mask heads'] / count:.3f} ms each")
pic.show_bars(times, "milliseconds")

# %% [markdown]
# The paper reports less than 5 ms for the *mask heads* of 100 instances on a GPU, about a tenth of its detector's time. The
# bar to hold against it is "theta and mask heads" alone: the bottom branch and drawing at full size are not in that
# figure. On a CPU, with a tiny detector, its share is larger.

# %% [markdown] tags=["instructor"]
# minutes: 6
# late: show the bars without the code (saves 4)
# The bars change from machine to machine. Ask which of them grow with the number of instances (the last two), and
# which with the size of the image (all).

# %% [markdown]
# ## Does the number of instances matter?
#
# For every detection Mask R-CNN cuts a patch out of the pyramid, runs convolutions on it and pastes the result into the
# image. CondInst runs three 1x1 convolutions with 8 channels. So further instances should cost CondInst little. Both
# tiny models, with random weights, are made to return a fixed number of detections whatever they see (score threshold
# 0), and take turns, so that a busy machine slows both alike. `condinst-edu bench instances` does the same with both at
# full size (`docs/results.md` has its figures).

# %% tags=["demo"]
from rich.progress import Progress

from condinst_edu.bench.instances import CondInstCase, MaskRCNNCase, compare, tiny_models

counts = [1, 50, 100]
torch.manual_seed(0)
with torch.inference_mode():
    ours, theirs = tiny_models()
    cases = [CondInstCase(ours, crowd), MaskRCNNCase(theirs, crowd)]
    groups = compare("tiny", cases, counts, runs=3, progress=Progress(disable=True))
curves = {}
for group, what in zip(groups, ("whole pass", "masks alone"), strict=True):
    for case in cases:
        ms = [v.median_ms for v in group.variants if v.name.startswith(case.name)]
        more = (ms[-1] - ms[0]) / (counts[-1] - counts[0])
        curves[f"{case.name}, {what}"] = torch.tensor(ms)
        ends = f"{ms[0]:6.1f} ms with {counts[0]}, {ms[-1]:6.1f} with {counts[-1]}"
        print(f"{case.name:10} {what:11} {ends}: {more:.2f} ms for each further instance")
pic.show_curves(curves, "instances", "milliseconds", at=counts)

# %% [markdown]
# CondInst's line is not quite flat: each instance still has a mask to draw. "Does not depend on the number" is short
# for "depends little on it", and the slopes say how little.

# %% [markdown] tags=["instructor"]
# minutes: 5
# late: skip, and say: hardly (saves 5)
# Ask where the lines would cross if the bottom branch were twice as wide: its cost is paid once, whatever comes.
# Caution: this is torchvision's code on a CPU, where pasting the masks into the image is a large part.

# %% [markdown]
# ## Play
#
# Click a pixel: the location of the surest level there draws *its* mask. Try a place where an object is hidden behind
# another, the edge of an object, and the background. `segment_at(model, image, x, y)` is the plain function behind
# it.

# %% tags=["play"]
from condinst_edu.teach import click_to_segment

click_to_segment(model, image, class_names=class_names)

# %% [markdown]
# ## Exercises
#
# Three functions of this lesson. Their inputs are random and not square; the checker knows the usual mistakes.

# %% [markdown] tags=["exercise"]
# 04-sample-locations
# Write `sample_locations(outputs, assignment, limit)`. It returns two tensors (B, S), S at most `limit`: the indices
# of the positive locations of each image with the highest score (probability of the object's own class times
# centre-ness), and which of these indices are positive at all, since an image may have fewer than `limit`.
# `outputs.logits` (B, L, K) and `outputs.centerness` (B, L) are logits; `assignment.labels` (B, L) is 0 for
# background.


# %% tags=["stub"]
def my_sample_locations(outputs, assignment, limit):
    """Indices (B, S) of the best positive locations, and which of them are positive (B, S) bool."""
    raise NotImplementedError


# %% tags=["solution"]
def my_sample_locations(outputs, assignment, limit):
    positive = assignment.labels > 0  # (B, L)
    column = (assignment.labels - 1).clamp(min=0)
    logit = outputs.logits.gather(2, column[:, :, None])[:, :, 0]  # of the object's own class
    score = logit.sigmoid() * outputs.centerness.sigmoid()
    score = torch.where(positive, score, -1.0)
    index = score.argsort(dim=1, descending=True)[:, :limit]
    return index, positive.gather(1, index)


# %% tags=["check"]
check("04-sample-locations", my_sample_locations)

# %% [markdown] tags=["exercise"]
# 04-mask-nms
# Write `mask_nms(masks, scores, labels, threshold)`: greedy non-maximum suppression by the IoU of masks of the same
# class. masks (N, H, W) bool; scores, labels (N,). Returns the indices that stay, by falling score.


# %% tags=["stub"]
def my_mask_nms(masks, scores, labels, threshold):
    """Indices of the masks that stay, by falling score."""
    raise NotImplementedError


# %% tags=["solution"]
def my_mask_nms(masks, scores, labels, threshold):
    kept = []
    for i in scores.argsort(descending=True).tolist():
        rivals = [j for j in kept if labels[j] == labels[i]]
        overlap = [(masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum() for j in rivals]
        if all(iou <= threshold for iou in overlap):
            kept.append(i)
    return torch.tensor(kept)


# %% tags=["check"]
check("04-mask-nms", my_mask_nms)

# %% [markdown] tags=["exercise"]
# 04-semantic-map
# Write `semantic_map(masks, labels, stride)`: the label of the smallest mask on each cell, 0 where there is none.
# masks (M, H, W) bool at full size, labels (M,) from 1. A cell (i, j) is the pixel `stride * i + stride // 2`, and
# likewise for j; "smallest" goes by the area of the full-size mask. Returns (h, w) int64.


# %% tags=["stub"]
def my_semantic_map(masks, labels, stride):
    """The label of the smallest mask that covers each cell, 0 for none."""
    raise NotImplementedError


# %% tags=["solution"]
def my_semantic_map(masks, labels, stride):
    cells = masks[:, stride // 2 :: stride, stride // 2 :: stride]  # (M, h, w)
    result = torch.zeros(cells.shape[1:], dtype=torch.int64)
    for i in masks.sum(dim=(1, 2)).argsort(descending=True).tolist():
        result[cells[i]] = labels[i]  # smaller ones are painted over larger ones
    return result


# %% tags=["check"]
check("04-semantic-map", my_semantic_map)

# %% [markdown]
# ## What the paper says and what the code does
#
# The paper leaves things out that decide whether a model works. The cell checks each line.
#
# 1. **Eq. 2 sums over all positive locations**, the text of section 2.3 over the 64 best, and $N_{pos}$ is the number
#    of those that are summed.
# 2. **$M^* \in \{0, 1\}^{H \times W \times C}$**: a mask has no class axis. It is (H, W) per object, read at every
#    `mask_stride`-th pixel and not averaged.
# 3. **"The controller head has the same architecture as the classification head"**: in the official code, and here,
#    it is a single convolution on the *box* tower.
# 4. **The order of sigmoid and upsampling** in inference is not in the paper: the sigmoid comes after the first
#    upsampling and before the second. Upsampling the logits all the way gives slightly other masks.
# 5. **The text gives figures that are not in its table**: one of the errata, each of which has a witness.

# %% tags=["demo"]
from condinst_edu.condinst import sampled_masks

print(f"1. Eq. 2 over all positive locations {dices[positive].mean():.3f}, over the sampled {sampled.mean():.3f}")
truth = sampled_masks(targets, model.mask_stride, (48, 64))
print(f"2. targets {tuple(truth.shape)}: images, objects, height, width; {truth.dtype}")
assert torch.equal(truth[0, 0], targets[0]["masks"][0, 1::2, 1::2])
print(f"3. class tower: {len(fcos.head.class_tower)} blocks, then logits; controller: {fcos.head.top}")
before = aligned_upsample(aligned_upsample(crowd_logits, 2).sigmoid(), 2) > 0.5
after = aligned_upsample(aligned_upsample(crowd_logits, 2), 2) > 0
print(f"4. {int((before != after).sum())} pixels change; the masks have {int(before.sum())}")
for entry in papers.ERRATA.values():
    if "condinst:table-6" in entry.items:
        print(f"5. {entry.says} {entry.finding} Witness: {entry.witness()}")

# %% [markdown]
# ## Three lines, and what comes next
#
# - Detect, remove duplicates, then draw: only what is left after NMS gets its 169 numbers and its mask.
# - In training the best-scored positive locations draw, and are compared with their object by dice; Eq. 1 adds it to
#   FCOS.
# - Masks cost little per instance, since all share one map of features and each adds a network of 169 numbers.
#
# **Train it for real**, in a terminal. The first two lines make the data and train this lesson's model, in minutes on
# a laptop. The next trains a variant; `--set` replaces any argument of the model. The last two learn your own
# photographs, from a folder with COCO annotations, and segment new ones. `condinst-edu train --help` names the recipes.
#
# ```
# condinst-edu data shapes --out data/shapes-full
# condinst-edu train shapes-condinst --out runs/shapes
# condinst-edu train shapes-condinst --set semantic=True --set sampling=random --out runs/variant
# condinst-edu train folder-condinst --data photos --out runs/photos
# condinst-edu predict new.jpg --weights runs/photos/model.safetensors --out runs/new
# ```
#
# Next: [lesson 5](05_attention_maps.ipynb), other ways to turn a detection into a mask.
