"""Elementwise functions, gates and their pullbacks on the CPU: one pass over memory each, tile by tile."""

import numpy as np

from linscan._arrays import Array, accum_dtype
from linscan.engines.cpu import activation_loops
from linscan.engines.cpu.activation_math import constants
from linscan.engines.cpu.rows import Out, OutLines, flat, for_tiles, lines, tiles
from linscan.engines.reference import activation as reference

_BY_NUMPY = ("identity", "relu")  # nothing to gain


def activation(x: Array, kind: str) -> Array:
    """See `linscan.engines.reference.activation`."""
    if kind in _BY_NUMPY:
        return reference.activation(x, kind)
    compute, run = accum_dtype(x.dtype), getattr(activation_loops, kind)
    y, entries = np.empty(x.shape, x.dtype), x.reshape(-1)
    made, c = y.reshape(-1), constants(compute)

    def body(_: int, part: slice) -> None:
        out = Out(made[part], compute)
        run(flat(entries[part], compute), out.memory, c)
        out.store()

    for_tiles(body, y.size)
    return y


def activation_pullback(dy: Array, x: Array, kind: str, around: Array | None) -> Array:
    """See `linscan.engines.reference.activation`."""
    if kind in _BY_NUMPY:
        return reference.activation_pullback(dy, x, kind, around)
    compute, run = accum_dtype(x.dtype), getattr(activation_loops, f"{kind}_back")
    dx, g, entries = np.empty(x.shape, x.dtype), dy.reshape(-1), x.reshape(-1)
    made, c = dx.reshape(-1), constants(compute)
    beside = None if around is None else around.reshape(-1)

    def body(_: int, part: slice) -> None:
        out = Out(made[part], compute)
        run(flat(g[part], compute), flat(entries[part], compute), out.memory, c)
        out.store(None if beside is None else beside[part])

    for_tiles(body, dx.size)
    return dx


def gate(value: Array, z: Array, b: Array | None, around: Array | None) -> Array:
    """See `linscan.engines.reference.activation`."""
    y, compute = np.empty(value.shape, value.dtype), accum_dtype(value.dtype)
    shift, c = _shift(b, y.shape[1], compute), constants(compute)

    def body(_: int, part: slice) -> None:
        out, (v, v_step), (gates, z_step) = Out(y[part], compute), lines(value[part], compute), lines(z[part], compute)
        activation_loops.gate(v, gates, shift, out.memory, (v_step, z_step), c)
        out.store(None if around is None else around[part])

    if y.size:
        for_tiles(body, *y.shape)
    return y


def gate_pullback(dy: Array, value: Array, z: Array, b: Array | None, dvalue: Array, dz: Array) -> Array | None:
    """See `linscan.engines.reference.activation`."""
    compute, shape = accum_dtype(value.dtype), value.shape
    shift, c = _shift(b, shape[1], compute), constants(compute)
    db = np.zeros((tiles(*shape), shape[1]), compute)

    def body(i: int, part: slice) -> None:
        (v, v_step), (gates, z_step) = lines(value[part], compute), lines(z[part], compute)
        outs = [OutLines(x[part], compute) for x in (dvalue, dz)]
        steps = v_step, z_step, outs[0].step, outs[1].step
        memory = outs[0].memory, outs[1].memory
        activation_loops.gate_back(flat(dy[part], compute), v, gates, shift, *memory, db[i], steps, c)
        for out in outs:
            out.store()

    if value.size:
        for_tiles(body, *shape)
    return None if b is None else db.sum(0)


def _shift(b: Array | None, width: int, dtype: np.dtype) -> Array:
    return np.zeros(width, dtype) if b is None else flat(b, dtype)
