"""Matrix states with a diagonal plus low-rank transition: the recurrence of RWKV-7 and its relatives."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines.in_kind import in_kind
from linscan.ops import dplr
from linscan.ops.dplr import Terms
from linscan.ops.matrix_state import Prepared, flip, flip_time, is_vector, log_decay, prepare, zero_state


@in_kind
def dplr_attention(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    g: Array | None = None,
    S0: Array | None = None,
    *,
    scale: float = 1,
    reverse: bool = False,
    reset: Array | None = None,
    precision: str = "exact",
    workers: int | None = None,
) -> tuple[Array, Array]:
    r"""Linear attention with transitions ``diag(e^g[t]) + b[t] a[t]ᵀ``, in chunks: RWKV-7 and its relatives.

    ``S[t] = diag(e^g[t]) S[t-1] + b[t] (a[t]ᵀ S[t-1]) + k[t] v[t]ᵀ``, ``o[t] = scale S[t]ᵀ q[t]``.

    Parameters
    ----------
    q, k : array_like, shape (..., T, K)
        Queries and keys, real or complex (neither is conjugated).
    v : array_like, shape (..., T, V)
        Values. The leading axes of all arguments broadcast: one key head may serve many query heads.
    a, b : array_like, shape (..., T, K)
        What is read from the state before its decay, ``a[t]ᵀ S[t-1]``, and the direction it is written along.
    g : array_like, shape (..., T) or (..., T, K), optional
        Logarithm of the decay, real: one number per step if it has one axis less than `q`, one per step and key channel
        if it has as many; a number is a constant decay. None means no decay. ``-inf`` forgets a channel exactly.
    S0 : array_like, shape (..., K, V), optional
        State before the first step (after the last one if `reverse`). None means zero.
    scale : float, default 1
        Factor of the output, not of the state.
    reverse : bool, default False
        Run backwards: ``S[t]`` follows from ``S[t+1]``, and `S` is the state at the first step.
    reset : array_like of bool, shape (..., T), optional
        Where true, the state is forgotten before that step, even NaN: packs several sequences into one.
    precision : {"exact", "tf32"}, default "exact"
        As for `linear_attention`, but so far without effect: products are exact.
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
        If shapes do not fit or broadcast, or `precision` is unknown.
    TypeError
        For an unsupported dtype, a complex `g` (rotate the other arguments instead), or host and GPU arrays mixed.

    See Also
    --------
    dplr_attention_step : one step, for decoding.
    dplr_attention_vjp : the gradient.
    delta_rule : the case ``b = k``, at about half the cost.

    Notes
    -----
    RWKV-7 is ``a = -kk``, ``b = kk * alpha`` with unit vectors kk and gates alpha; without `g` the model is known as
    IPLR. O(T (K + V) C + T K V) operations with chunks of C = 64 steps, in each of which a triangular system is solved
    by substitution. No exponential of a positive number is taken unless `g` is positive; then the result is the plain
    loop's, with rounding errors larger by the growth over a chunk. Chunks that hold NaN or inf, or in which growth
    overflows, are run step by step (on the CPU), so that these reach only their own time and later. A row's bits do
    not depend on the other rows or on `workers`.

    References
    ----------
    .. [1] B. Peng et al., "RWKV-7 Goose with expressive dynamic state evolution", 2025, arXiv:2503.14456.
    .. [2] S. Yang et al., "Parallelizing linear transformers with the delta rule over sequence length", 2024,
       arXiv:2406.06484.

    Examples
    --------
    Write under two keys, then move what lies under the first one to the second:

    >>> import numpy as np
    >>> from linscan import dplr_attention
    >>> e = np.eye(2)
    >>> k, v = np.array([e[0], e[1], 0 * e[0]]), np.array([[3.0], [5.0], [0.0]])
    >>> a, b = np.array([0 * e[0], 0 * e[0], e[0]]), np.array([0 * e[0], 0 * e[0], e[1] - e[0]])
    >>> dplr_attention(k, k, v, a, b)[1]
    array([[0.],
           [8.]])
    """
    p, terms = _terms("dplr_attention", q, k, v, a, b, g, S0, reset, reverse)
    o, S, _ = dplr.run("dplr_attention", p, terms, float(scale), False, precision, workers)
    return flip_time(o, -2) if reverse else o, S


def _terms(
    who: str, q: Array, k: Array, v: Array, a: Array, b: Array, g: Array | None, *rest: object
) -> tuple[Prepared, Terms]:
    """The checked arguments as an engine takes them."""
    S0, reset, reverse = rest
    p = prepare(who, q=q, k=k, v=v, a=a, b=b, g=g, S0=S0, reset=reset)
    p = flip(p) if reverse else p
    x = p.arrays
    return p, Terms(x["q"], x["k"], x["v"], dplr.unless_reset(p, x["a"]), x["b"], log_decay(p), zero_state(p))


def dplr_attention_step(
    q: Array, k: Array, v: Array, a: Array, b: Array, S: Array, g: Array | None = None, *, scale: float = 1
) -> tuple[Array, Array]:
    """One step of `dplr_attention`: one query, key and value, and the state before and after.

    Parameters
    ----------
    q, k, a, b : array_like, shape (..., K)
        This step's vectors.
    v : array_like, shape (..., V)
        This step's value.
    S : array_like, shape (..., K, V)
        The state before the step: what `dplr_attention` returned, or zeros.
    g : array_like, shape (...) or (..., K), optional
        Logarithm of this step's decay; its rank decides, as in `dplr_attention`.
    scale : float, default 1
        Factor of the output.

    Returns
    -------
    o : array, shape (..., V)
        The output.
    S : array, shape (..., K, V)
        The state after the step, a new array of the kind that `dplr_attention` takes and gives.

    Raises
    ------
    ValueError, TypeError
        As in `dplr_attention`.

    See Also
    --------
    dplr_attention : all steps at once.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import dplr_attention_step
    >>> e, zero = np.eye(2), np.zeros(2)
    >>> o, S = dplr_attention_step(e[0], e[0], np.array([3.0]), zero, zero, np.zeros((2, 1)))
    >>> o, S = dplr_attention_step(e[1], zero, np.zeros(1), e[0], e[1] - e[0], S)
    >>> o
    array([3.])
    """
    xp, q, k, v, a, b, g, S = _arrays.take("dplr_attention_step", q=q, k=k, v=v, a=a, b=b, g=g, S=S)
    q, k, v, a, b, g = dplr.lift(xp, q, (k, v, a, b), g)
    p, terms = _terms("dplr_attention_step", q, k, v, a, b, g, S, None, False)
    return dplr.step("dplr_attention", p, terms, float(scale))


@in_kind
def dplr_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    g: Array | None = None,
    S0: Array | None = None,
    *,
    scale: float = 1,
    reverse: bool = False,
    reset: Array | None = None,
    precision: str = "exact",
    workers: int | None = None,
) -> tuple[tuple[Array, Array], Callable[..., tuple[Array | None, ...]]]:
    """`dplr_attention` and its pullback.

    Parameters
    ----------
    q, k, v, a, b, g, S0, scale, reverse, reset, precision, workers
        As in `dplr_attention`.

    Returns
    -------
    (o, S) : tuple of arrays
        What `dplr_attention` returns.
    pullback : callable
        ``pullback(do, dS)`` returns ``(dq, dk, dv, da, db, dg, dS0)``, each of its argument's shape and dtype (None
        where the argument was None). Either cotangent may be None, which means zero.

    Raises
    ------
    ValueError, TypeError
        As in `dplr_attention`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    dplr_attention : the recurrence.

    Notes
    -----
    Retains the arguments and the state before every chunk of C = 64 steps, (T / C) K V numbers per head; what happens
    inside a chunk is computed anew. Complex cotangents are ``∂L/∂Re + i ∂L/∂Im``. Where a step forgets, `dg` is zero.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import dplr_attention_vjp
    >>> x = np.eye(2)
    >>> (o, S), pullback = dplr_attention_vjp(x, x, np.array([[3.0], [5.0]]), 0 * x, x)
    >>> dq, dk, dv, da, db, dg, dS0 = pullback(np.ones((2, 1)))
    >>> da
    array([[0., 0.],
           [3., 0.]])
    """
    # With dS[t] = ∂L/∂S[t] over every path and u = S[t-1]ᵀ a[t], the step's differential gives
    #   dS[t] = scale q[t] do[t]ᵀ + e^g[t+1] dS[t+1] + a[t+1] du[t+1]ᵀ,   dq[t] = scale S[t] do[t],   du = dS[t]ᵀ b[t],
    #   dk = dS[t] v,   dv = dS[t]ᵀ k,   da = S[t-1] du,   db = dS[t] u,   dg = e^g sum over V of S[t-1] dS[t]
    # (complex numbers conjugated where they stand as factors, the real part in dg).
    given, who = (q, k, v, a, b, g, S0), "dplr_attention_vjp"
    p, terms = _terms(who, *given, reset, reverse)
    o, S, states = dplr.run("dplr_attention", p, terms, float(scale), True, precision, workers)
    o = flip_time(o, -2) if reverse else o
    back = dplr.pullback("dplr_attention", p, terms, states, float(scale), workers)

    def pullback(do: Array | None = None, dS: Array | None = None) -> tuple[Array | None, ...]:
        do, dS = _arrays.cotangent(who, "do", do, o), _arrays.cotangent(who, "dS", dS, S)
        d = Terms(*back(flip_time(do, -2) if reverse else do, dS))
        dg = None if g is None else d.g
        grads = [d.q, d.k, d.v, dplr.unless_reset(p, d.a), d.b, dg]
        grads = [flip_time(x, -2) if reverse and x is not None else x for x in grads]
        if grads[5] is not None and not is_vector(p.arrays["g"], p):
            grads[5] = grads[5][..., 0]
        return tuple(map(_arrays.grad_like, [*grads, d.S0], given))

    return (o, S), pullback
