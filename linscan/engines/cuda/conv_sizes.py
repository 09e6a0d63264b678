"""How long convolutions are cut into transforms on the GPU, and the roots of unity of those that fit one block."""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from linscan._arrays import accum_dtype
from linscan.engines.reference.fft_conv import block_size, fft_size

SMALLEST = 1024  # real samples of a transform in one block, at least
# By those samples: complex numbers a thread holds, and blocks a multiprocessor must have room for.
SHAPES = {1024: (16, 16), 2048: (16, 10), 4096: (16, 5), 8192: (16, 3), 16384: (16, 1), 32768: (32, 1)}
_WINDOW = ("samples", "taps", "start", "step", "skip", "blocks", "n", "begin", "count", "circular")
WINDOW = np.dtype([(name, "i8") for name in _WINDOW])  # the struct Window of conv.cuh


class Cut(NamedTuple):
    """Outputs cut into transforms of length n, each giving `step` of them from its index `skip` on."""

    n: int
    step: int
    skip: int
    blocks: int
    fused: bool  # each transform in one block


class Problem(NamedTuple):
    """What is to be computed, see `linscan.engines.reference.fft_conv`."""

    samples: int
    taps: int
    start: int
    length: int
    dtype: np.dtype
    circular: bool
    method: str


def cut(p: Problem, bins: int | None, most: int, xp: ModuleType) -> Cut:
    """The cut; `bins` is the length of the spectrum if one is given, `most` the bytes of shared memory of a block."""
    real = p.dtype.kind != "c"

    def fits(n: int) -> bool:
        return accum_dtype(p.dtype) == np.float32 and n in SHAPES and memory(n) <= most

    if p.circular or bins is not None:
        n = p.samples if bins is None or p.circular else 2 * (bins - 1) if real else bins
        return Cut(n, p.length, p.start, 1, fits(n))
    need = max(p.samples + p.taps - 1 - p.start, p.start + p.length, p.samples, p.taps)
    n = max(SMALLEST, 1 << (need - 1).bit_length())
    if fits(n) and (p.method == "fft" or n <= 4 * p.taps):
        return Cut(n, p.length, p.start, 1, True)
    if p.method == "fft":
        return Cut(fft_size(p.samples, p.taps, p.start, p.length, real, xp), p.length, p.start, 1, False)
    n = max(2 * SMALLEST, 1 << (4 * p.taps - 1).bit_length())
    fused = fits(n)
    if not fused:
        n, _ = block_size(p.taps, real)
    step = n - p.taps + 1
    step -= step % 2 if fused else 0  # so that samples can be read in pairs
    return Cut(n, step, n - step, -(-p.length // step), fused)


def memory(n: int) -> int:
    """Bytes of shared memory: complex numbers, one of padding after every 16."""
    return (n // 2 + n // 32) * 8


def passes(size: int) -> list[tuple[int, int]]:
    """The passes of fft.cuh over `size` points: (product of the radices before, radix)."""
    result, before = [], 1
    while before < size:
        result.append((before, min(16, size // before)))
        before *= result[-1][1]
    return result


def table(n: int, each: int) -> np.ndarray:
    """The roots of unity that conv_fft.cu wants, for `each` numbers a thread, rounded once."""
    threads = n // 2 // each
    turns = [np.arange(threads) / n, np.arange(each) * threads / n]
    turns += [np.arange(before) / (before * radix) for before, radix in passes(n // 2) if before > 1]
    return np.exp(-2j * np.pi * np.concatenate(turns)).astype(np.complex64)
