"""What passes by a state space, on the GPU: see feedthrough.cu."""

import cupy

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda.columns import on_its_device, operand, rows_of, run, shares, total, vector


@on_its_device
def feedthrough(y: Array, u: Array, D: Array) -> Array:
    """See `linscan.engines.reference.feedthrough.feedthrough`."""
    y, u = map(rows_of, (y, u))
    out = cupy.empty(y.shape, y.dtype)
    run("feedthrough.cu", "feedthrough", y, shares(*y.shape, y, u, out), (*operand(y), *operand(u), vector(D), out))
    return out


@on_its_device
def feedthrough_pullback(dy: Array, u: Array, D: Array, around: Array | None) -> tuple[Array, Array]:
    """See `linscan.engines.reference.feedthrough.feedthrough_pullback`."""
    dy, u, around = map(rows_of, (dy, u, around))
    du, cut = cupy.empty(u.shape, u.dtype), shares(*u.shape, dy, u, around, summed=True)
    sums = cupy.empty((cut.chunks, u.shape[1]), accum_dtype(u.dtype))
    run(
        "feedthrough.cu",
        "feedthrough_pullback",
        u,
        cut,
        (*operand(dy), *operand(u), *operand(around), vector(D), du, sums),
    )
    return du, total(sums)
