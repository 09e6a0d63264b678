"""What the diagonal kernel and its gradient share on the CPU: views, the work plan, and the small matrix product.

A tile of the product stays in the vector registers while the inner index runs, so its sums have the same order for
every row. BLAS would be no faster here and bring threads of its own.
"""

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu.simd import LANES, Real, pointer

ROWS, COLUMNS = 6, 16  # of a product's tile, which stays in registers
_TABLE = 1 << 17  # elements of the table of a^r: half a level-2 cache
_GRAIN = 1 << 20  # multiply-adds a thread must get for its hand-over to pay


def planar(x):
    """(channels, states, 1 or 2) float64: the real and imaginary parts."""
    wide = np.ascontiguousarray(x, np.complex128 if x.dtype.kind == "c" else np.float64)
    return wide.view(np.float64).reshape(*x.shape, -1)


def by_growth(a, length, dtype):
    """Channels for the tables, and for the plain loop: where |a|^length is so large that tables could overflow."""
    with np.errstate(all="ignore"):
        size = np.sqrt(np.square(a).sum(axis=-1)).max(axis=-1, initial=1.0)
        loops = np.log2(size) * length > (60 if dtype.itemsize == 4 else 500)  # false for NaN, which tables carry too
    return np.flatnonzero(~loops), np.flatnonzero(loops)


def block_length(length, width):
    """The length R of the table of a^r: about sqrt(length), a multiple of 16, small enough to stay in cache."""
    fits = max(16, _TABLE // max(1, width) // 16 * 16)
    return max(16, min(int(np.ceil(np.sqrt(length) / 16)) * 16, fits))


def grain(work):
    """Items of `work` multiply-adds each that a thread must get."""
    return 1 + _GRAIN // max(1, work)


@intrinsic
def _product(typingctx, rows, q, table, sums, p):
    """``sums[p + i] = rows[q + i] @ table``, i < `ROWS`, summed in order; `table` is a multiple of `COLUMNS` wide."""

    def codegen(context, builder, signature, args):
        b, number = builder, lambda i: ir.Constant(ir.IntType(64), i)
        v = Real(context, b, table.dtype)
        left, right, out = (pointer(context, b, signature.args[k], args[k]) for k in (0, 2, 3))
        array = context.make_array(table)(context, b, args[2])
        inner, width = (b.extract_value(array.shape, k) for k in (0, 1))
        starts = [b.mul(b.add(args[1], number(i)), inner) for i in range(ROWS)]
        ends = [b.mul(b.add(args[4], number(i)), width) for i in range(ROWS)]
        shifts = [number(j) for j in range(0, COLUMNS, LANES)]
        with cgutils.for_range_slice(b, number(0), width, number(COLUMNS)) as (column, _):
            slots = [cgutils.alloca_once(b, v.vector) for _ in range(ROWS * len(shifts))]
            for slot in slots:
                b.store(v.zero, slot)
            with cgutils.for_range(b, inner) as loop:
                at = b.add(b.mul(loop.index, width), column)
                line = [v.load(right, b.add(at, shift)) for shift in shifts]
                for i, start in enumerate(starts):
                    factor = v.splat(b.load(b.gep(left, [b.add(start, loop.index)])))
                    for x, slot in zip(line, slots[i * len(line) :], strict=False):
                        b.store(v.mad(factor, x, b.load(slot)), slot)
            for i, end in enumerate(ends):
                for shift, slot in zip(shifts, slots[i * len(shifts) :], strict=False):
                    v.store(b.load(slot), out, b.add(b.add(end, column), shift))
        return context.get_dummy_value()

    return types.void(rows, q, table, sums, p), codegen


@intrinsic
def _copy(typingctx, source, start, target, first, count):
    """Copy `count` numbers from one flat position to another, of contiguous arrays of one dtype."""

    def codegen(context, builder, signature, args):
        here, there = (
            builder.gep(pointer(context, builder, signature.args[k], args[k]), [args[k + 1]]) for k in (0, 2)
        )
        cgutils.raw_memcpy(builder, there, here, args[4], source.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(source, start, target, first, count), codegen


def _copy_in_python(source, start, target, first, count):
    target.reshape(-1)[first : first + count] = source.reshape(-1)[start : start + count]


def _product_in_python(rows, q, table, sums, p):
    sums[p : p + ROWS] = rows[q : q + ROWS] @ table


_disabled = getattr(numba.config, "DISABLE_JIT", False)
copy, product = (_copy_in_python, _product_in_python) if _disabled else (_copy, _product)
