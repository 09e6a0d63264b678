"""Matrix times a few vectors, ``y[k] += Σ_j matrix[j] u[k, j]``, with the sums kept in registers and taken in order.

The matrix is cut into panels of WIDTH columns, so that a panel is read from its first byte to its last. BLAS would
bring its own threads, and bits that depend on how many vectors there are.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu.jit import jit
from linscan.engines.cpu.simd import LANES, Real, pointer

WIDTH = 2 * LANES


def panels(matrices: np.ndarray) -> np.ndarray:
    """(n, J, I) as (n, panels, J, WIDTH), filled up with zeros."""
    n, J, width = matrices.shape
    count = -(-width // WIDTH)
    packed = np.zeros((n, count * WIDTH, J), matrices.dtype)
    packed[:, :width] = matrices.swapaxes(1, 2)
    return np.ascontiguousarray(packed.reshape(n, count, WIDTH, J).swapaxes(2, 3))


def _multiply(rows: int) -> Any:
    """The intrinsic for `rows` vectors: one panel (J, WIDTH), u with rows of length `step`, y with rows of `stride`."""

    @intrinsic
    def multiply(
        typingctx: Any, panel: Any, u: Any, y: Any, first: Any, length: Any, step: Any, column: Any, stride: Any
    ) -> Any:
        def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
            v = Real(context, b, signature.args[0].dtype)
            p, s, out = (pointer(context, b, signature.args[i], args[i]) for i in range(3))
            begin, count, jump, start, line = args[3:]
            index = count.type
            half = ir.Constant(index, LANES)
            places = [b.add(start, b.mul(ir.Constant(index, k), line)) for k in range(rows)]
            places += [b.add(place, half) for place in places]
            sums = [cgutils.alloca_once_value(b, v.load(out, place)) for place in places]
            with cgutils.for_range(b, count, intp=index) as loop:
                j = loop.index
                at = b.add(begin, b.mul(j, ir.Constant(index, WIDTH)))
                left, right = v.load(p, at), v.load(p, b.add(at, half))
                for k in range(rows):
                    number = v.splat(b.load(b.gep(s, [b.add(b.mul(ir.Constant(index, k), jump), j)])))
                    for total, part in ((sums[k], left), (sums[k + rows], right)):
                        b.store(v.mad(part, number, b.load(total)), total)
            for total, place in zip(sums, places, strict=True):
                v.store(b.load(total), out, place)
            return context.get_dummy_value()

        return types.void(panel, u, y, types.intp, types.intp, types.intp, types.intp, types.intp), codegen

    return multiply


_multiply_four, _multiply_one = _multiply(4), _multiply(1)


@jit
def product(matrix, u, y, n):
    """`matrix` of panels (P, J, WIDTH), the first `n` of u (4, J) and y (4, P WIDTH), of which n = 4 go together."""
    count, length, width = matrix.shape
    p, s, out, stride = matrix.reshape(-1), u.reshape(-1), y.reshape(-1), y.shape[1]
    for i in range(count):
        first = i * length * width
        if n == 4:
            _multiply_four(p, s, out, first, length, length, i * width, stride)
        else:
            for k in range(n):
                _multiply_one(p, s[k * length :], out[k * stride :], first, length, length, i * width, stride)
