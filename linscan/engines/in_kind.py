"""Numba device arrays are answered with Numba device arrays, by the engine written in Numba where it has the op.

Between the two, an op sees CuPy views of the same memory (NumPy arrays under Numba's CUDA simulator), so that it needs
to know nothing of this.
"""

import functools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import numpy as np

from linscan import _arrays
from linscan.engines import support, use_engine

P = ParamSpec("P")
T = TypeVar("T")


def in_kind(op: Callable[P, T]) -> Callable[P, T]:
    """`op`, which takes Numba device arrays as well; other arrays pay for a look at a dictionary."""

    @functools.wraps(op)
    def call(*args: P.args, **options: P.kwargs) -> T:
        if "numba.cuda" in sys.modules and any(_arrays.is_numba(x) for x in (*args, *options.values())):
            return _lend(op, op.__name__.removesuffix("_vjp"), args, options)
        return op(*args, **options)

    return call


def _lend(function: Callable[..., Any], row: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The call on views of the arguments' memory, its result as Numba device arrays; `row` is of the support table."""
    out: Any = options.get("out")
    lent = [_view(x) for x in args], {name: _view(x) for name, x in options.items()}
    dtypes = {str(x.dtype) for x in (*args, *options.values()) if _arrays.is_numba(x) and x.dtype.kind in "fc"}
    has = support.dtypes(row, "numba_cuda")
    with use_engine("numba_cuda") if has and dtypes <= set(has) else nullcontext():
        result = function(*lent[0], **lent[1])
    if _arrays.is_numba(out) and isinstance(lent[1]["out"], np.ndarray):  # the simulator's view is a copy
        out.copy_to_device(lent[1]["out"])
    return out if _arrays.is_numba(out) else _answer(result, row)


def _view(x: Any) -> Any:
    if not _arrays.is_numba(x):
        return x
    if not hasattr(x, "__cuda_array_interface__"):
        return x.copy_to_host()
    return sys.modules["cupy"].asarray(x) if "cupy" in sys.modules else _arrays.take("numba_cuda", x=x)[1]


def _answer(result: Any, row: str) -> Any:
    if isinstance(result, tuple):
        return tuple(_answer(x, row) for x in result)
    if callable(result):  # a pullback: its cotangents may be Numba's too
        return lambda *args: _lend(result, row, args, {})
    cuda = sys.modules["numba.cuda"]
    if isinstance(result, np.ndarray):
        return cuda.to_device(result)
    return cuda.as_cuda_array(result, sync=False) if _arrays.is_cupy(result) else result
