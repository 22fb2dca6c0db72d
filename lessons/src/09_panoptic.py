# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: Panoptic segmentation
#     minutes: {read: 25, do: 65, run: 1}
#     needs: ["lesson 4 (CondInst, whole)"]
#     gives:
#       - things and stuff
#       - a semantic branch on the pyramid
#       - fusion, one segment at a time
#       - panoptic quality from scratch
#       - three routes to one picture, side by side
#       - what each threshold does
#     papers:
#       - condinst:panoptic-branch
#       - condinst:panoptic-fusion
#       - condinst:table-9
#       - dr1mask:panoptic-layer
#       - adaptis:greedy-aggregation
#       - adaptis:class-of-mask
# ---

# %%
from condinst_edu import doctor

doctor.quick("panoptic-condinst", "panoptic-dr1mask", "panoptic-adaptis")

# %% [markdown]
# ## A result first
#
# Every pixel of this picture gets a class, and where the class is a *thing*, the one thing that it belongs to. The
# model is the CondInst of lesson 4 with one more convolution. It has never seen the image.

# %% tags=["first-result", "demo"]
import torch

from condinst_edu.teach.fusion import look_at, show_panoptic
from condinst_edu.teach.tiny import held_out_panoptic, load_tiny

torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save

trained = load_tiny("panoptic-condinst")
model, class_names = trained.model, trained.class_names
data = held_out_panoptic(50)
found = look_at(model, data, 20)  # instances and stuff of 20 images, before they are put together
image, truth = found.images[7], found.truth[7]  # (3, 128, 128), the annotation
with torch.no_grad():
    (result,) = model([image])
show_panoptic({"found": (image, result), "annotated": (image, truth)}, class_names)

# %% [markdown] tags=["instructor"]
# minutes: 5
# Ask what a detector cannot say about this picture: where the water ends, what lies between two things. Then ask what a
# map of classes cannot say: how many circles there are.

# %% [markdown]
# ## The problem
#
# **Things** can be counted: circles, people, cars. **Stuff** cannot: sky, grass, water. Instance segmentation finds
# things and lets their masks overlap. Semantic segmentation gives each pixel a class and cannot count. Panoptic
# segmentation asks for both at once: one map of *segments*, in which every pixel has one owner.
#
# So two lists of masks have to become one map. Here they are for the picture above: on the left all instances with a
# score above 0.3, on the right the regions that a second branch takes for stuff. Where neither has an opinion, or
# where both have one, somebody has to decide.

# %% tags=["demo"]
from condinst_edu.teach import check, deviate, same_as
from condinst_edu.teach import pictures as pic

things, stuff = found.things[7], found.stuff[7]
sure = {name: value[things["scores"] > 0.3] for name, value in things.items()}
panels = {f"{len(sure['labels'])} instances": (image, sure)}
panels |= {f"{len(stuff['labels'])} regions of stuff": (image, stuff)}
overlap = (sure["masks"].sum(dim=0) > 1).float().mean()
nobody = ~(sure["masks"].any(dim=0) | stuff["masks"].any(dim=0))
print(f"pixels with several instances: {overlap:.1%}; with neither thing nor stuff: {nobody.float().mean():.1%}")
pic.show_panels(panels, class_names, captions=False)

# %% [markdown] tags=["instructor"]
# minutes: 5
# Let the class propose rules before reading on. Usually somebody says "the larger one wins", somebody "the surer one".

# %% [markdown]
# ## The semantic branch
#
# CondInst adds little for stuff (`condinst:panoptic-branch`). $P_2$ to $P_5$ are brought to the size of $P_2$ and
# concatenated, and one 1x1 convolution turns them into class scores:
#
# $$Y = W \,[\,P_2,\ \mathrm{up}_2(P_3),\ \mathrm{up}_4(P_4),\ \mathrm{up}_8(P_5)\,], \qquad
# Y \in \mathbb{R}^{(S + 1) \times H/4 \times W/4}.$$
#
# $S$ is the number of classes of stuff, and class 0 stands for *some thing*: which one, the instances say. The loss is
# cross-entropy on all pixels that have a label, with weight 0.5 beside CondInst's other losses.
#
# Below on small random maps that are not square: as it stands in the formula, and as in the library.

# %% tags=["demo"]
from condinst_edu.layers.upsample import aligned_upsample
from condinst_edu.panoptic import SemanticBranch

