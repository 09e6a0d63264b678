"""The plain loop over time, in array operations: the definition of `allpole`."""

from typing import Any

from linscan._arrays import Array, namespace


def allpole(a: Array, x: Array, zi: Array, *, axis: int, workers: Any) -> Array:
    xp = namespace(x)
    y = xp.empty(x.shape, x.dtype)
    coefficients, xs, ys = xp.moveaxis(a, axis, 0), xp.moveaxis(x, axis, 0), xp.moveaxis(y, axis, 0)
    past = zi  # newest first
    for t in range(len(xs)):
        ys[t] = xs[t] - (coefficients[t] * past).sum(axis=-1)
        past = xp.concatenate([ys[t][..., None], past[..., :-1]], axis=-1) if past.shape[-1] else past
    return y
