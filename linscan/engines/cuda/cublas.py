"""Matrix products by cuBLAS, to the same bits in a captured stream, where CuPy refuses them."""

import ctypes
import importlib
import math
from functools import cache
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda.capture import capturable

_LETTERS = {"f": "S", "d": "D", "F": "C", "D": "Z"}
_WORKSPACE = 1 << 22  # bytes, of every product: those of a graph may overlap with another graph's


@capturable
def product(x: Array, y: Array) -> Array:
    """``x @ y`` for arrays of at least two axes and one dtype."""
    if x.dtype.char not in _LETTERS or x.dtype != y.dtype:
        return x @ y
    lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    out = cupy.empty((*lead, x.shape[-2], y.shape[-1]), x.dtype)
    if not out.size or not x.shape[-1]:
        out.fill(0)
        return out
    # cuBLAS's matrices are columns of columns: it is given yᵀ xᵀ, which lie in memory as y and x do.
    (y, *of_y), (x, *of_x) = (_laid(a, lead) for a in (y, x))
    sizes = out.shape[-1], out.shape[-2], x.shape[-1]
    _call(x.dtype.char, sizes, (y.data.ptr, *of_y), (x.data.ptr, *of_x), out, math.prod(lead))
    return out


def _laid(a: Array, lead: tuple[int, ...]) -> tuple[Array, int, int, int]:
    """Matrices as cuBLAS can read them, whether transposed, and the steps from row to row and from one to the next."""
    rows, columns = a.shape[-2:]
    size, whole = a.itemsize, rows * columns
    if a.ndim > 2 and (a.shape[:-2] != lead or not a.flags.c_contiguous):
        a = cupy.ascontiguousarray(cupy.broadcast_to(a, (*lead, rows, columns)))
    if a.strides[-1] == size and a.strides[-2] >= columns * size:
        return a, 0, a.strides[-2] // size, whole if a.ndim > 2 else 0
    if a.ndim == 2 and a.strides[0] == size and a.strides[1] >= rows * size:
        return a, 1, a.strides[1] // size, 0
    return cupy.ascontiguousarray(a), 0, columns, whole if a.ndim > 2 else 0


def _call(kind: str, sizes: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], out: Array, count: int) -> None:
    library, handle = _library(), ctypes.c_void_p(cupy.cuda.device.get_cublas_handle())
    work = cupy.empty(_WORKSPACE, np.uint8)
    stream = ctypes.c_void_p(cupy.cuda.get_current_stream().ptr)
    one, none = (ctypes.byref(_scalar(kind, value)) for value in (1.0, 0.0))
    m, n, k = map(ctypes.c_int, sizes)
    pointers = [(ctypes.c_void_p(p), ctypes.c_int(step), ctypes.c_longlong(whole)) for p, _, step, whole in (a, b)]
    c = ctypes.c_void_p(out.data.ptr), m, ctypes.c_longlong(sizes[0] * sizes[1])
    failed = (
        library.cublasSetStream_v2(handle, stream)
        or library.cublasSetWorkspace_v2(handle, ctypes.c_void_p(work.data.ptr), ctypes.c_size_t(_WORKSPACE))
        or getattr(library, f"cublas{_LETTERS[kind]}gemmStridedBatched")(
            handle, a[1], b[1], m, n, k, one, *pointers[0], *pointers[1], none, *c, count
        )
    )
    if failed:
        raise RuntimeError(f"cuBLAS failed with status {failed}")


def _scalar(kind: str, value: float) -> Any:
    number = ctypes.c_float if kind in "fF" else ctypes.c_double
    return (number * 2)(value, 0.0) if kind in "FD" else number(value)


@cache
def _library() -> Any:
    """The library that CuPy runs on."""
    importlib.import_module("cupy_backends.cuda.libs.cublas")
    cupy.cuda.device.get_cublas_handle()  # now it is loaded
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    for name in (f"libcublas.so.{major}", f"cublas64_{major}.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(f"the cuBLAS of CUDA {major} is not found")
