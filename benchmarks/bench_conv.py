"""`fft_conv` against SciPy's convolutions, and `short_conv` against the triad on the bytes it must move."""

from collections.abc import Iterator

import numpy as np
import scipy.signal

import linscan
from benchmarks.harness import Row, check, compare, triad


def _random(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.dtype(dtype).type)


def _fft_rows() -> Iterator[Row]:
    for dtype, target in [("float32", 2.0), ("float64", 1.5)]:
        u, k = _random((16, 64, 1 << 14), dtype), _random((64, 1 << 14), dtype)
        bound = 1e-5 if dtype == "float32" else 1e-13
        want = scipy.signal.fftconvolve(u[:2], k[None], axes=-1)[..., : 1 << 14]
        check("fft_conv", linscan.fft_conv(u[:2], k), want, bound)
        peer = lambda u=u, k=k: scipy.signal.fftconvolve(u, k[None], axes=-1)  # noqa: E731
        ours, theirs = compare(lambda u=u, k=k: linscan.fft_conv(u, k), peer)
        yield Row(
            f"`fft_conv` {dtype} (16, 64, 2¹⁴), kernel (64, 2¹⁴)", "fftconvolve", ours, theirs, target, faster=True
        )
        _, pullback = linscan.fft_conv_vjp(u, k)
        ours, forward = compare(lambda u=u, p=pullback: p(u), lambda u=u, k=k: linscan.fft_conv(u, k), rounds=5)
        yield Row(f"`fft_conv_vjp` pullback {dtype}, the same", "forward", ours, forward, 3.0)
    u, k = _random((1 << 20,)), _random((512,))
    check("fft_conv", linscan.fft_conv(u, k), scipy.signal.oaconvolve(u, k)[: 1 << 20], 1e-5)
    ours, theirs = compare(lambda: linscan.fft_conv(u, k), lambda: scipy.signal.oaconvolve(u, k), rounds=31)
    yield Row("`fft_conv` float32 2²⁰, 512 taps", "oaconvolve", ours, theirs, 1.2, faster=True)
    u, k = _random((64, 1 << 16)), _random((32,))
    want = scipy.signal.lfilter(k, np.ones(1, "f"), u)
    check("fft_conv", linscan.fft_conv(u, k), want, 1e-5)
    ours, theirs = compare(lambda: linscan.fft_conv(u, k), lambda: scipy.signal.lfilter(k, np.ones(1, "f"), u))
    yield Row("`fft_conv` float32 (64, 2¹⁶), 32 taps, direct", "lfilter", ours, theirs, 4.0, faster=True)


def _short_rows() -> Iterator[Row]:
    for shape, axis in [((8, 8192, 512), -2), ((8, 512, 8192), -1)]:
        u, channels = _random(shape), 512
        w, bias = _random((channels, 4)), _random((channels,))
        with linscan.use_engine("reference"):
            want = linscan.short_conv(u[:1], w, bias, axis=axis)
        check("short_conv", linscan.short_conv(u[:1], w, bias, axis=axis), want, 1e-6)
        # The triad reads two arrays and writes one: on two thirds of the elements it moves what the filter must.
        part = u.size * 2 // 3

        def floor(x: np.ndarray = u, n: int = part) -> None:
            triad(x.reshape(-1)[:n], x.reshape(-1)[-n:], np.empty(n, x.dtype))()

        ours, moved = compare(lambda u=u, w=w, b=bias, x=axis: linscan.short_conv(u, w, b, axis=x), floor)
        work, against = f"`short_conv` float32 {shape}, axis {axis}, 4 taps", "triad on its bytes, both allocating"
        yield Row(work, against, ours, moved, 1.3)


def rows() -> Iterator[Row]:
    yield from _fft_rows()
    yield from _short_rows()
