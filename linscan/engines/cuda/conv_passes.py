"""Long convolutions by cuFFT: batches of lines that stay in the second-level cache, the passes around transforms."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from linscan._arrays import Array, accum_dtype, complex_dtype
from linscan.engines.cuda import cufft
from linscan.engines.cuda._load import by_value, kernel
from linscan.engines.cuda.conv_sizes import WINDOW, Cut
from linscan.engines.cuda.layout import operands

_BATCH = 1 << 24  # bytes of lines under way at once: they, cuFFT's scratch and the spectra share the cache
THREADS, _BLOCKS = 256, 2**30


def window_of(samples: int, taps: int, start: int, c: Cut, tasks: int, circular: bool) -> np.ndarray:
    window = np.zeros(1, WINDOW)
    window[0] = (samples, taps, start, c.step, c.skip, c.blocks, c.n, 0, tasks, circular)
    return window


class Passes(NamedTuple):
    """The kernels of conv_passes.cu for one storage type."""

    dtype: str
    clean: bool = True

    def prepared(self, name: str, grid: int, *structs: np.ndarray, turn: bool = False) -> Callable[..., None]:
        """A launch that wants the arguments after its structs."""
        code = kernel("conv_passes.cu", name, self.dtype, ("TURN", int(turn)), ("CLEAN", int(self.clean)))
        blocks, first = (min(max(grid, 1), _BLOCKS),), tuple(map(by_value, structs))
        return lambda *args: code(blocks, (THREADS,), (*first, *args))

    def over(self, name: str, struct: np.ndarray, which: int, window: np.ndarray, size: int) -> Callable[..., None]:
        """Gather or scatter `size` numbers of each task, whose strides are those of operand `which`: such a launch."""
        turn, count = int(struct["operand"][0, which]["time"]) != 1, int(window["count"][0])
        tile = 32 if turn else 4 * THREADS
        grid = -(-size // tile) * (-(-count // 32) if turn else count)
        return self.prepared(name, grid, struct, window, turn=turn)


def batches(window: np.ndarray, compute: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
    """Lines of each batch, and the window of one batch after the other."""
    n, tasks = int(window["n"][0]), int(window["count"][0])
    most = max(1, _BATCH // (n * compute.itemsize))
    each = -(-tasks // -(-tasks // most))
    for begin in range(0, tasks, each):
        part = window.copy()
        part["begin"], part["count"] = begin, min(each, tasks - begin)
        yield each, part


def by_cufft(struct: np.ndarray, window: np.ndarray, u: Array, spectrum: Array, y: Array, u_mark: Array) -> None:
    compute, n, step = accum_dtype(y.dtype), int(window["n"][0]), int(window["step"][0])
    passes, bins, x = Passes(y.dtype.name), cufft.bins(n, compute), None
    for each, part in batches(window, compute):
        x = cufft.lines(each, n, compute) if x is None else x
        pitch = np.int64(x.shape[1])
        grid = int(part["count"][0]) * -(-bins // (4 * THREADS))
        passes.over("gather", struct, 0, part, n)(u, x, pitch, u_mark)
        cufft.transform(x, n, False)
        passes.prepared("multiply", grid, struct, part)(x, spectrum, np.int64(bins))
        cufft.transform(x, n, True)
        passes.over("scatter", struct, 2, part, step)(x, pitch, y)


def spectrum_of(k: Array, n: int, k_mark: Array) -> Array | None:
    """The spectra of kernels, NaN and inf taken as zero and marked; None for views that do not fold."""
    compute, batch = accum_dtype(k.dtype), k.shape[:-1]
    key = (k.shape, k.strides, k.dtype, n)
    if key not in _gathers:
        if len(_gathers) > 10_000:
            _gathers.clear()
        _gathers[key] = _gather(k, n, k_mark)
    launches = _gathers[key]
    if launches is None:
        return None
    x = cufft.lines(k_mark.size, n, compute)
    for begin, end, launch in launches:
        lines = x[begin:end]
        launch(k, lines, np.int64(x.shape[1]), k_mark)
        cufft.transform(lines, n, False)
    return x.view(complex_dtype(compute)).reshape(*batch, cufft.bins(n, compute))


_gathers: dict[tuple[object, ...], list[tuple[int, int, Callable[..., None]]] | None] = {}


def _gather(k: Array, n: int, k_mark: Array) -> list[tuple[int, int, Callable[..., None]]] | None:
    """For each batch of kernels, the first, the one after the last, and the launch that takes them to lines."""
    batch = k.shape[:-1]
    struct = operands(batch, n, (k, k.ndim - 1), (None, None), (None, None), (k_mark.reshape(batch), None))
    if struct is None:
        return None
    window = window_of(k.shape[-1], k.shape[-1], 0, Cut(n, n, 0, 1, False), k_mark.size, False)
    passes, launches = Passes(k.dtype.name), []
    for each, part in batches(window, accum_dtype(k.dtype)):
        begin = int(part["begin"][0])
        launches.append((begin, begin + each, passes.over("gather", struct, 0, part, n)))
    return launches
