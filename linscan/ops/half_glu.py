"""A gate opened by what it lets through, as the blocks of S5 end."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.activation import KINDS


def half_glu_vjp(
    x: Array, w: Array, b: Array | None = None, around: Array | None = None, *, kind: str = "gelu_tanh"
) -> tuple[Array, Callable[[Array | None], tuple[Array | None, ...]]]:
    """``y = x σ(f(x) w + b) + around``, and the pullback.

    Parameters
    ----------
    x : array_like, shape (…, D)
        Real.
    w : array_like, shape (D, D)
        Weights.
    b : array_like, shape (D,), optional
        None means 0.
    around : array_like, shape (…, D), optional
        None means 0.
    kind : str, default "gelu_tanh"
        Which f: see `linscan.ops.activation`.

    Returns
    -------
    y : array, shape (…, D)
        Of the promoted dtype; 16-bit types are computed in float32.
    pullback : callable
        ``pullback(dy)`` to ``(dx, dw, db, daround)``.

    Raises
    ------
    ValueError
        If the shapes do not fit, or for an unknown `kind`.
    TypeError
        For a complex or unsupported dtype.

    Notes
    -----
    The same as an activation, a product and a gate, with f(x) made anew by the pullback. On a GPU, for float32 and D of
    64 or 128, they are one kernel, and f(x) is not written. The gradient retains x and ``f(x) w``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.half_glu import half_glu_vjp
    >>> half_glu_vjp(np.array([[3.0, 4.0]]), np.eye(2), np.array([-3.0, 99.0]), kind="relu")[0]
    array([[1.5, 4. ]])
    """
    who = "half_glu"
    _arrays.check_choice(who, "kind", kind, KINDS)
    given, arrays = _arrays.take_real(who, x=x, w=w, b=b, around=around)
    shape, dtype = arrays[0].shape, arrays[0].dtype
    D = shape[-1:]
    for name, a, wanted in zip(("x", "w", "b", "around"), arrays, (shape or ("D",), D + D, D, shape), strict=True):
        if a is not None and a.shape != wanted:
            raise ValueError(f"{who}: {name} must have shape {wanted}; got {a.shape}")
    xp = _arrays.namespace(arrays[0])
    x, w, b, around = (None if a is None else _arrays.cast(xp, a, _arrays.accum_dtype(dtype)) for a in arrays)
    rows = _arrays.matrix(x)
    y, z = pick("half_glu", x.dtype, x)(rows, w, b, None if around is None else _arrays.matrix(around), kind)
    y, run = _arrays.cast(xp, y, dtype).reshape(shape), pick("half_glu_pullback", x.dtype, x)

    def pullback(dy: Array | None) -> tuple[Array | None, ...]:
        g = _arrays.cotangent(who, "dy", dy, y)
        dx, dw, db = run(_arrays.matrix(_arrays.cast(xp, g, rows.dtype)), rows, z, w, b, kind)
        return tuple(map(_arrays.grad_like, (dx.reshape(shape), dw, db, g), given))

    return y, pullback
