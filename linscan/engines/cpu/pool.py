"""The thread pool: rows or time ranges of one op, split over the cores this process may use.

Numba's own threading layers abort, hang or fight the application's settings when used from several threads, after a
fork or inside a process pool. So kernels here release the GIL and are handed ranges by a plain thread pool that is
created at first use, belongs to one process (a forked child makes its own), and runs nested calls inline.
"""

import operator
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

_cap: ContextVar[int | None] = ContextVar("linscan_workers", default=None)
_inside = threading.local()
_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
_executor_size = 0


def cpu_count() -> int:
    """The cores this process may use: its affinity mask, not the machine's total."""
    count = getattr(os, "process_cpu_count", None)
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_workers(workers: int | None, who: str = "workers") -> int:
    """The largest number of threads a call may use; negative values count back from the cores, as in `scipy.fft`."""
    if workers is None:
        workers = _cap.get()
        return cpu_count() if workers is None else workers
    try:
        workers = operator.index(workers)
    except TypeError as error:
        raise TypeError(f"{who}: workers must be an integer or None; got {workers!r}") from error
    cores = cpu_count()
    if workers < 0:
        if workers < -cores:
            raise ValueError(f"{who}: workers must be at least {-cores} on this machine; got {workers}")
        return workers + 1 + cores
    if workers == 0:
        raise ValueError(f"{who}: workers must not be 0")
    return workers


@contextmanager
def set_workers(workers: int) -> Iterator[None]:
    """Cap the threads that ops inside the block use, in this Python thread.

    Parameters
    ----------
    workers : int
        As in `scipy.fft`: a positive number of threads; negative counts back from the cores (-1 is all of them).

    Raises
    ------
    ValueError
        If `workers` is 0 or below minus the number of cores.
    TypeError
        If `workers` is not an integer.

    Examples
    --------
    >>> import numpy as np, linscan
    >>> with linscan.set_workers(1):
    ...     linscan.scan(0.5, np.ones(3))
    array([1.  , 1.5 , 1.75])
    """
    token = _cap.set(resolve_workers(workers, "set_workers"))
    try:
        yield
    finally:
        _cap.reset(token)


def parallel_for(body: Callable[[int, int], object], n: int, *, grain: int = 1, workers: int | None = None) -> None:
    """Call ``body(lo, hi)`` on ranges that cover ``range(n)``, each of at least `grain` items, on up to `workers` threads.

    The caller runs the last range itself; an exception in any range is raised here after all have ended.
    """
    if n <= 0:
        return
    parts = min(resolve_workers(workers), max(1, n // max(1, grain)))
    if parts <= 1 or getattr(_inside, "worker", False):
        body(0, n)
        return
    bounds = [n * i // parts for i in range(parts + 1)]
    pool = _pool(parts - 1)
    futures = [pool.submit(_run, body, lo, hi) for lo, hi in zip(bounds[:-2], bounds[1:-1], strict=True)]
    try:
        body(bounds[-2], n)
    finally:
        errors = [f.exception() for f in futures]
    for error in errors:
        if error is not None:
            raise error


def _run(body: Callable[[int, int], object], lo: int, hi: int) -> None:
    _inside.worker = True
    body(lo, hi)


def _pool(threads: int) -> ThreadPoolExecutor:
    global _executor, _executor_size
    with _lock:
        if _executor is None or _executor_size < threads:
            # A smaller pool is left to finish what others have given it; its idle threads end with it.
            if _executor is not None:
                _executor.shutdown(wait=False)
            _executor = ThreadPoolExecutor(threads, thread_name_prefix="linscan")
            _executor_size = threads
        return _executor


def _forget_after_fork() -> None:
    """The child has none of the parent's threads, and may have inherited a held lock."""
    global _executor, _executor_size, _lock, _inside
    _executor, _executor_size = None, 0
    _lock, _inside = threading.Lock(), threading.local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
