"""Convolutions on the GPU: one reading of the signal and one writing of the result would be the floor."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

import linscan
from benchmarks.gpu import Row, check, sets, timed

_LONG = {(64, 768, 1024): 0.35, (64, 768, 4096): 1.6, (16, 768, 16384): 2.8, (8, 768, 65536): 9, (1, 768, 1 << 20): 20}
_TOLERANCE = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2, "complex64": 1e-6, "float64": 1e-14}


def rows() -> Iterator[Row]:
    for dtype in _TOLERANCE:
        for shape, axis in [((8, 1536, 16384), -1), ((8, 1536, 16383), -1), ((8, 16384, 1536), -2)]:
            yield from _short(shape, axis, dtype, 0.85)
    for shape, limit in _LONG.items():
        yield _long(shape, limit)
    for shape, axis in [((64, 768, 1024), -1), ((64, 768, 4096), -1), ((64, 1024, 768), -2), ((2, 768, 65536), -1)]:
        yield from _with_gradients(shape, axis)
    yield from _boxes((16, 64, 224, 224))


def _noise(shape: tuple[int, ...], dtype: str) -> Any:
    x = cupy.random.standard_normal(shape, dtype=np.float32)
    if dtype == "bfloat16":
        import ml_dtypes

        return x.astype(ml_dtypes.bfloat16)
    return (x + 1j * x[::-1]).astype(dtype) if dtype == "complex64" else x.astype(dtype)


def _short(shape: tuple[int, ...], axis: int, dtype: str, target: float | None) -> Iterator[Row]:
    signals = [_noise(shape, dtype) for _ in range(2)]
    w = _noise((shape[-2 if axis == -1 else -1], 4), dtype)
    wide = np.complex128 if dtype == "complex64" else np.float64
    one = cupy.asnumpy(signals[0][:1]).astype(wide)
    check("short_conv", linscan.short_conv(signals[0][:1], w, axis=axis),
          linscan.short_conv(one, cupy.asnumpy(w).astype(wide), axis=axis), _TOLERANCE[dtype])  # fmt: skip
    work, nbytes = f"4 taps {dtype} {shape}, axis {axis}", signals[0].nbytes
    ms = timed([lambda u=u: linscan.short_conv(u, w, axis=axis) for u in signals])
    yield Row(f"`short_conv` {work}", 2 * nbytes, ms, target)
    back = linscan.short_conv_vjp(signals[0], w, axis=axis)[1]
    yield Row(f"`short_conv_vjp` pullback {work}", 3 * nbytes, timed([lambda u=u: back(u)[:2] for u in signals]))


def _long(shape: tuple[int, int, int], limit: float) -> Row:
    batch, channels, length = shape
    k = _noise((channels, length), "float32") / length**0.5
    parts = [cupy.fft.rfft(k[i : i + 64], 2 * length) for i in range(0, channels, 64)]
    spectrum = cupy.concatenate(parts).astype(np.complex64)
    del parts
    cupy.fft.config.get_plan_cache().clear()
    signals = [_noise(shape, "float32") for _ in range(min(2, sets(4 * batch * channels * length)))]
    few = cupy.asnumpy(signals[0][0, :3]).astype(np.float64), cupy.asnumpy(k[:3]).astype(np.float64)
    got = linscan.fft_conv(signals[0], k, spectrum=spectrum)[0, :3]
    check("fft_conv", got, np.asarray(linscan.fft_conv(*few, method="fft")), 3e-6)
    del got
    ms = timed([lambda u=u: linscan.fft_conv(u, k, spectrum=spectrum) for u in signals], 9)
    work = f"`fft_conv` float32 {shape}, spectrum given"
    return Row(work, 2 * signals[0].nbytes, ms, limit=limit, peer=_torch(signals[0], spectrum))


def _with_gradients(shape: tuple[int, int, int], axis: int) -> Iterator[Row]:
    """As in training: the kernel's spectrum is found anew at every call, and the pullback gives both gradients."""
    u, dy = (_noise(shape, "float32") for _ in range(2))
    k = _noise(shape[1:], "float32") / shape[axis] ** 0.5
    few = [cupy.asnumpy(x[..., :3] if axis == -2 else x[..., :3, :]).astype(np.float64) for x in (u, k, dy)]
    back, exact = (linscan.fft_conv_vjp(x, h, axis=axis, method="fft")[1] for x, h in ((u, k), few[:2]))
    for got, want in zip(back(dy)[:2], exact(few[2])[:2], strict=True):
        check("fft_conv_vjp", got[..., :3] if axis == -2 else got[..., :3, :], np.asarray(want), 3e-6)
    del got
    work = f"float32 {shape}, axis {axis}"
    yield Row(f"`fft_conv` {work}", 2 * u.nbytes, timed([lambda: linscan.fft_conv(u, k, axis=axis)], 9))
    yield Row(f"`fft_conv_vjp` pullback {work}", 3 * u.nbytes, timed([lambda: back(dy)[:2]], 9))


def _boxes(shape: tuple[int, int, int, int]) -> Iterator[Row]:
    """Images and kernels as large, as in S4ND, and all gradients."""
    u, dy = (_noise(shape, "float32") for _ in range(2))
    k = _noise(shape[1:], "float32")[None] / shape[-1]
    few = [cupy.asnumpy(x[:1, :2]).astype(np.float64) for x in (u, k, dy)]
    back, exact = linscan.fft_conv_nd_vjp(u, k)[1], linscan.fft_conv_nd_vjp(*few[:2])
    check("fft_conv_nd", linscan.fft_conv_nd(u, k)[:1, :2], exact[0], 3e-6)
    check("fft_conv_nd_vjp", back(dy)[0][:1, :2], exact[1](few[2])[0], 3e-6)
    work = f"float32 {shape}, axes -2, -1"
    ms, peer = timed([lambda: linscan.fft_conv_nd(u, k)], 9), _torch(u, cupy.fft.rfft2(k, [2 * n for n in shape[-2:]]))
    yield Row(f"`fft_conv_nd` {work}", 2 * u.nbytes, ms, peer=peer)
    yield Row(f"`fft_conv_nd_vjp` pullback {work}", 3 * u.nbytes, timed([lambda: back(dy)], 9))


def _torch(u: Any, spectrum: Any) -> str:
    """The same by PyTorch's transforms over one axis, or two for images, where it is installed."""
    if importlib.util.find_spec("torch") is None:
        return ""
    import torch

    cupy.get_default_memory_pool().free_all_blocks()
    sizes = u.shape[-2 if spectrum.ndim == 4 else -1 :]
    n, some, dim = [2 * s for s in sizes], tuple(map(slice, sizes)), tuple(range(-len(sizes), 0))
    u, spectrum = torch.as_tensor(u, device="cuda"), torch.as_tensor(spectrum, device="cuda")
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.fft.irfftn(torch.fft.rfftn(u, s=n, dim=dim) * spectrum, s=n, dim=dim)[(..., *some)].contiguous()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    torch.cuda.empty_cache()
    return f"torch rfft, product, irfft {np.median(times):.3g} ms"
