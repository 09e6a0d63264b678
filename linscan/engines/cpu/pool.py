"""The thread pool: rows or time ranges of one op, split over the cores this process may use.

Numba's own threading layers abort, hang or fight the application's settings when used from several threads, after a
fork or inside a process pool. So kernels here release the GIL and are handed ranges by a plain thread pool that is
created at first use, belongs to one process (a forked child makes its own), and runs nested calls inline.
"""

import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path

_cap: ContextVar[int | None] = ContextVar("linscan_workers", default=None)
_inside = threading.local()
_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
_executor_size = 0


def cpu_count() -> int:
    """The cores this process may use: its affinity mask and its container's quota, not the machine's total."""
    count = getattr(os, "process_cpu_count", None)
    if count is not None:
        cores = count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, _quota() or cores)


@cache
def _quota(root: Path = Path("/")) -> int | None:
    """Cores that Linux control groups grant this process (a container's CPU limit), rounded up; None if unlimited."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        for level in (group, *group.parents):  # a limit on any group above binds as well
            if controllers == "":
                quotas.append(_ratio(root / "sys/fs/cgroup" / level / "cpu.max"))
            elif "cpu" in controllers.split(","):
                folder = root / "sys/fs/cgroup/cpu" / level
                quotas.append(_ratio(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
    return min((q for q in quotas if q is not None), default=None)


def _ratio(*files: Path) -> int | None:
    """Quota over period, rounded up, from one file that holds both or from one file each."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return max(1, -(-int(quota) // int(period))) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return None


def resolve_workers(workers: int | None, who: str = "linscan") -> int:
    """The largest number of threads a call may use; negative values count back from the cores, as in `scipy.fft`."""
    if workers is None:
        return _cap.get() or cpu_count()
    return _count_of(workers, who)


def _count_of(workers: int, who: str) -> int:
    try:
        workers = operator.index(workers)
    except TypeError as error:
        raise TypeError(f"{who}: workers must be an integer; got {workers!r}") from error
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
    token = _cap.set(_count_of(workers, "set_workers"))
    try:
        yield
    finally:
        _cap.reset(token)


def parallel_for(body: Callable[[int, int], object], n: int, *, grain: int = 1, workers: int | None = None) -> None:
    """Call ``body(lo, hi)`` on ranges covering ``range(n)``, each of `grain` items or more, on up to `workers` threads.

    The caller takes ranges itself until none is left, so it never waits for a pool that others keep busy, and needs no
    pool at all where none can be had. An exception in any range is raised here after all have ended.
    """
    if n <= 0:
        return
    parts = n // max(1, grain)
    parts = min(resolve_workers(workers), parts) if parts > 1 else 1
    if parts <= 1 or getattr(_inside, "worker", False):
        body(0, n)
        return
    todo = deque((n * i // parts, n * (i + 1) // parts) for i in range(parts))
    futures = _submit(parts - 1, body, todo)
    try:
        _drain(body, todo)
    finally:
        errors = [f.exception() for f in futures if not f.cancel()]
    for error in errors:
        if error is not None:
            raise error


def _drain(body: Callable[[int, int], object], todo: deque[tuple[int, int]]) -> None:
    """Take ranges off `todo` until it is empty; a failure drops those nobody has begun."""
    nested, _inside.worker = getattr(_inside, "worker", False), True
    try:
        while True:
            try:
                lo, hi = todo.popleft()
            except IndexError:
                return
            body(lo, hi)
    except BaseException:
        todo.clear()
        raise
    finally:
        _inside.worker = nested


def _submit(threads: int, body: Callable[[int, int], object], todo: deque[tuple[int, int]]) -> list[Future[None]]:
    """Ask up to `threads` pool threads to help; none where the interpreter ends or the system grants no thread."""
    pool = _pool(threads)
    futures = []
    with suppress(RuntimeError):
        for _ in range(threads):
            futures.append(pool.submit(_drain, body, todo))
    return futures


def _pool(threads: int) -> ThreadPoolExecutor:
    global _executor, _executor_size
    with _lock:
        if _executor is None or _executor_size < threads:
            # A smaller pool is not shut down: another thread may be about to submit to it. Its own end with it.
            _executor = ThreadPoolExecutor(threads, thread_name_prefix="linscan")
            _executor_size = threads
        return _executor


def _forget_after_fork() -> None:
    """The child has none of the parent's threads, and may have inherited a held lock."""
    global _executor, _executor_size, _lock, _inside
    _executor, _executor_size = None, 0
    _lock, _inside = threading.Lock(), threading.local()
    _quota.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
