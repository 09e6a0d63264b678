"""Norms and their pullbacks on the CPU: every row or column is read once for each statistic, a tile at a time."""

from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu import norm_loops
from linscan.engines.cpu.rows import Out, flat, for_tiles, tiles


def row_norm(x: Array, scale: Array | None, shift: Array | None, eps: float, *, centred: bool):
    """See `linscan.engines.reference.norm`."""
    (n, D), compute = x.shape, accum_dtype(x.dtype)
    y, numbers = np.empty(x.shape, x.dtype), _numbers(compute, eps, D)
    mean, r = np.empty(n, compute), np.zeros(n, compute)
    scale, shift = _row(scale, 1, D, compute), _row(shift, 0, D, compute)

    def body(_: int, part: slice) -> None:
        out = Out(y[part], compute)
        norm_loops.rows(flat(x[part], compute), scale, shift, numbers, out.memory, mean[part], r[part], centred)
        out.store()

    if x.size:
        for_tiles(body, n, D)
    return y, mean if centred else None, r


def row_norm_pullback(dy: Array, x: Array, scale: Array | None, mean: Array | None, r: Array, around: Array | None):
    """See `linscan.engines.reference.norm`."""
    (n, D), compute = x.shape, accum_dtype(x.dtype)
    dx, numbers = np.empty(x.shape, x.dtype), _numbers(compute, 0, D)
    means, scale, sums = r if mean is None else mean, _row(scale, 1, D, compute), np.zeros((2, tiles(n, D), D), compute)

    def body(i: int, part: slice) -> None:
        out = Out(dx[part], compute)
        ins = flat(dy[part], compute), flat(x[part], compute), scale, means[part], r[part], numbers
        norm_loops.rows_back(*ins, out.memory, *sums[:, i], mean is not None)
        out.store(None if around is None else around[part])

    if x.size:
        for_tiles(body, n, D)
    return dx, *_added(sums)


def batch_norm(x: Array, scale: Array | None, shift: Array | None, mean: Array | None, var: Array | None, eps: float):
    """See `linscan.engines.reference.norm`."""
    D, compute = x.shape[1], accum_dtype(x.dtype)
    y = np.empty(x.shape, x.dtype)
    if mean is None or var is None:
        mean = _moment(x, np.zeros(D, compute), compute, squared=False)
        var = _moment(x, mean, compute, squared=True)
    factor = flat((var + eps) ** -0.5 * (1 if scale is None else scale), compute)
    centre, shift = flat(mean, compute), _row(shift, 0, D, compute)

    def body(_: int, part: slice) -> None:
        out = Out(y[part], compute)
        norm_loops.columns(flat(x[part], compute), centre, factor, shift, out.memory)
        out.store()

    if x.size:
        for_tiles(body, *x.shape)
    return y, mean, var


def batch_norm_pullback(
    dy: Array, x: Array, scale: Array | None, mean: Array, var: Array, eps: float, around: Array | None, *, own: bool
):
    """See `linscan.engines.reference.norm`."""
    (n, D), compute = x.shape, accum_dtype(x.dtype)
    dx, sums = np.empty(x.shape, x.dtype), np.zeros((2, tiles(n, D), D), compute)
    centre, r = flat(mean, compute), flat((var + eps) ** -0.5, compute)

    def add(i: int, part: slice) -> None:
        norm_loops.columns_sums(flat(dy[part], compute), flat(x[part], compute), centre, r, *sums[:, i])

    def body(_: int, part: slice) -> None:
        out = Out(dx[part], compute)
        norm_loops.columns_back(flat(dy[part], compute), flat(x[part], compute), centre, factors, out.memory)
        out.store(None if around is None else around[part])

    if x.size:
        for_tiles(add, n, D)
    dscale, dshift = _added(sums)
    share = compute.type(1 / max(1, n) if own else 0)
    factors = tuple(flat(a, compute) for a in (r if scale is None else r * scale, dshift * share, dscale * r * share))
    if x.size:
        for_tiles(body, n, D)
    return dx, dscale, dshift


def _moment(x: Array, about: Array, dtype: np.dtype, *, squared: bool) -> Array:
    """The mean of all rows about a row, or of the squares of what remains."""
    (n, D), centre = x.shape, flat(about, dtype)
    sums = np.zeros((tiles(n, D), D), dtype)

    def body(i: int, part: slice) -> None:
        norm_loops.moment(flat(x[part], dtype), centre, sums[i], squared)

    if x.size:
        for_tiles(body, n, D)
    return _added(sums[None])[0] / max(1, n)


def _added(sums: Array) -> Array:
    """The sums of all tiles, (…, tiles, D) to (…, D)."""
    return sums.sum(1, dtype=np.float64).astype(sums.dtype)


def _row(x: Array | None, default: float, width: int, dtype: np.dtype) -> Array:
    return np.full(width, default, dtype) if x is None else flat(x, dtype)


def _numbers(dtype: np.dtype, eps: float, width: int) -> tuple[Any, ...]:
    return tuple(map(dtype.type, (eps, 0, 1, 1 / max(1, width))))
