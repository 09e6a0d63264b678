"""The laws of `block_scan` on the GPU, and what only a GPU can get wrong: tiles, shared rows, streams, sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.engines.on_device import on_a_busy_stream, on_gpu, same
from tests.ops.test_block_scan import blocks, matrices
from tests.tolerances import assert_close, error

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]
cupy = pytest.importorskip("cupy")
engine = pytest.importorskip("linscan.engines.cuda.block_scan")


def check(A, b, h0, dh, dtype, reset=None, reverse=False):
    """States and gradients are those of the CPU engine in double precision, itself tested against the plain loop."""
    n = b.shape[-1]
    wide = [None if x is None else oracles.wide(x) for x in (A, b, h0)]
    want, back = linscan.block_scan_vjp(*wide, reset=reset, reverse=reverse)
    starts = None if reset is None else cupy.asarray(reset)
    h, pullback = linscan.block_scan_vjp(*on_gpu(A, b, h0), reset=starts, reverse=reverse)
    got = (h, *pullback(cupy.asarray(dh)))
    for name, x, y in zip(("h", "dA", "db", "dh0"), got, (want, *back(oracles.wide(dh))), strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == dtype_of(dtype)
            assert_close(cupy.asnumpy(x), y, 4 * blocks(dtype, n), name)


def problem(rng, lead, length, n, dtype):
    shape = (*lead, length, n)
    return (
        matrices(rng, (*shape, n), dtype),
        random(rng, shape, dtype),
        random(rng, (*lead, n), dtype),
        random(rng, shape, dtype),
    )


SIZES = [(2, dtype) for dtype in DTYPES] + [(3, "float64"), (4, "float32")]
MORE = [
    (1, "float32"),
    (5, "float16"),
    (6, "complex64"),
    (8, "float32"),
    (9, "float32"),
    (5, "complex128"),
    (40, "float64"),
]


@pytest.mark.parametrize(("n", "dtype"), SIZES + MORE)
def test_equals_the_loop(rng, n, dtype):
    for length in (1, 2, 65, 300):
        A, b, h0, dh = problem(rng, (3,), length, n, dtype)
        check(A, b, h0, dh, dtype, reverse=length == 65)


@pytest.mark.parametrize(("n", "dtype"), [(2, "float32"), (3, "float64"), (4, "float32"), (9, "float32")])
@pytest.mark.parametrize("reverse", [False, True])
def test_resets(rng, n, dtype, reverse):
    for length in (1, 65, 2000):
        A, b, h0, dh = problem(rng, (3,), length, n, dtype)
        check(A, b, h0, dh, dtype, rng.random((3, length)) < 0.1, reverse)


@pytest.mark.parametrize(("n", "dtype"), SIZES)
@pytest.mark.parametrize("reverse", [False, True])
def test_tails_of_every_tile(rng, n, dtype, reverse):
    for pullback in (False, True):
        tile = engine.tile(n, dtype_of(dtype).itemsize, pullback)
        steps = 32 * tile.warps * tile.chunk
        for mark in (32 * tile.chunk, steps, 2 * steps):
            for length in (mark - 1, mark, mark + 1):
                A, b, h0, dh = problem(rng, (2,), length, n, dtype)
                check(A, b, h0, dh, dtype, reverse=reverse)


@pytest.mark.parametrize(
    ("n", "length", "dtype"),
    [(2, 200_001, "float32"), (3, 60_001, "float64"), (4, 70_003, "float32"), (8, 10_001, "float32")],
)
def test_rows_of_many_groups(rng, n, length, dtype):
    A, b, h0, dh = problem(rng, (2,), length, n, dtype)
    check(A, b, h0, dh, dtype)


@given(
    lead=st.lists(st.integers(1, 4), max_size=2),
    length=st.integers(1, 300),
    n_dtype=st.sampled_from([(2, "float32"), (3, "float64")]),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    with_state=st.booleans(),
    layout=st.sampled_from(["C", "F", "strided", "flipped", "shifted"]),
    seed=st.integers(0, 99),
)
def test_any_layout_state_reset_and_direction(lead, length, n_dtype, reverse, with_reset, with_state, layout, seed):
    rng, (n, dtype) = np.random.default_rng(seed), n_dtype
    A, b, h0, _ = problem(rng, lead, length, n, dtype)
    views = on_gpu(A, b)
    if layout == "F":
        views = [cupy.asfortranarray(x) for x in views]
    elif layout == "strided":
        views = [cupy.repeat(x, 2, axis=-1)[..., ::2] for x in views]
    elif layout == "flipped":
        views = [x[..., ::-1, :].copy()[..., ::-1, :] for x in views]
    elif layout == "shifted":
        views = [cupy.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(x.shape) for x in views]
    copies = [x.copy() for x in views]
    h0 = h0 if with_state else None
    reset = rng.random((*lead, length)) < 0.2 if with_reset else None
    starts = None if reset is None else cupy.asarray(reset)
    h = linscan.block_scan(*views, *on_gpu(h0), reverse=reverse, reset=starts)
    assert_close(cupy.asnumpy(h), oracles.block_scan(A, b, h0, reverse, reset), blocks(dtype, n))
    assert h.flags.c_contiguous
    assert all(same(x, y) for x, y in zip(views, copies, strict=True))


@pytest.mark.parametrize("n", [3, 9])
def test_broadcasting(rng, n):
    b, h0, dh = (random(rng, shape, "float64") for shape in ((4, 5, 300, n), (5, n), (4, 5, 300, n)))
    for shape in [(n, n), (300, n, n), (5, 1, n, n), (4, 1, 300, n, n), (4, 5, 300, n, n)]:
        check(matrices(rng, shape, "float64"), b, h0, dh, "float64")
        check(matrices(rng, shape, "float64"), b, None, dh, "float64", rng.random((5, 300)) < 0.1, True)
    check(matrices(rng, (2, 300, n, n), "float64"), random(rng, (1, n), "float64"), None, dh[:2, 0], "float64")


def test_views_of_many_axes(rng):
    A, b = (
        matrices(rng, (2, 3, 2, 3, 2, 3, 2, 3, 20, 2, 2), "float64"),
        random(rng, (2, 3, 2, 3, 2, 3, 2, 3, 20, 2), "float64"),
    )
    order = (7, 5, 3, 1, 6, 4, 2, 0, 8, 9)
    h = linscan.block_scan(cupy.asarray(A).transpose(*order, 10), cupy.asarray(b).transpose(order))
    want = linscan.block_scan(A.transpose(*order, 10), b.transpose(order))
    assert_close(cupy.asnumpy(h), want, blocks("float64", 2))


@pytest.mark.parametrize(("n", "shape"), [(2, (3, 90_001)), (4, (3, 40_001)), (2, (70_000, 3))])
def test_bits_depend_neither_on_the_batch_nor_on_the_run(rng, n, shape):
    A, b, h0, dh = on_gpu(*problem(rng, shape[:1], shape[1], n, "float32"))
    runs = []
    for _ in range(4):
        h, pullback = linscan.block_scan_vjp(A, b, h0)
        runs.append((h, *pullback(dh)))
    assert all(same(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))
    h, pullback = linscan.block_scan_vjp(A[1:2], b[1:2], h0[1:2])
    assert all(same(x[0], y[1]) for x, y in zip((h, *pullback(dh[1:2])), runs[0], strict=True))


@pytest.mark.parametrize("n", [2, 4, 9])
@pytest.mark.parametrize("length", [60, 20_000, 100_000])
def test_growing_rows_equal_the_loop(rng, n, length):
    if n == 9 and length > 60:
        pytest.skip("a plain loop anyway")
    A = np.tile(np.eye(n, dtype=np.float32) * np.float32(1.05), (2, length, 1, 1))
    A[:, :: length // 4 + 1] *= 1e30
    A[:, 1 :: length // 4 + 1] *= 1e-30
    A[:, -30:] = matrices(rng, (2, 30, n, n), "float32")
    b = np.zeros((2, length, n), np.float32)
    b[:, -30:] = random(rng, (2, 30, n), "float32")
    h = cupy.asnumpy(linscan.block_scan(*on_gpu(A, b)))
    assert_close(h, linscan.block_scan(A, b), blocks("float32", n))


@pytest.mark.parametrize("n", [2, 4])
def test_an_unstable_fixed_point_is_kept(n):
    """h = 2 h - 1 stays at 1 in the loop; composites of many steps would be differences of huge numbers."""
    A = cupy.eye(n, dtype=np.float32) * 2
    h = linscan.block_scan(A, cupy.full((2, 50_000, n), -1.0, np.float32), 1.0)
    assert bool((h == 1).all())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_nan_and_inf_reach_only_their_row_and_later_times(rng, bad, n):
    length = 20_000 if n < 9 else 100
    dtype = "float32" if n != 3 else "float64"
    A, b, _, _ = problem(rng, (3,), length, n, dtype)
    at, end = length // 3, length // 2
    clean = linscan.block_scan(A, b)
    reset = np.zeros((3, length), bool)
    reset[:, end] = True
    for array, place in ((A, (1, at, 0, 1)), (b, (1, at, 0))):
        kept, array[place] = array[place], bad
        h, pullback = linscan.block_scan_vjp(*on_gpu(A, b))
        db = cupy.asnumpy(pullback(cupy.ones_like(h))[1])
        again = cupy.asnumpy(linscan.block_scan(*on_gpu(A, b), reset=cupy.asarray(reset)))
        array[place] = kept
        h = cupy.asnumpy(h)
        touched = np.zeros(h.shape, bool)
        touched[1, at:] = True
        assert not np.isfinite(h[1, at, 0])
        assert_close(h[~touched], clean[~touched], blocks(dtype, n))
        assert np.isfinite(db[[0, 2]]).all()
        assert np.isfinite(db[1, at + 1 :]).all()
        assert np.isfinite(again[1, end:]).all()
        assert error(again[[0, 2], :end], clean[[0, 2], :end]) < blocks(dtype, n)


def test_runs_on_the_callers_stream(rng):
    A, b, _, _ = on_gpu(*problem(rng, (4,), 5000, 2, "float32"))
    want = linscan.block_scan(A, b)
    h = on_a_busy_stream(lambda x: linscan.block_scan(A, x), b)
    assert same(h, want)


def test_empty_arrays():
    for lead, length, n in [((), 0, 2), ((3,), 0, 5), ((0,), 5, 2), ((2, 0), 5, 6), ((2,), 5, 0)]:
        for steps in {length, 1}:
            A, b = cupy.ones((*lead, steps, n, n)), cupy.ones((*lead, length, n))
            h, pullback = linscan.block_scan_vjp(A, b, 2.0)
            assert h.shape == b.shape
            dA, db, dh0 = pullback(None)
            assert (dA.shape, db.shape, float(dh0)) == (A.shape, b.shape, 0.0)
