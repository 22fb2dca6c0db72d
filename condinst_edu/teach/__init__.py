"""What the lessons teach with: comparisons, exercises that explain errors, deviations, pictures, an X-ray, widgets."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from condinst_edu.teach.checker import CheckResult, check
from condinst_edu.teach.compare import same_as, should_fail
from condinst_edu.teach.deviations import DEVIATIONS, Deviation, deviate
from condinst_edu.teach.exercises import EXERCISES, Exercise
from condinst_edu.teach.interactive import Segment, Targets, look, redraw, segment_at, targets_of
from condinst_edu.teach.stored import strip_widgets

if TYPE_CHECKING:
    from condinst_edu.teach.equations import show_equation
    from condinst_edu.teach.segment_pictures import show_segment
    from condinst_edu.teach.widgets import click_to_segment, explore_blend, explore_targets

__all__ = [
    "DEVIATIONS",
    "EXERCISES",
    "CheckResult",
    "Deviation",
    "Exercise",
    "Segment",
    "Targets",
    "check",
    "click_to_segment",
    "deviate",
    "explore_blend",
    "explore_targets",
    "look",
    "redraw",
    "same_as",
    "segment_at",
    "should_fail",
    "show_equation",
    "show_segment",
    "strip_widgets",
    "targets_of",
]


def __getattr__(name: str) -> Any:
    """What draws, needs a browser or the terminal is imported on first use: it costs half a second."""
    modules = {
        "show_equation": "equations",
        "show_segment": "segment_pictures",
        "click_to_segment": "widgets",
        "explore_blend": "widgets",
        "explore_targets": "widgets",
    }
    if name in modules:
        return getattr(import_module(f"{__name__}.{modules[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
