"""Matrix states in float32 on the GPU, against the multiply-adds the card makes, and a decoder's step against its copy.

Useful work is two multiply-adds for each number of the state and step, three for the delta rule: what is decayed, and
what sums over keys take beyond their products, is not counted. The card's rate is that of independent multiply-adds in
registers, measured in the same run. A step of a decoder reads and writes its state.
"""

from collections.abc import Iterator
from functools import cache, partial

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, timed

SHARE = 0.5
_RATE = r"""
extern "C" __global__ void rate(float* out, float x, int times) {
  float y[8];
  for (int i = 0; i < 8; i++) y[i] = threadIdx.x + i;
  for (int n = 0; n < times; n++)
#pragma unroll
    for (int k = 0; k < 16; k++)
#pragma unroll
      for (int i = 0; i < 8; i++) y[i] = y[i] * x + x;
  for (int i = 1; i < 8; i++) y[0] += y[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = y[0];
}
"""


def rows() -> Iterator[Row]:
    _check()
    usual, narrow, long = (8, 16, 4096, 128, 128), (8, 16, 4096, 64, 64), (1, 16, 32768, 128, 128)
    for name, shape, kind, count, precision in (
        ("linear_attention", usual, "scalar", 2, "exact"),
        ("linear_attention", usual, "scalar", 2, "tf32"),
        ("linear_attention", narrow, "scalar", 2, "exact"),
        ("linear_attention", narrow, "scalar", 2, "tf32"),
        ("linear_attention", long, "scalar", 2, "exact"),
        ("linear_attention", long, "scalar", 2, "tf32"),
        ("linear_attention", usual, "vector", 2, "exact"),
        ("delta_rule", usual, None, 3, "exact"),
        ("delta_rule", usual, "scalar", 3, "exact"),
        ("delta_rule", usual, None, 3, "tf32"),
        ("delta_rule", usual, "scalar", 3, "tf32"),
    ):
        args = _arguments(name, shape, kind)
        forward, run = (partial(getattr(linscan, f), *args, precision=precision) for f in (name, f"{name}_vjp"))
        flops = 2 * count * float(np.prod(shape))
        work = f"`{name}` {shape}, {kind or 'no'} decay, float32, {precision}"
        yield _row(work, flops, timed([forward], 10))
        (o, _), pullback = run()
        yield _row(f"pullback, {work}", 2 * flops, timed([lambda o=o, pullback=pullback: pullback(o)], 10))
        del o, pullback
    yield from _steps()


def _row(work: str, flops: float, ms: float) -> Row:
    """The share of the card's rate is the verdict, as the milliseconds it allows."""
    rate = flops / ms / 1e9
    limit = round(flops / (SHARE * fma_rate()) / 1e9, 2)
    return Row(work, 0, ms, limit=limit, peer=f"{rate:.1f} TFLOP/s, {rate / fma_rate():.2f} of {fma_rate():.1f}")


@cache
def fma_rate() -> float:
    """TFLOP/s of float32 multiply-adds."""
    blocks, threads, times = 132 * 16, 256, 2000
    out = cupy.empty(blocks * threads, np.float32)
    kernel = cupy.RawKernel(_RATE, "rate")
    ms = timed([lambda: kernel((blocks,), (threads,), (out, np.float32(0.5), np.int32(times)))], 10)
    return 2 * 128 * blocks * threads * times / ms / 1e9


def _steps() -> Iterator[Row]:
    lead, key, value = (64, 16), 128, 128
    for name, dtype in (("linear_attention", "float32"), ("delta_rule", "float32"), ("dplr_attention", "float32")):
        given = _arguments(name, (*lead, 1, key, value), "scalar")
        q, k, v, *rest = (x[..., 0, :] if x.ndim == 4 else x[..., 0] for x in given)
        S = cupy.random.standard_normal((*lead, key, value), dtype=np.float32)
        step = getattr(linscan, f"{name}_step")
        args = q, k, v, *rest[:-1], S, rest[-1]
        ms = timed([lambda step=step, args=args: step(*args)] * 4)
        yield Row(f"`{name}_step` {(*lead, key, value)}, {dtype}", 2 * S.nbytes, ms, target=0.75)


def _arguments(name: str, shape: tuple[int, ...], kind: str | None) -> tuple[cupy.ndarray | None, ...]:
    *lead, length, key, value = shape
    q, k, v, b = (cupy.random.standard_normal((*lead, length, n), dtype=np.float32) for n in (key, key, value, key))
    k /= cupy.linalg.norm(k, axis=-1, keepdims=True)
    g = -cupy.random.random((*lead, length), dtype=np.float32) / 10
    if kind == "vector":
        g = cupy.repeat(g[..., None], key, axis=-1)
    g = None if kind is None else g
    if name == "linear_attention":
        return q, k, v, g
    if name == "delta_rule":
        return q, k, v, cupy.random.random((*lead, length), dtype=np.float32), g
    return q, k, v, -k, b / 16, g


def _check() -> None:
    for name, kind in (("linear_attention", "vector"), ("delta_rule", "scalar")):
        args = _arguments(name, (1, 128, 200, 128, 128), kind)
        with linscan.use_engine("reference"):
            want = getattr(linscan, name)(*(x if x is None else x.get().astype(float) for x in args))[0]
        check(name, getattr(linscan, name)(*args)[0], want, 5e-6)
