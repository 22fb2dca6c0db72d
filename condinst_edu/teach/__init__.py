"""What the lessons teach with: comparisons, exercises that explain what is wrong, deviations, pictures, an X-ray."""

from condinst_edu.teach.checker import CheckResult, check
from condinst_edu.teach.compare import same_as, should_fail
from condinst_edu.teach.deviations import DEVIATIONS, Deviation, deviate
from condinst_edu.teach.exercises import EXERCISES, Exercise

__all__ = [
    "DEVIATIONS",
    "EXERCISES",
    "CheckResult",
    "Deviation",
    "Exercise",
    "check",
    "deviate",
    "same_as",
    "should_fail",
]
