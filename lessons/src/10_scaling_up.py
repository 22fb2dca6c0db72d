# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lesson:
#     title: Scaling up
#     minutes: {read: 35, do: 40, run: 1}
#     needs: ["lesson 4 (CondInst)", "a training loop in PyTorch"]
#     gives:
#       - what changes from a laptop to COCO, and what does not
#       - one batch in many processes, with the same losses and gradients
#       - the learning rate's way through a run
#       - half precision and what it loses
#       - reading a profile
#       - runs that survive being killed
#       - other people's weights on your own classes
#     papers:
#       - condinst:table-6
#       - condinst:table-8
# ---

# %%
from condinst_edu import doctor

doctor.quick("condinst")

# %% [markdown]
# ## A result first
#
# Two recipes: on the left the tiny CondInst of lesson 4, on the right the paper's CondInst on COCO. A recipe is plain
# data, and the same `train` takes both. These are the fields that differ.

# %% tags=["first-result", "demo"]
from condinst_edu.engine.checkpoint import plain
from condinst_edu.recipes import get_recipe

tiny, coco = get_recipe("shapes-condinst"), get_recipe("coco-condinst-r50-1x")


def fields(recipe):
    """{name: value}, the arguments of the model among them."""
    values = plain(recipe)
    arguments = values.pop("model_args")
    return values | {f"model: {name}": value for name, value in arguments.items()}


left, right = fields(tiny), fields(coco)
names = list(left | right)
for name in (n for n in names if left.get(n) != right.get(n)):
    a, b = (str(side.get(name, "(default)"))[:36] for side in (left, right))
    print(f"{name:23} {a:38} {b}")
same = [name for name in names if left.get(name) == right.get(name)]
print(f"\n{len(same)} fields are the same: {', '.join(same)}")

# %% [markdown] tags=["instructor"]
# minutes: 5
# Sort the lines with the class: which are about the data (folders, sizes), which about the model, which about the
# schedule? Nothing is about the number of GPUs. That is this lesson's thread: it must not matter.

# %% [markdown]
# ## The problem: time
#
# A run's length is counted in *image visits*: iterations times batch size. How long they take depends on the slower
# of two: the GPU, which computes, and the processes on the CPU that read, decode and resize (the loader). First the
# arithmetic. The GPU's speed is a guess in the first line: put yours there.

# %% tags=["demo"]
import tempfile
import time
from pathlib import Path

import torch

from condinst_edu.bench_loader import MASK_STRIDE, MAX_SIZE, visit_all, write_synthetic
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.transforms import TrainTransform
from condinst_edu.teach.tiny import read_card

torch.set_num_threads(1)
work = Path((keep := tempfile.TemporaryDirectory()).name)  # until the kernel ends

visits = {name: r.iterations * r.batch_size for name, r in (("tiny", tiny), ("coco", coco))}
pixels = {"tiny": 128 * 128, "coco": 720 * 960}  # 480x640 at the mean short side
factor = visits["coco"] * pixels["coco"] / (visits["tiny"] * pixels["tiny"])
seconds = read_card("condinst")["seconds"]
print(f"visits: {visits}; {factor:.0f} times the pixels")
print(f"the tiny model took {seconds / 60:.1f} minutes; at its speed: {seconds * factor / 86400:.0f} days")
write_synthetic(work / "photos", 30)  # JPEG files of COCO's size, 7 polygons each
photos = CocoDataset(work / "photos/images", work / "photos/instances.json", outlines=True)
begin = time.perf_counter()
visit_all(photos, TrainTransform(coco.short_sides, MAX_SIZE, 0.5, mask_stride=MASK_STRIDE))
loads = len(photos) / (time.perf_counter() - begin)  # images a second, one core
for rate in (10, 30, 100):  # images a second that one GPU learns from: a guess
    hours = visits["coco"] / rate / 3600
    print(f"{rate:3} images/s: {hours:5.1f} GPU hours, {hours / 8:4.1f} h on eight; ", end="")
    print(f"a GPU eats what {rate / loads:.1f} cores load (each {loads:.0f} images/s, here and now)")

