"""Normalisation of rows or columns on the GPU: see norm.cu and norm_rows.cu."""

import cupy

from linscan._arrays import Array, accum_dtype, dtype_name
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.columns import on_its_device, operand, rows_of, run, shares, total, vector

_THREADS, _SIDE = 256, 8  # as in norm.cu


@on_its_device
def row_norm(x: Array, scale: Array | None, shift: Array | None, eps: float, *, centred: bool):
    """See `linscan.engines.reference.norm.row_norm`."""
    x, wide = rows_of(x), accum_dtype(x.dtype)
    y, root = cupy.empty(x.shape, x.dtype), cupy.empty(len(x), wide)
    mean = cupy.empty(len(x), wide) if centred else None
    arguments = (*operand(x), vector(scale), vector(shift), float(eps), y, mean, root)
    _by_row("normal_rows", x, shares(*x.shape, x, y), arguments, centred)
    return y, mean, root


@on_its_device
def row_norm_pullback(dy: Array, x: Array, scale: Array | None, mean: Array | None, r: Array, around: Array | None):
    """See `linscan.engines.reference.norm.row_norm_pullback`."""
    dy, x, around = map(rows_of, (dy, x, around))
    dx = cupy.empty(x.shape, x.dtype)
    cut = shares(*x.shape, dy, x, around, dx)
    arguments = (*operand(dy), *operand(x), *operand(around), vector(scale), mean, r, dx)
    _by_row("flow_rows", x, cut, arguments, mean is not None)
    return dx, *_slopes("slopes_of_rows", dy, x, mean, r, 0.0)


@on_its_device
def batch_norm(x: Array, scale: Array | None, shift: Array | None, mean: Array | None, var: Array | None, eps: float):
    """See `linscan.engines.reference.norm.batch_norm`."""
    x, y = rows_of(x), cupy.empty(x.shape, x.dtype)
    mean, var = _statistics(x) if mean is None else (vector(mean), vector(var))
    arguments = (*operand(x), mean, var, vector(scale), vector(shift), float(eps), y)
    run("norm.cu", "normal", x, shares(*x.shape, x, y), arguments)
    return y, mean, var


@on_its_device
def batch_norm_pullback(
    dy: Array, x: Array, scale: Array | None, mean: Array, var: Array, eps: float, around: Array | None, *, own: bool
):
    """See `linscan.engines.reference.norm.batch_norm_pullback`."""
    dy, x, around = map(rows_of, (dy, x, around))
    scale, mean, var = map(vector, (scale, mean, var))
    totals, dx = _slopes("slopes", dy, x, mean, var, float(eps)), cupy.empty(x.shape, x.dtype)
    arguments = (*operand(dy), *operand(x), *operand(around), mean, var, scale, float(eps), totals if own else None, dx)
    run("norm.cu", "flow", x, shares(*x.shape, dy, x, around, dx), arguments)
    return dx, totals[0], totals[1]


def _statistics(x: Array) -> Array:
    """Mean and variance of the columns, (2, D)."""
    wide, columns = accum_dtype(x.dtype), x.shape[1]
    cut = shares(*x.shape, x, summed=True)
    parts, totals = cupy.empty((3, cut.chunks, columns), wide), cupy.empty((2, columns), wide)
    run("norm.cu", "moments", x, cut, (*operand(x), *parts))
    code = kernel("norm.cu", "gather", dtype_name(x.dtype), *cut.macros)
    if columns:
        code((-(-columns // _SIDE),), (_THREADS,), (x, *parts, *totals, cut.chunks, columns))
    return totals


def _slopes(name: str, dy: Array, x: Array, mean: Array | None, var: Array, eps: float) -> Array:
    """dscale and dshift, (2, D)."""
    cut = shares(*x.shape, dy, x, summed=True)
    sums = cupy.empty((cut.chunks, 2 * x.shape[1]), accum_dtype(x.dtype))
    run("norm.cu", name, x, cut, (*operand(dy), *operand(x), mean, var, eps, sums))
    return total(sums).reshape(2, -1)


def _by_row(name, x, cut, arguments, centred):
    """Launch a kernel of norm_rows.cu, a warp to each row."""
    if x.size:
        code = kernel("norm_rows.cu", name, dtype_name(x.dtype), *cut.macros, ("CENTRED", int(centred)))
        code((-(-len(x) // (_THREADS // 32)),), (_THREADS,), (*arguments, *x.shape))
