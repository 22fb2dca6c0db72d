# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: Dynamic mask heads
#     minutes: {read: 30, do: 45, run: 1}
#     needs: ["lesson 1 (FCOS: each location predicts one object)", "PyTorch: convolutions, training a small network"]
#     gives:
#       - why one fixed network cannot outline one of two alike objects
#       - conditional convolution
#       - 169 numbers, counted, unpacked and run
#       - dice loss, and why not focal loss
#     papers:
#       - condinst:controller
#       - condinst:eq-2
#       - condinst:relative-coordinates
#       - condinst:table-1a
#       - condinst:table-1b
# ---

# %%
from condinst_edu import doctor

doctor.quick("condinst", "condinst-none")

# %% [markdown]
# ## A result first
#
# Lesson 1 ended with boxes. Now we want outlines. In the picture below two squares of the same colour touch. One map
# of features was computed for the whole image, and a network of three 1x1 convolutions, the **mask head**, drew each
# mask from it. Between the two masks no feature changed: only the numbers in the network's filters, and the point that
# it counts coordinates from.
#
# `look` runs a model once on an image. `segment_at` is what the location at a pixel makes of it: `theta`, its 169 filter
# numbers; `location`, the point; `scale`, the length in pixels that its coordinates are divided by; and the `mask`.

# %% tags=["first-result", "demo"]
import torch

from condinst_edu.teach import DEVIATIONS, check, deviate, look, redraw, same_as
from condinst_edu.teach import pictures as pic
from condinst_edu.teach.tiny import held_out, load_tiny

torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save

model, _, class_names, _ = load_tiny("condinst")
data = held_out(50)
image, objects = data[10][0] / 255, data.target(10)["masks"]  # (3, 128, 128), (M, 128, 128)
seen = look(model, image)
a, b = seen.segment_at(84, 84), seen.segment_at(60, 84)
print(f"shared features {tuple(seen.features.shape)}, theta of each instance {tuple(a.theta.shape)}")
panels = {"the image": (image, {})}
for name, one in {"A": a, "B": b}.items():
    panels[f"{name}, from location {one.location}"] = (pic.spotlight(image, one.mask), {})
pic.show_panels(panels)

# %% [markdown] tags=["instructor"]
# minutes: 4
# Ask: what differs between the two runs? Collect guesses (a crop? an attention map?). The answer, 169 numbers
# and one point, is what the lesson unpacks. The mask of one square stops at the other: a box could not do that.

# %% [markdown]
# ## The problem: one network, two alike objects
#
# A fully convolutional network (FCN) is the usual tool for labelling pixels. Let us ask one for an instance. Each image
# has two equal squares, in random places, and the network has to mark **the left one**.

# %% tags=["demo"]
from torch import nn
from torch.nn import functional as F


