"""What kernels on chunks need of vectors and the compiler does not find: sums of a row, a block decayed or solved."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu.gemm import Slot
from linscan.engines.cpu.simd import LANES, Complex, pointer, vectors


@intrinsic
def dot(typingctx: Any, x: Any, y: Any) -> Any:
    """The sum of ``x * y`` over rows of one length, a multiple of LANES, as LANES sums side by side."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        element = signature.args[0].dtype
        v = vectors(context, b, element)
        px, py = (pointer(context, b, signature.args[i], args[i]) for i in range(2))
        size = cgutils.unpack_tuple(b, context.make_array(signature.args[0])(context, b, args[0]).shape, 1)[0]
        total = Slot(b, v.splat(context.get_constant_generic(b, element, 0)))
        with cgutils.for_range(b, b.sdiv(size, ir.Constant(size.type, LANES))) as loop:
            at = b.mul(loop.index, ir.Constant(size.type, LANES))
            total.set(v.mad(v.load(px, at), v.load(py, at), total.get()))
        sums = total.get()
        if not isinstance(v, Complex):
            return _across(b, v, sums)
        number = context.make_complex(b, element)
        number.real, number.imag = (_across(b, v.r, part) for part in sums)
        return number._getvalue()

    return x.dtype(x, y), codegen


def _across(b: Any, v: Any, vector: Any) -> Any:
    total = v.lane(vector, 0)
    for i in range(1, LANES):
        total = b.fadd(total, v.lane(vector, i))
    return total


@intrinsic
def near(typingctx: Any, q: Any, k: Any, e: Any, a: Any, places: Any, last: Any) -> Any:
    """The decayed product within one block of LANES steps, and its keys decayed until its end.

    ``a[t, s]`` = sum over d of ``q[t, d] k[d, s] e[s+1, d] … e[t, d]`` for s <= t, else 0; ``k[d, s]``, turned, is left
    as its product with all later decays of the block if this product is its `last` one. `places` are the rows of q, k
    and a at which the chunk begins in them, and the block's first step.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        element, decay = signature.args[0].dtype, signature.args[2].dtype
        v, (q0, k0, a0, at) = vectors(context, b, element), cgutils.unpack_tuple(b, args[4], 4)
        pq, pk, pe, pa = (pointer(context, b, signature.args[i], args[i]) for i in range(4))
        wide, chunk = (
            cgutils.unpack_tuple(b, context.make_array(signature.args[i])(context, b, args[i]).shape, 2)[1]
            for i in (0, 1)
        )
        steps = [b.add(at, ir.Constant(at.type, t)) for t in range(LANES)]
        zero = v.splat(context.get_constant_generic(b, element, 0))
        sums = [Slot(b, zero) for _ in steps]
        with cgutils.for_range(b, wide) as loop:
            column = b.add(b.mul(b.add(k0, loop.index), chunk), at)
            x = v.load(pk, column)
            for t, step in enumerate(steps):
                query, entry = (b.add(b.mul(row, wide), loop.index) for row in (b.add(q0, step), step))
                if t:
                    factor = context.cast(b, b.load(b.gep(pe, [entry])), decay, element)
                    x = _choose(b, [s < t for s in range(LANES)], v.mul(x, v.splat(factor)), x)
                sums[t].set(v.mad(v.splat(b.load(b.gep(pq, [query]))), x, sums[t].get()))
            with b.if_then(args[5]):
                v.store(x, pk, column)
        for t, step in enumerate(steps):
            kept = _choose(b, [s <= t for s in range(LANES)], sums[t].get(), zero)
            v.store(kept, pa, b.add(b.mul(b.add(a0, step), chunk), at))
        return context.get_dummy_value()

    return types.void(q, k, e, a, places, last), codegen


def _choose(b: Any, lanes: list[bool], x: Any, y: Any) -> Any:
    """Lanes of `x` where true, else of `y`."""
    if isinstance(x, tuple):
        return tuple(_choose(b, lanes, *pair) for pair in zip(x, y, strict=True))
    mask = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [int(lane) for lane in lanes])
    return b.select(mask, x, y)


def _substitution(transposed: bool) -> Any:
    @intrinsic
    def within_block(typingctx: Any, lower: Any, u: Any, places: Any, at: Any) -> Any:
        def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
            v, (l0, u0), at = vectors(context, b, signature.args[0].dtype), cgutils.unpack_tuple(b, args[2], 2), args[3]
            pl, pu = (pointer(context, b, signature.args[i], args[i]) for i in range(2))
            chunk, tall = (
                cgutils.unpack_tuple(b, context.make_array(signature.args[i])(context, b, args[i]).shape, 2)[1]
                for i in range(2)
            )
            steps = [b.add(at, ir.Constant(at.type, t)) for t in range(LANES)]
            with cgutils.for_range_slice(b, ir.Constant(at.type, 0), tall, ir.Constant(at.type, LANES)) as (column, _):
                spots = [b.add(b.mul(b.add(u0, step), tall), column) for step in steps]
                rows = [v.load(pu, spot) for spot in spots]
                for t in reversed(range(LANES)) if transposed else range(LANES):
                    for s in range(t):
                        entry = b.gep(pl, [b.add(b.mul(b.add(l0, steps[t - 1]), chunk), steps[s])])
                        to, source = (s, t) if transposed else (t, s)
                        rows[to] = v.mad(v.splat(b.load(entry)), rows[source], rows[to])
                for row, spot in zip(rows, spots, strict=True):
                    v.store(row, pu, spot)
            return context.get_dummy_value()

        return types.void(lower, u, places, at), codegen

    return within_block


# One block of LANES steps from step `at` on: ``u[t] += lower[t-1, s] u[s]`` for s < t, one t after the other, or the
# adjoint ``u[s] += lower[t-1, s] u[t]``, the last t first; `places` are the rows at which the chunk begins in both.
substitute, substitute_transposed = _substitution(False), _substitution(True)
