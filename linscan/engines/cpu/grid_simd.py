"""One cell's gradients in `grid_scan`, for one key channel and all value channels, as a compiler intrinsic.

Eight sums over value channels are taken in one pass, each in the lanes of a vector; Numba would add them term by term.
"""

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu.simd import LANES, pointer, vectors


def _in_python(w, left, up, gr, gd, v, do, dv, sums):
    rr, rd, dr, dd, sr, sd, mr, md = w
    sums[:] = (gr @ left, gr @ up, gd @ left, gd @ up, gr @ v, gd @ v, do @ left, do @ up)
    dv += sr * gr + sd * gd
    gr[:], gd[:] = rr * gr + dr * gd + mr * do, rd * gr + dd * gd + md * do


@intrinsic
def _vector(typingctx, w, left, up, gr, gd, v, do, dv, sums):
    """Add to `dv`, move `gr` and `gd` on to the cells before, put the eight products into `sums`.

    All arrays are contiguous, of a whole number of vectors; `w` is what the cell multiplies with, as eight scalars.
    """

    def codegen(context, builder, signature, args):
        x = vectors(context, builder, left.dtype)
        bases = [pointer(context, builder, t, a) for t, a in zip(signature.args[1:], args[1:], strict=True)]
        rr, rd, dr, dd, sr, sd, mr, md = (x.splat(builder.extract_value(args[0], i)) for i in range(8))
        totals = [cgutils.alloca_once_value(builder, x.zero) for _ in range(8)]
        shape = context.make_array(left)(context, builder, args[1]).shape
        lanes = ir.Constant(ir.IntType(64), LANES)
        with cgutils.for_range(builder, builder.udiv(builder.extract_value(shape, 0), lanes)) as loop:
            at = builder.mul(loop.index, lanes)
            a, u, r, d, s, g, old = (x.load(base, at) for base in bases[:7])
            pairs = [(r, a), (r, u), (d, a), (d, u), (r, s), (d, s), (g, a), (g, u)]
            for slot, (p, q) in zip(totals, pairs, strict=True):
                builder.store(x.mad(p, q, builder.load(slot)), slot)
            x.store(x.mad(sr, r, x.mad(sd, d, old)), bases[6], at)
            x.store(x.mad(rr, r, x.mad(dr, d, x.mul(mr, g))), bases[2], at)
            x.store(x.mad(rd, r, x.mad(dd, d, x.mul(md, g))), bases[3], at)
        for i, slot in enumerate(totals):
            total, half = builder.load(slot), LANES // 2
            while half:
                total = x.add(total, x.shuffle(total, total, [(j + half) % LANES for j in range(LANES)]))
                half //= 2
            builder.store(x.lane(total, 0), builder.gep(bases[7], [ir.Constant(ir.IntType(64), i)]))
        return context.get_dummy_value()

    return types.void(w, left, up, gr, gd, v, do, dv, sums), codegen


cell_back = _in_python if getattr(numba.config, "DISABLE_JIT", False) else _vector
