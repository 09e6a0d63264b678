"""Scans in both directions, as bidirectional layers read them."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.scan import prepare


def two_way_vjp(
    a: Array, b: Array, reset: Array | None = None
) -> tuple[Array, Callable[[Array | None], tuple[Array | None, ...]]]:
    """States of `linscan.scan` forwards, and behind them those backwards, along the last axis but one.

    Parameters
    ----------
    a, b : array_like, broadcast to shape (…, T, N)
        Decay and input.
    reset : array_like of bool, shape (…, T), optional
        True at the first steps of packed sequences, each of which is run both ways by itself.

    Returns
    -------
    x : array, shape (…, T, 2 N)
    pullback : callable
        ``pullback(dx)`` to ``(da, db)``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.two_way import two_way_vjp
    >>> two_way_vjp(0.5, np.array([[1.0], [0.0], [2.0]]))[0]
    array([[1.  , 1.5 ],
           [0.5 , 1.  ],
           [2.25, 2.  ]])
    """
    given, resets = (a, b), None
    marks = None if reset is None else reset[..., None]
    a, b, _, marks, axis, dtype = prepare("two_way", a, b, None, marks, -2)
    if marks is not None:  # backwards, sequences begin at their last steps
        xp = _arrays.namespace(marks)
        resets = marks, xp.concatenate([marks[..., 1:, :], xp.zeros_like(marks[..., :1, :])], -2)
    if _arrays.repeats(a, given[0], axis):
        a = a.copy()
    x, run = pick("two_way", dtype, b)(a, b, resets), pick("two_way_pullback", dtype, b)

    def pullback(dx: Array | None) -> tuple[Array | None, ...]:
        grads = run(a, x, _arrays.cotangent("two_way", "dx", dx, x), resets)
        return tuple(map(_arrays.grad_like, grads, given))

    return x, pullback
