"""`scan` and its pullback on the GPU: three arrays (five for the pullback) must pass through memory once."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import cupy
import ml_dtypes
import numpy as np

import linscan
from benchmarks.gpu import Row, check, random, sets, timed, timed_eagerly

_TOLERANCE = {
    "float16": 2e-3,
    "bfloat16": 1.6e-2,
    "float32": 2e-6,
    "complex64": 2e-6,
    "float64": 1e-14,
    "complex128": 1e-14,
}
_FORWARD = [
    *(((8, 1536, n), -1, "float32", 0.93) for n in (4095, 4096, 4097, 16384, 16385, 65536, 65537)),
    *(((8, n, 1536), 1, "float32", 0.90) for n in (4096, 16384, 65536)),
    ((1, 65536, 2048), 1, "float32", 0.90),
    ((8, 1536, 16384), -1, "float16", 0.88),
    ((8, 1536, 16384), -1, "bfloat16", 0.88),
    ((8, 1536, 16385), -1, "bfloat16", None),
    ((8, 4096, 1536), 1, "bfloat16", None),
    ((8, 1536, 8192), -1, "complex64", 0.88),
    ((8, 4096, 1536), 1, "complex64", None),
    ((8, 1536, 8192), -1, "float64", None),
    ((4, 1536, 8192), -1, "complex128", None),
    ((1, 512, 131072), -1, "float32", 0.90),
    ((1, 64, 65536), -1, "float32", 2000.0),
    ((1, 8, 1 << 20), -1, "float32", 2000.0),
    ((1, 1, 1 << 28), -1, "float32", 0.80),
]
_BACKWARD = [
    ((8, 1536, 4096), -1, "float32", 0.90),
    ((8, 1536, 16384), -1, "float32", 0.90),
    ((8, 1536, 16385), -1, "float32", 0.90),
    ((8, 4096, 1536), 1, "float32", 0.90),
    ((1, 65536, 2048), 1, "float32", 0.90),
    ((1, 8, 1 << 20), -1, "float32", None),
    ((8, 1536, 16384), -1, "bfloat16", None),
    ((8, 1536, 8192), -1, "complex64", None),
]


def rows() -> Iterator[Row]:
    beside: dict[Any, str] = {}
    for place, words in _peers():
        beside[place] = f"{beside[place]}, {words}" if place in beside else words
    for shape, axis, name, target in _FORWARD:
        yield _forward(shape, axis, name, target, beside.get((shape, axis, name), ""))
    for shape, axis, name, target in _BACKWARD:
        yield _backward(shape, axis, name, target)
    yield from _host()


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _forward(shape: tuple[int, ...], axis: int, name: str, target: float | None, peer: str) -> Row:
    dtype = _dtype(name)
    nbytes = 3 * int(np.prod(shape)) * dtype.itemsize
    inputs = [(random(shape, dtype), random(shape, dtype), cupy.empty(shape, dtype)) for _ in range(sets(nbytes))]
    a, b, h = inputs[0]
    linscan.scan(a, b, axis=axis, out=h)
    some = (slice(-1, None), slice(-2, None)) if axis == -1 else (slice(-1, None), slice(None), slice(-40, None))
    wide = np.complex128 if dtype.kind == "c" else np.float64
    want = linscan.scan(*(cupy.asnumpy(x[some]).astype(wide) for x in (a, b)), axis=axis)
    check(f"scan {shape} {name}", h[some], want, _TOLERANCE[name])
    ms = timed([lambda s=s: linscan.scan(s[0], s[1], axis=axis, out=s[2]) for s in inputs])
    return Row(f"`scan` {name} {shape}, axis {axis}", nbytes, ms, target, peer=peer)


def _backward(shape: tuple[int, ...], axis: int, name: str, target: float | None) -> Row:
    dtype = _dtype(name)
    nbytes = 5 * int(np.prod(shape)) * dtype.itemsize
    a, b, dh = (random(shape, dtype) for _ in range(3))
    _, pullback = linscan.scan_vjp(a, b, axis=axis)
    da, db, _ = pullback(dh)
    some = (slice(-1, None), slice(-2, None)) if axis == -1 else (slice(-1, None), slice(None), slice(-40, None))
    wide = np.complex128 if dtype.kind == "c" else np.float64
    exact = linscan.scan_vjp(*(cupy.asnumpy(x[some]).astype(wide) for x in (a, b)), axis=axis)[1]
    for got, want in zip((da, db), exact(cupy.asnumpy(dh[some]).astype(wide)), strict=False):
        check(f"scan_vjp {shape} {name}", got[some], want, 4 * _TOLERANCE[name])
    del da, db, got
    ms = timed([lambda: pullback(dh)] * (1 if nbytes > 2e8 else 3))
    return Row(f"`scan_vjp` pullback {name} {shape}, axis {axis}", nbytes, ms, target)


def _peers() -> Iterator[tuple[Any, str]]:
    """What else is installed there, on the same shapes (a cumulative sum reads one array less)."""
    if importlib.util.find_spec("jax"):
        import jax
        import jax.numpy as jnp

        def both(x: Any, y: Any) -> Any:
            return x[0] * y[0], y[0] * x[1] + y[1]

        for shape in [(8, 4096, 1536), (8, 16384, 1536)]:
            run = jax.jit(lambda a, b: jax.lax.associative_scan(both, (a, b), axis=1)[1])
            a, b = (jnp.from_dlpack(random(shape, np.float32)) for _ in range(2))
            run(a, b).block_until_ready()
            times = []
            for _ in range(7):
                start = time.perf_counter()
                run(a, b).block_until_ready()
                times.append(time.perf_counter() - start)
            yield (shape, 1, "float32"), f"jax.lax.associative_scan {np.median(times) * 1e3:.3g} ms"
    if importlib.util.find_spec("torch"):
        import torch

        x = torch.rand(1 << 28, device="cuda")
        ms = _torch_ms(lambda: torch.cumsum(x, 0))
        yield ((1, 1, 1 << 28), -1, "float32"), f"torch.cumsum (2 arrays) {ms:.3g} ms, {8 * 2**28 / ms / 1e6:.0f} GB/s"
        del x
        if importlib.util.find_spec("accelerated_scan"):
            yield from _accelerated()
        torch.cuda.empty_cache()
    x = random((64, 1 << 18), np.float32)
    ms = timed_eagerly(lambda: cupy.cumsum(x, axis=-1))
    yield ((1, 64, 65536), -1, "float32"), f"cupy.cumsum (64, 2^18) {2 * x.nbytes / ms / 1e6:.0f} GB/s"


def _accelerated() -> Iterator[tuple[Any, str]]:
    """accelerated-scan's Triton kernels."""
    import torch
    from accelerated_scan import complex as pairs
    from accelerated_scan import scalar

    for shape, name in [
        *(((8, 1536, n), "float32") for n in (4096, 16384, 65536)),
        ((8, 1536, 16384), "bfloat16"),
        ((8, 1536, 8192), "complex64"),
        *((shape, "float32") for shape in [(1, 512, 131072), (1, 64, 65536), (1, 8, 1 << 20)]),
    ]:
        a, b = (torch.rand(shape, device="cuda", dtype=getattr(torch, name)) for _ in range(2))
        scan = pairs.scan if name == "complex64" else scalar.scan
        ms = _torch_ms(lambda: scan(a, b))  # noqa: B023
        yield (shape, -1, name), f"accelerated-scan {ms:.3g} ms"


