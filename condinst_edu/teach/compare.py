"""Does my result agree with the library's, and if not, in what way? The comparison behind lessons and exercises.

Results are tensors, arrays, numbers, or tuples, lists and dicts of them; they are compared leaf by leaf.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

TRIALS = 3  # sets of random inputs that two functions are compared on


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same structure of tuples, lists and dicts with `function` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, v) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(function, v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def leaves(value: Any, name: str = "") -> dict[str, Tensor | bool | int | float]:
    """Tensors and numbers of a result by where they are in it: {"": x} for one alone, {"[0]": x, ...} in a tuple.

    Errors: TypeError for anything else.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return {name: torch.from_numpy(np.array(value))}
    if isinstance(value, (Tensor, bool, int, float)):
        return {name: value}
    if isinstance(value, (dict, tuple, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: leaf for key, v in pairs for k, leaf in leaves(v, f"{name}[{key!r}]").items()}
    raise TypeError(f"{name or 'the result'} is of type {type(value).__name__}: neither a tensor nor a number")


def difference(mine: Any, library: Any, check_dtype: bool = True) -> str | None:
    """One sentence on where and how `mine` differs from `library`, or None where the two agree within rounding."""
    try:
        a, b = leaves(mine), leaves(library)
    except TypeError as error:
        return str(error)
    if a.keys() != b.keys():
        return _form_difference(mine, library)
    for name, leaf in a.items():
        if problem := _leaf_difference(leaf, b[name], check_dtype):
            return f"part {name}: {problem}" if name else problem
    return None


def _form_difference(mine: Any, library: Any, name: str = "the result") -> str | None:
    """The first place where two results are not built alike."""
    if _form(mine) != _form(library):
        return f"{name} is {_form(mine)} and should be {_form(library)}"
    if isinstance(library, dict):
        pairs = [(mine[key], library[key], f"part [{key!r}]") for key in library]
    elif isinstance(library, (tuple, list)):
        pairs = [(x, y, f"part [{i}]") for i, (x, y) in enumerate(zip(mine, library, strict=True))]
    else:
        return None
    return next((found for x, y, place in pairs if (found := _form_difference(x, y, place))), None)


def _form(value: Any) -> str:
    """What a result is, in words."""
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(repr, value))}"
    if isinstance(value, (tuple, list)):
        kinds = {"numbers" if isinstance(x, (bool, int, float)) else "parts" for x in value}
        return f"a list of {len(value)} {kinds.pop() if len(kinds) == 1 else 'parts'}"
    return "a number or tensor"


def _leaf_difference(mine: Any, library: Any, check_dtype: bool) -> str | None:
    a, b = torch.as_tensor(mine).detach().cpu(), torch.as_tensor(library).detach().cpu()
    if a.shape != b.shape:
        return f"shape {tuple(a.shape)} should be {tuple(b.shape)}{_shape_hint(a, b)}"
    if check_dtype and (problem := _dtype_difference(a, b, isinstance(mine, Tensor) and isinstance(library, Tensor))):
        return problem
    tolerance = 1e-7 if torch.float64 in (a.dtype, b.dtype) and a.dtype == b.dtype else 1e-4
    wide_a, wide_b = a.double(), b.double()
    if close(wide_a, wide_b, tolerance):
        return None
    return _value_difference(wide_a, wide_b, tolerance, whole=not b.is_floating_point())