def two_squares(count, generator, size=(36, 72)):
    """Images (count, 1, H, W), and the masks (count, 2, H, W) of the left and the right square."""
    low = torch.tensor([[9, 9], [45, 9]])  # (x, y) of the left and the right square, at least
    middle = low + torch.randint(0, 18, (count, 2, 2), generator=generator)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    away = (torch.stack([x, y]) - middle[..., None, None]).abs()  # (count, 2, 2, H, W)
    masks = away.amax(2) <= 4
    return masks.any(dim=1, keepdim=True).float(), masks


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
layers = [nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.ReLU()]
fcn = nn.Sequential(*layers, nn.Conv2d(8, 1, 5, padding=2))
optimizer = torch.optim.Adam(fcn.parameters(), lr=0.005)
for _ in range(250):
    images, both = two_squares(8, generator)
    loss = F.binary_cross_entropy_with_logits(fcn(images)[:, 0], both[:, 0].float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# %%
def around(values, mask, reach):
    """The part of a map (H, W) around the middle of a mask, `reach` pixels to each side."""
    y, x = mask.nonzero().float().mean(dim=0).int().tolist()
    return values[y - reach : y + reach + 1, x - reach : x + reach + 1]


images, both = two_squares(50, generator)
with torch.no_grad():
    scores = fcn(images)[:, 0].sigmoid()  # (50, H, W)
left, right = scores[both[:, 0]].mean(), scores[both[:, 1]].mean()
print(f"mean score on the left square {left:.4f}, on the right square {right:.4f}")
input_left, input_right = (around(images[0, 0], mask, 9) for mask in both[0])
score_left, score_right = (around(scores[0], mask, 3) for mask in both[0])
same_as(input_left, input_right, name="the input around the other square")
same_as(score_left, score_right, name="the scores around the other square")
shown = {"image": images[0, 0], "wanted: the left one": both[0, 0], "the FCN's scores": scores[0]}
pic.show_maps(shown, limit=1, width=2.8)

# %% [markdown]
# It has learned what a square is, not which one. Both get about one half: the best guess where the answer is yes as
# often as no. More training would not help. A convolution does the same sum everywhere, so when its input moves, its
# output moves along (**translation equivariance**), and a pixel's score depends on its receptive field alone: here
# 13 x 13 pixels (three 5x5 layers). Around both squares these pixels are equal, so the scores must be.
#
# With a receptive field that spans the whole image, "the left one" could be learned. But in a real image we ask for
# *this* person, then for *that* one, with the same image as input, and a function with one input has one output. So
# the question itself has to enter. Three ways to let it in:
#
# 1. **Crop.** Mask R-CNN cuts the box out; the fixed mask head sees (mostly) one object.
# 2. **Say where.** Append coordinates whose origin lies on the object in question.
# 3. **Change the network.** Let the question choose the filters: *conditional convolution*.
#
# CondInst does 2 and 3 together, and never crops.

# %% [markdown] tags=["instructor"]
# minutes: 10
# Let the class bet on the scores before the cell runs. Then ask how the loss could be lower: it cannot, since
# equal inputs force equal outputs and the mean of the two targets is one half.
#
# Misconceptions to expect: "a deeper network would do" (it can learn *the left one* once its receptive field
# spans both squares, but not *this one*: the question is not in the input); "zero padding tells it where it is"
# (only within the reach of the edge, and the squares keep away from it).

# %% [markdown]
# ## The idea, equation by equation
#
# In an ordinary convolution the filters are parameters: fixed once trained. In a **conditional** one they are the
# *output* of another network. CondInst's detector has one more output at every location, the **controller**
# (`condinst:controller`). At location $(x, y)$ it predicts all filters of one small network, flattened to a vector
# $\theta_{x,y} \in \mathbb{R}^{169}$, for the object that this location answers for.
#
# $$\text{mask}_{x,y} = \sigma\big(\mathrm{MaskHead}(\tilde F_{x,y};\ \theta_{x,y})\big), \qquad
# \tilde F_{x,y} = [\,O_{x,y},\ F_{bottom}\,]$$
#
# Here $\sigma$ is the sigmoid. A map has $h \times w$ cells, an image $H \times W$ pixels.
#
# | symbol | shape | what it is |
# |---|---|---|
# | $F_{bottom}$ | $(8, h, w)$ | from a few convolutions on the pyramid (the *bottom branch*, lesson 4), shared by all instances; at stride 4, so 32 x 32 for our images |
# | $O_{x,y}$ | $(2, h, w)$ | (pixel - location) / unit; the unit is 8 strides of the level: 64 pixels on P3 |
# | $\theta_{x,y}$ | $(169,)$ | weights and biases of three 1x1 convolutions, 10 -> 8 -> 8 -> 1 channels |
# | $\mathrm{MaskHead}$ | | these convolutions, a ReLU after all but the last; $(1, h, w)$ logits |
#
# The coordinates (`condinst:relative-coordinates`) are the subject of lesson 3. The controller itself is nothing special:
# one convolution, trained by the gradient that flows back through $\theta$.

# %%
from condinst_edu.mask_head import DynamicMaskHead, split_parameters

print(model.fcos.head.top)
for n, (w, bias) in enumerate(zip(*split_parameters(a.theta[None], (10, 8, 8, 1)), strict=True), 1):
    print(f"layer {n}: weights {tuple(w.shape[1:])}, biases {tuple(bias.shape[1:])}")
print("numbers in all:", model.mask_head.num_parameters)

# %% [markdown]
# How are 169 numbers cut into filters? The paper does not say; official weights have this order: all weights, layer by
# layer, then all biases; each weight is (out, in), row by row; the inputs are x, y, then features. In plain PyTorch, for
# one instance, with the coordinates written out as maps:


# %% tags=["demo"]
def mask_head_by_hand(features, theta, place, unit, stride):
    """features (8, h, w), theta (169,), place (2,) and unit in pixels -> logits (1, h, w)."""
    height, width = features.shape[1:]
    x = (stride * torch.arange(width) + stride // 2 - place[0]) / unit
    y = (stride * torch.arange(height) + stride // 2 - place[1]) / unit
    coordinates = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])  # (2, h, w)
    w1, w2, w3, b1, b2, b3 = theta.split([8 * 10, 8 * 8, 1 * 8, 8, 8, 1])
    x0 = torch.cat([coordinates, features])[None]  # (1, 10, h, w)
    x1 = F.relu(F.conv2d(x0, w1.reshape(8, 10, 1, 1), b1))
    x2 = F.relu(F.conv2d(x1, w2.reshape(8, 8, 1, 1), b2))
    x3 = F.conv2d(x2, w3.reshape(1, 8, 1, 1), b3)  # (1, 1, h, w): logits, no ReLU
    return x3[0]


def by_hand(features, theta, places, units):
    each = zip(theta, places, units, strict=True)
    return torch.cat([mask_head_by_hand(features, *one, stride=8) for one in each])


def random_inputs(generator):
    features, theta = (torch.randn(*size, generator=generator) for size in ((8, 5, 9), (3, 169)))
    return features, theta, 60 * torch.rand(3, 2, generator=generator), torch.tensor([64.0, 64, 128])


library = DynamicMaskHead()
same_as(by_hand, lambda *inputs: library(*inputs, stride=8), inputs=random_inputs, name="MaskHead")

# %% [markdown] tags=["instructor"]
# minutes: 15
# Count on the board before showing the sum. Draw the controller as "a convolution whose output is a network".
#
# Misconceptions: "theta is a parameter of the model" (it is an activation: it differs per image and location,
# and nothing of it is stored); "the controller is applied to a crop" (it is a convolution over the pyramid like
# the box output); "169 is per image" (per location; only those that survive NMS are used in inference).

# %% [markdown]
# ## Look inside
#
# First the 169 numbers of instance A, as filters. Each row of a block makes one output channel; in layer 1 the first two
# columns multiply x and y, the other eight the features. Then what they make of the image: layers 1 and 2 after ReLU,
# and the logits. In layer 1 look for channels that grow away from A, each towards another side: these listen mostly to x
# and y. Layer 2 adds the sides up: all that is *not* A. The last layer takes this sum away from a large bias, and what
# stays positive is A. Several straight cuts and a sum make a closed outline.

# %% tags=["demo"]
pic.show_filters(a.theta)

# %%
maps = {f"layer {n}, {c}": a.activations[n - 1][c] for n in (1, 2) for c in range(8)}
pic.show_maps({**maps, "logits up to ±10": a.logits.clamp(-10, 10)}, columns=8, width=1.3)

# %% [markdown]
# ### Who decides which object: theta, or the location?
#
# Both change from A to B. So let us change one at a time: A's theta with the origin of coordinates at B's location, and
# the other way round (`redraw`). Guess before you look. The number is the IoU with the true object at the origin.


# %% tags=["demo"]
def iou(p, q):
    """IoU of masks (..., H, W)."""
    return (p & q).flatten(-2).sum(-1) / (p | q).flatten(-2).sum(-1).clamp(min=1)


panels = {}
for title, (t, p) in {
    "A, origin A": (a, a),
    "B, origin B": (b, b),
    "A, origin B": (a, b),
    "B, origin A": (b, a),
}.items():
    mask = redraw(p, theta=t.theta).mask
    true = objects[iou(objects, p.mask).argmax()]  # the object that p stands on
    panels[f"theta {title}: IoU {iou(mask, true):.2f}"] = (pic.spotlight(image, mask), {})
pic.show_panels(panels)

# %% [markdown]
# The mask goes with the **origin**. A theta that was made for A says something like "the region around the origin, as
# far as the features agree"; told to stand at B, it draws B about as well. Is that an accident of this pair? Over all
# pairs of sure detections in 20 images we compare the swapped mask with the own masks of both. Then we give **every**
# instance the same theta, the mean of all, and look at the score. Beside it a second model, trained alike but without
# any coordinates.

# %% tags=["demo"]
from itertools import permutations

from condinst_edu.engine.evaluate import evaluate


def sure_ones(seen):
    """The segments of all detections that score more than 0.5."""
    found = seen.model.fcos.detect(seen.points, seen.outputs, 0)
    return [seen.segment_of(int(k)) for k in found.location[found.scores > 0.5]]


def give_all(theta):
    """PyTorch hands what the mask head is called with to this first: every instance gets the same theta."""
    return lambda head, given: (given[0], theta.expand_as(given[1]), *given[2:])


def mask_ap(model, data=data):
    return evaluate(model, data, progress=False)["mask"]["AP"]


models = {"relative coordinates": model, "no coordinates": load_tiny("condinst-none").model}
for name, other in models.items():
    images = [sure_ones(look(other, data[k][0] / 255)) for k in range(20)]
    swaps = [(redraw(p, theta=t.theta).mask, t, p) for found in images for t, p in permutations(found, 2)]
    of_theta, of_place = (sum(iou(m, x[k].mask) for m, *x in swaps) / len(swaps) for k in (0, 1))
    print(f"{name}, {len(swaps)} swaps: IoU with theta's owner {of_theta:.2f}, location's {of_place:.2f}")
    mean = torch.stack([one.theta for found in images for one in found]).mean(dim=0)
    with other.mask_head.register_forward_pre_hook(give_all(mean)):
        print(f"   AP with the same theta for all {mask_ap(other):.3f}", end=", ")
    print(f"with its own {mask_ap(other):.3f}")

# %% [markdown]
# Two models, two answers. Without coordinates the location enters nowhere but through theta, so the mask follows theta
# by construction: each theta has to name *its* object by features alone, and a fixed one is the fixed FCN of our first
# experiment, and fails like it. With relative coordinates the origin already says which object, and the controller may
# leave that out of theta: one fixed theta does surprisingly much. That is way 2 of our list, alone; the rest is what a
# theta of one's own adds. Lesson 3 takes the coordinates apart.

# %% [markdown] tags=["instructor"]
# minutes: 15
# The swap is the heart of the lesson: let everybody write down a guess first. Most expect the mask to follow
# theta. It does, in the model without coordinates. These are tiny models on drawn shapes; on photographs theta
# may carry more, so say what was measured: here, on these data.
#
# Misconception: "each theta is a fingerprint of its object". With relative coordinates it need not be.

# %% [markdown]
# ## Does it learn? Dice loss, and why not focal loss
#
# Dice loss compares a soft mask $p \in [0, 1]$ with the truth $t \in \{0, 1\}$, with squares in the denominator; the
# training loss (`condinst:eq-2`) averages it over the $N_{pos}$ locations that answer for an object:
#
# $$L_{dice}(p, t) = 1 - \frac{2 \sum_i p_i t_i}{\sum_i p_i^2 + \sum_i t_i^2 + \epsilon}, \qquad
# L_{mask} = \frac{1}{N_{pos}} \sum_{x,y} \mathbb{1}_{\{c^*_{x,y} > 0\}}\ L_{dice}(\text{mask}_{x,y}, M^*_{x,y})$$
#
# with $c^*_{x,y}$ the location's class (0: background, lesson 1) and $M^*_{x,y}$ the true mask of its object. The
# paper's formula, beside the library's dice loss:

# %%
from condinst_edu.teach import show_equation

show_equation("condinst:eq-2", "dice_loss")

# %% [markdown]
# A mask covers few of the image's pixels. Which share of the gradient falls on the object's pixels, if all scores are
# 0.5, as at the beginning of training? We take the smallest object of the image.

# %%
from torchvision.ops import sigmoid_focal_loss

from condinst_edu.layers.losses import dice_loss


def bce(logits, truth):
    return F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none").mean((1, 2))


def focal(logits, truth):
    return sigmoid_focal_loss(logits, truth.float(), alpha=0.25, gamma=2).mean((1, 2))


def dice(logits, truth):
    return dice_loss(logits.sigmoid(), truth)


# In training, masks have stride 2: cell (i, j) is pixel (x, y) = (2j + 1, 2i + 1).
truth = min(objects[:, None, 1::2, 1::2], key=torch.sum)  # (1, 64, 64): the smallest
share = truth.float().mean()
print(f"the object has {truth.sum()} cells, {share:.1%} of all; 1/3 + 2/3 of that: {(1 + 2 * share) / 3:.1%}")
for loss_of in (bce, focal, dice):
    logits = torch.zeros(1, 64, 64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss_of(logits, truth).sum(), logits)
    print(f"{loss_of.__name__:6} {slope.abs()[truth].sum() / slope.abs().sum():.1%} of the gradient is on its cells")

# %% [markdown]
# Cross-entropy pulls equally at every pixel, so the object's share of the gradient is its share of the area. Dice gives
# it a third, however small it is: the derivatives add up to $1/3 + 2a/3$ on an object that covers a part $a$ of the
# image. Focal loss, so good for detection (lesson 1), begins worse than plain cross-entropy: at a score of one half its
# $(1 - p_t)^\gamma$ favours nobody, and $\alpha = 0.25$ weights the object down. It needs a network that says
# "background" from the start, with a last bias of $-\log 99$, whose sigmoid is 0.01. The paper notes that this is not
# trivial for filters that are predicted. What would it be worth? We learn a theta for this one object directly, by
# gradient descent on the trained model's features, from twelve random starts:

# %% tags=["demo"]
from math import log

from condinst_edu.coordinates import mass_centers
from condinst_edu.layers.upsample import aligned_upsample


def fit(loss_of, prior=False, starts=12, steps=300):
    """Learn theta for the object from small random numbers; IoU (steps, starts) on the way."""
    torch.manual_seed(0)
    theta = 0.1 * torch.randn(starts, 169)
    if prior:
        theta[:, -1] = -log(99)  # the last layer's bias
    optimizer = torch.optim.Adam([theta.requires_grad_()], lr=0.02)
    wanted = truth.expand(starts, -1, -1)
    middle, unit = 2 * mass_centers(wanted) + 1, torch.full((starts,), 64.0)  # origin and unit, in pixels
    course = []
    for _ in range(steps):
        logits = model.mask_head(seen.features, theta, middle, unit, model.stride)  # (starts, 32, 32)
        logits = aligned_upsample(logits, model.factor)  # from stride 4 to stride 2
        course.append(iou(logits > 0, wanted))
        optimizer.zero_grad()
        loss_of(logits, wanted).mean().backward()
        optimizer.step()
    return torch.stack(course)


# %% tags=["demo"]
courses = {loss_of.__name__: fit(loss_of) for loss_of in (bce, focal, dice)}
courses["focal, last bias -log 99"] = fit(focal, prior=True)
for name, course in courses.items():
    there = int((course[-1] > 0.5).sum())
    print(f"{name:25} {there:2} of {course.shape[1]} starts reach an IoU of 0.5; worst {course[-1].min():.2f}")
means = {name: course.mean(dim=1) for name, course in courses.items()}
pic.show_curves(means, "step of gradient descent", "IoU, mean of all starts")

# %% [markdown]
# Cross-entropy and focal loss first learn that nearly all is background, and most starts stay there. With the prior
# focal loss finds the object from most starts, but filters that are predicted have no bias of their own to set. "All
# background" costs the full dice loss of 1 for an object of any size: dice finds the object from every start.

# %% [markdown] tags=["instructor"]
# minutes: 10
# late: show the curves, leave out the shares of the gradient (saves 4)
# Ask for the loss of an empty mask: dice gives 1 whatever the size, a mean over pixels gives next to nothing
# for a small object. Point out that this is one fit on one object with one learning rate, a demonstration and
# no proof; let students change the object (`max` for `min`) or the number of steps. Dice summed over all masks at
# once (`dice-of-the-batch`, named by the exercise's checker) loses the small object beside a large one.

# %% [markdown]
# ## Break it
#
# Each deviation below is a mistake that is easily made: theta cut wrongly, or the layers run wrongly. The trained model
# stays; only the named function is replaced. The number is the mask AP over 20 images.

# %%
few = held_out(20)


def drawn(title):
    """A panel: the image with the masks of all sure detections, the AP in its title."""
    with torch.no_grad():
        found = model([image])[0]
    masks = {"masks": found["masks"][found["scores"] > 0.5]}
    return {f"{title}: {mask_ap(model, few):.3f}": (image, masks)}


panels = drawn("right")
for name, deviation in DEVIATIONS.items():
    if deviation.of in ("condinst_edu.mask_head.split_parameters", "condinst_edu.mask_head.run_layers"):
        with deviate(name):
            panels |= drawn(name)
        print(f"{name}: {deviation.line}")
pic.show_panels(panels, columns=5)

# %% [markdown]
# Theta cut wrongly gives no mask, everything, or noise, and never an error: 169 numbers are 169 numbers. This is why
# foreign weights are tested by comparing outputs. Among the layers, a ReLU at the end is the treacherous one: the masks
# look plausible. But where logits should be negative they are 0, so in upsampling every pixel near a positive cell
# becomes positive: masks grow, in blocks. `dynamic-first-filters` takes filters *and* origin of the first instance, so
# only that one is drawn.

# %% [markdown] tags=["instructor"]
# minutes: 8
# late: one panel: the ReLU behind the last layer (saves 6)
# Let students guess AP before each panel. Discuss which mistakes a shape check would find (none of these).

# %% [markdown]
# ## Paper and miniature
#
# Tables 1a and 1b of the paper vary depth and width of the mask head (AP on COCO, milliseconds on a GPU for 100
# instances). Beside them: how many numbers the controller must predict. We did not train these variants: there is no AP
# of ours but for the default. For contrast, the mask head of Mask R-CNN, whose filters are fixed and have to serve every
# object (the paper's "more than 2.3M" are the four convolutions of its first part).

# %%
from torchvision.models.detection import maskrcnn_resnet50_fpn

from condinst_edu import papers

for name, varied in (("condinst:table-1a", "depth"), ("condinst:table-1b", "width")):
    print(f"{varied}   paper: AP  ms   numbers of theta")
    for row in map(papers.table(name).row, range(4)):
        head = DynamicMaskHead(**{varied: row[varied]})
        print(f"{row[varied]:5} {row['AP']:10} {row['time']:4} {head.num_parameters:11}")
print(f"ours, depth 3, width 8, on {len(data)} images of shapes: AP {100 * mask_ap(model):.1f}")
with torch.device("meta"):  # shapes alone, no numbers
    heads = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).roi_heads
