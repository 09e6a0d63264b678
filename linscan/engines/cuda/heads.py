"""Vectors of many heads as device code takes them: leading axes that broadcast, folded to at most six."""

from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda.layout import Strides, fold, spread, strides

OPERAND = np.dtype([("at", "u8"), ("time", "i8"), ("batch", "i8", 6)])  # heads.cuh
SIZES = [("ndim", "i8"), ("size", "i8", 6)]


def dense(x: Array) -> Array:
    """`x`, copied unless the features of a step are neighbours in memory and its strides whole elements."""
    whole = all(s % x.itemsize == 0 for s in x.strides)
    return x if whole and (x.strides[-1] == x.itemsize or x.shape[-1] == 1) else cupy.ascontiguousarray(x)


def place(struct: np.ndarray, lead: tuple[int, ...], arrays: dict[Any, Array]) -> list[Array]:
    """Write sizes and operands of `arrays`, (…, T, features) under the keys of their fields, into `struct`.

    The arrays the struct then points to, to be kept until the launch: copies of those that lie in no way it can hold.
    """
    arrays = {name: dense(x) for name, x in arrays.items()}
    steps = {n: _steps(x, lead) for n, x in arrays.items()}
    sizes, folded = fold(lead, [s.batch for s in steps.values()])
    if len(sizes) > 6:
        return place(struct, lead, {n: _own(x, lead) for n, x in arrays.items()})
    struct["ndim"], struct["size"][0, : len(sizes)] = len(sizes), sizes
    for (name, x), batch in zip(arrays.items(), folded, strict=True):
        operand = struct[name[0]][0, name[1]] if isinstance(name, tuple) else struct[name][0]
        operand["at"], operand["time"], operand["batch"][: len(batch)] = x.data.ptr, steps[name].time, batch
    return list(arrays.values())


def _steps(x: Array, lead: tuple[int, ...]) -> Strides:
    """Strides of an array (…, T, features) that is whole elements apart, as broadcast to `lead`."""
    own = strides(x[..., 0], x.ndim - 2)
    return spread(own, x.shape[:-1], x.ndim - 2, lead)  # type: ignore[arg-type]


def _own(x: Array, lead: tuple[int, ...]) -> Array:
    """`x` with all leading axes, in memory of its own unless it has them: what is written to does."""
    return x if x.shape[:-2] == lead else cupy.ascontiguousarray(cupy.broadcast_to(x, lead + x.shape[-2:]))


def packed(*arrays: Array) -> bool:
    """Whether every step of these is whole fours of numbers, and begins at a multiple of their bytes, or of 16."""
    for x in arrays:
        steps = x.data.ptr, *x.strides[:-1]
        if x.shape[-1] % 4 or any(s % min(16, 4 * x.itemsize) for s in steps):
            return False
    return True


def raw(struct: np.ndarray) -> np.ndarray:
    """As plain bytes: CuPy asks an array to describe its fields at every launch, which is slow."""
    return struct.view(f"V{struct.dtype.itemsize}")