# %% [markdown]
# Cores that load are cheap, but there have to be enough of them: with too few, a GPU that costs a hundred times as
# much waits. `workers` is their number for each process. Your GPU's own rate, and the run itself (not run here: both
# need a GPU, the second also COCO):
#
# ```
# condinst-edu bench training --device cuda --size 800 1333 --batch 16
# condinst-edu data coco --root data/coco
# torchrun --nproc-per-node 8 -m condinst_edu.cli train coco-condinst-r50-1x --device cuda --amp bf16
# ```

# %% [markdown] tags=["instructor"]
# minutes: 6
# Misconception: "a faster GPU makes training faster". Only until the loader is the slower of the two; look at the
# GPU's utilisation before buying one.

# %% [markdown]
# ## The idea: one batch, many processes
#
# In data parallel training each of $R$ processes has a GPU, a copy of the model and a *share* of every batch. After
# the backward pass gradients are averaged, so all copies take the same step. It should be the very step that one
# process with the whole batch would take. Two things decide whether it is.
#
# **Who gets which image.** Number all visits of a run from 0. Iteration $i$ has the visits $iB$ to $iB + B - 1$, and
# visit $p$ is entry $p \bmod n$ of the order of epoch $\lfloor p / n \rfloor$. Nobody has to be asked: every process
# knows its share from the seed, and a run that goes on at iteration $i$ needs no state of the loader.
#
# **What losses are divided by.** One process has $L = S / N$: a sum $S$ over its $N$ positive locations. Process $r$
# has $S_r$ and $n_r$. The average of gradients is the gradient of the average, so each must use
#
# $$L_r = \frac{S_r}{N / R}, \qquad \frac{1}{R} \sum_r L_r = \frac{\sum_r S_r}{N} = L, \qquad N = \sum_r n_r.$$
#
# $N$ is known after one exchange of a number (`layers.losses.normaliser`).

# %%
from condinst_edu.datasets.batching import batch_indices, epoch_order
from condinst_edu.teach import DEVIATIONS, check, same_as

