"""Recurrences on a grid on the GPU: a wavefront in every block, which owns some lines and columns of the states.

Sums over the lines or columns of a state come in parts, one for each block, and are added up in order.
"""

import math
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import kernel
from linscan.engines.reference.grid_scan import own_cells, own_cells_pullback

_FORWARD, _BACKWARD = (8, 2), (4, 3)  # warps of a block, and blocks a multiprocessor holds of the smaller dtypes
_COLUMNS = 32
_SCRATCH = 1 << 29  # bytes that the blocks of a pullback may keep together
_BLOCKS = 1024  # and how many there are at most


@np.errstate(all="ignore")
def grid_scan(
    q: Array, k: Array, v: Array, transition: Array, source: Array, mark: Array, direct: Any, r0: Array, d0: Array,
    *, workers: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """See `linscan.ops.grid_scan.grid_scan`; all axes in full."""
    dtype, compute = q.dtype, accum_dtype(q.dtype)
    wide_q, wide_k, wide_v = (x.astype(compute, copy=False) for x in (q, k, v))
    o, r, d = own_cells(wide_q, wide_k, wide_v, direct), _state(r0), _state(d0)
    if o.size and q.size:
        size, keys, lines, columns = _sizes(q, v)
        parts = cupy.empty((lines, *v.shape), compute)
        run = kernel("grid_scan.cu", "forward", dtype.name, *_macros(keys, compute, _FORWARD))
        given = map(cupy.ascontiguousarray, (q, k, v, transition, source, mark))
        run((int(size["grids"][0]) * lines * columns,), (32 * _FORWARD[0],), (_plain(size), *given, r, d, parts))
        o = o + parts.sum(0)
    return tuple(x.astype(dtype, copy=False) for x in (o, r, d))


@np.errstate(all="ignore")
def grid_scan_pullback(
    q: Array, k: Array, v: Array, transition: Array, source: Array, mark: Array, direct: Any, r0: Array, d0: Array,
    do: Array, dr: Array, dd: Array, *, workers: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """See `linscan.ops.grid_scan.grid_scan_vjp`; all axes in full."""
    dtype, compute = q.dtype, accum_dtype(q.dtype)
    wide_q, wide_k, wide_v, wide = (x.astype(compute, copy=False) for x in (q, k, v, do))
    dq, dk, dv, ddirect = own_cells_pullback(wide_q, wide_k, wide_v, direct, wide)
    dr, dd, dgates = _state(dr), _state(dd), cupy.zeros((*q.shape[:-1], 8), compute)
    if v.size and q.size:
        size, keys, lines, columns = _sizes(q, v)
        units, (width, height) = int(size["grids"][0]) * lines * columns, q.shape[-3:-1]
        warps = _BACKWARD[0]
        kept = (-(-width // warps) + 1 + 2 * warps) * height * keys * _COLUMNS
        blocks = max(1, min(units, _BLOCKS, _SCRATCH // (kept * compute.itemsize)))
        sums = [cupy.empty((n, *x.shape), compute) for n, x in ((columns, q), (columns, q), (lines, v))]
        sums.append(cupy.empty((lines * columns, *dgates.shape), compute))
        run = kernel("grid_scan.cu", "backward", dtype.name, *_macros(keys, compute, _BACKWARD))
        given = map(cupy.ascontiguousarray, (q, k, v, transition, source, mark))
        states = _state(r0), _state(d0), cupy.ascontiguousarray(do), dr, dd
        run((blocks,), (32 * warps,), (_plain(size), *given, *states, *sums, cupy.empty(blocks * kept, compute)))
        dq, dk, dv, dgates = (x + part.sum(0) for x, part in zip((dq, dk, dv, dgates), sums, strict=True))
    gates = dgates[..., :4].reshape(transition.shape), dgates[..., 4:6], dgates[..., 6:]
    grads = (dq, dk, dv, *gates, ddirect, dr, dd)
    return tuple(None if x is None else x.astype(dtype, copy=False) for x in grads)


def _sizes(q: Array, v: Array) -> tuple[np.ndarray, int, int, int]:
    """The struct ``Grid``; lines of a state in a block, and into how many parts lines and columns are cut."""
    keys = 8 if accum_dtype(q.dtype).itemsize <= 8 else 4
    size = np.zeros(1, [(name, "i8") for name in ("grids", "width", "height", "keys", "values")])
    size[0] = (math.prod(q.shape[:-3]), *q.shape[-3:], v.shape[-1])
    return size, keys, -(-q.shape[-1] // keys), -(-v.shape[-1] // _COLUMNS)


def _macros(keys: int, compute: np.dtype, cut: tuple[int, int]) -> list[tuple[str, int]]:
    return [("KEYS", keys), ("WARPS", cut[0]), ("BLOCKS", cut[1] if compute.itemsize == 4 else 1)]


def _plain(struct: np.ndarray) -> np.ndarray:
    return struct.view(f"V{struct.dtype.itemsize}")


def _state(x: Array) -> Array:
    """States in the arithmetic's dtype, a new array that the kernels move on."""
    return cupy.array(x, accum_dtype(x.dtype), order="C")
