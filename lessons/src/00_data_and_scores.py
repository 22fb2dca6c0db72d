# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: The data, and how we score
#     minutes: {read: 25, do: 65, run: 1}
#     needs: [Python, a little PyTorch (tensors and indexing)]
#     gives: [COCO's format written by hand, masks as run lengths, IoU and average precision from scratch]
#     papers: []
# ---

# %%
from condinst_edu import doctor

doctor.quick("condinst")

# %% [markdown]
# The line above says what this environment has. Where it names a problem it also names the command that mends it;
# `condinst-edu doctor` in a terminal tells more.
#
# ## A result first
#
# A small CondInst has learned to find and outline drawn shapes. On the left of each pair is the truth, on the right what
# the model says about an image that it has never seen, and under them one number for 50 such images: **average
# precision** (AP) of masks. At the end of this lesson you will have computed that number yourself, from nothing but
# masks and scores.

# %% tags=["first-result", "demo"]
import torch

from condinst_edu.engine.evaluate import evaluate
from condinst_edu.teach import check, same_as
from condinst_edu.teach import pictures as pic
from condinst_edu.teach.tiny import held_out, load_tiny

torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save

model, category_ids, class_names, _ = load_tiny("condinst")
data = held_out(50)


def found_in(image, least=0.45):
    """The model's detections that score `least` or more; image uint8 as stored."""
    with torch.no_grad():
        found = model([image / 255])[0]
    return {name: value[found["scores"] >= least] for name, value in found.items()}


panels = {}
for k in (4, 7):
    image, target = data[k]
    panels[f"image {k}: the truth"] = (image / 255, target)
    panels[f"image {k}: the model"] = (image / 255, found_in(image))
scores = evaluate(model, data, progress=False)
print(f"AP on {len(data)} images: masks {scores['mask']['AP']:.3f}, boxes {scores['box']['AP']:.3f}")
pic.show_panels(panels, class_names)

# %% [markdown] tags=["instructor"]
# minutes: 5
# Ask the class first: how good is this, on a scale from 0 to 1? Opinions differ, which is the point: without a rule for
# what counts as found, "good" means nothing. Return to the number at the end.
#
# Misconception to expect: AP is "the share of right pixels". It is not; it ranks whole detections.

# %% [markdown]
# ## The problem
#
# Instance segmentation answers three questions about every object at once: *what* is it (a class), *where* does it end
# (a mask), and *which one* is it (two squares that touch are two objects). A model may answer with any number of
# detections, each with a class, a mask and a **score** that says how sure it is. To compare such an answer with the
# truth we need
#
# 1. a format for the truth: COCO's, which nearly every data set and tool can read;
# 2. a number for how well one mask fits another: intersection over union;
# 3. a rule that turns all detections in all images into one number: average precision.

# %% [markdown]
# ## COCO's format, by hand
#
# An annotation file is one JSON object with three lists. Here is a whole one, typed in for a photograph that matplotlib
# brings along (Grace Hopper, who wrote one of the first compilers; the picture is in the public domain). Category ids may
# have gaps, as COCO's own do: labels inside a model are counted 1, 2, 3 ... in ascending order of the ids.

# %%
import json
import tempfile
from pathlib import Path

from matplotlib.cbook import get_sample_data
from PIL import Image

photo = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
width, height = photo.size
person = [12, 599, 22, 500, 48, 385, 110, 358, 190, 330, 203, 316, 185, 285, 160, 240, 154, 195, 160, 170]
person += [150, 150, 152, 108, 175, 85, 185, 55, 235, 25, 275, 24, 335, 50, 352, 85, 370, 98, 371, 170]
person += [376, 200, 365, 245, 358, 290, 338, 306, 332, 320, 400, 350, 490, 388, 511, 440, 511, 599]
tie = [240, 414, 284, 408, 300, 428, 287, 452, 262, 446, 230, 474, 217, 447]
flag = torch.zeros(height, width, dtype=torch.bool)
flag[:300, :130] = True  # many stars that nobody wants to outline one by one