for part in (heads.mask_head, heads.mask_predictor):
    print(f"Mask R-CNN, {type(part).__name__}: {sum(p.numel() for p in part.parameters()):,} parameters")

# %% [markdown]
# A head of one layer is linear in coordinates *and features*: it can follow the edges that the features show, but
# coordinates alone cannot close its outline around the origin, hence the low AP. From two layers and a width of 4 on,
# little changes.

# %% [markdown] tags=["instructor"]
# minutes: 6
# late: skip, and leave depth 1 as a question for home (saves 6)
# Why is depth 1 bad? Write it out: a weighted sum of x, y and features, then a threshold. Ask for the smallest
# network that can draw a closed shape from x and y alone.

# %% [markdown]
# ## Play
#
# Click anywhere: the location nearest to your click answers, with its own theta. Compare two pixels of one
# square, then one pixel of each, then the background. Without a browser, the picture shows one such answer.

# %% tags=["play"]
from condinst_edu.teach import click_to_segment

click_to_segment(model, image, x=84, y=84, class_names=class_names)

# %% [markdown]
# ## Exercises
#
# Write the mask head yourself, in four steps: count its numbers, cut them, run the layers, measure the masks.

# %% [markdown] tags=["exercise"]
# 02-count-parameters
# Write `my_count_parameters(channels)`: how many numbers the controller has to predict for 1x1 convolutions with
# these channels. `(10, 8, 8, 1)` means 10 inputs, two layers of 8 channels, and one output.


