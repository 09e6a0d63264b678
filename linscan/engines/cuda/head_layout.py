"""How device code of matrix states finds its arrays: steps of features, and states, wherever they lie."""

import math
from collections.abc import Sequence
from typing import Any

import cupy

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.layout import operands


def placed(lead: tuple[int, ...], length: int, arrays: Sequence[Array | None], states: int) -> tuple[list[Any], Any]:
    """The arrays as the kernels take them, the last `states` of them without time, and their struct ``Layout``.

    Features of a step become neighbours in memory, and numbers of a state; leading axes broadcast by their strides.
    """
    timed = len(arrays) - states
    ready = [x if x is None or (n < timed and _dense(x)) else cupy.ascontiguousarray(x) for n, x in enumerate(arrays)]
    inputs = [
        (
            None if x is None else x[..., 0] if n < timed else x[..., 0, 0],
            x.ndim - 2 if x is not None and n < timed else None,
        )
        for n, x in enumerate(ready)
    ]
    struct = operands(lead, length, *inputs)
    if struct is None:  # more batch axes than the layout folds
        whole = [
            None if x is None else cupy.ascontiguousarray(cupy.broadcast_to(x, lead + x.shape[-2:])) for x in ready
        ]
        return placed(lead, length, whole, states)
    return ready, struct.view(f"V{struct.dtype.itemsize}")


def _dense(x: Array) -> bool:
    """Whether the features of a step are neighbours in memory."""
    return x.strides[-1] == x.itemsize or x.shape[-1] == 1


def has_tensor_cores(x: Array) -> bool:
    """Whether the GPU of `x` multiplies 16-bit matrices of both kinds."""
    return int(x.device.compute_capability) >= 80


def packed(x: Array) -> bool:
    """Whether every step of `x` begins at a multiple of 16 bytes and holds whole packs of them."""
    return x.data.ptr % 16 == 0 and x.shape[-1] * x.itemsize % 16 == 0 and all(s % 16 == 0 for s in x.strides[:-1])


def summed(grad: Array, like: Array) -> Array:
    """A 16-bit gradient for all heads, summed over neighbouring axes that `like` broadcasts along; else as it is."""
    shape = (1,) * (grad.ndim - like.ndim) + like.shape
    axes = [n for n, (many, one) in enumerate(zip(grad.shape, shape, strict=True)) if many != one]
    lo, hi = (axes[0], axes[-1] + 1) if axes else (0, 0)
    if not axes or not grad.size or any(n != 1 for n in shape[lo:hi]):
        return grad
    outer, count, inner = (math.prod(part) for part in (grad.shape[:lo], grad.shape[lo:hi], grad.shape[hi:]))
    total, pack = cupy.empty(shape, grad.dtype), 8 if inner % 8 == 0 else 1
    code = kernel("head_sums.cu", "sums", grad.dtype.name, ("PACK", pack))
    code((-(-total.size // pack // 128),), (128,), (grad, total, outer, count, inner))
    return total