# %% [markdown]
# A mask is stored in one of two ways. A **polygon** is a list x1, y1, x2, y2, ... in pixels. **Run lengths** (RLE) count
# pixels: so many zeros, then so many ones, then zeros again, going down the *columns*, always beginning with the zeros.
# Polygons cannot have holes; run lengths can say anything, and are what COCO uses for a **crowd**: a region with many
# objects of a kind, marked `iscrowd`. A model is neither paid nor punished for what it finds in there.

# %%
from condinst_edu.teach.scoring import rle_counts


def annotation(number, category, segmentation, area, box, crowd=0):
    return {
        "id": number,
        "image_id": 1,
        "category_id": category,
        "segmentation": segmentation,
        "area": area,  # in pixels, of the mask
        "bbox": box,  # x, y, width, height
        "iscrowd": crowd,
    }


stars = {"size": [height, width], "counts": rle_counts(flag)}
coco = {
    "images": [{"id": 1, "file_name": "hopper.png", "height": height, "width": width}],
    "categories": [{"id": 1, "name": "person"}, {"id": 32, "name": "tie"}, {"id": 90, "name": "star"}],
    "annotations": [
        annotation(1, 1, [person], 176_213, [12, 24, 499, 575]),
        annotation(2, 32, [tie], 2_973, [217, 409, 83, 65]),
        annotation(3, 90, stars, int(flag.sum()), [0, 0, 130, 300], crowd=1),
    ],
}
folder = Path(tempfile.mkdtemp())
photo.save(folder / "hopper.png")
(folder / "truth.json").write_text(json.dumps(coco))
print(json.dumps(coco["annotations"][1]))

# %% [markdown]
# The library reads it back: an image (3, H, W), and a target with `boxes` (N, 4) as x1, y1, x2, y2, `labels` (N,) from 1,
# `masks` (N, H, W) and `iscrowd` (N,). Look at the labels: category 32 has become 2, category 90 has become 3.

# %% tags=["demo"]
from condinst_edu.datasets.coco import CocoDataset

hopper = CocoDataset(folder, folder / "truth.json")
image, target = hopper[0]
for name, value in target.items():
    if isinstance(value, torch.Tensor):
        print(f"{name:8} {tuple(value.shape)!s:16} {value.dtype}")
print("labels", target["labels"].tolist(), "of category ids", hopper.category_ids)
assert target["masks"].flatten(1).sum(1).tolist() == [a["area"] for a in coco["annotations"]]
pic.show_masks(image / 255, target, hopper.class_names)

# %% [markdown] tags=["instructor"]
# minutes: 10
# late: show the finished file only, and let the run lengths be an exercise (saves 4)
# Draw a 3 x 4 mask on the board and let the class dictate its run lengths. Nearly everybody goes along the rows first:
# COCO comes from Matlab, where memory runs down the columns.
#
# Misconceptions: "category id and label are the same"; "bbox is x1, y1, x2, y2" (it is x, y, width, height in the
# file, corners in memory); "a crowd is a difficult object" (it is a region that scoring leaves out).

# %% [markdown]
# Run lengths by hand, on a mask that is small enough to read. `same_as` compares two results and says where they
# differ; here, our counts with those of pycocotools, the reference implementation. (Files pack the counts into a text
# in which, from the fourth count on, the difference to the count two places before is stored: 5 - 1 = 4, 4 - 1 = 3.)

# %%
from pycocotools import mask as coco_mask

small = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]]).bool()  # (3, 5)
print("columns, one after the other:", small.T.int().tolist())
by_hand = [4, 1, 1, 5, 4]  # 000 0, then 1, then 0, then 111 11, then 0 000
same_as(by_hand, rle_counts(small), name="rle_counts")

packed = coco_mask.frPyObjects({"size": [3, 5], "counts": by_hand}, 3, 5)
print("as text, the way files have it:", packed["counts"].decode())
same_as(small, torch.from_numpy(coco_mask.decode(packed)).bool(), name="pycocotools")

# %% [markdown]
# ## The shapes
#
# Most lessons learn from pictures that are drawn, not downloaded: `generate(index, seed)` gives the same picture for the
# same two numbers, on any machine, in a few milliseconds, with exact truth. They are hard on purpose. Most things in an
# image may be of one class, a third wear a neighbour's colour, and they cover each other: neither class nor colour
# tells two neighbours apart. A mask covers what is *seen* of an object.

