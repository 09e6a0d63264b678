"""A key under decay that meets the rows of one step after the other, and the adjoint: one pass of vectors each.

Left to the compiler, the two scalar products would be sums of one number after the other, and the adjoint's eight rows
more than it compares for overlap. Rows are contiguous and of one length, a multiple of LANES.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu.simd import LANES, pointer, vectors


def _size(context: Any, b: Any, kind: Any, row: Any) -> Any:
    return cgutils.unpack_tuple(b, context.make_array(kind)(context, b, row).shape, 1)[0]


@intrinsic
def meet(typingctx: Any, a: Any, q: Any, decay: Any, key: Any) -> Any:
    """The pair (sum of ``a key``, sum of ``q key decay``); `key` becomes ``key decay``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v = vectors(context, b, signature.args[0].dtype)
        pa, pq, pd, pk = (pointer(context, b, signature.args[i], args[i]) for i in range(4))
        totals = [cgutils.alloca_once_value(b, v.zero) for _ in range(2)]
        size = _size(context, b, signature.args[0], args[0])
        with cgutils.for_range(b, b.sdiv(size, ir.Constant(size.type, LANES))) as loop:
            at = b.mul(loop.index, ir.Constant(size.type, LANES))
            x = v.load(pk, at)
            b.store(v.mad(v.load(pa, at), x, b.load(totals[0])), totals[0])
            x = v.mul(x, v.load(pd, at))
            b.store(v.mad(v.load(pq, at), x, b.load(totals[1])), totals[1])
            v.store(x, pk, at)
        return context.make_tuple(b, signature.return_type, [_across(b, v, b.load(t)) for t in totals])

    return types.UniTuple(key.dtype, 2)(a, q, decay, key), codegen


def _across(b: Any, v: Any, x: Any) -> Any:
    """The sum of the lanes, by halves."""
    lanes = [v.lane(x, i) for i in range(LANES)]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [b.fadd(*pair) for pair in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


@intrinsic
def part(typingctx: Any, m: Any, p: Any, rows: Any, key: Any, dkey: Any, f: Any) -> Any:
    """The adjoint of `meet` for one pair of steps, (a, q, decay, da, dq) being `rows`, and F the decay up to now:

    da += m F key, dkey += F (m a + p decay q), F := F decay, dq += p F key.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        v, kinds = vectors(context, b, signature.args[0]), signature.args
        five = cgutils.unpack_tuple(b, args[2], 5)
        pa, pq, pd, pda, pdq = (pointer(context, b, kinds[2][i], five[i]) for i in range(5))
        pk, pdk, pf = (pointer(context, b, kinds[i], args[i]) for i in (3, 4, 5))
        m, p, size = v.splat(args[0]), v.splat(args[1]), _size(context, b, kinds[3], args[3])
        with cgutils.for_range(b, b.sdiv(size, ir.Constant(size.type, LANES))) as loop:
            at = b.mul(loop.index, ir.Constant(size.type, LANES))
            before, key, decay = v.load(pf, at), v.load(pk, at), v.load(pd, at)
            after = v.mul(before, decay)
            v.store(v.mad(v.mul(m, before), key, v.load(pda, at)), pda, at)
            v.store(v.mad(v.mul(p, after), key, v.load(pdq, at)), pdq, at)
            dkey = v.mad(v.mul(m, before), v.load(pa, at), v.load(pdk, at))
            v.store(v.mad(v.mul(p, after), v.load(pq, at), dkey), pdk, at)
            v.store(after, pf, at)
        return context.get_dummy_value()

    return types.void(m, p, rows, key, dkey, f), codegen
