"""What `assoc_scan` and its gradient ask of elements and of operators."""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._trees import Tree, leaves, matched, named_arrays, rebuild
from linscan.engines.reference.assoc_scan import ALGORITHMS, Line


def prepare(who: str, elems: Tree, initial: Tree, axis: int, floating: bool = False) -> tuple[Line, Line | None]:
    """`elems` as new arrays in the dtypes of the result, and `initial` as a line of length one."""
    named = named_arrays(who, "elems", elems)
    begin = dict.fromkeys(f"initial{path}" for path in leaves(elems))
    if initial is not None:
        begin = dict(zip(begin, matched(who, "initial", initial, "elems", elems), strict=True))
        if any(x is None for x in begin.values()):
            raise TypeError(f"{who}: initial must hold something for every array of elems; got {initial!r}")
    xp, *taken = _arrays.take(who, **named, **begin)
    xs, firsts = taken[: len(named)], taken[len(named) :]
    axes = [_arrays.check_axis(who, axis, x.ndim) for x in xs]
    for name, x, i in zip(named, xs, axes, strict=True):
        if x.shape[i] != xs[0].shape[axes[0]]:
            raise ValueError(
                f"{who}: all arrays must be equally long along axis {axis}; "
                f"{next(iter(named))} has shape {xs[0].shape}, {name} has shape {x.shape}"
            )
    to = _arrays.result_dtype if floating else _promoted
    dtypes = [to(who, **{n: x, m: v}) for n, x, m, v in zip(named, xs, begin, firsts, strict=True)]
    y = Line([xp.array(x, dtype, order="C") for x, dtype in zip(xs, dtypes, strict=True)], axes)
    if initial is None:
        return y, None
    for k, (name, x, i) in enumerate(zip(begin, y.arrays, axes, strict=True)):
        start = xp.asarray(firsts[k], x.dtype)
        firsts[k] = xp.expand_dims(_arrays.broadcast_to(who, name, start, x.shape[:i] + x.shape[i + 1 :]), i)
    return y, Line(firsts, axes)


def _promoted(who: str, **named: Any) -> np.dtype:
    """The dtype that holds a component and its initial value; unlike elsewhere, integers stay integers."""
    return np.result_type(*(getattr(x, "dtype", x) for x in named.values() if x is not None))


def run_op(
    who: str, op: Callable[[Tree, Tree], Tree], elems: Tree, first: Line | None, y: Line, algorithm: str
) -> None:
    """Scan `y` in place, holding `op` to its contract at every call."""

    def combine(earlier: Line, later: Line) -> Line:
        result = op(*(rebuild(elems, line.arrays) for line in (earlier, later)))
        new = matched(who, "the result of op", result, "elems", elems)
        for path, x, old in zip(leaves(elems), new, later.arrays, strict=True):
            if (getattr(x, "shape", None), getattr(x, "dtype", None)) != (old.shape, old.dtype):
                came, went = (f"{v.dtype} {v.shape}" if hasattr(v, "dtype") else type(v).__name__ for v in (x, old))
                raise ValueError(
                    f"{who}: op must keep shapes and dtypes; elems{path} went in as {went}, came out as {came}"
                )
        return Line([x if x.base is None else x.copy() for x in new], y.axes)  # a view may be about to be overwritten

    if first is not None and len(y):
        y[:1] = combine(first, y[:1])
    ALGORITHMS[algorithm](combine, y)


def fields(cuda: str, elems: Tree, y: Line) -> list[str]:
    """The names of an Element's numbers, once it is clear that `cuda` can be compiled for these arrays."""
    if not isinstance(cuda, str):
        raise TypeError(f"assoc_scan: cuda must be a string of device code; got {type(cuda).__name__}")
    for path, x in zip(leaves(elems), y.arrays, strict=True):
        if x.shape != y.arrays[0].shape:
            raise ValueError(
                f"assoc_scan: with cuda all arrays must be of one shape; "
                f"elems{path} has {x.shape}, the first {y.arrays[0].shape}"
            )
    named = isinstance(elems, dict) and all(isinstance(key, str) and key.isidentifier() for key in elems)
    flat = named and len(elems) == len(y.arrays)
    return list(elems) if flat else [f"x{i}" for i in range(len(y.arrays))]
