"""The selective scan on the GPU: how states lie in lanes, how time is cut, and the launches.

What a result's bits depend on follows from the length and the number of states alone, never from the other rows.
"""

from functools import cache
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array, real_dtype
from linscan.engines.cuda._load import kernel
from linscan.engines.reference import selective_scan as reference

_WHOLE = 8192  # steps of the longest row that is not cut
_CHUNK = 2048  # steps of a chunk of a longer one
_SHARED = 48 << 10  # bytes of shared memory every card gives a block
_STEPS = 8  # steps the scan holds in shared memory, twice
_SUB = 4  # steps whose decays and states the pullback holds in registers
_OPERANDS = ("u", "dt", "z", "B", "C", "dy", "reset")
_SEQUENCE = np.dtype([("at", "u8"), ("row", "i8"), ("time", "i8"), ("channel", "i8"), ("state", "i8")])
_PROBLEM = np.dtype(
    [(name, "i8") for name in ("rows", "length", "channels", "groups", "chunk", "chunks")]
    + [(name, _SEQUENCE) for name in _OPERANDS]
    + [(name, "u8") for name in ("A", "D", "bias", "h0")]
)
_GRADIENTS = np.dtype([(name, "u8") for name in ("du", "ddt", "dz", "dA", "dD", "bias", "vectors", "first")])


