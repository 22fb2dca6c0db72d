"""What tests/test_distributed.py starts in several processes: `python distributed_job.py WHAT FOLDER [...]`.

The environment says which process it is, as torchrun's does.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from helpers import empty_target, random_targets, seeded, tiny_condinst, tiny_fcos
from test_engine import tiny_recipe
from torch import Tensor, nn

from condinst_edu.engine.distributed import join_processes, rank, share_gradients, world
from condinst_edu.engine.evaluate import evaluate
from condinst_edu.engine.recipe import override_model
from condinst_edu.engine.train import open_split, step, train
from condinst_edu.errors import UserError
from condinst_edu.teach.tiny import load_tiny

SIZE = (96, 128)
# Objects of a batch's images, of which two processes take four each.
COUNTS = {"unequal": (0, 0, 5, 2, 9, 1, 0, 0), "none": (1, 9, 2, 5, 0, 0, 0, 0), "nowhere": (0,) * 8}


def tiny_model(name: str) -> nn.Module:
    """Without batch norms that train: their statistics are of a process's own images."""
    torch.manual_seed(0)
    model: nn.Module
    if name == "fcos":  # the finest level has no head
        model = tiny_fcos(levels=(2, 3, 4, 5), head_from=3, ranges=(32, 64))
    elif name == "condinst":
        model = tiny_condinst(semantic=True)
    else:  # the bottom branch and the head leave a level between them
        model = tiny_condinst(levels=(2, 3, 4, 5), head_from=4, ranges=(64,), bottom={"num_levels": 1})
    for module in model.modules():
        for key, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, key, nn.GroupNorm(4, child.num_features))
    return model.train()


def tiny_batch(objects: str) -> tuple[list[Tensor], list[dict[str, Any]]]:
    counts = COUNTS[objects]
    images = [torch.rand(3, *SIZE, generator=seeded(i)) for i in range(len(counts))]
    targets = [random_targets(n, SIZE, seeded(10 + i)) if n else empty_target(SIZE) for i, n in enumerate(counts)]
    return images, targets


def one_step(name: str, objects: str, accumulate: int) -> dict[str, Any]:
    """Losses (the mean over the processes) and gradients of one step, in which nothing is left without gradient."""
    model = tiny_model(name)
    images, targets = tiny_batch(objects)
    share = slice(rank() * len(images) // world(), (rank() + 1) * len(images) // world())
    runner = share_gradients(model, "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = step(runner, optimizer, 0.0, images[share], targets[share], accumulate)
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    runner(images[share], targets[share])  # which fails where a parameter had no gradient in some process
    table = torch.stack(list(losses.values()))
    if world() > 1:
        torch.distributed.all_reduce(table)
    return {"losses": dict(zip(losses, table / world(), strict=True)), "gradients": gradients}


def main(what: str, folder: Path, *arguments: str) -> None:
    torch.set_num_threads(1)
    with join_processes("cpu") as device:
        if what == "compare":
            scores = evaluate(load_tiny("condinst").model, open_split(tiny_recipe(), "val").first(9), progress=False)
            (folder / f"scores-{world()}-{rank()}.json").write_text(json.dumps(scores))
            results = {" ".join(case): one_step(case[0], case[1], int(case[2])) for case in CASES}
            if rank() == 0:
                torch.save(results, folder / f"steps-{world()}.pt")
        else:
            changes = json.loads(arguments[0])
            end, number = changes.pop("end", (None, None))  # after which iteration process 1 gets which signal

            def on_step(done: int, model: nn.Module) -> None:
                if done == end and rank() == 1:
                    os.kill(os.getpid(), number)

            recipe = override_model(tiny_recipe(), (f"sampling={changes.pop('sampling', 'score')}",))
            train(dataclasses.replace(recipe, **changes), folder, device, on_step)


CASES = [
    (name, objects, accumulate)
    for name in ("fcos", "condinst", "gap")
    for objects, accumulate in (("unequal", "1"), ("unequal", "2"), ("none", "1"), ("nowhere", "1"))
]

if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
    except UserError as error:
        print(f"condinst-edu: {error}", file=sys.stderr)
        sys.exit(2)
