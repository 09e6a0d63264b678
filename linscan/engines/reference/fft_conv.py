"""Long convolutions in array code: tap by tap, by one FFT, or by overlap-save; the definition of `fft_conv`.

Every mode of the op is one window of a sum: ``y[t] = Σ_j k[j] u[start + t - j]``, u zero outside its range (or
periodic, if `circular`). Time is the last axis; the others of `u` and `k` broadcast to those of `y`, which is filled.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import scipy.fft

from linscan._arrays import Array, accum_dtype, grad_like, host_any, namespace


def transforms(xp: ModuleType) -> Any:
    """The FFT module of the library `xp`: unlike NumPy's, both plan for 5-smooth sizes and keep float32."""
    return scipy.fft if xp is np else importlib.import_module("cupyx.scipy.fft")


def fft_conv(
    u: Array, k: Array, y: Array, *, start: int, circular: bool, method: str, spectrum: Array | None, workers: Any
) -> None:
    xp, compute = namespace(y), accum_dtype(y.dtype)
    u, k = u.astype(compute, copy=False), k.astype(compute, copy=False)
    if method == "direct":
        y[...] = _direct(u, k, start, y.shape)
        return

    def convolve(u: Array, k: Array, spectrum: Array | None = None) -> Array:
        if method == "blocked":
            return _overlap_save(u, k, start, y.shape[-1])
        return _whole(u, k, start, y.shape[-1], circular, spectrum)

    with np.errstate(all="ignore"):
        result = convolve(u, k, spectrum)
        if host_any(~xp.isfinite(result.sum()), otherwise=True):
            result = mend(u, k, result, convolve)
        y[...] = result


def _direct(u: Array, k: Array, start: int, shape: tuple[int, ...]) -> Array:
    y = namespace(u).zeros(shape, u.dtype)
    for j in range(k.shape[-1]):
        first, last = overlap(shape[-1], start - j, u.shape[-1])
        y[..., first:last] += k[..., j : j + 1] * u[..., first + start - j : last + start - j]
    return y


def overlap(length: int, shift: int, samples: int) -> tuple[int, int]:
    """The outputs t in range(length) whose input t + shift lies in range(samples)."""
    first = min(max(0, -shift), length)
    return first, max(first, min(length, samples - shift))


def _whole(u: Array, k: Array, start: int, length: int, circular: bool, spectrum: Array | None) -> Array:
    fft = transforms(namespace(u))
    forward, back = (fft.fft, fft.ifft) if u.dtype.kind == "c" else (fft.rfft, fft.irfft)
    if circular:
        n = u.shape[-1]
    elif spectrum is not None:
        n = spectrum.shape[-1] if u.dtype.kind == "c" else 2 * (spectrum.shape[-1] - 1)
    else:
        n = fft_size(u.shape[-1], k.shape[-1], start, length, u.dtype.kind != "c", namespace(u))
    if spectrum is None:
        spectrum = forward(k, n)
    return back(forward(u, n) * spectrum, n)[..., start : start + length]


def fft_size(samples: int, taps: int, start: int, length: int, real: bool, xp: ModuleType = np) -> int:
    """How long a transform must be so that what wraps around stays outside the window; a size with small factors."""
    need = max(samples + taps - 1 - start, start + length, samples, taps)
    return transforms(xp).next_fast_len(need, real)


def _overlap_save(u: Array, k: Array, start: int, length: int) -> Array:
    """Blocks of outputs, each from the inputs it can see: the block's own and the K - 1 before it."""
    xp, fft = namespace(u), transforms(namespace(u))
    forward, back = (fft.fft, fft.ifft) if u.dtype.kind == "c" else (fft.rfft, fft.irfft)
    n, step = block_size(k.shape[-1], u.dtype.kind != "c")
    spectrum = forward(k, n)
    y = xp.empty((*np.broadcast_shapes(u.shape[:-1], k.shape[:-1]), length), u.dtype)
    for t in range(0, length, step):
        seen = xp.zeros((*u.shape[:-1], n), u.dtype)
        shift = t + start - (n - step)
        first, last = overlap(n, shift, u.shape[-1])
        seen[..., first:last] = u[..., first + shift : last + shift]
        # The first K - 1 results of a block are wrapped around; the rest are those of the plain sum.
        y[..., t : t + step] = back(forward(seen) * spectrum, n)[..., n - step :][..., : length - t]
    return y


def block_size(taps: int, real: bool = True) -> tuple[int, int]:
    """Transform length and new outputs per block: eight times the taps is near the least work per output."""
    n = scipy.fft.next_fast_len(max(8 * taps, 2048), real)
    return n, n - taps + 1


def mend(u: Array, k: Array, y: Array, convolve: Callable[[Array, Array], Array]) -> Array:
    """`y`, computed by FFT, as the plain sum would have it where inputs are NaN or inf: a transform smears them.

    The finite samples are convolved alone. Two more convolutions, exact in float64 because they count, tell for each
    output how many of its terms are not finite (`hit`) and the sum of their signs: all +inf, all -inf, or else NaN.
    """
    xp = namespace(u)
    bad_u, bad_k = ~xp.isfinite(u), ~xp.isfinite(k)

    def count(a: Array, b: Array) -> Array:
        return convolve(a.astype(np.float64), b.astype(np.float64))

    def sign(x: Array) -> Array:
        return xp.zeros(x.shape) if x.dtype.kind == "c" else xp.where(xp.isnan(x), 0, xp.sign(x))

    y = convolve(xp.where(bad_u, 0, u).astype(u.dtype), xp.where(bad_k, 0, k).astype(k.dtype))
    hit = count(bad_u, xp.ones_like(bad_k)) + count(~bad_u, bad_k)
    signs = count(sign(u) * bad_u, sign(k)) + count(sign(u) * ~bad_u, sign(k) * bad_k)
    infinite = xp.where(xp.abs(signs) > hit - 0.5, xp.copysign(np.inf, signs), np.nan)
    return xp.where(hit < 0.5, y, infinite).astype(y.dtype)


def fft_conv_pullback(u: Array, k: Array, dy: Array, *, start: int, circular: bool, method: str, workers: Any) -> Array:
    """``dk[j] = Σ_t dy[t] conj(u[start + t - j])``, summed over the axes in which `k` was broadcast."""
    xp, compute, taps = namespace(dy), accum_dtype(dy.dtype), k.shape[-1]
    u, dy = xp.conj(u.astype(compute, copy=False)), dy.astype(compute, copy=False)
    if method == "direct":
        dk = xp.zeros((*np.broadcast_shapes(u.shape[:-1], dy.shape[:-1]), taps), compute)
        for j in range(taps):
            first, last = overlap(dy.shape[-1], start - j, u.shape[-1])
            dk[..., j] = (dy[..., first:last] * u[..., first + start - j : last + start - j]).sum(-1)
    elif circular:
        dk = _whole(xp.roll(u[..., ::-1], 1, -1), dy, 0, taps, True, None)
    else:
        # With time reversed, v[s] = conj(u[S - 1 - s]), this is the window of dy * v that starts at S - 1 - start.
        v = xp.zeros((*u.shape[:-1], max(start + 1, u.shape[-1])), u.dtype)
        v[..., v.shape[-1] - u.shape[-1] :] = u[..., ::-1]
        dk = _whole(v, dy, v.shape[-1] - 1 - start, taps, False, None)
    return grad_like(dk, k)
