"""What tests on a GPU share: where arrays lie, memory that shows what was not written, streams, and repeated bits."""

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")


def poison():
    """Leave NaN in the memory CuPy hands out next: an output that is not written shows."""
    blocks = [cupy.full(n, cupy.nan) for n in (64, 1024, 1 << 14, 1 << 18)]
    del blocks


def on_gpu(*arrays):
    return tuple(None if x is None else cupy.asarray(x) for x in arrays)


def on_a_busy_stream(run, *arrays):
    """What `run` makes of `arrays` that come late, on a stream of its own: a kernel on another one would read zeros."""
    cupy.cuda.Device().synchronize()
    stream, big = cupy.cuda.Stream(non_blocking=True), cupy.ones((1 << 13, 1 << 13), np.float32)
    with stream:
        late = [cupy.zeros_like(x) for x in arrays]
        for _ in range(4):
            big @ big
        for x, y in zip(late, arrays, strict=True):
            x[...] = y
        result = run(*late)
    stream.synchronize()
    return result


def same(x, y):
    return cupy.asnumpy(x).tobytes() == cupy.asnumpy(y).tobytes()


def bits_repeat(run, vjp, args):
    """On another stream, and for one row alone."""
    (o, S), pullback = vjp(*args)
    grads = pullback(o, S)
    assert sum(x is not None for x in grads) == sum(x is not None for x in args)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        (again, _), back = vjp(*args)
        repeated = back(again, S)
    stream.synchronize()
    assert same(o, again)
    assert all(same(x, y) for x, y in zip(grads, repeated, strict=True) if x is not None)
    one, last = run(*(x if x is None else x[1] for x in args))
    assert same(one, o[1])
    assert same(last, S[1])


def a_graph_repeats(vjp, args):
    """What a call gives, whenever a graph of it is launched."""

    def run():
        (o, S), pullback = vjp(*args)
        return o, S, *pullback(o, S)

    want = run()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        found = run()
        graph = stream.end_capture()
        for _ in range(2):
            graph.launch(stream)
    stream.synchronize()
    assert all(same(x, y) for x, y in zip(found, want, strict=True) if x is not None)
