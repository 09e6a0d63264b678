"""Which library an array belongs to, and the dtype, shape and axis rules every op shares.

NumPy in, NumPy out; CuPy in, CuPy out. CuPy is never imported here: an array can only be a CuPy array if its owner
imported CuPy already, so the class is looked up in ``sys.modules``.
"""

import importlib
import inspect
import math
import operator
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from linscan._foreign import adopt

Array = Any  # a numpy.ndarray or a cupy.ndarray; NumPy's own typing cannot express "the same library as the input"

_FOLLOWERS = (list, tuple, np.generic)
_FLOATING = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


def is_cupy(x: object) -> bool:
    """Whether `x` is a CuPy array, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def is_numba(x: object) -> bool:
    """Whether `x` is a Numba device array, simulated ones included, without importing Numba."""
    return type(x).__module__.startswith("numba.cuda.") and hasattr(x, "copy_to_host")


def namespace(*arrays: object) -> ModuleType:
    """NumPy or CuPy: the library of the first array found (NumPy if there is none)."""
    return sys.modules["cupy"] if any(is_cupy(x) for x in arrays) else np


def take(who: str, **named: Any) -> tuple[Any, ...]:
    """Take the named arguments of op `who`: ``(xp, *arrays)``, all arrays of the one library `xp`.

    None, where `who` has it as a default, and Python scalars pass through unchanged (the latter are weak in promotion).
    Sequences and NumPy scalars go where the arrays are.
    """
    kinds = {type(x) for x in named.values()}
    if type(None) in kinds:
        kinds.remove(type(None))
        if missing := [name for name, x in named.items() if x is None and name in _required(who)]:
            raise TypeError(f"{who}: {missing[0]} must be an array; got None")
    if kinds == {np.ndarray}:  # the common cases pay for no checks
        return np, *named.values()
    cupy = sys.modules.get("cupy")
    if cupy is not None and kinds == {cupy.ndarray}:
        if {x.data.device_id for x in named.values() if x is not None} == {cupy.cuda.runtime.getDevice()}:
            return cupy, *named.values()
    plain = {name: x if _known(x) else adopt(who, name, x) for name, x in named.items()}
    host = [n for n, x in plain.items() if isinstance(x, np.ndarray) and not isinstance(named[n], _FOLLOWERS)]
    device = [n for n, x in plain.items() if is_cupy(x)]
    if host and device:
        raise TypeError(
            f"{who}: all arrays must live in one place; {device[0]} is on the GPU (CuPy), {host[0]} on the host (NumPy)"
        )
    xp = sys.modules["cupy"] if device else np
    if device:
        plain = {n: xp.asarray(x) if isinstance(x, np.ndarray) else x for n, x in plain.items()}
        _one_device(who, {n: plain[n] for n in device})
    return xp, *plain.values()


@cache
def _required(who: str) -> frozenset[str]:
    """The arguments that the public function `who`, if there is one, cannot do without, as its signature says."""
    function = getattr(sys.modules["linscan"], who, None)
    parameters = [] if function is None else inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.default is p.empty and "None" not in str(p.annotation))


def _known(x: Any) -> bool:
    return x is None or type(x) in (bool, int, float, complex, np.ndarray) or is_cupy(x)


def _one_device(who: str, arrays: dict[str, Any]) -> None:
    (first, x), *rest = arrays.items()
    for name, y in rest:
        if y.device != x.device:
            raise TypeError(
                f"{who}: all arrays must be on one device; {first} is on GPU {x.device.id}, {name} on GPU {y.device.id}"
            )
    current = sys.modules["cupy"].cuda.runtime.getDevice()
    if x.device.id != current:
        raise TypeError(
            f"{who}: arrays must be on the current device, GPU {current}; {first} is on GPU {x.device.id}: "
            f"call inside `with cupy.cuda.Device({x.device.id}):`"
        )


def take_real(who: str, **named: Any) -> tuple[list[Any], list[Any]]:
    """The named arguments as given, and as arrays of the result's dtype, which must be real; None stays None."""
    xp, *given = take(who, **named)
    dtype = result_dtype(who, **dict(zip(named, given, strict=True)))
    if dtype.kind == "c":
        raise TypeError(f"{who}: {'arguments' if len(named) > 1 else next(iter(named))} must be real; got {dtype}")
    return given, [None if x is None else cast(xp, x, dtype) for x in given]