# %% tags=["stub"]
def my_count_parameters(channels):
    """channels: of the input and of each layer's output. Returns a whole number."""
    raise NotImplementedError


# %% tags=["solution"]
def my_count_parameters(channels):
    total = 0
    for layer in range(len(channels) - 1):
        inputs, outputs = channels[layer], channels[layer + 1]
        total += inputs * outputs + outputs
    return total


# %% tags=["check"]
check("02-count-parameters", my_count_parameters)

# %% [markdown] tags=["exercise"]
# 02-split-parameters
# Write `my_split_parameters(theta, channels)` for N instances and any channels: theta (N, P) in, the weights `[(N,
# out, in), ...]` and the biases `[(N, out), ...]` out, in the official order that this lesson described.


# %% tags=["stub"]
def my_split_parameters(theta, channels):
    """theta (N, P). Returns (weights, biases), two lists with an entry for each layer."""
    raise NotImplementedError


# %% tags=["solution"]
def my_split_parameters(theta, channels):
    weights, biases, start = [], [], 0
    for inputs, outputs in zip(channels[:-1], channels[1:], strict=True):
        end = start + inputs * outputs
        weights.append(theta[:, start:end].reshape(-1, outputs, inputs))
        start = end
    for outputs in channels[1:]:
        biases.append(theta[:, start : start + outputs])
        start += outputs
    return weights, biases


