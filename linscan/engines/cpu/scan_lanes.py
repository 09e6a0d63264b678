"""Eight steps of a scan, or one step in eight channels, as single compiler intrinsics.

The map of step t is ``(a, b): h -> a h + b``. Composing neighbouring maps in three rounds turns eight steps into eight
maps of the one state before them, so the loop waits for one multiply-add every eight steps instead of every step.
Products of up to eight `a` can overflow where the plain loop is finite (or meet a NaN out of turn), so a block with any
map that is not finite is left alone and reported; the caller then takes those eight steps one by one.
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from linscan.engines.cpu.simd import LANES, pointer, prefetch, vectors

_AHEAD = 256  # bytes


def _compose(v: Any, a: Any, b: Any, reverse: bool) -> tuple[Any, Any]:
    """All prefixes of eight maps: lane t of the result holds map t after map t - 1 ... after map 0.

    In each round the second half of every group of 2, 4, 8 lanes takes over the last prefix of the first half
    (Sklansky's network: unlike shifts of all lanes, its two first rounds stay inside 128 bits).
    """
    for half in (1, 2, 4):
        lanes = [t - t % half - 1 if t & half else None for t in range(LANES)]
        if reverse:
            lanes = [None if t is None else LANES - 1 - t for t in reversed(lanes)]
        b = v.mad(a, v.pick(b, lanes, 0.0), b)
        a = v.mul(a, v.pick(a, lanes, 1.0))
    return a, b


def _vectors(context: Any, builder: Any, signature: Any, args: Any, count: int) -> list[Any]:
    """The vector arithmetic, and the addresses of the first `count` arguments."""
    found = [pointer(context, builder, t, x) for t, x in zip(signature.args[:count], args[:count], strict=True)]
    return [vectors(context, builder, signature.args[count - 1].dtype), *found]


def _returns(element: Any) -> Any:
    """Whether all maps are finite, and the map of all eight steps."""
    return types.Tuple((types.boolean, element, element))


def _ends(v: Any, fine: Any, maps: Any, reverse: bool) -> Any:
    last = 0 if reverse else LANES - 1
    return v.context.make_tuple(v.b, _returns(v.type), [fine, *(v.lane(x, last) for x in maps)])


def _scan8(reverse: bool) -> Any:
    @intrinsic
    def scan8(typingctx: Any, a: Any, b: Any, h: Any, p: Any, carry: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            v, at, bt, ht = _vectors(context, builder, signature, args, 3)
            for base in (at, bt, ht):
                prefetch(v, base, args[3], -_AHEAD if reverse else _AHEAD, write=base is ht)
            prod, local = _compose(v, v.load(at, args[3]), v.load(bt, args[3]), reverse)
            fine = v.all_finite(prod, local)
            states = v.mad(prod, v.splat(args[4]), local)
            with builder.if_then(fine, likely=True):
                v.store(states, ht, args[3])
            return _ends(v, fine, (prod, local), reverse)

        return _returns(h.dtype)(a, b, h, p, carry), codegen

    return scan8


def _reduce8(reverse: bool) -> Any:
    @intrinsic
    def reduce8(typingctx: Any, a: Any, b: Any, p: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            v, at, bt = _vectors(context, builder, signature, args, 2)
            maps = _compose(v, v.load(at, args[2]), v.load(bt, args[2]), reverse)
            return _ends(v, v.all_finite(*maps), maps, reverse)

        return _returns(b.dtype)(a, b, p), codegen

    return reduce8


def _back8(reverse: bool) -> Any:
    """`reverse` is the direction over the adjoint, against that of the scan: its maps are ``(conj(a[t+1]), dh[t])``."""

    @intrinsic
    def back8(typingctx: Any, a: Any, h: Any, dh: Any, da: Any, db: Any, p: Any, carry: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            v, at, ht, dht, dat, dbt = _vectors(context, builder, signature, args, 5)
            for base in (at, ht, dht, dat, dbt):
                prefetch(v, base, args[5], -_AHEAD if reverse else _AHEAD, write=base in (dat, dbt))
            one = ir.Constant(args[5].type, 1)
            up, down = builder.add(args[5], one), builder.sub(args[5], one)
            after, before = (up, down) if reverse else (down, up)
            maps = _compose(v, v.conj(v.load(at, after)), v.load(dht, args[5]), reverse)
            fine = v.all_finite(*maps)
            delta = v.mad(maps[0], v.splat(args[6]), maps[1])
            slope = v.mul(v.conj(v.load(ht, before)), delta)
            with builder.if_then(fine, likely=True):
                v.store(delta, dbt, args[5])
                v.store(slope, dat, args[5])
            return _ends(v, fine, maps, reverse)

        return _returns(h.dtype)(a, h, dh, da, db, p, carry), codegen

    return back8


@intrinsic
def _across8(typingctx: Any, a: Any, b: Any, before: Any, h: Any, pa: Any, pb: Any, pc: Any, ph: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v, at, bt, ct, ht = _vectors(context, builder, signature, args, 4)
        v.store(v.mad(v.load(at, args[4]), v.load(ct, args[6]), v.load(bt, args[5])), ht, args[7])
        return context.get_dummy_value()

    return types.void(a, b, before, h, pa, pb, pc, ph), codegen


@intrinsic
def _across8_back(typingctx, a, before, dh, flow, da, db, pa, pc, pg, pf, p):
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v, at, ct, gt, ft, dat, dbt = _vectors(context, builder, signature, args, 6)
        delta = v.add(v.load(gt, args[8]), v.load(ft, args[9]))
        slope = v.mul(v.conj(v.load(ct, args[7])), delta)
        flow_on = v.mul(v.conj(v.load(at, args[6])), delta)
        for value, base, index in ((delta, dbt, 10), (slope, dat, 10), (flow_on, ft, 9)):
            v.store(value, base, args[index])
        return context.get_dummy_value()

    return types.void(a, before, dh, flow, da, db, pa, pc, pg, pf, p), codegen


across8: Any = _across8
across8_back: Any = _across8_back
if getattr(numba.config, "DISABLE_JIT", False):  # kernels run as Python: vectors become slices

    def _refuse(*args: Any) -> tuple[bool, int, int]:
        """No block is taken at once; the caller goes step by step."""
        return False, 0, 0

    def _across8_slices(a, b, before, h, pa, pb, pc, ph):
        a, b, before = (x[p : p + LANES] for x, p in zip((a, b, before), (pa, pb, pc), strict=True))
        h[ph : ph + LANES] = a * before + b

    def _across8_back_slices(a, before, dh, flow, da, db, pa, pc, pg, pf, p):
        a, before, dh = (x[p : p + LANES] for x, p in zip((a, before, dh), (pa, pc, pg), strict=True))
        db[p : p + LANES] = delta = dh + flow[pf : pf + LANES]
        da[p : p + LANES] = before.conj() * delta
        flow[pf : pf + LANES] = a.conj() * delta

    across8, across8_back = _across8_slices, _across8_back_slices
    scan8_forward = scan8_backward = reduce8_forward = reduce8_backward = back8_forward = back8_backward = _refuse
else:
    scan8_forward, scan8_backward = _scan8(False), _scan8(True)
    reduce8_forward, reduce8_backward = _reduce8(False), _reduce8(True)
    back8_forward, back8_backward = _back8(False), _back8(True)
