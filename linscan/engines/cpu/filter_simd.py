"""One vector of rows through one section, and how rows are brought into vectors and back, as compiler intrinsics.

Written as compiled helpers this took three times as long to compile.
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu.simd import Real, pointer


def _int(n: int) -> Any:
    return ir.Constant(ir.IntType(64), n)


def _section(v: Real, x: Any, c: list[Any], n_b: int, slots: list[Any]) -> Any:
    """One sample through one section: its output. `c` is b and -a[1:]; `slots` hold the state."""
    # Transposed direct form II: the state already holds what the past adds to this and to later outputs.
    old = [*map(v.b.load, slots), None]
    y = v.mad(c[0], x, old[0])
    for k, slot in enumerate(slots):
        new = old[k + 1]
        if k + 1 < n_b:
            new = v.mad(c[k + 1], x, new)
        if n_b + k < len(c):
            new = v.mad(c[n_b + k], y, new)
        v.b.store(new, slot)
    return y


@intrinsic
def _advance(typingctx, tile, coef, z, first, n, forward, back, sections, lanes):
    """Run sections, from number `first` on, over `n` samples of `tile` in place.

    The lengths of the four tuples are compile-time constants. `coef` and `z` hold one vector in each row.
    """
    n_b, n_a, count = len(forward), len(back), len(sections)
    taps, order = n_b + n_a, max(n_b - 1, n_a)

    def codegen(context, builder, signature, args):
        v = Real(context, builder, tile.dtype, len(lanes))
        tiles, coefs, states = (
            pointer(context, builder, t, x) for t, x in zip(signature.args[:3], args[:3], strict=True)
        )

        def rows(each):
            start = builder.mul(args[3], _int(each * v.lanes))
            return [builder.add(start, _int(k * v.lanes)) for k in range(count * each)]

        c = [v.load(coefs, row) for row in rows(taps)]
        c = [builder.fneg(x) if k % taps >= n_b else x for k, x in enumerate(c)]
        slots = [cgutils.alloca_once_value(builder, v.load(states, row)) for row in rows(order)]
        with cgutils.for_range(builder, args[4]) as loop:
            here = builder.mul(loop.index, _int(v.lanes))
            x = v.load(tiles, here)
            for s in range(count):
                x = _section(v, x, c[s * taps : (s + 1) * taps], n_b, slots[s * order : (s + 1) * order])
            v.store(x, tiles, here)
        for slot, row in zip(slots, rows(order), strict=True):
            v.store(builder.load(slot), states, row)
        return context.get_dummy_value()

    return types.void(tile, coef, z, first, n, forward, back, sections, lanes), codegen


class _Window:
    """Samples of some rows, from a `place` on, in an array of any strides, beside a tile with a vector a sample."""

    def __init__(self, v: Real, array: Any, place: Any, time_last: Any, tile: Any) -> None:
        self.v, b, self.tile, byte = v, v.b, tile, ir.IntType(8).as_pointer()
        block, second, third = (b.extract_value(array.strides, k) for k in range(3))
        self.time, self.row = b.select(time_last, third, second), b.select(time_last, second, third)
        self.first = b.bitcast(array.data, byte)
        for k, stride in enumerate((block, self.time, self.row)):
            self.first = b.gep(self.first, [b.mul(b.extract_value(place, k), stride)])
        self.element = array.data.type

    def one(self, t: Any, row: Any, inward: bool) -> None:
        """Copy one sample of one row."""
        b, align = self.v.b, self.v.align
        here = b.gep(self.tile, [b.add(b.mul(t, _int(self.v.lanes)), row)])
        source, target = (self._at(t, row), here) if inward else (here, self._at(t, row))
        b.store(b.load(source, align=align), target, align=align)

    def whole(self, count: Any, square: bool, inward: bool) -> None:
        """Copy `count` samples of all lanes as vectors: along the rows, transposed in squares, or across them."""
        v, size = self.v, self.v.lanes if square else 1
        with cgutils.for_range_slice(v.b, _int(0), count, _int(size)) as (t, _):
            start = v.b.mul(t, _int(v.lanes))
            inside = [(self.tile, v.b.add(start, _int(i * v.lanes))) for i in range(size)]
            outside = [(self._at(t, _int(i)), _int(0)) for i in range(size)]
            sources, targets = (outside, inside) if inward else (inside, outside)
            for line, target in zip(_transposed(v, [v.load(*place) for place in sources]), targets, strict=True):
                v.store(line, *target)

    def unit(self, stride: Any) -> Any:
        return self.v.b.icmp_signed("==", stride, _int(self.v.align))

    def _at(self, t: Any, row: Any) -> Any:
        b = self.v.b
        return b.bitcast(b.gep(b.gep(self.first, [b.mul(t, self.time)]), [b.mul(row, self.row)]), self.element)


def _transposed(v: Real, lines: list[Any]) -> list[Any]:
    # Riffling the two halves of the lines together log2(n) times is a transposition.
    n = len(lines)
    for _ in range(n.bit_length() - 1):
        pairs = [(lines[i], lines[i + n // 2]) for i in range(n // 2)]
        masks = [[half + i // 2 + n * (i % 2) for i in range(n)] for half in (0, n // 2)]
        lines = [v.shuffle(*pair, mask) for pair in pairs for mask in masks]
    return lines


def _mover(inward: bool, fast: bool) -> Any:
    """Copy samples of rows into the columns of a tile, or back; `fast` is worth it for long runs in all lanes."""

    @intrinsic
    def move(typingctx, x, place, time_last, tile, n, rows, lanes):
        def codegen(context, builder, signature, args):
            v, array = Real(context, builder, tile.dtype, len(lanes)), context.make_array(x)(context, builder, args[0])
            window = _Window(v, array, args[1], args[2], pointer(context, builder, signature.args[3], args[3]))
            done = cgutils.alloca_once_value(builder, _int(0))
            if fast:
                with builder.if_then(builder.icmp_signed("==", args[5], _int(v.lanes))):
                    with builder.if_then(window.unit(window.time)):
                        count = builder.and_(args[4], _int(-v.lanes))
                        window.whole(count, True, inward)
                        builder.store(count, done)
                    with builder.if_then(window.unit(window.row)):
                        window.whole(args[4], False, inward)
                        builder.store(args[4], done)
            with cgutils.for_range(builder, args[5]) as row:
                with cgutils.for_range_slice(builder, builder.load(done), args[4], _int(1)) as (t, _):
                    window.one(t, row.index, inward)
            return context.get_dummy_value()

        return types.void(x, place, time_last, tile, n, rows, lanes), codegen

    return move


def _advance_in_python(tile, coef, z, first, n, forward, back, sections, lanes):
    taps, order = len(forward) + len(back), max(len(forward) - 1, len(back))
    for s in range(first, first + len(sections)):
        c, state = coef[s * taps : (s + 1) * taps], z[s * order : (s + 1) * order]
        for t in range(n):
            x = tile[t].copy()
            old = [*state.copy(), 0]
            tile[t] = y = c[0] * x + old[0]
            for k in range(order):
                ahead = c[k + 1] * x if k + 1 < len(forward) else 0
                state[k] = old[k + 1] + ahead - (c[len(forward) + k] * y if k < len(back) else 0)


def _seen(x, place, time_last, n, rows):
    block, start, first = place
    if time_last:
        return x[block, first : first + rows, start : start + n].T
    return x[block, start : start + n, first : first + rows]


def _bring_in_python(x, place, time_last, tile, n, rows, lanes):
    tile[:n, :rows] = _seen(x, place, time_last, n, rows)


def _return_in_python(x, place, time_last, tile, n, rows, lanes):
    _seen(x, place, time_last, n, rows)[...] = tile[:n, :rows]


advance: Any = _advance
if getattr(numba.config, "DISABLE_JIT", False):
    advance, bring, bring_few = _advance_in_python, _bring_in_python, _bring_in_python
    put_back, put_back_few = _return_in_python, _return_in_python
else:
    bring, bring_few = _mover(True, True), _mover(True, False)
    put_back, put_back_few = _mover(False, True), _mover(False, False)
