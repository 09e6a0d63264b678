"""``y + D u`` and its pullback on the CPU."""

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu import norm_loops
from linscan.engines.cpu.rows import Out, flat, for_tiles, tiles


def feedthrough(y: Array, u: Array, D: Array) -> Array:
    """See `linscan.engines.reference.feedthrough`."""
    made, compute, direct = np.empty(y.shape, y.dtype), accum_dtype(y.dtype), flat(D, D.dtype)

    def body(_: int, part: slice) -> None:
        out = Out(made[part], compute)
        norm_loops.add_product(flat(y[part], compute), flat(u[part], compute), direct, out.memory)
        out.store()

    if y.size:
        for_tiles(body, *y.shape)
    return made


def feedthrough_pullback(dy: Array, u: Array, D: Array, around: Array | None):
    """See `linscan.engines.reference.feedthrough`."""
    du, compute, direct = np.empty(u.shape, u.dtype), accum_dtype(u.dtype), flat(D, D.dtype)
    sums = np.zeros((tiles(*u.shape), u.shape[1]), compute)

    def body(i: int, part: slice) -> None:
        out = Out(du[part], compute)
        norm_loops.add_product_back(flat(dy[part], compute), flat(u[part], compute), direct, out.memory, sums[i])
        out.store(None if around is None else around[part])

    if u.size:
        for_tiles(body, *u.shape)
    return du, sums.sum(0, dtype=np.float64).astype(compute)
