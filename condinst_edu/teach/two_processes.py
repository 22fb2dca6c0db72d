"""One training step of the tiny CondInst, shared by the processes that torchrun starts; lesson 10 compares the results.

    torchrun --standalone --nproc-per-node 2 -m condinst_edu.teach.two_processes FOLDER

Process r writes FOLDER/r.pt: {kind: (losses by name, gradient (P,) of all parameters)} for the three `KINDS`.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condinst_edu import condinst, fcos
from condinst_edu.datasets.shapes import ShapesConfig, generate
from condinst_edu.engine.distributed import join_processes, rank, share_gradients, world
from condinst_edu.layers.losses import normaliser
from condinst_edu.teach.tiny import load_tiny

KINDS = ("as the library does it", "each its own count", "each its own batch norm")
OBJECTS = (7, 5, 1, 0)  # in the batch's images, of which the second of two processes gets the poorer half
SIZE = (96, 128)


def global_batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images (3, H, W) in [0, 1] and targets of the whole batch, which every process can draw."""
    samples = [generate(i, seed=10, config=ShapesConfig(size=SIZE, objects=(n, n))) for i, n in enumerate(OBJECTS)]
    images = [torch.from_numpy(sample.image).permute(2, 0, 1) / 255 for sample in samples]
    fields = ("boxes", "labels", "masks")
    return images, [{name: torch.from_numpy(getattr(sample, name)) for name in fields} for sample in samples]


def own_count(count: Tensor, least: float = 1.0) -> Tensor:
    """In the place of `normaliser`: what a process divides by that knows of no other."""
    return count.clamp(min=least)


def one_step(kind: str) -> tuple[dict[str, float], Tensor]:
    """This process's losses, and the gradient (P,) of all parameters, of which all processes get the mean."""
    model = load_tiny("condinst").model.train()
    if kind != "each its own batch norm":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # keeps the statistics that it has
    images, targets = global_batch()
    share = slice(rank() * len(images) // world(), (rank() + 1) * len(images) // world())
    runner = share_gradients(model, "cpu")
    divide_by: Any = own_count if kind == "each its own count" else normaliser
    fcos.normaliser = condinst.normaliser = divide_by
    try:
        losses = runner(images[share], targets[share])
        sum(losses.values()).backward()
    finally:
        fcos.normaliser = condinst.normaliser = normaliser
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {name: float(loss.detach()) for name, loss in losses.items()}, gradient


def start_two(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Start this module in two processes and wait: what they print, and what each of them writes.

    They get the variables that torchrun would set. Errors: RuntimeError with what a process that failed has written.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "condinst_edu.teach.two_processes", str(folder)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env={**os.environ, **place, "RANK": str(r)}, **pipes) for r in range(2)]
    try:
        written = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError("a process failed:\n" + "\n".join(errors for _, errors in written))
    return "".join(printed for printed, _ in written), [torch.load(folder / f"{r}.pt") for r in range(2)]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join_processes("cpu"):
        torch.save({kind: one_step(kind) for kind in KINDS}, folder / f"{rank()}.pt")
        objects = OBJECTS[rank() * len(OBJECTS) // world() : (rank() + 1) * len(OBJECTS) // world()]
        print(f"process {rank()} of {world()}: images with {' and '.join(map(str, objects))} objects", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
