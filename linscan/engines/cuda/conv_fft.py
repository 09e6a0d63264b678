"""Long convolutions whose transforms fit one block each: the launch of conv_fft.cu."""

from functools import cache

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.conv_sizes import SHAPES, WINDOW, memory, table
from linscan.engines.cuda.layout import LAYOUT


@cache
def most_memory(device: int) -> int:
    """Bytes of shared memory a block may have."""
    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


@cache
def _table(n: int, device: int) -> Array:
    return cupy.asarray(table(n, SHAPES[n][0]))


@cache
def _code(n: int, dtype: str, in_pairs: bool, out_pairs: bool) -> cupy.RawKernel:
    each, blocks = SHAPES[n]
    macros = {"E": each, "THREADS": n // 2 // each, "BLOCKS": blocks, "IN_PAIRS": in_pairs, "OUT_PAIRS": out_pairs}
    return kernel("conv_fft.cu", "conv_fft", dtype, *((name, int(value)) for name, value in macros.items()))


class Launch:
    """A launch of conv_fft.cu on arrays of one shape and strides, prepared: one block to each task of the window."""

    def __init__(self, struct: np.ndarray, window: np.ndarray, u: Array, y: Array) -> None:
        n, tasks, device = int(window["n"][0]), int(window["count"][0]), y.data.device_id
        start, step, skip = (int(window[name][0]) for name in ("start", "step", "skip"))
        self.code = _code(
            n, y.dtype.name, _in_pairs(struct, 0, u, start - skip, step), _in_pairs(struct, 2, y, -skip, step)
        )
        if self.code.max_dynamic_shared_size_bytes < memory(n):
            self.code.max_dynamic_shared_size_bytes = memory(n)
        self.layout, self.table = struct.view(f"V{LAYOUT.itemsize}"), _table(n, device)
        self.threads, self.memory = n // 2 // SHAPES[n][0], memory(n)
        self.parts = []
        for first in range(0, tasks, 2**31 - 1):
            part = window.copy()
            part["begin"] = first
            self.parts.append((min(tasks - first, 2**31 - 1), part.view(f"V{WINDOW.itemsize}")))

    def run(self, u: Array, spectrum: Array, y: Array, mark: Array) -> None:
        """Fill `y`."""
        for grid, window in self.parts:
            args = (self.layout, window, u, spectrum, y, self.table, mark)
            self.code((grid,), (self.threads,), args, shared_mem=self.memory)


def _in_pairs(struct: np.ndarray, which: int, x: Array, first: int, step: int) -> bool:
    """Whether every task's first sample, at `first` and every `step` after, begins an aligned pair."""
    operand, blocks = struct["operand"][0, which], struct["length"][0] > step
    even = first % 2 == 0 and not (blocks and step % 2) and not (operand["batch"] % 2).any()
    return bool(even and operand["time"] == 1 and x.data.ptr % (2 * x.dtype.itemsize) == 0)
