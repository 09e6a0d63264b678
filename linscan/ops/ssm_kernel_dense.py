"""The convolution kernel of a state-space model with a full state matrix: ``K[l] = C A^l B``.

Everything here is matrix products of array code: no engine is needed. `linscan.ops.ssm_kernel` has the diagonal case.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from linscan import _arrays
from linscan._arrays import Array


def ssm_kernel_dense(A: Array, B: Array, C: Array, length: int) -> Array:
    r"""Convolution kernel ``K[l] = C A**l B`` of a discrete state-space model, for l < `length`.

    Parameters
    ----------
    A : array_like, shape (..., N, N)
        Discrete state matrix.
    B : array_like, shape (..., N, M) or (N,)
        Input matrix; a 1-D array is the vector of a single input.
    C : array_like, shape (..., P, N) or (N,)
        Output matrix; a 1-D array is the vector of a single output. The leading axes of all three broadcast.
    length : int
        Number of kernel values, at least 0.

    Returns
    -------
    k : array, shape (..., length, P, M)
        The response of ``x[t] = A x[t-1] + B u[t]``, ``y[t] = C x[t]`` to an impulse: entry (p, m) from input m to
        output p. As in `numpy.matmul`, the axis P is dropped for a 1-D `C` and the axis M for a 1-D `B`. Of the
        promoted dtype of the arguments.

    Raises
    ------
    ValueError
        If the shapes do not fit, or `length` is negative.
    TypeError
        For an unsupported dtype, a `length` that is no integer, or host and GPU arrays mixed.

    See Also
    --------
    ssm_kernel_dense_vjp : the gradient.
    ssm_kernel : far less work where A is diagonal.
    discretize : A and B from a continuous model.

    Notes
    -----
    With l = R q + r and R near sqrt(length), ``K = (C A**r) (A**(R q) B)``. The left table is a Krylov sequence made by
    doubling, ``log2(R)`` products with the squares of A; the right one is stepped with ``A**R``, so that growing modes
    overflow where the plain recurrence would, and modes that B does not excite stay at zero. One product then gives all
    of K: in all O(log(R) N**3 + R N**2 (M + P) + length N M P) operations and O(R N (M + P)) memory beside the kernel.
    All of it is done in double precision, whatever the dtype: squaring loses more digits than single precision has.

    References
    ----------
    .. [1] A. Gu et al., "Combining recurrent, convolutional, and continuous-time models with linear state-space
       layers", 2021, arXiv:2110.13985.

    Examples
    --------
    A rotation by 90 degrees, seen through its first coordinate:

    >>> import numpy as np
    >>> from linscan import ssm_kernel_dense
    >>> ssm_kernel_dense(np.array([[0, -1], [1, 0]]), [1, 0], [1, 0], 6)
    array([ 1.,  0., -1.,  0.,  1.,  0.])
    """
    system = _prepare("ssm_kernel_dense", A, B, C, length)
    with np.errstate(all="ignore"):  # a kernel that grows may overflow
        return _kernel(system, _tables(system))


class _System(NamedTuple):
    """The three matrices in double precision, and how to answer."""

    A: Array
    B: Array  # (..., N, M)
    C: Array  # (..., P, N)
    length: int
    block: int  # R, a power of two
    drop: tuple[int, ...]  # the axes of K that 1-D arguments lack
    dtype: np.dtype


def _prepare(who: str, A: Any, B: Any, C: Any, length: int) -> _System:
    xp, A, B, C = _arrays.take(who, A=A, B=B, C=C)
    length = _arrays.check_count(who, "length", length)
    dtype = _arrays.result_dtype(who, A=A, B=B, C=C)
    wide = np.dtype(np.complex128 if dtype.kind == "c" else np.float64)
    A, B, C = (xp.asarray(x, wide) for x in (A, B, C))
    drop = tuple(axis for axis, x in ((-2, C), (-1, B)) if x.ndim == 1)
    given = A.shape, B.shape, C.shape
    B, C = B[:, None] if B.ndim == 1 else B, C[None] if C.ndim == 1 else C
    n = A.shape[-1] if A.ndim > 1 else -1
    if A.ndim < 2 or B.ndim < 2 or C.ndim < 2 or not n == A.shape[-2] == B.shape[-2] == C.shape[-1]:
        raise ValueError(
            f"{who}: A, B and C must have shapes (..., N, N), (..., N, M) and (..., P, N); got {given[0]}, {given[1]} "
            f"and {given[2]}"
        )
    _arrays.broadcast_shapes(who, A=A.shape[:-2], B=B.shape[:-2], C=C.shape[:-2])
    return _System(A, B, C, length, 1 << math.isqrt(max(length - 1, 0)).bit_length(), drop, dtype)


def _tables(s: _System) -> tuple[list[Array], Array, Array]:
    """A, A**2, A**4, ..., A**R; the rows ``C A**r``, (..., R, P, N); the columns ``A**(R q) B``, (..., N, Q, M)."""
    xp = _arrays.namespace(s.A)
    squares, rows = [s.A], _with_lead(s.C, s.A)[..., None, :, :]
    while rows.shape[-3] < s.block:
        more = _flat_rows(rows) @ squares[-1]
        rows = xp.concatenate((rows, more.reshape(rows.shape)), axis=-3)
        squares.append(squares[-1] @ squares[-1])
    columns = [_with_lead(s.B, s.A)]
    for _ in range(1, -(-s.length // s.block)):
        columns.append(squares[-1] @ columns[-1])
    return squares, rows, xp.stack(columns, axis=-2)


def _with_lead(x: Array, A: Array) -> Array:
    """`x` broadcast to the leading axes it shares with `A`."""
    lead = np.broadcast_shapes(x.shape[:-2], A.shape[:-2])
    return _arrays.namespace(x).broadcast_to(x, (*lead, *x.shape[-2:]))


def _flat_rows(x: Array) -> Array:
    """(..., R, P, N) as (..., R P, N)."""
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def _flat_columns(x: Array) -> Array:
    """(..., N, Q, M) as (..., N, Q M)."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _kernel(s: _System, tables: tuple[list[Array], Array, Array]) -> Array:
    _, rows, columns = tables
    (r, p), (q, m) = rows.shape[-3:-1], columns.shape[-2:]
    k = _flat_rows(rows) @ _flat_columns(columns)
    k = k.reshape(*k.shape[:-2], r, p, q, m)
    k = k.swapaxes(-4, -2).swapaxes(-3, -2)  # (q, r, p, m): p and q change places, then p and r
    k = k.reshape(*k.shape[:-4], q * r, p, m)[..., : s.length, :, :].astype(s.dtype)
    return k.squeeze(s.drop)


