"""The delta rule on the GPU, 16-bit, of the sizes its first implementations were measured on.

Bytes are those of q, k, v and o, beside which gates are small; with the pullback also those of do, dq, dk and dv.
Beside the times stands what the passes move, at the copy's speed: for the gradients also E, Y and the states of every
chunk, each written and read (see delta_chunk.cu).

For (8, 16, 4096, 128, 128) the floor is 0.18 ms of bytes forwards and 1.1 with the pullback; the products forwards
are 86 GFLOP. Predicted: a chunk is a chain of dependent products in each of eight warps, 8000 ticks, so 0.3 to 0.5 ms
for the 64 of a row; with the pullback 1.7 to 2.0. Measured first: 0.49 (0.60 gated) and 2.32 (2.72), for the
instructions around the products were twice those counted on: results that change sides rounded one by one, decays by
expf, a loop over all tiles of scores in every warp. Without these 0.44 (0.49) and 2.15 (2.43). What is left of the
pullback is two thirds in the gradients' kernel, 1.0 to 1.2 ms where its bytes need 0.55: one block fits a
multiprocessor, and waits for its tiles.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import cupy
import ml_dtypes
import numpy as np

import linscan
from benchmarks.gpu import Row, check, copy_speed, timed

# (batch, heads, T, K, V), gated or not, and the most milliseconds forwards and with the pullback
_SIZES = [
    ((8, 16, 4096, 128, 128), False, 1.2, 3.5),
    ((8, 16, 4096, 128, 128), True, 1.0, 3.5),
    ((8, 16, 4096, 64, 64), True, None, None),
    ((1, 16, 32768, 128, 128), True, None, None),
]
_OTHERS = (
    "`delta_rule`, a decay a channel",
    "gated `delta_rule`, a key to write along",
    "`dplr_attention`, a decay a channel",
)


def rows() -> Iterator[Row]:
    _check()
    yield from _by_chunks()
    yield from _by_slabs()


def _by_slabs() -> Iterator[Row]:
    """What goes through slabs of memory, see dplr_scores.cu; bytes are those of the arguments and the outputs."""
    shape = _SIZES[0][0]
    for kind in _OTHERS:
        args = _others(kind, shape)
        vjp = linscan.dplr_attention_vjp if "dplr" in kind else linscan.delta_rule_vjp
        once = sum(x.nbytes for x in args if x is not None) + args[2].nbytes
        for name, work, share in ((kind, _forward, 1), (f"{kind}, with pullback", _with_pullback, 2)):
            ms = timed([partial(work, args, vjp)], 15)
            yield Row(f"{name}, {shape}, bfloat16", share * once, ms)


def _by_chunks() -> Iterator[Row]:
    speed = copy_speed()
    for shape, gated, forward, both in _SIZES:
        args = _arguments(shape, gated)
        batch, heads, length, keys, values = shape
        once = 2 * batch * heads * length * (2 * keys + 2 * values)
        kept = 2 * batch * heads * length * (values + keys * values // 64)  # E, or Y, and its states
        moved = once + 6 * batch * heads * length * (2 * keys + values) + 4 * kept
        name = ("gated " if gated else "") + f"`delta_rule` {shape}, bfloat16"
        ms = timed([partial(_forward, args)], 15)
        yield Row(name, once, ms, limit=forward, peer=f"bytes {once / speed * 1e-6:.2f} ms")
        ms = timed([partial(_with_pullback, args)], 15)
        yield Row(f"{name}, with pullback", 2 * once, ms, limit=both, peer=f"bytes moved {moved / speed * 1e-6:.2f} ms")


def _forward(args: tuple[Any, ...], vjp: Any = linscan.delta_rule_vjp) -> Any:
    return (linscan.delta_rule if vjp is linscan.delta_rule_vjp else linscan.dplr_attention)(*args)


def _with_pullback(args: tuple[Any, ...], vjp: Any = linscan.delta_rule_vjp) -> Any:
    (o, _), pullback = vjp(*args)
    return pullback(o)


def _others(kind: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
    q, k, v, beta, g = _arguments(shape, True)
    decays = -0.2 * cupy.random.random(k.shape, dtype=np.float32)
    other = cupy.ascontiguousarray(k.astype(np.float32)[..., ::-1])
    if "dplr" in kind:
        return q, k, v, (-other).astype(k.dtype), (other / 2).astype(k.dtype), decays
    return (q, k, v, beta, g, None, other.astype(k.dtype)) if "key" in kind else (q, k, v, beta, decays)


def _arguments(shape: tuple[int, ...], gated: bool, dtype: Any = ml_dtypes.bfloat16) -> tuple[Any, ...]:
    batch, heads, length, keys, values = shape
    q, k, v = (cupy.random.standard_normal((batch, heads, length, n), dtype=np.float32) for n in (keys, keys, values))
    k /= cupy.linalg.norm(k, axis=-1, keepdims=True)
    beta = cupy.random.random((batch, heads, length), dtype=np.float32)
    g = -0.2 * cupy.random.random((batch, heads, length), dtype=np.float32) if gated else None
    q, k, v = (x.astype(dtype) for x in (q * np.float32(keys**-0.5), k, v))
    return q, k, v, beta, g


def _check() -> None:
    args = _arguments((1, 2, 300, 128, 128), True)
    with linscan.use_engine("reference"):
        want = linscan.delta_rule(*(x.get().astype(float) for x in args))[0]
    check("delta_rule", linscan.delta_rule(*args)[0], want, 4 * 2.0**-7)
