"""`dplr_attention` on the GPU: on tensor cores, or step after step; what registers do not hold goes to array code."""

import math

from linscan.engines.cuda import dplr_chunk, recurrent
from linscan.engines.cuda.recurrent_step import dplr_attention_step
from linscan.engines.reference import dplr_attention as reference

__all__ = ["dplr_attention", "dplr_attention_pullback", "dplr_attention_step"]


def dplr_attention(q, k, v, a, b, g, S0, *, scale, keep, workers, precision="exact"):
    """See `linscan.ops.dplr`; also returns, if `keep`, what the pullback wants."""
    if b is not None and dplr_chunk.fits((q, k, a, b), v, S0.shape[:-2], scale, keyed=True):
        with q.device:
            return dplr_chunk.run(_terms(q, k, v, a, b, g), S0, scale=scale, keep=keep)
    if math.prod(S0.shape[:-2]) and recurrent.fits(v.shape[-2], *S0.shape[-2:], q.dtype):
        return recurrent.dplr(q, k, v, a, b, g, S0, scale=scale, keep=keep)
    return reference.dplr_attention(q, k, v, a, b, g, S0, scale=scale, keep=keep, workers=workers)


def dplr_attention_pullback(q, k, v, a, b, g, states, do, dS, *, scale, workers):
    """The gradients of q, k, v, a, b, g and S0, with the leading axes of dS; None where the argument was."""
    if isinstance(states, dplr_chunk.Kept):
        with q.device:
            found = dplr_chunk.pullback(_terms(q, k, v, a, b, g), states, do, dS, scale=scale)
        dq, da, db, dk, dv, _, dg, dS0 = found
        return dq, dk, dv, da, db, dg, dS0
    if isinstance(states, recurrent.Kept):
        return recurrent.dplr_pullback(q, k, v, a, b, g, states, do, dS, scale=scale)
    return reference.dplr_attention_pullback(q, k, v, a, b, g, states, do, dS, scale=scale, workers=workers)


def _terms(q, k, v, a, b, g):
    return dplr_chunk.Terms(q, a, b, k, v, None, g, early=True, sign=1.0)
