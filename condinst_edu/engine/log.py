"""What a run tells: the losses of its steps, read now and then; a file of JSON lines; a line of text; TensorBoard."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from condinst_edu.engine.distributed import gather
from condinst_edu.engine.recipe import Recipe
from condinst_edu.errors import UserError
from condinst_edu.files import cannot_write, whole_file


class LossRecord:
    """Losses of the steps since the last reading, and which images they are of.

    They stay on the device: that a step has gone wrong is noticed later, but the step and its images are known.
    """

    def __init__(self) -> None:
        self.iterations: list[int] = []
        self.losses: list[dict[str, Tensor]] = []
        self.images: list[list[int]] = []

    def add(self, iteration: int, losses: dict[str, Tensor], targets: list[dict[str, Any]]) -> None:
        self.iterations.append(iteration)
        self.losses.append(losses)
        self.images.append([target["image_id"] for target in targets])

    def read(self) -> dict[str, float]:
        """Losses of the last step, the mean over all processes; empties the record.

        Errors: UserError names the first step with a loss that is no number, and its images in that process.
        """
        names = list(self.losses[-1])
        table = torch.stack([torch.stack([loss.float() for loss in losses.values()]) for losses in self.losses])
        tables = gather((table.tolist(), self.images))  # one copy from the device
        for i, iteration in enumerate(self.iterations):
            for rows, images in tables:
                if not all(map(math.isfinite, rows[i])):
                    values = dict(zip(names, rows[i], strict=True))
                    raise UserError(
                        f"the loss is no longer a number at iteration {iteration} (images {images[i]}): {values}"
                    )
        self.__init__()  # type: ignore[misc]
        last = zip(*(rows[-1] for rows, _ in tables), strict=True)
        return {name: sum(values) / len(tables) for name, values in zip(names, last, strict=True)}


class Log:
    """JSON lines of a run; when it goes on from an iteration, lines after that one are dropped.

    console: where a line of text goes for each, if it is no terminal (there a bar tells the same).
    """

    def __init__(self, out: Path, start: int, recipe: Recipe, console: Console | None = None) -> None:
        self.path = out / "log.jsonl"
        self.recipe, self.console = recipe, console
        self.last = (start, time.monotonic())
        lines = self.path.read_text(errors="replace").splitlines() if self.path.is_file() and start else []
        kept = [line for line in lines if 0 <= self.iteration(line) <= start]
        with whole_file(self.path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self.board = open_board(out / "tensorboard", start) if recipe.tensorboard else None

    @staticmethod
    def iteration(line: str) -> int:
        """The iteration that a line is of; -1 for one that is cut off."""
        try:
            return int(json.loads(line)["iteration"])
        except (ValueError, TypeError, KeyError):
            return -1

    def write(self, values: dict[str, float]) -> None:
        """values: numbers by name, "iteration" among them."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from None
        if self.board is not None:
            for name, value in values.items():
                if name != "iteration":
                    self.board.add_scalar(name, value, values["iteration"])
            self.board.flush()
        if self.console is not None and not (self.console.is_terminal or self.console.is_jupyter):
            self.console.print(self.line(values), soft_wrap=True, highlight=False, markup=False)

    def line(self, values: dict[str, float]) -> str:
        """`values`, seconds per iteration, the time left and a GPU's memory as a line of text."""
        iteration = int(values["iteration"])
        before, then = self.last
        self.last = (iteration, time.monotonic())
        text = f"iteration {iteration}/{self.recipe.iterations}"
        text += "".join(f"  {name} {value:.4g}" for name, value in values.items() if name != "iteration")
        if iteration > before:
            seconds = (self.last[1] - then) / (iteration - before)
            left = seconds * (self.recipe.iterations - iteration)
            text += f"  {seconds:.2g} s each, {left // 3600:.0f} h {left % 3600 // 60:.0f} min left"
        if torch.cuda.is_available():
            text += f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        return text


def open_board(folder: Path, start: int) -> Any:
    """TensorBoard's writer, which drops what an earlier run wrote after iteration `start`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install 'condinst_edu[tensorboard]'") from None
    return SummaryWriter(str(folder), purge_step=start + 1)
