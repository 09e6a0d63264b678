"""Linear attention with a matrix state: ``S[t] = diag(e^g[t]) S[t-1] + k[t] v[t]ᵀ``, ``o[t] = scale S[t]ᵀ q[t]``."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind
from linscan.ops.matrix_state import (
    Prepared,
    check_precision,
    flip,
    flip_time,
    is_vector,
    log_decay,
    prepare,
    turns,
)


@in_kind
def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    S0: Array | None = None,
    *,
    scale: float = 1,
    reverse: bool = False,
    reset: Array | None = None,
    sign: Array | None = None,
    precision: str = "exact",
    workers: int | None = None,
) -> tuple[Array, Array]:
    r"""Gated linear attention ``S[t] = diag(e^g[t]) S[t-1] + k[t] v[t]ᵀ``, ``o[t] = scale S[t]ᵀ q[t]``, in chunks.

    Parameters
    ----------
    q, k : array_like, shape (..., T, K)
        Queries and keys, real or complex (neither is conjugated).
    v : array_like, shape (..., T, V)
        Values. The leading axes of all arguments broadcast: one key head may serve many query heads.
    g : array_like, shape (..., T) or (..., T, K), optional
        Logarithm of the decay, real: one number per step if it has one axis less than `q`, one per step and key channel
        if it has as many; a number is a constant decay. None means no decay. ``-inf`` forgets exactly, even NaN.
    S0 : array_like, shape (..., K, V), optional
        State before the first step (after the last one if `reverse`). None means zero.
    scale : float, default 1
        Factor of the output, not of the state.
    reverse : bool, default False
        Run backwards: ``S[t]`` follows from ``S[t+1]``, and `S` is the state at the first step.
    reset : array_like of bool, shape (..., T), optional
        Where true, the state is forgotten before that step, as by ``g = -inf``: packs several sequences into one.
    sign : array_like, shape (..., T) or (..., T, K), optional
        1 or -1: the decay is ``sign e^g``. Rank as for `g`. It has no gradient.
    precision : {"exact", "tf32"}, default "exact"
        Of the products of float32 arrays on a GPU: "tf32" lets them round what they take in to 11 binary digits, which
        is faster with one decay per step, or none. Without effect on other dtypes and on a CPU.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    o : array, shape (..., T, V)
        The outputs, in the promoted dtype of the arguments; a float32 `g` beside 16-bit arrays leaves them 16-bit.
    S : array, shape (..., K, V)
        The final state, the `S0` that goes on; float32 for 16-bit arrays, beside which it leaves their dtype alone.

    Raises
    ------
    ValueError
        If shapes do not fit or broadcast, `g` or `sign` has another rank, `sign` is neither 1 nor -1, or `precision` is
        unknown.
    TypeError
        For an unsupported dtype, a complex `g` (rotate `q` and `k` instead), or host and GPU arrays mixed.

    See Also
    --------
    linear_attention_step : one step, for decoding.
    linear_attention_vjp : the gradient.

    Notes
    -----
    O(T (K + V) C + T K V) operations with chunks of C = 64 steps and, apart from the result, memory for one chunk per
    thread. No exponential of a positive number is taken unless `g` is positive: such states grow, and are what the
    plain loop gives, which also runs chunks that hold NaN or inf, so these reach only their own time and later; on
    a GPU's tensor cores (16-bit arrays) they may reach all of their chunk, and stay where a step forgets. In float32
    the error is below 5e-6 of the norm of `o` at every decay. A row's bits do not depend on the other rows or on
    `workers`.

    References
    ----------
    .. [1] A. Katharopoulos et al., "Transformers are RNNs", 2020, arXiv:2006.16236.
    .. [2] S. Yang et al., "Gated linear attention transformers with hardware-efficient training", 2023,
       arXiv:2312.06635.

    Examples
    --------
    Write two values under two keys and read one back; then the same in two pieces:

    >>> import numpy as np
    >>> from linscan import linear_attention
    >>> k, v = np.eye(2), np.array([[3.0], [5.0]])
    >>> q = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> linear_attention(q, k, v, np.log(0.5))[0]
    array([[0. ],
           [1.5]])
    >>> o, S = linear_attention(q[:1], k[:1], v[:1], np.log(0.5))
    >>> linear_attention(q[1:], k[1:], v[1:], np.log(0.5), S)[0]
    array([[1.5]])
    """
    check_precision("linear_attention", precision)
    p = prepare("linear_attention", q=q, k=k, v=v, g=g, S0=S0, reset=reset, sign=sign)
    o, S, _, _ = _run(p, scale, reverse, False, precision, workers)
    return o, S


def _run(p: Prepared, scale: float, reverse: bool, keep: bool, precision: str, workers: int | None) -> tuple[Any, ...]:
    """Output, final state, what the pullback needs if `keep`, and the engine's arguments."""
    p = flip(p) if reverse else p
    turn = turns(p)
    q, k, v, S0 = (p.arrays[n] for n in ("q", "k", "v", "S0"))
    if turn is not None:
        q, k = (x * turn.astype(p.dtype) for x in (q, k))
    inputs = q, k, v, log_decay(p), S0
    run = pick("linear_attention", p.dtype, q)
    o, S, states = run(*inputs, lead=p.lead, scale=scale, keep=keep, precision=precision, workers=workers)
    if turn is not None and p.length:
        S = S * turn[..., -1, :, None]
    return flip_time(o, -2) if reverse else o, S, (states, turn), inputs


