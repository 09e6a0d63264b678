"""What `Replay` does with calls, graphs and memory, with a stand-in for CuPy whose graphs are lists of functions."""

import sys
import types
from contextlib import contextmanager

import numpy as np
import pytest

from linscan.models import Training
from linscan.train.graph import Replay


class Pool:
    """Counts bytes; at `most` it gives its free ones away."""

    def __init__(self):
        self.used, self.free, self.most = 0, 0, 1000

    def malloc(self, size):
        if self.free >= size:
            self.free -= size
        elif self.used + self.free + size > self.most:
            self.free = 0
        self.used += size

    def free_bytes(self):
        return self.free

    def total_bytes(self):
        return self.used + self.free

    def free_all_blocks(self):
        self.free = 0


@pytest.fixture
def cupy(monkeypatch):
    cupy = types.ModuleType("cupy")
    cupy.program, cupy.malloc = None, lambda size: None
    cupy.ndarray = type("ndarray", (), {})  # none is one

    class Stream:
        def begin_capture(self):
            cupy.program = []

        def end_capture(self):
            work, cupy.program = cupy.program, None
            return types.SimpleNamespace(launch=lambda: [run() for run in work])

    @contextmanager
    def using_allocator(malloc):
        before, cupy.malloc = cupy.malloc, malloc
        yield
        cupy.malloc = before

    stream = Stream()
    cupy.cuda = types.SimpleNamespace(
        MemoryPool=Pool,
        get_current_stream=lambda: stream,
        using_allocator=using_allocator,
        set_pinned_memory_allocator=lambda malloc: setattr(cupy, "pinned", malloc),
        runtime=types.SimpleNamespace(CUDARuntimeError=KeyError),
    )
    cupy.get_default_pinned_memory_pool = lambda: types.SimpleNamespace(malloc=lambda size: size)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


@pytest.fixture
def run(cupy):
    """Twice x, and its sum as a statistic; `calls` counts how often it ran itself."""
    running = np.zeros(())

    def run(batch, training):
        run.calls += 1
        x, double, total = batch["x"], np.empty(batch["x"].shape), np.empty(())
        cupy.malloc(run.size)
        work = lambda: (np.multiply(x, 2, out=double), np.sum(double, out=total))  # noqa: E731
        work()
        if cupy.program is not None:
            cupy.program.append(work)
        training.statistics.append((running, total))
        return total, {"double": double}

    run.calls, run.size = 0, 10
    return run


def check(replay, run, n, training=None):
    x = np.full(n, float(run.calls + 3))
    training = training or Training()
    value, arrays = replay(run, {"x": x}, training)
    np.testing.assert_array_equal(arrays["double"], 2 * x)
    assert value == training.statistics[0][1] == 2 * x.sum()
    return value, arrays, training


def test_the_second_call_is_captured_and_later_ones_are_replayed(run):
    replay = Replay()
    first = check(replay, run, 4)
    kept = [check(replay, run, 4) for _ in range(3)]
    assert run.calls == 2
    check(replay, run, 5)
    assert run.calls == 3  # another shape
    for value, arrays, training in (first, *kept):  # no later call changed what an earlier one gave
        assert value == arrays["double"].sum() == training.statistics[0][1]


def test_random_numbers_of_the_host_are_never_replayed(run):
    replay = Replay()

    def drawn(batch, training):
        training.rng.random()
        return run(batch, training)

    for _ in range(3):
        check(replay, drawn_like(run, drawn), 4, Training(np.random.default_rng(0)))
    assert run.calls == 3
    assert "random" in replay.refused


def drawn_like(run, drawn):
    drawn.calls = run.calls
    return drawn


def test_what_cannot_be_captured_is_run_as_it_is(cupy, run):
    replay = Replay()

    def copying(batch, training):
        if cupy.program is not None:
            cupy.pinned(8)
        return run(batch, training)

    for _ in range(3):
        check(replay, drawn_like(run, copying), 4)
    assert "a copy from the host" in replay.refused
    assert run.calls == 3
    assert cupy.pinned(8) == 8  # CuPy's own again


def test_graphs_are_forgotten_if_their_memory_went_back(run):
    replay = Replay()
    for _ in range(3):
        check(replay, run, 4)
    assert len(replay._graphs) == 1
    replay._pool.free, run.size = 500, 600
    check(replay, run, 5)
    assert not replay._graphs
    run.size = 10
    check(replay, run, 4)
    assert len(replay._graphs) == 1


def test_closing_gives_the_memory_back(run):
    replay = Replay()
    for _ in range(3):
        check(replay, run, 4)
    replay._pool.free = 500
    replay.close()
    assert not replay._graphs
    assert replay._pool.free == 0
    check(replay, run, 4)
    assert run.calls == 3  # as at first
