"""What `selective_scan` works on: its arguments in one form, and gradients back in theirs.

Apart from `selective_scan` because the forward, the step and the gradient all stand on it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from linscan import _arrays
from linscan._arrays import Array

NAMES = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "h0")


class Problem(NamedTuple):
    """All arguments with their leading axes flattened into rows, R of them, and the shapes of the results.

    `arrays` are u, dt (R, T, D), A (D, N), B, C (R, T, G, N), D (D,), z (R, T, D), dt_bias (D,), h0 (R, D, N), the
    sequences in `dtype` (dt and z in its real counterpart), the others in the dtype of the arithmetic. `given` are the
    arguments as they came.
    """

    given: tuple[Any, ...]
    arrays: tuple[Any, ...]
    reset: Array | None
    lead: tuple[int, ...]
    grouped: tuple[bool, bool]
    dtype: np.dtype

    def unflat(self, x: Array) -> Array:
        """`x` with its rows as leading axes again."""
        return x.reshape(self.lead + x.shape[1:])


def prepare(who: str, args: Sequence[Any], reset: Any) -> Problem:
    """The arguments of `selective_scan` after all checks."""
    xp, *given, reset = _arrays.take(who, **dict(zip(NAMES, args, strict=True)), reset=reset)
    dtype = _dtype(who, dict(zip(NAMES, given, strict=True)))
    u, dt, A, B, C, D, z, dt_bias, h0 = _converted(xp, given, dtype)
    shape = _arrays.broadcast_shapes(who, **_shapes(u=u, dt=dt, z=z))
    if len(shape) < 2:
        raise ValueError(f"{who}: u and dt need axes of time and channels, (…, T, D); got {u.shape} and {dt.shape}")
    if A.ndim < 1 or A.ndim > 2:
        raise ValueError(f"{who}: A must be (D, N); got {A.shape}")
    grouped = B.ndim == len(shape) + 1, C.ndim == len(shape) + 1
    B, C = (x if is_grouped else x[..., None, :] for x, is_grouped in zip(_timed(who, B, C), grouped, strict=True))
    lead, (length, channels) = shape[:-2], shape[-2:]
    states = _arrays.broadcast_shapes(who, A=A.shape[-1:], B=B.shape[-1:], C=C.shape[-1:])
    groups = _groups(who, B, C, channels)
    leads = {"u": lead, "B": B.shape[:-3], "C": C.shape[:-3]}
    leads |= {} if h0 is None else {"h0": h0.shape[:-2]}
    leads |= {} if reset is None else {"reset": (reset := _flags(who, xp, reset)).shape[:-1]}
    lead = _arrays.broadcast_shapes(f"{who}: leading axes", **leads)

    def full(name: str, x: Any, tail: tuple[int, ...], has_rows: bool = True) -> Any:
        if x is None:
            return None
        x = _arrays.broadcast_to(who, name, x, (lead if has_rows else ()) + tail)
        return x.reshape((math.prod(lead), *tail)) if has_rows else x

    sequence, vectors = (length, channels), (length, groups, *states)
    arrays = (
        *(full(name, x, sequence) for name, x in (("u", u), ("dt", dt))),
        full("A", A, (channels, *states), False),
        *(full(name, x, vectors) for name, x in (("B", B), ("C", C))),
        full("D", D, (channels,), False),
        full("z", z, sequence),
        full("dt_bias", dt_bias, (channels,), False),
        full("h0", h0, (channels, *states)),
    )
    return Problem(tuple(given), arrays, full("reset", reset, (length,)), lead, grouped, dtype)


def _shapes(**named: Any) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in named.items() if x is not None}


def _dtype(who: str, given: dict[str, Any]) -> np.dtype:
    """The sequences' dtype; 16-bit sequences stay what they are beside parameters in single precision."""
    for name in ("dt", "z", "dt_bias"):
        kind = getattr(given[name], "dtype", np.dtype(type(given[name])) if given[name] is not None else None)
        if kind is not None and kind.kind == "c":
            raise TypeError(f"{who}: {name} must be real; got {kind}")
    short = _arrays.result_dtype(who, **{name: given[name] for name in ("u", "dt", "B", "C", "z")})
    dtype = _arrays.result_dtype(who, **given)
    return short if dtype == _arrays.accum_dtype(short) else dtype


def _converted(xp: Any, given: Sequence[Any], dtype: np.dtype) -> list[Any]:
    compute = _arrays.accum_dtype(dtype)
    kinds = {"A": compute, "D": compute, "h0": compute, "dt_bias": _arrays.real_dtype(compute)}
    kinds |= {"dt": _arrays.real_dtype(dtype), "z": _arrays.real_dtype(dtype)}
    return [None if x is None else xp.asarray(x, kinds.get(n, dtype)) for n, x in zip(NAMES, given, strict=True)]


def _timed(who: str, B: Array, C: Array) -> tuple[Array, Array]:
    for name, x in (("B", B), ("C", C)):
        if x.ndim < 2:
            raise ValueError(f"{who}: {name} must be (…, T, N) or (…, T, G, N); got {x.shape}")
    return B, C


def _groups(who: str, B: Array, C: Array, channels: int) -> int:
    (groups,) = _arrays.broadcast_shapes(f"{who}: groups", B=B.shape[-2:-1], C=C.shape[-2:-1])
    if groups == 0 or channels % groups:
        raise ValueError(f"{who}: the groups of B and C must divide the channels; got {groups} and {channels}")
    return groups


def _flags(who: str, xp: Any, reset: Any) -> Array:
    reset = xp.asarray(reset)
    if reset.dtype.kind not in "biu":
        raise TypeError(f"{who}: reset must be boolean; got {reset.dtype}")
    return xp.atleast_1d(reset.astype(bool, copy=False))


def gradients(p: Problem, grads: Sequence[Array | None]) -> tuple[Array | None, ...]:
    """An engine's gradients, one for every row, as the arguments want them."""
    full: list[Any] = [None if g is None else p.unflat(g) for g in grads]
    for i, is_grouped in zip((3, 4), p.grouped, strict=True):
        if not is_grouped:
            full[i] = full[i].sum(-2)
    return tuple(None if g is None else _arrays.grad_like(g, x) for g, x in zip(full, p.given, strict=True))
