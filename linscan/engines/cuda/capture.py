"""Memory that a captured graph goes on using: it runs again, with these addresses, for as long as its owner likes."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import cupy

P = ParamSpec("P")
T = TypeVar("T")

_captured: list[Any] = []


def capturable(run: Callable[P, T]) -> Callable[P, T]:
    """`run`; while the current stream is captured, all memory it asks for, read or only written, is kept for good.

    Memory of another pool than CuPy's own is not: who captures with a pool keeps that one as long as the graph.
    """

    @wraps(run)
    def call(*args: P.args, **options: P.kwargs) -> T:
        if not capturing() or (allocator := cupy.cuda.get_allocator()) != cupy.get_default_memory_pool().malloc:
            return run(*args, **options)
        with cupy.cuda.using_allocator(lambda size: held(allocator(size))):
            return run(*args, **options)

    return call


def held(thing: Any) -> Any:
    """`thing`, kept for good if the current stream is captured."""
    if capturing():
        _captured.append(thing)
    return thing


def capturing() -> bool:
    """Whether the current stream is captured; the default stream, 0, cannot be."""
    stream = cupy.cuda.get_current_stream().ptr
    return stream != 0 and cupy.cuda.runtime.streamIsCapturing(stream)
