"""Small matrix products inside kernels, ``C = A B`` or ``C += A B``: in the cache, on one thread, triangles halved.

BLAS would start threads of its own from 64 x 64 x 128 on, and knows no triangle within a product. The innermost tile of
C stays in registers while the inner index runs; rows of B are read as vectors, entries of A one by one, so that A may
be transposed for free. Every entry is summed in the order of the inner index, whatever the sizes.
"""

import platform
from typing import Any

import numba
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu.simd import LANES, pointer, vectors

ROWS, COLUMNS = 8, 16  # of a tile: m and n are multiples of these
FULL, LOWER, UPPER, LOWER_OUT = range(4)


def _registers() -> int:
    """Vector registers of this processor: how tall a part of a tile they hold."""
    wide = platform.machine().lower() in ("aarch64", "arm64") or binding.get_host_cpu_features().get("avx512vl")
    return 32 if wide else 16


def _wide() -> bool:
    """Whether a register holds sixteen float32."""
    return bool(binding.get_host_cpu_features().get("avx512f"))


@intrinsic
def _tile(typingctx: Any, a: Any, b: Any, c: Any, places: Any, n: Any, add: Any) -> Any:
    """One tile of C: c[c0 + i sc + j] (+)= sum over k < n of a[a0 + i si + k sk] b[b0 + k sb + j]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = signature.args[0].dtype
        pointers = [pointer(context, builder, signature.args[i], args[i]) for i in range(3)]
        numbers = [*cgutils.unpack_tuple(builder, args[3], 7), args[4]]
        values = [*pointers, *numbers, builder.zext(args[5], ir.IntType(8))]
        builder.call(_tile_of(context, builder, element, pointers), values)
        return context.get_dummy_value()

    return types.void(a, b, c, places, n, add), codegen


def _tile_in_python(a: Any, b: Any, c: Any, places: Any, n: int, add: bool) -> None:
    a0, si, sk, b0, sb, c0, sc = places
    for i in range(ROWS):
        row = c[c0 + i * sc :][:COLUMNS]
        row[:] = row if add else 0
        for k in range(n):
            row += a[a0 + i * si + k * sk] * b[b0 + k * sb :][:COLUMNS]


tile: Any = _tile_in_python if getattr(numba.config, "DISABLE_JIT", False) else _tile


def _tile_of(context: Any, builder: Any, element: Any, pointers: list[Any]) -> Any:
    """The function that makes a tile, in this module."""
    i64, i8 = ir.IntType(64), ir.IntType(8)
    kind = ir.FunctionType(ir.VoidType(), [*(x.type for x in pointers), *[i64] * 8, i8])
    function = cgutils.get_or_insert_function(builder.module, kind, f"linscan_tile_{element}")
    if function.is_declaration:
        _define(context, function, element)
    return function


def _define(context: Any, function: Any, element: Any) -> None:
    """The tile as a function of its own: inlined into every product it would be compiled every time."""
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    is_complex, size = isinstance(element, types.Complex), context.get_abi_sizeof(context.get_value_type(element))
    lanes = 2 * LANES if _wide() and size == 4 else LANES
    v, wide = vectors(context, builder, element, lanes), COLUMNS // lanes if size == 4 else 1
    tall = 4 if is_complex or _registers() < 32 else ROWS
    for i in range(0, ROWS, tall):
        for j in range(0, COLUMNS, wide * lanes):
            _part(builder, function.args, v, context.get_constant_generic(builder, element, 0), (i, tall), (j, wide))
    builder.ret_void()


def _part(b: Any, args: Any, v: Any, zero: Any, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """Emit the part of a tile that fits the registers."""
    pa, pb, pc, a0, si, sk, b0, sb, c0, sc, n, add = args
    down, across = range(rows[0], sum(rows)), [columns[0] + v.lanes * j for j in range(columns[1])]

    def offset(start: Any, step: Any, count: int, more: int = 0) -> Any:
        return b.add(b.add(start, b.mul(step, ir.Constant(step.type, count))), ir.Constant(step.type, more))

    spots = [offset(c0, sc, i, j) for i in down for j in across]
    sums = [Slot(b, v.splat(zero)) for _ in spots]
    with b.if_then(b.trunc(add, ir.IntType(1))):
        for x, spot in zip(sums, spots, strict=True):
            x.set(v.load(pc, spot))
    with cgutils.for_range(b, n) as loop:
        row, first = b.add(b0, b.mul(loop.index, sb)), b.add(a0, b.mul(loop.index, sk))
        right = [v.load(pb, b.add(row, ir.Constant(row.type, j))) for j in across]
        for i, r in enumerate(down):
            left = v.splat(b.load(b.gep(pa, [offset(first, si, r)])))
            for x, y in zip(sums[i * len(right) :], right, strict=False):
                x.set(v.mad(left, y, x.get()))
    for x, spot in zip(sums, spots, strict=True):
        v.store(x.get(), pc, spot)


class Slot:
    """A vector, or a pair of them, that a loop changes; LLVM turns it into registers."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.b, self.pair = builder, isinstance(value, tuple)
        self.slots = [cgutils.alloca_once(builder, x.type) for x in (value if self.pair else [value])]
        self.set(value)

    def set(self, value: Any) -> None:
        for slot, x in zip(self.slots, value if self.pair else [value], strict=True):
            self.b.store(x, slot)

    def get(self) -> Any:
        values = tuple(self.b.load(slot) for slot in self.slots)
        return values if self.pair else values[0]


