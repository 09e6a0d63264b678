"""The filters' device code itself, compiled for the host (cuda_on_cpu.h) and held to the laws that hold on a GPU."""

from functools import cache

import numpy as np
import pytest

from linscan.engines.cuda import chunks
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_host import Array, load, needs_compiler
from tests.ops.test_filters import cascade, denominator, sections, sos_tolerance
from tests.tolerances import assert_close, filtered, stable

pytestmark = [pytest.mark.slow, needs_compiler]


def by_row(v, axes):
    v, step = chunks.by_row(v, axes)
    return v.view(Array), step


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The launchers of one file, their kernels compiled into a folder of this run."""

    @cache
    def launchers(file):
        (module,) = load(tmp_path_factory.mktemp(file), file)
        module.by_row = by_row
        return module

    return launchers


def system(rng, n, m, p, dtype, lead=()):
    """A stable system: A has spectral norm 0.9."""
    A = random(rng, (*lead, n, n), dtype)
    A = (0.9 * A / np.linalg.norm(A, 2, axis=(-2, -1), keepdims=True)).astype(dtype)
    return A, random(rng, (*lead, n, m), dtype), random(rng, (*lead, p, n), dtype), random(rng, (*lead, p, m), dtype)


def slopes(rng, shape, lags, dtype):
    """Coefficients that forget: their sizes add up to less than 0.9."""
    a = random(rng, (*shape, lags), dtype)
    return (0.9 * a / np.abs(a).sum(axis=-1, keepdims=True)).astype(dtype_of(dtype))


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 32)


def rows_of(v, x, axis, inner):
    return np.broadcast_to(v, (*x.shape[:axis], *x.shape[axis + 1 :], *v.shape[-inner:]))


@pytest.mark.parametrize(
    ("dtype", "real", "axis"),
    [("float32", True, 0), ("float64", True, 1), ("complex64", True, 1), ("complex128", False, 0)],
)
def test_lfilter(rng, engine, dtype, real, axis):
    kind = np.dtype(f"f{np.dtype(dtype).itemsize // 2}") if real and dtype.startswith("c") else dtype
    b, a = random(rng, (3,), kind), denominator(rng, 4, kind)
    for length in (1, 32, 33, 200, 1200):
        x, zi = random(rng, (2, length), dtype), random(rng, (2, 3), dtype)
        given = (x if axis else x.T).view(Array)
        bank = rows_of(np.stack([b, 2 * b]) if length == 200 else b, given, axis, 1)
        y, zf = engine("filters").lfilter(bank, rows_of(a, given, axis, 1), given, zi, axis=axis, workers=None)
        for row in range(2):
            want = oracles.lfilter(bank[row], a, x[row], zi[row])
            got = np.concatenate([(y if axis else y.T)[row], zf[row]])
            assert_close(got, np.concatenate(want), filtered(dtype, a), f"length {length}")


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_sosfilt(rng, engine, dtype):
    sos, x = sections(rng, 5, dtype), random(rng, (2, 150), dtype)
    zi = random(rng, (2, 5, 2), dtype)
    y, zf = engine("filters").sosfilt(rows_of(sos, x, 1, 2), x.view(Array), zi, axis=1, workers=None)
    for row in range(2):
        want, state = cascade(sos, x[row], zi[row])
        got = np.concatenate([y[row], zf[row].ravel()])
        assert_close(got, np.concatenate([want, state.ravel()]), sos_tolerance(dtype, sos))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edges_lose_nothing_where_poles_cluster_near_the_unit_circle(rng, engine, dtype):
    b, a = np.array([1, 0.5, 0.2], dtype), np.poly([0.999, 0.998, 0.5]).astype(dtype)
    x, zi = random(rng, (1, 1100), dtype), random(rng, (1, 3), dtype)
    exact, plain = (
        engine_free(*(v.astype(kind) for v in (b, a, x[0], zi[0]))) for kind in (np.longdouble, np.dtype(dtype).type)
    )
    y, _ = engine("filters").lfilter(b[None], a[None], x.view(Array), zi, axis=1, workers=None)
    assert np.linalg.norm(y[0] - exact) < np.linalg.norm(plain - exact)


def engine_free(b, a, x, z):
    """The plain loop in the dtype of its arguments."""
    y = np.empty_like(x)
    for t in range(len(x)):
        y[t] = z[0] + b[0] * x[t]
        z = np.array([z[1] + b[1] * x[t] - a[1] * y[t], z[2] + b[2] * x[t] - a[2] * y[t], -a[3] * y[t]], x.dtype)
    return y


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_growth_and_nan(rng, engine):
    b, x = np.array([1.0, 0.5, 0.2]), random(rng, (3, 300), "float64")
    x[1, 150] = np.nan
    for poles in ([1.3, 0.5, 0.1], [1.001, 0.5, 0.1], [0.9, -0.5, 0.1]):
        a = np.poly(poles)
        y, _ = engine("filters").lfilter(
            *(rows_of(v, x, 1, 1) for v in (b, a)), x.view(Array), None, axis=1, workers=None
        )
        want = np.stack([oracles.lfilter(b, a, row)[0] for row in x])
        np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
        scale = 1 + np.maximum.accumulate(np.abs(np.nan_to_num(want)), axis=1)
        assert_close(np.nan_to_num(y) / scale, np.nan_to_num(want) / scale, 1e-12)


def test_a_filter_without_feedback_forgets_nan(rng, engine):
    b, x = random(rng, (4,), "float64"), random(rng, (2, 300), "float64")
    x[0, 158] = np.nan  # near the end of a chunk: the state at its edge is NaN in part
    one = rows_of(np.ones(1), x, 1, 1)
    y, _ = engine("filters").lfilter(rows_of(b, x, 1, 1), one, x.view(Array), None, axis=1, workers=None)
    want = np.stack([oracles.lfilter(b, np.ones(1), row)[0] for row in x])
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    assert_close(np.nan_to_num(y), np.nan_to_num(want), stable("float64"))


@pytest.mark.parametrize(("dtype", "n"), [("float32", 3), ("float64", 1), ("complex64", 2)])
def test_dlsim(rng, engine, dtype, n):
    matrices, u, x0 = system(rng, n, 2, 1, dtype), random(rng, (2, 150, 2), dtype), random(rng, (2, n), dtype)
    wide = [np.broadcast_to(m, (2, *m.shape)) for m in matrices]
    y, x = engine("lti").dlsim(*wide, u.view(Array), x0, workers=None)
    for row in range(2):
        want = oracles.dlsim(*matrices, u[row], x0[row])
        assert_close(y[row], want[0], 4 * n * stable(dtype))
        assert_close(x[row], want[1], 4 * n * stable(dtype))


def test_dlsim_where_it_grows(rng, engine):
    matrices = tuple(
        m.astype("f") for m in (np.diag([1.3, 0.5, 0.2]), np.ones((3, 2)), np.ones((1, 3)), np.ones((1, 2)))
    )
    u, x0 = random(rng, (1, 150, 2), "float32"), np.zeros((1, 3), "f")
    y, _ = engine("lti").dlsim(*(m[None] for m in matrices), u.view(Array), x0, workers=None)
    want = oracles.dlsim(*matrices, u[0], x0[0])[0]
    scale = 1 + np.maximum.accumulate(np.abs(want), axis=0)
    assert_close(y[0] / scale, want / scale, 150 * stable("float32"))


@pytest.mark.parametrize(("dtype", "lags"), [("float32", 1), ("complex64", 3), ("float64", 6)])
def test_allpole(rng, engine, dtype, lags):
    for axis in (0, 1):
        shape = (2, 150) if axis else (150, 2)
        a, x, zi = slopes(rng, shape, lags, dtype), random(rng, shape, dtype), random(rng, (2, lags), dtype)
        if lags == 3:
            a[(1, slice(60, 90)) if axis else (slice(60, 90), 1)] *= 3  # one chunk grows
        y = engine("allpole").allpole(a.view(Array), x.view(Array), zi, axis=axis, workers=None)
        for row in range(2):
            at = (row, slice(None)) if axis else (slice(None), row)
            assert_close(y[at], oracles.allpole(a[at], x[at], zi[row])[0], 8 * lags * stable(dtype))
