"""The plain loop over time, in array operations: the definition of `scan` and of its pullback."""

from typing import Any

from linscan._arrays import Array, accum_dtype, namespace


def scan(
    a: Array, b: Array, h0: Array | None, *, axis: int, reverse: bool, reset: Array | None, out: Any, workers: Any
) -> Array:
    xp = namespace(b)
    compute = accum_dtype(b.dtype)
    result = xp.empty(b.shape, b.dtype) if out is None else out
    a, b, hs = (xp.moveaxis(x, axis, 0) for x in (a, b, result))
    starts = None if reset is None else xp.moveaxis(reset, axis, 0)
    h = xp.zeros(b.shape[1:], compute) if h0 is None else h0.astype(compute)
    for t in _times(len(b), reverse):
        carried = a[t].astype(compute, copy=False) * h
        if starts is not None:
            carried = xp.where(starts[t], 0, carried)
        h = carried + b[t]
        hs[t] = h
    return result


def scan_pullback(
    a: Array, h: Array, h0: Array | None, dh: Array, *, axis: int, reverse: bool, reset: Array | None, workers: Any
) -> tuple[Array, Array, Array]:
    xp = namespace(h)
    compute = accum_dtype(h.dtype)
    da, db = xp.empty(h.shape, h.dtype), xp.empty(h.shape, h.dtype)
    a, h, dh, das, dbs = (xp.moveaxis(x, axis, 0) for x in (a, h, dh, da, db))
    starts = None if reset is None else xp.moveaxis(reset, axis, 0)
    first = xp.zeros(h.shape[1:], h.dtype) if h0 is None else h0
    times = list(_times(len(h), reverse))
    flow = xp.zeros(h.shape[1:], compute)  # conj(a[t+1]) δ[t+1]
    for i in reversed(range(len(times))):
        t = times[i]
        before = h[times[i - 1]] if i else first
        delta = dh[t] + flow
        dbs[t] = delta
        slope = xp.conj(before) * delta
        flow = xp.conj(a[t]).astype(compute, copy=False) * delta
        if starts is not None:
            slope, flow = xp.where(starts[t], 0, slope), xp.where(starts[t], 0, flow)
        das[t] = slope
    return da, db, flow


def _times(length: int, reverse: bool) -> range:
    return range(length - 1, -1, -1) if reverse else range(length)
