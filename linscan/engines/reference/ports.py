"""The two ends of a state space, put together from other loops of whichever engine runs; matrices of n rows."""

from linscan._arrays import Array
from linscan.engines import call


def ports(x: Array, w: Array, u: Array, D: Array) -> Array:
    """``x w + D u`` for x (n, states), w (states, channels), u (n, channels) and D (channels,)."""
    return call("feedthrough", u, call("dense", u, x, w, None), u, D)


def ports_pullback(dv: Array, dy: Array, u: Array, w: Array, D: Array) -> tuple[Array, Array, Array]:
    """The gradients ``du = dv wᵀ + D dy``, ``dw = uᵀ dv``, ``dD = Σ dy u`` of what is in ``v = u w`` as well."""
    du, dD = call("feedthrough_pullback", u, dy, u, D, call("dense", u, dv, w.T, None))
    return du, call("dense_pullback", u, u, dv, False)[0], dD
