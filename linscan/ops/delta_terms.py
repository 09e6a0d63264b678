"""The delta rule in the terms of the engines: a = -e^g k reads the decayed state, beta k is written along."""

from typing import Any

import numpy as np

from linscan._arrays import Array
from linscan.ops import dplr
from linscan.ops.dplr import Terms
from linscan.ops.householder import expand
from linscan.ops.matrix_state import Prepared, flip, is_vector, log_decay, prepare, zero_state


@np.errstate(all="ignore")
def terms_of(who: str, given: tuple[Any, ...], n: int, reverse: bool, reset: Any) -> tuple[Prepared, Terms]:
    """The checked arguments as an engine takes them: a = -e^g k reads the decayed state, beta k is written along."""
    q, k, v, beta, g, S0, w = given
    if n > 1:
        named = {"q": q, "k": k, "v": v, "beta": beta, "g": g, "w": w, "reset": reset}
        q, k, v, beta, g, w, reset = expand(who, n, reverse, **named)
    p = prepare(who, q=q, k=k, v=v, beta=beta, g=g, S0=S0, w=w, reset=reset)
    p = flip(p) if reverse and n == 1 else p
    g, key, write, factor = log_decay(p), *_wide(p)
    a = -key if g is None or w is not None else -p.xp.exp(g) * key
    written = factor[..., None] * (key if write is None else write)
    return p, Terms(p.arrays["q"], written, p.arrays["v"], dplr.unless_reset(p, a), None, g, zero_state(p))


def _wide(p: Prepared) -> tuple[Array, Array | None, Array]:
    """k, w and beta in the arithmetic's dtype: products of 16-bit numbers are not rounded before they are used."""
    k, w, beta = (
        None if x is None else x.astype(p.state_dtype, copy=False) for x in map(p.arrays.get, ("k", "w", "beta"))
    )
    return k, w, beta


@np.errstate(all="ignore")
def gradients(p: Prepared, terms: Terms, d: Terms) -> dict[str, Any]:
    """Gradients of the arguments, in the order the steps are run, from those of an engine's terms."""
    xp, arrays = p.xp, p.arrays
    k, w, beta = map(_conj, _wide(p))
    da, dc, dw = dplr.unless_reset(p, d.a), d.k, None
    dg: Any = d.g
    dbeta = xp.einsum("...k,...k->...", k if w is None else w, dc)
    dc *= beta[..., None]
    if w is not None:
        dk, dw = xp.negative(da, out=da), dc
    elif arrays["g"] is None:
        dk = xp.subtract(dc, da, out=dc)
    else:
        dg += xp.multiply(da, _conj(terms.a)).real if is_vector(arrays["g"], p) else _inner(xp, da, terms.a)
        da *= xp.exp(terms.g)
        dk = xp.subtract(dc, da, out=dc)
    if arrays["g"] is not None and not is_vector(arrays["g"], p):
        dg = dg[..., 0]
    return {"q": d.q, "k": dk, "v": d.v, "beta": dbeta, "g": dg, "S0": d.S0, "w": dw}


def _conj(x: Any) -> Any:
    """The conjugate; no copy of what is real."""
    return x if x is None or x.dtype.kind != "c" else x.conj()


def _inner(xp: Any, x: Array, y: Array) -> Array:
    return xp.einsum("...k,...k->...", x, _conj(y)).real[..., None]
