"""The delta rule in the terms of `dplr_attention`, for engines that have no loop of its own for it.

A delta rule is given as q, k, v, beta, g, w, reset, S0: time forwards, g None or (…, T, 1) or (…, T, K) and -inf where
`reset` is true, S0 with all leading axes. In these terms a = -e^g k reads the decayed state (a = -k if there is a key w
to write along), beta k or beta w is written along, and b is None.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from linscan._arrays import Array, accum_dtype, namespace


@np.errstate(all="ignore")
def terms_of(q: Array, k: Array, v: Array, beta: Array, g: Any, w: Any, reset: Any, S0: Any) -> tuple[Any, ...]:
    """The arguments q, k, v, a, b, g and S0 of `dplr_attention`."""
    xp, (key, write, factor) = namespace(q), _wide(k, w, beta)
    a = -key if g is None or w is not None else -xp.exp(g) * key
    return q, factor[..., None] * (key if write is None else write), v, unless(reset, a), None, g, S0


@np.errstate(all="ignore")
def gradients(k: Array, beta: Array, g: Any, w: Any, reset: Any, a: Array, found: tuple[Any, ...]) -> tuple[Any, ...]:
    """The gradients of q, k, v, beta, g, w and S0 from those `found` for the terms.

    dk = conj(beta) dc - e^g da, dbeta = sum over K of conj(k) dc, dg += Re conj(a) da; with a key w to write along,
    c = beta w and a = -k: dw = conj(beta) dc, dk = -da.
    """
    xp = namespace(k)
    dq, dc, dv, da, _, dg, dS0 = found
    key, write, factor = map(_conj, _wide(k, w, beta))
    da, dw = unless(reset, da), None
    dbeta = _dots(key if write is None else write, dc)
    dc *= factor[..., None]
    if write is not None:
        dk, dw = xp.negative(da, out=da), dc
    elif g is None:
        dk = xp.subtract(dc, da, out=dc)
    else:
        dg += _dots(da, _conj(a)).real[..., None] if g.shape[-1] == 1 else xp.multiply(da, _conj(a)).real
        da *= xp.exp(g)
        dk = xp.subtract(dc, da, out=dc)
    return dq, dk, dv, dbeta, dg, dw, dS0


def by_terms(run: Callable[..., Any], back: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The delta rule and its pullback by an engine's `dplr_attention` and its pullback."""

    def delta_rule(
        q: Array,
        k: Array,
        v: Array,
        beta: Array,
        g: Any,
        w: Any,
        reset: Any,
        S0: Any,
        *,
        scale: Any,
        keep: bool,
        workers: Any,
        precision: str = "exact",
    ) -> Any:
        """Outputs, final state and what the pullback needs of the states."""
        return run(*terms_of(q, k, v, beta, g, w, reset, S0), scale=scale, keep=keep, workers=workers)

    def delta_rule_pullback(
        q: Array,
        k: Array,
        v: Array,
        beta: Array,
        g: Any,
        w: Any,
        reset: Any,
        states: Any,
        do: Array,
        dS: Array,
        *,
        scale: Any,
        workers: Any,
    ) -> tuple[Any, ...]:
        """From the arguments without S0, the states and the two cotangents: all gradients, see `gradients`."""
        q, written, v, a, *rest = terms_of(q, k, v, beta, g, w, reset, None)
        found = back(q, written, v, a, *rest[:2], states, do, dS, scale=scale, workers=workers)
        return gradients(k, beta, g, w, reset, a, found)

    return delta_rule, delta_rule_pullback


def step_by_terms(step: Callable[..., Any]) -> Callable[..., Any]:
    """The few steps of one token of the delta rule by an engine's `dplr_attention_step`."""

    def delta_rule_step(*given: Any, **options: Any) -> Any:
        """The output of the last step, and the state after it."""
        return step(*terms_of(*given), **options)

    return delta_rule_step


def _wide(k: Array, w: Any, beta: Array) -> tuple[Array, Any, Array]:
    """k, w and beta in the arithmetic's dtype: products of 16-bit numbers are not rounded before they are used."""
    key, factor = (x.astype(accum_dtype(x.dtype), copy=False) for x in (k, beta))
    return key, None if w is None else w.astype(key.dtype, copy=False), factor


def unless(reset: Any, x: Array) -> Array:
    """`x` (…, T, K), zero where the state is forgotten: nothing is read from it there, and nothing flows back."""
    if reset is None:
        return x
    if x.dtype.itemsize > 2:
        return namespace(x).where(reset[..., None], x.dtype.type(0), x)
    bits = x.view(np.uint16)  # CuPy would choose between 16-bit numbers in float32
    return namespace(x).where(reset[..., None], bits.dtype.type(0), bits).view(x.dtype)


def _conj(x: Any) -> Any:
    """The conjugate; no copy of what is real."""
    return x if x is None or x.dtype.kind != "c" else x.conj()


def _dots(x: Array, y: Array) -> Array:
    """Sums over K of products; a captured stream refuses the matrix products that CuPy's einsum makes of them."""
    return np.einsum("...k,...k->...", x, y) if namespace(x) is np else (x * y).sum(axis=-1)
