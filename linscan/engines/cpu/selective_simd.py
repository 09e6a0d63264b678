"""Steps of the selective scan in a vector of channels, forwards and backwards, as compiler intrinsics.

A state array holds one vector of channels for every n, so that ``C·h`` is a sum of vectors; `real` and `full` hold
tiles. Positions count numbers: `p` in a tile, `i` of a block's vectors, `q` of B[t] and C[t].
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from linscan.engines.cpu import selective_slices as slices
from linscan.engines.cpu.selective_tiles import DDT, DU, DY, DZ, GATE, RATE, SLOPE, STEP, U, Y, tiles_of
from linscan.engines.cpu.selective_vectors import STEPS, Step, pointers
from linscan.engines.cpu.simd import pointer


def _advancing(count):
    """`count` steps, `dp` apart in tiles and `dq` in B and C: from the states at `before[j]` to those at `after[k]`.

    With decays `saved` for the way back, every step's states are kept, one after the other, and there is no gate.
    """

    @intrinsic
    def over_steps(
        typingctx, real, full, A, D, before, after, b, c, coef, saved, exponent, p, i, d, j, k, q, n, dp, dq
    ):
        def codegen(context, builder, signature, args):
            _, _, pA, pD, pb, pa, pB, pC, constants = pointers(context, builder, signature, args, 9)
            exponent, p, i, d, j, k, q, n, dp, dq = args[10:]
            step = Step(context, builder, signature.args[2].dtype, constants)
            v, decays = step.v, None
            if len(signature.args[9]):
                decays = pointer(context, builder, signature.args[9][0], builder.extract_value(args[9], 0))
            apart = [ir.Constant(n.type, s) for s in range(count)]
            places = [builder.add(p, builder.mul(dp, s)) for s in apart]
            tiles = [tiles_of(context, builder, signature, args, (step.real, v), place) for place in places]
            deltas, us = [numbers[exponent] for numbers, _ in tiles], [wholes[U] for _, wholes in tiles]
            driven = [step.scaled(numbers[STEP], u) for (numbers, _), u in zip(tiles, us, strict=True)]
            sums, size = [step.place() for _ in apart], builder.mul(n, ir.Constant(n.type, v.lanes))
            with cgutils.for_range(builder, n) as loop:
                at = builder.mul(loop.index, ir.Constant(n.type, v.lanes))
                eigenvalues, h = v.load(pA, builder.add(i, at)), v.load(pb, builder.add(j, at))
                for s, delta, drive, total in zip(apart, deltas, driven, sums, strict=True):
                    here = builder.add(builder.add(q, builder.mul(dq, s)), loop.index)
                    B, C = (v.splat(builder.load(builder.gep(base, [here]))) for base in (pB, pC))
                    a = step.decay(delta, eigenvalues)
                    h = v.mad(a, h, v.mul(drive, B))
                    if decays is not None:
                        there = builder.add(builder.add(k, at), builder.mul(size, s))
                        v.store(h, pa, there)
                        v.store(a, decays, builder.sub(there, size))
                    step.write(v.mad(C, h, step.read(total)), total)
                if decays is None:
                    v.store(h, pa, builder.add(k, at))
            skip = v.load(pD, d)
            for (numbers, wholes), u, total in zip(tiles, us, sums, strict=True):
                y = v.mad(skip, u, step.read(total))
                wholes[Y] = y if decays is not None else step.scaled(numbers[GATE], y)
            return context.get_dummy_value()

        given = real, full, A, D, before, after, b, c, coef, saved, exponent, p, i, d, j, k, q, n, dp, dq
        return types.void(*given), codegen

    return over_steps


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
        numbers, wholes = tiles_of(context, builder, signature, args, (r, v), p)
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


if getattr(numba.config, "DISABLE_JIT", False):
    advance: Any = slices.advance
    advance_steps: Any = slices.advance_steps
    retreat: Any = slices.retreat
else:
    advance, advance_steps, retreat = _advancing(1), _advancing(STEPS), _retreat
