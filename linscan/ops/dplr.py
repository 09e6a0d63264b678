"""What `dplr_attention` and `delta_rule` share: one engine, its directions and resets, and one step by hand.

The delta rule is the case b = k of ``S[t] = diag(e^g[t]) S[t-1] + b[t] (a[t]ᵀ S[t-1]) + k[t] v[t]ᵀ``; engines are told
by b = None and then have half the products to make.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from linscan._arrays import Array
from linscan.engines import pick
from linscan.engines.delta_terms import unless
from linscan.ops.matrix_state import Prepared, check_precision


class Terms(NamedTuple):
    """A problem as engines take it: time forwards, g (…, T, 1) or (…, T, K) or None, S0 with all leading axes."""

    q: Array
    k: Array
    v: Array
    a: Array
    b: Array | None
    g: Array | None
    S0: Array


def unless_reset(p: Prepared, x: Array) -> Array:
    """`x` (…, T, K), zero where the state is forgotten: nothing is read from it there, and nothing flows back."""
    return unless(p.arrays["reset"], x)


def run(
    row: str, p: Prepared, given: tuple[Any, ...], scale: float, keep: bool, precision: str, workers: int | None
) -> tuple[Any, ...]:
    """Outputs, final state and, if `keep`, the states before every chunk, by the engine of this row.

    `given` are `Terms`, or for the delta rule its own arguments; q comes first and S0 last.
    """
    check_precision(row, precision)
    return pick(row, p.dtype, given[0])(*given, scale=scale, keep=keep, precision=precision, workers=workers)


def pullback(
    row: str, p: Prepared, given: tuple[Any, ...], states: Any, scale: float, workers: int | None
) -> Callable[..., tuple[Any, ...]]:
    """The gradients of all that was `given` from those of outputs and final state, by the engine of this row."""
    back = pick(f"{row}_pullback", p.dtype, given[0])

    def gradients(do: Array, dS: Array) -> tuple[Any, ...]:
        return back(*given[:-1], states, do, dS, scale=scale, workers=workers)

    return gradients


def lift(xp: Any, q: Any, vectors: tuple[Any, ...], decay: Any) -> list[Any]:
    """One step's arguments with a time axis of length 1: queries, keys and values (…, K), a decay (…) or (…, K)."""
    lifted = [x if x is None or not np.ndim(x) else xp.asarray(x)[..., None, :] for x in (q, *vectors)]
    if decay is not None and np.ndim(decay):
        decay = xp.asarray(decay)
        decay = decay[..., None, :] if decay.ndim == np.ndim(q) else decay[..., None]
    return [*lifted, decay]


def step(row: str, p: Prepared, given: tuple[Any, ...], scale: float) -> tuple[Array, Array]:
    """The output of the last of these few steps, and the state after it, by the engine of this row."""
    return pick(f"{row}_step", p.dtype, given[0])(*given, scale=scale, workers=None)
