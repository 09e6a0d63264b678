"""Which signals meet which kernels: NumPy broadcasting of all axes but time, brought into one order.

An axis that both have makes *groups*; one that only the signal has makes *rows* that share a kernel, so that its
spectrum is made once; one that only the kernel has makes *kernels* that share a signal.
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
