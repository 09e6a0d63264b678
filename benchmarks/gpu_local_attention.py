"""`local_attention` and its pullback on the GPU, beside plain masked attention in CuPy and torch's fused attention.

The plain form makes all T² scores, by cuBLAS, and masks them; torch's has no window: it is causal over all keys.
"""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, timed, timed_eagerly

WINDOW = 512
# (batch, heads, T, K), dtype, and how many times faster than the plain form it must be
_SIZES = [
    ((2, 16, 8192, 64), "float16", 10.0),
    ((2, 16, 8192, 128), "bfloat16", 10.0),
    ((1, 8, 8192, 64), "float32", 10.0),
    ((1, 2, 65536, 64), "float16", None),
]


def plain(q: cupy.ndarray, k: cupy.ndarray, v: cupy.ndarray, mask: cupy.ndarray) -> cupy.ndarray:
    """One head after the other: all scores of all of them would not fit."""
    out = cupy.empty_like(v)
    for at in np.ndindex(q.shape[:-2]):
        s = cupy.matmul(q[at], k[at].T).astype(np.float32)
        s *= np.float32(1 / sqrt(q.shape[-1]))
        s = cupy.where(mask, s, np.float32(-np.inf))
        s -= s.max(axis=-1, keepdims=True)
        cupy.exp(s, out=s)
        s /= s.sum(axis=-1, keepdims=True)
        out[at] = cupy.matmul(s.astype(v.dtype), v[at])
    return out


def rows() -> Iterator[Row]:
    _check()
    for shape, dtype, target in _SIZES:
        q, k, v = (cupy.random.standard_normal(shape, dtype=np.float32).astype(dtype) for _ in range(3))
        *lead, length, width = shape
        work, beside, limit = f"{shape}, window {WINDOW}, {dtype}", "", None
        pairs = int(np.prod(lead)) * length * WINDOW
        ms = timed([lambda q=q, k=k, v=v: linscan.local_attention(q, k, v, WINDOW)])
        if length <= 8192:
            step = cupy.arange(length)
            lag = step[:, None] - step
            mask = (lag >= 0) & (lag < WINDOW)
            name = "float16" if dtype == "bfloat16" else dtype  # cuBLAS through CuPy has no bfloat16
            one = [x[:1, :2].astype(name) for x in (q, k, v)]
            other = timed_eagerly(lambda one=one, mask=mask: plain(*one, mask), 5) * int(np.prod(lead)) / 2
            limit = None if target is None else other / target
            beside = f"; plain CuPy {other:.4g} ms, {other / ms:.0f}x"
        flops = 4e-9 * pairs * width
        beside = f"{flops / ms:.1f} Tflop/s{beside}{_torch(shape, dtype)}"
        yield Row(f"`local_attention` {work}", 0, ms, limit=limit, peer=beside)
        o, pullback = linscan.local_attention_vjp(q, k, v, WINDOW)
        ms = timed([lambda o=o, pullback=pullback: pullback(o)], 10)
        yield Row(f"pullback, {work}", 0, ms, peer=f"{2.5 * flops / ms:.1f} Tflop/s")


def _torch(shape: tuple[int, ...], dtype: str) -> str:
    try:
        import torch
    except ImportError:
        return ""
    q, k, v = (torch.randn(*shape, device="cuda", dtype=getattr(torch, dtype)) for _ in range(3))
    attend: Any = torch.nn.functional.scaled_dot_product_attention
    times = []
    for _ in range(6):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        attend(q, k, v, is_causal=True)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return f"; torch, over all keys, {float(np.median(times[1:])):.4g} ms"


def _check() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 300, 64)) for _ in range(3))
    with linscan.use_engine("reference"):
        want = linscan.local_attention(q, k, v, 100)
    for dtype, tolerance in (("float16", 2e-3), ("float32", 2e-6)):
        got = linscan.local_attention(*(cupy.asarray(x.astype(dtype)) for x in (q, k, v)), 100)
        check("local_attention", got, want, tolerance)
