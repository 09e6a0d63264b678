"""`rnn_scan` and its pullback on the GPU, beside a loop of CuPy calls and, where one is installed, cuDNN's LSTM.

What takes the time is the chain of steps: it is given by step. cuDNN knows no heads, and multiplies the inputs too: it
runs beside the one head, with inputs as wide as the state.
"""

from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, timed, timed_eagerly

# cell, (batch, heads, T, d), dtype, and how many times faster than a loop of CuPy calls it must be
_SIZES = [
    ("lstm", (16, 12, 1024, 64), "float32", 30.0),
    ("lstm", (16, 12, 1024, 64), "float16", 30.0),
    ("lstm", (16, 1, 1024, 256), "float32", None),
    ("slstm", (16, 6, 1024, 128), "float32", None),
    ("para_gru", (8, 1, 8192, 256), "float32", None),
]


def rows() -> Iterator[Row]:
    _check()
    for name, shape, dtype, target in _SIZES:
        x, R = _arguments(name, shape, dtype)
        with linscan.use_engine("reference"):
            some = x[:, :, :64]
            loop = timed_eagerly(lambda some=some, R=R, name=name: linscan.rnn_scan(name, some, R), 5) * shape[2] / 64
        work = f"{name}, {shape}, {dtype}"
        ms = timed([lambda x=x, R=R, name=name: linscan.rnn_scan(name, x, R)])
        beside = f"{ms / shape[2] * 1e3:.2f} us a step; a loop of CuPy calls {loop:.4g} ms, {loop / ms:.0f}x"
        if name == "lstm" and shape[1] == 1:
            beside += _cudnn(shape)
        yield Row(f"`rnn_scan` {work}", 0, ms, limit=None if target is None else loop / target, peer=beside)
        (h, _), pullback = linscan.rnn_scan_vjp(name, x, R)
        ms = timed_eagerly(lambda h=h, pullback=pullback: pullback(h), 10)  # cuBLAS cannot be captured
        yield Row(f"pullback, {work}", 0, ms, peer=f"{ms / shape[2] * 1e3:.2f} us a step, the gradient of R included")


def _cudnn(shape: tuple[int, int, int, int]) -> str:
    try:
        import torch
    except ImportError:
        return ""
    batch, _, length, width = shape
    layer: Any = torch.nn.LSTM(width, width, device="cuda")
    x = torch.randn(length, batch, width, device="cuda")
    with torch.no_grad():
        times = []
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            layer(x)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
    return f"; cuDNN {float(np.median(times[2:])):.4g} ms, inputs' product included"


def _arguments(name: str, shape: tuple[int, int, int, int], dtype: str) -> tuple[cupy.ndarray, ...]:
    rng = np.random.default_rng(0)
    batch, heads, length, d = shape
    gates = 3 if name == "para_gru" else 4
    x = cupy.random.standard_normal((batch, heads, length, gates, d), dtype=np.float32).astype(dtype)
    R = rng.standard_normal((heads, gates, d, d)) / (2 * np.sqrt(d))
    R = rng.uniform(-0.5, 0.5, (heads, gates, d)) if name == "para_gru" else R
    return x, cupy.asarray(R.astype(dtype))


def _check() -> None:
    x, R = _arguments("lstm", (3, 2, 50, 64), "float32")
    with linscan.use_engine("reference"):
        want = linscan.rnn_scan("lstm", x.get().astype(float), R.get().astype(float))[0]
    check("rnn_scan", linscan.rnn_scan("lstm", x, R)[0], want, 2e-6)
