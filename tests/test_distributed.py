"""Training in two processes on the CPU (gloo) against one with the same batch, and what happens when one is ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_job import CASES, SIZE
from helpers import empty_target, random_targets, seeded
from test_engine import SAMPLE
from torch import Tensor, nn

from condinst_edu.engine.recipe import build_model
from condinst_edu.recipes import get_recipe

JOB = Path(__file__).with_name("distributed_job.py")


def start(what: str, folder: Path, *arguments: str, world: int = 2) -> list[subprocess.Popen[str]]:
    """The job's processes, with the environment that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parent.parent)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    return [
        subprocess.Popen(
            [sys.executable, str(JOB), what, str(folder), *arguments],
            env={**base, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else base,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen[str]], seconds: float = 120) -> tuple[list[int], list[str]]:
    """Exit statuses and what was written to stderr."""
    try:
        written = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], written


def run_training(folder: Path, **changes: Any) -> tuple[list[int], list[str]]:
    return finish(start("train", folder, json.dumps({"iterations": 8, "batch_size": 4, **changes})))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Losses, gradients and scores of one process and of two."""
    folder = tmp_path_factory.mktemp("compared")
    statuses, written = finish([*start("compare", folder, world=1), *start("compare", folder, world=2)])
    assert statuses == [0, 0, 0], written
    return folder


@pytest.mark.parametrize("case", [" ".join(case) for case in CASES])
def test_two_processes_are_as_one(compared: Path, case: str) -> None:
    """Losses and gradients with as many objects in each process as chance has it, with one that has none, with none.

    The job itself finds that every parameter gets a gradient, and that a second forward pass goes through.
    """
    one, two = (torch.load(compared / f"steps-{world}.pt")[case] for world in (1, 2))
    assert one["losses"].keys() == two["losses"].keys()
    for kind in ("losses", "gradients"):
        for name, value in one[kind].items():
            torch.testing.assert_close(two[kind][name], value, rtol=1e-5, atol=1e-5, msg=f"{kind} {name}")
    assert any(gradient.abs().max() > 1e-3 for gradient in one["gradients"].values())


MODELS = ("fcos", "condinst", "blendmask", "dr1mask", "solo", "decoupled-solo", "panoptic-condinst", "panoptic-dr1mask")


@pytest.mark.parametrize("name", MODELS)
def test_shares_of_a_batch_have_the_losses_of_all_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model, without starting processes: each share tells what it adds up, then runs again with the sums."""
    recipe = get_recipe(f"shapes-{name}")
    torch.manual_seed(0)
    panoptic = name.startswith("panoptic")
    model = build_model(recipe.model, 9 if panoptic else 5, recipe.model_args).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # with statistics that no share changes
            module.eval()
    images = [torch.rand(3, *SIZE, generator=seeded(i), dtype=torch.float64) for i in range(4)]
    targets = [random_targets(n, SIZE, seeded(n)) if n else empty_target(SIZE) for n in (0, 5, 2, 9)]

    def run(number: int, others: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """A share's losses and what it adds up, to each of which the other share's is added."""
        told: list[Tensor] = []

        def all_reduce(count: Tensor) -> None:
            told.append(count.clone())
            if others:
                count += others[len(told) - 1]

        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
        half = slice(2 * number, 2 * number + 2)
        return model(images[half], targets[half]), told

    whole = model(images, targets)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    told = [run(number, [])[1] for number in (0, 1)]
    shares = [run(number, told[1 - number])[0] for number in (0, 1)]
    for key, loss in whole.items():
        torch.testing.assert_close((shares[0][key] + shares[1][key]) / 2, loss, rtol=1e-9, atol=1e-12, msg=key)


def test_two_processes_score_as_one(compared: Path) -> None:
    """Nine images: one process has five of them, the other four."""
    one, *two = (json.loads((compared / f"scores-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert one["mask"]["AP"] > 0.3
    assert two == [one, one]


def test_a_killed_process_ends_the_other(tmp_path: Path) -> None:
    begin = time.monotonic()
    statuses, written = run_training(tmp_path, end=(3, signal.SIGKILL))
    assert time.monotonic() - begin < 60
    assert statuses == [2, -signal.SIGKILL]
    assert "process 0 of 2 stops: another one has ended or cannot be reached" in written[0]
    assert "Traceback" not in written[0]
    assert torch.load(tmp_path / "last.pt")["iteration"] == 2


@pytest.mark.slow
def test_killed_stopped_and_resumed(tmp_path: Path) -> None:
    """Killed, then asked to stop, then left alone: files are those of a run that nothing disturbed, to the byte.

    The masks to train are drawn at random, differently in each process; the batch norms of the two differ.
    """
    changes: dict[str, Any] = {"eval_every": 4, "workers": 1, "sampling": "random"}
    for folder, end, expected in (
        ("whole", None, [0, 0]),
        ("other", (3, signal.SIGKILL), [2, -signal.SIGKILL]),
        ("other", (5, signal.SIGTERM), [143, 143]),  # one of the two gets the signal
        ("other", None, [0, 0]),
    ):
        statuses, written = run_training(tmp_path / folder, **changes, **({"end": end} if end else {}))
        assert statuses == expected, written
        if expected == [143, 143]:
            assert "stopped by SIGTERM after iteration 6" in written[0]
            assert torch.load(tmp_path / "other" / "last.pt")["iteration"] == 6
    for name in ("model.safetensors", "best.safetensors", "log.jsonl"):
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    """As where a machine joins or leaves: two processes, then one, then two again."""
    changes = {"iterations": 8, "batch_size": 4, "sampling": "random"}
    for world, end, expected in ((2, 2, 143), (1, None, 0), (2, None, 0)):
        now = {**changes, **({"end": (end, signal.SIGTERM)} if end else {})}
        statuses, written = finish(start("train", tmp_path, json.dumps(now), world=world))
        assert statuses == [expected] * world, written
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [*range(1, 9)]


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """The command of the documentation; a batch that cannot be shared; a process that is killed within it."""

    def command(*options: str) -> list[str]:
        module = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        recipe = ["-m", "condinst_edu.cli", "train", "shapes-condinst", "--data", str(SAMPLE), "--out", str(tmp_path)]
        return [*module, *recipe, *options]

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parent.parent)}
    options: dict[str, Any] = {"env": environment, "text": True, "capture_output": True, "check": False}
    odd = subprocess.run(command("--batch-size", "3"), **options)
    assert odd.returncode != 0
    assert "3 images cannot be shared equally by 2 processes" in odd.stderr
    done = subprocess.run(command("--iterations", "4", "--batch-size", "4", "--log-every", "2"), **options)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "result.json").read_text())) == {"box", "mask"}
    assert done.stdout.count("iteration 4/4") == 1
