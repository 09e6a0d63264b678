"""The convolution kernel of a diagonal plus low-rank model, as in S4: Cauchy sums at the roots of unity.

`linscan.ops.dplr_powers` turns C into the vector this needs; the sums over states run in an engine.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.ops.dplr_powers import truncate_vjp
from linscan.ops.dplr_transfer import Model, circle, kernel, kernel_pullback

_ELEMENTS = 1 << 21  # of the Cauchy sums held at a time
_INSET = 1.0  # the circle's radius is exp(-_INSET / length): rounding errors grow by up to exp(_INSET)


def ssm_kernel_dplr(
    Lambda: Array,
    P: Array,
    Q: Array | None,
    B: Array,
    C: Array,
    dt: Array,
    length: int,
    *,
    pairs: bool = True,
    truncated: bool = False,
    workers: int | None = None,
) -> Array:
    r"""Kernel ``K[l] = C A_bar**l B_bar`` of the model ``A = diag(Lambda) - P* Q``, discretised by the bilinear rule.

    Parameters
    ----------
    Lambda, B, C : array_like, shape (..., N)
        Eigenvalues of the diagonal part, input vector, output vector. `nplr` makes the first two.
    P : array_like, shape (..., R, N)
        Low-rank part: ``A = diag(Lambda) - sum_r outer(P[r], conj(Q[r]))``.
    Q : array_like, shape (..., R, N), optional
        None means `P`.
    dt : array_like, shape (...)
        Time step, real. All leading axes broadcast.
    length : int
        Number of kernel values, at least 0; odd as well as even.
    pairs : bool, default True
        The arrays hold one of each conjugate pair of a real model with 2 N states, whose kernel is returned: the low
        rank part couples both halves, so the factor of two is included. False: the arrays are the whole model.
    truncated : bool, default False
        `C` is already ``C (I - A_bar**length)``, which is the parameter that S4 trains.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    k : array, shape (..., length)
        The kernel; real if `pairs` or if all arguments are real, otherwise complex.

    Raises
    ------
    ValueError
        If the shapes do not fit, or `length` is negative.
    TypeError
        For an unsupported dtype, complex `dt`, a `length` that is no integer, or host and GPU arrays mixed.

    See Also
    --------
    ssm_kernel_dplr_vjp : the gradient.
    ssm_kernel_dense : the same from the full matrices, cheaper where `C` is not `truncated` and N small.
    nplr : HiPPO matrices in this form.

    Notes
    -----
    The generating function of the kernel is a sum over states of Cauchy terms, corrected for the low rank by the
    Woodbury identity. It is evaluated at `length` points of a circle and transformed back. In the half angle of a
    point, ``1 / (i sin - tau Lambda cos)`` with ``tau = dt / 2``, no term is infinite at the Nyquist point. Unless
    `truncated`, the circle lies a little inside the unit circle, so that eigenvalues on the imaginary axis do no harm
    (for that, errors grow by a factor of at most e); on the unit circle no eigenvalue may meet a point: zero would.

    ``(1 + R)**2 N length`` operations, and unless `truncated` another ``log2(length) N**3`` for the powers of A_bar;
    all in double precision, whatever the dtype. Memory is bounded: channels are taken in groups. Errors are relative to
    the norm of the kernel and, for unstable models, to the largest power of A_bar.

    References
    ----------
    .. [1] A. Gu, K. Goel, C. Ré, "Efficiently modeling long sequences with structured state spaces", 2021,
       arXiv:2111.00396.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import nplr, ssm_kernel_dplr
    >>> Lambda, P, B, V = nplr("legs", 8)
    >>> ssm_kernel_dplr(Lambda, P, None, B, B, 0.01, 5).round(3)
    array([0.547, 0.38 , 0.248, 0.147, 0.07 ])
    """
    named = {"Lambda": Lambda, "P": P, "Q": Q, "B": B, "C": C, "dt": dt}
    return _evaluate("ssm_kernel_dplr", named, length, pairs, truncated, workers)[0]


def _prepare(who: str, named: dict[str, Any]) -> tuple[Model, tuple[int, ...], np.dtype]:
    """The model with all channels flattened, the shape they had, and the promoted dtype."""
    xp, *arrays = _arrays.take(who, **named)
    given = dict(zip(named, arrays, strict=True))
    dtype = _arrays.result_dtype(who, **given)
    dt = xp.asarray(given.pop("dt"))
    if dt.dtype.kind == "c":
        raise TypeError(f"{who}: dt must be real; got {dt.dtype}")
    given["Q"] = given["P"] if given["Q"] is None else given["Q"]
    full = {name: xp.asarray(x).astype(np.complex128) for name, x in given.items()}
    own = {name: x.shape[-2:] if name in "PQ" else x.shape[-1:] for name, x in full.items()}
    states = (*own["P"], *own["Lambda"])
    if len(states) != 3 or states[1] != states[2] or any(x not in (states[:2], states[2:]) for x in own.values()):
        got = ", ".join(str(x.shape) for x in full.values())
        raise ValueError(
            f"{who}: {', '.join(full)} must have shapes (..., N), (..., R, N), (..., R, N), (..., N) and (..., N); "
            f"got {got}"
        )
    leads = {name: x.shape[: x.ndim - len(own[name])] for name, x in full.items()}
    lead = _arrays.broadcast_shapes(who, **leads, dt=dt.shape)
    flat = {n: xp.broadcast_to(x, (*lead, *own[n])).reshape(math.prod(lead), *own[n]) for n, x in full.items()}
    tau = xp.broadcast_to(dt.astype(np.float64) / 2, lead).reshape(math.prod(lead))
    return Model(**flat, tau=tau), lead, dtype


def _evaluate(who: str, named: dict[str, Any], length: int, pairs: bool, truncated: bool, workers: int | None) -> Any:
    """The kernel, and its pullback to the flattened model."""
    length = _arrays.check_count(who, "length", length)
    m, lead, dtype = _prepare(who, named)
    xp, real = _arrays.namespace(m.C), pairs or dtype.kind != "c"
    dtype = _arrays.real_dtype(dtype) if real else dtype
    count, inset = max(length, 1), 0.0 if truncated else _INSET
    at = circle(xp, count, inset, real, pairs)
    back = None
    if not truncated:
        C, back = truncate_vjp(m.Lambda, m.P, m.Q, m.C, m.tau, math.exp(-inset), count, pairs)
        m = m._replace(C=C)
    held = 2 * (m.P.shape[1] + 1) ** 2 * len(at.sin)
    step = max(1, _ELEMENTS // held)
    groups = [slice(first, first + step) for first in range(0, max(1, len(m.C)), step)]
    k = xp.zeros((len(m.C), length), dtype)
    for g in groups:
        k[g] = kernel(Model(*(x[g] for x in m)), at, dtype, workers)[:, :length].astype(dtype)

    def pullback(dk: Array) -> Model:
        full = xp.zeros((len(m.C), count), np.float64 if real else np.complex128)
        full[:, :length] = dk.reshape(len(m.C), length)
        parts = [kernel_pullback(Model(*(x[g] for x in m)), at, full[g], dtype, workers) for g in groups]
        grads = Model(*(xp.concatenate(p) for p in zip(*parts, strict=True)))
        if back is None:
            return grads
        dLambda, dP, dQ, dC, dtau = back(grads.C)
        return Model(grads.Lambda + dLambda, grads.P + dP, grads.Q + dQ, grads.B, dC, grads.tau + dtau)

    return k.reshape((*lead, length)), pullback, lead


def ssm_kernel_dplr_vjp(
    Lambda: Array,
    P: Array,
    Q: Array | None,
    B: Array,
    C: Array,
    dt: Array,
    length: int,
    *,
    pairs: bool = True,
    truncated: bool = False,
    workers: int | None = None,
) -> tuple[Array, Callable[[Array | None], tuple[Array | None, ...]]]:
    """`ssm_kernel_dplr` and its pullback.

    Parameters
    ----------
    Lambda, P, Q, B, C, dt, length, pairs, truncated, workers
        As in `ssm_kernel_dplr`.

    Returns
    -------
    k : array
        What `ssm_kernel_dplr` returns.
    pullback : callable
        ``pullback(dk)`` returns ``(dLambda, dP, dQ, dB, dC, ddt)``, each of its argument's shape and dtype (None where
        the argument was None). `dk` has the shape of `k`; None means zero.

    Raises
    ------
    ValueError, TypeError
        As in `ssm_kernel_dplr`; the pullback raises ValueError if `dk` has the wrong shape.

    See Also
    --------
    ssm_kernel_dplr : the kernel.

    Notes
    -----
    Retains the arguments only; the pullback makes the Cauchy sums anew. Complex cotangents are ``∂L/∂Re + i ∂L/∂Im``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import ssm_kernel_dplr_vjp
    >>> one = np.ones(1)
    >>> k, pullback = ssm_kernel_dplr_vjp(-one, one[None], None, one, one, 0.1, 3, pairs=False)
    >>> dLambda, dP, dQ, dB, dC, ddt = pullback(np.ones(3))
    >>> dB.round(6), dQ
    (array([0.226146]), None)
    """
    # The kernel is that of C_L = C (I - radius**length A_bar**length), whose generating function has `length` terms.
    # Its gradient is taken back through the Woodbury identity and the Cauchy sums to Lambda, P, Q, B, C_L and tau, and
    # from C_L through the powers of A_bar to C and, a second share, to Lambda, P, Q and tau = dt / 2.
    named = {"Lambda": Lambda, "P": P, "Q": Q, "B": B, "C": C, "dt": dt}
    k, back, lead = _evaluate("ssm_kernel_dplr_vjp", named, length, pairs, truncated, workers)
    like = _arrays.take("ssm_kernel_dplr_vjp", **named)[1:]

    def pullback(dk: Array | None) -> tuple[Array | None, ...]:
        d = back(_arrays.cotangent("ssm_kernel_dplr_vjp", "dk", dk, k))
        dP = d.P + d.Q if Q is None else d.P
        grads = d.Lambda, dP, d.Q, d.B, d.C, d.tau / 2
        return tuple(_arrays.grad_like(g.reshape((*lead, *g.shape[1:])), x) for g, x in zip(grads, like, strict=True))

    return k, pullback
