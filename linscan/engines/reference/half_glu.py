"""A gate opened by what it lets through, put together from other loops of whichever engine runs."""

from typing import Any

from linscan._arrays import Array, namespace
from linscan.engines import pick


def half_glu(x: Array, w: Array, b: Array | None, around: Array | None, kind: str) -> tuple[Array, Array]:
    """See `linscan.ops.half_glu.half_glu_vjp`: y and ``z = f(x) w`` for matrices x and `around`, (n, D)."""
    z = _run("dense", x, _curved(x, kind), w, None)
    return _run("gate", x, x, z, b, around), z


def half_glu_pullback(dy: Array, x: Array, z: Array, w: Array, b: Array | None, kind: str) -> tuple[Any, ...]:
    """The gradients ``(dx, dw, db)`` without what flows around; db is None if there is no `b`."""
    xp = namespace(x)
    through, dz = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
    db = _run("gate_pullback", x, dy, x, z, b, through, dz)
    dw, _ = _run("dense_pullback", x, _curved(x, kind), dz, False)
    return _run("activation_pullback", x, _run("dense", x, dz, w.T, None), x, kind, through), dw, db


def _curved(x: Array, kind: str) -> Array:
    return x if kind == "identity" else _run("activation", x, x, kind)


def _run(function: str, like: Array, *args: Any) -> Any:
    return pick(function, like.dtype, like)(*args)