torch.manual_seed(0)
branch = SemanticBranch(in_channels=6, num_stuff=4)
levels = [torch.randn(1, 6, 24 // 2**i, 40 // 2**i) for i in range(4)]  # P2, P3, P4, P5
W, b = branch.logits.weight[:, :, 0, 0], branch.logits.bias  # (5, 24), (5,)
stacked = torch.cat([aligned_upsample(p, 2**i) for i, p in enumerate(levels)], dim=1)  # (1, 24, 24, 40)
mine = torch.einsum("kc,bchw->bkhw", W, stacked) + b[:, None, None]
same_as(mine, branch(levels), name="the semantic branch")
for name, module in (("branch", model.branch), ("all", model)):
    print(f"{name:6} {sum(p.numel() for p in module.parameters()):7} parameters")

# %% [markdown]
# What it learns from is the annotation itself, drawn as a map: 0 where a thing is, 1 to $S$ for stuff, and -1 where
# nobody knows, which costs nothing. The instances learn from the *same* annotation, so that no pixel belongs to two of
# them: where things overlap, the one in front has it (section 3.9 of the paper). The other pictures are the branch's
# probabilities for two of its classes.

# %% tags=["demo"]
from condinst_edu.panoptic import split_target

only_things, target = split_target(data.target(7), data.num_things)
assert int(only_things["masks"].sum(dim=0).max()) == 1  # one owner for each pixel
with torch.no_grad():
    model.instances([image])  # the branch reads the pyramid that this leaves
    probabilities = model.logits()[0].softmax(dim=0)  # (S + 1, H / 4, W / 4)
maps = {"target (0: thing)": target.float()}
maps |= {"some thing": probabilities[0], class_names[5]: probabilities[1]}
pic.show_maps(maps, columns=3)

# %% [markdown] tags=["instructor"]
# minutes: 8
# Misconception: "the branch must know the classes of things too". It could; with one class for all of them it needs
# fewer weights, and never contradicts the instances about which thing it is.

# %% [markdown]
# ## Fusion, one segment at a time
#
# The rules (`condinst:panoptic-fusion`):
#
# 1. Instances go by falling score; those below 0.45 are out.
# 2. An instance takes the pixels of its mask that are still free. If more than 40 % of its mask are taken already, it is
#    left out, and takes nothing.
# 3. Stuff fills what is left. (Regions that are too small are dropped: not in the paper, but in everybody's code.)
#
# Written out with the numbers of each step:

# %% tags=["demo"]
from condinst_edu.panoptic import fuse

panoptic, number = torch.zeros(image.shape[1:], dtype=torch.int64), 0
for i in things["scores"].argsort(descending=True).tolist():
    score, mask = float(things["scores"][i]), things["masks"][i]
    if score < 0.45:
        break
    free = mask & (panoptic == 0)
    lost = 1 - free.sum() / mask.sum().clamp(min=1)
    verdict = "left out" if lost > 0.4 or not free.any() else "stays"
    name = class_names[things["labels"][i] - 1]
    print(f"{name:9} {score:.2f}: {int(mask.sum()):5} pixels, {lost:5.1%} taken already: {verdict}")
    if verdict == "stays":
        number += 1
        panoptic[free] = number
for mask, label in zip(stuff["masks"], stuff["labels"].tolist(), strict=True):
    free = mask & (panoptic == 0)
    verdict = "left out" if free.sum() < 200 else "stays"
    print(f"{class_names[label - 1]:9}     : {int(free.sum()):5} pixels left: {verdict}")
    if verdict == "stays":
        number += 1
        panoptic[free] = number
same_as(panoptic, fuse(things, stuff, min_stuff=200)["panoptic"], name="the fusion")

# %% [markdown] tags=["instructor"]
# minutes: 10
# Why is a half-covered instance dropped instead of cut? It is mostly a duplicate of the thing in front that NMS did not
# catch. Ask for the case in which the rule is wrong: a thing that really is covered by half.

# %% [markdown]
# ## Panoptic quality
#
# How good is such a map? Match each found segment with a true one *of the same class* if their IoU exceeds one half.
# Then, for each class,
#
# $$PQ = \frac{\sum_{(p, g)\ \text{matched}} IoU(p, g)}{TP + \frac12 FP + \frac12 FN}
# = \underbrace{\frac{\sum IoU}{TP}}_{SQ} \cdot \underbrace{\frac{TP}{TP + \frac12 FP + \frac12 FN}}_{RQ},$$
#
# how well what was found is drawn, times how well it was found. The mean over classes is the result.
#
# **A match is unique.** Segments of one map do not overlap. If $p$ matches $g$ with $IoU > \frac12$, then
# $|p \cap g| > \frac12 |p \cup g| \ge \frac12 |g|$: more than half of $g$ lies in $p$. A second segment $p'$ would need
# more than half of $g$ as well, and $p$ and $p'$ would overlap. So no assignment problem has to be solved. At one half
# exactly the proof fails, hence *more than*.
#
# In a few lines, for an image without void and crowds:

# %% tags=["demo"]
from condinst_edu.panoptic import match_segments, panoptic_quality


def count_by_hand(truth, result):
    """{category: [sum of IoU, TP, FP, FN]}"""
    rows, hit = {}, set()
    for p in result["segments_info"]:
        row = rows.setdefault(p["category_id"], [0.0, 0, 0, 0])
        mine = result["panoptic"] == p["id"]
        for g in truth["segments_info"]:
            theirs = truth["panoptic"] == g["id"]
            iou = float((mine & theirs).sum() / (mine | theirs).sum())
            if g["category_id"] == p["category_id"] and iou > 0.5:
                row[0], row[1] = row[0] + iou, row[1] + 1
                hit |= {g["id"], -p["id"]}
        row[2] += -p["id"] not in hit
    for g in truth["segments_info"]:
        rows.setdefault(g["category_id"], [0.0, 0, 0, 0])[3] += g["id"] not in hit
    return rows


rows = count_by_hand(truth, result)
library = match_segments(truth, result, found.isthing)
for k, (iou, tp, fp, fn) in sorted(rows.items()):
    same_as(torch.tensor([iou, tp, fp, fn]), torch.tensor([float(x) for x in vars(library[k]).values()]))
    print(f"{class_names[k - 1]:9} found {tp}, made up {fp}, missed {fn}: PQ {iou / (tp + fp / 2 + fn / 2):.2f}")

# %% [markdown]
# Real annotations have pixels without a label (**void**) and regions with many things that nobody separated
# (**crowds**). Nobody is punished there: what is found on void does not count in the IoU, and a segment that lies mostly
# on void or on a crowd of its class is no mistake. `panoptic_quality` knows these rules; on every test case it gives
# the numbers of COCO's own code, to the last bit.

# %% [markdown] tags=["instructor"]
# minutes: 12
# late: state that matches are unique; the proof is in the notebook (saves 4)
# Let somebody prove uniqueness at the board. Then: why is FP + FN counted by half? RQ is the F1 score. What does a
# model gain that says nothing (void) where it is unsure? It avoids FP, and pays FN.

# %% [markdown]
# ## Does it learn? Three routes to one picture
#
# What you have just built is one of three routes in this course. All end in the same kind of map:
#
# - **CondInst** finds things and stuff in two branches, and rules put them together (`condinst:panoptic-fusion`).
# - **DR1Mask** has one matrix product for both, $Y = [\,W_{stuff},\ e_1, \dots, e_N\,]^\top F$: a row of logits for each
#   class of stuff and for each thing. They compete, and in each pixel the largest wins (`dr1mask:panoptic-layer`).
# - **AdaptIS** takes the stuff of a semantic branch as done. Then one point after the other goes in, and the thing under
#   it comes out, until nothing is left to segment (`adaptis:greedy-aggregation`).
#
# Three tiny models, which learned from the same 4000 drawn images. Above each answer stands the median time of five
# runs on one thread.

# %% tags=["demo"]
import time

routes = {"CondInst": "panoptic-condinst", "DR1Mask": "panoptic-dr1mask", "AdaptIS": "panoptic-adaptis"}
models = {route: load_tiny(name).model for route, name in routes.items()}


@torch.no_grad()
def timed(model, image, runs=1):
    """The result for an image, and the median time in milliseconds."""
    milliseconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        (result,) = model([image])
        milliseconds.append(1000 * (time.perf_counter() - begin))
    return result, sorted(milliseconds)[runs // 2]


panels = {"annotated": (image, truth)}
for route, one in models.items():
    answer, milliseconds = timed(one, image, runs=5)
    panels[f"{route}: {milliseconds:.0f} ms"] = (image, answer)
show_panoptic(panels, class_names)

# %% [markdown]
# One picture proves nothing. Here are twenty, with the mean time of an image; the last column is from the checkpoints'
# cards, which tell of two hundred images. "One class" is $PQ_{th}$ once more, as if all things had the same name: what
# lies between the two columns is lost to wrong names. CondInst and DR1Mask name a thing by the detector's classes, AdaptIS
# by the sum of class probabilities over its mask (`adaptis:class-of-mask`).

# %% tags=["demo"]
from condinst_edu.teach.fusion import quality_at
from condinst_edu.teach.tiny import read_card


def one_class(result):
    """The result with the last class of things for all things."""
    last = data.num_things
    rows = [{**row, "category_id": max(row["category_id"], last)} for row in result["segments_info"]]
    return {**result, "segments_info": rows}


answers, quality = {}, {}
print("          PQ     PQ_th  PQ_st  one class  ms     parameters  PQ of 200")
for route, one in models.items():
    timings = [timed(one, x) for x in found.images]
    answers[route] = [answer for answer, _ in timings]
    quality[route] = panoptic_quality(found.truth, answers[route], found.isthing)
    percent = "  ".join(f"{100 * quality[route][k]['pq']:5.1f}" for k in ("All", "Things", "Stuff"))
    pairs = (map(one_class, found.truth), map(one_class, answers[route]), found.isthing)
    nameless = 100 * panoptic_quality(*pairs)["Things"]["pq"]
    mean = sum(milliseconds for _, milliseconds in timings) / len(timings)
    number = sum(p.numel() for p in one.parameters())
    card = 100 * read_card(routes[route])["metrics"]["panoptic"]["PQ"]
    print(f"{route:8} {percent}  {nameless:9.1f}  {mean:5.1f}  {number:10}  {card:9.1f}")
scores, fused = quality["CondInst"], answers["CondInst"]  # of the route that this lesson takes

# %% [markdown]
# **Where they fail.** For each route the image with its lowest quality of the twenty, and the annotation below. Look for
# a thing that was missed or made up, a border that is ragged, stuff that changed places, a hole that nobody filled.

# %% tags=["demo"]
worst = {}
for route, results in answers.items():
    pairs = zip(found.truth, results, strict=True)
    each = [panoptic_quality([g], [p], found.isthing)["All"]["pq"] for g, p in pairs]
    worst[route] = min((pq, k) for k, pq in enumerate(each))
panels = {f"{r}, image {k}, PQ {pq:.2f}": (found.images[k], answers[r][k]) for r, (pq, k) in worst.items()}
panels |= {f"{r}: annotated": (found.images[k], found.truth[k]) for r, (_, k) in worst.items()}
show_panoptic(panels, class_names, columns=3)

# %% [markdown] tags=["instructor"]
# minutes: 10
# Ask for each failure which number it costs: a missed thing costs RQ of one class, a ragged border costs SQ. Which route
# takes longer when there are more things in the picture? The first two draw all masks at once; AdaptIS draws one after
# the other. Which one can be asked about a single point, without the rest?

# %% [markdown]
# ## Break it
#
# What if stuff came first? Wherever the branch is wrong about *some thing*, it cuts into the instances. What if an
# instance could lose everything? Crumbs remain of duplicates, each a mistake. And if every speck of stuff counted?

# %% tags=["demo"]
print(f"{'as it should be':24} PQ {scores['All']['pq']:.3f}")
panels = {"as it should be": (image, fused[7])}
for name in ("fuse-stuff-first", "fuse-keeps-all-things", "fuse-keeps-small-stuff"):
    with deviate(name) as deviation:
        with torch.no_grad():
            results = [model([x])[0] for x in found.images]
        broken = panoptic_quality(found.truth, results, found.isthing)
    print(f"{name:24} PQ {broken['All']['pq']:.3f}, {deviation.line}")
    panels[name] = (image, results[7])
show_panoptic(panels, class_names)

# %% [markdown] tags=["instructor"]
# minutes: 5
# late: use the sliders of `make play` for one minute instead (saves 4)
# The differences are small where instances are good: NMS has already removed most duplicates. Rules matter for a poor
# model.

# %% [markdown]
# ## Paper and miniature
#
# What the papers print for COCO (`condinst:table-9`, `dr1mask:table-9`, `adaptis:table-5`), and ours below. COCO has 80
# classes of things and 53 of stuff, and photographs instead of drawings: only the pattern compares. Mind the columns,
# which the papers order differently.

# %% tags=["demo"]
from condinst_edu import papers

sources = {"CondInst": "condinst:table-9", "DR1Mask": "dr1mask:table-9", "AdaptIS": "adaptis:table-5"}
for route, source in sources.items():
    table = papers.table(source)
    for row in table.find(method=route):
        values = "  ".join(f"{name} {row[name]}" for name in table.names if name.startswith("PQ"))
        print(f"paper  {route:8} {row['backbone']:12} {row.get('schedule', ''):3} {values}")
for route, row in quality.items():
    ours = "  ".join(f"{group} {100 * row[group]['pq']:.1f}" for group in ("All", "Things", "Stuff"))
    print(f"here   {route:8} 20 drawn images  {ours}")

# %% [markdown] tags=["instructor"]
# minutes: 3
# late: skip (saves 3)
# The shapes have four classes of stuff that differ in colour. Ask what makes COCO's stuff hard.

# %% [markdown]
# ## Play
#
# Move the thresholds. Which of the three qualities answers to which slider? `quality_at(found, ...)` is the plain
# function behind it.

# %% tags=["play"]
from condinst_edu.teach.fusion import explore_fusion

explore_fusion(found)

# %% [markdown]
# ## Exercises
#
# Four functions of this lesson. Their inputs are random and not square; the checker knows the usual mistakes.

# %% [markdown] tags=["exercise"]
# 09-split-target
# Write `split_target(target, num_things)`. target: `masks` (M, H, W) bool, which do not overlap, `labels` (M,) and
# `boxes` (M, 4) of all segments; labels up to num_things are things. Returns a dict of the things' masks, labels and
# boxes, and a map (H, W) int64: 0 on things, label - num_things on stuff, -1 where there is no segment.


# %% tags=["stub"]
def my_split_target(target, num_things):
    """The target of the things, and the map of stuff."""
    raise NotImplementedError


# %% tags=["solution"]
def my_split_target(target, num_things):
    thing = target["labels"] <= num_things
    things = {name: target[name][thing] for name in ("masks", "labels", "boxes")}
    stuff = torch.full(target["masks"].shape[1:], -1)
    for mask, label in zip(target["masks"], target["labels"], strict=True):
        stuff[mask] = max(int(label) - num_things, 0)
    return things, stuff


# %% tags=["check"]
check("09-split-target", my_split_target)

# %% [markdown] tags=["exercise"]
# 09-fuse
# Write `fuse(things, stuff, min_score, max_lost, min_stuff)`. things: `masks` (N, H, W) bool, `labels` (N,), `scores`
# (N,), in any order; stuff: `masks` (S, H, W) bool that do not overlap, `labels` (S,). Returns a dict: `panoptic`
# (H, W) int64, 0 for nobody, and `segments_info`, a list of dicts with id, category_id (the label), isthing (1 or 0),
# score (None for stuff) and area, in the order in which segments are placed.


# %% tags=["stub"]
def my_fuse(things, stuff, min_score, max_lost, min_stuff):
    """One map of segments out of instances and stuff."""
    raise NotImplementedError


# %% tags=["solution"]
def my_fuse(things, stuff, min_score, max_lost, min_stuff):
    order = [i for i in things["scores"].argsort(descending=True) if things["scores"][i] >= min_score]
    queue = [(things["masks"][i], things["labels"][i], 1, float(things["scores"][i])) for i in order]
    queue += [(m, k, 0, None) for m, k in zip(stuff["masks"], stuff["labels"], strict=True)]
    panoptic, rows = torch.zeros(things["masks"].shape[1:], dtype=torch.int64), []
    for mask, label, isthing, score in queue:
        free = mask & (panoptic == 0)
        area, left = int(mask.sum()), int(free.sum())
        if left == 0 or (area - left > max_lost * area if isthing else left < min_stuff):
            continue
        row = {"id": len(rows) + 1, "category_id": int(label), "isthing": isthing, "score": score}
        rows.append({**row, "area": left})
        panoptic[free] = len(rows)
    return {"panoptic": panoptic, "segments_info": rows}


# %% tags=["check"]
check("09-fuse", my_fuse)

# %% [markdown] tags=["exercise"]
# 09-segment-counts
# Write `segment_counts(truth, found, isthing)` with void and crowds. Both images are dicts of `panoptic` (H, W) and
# `segments_info` (id, category_id, area, and in the truth iscrowd). Returns (K, 4) float32: sum of the matches' IoU,
# TP, FP and FN, a row for each category of `isthing`, in its order. Void is id 0 of the truth: its pixels leave the
# union. Crowds are never matched nor missed. A found segment without a match is no mistake if more than half of it
# lies on void and a crowd of its category (if there are several, the last).


# %% tags=["stub"]
def my_segment_counts(truth, found, isthing):
    """What was found, made up and missed of each category: (K, 4)."""
    raise NotImplementedError


# %% tags=["solution"]
def my_segment_counts(truth, found, isthing):
    rows, hit = {category: [0.0, 0, 0, 0] for category in isthing}, set()
    void, crowds = truth["panoptic"] == 0, {}
    for g in truth["segments_info"]:
        if g["iscrowd"]:
            crowds[g["category_id"]] = truth["panoptic"] == g["id"]
    for p in found["segments_info"]:
        mine, row = found["panoptic"] == p["id"], rows[p["category_id"]]
        forgiven = void | crowds.get(p["category_id"], torch.zeros_like(void))
        matched = False
        for g in truth["segments_info"]:
            theirs = truth["panoptic"] == g["id"]
            iou = float((mine & theirs).sum() / ((mine & ~void) | theirs).sum())
            if g["category_id"] == p["category_id"] and not g["iscrowd"] and iou > 0.5:
                row[0], row[1], matched = row[0] + iou, row[1] + 1, True
                hit.add(g["id"])
        if not matched and (mine & forgiven).sum() * 2 <= mine.sum():
            row[2] += 1
    for g in truth["segments_info"]:
        rows[g["category_id"]][3] += not g["iscrowd"] and g["id"] not in hit
    return torch.tensor(list(rows.values()))


# %% tags=["check"]
check("09-segment-counts", my_segment_counts)

# %% [markdown] tags=["exercise"]
# 09-quality
# Write `quality(iou, tp, fp, fn)`, four tensors (K,): the sum of the matches' IoU and the counts of each class. Returns
# PQ, SQ and RQ, each (K,); SQ is 0 where nothing was found.


# %% tags=["stub"]
def my_quality(iou, tp, fp, fn):
    """PQ, SQ and RQ of each class."""
    raise NotImplementedError


# %% tags=["solution"]
def my_quality(iou, tp, fp, fn):
    rq = tp / (tp + fp / 2 + fn / 2)
    sq = iou / torch.where(tp == 0, 1, tp)
    return sq * rq, sq, rq


# %% tags=["check"]
check("09-quality", my_quality)

# %% [markdown]
# ## What the paper says and what the code does
#
# 1. **"We use the structure from Panoptic-FPN"**, which *adds* levels that have been through convolutions; the next
#    sentence of the paper *concatenates* them as they are. Both are here: `form="concat"` and `form="sum"`.
# 2. **No least area of stuff** is in the paper. COCO's code drops what is below 64 x 64 pixels.
# 3. **At which size the loss is taken** is not said. Panoptic-FPN upsamples to the image; here it is the masks' size.
# 4. **Table 9 prints one row twice** under two names: one of the errata, each of which has a witness.

# %% tags=["demo"]
sizes = {form: sum(p.numel() for p in SemanticBranch(256, 53, form=form).parameters()) for form in ("concat", "sum")}
print(f"1. parameters at full size: {sizes}")
without = quality_at(found, min_stuff=0)["Stuff"]["pq"]
print(f"2. PQ of stuff: {scores['Stuff']['pq']:.3f}, without a least area {without:.3f}")
print(f"3. logits every {model.stride} pixels, loss every {model.loss_stride}")
for entry in papers.ERRATA.values():
    if "condinst:table-9" in entry.items and entry.where == "Table 9":
        print(f"4. {entry.says} {entry.finding} Witness: {entry.witness()}")

# %% [markdown]
# ## Three lines, and what comes next
#
# - A 1x1 convolution on the pyramid finds stuff; instances are found as before.
# - Fusion gives each pixel one owner: sure instances first, stuff last.
# - PQ = SQ x RQ. A match above one half is unique, so there is nothing to assign.
#
# The other two routes in full: lesson 6 (DR1Mask) and lesson 7 (AdaptIS, whose figures on streets are in
# `adaptis:table-2`). [Lesson 10](10_scaling_up.ipynb) goes from a laptop to COCO. To train and score, in a terminal:
#
# ```
# condinst-edu train shapes-panoptic-condinst --out runs/panoptic
# condinst-edu evaluate runs/panoptic/model.safetensors --panoptic
# condinst-edu predict photo.jpg --weights runs/panoptic/model.safetensors --panoptic --out runs/new
# ```
