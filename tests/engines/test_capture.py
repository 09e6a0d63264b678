"""What a captured stream does to memory, with a stand-in for CuPy."""

import importlib.util
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest

import linscan.engines


@pytest.fixture
def cupy(monkeypatch):
    """Allocations are strings of their size; `capturing` says whether the stream is captured."""
    cupy = types.ModuleType("cupy")
    cupy.capturing, cupy.allocator = False, lambda size: f"{size} bytes"
    own = types.SimpleNamespace(malloc=cupy.allocator)
    cupy.get_default_memory_pool = lambda: own

    @contextmanager
    def using_allocator(allocator):
        before, cupy.allocator = cupy.allocator, allocator
        yield
        cupy.allocator = before

    stream = types.SimpleNamespace(ptr=7)
    cupy.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(streamIsCapturing=lambda ptr: cupy.capturing and ptr == 7),
        get_current_stream=lambda: stream,
        get_allocator=lambda: cupy.allocator,
        using_allocator=using_allocator,
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


@pytest.fixture
def capture(cupy):
    spec = importlib.util.spec_from_file_location(
        "capture", Path(linscan.engines.__file__).parent / "cuda" / "capture.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_memory_of_a_captured_call_is_kept(cupy, capture):
    @capture.capturable
    def twice(size, *, times):
        made = [cupy.allocator(size) for _ in range(times)]
        return made[0]

    assert twice(8, times=2) == "8 bytes"
    assert capture._captured == []
    cupy.capturing = True
    assert twice(16, times=2) == "16 bytes"
    assert capture._captured == ["16 bytes"] * 2
    cupy.capturing = False
    assert twice(32, times=1) == "32 bytes"
    assert len(capture._captured) == 2
    cupy.capturing, cupy.allocator = True, lambda size: f"{size} bytes of a pool"
    assert twice(64, times=1) == "64 bytes of a pool"
    assert len(capture._captured) == 2  # whose owner keeps it


def test_a_plan_is_kept_while_captured(cupy, capture):
    assert capture.held("plan") == "plan"
    assert capture._captured == []
    cupy.capturing = True
    assert capture.held("plan") == "plan"
    assert capture._captured == ["plan"]


def test_the_default_stream_is_not_asked(cupy, capture):
    cupy.cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=0)
    cupy.cuda.runtime.streamIsCapturing = lambda ptr: pytest.fail("CUDA refuses to tell while another is captured")
    assert not capture.capturing()
