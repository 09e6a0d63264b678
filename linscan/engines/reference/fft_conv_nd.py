"""Convolution over several axes by one transform of the whole: the definition of `fft_conv_nd`.

The transformed axes are the last ones. Per axis, as for `fft_conv`, the result is the window that begins at `starts`
of the full convolution, or of the periodic one.
"""

from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, host_any, namespace
from linscan.engines.reference.fft_conv import fft_size, mend, transforms


def fft_conv_nd(
    u: Array, k: Array, shape: tuple[int, ...], *, starts: tuple[int, ...], circular: tuple[bool, ...], workers: Any
) -> Array:
    """``y[t] = Σ_j k[j] u[starts + t - j]``, `shape` its last axes; the others of `u` and `k` broadcast."""
    xp, dtype = namespace(u), u.dtype
    u, k = (x.astype(accum_dtype(dtype), copy=False) for x in (u, k))

    def convolve(u: Array, k: Array) -> Array:
        return _whole(u, k, shape, starts, circular)

    with np.errstate(all="ignore"):
        y = convolve(u, k)
        if host_any(~xp.isfinite(y.sum()), otherwise=True):
            y = mend(u, k, y, convolve)
    return xp.ascontiguousarray(y).astype(dtype, copy=False)


def _whole(u: Array, k: Array, shape: tuple[int, ...], starts: tuple[int, ...], circular: tuple[bool, ...]) -> Array:
    fft, n, axes = transforms(namespace(u)), sizes(u, k, shape, starts, circular), tuple(range(-len(shape), 0))
    forward, back = (fft.rfftn, fft.irfftn) if u.dtype.kind != "c" else (fft.fftn, fft.ifftn)
    y = back(forward(u, n, axes) * forward(k, n, axes), n, axes)
    return y[(..., *(slice(s, s + length) for s, length in zip(starts, shape, strict=True)))]


def sizes(
    u: Array, k: Array, shape: tuple[int, ...], starts: tuple[int, ...], circular: tuple[bool, ...]
) -> tuple[int, ...]:
    """How long the transforms along the last axes must be."""
    dims, n = len(shape), []
    for i, axis in enumerate(range(-dims, 0)):
        last = u.dtype.kind != "c" and i == dims - 1
        whole = fft_size(u.shape[axis], k.shape[axis], starts[i], shape[i], last, namespace(u))
        n.append(u.shape[axis] if circular[i] else whole)
    return tuple(n)
