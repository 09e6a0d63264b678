"""Diagonal discretisation on the GPU: the zero-order hold by a kernel of its own, other methods by the array code."""

import cupy
import numpy as np

from linscan._arrays import Array, dtype_name
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.columns import on_its_device
from linscan.engines.reference import discretize_diag as reference

_THREADS = 64


@on_its_device
def discretize_diag(a: Array, h: Array, method: str, alpha: float | None) -> tuple[Array, ...]:
    """See `linscan.engines.reference.discretize_diag.discretize_diag`."""
    if method != "zoh":
        return reference.discretize_diag(a, h, method, alpha)
    dtype = a.dtype
    a, h = _alike(a, h)
    outputs = cupy.empty(a.shape, dtype), cupy.empty(a.shape, dtype)
    _run("hold", a, h, *outputs)
    return outputs


@on_its_device
def discretize_diag_pullback(
    a: Array, h: Array, method: str, alpha: float | None, grads: tuple[Array, ...]
) -> tuple[Array, Array]:
    """See `linscan.engines.reference.discretize_diag.discretize_diag_pullback`."""
    if method != "zoh":
        return reference.discretize_diag_pullback(a, h, method, alpha, grads)
    a, h, *flows = _alike(a, h, *grads)
    wide = cupy.empty(a.shape, np.complex128 if a.dtype.kind == "c" else np.float64)
    dh = cupy.empty(a.shape, np.float64)
    _run("hold_pullback", a, h, *flows, wide, dh)
    return wide, dh


def _alike(*arrays: Array) -> list[Array]:
    """Of one shape, without gaps."""
    shape = np.broadcast_shapes(*(x.shape for x in arrays)) if len({x.shape for x in arrays}) > 1 else arrays[0].shape
    return [cupy.ascontiguousarray(x if x.shape == shape else cupy.broadcast_to(x, shape)) for x in arrays]


def _run(name: str, a: Array, *arrays: Array) -> None:
    if a.size:
        code = kernel("discretize_diag.cu", name, dtype_name(a.dtype))
        code((-(-a.size // _THREADS),), (_THREADS,), (a, *arrays, a.size))