def selective_scan(u, dt, A, B, C, D, z, dt_bias, h0, *, keep, dt_softplus, reverse, reset, real, workers):
    """``(y, h_last, kept)``; see `linscan.engines.reference.selective_scan`."""
    rows, length, channels = u.shape
    states = A.shape[1]
    options = {"dt_softplus": dt_softplus, "reverse": reverse, "reset": reset, "real": real, "workers": workers}
    macros = _macros("scan", u, A, z, reset, dt_softplus, real, keep)
    if macros is None or not u.size:
        return reference.selective_scan(u, dt, A, B, C, D, z, dt_bias, h0, keep=keep, **options)
    with u.device:
        y = cupy.empty(u.shape, real_dtype(u.dtype) if real else u.dtype)
        last = cupy.empty((rows, channels, states), A.dtype)
        records = {"all": length, "some": -(-length // dict(macros)["EVERY"])}.get(keep)
        kept = None if records is None else cupy.empty((rows, records, channels, states), A.dtype)
        p, alive = _problem(u, dt, A, B, C, D, z, dt_bias, h0, reset, None, reverse)
        starts = _chunk_states(p, u.dtype, A.dtype, macros, alive.get("h0"))
        _run("selective_scan.cu", "run", p, u.dtype, macros, starts, y, kept, last)
        if keep == "some":
            return _forwards(y, reverse), last, kept
    return _forwards(y, reverse), last, _forwards(kept, reverse)


def selective_scan_pullback(
    u, dt, A, B, C, D, z, dt_bias, h0, kept, dy, dh, *, dt_softplus, reverse, reset, real, workers
):
    """The gradients of all nine arrays; see `linscan.engines.reference.selective_scan`."""
    rows, length, channels = u.shape
    states, groups = A.shape[1], B.shape[2]
    options = {"dt_softplus": dt_softplus, "reverse": reverse, "reset": reset, "real": real, "workers": workers}
    flow, macros = (_macros(way, u, A, z, reset, dt_softplus, real, "last") for way in ("flow", "pullback"))
    if macros is None or not u.size or isinstance(kept, list):
        return reference.selective_scan_pullback(u, dt, A, B, C, D, z, dt_bias, h0, kept, dy, dh, **options)
    with u.device:
        p, alive = _problem(u, dt, A, B, C, D, z, dt_bias, None, reset, dy, reverse)
        compute, chunks = A.dtype, int(p["chunks"][0])
        alive["dh"] = cupy.ascontiguousarray(dh.astype(compute, copy=False))
        flows = _chunk_states(p, u.dtype, compute, flow, alive["dh"])
        flows = alive["dh"] if flows is None else flows
        du, ddt = cupy.empty(u.shape, u.dtype), cupy.empty(u.shape, dt.dtype)
        dz = None if z is None else cupy.empty(u.shape, z.dtype)
        each = rows * channels
        dA, dD = cupy.empty(chunks * each * states, compute), cupy.empty(chunks * each, compute)
        bias, first = cupy.empty(chunks * each, real_dtype(compute)), cupy.empty((rows, channels, states), compute)
        blocks = _blocks(p, macros)
        vectors = cupy.empty(blocks * rows * length * groups * 2 * states, compute)
        outputs = (du, ddt, dz, dA, dD, bias, vectors, first)
        struct = np.array([tuple(0 if x is None else x.data.ptr for x in outputs)], _GRADIENTS)
        _run("selective_scan_back.cu", "run", p, u.dtype, macros, kept, flows, _bytes(struct))
        vectors = _total(vectors, blocks, (rows, length, groups, 2, states), u.dtype, macros)
        dA = _total(dA, chunks, (rows, channels, states), u.dtype, macros)
        dD = _total(dD, chunks, (rows, channels), u.dtype, macros)
        bias = bias.reshape(chunks, rows, channels)
        dbias = sum((bias[k] for k in range(1, chunks)), start=bias[0])
        du, ddt, dz, vectors = (_forwards(x, reverse) for x in (du, ddt, dz, vectors))
    return (
        *(du, ddt, dA, vectors[..., 0, :], vectors[..., 1, :], None if D is None else dD, dz),
        None if dt_bias is None else dbias,
        None if h0 is None else first,
    )


def _forwards(x: Array | None, reverse: bool) -> Array | None:
    """What was made in the order of the scan, in the order of time."""
    return x if x is None or not reverse else x[:, ::-1]


def _macros(way: str, u, A, z, reset, dt_softplus, real, keep) -> tuple[tuple[str, int], ...] | None:
    """The variant to compile; None for more states than a warp holds or more than fit in shared memory.

    `way` is what runs: the scan, the pullback, or the flow from chunk to chunk of the pullback in the scan's sizes.
    """
    states, cut = A.shape[1], u.shape[1] > _WHOLE
    ours, back = (_sizes(states, A.dtype, x == "pullback", cut) for x in (way, "pullback"))
    if ours is None or back is None:
        return None
    names = {"STATES": states, "EVERY": back["EVERY"], "SOFTPLUS": dt_softplus}
    names |= {name: ours[name] for name in ("PER", "LANES", "THREADS")}
    names |= {"GATED": z is not None, "RESETS": reset is not None, "REAL": real, "BACKWARD": way != "scan"}
    names |= {"SOME": 1, "ALL_STATES": 2, "KEEP": {"last": 0, "some": 1, "all": 2}[keep]}
    return tuple((name, int(value)) for name, value in names.items())


@cache
def _sizes(states: int, compute: np.dtype, backward: bool, cut: bool) -> dict[str, int] | None:
    """States in a lane, lanes to a channel, threads of a block and, of the pullback, the steps between kept states.

    More states in a lane are fewer instructions for each, and fewer threads: more where rows are cut.
    """
    if not states:
        return None
    most = max(1, 16 // compute.itemsize) if backward else 16 if cut and compute.itemsize == 4 else 8
    per = min(most, 1 << (states - 1).bit_length())
    while 32 * per < states:
        per *= 2
    lanes = 1 << (-(-states // per) - 1).bit_length()
    for every in (32, 16, 8):
        for threads in (128, 64, 32):
            if _shared(threads, lanes, per, every, compute, backward) <= _SHARED:
                return {"PER": per, "LANES": lanes, "THREADS": threads, "EVERY": every}
    return None


def _shared(threads: int, lanes: int, per: int, every: int, compute: np.dtype, backward: bool) -> int:
    """Bytes of shared memory, as the kernels declare it."""
    size, real, wide, channels = compute.itemsize, real_dtype(compute).itemsize, lanes * per, threads // lanes
    if not backward:
        return 2 * (_STEPS * ((2 * wide + 3 * channels) * size + channels * real + 1) + 16)
    step = 2 * (wide + channels) * size + 2 * channels * real + 1
    return every * step + (every // _SUB * per * threads + threads // 32 * _SUB * 2 * wide) * size + 16


def _problem(u, dt, A, B, C, D, z, dt_bias, h0, reset, dy, reverse) -> tuple[np.ndarray, dict[str, Any]]:
    """The struct ``Problem`` of selective.cuh, and the arrays it points to, to be kept alive until the launches."""
    rows, length, channels = u.shape
    p = np.zeros(1, _PROBLEM)
    chunk = length if length <= _WHOLE else _CHUNK
    p["rows"], p["length"], p["channels"], p["groups"] = rows, length, channels, B.shape[2]
    p["chunk"], p["chunks"] = chunk, -(-length // chunk)
    sequences = {"u": u, "dt": dt, "z": z, "B": B, "C": C, "dy": dy}
    sequences |= {"reset": None if reset is None else reset.view(np.uint8)[:, :, None]}
    alive = {name: x[:, ::-1] if reverse else x for name, x in sequences.items() if x is not None}
    for name, x in alive.items():
        steps = [step // x.itemsize for step in x.strides]
        p[name] = np.array((x.data.ptr, *steps, *(0,) * (4 - len(steps))), _SEQUENCE)
    for name, x in (("A", A), ("D", D), ("bias", dt_bias), ("h0", h0)):
        if x is not None:
            alive[name] = cupy.ascontiguousarray(x)
            p[name] = alive[name].data.ptr
    return p, alive


def _chunk_states(p, dtype, compute, macros, first) -> Array | None:
    """What enters each chunk, states or the pullback's flow, if `first` enters the row; None if that is one chunk."""
    chunks, each = int(p["chunks"][0]), int(p["rows"][0] * p["channels"][0])
    states = dict(macros)["STATES"]
    if chunks == 1:
        return None
    ends, cuts = cupy.empty(chunks * each * states, compute), cupy.empty(chunks * each, np.uint8)
    sums = cupy.empty(chunks * each, real_dtype(compute))
    _run("selective_scan.cu", "reduce", p, dtype, macros, ends, sums, cuts, chunks=chunks - 1)
    carry = kernel("selective_scan.cu", "carry", dtype.name, *macros)
    carry((-(-each * states // 128),), (128,), (_bytes(p), ends, sums, cuts, first))
    return ends


def _blocks(p, macros) -> int:
    """Blocks that share a group's channels."""
    sizes = dict(macros)
    return -(-int(p["channels"][0] // p["groups"][0]) // (sizes["THREADS"] // sizes["LANES"]))


def _run(source, name, p, dtype, macros, *arguments, chunks: int | None = None) -> None:
    chunks = int(p["chunks"][0]) if chunks is None else chunks
    grid = chunks * int(p["rows"][0] * p["groups"][0]) * _blocks(p, macros)
    kernel(source, name, dtype.name, *macros)((grid,), (dict(macros)["THREADS"],), (_bytes(p), *arguments))


def _total(parts: Array, count: int, shape: tuple[int, ...], dtype, macros) -> Array:
    if count == 1:
        return parts.reshape(shape)
    out = cupy.empty(shape, parts.dtype)
    run = kernel("selective_scan_back.cu", "total", dtype.name, *macros)
    run((-(-out.size // 128),), (128,), (parts, out, count, out.size))
    return out


def _bytes(struct: np.ndarray) -> np.ndarray:
    """As plain bytes: CuPy asks an array to describe its fields at every launch, which is slow."""
    return struct.view(f"V{struct.dtype.itemsize}")
