"""Sliding-window attention: a softmax over the last few keys, for hybrids with recurrent layers."""

from collections.abc import Callable
from typing import Any

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.in_kind import in_kind
from linscan.engines.reference.local_attention import attend_last
from linscan.ops.local_attention_state import carry, pass_on, prepare


@in_kind
def local_attention(
    q: Array,
    k: Array,
    v: Array,
    window: int,
    g: Array | None = None,
    state: Array | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    workers: int | None = None,
) -> Array | tuple[Array, Array]:
    r"""Sliding-window attention ``o[t] = Σ_s softmax_s(scale q[t]·k[s] + g[s+1] + … + g[t]) v[s]``, t - window < s ≤ t.

    Parameters
    ----------
    q, k : array_like
        Queries and keys (…, T, K), real. Leading axes (batch, heads) broadcast over all arguments: for grouped key
        heads give q as (…, H, G, T, K) and k as (…, H, 1, T, K).
    v : array_like
        Values (…, T, V).
    window : int
        How many steps a query sees, itself included; without `causal`, as many on either side: ``|t - s| < window``.
    g : array_like, optional
        Log forget gates (…, T), at most 0 for forgetting: a key s weighs ``exp(Σ g)`` over the steps from s to t, the
        earlier end left out. A constant is a linear bias in the distance. ``-inf`` works as `reset`.
    state : array_like, optional
        What `local_attention` returned for the steps before, or 0. Given, the call also returns the state that
        continues the sequence. None means no earlier steps, and no state returned.
    causal : bool, default True
        Whether queries see no later keys.
    scale : float, optional
        Factor of the products; ``1 / sqrt(K)`` by default.
    mask : array_like of bool, optional
        Which keys may be seen at all, (…, T).
    reset : array_like of bool, optional
        Where true, a new sequence begins (in the direction of the run), (…, T): no query sees a key of another one.
    reverse : bool, default False
        Run backwards: ``t ≤ s < t + window``, gates from t to s - 1; as on flipped arguments, flipped back.
    workers : int, optional
        Threads the CPU engine may use, as in `scipy.fft`; None means as many as pay for this size.

    Returns
    -------
    o : array
        (…, T, V), in the promoted dtype. Zero where a query sees no key: all masked, or all scores ``-inf``.
    state : array
        Only if `state` was given: (…, window - 1, K + V + 2), the last steps in the order of the run, oldest first, as
        key, value, gate, and 1 if a later query may see them, else 0 (then key and value are 0 too).

    Raises
    ------
    ValueError
        If the shapes do not fit, `window` is below 1, or a state is given without `causal`.
    TypeError
        For an unsupported or complex dtype, a mask or reset that is not boolean, or host and GPU arrays mixed.

    See Also
    --------
    local_attention_step : one query with the same state.

    Notes
    -----
    O(T window (K + V)) operations. Memory for weights is that of a few blocks of queries, O(window) for each thread;
    the (T, T) matrix is never there. 16-bit types are storage and float32 is the arithmetic; gates are summed in
    float64 inside a window. A row's bits do not depend on the other rows or on `workers`. NaN and inf reach the queries
    that see them. Rotary embeddings and other changes of q and k are the caller's.

    References
    ----------
    .. [1] I. Beltagy, M. E. Peters and A. Cohan, "Longformer: the long-document transformer", 2020, arXiv:2004.05150.
    .. [2] S. De et al., "Griffin: mixing gated linear recurrences with local attention", 2024, arXiv:2402.19427.
    .. [3] Z. Lin et al., "Forgetting transformer: softmax attention with a forget gate", 2025, arXiv:2503.02130.

    Examples
    --------
    With keys that say nothing, the mean of the last `window` values; then in pieces, the state carried over:

    >>> import numpy as np
    >>> from linscan import local_attention
    >>> q, k, v = np.zeros((4, 1)), np.zeros((4, 1)), np.array([[1.0], [2.0], [6.0], [4.0]])
    >>> local_attention(q, k, v, 2)[:, 0]
    array([1. , 1.5, 4. , 5. ])
    >>> first, state = local_attention(q[:2], k[:2], v[:2], 2, state=0)
    >>> local_attention(q[2:], k[2:], v[2:], 2, state=state)[0][:, 0]
    array([4., 5.])
    """
    given = {"causal": causal, "scale": scale, "mask": mask, "reset": reset, "reverse": reverse}
    p = prepare("local_attention", q, k, v, window, g, state, **given)
    o, _ = pick("local_attention", p.q.dtype, p.q)(*p.arrays, **p.options, workers=workers)
    o = o[..., ::-1, :] if reverse else o
    return o if state is None else (o, carry(p))


