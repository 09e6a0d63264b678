"""The plain loop over time, in array operations: the definition of `selective_scan` and of its pullback.

u, dt, z are (R, T, D), A (D, N), B and C (R, T, G, N), h0 (R, D, N). The pullback keeps one state in about sqrt(T) and
recomputes the others from it, chunk by chunk.
"""

import math
from typing import Any

from linscan._arrays import Array, accum_dtype, namespace, real_dtype


def softplus(x: Array) -> Array:
    """``log(1 + exp(x))``, which overflows nowhere."""
    xp = namespace(x)
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, the slope of `softplus`, with small relative error where it is small."""
    xp = namespace(x)
    return xp.exp(xp.minimum(x, 0)) / (1 + xp.exp(-xp.abs(x)))


def selective_scan(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    dt_bias: Array | None,
    h0: Array | None,
    *,
    keep: str,
    **options: Any,
) -> tuple[Array, Array, Any]:
    """``(y, h_last, kept)``: `kept` are all states ("all"), what the pullback wants ("some"), or None ("last")."""
    xp, length, compute = namespace(u), u.shape[1], A.dtype
    reset, real = options["reset"], options["real"]
    delta, _ = _steps(dt, dt_bias, options["dt_softplus"])
    x = u.astype(compute, copy=False)
    s = xp.empty(x.shape, compute)
    h = xp.zeros((len(u), *A.shape), compute) if h0 is None else h0
    stride = _stride(length)
    kept: Any = {"all": xp.empty((*x.shape, A.shape[1]), compute), "some": []}.get(keep)
    for i, t in enumerate(_times(length, options["reverse"])):
        if keep == "some" and i % stride == 0:
            kept.append(h)
        _, _, h = _advance(h, x[:, t], delta[:, t], A, B[:, t], None if reset is None else reset[:, t])
        s[:, t] = (_per_channel(C[:, t], A) * h).sum(-1)
        if keep == "all":
            kept[:, t] = h
    y = _skip_and_gate(s, x, D, z, real)
    return y.astype(real_dtype(u.dtype) if real else u.dtype, copy=False), xp.array(h), kept


def _times(length: int, reverse: bool) -> range:
    return range(length - 1, -1, -1) if reverse else range(length)


def _stride(length: int) -> int:
    return max(1, math.isqrt(length))


def _steps(dt: Array, dt_bias: Array | None, dt_softplus: bool) -> tuple[Array, Array | None]:
    """Δ, and its slope by `dt` (None: one)."""
    v = dt.astype(accum_dtype(dt.dtype), copy=False)
    v = v if dt_bias is None else v + dt_bias
    return (softplus(v), sigmoid(v)) if dt_softplus else (v, None)


def _per_channel(vectors: Array, A: Array) -> Array:
    """One step of B or C, (R, G, N), for every channel: (R, D, N) in the dtype of the arithmetic."""
    wide = vectors.astype(A.dtype, copy=False)
    return namespace(wide).repeat(wide, A.shape[0] // wide.shape[1], axis=1)


def _advance(h: Array, u: Array, delta: Array, A: Array, B: Array, fresh: Array | None) -> tuple[Array, Array, Array]:
    """The decay, what is left of the state before, and the state after."""
    xp = namespace(u)
    a = xp.exp(delta[..., None] * A)
    carried = a * h
    if fresh is not None:
        a, carried = (xp.where(fresh[:, None, None], 0, v) for v in (a, carried))
    return a, carried, carried + (delta * u)[..., None] * _per_channel(B, A)


def _skip_and_gate(s: Array, u: Array, D: Array | None, z: Array | None, real: bool) -> Array:
    s = s if D is None else s + D * u
    s = s.real if real else s
    if z is None:
        return s
    z = z.astype(accum_dtype(z.dtype), copy=False)
    return s * (z * sigmoid(z))


def selective_scan_pullback(
    u: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    dt_bias: Array | None,
    h0: Array | None,
    kept: Any,
    dy: Array,
    dh: Array,
    **options: Any,
) -> tuple[Array | None, ...]:
    """The gradients of all nine arrays, None where there is none, those of A, D and dt_bias for every row."""
    xp = namespace(u)
    u, dy = u.astype(A.dtype, copy=False), dy.astype(accum_dtype(dy.dtype), copy=False)
    delta, slope = _steps(dt, dt_bias, options["dt_softplus"])
    gate, gate_slope = _gate(z)
    g = dy if gate is None else dy * gate
    s, du, ddt, dA, dB, dC, dh0 = _backward(u, delta, A, B, C, kept, g, dh, options["reset"], options["reverse"])
    dz = None if z is None else (xp.conj(_skip_and_gate(s, u, D, None, options["real"])) * dy).real * gate_slope
    dD = None if D is None else (xp.conj(u) * g).sum(1)
    du = du if D is None else du + xp.conj(D) * g
    ddt = ddt if slope is None else ddt * slope
    return du, ddt, dA, dB, dC, dD, dz, None if dt_bias is None else ddt.sum(1), None if h0 is None else dh0


def _backward(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    kept: list[Array],
    g: Array,
    flow: Array,
    reset: Array | None,
    reverse: bool,
) -> tuple[Array, ...]:
    """``C·h``, and the gradients of u, Δ, A, B, C and h0 for the cotangents `g` of ``C·h`` and `flow` of the end."""
    xp, (rows, length, channels) = namespace(u), u.shape
    s, du, ddelta = xp.empty(u.shape, A.dtype), xp.empty(u.shape, A.dtype), xp.empty(u.shape, delta.dtype)
    dA, dB, dC = xp.zeros((rows, *A.shape), A.dtype), xp.empty(B.shape, A.dtype), xp.empty(C.shape, A.dtype)
    members = rows, B.shape[2], channels // B.shape[2], A.shape[1]
    times, stride = list(_times(length, reverse)), _stride(length)
    for first in range(stride * (len(kept) - 1), -1, -stride):
        h, chunk = kept[first // stride], []
        for t in times[first : first + stride]:
            a, carried, h = _advance(h, u[:, t], delta[:, t], A, B[:, t], None if reset is None else reset[:, t])
            chunk.append((t, a, carried, h))
        for t, a, carried, h in reversed(chunk):
            Bt, Ct, d = _per_channel(B[:, t], A), _per_channel(C[:, t], A), delta[:, t, :, None]
            s[:, t] = (Ct * h).sum(-1)
            grad = xp.conj(Ct) * g[:, t, :, None] + flow  # λ[t]; flow is conj(a[t+1]) λ[t+1]
            through, flow = xp.conj(carried) * grad, xp.conj(a) * grad
            if reset is not None:  # not even NaN gets back over it
                through, flow = (xp.where(reset[:, t, None, None], 0, v) for v in (through, flow))
            dx = (xp.conj(Bt) * grad).sum(-1)
            dA += d * through
            dB[:, t] = (d * xp.conj(u[:, t, :, None]) * grad).reshape(members).sum(2)
            dC[:, t] = (xp.conj(h) * g[:, t, :, None]).reshape(members).sum(2)
            du[:, t] = delta[:, t] * dx
            ddelta[:, t] = (xp.conj(u[:, t]) * dx + (xp.conj(A) * through).sum(-1)).real
    return s, du, ddelta, dA, dB, dC, flow


def _gate(z: Array | None) -> tuple[Array | None, Array | None]:
    """SiLU and its slope."""
    if z is None:
        return None, None
    z = z.astype(accum_dtype(z.dtype), copy=False)
    share = sigmoid(z)
    return z * share, share * (1 + z * sigmoid(-z))
