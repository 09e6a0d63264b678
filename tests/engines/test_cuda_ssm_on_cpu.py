"""The device code of `ssm_kernel` and `ssm_kernel_dplr`, compiled for the host and held to the laws of a GPU.

The launchers run too, with NumPy in the place of CuPy (see on_host.py).
"""

from functools import cache

import numpy as np
import pytest

from linscan.engines.reference import ssm_kernel as reference
from linscan.engines.reference import ssm_kernel_dplr as cauchy
from tests import oracles
from tests.conftest import random
from tests.engines.on_host import Array, load, needs_compiler
from tests.ops.test_ssm_kernel import decays
from tests.tolerances import assert_close, eps, powers, summed

pytestmark = [pytest.mark.slow, needs_compiler]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The launchers of one file, their kernels compiled into a folder of this run."""
    return cache(lambda name: load(tmp_path_factory.mktemp(name), name)[0])


def check(engine, a, c, length, real=True):
    k = engine("ssm_kernel").ssm_kernel(a, c, length, real=real, workers=None)
    dk = random(np.random.default_rng(1), k.shape, k.dtype).view(Array)
    got = k, *engine("ssm_kernel").ssm_kernel_pullback(a, c, dk, workers=None)
    wide = [oracles.wide(x) for x in (a, c)]
    want = reference.ssm_kernel(*wide, length, real=real, workers=None)
    want = want, *reference.ssm_kernel_pullback(*wide, oracles.wide(dk), workers=None)
    for name, x, y in zip(("k", "da", "dc"), got, want, strict=True):
        assert_close(x, y, 2 * powers(a.dtype, length), name)


@pytest.mark.parametrize(("dtype", "states", "real", "lengths"), [
    ("complex64", 17, True, (1, 129)), ("float32", 5, True, (130,)), ("complex128", 33, False, (1, 4100)),
])  # fmt: skip
def test_ssm_kernel(rng, engine, dtype, states, real, lengths):
    a, c = decays(rng, (2, states), dtype), random(rng, (2, states), dtype)
    for length in lengths:
        check(engine, a, c, length, real)


def test_largest_tiles(rng, engine):
    check(engine, decays(rng, (1, 3), "complex64", 0.99), random(rng, (1, 3), "complex64"), 16_500)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
@pytest.mark.parametrize(("dtype", "a", "c"), [
    ("complex64", [1.5j, 0.9, 1e10], [1e-20, 1.0, 1e-30]), ("complex128", [3 + 4j, 0.5, 1], [1e-200, 1e10, 0]),
])  # fmt: skip
def test_growing_kernels(rng, engine, dtype, a, c):
    a, c, length = np.array([a], dtype), np.array([c], dtype), 900
    want = oracles.ssm_kernel(a, c, length).real[0]
    end = int(np.argmin(np.abs(want) < np.finfo(dtype).max / 4))
    assert end > 5
    k = engine("ssm_kernel").ssm_kernel(a, c, length, real=True, workers=None)[0]
    size = oracles.ssm_kernel(np.abs(a), np.abs(c), end).real[0]
    assert np.max(np.abs(k[:end] - want[:end]) / size) <= 4 * eps(dtype) + end * eps("float64")
    assert not np.isfinite(k[end + 50 :]).any()
    dk = np.zeros((1, length), k.dtype).view(Array)
    dk[:, :3] = 1
    da, dc = engine("ssm_kernel").ssm_kernel_pullback(a, c, dk, workers=None)
    z, lag = a[0].conj(), np.arange(1, 3)[:, None]
    assert_close(dc[0], (z ** np.arange(3)[:, None]).sum(axis=0), powers(dtype, 3))
    assert_close(da[0], (lag * z ** (lag - 1)).sum(axis=0) * c[0].conj(), powers(dtype, 3))


@pytest.mark.parametrize(("channels", "count", "states", "nodes"), [(2, 8, 5, 3), (1, 18, 40, 300), (2, 3, 1, 129)])
def test_cauchy_sums(rng, engine, channels, count, states, nodes):
    alpha, beta = rng.uniform(0.5, 2, (2, channels, states))
    w = rng.standard_normal((channels, count, states))
    phi = np.linspace(0, 1.5, nodes)
    nodes_ = 1j * np.sin(phi) + 0.3, np.cos(phi) + 0j, 1j * np.cos(phi)
    dsums = random(rng, (channels, count, nodes), "complex128")
    arrays = [x.view(Array) for x in (alpha, beta, w)]
    module, tolerance = engine("ssm_kernel_dplr"), summed("float64", 4 * nodes)
    got = module.ssm_kernel_dplr(*arrays, *nodes_, workers=None)
    assert_close(got, cauchy.ssm_kernel_dplr(alpha, beta, w, *nodes_, workers=None), tolerance)
    grads = module.ssm_kernel_dplr_pullback(*arrays, *nodes_, dsums, workers=None)
    want = cauchy.ssm_kernel_dplr_pullback(alpha, beta, w, *nodes_, dsums, workers=None)
    for name, x, y in zip(("dalpha", "dbeta", "dw"), grads, want, strict=True):
        assert_close(x, y, tolerance, name)
