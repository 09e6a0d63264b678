"""Long convolutions whose transforms fit no block: the launches of conv_long.cu, a batch of tasks after the other.

Where time is not the dense axis, rows are gathered into lines first, and scattered from lines at the end.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array
from linscan.engines.cuda._load import by_value, kernel
from linscan.engines.cuda.conv_fft import allow, in_pairs
from linscan.engines.cuda.conv_passes import Passes
from linscan.engines.cuda.conv_sizes import COLUMNS, PAIRS, split_memory, split_table
from linscan.engines.cuda.layout import LAYOUT

_BATCH = 1 << 28  # bytes of complex numbers under way at once
_EACH = 16  # points of a thread


@cache
def _table(first: int, second: int, device: int) -> Array:
    return cupy.asarray(split_table(first, second))


class Launches:
    """The launches for arrays of one shape and strides, prepared."""

    def __init__(self, struct: np.ndarray, window: np.ndarray, split: tuple[int, int], u: Array, y: Array) -> None:
        self.split, self.points, self.device = split, split[0] * split[1], y.data.device_id
        tasks, samples, start, step, skip = (
            int(window[name][0]) for name in ("count", "samples", "start", "step", "skip")
        )
        most = max(1, _BATCH // (8 * self.points))
        self.each = -(-tasks // -(-tasks // most))
        self.dense = all(struct["operand"][0, i]["time"] == 1 for i in (0, 2))
        self.read = min(samples, 2 * self.points) if tasks == struct["rows"][0] and start == skip else 2 * self.points
        self.step = step + step % 2  # of lines: pairs stay aligned
        passes, dtype = Passes(y.dtype.name), y.dtype.name
        in_twos, out_twos = in_pairs(struct, 0, u, start - skip, step), in_pairs(struct, 2, y, -skip, step)
        if not self.dense:
            dtype, in_twos, out_twos = "float32", self.read % 2 == 0, skip % 2 == 0
        self.codes = [self._code(name, dtype, in_twos, out_twos) for name in ("columns_in", "rows", "columns_out")]
        self.table = _table(*split, self.device)
        self.parts: list[tuple[Callable[..., None], ...]] = []
        for begin in range(0, tasks, self.each):
            part, count = window.copy(), min(self.each, tasks - begin)
            part["begin"], part["count"] = begin, count
            ends = (struct, part), (struct, part)
            if not self.dense:
                ends = self._lines(part, (0, self.read)), self._lines(part, (skip, self.step))
            launches: tuple[Callable[..., None], ...] = (
                self._launch(0, count, *ends[0]),
                self._launch(1, count, struct, part),
                self._launch(2, count, *ends[1]),
            )
            if not self.dense:
                before, after = part.copy(), part.copy()
                before["n"], after["skip"] = self.read, 0
                launches += (
                    passes.over("gather", struct, 0, before, self.read),
                    passes.over("scatter", struct, 2, after, step),
                )
            self.parts.append(launches)

    def _code(self, name: str, dtype: str, in_twos: bool, out_twos: bool) -> Any:
        first, second = self.split
        macros = {"N1": first, "N2": second, "COLUMNS": COLUMNS[first], "PAIRS": PAIRS[second]}
        macros |= {"IN_PAIRS": in_twos, "OUT_PAIRS": out_twos}
        code = kernel("conv_long.cu", name, dtype, *((key, int(value)) for key, value in macros.items()))
        allow(code, split_memory(first, second)[name == "rows"])
        return code

    def _lines(self, part: np.ndarray, window: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Struct and window of tasks that are lines of memory: numbers from index `skip` on, so many of them."""
        struct, lines, (skip, size) = np.zeros(1, LAYOUT), part.copy(), window
        one, count = struct[0], int(part["count"][0])
        one["length"], one["rows"], one["ndim"], one["size"][0] = size, count, 1, count
        for i in (0, 2):
            one["operand"][i]["time"], one["operand"][i]["batch"][0] = 1, size
        for name, value in {
            "samples": size,
            "start": skip,
            "step": size,
            "skip": skip,
            "blocks": 1,
            "begin": 0,
        }.items():
            lines[name] = value
        return struct, lines

    def _launch(self, which: int, count: int, struct: np.ndarray, window: np.ndarray) -> Callable[..., None]:
        (first, second), memory = self.split, split_memory(*self.split)[which == 1]
        blocks = first // 2 // PAIRS[second] if which == 1 else second // COLUMNS[first]
        points = 2 * PAIRS[second] * second if which == 1 else COLUMNS[first] * first
        code, grid, threads = self.codes[which], (count * blocks,), (points // _EACH,)
        structs = by_value(struct), by_value(window)
        return lambda *args: code(grid, threads, (*structs, *args), shared_mem=memory)

    def run(self, u: Array, spectrum: Array, y: Array, mark: Array) -> None:
        """Fill `y`."""
        work = cupy.empty(self.each * self.points, np.complex64)
        if not self.dense:
            lines = cupy.empty(self.each * max(self.read, self.step), np.float32)
        for into, rows, out, *ends in self.parts:
            if ends:
                ends[0](u, lines, np.int64(self.read), mark)
            into(lines if ends else u, work, self.table, mark)
            rows(work, spectrum, self.table)
            out(work, lines if ends else y, self.table)
            if ends:
                ends[1](lines, np.int64(self.step), y)
