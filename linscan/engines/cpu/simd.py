"""Eight steps of a scan at once, as a compiler intrinsic.

The map of step t is ``(a, b): h -> a h + b``. Composing neighbouring maps in three rounds turns eight steps into eight maps of the one state before them, so the loop waits for one multiply-add
every eight steps instead of every step. Products of up to eight `a` can overflow where the plain loop is finite (or
meet a NaN out of turn), so a block with any map that is not finite is left alone and reported; the caller then takes
those eight steps one by one.
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LANES = 8
_CONTRACT = ("contract",)


class _Real:
    """Vector arithmetic on LANES real numbers."""

    def __init__(self, builder: Any, element: Any) -> None:
        self.b, self.element = builder, element
        self.vector = ir.VectorType(element, LANES)

    def load(self, base: Any, index: Any) -> Any:
        pointer = self.b.bitcast(self.b.gep(base, [index]), self.vector.as_pointer())
        return self.b.load(pointer, align=self._align())

    def store(self, value: Any, base: Any, index: Any) -> None:
        pointer = self.b.bitcast(self.b.gep(base, [index]), self.vector.as_pointer())
        self.b.store(value, pointer, align=self._align())

    def _align(self) -> int:
        return 4 if isinstance(self.element, ir.FloatType) else 8

    def mul(self, x: Any, y: Any) -> Any:
        return self.b.fmul(x, y, flags=_CONTRACT)

    def mad(self, x: Any, y: Any, z: Any) -> Any:
        return self.b.fadd(self.b.fmul(x, y, flags=_CONTRACT), z, flags=_CONTRACT)

    def pick(self, x: Any, lanes: list[int | None], fill: float) -> Any:
        """Lane i of the result is lane ``lanes[i]`` of `x`, or `fill` where that is None."""
        return self._shuffle(x, ir.Constant(self.vector, [fill] * LANES), [LANES if i is None else i for i in lanes])

    def _shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.b.shuffle_vector(x, y, mask)

    def lane(self, x: Any, i: int) -> Any:
        return self.b.extract_element(x, ir.Constant(ir.IntType(32), i))

    def splat(self, x: Any) -> Any:
        one = self.b.insert_element(ir.Constant(self.vector, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
        return self._shuffle(one, one, [0] * LANES)

    def conj(self, x: Any) -> Any:
        return x

    def vanish(self, x: Any, y: Any) -> Any:
        """A vector that is zero in the lanes where `x` and `y` are neither inf nor NaN, and NaN in the others."""
        zero = ir.Constant(self.vector, [0.0] * LANES)
        return self.b.fadd(
            self.b.fmul(x, zero, flags=_CONTRACT), self.b.fmul(y, zero, flags=_CONTRACT), flags=_CONTRACT
        )

    def all_finite(self, x: Any, y: Any) -> Any:
        """Whether no lane of `x` and `y` is inf or NaN."""
        return self._all_lanes(self.b.fcmp_ordered("oeq", self.vanish(x, y), ir.Constant(self.vector, [0.0] * LANES)))

    def _all_lanes(self, flags: Any) -> Any:
        bits = self.b.bitcast(flags, ir.IntType(LANES))
        return self.b.icmp_unsigned("==", bits, ir.Constant(ir.IntType(LANES), 2**LANES - 1))


class _Complex(_Real):
    """The same on pairs (real parts, imaginary parts), stored interleaved."""

    def load(self, base: Any, index: Any) -> Any:
        base, index = self._as_real(base, index)
        low = super().load(base, index)
        high = super().load(base, self.b.add(index, ir.Constant(index.type, LANES)))
        return tuple(self._shuffle(low, high, list(range(k, 2 * LANES, 2))) for k in (0, 1))

    def store(self, value: Any, base: Any, index: Any) -> None:
        base, index = self._as_real(base, index)
        lanes = [i // 2 + LANES * (i % 2) for i in range(2 * LANES)]
        super().store(self._shuffle(*value, lanes[:LANES]), base, index)
        super().store(self._shuffle(*value, lanes[LANES:]), base, self.b.add(index, ir.Constant(index.type, LANES)))

    def _as_real(self, base: Any, index: Any) -> tuple[Any, Any]:
        return self.b.bitcast(base, self.element.as_pointer()), self.b.add(index, index)

    def mul(self, x: Any, y: Any) -> Any:
        real, imag = super().mul, super().mad
        negative = self.b.fneg(x[1])
        return imag(negative, y[1], real(x[0], y[0])), imag(x[1], y[0], real(x[0], y[1]))

    def mad(self, x: Any, y: Any, z: Any) -> Any:
        mad = super().mad
        negative = self.b.fneg(x[1])
        return mad(negative, y[1], mad(x[0], y[0], z[0])), mad(x[1], y[0], mad(x[0], y[1], z[1]))

    def pick(self, x: Any, lanes: list[int | None], fill: float) -> Any:
        pick = super().pick
        return pick(x[0], lanes, fill), pick(x[1], lanes, 0.0)

    def lane(self, x: Any, i: int) -> Any:
        lane = super().lane
        return lane(x[0], i), lane(x[1], i)

    def splat(self, x: Any) -> Any:
        splat = super().splat
        return splat(x[0]), splat(x[1])

    def conj(self, x: Any) -> Any:
        return x[0], self.b.fneg(x[1])

    def all_finite(self, x: Any, y: Any) -> Any:
        both = self.b.fadd(self.vanish(x[0], y[0]), self.vanish(x[1], y[1]))
        return self._all_lanes(self.b.fcmp_ordered("oeq", both, ir.Constant(self.vector, [0.0] * LANES)))


def _kind(builder: Any, context: Any, element: Any) -> Any:
    """The vector arithmetic for a NumPy scalar type."""
    if isinstance(element, types.Complex):
        return _Complex(builder, context.get_value_type(element.underlying_float))
    return _Real(builder, context.get_value_type(element))


def _to_scalar(context: Any, builder: Any, element: Any, value: Any) -> Any:
    if not isinstance(element, types.Complex):
        return value
    number = context.make_complex(builder, element)
    number.real, number.imag = value
    return number._getvalue()


def _from_scalar(context: Any, builder: Any, element: Any, value: Any) -> Any:
    if not isinstance(element, types.Complex):
        return value
    number = context.make_complex(builder, element, value)
    return number.real, number.imag


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


def _pointer(context: Any, builder: Any, array_type: Any, value: Any) -> Any:
    return context.make_array(array_type)(context, builder, value).data


def _ends(context: Any, builder: Any, v: Any, element: Any, fine: Any, maps: Any, reverse: bool) -> Any:
    """What every kernel step returns: whether the maps are finite, and the last one, the map of all eight steps."""
    last = 0 if reverse else LANES - 1
    ends = [_to_scalar(context, builder, element, v.lane(x, last)) for x in maps]
    return context.make_tuple(builder, _result(element), [fine, *ends])


def _result(element: Any) -> Any:
    return types.Tuple((types.boolean, element, element))


def _scan8(reverse: bool) -> Any:
    @intrinsic
    def scan8(typingctx: Any, a: Any, b: Any, h: Any, p: Any, carry: Any) -> Any:
        element = h.dtype

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, bt, ht = (_pointer(context, builder, t, x) for t, x in zip(signature.args[:3], args[:3], strict=True))
            v = _kind(builder, context, element)
            prod, local = _compose(v, v.load(at, args[3]), v.load(bt, args[3]), reverse)
            fine = v.all_finite(prod, local)
            states = v.mad(prod, v.splat(_from_scalar(context, builder, element, args[4])), local)
            with builder.if_then(fine, likely=True):
                v.store(states, ht, args[3])
            return _ends(context, builder, v, element, fine, (prod, local), reverse)

        return _result(element)(a, b, h, p, carry), codegen

    return scan8


def _reduce8(reverse: bool) -> Any:
    @intrinsic
    def reduce8(typingctx: Any, a: Any, b: Any, p: Any) -> Any:
        element = b.dtype

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, bt = (_pointer(context, builder, t, x) for t, x in zip(signature.args[:2], args[:2], strict=True))
            v = _kind(builder, context, element)
            maps = _compose(v, v.load(at, args[2]), v.load(bt, args[2]), reverse)
            return _ends(context, builder, v, element, v.all_finite(*maps), maps, reverse)

        return _result(element)(a, b, p), codegen

    return reduce8


def _back8(reverse: bool) -> Any:
    @intrinsic
    def back8(typingctx: Any, a: Any, h: Any, dh: Any, da: Any, db: Any, p: Any, carry: Any) -> Any:
        element = h.dtype

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointers = [_pointer(context, builder, t, x) for t, x in zip(signature.args[:5], args[:5], strict=True)]
            at, ht, dht, dat, dbt = pointers
            v = _kind(builder, context, element)
            one = ir.Constant(args[5].type, 1)
            # `reverse` is the direction of this scan over the adjoint: against the direction of the forward scan.
            ahead, behind = builder.add(args[5], one), builder.sub(args[5], one)
            after, before = (ahead, behind) if reverse else (behind, ahead)
            prod, local = _compose(v, v.conj(v.load(at, after)), v.load(dht, args[5]), reverse)
            fine = v.all_finite(prod, local)
            delta = v.mad(prod, v.splat(_from_scalar(context, builder, element, args[6])), local)
            slope = v.mul(v.conj(v.load(ht, before)), delta)
            with builder.if_then(fine, likely=True):
                v.store(delta, dbt, args[5])
                v.store(slope, dat, args[5])
            return _ends(context, builder, v, element, fine, (prod, local), reverse)

        return _result(element)(a, h, dh, da, db, p, carry), codegen

    return back8


if getattr(numba.config, "DISABLE_JIT", False):

    def _refuse(*args: Any) -> tuple[bool, int, int]:
        """Where kernels run as Python there are no vectors: every block is taken step by step."""
        return False, 0, 0

    scan8_forward = scan8_backward = reduce8_forward = reduce8_backward = back8_forward = back8_backward = _refuse
else:
    scan8_forward, scan8_backward = _scan8(False), _scan8(True)
    reduce8_forward, reduce8_backward = _reduce8(False), _reduce8(True)
    back8_forward, back8_backward = _back8(False), _back8(True)
