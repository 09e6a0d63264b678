"""The laws of `grid_scan` on the GPU: odd sizes, orientations, all dtypes, batches, repeated bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.engines.on_device import on_a_busy_stream, on_gpu, same
from tests.ops.test_grid_scan import draw
from tests.tolerances import assert_close, stable

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
cupy = pytest.importorskip("cupy")
engine = pytest.importorskip("linscan.engines.cuda.grid_scan")


def check(rng, arrays, dtype, tolerance, reverse=(False, False)):
    """Outputs and gradients are those of the reference in double precision."""
    with linscan.use_engine("reference"):
        want, back = linscan.grid_scan_vjp(*(None if x is None else oracles.wide(x) for x in arrays), reverse=reverse)
        slopes = [random(rng, x.shape, dtype) for x in want]
        exact = back(*(oracles.wide(x) for x in slopes))
    got, pullback = linscan.grid_scan_vjp(*on_gpu(*arrays), reverse=reverse)
    grads = pullback(*on_gpu(*slopes))
    for i, (x, y) in enumerate(zip((*got, *grads), (*want, *exact), strict=True)):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == dtype_of(dtype)
            assert_close(cupy.asnumpy(x), y, tolerance, f"result {i}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 7, 3, 5), (17, 16, 9, 70)])
def test_equals_the_loop(rng, dtype, shape):
    check(rng, draw(rng, *shape, dtype, lead=(2,)), dtype, 4 * stable(dtype) * sum(shape) ** 0.5)


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.integers(1, 40)),
    reverse=st.tuples(st.booleans(), st.booleans()),
    given_=st.lists(st.booleans(), min_size=3, max_size=3),
    flipped=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_orientation_view_and_missing_argument(shape, reverse, given_, flipped, seed):
    rng = np.random.default_rng(seed)
    arrays = draw(rng, *shape)
    arrays = [x[::-1] if flipped else np.asfortranarray(x) for x in arrays]
    arrays[6:] = [x if used else None for x, used in zip(arrays[6:], given_, strict=True)]
    views = on_gpu(*arrays)
    copies = [None if x is None else x.copy() for x in views]
    check(rng, arrays, "float64", 4 * stable("float64") * sum(shape) ** 0.5, reverse)
    linscan.grid_scan(*views, reverse=reverse)
    assert all(x is None or same(x, y) for x, y in zip(views, copies, strict=True))


@pytest.mark.parametrize("drop", [None, (0, 1), (1, 0)])
def test_modes_on_a_large_grid(rng, drop):
    """P-mode shares out what comes in; D-mode, with one turn left out, has one path between two cells."""
    arrays = draw(rng, 64, 70, 8, 32, "float32")
    if drop:
        arrays[3] = np.full_like(arrays[3], 0.97)
        arrays[3][..., drop[0], drop[1]] = 0
    check(rng, arrays, "float32", 4 * stable("float32") * 160**0.5)


def test_batches_broadcasting_and_repeated_bits(rng):
    arrays = draw(rng, 12, 11, 9, 33, lead=(3, 2))
    shared = [arrays[0][:1], *arrays[1:3], 0.5 * np.eye(2), np.ones(2), *arrays[5:7], 1.0, arrays[8][0]]
    check(rng, shared, "float64", 4 * stable("float64") * 65**0.5)
    arrays = on_gpu(*arrays)
    runs = []
    for blocks in (1024, 1024, 3):  # of a pullback, which share its memory
        engine._BLOCKS, kept = blocks, engine._BLOCKS
        outputs, pullback = linscan.grid_scan_vjp(*arrays)
        runs.append((*outputs, *pullback(*outputs)))
        engine._BLOCKS = kept
    assert all(same(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))
    alone = linscan.grid_scan(*(x[1:2] for x in arrays))
    assert all(same(x[0], y[1]) for x, y in zip(alone, runs[0], strict=False))


def test_nan_and_inf_reach_only_the_cells_after_them(rng):
    arrays = draw(rng, 20, 18, 3, 5, "float64", lead=(2,))
    clean = oracles.grid_scan(*(x[1] for x in arrays))[0]
    arrays[2][1, 9, 7] = np.nan
    o = cupy.asnumpy(linscan.grid_scan(*on_gpu(*arrays))[0])
    touched = np.zeros(o.shape[1:3], bool)
    touched[9:, 7:] = True
    assert np.isfinite(o[0]).all()
    assert np.isnan(o[1][touched]).all()
    assert_close(o[1][~touched], clean[~touched], stable("float64") * 38**0.5)


def test_runs_on_the_callers_stream_and_on_nothing(rng):
    arrays = on_gpu(*draw(rng, 20, 18, 3, 5, "float32", lead=(2,)))
    want = linscan.grid_scan(*arrays)
    got = on_a_busy_stream(linscan.grid_scan, *arrays)
    assert all(same(x, y) for x, y in zip(got, want, strict=True))
    for shape in ((0, 3, 2, 2), (3, 3, 0, 2), (3, 3, 2, 0)):
        empty = on_gpu(*draw(rng, *shape, lead=(2,)))
        outputs, pullback = linscan.grid_scan_vjp(*empty)
        assert [x.shape for x in pullback(*outputs)] == [x.shape for x in empty]
