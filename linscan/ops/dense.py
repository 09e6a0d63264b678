"""The ordinary layers between recurrences: matrix products over channels and table look-ups.

They are what the blocks of `linscan.models` need and no more, and are not public names of `linscan` itself.
`linscan.ops.activation` has the elementwise functions and gates, `linscan.ops.norm` the normalisations,
`linscan.ops.dropout` what its name says.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick

_ELEMENTS = 1 << 22  # of the one-hot rows the gradient of `embedding` holds at a time


def dense(u: Array, w: Array, b: Array | None = None, *, real: bool = False) -> Array:
    """Matrix product over the last axis, ``y[…, j] = Σ_i u[…, i] w[i, j] + b[j]``.

    Parameters
    ----------
    u : array_like, shape (…, I)
        Real or complex.
    w : array_like, shape (I, J)
        Weights.
    b : array_like, shape (J,), optional
        Added to every row.
    real : bool, default False
        Return the real part only, at half the work of taking it afterwards.

    Returns
    -------
    y : array, shape (…, J)
        Of the promoted dtype of `u` and `w`, or its real counterpart. 16-bit types are multiplied in float32.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        For an unsupported dtype, or host and GPU arrays mixed.

    Notes
    -----
    A product of a real and a complex factor, or one of which only the real part is asked for, is one real product of
    twice the columns or rows: half the operations of a complex one.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.dense import dense
    >>> dense(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), np.array([0.0, 0.0, 1.0]))
    array([[1., 2., 4.]])
    """
    return dense_vjp(u, w, b, real=real)[0]


def dense_vjp(
    u: Array, w: Array, b: Array | None = None, *, real: bool = False
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array, Array | None]]]:
    """`dense` and its pullback, ``pullback(dy)`` to ``(du, dw, db)``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.dense import dense_vjp
    >>> y, pullback = dense_vjp(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
    >>> du, dw, db = pullback(np.ones((1, 1)))
    >>> du, dw.ravel()
    (array([[3., 4.]]), array([1., 2.]))
    """
    who = "dense"
    xp, *given = _arrays.take(who, u=u, w=w, b=b)
    u, w, b = (None if x is None else xp.asarray(x) for x in given)
    dtype = _arrays.result_dtype(who, u=u, w=w, b=b)
    if w.ndim != 2 or u.ndim < 1 or u.shape[-1] != w.shape[0]:
        raise ValueError(f"{who}: u and w must have shapes (..., I) and (I, J); got {u.shape} and {w.shape}")
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"{who}: b must have shape {w.shape[1:]}; got {b.shape}")
    x, w = (working(xp, a, dtype) for a in (u, w))
    rows = _arrays.matrix(x)
    y = product(xp, rows, w, real, None if b is None else b.real if real else b)
    dtype = _arrays.real_dtype(dtype) if real else dtype
    y = _arrays.cast(xp, y, dtype).reshape(*u.shape[:-1], w.shape[1])

    def pullback(dy: Array | None) -> tuple[Array, Array, Array | None]:
        # y = u w + b hands dy to its factors: du = dy w^H, dw = u^H dy, db = Σ dy. The real part takes a real dy.
        g = _arrays.cotangent(who, "dy", dy, y)
        g = _arrays.matrix(working(xp, g, g.dtype))
        du = product(xp, g, w.conj().T, u.dtype.kind != "c")
        dw, db = sums(xp, rows, g, w.dtype.kind != "c", b is not None)
        grads = map(_arrays.grad_like, (du.reshape(u.shape), dw, db), given)
        return next(grads), next(grads), next(grads)

    return y, pullback


def working(xp: Any, x: Array, dtype: np.dtype) -> Array:
    """`x` in the precision that arithmetic on `dtype` is done in, real if it is."""
    work = _arrays.accum_dtype(dtype)
    return _arrays.cast(xp, x, work if x.dtype.kind == "c" else _arrays.real_dtype(work))


def product(xp: Any, x: Array, w: Array, real: bool, b: Array | None = None) -> Array:
    """``x @ w + b``, or its real part, by real products wherever a factor or the result is real."""
    # A complex row is read as the interleaved parts it is in memory; parts taken out of it would first be copied.
    kinds = x.dtype.kind == "c", w.dtype.kind == "c"
    if kinds == (False, True) and not real:
        return _plus(_run(x, parts(xp, w)).view(w.dtype), b)
    if kinds == (True, True) and real:
        return _run(parts(xp, x), parts(xp, w.conj().T).T, b)
    if real or kinds == (False, False):
        x, w = (xp.ascontiguousarray(a.real) if a.dtype.kind == "c" else a for a in (x, w))
        return _run(x, w, b) if b is None or b.dtype.kind != "c" else _plus(_run(x, w), b)
    return _plus(x @ w, b)


def sums(xp: Any, x: Array, dy: Array, real: bool, bias: bool) -> tuple[Array, Array | None]:
    """The gradients ``xᴴ dy``, or its real part, of weights and ``Σ dy`` of a bias, if there is one."""
    kinds = x.dtype.kind == "c", dy.dtype.kind == "c"
    if kinds == (False, False):
        return pick("dense_pullback", x.dtype, x)(x, dy, bias)
    if kinds == (False, True):
        dw, db = pick("dense_pullback", x.dtype, x)(x, parts(xp, dy), bias)
        return dw.view(dy.dtype), db.view(dy.dtype) if bias else None
    db = _arrays.sum_rows(dy) if bias else None
    if kinds == (True, False):
        dw, _ = pick("dense_pullback", dy.dtype, dy)(dy, parts(xp, x), False)
        return dw.view(x.dtype).T.conj(), db
    return product(xp, x.conj().T, dy, real), db


def _run(x: Array, w: Array, b: Array | None = None) -> Array:
    return pick("dense", x.dtype, x)(x, w, None if b is None else _arrays.cast(_arrays.namespace(b), b, x.dtype))


def _plus(y: Array, b: Array | None) -> Array:
    return y if b is None else y + b


def parts(xp: Any, x: Array) -> Array:
    """The matrix of real and imaginary parts beside each other that a complex one is in memory."""
    return xp.ascontiguousarray(x).view(_arrays.real_dtype(x.dtype))


def embedding(tokens: Array, table: Array) -> Array:
    """Rows of a table, ``y[…] = table[tokens[…]]``.

    Parameters
    ----------
    tokens : array_like of int, shape (…)
        From 0 to V - 1.
    table : array_like, shape (V, D)

    Returns
    -------
    y : array, shape (…, D)

    Raises
    ------
    ValueError
        If `table` is not a matrix, or (on the host) a token is outside it.
    TypeError
        If `tokens` are not integers.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.dense import embedding
    >>> embedding([2, 0], np.array([[0.0], [1.0], [2.0]])).ravel()
    array([2., 0.])
    """
    return embedding_vjp(tokens, table)[0]


def embedding_vjp(tokens: Array, table: Array) -> tuple[Array, Callable[[Array | None], tuple[None, Array]]]:
    """`embedding` and its pullback, ``pullback(dy)`` to ``(None, dtable)``.

    Notes
    -----
    The gradient is a product with one-hot rows, a group of them at a time, and not a scatter: the same bits in every
    run on a GPU as well.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.ops.dense import embedding_vjp
    >>> y, pullback = embedding_vjp([1, 1], np.zeros((2, 1)))
    >>> pullback(np.ones((2, 1)))[1].ravel()
    array([0., 2.])
    """
    who = "embedding"
    xp, tokens, table = _arrays.take(who, tokens=tokens, table=table)
    tokens, table = xp.asarray(tokens), xp.asarray(table)
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"{who}: tokens must be integers; got {tokens.dtype}")
    if table.ndim != 2:
        raise ValueError(f"{who}: table must have shape (V, D); got {table.shape}")
    if _arrays.host_any(tokens, lambda x: (x < 0) | (x >= len(table))):
        raise ValueError(f"{who}: tokens must lie in 0 … {len(table) - 1}; got {tokens.min()} … {tokens.max()}")
    y = table[tokens]

    def pullback(dy: Array | None) -> tuple[None, Array]:
        g = _arrays.cotangent(who, "dy", dy, y).reshape(-1, table.shape[1])
        g, flat = working(xp, g, g.dtype), tokens.reshape(-1)
        rows, step = xp.arange(len(table))[:, None], max(1, _ELEMENTS // max(1, len(table)))
        dtable = xp.zeros(table.shape, g.dtype)
        for first in range(0, len(flat), step):
            group = slice(first, first + step)
            dtable += _arrays.product((rows == flat[group]).astype(_arrays.real_dtype(g.dtype)), g[group])
        return None, _arrays.grad_like(dtable, table)

    return y, pullback
