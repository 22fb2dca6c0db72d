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
from distributed_job import CASES
from test_engine import SAMPLE

from condinst_edu.engine.checkpoint import load_model
from condinst_edu.engine.evaluate import evaluate
from condinst_edu.engine.train import open_split

from test_engine import tiny_recipe  # isort: skip

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
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Losses and gradients of all cases, of one process and of two."""
    folder = tmp_path_factory.mktemp("steps")
    for world in (1, 2):
        statuses, written = finish(start("steps", folder, world=world))
        assert statuses == [0] * world, written
    return [torch.load(folder / f"steps-{world}.pt") for world in (1, 2)]


@pytest.mark.parametrize("case", map(" ".join, CASES))
def test_two_processes_are_as_one(steps: list[dict[str, Any]], case: str) -> None:
    """Losses and gradients with as many objects in each process as chance has it, with one that has none, with none.

    The job itself finds that every parameter gets a gradient, and that a second step goes through.
    """
    one, two = (results[case] for results in steps)
    assert one["losses"].keys() == two["losses"].keys()
    for kind in ("losses", "gradients"):
        for name, value in one[kind].items():
            torch.testing.assert_close(two[kind][name], value, rtol=1e-5, atol=1e-5, msg=f"{kind} {name}")
    assert any(gradient.abs().max() > 1e-3 for gradient in one["gradients"].values())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbs; random draws, loader processes, evaluations."""
    folder = tmp_path_factory.mktemp("whole")
    statuses, written = run_training(folder, eval_every=4)
    assert statuses == [0, 0], written
    return folder


def test_a_killed_process_ends_the_other_and_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    """Killed, then asked to stop, then left alone: the weights are those of the undisturbed run."""
    begin = time.monotonic()
    statuses, written = run_training(tmp_path, eval_every=4, end=(3, signal.SIGKILL))
    assert time.monotonic() - begin < 60
    assert statuses == [2, -signal.SIGKILL]
    assert "process 0 of 2 stops: another one has ended or cannot be reached" in written[0]
    assert "Traceback" not in written[0]

    statuses, written = run_training(tmp_path, eval_every=4, end=(5, signal.SIGTERM))  # to one of the two
    assert statuses == [143, 143]
    assert "stopped by SIGTERM after iteration 6" in written[0]
    assert torch.load(tmp_path / "last.pt")["iteration"] == 6

    statuses, written = run_training(tmp_path, eval_every=4)
    assert statuses == [0, 0], written
    for name in ("model.safetensors", "best.safetensors", "log.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name


def test_evaluation_in_two_processes_is_as_in_one(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    logged = {line["iteration"]: line["mask_AP"] for line in lines if "mask_AP" in line}
    assert logged.keys() == {4, 8}
    held_out = open_split(tiny_recipe(), "val")
    last = evaluate(load_model(whole / "model.safetensors").model, held_out, progress=False)
    assert last["mask"]["AP"] == logged[8]
    best = evaluate(load_model(whole / "best.safetensors").model, held_out, progress=False)
    assert best["mask"]["AP"] == max(logged.values())


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
