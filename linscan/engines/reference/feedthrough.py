"""What passes by a state space, ``y + D u``, and its pullback, of matrices (n, channels)."""

from linscan._arrays import Array, accum_dtype, sum_rows


def feedthrough(y: Array, u: Array, D: Array) -> Array:
    """``y + D u``; D, (channels,), is in the dtype arithmetic is done in."""
    return (y + D * u).astype(y.dtype, copy=False)


def feedthrough_pullback(dy: Array, u: Array, D: Array, around: Array | None) -> tuple[Array, Array]:
    """The gradients ``(du, dD)``, du being ``D dy + around``."""
    wide = dy.astype(accum_dtype(dy.dtype), copy=False)
    du = D * wide if around is None else D * wide + around
    return du.astype(u.dtype, copy=False), sum_rows(wide * u)