def ssm_kernel_dense_vjp(
    A: Array, B: Array, C: Array, length: int
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array, Array]]]:
    """`ssm_kernel_dense` and its pullback.

    Parameters
    ----------
    A, B, C, length
        As in `ssm_kernel_dense`.

    Returns
    -------
    k : array
        What `ssm_kernel_dense` returns.
    pullback : callable
        ``pullback(dk)`` returns ``(dA, dB, dC)``, each of its argument's shape and dtype. `dk` has the shape of `k`;
        None means zero.

    Raises
    ------
    ValueError, TypeError
        As in `ssm_kernel_dense`; the pullback raises ValueError if `dk` has the wrong shape.

    See Also
    --------
    ssm_kernel_dense : the kernel.

    Notes
    -----
    Retains the two tables and the squares of `A`; about twice the work of the kernel. Complex cotangents are
    ``∂L/∂Re + i ∂L/∂Im``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import ssm_kernel_dense_vjp
    >>> k, pullback = ssm_kernel_dense_vjp(np.array([[0.5]]), [2.0], [3.0], 3)
    >>> pullback(np.ones(3))
    (array([[12.]]), array([5.25]), array([3.5]))
    """
    # K[q, r] = Y_r X_q with rows Y_r = C A^r and columns X_q = S^q B, S = A^R. From the cotangent G of K, backwards:
    #   dX_q = sum_r Y_r* G[q, r],  dY_r = sum_q G[q, r] X_q*           the product;
    #   e_q = dX_q + S* e_{q+1},  dS = sum_q e_{q+1} X_q*,  dB = e_0     the stepped columns;
    #   Y[m:2m] = Y[:m] F with F = A^m:  dF += Y[:m]* dY[m:2m],  dY[:m] += dY[m:2m] F*     each doubling, from the last;
    #   A^2m = F F:  dF += d(A^2m) F* + F* d(A^2m);  what remains at m = 1 is dA, and dY_0 = dC.
    s = _prepare("ssm_kernel_dense_vjp", A, B, C, length)
    with np.errstate(all="ignore"):
        tables = _tables(s)
        k = _kernel(s, tables)

    def pullback(dk: Array | None) -> tuple[Array, Array, Array]:
        g = _arrays.cotangent("ssm_kernel_dense_vjp", "dk", dk, k)
        with np.errstate(all="ignore"):
            dA, dB, dC = _back(s, tables, g)
        dB, dC = dB[..., 0] if -1 in s.drop else dB, dC[..., 0, :] if -2 in s.drop else dC
        return _arrays.grad_like(dA, like[0]), _arrays.grad_like(dB, like[1]), _arrays.grad_like(dC, like[2])

    like = _arrays.take("ssm_kernel_dense_vjp", A=A, B=B, C=C)[1:]
    return k, pullback


def _back(s: _System, tables: tuple[list[Array], Array, Array], dk: Array) -> tuple[Array, Array, Array]:
    """The gradients of A, B and C, unreduced over broadcast axes."""
    squares, rows, columns = tables
    xp = _arrays.namespace(dk)
    (r, p, n), (q, m) = rows.shape[-3:], columns.shape[-2:]
    dk = xp.expand_dims(dk, s.drop) if s.drop else dk
    g = xp.zeros((*dk.shape[:-3], q * r, p, m), s.A.dtype)
    g[..., : s.length, :, :] = dk
    g = g.reshape(*g.shape[:-3], q, r, p, m).swapaxes(-3, -2).swapaxes(-4, -2)  # (r, p, q, m)
    g = g.reshape(*g.shape[:-4], r * p, q * m)
    dY = (g @ _adjoint(_flat_columns(columns))).reshape(*g.shape[:-2], r, p, n)
    dX = (_adjoint(_flat_rows(rows)) @ g).reshape(*g.shape[:-2], n, q, m)

    power = _adjoint(squares[-1])
    dB, dF = dX[..., -1, :], xp.zeros((*g.shape[:-2], n, n), g.dtype)
    for i in range(q - 1, 0, -1):
        dF = dF + dB @ _adjoint(columns[..., i - 1, :])
        dB = dX[..., i - 1, :] + power @ dB
    for F in reversed(squares[:-1]):
        half = dY.shape[-3] // 2
        head, tail, adjoint = dY[..., :half, :, :], _flat_rows(dY[..., half:, :, :]), _adjoint(F)
        dF = dF @ adjoint + adjoint @ dF + _adjoint(_flat_rows(rows[..., :half, :, :])) @ tail
        dY = head + (tail @ adjoint).reshape(head.shape)
    return dF, dB, dY[..., 0, :, :]


def _adjoint(x: Array) -> Array:
    return x.conj().swapaxes(-1, -2)
