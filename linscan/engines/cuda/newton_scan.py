"""Newton's method for nonlinear recurrences on the GPU: cells with diagonal matrices, their step and Jacobian fused.

How time is cut follows from its length alone: a row's bits do not depend on the other rows.
"""

import math
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.rnn_scan import BEHIND_A_GATE, as_bytes, number_of, problem

_THREADS = 128
_CHUNK = 64  # steps of the shortest chunk
_MOST = 256  # chunks, unless they would be shorter
_WARM = 32  # steps by which the first guess of a chunk begins before it


def newton_scan(r, array_form: Callable[..., Any], *, quasi, damping, tol, limit, workers) -> Any:
    """See `linscan.engines.reference.newton_scan`."""
    cell = number_of(r)
    if cell is None or not r.cell.diagonal or damping is not None:
        return array_form(r, quasi=quasi, damping=damping, tol=tol, limit=limit, workers=workers)
    *lead, T, _, d = r.x.shape
    steps = chunk_of(T)
    with r.x.device:
        states = cupy.empty((*lead, T, r.cell.states, d), r.R.dtype)
        run = _Passes(r, cell, steps, states)
        run.begin()
        for i in range(limit + 1):
            goes_on = run.judge(tol, first=i == 0, more=i < limit)
            if i == limit or not int(goes_on[0]):  # the only wait for the device, once an iteration
                break
            run.correct()
        return states, *(x.reshape(lead) for x in (run.size <= tol, run.count, run.size))


def newton_scan_pullback(r, array_form: Callable[..., Any], states, dh, dstate, *, workers) -> Any:
    """See `linscan.engines.reference.newton_scan`."""
    cell = number_of(r)
    if cell is None or not r.cell.diagonal:
        return array_form(r, states, dh, dstate, workers)
    *lead, T, _, d = r.x.shape
    steps, states, compute = chunk_of(T), cupy.ascontiguousarray(states), r.R.dtype
    with r.x.device:
        dx, ds = cupy.empty(r.x.shape, compute), cupy.array(dstate, compute, order="C")
        dy = cupy.empty_like(dx) if cell in BEHIND_A_GATE else None
        dh = cupy.ascontiguousarray(dh.astype(r.x.dtype, copy=False))
        struct = problem(r, cell, False, states=states, first=r.s0, b=r.b, dh=dh, dx=dx, dy=dy, ds=ds)
        n, piece = r.cell.states, (*lead, -(-T // steps), d)
        maps, ends, flow = (cupy.empty((k, *piece), compute) for k in (n * n, n, n))
        dw = None if r.w is None else cupy.empty((r.cell.weights, *piece), compute)

        def launch(name: str, threads: int, *arguments: Any) -> None:
            run = kernel("rnn_newton_back.cu", name, r.x.dtype.name, ("CELL", cell))
            run((-(-threads // _THREADS),), (_THREADS,), (as_bytes(struct), steps, piece[-2], *arguments))

        launch("reduce", math.prod(piece), maps, ends)
        launch("carry", math.prod(piece) // piece[-2], maps, ends, flow)
        launch("run", math.prod(piece), flow, dw)
        dw = None if dw is None else cupy.moveaxis(dw.sum(axis=-2), 0, -2)
    return dx, dx if dy is None else dy, dw, ds


def chunk_of(length: int) -> int:
    """Steps of a chunk."""
    return max(_CHUNK, 1 << (-(-length // _MOST) - 1).bit_length())


class _Passes:
    """The launches of rnn_newton.cu, and the arrays of pieces between them."""

    def __init__(self, r, cell: int, steps: int, states: Array) -> None:
        *lead, T, _, d = r.x.shape
        self.struct = as_bytes(problem(r, cell, False, states=states, first=r.s0, b=r.b))
        self.name, self.cell, self.steps, self.chunks = r.x.dtype.name, cell, steps, -(-T // steps)
        self.rows, n = math.prod(lead), r.cell.states
        piece = (self.rows, self.chunks, d)
        self.maps, self.ends, self.flow = (cupy.empty((k, *piece), states.dtype) for k in (n * n, n, n))
        self.edges, self.after = (cupy.empty((n, *piece), states.dtype) for _ in range(2))
        self.worst, self.size = cupy.empty(piece, states.dtype), cupy.empty(self.rows, states.dtype)
        self.active, self.count = cupy.empty(self.rows, np.uint8), cupy.empty(self.rows, np.int64)

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        run = kernel("rnn_newton.cu", name, self.name, ("CELL", self.cell))
        run((-(-threads // _THREADS),), (_THREADS,), (self.struct, self.steps, self.chunks, *arguments))

    def begin(self) -> None:
        size = self.worst.size
        self.launch("guess", size, _WARM, self.maps, self.edges)
        self.launch("seams", size, self.maps, self.ends, self.edges, self.worst)

    def judge(self, tol: float, first: bool, more: bool) -> Array:
        goes_on, size = cupy.zeros(1, np.int32), self.size.dtype
        given = (self.worst, self.size, self.active, self.count, goes_on, size.type(tol), int(first), int(more))
        self.launch("judge", self.rows * _THREADS, *given)
        return goes_on

    def correct(self) -> None:
        size = self.worst.size
        self.launch("carry", size // self.chunks, self.maps, self.ends, self.flow, self.active)
        given = (self.maps, self.ends, self.flow, self.edges, self.after, self.worst, self.active)
        self.launch("correct", size, *given)
        self.edges, self.after = self.after, self.edges
