"""Newton's method for nonlinear recurrences on the GPU: cells with diagonal matrices, their step and Jacobian fused.

How time is cut follows from its length and the card alone: a row's bits do not depend on the other rows. The host waits
for nothing: what is left to do is decided on the card.
"""

import math
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.rnn_scan import as_bytes, clusters, finish, number_of, problem

_THREADS, _SOLVERS = 128, 256
_SHORT, _LONG = 64, 256  # steps of a chunk
_CHUNKS, _CHUNKS_BACK = 32, 1024  # that a row may have, unless they would be longer or shorter
_WARM = 32  # steps by which the first guess of a chunk begins before it
_WIDTH = 8  # channels of a block that corrects
_PARTS = 8  # blocks that share a channel's time, if it has
_SHARED = 16384  # steps


def newton_scan(r, array_form: Callable[..., Any], *, quasi, damping, tol, limit, fallback, workers) -> Any:
    """See `linscan.engines.reference.newton_scan`."""
    cell = number_of(r)
    if cell is None or not r.cell.diagonal or damping is not None:
        return array_form(r, quasi=quasi, damping=damping, tol=tol, limit=limit, fallback=fallback, workers=workers)
    *lead, T, _, d = r.x.shape
    compute, steps, rows, n = r.R.dtype, _chunk_of(T), math.prod(lead), r.cell.states
    dtype = r.x.dtype.name
    parts = _PARTS if T >= _SHARED and clusters(r.x.data.device_id) else 1
    pieces, blocks = parts * _SOLVERS // _WIDTH, rows * -(-d // _WIDTH) * parts
    with r.x.device:
        states = cupy.empty((*lead, T, n, d), compute)
        size, count = cupy.empty(lead, compute), cupy.empty(lead, np.int64)
        struct = problem(r, cell, False, states=states, first=r.s0, b=r.b)
        maps, ends, flow = (cupy.empty((k, rows, pieces, d), compute) for k in (n * n, n, n))
        boards, tol = cupy.empty(blocks, compute), compute.type(tol)
        macros = ("CELL", cell), ("RESETS", int(r.reset is not None)), ("PARTS", parts)
        guess, solve = (kernel("rnn_newton.cu", name, dtype, *macros) for name in ("guess", "solve"))
        given, chunks = as_bytes(struct), -(-T // steps)
        guess((-(-rows * chunks * d // _THREADS),), (_THREADS,), (given, steps, chunks, _WARM, size, count))
        work = (maps, ends, flow, boards, size, count)
        solve((blocks,), (_SOLVERS,), (given, steps, -(-T // pieces), *work, tol, limit))
        solved = finish(struct, cell, dtype, size, tol) if fallback else size <= tol
        return states, solved, count, size


def newton_scan_pullback(r, array_form: Callable[..., Any], states, dh, dstate, *, workers) -> Any:
    """See `linscan.engines.reference.newton_scan`."""
    cell = number_of(r)
    if cell is None or not r.cell.diagonal:
        return array_form(r, states, dh, dstate, workers)
    *lead, T, G, d = r.x.shape
    steps, states, compute = _back_chunk_of(T), cupy.ascontiguousarray(states), r.R.dtype
    with r.x.device:
        dx, ds = cupy.empty(r.x.shape, compute), cupy.array(dstate, compute, order="C")
        dh = cupy.ascontiguousarray(dh.astype(r.x.dtype, copy=False))
        given = as_bytes(problem(r, cell, False, states=states, first=r.s0, b=r.b, dh=dh, dx=dx, ds=ds))
        n, piece = r.cell.states, (*lead, -(-T // steps), d)
        maps, ends, flow = (cupy.empty((k, *piece), compute) for k in (n * n, n, n))
        sums = cupy.empty((2 * G + r.cell.weights, *piece), compute)

        def launch(name: str, threads: int, *arguments: Any) -> None:
            run = kernel("rnn_newton_back.cu", name, r.x.dtype.name, ("CELL", cell))
            run((-(-threads // _THREADS),), (_THREADS,), (given, steps, piece[-2], *arguments))

        launch("reduce", math.prod(piece), maps, ends)
        launch("carry", math.prod(piece) // piece[-2], maps, ends, flow)
        launch("run", math.prod(piece), flow, sums)
        sums = cupy.moveaxis(sums.sum(axis=-2), 0, -2)
    return dx, (sums[..., :G, :], sums[..., G : 2 * G, :]), sums[..., 2 * G :, :], ds


def _chunk_of(length: int) -> int:
    """Steps of a chunk of the first guess."""
    return min(max(_SHORT, 1 << (-(-length // _CHUNKS) - 1).bit_length()), _LONG)


def _back_chunk_of(length: int) -> int:
    """And of the pullback, which has nothing to read twice."""
    return max(_SHORT, 1 << (-(-length // _CHUNKS_BACK) - 1).bit_length())
