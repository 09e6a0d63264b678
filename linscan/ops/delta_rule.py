"""The delta rule: matrix states that replace what lies under a key instead of adding to it."""

from collections.abc import Callable

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines.in_kind import in_kind
from linscan.ops import dplr
from linscan.ops.delta_terms import delta_of
from linscan.ops.householder import collected, read_last, turned
from linscan.ops.matrix_state import is_vector


@in_kind
def delta_rule(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Array | None = None,
    S0: Array | None = None,
    w: Array | None = None,
    *,
    n_householder: int = 1,
    scale: float = 1,
    reverse: bool = False,
    reset: Array | None = None,
    precision: str = "exact",
    workers: int | None = None,
) -> tuple[Array, Array]:
    r"""Delta rule ``S[t] = D S[t-1] + beta[t] k[t] (v[t] - (D S[t-1])ᵀ k[t])ᵀ``, ``D = diag(e^g[t])``, in chunks.

    The output is ``o[t] = scale S[t]ᵀ q[t]``. DeltaNet (no `g`), Gated DeltaNet and KDA (`g` per step, per channel),
    DeltaProduct (`n_householder`), Comba (`w`).

    Parameters
    ----------
    q, k : array_like, shape (..., T, K)
        Queries and keys, real or complex (neither is conjugated). With unit keys the transition
        ``D - beta k (D k)ᵀ`` has the eigenvalue ``1 - beta`` along k where there is no decay.
    v : array_like, shape (..., T, V)
        Values. The leading axes of all arguments broadcast: one key head may serve many query heads.
    beta : array_like, shape (..., T)
        How much of the old value is replaced: 0 keeps it, 1 replaces it, 2 reflects it. A number is a constant.
    g : array_like, shape (..., T) or (..., T, K), optional
        Logarithm of the decay, real: one number per step if it has one axis less than `q`, one per step and key channel
        if it has as many; a number is a constant decay. None means no decay. ``-inf`` forgets a channel exactly.
    S0 : array_like, shape (..., K, V), optional
        State before the first step (after the last one if `reverse`). None means zero.
    w : array_like, shape (..., T, K), optional
        A key of its own to write along, as in Comba: ``S[t] = D S[t-1] + beta[t] w[t] (v[t] - S[t-1]ᵀ k[t])ᵀ``. The old
        value is then read before the decay; to read it after, pass ``exp(g) k`` for `k`.
    n_householder : int, default 1
        Steps per token, n. `k`, `v`, `beta` and `w` then have T n steps, those of one token side by side; the decay
        acts once, before the first of them, and the query reads after the last.
    scale : float, default 1
        Factor of the output, not of the state.
    reverse : bool, default False
        Run over the tokens backwards; `S` is then the state at the first one.
    reset : array_like of bool, shape (..., T), optional
        Where true, the state is forgotten before that token, even NaN: packs several sequences into one.
    precision : {"exact", "tf32"}, default "exact"
        "tf32" lets float32 arrays on a GPU run in chunks, which is faster with at most one decay a token and no `w`,
        but loses digits where keys resemble each other. Without effect on other dtypes and on a CPU.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    o : array, shape (..., T, V)
        The outputs, in the promoted dtype of the arguments; float32 gates beside 16-bit arrays leave them 16-bit.
    S : array, shape (..., K, V)
        The final state, the `S0` that goes on; float32 for 16-bit arrays, beside which it leaves their dtype alone.

    Raises
    ------
    ValueError
        If shapes do not fit or broadcast, `n_householder` is below 1, or `precision` is unknown.
    TypeError
        For an unsupported dtype, a complex `g`, or host and GPU arrays mixed.

    See Also
    --------
    delta_rule_step : one token, for decoding.
    delta_rule_vjp : the gradient.
    dplr_attention : what is erased, read and written along chosen freely.

    Notes
    -----
    O(T (K + V) C + T K V) operations with chunks of C = 64 steps, in each of which a triangular system is solved by
    substitution. No exponential of a positive number is taken unless `g` is positive; then the result is the plain
    loop's, with rounding errors larger by the growth over a chunk. Chunks that hold NaN or inf, or in which growth
    overflows, are run step by step (on the CPU), so that these reach only their own time and later. In float32 the
    error is below 5e-6 of the norm at every decay, also for keys that resemble each other at beta = 2. A row's bits do
    not depend on the other rows or on `workers`.

    References
    ----------
    .. [1] S. Yang et al., "Parallelizing linear transformers with the delta rule over sequence length", 2024,
       arXiv:2406.06484.
    .. [2] S. Yang et al., "Gated delta networks", 2024, arXiv:2412.06464.
    .. [3] J. Siems et al., "DeltaProduct", 2025, arXiv:2502.10297.

    Examples
    --------
    The second value written under a key replaces the first. At beta = 2 a key turns the sign of what it meets, so a
    state of one number knows the parity of the bits so far:

    >>> import numpy as np
    >>> from linscan import delta_rule
    >>> k = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> delta_rule(k, k, np.array([[3.0], [5.0]]), 1.0)[1]
    array([[5.],
           [0.]])
    >>> bits = np.array([1, 0, 1, 1])
    >>> one = np.ones((4, 1))
    >>> delta_rule(one, one, 0 * one, 2 * bits, S0=np.ones((1, 1)))[0].ravel()
    array([-1., -1.,  1., -1.])
    """
    n = _arrays.check_count("delta_rule", "n_householder", n_householder, 1)
    p, delta = delta_of("delta_rule", (q, k, v, beta, g, S0, w), n, reverse, reset)
    o, S, _ = dplr.run("delta_rule", p, delta, float(scale), False, precision, workers)
    return collected(o, -2, n, n - 1, reverse), S


