"""Timing side by side, and the table the results go into.

`compare` runs the candidates in turn, round after round, so that a change of the machine's mood hits all of them. A
row is correct before it is fast: each benchmark checks its result first.
"""

import platform
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numba
import numpy as np
import scipy

import linscan

README = Path(__file__).parent.parent / "README.md"
DOCUMENT = README.parent / "docs" / "benchmarks.md"


@dataclass
class Row:
    """One line of the table: ours in at most `target` times a floor's time, or `target` times faster than a peer."""

    work: str
    against: str
    ours: float
    other: float
    target: float
    faster: bool = False  # how `target` is meant
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.other / self.ours if self.faster else self.ours / self.other

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.faster else self.ratio <= self.target

    def markdown(self) -> str:
        sign, unit = ("≥", "× faster") if self.faster else ("≤", "× its time")
        cells = [
            self.work + (f" ({self.note})" if self.note else ""),
            _seconds(self.ours),
            f"{self.against}: {_seconds(self.other)}",
            f"{self.ratio:.3g}{unit}",
            f"{sign} {self.target:g}",
            "yes" if self.met else "**no**",
        ]
        return "| " + " | ".join(cells) + " |"


def compare(*candidates: Callable[[], object], rounds: int = 11, seconds: float = 20.0) -> list[float]:
    """Median time of each candidate, interleaved over `rounds` (at least 3, at most about `seconds` in all)."""
    for run in candidates:
        run()
    times: list[list[float]] = [[] for _ in candidates]
    start = time.perf_counter()
    for i in range(rounds):
        if i >= 3 and time.perf_counter() - start > seconds:
            break
        for run, mine in zip(candidates, times, strict=True):
            t = time.perf_counter()
            run()
            mine.append(time.perf_counter() - t)
    return [float(np.median(mine)) for mine in times]


@numba.njit(nogil=True)
def _triad(s, a, b, x):  # the floor: read two arrays, write one
    for i in range(a.size):
        x[i] = s * a[i] + b[i]


@numba.njit(nogil=True)
def _triad_back(s, a, b, c, x, y):  # read three, write two
    for i in range(a.size):
        x[i] = s * a[i] + b[i]
        y[i] = s * b[i] + c[i]


_threads = ThreadPoolExecutor(2)


def triad(*arrays: np.ndarray, threads: int = 2) -> Callable[[], None]:
    """The triad ``x = s a + b`` over these flat arrays on `threads` threads; with five arrays, 3 read and 2 written."""
    kernel = _triad if len(arrays) == 3 else _triad_back
    flat = [x.reshape(-1) for x in arrays]
    scale = flat[0].dtype.type(0.5)
    edges = [flat[0].size * i // threads for i in range(threads + 1)]
    parts = [[x[lo:hi] for x in flat] for lo, hi in pairwise(edges)]

    def run() -> None:
        futures = [_threads.submit(kernel, scale, *part) for part in parts[1:]]
        kernel(scale, *parts[0])
        for future in futures:
            future.result()

    return run


def check(name: str, got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Stop the benchmark unless `got` is right, norm-wise."""
    error = np.linalg.norm(np.ravel(got) - np.ravel(want)) / np.linalg.norm(np.ravel(want))
    if not error <= tolerance:
        raise SystemExit(f"{name}: wrong by {error:.3g} of the norm (allowed {tolerance:.3g})")


def _seconds(t: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if t >= scale:
            return f"{t / scale:.3g} {unit}"
    return f"{t * 1e9:.3g} ns"


def machine() -> str:
    """The machine and the versions, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*: (.*)", info.read_text())
        model = found.group(1).strip() if found else model
    cores = linscan.show_config(mode="dicts")["CPU"]["cores"]
    return (
        f"{model}, {cores} cores; Python {platform.python_version()}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, Numba {numba.__version__}"
    )


HEADER = "| work | linscan | against | ratio | must reach | met |\n|---|---|---|---|---|---|"


def write_section(document: Path, name: str, text: str) -> None:
    """Replace what stands between the `name` markers of a document."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    old = document.read_text(encoding="utf-8")
    document.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old), encoding="utf-8")


def tabulate(rows: Iterable[Row]) -> list[Row]:
    """Measure the rows, printing each line of the table as it comes."""
    measured = []
    print(HEADER, flush=True)
    for row in rows:
        measured.append(row)
        print(row.markdown(), flush=True)
    return measured


def peers(rows: list[Row]) -> str:
    """The rows against peers as a shorter table, for the README."""
    lines = ["| work | linscan | peer | |", "|---|---|---|---|"]
    for row in rows:
        if row.faster:
            cells = [row.work, _seconds(row.ours), f"{row.against}: {_seconds(row.other)}", f"{row.ratio:.2g}×"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
