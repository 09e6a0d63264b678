"""A gate opened by what it lets through, put together from other loops of whichever engine runs."""

from typing import Any

from linscan._arrays import Array, namespace
from linscan.engines import call


def half_glu(x: Array, w: Array, b: Array | None, around: Array | None, kind: str) -> tuple[Array, Array]:
    """See `linscan.ops.half_glu.half_glu_vjp`: y and ``z = f(x) w`` for matrices x and `around`, (n, D)."""
    z = call("dense", x, _curved(x, kind), w, None)
    return call("gate", x, x, z, b, around), z


def half_glu_pullback(dy: Array, x: Array, z: Array, w: Array, b: Array | None, kind: str) -> tuple[Any, ...]:
    """The gradients ``(dx, dw, db)`` without what flows around; db is None if there is no `b`."""
    xp = namespace(x)
    through, dz = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
    db = call("gate_pullback", x, dy, x, z, b, through, dz)
    dw, _ = call("dense_pullback", x, _curved(x, kind), dz, False)
    return call("activation_pullback", x, call("dense", x, dz, w.T, None), x, kind, through), dw, db


def _curved(x: Array, kind: str) -> Array:
    return x if kind == "identity" else call("activation", x, x, kind)
