"""Diagonal convolution kernels on the GPU, and their gradient: sizes and launches.

The work is cut by the length alone, so that a channel's bits do not depend on the others. Real models run as complex
ones.
"""

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.kernel_sizes import bits_of, growth_limit, output_dtype, rows_of, tiles_of

_THREADS = 256
_STATES = 32  # of a block of the gradient
_BLOCKS = 2**31 - 1  # of a grid


def ssm_kernel(a: Array, c: Array, length: int, *, real: bool, workers) -> Array:
    """See `linscan.ops.ssm_kernel.ssm_kernel`; `a` and `c` are (channels, states), of one dtype."""
    k = cupy.empty((len(a), length), output_dtype(a.dtype, real))
    if not k.size:
        return k
    with cupy.cuda.Device(k.data.device_id):
        rows, parts = rows_of(length, a.dtype), 2 if k.dtype.kind == "c" else 1
        squares = _squares(a, bits_of(length, rows))
        run = kernel("ssm_kernel.cu", "ssm_kernel", a.dtype.name, ("ROWS", rows), ("PARTS", parts))
        units = len(a) * parts * tiles_of(length, rows)
        sizes = *a.shape, length, np.int32(len(squares)), growth_limit(length, rows, a.dtype)
        run((min(units, _BLOCKS),), (_THREADS,), (squares, cupy.ascontiguousarray(c), k, *sizes))
    return k


def ssm_kernel_pullback(a: Array, c: Array, dk: Array, *, workers) -> tuple[Array, Array]:
    """See `linscan.ops.ssm_kernel.ssm_kernel_vjp`: the gradients of `a` and `c`, unreduced over broadcast axes."""
    if not (a.size and dk.size):
        return cupy.zeros(a.shape, a.dtype), cupy.zeros(a.shape, a.dtype)
    da, dc = cupy.empty(a.shape, a.dtype), cupy.empty(a.shape, a.dtype)
    (channels, states), length = a.shape, dk.shape[1]
    with cupy.cuda.Device(dk.data.device_id):
        rows, parts = rows_of(length, a.dtype), 2 if dk.dtype.kind == "c" else 1
        squares = _squares(a, bits_of(length, rows))
        tiles, groups = tiles_of(length, rows), -(-states // _STATES)
        macros = a.dtype.name, ("ROWS", rows), ("PARTS", parts)
        partial = cupy.empty((channels * parts * tiles, states, 4))
        units = channels * parts * tiles * groups
        run = kernel("ssm_kernel_back.cu", "ssm_kernel_back", *macros)
        sizes = channels, states, length, np.int32(len(squares)), growth_limit(length, rows, a.dtype)
        run((min(units, _BLOCKS),), (_THREADS,), (squares, cupy.ascontiguousarray(dk), partial, *sizes))
        run = kernel("ssm_kernel_back.cu", "finish", *macros)
        run((_grid(a.size),), (_THREADS,), (partial, cupy.ascontiguousarray(c), da, dc, channels, states, tiles))
    return da, dc


def _squares(a: Array, bits: int) -> Array:
    """``a**(2**i)`` for i < `bits`."""
    squares = cupy.empty((bits, *a.shape), np.complex128)
    if a.size:
        run = kernel("squares.cu", "squares", a.dtype.name)
        run((_grid(a.size),), (_THREADS,), (cupy.ascontiguousarray(a), squares, a.size, np.int32(bits)))
    return squares


def _grid(count: int) -> int:
    return min(-(-count // _THREADS), _BLOCKS)
