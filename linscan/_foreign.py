"""Arrays of other libraries, and lists: taken without a copy wherever their owner offers one of the ways to.

These are DLPack, ``__array_interface__`` and ``__cuda_array_interface__``. What lies on a GPU becomes CuPy's, which is
imported then and not before.
"""

import importlib
from types import ModuleType
from typing import Any

import numpy as np

_CUDA_DEVICES = (2, 13)  # DLPack: kDLCUDA, kDLCUDAManaged


def adopt(who: str, name: str, x: Any) -> Any:
    """`x`, the argument `name` of op `who`, as a NumPy or CuPy array."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{who}: {name} is a masked array; fill it or drop its mask first")
    if hasattr(x, "__cuda_array_interface__"):
        return _cupy(who, name).asarray(x)
    if isinstance(x, (np.ndarray, np.generic, list, tuple)) or hasattr(x, "__array_interface__"):
        try:
            return np.asarray(x)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"{who}: {name} makes no array: {error}") from error
    if hasattr(x, "__dlpack__"):
        on_gpu = int(x.__dlpack_device__()[0]) in _CUDA_DEVICES
        return _cupy(who, name).from_dlpack(x) if on_gpu else _from_dlpack(who, name, x)
    if hasattr(x, "__array__"):
        return np.asarray(x)
    raise TypeError(f"{who}: {name} must be an array; got {type(x).__name__}")


def _from_dlpack(who: str, name: str, x: Any) -> np.ndarray:
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, ValueError) as error:
        if hasattr(x, "__array__"):  # NumPy's DLPack has no bfloat16; the owner's own conversion may
            return np.asarray(x)
        raise TypeError(f"{who}: {name} could not be taken through DLPack: {error}") from error


def _cupy(who: str, name: str) -> ModuleType:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise TypeError(f"{who}: {name} lives on a GPU, and taking it needs CuPy, which is not installed") from error
