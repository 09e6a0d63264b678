"""The delta rule as engines take it: checked, time forwards, several steps per token as steps of their own."""

from typing import Any, NamedTuple

from linscan._arrays import Array
from linscan.ops.householder import expand
from linscan.ops.matrix_state import Prepared, flip, log_decay, prepare, zero_state


class Delta(NamedTuple):
    """Time forwards, g (…, T, 1) or (…, T, K) or None and -inf where `reset` is true, S0 with all leading axes."""

    q: Array
    k: Array
    v: Array
    beta: Array
    g: Array | None
    w: Array | None
    reset: Array | None
    S0: Array


def delta_of(who: str, given: tuple[Any, ...], n: int, reverse: bool, reset: Any) -> tuple[Prepared, Delta]:
    """The checked arguments q, k, v, beta, g, S0 and w of a call, and what an engine is given."""
    q, k, v, beta, g, S0, w = given
    if n > 1:
        named = {"q": q, "k": k, "v": v, "beta": beta, "g": g, "w": w, "reset": reset}
        q, k, v, beta, g, w, reset = expand(who, n, reverse, **named)
    p = prepare(who, q=q, k=k, v=v, beta=beta, g=g, S0=S0, w=w, reset=reset)
    p = flip(p) if reverse and n == 1 else p
    x = p.arrays
    return p, Delta(x["q"], x["k"], x["v"], x["beta"], log_decay(p), x["w"], x["reset"], zero_state(p))
