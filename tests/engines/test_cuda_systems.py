"""The laws of `dlsim`, `lsim` and `allpole` on the GPU: chunks, matrices of every chunk, layouts, growth, NaN."""

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.engines.on_device import on_gpu, poison, same
from tests.engines.test_cuda_filters import FULL
from tests.engines.test_cuda_on_cpu import slopes, system
from tests.tolerances import assert_close, eps, stable

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize(
    ("n", "m", "p"), [(1, 1, 1), (3, 2, 1), (4, 1, 5), (8, 1, 1), (16, 2, 3), (17, 2, 3), (2, 40, 1)]
)
def test_dlsim_equals_the_loop(rng, dtype, n, m, p):
    matrices = system(rng, n, m, p, dtype)
    for length in (1, 2, 257, 700):
        u, x0 = random(rng, (2, length, m), dtype), random(rng, (2, n), dtype)
        poison()
        _, y, x = linscan.dlsim((*on_gpu(*matrices), 1.0), *on_gpu(u), x0=cupy.asarray(x0))
        assert y.dtype == x.dtype == dtype_of(dtype)
        for row in range(2):
            want = oracles.dlsim(*matrices, u[row], x0[row])
            assert_close(cupy.asnumpy(y[row]), want[0], 4 * n * stable(dtype))
            assert_close(cupy.asnumpy(x[row]), want[1], 4 * n * stable(dtype))


def test_a_system_for_each_row_and_its_gradients(rng):
    matrices, u, x0 = system(rng, 3, 2, 2, "float64", (4,)), random(rng, (4, 600, 2), "float64"), np.zeros(3)
    (y, x), pullback = linscan.dlsim_vjp((*on_gpu(*matrices), 1.0), *on_gpu(u), x0=cupy.asarray(x0))
    (want, states), wanted = linscan.dlsim_vjp((*matrices, 1.0), u, x0=x0)
    assert_close(cupy.asnumpy(y), want, 1e-13)
    assert_close(cupy.asnumpy(x), states, 1e-13)
    dy = random(rng, want.shape, "float64")
    (got, du, dx0), (right, du_, dx0_) = pullback(cupy.asarray(dy)), wanted(dy)
    for one, other in zip((*got[:4], du, dx0), (*right[:4], du_, dx0_), strict=True):
        assert_close(cupy.asnumpy(one), other, 1e-12)


@pytest.mark.parametrize("radius", [1.0, 1.001, 1.2])
def test_unstable_systems_do_what_the_loop_does(rng, radius):
    matrices = np.array([[radius, 1.0], [0, 0.5]]), np.ones((2, 1)), np.ones((1, 2)), np.zeros((1, 1))
    u = random(rng, (2, 3000, 1), "float64")
    _, want, _ = linscan.dlsim((*matrices, 1.0), u)
    _, y, _ = linscan.dlsim((*on_gpu(*matrices), 1.0), *on_gpu(u))
    scale = 1 + np.maximum.accumulate(np.abs(want), axis=1)
    assert_close(cupy.asnumpy(y) / scale, want / scale, 1e-10)


def test_lsim_and_one_row_among_many(rng):
    matrices = np.array([[0, 1.0], [-1, -0.1]]), np.ones((2, 1)), np.ones((1, 2)), np.zeros((1, 1))
    times, u = 0.1 * np.arange(2000), random(rng, (2000,), "float64")
    _, y, x = linscan.lsim(on_gpu(*matrices), *on_gpu(u), times)
    _, want, states = linscan.lsim(matrices, u, times)
    assert_close(cupy.asnumpy(y), want, 1e-11)
    assert_close(cupy.asnumpy(x), states, 1e-11)
    many = cupy.asarray(random(rng, (50, 2000, 1), "float64"))
    given = *on_gpu(*matrices[:2]), cupy.eye(2), None, 0.1
    stable_system = (0.5 * given[0], *given[1:])
    assert same(linscan.dlsim(stable_system, many)[1][17], linscan.dlsim(stable_system, many[17])[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lags", [1, 2, 3, 4, 5, 17])
@pytest.mark.parametrize("axis", [0, 1])
def test_allpole_equals_the_loop(rng, dtype, lags, axis):
    for length in (1, 2, 256, 257, 700, 1400):
        shape = (2, length) if axis else (length, 2)
        a, x = slopes(rng, shape, lags, dtype), random(rng, shape, dtype)
        zi = random(rng, (2, lags), dtype)
        poison()
        y, zf = linscan.allpole(*on_gpu(a, x, zi), axis=axis)
        assert y.dtype == zf.dtype == dtype_of(dtype)
        a, x, y = np.moveaxis(a, axis, 0), np.moveaxis(x, axis, 0), np.moveaxis(cupy.asnumpy(y), axis, 0)
        for row in range(2):
            want, state = oracles.allpole(a[:, row], x[:, row], zi[row])
            assert_close(y[:, row], want, 2 * lags * stable(dtype))
            assert_close(cupy.asnumpy(zf[row]), state, 16 * lags * eps(dtype))


def test_allpole_views_broadcasts_and_rows(rng):
    a, x = slopes(rng, (3, 1, 800), 2, "float64"), random(rng, (3, 4, 800), "float64")
    want = linscan.allpole(a, x)
    y = linscan.allpole(*on_gpu(a, x))
    assert_close(cupy.asnumpy(y), want, stable("float64"))
    assert same(y[1], linscan.allpole(*on_gpu(a[1], x[1])))
    assert same(y, linscan.allpole(*on_gpu(a[..., ::-1]), cupy.asarray(x))) is False
    moved = linscan.allpole(cupy.asarray(np.moveaxis(a, 2, 0)), cupy.asarray(np.moveaxis(x, 2, 0)), axis=0)
    assert same(np.moveaxis(cupy.asnumpy(moved), 0, 2), y)
    flipped = cupy.asarray(a)[:, :, ::-1, ::-1]
    want = linscan.allpole(a[:, :, ::-1, ::-1], x[:, ::-1, ::-1])
    assert_close(cupy.asnumpy(linscan.allpole(flipped, cupy.asarray(x)[:, ::-1, ::-1])), want, stable("float64"))
    fixed = linscan.allpole(*on_gpu(a[0, 0, 0], x))
    assert_close(cupy.asnumpy(fixed), linscan.allpole(a[0, 0, 0], x), stable("float64"))


def test_allpole_where_it_grows_and_with_nan(rng):
    a, x = slopes(rng, (3, 2000), 2, "float64"), random(rng, (3, 2000), "float64")
    a[1, 600:900] = [-1.3, 0.1]
    x[2, 1000] = np.nan
    want, y = linscan.allpole(a, x), cupy.asnumpy(linscan.allpole(*on_gpu(a, x)))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    scale = 1 + np.maximum.accumulate(np.abs(np.nan_to_num(want)), axis=-1)
    assert_close(np.nan_to_num(y) / scale, np.nan_to_num(want) / scale, 1e-11)
