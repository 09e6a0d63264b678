"""How long convolutions are cut into transforms on the GPU, and the roots of unity of those that fit one block."""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from linscan._arrays import accum_dtype
from linscan.engines.reference.fft_conv import block_size, fft_size

SMALLEST = 1024  # real samples of a transform in one block, at least
# By those samples: complex numbers a thread holds, and blocks a multiprocessor must have room for.
SHAPES = {1024: (16, 20), 2048: (16, 16), 4096: (16, 6), 8192: (32, 4), 16384: (16, 2), 32768: (32, 1)}
_WINDOW = ("samples", "taps", "start", "step", "skip", "blocks", "n", "begin", "count", "circular")
# The same for the gradient of the kernel: complex numbers a thread holds.
BACK = {1024: 16, 2048: 16, 4096: 16, 8192: 32, 16384: 16}
# Where time is not the dense axis: transforms of neighbouring rows that a block has, and kernels, of the gradient.
LINES = {1024: 8, 2048: 8, 4096: 8, 8192: 4, 16384: 2, 32768: 1}
BACK_LINES = {1024: 4, 2048: 4, 4096: 4, 8192: 2, 16384: 1}
# By points of a column, and of a row: how many a block of conv_long.cu takes.
COLUMNS = {256: 16, 512: 16, 1024: 8, 2048: 8, 4096: 4}
PAIRS = {128: 8, 256: 8, 512: 4, 1024: 4, 2048: 4, 4096: 2}
FINE = 1024  # as in conv_long.cu
WINDOW = np.dtype([(name, "i8") for name in _WINDOW])  # the struct Window of conv.cuh


class Cut(NamedTuple):
    """Outputs cut into transforms of length n, each giving `step` of them from its index `skip` on."""

    n: int
    step: int
    skip: int
    blocks: int
    fused: bool  # each transform in one block
    split: tuple[int, int] | None = None  # points of a column and of a row, where three passes transform


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

    def split(n: int) -> tuple[int, int] | None:
        parts = square(n)
        return parts if accum_dtype(p.dtype) == np.float32 and parts and max(split_memory(*parts)) <= most else None

    if p.circular or bins is not None:
        n = p.samples if bins is None or p.circular else 2 * (bins - 1) if real else bins
        return Cut(n, p.length, p.start, 1, fits(n), split(n))
    need = max(p.samples + p.taps - 1 - p.start, p.start + p.length, p.samples, p.taps)
    n = max(SMALLEST, 1 << (need - 1).bit_length())
    if fits(n) and (p.method == "fft" or n <= 4 * p.taps):
        return Cut(n, p.length, p.start, 1, True)
    if p.method == "fft":
        if not split(n):
            n = fft_size(p.samples, p.taps, p.start, p.length, real, xp)
        return Cut(n, p.length, p.start, 1, False, split(n))
    n = max(2 * SMALLEST, 1 << (4 * p.taps - 1).bit_length())
    fused = fits(n)
    if not fused and not split(n):
        n, _ = block_size(p.taps, real)
    step = n - p.taps + 1
    step -= step % 2 if fused or split(n) else 0  # so that samples can be read in pairs
    return Cut(n, step, n - step, -(-p.length // step), fused, split(n))


def memory(n: int) -> int:
    """Bytes of shared memory: complex numbers, one of padding after every 16."""
    return (n // 2 + n // 32) * 8


def square(n: int) -> tuple[int, int] | None:
    """The points of a column and of a row, about as many, of a transform of n real numbers in three passes."""
    bits = max(n.bit_length() - 2, 0)
    first, second = 1 << (bits + 1) // 2, 1 << bits // 2
    return (first, second) if 2 * first * second == n and first in COLUMNS and second in PAIRS else None


def split_memory(first: int, second: int) -> tuple[int, int]:
    """Bytes of shared memory of a block of columns, and of rows."""
    pairs = PAIRS[second]
    return 8 * COLUMNS[first] * (first + first // 16), 16 * pairs * (second + second // 16 + 16 // pairs)


def split_table(first: int, second: int) -> np.ndarray:
    """The roots of unity that conv_long.cu wants, rounded once."""
    half = first * second
    turns = [np.arange(FINE) / (2 * half), np.arange(half // FINE) * (FINE / (2 * half))]
    turns += [
        np.arange(before) / (before * radix) for m in (first, second) for before, radix in passes(m) if before > 1
    ]
    return np.exp(-2j * np.pi * np.concatenate(turns)).astype(np.complex64)


def passes(size: int) -> list[tuple[int, int]]:
    """The passes of fft.cuh over `size` points: (product of the radices before, radix)."""
    result, before = [], 1
    while before < size:
        result.append((before, min(16, size // before)))
        before *= result[-1][1]
    return result


def passes_back(size: int) -> list[tuple[int, int]]:
    """The same on the way back: the last radix is the first."""
    result: list[tuple[int, int]] = []
    before, radix = 1, passes(size)[-1][1]
    while before < size:
        result.append((before, 16 if result else radix))
        before *= result[-1][1]
    return result


def table(n: int) -> np.ndarray:
    """The roots of unity that conv_fft.cu wants, rounded once."""
    turns = [np.arange(passes(n // 2)[-1][0] // 2 + 1) / n]
    both = [*passes(n // 2), *passes_back(n // 2)]
    turns += [np.arange(before) / (before * radix) for before, radix in both if before > 1]
    return np.exp(-2j * np.pi * np.concatenate(turns)).astype(np.complex64)
