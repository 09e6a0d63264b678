"""The two ends of a state space: what its states are given, and what is read from them with the term that passes by.

    v = u w,  y = Re(x w') + D u    for real u and y, complex v and x

The input is in both, and what both hand back to it is one pass over memory.
"""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.dense import parts, product, sums, working


def inlet_vjp(u: Array, w: Array, D: Array) -> tuple[Array, Callable[[Array | None, Array | None], tuple[Array, ...]]]:
    """``v = u w``, and the pullback of that and of the term ``D u`` of `outlet_vjp`.

    Parameters
    ----------
    u : array, shape (…, channels)
        Real.
    w : array, shape (channels, states)
        Complex.
    D : array, shape (channels,)

    Returns
    -------
    v : array, shape (…, states)
    pullback : callable
        ``pullback(dv, dy)`` to ``(du, dw, dD)``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.ports import inlet_vjp
    >>> v, pullback = inlet_vjp(np.array([[1.0, 2.0]]), np.array([[1j], [2.0]]), np.array([10.0, 10.0]))
    >>> v, pullback(v, np.array([[0.0, 1.0]]))[0]
    (array([[4.+1.j]]), array([[ 1., 18.]]))
    """
    xp, given, (u, w, D) = _prepare("inlet", u=u, w=w, D=D)
    if w.ndim != 2 or not u.shape[-1:] == w.shape[:1] == D.shape:
        raise ValueError(
            f"inlet: u, w and D must have shapes (..., D), (D, P) and (D,); got {u.shape}, {w.shape} and {D.shape}"
        )
    rows, shape = _arrays.matrix(u), (*u.shape[:-1], w.shape[1])
    v = product(xp, rows, w, False).reshape(shape)
    run = pick("ports_pullback", rows.dtype, rows)

    def pullback(dv: Array | None, dy: Array | None) -> tuple[Array, ...]:
        # du = Re(dv wᴴ) + D dy, dw = uᵀ dv: real products of real and imaginary parts beside each other.
        g, h = _arrays.cotangent("inlet", "dv", dv, v), _arrays.cotangent("inlet", "dy", dy, u)
        du, dw, dD = run(parts(xp, _arrays.matrix(g)), _arrays.matrix(h), rows, parts(xp, w), D)
        return tuple(map(_arrays.grad_like, (du.reshape(u.shape), dw.view(w.dtype), dD), given))

    return v, pullback


def outlet_vjp(x: Array, w: Array, u: Array, D: Array) -> tuple[Array, Callable[[Array | None], tuple[Array, ...]]]:
    """``y = Re(x w) + D u``, and the pullback to x and w; that to u and D is `inlet_vjp`'s.

    Parameters
    ----------
    x : array, shape (…, states)
        Complex.
    w : array, shape (states, channels)
        Complex.
    u : array, shape (…, channels)
        Real.
    D : array, shape (channels,)

    Returns
    -------
    y : array, shape (…, channels)
    pullback : callable
        ``pullback(dy)`` to ``(dx, dw)``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.ports import outlet_vjp
    >>> y, pullback = outlet_vjp(np.array([[1j]]), np.array([[1.0, 1j]]), np.array([[1.0, 2.0]]), np.array([1.0, 1.0]))
    >>> y, pullback(np.array([[0.0, 1.0]]))
    (array([[1., 1.]]), (array([[0.-1.j]]), array([[0.+0.j, 0.-1.j]])))
    """
    xp, given, (x, w, u, D) = _prepare("outlet", x=x, w=w, u=u, D=D)
    if w.shape != x.shape[-1:] + D.shape or u.shape != x.shape[:-1] + D.shape or D.ndim != 1:
        raise ValueError(
            "outlet: x, w, u and D must have shapes (..., P), (P, D), (..., D) and (D,); "
            f"got {x.shape}, {w.shape}, {u.shape} and {D.shape}"
        )
    rows, beside = _arrays.matrix(x), _arrays.matrix(u)
    y = pick("ports", beside.dtype, beside)(parts(xp, rows), parts(xp, w.conj().T).T, beside, D).reshape(u.shape)
    y = _arrays.cast(xp, y, _arrays.result_dtype("outlet", u=given[2], D=given[3]))

    def pullback(dy: Array | None) -> tuple[Array, ...]:
        g = _arrays.matrix(working(xp, _arrays.cotangent("outlet", "dy", dy, y), w.dtype))
        dx = product(xp, g, w.conj().T, False).reshape(x.shape)
        return tuple(map(_arrays.grad_like, (dx, sums(xp, rows, g, False, False)[0]), given[:2]))

    return y, pullback


def _prepare(who: str, **named: Any) -> tuple[Any, list[Array], list[Array]]:
    """The library, the arguments as given, and in the precision of arithmetic."""
    xp, *given = _arrays.take(who, **named)
    dtype = _arrays.result_dtype(who, **dict(zip(named, given, strict=True)))
    return xp, given, [working(xp, x, dtype) for x in given]
