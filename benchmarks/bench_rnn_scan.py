"""`rnn_scan` and its pullback against a step loop in NumPy, which is what one writes without a framework."""

from collections.abc import Iterator

import numpy as np

import linscan
from benchmarks.harness import Row, check, compare


def lstm_loop(x: np.ndarray, R: np.ndarray) -> np.ndarray:
    """An LSTM over (B, H, T, 4, d), one matrix product per step and head, the rest vectorised over all rows."""
    B, H, T, G, d = x.shape
    matrix = R.reshape(H, G * d, d).swapaxes(1, 2)
    h, c = (np.zeros((H, B, d), x.dtype) for _ in range(2))
    out = np.empty((B, H, T, d), x.dtype)
    for t in range(T):
        g = x[:, :, t].swapaxes(0, 1) + (h @ matrix).reshape(H, B, G, d)
        i, f, o = (1 / (1 + np.exp(-g[:, :, k])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(g[:, :, 2])
        h = o * np.tanh(c)
        out[:, :, t] = h.swapaxes(0, 1)
    return out


def inputs(B: int, H: int, T: int, d: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, H, T, 4, d)).astype(dtype)
    return x, (rng.standard_normal((H, 4, d, d)) / (2 * np.sqrt(d))).astype(dtype)


def rows() -> Iterator[Row]:
    cases = [
        ((16, 12, 128, 64), "float32", 2.0),
        ((16, 3, 64, 256), "float32", 1.0),
        ((1, 4, 1024, 64), "float32", 4.0),
        ((1, 1, 1024, 32), "float64", 10.0),
    ]
    for shape, dtype, target in cases:
        x, R = inputs(*shape, dtype)
        check("rnn_scan", linscan.rnn_scan("lstm", x[:, :, :30], R)[0], lstm_loop(x[:, :, :30], R), 1e-5)
        ours, other = compare(lambda x=x, R=R: linscan.rnn_scan("lstm", x, R), lambda x=x, R=R: lstm_loop(x, R))
        work = f"`rnn_scan` LSTM {dtype}, B, H, T, d = {shape}"
        yield Row(work, "NumPy, a loop over time", ours, other, target, faster=True)
    x, R = inputs(16, 12, 128, 64, "float32")
    (h, _), pullback = linscan.rnn_scan_vjp("lstm", x, R)
    with linscan.use_engine("reference"):
        _, plain = linscan.rnn_scan_vjp("lstm", x, R)
    check("rnn_scan_vjp", pullback(h, None)[1], plain(h, None)[1], 1e-4)
    ours, other = compare(lambda: pullback(h, None), lambda: plain(h, None))
    work = "`rnn_scan_vjp` pullback, LSTM float32, B, H, T, d = (16, 12, 128, 64)"
    yield Row(work, "NumPy, a loop over time", ours, other, 2.0, faster=True)
