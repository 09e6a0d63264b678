"""Diagonal convolution kernels in array operations: two tables of powers and a matrix product.

With ``l = R q + r``, ``K[q, r] = sum_n (c_n a_n^(R q)) (a_n^r)``. Everything is float64 or complex128, so that a
single-precision kernel overflows no earlier than its plain recurrence; (channels, states, length) is never formed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from linscan._arrays import Array, namespace, real_dtype

_BLOCK = 128  # R
_ELEMENTS = 1 << 22  # of the largest temporary of a group of channels


def ssm_kernel(a: Array, c: Array, length: int, *, real: bool, workers: Any) -> Array:
    xp = namespace(a)
    k = xp.zeros((len(a), length), real_dtype(a.dtype) if real else a.dtype)
    for group in _groups(a, length):
        z = _wide(a[group])
        with np.errstate(all="ignore"):  # a kernel that grows may overflow
            within, _ = _powers(xp.ones_like(z), z, _BLOCK)
            starts, _ = _powers(_wide(c[group]), within[:, -1] * z, -(-length // _BLOCK))
            values = (starts @ within.swapaxes(1, 2)).reshape(len(z), -1)[:, :length]
            k[group] = (values.real if real else values).astype(k.dtype)
    return k


def ssm_kernel_pullback(a: Array, c: Array, dk: Array, *, workers: Any) -> tuple[Array, Array]:
    xp = namespace(a)
    da, dc = xp.zeros_like(a), xp.zeros_like(c)
    length = dk.shape[1]
    blocks = -(-length // _BLOCK)
    for group in _groups(a, length):
        z = xp.conj(_wide(a[group]))
        g = xp.zeros((len(z), blocks * _BLOCK), _wide(dk[:0]).dtype)
        g[:, :length] = dk[group]
        g = g.reshape(len(z), blocks, _BLOCK)
        with np.errstate(all="ignore"):
            # l = R q + r: z^l = s^q z^r with s = z^R, and the product rule for its derivative.
            one = xp.ones_like(z)
            within, within_slope = _powers(one, z, _BLOCK)
            s, s_slope = within[:, -1] * z, _BLOCK * within[:, -1]
            starts, starts_slope = _powers(one, s, blocks)
            v, w = g @ within, g @ within_slope
            dc[group] = (starts * v).sum(axis=1).astype(c.dtype)
            slope = (starts * w).sum(axis=1) + s_slope * (starts_slope * v).sum(axis=1)
            da[group] = (xp.conj(_wide(c[group])) * slope).astype(a.dtype)
    return da, dc


def _wide(x: Array) -> Array:
    """`x` in float64 or complex128."""
    return x.astype("D" if x.dtype.kind == "c" else "d", copy=False)


def _groups(a: Array, length: int) -> Iterator[slice]:
    """Channels by groups whose tables and kernels are at most _ELEMENTS each."""
    one = max(length, (_BLOCK + length // _BLOCK) * a.shape[1], 1)
    step = max(1, _ELEMENTS // one)
    for first in range(0, len(a), step) if length else ():
        yield slice(first, first + step)


def _powers(first: Array, z: Array, count: int) -> tuple[Array, Array]:
    """``first z^i`` and its derivative by z, for i in range(count) along a new axis 1."""
    xp = namespace(z)
    values, slopes = [first], [xp.zeros_like(z)]
    for _ in range(count - 1):
        slopes.append(slopes[-1] * z + values[-1])
        values.append(values[-1] * z)
    return xp.stack(values, axis=1), xp.stack(slopes, axis=1)