# %% tags=["check"]
check("02-split-parameters", my_split_parameters)

# %% [markdown] tags=["exercise"]
# 02-dynamic-layers
# Write `my_dynamic_layers(shared, weights, biases)`: N networks at once on maps that they share. `shared` (inputs,
# L) is a map flattened to L pixels, `weights` and `biases` are as in the exercise before. Return the logits (N,
# L).


# %% tags=["stub"]
def my_dynamic_layers(shared, weights, biases):
    """shared (inputs, L); weights [(N, out, in)]; biases [(N, out)]. Returns (N, L)."""
    raise NotImplementedError


# %% tags=["solution"]
def my_dynamic_layers(shared, weights, biases):
    x = shared
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = weight @ x + bias[:, :, None]  # (N, out, L)
        if layer < len(weights) - 1:
            x = x.relu()
    return x[:, 0]


# %% tags=["check"]
check("02-dynamic-layers", my_dynamic_layers)

# %% [markdown] tags=["exercise"]
# 02-dice-loss
# Write `my_dice_loss(scores, targets, eps)`: the dice loss of each mask, scores in [0, 1] (after the sigmoid),
# targets bool.


# %% tags=["stub"]
def my_dice_loss(scores, targets, eps=1e-5):
    """scores, targets (N, H, W). Returns (N,)."""
    raise NotImplementedError


