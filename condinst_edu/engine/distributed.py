"""One run in several processes, started by torchrun: who we are, how results come together, when all stop.

Every function also works in a single process, where there is nobody to talk to. Numbers on a GPU go through NCCL,
everything else, such as lists and the wish to stop, through gloo: that never waits for a GPU.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from condinst_edu.errors import UserError

TIMEOUT = timedelta(minutes=30)  # longer than one process scores a data set while the others wait


def rank() -> int:
    """The number of this process in the run, from 0; process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[str]:
    """Within the block, be one of the processes that torchrun started, if it did; gives the device of this one.

    device: as the user named it; of "cuda", each process of a machine takes one GPU. Errors: UserError where there are
    fewer GPUs than processes, and where another process has ended.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    if device.startswith("cuda"):
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield device
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise UserError(
            f"process {rank()} of {world()} stops: another one has ended or cannot be reached "
            "(the message of the one that ended first says why; the same command goes on from the last checkpoint)"
        ) from error
    finally:
        dist.destroy_process_group()


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether it is how NCCL or gloo reports that another process does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def share_gradients(model: nn.Module, device: str) -> nn.Module:
    """The module to call in training: gradients are averaged over the processes in its backward pass.

    Buffers (statistics of batch norms) are those of process 0 before every forward pass.
    """
    if world() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.startswith("cuda") else None)


def keep_gradients(runner: nn.Module, here: bool) -> contextlib.AbstractContextManager[None]:
    """Where `here`, gradients of the backward passes within the block are added up in this process alone."""
    return runner.no_sync() if here and isinstance(runner, DistributedDataParallel) else contextlib.nullcontext()


def same_everywhere(model: nn.Module) -> None:
    """Parameters and buffers of process 0 in all processes."""
    if world() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; in every process."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_to_first(value: Any) -> list[Any]:
    """The values of all processes in process 0, where they may need much memory; nothing in the others."""
    values = [value] * world() if rank() == 0 else None
    if world() > 1:
        dist.gather_object(value, values)
    return values or []


def of_first(value: Any) -> Any:
    """Process 0's value."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


class Termination:
    """Listens for SIGTERM, in a `with` block, so that all processes stop after the same iteration.

    The processes ask each other while the step runs; the answer is there when it ends.
    """

    def __init__(self) -> None:
        self.asked = False
        self.agreed = torch.zeros(1, dtype=torch.int32)
        self.pending: Any = None
        self.before: Any = None

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():  # Python handles signals there alone
            self.before = signal.signal(signal.SIGTERM, self.listen)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def listen(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def ask(self) -> None:
        """Begin to ask, at the start of a step."""
        if world() > 1:
            self.agreed.fill_(self.asked)
            self.pending = dist.all_reduce(self.agreed, dist.ReduceOp.MAX, async_op=True)

    def answer(self) -> bool:
        """Whether any process had been asked to stop when the step started (in a single process: by now)."""
        if self.pending is None:
            return self.asked
        self.pending.wait()
        return bool(self.agreed)


def bind_worker(worker: int) -> None:
    """Let a loader process live as long as the process that trains: no shorter, and no longer.

    Signals to the group of processes do not reach it, and where its parent is killed, so is it: it holds copies of the
    parent's connections, and as long as these are open nobody sees that the parent is gone.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    if sys.platform == "linux":
        set_parent_death_signal = 1  # <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def seed_of_rank(seed: int, iteration: int = 0) -> None:
    """Start torch's random numbers so that the processes draw different ones; process 0 goes on as it is."""
    if rank():
        torch.manual_seed(seed + 7919 * (rank() + world() * iteration))


def random_state(device: str) -> list[Tensor]:
    """Of torch's generators, on the CPU and on the GPU that this process uses."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.startswith("cuda") else [])]


def set_random_state(states: list[Tensor], device: str) -> None:
    torch.set_rng_state(states[0])
    if device.startswith("cuda") and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