def _dtype_difference(a: Tensor, b: Tensor, exactly: bool) -> str | None:
    """Python's numbers have no size: only floating, whole or bool counts where one of the two is no tensor."""
    kinds = [(x.is_floating_point(), x.dtype == torch.bool) for x in (a, b)]
    if a.dtype == b.dtype or (not exactly and kinds[0] == kinds[1]):
        return None
    return f"dtype {str(a.dtype).removeprefix('torch.')} should be {str(b.dtype).removeprefix('torch.')}"


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Equal within `tolerance` of each value, and within a tenth of it of the largest value; the shapes are equal."""
    finite = b[b.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=max(0.1 * tolerance * largest, 1e-9))


def _shape_hint(a: Tensor, b: Tensor) -> str:
    if a.numel() != b.numel():
        return ""
    wide_a, wide_b = a.double(), b.double()
    for axes in _permutations(a.dim()):
        if a.permute(axes).shape == b.shape and close(wide_a.permute(axes), wide_b):
            return f": the axes are transposed, `.permute{axes}` puts them right"
    if close(wide_a.reshape(b.shape), wide_b):
        return ": the numbers are right, only the shape is not"
    return ""


def _permutations(dims: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(dims)))[1:] if 2 <= dims <= 4 else []


def _value_difference(a: Tensor, b: Tensor, tolerance: float, whole: bool = False) -> str:
    if bad := int((a.isnan() & ~b.isnan()).sum()):
        return f"{bad} of {a.numel()} values are NaN, the first at index {_first(a.isnan())}"
    if not a.any():
        return f"all {a.numel()} values are 0"
    wrong = ~torch.isclose(a, b, rtol=tolerance, atol=max(0.1 * tolerance * float(b.abs().nan_to_num().max()), 1e-9))
    index = _first(wrong) if a.dim() else ()
    place = f", the first at index {index}" if a.dim() else ""
    # Indices and labels are names: how far apart two of them are means nothing.
    names = whole and a.numel() > 1
    size = "" if names else f" by up to {float((a - b).abs().max()):.4g}"
    facts = f"{int(wrong.sum())} of {a.numel()} values differ{size}{place}"
    facts += f": {float(a[index]):.6g} should be {float(b[index]):.6g}"
    return facts + _pattern(a, b)


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(where.nonzero()[0].tolist())


def _pattern(a: Tensor, b: Tensor) -> str:
    """What turns one into the other, if it is something simple."""
    if not (a.isfinite().all() and b.isfinite().all()):
        return ""
    if close(-a, b):
        return ". The sign is flipped"
    factor = float((a * b).sum() / b.square().sum().clamp(min=1e-300))
    if factor and b.count_nonzero() > 1 and close(a, factor * b):
        return f". Every value is {factor:.4g} times what it should be"
    if a.numel() > 1 and close(a - b, (a - b).mean().expand_as(a)):
        return f". Every value is too large by {float((a - b).mean()):.4g}"
    for axes in _permutations(a.dim()):
        if a.permute(axes).shape == b.shape and close(a.permute(axes), b):
            return f". The axes are transposed: `.permute{axes}` puts them right"
    for axis in range(a.dim()):
        if a.shape[axis] > 1 and close(a.flip(axis), b):
            return f". The order along axis {axis} is reversed"
    if a.numel() > 1 and close(a.flatten().sort().values, b.flatten().sort().values):
        return ". The numbers are right, their order is not"
    return ""


def same_as(
    mine: Any,
    library: Any,
    *args: Any,
    inputs: Callable[[torch.Generator], tuple[Any, ...]] | None = None,
    name: str = "",
) -> None:
    """Check that my result agrees with the library's; prints one line if so.

    mine, library: two results; or two functions, which are called on copies of `args`, or three times on what
    `inputs(generator)` draws (draw non-square tensors: in square ones transposed axes go unnoticed).
    Errors: AssertionError that says where and how the two differ; ValueError for functions without arguments.
    """
    if not callable(library):
        cases = [(mine, library)]
    elif args or inputs:
        drawn = [args] if inputs is None else [inputs(torch.Generator().manual_seed(i)) for i in range(TRIALS)]
        cases = [tuple(f(*map_tensors(torch.clone, x)) for f in (mine, library)) for x in drawn]
    else:
        raise ValueError("to compare two functions, give their arguments, or inputs=..., a function that draws them")
    label = name or (getattr(library, "__name__", "") if callable(library) else "")
    for a, b in cases:
        if problem := difference(a, b):
            raise AssertionError(f"Not the same{' as ' + label if label else ''}: {problem}.")
    count = sum(torch.as_tensor(leaf).numel() for _, b in cases for leaf in leaves(b).values())
    print(f"✓ the same{' as ' + label if label else ''}: {count} numbers compared")


@contextmanager
def should_fail(kind: type[Exception] = Exception) -> Iterator[None]:
    """For a cell that is meant to break: shows the error that comes, and is itself an error where none does."""
    try:
        yield
    except kind as error:
        print(f"✓ this fails, as it should: {type(error).__name__}: {error}")
    else:
        raise AssertionError(f"this should have failed with {kind.__name__}, and nothing broke")
