"""Elementwise functions and gates on the GPU: see activation.cu and gate.cu."""

from typing import Any

import cupy

from linscan._arrays import Array, accum_dtype
from linscan.engines.cuda.columns import on_its_device, operand, rows_of, run, shares, total, vector

_KINDS = ("identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "softplus")  # as in functions.cuh
_FLAT = 128  # columns that numbers without gaps are put in


@on_its_device
def activation(x: Array, kind: str) -> Array:
    """See `linscan.engines.reference.activation.activation`."""
    (rows,) = _matrices(x)
    y = cupy.empty(rows.shape, x.dtype)
    run("activation.cu", "activation", rows, shares(*rows.shape, rows, y), (*operand(rows), y), number_of(kind))
    return y.reshape(x.shape)


@on_its_device
def activation_pullback(dy: Array, x: Array, kind: str, around: Array | None) -> Array:
    """See `linscan.engines.reference.activation.activation_pullback`."""
    dy, rows, around = _matrices(dy, x, around)
    dx = cupy.empty(rows.shape, x.dtype)
    arguments = (*operand(dy), *operand(rows), *operand(around), dx)
    cut = shares(*rows.shape, dy, rows, around, dx)
    run("activation.cu", "activation_pullback", rows, cut, arguments, number_of(kind))
    return dx.reshape(x.shape)


@on_its_device
def gate(value: Array, z: Array, b: Array | None, around: Array | None) -> Array:
    """See `linscan.engines.reference.activation.gate`."""
    value, z, around = map(rows_of, (value, z, around))
    y = cupy.empty(value.shape, value.dtype)
    arguments = (*operand(value), *operand(z), vector(b), *operand(around), y)
    run("gate.cu", "gate", value, shares(*value.shape, value, z, around, y), arguments)
    return y


@on_its_device
def gate_pullback(dy: Array, value: Array, z: Array, b: Array | None, dvalue: Array, dz: Array) -> Array | None:
    """See `linscan.engines.reference.activation.gate_pullback`."""
    dy, value, z = map(rows_of, (dy, value, z))
    cut = shares(*value.shape, dy, value, z, dvalue, dz, summed=b is not None)
    sums = None if b is None else cupy.empty((cut.chunks, len(b)), accum_dtype(value.dtype))
    arguments = (*operand(dy), *operand(value), *operand(z), vector(b), *operand(dvalue), *operand(dz), sums)
    run("gate.cu", "gate_pullback", value, cut, arguments)
    return None if sums is None else total(sums)


def _matrices(*arrays: Array | None) -> list[Any]:
    """Arrays of one shape as matrices of one shape: of full rows if none has gaps, else of those they have."""
    present = [x for x in arrays if x is not None]
    shape = (-1, _FLAT)
    if present[0].size % _FLAT or not all(x.flags.c_contiguous for x in present):
        last = present[0].shape[-1] if present[0].ndim else 1
        shape = (present[0].size // max(1, last), last)
    return [None if x is None else rows_of(x.reshape(shape)) for x in arrays]


def number_of(kind: str) -> tuple[str, int]:
    """The macro that chooses a function."""
    return "KIND", _KINDS.index(kind)