# %% tags=["demo"]
from condinst_edu.datasets.shapes import generate

panels = {}
for k in range(4):
    sample = generate(k, seed=1)
    truth = {name: torch.from_numpy(getattr(sample, name)) for name in ("boxes", "labels", "masks")}
    panels[f"generate({k}, seed=1)"] = (torch.from_numpy(sample.image).permute(2, 0, 1) / 255, truth)
pic.show_panels(panels, class_names)

# %%
targets = [data.target(k) for k in range(len(data))]
areas = torch.cat([t["masks"].flatten(1).sum(1) for t in targets])
labels = torch.cat([t["labels"] for t in targets])
print(f"{len(data)} images, {len(labels)} objects, {len(labels) / len(data):.1f} in each")
for k, name in enumerate(class_names, start=1):
    median = areas[labels == k].float().median()
    print(f"{name:9} {int((labels == k).sum()):4} objects, half of them under {median:.0f} pixels")
print(f"smallest {areas.min()}, largest {areas.max()} pixels of {128 * 128}")

# %% [markdown]
# ## The idea, step by step
#
# ### Intersection over union
#
# For two sets of pixels $A$ (a detection) and $B$ (an object),
#
# $$\mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|} = \frac{|A \cap B|}{|A| + |B| - |A \cap B|}.$$
#
# It is 1 for equal masks and 0 for disjoint ones, and it does not grow with the size of the objects. With masks as rows of
# zeros and ones, *one matrix product* counts all shared pixels: $(N, HW) \cdot (HW, M) = (N, M)$. A crowd is the exception:
# there the union is $|A|$ alone, so that a detection that lies inside the region fits it perfectly.

# %%
from condinst_edu.teach.scoring import mask_iou

k = 5
image, target = data[k]
found = found_in(image, least=0.02)
crowd = target["iscrowd"]
iou = mask_iou(found["masks"], target["masks"], crowd)  # (N, M)


def iou_by_loops(detected, objects):
    rows = []
    for a in detected:
        rows.append([float((a & b).sum() / (a | b).sum()) for b in objects])
    return torch.tensor(rows, dtype=torch.float64)


same_as(iou.float(), iou_by_loops(found["masks"], target["masks"]).float(), name="a loop over pairs")

# %% [markdown]
# The same comparison as a picture: a row for each detection, by falling score, a column for each object, which is
# numbered. A good detector has one bright cell in each column, at the top. Ours has them, and below a score of about 0.5
# the same masks come again under other class names: that costs little, because AP is counted within each class and
# they stand at the bottom of every list.

# %% tags=["hide-input", "demo"]
figure, (left, right) = pic.new_figure(1, 2, 4.2, 3.4)
numbered = {name: target[name] for name in ("boxes", "masks")}  # without labels: captions are 0, 1, 2
pic.draw_instances(left, image / 255, numbered)
shown = right.imshow(iou, cmap="viridis", vmin=0, vmax=1, aspect="auto")
right.set_xlabel("object")
right.set_ylabel("detection")
names = [f"{class_names[c - 1]} {s:.2f}" for c, s in zip(found["labels"], found["scores"], strict=True)]
right.set_yticks(range(len(names)), names, fontsize=6)
truth_names = [f"{i}: {class_names[c - 1]}" for i, c in enumerate(target["labels"])]
right.set_xticks(range(len(truth_names)), truth_names, fontsize=8)
figure.colorbar(shown, ax=right, label="IoU")
figure

# %% [markdown] tags=["instructor"]
# minutes: 10
# late: go from IoU straight to the curve; the matching by hand is an exercise (saves 4)
# Let the class read the matrix: which detections are duplicates, which object is found badly, which not at all? Then ask
# what a rule would have to do with a duplicate. (Call it wrong: each object can be found once.)

