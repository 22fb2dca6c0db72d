"""Judges an answer to an exercise and says in words what is right or wrong with it.

The reference was bound when this was imported and runs first, on inputs of its own: what a student's function does to
its arguments, or a notebook to the library's names, changes nothing about what is expected.
"""

import difflib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from condinst_edu.teach.compare import TRIALS, difference, leaves, map_tensors
from condinst_edu.teach.deviations import DEVIATIONS
from condinst_edu.teach.exercises import EXERCISES, Exercise


@dataclass(frozen=True)
class CheckResult:
    """passed: the answer is right; attempted: there was one; deviation: the name of the known one that it equals."""

    passed: bool
    message: str
    attempted: bool = True
    deviation: str | None = None


@dataclass
class Run:
    """One call: its result; the part of it that counts, None where it has not the form for that; whether the
    arguments were changed; the inputs that it can be differentiated by.
    """

    result: Any
    view: Any
    changed: bool
    inputs: list[Tensor]


def check(exercise_id: str, answer: Callable[..., Any], seed: int = 0) -> CheckResult:
    """Judge a student's function and print what came of it.

    Errors: ValueError where there is no such exercise.
    """
    if exercise_id not in EXERCISES:
        near = difflib.get_close_matches(exercise_id, EXERCISES, n=1)
        raise ValueError(f"there is no exercise {exercise_id!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    result = judge(EXERCISES[exercise_id], answer, seed)
    print(f"{'✓' if result.passed else '✗' if result.attempted else '…'} {exercise_id}: {result.message}")
    return result


def judge(exercise: Exercise, answer: Callable[..., Any], seed: int = 0) -> CheckResult:
    """The same without printing."""
    cases = [exercise.inputs(Generator().manual_seed(seed + i)) for i in range(TRIALS)]
    expected = [run(exercise, exercise.reference, args) for args in cases]
    try:
        given = [run(exercise, answer, args) for args in cases]
    except Exception as error:
        if isinstance(error, NotImplementedError) and not error.args:  # a stub's; torch's own have a text
            return CheckResult(False, "not attempted yet", attempted=False)
        return CheckResult(False, _raised(error))
    if any(x.result is None or x.result is ... for x in given):
        return CheckResult(False, "not attempted yet", attempted=False)
    if any(x.changed for x in given):
        return CheckResult(False, "your function changes its input in place; work on a copy or use x = x + ...")
    problems = _problems(given, expected)
    if not any(problems):
        return _judge_gradient(exercise, given, expected)
    if any(_problems(given, expected, check_dtype=False)) and (name := recognise(exercise, cases, given)):
        return CheckResult(
            False, f"your results equal a known variant: {DEVIATIONS[name].line} [{name}]", deviation=name
        )
    problem, args = next((p, args) for p, args in zip(problems, cases, strict=True) if p)
    asked = "" if any(isinstance(leaf, Tensor) for leaf in leaves(args).values()) else f" (for {_list(args)})"
    return CheckResult(False, f"not yet: {problem}{asked}")


def run(exercise: Exercise, function: Callable[..., Any], args: tuple[Any, ...]) -> Run:
    """Call a function on a copy of the arguments; those of an exercise with gradient can be differentiated."""
    inputs: list[Tensor] = []

    def copy(x: Tensor) -> Tensor:
        if not (exercise.gradient and x.is_floating_point()):
            return x.clone()
        inputs.append(x.clone().requires_grad_())
        return inputs[-1] * 1  # not a leaf: a change in place is found below instead of failing inside torch

    kinds = [torch.clone if i in exercise.constants else copy for i in range(len(args))]
    copies = tuple(map_tensors(kind, arg) for kind, arg in zip(kinds, args, strict=True))
    result = function(*copies)
    changed = difference(copies, args) is not None
    try:
        view = exercise.view(result, args)
    except Exception:
        view = None
    return Run(result, view, changed, inputs)


def _problems(given: list[Run], expected: list[Run], check_dtype: bool = True) -> list[str | None]:
    """How each run differs from what is expected, if it does."""
    return [
        difference(x.result, y.result, check_dtype) if x.view is None else difference(x.view, y.view, check_dtype)
        for x, y in zip(given, expected, strict=True)
    ]


def recognise(exercise: Exercise, cases: list[tuple[Any, ...]], given: list[Run]) -> str | None:
    """The name of the known deviation that gives the same results, whatever their types."""
    for name in exercise.deviations:
        try:
            runs = [run(exercise, DEVIATIONS[name].function, args) for args in cases]
        except Exception:
            continue
        if not any(_problems(given, runs, check_dtype=False)):
            return name
    return None


def _judge_gradient(exercise: Exercise, given: list[Run], expected: list[Run]) -> CheckResult:
    if not exercise.gradient:
        return CheckResult(True, "correct")
    for mine, library in zip(given, expected, strict=True):
        got, wanted = _gradients(mine), _gradients(library)
        if got is None:
            why = "the values are right, but no gradient flows through (.item(), .detach(), .data or numpy cut it)"
            return CheckResult(False, why)
        if problem := difference(got, wanted):
            return CheckResult(False, f"the values are right, but their gradient is not: {problem}")
    return CheckResult(True, "correct, its gradient too")


def _gradients(x: Run) -> list[Tensor] | None:
    """Gradients of a weighted sum of all results for each input, or None where nothing flows."""
    outputs = [leaf for leaf in leaves(x.view).values() if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    generator = Generator().manual_seed(0)
    total = sum((out * torch.rand(out.shape, generator=generator)).sum() for out in outputs)
    if not isinstance(total, Tensor) or not total.requires_grad:
        return None
    found = torch.autograd.grad(total, x.inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(x.inputs, found, strict=True)]


def _list(args: tuple[Any, ...]) -> str:
    return ", ".join(map(str, args))


def _raised(error: Exception) -> str:
    """What stopped a student's function, and at which of its own lines."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" (line {own[0].lineno} of {own[0].name})" if own and own[0].name != "map_tensors" else ""
    return f"your function stopped with {type(error).__name__}: {error}{where}"
