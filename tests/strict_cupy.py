"""A stand-in for CuPy over host memory that is as strict as a GPU: nothing becomes a NumPy array or a number unasked.

What array code for both libraries gets wrong shows here without a GPU: a NumPy function or array among device arrays, a
condition on a value, a conversion. It says nothing about device code.
"""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import scipy.special
from numpy.lib.mixins import NDArrayOperatorsMixin

_METHODS = (
    "all any argmax argsort astype conj copy cumsum max mean min nonzero prod ravel reshape squeeze sum swapaxes "
    "transpose view"
).split()


class ndarray(NDArrayOperatorsMixin):
    """An array that only its own library may look into."""

    device = types.SimpleNamespace(id=0)
    data = types.SimpleNamespace(device_id=0)
    waits = 0  # how often a value was asked for, which would wait for a GPU

    def __init__(self, host: np.ndarray) -> None:
        self._host = host
        self.base = None if host.base is None else ndarray

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: object, **options: object) -> object:
        if method != "__call__":
            raise TypeError(f"{ufunc.__name__}.{method} is not there")
        found = ufunc(*map(_host, inputs), **{name: _host(x) for name, x in options.items()})
        return options["out"][0] if "out" in options else _device(found)

    def __getitem__(self, key: object) -> "ndarray":
        return ndarray(np.asarray(self._host[_key(key)]))

    def __setitem__(self, key: object, value: object) -> None:
        self._host[_key(key)] = _host(value)

    def __len__(self) -> int:
        return len(self._host)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __iter__(self) -> Iterator["ndarray"]:
        return (self[i] for i in range(len(self)))

    def item(self) -> object:
        ndarray.waits += 1
        return self._host.item()

    def get(self) -> np.ndarray:
        return self._host.copy()

    def __getattr__(self, name: str) -> object:
        if name in ("dtype", "shape", "ndim", "size", "strides", "flags", "nbytes"):
            return getattr(self._host, name)
        if name in ("T", "real", "imag"):
            return ndarray(getattr(self._host, name))
        if name not in _METHODS:
            raise AttributeError(name)
        return lambda *args, **options: _device(getattr(self._host, name)(*args, **options))


def _host(x: object) -> object:
    """The memory of an array; a NumPy array has no place among them."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError("a NumPy array among device arrays")
    return type(x)(map(_host, x)) if isinstance(x, (list, tuple)) else x


def _key(key: object) -> object:
    return tuple(map(_host, key)) if isinstance(key, tuple) else _host(key)


def _device(x: object) -> object:
    if isinstance(x, (tuple, list)):
        return type(x)(map(_device, x))
    return ndarray(np.asarray(x)) if isinstance(x, (np.ndarray, np.generic)) else x


class _Module(types.ModuleType):
    """CuPy's functions by those of NumPy or SciPy; from NumPy to the device only by `asarray` and `array`."""

    ndarray = ndarray
    cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDevice=lambda: 0))

    def __init__(self, name: str, host: types.ModuleType) -> None:
        super().__init__(name)
        self._host_module = host

    def __getattr__(self, name: str) -> object:
        function = getattr(self._host_module, name)
        if isinstance(function, types.ModuleType):
            return _Module(f"{self.__name__}.{name}", function)
        if not callable(function) or isinstance(function, type):
            return function
        if name in ("asarray", "array"):
            return lambda x, *a, **k: _device(function(x._host if isinstance(x, ndarray) else x, *a, **k))

        def call(*args: object, **options: object) -> object:
            if name == "broadcast_to" and not isinstance(args[0], ndarray):
                raise TypeError("broadcast_to takes arrays alone")
            return _device(function(*map(_host, args), **{key: _host(x) for key, x in options.items()}))

        return call


def _copy_all(targets: list[object], sources: list[object]) -> None:
    for to, x in zip(targets, sources, strict=True):
        to[...] = x


def _move_all(targets: list[object], sources: list[object], share: float) -> None:
    for to, x in zip(targets, sources, strict=True):
        to += share * (x - to)


@contextmanager
def strict_cupy() -> Iterator[types.ModuleType]:
    """Put the stand-in where linscan looks for CuPy."""
    module, functions = _Module("cupy", np), _Module("cupyx.scipy.special", scipy.special)
    ndarray.waits = 0
    sums = types.SimpleNamespace(row_sums=lambda x: x.sum(axis=0))  # device code has no place here
    capture = types.SimpleNamespace(capturing=lambda: False, capturable=lambda run: run, held=lambda thing: thing)
    names = ("cupy", "cupyx", "cupyx.scipy", "cupyx.scipy.special")
    ours = {"row_sums": sums, "capture": capture, "cublas": types.SimpleNamespace(product=lambda x, y: x @ y)}
    ours["many"] = types.SimpleNamespace(copy_all=_copy_all, move_all=_move_all)
    stands_in = dict(zip(names, (module, *map(types.ModuleType, names[1:3]), functions), strict=True))
    stands_in |= {f"linscan.engines.cuda.{name}": part for name, part in ours.items()}
    before = {name: sys.modules.get(name) for name in stands_in}
    sys.modules.update(stands_in)
    try:
        yield module
    finally:
        for name, old in before.items():
            sys.modules.pop(name)
            if old is not None:
                sys.modules[name] = old
