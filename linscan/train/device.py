"""Trees of arrays on the host and on the GPU."""

import importlib
import os
import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from linscan import _arrays, _trees


def library(device: str) -> Any:
    """NumPy for "cpu", CuPy for "gpu" or "cuda"; a RuntimeError that says what to install if it is missing."""
    _arrays.check_choice("fit", "device", device, ("cpu", "gpu", "cuda"))
    if device == "cpu":
        return np
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError('fit: device "gpu" needs CuPy: pip install "linscan[cuda12]" (or cuda13)') from error


def name(device: str) -> str:
    """What runs there, in words."""
    if device == "cpu":
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    runtime = library(device).cuda.runtime
    return str(runtime.getDeviceProperties(runtime.getDevice())["name"].decode())


def move(tree: Any, xp: Any) -> Any:
    """The tree with its arrays in the library `xp`, rows in one piece; those that are so already are not copied."""
    return _trees.rebuild(tree, [xp.asarray(x, order="C") for x in _trees.leaves(tree).values()])


def batch(given: dict[str, Any], xp: Any, dtype: Any) -> dict[str, Any]:
    """A batch in the library `xp`, its real numbers in `dtype`."""
    arrays = {name: np.asarray(x) for name, x in given.items()}
    return {name: xp.asarray(x.astype(dtype) if x.dtype.kind == "f" else x) for name, x in arrays.items()}


def to_host(tree: Any) -> Any:
    """The tree with NumPy arrays."""
    return _trees.rebuild(tree, [_arrays.to_host(x) for x in _trees.leaves(tree).values()])


def later(x: Any) -> Callable[[], np.ndarray]:
    """`x` on its way to the host; the call waits for its arrival, and for nothing that was launched after this."""
    if not _arrays.is_cupy(x):
        return lambda: x
    cupy, host = importlib.import_module("cupy"), importlib.import_module("cupyx").empty_pinned(x.shape, x.dtype)
    x.get(out=host, blocking=False)
    arrived = cupy.cuda.Event(disable_timing=True)
    arrived.record()

    def read() -> np.ndarray:
        arrived.synchronize()
        return host

    return read