# %% [markdown]
# ### Hits
#
# Fix an IoU from which a detection counts, say 0.5. Within one class and one image, go through the detections by falling
# score. Each takes the free object that it fits best, if it fits at least that well: a **hit**. Otherwise it is a miss,
# even if it lies on an object that an earlier one has taken. Objects that are *ignored* (crowds, or those outside the
# range of areas that is being scored) are looked at last, and whoever lands there counts neither as hit nor as miss.
#
# ### Precision, recall, and their curve
#
# Put the detections of all images in one list by falling score. After each one, **precision** is the share of hits so far,
# **recall** the share of all objects found so far. Down the list recall grows and precision mostly falls.
#
# AP is the area under that curve, after one correction: a dip that is made good later should not cost anything. So the
# precision at a recall $r$ is the best one at $r$ *or beyond*, read at 101 recalls:
#
# $$\mathrm{AP} = \frac{1}{101} \sum_{r \in \{0, 0.01, \ldots, 1\}} \max_{r' \ge r} p(r').$$

# %%
from condinst_edu.teach.scoring import average_precision, match_objects, precision_recall

square = class_names.index("square") + 1
all_scores, all_hits, num_objects = [], [], 0
for k in range(len(data)):
    image, target = data[k]
    with torch.no_grad():
        found = model([image / 255])[0]
    of_class, objects = found["labels"] == square, target["masks"][target["labels"] == square]
    none = torch.zeros(len(objects), dtype=torch.bool)  # no crowds here, nothing to ignore
    iou = mask_iou(found["masks"][of_class], objects, none)
    all_hits.append(match_objects(iou, none, none, threshold=0.5) >= 0)
    all_scores.append(found["scores"][of_class])
    num_objects += len(objects)
all_scores, all_hits = torch.cat(all_scores), torch.cat(all_hits)
print(f"{num_objects} squares, {len(all_hits)} detections, {int(all_hits.sum())} hits")
print(f"AP of squares at IoU 0.5: {average_precision(all_scores, all_hits, num_objects):.4f}")
pic.show_precision_recall(*precision_recall(all_scores, all_hits, num_objects))

# %% [markdown] tags=["instructor"]
# minutes: 10
# Walk along the curve: where is the surest detection, where the least sure? Why does it end before recall 1? What would
# a threshold on the score do to AP? (Only take points away from the right end: AP never rises by it.)

# %% [markdown]
# ### COCO's AP
#
# One threshold says nothing about how *well* masks fit. COCO averages over ten, 0.5, 0.55, ..., 0.95, and then over
# classes. All of it from scratch, on everything the model found, beside pycocotools (`plain=True`: as it comes; the last
# section says why the library differs from it in two corners). Areas are needed where an AP counts small or large
# objects only.

# %%
from condinst_edu.engine.evaluate import coco_ap, detect_all
from condinst_edu.teach.scoring import ImageScores, coco_average_precision

results = detect_all(model, data, progress=False)  # as COCO results: dicts with RLE masks
by_image = {k: [r for r in results if r["image_id"] == k] for k in data.image_ids}


def image_scores(found, target, label):
    """What one class of one image gives to AP."""
    chosen = [r for r in found if r["category_id"] == category_ids[label - 1]]
    masks = [coco_mask.decode(r["segmentation"]).astype(bool) for r in chosen]
    detected = torch.stack([torch.from_numpy(m) for m in masks]) if masks else torch.zeros(0, 128, 128)
    own = target["labels"] == label
    objects, crowd = target["masks"][own], target["iscrowd"][own]
    scores = torch.tensor([r["score"] for r in chosen], dtype=torch.float64)
    areas = [m.flatten(1).sum(1).double() for m in (detected, objects)]
    return ImageScores(mask_iou(detected.bool(), objects, crowd), scores, *areas, crowd)


ours = {}
for label, name in enumerate(class_names, start=1):
    pairs = zip(by_image.values(), targets, strict=True)
    ours[name] = coco_average_precision([image_scores(f, t, label) for f, t in pairs])
theirs = coco_ap(data.annotation_file, results, ("segm",), plain=True)["mask"]

# %%
print("class      from scratch   pycocotools")
for name in class_names:
    print(f"{name:9} {ours[name]:13.6f} {theirs['per_class'][name]:13.6f}")
mean = sum(ours.values()) / len(ours)
print(f"{'all':9} {mean:13.6f} {theirs['AP']:13.6f}   differ by {abs(mean - theirs['AP']):.1e}")
assert abs(mean - theirs["AP"]) < 1e-12

