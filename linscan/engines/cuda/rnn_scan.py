"""Nonlinear recurrences on the GPU: one persistent loop over time for each cell, its matrices in registers.

How many lanes share a channel, and with that the order of a row's sums, follows from the cell, the head size, the dtype
and the card alone; how many rows go through time together changes no bits.
"""

import math
from functools import cache
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.layout import fold
from linscan.engines.reference import rnn_scan as reference

CELLS = ("elman", "lstm", "gru", "slstm", "peephole_lstm", "leaky", "almost_linear", "para_gru", "para_lstm")
BEHIND_A_GATE = CELLS.index("gru"), CELLS.index("para_gru")  # whose y_n comes in behind the reset gate
_OPERANDS = ("x", "b", "w", "first", "reset", "h", "states", "y", "last", "dh", "dx", "dy", "dw", "ds", "R")
_TIMED = {"x": 2, "reset": 0, "h": 1, "states": 2, "y": 2, "dh": 1, "dx": 2, "dy": 2}  # axes after time
_AXES = 6
_OPERAND = np.dtype([(name, "i8") for name in ("at", "time", "part", "channel")] + [("batch", "i8", _AXES)])
_PROBLEM = np.dtype(
    [(name, "i8") for name in ("rows", "matrices", "length", "width", "linear", "ndim")]
    + [("size", "i8", _AXES)]
    + [(name, _OPERAND) for name in _OPERANDS]
)
_MOST = 256  # channels of a head
_HELD = 64  # registers of a lane for its share of the matrices
_WHOLE = 64  # channels of the widest head that is one block's
_PART = 32  # channels of a block of a cluster
_CHANNELS = 32  # of a block of rnn_diagonal.cu
_WARPS = {"forward": 2, "backward": 5}  # of it
_ROWS = 4  # rows that go through time together, at most


def rnn_scan(r, *, reverse: bool, keep: bool, workers) -> tuple[Array, Array, Any]:
    """See `linscan.engines.reference.rnn_scan`."""
    cell = number_of(r)
    if cell is None:
        return reference.rnn_scan(r, reverse=reverse, keep=keep, workers=workers)
    *lead, T, G, d = r.x.shape
    compute, n = accum_dtype(r.x.dtype), r.cell.states
    with r.x.device:
        h, last = cupy.empty((*lead, T, d), r.x.dtype), cupy.empty((*lead, n, d), compute)
        states = cupy.empty((*lead, T, n, d), compute) if keep else None
        y = cupy.empty((*lead, T, G, d), compute) if keep else None
        _run(r, cell, False, reverse, h=h, states=states, y=y, last=last, first=r.s0, b=r.b)
    return h, last, (states, y)


def rnn_scan_pullback(r, saved, dh: Array, dlast: Array, *, reverse: bool, workers):
    """See `linscan.engines.reference.rnn_scan`."""
    cell = number_of(r)
    if cell is None:
        return reference.rnn_scan_pullback(r, saved, dh, dlast, reverse=reverse, workers=workers)
    states, y = saved
    with r.x.device:
        dx, ds = cupy.empty(y.shape, y.dtype), cupy.array(dlast, y.dtype, order="C")
        dw = None if r.w is None else cupy.empty(r.w.shape, y.dtype)
        dy = cupy.empty_like(dx) if cell in BEHIND_A_GATE else None
        dh = dh.astype(r.x.dtype, copy=False)
        _run(r, cell, True, reverse, states=states, y=y, first=r.s0, dh=dh, dx=dx, dy=dy, dw=dw, ds=ds)
    return dx, dx if dy is None else dy, dw, ds


def number_of(r) -> int | None:
    """The cell's number in rnn_cells.cuh; None for users' own, heads that are too wide, and no data."""
    name = vars(type(r.cell)).get("name")
    fits = r.cell.diagonal or r.x.shape[-1] <= _MOST
    axes = [n for n in r.x.shape[:-3] if n != 1]
    return CELLS.index(name) if name in CELLS and r.x.size and fits and len(axes) <= _AXES else None


