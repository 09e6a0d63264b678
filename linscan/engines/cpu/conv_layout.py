"""Which signals meet which kernels: NumPy broadcasting of all axes but time, brought into one order.

An axis that both have makes *groups*; one that only the signal has makes *rows* that share a kernel, so that its
spectrum is made once; one that only the kernel has makes *kernels* that share a signal.

The plain sums take their work as *pieces*, rows of (output row, signal row, weights row, first and last input they may
see, first and last output): so a filter stays inside one of several packed sequences, and threads share a long row.
"""

from typing import NamedTuple

import numpy as np

from linscan._arrays import Array


class Layout(NamedTuple):
    """Axes of the result in the order (groups, rows, kernels, time): each row of a group meets each of its kernels."""

    order: list[int]
    shape: tuple[int, int, int]

    def signal(self, u: Array) -> Array:
        g, m, _ = self.shape
        return self._ordered(u).reshape(g, m, u.shape[-1])

    def kernel(self, k: Array) -> Array:
        g, _, c = self.shape
        return self._ordered(k).reshape(g, c, k.shape[-1])

    def result(self, y: Array) -> Array:
        """A view of `y` if its strides allow, else a copy."""
        return self._ordered(y).reshape(*self.shape, y.shape[-1])

    def undo(self, x: Array, like: Array) -> Array:
        """`x`, made by one of the above, in the shape of `like`."""
        return x.reshape(self._ordered(like).shape).transpose(np.argsort(self.order)).reshape(like.shape)

    def _ordered(self, x: Array) -> Array:
        return x.reshape((1,) * (len(self.order) - x.ndim) + x.shape).transpose(self.order)


def layout_of(u: Array, k: Array, shape: tuple[int, ...]) -> Layout:
    ndim = len(shape) - 1
    u_shape, k_shape = ((1,) * (len(shape) - x.ndim) + x.shape for x in (u, k))
    rows = [i for i in range(ndim) if k_shape[i] == 1 and u_shape[i] != 1]
    kernels = [i for i in range(ndim) if u_shape[i] == 1 and k_shape[i] != 1]
    groups = [i for i in range(ndim) if i not in rows and i not in kernels]
    g, m, c = (int(np.prod([shape[i] for i in axes], dtype=np.intp)) for axes in (groups, rows, kernels))
    return Layout([*groups, *rows, *kernels, ndim], (g, m, c))


def pieces_of(rows: Array, samples: int, length: int) -> Array:
    """Whole rows as pieces; `rows` (R, 3) says which rows of output, signal and weights belong together."""
    return np.concatenate([rows, np.tile(np.array([0, samples, 0, length]), (len(rows), 1))], axis=1)


def pieces_between(rows: Array, reset: Array, reverse: bool) -> Array:
    """Rows cut where `reset` (R, T) begins a sequence: before its step in the direction of the sum."""
    count, length = reset.shape
    cuts = np.zeros((count, length + 1), bool)
    cuts[:, reverse : length + reverse] = reset
    cuts[:, [0, length]] = True
    row, t = np.nonzero(cuts)
    same = row[:-1] == row[1:]
    inside = np.stack([t[:-1], t[1:]], axis=1)[same]
    return np.concatenate([rows[row[:-1][same]], inside, inside], axis=1)


def cut(pieces: Array, steps: int) -> Array:
    """The same work in pieces of at most `steps` outputs."""
    count = np.maximum(1, -(-(pieces[:, 6] - pieces[:, 5]) // steps))
    spans = np.repeat(pieces, count, axis=0)
    index = np.arange(len(spans)) - np.repeat(np.cumsum(count) - count, count)
    spans[:, 5] += index * steps
    spans[:, 6] = np.minimum(spans[:, 6], spans[:, 5] + steps)
    return spans


class _Unmarked:
    """The memory of `x`, which it keeps alive, without its read-only mark."""

    def __init__(self, x: Array) -> None:
        self.owner = x
        self.__array_interface__ = {**x.__array_interface__, "data": (x.ctypes.data, False)}


def unmarked(x: Array) -> Array:
    """`x`, for a kernel that only reads it: a read-only array is another type, and would be compiled for anew."""
    return x if x.flags.writeable else np.asarray(_Unmarked(x))
