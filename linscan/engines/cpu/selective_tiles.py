"""Tiles of a chunk of time for the selective scan: how they are filled, and step sizes and gates made in them.

Two arrays hold them: `real` the rows of STEP to DZ, `full` (complex if A is) those of U to DU; a tile is (TIMES, width)
numbers, one row of its array.
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu import selective_slices as slices
from linscan.engines.cpu.selective_math import Functions
from linscan.engines.cpu.selective_vectors import pointers, real_vectors
from linscan.engines.cpu.simd import pointer

STEP, EXPONENT, SLOPE, GATE, RATE, DDT, DZ = range(7)  # Δ; the same, 0 at resets; dΔ/ddt; silu(z) and its slope
U, Y, DY, DU = range(4)


class Tiles:
    """The vectors at one place of all tiles of an array."""

    def __init__(self, builder: Any, v: Any, array: Any, base: Any, p: Any) -> None:
        self.b, self.v, self.base, self.p = builder, v, base, p
        self.area = builder.extract_value(array.shape, 1)

    def _at(self, tile: Any) -> Any:
        return self.b.add(self.b.mul(self.area, tile), self.p)

    def __getitem__(self, tile: Any) -> Any:
        tile = ir.Constant(self.area.type, tile) if isinstance(tile, int) else tile
        return self.v.load(self.base, self._at(tile))

    def __setitem__(self, tile: int, value: Any) -> None:
        self.v.store(value, self.base, self._at(ir.Constant(self.area.type, tile)))


def tiles_of(context: Any, builder: Any, signature: Any, args: Any, vectors: tuple[Any, Any], p: Any) -> list[Tiles]:
    """Those of the first two arguments, real and `full`."""
    arrays = [context.make_array(t)(context, builder, x) for t, x in zip(signature.args[:2], args[:2], strict=True)]
    return [Tiles(builder, v, array, array.data, p) for v, array in zip(vectors, arrays, strict=True)]


def _tile_function(source, slope, function):
    """An intrinsic that replaces a tile of `real` by a function of it, and another tile by the function's slope."""

    @intrinsic
    def over_tile(typingctx, real, bias, coef, d, steps, width):
        def codegen(context, builder, signature, args):
            _, pb, constants = pointers(context, builder, signature, args, 3)
            d, steps, width = args[3:]
            r = real_vectors(context, builder, signature.args[0].dtype)
            f = Functions(r, constants)
            f.load_power()
            f.load_log()
            first, lanes = ir.Constant(width.type, 0), ir.Constant(width.type, r.lanes)
            with (
                cgutils.for_range(builder, steps) as row,
                cgutils.for_range_slice(builder, first, width, lanes) as (column, _),
            ):
                p = builder.add(builder.mul(row.index, width), column)
                array = context.make_array(signature.args[0])(context, builder, args[0])
                tiles = Tiles(builder, r, array, array.data, p)
                x = r.add(tiles[source], r.load(pb, builder.add(d, column)))
                tiles[source], tiles[slope] = function(f, x)
            return context.get_dummy_value()

        return types.void(real, bias, coef, d, steps, width), codegen

    return over_tile


def _one(f):
    return ir.Constant(f.r.vector, [1.0] * f.r.lanes)


def _softplus(f, x):
    small = f.small(x)
    return f.softplus(x, small), f.sigmoid(x, small)[0]


def _silu(f, x):
    share, rest = f.sigmoid(x, f.small(x))
    return f.r.mul(x, share), f.r.mul(share, f.r.mad(x, rest, _one(f)))


def _prefetch(b, base, ahead):
    i8, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [i8, i32, i32, i32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [b.gep(base, [ahead]), ir.Constant(i32, 0), ir.Constant(i32, 2), ir.Constant(i32, 1)])


@intrinsic
def _copy_rows(typingctx, source, i, di, target, j, dj, count, steps):
    """Copy `steps` rows of `count` numbers; rows begin `di` numbers apart in `source`, `dj` in `target`.

    The rows that follow are asked for: they are too far apart for the processor to foresee.
    """

    def codegen(context, builder, signature, args):
        _, i, di, _, j, dj, count, steps = args
        ps, pt = (pointer(context, builder, signature.args[m], args[m]) for m in (0, 3))
        byte, line = ir.IntType(8).as_pointer(), ir.VectorType(ir.IntType(8), 64)
        size = builder.mul(count, ir.Constant(count.type, signature.args[0].dtype.bitwidth // 8))
        rest = builder.and_(size, ir.Constant(size.type, 63))
        whole = builder.sub(size, rest)
        zero, step = ir.Constant(size.type, 0), ir.Constant(size.type, 64)
        width = ir.Constant(size.type, signature.args[0].dtype.bitwidth // 8)
        chunk = [builder.mul(builder.mul(dx, width), steps) for dx in (di, dj)]
        with cgutils.for_range(builder, steps) as loop:
            here, there = (builder.add(x, builder.mul(loop.index, dx)) for x, dx in ((i, di), (j, dj)))
            here, there = (builder.bitcast(builder.gep(x, [at]), byte) for x, at in ((ps, here), (pt, there)))
            with cgutils.for_range_slice(builder, zero, whole, step) as (at, _):
                lines = [builder.bitcast(builder.gep(x, [at]), line.as_pointer()) for x in (here, there)]
                builder.store(builder.load(lines[0], align=1), lines[1], align=1)
                for x, ahead in zip((here, there), chunk, strict=True):
                    _prefetch(builder, x, builder.add(at, ahead))
            with builder.if_then(builder.icmp_signed(">", rest, zero), likely=False):  # a call costs more than a line
                cgutils.raw_memcpy(builder, builder.gep(there, [whole]), builder.gep(here, [whole]), rest, 1)
        return context.get_dummy_value()

    return types.void(source, i, di, target, j, dj, count, steps), codegen


if getattr(numba.config, "DISABLE_JIT", False):
    shift: Any = slices.shift
    soften: Any = slices.soften
    gate: Any = slices.gate
    copy_rows: Any = slices.copy_rows
else:
    copy_rows = _copy_rows
    shift = _tile_function(STEP, SLOPE, lambda f, x: (x, _one(f)))
    soften = _tile_function(STEP, SLOPE, _softplus)
    gate = _tile_function(GATE, RATE, _silu)
