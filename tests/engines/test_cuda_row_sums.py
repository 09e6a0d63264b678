"""Sums over rows on the GPU: sizes about its tiles, layouts, repeatable bits, and inside a captured graph."""

import numpy as np
import pytest

from linscan._arrays import grad_like, sum_rows
from tests.conftest import random
from tests.engines.on_device import poison, same
from tests.tolerances import assert_close, summed

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 1023, 1024, 1025, 9000])
@pytest.mark.parametrize("columns", [1, 31, 33])
def test_any_size(rng, dtype, rows, columns):
    x = random(rng, (rows, columns), dtype)
    poison()
    assert_close(cupy.asnumpy(sum_rows(cupy.asarray(x))), x.sum(0, dtype=np.complex128), summed(dtype, rows))


def test_more_rows_than_two_launches_take(rng):
    x = random(rng, ((1 << 20) + 1,), "float32")[:, None]
    poison()
    assert_close(cupy.asnumpy(sum_rows(cupy.asarray(x))), x.sum(0, dtype=np.float64), summed("float32", len(x)))


def test_more_axes_and_views(rng):
    x = random(rng, (3, 70, 5, 4), "float32")
    on_gpu = cupy.asarray(x)
    assert_close(cupy.asnumpy(sum_rows(on_gpu, 2)), x.sum((0, 1)), summed("float32", 210))
    assert_close(cupy.asnumpy(sum_rows(on_gpu[:, ::-2])), x[:, ::-2].sum((0, 1, 2)), summed("float32", 600))
    wide = cupy.broadcast_to(on_gpu[:1], (9, 70, 5, 4))
    assert_close(cupy.asnumpy(grad_like(wide, on_gpu[0])), 9 * x[0], summed("float32", 9))


def test_bits_repeat_and_graphs_hold_it(rng):
    x = cupy.asarray(random(rng, (5000, 40), "float32"))
    want = sum_rows(x)
    assert same(sum_rows(x), want)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        got = sum_rows(x)
        graph = stream.end_capture()
        graph.launch(stream)
    stream.synchronize()
    assert same(got, want)