# %% [markdown]
# That is the number from the top of the lesson.
#
# ## Look inside: what a coarse mask can reach
#
# Models draw masks on a grid that is coarser than the image: one cell for every `stride` x `stride` pixels. How much AP
# does that cost, if every cell were right? `mask_ceiling` asks: it reads the *true* masks at the cells, scales them up
# as a model does, and scores them.

# %% tags=["demo"]
from condinst_edu.engine.evaluate import mask_ceiling

for stride in (1, 2, 4, 8):
    print(f"stride {stride}: AP of perfect masks {mask_ceiling(data, stride)['mask']['AP']:.3f}")
print(f"our model, which draws at stride {model.mask_stride}: {scores['mask']['AP']:.3f}")

# %% [markdown]
# So the model's AP has to be read against the ceiling of its stride, not against 1. What a stride costs depends on
# how large the objects are: most of ours are smaller than 32 x 32 pixels.
#
# ## Break it
#
# What do common mistakes do to the number? Each line is a variant of `average_precision` that somebody has written
# before, run on the hits and scores of the squares.

# %% tags=["demo"]
from condinst_edu.teach import DEVIATIONS

right = average_precision(all_scores, all_hits, num_objects)
print(f"{right:.4f}  as COCO does it")
for name, deviation in DEVIATIONS.items():
    if deviation.of.endswith("average_precision"):
        print(f"{deviation.function(all_scores, all_hits, num_objects):.4f}  {name}: {deviation.line}")

# %% [markdown]
# The worst kind is not the one that is far off: it is the one that is off by a little and always in your favour. Compare
# published figures only where the same code has scored them.
#
# Duplicates deserve a look of their own. Here each detection is given twice, the copy with a slightly lower score. Under
# COCO's rule a copy is a miss: precision is about halved, and so is AP. A matcher that pays for copies has to count
# the objects twice too, and then sees no difference.

# %%
twice = torch.cat([all_scores, all_scores - 1e-4])
copies_miss = torch.cat([all_hits, torch.zeros_like(all_hits)])  # the object is taken already
copies_hit = torch.cat([all_hits, all_hits])  # what a matcher without "each object once" would say
print(f"{average_precision(twice, copies_miss, num_objects):.4f}  copies are misses, as they should be")
print(f"{average_precision(twice, copies_hit, 2 * num_objects):.4f}  copies count as hits")

# %% [markdown] tags=["instructor"]
# minutes: 10
# The last cell is why non-maximum suppression exists (lesson 1): without it detectors report every object many times.

# %% [markdown]
# ## Exercises
#
# Each has a stub to fill in and a check that looks for the mistakes it knows by name. Nothing below depends on them.

# %% [markdown] tags=["exercise"]
# 00-rle
# Write `rle_counts(mask)`: the run lengths of a mask (H, W) bool as a list of whole numbers, as COCO has them: down the
# columns, zeros first.


# %% tags=["stub"]
def my_rle_counts(mask):
    """Run lengths of a mask (H, W) bool, zeros first."""
    raise NotImplementedError


# %% tags=["solution"]
def my_rle_counts(mask):
    """Run lengths of a mask (H, W) bool, zeros first."""
    counts, value = [0], False
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


# %% tags=["check"]
check("00-rle", my_rle_counts)

# %% [markdown] tags=["exercise"]
# 00-mask-iou
# Write `mask_iou(detected, objects, crowd)`: the IoU of masks (N, H, W) with masks (M, H, W), both bool, as (N, M)
# float64. Where `crowd` (M,) is True, divide by the detection's own area instead of the union.


# %% tags=["stub"]
def my_mask_iou(detected, objects, crowd):
    """IoU (N, M) float64 of masks (N, H, W) and (M, H, W); crowd (M,) bool."""
    raise NotImplementedError


# %% tags=["solution"]
def my_mask_iou(detected, objects, crowd):
    """IoU (N, M) float64 of masks (N, H, W) and (M, H, W); crowd (M,) bool."""
    a, b = detected.flatten(1).double(), objects.flatten(1).double()
    shared = a @ b.T  # (N, M)
    area, object_area = a.sum(1)[:, None], b.sum(1)  # (N, 1), (M,)
    union = torch.where(crowd, area, area + object_area - shared)
    return shared / union.clamp(min=1)


