"""What the first call of a loop costs in a fresh process: importing Numba, setting it up, compiling or loading.

Nothing of it is the loop. The note tells how much Numba takes alone, for one line of its own that is cached too: no
engine made with Numba starts faster than that.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Row

_CALL = """
import time, numpy as np, linscan
x = np.full((64, 2500), 0.5, np.float32)
z = x[:, :32].astype(np.complex64)
start = time.perf_counter()
linscan.{call}
print(time.perf_counter() - start)
"""

_CALLS = {
    "scan": "scan(x, x)",
    "lfilter": "lfilter(x[0, :2], np.float32([1, 0.5, 0.25]), x)",
    "sosfilt": "sosfilt(np.float32([[1, 2, 1, 1, 0.5, 0.25]]), x)",
    "short_conv": "short_conv(x, x[:, :4], axis=-1)",
    "ssm_kernel": "ssm_kernel(z, z, 2500)",
}

_LINE = """
import time, numpy as np
a = np.ones(8, np.float32)
start = time.perf_counter()
import line
line.double(a)
print(time.perf_counter() - start)
"""

_MODULE = """
import numba

@numba.njit(cache=True)
def double(x):
    return x[0] + x[0]
"""


def _seconds(code: str, cache: Path, folder: str) -> float:
    """What `code` prints, in a fresh process with its kernel cache in `cache`, started in `folder`."""
    path = os.pathsep.join([folder, str(Path(__file__).parent.parent)])
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": path}
    return float(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout)


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "line.py").write_text(_MODULE)
        _seconds(_LINE, Path(folder) / "line", folder)
        for name, call in _CALLS.items():
            code = _CALL.format(call=call)
            empty = [_seconds(code, Path(folder) / f"{name}{i}", folder) for i in range(3)]
            pairs = [(_seconds(code, Path(folder) / f"{name}0", folder), _line(folder)) for _ in range(5)]
            ours, alone = (statistics.median(times) for times in zip(*pairs, strict=True))
            work = f"first call of `{name}` in a fresh process"
            yield Row(f"{work}, empty cache", "limit", statistics.median(empty), 1.5, 1.0)
            yield Row(f"{work}, cached", "limit", ours, 0.3, 1.0, note=f"Numba alone {alone:.2f} s")


def _line(folder: str) -> float:
    return _seconds(_LINE, Path(folder) / "line", folder)
