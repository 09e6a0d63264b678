"""Batches: what data must offer, data in memory, and a thread that prepares the next ones.

A batch is a dict: ``u``, ``labels`` (classes) or ``target`` (numbers), and as needed ``mask`` (which labels count),
``lengths`` and ``reset``. Batch n of a run is a function of n and the seed alone, so that a run can go on anywhere.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

Batch = dict[str, Any]


class Data(Protocol):
    """What `fit` reads. Data kept for the end are ``finals()``, like ``tests()``, where there are such."""

    def batch(self, n: int, seed: int) -> Batch:
        """Batch n of training."""

    def tests(self) -> Iterable[Batch]:
        """The batches of an evaluation, the same every time."""


class InMemory:
    """Arrays as training and test data, shuffled anew in every epoch; the last batch of an epoch may not be full.

    Parameters
    ----------
    train, test : dict of array
        As a batch, with the examples along the first axes. Arrays may be memory maps: a batch reads what it needs.
    size : int
        Examples in a batch.
    bucket : int, optional
        Sequences of like ``lengths`` make a batch: lengths are rounded up to a multiple of `bucket`, and as far as they
        fill batches, those that are then equal stand together, at random; so do the batches of an epoch. With little
        padding there is less to compute, and there are few shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from linscan.train.data import InMemory
    >>> data = InMemory({"u": np.arange(5)}, {"u": np.arange(2)}, 2)
    >>> np.sort(np.concatenate([data.batch(n, seed=1)["u"] for n in range(3)]))
    array([0, 1, 2, 3, 4])
    """

    def __init__(self, train: Batch, test: Batch, size: int, bucket: int | None = None) -> None:
        self.train, self.test, self.size, self.bucket = train, test, size, bucket
        self.count = len(next(iter(train.values())))
        self.per_epoch = -(-self.count // size)
        self._last: tuple[tuple[int, int], list[np.ndarray]] = (-1, -1), []  # seed and epoch, and its batches' rows

    def __repr__(self) -> str:
        shapes = [{name: np.shape(x) for name, x in part.items()} for part in (self.train, self.test)]
        bucket = "" if self.bucket is None else f", bucket={self.bucket}"
        return f"InMemory(train={shapes[0]}, test={shapes[1]}, size={self.size}{bucket})"

    def batch(self, n: int, seed: int) -> Batch:
        """Batch n: of epoch ``n // per_epoch``."""
        epoch, place = divmod(n, self.per_epoch)
        last = self._last
        if last[0] != (seed, epoch):
            rng = np.random.default_rng([seed, 1, epoch])
            batches = self._cut(self.train, rng.permutation(self.count))
            if self.bucket is not None:
                batches = [batches[i] for i in rng.permutation(self.per_epoch)]
            last = self._last = (seed, epoch), batches
        return self._rows(self.train, last[1][place])

    def tests(self) -> Iterator[Batch]:
        """The test data in order; of their lengths, if there are buckets."""
        order = np.arange(len(next(iter(self.test.values()))))
        return (self._rows(self.test, rows) for rows in self._cut(self.test, order))

    def _cut(self, arrays: Batch, order: np.ndarray) -> list[np.ndarray]:
        if self.bucket is not None:
            order = order[np.argsort(self._rounded(arrays["lengths"][order]), kind="stable")]
        return [order[first : first + self.size] for first in range(0, len(order), self.size)]

    def _rounded(self, lengths: np.ndarray) -> np.ndarray:
        return lengths if self.bucket is None else -(-lengths // self.bucket) * self.bucket

    def _rows(self, arrays: Batch, rows: np.ndarray) -> Batch:
        batch = {name: np.asarray(x[rows]) for name, x in arrays.items()}
        if "lengths" in batch and batch["u"].ndim > 1:  # no longer than the longest of them
            batch["u"] = batch["u"][:, : self._rounded(batch["lengths"]).max()]
        return batch


def ahead(make: Callable[[int], Any], first: int, last: int, depth: int = 4) -> Generator[Any, None, None]:
    """``make(first)``, …, ``make(last - 1)``, made by a thread up to `depth` items before they are asked for.

    An error in `make` is raised where its item is asked for. The thread ends when the iterator is closed.
    """
    items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not closed.is_set():
            try:
                items.put(item, timeout=0.1)
                break
            except queue.Full:
                continue

    def work() -> None:
        for n in range(first, last):
            if closed.is_set():
                return
            try:
                put((make(n), None))
            except BaseException as error:
                put((None, error))
                break

    thread = threading.Thread(target=work, name="linscan-data", daemon=True)
    thread.start()
    try:
        for _ in range(first, last):
            item, error = items.get()
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()
