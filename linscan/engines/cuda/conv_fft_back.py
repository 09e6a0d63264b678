"""Gradients of long kernels whose transforms fit one block each: the launches of conv_fft_back.cu."""

from typing import NamedTuple

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.conv_fft import allow, in_pairs, most_memory, side_by_side, table_of
from linscan.engines.cuda.conv_sizes import BACK, BACK_LINES, SMALLEST, memory
from linscan.engines.cuda.layout import LAYOUT, operands

_BLOCKS = 2048  # that keep a card busy: the rows of few kernels are shared out to more blocks


class Sums(NamedTuple):
    """``dk[j] = Σ_t dy[t] u[start + t - j]``, j < taps, for `kernels` kernels, each of as many neighbouring rows."""

    samples: int
    taps: int
    start: int
    length: int
    kernels: int


def correlated(u: Array, dy: Array, sums: Sums) -> Array | None:
    """The gradients of all kernels, in float32; None, with nothing done, where transforms are too long."""
    samples, taps, start, length, kernels = sums
    n = max(SMALLEST, 1 << (max(samples + taps - 1 - start, start + length, samples, taps) - 1).bit_length())
    device, last = dy.data.device_id, dy.ndim - 1
    if n not in BACK or memory(n) > most_memory(device):
        return None
    struct = operands(dy.shape[:-1], n, (u, last), (dy, last))
    if struct is None:
        return None
    pairs = in_pairs(struct, 0, u, 0, n) and in_pairs(struct, 1, dy, -start, n)
    threads, share = n // 2 // BACK[n], int(struct["rows"][0]) // kernels
    lines = side_by_side(BACK_LINES[n], struct, (0, 1), memory(n), device)
    lines = lines if lines <= kernels else 1
    macros = {"EACH": BACK[n], "THREADS": threads, "IN_PAIRS": pairs}
    macros |= {"IN_HALF": max(samples, start + length) <= n // 2}
    named = tuple((name, int(value)) for name, value in macros.items())
    code = kernel("conv_fft_back.cu", "correlate", dy.dtype.name, *named, ("LINES", lines))
    last_code = kernel("conv_fft_back.cu", "gather_up", dy.dtype.name, *named, ("LINES", 1))
    allow(code, lines * memory(n))
    allow(last_code, memory(n))
    parts = min(share, -(-_BLOCKS // kernels))
    parts = -(-share // -(-share // parts))  # none without a row
    found = cupy.empty(kernels * parts * (n // 2), np.complex64)
    dk, table = cupy.empty((kernels, taps), np.float32), table_of(n, device)
    layout = struct.view(f"V{LAYOUT.itemsize}")
    numbers, blocks = (samples, length, start, share, parts, kernels), -(-kernels // lines) * parts
    code((blocks,), (lines * threads,), (layout, u, dy, found, table, *numbers), shared_mem=lines * memory(n))
    last_code((kernels,), (threads,), (found, dk, table, taps, parts), shared_mem=memory(n))
    return dk
