"""The delta rule on the GPU: on tensor cores where they take it, else as `dplr_attention`.

One decay a step or none, and keys written along as they are read, have kernels of their own, in delta_chunk.py and, of
float32 arrays which need not be exact, in single_delta.py; other decays and keys are terms of dplr_chunk.py.
"""

from linscan.engines.cuda import delta_chunk, delta_segments, dplr_chunk, single_delta
from linscan.engines.cuda.dplr_attention import dplr_attention, dplr_attention_pullback
from linscan.engines.cuda.recurrent_step import delta_rule_step
from linscan.engines.delta_terms import by_terms, unless

__all__ = ["delta_rule", "delta_rule_pullback", "delta_rule_step"]

_by_terms, _by_terms_pullback = by_terms(dplr_attention, dplr_attention_pullback)


def delta_rule(q, k, v, beta, g, w, reset, S0, *, scale, keep, workers, precision="exact"):
    """See `linscan.ops.delta_rule`; also returns, if `keep`, what the pullback needs."""
    lead = S0.shape[:-2]
    with q.device:
        if delta_chunk.fits(q, v, g, w, lead, scale):
            way = delta_segments if delta_segments.is_long(q.shape[-2]) else delta_chunk
            return way.delta_rule(q, k, v, beta, g, S0, scale=scale, keep=keep)
        if precision == "tf32" and single_delta.fits(q, v, g, w, lead):
            return single_delta.delta_rule(q, k, v, beta, g, S0, scale=scale, keep=keep)
        if dplr_chunk.fits((q, k, w), v, lead, scale, keyed=False):
            return dplr_chunk.run(_terms(q, k, v, beta, g, w, reset), S0, scale=scale, keep=keep)
    return _by_terms(q, k, v, beta, g, w, reset, S0, scale=scale, keep=keep, workers=workers)


def delta_rule_pullback(q, k, v, beta, g, w, reset, states, do, dS, *, scale, workers):
    """See `linscan.ops.delta_rule.delta_rule_vjp`; the gradients of all arguments but `reset`, S0's last."""
    if isinstance(states, delta_chunk.Kept | delta_segments.Cut):
        way = delta_chunk if isinstance(states, delta_chunk.Kept) else delta_segments
        with q.device:
            *found, dS0 = way.delta_rule_pullback(q, k, v, beta, g, states, do, dS, scale=scale)
        return *found, None, dS0
    if isinstance(states, dplr_chunk.Kept):
        with q.device:
            found = dplr_chunk.pullback(_terms(q, k, v, beta, g, w, reset), states, do, dS, scale=scale)
            dq, da, db, _, dv, dbeta, dg, dS0 = found
            dk, dw = (db, None) if w is None else (unless(reset, da), db)
        return dq, dk, dv, dbeta, dg, dw, dS0
    return _by_terms_pullback(q, k, v, beta, g, w, reset, states, do, dS, scale=scale, workers=workers)


def _terms(q, k, v, beta, g, w, reset):
    """A key that is read before the decay reads nothing of what is forgotten."""
    a, b = (k, k) if w is None else (unless(reset, k), w)
    beta = beta.astype("float32", copy=False)[..., None]
    return dplr_chunk.Terms(q, a, b, None, v, beta, g, early=w is not None, sign=-1.0)