@in_kind
def linear_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    g: Array | None = None,
    S0: Array | None = None,
    *,
    scale: float = 1,
    reverse: bool = False,
    reset: Array | None = None,
    sign: Array | None = None,
    precision: str = "exact",
    workers: int | None = None,
) -> tuple[tuple[Array, Array], Callable[..., tuple[Array | None, ...]]]:
    """`linear_attention` and its pullback.

    Parameters
    ----------
    q, k, v, g, S0, scale, reverse, reset, sign, precision, workers
        As in `linear_attention`.

    Returns
    -------
    (o, S) : tuple of arrays
        What `linear_attention` returns.
    pullback : callable
        ``pullback(do, dS)`` returns ``(dq, dk, dv, dg, dS0)``, each of its argument's shape and dtype (None where the
        argument was None). Either cotangent may be None, which means zero.

    Raises
    ------
    ValueError, TypeError
        As in `linear_attention`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    linear_attention : the recurrence.

    Notes
    -----
    Retains the arguments and the state before every chunk of C = 64 steps, (T / C) K V numbers per head; what happens
    inside a chunk is computed anew. Complex cotangents are ``∂L/∂Re + i ∂L/∂Im``. Where a step forgets, `dg` is zero.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import linear_attention_vjp
    >>> q = k = np.eye(2)
    >>> (o, S), pullback = linear_attention_vjp(q, k, np.array([[3.0], [5.0]]))
    >>> dq, dk, dv, dg, dS0 = pullback(np.ones((2, 1)))
    >>> dq
    array([[3., 0.],
           [3., 5.]])
    """
    # With dS[t] = ∂L/∂S[t] over every path, o[t] = scale S[t]ᵀ q[t] and S[t] = diag(e^g[t]) S[t-1] + k[t] v[t]ᵀ give
    #   dS[t] = scale conj(q[t]) do[t]ᵀ + diag(e^g[t+1]) dS[t+1],    dq[t] = scale conj(S[t]) do[t],
    #   dk[t] = dS[t] conj(v[t]),   dv[t] = dS[t]ᵀ conj(k[t]),   dg[t] = e^g[t] Re sum over V of conj(S[t-1]) dS[t].
    given = q, k, v, g, S0
    check_precision("linear_attention_vjp", precision)
    p = prepare("linear_attention_vjp", q=q, k=k, v=v, g=g, S0=S0, reset=reset, sign=sign)
    o, S, (states, turn), inputs = _run(p, scale, reverse, True, precision, workers)
    run = pick("linear_attention_pullback", p.dtype, inputs[0])

    def pullback(do: Array | None = None, dS: Array | None = None) -> tuple[Array | None, ...]:
        do = _arrays.cotangent("linear_attention_vjp", "do", do, o)
        dS = _arrays.cotangent("linear_attention_vjp", "dS", dS, S)
        if turn is not None and p.length:
            dS = dS * turn[..., -1, :, None]
        do = flip_time(do, -2) if reverse else do
        grads = list(run(*inputs, states, do, dS, lead=p.lead, scale=scale, workers=workers))
        if turn is not None:
            grads[:2] = [x * turn for x in grads[:2]]
        if given[3] is not None and not is_vector(p.arrays["g"], p):
            grads[3] = grads[3][..., 0] if grads[3].shape[-1] == 1 else grads[3].sum(axis=-1)
        if reverse:
            grads[:3] = [flip_time(x, -2) for x in grads[:3]]
            grads[3] = None if g is None else flip_time(grads[3], -2 if is_vector(p.arrays["g"], p) else -1)
        return tuple(map(_arrays.grad_like, grads, given))

    return (o, S), pullback
