"""One vector of rows through one section, and the transposition that brings rows into vectors, as compiler
intrinsics."""

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


class _Lanes:
    """Vectors of `lanes` rows in a C-contiguous array: loads, stores and ``z + c x``, as LLVM instructions."""

    def __init__(self, context: Any, builder: Any, element: Any, lanes: int) -> None:
        self.context, self.b = context, builder
        self.align = element.bitwidth // 8
        scalar = context.get_value_type(element)
        self.vector = scalar if lanes == 1 else ir.VectorType(scalar, lanes)

    def base(self, array_type: Any, value: Any) -> Any:
        data = self.context.make_array(array_type)(self.context, self.b, value).data
        return self.b.bitcast(data, self.vector.as_pointer())

    def load(self, base: Any, index: Any) -> Any:
        return self.b.load(self.b.gep(base, [self._index(index)]), align=self.align)

    def store(self, value: Any, base: Any, index: Any) -> None:
        self.b.store(value, self.b.gep(base, [self._index(index)]), align=self.align)

    def _index(self, index: Any) -> Any:
        return ir.Constant(ir.IntType(64), index) if isinstance(index, int) else index

    def add(self, z: Any, c: Any, x: Any, sign: int = 1) -> Any:
        """``z + c x`` (or minus); `z` is None for zero."""
        product = self.b.fmul(c, x, flags=("contract",))
        if z is None:
            return product if sign > 0 else self.b.fneg(product)
        return (self.b.fadd if sign > 0 else self.b.fsub)(z, product, flags=("contract",))

    def section(self, x: Any, c: list[Any], n_b: int, slots: list[Any]) -> Any:
        """One sample through one section: its output. `c` is b and a[1:]; `slots` hold the state."""
        # Transposed direct form II: the state already holds what the past adds to this and to later outputs.
        old = [*map(self.b.load, slots), None]
        y = self.add(old[0], c[0], x)
        for k, slot in enumerate(slots):
            new = old[k + 1]
            if k + 1 < n_b:
                new = self.add(new, c[k + 1], x)
            if n_b + k < len(c):
                new = self.add(new, c[n_b + k], y, -1)
            self.b.store(new, slot)
        return y


@intrinsic
def advance_lanes(typingctx, tile, coef, z, n, forward, back, sections, lanes):
    """Run sections over `n` samples of `tile` in place. The lengths of the four tuples are compile-time constants."""
    n_b, n_a, n_sections = len(forward), len(back), len(sections)
    taps, order = n_b + n_a, max(n_b - 1, n_a)

    def codegen(context, builder, signature, args):
        v = _Lanes(context, builder, tile.dtype, len(lanes))
        tiles, coefs, states = (v.base(*pair) for pair in zip(signature.args[:3], args[:3], strict=True))
        c = [v.load(coefs, k) for k in range(n_sections * taps)]
        slots = [cgutils.alloca_once_value(builder, v.load(states, k)) for k in range(n_sections * order)]
        with cgutils.for_range(builder, args[3]) as loop:
            x = v.load(tiles, loop.index)
            for s in range(n_sections):
                x = v.section(x, c[s * taps : (s + 1) * taps], n_b, slots[s * order : (s + 1) * order])
            v.store(x, tiles, loop.index)
        for k, slot in enumerate(slots):
            v.store(builder.load(slot), states, k)
        return context.get_dummy_value()

    return types.void(tile, coef, z, n, forward, back, sections, lanes), codegen


@intrinsic
def transpose_lanes(typingctx, source, target, lanes):
    """Copy a square of `lanes` by `lanes` numbers transposed; both arrays have unit stride along their last axis."""
    n = len(lanes)

    def codegen(context, builder, signature, args):
        v = _Lanes(context, builder, source.dtype, n)

        def line(i, k):
            array = context.make_array(signature.args[k])(context, builder, args[k])
            offset = builder.mul(builder.extract_value(array.strides, 0), ir.Constant(ir.IntType(64), i))
            byte = builder.gep(builder.bitcast(array.data, ir.IntType(8).as_pointer()), [offset])
            return builder.bitcast(byte, v.vector.as_pointer())

        lines = [v.load(line(i, 0), 0) for i in range(n)]
        # Riffling the two halves of the lines together log2(n) times is a transposition.
        for _ in range(n.bit_length() - 1):
            pairs = [(lines[i], lines[i + n // 2]) for i in range(n // 2)]
            lines = []
            for pair in pairs:
                for half in (0, n // 2):
                    mask = [half + i // 2 + n * (i % 2) for i in range(n)]
                    lines.append(builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), n), mask)))
        for i, x in enumerate(lines):
            v.store(x, line(i, 1), 0)
        return context.get_dummy_value()

    return types.void(source, target, lanes), codegen


def _advance_in_python(tile, coef, z, n, forward, back, sections, lanes):
    for c, state in zip(coef, z, strict=True):
        for t in range(n):
            x = tile[t].copy()
            old = [*state.copy(), 0]
            tile[t] = y = old[0] + c[0] * x
            for k in range(len(state)):
                ahead = c[k + 1] * x if k + 1 < len(forward) else 0
                state[k] = old[k + 1] + ahead - (c[len(forward) + k] * y if k < len(back) else 0)


def _transpose_in_python(source, target, lanes):
    target[...] = source.T


_disabled = getattr(numba.config, "DISABLE_JIT", False)
advance = _advance_in_python if _disabled else advance_lanes
transpose = _transpose_in_python if _disabled else transpose_lanes
