"""16-bit `linear_attention` and its pullback on the GPU, of the sizes the fastest Triton kernels were measured in.

Bytes are those of q, k, v, g and o, and of their gradients, each once. The matrix products in it, which the last column
counts, would take a fifth of the time at most at the rate of the card's tensor cores.
"""

from collections.abc import Callable, Iterator

import cupy
import ml_dtypes
import numpy as np

import linscan
from benchmarks.gpu import Row, check, timed

_CHUNK = 64
# What decays, (batch, heads, heads of q and k, T, K, V), and the most milliseconds of the forward, and of both ways.
_SIZES = [
    ("a step", (8, 16, 16, 4096, 128, 128), 0.50, 2.2),
    ("a channel", (8, 16, 16, 4096, 128, 128), 1.3, 5.5),
    ("a step", (8, 32, 1, 4096, 128, 64), 0.8, 3.2),
    ("a step", (1, 16, 16, 32768, 128, 128), None, None),
    ("a channel", (1, 16, 16, 32768, 128, 128), None, None),
]


def rows() -> Iterator[Row]:
    _check()
    batched: dict[str, tuple[float, float]] = {}
    for kind, shape, forward, both in _SIZES:
        args = _arguments(kind, shape)
        o, S = linscan.linear_attention(*args)
        nbytes = sum(x.nbytes for x in (*args, o))

        def there_and_back(args: tuple[cupy.ndarray, ...] = args, o: cupy.ndarray = o, S: cupy.ndarray = S) -> object:
            return linscan.linear_attention_vjp(*args)[1](o, S)

        limits = (forward, both) if forward else tuple(1.3 * ms for ms in batched[kind])
        calls: list[Callable[[], object]] = [lambda args=args: linscan.linear_attention(*args), there_and_back]
        times = [timed([call]) for call in calls]
        batched.setdefault(kind, (times[0], times[1]))
        batch, heads, _, length, keys, values = shape
        flops = 2 * batch * heads * length * (2 * keys * values + _CHUNK * (keys + values) / 2)
        work = f"bfloat16, {batch} x {heads} heads, T = {length}, K = {keys}, V = {values}, a decay {kind}"
        rate = [f"{share * flops / ms / 1e9:.0f} TFLOP/s" for share, ms in zip((1, 3.5), times, strict=True)]
        yield Row(f"`linear_attention` {work}", nbytes, times[0], limit=limits[0], peer=rate[0])
        yield Row(f"the same and its pullback, {work}", 3 * nbytes, times[1], limit=limits[1], peer=rate[1])


def _arguments(kind: str, shape: tuple[int, ...]) -> tuple[cupy.ndarray, ...]:
    batch, heads, shared, length, keys, values = shape

    def normal(*shape: int) -> cupy.ndarray:
        return cupy.random.standard_normal(shape, dtype=np.float32).astype(ml_dtypes.bfloat16)

    q, k, v = (normal(batch, n, length, w) for n, w in ((shared, keys), (shared, keys), (heads, values)))
    decays = (batch, heads, length, keys) if kind == "a channel" else (batch, heads, length)
    return q, k, v, -0.2 * cupy.random.random(decays, dtype=np.float32)


def _check() -> None:
    for kind in ("a step", "a channel"):
        args = _arguments(kind, (1, 2, 2, 300, 128, 128))
        with linscan.use_engine("reference"):
            want = linscan.linear_attention(*(x.get().astype(float) for x in args))[0]
        check("linear_attention", linscan.linear_attention(*args)[0], want, 2e-2)