def _run(r, cell: int, backward: bool, reverse: bool, **arrays: Array | None) -> None:
    """One launch of the loop."""
    *_, G, d = r.x.shape
    struct, name = problem(r, cell, reverse, **arrays), "backward" if backward else "forward"
    if r.cell.diagonal:
        _diagonal(struct, name, cell, r.x.dtype.name, () if backward else (None, r.R.dtype.type(0), None))
        return
    rows, matrices = (int(struct[key][0]) for key in ("rows", "matrices"))
    cut = _cut(d, G, accum_dtype(r.x.dtype).itemsize, matrices, rows, r.x.data.device_id)
    packed = _packed(r.R.reshape(matrices, G, d, d), cut, backward)
    run = kernel("rnn_scan.cu", name, r.x.dtype.name, ("CELL", cell), ("BACKWARD", int(backward)), *cut.items())
    blocks = matrices * -(-rows // cut["ROWS"]) * cut["PARTS"]
    run((blocks,), (cut["WIDTH"] // cut["PARTS"] * cut["LANES"],), (as_bytes(struct), packed))


def _diagonal(struct: np.ndarray, name: str, cell: int, dtype: str, rest: tuple[Any, ...]) -> None:
    """One launch of the loop over time of cells without matrices."""
    run = kernel("rnn_diagonal.cu", name, dtype, ("CELL", cell))
    blocks = -(-int(struct["rows"][0] * struct["width"][0]) // _CHANNELS)
    run((blocks,), (_WARPS[name] * _CHANNELS,), (as_bytes(struct), *rest))


def finish(struct: np.ndarray, cell: int, dtype: str, residual: Array, tol: Any) -> Array:
    """Run by the loop the rows whose `residual` is not within `tol`: the struct's states. Returns which rows are."""
    solved = cupy.empty(residual.shape, bool)
    _diagonal(struct, "forward", cell, dtype, (residual, tol, solved))
    return solved


def problem(r, cell: int, reverse: bool, **arrays: Array | None) -> np.ndarray:
    """The struct ``Problem`` of rnn.cuh: time forwards, and rows that share their matrices next to each other."""
    *lead, T, G, d = r.x.shape
    own = r.R.shape[: r.R.ndim - (2 if r.cell.diagonal else 3)]
    own = (1,) * (len(lead) - len(own)) + own
    kept = [] if r.cell.diagonal else [i for i in range(len(lead)) if own[i] != 1]
    order = kept + [i for i in range(len(lead)) if i not in kept]
    arrays |= {"x": r.x, "w": r.w, "reset": None if r.reset is None else r.reset.view(np.uint8)}
    if r.cell.diagonal:
        arrays["R"] = cupy.broadcast_to(r.R, (*lead, G, d))
    p, steps = np.zeros(1, _PROBLEM), {}
    for name, x in arrays.items():
        if x is not None:
            x = x[(..., slice(None, None, -1), *(slice(None),) * _TIMED[name])] if reverse and name in _TIMED else x
            steps[name] = _operand(p, name, x, len(lead), order)
    sizes, folded = fold(tuple(lead[i] for i in order), list(steps.values()))
    for name, batch in zip(steps, folded, strict=True):
        p[name]["batch"][0, : len(sizes)] = batch
    p["matrices"] = matrices = math.prod(lead[i] for i in kept)
    p["rows"], p["length"], p["width"] = math.prod(lead) // matrices, T, d
    p["linear"] = r.cell.linear(d) if cell == CELLS.index("almost_linear") else d
    p["ndim"], p["size"][0, : len(sizes)] = len(sizes), sizes
    return p


def as_bytes(struct: np.ndarray) -> np.ndarray:
    """CuPy asks an array to describe its fields at every launch, which is slow: plain bytes have none."""
    return struct.view(f"V{struct.dtype.itemsize}")


def _operand(p: np.ndarray, name: str, x: Array, axes: int, order: list[int]) -> tuple[int, ...]:
    """Write where `x` lies; returns its strides over the batch axes, reordered."""
    steps = [0 if n == 1 else step // x.itemsize for n, step in zip(x.shape, x.strides, strict=True)]
    core = steps[axes:] if name in _TIMED else [0, *steps[axes:]]
    time, part, channel = {1: (*core, 0, 0), 2: (core[0], 0, core[-1]), 3: core}[len(core)]
    p[name]["at"], p[name]["time"], p[name]["part"], p[name]["channel"] = x.data.ptr, time, part, channel
    return tuple(steps[i] for i in order)


def _cut(d: int, gates: int, size: int, matrices: int, rows: int, device: int) -> dict[str, int]:
    """How a head lies in lanes and blocks, as the macros of rnn_scan.cu."""
    width = max(16, 1 << (d - 1).bit_length())
    lanes = 4
    while gates * width // lanes > _HELD * 4 // size and lanes < 32:
        lanes *= 2
    parts = 1 if width <= _WHOLE else max(2, width // _PART)
    whole = gates * width // lanes <= _HELD * 4 // size and width // parts * lanes <= 512
    if parts > 1 and not (whole and clusters(device)):
        parts, whole, lanes = 1, False, 4
    count, most = 1, _ROWS if width // parts * lanes <= 256 else 2
    room = _multiprocessors(device) // (1 if parts == 1 else 2)  # clusters do not fill every corner
    while count < most and matrices * -(-rows // count) * parts > room:
        count *= 2
    sizes = {"WIDTH": width, "LANES": lanes, "ROWS": count, "PARTS": parts}
    return {**sizes, "HELD_MATRIX": int(whole)}


def _packed(R: Array, cut: dict[str, int], backward: bool) -> Array:
    """The matrices in the order in which lanes hold them: see rnn_scan.cu."""
    (count, G, d, _), width, lanes, parts = R.shape, cut["WIDTH"], cut["LANES"], cut["PARTS"]
    pack = 16 // R.itemsize
    whole = cupy.zeros((count, G, width, width), R.dtype)
    whole[..., :d, :d] = R
    if backward:
        whole = whole.transpose(0, 3, 1, 2).reshape(count, parts, width // parts, 1, -1, lanes, pack)
        return cupy.ascontiguousarray(whole.transpose(0, 1, 3, 4, 2, 5, 6))
    whole = whole.reshape(count, G, parts, width // parts, -1, lanes, pack)
    return cupy.ascontiguousarray(whole.transpose(0, 2, 1, 4, 3, 5, 6))


@cache
def clusters(device: int) -> bool:
    """Whether blocks can reach each other's shared memory."""
    return int(cupy.cuda.Device(device).compute_capability) >= 90


@cache
def _multiprocessors(device: int) -> int:
    return cupy.cuda.Device(device).attributes["MultiProcessorCount"]
