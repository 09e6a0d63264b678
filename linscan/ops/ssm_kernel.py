"""The convolution kernel of a diagonal state-space model: ``K[l] = sum_n c_n a_n^l``."""

import math
from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick


def ssm_kernel(a_bar: Array, c: Array, length: int, *, real: bool = True, workers: int | None = None) -> Array:
    r"""Convolution kernel ``K[..., l] = Re sum_n c[..., n] a_bar[..., n]**l`` of a diagonal model, for l < `length`.

    Parameters
    ----------
    a_bar : array_like, shape (..., N)
        Discrete eigenvalues, real or complex. `discretize_diag` makes them from continuous ones.
    c : array_like, shape (..., N)
        Weight of every state: output times input vector, ``C B_bar``. Leading axes broadcast against those of `a_bar`.
    length : int
        Number of kernel values, at least 0.
    real : bool, default True
        Return the real part of the sum. False returns the sum itself. No difference if both arguments are real.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    k : array, shape (..., length)
        The kernel: the response of the model ``h[t] = a_bar h[t-1] + u[t]``, ``y[t] = Re sum_n c_n h_n[t]`` to an
        impulse. Of the promoted dtype of `a_bar` and `c`, or its real counterpart.

    Raises
    ------
    ValueError
        If the shapes do not broadcast or have no last axis, or `length` is negative.
    TypeError
        For an unsupported dtype, a `length` that is no integer, or host and GPU arrays mixed.

    See Also
    --------
    ssm_kernel_vjp : the gradient.
    ssm_kernel_dense : the kernel of a model with a full state matrix.
    ssm_kernel_dplr : the kernel of a diagonal plus low-rank model.

    Notes
    -----
    No factor of two is applied. Where `a_bar` and `c` hold one of each conjugate pair (S4, S4D, S5, H3), the kernel
    of the whole model is ``ssm_kernel(a_bar, 2 * c, length)``; DSS, GSS, LRU and the moving averages of MEGA mean
    ``ssm_kernel(a_bar, c, length)`` as it stands.

    With l = R q + r and R near sqrt(length), the sum is a matrix product of two tables of powers, ``c a_bar**(R q)``
    and ``a_bar**r``. They are made in float64, so the phase of a long kernel is right in single precision too: its
    error is below 2e-6 of its norm. 4 N operations per value (complex), O((Q + R) N) memory per channel; an array of
    shape (channels, N, length) is never made. ``0**0`` is 1. Where ``|a_bar| > 1`` the kernel overflows where its
    values do, not before (for double precision outside the CPU engine, ``|a_bar|**128`` must be finite).

    References
    ----------
    .. [1] A. Gu, A. Gupta, K. Goel and C. Ré, "On the parameterization and initialization of diagonal state space
       models", 2022, arXiv:2206.11893.

    Examples
    --------
    One damped oscillation, as the two eigenvalues of a pair and as one of them:

    >>> import numpy as np
    >>> from linscan import ssm_kernel
    >>> a, c = 0.9 * np.exp(0.5j), 1 - 1j
    >>> ssm_kernel([a, np.conj(a)], [c, np.conj(c)], 4)
    array([2.        , 2.44261458, 2.23847273, 1.55748253])
    >>> ssm_kernel([a], [2 * c], 4)
    array([2.        , 2.44261458, 2.23847273, 1.55748253])
    """
    a, c, length, lead = _prepare("ssm_kernel", a_bar, c, length)
    k = pick("ssm_kernel", a.dtype, a)(a, c, length, real=bool(real), workers=workers)
    return k.reshape((*lead, length))


def _prepare(who: str, a: Any, c: Any, length: int) -> tuple[Array, Array, int, tuple[int, ...]]:
    """Both arrays as (channels, N) of one dtype, the length as an int, and the shape that `channels` flattens."""
    xp, a, c = _arrays.take(who, a_bar=a, c=c)
    length = _arrays.check_count(who, "length", length)
    dtype = _arrays.result_dtype(who, a_bar=a, c=c)
    a, c = xp.asarray(a, dtype), xp.asarray(c, dtype)
    shape = _arrays.broadcast_shapes(who, a_bar=a.shape, c=c.shape)
    if not shape:
        raise ValueError(f"{who}: a_bar and c must have an axis of states; got {a.shape} and {c.shape}")
    flat = math.prod(shape[:-1]), shape[-1]
    return xp.broadcast_to(a, shape).reshape(flat), xp.broadcast_to(c, shape).reshape(flat), length, shape[:-1]


def ssm_kernel_vjp(
    a_bar: Array, c: Array, length: int, *, real: bool = True, workers: int | None = None
) -> tuple[Array, Callable[[Array | None], tuple[Array, Array]]]:
    """`ssm_kernel` and its pullback.

    Parameters
    ----------
    a_bar, c, length, real, workers
        As in `ssm_kernel`.

    Returns
    -------
    k : array
        What `ssm_kernel` returns.
    pullback : callable
        ``pullback(dk)`` returns ``(da_bar, dc)``, each of its argument's shape and dtype. `dk` has the shape of `k`;
        None means zero.

    Raises
    ------
    ValueError, TypeError
        As in `ssm_kernel`; the pullback raises ValueError if `dk` has the wrong shape.

    See Also
    --------
    ssm_kernel : the kernel.

    Notes
    -----
    Retains `a_bar` and `c` only. The pullback is one matrix product of twice the size of the kernel's, with a table of
    powers and their derivatives. Complex cotangents are ``∂L/∂Re + i ∂L/∂Im``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import ssm_kernel_vjp
    >>> k, pullback = ssm_kernel_vjp(np.array([0.5]), np.array([3.0]), 4)
    >>> pullback(np.ones(4))
    (array([8.25]), array([1.875]))
    """
    # K_l = Re sum_n c_n a_n^l is linear in c and, state by state, analytic in a. With dk the cotangent,
    #   dc_n = sum_l dk_l conj(a_n^l)                      the transposed sum;
    #   da_n = conj(c_n) sum_l dk_l l conj(a_n^(l-1))      its term by term derivative, with no division by a_n.
    given = a_bar, c
    a, c, length, lead = _prepare("ssm_kernel_vjp", a_bar, c, length)
    k = pick("ssm_kernel", a.dtype, a)(a, c, length, real=bool(real), workers=workers).reshape((*lead, length))
    run = pick("ssm_kernel_pullback", a.dtype, a)

    def pullback(dk: Array | None) -> tuple[Array, Array]:
        dk = _arrays.cotangent("ssm_kernel_vjp", "dk", dk, k)
        grads = run(a, c, dk.reshape(len(a), length), workers=workers)
        da, dc = (_arrays.grad_like(g.reshape((*lead, a.shape[1])), like) for g, like in zip(grads, given, strict=True))
        return da, dc

    return k, pullback
