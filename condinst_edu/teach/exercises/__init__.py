"""All exercises by id, in the order of the lessons."""

from condinst_edu.teach.exercises import (
    lesson_00,
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
    lesson_10,
)
from condinst_edu.teach.exercises.base import Exercise

EXERCISES: dict[str, Exercise] = {
    exercise.id: exercise
    for lesson in (
        lesson_00,
        lesson_01,
        lesson_02,
        lesson_03,
        lesson_04,
        lesson_05,
        lesson_06,
        lesson_07,
        lesson_08,
        lesson_09,
        lesson_10,
    )
    for exercise in lesson.EXERCISES
}

__all__ = ["EXERCISES", "Exercise"]
