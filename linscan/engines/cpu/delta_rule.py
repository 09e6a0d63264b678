"""The delta rule on the CPU: `dplr_attention` with one direction to write along; each thread makes its heads' terms."""

import math
from typing import Any

import numpy as np

from linscan._arrays import Array
from linscan.engines.cpu.dplr_attention import dplr_attention_step, run, run_back
from linscan.engines.delta_terms import gradients, step_by_terms, terms_of

delta_rule_step = step_by_terms(dplr_attention_step)


def delta_rule(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Any,
    w: Any,
    reset: Any,
    S0: Array,
    *,
    scale: float,
    keep: bool,
    workers: Any,
    precision: str = "exact",
) -> tuple[Array, Array, Any]:
    """Outputs, final state and what the pullback needs of the states."""
    return run((q, k, v, *_columns(beta, reset), g, w), _terms, q, S0, scale, keep, workers)


def delta_rule_pullback(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    g: Any,
    w: Any,
    reset: Any,
    states: Array,
    do: Array,
    dS: Array,
    *,
    scale: float,
    workers: Any,
) -> tuple[Any, ...]:
    """All gradients, in the order of the arguments, with the leading axes of dS."""
    given, lead = (q, k, v, *_columns(beta, reset), g, w), dS.shape[:-2]
    shapes = (None if x is None else (*lead, *x.shape[-2:]) for x in (q, k, v, given[3], g, w))
    grads: list[Any] = [None if shape is None else np.empty(shape, dS.dtype) for shape in shapes]
    flat: list[Any] = [x if x is None else x.reshape(math.prod(lead), *x.shape[-2:]) for x in grads]

    def places(h: int) -> tuple[Any, ...]:
        dq, dk, dv, _, dg, dw = (x if x is None else x[h] for x in flat)
        return (np.empty_like(dk), dq, dk, None, dv, dg) if dw is None else (dk, dq, dw, None, dv, dg)

    def finish(h: int, own: list[Any], a: Array, grads: tuple[Any, ...]) -> None:
        _, k, _, beta, reset, g, w = own
        da, dq, dc, _, dv, dg = grads
        found = dq, dc, dv, da, None, None if g is None else dg, None
        _, dk, _, dbeta, *_ = gradients(k, beta[:, 0], g, w, None if reset is None else reset[:, 0], a, found)
        flat[3][h, :, 0] = dbeta
        if dk is not dc:
            flat[1][h] = dk

    dS = run_back(given, _terms, places, finish, states, do, dS, scale, workers)
    dq, dk, dv, dbeta, dg, dw = grads
    return dq, dk, dv, dbeta[..., 0], dg, dw, dS


def _columns(beta: Array, reset: Any) -> tuple[Array, Any]:
    """With a last axis like all others."""
    return beta[..., None], None if reset is None else reset[..., None]


def _terms(q: Array, k: Array, v: Array, beta: Array, reset: Any, g: Any, w: Any) -> tuple[Any, ...]:
    """a, q, k, b, v and g of one head."""
    q, k, v, a, b, g, _ = terms_of(q, k, v, beta[:, 0], g, w, None if reset is None else reset[:, 0], None)
    return a, q, k, b, v, g