def matrix(x: Array) -> Array:
    """`x`, (…, D), as rows of its last axis, without a copy where the layout allows."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@cache
def dtype_name(dtype: np.dtype) -> str:
    """``dtype.name``, which NumPy spells out anew at every look: half of what a small op would cost."""
    return dtype.name


@cache
def _supported(dtype: np.dtype) -> bool:
    return dtype.isnative and dtype.name in _FLOATING


def result_dtype(who: str, **named: Any) -> np.dtype:
    """Floating result dtype of the named arguments: NEP 50, integers to float64, bfloat16 beside float16 to float32."""
    given = {getattr(x, "dtype", None) for x in named.values() if x is not None}
    if len(given) == 1 and (only := given.pop()) is not None and _supported(only):
        return only
    strong, weak = [], []
    for name, x in named.items():
        if x is None:
            continue
        if type(x) in (bool, int, float, complex):
            weak.append(x)
            continue
        dtype = x.dtype.newbyteorder("=")
        if dtype.kind not in "biu" and dtype_name(dtype) not in _FLOATING:
            raise TypeError(f"{who}: {name} has dtype {dtype}, which is not supported; use {', '.join(_FLOATING)}")
        strong.append(dtype)
    has_bfloat16 = [d for d in strong if dtype_name(d) == "bfloat16"]
    others = [d for d in strong if dtype_name(d) != "bfloat16"]
    if has_bfloat16:
        is_complex = any(type(x) is complex for x in weak)
        if not others:
            return np.dtype(np.complex64) if is_complex else has_bfloat16[0]
        others.append(np.dtype(np.float32))
    dtype = np.result_type(*others, *weak) if others or weak else np.dtype(np.float64)
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype


def plain(*arrays: Any) -> tuple[ModuleType, np.dtype] | None:
    """The library and dtype of arrays that need no conversion (one library, device, supported dtype), else None."""
    kind, dtype = type(arrays[0]), getattr(arrays[0], "dtype", None)
    xp = np if kind is np.ndarray else sys.modules.get("cupy")
    if dtype is None or xp is None or kind is not xp.ndarray or not _supported(dtype):
        return None
    device = None if xp is np else arrays[0].data.device_id
    for x in arrays:
        if type(x) is not kind or x.dtype is not dtype or (xp is not np and x.data.device_id != device):
            return None
    return xp, dtype


def accum_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype arithmetic is done in: float32 for the two 16-bit storage types, otherwise `dtype` itself."""
    return np.dtype(np.float32) if dtype_name(dtype) in ("float16", "bfloat16") else dtype


def real_dtype(dtype: np.dtype) -> np.dtype:
    """The real dtype of the same precision: complex64 to float32, complex128 to float64."""
    return np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype


def complex_dtype(dtype: np.dtype) -> np.dtype:
    """The complex dtype arithmetic on `dtype` needs: float32 and 16-bit types to complex64, float64 to complex128."""
    dtype = accum_dtype(dtype)
    return dtype if dtype.kind == "c" else np.dtype(f"c{dtype.itemsize * 2}")


def cast(xp: ModuleType, x: Any, dtype: np.dtype) -> Array:
    """`x` as an array of `dtype`; what is one passes by at the price of a look."""
    return x if isinstance(x, xp.ndarray) and x.dtype is dtype else xp.asarray(x, dtype)


def check_axis(who: str, axis: int, ndim: int, name: str = "axis") -> int:
    """`axis` as a non-negative index into `ndim` axes; TypeError for a non-integer, AxisError out of range."""
    try:
        index = operator.index(axis)
    except TypeError as error:
        raise TypeError(f"{who}: {name} must be an integer; got {axis!r}") from error
    if not -ndim <= index < ndim:
        raise np.exceptions.AxisError(f"{who}: {name} {index} is out of bounds for {ndim} dimension(s)")
    return index % ndim