@in_kind
def delta_rule_vjp(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Array | None = None,
    S0: Array | None = None,
    w: Array | None = None,
    *,
    n_householder: int = 1,
    scale: float = 1,
    reverse: bool = False,
    reset: Array | None = None,
    precision: str = "exact",
    workers: int | None = None,
) -> tuple[tuple[Array, Array], Callable[..., tuple[Array | None, ...]]]:
    """`delta_rule` and its pullback.

    Parameters
    ----------
    q, k, v, beta, g, S0, w, n_householder, scale, reverse, reset, precision, workers
        As in `delta_rule`.

    Returns
    -------
    (o, S) : tuple of arrays
        What `delta_rule` returns.
    pullback : callable
        ``pullback(do, dS)`` returns ``(dq, dk, dv, dbeta, dg, dS0, dw)``, each of its argument's shape and dtype (None
        where the argument was None). Either cotangent may be None, which means zero.

    Raises
    ------
    ValueError, TypeError
        As in `delta_rule`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    delta_rule : the recurrence.

    Notes
    -----
    Retains the arguments and the state before every chunk of C = 64 steps, (T / C) K V numbers per head; what happens
    inside a chunk is computed anew. Complex cotangents are ``∂L/∂Re + i ∂L/∂Im``.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import delta_rule_vjp
    >>> k = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> (o, S), pullback = delta_rule_vjp(k, k, np.array([[3.0], [5.0]]), 0.5)
    >>> dq, dk, dv, dbeta, dg, dS0, dw = pullback(np.ones((2, 1)))
    >>> dv
    array([[0.75],
           [0.5 ]])
    """
    who, n = "delta_rule_vjp", _arrays.check_count("delta_rule_vjp", "n_householder", n_householder, 1)
    given = q, k, v, beta, g, S0, w
    p, delta = delta_of(who, given, n, reverse, reset)
    o, S, states = dplr.run("delta_rule", p, delta, float(scale), True, precision, workers)
    o = collected(o, -2, n, n - 1, reverse)
    back = dplr.pullback("delta_rule", p, delta, states, float(scale), workers)

    def pullback(do: Array | None = None, dS: Array | None = None) -> tuple[Array | None, ...]:
        do, dS = _arrays.cotangent(who, "do", do, o), _arrays.cotangent(who, "dS", dS, S)
        dq, dk, dv, dbeta, dg, dw, dS0 = back(read_last(do, n, reverse), dS)
        dk, dv, dw = (x if x is None else turned(x, -2, n, reverse) for x in (dk, dv, dw))
        if g is not None:
            vector = is_vector(p.arrays["g"], p)
            dg = collected(dg if vector else dg[..., 0], -2 if vector else -1, n, 0, reverse)
        grads = collected(dq, -2, n, n - 1, reverse), dk, dv, turned(dbeta, -1, n, reverse), dg, dS0, dw
        return tuple(map(_arrays.grad_like, grads, given))

    return (o, S), pullback
