"""The plain sum over taps, in array operations: the definition of `short_conv` and of its pullback.

`w` is (…, K) and `bias` (…), their leading axes those of `u` without time, or 1. Time is brought last.
"""

from typing import Any

from linscan._arrays import Array, accum_dtype, grad_like, namespace


def short_conv(
    u: Array,
    w: Array,
    bias: Array | None,
    state: Array | None,
    *,
    axis: int,
    dilation: int,
    reverse: bool,
    **options: Any,
) -> Array:
    xp, compute = namespace(u), accum_dtype(u.dtype)
    seen, keep = _seen(u, state, w.shape[-1], axis, dilation, reverse, options["reset"])
    w = w.astype(compute, copy=False)
    length = u.shape[axis]
    y = xp.zeros((*seen.shape[:-1], length), compute)
    if bias is not None:
        y += bias.astype(compute, copy=False)[..., None]
    for j, first in enumerate(_firsts(w.shape[-1], dilation, reverse)):
        y += w[..., j : j + 1] * keep(seen[..., first : first + length], first)
    return xp.ascontiguousarray(xp.moveaxis(y, -1, axis)).astype(u.dtype, copy=False)


def short_conv_pullback(
    u: Array,
    w: Array,
    bias: Array | None,
    state: Array | None,
    dy: Array,
    *,
    axis: int,
    dilation: int,
    reverse: bool,
    **options: Any,
) -> tuple[Array, Array, Array | None, Array | None]:
    """The gradients of `u`, `w`, `bias` and `state`, summed over the axes in which `w` and `bias` were broadcast."""
    xp, compute = namespace(u), accum_dtype(u.dtype)
    seen, keep = _seen(u, state, w.shape[-1], axis, dilation, reverse, options["reset"])
    dy = xp.moveaxis(dy, axis, -1).astype(compute, copy=False)
    length, span = u.shape[axis], (w.shape[-1] - 1) * dilation
    dseen, dw = xp.zeros(seen.shape, compute), xp.zeros((*seen.shape[:-1], w.shape[-1]), compute)
    for j, first in enumerate(_firsts(w.shape[-1], dilation, reverse)):
        part = slice(first, first + length)
        dseen[..., part] += keep(xp.conj(w[..., j : j + 1]).astype(compute, copy=False) * dy, first)
        dw[..., j] = (dy * xp.conj(keep(seen[..., part], first))).sum(-1)
    dpast, du = (dseen[..., length:], dseen[..., :length]) if reverse else (dseen[..., :span], dseen[..., span:])
    du, dpast = (xp.moveaxis(x, -1, axis).astype(u.dtype, copy=False) for x in (du, dpast))
    return du, grad_like(dw, w), grad_like(dy.sum(-1), bias), None if state is None else dpast


def _firsts(width: int, dilation: int, reverse: bool) -> list[int]:
    """For each tap, which of the inputs seen meets the first output."""
    return [(j if reverse else width - 1 - j) * dilation for j in range(width)]


def _seen(
    u: Array, state: Array | None, width: int, axis: int, dilation: int, reverse: bool, reset: Array | None
) -> Any:
    """The inputs with the state before them (after, if reversed), and what zeroes those of another sequence.

    Sequences are numbered; a tap reaches an input if no reset lies between, that is if both have the same number.
    """
    xp, span = namespace(u), (width - 1) * dilation
    u = xp.moveaxis(u, axis, -1).astype(accum_dtype(u.dtype), copy=False)
    past = xp.zeros((*u.shape[:-1], span), u.dtype) if state is None else xp.moveaxis(state, axis, -1).astype(u.dtype)
    seen = xp.concatenate([u, past] if reverse else [past, u], -1)
    if reset is None:
        return seen, lambda x, first: x
    number, length = sequence_numbers(xp.moveaxis(reset, axis, -1), span, reverse), u.shape[-1]
    own = number[..., :length] if reverse else number[..., span:]
    return seen, lambda x, first: xp.where(number[..., first : first + length] == own, x, 0)


def sequence_numbers(reset: Array, span: int, reverse: bool) -> Array:
    """How many resets came before each input seen, in the order of the sum; time is last, the state counts as 0."""
    xp = namespace(reset)
    past = xp.zeros((*reset.shape[:-1], span), xp.int64)
    if reverse:
        return xp.concatenate([xp.cumsum(reset[..., ::-1], -1)[..., ::-1], past], -1)
    return xp.concatenate([past, xp.cumsum(reset, -1)], -1)
