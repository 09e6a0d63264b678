"""The Cauchy sums of `ssm_kernel_dplr` on the GPU, and their gradient: launches. All arrays are in double precision."""

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel

_THREADS, _NODES, _SUMS = 128, 128, 8  # as the device code knows
_BLOCKS = 2**31 - 1  # of a grid


def ssm_kernel_dplr(alpha: Array, beta: Array, w: Array, base: Array, p: Array, q: Array, *, workers) -> Array:
    """The sums, (channels, J, nodes) complex128, of `w` (channels, J, N)."""
    sums = cupy.empty((*w.shape[:2], len(base)), np.complex128)
    if sums.size:
        _run("cauchy", _units(w, base), (*_arguments(alpha, beta, w, base, p, q), sums), w, base)
    return sums


def ssm_kernel_dplr_pullback(
    alpha: Array, beta: Array, w: Array, base: Array, p: Array, q: Array, dsums: Array, *, workers
) -> tuple[Array, Array, Array]:
    """The gradients of `alpha`, `beta` and `w` from those of the sums."""
    dalpha, dbeta, dw = (cupy.empty(x.shape, np.float64) for x in (alpha, beta, w))
    if w.size:
        units = _units(w, base)
        partial = cupy.empty((units, w.shape[2], 2 + _SUMS))
        if units:
            arguments = _arguments(alpha, beta, w, base, p, q, dsums)
            _run("cauchy_back", units, (*arguments, partial), w, base)
        _run("finish", -(-(w.size + 2 * alpha.size) // _THREADS), (partial, dalpha, dbeta, dw), w, base)
    else:
        dalpha[...], dbeta[...] = 0, 0
    return dalpha, dbeta, dw


def _arguments(alpha: Array, beta: Array, w: Array, *complexes: Array) -> list[Array]:
    reals = [cupy.ascontiguousarray(x, np.float64) for x in (alpha, beta, w)]
    return reals + [cupy.ascontiguousarray(x, np.complex128) for x in complexes]


def _units(w: Array, base: Array) -> int:
    """Blocks: channels by groups of sums by tiles of nodes."""
    return len(w) * -(-w.shape[1] // _SUMS) * -(-len(base) // _NODES)


def _run(name: str, blocks: int, arrays: tuple[Array, ...], w: Array, base: Array) -> None:
    with w.device:
        run = kernel("ssm_kernel_dplr.cu", name, "float64")
        run((min(blocks, _BLOCKS),), (_THREADS,), (*arrays, *w.shape, len(base)))
