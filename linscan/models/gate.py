"""The gates of blocks by name."""

from collections.abc import Callable
from typing import Any

from linscan._arrays import Array
from linscan.models.layer import Params, affine
from linscan.ops.activation import gate_vjp, glu_vjp
from linscan.ops.dense import dense_vjp
from linscan.ops.half_glu import half_glu_vjp

GATES = ("glu", "half_glu1", "half_glu2", "linear", "none")


def mixed_vjp(kind: str, mix: Params, x: Array, a: Array, u: Array | None) -> tuple[Array, Callable[[Array], Any]]:
    """A gate's output, added to u if that is given, and the pullback to x past the activation, a and ``mix``."""
    if kind == "none":
        return a if u is None else u + a, lambda dy: (None, dy, {})
    w, b = affine(mix)
    if kind == "half_glu2":
        return _of_others(w, b, x, a, u)
    if kind == "half_glu1":
        y, back = half_glu_vjp(a, w, b, u, kind="identity")
    else:
        m, back1 = dense_vjp(a, w, b)
        y, back2 = glu_vjp(m, u) if kind == "glu" else (m if u is None else u + m, lambda dy: (dy,))

        def back(dy: Array) -> tuple[Array, ...]:
            return back1(back2(dy)[0])

    return y, lambda dy: (None, (grads := back(dy))[0], {"w": grads[1], "b": grads[2]})


def opened_vjp(mix: Params, x: Array, u: Array, activation: str) -> tuple[Array, Callable[[Array], Any]]:
    """``half_glu2`` where a is the activated x itself, added to u, and the pullback to x and ``mix``."""
    y, back = half_glu_vjp(x, *affine(mix), u, kind=activation)
    return y, lambda dy: ((grads := back(dy))[0], {"w": grads[1], "b": grads[2]})


def _of_others(w: Array, b: Array, x: Array, a: Array, u: Array | None) -> tuple[Array, Callable[[Array], Any]]:
    m, back1 = dense_vjp(a, w)
    y, back2 = gate_vjp(x, m, b, u)

    def pullback(dy: Array) -> tuple[Array | None, Array, Params]:
        dx, dm, db, _ = back2(dy)
        da, dw, _ = back1(dm)
        return dx, da, {"w": dw, "b": db}

    return y, pullback
