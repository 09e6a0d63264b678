"""One token of the delta rule, for decoding in constant memory."""

from linscan import _arrays
from linscan._arrays import Array
from linscan.ops import dplr
from linscan.ops.delta_terms import delta_of


def delta_rule_step(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    S: Array,
    g: Array | None = None,
    w: Array | None = None,
    *,
    n_householder: int = 1,
    scale: float = 1,
) -> tuple[Array, Array]:
    """One token of `delta_rule`: one query, key and value, and the state before and after.

    Parameters
    ----------
    q, k, w : array_like, shape (..., K)
        This token's query, key and, if any, key to write along.
    v : array_like, shape (..., V)
        This token's value.
    beta : array_like, shape (...)
        How much of the old value is replaced.
    S : array_like, shape (..., K, V)
        The state before the token: what `delta_rule` returned, or zeros.
    g : array_like, shape (...) or (..., K), optional
        Logarithm of this token's decay; its rank decides, as in `delta_rule`.
    n_householder : int, default 1
        Steps per token, n. From 2 on, `k` and `w` are (..., n, K), `v` is (..., n, V) and `beta` (..., n).
    scale : float, default 1
        Factor of the output.

    Returns
    -------
    o : array, shape (..., V)
        The output.
    S : array, shape (..., K, V)
        The state after the token, a new array of the kind that `delta_rule` takes and gives.

    Raises
    ------
    ValueError, TypeError
        As in `delta_rule`.

    See Also
    --------
    delta_rule : all tokens at once.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import delta_rule_step
    >>> key, S = np.array([1.0, 0.0]), np.zeros((2, 1))
    >>> for value in ([3.0], [5.0]):
    ...     o, S = delta_rule_step(key, key, np.array(value), 1.0, S)
    >>> o
    array([5.])
    """
    who = "delta_rule_step"
    n = _arrays.check_count(who, "n_householder", n_householder, 1)
    xp, q, k, v, beta, g, S, w = _arrays.take(who, q=q, k=k, v=v, beta=beta, g=g, S=S, w=w)
    if n == 1:
        _, k, v, w, beta = dplr.lift(xp, q, (k, v, w), beta)
    q, g = dplr.lift(xp, q, (), g)
    p, delta = delta_of(who, (q, k, v, beta, g, S, w), n, False, None)
    return dplr.step("delta_rule", p, delta, float(scale))
