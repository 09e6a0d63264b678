"""The plain loop over time, one batched matrix product a step: the definition of `block_scan` and of its pullback.

`A` has all axes, of size 1 where it broadcasts: it holds one matrix for all steps where its time axis has size 1.
"""

from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, namespace


@np.errstate(over="ignore", invalid="ignore")
def block_scan(A: Array, b: Array, h0: Array | None, *, reverse: bool, reset: Array | None, workers: Any) -> Array:
    xp, compute = namespace(b), accum_dtype(b.dtype)
    result = xp.empty(b.shape, b.dtype)
    h = xp.zeros((*b.shape[:-2], b.shape[-1]), compute) if h0 is None else h0.astype(compute)
    for t in _times(b.shape[-2], reverse):
        carried = (_matrix(A, t, compute) @ h[..., None])[..., 0]
        if reset is not None:
            carried = xp.where(reset[..., t, None], 0, carried)
        h = carried + b[..., t, :]
        result[..., t, :] = h
    return result


@np.errstate(over="ignore", invalid="ignore")
def block_scan_pullback(
    A: Array, h: Array, h0: Array | None, dh: Array, *, reverse: bool, reset: Array | None, workers: Any
) -> tuple[Array, Array, Array]:
    xp, compute = namespace(h), accum_dtype(h.dtype)
    n = h.shape[-1]
    dA, db = xp.zeros((*h.shape[:-2], A.shape[-3], n, n), compute), xp.empty(h.shape, h.dtype)
    first = xp.zeros((*h.shape[:-2], n), h.dtype) if h0 is None else h0
    times = list(_times(h.shape[-2], reverse))
    flow = xp.zeros(first.shape, compute)  # A[t+1]^H δ[t+1]
    for i in reversed(range(len(times))):
        t = times[i]
        before = h[..., times[i - 1], :] if i else first
        delta = dh[..., t, :] + flow
        db[..., t, :] = delta
        slope = delta[..., :, None] * xp.conj(before).astype(compute, copy=False)[..., None, :]
        flow = (xp.conj(_matrix(A, t, compute)).swapaxes(-1, -2) @ delta[..., None])[..., 0]
        if reset is not None:
            starts = reset[..., t, None]
            slope, flow = xp.where(starts[..., None], 0, slope), xp.where(starts, 0, flow)
        dA[..., t if A.shape[-3] > 1 else 0, :, :] += slope
    return dA, db, flow


def _matrix(A: Array, t: int, compute: Any) -> Array:
    return A[..., t if A.shape[-3] > 1 else 0, :, :].astype(compute, copy=False)


def _times(length: int, reverse: bool) -> range:
    return range(length - 1, -1, -1) if reverse else range(length)
