"""MEGA's attention inside chunks: a position bias as further features, and a state that knows its place in the chunk.

    q = κ₀ z + μ₀,  k = κ₁ z + μ₁,  o[t] = softmax over s of (q[t]·k[s] / sqrt(Z) + (R[t] a)·(R[s] b)) v[s]

The state is that of `linscan.local_attention` with room for a whole chunk: R b, k and v of the steps since the chunk
began, whose count says where it is. R turns by the place in the call; the state's are turned back by the call's length.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import local_attention_vjp, max_scan
from linscan._arrays import Array, namespace, sum_rows
from linscan.models.layer import Params, State
from linscan.models.rotary import rotate, turns


def chunk_attention_vjp(
    params: Params, z: Array, v: Array, chunk: int, state: State, reset: Array | None
) -> tuple[tuple[Array, State], Callable[[Array, Array | None], tuple[Any, ...]]]:
    """Outputs (…, T, V) and the state (…, C, 2 Z + V + 2); the pullback gives gradients of z, v, `params`, the state.

    `params` has ``kappa``, ``mu`` and ``bias`` (a, b), each (2, Z) for queries and keys.
    """
    xp, Z, T = namespace(z), z.shape[-1], z.shape[-2]
    kappa, mu, bias, size = params["kappa"], params["mu"], params["bias"], z.dtype.type(Z**-0.5)
    if carried := state is not None and not isinstance(state, int):
        state = xp.concatenate([state[..., :-1], xp.rint(state[..., -1:])], -1)  # the marks, which are 0 or 1
    (cos, sin), (cos_back, sin_back) = turns(np.arange(T), Z, z), turns(-T, Z, z)
    a, b = (xp.broadcast_to(rotate(xp.broadcast_to(x, (T, Z)), cos, sin), z.shape) for x in bias)
    q = xp.concatenate([a, size * (kappa[0] * z + mu[0])], -1)
    k = xp.concatenate([b, kappa[1] * z + mu[1]], -1)
    marks = _starts(z, chunk, state if carried else None, reset)
    back: Any
    out, back = local_attention_vjp(q, k, v, chunk + 1, None, state, scale=1.0, reset=marks)
    o, final = (out, None) if state is None else out

    def pullback(do: Array, dfinal: Array | None) -> tuple[Any, ...]:
        dfinal = None if dfinal is None else rotate(dfinal, cos_back, -sin_back)
        dq, dk, dv, _, dfirst = back(do) if state is None else back(do, dfinal)
        pairs = size * dq[..., Z:], dk[..., Z:]
        grads = {
            "kappa": xp.stack([sum_rows(d * z) for d in pairs]),
            "mu": xp.stack([sum_rows(d) for d in pairs]),
            "bias": xp.stack([sum_rows(rotate(d[..., :Z], cos, -sin)) for d in (dq, dk)]),
        }
        return kappa[0] * pairs[0] + kappa[1] * pairs[1], dv, grads, dfirst if carried else None

    return (o, None if state is None else rotate(final, cos_back, sin_back)), pullback


def _starts(z: Array, chunk: int, state: State, reset: Array | None) -> Array:
    """Where chunks begin: every `chunk` steps of a sequence, (…, T)."""
    xp, lead = namespace(z), z.shape[:-1]
    seen = 0.0 if state is None else state[..., -1].sum(-1, dtype=np.float64)[..., None]  # of the chunk that goes on
    times = xp.arange(lead[-1], dtype=np.float64)
    if reset is None:
        return (times + seen) % chunk == 0
    begins = xp.where(xp.broadcast_to(xp.asarray(reset), lead), times, -xp.inf)
    first = xp.broadcast_to(xp.asarray(-seen), (*lead[:-1], 1))[..., 0]
    return (times - max_scan(0.0, begins, first)) % chunk == 0