def _torch_ms(run: Callable[[], Any]) -> float:
    """Milliseconds of a call, of ten."""
    import torch

    run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 10


def _host() -> Iterator[Row]:
    """Time on the host: of one call on small arrays, and of the first call in a process where kernels are cached.

    In processes of their own: what else is loaded here makes every call of CuPy slower.
    """
    code = (
        "import time, cupy, numpy, linscan\n"
        "a = cupy.ones((4, 100), 'float32')\n"
        "for call in (lambda: linscan.scan(a, a), lambda: a + a):\n"
        "    times = []\n"
        "    for _ in range(15):\n"
        "        cupy.cuda.Device().synchronize()\n"
        "        start = time.perf_counter()\n"
        "        for _ in range(300): call()\n"
        "        times.append((time.perf_counter() - start) / 300)\n"
        "    print(numpy.median(times) * 1e3)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    scan, plus = map(float, run.stdout.split())
    note = f"`a + a` takes {plus * 1e3:.1f} µs; " + _two_processes()
    yield Row("host time of `scan` on (4, 100)", 0, scan, limit=0.025, peer=note)


def _two_processes() -> str:
    code = (
        "import time, cupy, linscan; a = cupy.ones((4, 100), 'float32'); a + a; cupy.cuda.Device().synchronize(); "
        "t = time.perf_counter(); linscan.scan(a, a); cupy.cuda.Device().synchronize(); print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as cache:
        run = [sys.executable, "-c", code]
        environment = {**os.environ, "CUPY_CACHE_DIR": cache}
        seconds = [
            float(subprocess.run(run, env=environment, check=True, capture_output=True).stdout) for _ in range(2)
        ]
    return f"first call in a new process {seconds[0]:.2f} s, in the next one {seconds[1]:.2f} s"
