"""A function of batches as CUDA graphs: the host takes longer to launch a model's hundreds of kernels than they run."""

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from linscan.models.layer import Training

Results = tuple[Any, dict[str, Any]]


def own_stream(xp: Any) -> AbstractContextManager[Any]:
    """A stream that can be captured, as the default one cannot; nothing on the host."""
    return xp.cuda.Stream(non_blocking=True) if xp.__name__ == "cupy" else nullcontext()


class Replay:
    """`run(batch, training)`, captured when a batch of the same shapes comes again, and from then on replayed.

    Parameters
    ----------
    run : callable
        Of a dict of arrays on the GPU and a `Training`; returns an array and a dict of arrays. It moves nothing between
        host and GPU. What it reads besides its arguments stays where it is.

    Attributes
    ----------
    refused : str
        Why `run` is run as it is: it draws random numbers on the host, copies from there, or cannot be captured.

    Notes
    -----
    All graphs share one pool of memory, so they must run one after the other.
    """

    def __init__(self, run: Callable[[dict[str, Any], Training], Results]) -> None:
        self._run = run
        self._cupy: Any = importlib.import_module("cupy")
        self._pool = self._cupy.cuda.MemoryPool()
        self._graphs: dict[Any, Any] = {}
        self._seen: set[Any] = set()
        self.refused = ""

    def __call__(self, batch: dict[str, Any], training: Training) -> Results:
        """What `run` returns, in arrays that no later call changes."""
        key = tuple((name, x.shape, x.dtype.str) for name, x in sorted(batch.items()))
        if not self.refused and key in self._seen and key not in self._graphs:
            self._capture(key, batch)
        if key in self._graphs:
            return self._launched(key, batch, training)
        self._seen.add(key)
        before = None if training.rng is None else training.rng.bit_generator.state
        results = self._run(batch, training)
        if training.rng is not None and training.rng.bit_generator.state != before:
            self.refused = "random numbers are drawn on the host"
        return results

    def _launched(self, key: Any, batch: dict[str, Any], training: Training) -> Results:
        graph, inputs, statistics, (value, arrays) = self._graphs[key]
        for name, x in inputs.items():
            x[...] = batch[name]
        graph.launch()
        training.statistics.extend(statistics)
        return value.copy(), {name: x.copy() for name, x in arrays.items()}

    def _capture(self, key: Any, batch: dict[str, Any]) -> None:
        cuda, training = self._cupy.cuda, Training()
        stream, inputs = cuda.get_current_stream(), {name: x.copy() for name, x in batch.items()}
        stream.begin_capture()
        try:
            with cuda.using_allocator(self._pool.malloc), self._nothing_copied():
                results = self._run(inputs, training)
            graph = stream.end_capture()
        except Exception as error:  # of any library: whatever a captured stream refuses
            self.refused = f"{type(error).__name__}: {error}"
            with suppress(cuda.runtime.CUDARuntimeError):
                stream.end_capture()
        else:
            self._graphs[key] = graph, inputs, training.statistics, results

    @contextmanager
    def _nothing_copied(self) -> Iterator[None]:
        """A copy from the host is refused: a graph would read that memory again, and CuPy lends it to others."""
        cuda, pool = self._cupy.cuda, self._cupy.get_default_pinned_memory_pool()
        thread = threading.get_ident()

        def refuse(size: int) -> Any:
            if threading.get_ident() == thread:
                raise RuntimeError("a copy from the host")
            return pool.malloc(size)

        cuda.set_pinned_memory_allocator(refuse)
        try:
            yield
        finally:
            cuda.set_pinned_memory_allocator(pool.malloc)
