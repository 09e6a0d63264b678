"""Long convolutions whose transforms fit no block: the launches of conv_long.cu, a batch of tasks after the other."""

from functools import cache

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import kernel
from linscan.engines.cuda.capture import held
from linscan.engines.cuda.conv_fft import allow, in_pairs
from linscan.engines.cuda.conv_sizes import COLUMNS, PAIRS, WINDOW, split_memory, split_table
from linscan.engines.cuda.layout import LAYOUT

_BATCH = 1 << 28  # bytes of complex numbers under way at once
_EACH = 16  # points of a thread


@cache
def _table(first: int, second: int, device: int) -> Array:
    return cupy.asarray(split_table(first, second))


class Launches:
    """The launches for arrays of one shape and strides, prepared."""

    def __init__(self, struct: np.ndarray, window: np.ndarray, split: tuple[int, int], u: Array, y: Array) -> None:
        first, second = split
        start, step, skip = (int(window[name][0]) for name in ("start", "step", "skip"))
        macros = {"N1": first, "N2": second, "COLUMNS": COLUMNS[first], "PAIRS": PAIRS[second]}
        macros |= {"IN_PAIRS": in_pairs(struct, 0, u, start - skip, step)}
        macros |= {"OUT_PAIRS": in_pairs(struct, 2, y, -skip, step)}
        names = ("columns_in", "rows", "columns_out")
        self.codes = [
            kernel("conv_long.cu", name, y.dtype.name, *((k, int(v)) for k, v in macros.items())) for name in names
        ]
        self.memory = split_memory(first, second)
        for code, memory in zip(self.codes, (self.memory[0], self.memory[1], self.memory[0]), strict=True):
            allow(code, memory)
        self.grids = second // COLUMNS[first], first // 2 // PAIRS[second]  # blocks of a task
        self.threads = COLUMNS[first] * first // _EACH, 2 * PAIRS[second] * second // _EACH
        self.layout, self.table = struct.view(f"V{LAYOUT.itemsize}"), _table(first, second, y.data.device_id)
        tasks, self.points = int(window["count"][0]), first * second
        most = max(1, _BATCH // (8 * self.points))
        self.each = -(-tasks // -(-tasks // most))
        self.parts = []
        for begin in range(0, tasks, self.each):
            part = window.copy()
            part["begin"] = begin
            self.parts.append((min(self.each, tasks - begin), part.view(f"V{WINDOW.itemsize}")))

    def run(self, u: Array, spectrum: Array, y: Array, mark: Array) -> None:
        """Fill `y`."""
        work = held(cupy.empty(self.each * self.points, np.complex64))
        into, rows, out = self.codes
        for count, window in self.parts:
            columns, lines = ((count * blocks,) for blocks in self.grids)
            threads, row_threads = ((n,) for n in self.threads)
            memory, row_memory = self.memory
            into(columns, threads, (self.layout, window, u, work, self.table, mark), shared_mem=memory)
            rows(lines, row_threads, (self.layout, window, work, spectrum, self.table), shared_mem=row_memory)
            out(columns, threads, (self.layout, window, work, y, self.table), shared_mem=memory)
