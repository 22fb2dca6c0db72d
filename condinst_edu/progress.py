"""The progress bar of everything that takes long: how far, how fast, how long still."""

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.1f}/s")


def progress_bar(show: bool = True) -> Progress:
    """Bar, count, rate, time left (at the end: taken), and the text that a task's field `note` holds."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        disable=not show,
        expand=True,
    )


def bytes_bar(show: bool = True) -> Progress:
    """The same for bytes: bar, how many of how many, how many a second, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        disable=not show,
        expand=True,
    )
