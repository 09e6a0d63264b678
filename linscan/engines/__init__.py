"""How a loop over time runs: `pick` is the only code that decides where an op runs.

An *engine* is a folder of loops with the same file and function names: ``reference`` (plain array code), ``cpu``
(Numba loops and a thread pool), ``cuda`` (CuPy and raw device code), ``numba_cuda``. Engines trust their arguments:
`linscan.ops` has checked them.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, NamedTuple

import numpy as np

from linscan._arrays import Array, is_cupy
from linscan.engines import fork, probe, support
from linscan.engines.cpu.pool import resolve_workers

NAMES = ("reference", "cpu", "cuda", "numba_cuda")
_forced: ContextVar[str | None] = ContextVar("linscan_engine", default=None)


class Status(NamedTuple):
    """Whether an engine can run here, and why (not)."""

    ready: bool
    detail: str


@contextmanager
def use_engine(name: str) -> Iterator[None]:
    """Run every op inside the block on the engine `name`, for this thread.

    Parameters
    ----------
    name : {"reference", "cpu", "cuda", "numba_cuda"}
        An engine that `available` calls ready.

    Raises
    ------
    ValueError
        If there is no such engine, or, from an op inside the block, if it lacks that op or dtype.
    RuntimeError
        If the engine cannot run on this machine; the message says why.

    Examples
    --------
    >>> import numpy as np, linscan
    >>> with linscan.use_engine("reference"):
    ...     linscan.scan(0.5, np.ones(3))
    array([1.  , 1.5 , 1.75])
    """
    if name not in NAMES:
        raise ValueError(f"use_engine: name must be one of {', '.join(map(repr, NAMES))}; got {name!r}")
    status = _status(name)
    if not status.ready:
        raise RuntimeError(f"use_engine: engine {name!r} cannot run here: {status.detail}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def available() -> dict[str, Status]:
    """Which engines can run on this machine, and why the others cannot.

    Returns
    -------
    dict of str to Status
        For each engine, ``(ready, detail)``: a flag and one line of text.

    Examples
    --------
    >>> import linscan
    >>> linscan.available()["reference"]
    Status(ready=True, detail='plain array code on NumPy or CuPy')
    """
    return {name: _status(name) for name in NAMES}


@cache
def _status(name: str) -> Status:
    with fork.loading:
        return Status(*getattr(probe, name)())


def _forget() -> None:
    """What was found out about this machine: a forked child must look again."""
    _status.cache_clear()
    _fastest.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def pick(function: str, dtype: np.dtype, *arrays: Array) -> Callable[..., Any]:
    """The engine function to call on these arrays: the engine asked for, else the fastest one that can.

    `function` is an op's name or its name with ``_pullback``; both live in the same file of each engine.
    """
    forced, on_gpu = _forced.get(), any(map(is_cupy, arrays))
    if forced is None:
        return _fastest(function, dtype, on_gpu)
    _check_forced(support.row_of(function), forced, dtype, on_gpu)
    return _load(forced, function, on_gpu)


def call(function: str, like: Array, *args: Any) -> Any:
    """What `pick` finds for `like` alone, called: for loops that are put together from others."""
    return pick(function, like.dtype, like)(*args)


@cache
def _fastest(function: str, dtype: np.dtype, on_gpu: bool) -> Callable[..., Any]:
    op, engine = support.row_of(function), "cuda" if on_gpu else "cpu"
    able = dtype.name in support.dtypes(op, engine) and _status(engine).ready
    return _load(engine if able else "reference", function, on_gpu)


def _check_forced(op: str, engine: str, dtype: np.dtype, on_gpu: bool) -> None:
    names = support.dtypes(op, engine)
    if not names:
        raise ValueError(f"{op}: engine {engine!r} does not have it; it runs on {', '.join(support.SUPPORT[op])}")
    if dtype.name not in names:
        raise ValueError(f"{op}: engine {engine!r} runs {', '.join(names)}; got {dtype}")
    if engine == "cpu" and on_gpu:
        raise TypeError(f"{op}: engine 'cpu' takes NumPy arrays; got CuPy")
    if engine in ("cuda", "numba_cuda") and not on_gpu and not (engine == "numba_cuda" and probe.simulated()):
        raise TypeError(f"{op}: engine {engine!r} takes CuPy arrays; got NumPy")


def pick_compiler(*arrays: Array) -> Callable[..., None] | None:
    """What compiles a user's device code into a scan of these arrays; None where the operator itself is to run."""
    on_gpu = any(is_cupy(x) for x in arrays)
    if not on_gpu or _forced.get() not in (None, "cuda") or not _status("cuda").ready:
        return None
    with fork.loading:
        module = importlib.import_module("linscan.engines.cuda.assoc_scan")
    return module.assoc_scan


def check_workers(who: str, workers: int | None) -> None:
    """Refuse `workers` that are not a number of threads, on every engine and whether or not threads would run."""
    if workers is not None:
        resolve_workers(workers, who)


@cache
def _load(engine: str, function: str, on_gpu: bool) -> Callable[..., Any]:
    op = support.row_of(function)
    with fork.loading:
        module = importlib.import_module(f"linscan.engines.{engine}.{support.MODULE.get(op, op)}")
        run = getattr(module, function)
        capture = importlib.import_module("linscan.engines.cuda.capture") if on_gpu else None

    @wraps(run)
    def checked(*args: Any, **options: Any) -> Any:
        if options.get("workers") is not None:
            check_workers(op, options["workers"])
        if capture is not None and capture.capturing():
            return capture.capturable(run)(*args, **options)
        return run(*args, **options)

    return checked
