"""`dplr_attention` on the GPU, step after step; what registers do not hold goes to array code."""

import math

from linscan.engines.cuda import recurrent
from linscan.engines.cuda.recurrent_step import dplr_attention_step
from linscan.engines.reference import dplr_attention as reference

__all__ = ["dplr_attention", "dplr_attention_pullback", "dplr_attention_step"]


def dplr_attention(q, k, v, a, b, g, S0, *, scale, keep, workers):
    """See `linscan.ops.dplr`; also returns, if `keep`, what the pullback wants."""
    if math.prod(S0.shape[:-2]) and recurrent.fits(v.shape[-2], *S0.shape[-2:], q.dtype):
        return recurrent.dplr(q, k, v, a, b, g, S0, scale=scale, keep=keep)
    return reference.dplr_attention(q, k, v, a, b, g, S0, scale=scale, keep=keep, workers=workers)


def dplr_attention_pullback(q, k, v, a, b, g, states, do, dS, *, scale, workers):
    """The gradients of q, k, v, a, b, g and S0, with the leading axes of dS; None where the argument was."""
    if isinstance(states, recurrent.Kept):
        return recurrent.dplr_pullback(q, k, v, a, b, g, states, do, dS, scale=scale)
    return reference.dplr_attention_pullback(q, k, v, a, b, g, states, do, dS, scale=scale, workers=workers)
