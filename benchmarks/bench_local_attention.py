"""`local_attention` against plain masked attention in NumPy, whose matrix products run on the BLAS's own threads."""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare


def _plain(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int) -> np.ndarray:
    """Head by head with the (T, T) matrix, in place: all heads at once would need gigabytes."""
    lag = np.arange(q.shape[-2])[:, None] - np.arange(q.shape[-2])
    hidden, scale, o = (lag < 0) | (lag >= window), q.dtype.type(q.shape[-1] ** -0.5), np.empty_like(v)
    for at in np.ndindex(q.shape[:-2]):
        s = q[at] @ k[at].T
        s *= scale
        s[hidden] = -np.inf
        s -= s.max(-1, keepdims=True)
        np.exp(s, out=s)
        s /= s.sum(-1, keepdims=True)
        np.matmul(s, v[at], out=o[at])
    return o


def rows() -> Iterator[Row]:
    for shape, window, dtype, target in [
        ((8, 4096, 64), 512, "float32", 10.0),
        ((8, 4096, 64), 512, "float64", 10.0),
        ((4, 8192, 128), 512, "float32", 10.0),
        ((8, 4096, 64), 64, "float32", 10.0),
    ]:
        q, k, v = np.random.default_rng(0).standard_normal((3, *shape)).astype(dtype)
        few = [x[:1, :1000] for x in (q, k, v)]
        bound = 1e-5 if dtype == "float32" else 1e-13
        check("local_attention", linscan.local_attention(*few, window), _plain(*few, window), bound)
        ours, plain = compare(
            lambda q=q, k=k, v=v, w=window: linscan.local_attention(q, k, v, w),
            lambda q=q, k=k, v=v, w=window: _plain(q, k, v, w),
            rounds=7,
        )
        work = f"`local_attention` {dtype} {shape}, window {window}"
        yield Row(work, "masked attention in NumPy", ours, plain, target, faster=True)
    q, k, v = np.random.default_rng(0).standard_normal((3, 8, 4096, 64), np.float32)
    o, pullback = linscan.local_attention_vjp(q, k, v, 512)
    ours, forward = compare(lambda: pullback(o), lambda: linscan.local_attention(q, k, v, 512), rounds=7)
    yield Row("`local_attention_vjp` pullback float32 (8, 4096, 64), window 512", "forward", ours, forward, 3.0)