# %% tags=["solution"]
def my_dice_loss(scores, targets, eps=1e-5):
    p, t = scores.flatten(1), targets.flatten(1).float()  # (N, H * W)
    overlap = (p * t).sum(dim=1)
    return 1 - 2 * overlap / ((p * p).sum(dim=1) + (t * t).sum(dim=1) + eps)


# %% tags=["check"]
check("02-dice-loss", my_dice_loss)

# %% [markdown]
# ## What the paper says and what the code does
#
# - *The same model twice.* Depth 3 at width 8 is one row of Table 1a and one of Table 1b. Their AP agrees; their
#   APm, the AP of medium-sized objects, does not.
# - *The sign of the coordinates.* The official code uses location - pixel, we use pixel - location, as the paper puts
#   it. Trained networks cannot tell: flip the sign of layer 1's first two columns, and the masks are equal.
# - *Grouped convolution.* The official code runs all instances as one convolution with N groups. Same numbers (folded).
# - *Focal loss.* Its initialisation "cannot be realized" with predicted filters in the conference version, and is "not
#   trivial" in the journal version. The fit above shows what it would be worth.
# - *The controller.* The paper gives it the architecture of the classification head, a tower of its own; the official
#   code, and ours, have a single 3x3 convolution on the box tower (printed above).

