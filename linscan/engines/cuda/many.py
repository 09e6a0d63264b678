"""Copies and moves of many small arrays in a launch or two: see many.cu."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from linscan._arrays import Array, dtype_name, real_dtype
from linscan.engines.cuda._load import kernel

_MOST, _PARTS, _THREADS = 64, 8, 256  # as in many.cu
_PAIRS = np.dtype([("from", "u8"), ("to", "u8"), ("size", "i8")])


def copy_all(targets: Sequence[Array], sources: Sequence[Array]) -> None:
    """``target[...] = source`` for all, which do not overlap."""

    def one(to: Array, x: Array) -> None:
        to[...] = x

    _run("copy", targets, sources, one)


def move_all(targets: Sequence[Array], sources: Sequence[Array], share: float) -> None:
    """``target += share (source - target)`` for all, which do not overlap."""

    def one(to: Array, x: Array) -> None:
        to += share * (x - to)

    _run("move", targets, sources, one, float(share))


def _run(name: str, targets: Sequence[Array], sources: Sequence[Array], one: Callable[..., Any], *rest: float) -> None:
    plain: dict[np.dtype, list[tuple[Array, Array]]] = {}
    for to, x in zip(targets, sources, strict=True):
        if _alike(to, x):
            plain.setdefault(real_dtype(to.dtype), []).append((x, to))
        else:
            one(to, x)
    for dtype, pairs in plain.items():
        code = kernel("many.cu", name, dtype_name(dtype))
        for table in _tables(pairs, dtype.itemsize):
            code((_PARTS * _MOST,), (_THREADS,), (table, *rest))


def _alike(to: Array, x: Array) -> bool:
    whole = to.flags.c_contiguous and x.flags.c_contiguous and to.shape == x.shape
    return whole and to.dtype == x.dtype and to.dtype.char in "fdFD"


def _tables(pairs: list[tuple[Array, Array]], itemsize: int) -> Iterator[np.ndarray]:
    for first in range(0, len(pairs), _MOST):
        table = np.zeros(_MOST, _PAIRS)
        for row, (x, to) in zip(table, pairs[first : first + _MOST], strict=False):
            row["from"], row["to"], row["size"] = x.data.ptr, to.data.ptr, x.nbytes // itemsize
        yield table.view(f"V{table.nbytes}")