# %% tags=["check"]
check("00-mask-iou", my_mask_iou)

# %% [markdown] tags=["exercise"]
# 00-match
# Write `match_objects(iou, crowd, ignored, threshold)`: for each detection (rows of `iou` (N, M), by falling score) the
# index of the object that it finds, -1 for none, as (N,) int64. An object is found once; `ignored` ones (M,) are taken
# only where no other fits; a `crowd` (M,) is never used up.


# %% tags=["stub"]
def my_match_objects(iou, crowd, ignored, threshold):
    """Which object each detection finds: (N,) int64, -1 for none."""
    raise NotImplementedError


# %% tags=["solution"]
def my_match_objects(iou, crowd, ignored, threshold):
    """Which object each detection finds: (N,) int64, -1 for none."""
    taken, found = set(), []
    for row in iou.tolist():
        fits = [j for j, value in enumerate(row) if value >= threshold and j not in taken]
        real = [j for j in fits if not ignored[j]]
        best = max(real or fits, key=lambda j: row[j], default=-1)
        found.append(best)
        if best >= 0 and not crowd[best]:
            taken.add(best)
    return torch.tensor(found)


# %% tags=["check"]
check("00-match", my_match_objects)

# %% [markdown] tags=["exercise"]
# 00-average-precision
# Write `average_precision(scores, hits, num_objects)`: from scores (N,) in any order, hits (N,) bool and the number of
# objects there were to find, the mean of the interpolated precision at the 101 recalls 0, 0.01, ..., 1.


# %% tags=["stub"]
def my_average_precision(scores, hits, num_objects):
    """Mean interpolated precision at 101 recalls."""
    raise NotImplementedError


# %% tags=["solution"]
def my_average_precision(scores, hits, num_objects):
    """Mean interpolated precision at 101 recalls."""
    found = hits[scores.argsort(descending=True)].double().cumsum(0)
    precision = found / torch.arange(1, len(found) + 1)
    recall = found / num_objects
    total = 0.0
    for r in torch.linspace(0, 1, 101, dtype=torch.float64):
        beyond = precision[recall >= r]
        total += float(beyond.max()) if len(beyond) else 0.0
    return total / 101


# %% tags=["check"]
check("00-average-precision", my_average_precision)

# %% [markdown]
# ## What the definition says and what the code does
#
# COCO's AP is defined by a program, and the program has corners. Two that change numbers, with their checks:
#
# - An object whose annotation has **id 0** can never be found: pycocotools stores "the id of the match" and reads 0 as
#   "none". The library counts such objects from 1; `plain=True` is pycocotools as it comes.
# - A detection of a *mask* is small, medium or large by the area of its **box** in plain pycocotools, and by that of its
#   mask in the code that papers are scored with. AP over all sizes is the same either way.

# %%
zero = json.loads(Path(data.annotation_file).read_text())
zero["annotations"][0]["id"] = 0
mine = coco_ap(zero, results, ("segm",))["mask"]["AP"]
plain = coco_ap(zero, results, ("segm",), plain=True)["mask"]["AP"]
print(f"one object has id 0: {mine:.6f} here, {plain:.6f} in plain pycocotools")
assert mine == scores["mask"]["AP"]
assert plain < mine

by_area = {p: coco_ap(data.annotation_file, results, ("segm",), plain=p)["mask"] for p in (False, True)}
for size, name in (("APs", "small"), ("APm", "medium")):
    print(f"{name}: {by_area[False][size]:.6f} by the mask's area, {by_area[True][size]:.6f} by the box's")
assert by_area[False]["AP"] == by_area[True]["AP"]

# %% [markdown]
# ## In three lines
#
# - The truth is a JSON file: images, categories, annotations; a mask is a polygon or run lengths down the columns.
# - A detection is a hit if it fits an object that nobody surer has taken, by an IoU of at least the threshold.
# - AP is the mean interpolated precision over recalls, thresholds and classes; a mask stride puts a ceiling on it.
#
# Next: [lesson 1, FCOS](01_fcos.ipynb): how a network finds objects at all.
