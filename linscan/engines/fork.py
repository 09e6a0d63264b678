"""Locks to hold while the process forks: a child inherits those that other threads hold, and none of the threads.

A fork waits until no thread is loading an engine (a half-imported module would stay locked in the child for ever) or
compiling a kernel, in that order, which is also the order in which a call takes them.
"""

# Both take locks of their own before a fork, which compiling needs too. Handlers run last registered first: theirs must
# be registered before ours, or the fork would hold their locks while it waits for the compiler.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading
from contextlib import ExitStack
from typing import Any

loading = threading.RLock()  # held while an engine's modules, and so Numba or CuPy, are imported

_locks: list[Any] = [loading]
_held = ExitStack()


def hold(lock: Any) -> None:
    """Take `lock`, a reentrant context manager, around every fork from now on."""
    _locks.append(lock)


def _take() -> None:
    for lock in _locks:
        _held.enter_context(lock)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take, after_in_parent=_held.close, after_in_child=_held.close)
