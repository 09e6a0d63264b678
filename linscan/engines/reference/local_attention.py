"""Sliding-window attention lag by lag, in array operations: the definition of `local_attention` and its pullback.

At one lag every query meets one key, so nothing but O(T) numbers is in memory, and a key that a query does not see
cannot reach it. The softmax is kept with its largest score so far, and rescaled when a larger one comes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, namespace


@np.errstate(all="ignore")  # inf - inf is NaN, as it should be
def local_attention(
    q: Array, k: Array, v: Array, g: Any, own: Any, seen: Any, *, window: int, causal: bool, scale: float, workers: Any
) -> tuple[Array, Array]:
    """The output, and the logarithm of each query's sum of weights (inf where it sees none)."""
    xp, compute = namespace(q), accum_dtype(q.dtype)
    o = xp.zeros((*q.shape[:-1], v.shape[-1]), compute)
    top, total = xp.full(q.shape[:-1], -np.inf, compute), xp.zeros(q.shape[:-1], compute)
    for _, at, to, score in _lags(q, k, g, own, seen, window, causal, scale):
        new = xp.maximum(top[..., at], score)
        base = xp.where(new == -np.inf, xp.zeros((), compute), new)
        old, weight = xp.exp(top[..., at] - base), xp.exp(score - base)
        visible = score != -np.inf
        total[..., at] = total[..., at] * old + weight
        term = xp.where(visible[..., None], weight[..., None] * v[..., to, :], xp.zeros((), compute))
        o[..., at, :] = o[..., at, :] * old[..., None] + term
        top[..., at] = new
    empty = total == 0
    o /= xp.where(empty, xp.ones((), compute), total)[..., None]
    total = xp.where(empty, np.inf, top + xp.log(xp.where(empty, xp.ones((), compute), total)))
    return o.astype(q.dtype, copy=False), total.astype(compute, copy=False)


@np.errstate(all="ignore")
def local_attention_pullback(
    q: Array, k: Array, v: Array, g: Any, own: Any, seen: Any, o: Array, total: Array, do: Array,
    *, window: int, causal: bool, scale: float, workers: Any,
) -> tuple[Any, ...]:  # fmt: skip
    xp, compute = namespace(q), accum_dtype(q.dtype)
    dq, dk, dv = (xp.zeros(x.shape, compute) for x in (q, k, v))
    dg: Any = None if g is None else xp.zeros(g.shape, compute)
    do = do.astype(compute, copy=False)
    mean = (do * o.astype(compute, copy=False)).sum(-1)  # what a weight's gradient is compared with
    past, slopes = k.shape[-2] - q.shape[-2], []
    for lag, at, to, score in _lags(q, k, g, own, seen, window, causal, scale):
        visible = (score != -np.inf) & (total[..., at] != np.inf)
        p = xp.where(visible, xp.exp(score - total[..., at]), xp.zeros((), compute))
        dp = (do[..., at, :] * v[..., to, :]).sum(-1)
        ds = xp.where(visible, p * (dp - mean[..., at]), xp.zeros((), compute))
        dq[..., at, :] += _times(visible, scale * ds, k[..., to, :])
        dk[..., to, :] += _times(visible, scale * ds, q[..., at, :])
        dv[..., to, :] += _times(visible, p, do[..., at, :])
        if dg is not None and lag:
            slopes.append((lag, at, ds))
    for sign in (1, -1):  # the gate that lag n brings in is in all longer lags too
        beyond = xp.zeros(q.shape[:-1], compute)
        for lag, at, ds in sorted((x for x in slopes if x[0] * sign > 0), key=lambda x: -abs(x[0])):
            beyond[..., at] += ds
            step = past - lag + (1 if sign > 0 else 0)
            dg[..., at.start + step : at.stop + step] += beyond[..., at]
    return *(x.astype(q.dtype, copy=False) for x in (dq, dk, dv)), None if dg is None else dg.astype(
        q.dtype, copy=False
    )


def _times(visible: Array, weight: Array, x: Array) -> Array:
    """``weight x`` along the last axis, zero where nothing is visible even if `x` is not finite."""
    return namespace(x).where(visible[..., None], weight[..., None] * x, namespace(x).zeros((), weight.dtype))


def _lags(
    q: Array, k: Array, g: Any, own: Any, seen: Any, window: int, causal: bool, scale: float
) -> Iterator[tuple[int, slice, slice, Array]]:
    """Each lag with the steps of its queries, of their keys, and the scores; -inf where the key is not seen."""
    xp, compute = namespace(q), accum_dtype(q.dtype)
    length, past = q.shape[-2], k.shape[-2] - q.shape[-2]
    earlier = range(min(window, length + past))
    for lag in [*earlier, *(range(-1, -min(window, length), -1) if not causal else [])]:
        at = slice(max(0, lag - past), min(length, length + lag))
        to = slice(at.start + past - lag, at.stop + past - lag)
        score = scale * (q[..., at, :].astype(compute, copy=False) * k[..., to, :].astype(compute, copy=False)).sum(-1)
        if g is not None:
            if lag in (0, -1):
                bias = xp.zeros(q.shape[:-1], np.float64)
            if lag:
                gate = slice(to.start + (lag > 0), to.stop + (lag > 0))
                bias[..., at] += g[..., gate]
            score = score + bias[..., at].astype(compute, copy=False)
        if own is not None:
            score = xp.where(own[..., at] == seen[..., to], score, xp.asarray(-np.inf, compute))
        yield lag, at, to, score


@np.errstate(all="ignore")
def attend_last(q: Array, k: Array, v: Array, g: Any, own: Any, seen: Any, scale: float) -> Array:
    """The output of the one query in `q`, which stands at the last key; all keys are in its window."""
    xp, dtype = namespace(q), q.dtype
    q, k, v = (x.astype(accum_dtype(dtype), copy=False) for x in (q, k, v))
    score = scale * xp.matmul(k, q[..., 0, :, None])[..., 0]
    if g is not None:
        after = xp.concatenate([g[..., 1:], xp.zeros_like(g[..., :1])], -1).astype(np.float64)
        score = score + xp.cumsum(after[..., ::-1], -1)[..., ::-1].astype(score.dtype)
    visible = own[..., -1:] == seen
    score = xp.where(visible, score, xp.asarray(-np.inf, score.dtype))
    top = score.max(-1, keepdims=True)
    weight = xp.exp(score - xp.where(top == -np.inf, xp.zeros((), top.dtype), top))
    total = weight.sum(-1, keepdims=True)
    weight /= xp.where(total == 0, xp.ones((), total.dtype), total)
    v = xp.where((score != -np.inf)[..., None], v, xp.zeros((), v.dtype))
    return xp.matmul(weight[..., None, :], v)[..., 0, :].astype(dtype, copy=False)