length, batch, iteration = 14, 4, 3  # the batch straddles two epochs
whole = [epoch_order(p // length, length, seed=0)[p % length] for p in range(12, 16)]
for world in (1, 2, 4):
    shares = [batch_indices(iteration, batch, length, 0, rank, world) for rank in range(world)]
    same_as([int(i) for i in whole], sum(shares, []), name=f"the shares of {world}: {shares}")

sums, counts = torch.tensor([60.0, 2.0, 0.0]), torch.tensor([30.0, 1.0, 0.0])  # of three processes
one = sums.sum() / counts.sum()
print(f"\none process alone: {one:.3f}")
print(f"mean of S_r / (N / R): {(sums / (counts.sum() / 3)).mean():.3f}")
print(f"mean of S_r / n_r: {(sums / counts.clamp(min=1)).mean():.3f}")

# %% [markdown]
# **Now two real processes.** The cell starts `torchrun`, which starts two processes; these find each other and
# exchange gradients through gloo (on GPUs it is NCCL). Each takes half of a batch of four images, of which the second
# process gets the poorer half, and one image has no object at all. Batch norms keep their statistics.

# %% tags=["demo"]
from condinst_edu.teach.two_processes import KINDS, one_step, start_two

printed, two = start_two(work)
print(printed)
one = {kind: one_step(kind) for kind in KINDS}  # the whole batch, in this process
gradients = {}
for kind in KINDS:
    print(kind)
    for name, value in one[kind][0].items():
        parts = [results[kind][0][name] for results in two]
        print(f"  {name:16} one {value:.6f}   mean of two {sum(parts) / 2:.6f}", end="")
        print(f"   ({parts[0]:.3f} and {parts[1]:.3f})")
    gradients[kind] = one[kind][1], two[0][kind][1]
    a, b = gradients[kind]
    print(f"  gradients differ by {(a - b).norm() / a.norm():.1e} of their length")
same_as(two[0][KINDS[0]][1], one[KINDS[0]][1], name="one process with the whole batch")

# %% [markdown] tags=["instructor"]
# minutes: 10
# The numbers in brackets are not losses of "half a batch" that one could compare: they are shares. Ask what a process
# without any object reports (0, and it must still take part in the exchange: otherwise the others wait for ever).

# %% [markdown]
# ## Break it
#
# The second and third kinds of the table above, drawn: each dot is one of the model's parameters, its gradient in one
# process against two. On the diagonal they agree.

# %% tags=["demo"]
from condinst_edu.teach import pictures as pic

figure, axes = pic.new_figure(1, 3, 2.9, 2.9)
for ax, (kind, (a, b)) in zip(axes, gradients.items(), strict=True):
    some = a.abs().argsort(descending=True)[:20000:10]
    reach = float(a[some].abs().max())
    ax.axline((0, 0), slope=1, color="0.7", linewidth=1)
    ax.scatter(a[some], b[some], s=3)
    ax.set(title=kind, xlim=(-reach, reach), ylim=(-reach, reach), xlabel="one process")
axes[0].set_ylabel("two processes")
print("own count:", DEVIATIONS["divide-by-own"].line)
figure

# %% [markdown]
# **Its own count**: nothing crashes, and the loss looks plausible. But the lone object of the second process weighs
# as much as all twelve of the first. **Its own batch norm**: statistics of two images are not those of four. With two
# large images on a GPU they are poor as well; hence batch norms that are fixed (the paper's ResNets), group norm
# (the heads) or SyncBN, which exchanges statistics (`sync_bn=True`, needs GPUs).
#
# **Parts in time instead of space.** Where a batch does not fit, `accumulate=2` takes it in two parts and adds up
# gradients. The same question comes back: what does a part divide by? The positives of later parts are not known yet,
# so each divides by its own. Here is what that costs on our uneven batch:

# %%
from condinst_edu.engine.train import step
from condinst_edu.teach.tiny import load_tiny
from condinst_edu.teach.two_processes import global_batch

images, targets = global_batch()
model = load_tiny("condinst").model.train()
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.eval()
found = {}
for parts in (1, 2):
    step(model, torch.optim.SGD(model.parameters(), lr=0.0), 0.0, images, targets, accumulate=parts)
    found[parts] = torch.cat([p.grad.flatten() for p in model.parameters()])
    error = (found[parts] - gradients[KINDS[0]][0]).norm() / gradients[KINDS[0]][0].norm()
    print(f"{parts} part(s): gradients differ by {error:.1e} of their length")

# %% [markdown] tags=["instructor"]
# minutes: 8
# Ask why one accepts in accumulation what one repairs between processes. (It could be repaired: count first, then
# compute. With many images in a part the counts are nearly equal, and the difference is small.)

# %% [markdown]
# ## The learning rate
#
# A run begins with large, useless gradients, so the rate rises slowly (*warm-up*); it ends with small steps, so the
# rate falls: by a tenth at *milestones* (the paper), along half a *cosine* (our tiny models), or as a power of what is
# left (*poly*). All are functions of the iteration alone: no state.
#
# **Linear scaling.** The recipe's rate belongs to its batch. With SGD, a batch $k$ times as large takes $k$ times the
# rate and $1/k$ of the iterations: one large step then moves about as far as $k$ small ones. On the right a toy
# shows it: noisy descent from 1 to 0, over *visits*.

# %% tags=["demo"]
from dataclasses import replace

from condinst_edu.engine.schedule import rate_factor


def descend(size, rate, total=3200):
    """Distance from the goal after every 64 visits; each visit's gradient has noise."""
    noise, x, way = torch.randn(total, generator=torch.Generator().manual_seed(0)), 1.0, []
    for i in range(0, total, size):
        x -= rate * (x + float(noise[i : i + size].mean()))
        way += [x] if (i + size) % 64 == 0 else []
    return way


figure, (left, right) = pic.new_figure(1, 2, 4.2, 3)
for name in ("step", "cosine", "poly"):
    at = range(0, coco.iterations, 200)
    shown = replace(coco, schedule=name, warmup=0.05)  # a longer warm-up, to be seen
    left.plot(at, [coco.lr * rate_factor(shown, i) for i in at], label=name)
left.set(xlabel="iteration", ylabel="learning rate")
for size, rate in ((16, 0.02), (64, 0.08), (64, 0.02), (4, 0.02)):
    right.plot(range(64, 3201, 64), descend(size, rate), label=f"batch {size}, rate {rate}")
right.set(xlabel="visits", ylabel="distance")
for ax in (left, right):
    ax.legend(fontsize=8)
for gpus, each in ((8, 2), (1, 4), (4, 16)):
    k = gpus * each / coco.batch_size
    print(f"{gpus} GPUs, {each} images each: --batch-size {gpus * each}", end=" ")
    print(f"--lr {coco.lr * k:g} --iterations {coco.iterations / k:.0f}")
figure

# %% [markdown] tags=["instructor"]
# minutes: 7
# The curves of (16, 0.02) and (64, 0.08) lie on each other; the batch of 64 with the old rate lags behind, the batch
# of 4 with it is fast and noisy. The rule ends somewhere: a rate of 2 would make the toy diverge. For Adam people
# often take the root instead.

# %% [markdown]
# ## Half precision
#
# `amp="bf16"` runs what is expensive in 16 bits: on a GPU convolutions get several times faster, and feature maps
# take half the memory. float16 keeps 11 significant bits but ends at 65504; bfloat16 has float32's range and only 8
# bits. Autocast chooses by operation. What comes out of which kind of layer:

# %% tags=["demo"]
kinds = {}


def note(module, inputs, output):
    """A forward hook: which type a layer gives."""
    kinds.setdefault(type(module).__name__, output.dtype)


leaves = [m for m in model.modules() if not list(m.children())]
hooks = [m.register_forward_hook(note) for m in leaves]
with torch.autocast("cpu", torch.bfloat16):
    losses = model(images, targets)
[hook.remove() for hook in hooks]
sum(losses.values()).backward()
exact = {name: float(loss.detach()) for name, loss in model(images, targets).items()}
kinds |= {name: loss.dtype for name, loss in losses.items()}
kinds["weights"], kinds["their gradients"] = ({x.dtype for x in xs} for xs in (
    model.parameters(), (p.grad for p in model.parameters())))
for name, kind in kinds.items():
    beside = f"{losses[name].detach():9.5f}, in float32 {exact[name]:.5f}" if name in exact else ""
    print(f"{name:16} {kind} {beside}")

# %% [markdown]
# Weights, gradients and losses stay in float32, and so does the dynamic mask head: coordinates need the bits. The
# rest of a loss is sums, and sums are where few bits hurt. Adding 1 three thousand times; and a mass centre (the sum
# of the pixel numbers over the area) of an object in a 800 x 1333 image:

# %%
for kind in (torch.float32, torch.bfloat16, torch.float16):
    total = torch.zeros((), dtype=kind)
    for _ in range(3000):
        total += 1
    columns, ones = torch.arange(600, 1003, dtype=kind), torch.ones(403, dtype=kind)
    print(f"{kind}: {total:.0f}; middle of the columns 600 to 1002: {(ones @ columns) / 403:.2f}")

# %% [markdown]
# In float16 small *gradients* are the trouble: below $2^{-24}$ there is nothing. The cure is to multiply the loss by a
# large number before the backward pass, and to divide the gradients of the weights, which are float32, afterwards
# (`GradScaler`; it halves the number and skips the step where something overflows). How much of our model's
# gradients, at the outputs of its convolutions, would be lost:

# %% tags=["demo"]
sizes = []


def keep_size(module, inputs, output):
    """A forward hook: note how large the gradient at this output is."""
    output.register_hook(lambda gradient: sizes.append(gradient[gradient != 0].abs().flatten()))


hooks = [m.register_forward_hook(keep_size) for m in leaves if isinstance(m, torch.nn.Conv2d)]
sum(model(images, targets).values()).backward()
[hook.remove() for hook in hooks]
sizes = torch.cat(sizes)
figure, (ax,) = pic.new_figure(1, 1, 6.5, 2.6)
for scale in (1, 2**16):
    ax.hist((sizes * scale).log2(), bins=80, range=(-40, 16), alpha=0.6, label=f"loss times {scale}")
    lost = float(((sizes * scale).half() == 0).float().mean())
    print(f"loss times {scale:5}: {lost:6.1%} of the gradients are 0 in float16")
ax.axvspan(-40, -25, color="0.85", label="0 in float16")
ax.set(xlabel="log2 of a gradient's size", ylabel="how many")
ax.legend(fontsize=8)
figure

# %% [markdown] tags=["instructor"]
# minutes: 8
# Misconception: "bf16 is float16 with more range, so it is better". It has three bits fewer: counting stops at 256.
# It needs no loss scaling, which is why it is the default wherever the GPU has it.

# %% [markdown]
# ## Look inside: a profile
#
# Where does a training step spend its time? `torch.profiler` writes down every operation. Read the table from the
# top: *self* is the operation's own time, without what it calls.
#
# On a GPU there is a second question. Python only *orders* work there, and runs ahead; wherever it needs a number
# back (`.item()`, `float(loss)`, `if x.any()`, `nonzero`, whose result has a size that depends on the data), it waits
# until the GPU has caught up, and then the GPU waits for Python: a **host synchronisation**. On a CPU nobody waits,
# but the same calls can be counted.

# %% tags=["demo"]
from torch.profiler import ProfilerActivity, profile

optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
step(model, optimizer, 5.0, images, targets)  # warms up
with profile(activities=[ProfilerActivity.CPU]) as whole_step:
    step(model, optimizer, 5.0, images, targets)
rows = sorted(whole_step.key_averages(), key=lambda row: -row.self_cpu_time_total)
total = sum(row.self_cpu_time_total for row in rows)
for row in rows[:5]:
    ms, share = row.self_cpu_time_total / 1000, row.self_cpu_time_total / total
    print(f"{row.key:34} {ms:7.2f} ms {share:6.1%} {row.count:5} calls")


def waits(function):
    """How often a GPU would make Python wait."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        function()
    return {row.key: row.count for row in seen.key_averages() if row.key in ("aten::nonzero", "aten::item")}


labels = torch.zeros(2, 3, dtype=torch.int64)
print("forward pass and losses:", waits(lambda: model(images, targets)))
print("F.one_hot alone:", waits(lambda: torch.nn.functional.one_hot(labels, 6)))
print("with losses printed:", waits(lambda: [float(x.detach()) for x in model(images, targets).values()]))

# %% [markdown]
# `nonzero` finds the positive locations: the one wait of our training step on a GPU (the two of `one_hot` are a check
# of its input that it makes on a CPU only). Printing losses at every step would add one for each, which is why the
# log reads them every `log_every` steps. `condinst-edu bench training --device cuda` counts the waits on a real GPU
# (not run here).

# %% [markdown] tags=["instructor"]
# minutes: 7
# Let the class guess the top operation first. Then: what would a GPU with free convolutions spend its time on?

# %% [markdown]
# ## Killed, and going on
#
# On a large run something will end it: a full queue, a reboot, a bug. `train` writes its whole state (weights,
# optimiser, random numbers, iteration) every `save_every` iterations, to a temporary name that is then renamed, so
# that the file is whole at any moment. The same command goes on. Here a run is killed without warning (SIGKILL) once
# it has written a checkpoint; then it goes on, and is compared with one that nothing disturbed.

# %% tags=["demo"]
import os
import subprocess
import sys

from condinst_edu.engine.train import train
from condinst_edu.teach.tiny import ROOT

short = replace(tiny, data=ROOT / "data/shapes", iterations=24, batch_size=2, save_every=4)
options = f"--data {short.data} --out {work / 'killed'} --iterations 24 --batch-size 2 --save-every 4"
command = [sys.executable, "-m", "condinst_edu.cli", "train", "shapes-condinst", *options.split()]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)
while child.poll() is None and not (work / "killed/last.pt").exists():
    time.sleep(0.005)
child.kill()
print(f"ended by signal {-child.wait()}; iteration", end=" ")
print(f"{torch.load(work / 'killed/last.pt')['iteration']} of 24 is in the checkpoint")
resumed = train(short, work / "killed", show_progress=False).state_dict()
undisturbed = train(short, work / "whole", show_progress=False).state_dict()
equal = [torch.equal(resumed[name], undisturbed[name]) for name in resumed]
print(f"{sum(equal)} of {len(equal)} tensors are the same to the last bit")

# %% [markdown] tags=["instructor"]
# minutes: 5
# What would break it? A data loader with a state, a seed from the clock, a schedule by time. And a checkpoint that is
# written in place: killed while writing, it leaves nothing.

# %% [markdown]
# ## Does it learn? Your own classes
#
# Most people do not train on COCO: they begin with weights that somebody else trained there. The classifier is the
# one layer that depends on the list of classes; it starts anew, and everything else is kept. With the authors'
# weights (not run here: they are fetched from the network):
#
# ```
# condinst-edu train folder-condinst --start official:CondInst_MS_R_50_1x --data photos --out runs/photos
# ```
#
# In Python it is `load_official("CondInst_MS_R_50_1x", num_classes=3)`. The same mechanism with this lesson's tiny
# checkpoint: it knows five *shapes*; the new folder has 60 images whose classes are three *colours*. A few seconds of
# training from the checkpoint, and from random weights.

# %% tags=["demo"]
import json

from condinst_edu.engine.evaluate import evaluate
from condinst_edu.engine.train import open_split
from condinst_edu.teach.colours import write_colours
from condinst_edu.teach.tiny import tiny_folder

write_colours(work / "colours")
new = replace(tiny, data=work / "colours", iterations=80, batch_size=4, lr=2e-3, log_every=4)
val = open_split(new, "val")
checkpoint = os.path.relpath(tiny_folder() / "condinst.safetensors")
trained, curves = {}, {}
for name, start in (("from the checkpoint", checkpoint), ("from random weights", None)):
    out = work / name
    trained[name] = train(replace(new, start=start), out, show_progress=False)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for loss in ("class", "mask"):
        curves[f"{loss}, {name}"] = torch.tensor([line[loss] for line in lines])
at = [line["iteration"] for line in lines]
pic.show_curves(curves, "iteration", "loss", at=at)

# %%
from condinst_edu.engine.recipe import build_model
from condinst_edu.official import begin_with

begun = build_model(new.model, len(val.class_names), new.model_args).eval()
begin_with(begun, checkpoint, val.class_names)
old, start = load_tiny("condinst").model.state_dict(), begun.state_dict()
kept = [name for name in old if torch.equal(old[name], start[name])]
print(f"{len(kept)} of {len(old)} tensors kept; classes: {', '.join(val.class_names)}")
panels = {}
image = val[4][0] / 255
for name, network in {"not trained yet": begun, **trained}.items():
    scores = evaluate(network, val, progress=False)
    with torch.no_grad():
        found = network.eval()([image])[0]
    panels[name] = image, {key: value[found["scores"] > 0.3] for key, value in found.items()}
    print(f"{name:20} mask AP {100 * scores['mask']['AP']:4.1f}, box AP {100 * scores['box']['AP']:4.1f}")
pic.show_panels(panels, val.class_names)

# %% [markdown] tags=["instructor"]
# minutes: 7
# The mask loss starts where the checkpoint left it: boxes and masks know nothing of classes. What is learned anew is
# the classifier. Ask why the class loss is the higher one at first (a new classifier says "background" everywhere).

# %% [markdown]
# ## Paper and miniature
#
# The paper does the same on Cityscapes, a small set of streets: with and without weights from COCO
# (`condinst:table-8`). And its longer schedule on COCO (`condinst:table-6`): three times the visits.

# %% tags=["demo"]
from condinst_edu import papers

for start in ("train", "train+COCO"):
    (row,) = papers.table("condinst:table-8").find(method="CondInst", data=start)
    print(f"Cityscapes, {start:12} AP {row['AP']}")
for length in ("1x", "3x"):
    where = {"method": "CondInst", "backbone": "R-50-FPN", "augmented": True, "schedule": length}
    (row,) = papers.table("condinst:table-6").find(**where)
    print(f"COCO, {length} {'':15} AP {row['AP']}")

# %% [markdown] tags=["instructor"]
# minutes: 3
# The gap in our miniature is far larger than the paper's: seconds of training against hours, and a checkpoint that
# has seen nearly the same pictures. Ask what would happen with photographs.

# %% [markdown]
# ## Exercises

# %% [markdown] tags=["exercise"]
# 10-share
# Write `share(iteration, batch_size, length, seed, rank, world)`: the images, as a list of indices, that process
# `rank` of `world` gets in an iteration (from 0). `batch_size` counts the images of all processes; the process gets
# block number `rank` of `world` equal ones. `epoch_order(epoch, length, seed)` gives an epoch's permutation.


# %% tags=["stub"]
def share(iteration, batch_size, length, seed, rank, world):
    """Indices of the images, batch_size // world of them."""
    raise NotImplementedError


# %% tags=["solution"]
def share(iteration, batch_size, length, seed, rank, world):
    each = batch_size // world
    first = iteration * batch_size + rank * each
    visits = range(first, first + each)
    return [int(epoch_order(p // length, length, seed)[p % length]) for p in visits]


# %% tags=["check"]
check("10-share", share)

# %% [markdown] tags=["exercise"]
# 10-normalisers
# Write `normalisers(counts, least)`: what each of R processes divides its sums by. counts (K, R): of K losses in R
# processes (class, box and mask losses count different things). All processes together count as at least `least`.
# Returns (K, R).


# %% tags=["stub"]
def normalisers(counts, least):
    """What to divide by (K, R), so that the mean over processes is what one process would have."""
    raise NotImplementedError


# %% tags=["solution"]
def normalisers(counts, least):
    total = counts.sum(dim=1).clamp(min=least)  # (K,)
    world = counts.shape[1]
    return torch.stack([total / world] * world, dim=1)


# %% tags=["check"]
check("10-normalisers", normalisers)

# %% [markdown] tags=["exercise"]
# 10-rates
# Write `rates(lr, iterations, warmup, factor, milestones, batch_size)`: the learning rate at every iteration, (T,)
# float64. `lr` is the peak for 16 images: scale it to the batch. It rises linearly, from `factor` times the peak at
# iteration 0 to the peak at iteration `warmup`, and is divided by 10 at each milestone (an iteration, which has the
# lower rate already).


# %% tags=["stub"]
def rates(lr, iterations, warmup, factor, milestones, batch_size):
    """The learning rate at iterations 0 to iterations - 1."""
    raise NotImplementedError


# %% tags=["solution"]
def rates(lr, iterations, warmup, factor, milestones, batch_size):
    found = []
    for i in range(iterations):
        rate = lr * batch_size / 16
        if i < warmup:
            rate *= factor + (1 - factor) * i / warmup
        found.append(rate * 0.1 ** sum(i >= m for m in milestones))
    return torch.tensor(found, dtype=torch.float64)


# %% tags=["check"]
check("10-rates", rates)

# %% [markdown]
# ## What the paper says and what the code does
#
# 1. **The schedule.** The paper gives 90 000 iterations of 16 images, a rate of 0.01 and two steps. It does not
#    mention the warm-up, which is the official code's: 1000 iterations from a thousandth of the rate.
# 2. **"Shorter sides in [640, 800]"** are six sizes in steps of 32, not an interval.
# 3. **Weight decay** is not said to leave out anything; normalisation layers are left out, as in the official code.
# 4. **Positives of all GPUs**: not in the papers, and in the official code. Our two processes above are its check.

# %%
from condinst_edu.engine.schedule import build_optimizer

steps = [round(m * coco.iterations) for m in coco.milestones]
ramp = round(coco.warmup * coco.iterations)
print(f"1. {coco.iterations} x {coco.batch_size} images, rate {coco.lr}, steps at {steps};", end=" ")
print(f"warm-up of {ramp} from {coco.lr * rate_factor(coco, 0):g}")
print(f"2. {coco.short_sides}")
groups = build_optimizer(model, coco).param_groups
print("3.", {g["weight_decay"]: f"{len(g['params'])} tensors" for g in groups})

# %% [markdown]
# ## Three lines
#
# - A recipe is data and the loop is one: what scales is who gets which images and what losses are divided by.
# - Few bits are fine for products and bad for sums; waits and loaders, not arithmetic, are what a profile finds.
# - Save whole, go on exactly; and begin with other people's weights wherever you can.
