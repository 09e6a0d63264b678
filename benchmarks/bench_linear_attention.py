"""`linear_attention` against the machine's matrix products, its gradient against it, and both against a time loop.

Useful multiply-adds per token and head are those of the chunk form with its triangle halved, C (K + V) / 2 + 2 K V with
C = 64: a row's floor is the time in which a large `numpy.matmul` in the same run, on all threads, does as many.
"""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare

HEADS, TIME, WIDTH, CHUNK = 16, 4096, 64, 64
SIZE = 2048  # of the square matrices whose product says what the machine can do


def _inputs(length: int, decay: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((HEADS, length, WIDTH), dtype=np.float32) for _ in range(3))
    g = -rng.exponential(0.1, (HEADS, length) if decay == "scalar" else (HEADS, length, WIDTH)).astype(np.float32)
    return q, k, v, g


def _time_loop(q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray) -> np.ndarray:
    """One step after another, all heads at once."""
    S, o = np.zeros((HEADS, WIDTH, WIDTH), q.dtype), np.empty_like(v)
    decay = np.exp(g.reshape(*g.shape[:2], -1))[..., None]
    for t in range(q.shape[1]):
        S = decay[:, t] * S + k[:, t, :, None] * v[:, t, None, :]
        o[:, t] = (q[:, t, None, :] @ S)[:, 0]
    return o


def rows() -> Iterator[Row]:
    a, b = (np.random.default_rng(i).random((SIZE, SIZE), dtype=np.float32) for i in range(2))
    c = np.empty_like(a)
    share = HEADS * TIME * (CHUNK * WIDTH + 2 * WIDTH**2) / SIZE**3
    shape = f"({HEADS}, {TIME}, K = V = {WIDTH}) float32"
    for decay, part in (("scalar", 0.35), ("vector", 0.20)):
        small = _inputs(300, decay)
        check("linear_attention", linscan.linear_attention(*small)[0], _time_loop(*small), 5e-6)
        q, k, v, g = _inputs(TIME, decay)
        (o, S), pullback = linscan.linear_attention_vjp(q, k, v, g)
        candidates = (
            lambda a=a, b=b, c=c: np.matmul(a, b, out=c),
            lambda q=q, k=k, v=v, g=g: linscan.linear_attention(q, k, v, g),
            lambda p=pullback, o=o, S=S: p(o, S),
        )
        product, forward, backward = compare(*candidates)
        (loop,) = compare(lambda q=q, k=k, v=v, g=g: _time_loop(q, k, v, g), rounds=3)
        name = f"`linear_attention` {shape}, {decay} decay"
        yield Row(name, "useful products at the SGEMM rate", forward, share * product, 1 / part)
        yield Row(name, "NumPy time loop", forward, loop, 20, faster=True)
        yield Row(f"pullback of `linear_attention` {shape}, {decay} decay", "its forward", backward, forward, 3.5)