# %%
for table, default in (("condinst:table-1a", {"depth": 3}), ("condinst:table-1b", {"width": 8})):
    (row,) = papers.table(table).find(**default)
    print(f"{table}, {default}: AP {row['AP']}, APm {row['APm']}")

f, theta3, places3, units3 = random_inputs(torch.Generator().manual_seed(7))
right = by_hand(f, theta3, places3, units3)
flipped = theta3.clone()
flipped[:, :80].view(3, 8, 10)[:, :, :2] *= -1  # what multiplies x and y
same_as(by_hand(f, flipped, places3, -units3), right, name="pixel - location")

# %% tags=["hide-input"]
from condinst_edu.coordinates import relative_coordinates

weights, biases = split_parameters(theta3, (10, 8, 8, 1))
x = relative_coordinates(f.shape[1:], 8, places3, units3)
x = torch.cat([x, f.expand(3, -1, -1, -1)], dim=1).reshape(1, 3 * 10, *f.shape[1:])
for layer, (w, bias) in enumerate(zip(weights, biases, strict=True)):
    w = w.flatten(0, 1)[:, :, None, None]  # (3 * out, in, 1, 1)
    x = F.conv2d(x, w, bias.flatten(), groups=3)  # (1, 3 * out, H, W)
    x = x.relu() if layer < 2 else x
same_as(x[0], right, name="three groups")

# %% [markdown]
# ## In three lines
#
# - Equal patches give equal outputs, so a fixed network cannot pick one of two alike objects: the question has
#   to enter.
# - CondInst lets it in twice: through 169 filter numbers that each location predicts, and through coordinates
#   with that location as origin.
# - Dice loss makes a small object's mask as important as a large one's, and needs no special initialisation.
#
# Next: [lesson 3, relative coordinates](03_relative_coordinates.ipynb): relative, absolute, none, alone.
