"""One step of the selective scan in a vector of channels, forwards and backwards, as compiler intrinsics.

Two arrays of tiles hold a chunk of time: `real` the rows of STEP to DZ, `full` (complex if A is) those of U to DU; a
tile is (TIMES, width) numbers, one row of its array. A state array holds one vector of channels for every n, so that
``C·h`` is a sum of vectors. Positions count numbers: `p` in a tile, `i` of a block's vectors, `q` of B[t] and C[t].
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu import selective_slices as slices
from linscan.engines.cpu.selective_math import Functions
from linscan.engines.cpu.selective_vectors import Step, pointers, real_vectors
from linscan.engines.cpu.simd import pointer

STEP, EXPONENT, SLOPE, GATE, RATE, DDT, DZ = range(7)  # Δ; the same, 0 at resets; dΔ/ddt; silu(z) and its slope
U, Y, DY, DU = range(4)


class _Tiles:
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


def _tiles(context: Any, builder: Any, signature: Any, args: Any, vectors: tuple[Any, Any], p: Any) -> list[_Tiles]:
    arrays = [context.make_array(t)(context, builder, x) for t, x in zip(signature.args[:2], args[:2], strict=True)]
    return [_Tiles(builder, v, array, array.data, p) for v, array in zip(vectors, arrays, strict=True)]


@intrinsic
def _advance(typingctx, real, full, A, D, before, after, b, c, coef, saved, exponent, p, i, d, j, k, q, n):
    """From the states at `before[j]` to those at `after[k]`; with decays `saved` for the way back, no gate."""

    def codegen(context, builder, signature, args):
        _, _, pA, pD, pb, pa, pB, pC, constants = pointers(context, builder, signature, args, 9)
        exponent, p, i, d, j, k, q, n = args[10:]
        step = Step(context, builder, signature.args[2].dtype, constants)
        v, decays = step.v, None
        if len(signature.args[9]):
            decays = pointer(context, builder, signature.args[9][0], builder.extract_value(args[9], 0))
        numbers, wholes = _tiles(context, builder, signature, args, (step.real, v), p)
        delta, u, sums = numbers[exponent], wholes[U], step.place()
        driven = step.scaled(numbers[STEP], u)
        with cgutils.for_range(builder, n) as loop:
            at = builder.mul(loop.index, ir.Constant(n.type, v.lanes))
            B, C = (v.splat(builder.load(builder.gep(base, [builder.add(q, loop.index)]))) for base in (pB, pC))
            a = step.decay(delta, v.load(pA, builder.add(i, at)))
            h = v.mad(a, v.load(pb, builder.add(j, at)), v.mul(driven, B))
            v.store(h, pa, builder.add(k, at))
            if decays is not None:
                v.store(a, decays, builder.add(builder.sub(k, builder.mul(n, ir.Constant(n.type, v.lanes))), at))
            step.write(v.mad(C, h, step.read(sums)), sums)
        y = v.mad(v.load(pD, d), u, step.read(sums))
        wholes[Y] = y if decays is not None else step.scaled(numbers[GATE], y)
        return context.get_dummy_value()

    given = real, full, A, D, before, after, b, c, coef, saved, exponent, p, i, d, j, k, q, n
    return types.void(*given), codegen


@intrinsic
def _retreat(
    typingctx, real, full, A, D, h, a, flow, dA, dB, dC, dD, b, c, coef, exponent, fresh, p, i, d, s, e, j, q, t, n
):
    """The pullback of a step from the states at `h[j]`; shares are added to `dA[s]`, `dB[t]`, `dC[t]` and `dD[e]`."""

    def codegen(context, builder, signature, args):
        _, _, pA, pD, ph, pa, pf, pdA, pdB, pdC, pdD, pB, pC, constants = pointers(
            context, builder, signature, args, 14
        )
        exponent, fresh, p, i, d, s, e, j, q, t, n = args[14:]
        step = Step(context, builder, signature.args[2].dtype, constants)
        v, r = step.v, step.real
        fresh = builder.icmp_unsigned("!=", fresh, ir.Constant(fresh.type, 0))
        numbers, wholes = _tiles(context, builder, signature, args, (r, v), p)
        delta, u, g = numbers[exponent], wholes[U], step.scaled(numbers[GATE], wholes[DY])
        driven, inputs, steps = step.scaled(numbers[STEP], u), step.place(), step.place()[:1]
        with cgutils.for_range(builder, n) as loop:
            at = builder.mul(loop.index, ir.Constant(n.type, v.lanes))
            here, old = builder.add(s, at), builder.add(j, at)
            new = builder.add(old, builder.mul(n, ir.Constant(n.type, v.lanes)))
            B, C = (v.splat(builder.load(builder.gep(base, [builder.add(q, loop.index)]))) for base in (pB, pC))
            grad, decay, A = v.mad(v.conj(C), g, v.load(pf, here)), v.load(pa, old), v.load(pA, builder.add(i, at))
            through, on = v.mul(v.conj(v.mul(decay, v.load(ph, old))), grad), v.mul(v.conj(decay), grad)
            through, on = (step.unless(fresh, x) for x in (through, on))
            v.store(on, pf, here)
            v.store(v.add(v.load(pdA, here), step.scaled(delta, through)), pdA, here)
            step.write(v.mad(v.conj(B), grad, step.read(inputs)), inputs)
            builder.store(r.add(step.inner(A, through), builder.load(steps[0])), steps[0])
            step.add_to(pdB, builder.add(t, loop.index), v.mul(v.conj(driven), grad))
            step.add_to(pdC, builder.add(t, loop.index), v.mul(v.conj(v.load(ph, new)), g))
        dx, skip = step.read(inputs), v.load(pD, d)
        numbers[DZ] = r.mul(step.inner(wholes[Y], wholes[DY]), numbers[RATE])
        numbers[DDT] = r.mul(r.add(step.inner(u, dx), builder.load(steps[0])), numbers[SLOPE])
        wholes[DU] = v.mad(v.conj(skip), g, step.scaled(numbers[STEP], dx))
        v.store(v.mad(v.conj(u), g, v.load(pdD, e)), pdD, e)
        return context.get_dummy_value()

    given = real, full, A, D, h, a, flow, dA, dB, dC, dD, b, c, coef, exponent, fresh, p, i, d, s, e, j, q, t, n
    return types.void(*given), codegen


def _tile_function(source, slope, function):
    """An intrinsic that replaces a tile of `real` by a function of it, and another tile by the function's slope."""

    @intrinsic
    def over_tile(typingctx, real, bias, coef, d, steps, width):
        def codegen(context, builder, signature, args):
            _, pb, constants = pointers(context, builder, signature, args, 3)
            d, steps, width = args[3:]
            r = real_vectors(context, builder, signature.args[0].dtype)
            f = Functions(r, constants)
            f.load_exp()
            f.load_log()
            first, lanes = ir.Constant(width.type, 0), ir.Constant(width.type, r.lanes)
            with (
                cgutils.for_range(builder, steps) as row,
                cgutils.for_range_slice(builder, first, width, lanes) as (column, _),
            ):
                p = builder.add(builder.mul(row.index, width), column)
                array = context.make_array(signature.args[0])(context, builder, args[0])
                tiles = _Tiles(builder, r, array, array.data, p)
                x = r.add(tiles[source], r.load(pb, builder.add(d, column)))
                tiles[source], tiles[slope] = function(f, x)
            return context.get_dummy_value()

        return types.void(real, bias, coef, d, steps, width), codegen

    return over_tile


