"""State-space simulation on the GPU: rows in chunks for up to 16 states, a block to a row for more."""

import math
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.chunks import MAX_ORDER, by_row, cut

_THREADS = 128  # of a block of reduce and run; THREADS in lti.cu
_MATRIX = [("at", "u8"), ("row", "i8")]


def dlsim(A: Array, B: Array, C: Array, D: Array, u: Array, x0: Array, *, workers) -> tuple[Array, Array]:
    """See `linscan.ops.lti.dlsim`: outputs and states of every row; all arguments have the same leading axes."""
    with u.device:
        rows, (T, m), (p, n) = u.shape[:-2], u.shape[-2:], C.shape[-2:]
        y, x = cupy.empty((*rows, T, p), u.dtype), cupy.empty((*rows, T, n), u.dtype)
        if y.size + x.size:
            pieces = [by_row(v, len(rows)) for v in (A, B, C, D, u, x0)]
            struct = np.array([[(v.data.ptr, row) for v, row in pieces]], np.dtype(_MATRIX))
            system = struct.view(f"V{struct.nbytes}").reshape(1)
            count = math.prod(rows)
            if 0 < n <= MAX_ORDER and 0 < m and 0 < p:
                _chunks(system, y, x, count, bool(pieces[0][1]), (n, m, p))
            else:
                size = (2 * n + m) * u.dtype.itemsize
                run = kernel("lti.cu", "run_wide", u.dtype.name, ("STATES", MAX_ORDER + 1))
                threads = 32 * min(32, max(1, n + p))
                run((min(count, 2**31 - 1),), (threads,), (system, y, x, count, T, n, m, p), shared_mem=size)
            del pieces  # alive until the launches are queued
    return y, x


def _chunks(system: Any, y: Array, x: Array, rows: int, apart: bool, sizes: tuple[int, int, int]) -> None:
    n, length = sizes[0], x.shape[-2]
    parts = cut(length, n)
    macros = tuple(zip(("STATES", "INPUTS", "OUTPUTS"), sizes, strict=True))
    reduce, carry, run = (kernel("lti.cu", name, x.dtype.name, *macros) for name in ("reduce", "carry", "run"))
    blocks = -(-rows * parts.chunks // _THREADS)
    states, stop = None, None
    if parts.chunks > 1:
        systems = rows if apart else 1
        states = cupy.empty(rows * parts.chunks * n, x.dtype)
        matrices = cupy.empty(systems * 2 * n * n * 2 * x.itemsize, np.uint8)  # two each, in twice the digits
        stop = cupy.empty(rows, np.int64)
        doublings = parts.size.bit_length() - 1, parts.span.bit_length() - 1
        cut_up = system, states, matrices, systems, rows, length, parts.size, *doublings
        reduce((systems + blocks,), (_THREADS,), cut_up)
        carry(
            (min(rows, 2**31 - 1),), (parts.threads,), (system, rows, matrices, states, parts.chunks, parts.span, stop)
        )
    run((blocks,), (_THREADS,), (system, y, x, states, stop, rows, length, parts.size))
