"""``python -m benchmarks.gpu [op ...]``: the GPU table, against the bytes an op must move and the card's own copy.

Device events around replays of a captured graph, in which several sets of arrays take turns, so that neither the host's
launches nor the cache are in the figure; medians. The copy is measured in the same run, on 2 GiB, both ways counted.
"""

import argparse
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cupy
import numpy as np

import linscan
from benchmarks.harness import DOCUMENT, write_section

HEADER = "| work | bytes | time | GB/s | of copy | must reach | met | beside it |\n|---|---|---|---|---|---|---|---|"


@dataclass
class Row:
    """One measurement: `target` is a share of the copy, GB/s if above 10, or, with `limit`, milliseconds at most.

    `bytes` is 0 where the time is not one of moving them.
    """

    work: str
    bytes: int
    ms: float
    target: float | None = None
    limit: float | None = None
    peer: str = ""

    def markdown(self, copy: float) -> str:
        speed = self.bytes / self.ms / 1e6
        if self.limit is not None:
            goal, met = f"≤ {self.limit:g} ms", self.ms <= self.limit
        elif self.target is None:
            goal, met = "–", None
        elif self.target > 10:
            goal, met = f"≥ {self.target:g} GB/s", speed >= self.target
        else:
            goal, met = f"≥ {self.target:g}", speed / copy >= self.target
        verdict = {None: "–", True: "yes", False: "**no**"}[met]
        moved = [size(self.bytes), f"{self.ms:.4g} ms", f"{speed:.0f}", f"{speed / copy:.3f}"]
        cells = [self.work, *(moved if self.bytes else ["–", f"{self.ms:.4g} ms", "–", "–"]), goal, verdict]
        return "| " + " | ".join([*cells, self.peer]) + " |"


def size(n: int) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"


def timed(calls: Sequence[Callable[[], object]], repeats: int = 25) -> float:
    """Median milliseconds of one of `calls`, which take turns in one captured graph.

    In a memory pool that goes with the graph: of CuPy's own, what a graph uses is kept for good.
    """
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        kept = [call() for call in calls]  # compiles, and fills the pool
        del kept
        stream.synchronize()
        stream.begin_capture()
        kept = [call() for call in calls]
        graph = stream.end_capture()
        for _ in range(3):
            graph.launch(stream)
        events = [(cupy.cuda.Event(), cupy.cuda.Event()) for _ in range(repeats)]
        for start, end in events:
            start.record(stream)
            graph.launch(stream)
            end.record(stream)
        stream.synchronize()
        del kept, graph
    pool.free_all_blocks()
    return float(np.median([cupy.cuda.get_elapsed_time(*pair) for pair in events])) / len(calls)


def timed_eagerly(call: Callable[[], object], repeats: int = 25) -> float:
    """Median milliseconds of a call that cannot be captured, on the default stream."""
    for _ in range(3):
        call()
    events = [(cupy.cuda.Event(), cupy.cuda.Event()) for _ in range(repeats)]
    for start, end in events:
        start.record()
        call()
        end.record()
    cupy.cuda.Device().synchronize()
    return float(np.median([cupy.cuda.get_elapsed_time(*pair) for pair in events]))


def sets(nbytes: int) -> int:
    """How many sets of arrays must take turns for none to be found in the cache."""
    return int(max(1, min(6, 4 * 50e6 // nbytes + 1)))


def copy_speed() -> float:
    """GB/s of a device-to-device copy of 2 GiB."""
    x = cupy.random.random(1 << 29, dtype=np.float32)
    y = cupy.empty_like(x)
    ms = timed_eagerly(lambda: y.data.copy_from_device_async(x.data, x.nbytes))  # in a graph it is slower
    return 2 * x.nbytes / ms / 1e6


def check(what: str, got: Any, want: np.ndarray, tolerance: float) -> None:
    """Stop unless `got` is right, norm-wise."""
    error = np.linalg.norm((cupy.asnumpy(got).astype(want.dtype) - want).ravel()) / np.linalg.norm(want.ravel())
    if not error <= tolerance:
        raise SystemExit(f"{what}: wrong by {error:.3g} of the norm (allowed {tolerance:.3g})")


def random(shape: tuple[int, ...], dtype: object) -> Any:
    """Numbers in [0, 1), of modulus below 1 if complex: decays and inputs alike."""
    dtype = np.dtype(dtype)  # type: ignore[call-overload]
    real = np.float64 if dtype.name in ("float64", "complex128") else np.float32
    x = cupy.random.random(shape, dtype=real)
    return (x * cupy.exp(6j * x)).astype(dtype) if dtype.kind == "c" else x.astype(dtype)


def machine() -> str:
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    driver, toolkit = runtime.driverGetVersion(), ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    return (
        f"{name}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}; CuPy {cupy.__version__}, NVRTC {toolkit}, "
        f"NumPy {np.__version__}, Python {sys.version.split()[0]}, linscan {linscan.__version__}"
    )


def main() -> int:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    names = sorted(p.stem.removeprefix("gpu_") for p in Path(__file__).parent.glob("gpu_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Shares of the card's copy speed.")
    parser.add_argument("ops", nargs="*", metavar="op", help=f"which of {', '.join(names)} (default: all)")
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    parser.add_argument("--json", type=Path, help="also write the measurements there")
    options = parser.parse_args()
    chosen = options.ops or names
    copy = copy_speed()
    title = f"Card: {machine()}. Copy of 2 GiB: {copy:.0f} GB/s."
    print(title, HEADER, sep="\n\n", flush=True)
    rows, lines = [], []
    for name in chosen:
        for row in _rows(name):
            rows.append(row)
            lines.append(row.markdown(copy))
            print(lines[-1], flush=True)
        if options.json:  # after every op: a run that is cut short leaves what it has
            options.json.write_text(json.dumps({"title": title, "copy": copy, "rows": [asdict(row) for row in rows]}))
    if chosen == names and not options.dry:
        write_section(DOCUMENT, "gpu", f"{title}\n\n{HEADER}\n" + "\n".join(lines))
    return 0


def _rows(name: str) -> Iterator[Row]:
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    yield from importlib.import_module(f"benchmarks.gpu_{name}").rows()


if __name__ == "__main__":
    raise SystemExit(main())