def check_choice(who: str, name: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`, else a ValueError that lists them."""
    if value not in choices:
        raise ValueError(f"{who}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def check_count(who: str, name: str, value: int, least: int = 0) -> int:
    """`value` as an int; TypeError for a non-integer, ValueError below `least`."""
    try:
        count = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{who}: {name} must be an integer; got {value!r}") from error
    if count < least:
        raise ValueError(f"{who}: {name} must be at least {least}; got {count}")
    return count


def broadcast_shapes(who: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape, or a ValueError that names every argument and its shape."""
    first, *rest = [shape for shape in shapes.values() if shape] or [()]
    if all([shape == first for shape in rest]):  # a list is the quicker one
        return first
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError as error:
        names, got = " and ".join(shapes), " and ".join(str(tuple(s)) for s in shapes.values())
        raise ValueError(f"{who}: {names} must broadcast; got {got}") from error


def broadcast_to(who: str, name: str, x: Array, shape: tuple[int, ...]) -> Array:
    """`x` as a read-only view of `shape`, or a ValueError naming the argument."""
    check_broadcast(who, name, x.shape, shape)
    return namespace(x).broadcast_to(x, shape)


def check_broadcast(who: str, name: str, shape: tuple[int, ...], to: tuple[int, ...]) -> None:
    """Raise `broadcast_to`'s error unless `shape` broadcasts to `to`; no array is made."""
    if len(shape) > len(to) or any([n not in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False)]):
        raise ValueError(f"{who}: {name} must broadcast to {tuple(to)}; got {tuple(shape)}")


def host_any(x: Array, test: Callable[[Array], Array] | None = None, *, otherwise: bool = False) -> bool:
    """Whether any entry of `x`, or of ``test(x)``, is true; `otherwise` on the GPU, where looking would synchronise."""
    if is_cupy(x):
        return otherwise
    return bool(np.asarray(x if test is None else test(x)).any())


def to_host(x: Any) -> np.ndarray:
    """`x` as a NumPy array; a CuPy array is copied over, which waits for its stream."""
    return x.get() if is_cupy(x) else np.asarray(x)


def check_out(who: str, out: Array | None, shape: tuple[int, ...], dtype: np.dtype, xp: ModuleType) -> None:
    """Raise unless `out` is None or a writable array of exactly this library, shape and dtype."""
    if out is None:
        return
    if not isinstance(out, xp.ndarray):
        raise TypeError(f"{who}: out must be a {xp.__name__} array; got {type(out).__name__}")
    if out.shape != tuple(shape) or out.dtype != dtype:
        raise ValueError(
            f"{who}: out must have shape {tuple(shape)} and dtype {dtype}; got {out.shape} and {out.dtype}"
        )
    if xp is np and not out.flags.writeable:
        raise ValueError(f"{who}: out is read-only")


def sum_rows(x: Array, keep: int = 1) -> Array:
    """The sum over all axes but the last `keep`."""
    lead, rest = x.shape[: x.ndim - keep], x.shape[x.ndim - keep :]
    if namespace(x) is np or x.dtype.kind not in "fc" or accum_dtype(x.dtype) != x.dtype:
        return x.sum(axis=tuple(range(len(lead))))
    rows = x.reshape(math.prod(lead), math.prod(rest))
    return importlib.import_module("linscan.engines.cuda.row_sums").row_sums(rows).reshape(rest)


def repeats(x: Array, given: Any, axis: int) -> bool:
    """Whether `given`, of which `x` is the broadcast, has an axis `axis` of its own that is one number in memory."""
    own = getattr(given, "shape", ())
    return x.shape[axis] > 1 and not x.strides[axis] and len(own) >= x.ndim - axis and own[axis - x.ndim] > 1


def copy_all(targets: Sequence[Array], sources: Sequence[Array]) -> None:
    """``target[...] = source`` for all of them, which do not overlap: on a GPU in few launches."""
    if any(map(is_cupy, targets)):
        importlib.import_module("linscan.engines.cuda.many").copy_all(targets, sources)
    else:
        for to, x in zip(targets, sources, strict=True):
            to[...] = x


def move_all(targets: Sequence[Array], sources: Sequence[Array], share: float) -> None:
    """``target += share (source - target)`` likewise."""
    if any(map(is_cupy, targets)):
        importlib.import_module("linscan.engines.cuda.many").move_all(targets, sources, share)
    else:
        for to, x in zip(targets, sources, strict=True):
            to += share * (x - to)


def product(x: Array, y: Array) -> Array:
    """``x @ y``, in a captured stream as well."""
    if namespace(x) is np:
        return x @ y
    return importlib.import_module("linscan.engines.cuda.cublas").product(x, y)


def grad_like(grad: Array, like: Any) -> Array | None:
    """A gradient as its argument wants it: summed over broadcast axes, real if the argument is real, in its dtype.

    Integer and Python-scalar arguments get float64 (complex128) gradients; None stays None.
    """
    if like is None:
        return None
    same = type(like) is type(grad) and (like.dtype, like.shape) == (grad.dtype, grad.shape)
    if same and grad.dtype.kind not in "biu":
        return grad
    if type(like) not in (bool, int, float, complex) and not isinstance(getattr(like, "dtype", None), np.dtype):
        like = take("gradient", argument=like)[1]  # a list, or an array of a library with dtypes of its own
    shape = getattr(like, "shape", ())
    lead = grad.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and grad.shape[lead + i] != 1)
    if axes:
        leading = axes == tuple(range(len(axes)))
        grad = sum_rows(grad, grad.ndim - len(axes)) if leading else grad.sum(axis=axes)
        grad = grad.reshape(shape)
    dtype = getattr(like, "dtype", None) or np.dtype(type(like))
    if dtype.kind in "biu":
        dtype = np.dtype(np.float64)
    if dtype.kind != "c" and grad.dtype.kind == "c":
        grad = grad.real
    return grad.astype(dtype, copy=False)


def cotangent(who: str, name: str, grad: Any, output: Array) -> Array:
    """A cotangent as an array of `output`'s library, shape and dtype; None means zero."""
    if type(grad) is type(output) and grad.dtype == output.dtype and grad.shape == output.shape:
        return grad
    xp = namespace(output)
    if grad is None:
        return xp.broadcast_to(xp.zeros((), output.dtype), output.shape)
    if isinstance(grad, (int, float, np.generic)) and output.ndim == 0:
        return xp.full((), grad, output.dtype)  # on a GPU no copy from the host, which a captured graph would repeat
    grad = take(who, **{name: grad})[1]
    if getattr(grad, "shape", ()) != output.shape:
        raise ValueError(f"{who}: {name} must have shape {output.shape}; got {getattr(grad, 'shape', ())}")
    return xp.asarray(grad, output.dtype)
