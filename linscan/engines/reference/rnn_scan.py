"""The plain loop over time, a cell's step after the other: the definition of `rnn_scan` and of its pullback."""

from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, namespace


def rnn_scan(r: Any, *, reverse: bool, keep: bool, workers: Any) -> tuple[Array, Array, Any]:
    """See `linscan.ops.rnn_scan`: outputs, final state and, with `keep`, what the pullback needs: states and y."""
    xp, compute = namespace(r.x), accum_dtype(r.x.dtype)
    *lead, T, G, d = r.x.shape
    h = xp.empty((*lead, T, d), r.x.dtype)
    states = xp.empty((*lead, T if keep else 0, r.cell.states, d), compute)
    ys = xp.empty((*lead, T if keep else 0, G, d), compute)
    s = xp.asarray(r.s0)
    with np.errstate(all="ignore"):
        for t in _times(T, reverse):
            if r.reset is not None:
                s = xp.where(r.reset[..., t, None, None], r.start, s)
            y = r.cell.product(r.R, r.b, s)
            s = r.cell.step(r.x[..., t, :, :].astype(compute, copy=False), y, s, r.w)
            h[..., t, :] = s[..., 0, :]
            if keep:
                states[..., t, :, :], ys[..., t, :, :] = s, y
    return h, xp.array(s), (states, ys)


def rnn_scan_pullback(
    r: Any, saved: Any, dh: Array, dlast: Array, *, reverse: bool, workers: Any
) -> tuple[Array, Array, Array | None, Array]:
    """See `linscan.ops.rnn_scan`: gradients of x, y, w and the first state."""
    xp, (states, ys) = namespace(r.x), saved
    dx, dy = xp.empty(ys.shape, ys.dtype), xp.empty(ys.shape, ys.dtype)
    dw = None if r.w is None else xp.zeros(r.w.shape, ys.dtype)
    ds = xp.array(dlast, ys.dtype)
    times = list(_times(ys.shape[-3], reverse))
    with np.errstate(all="ignore"):
        for i in reversed(range(len(times))):
            t = times[i]
            s = states[..., times[i - 1], :, :] if i else r.s0
            if r.reset is not None:
                s = xp.where(r.reset[..., t, None, None], r.start, s)
            ds[..., 0, :] += dh[..., t, :]
            x = r.x[..., t, :, :].astype(ys.dtype, copy=False)
            dx[..., t, :, :], gy, gs, gw = r.cell.step_vjp(x, ys[..., t, :, :], s, r.w, ds)
            dy[..., t, :, :] = gy
            ds = gs + r.cell.product_vjp(r.R, s, gy)
            if dw is not None:
                dw += gw
            if r.reset is not None:
                ds = xp.where(r.reset[..., t, None, None], 0, ds)
    return dx, dy, dw, ds


def _times(length: int, reverse: bool) -> range:
    return range(length - 1, -1, -1) if reverse else range(length)
