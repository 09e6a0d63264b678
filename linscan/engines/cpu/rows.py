"""Work on the rows of a matrix a tile at a time: a tile fits the cache, in the dtype arithmetic is done in.

Where tiles begin depends on the shape alone, and sums over rows are made tile by tile, so that the number of threads
changes no bit.
"""

from collections.abc import Callable

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.conv_layout import unmarked
from linscan.engines.cpu.pool import parallel_for

_TILE = 1 << 16  # entries of a tile of one array


def for_tiles(body: Callable[[int, slice], object], n: int, width: int = 1) -> None:
    """Call ``body(i, rows)`` for every tile of n rows of `width` entries, on as many threads as pay."""
    step = max(1, _TILE // max(1, width))

    def work(lo: int, hi: int) -> None:
        with np.errstate(all="ignore"):  # in this thread; the kernels say nothing either
            for i in range(lo, hi):
                body(i, slice(i * step, min((i + 1) * step, n)))

    parallel_for(work, tiles(n, width))


def tiles(n: int, width: int = 1) -> int:
    """How many tiles `for_tiles` makes."""
    return -(-n // max(1, _TILE // max(1, width)))


def flat(x: Array, dtype: np.dtype) -> Array:
    """The entries of `x` one after the other, in `dtype`; a copy only where they are not."""
    return unmarked(np.ascontiguousarray(x, dtype).reshape(-1))


def lines(x: Array, dtype: np.dtype) -> tuple[Array, int]:
    """The memory a matrix lies in, in `dtype`, and the step from row to row; a copy only where rows are in pieces."""
    step, whole = x.strides[0] // x.itemsize, x.shape[1] == 1 or x.strides[1] == x.itemsize
    if x.dtype != dtype or x.flags.c_contiguous or not whole or step < x.shape[1] or x.strides[0] % x.itemsize:
        return flat(x, dtype), x.shape[1]
    return np.asarray(_Span(x, (len(x) - 1) * step + x.shape[1])), step


class _Span:
    """All memory from the first entry of a matrix, which it keeps alive, to its last, as one row."""

    def __init__(self, x: Array, size: int) -> None:
        self.owner = x
        memory = {"shape": (size,), "data": (x.ctypes.data, False), "typestr": x.dtype.str}
        self.__array_interface__ = {"version": 3, **memory}


class Out:
    """Where the results for a tile `y` of an array go: into it if they fit, else by way of `memory` of their own."""

    def __init__(self, y: Array, dtype: np.dtype) -> None:
        self.y = y
        self.made = y if y.dtype == dtype and y.flags.c_contiguous else np.empty(y.shape, dtype)
        self.memory = self.made.reshape(-1)

    def store(self, around: Array | None = None) -> None:
        """Write them, with `around` added."""
        if around is not None:
            np.add(self.made, around, out=self.made)
        if self.made is not self.y:
            self.y[...] = self.made


class OutLines(Out):
    """The same for a tile whose rows may lie apart, `step` from one to the next."""

    def __init__(self, y: Array, dtype: np.dtype) -> None:
        memory, step = lines(y, dtype)
        if np.may_share_memory(memory, y):
            self.y = self.made = y
            self.memory, self.step = memory, step
        else:
            super().__init__(y, dtype)
            self.step = y.shape[1]
