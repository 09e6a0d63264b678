"""Laws of `block_scan`, `block_step` and `block_scan_vjp`, on every engine that runs on the CPU."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from linscan.engines.support import SUPPORT
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, eps, stable

ENGINES = [engine for engine in ("reference", "cpu") if engine in SUPPORT["block_scan"]]


def matrices(rng, shape, dtype, radius=0.9):
    """Random matrices whose largest singular value is `radius`: states neither grow nor end at once."""
    A = random(rng, shape, "complex128" if dtype_of(dtype).kind == "c" else "float64")
    norm = np.linalg.norm(A, 2, axis=(-2, -1)) if A.size else np.ones(shape[:-2])
    return (A * (radius / norm)[..., None, None]).astype(dtype_of(dtype))


def blocks(dtype, n):
    """Norm-wise error: that of a scalar recurrence of this decay, with n + 1 roundings for its one in every step."""
    return (n + 1) * stable(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("n", "dtype"), [*((n, "float64") for n in (1, 3, 4, 8, 11)), *((n, dtype) for n in (2, 5) for dtype in DTYPES)]
)
def test_equals_the_loop(rng, engine, dtype, n):
    for length in (0, 1, 2, 65):
        A, b = matrices(rng, (3, length, n, n), dtype), random(rng, (3, length, n), dtype)
        h0 = random(rng, (3, n), dtype)
        with linscan.use_engine(engine):
            h = linscan.block_scan(A, b, h0)
        assert h.dtype == dtype_of(dtype)
        assert_close(h, oracles.block_scan(A, b, h0), blocks(dtype, n))


@given(
    lead=st.lists(st.integers(1, 4), max_size=2),
    length=st.integers(1, 70),
    n=st.integers(1, 6),
    dtype=st.sampled_from(["float16", "complex128"]),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    with_state=st.booleans(),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_layout_state_reset_and_direction(
    lead, length, n, dtype, reverse, with_reset, with_state, layout, engine, seed
):
    rng = np.random.default_rng(seed)
    A, b = matrices(rng, (*lead, length, n, n), dtype), random(rng, (*lead, length, n), dtype)
    A, b = (laid_out(x, layout) for x in (A, b))
    h0 = random(rng, (*lead, n), dtype) if with_state else None
    reset = rng.random((*lead, length)) < 0.2 if with_reset else None
    copies = A.copy(), b.copy()
    with linscan.use_engine(engine):
        h = linscan.block_scan(A, b, h0, reverse=reverse, reset=reset)
    assert_close(h, oracles.block_scan(A, b, h0, reverse, reset), blocks(dtype, n))
    assert h.flags.c_contiguous
    np.testing.assert_array_equal(A, copies[0])
    np.testing.assert_array_equal(b, copies[1])


def laid_out(x, layout):
    """The same numbers, read-only, in another memory layout."""
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "flipped":
        x = x[..., ::-1].copy()[..., ::-1]
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [2, 6])
def test_broadcasting(rng, engine, n):
    b, h0 = random(rng, (4, 5, 30, n), "float64"), random(rng, (5, n), "float64")
    shapes = [(n, n), (30, n, n), (5, 1, n, n), (4, 1, 30, n, n), (4, 5, 30, n, n)]
    with linscan.use_engine(engine):
        for shape in shapes:
            A = matrices(rng, shape, "float64")
            assert_close(linscan.block_scan(A, b, h0), oracles.block_scan(A, b, h0), blocks("float64", n))
        A, b = matrices(rng, (2, 30, n, n), "float64"), random(rng, (1, n), "float64")
        assert_close(linscan.block_scan(A, b), oracles.block_scan(A, b), blocks("float64", n))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@given(cuts=st.lists(st.integers(0, 90), max_size=4), reverse=st.booleans())
def test_splitting_anywhere_and_carrying_the_state_changes_nothing(n, cuts, reverse):
    rng = np.random.default_rng(1)
    A, b = matrices(rng, (2, 90, n, n), "float64"), random(rng, (2, 90, n), "float64")
    h0 = state = random(rng, (2, n), "float64")
    pieces, parts = list(pairwise([0, *sorted(cuts), 90])), []
    for lo, hi in reversed(pieces) if reverse else pieces:
        part = linscan.block_scan(A[:, lo:hi], b[:, lo:hi], state, reverse=reverse)
        state = state if lo == hi else part[:, 0 if reverse else -1]
        parts.append(part)
    whole = np.concatenate(parts[::-1] if reverse else parts, axis=1)
    np.testing.assert_array_equal(whole, linscan.block_scan(A, b, h0, reverse=reverse))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_reverse_is_flipping_and_reset_is_calling_apart(rng, engine, n):
    A, b, h0 = (matrices(rng, (40, n, n), "float64"), random(rng, (40, n), "float64"), random(rng, (n,), "float64"))
    starts = np.zeros(40, bool)
    starts[[0, 13, 14, 30]] = True
    with linscan.use_engine(engine):
        back = linscan.block_scan(A, b, h0, reverse=True)
        assert_close(back, linscan.block_scan(A[::-1], b[::-1], h0)[::-1], blocks("float64", n))
        packed = linscan.block_scan(A, b, h0, reset=starts)
        apart = [linscan.block_scan(A[lo:hi], b[lo:hi]) for lo, hi in pairwise([0, 13, 14, 30, 40])]
        assert_close(packed, np.concatenate(apart), blocks("float64", n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 5])
def test_stepping_equals_scanning(rng, dtype, n):
    A, b, h = matrices(rng, (40, n, n), dtype), random(rng, (40, n), dtype), random(rng, (n,), dtype)
    whole = linscan.block_scan(A, b, h)
    for t in range(40):
        h = linscan.block_step(A[t], b[t], h)
        assert h.dtype == dtype_of(dtype)
        assert_close(h, whole[t], 2 * blocks(dtype, n))


def test_diagonal_matrices_are_scans(rng):
    a, b = rng.uniform(-0.9, 0.9, (50, 4)), random(rng, (50, 4), "float64")
    h = linscan.block_scan(a[:, :, None] * np.eye(4), b)
    assert_close(h, linscan.scan(a, b, axis=0), stable("float64"))


@pytest.mark.parametrize("shape", [(7, 300), (1, 30_003), (3, 9_000)])
@pytest.mark.parametrize(
    ("n", "dtype"), [(2, "float32"), (3, "float64"), (4, "float64"), (7, "float32"), (2, "complex128")]
)
def test_bits_depend_neither_on_workers_nor_on_other_rows(rng, shape, n, dtype):
    A, b = (random(rng, (*shape, n, n), dtype) / n).astype(dtype), random(rng, (*shape, n), dtype)
    one, pull = linscan.block_scan_vjp(A, b, workers=1)
    three, pull_3 = linscan.block_scan_vjp(A, b, workers=3)
    np.testing.assert_array_equal(three, one)
    for k in {0, 1, shape[0] - 1} & set(range(shape[0])):
        np.testing.assert_array_equal(linscan.block_scan(A[k : k + 1], b[k : k + 1]), one[k : k + 1])
    for x, y in zip(pull(b)[:2], pull_3(b)[:2], strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("reverse", [False, True])
def test_long_rows_in_tiles(rng, reverse):
    """Storage of 16 bits goes through tiles of rows and times, forwards and backwards."""
    A, b = matrices(rng, (2, 9001, 2, 2), "float16"), random(rng, (2, 9001, 2), "float16")
    wide, back = linscan.block_scan_vjp(A.astype("float32"), b.astype("float32"), reverse=reverse)
    h, pullback = linscan.block_scan_vjp(A, b, reverse=reverse)
    for got, want in zip((h, *pullback(b)[:2]), (wide, *back(b.astype("float32"))[:2]), strict=True):
        assert np.abs(got - want).max() <= 2 * blocks("float16", 2) * np.abs(want).max()  # at every edge


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_growing_rows_equal_the_loop(rng, engine, n):
    """Products of matrices overflow float32 long before the states do: a tree of products would give inf * 0 = NaN."""
    A = np.tile(np.eye(n, dtype=np.float32) * np.float32(1e30), (2, 60, 1, 1))
    A[:, 31:] = matrices(rng, (2, 29, n, n), "float32")
    b = np.zeros((2, 60, n), np.float32)
    b[:, 30:] = random(rng, (2, 30, n), "float32")
    with linscan.use_engine(engine):
        h = linscan.block_scan(A, b)
    assert_close(h, oracles.block_scan(A, b), blocks("float32", n))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_nan_and_inf_reach_only_their_row_and_later_times(rng, engine, bad, n):
    A, b = matrices(rng, (3, 40, n, n), "float64"), random(rng, (3, 40, n), "float64")
    clean = oracles.block_scan(A, b)
    for array, at in ((A, (1, 21, 0, 1)), (b, (1, 21, 0))):
        kept, array[at] = array[at], bad
        reset = np.zeros((3, 40), bool)
        with linscan.use_engine(engine):
            h, pullback = linscan.block_scan_vjp(A, b)
            db = pullback(b if array is A else np.ones_like(b))[1]
            reset[:, 30] = True
            again = linscan.block_scan(A, b, reset=reset)
        array[at] = kept
        touched = np.zeros(h.shape, bool)
        touched[1, 21:] = True
        assert not np.isfinite(h[1, 21, 0])
        assert_close(h[~touched], clean[~touched], blocks("float64", n))
        assert np.isfinite(db[[0, 2]]).all()
        assert np.isfinite(db[1, 22:]).all()
        assert np.isfinite(again[1, 30:]).all()


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_subnormals_are_flushed(n):
    A, b = np.eye(n, dtype=np.float32) / 2, np.zeros((200, n), np.float32)
    b[0] = 1
    h = linscan.block_scan(A, b)
    assert (h[126] == 2.0**-126).all()  # the smallest normal number
    assert not h[127:].any()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"reset": True}, {"reset": True, "reverse": True}])
@pytest.mark.parametrize(
    ("n", "kind"), [(1, "real"), (2, "complex"), (2, "mixed"), (3, "real"), (4, "real"), (6, "complex")]
)
def test_gradients(rng, engine, options, kind, n):
    A = matrices(rng, (2, 11, n, n), "complex128" if kind == "complex" else "float64")
    b = random(rng, (2, 11, n), "float64" if kind == "real" else "complex128")
    options = {**options, "reset": rng.random((2, 11)) < 0.3 if "reset" in options else None}
    with linscan.use_engine(engine):
        for h0 in (None, random(rng, (2, n), b.dtype)):
            linscan.check_vjp(linscan.block_scan_vjp, A, b, h0, directions=2, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [2, 5])
def test_gradients_of_broadcast_arguments(rng, engine, n):
    b, reset = random(rng, (3, 2, 12, n), "float64"), rng.random((2, 12)) < 0.3
    with linscan.use_engine(engine):
        for shape in [(n, n), (12, n, n), (3, 1, 1, n, n), (1, 2, 12, n, n)]:
            A = matrices(rng, shape, "float64")
            linscan.check_vjp(linscan.block_scan_vjp, A, b, 0.5, directions=2)
            linscan.check_vjp(linscan.block_scan_vjp, A, b[:1], None, directions=2, reverse=True, reset=reset)
        A = matrices(rng, (12, n, n), "complex128")
        linscan.check_vjp(linscan.block_scan_vjp, A, b[:, :, :1], b[0, 0, 0], directions=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_keep_their_dtype_and_size(rng, dtype, shared):
    A, b = matrices(rng, (4, 1 if shared else 9, 3, 3), dtype), random(rng, (1, 9, 3), dtype)
    h, pullback = linscan.block_scan_vjp(A, b)
    for g in (None, random(rng, h.shape, dtype)):
        dA, db, dh0 = pullback(g)
        assert (dA.dtype, dA.shape, db.dtype, db.shape, dh0) == (A.dtype, A.shape, b.dtype, b.shape, None)
    exact = linscan.block_scan_vjp(oracles.wide(A), oracles.wide(b))[1](oracles.wide(g))
    for got, want in zip((dA, db), exact, strict=False):
        assert_close(got, want, 2 * blocks(dtype, 3))


def test_half_precision_carries_its_state_in_float32():
    for n in (2, 5):
        h = linscan.block_scan(np.eye(n, dtype=np.float16), np.full((4096, n), 2.0**-11, np.float16))
        assert (h[-1] == 2.0).all()


def test_the_error_bound_in_the_docstring_holds(rng):
    for n in (2, 4, 6):
        A, b = matrices(rng, (100, n, n), "float32", 1.0), random(rng, (100, n), "float32")
        h, want = linscan.block_scan(A, b), oracles.block_scan(A, b)
        sizes = np.abs(oracles.wide(A))
        local = np.abs(oracles.wide(b))
        local[1:] += (sizes[1:] @ np.abs(want[:-1])[..., None])[..., 0]
        bound = np.zeros((100, n))
        for s in range(100):
            product = np.eye(n)
            for t in range(s, 100):
                product = oracles.wide(A[t]) @ product if t > s else product
                bound[t] += np.abs(product) @ local[s]
        assert (np.abs(h - want) <= 1.01 * (n + 1) * eps("float32") * bound).all()  # 1 % for what is not first order


def test_empty_arrays():
    for lead, length, n in [((), 0, 2), ((3,), 0, 5), ((0,), 5, 2), ((2, 0), 5, 6), ((2,), 5, 0)]:
        for steps in {length, 1}:
            A, b = np.ones((*lead, steps, n, n)), np.ones((*lead, length, n))
            h, pullback = linscan.block_scan_vjp(A, b, 2.0)
            assert h.shape == b.shape
            dA, db, dh0 = pullback(None)
            assert (dA.shape, db.shape, dh0) == (A.shape, b.shape, 0.0)


def test_result_dtype():
    f32 = np.ones((2, 2), np.float32)
    assert linscan.block_scan(f32, f32).dtype == np.float32
    assert linscan.block_scan(f32, f32, 1j).dtype == np.complex64
    assert linscan.block_scan(np.ones((2, 2), int), np.ones((2, 2), int)).dtype == np.float64
    assert linscan.block_step(f32, f32[0], np.ones(2)).dtype == np.float64


def test_errors_say_who_what_and_what_came():
    A, b = np.ones((3, 5, 2, 2)), np.ones((3, 5, 2))
    with pytest.raises(ValueError, match=r"block_scan: A must have shape \(\.\.\., T, n, n\); got \(3, 5, 2, 1\)"):
        linscan.block_scan(A[..., :1], b)
    with pytest.raises(ValueError, match=r"block_scan: b must have shape \(\.\.\., T, 2\) to fit A; got \(3, 5, 1\)"):
        linscan.block_scan(A, b[..., :1])
    with pytest.raises(ValueError, match=r"block_scan: b must have shape \(\.\.\., T, 2\) to fit A; got \(2,\)"):
        linscan.block_scan(A, b[0, 0])
    with pytest.raises(ValueError, match=r"must broadcast; got \(3, 5\) and \(3, 4\)"):
        linscan.block_scan(A, b[:, :4])
    with pytest.raises(ValueError, match=r"block_scan: h0 must broadcast to \(3, 2\); got \(3,\)"):
        linscan.block_scan(A, b, np.ones(3))
    with pytest.raises(TypeError, match=r"block_scan: reset must be boolean; got float64"):
        linscan.block_scan(A, b, reset=np.ones(5))
    with pytest.raises(ValueError, match=r"block_scan_vjp: dh must have shape \(3, 5, 2\); got \(2,\)"):
        linscan.block_scan_vjp(A, b)[1](np.ones(2))
    with pytest.raises(ValueError, match=r"block_step: h must have shape \(\.\.\., 2\) to fit A; got \(3,\)"):
        linscan.block_step(A[0, 0], b[0, 0], np.ones(3))
    with pytest.raises(ValueError, match=r"block_step: A must have shape \(\.\.\., n, n\); got \(2,\)"):
        linscan.block_step(b[0, 0], b[0, 0], b[0, 0])
