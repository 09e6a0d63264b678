"""What passes by a state space: ``y + D u``."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick


def feedthrough_vjp(y: Array, u: Array, D: Array) -> tuple[Array, Callable[..., tuple[Array | None, ...]]]:
    """The direct term of a state space added to its output, ``y + D u``, and the pullback.

    Parameters
    ----------
    y, u : array, shape (…, channels)
        Real, of one shape and dtype.
    D : array, shape (channels,)

    Returns
    -------
    y : array, shape (…, channels)
        Of the dtype of `y` and `u`.
    pullback : callable
        ``pullback(dout, around=None)`` to ``(dy, du, dD)``; `around`, what reaches u on other ways, is added to du.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.feedthrough import feedthrough_vjp
    >>> y, pullback = feedthrough_vjp(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([1.0, -1.0]))
    >>> y, pullback(np.array([[1.0, 10.0]]))[1:]
    (array([[ 4., -2.]]), (array([[  1., -10.]]), array([ 3., 40.])))
    """
    who = "feedthrough"
    given, (y, u, D) = _arrays.take_real(who, y=y, u=u, D=D)
    if u.shape != y.shape or D.shape != y.shape[-1:]:
        raise ValueError(f"{who}: u and D must have shapes {y.shape} and {y.shape[-1:]}; got {u.shape} and {D.shape}")
    wide = _arrays.cast(_arrays.namespace(D), D, _arrays.accum_dtype(D.dtype))
    out = pick("feedthrough", y.dtype, y)(_arrays.matrix(y), _arrays.matrix(u), wide).reshape(y.shape)
    run = pick("feedthrough_pullback", y.dtype, y)

    def pullback(dout: Array | None, around: Array | None = None) -> tuple[Array | None, ...]:
        g = _arrays.cotangent(who, "dout", dout, out)
        beside = None if around is None else _arrays.matrix(_arrays.cotangent(who, "around", around, out))
        du, dD = run(_arrays.matrix(g), _arrays.matrix(u), wide, beside)
        return tuple(map(_arrays.grad_like, (g, du.reshape(out.shape), dD), given))

    return out, pullback
