"""Long convolutions whose transforms fit one block each: the launch of conv_fft.cu."""

from functools import cache

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import by_value, kernel
from linscan.engines.cuda.conv_sizes import LINES, SHAPES, memory, table


@cache
def most_memory(device: int) -> int:
    """Bytes of shared memory a block may have."""
    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


@cache
def table_of(n: int, device: int) -> Array:
    return cupy.asarray(table(n))


@cache
def _code(n: int, dtype: str, lines: int, pairs: tuple[bool, bool], halves: tuple[bool, bool]) -> cupy.RawKernel:
    each, blocks = SHAPES[n]
    blocks = blocks if lines == 1 else max(1, 1024 * 16 // (each * lines * (n // 2 // each)))
    macros = {"EACH": each, "THREADS": n // 2 // each, "BLOCKS": blocks, "IN_PAIRS": pairs[0], "OUT_PAIRS": pairs[1]}
    macros |= {"LINES": lines, "IN_HALF": halves[0], "OUT_HALF": halves[1]}
    return kernel("conv_fft.cu", "conv_fft", dtype, *((name, int(value)) for name, value in macros.items()))


def allow(code: cupy.RawKernel, size: int) -> None:
    """Let blocks of `code` have `size` bytes of shared memory."""
    if code.max_dynamic_shared_size_bytes < size:
        code.max_dynamic_shared_size_bytes = size


class Launch:
    """A launch of conv_fft.cu on arrays of one shape and strides, prepared."""

    def __init__(self, struct: np.ndarray, window: np.ndarray, u: Array, y: Array) -> None:
        n, tasks, device = int(window["n"][0]), int(window["count"][0]), y.data.device_id
        start, step, skip = (int(window[name][0]) for name in ("start", "step", "skip"))
        pairs = in_pairs(struct, 0, u, start - skip, step), in_pairs(struct, 2, y, -skip, step)
        samples, length, whole = int(window["samples"][0]), int(struct["length"][0]), window["blocks"][0] == 1
        halves = whole and start == skip and 2 * samples <= n, whole and skip == 0 and 2 * length <= n
        lines = side_by_side(LINES[n], struct, (0, 2), memory(n), device)
        self.code = _code(n, y.dtype.name, lines, pairs, halves)
        self.memory, self.threads = lines * memory(n), lines * (n // 2 // SHAPES[n][0])
        allow(self.code, self.memory)
        self.layout, self.table = by_value(struct), table_of(n, device)
        self.parts = []
        for first in range(0, tasks, 2**30):
            part = window.copy()
            part["begin"], part["count"] = first, min(tasks - first, 2**30)
            self.parts.append((-(-int(part["count"][0]) // lines), by_value(part)))

    def run(self, u: Array, spectrum: Array, y: Array, mark: Array) -> None:
        """Fill `y`."""
        for grid, window in self.parts:
            args = (self.layout, window, u, spectrum, y, self.table, mark)
            self.code((grid,), (self.threads,), args, shared_mem=self.memory)


def side_by_side(most: int, struct: np.ndarray, operands: tuple[int, int], size: int, device: int) -> int:
    """How many transforms, of `size` bytes each, a block should have: one where time is dense in both operands."""
    dense = all(struct["operand"][0, i]["time"] == 1 for i in operands)
    return 1 if dense or struct["rows"][0] < most or most * size > most_memory(device) else most


def in_pairs(struct: np.ndarray, which: int, x: Array, first: int, step: int) -> bool:
    """Whether every task's first sample, at `first` and every `step` after, begins an aligned pair."""
    operand, blocks = struct["operand"][0, which], struct["length"][0] > step
    even = first % 2 == 0 and not (blocks and step % 2) and not (operand["batch"] % 2).any()
    return bool(even and operand["time"] == 1 and x.data.ptr % (2 * x.dtype.itemsize) == 0)