@intrinsic
def apart(typingctx: Any) -> Any:
    """Keep the function this is called in from being inlined: a big kernel of many parts compiles for seconds else."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def gemm(typingctx: Any, a: Any, sa: Any, b: Any, sb: Any, c: Any, sc: Any, size: Any, shape: Any, add: Any) -> Any:
    """C (+)= A B for A (m, k), B (k, n) and C (m, n), anywhere in contiguous arrays.

    `sa` holds the first entry of A and the strides of its rows and columns, `sb` and `sc` the first entry and the
    stride of the rows, `size` m, n and k. `shape` says where A has zeros, LOWER or UPPER a diagonal, or that what lies
    above the diagonal of C is not wanted, LOWER_OUT, and is left as whole tiles make it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element = signature.args[0].dtype
        pointers = [pointer(context, builder, signature.args[i], args[i]) for i in (0, 2, 4)]
        numbers = [x for i, n in ((1, 3), (3, 2), (5, 2), (6, 3)) for x in cgutils.unpack_tuple(builder, args[i], n)]
        values = [*pointers, *numbers, args[7], builder.zext(args[8], ir.IntType(8))]
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in values])
        function = cgutils.get_or_insert_function(builder.module, kind, f"linscan_gemm_{element}")
        if function.is_declaration:
            _define_gemm(context, function, element)
        builder.call(function, values)
        return context.get_dummy_value()

    return types.void(a, sa, b, sb, c, sc, size, shape, add), codegen


def _define_gemm(context: Any, function: Any, element: Any) -> None:
    """One function for all products of a kernel, however many of its numbers are known where it is called."""
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    pa, pb, pc, a0, si, sk, b0, sb, c0, sc, m, n, k, shape, add = function.args
    zero, down, across = (ir.Constant(m.type, x) for x in (0, ROWS, COLUMNS))

    def least(x: Any, y: Any) -> Any:
        return b.select(b.icmp_signed("<", x, y), x, y)

    def where(kind: int, x: Any, y: Any) -> Any:
        return b.select(b.icmp_signed("==", shape, ir.Constant(shape.type, kind)), x, y)

    with cgutils.for_range_slice(b, zero, m, down) as (i, _):
        below = b.add(i, down)
        lo, hi = where(UPPER, least(i, k), zero), where(LOWER, least(k, below), k)
        first, row = b.add(b.add(a0, b.mul(i, si)), b.mul(lo, sk)), b.add(c0, b.mul(i, sc))
        with cgutils.for_range_slice(b, zero, where(LOWER_OUT, least(n, below), n), across) as (j, _):
            top = b.add(b.add(b0, b.mul(lo, sb)), j)
            numbers = first, si, sk, top, sb, b.add(row, j), sc, b.sub(hi, lo)
            b.call(_tile_of(context, b, element, [pa, pb, pc]), [pa, pb, pc, *numbers, add])
    b.ret_void()