def _one(f):
    return ir.Constant(f.r.vector, [1.0] * f.r.lanes)


def _softplus(f, x):
    share, _, small = f.sigmoid(x)
    return f.softplus(x, small), share


def _silu(f, x):
    share, rest, _ = f.sigmoid(x)
    return f.r.mul(x, share), f.r.mul(share, f.r.mad(x, rest, _one(f)))


@intrinsic
def _copy_rows(typingctx, source, i, di, target, j, dj, count, steps):
    """Copy `steps` rows of `count` numbers; rows begin `di` numbers apart in `source`, `dj` in `target`."""

    def codegen(context, builder, signature, args):
        _, i, di, _, j, dj, count, steps = args
        ps, pt = (pointer(context, builder, signature.args[m], args[m]) for m in (0, 3))
        byte, line = ir.IntType(8).as_pointer(), ir.VectorType(ir.IntType(8), 64)
        size = builder.mul(count, ir.Constant(count.type, signature.args[0].dtype.bitwidth // 8))
        rest = builder.and_(size, ir.Constant(size.type, 63))
        whole = builder.sub(size, rest)
        zero, step = ir.Constant(size.type, 0), ir.Constant(size.type, 64)
        with cgutils.for_range(builder, steps) as loop:
            here, there = (builder.add(x, builder.mul(loop.index, dx)) for x, dx in ((i, di), (j, dj)))
            here, there = (builder.bitcast(builder.gep(x, [at]), byte) for x, at in ((ps, here), (pt, there)))
            with cgutils.for_range_slice(builder, zero, whole, step) as (at, _):
                lines = [builder.bitcast(builder.gep(x, [at]), line.as_pointer()) for x in (here, there)]
                builder.store(builder.load(lines[0], align=1), lines[1], align=1)
            with builder.if_then(builder.icmp_signed(">", rest, zero), likely=False):  # a call costs more than a line
                cgutils.raw_memcpy(builder, builder.gep(there, [whole]), builder.gep(here, [whole]), rest, 1)
        return context.get_dummy_value()

    return types.void(source, i, di, target, j, dj, count, steps), codegen


if getattr(numba.config, "DISABLE_JIT", False):
    advance: Any = slices.advance
    retreat: Any = slices.retreat
    shift: Any = slices.shift
    soften: Any = slices.soften
    gate: Any = slices.gate
    copy_rows: Any = slices.copy_rows
else:
    advance, retreat, copy_rows = _advance, _retreat, _copy_rows
    shift = _tile_function(STEP, SLOPE, lambda f, x: (x, _one(f)))
    soften = _tile_function(STEP, SLOPE, _softplus)
    gate = _tile_function(GATE, RATE, _silu)
