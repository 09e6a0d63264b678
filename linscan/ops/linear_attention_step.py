"""One step of linear attention, for decoding in constant memory."""

from typing import Any

import numpy as np

from linscan import _arrays
from linscan._arrays import Array
from linscan.engines import pick
from linscan.ops.matrix_state import is_vector, log_decay, prepare


def linear_attention_step(
    q: Array, k: Array, v: Array, S: Array, g: Array | None = None, *, scale: float = 1, sign: Array | None = None
) -> tuple[Array, Array]:
    """One step of `linear_attention`: ``S = diag(sign e^g) S + k vᵀ``, ``o = scale Sᵀ q``.

    Parameters
    ----------
    q, k : array_like, shape (..., K)
        Query and key of this step.
    v : array_like, shape (..., V)
        Its value.
    S : array_like, shape (..., K, V)
        The state before it: what `linear_attention` returned, or zeros.
    g, sign : array_like, shape (...) or (..., K), optional
        As in `linear_attention`, without time.
    scale : float, default 1
        Factor of the output.

    Returns
    -------
    o : array, shape (..., V)
        The output of this step.
    S : array, shape (..., K, V)
        The state after it, a new array.

    Raises
    ------
    ValueError, TypeError
        As in `linear_attention`.

    See Also
    --------
    linear_attention : all steps at once.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan import linear_attention_step
    >>> S = np.zeros((2, 1))
    >>> for k, v in zip(np.eye(2), [[3.0], [5.0]]):
    ...     o, S = linear_attention_step(np.ones(2), k, np.array(v), S, np.log(0.5))
    >>> o
    array([6.5])
    """
    xp, q, k, v, S, g, sign = _arrays.take("linear_attention_step", q=q, k=k, v=v, S=S, g=g, sign=sign)
    rank = np.ndim(q)
    q, k, v = (x if x.ndim == 0 else x[..., None, :] for x in map(xp.asarray, (q, k, v)))
    g, sign = (_with_time(x, rank) for x in (g, sign))
    p = prepare("linear_attention_step", q=q, k=k, v=v, S0=S, g=g, sign=sign, reset=None)
    state, turn = p.arrays["S0"], p.arrays["sign"]
    if turn is not None:
        state = (turn[..., 0, :] if is_vector(turn, p) else turn)[..., None].astype(state.dtype) * state
    run = pick("linear_attention_step", p.dtype, p.arrays["q"])
    inputs = (*(p.arrays[name] for name in ("q", "k", "v")), log_decay(p), state)
    return run(*inputs, lead=p.lead, scale=scale, workers=None)


def _with_time(x: Any, rank: int) -> Any:
    """A decay (…) or (…, K) as (…, 1) or (…, 1, K); a number stays one."""
    if np.ndim(x) == 0:
        return x
    return x[..., None, :] if np.ndim(x) == rank else x[..., None]