def local_attention_step(
    q: Array,
    k: Array,
    v: Array,
    window: int,
    g: Array | None = None,
    state: Array = 0,
    *,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """One step of `local_attention`: the answer to one query, in memory that does not grow.

    Parameters
    ----------
    q, k, v : array_like
        Query, key and value of this step, (…, K), (…, K) and (…, V).
    window : int
        As in `local_attention`.
    g : array_like, optional
        The log forget gate of this step, (…).
    state : array_like, default 0
        The steps before it: what `local_attention` takes and returns, or 0 for none.
    scale : float, optional
        As in `local_attention`.

    Returns
    -------
    o : array
        (…, V).
    state : array
        The state after it, a new array: the oldest step has made room for this one.

    Raises
    ------
    ValueError, TypeError
        As in `local_attention`.

    See Also
    --------
    local_attention : all steps at once.

    Notes
    -----
    O(window (K + V)) operations and as much memory moved, however long the sequence; array operations only.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import local_attention_step
    >>> state = 0
    >>> for v in ([1.0], [2.0], [6.0]):
    ...     o, state = local_attention_step(np.zeros(1), np.zeros(1), np.array(v), 2, None, state)
    >>> o
    array([4.])
    """
    who = "local_attention_step"
    xp, q, k, v, g = _arrays.take(who, q=q, k=k, v=v, g=g)
    if min(getattr(x, "ndim", 0) for x in (q, k, v)) < 1:
        raise ValueError(f"{who}: q, k and v must have shape (…, K), (…, K) and (…, V)")
    q, k, v = (x[..., None, :] for x in (q, k, v))
    g = None if g is None else xp.asarray(g)[..., None]
    given = {"causal": True, "scale": scale, "mask": None, "reset": None, "reverse": False}
    p = prepare(who, q, k, v, window, g, state, **given)
    return attend_last(p.q, p.k, p.v, p.g, p.own, p.seen, p.options["scale"]), carry(p)


@in_kind
def local_attention_vjp(
    q: Array,
    k: Array,
    v: Array,
    window: int,
    g: Array | None = None,
    state: Array | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    workers: int | None = None,
) -> tuple[Any, Callable[..., tuple[Array | None, ...]]]:
    """`local_attention` and its pullback.

    Parameters
    ----------
    q, k, v, window, g, state, causal, scale, mask, reset, reverse, workers
        As in `local_attention`.

    Returns
    -------
    output : array or tuple of array
        What `local_attention` returns.
    pullback : callable
        ``pullback(do)``, or ``pullback(do, dstate)`` with a state, returns ``(dq, dk, dv, dg, dstate)``, each of its
        argument's shape and dtype (None where the argument was None).

    Raises
    ------
    ValueError, TypeError
        As in `local_attention`; the pullback raises ValueError if a cotangent has the wrong shape.

    See Also
    --------
    local_attention : the equation.

    Notes
    -----
    Retains the arguments, the output and one number per query; the weights are computed anew. Where a query sees no key
    nothing flows back. The marks in the state (its last column) are nothing to differentiate: their gradient is zero.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import local_attention_vjp
    >>> o, pullback = local_attention_vjp(np.zeros((3, 1)), np.zeros((3, 1)), np.ones((3, 1)), 2)
    >>> pullback(np.ones((3, 1)))[2][:, 0]
    array([1.5, 1. , 0.5])
    """
    # With P = softmax(S) by rows and o = P v, for the cotangent do,
    #   dv = Pᵀ do,   dP = do vᵀ,   dS = P ⊙ (dP - D),   D[t] = Σ_s P dP = do[t]·o[t]   (the softmax's own Jacobian);
    #   dq = scale dS k,   dk = scale dSᵀ q,   dg[r] = Σ dS over the pairs (t, s) between which step r lies.
    who, original = "local_attention_vjp", (q, k, v, g, state)
    given = {"causal": causal, "scale": scale, "mask": mask, "reset": reset, "reverse": reverse}
    p = prepare(who, q, k, v, window, g, state, **given)
    arrays, options = p.arrays, {**p.options, "workers": workers}
    o, total = pick("local_attention", p.q.dtype, p.q)(*arrays, **options)
    run = pick("local_attention_pullback", p.q.dtype, p.q)
    final = None if state is None else carry(p)

    def pullback(do: Array | None, dstate: Array | None = None) -> tuple[Array | None, ...]:
        do = _arrays.cotangent(who, "do", do, o)
        dstate = None if final is None else _arrays.cotangent(who, "dstate", dstate, final)
        grads = run(*arrays, o, total, do[..., ::-1, :] if reverse else do, **options)
        grads = pass_on(p, list(grads), dstate, original[4])
        return tuple(None if x is None else _arrays.grad_like(dx, x) for dx, x in zip(grads, original, strict=True))

    y = o[..., ::-1, :] if reverse else o
    return (y if final is None else (y, final)), pullback
