"""A function of batches as CUDA graphs: the host takes longer to launch a model's hundreds of kernels than they run."""

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from linscan import _arrays
from linscan.models.layer import Training

Results = tuple[Any, dict[str, Any]]
Run = Callable[[dict[str, Any], Training], Results]

_MOST = 64  # graphs; batches of further shapes are run as they are


def own_stream(xp: Any) -> AbstractContextManager[Any]:
    """A stream that can be captured, as the default one cannot; nothing on the host."""
    return xp.cuda.Stream(non_blocking=True) if xp.__name__ == "cupy" else nullcontext()


class Replay:
    """A function, captured when a batch of the same shapes comes again, and from then on replayed.

    Attributes
    ----------
    refused : str
        Why `run` is run as it is: it draws random numbers on the host, copies from there, or cannot be captured.

    Notes
    -----
    All graphs share one pool of memory, so they must run one after the other.
    """

    def __init__(self) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        self._pool = self._cupy.cuda.MemoryPool()
        self._graphs: dict[Any, Any] = {}
        self._seen: set[Any] = set()
        self.refused = ""

    def __call__(self, run: Run, batch: dict[str, Any], training: Training) -> Results:
        """What `run(batch, training)` returns, in arrays that no later call changes.

        It is one function in all calls, of a dict of arrays on the GPU and a `Training`, and returns an array and a
        dict of arrays. It moves nothing between host and GPU. What else it reads stays where it is.
        """
        key = tuple((name, x.shape, x.dtype.str) for name, x in sorted(batch.items()))
        if self.refused:
            return run(batch, training)
        if key in self._seen and key not in self._graphs and len(self._graphs) < _MOST:
            self._capture(key, run, batch)
        if key in self._graphs:
            return self._launched(key, batch, training)
        self._seen.add(key)
        before = None if training.rng is None else training.rng.bit_generator.state
        with self._own_memory():
            results = run(batch, training)
        if training.rng is not None and training.rng.bit_generator.state != before:
            self.refused = "random numbers are drawn on the host"
        return _copied(results, training, training.statistics)

    def close(self) -> None:
        """Forget all graphs and give their memory back: pieces of a pool hold each other until someone asks."""
        self._graphs.clear()
        self._seen.clear()
        self._pool.free_all_blocks()

    def _launched(self, key: Any, batch: dict[str, Any], training: Training) -> Results:
        graph, inputs, statistics, results = self._graphs[key]
        for name, x in inputs.items():
            x[...] = batch[name]
        graph.launch()
        return _copied(results, training, statistics)

    def _capture(self, key: Any, run: Run, batch: dict[str, Any]) -> None:
        cuda, training = self._cupy.cuda, Training()
        stream, inputs = cuda.get_current_stream(), {name: x.copy() for name, x in batch.items()}
        stream.begin_capture()
        try:
            with self._own_memory(), self._nothing_copied():
                results = run(inputs, training)
            graph = stream.end_capture()
        except Exception as error:  # of any library: whatever a captured stream refuses
            self.refused = f"{type(error).__name__}: {error}"
            with suppress(cuda.runtime.CUDARuntimeError):
                stream.end_capture()
        else:
            self._graphs[key] = graph, inputs, training.statistics, results

    @contextmanager
    def _own_memory(self) -> Iterator[None]:
        """Memory from the pool of the graphs; they are forgotten if it hands back to the card what they work in."""
        pool = self._pool

        def malloc(size: int) -> Any:
            free, total = pool.free_bytes(), pool.total_bytes()
            memory = pool.malloc(size)
            if pool.free_bytes() < free and pool.total_bytes() != total:  # it was full, and gave its free blocks away
                self._graphs.clear()
            return memory

        with self._cupy.cuda.using_allocator(malloc):
            yield

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


def _copied(results: Results, training: Training, statistics: list[tuple[Any, Any]]) -> Results:
    """Results and statistics of a batch in memory of their own: that of graphs is written again."""
    value, arrays = results
    old = [value, *arrays.values(), *(x for _, x in statistics)]
    new = [_arrays.namespace(x).empty_like(x) for x in old]
    _arrays.copy_all(new, old)
    training.statistics = [(running, x) for (running, _), x in zip(statistics, new[1 + len(arrays) :], strict=True)]
    return new[0], dict(zip(arrays, new[1:], strict=False))
