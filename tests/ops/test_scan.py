"""Laws of `scan`, `scan_step` and `scan_vjp`, on every engine that runs on the CPU."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import accumulated, assert_close, eps, stable

ENGINES = ["reference", "cpu"]
LENGTHS = [0, 1, 2, 7, 8, 9, 63, 64, 65, 257]


def decays(rng, shape, dtype):
    """Decays of modulus 0.3 to 0.95, of either sign or any phase."""
    kind = dtype_of(dtype)
    size = rng.uniform(0.3, 0.95, shape)
    turn = np.exp(1j * rng.uniform(-np.pi, np.pi, shape)) if kind.kind == "c" else rng.choice([-1.0, 1.0], shape)
    return (size * turn).astype(kind)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_loop(rng, engine, dtype, length):
    a, b = decays(rng, (3, length), dtype), random(rng, (3, length), dtype)
    h0 = random(rng, (3,), dtype)
    with linscan.use_engine(engine):
        h = linscan.scan(a, b, h0)
    assert h.dtype == dtype_of(dtype)
    assert_close(h, oracles.scan(a, b, h0), stable(dtype))


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    length=st.integers(1, 70),
    axis=st.integers(0, 3),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    reverse=st.booleans(),
    with_reset=st.booleans(),
    with_state=st.booleans(),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_axis_layout_state_reset_and_direction(
    shape, length, axis, dtype, reverse, with_reset, with_state, layout, engine, seed
):
    rng = np.random.default_rng(seed)
    axis %= len(shape)
    shape[axis] = length
    shape = tuple(shape)
    a, b = (laid_out(x, layout) for x in (decays(rng, shape, dtype), random(rng, shape, dtype)))
    h0 = random(rng, shape[:axis] + shape[axis + 1 :], dtype) if with_state else None
    reset = rng.random(shape) < 0.2 if with_reset else None
    copies = a.copy(), b.copy()
    with linscan.use_engine(engine):
        h = linscan.scan(a, b, h0, axis=axis, reverse=reverse, reset=reset)
    assert_close(h, oracles.scan(a, b, h0, axis, reverse, reset), stable(dtype))
    assert h.flags.c_contiguous
    np.testing.assert_array_equal(a, copies[0])
    np.testing.assert_array_equal(b, copies[1])


def laid_out(x, layout):
    """The same numbers, read-only, in another memory layout."""
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "flipped":
        x = x[::-1].copy()[::-1]
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("inner", [1, 3, 8, 40])
def test_wide_and_narrow_channels(rng, engine, inner):
    a, b = decays(rng, (4, 33, inner), "float32"), random(rng, (4, 33, inner), "float32")
    with linscan.use_engine(engine):
        for reverse in (False, True):
            h = linscan.scan(a, b, axis=1, reverse=reverse)
            assert_close(h, oracles.scan(a, b, None, 1, reverse), stable("float32"))


@pytest.mark.parametrize("engine", ENGINES)
def test_broadcasting(rng, engine):
    b = random(rng, (4, 5, 16), "float64")
    cases = [0.5, decays(rng, (16,), "float64"), decays(rng, (5, 1), "float64"), decays(rng, (1, 5, 16), "float64")]
    with linscan.use_engine(engine):
        for a in cases:
            for axis in (0, 1, 2):
                h = linscan.scan(a, b, 1.0, axis=axis)
                assert_close(h, oracles.scan(a, b, 1.0, axis), stable("float64"))
        assert_close(linscan.scan(b / 4, 1), oracles.scan(b / 4, 1), stable("float64"))


@given(
    cuts=st.lists(st.integers(0, 90), max_size=5),
    reverse=st.booleans(),
    dtype=st.sampled_from(["float64", "complex64"]),
)
def test_splitting_anywhere_and_carrying_the_state_changes_nothing(cuts, reverse, dtype):
    rng = np.random.default_rng(1)
    a, b, h0 = decays(rng, (2, 90), dtype), random(rng, (2, 90), dtype), random(rng, (2,), dtype)
    edges = [0, *sorted(cuts), 90]
    pieces = list(pairwise(edges))
    state, parts = h0, []
    for lo, hi in reversed(pieces) if reverse else pieces:
        part = linscan.scan(a[:, lo:hi], b[:, lo:hi], state, reverse=reverse)
        state = state if lo == hi else part[:, 0 if reverse else -1]
        parts.append(part)
    whole = np.concatenate(parts[::-1] if reverse else parts, axis=1)
    assert_close(whole, linscan.scan(a, b, h0, reverse=reverse), stable(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_stepping_equals_scanning(rng, dtype):
    a, b, h = decays(rng, (40, 3), dtype), random(rng, (40, 3), dtype), random(rng, (3,), dtype)
    whole = linscan.scan(a, b, h, axis=0)
    for t in range(40):
        h = linscan.scan_step(a[t], b[t], h)
        assert h.dtype == dtype_of(dtype)
        assert_close(h, whole[t], 2 * stable(dtype))


def test_step_broadcasts_and_promotes():
    assert linscan.scan_step(0.5, np.float32(1), np.ones((2, 1), np.float32)).dtype == np.float32
    assert linscan.scan_step(np.ones((3, 1)), np.ones(2), 2).tolist() == [[3, 3], [3, 3], [3, 3]]
    with pytest.raises(ValueError, match=r"scan_step: a and b and h must broadcast; got \(2,\) and \(3,\) and \(\)"):
        linscan.scan_step(np.ones(2), np.ones(3), 1.0)


def test_time_invariant_scan_is_a_convolution(rng):
    b = random(rng, (200,), "float64")
    assert_close(linscan.scan(0.9, b), np.convolve(b, 0.9 ** np.arange(200))[:200], accumulated("float64", 200))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_long_rows_in_blocks(rng, dtype, reverse):
    length = (1 << 16) + 5003
    a, b = decays(rng, (1, length), dtype), random(rng, (1, length), dtype)
    h = linscan.scan(a, b, 2.0, reverse=reverse)
    assert_close(h, oracles.scan(a, b, 2.0, reverse=reverse), stable(dtype))


@pytest.mark.parametrize("shape", [(7, 300), (1, 200_003), (3, 70_000), (2, 40, 24)])
def test_bits_depend_neither_on_workers_nor_on_other_rows(rng, shape):
    a, b = decays(rng, shape, "float32"), random(rng, shape, "float32")
    axis = 1
    if shape[1] > 1 << 16:  # eight steps of which one prefix overflows, but not their whole product
        a[:, 60005:60008] = 1e30, 1e30, 0
    one = linscan.scan(a, b, axis=axis, workers=1)
    for workers in (2, 3, 7):
        np.testing.assert_array_equal(linscan.scan(a, b, axis=axis, workers=workers), one)
    np.testing.assert_array_equal(linscan.scan(a[-1:], b[-1:], axis=axis), one[-1:])
    _, pullback = linscan.scan_vjp(a, b, axis=axis, workers=1)
    _, pullback_3 = linscan.scan_vjp(a, b, axis=axis, workers=3)
    for x, y in zip(pullback(b)[:2], pullback_3(b)[:2], strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("engine", "length"), [("reference", 40), ("cpu", 40), ("cpu", 70_000)])
@pytest.mark.parametrize("inner", [1, 16])
def test_growing_rows_equal_the_loop(rng, engine, length, inner):
    """Products of decays overflow float32 long before the states do: tree products would give inf * 0 = NaN."""
    a = np.full((2, length, inner), 1.05, np.float32)
    for i, factor in enumerate([1e30, 1e30, 1e-30, 1e-30]):  # a product of two overflows; the state is still zero
        a[:, i + 1 : -30 : length // 4] = factor
    b = np.zeros_like(a)
    b[:, -30:] = random(rng, (2, 30, inner), "float32")
    with linscan.use_engine(engine):
        h = linscan.scan(a, b, axis=1)
    want = oracles.scan(a, b, axis=1)
    assert np.isfinite(h).all()
    assert_close(h, want, accumulated("float32", 30))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("shape", "axis"), [((3, 50), 1), ((50, 3), 0), ((2, 50, 16), 1)])
def test_nan_and_inf_reach_only_their_row_and_later_times(rng, engine, bad, shape, axis):
    a, b = decays(rng, shape, "float64"), random(rng, shape, "float64")
    clean = oracles.scan(a, b, axis=axis)
    for which in (0, 1):
        arrays = [a.copy(), b.copy()]
        at = tuple(21 if i == axis else 1 for i in range(len(shape)))
        arrays[which][at] = bad
        with linscan.use_engine(engine):
            h = linscan.scan(*arrays, axis=axis)
        touched = np.zeros(shape, bool)
        touched[tuple(slice(21, None) if i == axis else 1 for i in range(len(shape)))] = True
        assert not np.isfinite(h[at])
        assert_close(h[~touched], clean[~touched], stable("float64"))


@pytest.mark.parametrize("engine", ENGINES)
def test_reset_forgets_even_what_is_not_finite(engine):
    a, b = np.full(6, 0.5), np.array([np.inf, 1.0, np.nan, 1.0, 2.0, 4.0])
    a[3] = np.nan
    reset = np.array([0, 0, 0, 1, 0, 0], bool)
    with linscan.use_engine(engine):
        h, pullback = linscan.scan_vjp(a, b, reset=reset)
        da, db, _ = pullback(np.ones(6))
    np.testing.assert_array_equal(h[3:], [1, 2.5, 5.25])
    assert da[3] == 0
    np.testing.assert_array_equal(db[:3], [1.75, 1.5, 1])


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_where_states_are_not_finite_stay_in_their_row(engine):
    a, b = np.full((2, 20), 0.5), np.ones((2, 20))
    b[0, 10] = np.nan
    with linscan.use_engine(engine):
        _, pullback = linscan.scan_vjp(a, b)
        da, db, _ = pullback(np.ones((2, 20)))
    assert np.isfinite(da[1]).all()
    assert np.isfinite(db).all()


def test_subnormals_are_flushed(rng):
    a, b = np.full((4, 5000), 0.5, np.float32), np.zeros((4, 5000), np.float32)
    b[:, 0] = 1
    h = linscan.scan(a, b)
    assert h[0, 126] == 2.0**-126  # the smallest normal number
    assert not h[:, 127:].any()
    assert np.float32(1e-38) * np.float32(0.5) != 0  # and the thread's mode is back


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_out(rng, dtype):
    a, b = decays(rng, (3, 50), dtype), random(rng, (3, 50), dtype)
    want = linscan.scan(a, b)
    out = np.full((3, 50), np.nan, dtype)
    assert linscan.scan(a, b, out=out) is out
    np.testing.assert_array_equal(out, want)
    strided = np.full((3, 100), np.nan, dtype)[:, ::2]
    np.testing.assert_array_equal(linscan.scan(a, b, out=strided), want)
    for i in (0, 1):
        inputs = [a.copy(), b.copy()]
        np.testing.assert_array_equal(linscan.scan(*inputs, out=inputs[i]), want)
    buffer = np.concatenate([b.ravel(), np.zeros(7, dtype)])
    shifted = buffer[7:157].reshape(3, 50)
    np.testing.assert_array_equal(linscan.scan(a, buffer[:150].reshape(3, 50), out=shifted), want)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((2, 21), -1), ((2, 21, 3), 1), ((21, 9), 0), ((3, 1), -1), ((1, 2), -1)])
@pytest.mark.parametrize("kind", ["real", "complex", "mixed"])
def test_gradients(rng, engine, reverse, with_reset, shape, axis, kind):
    a = decays(rng, shape, "complex128" if kind == "complex" else "float64")
    b = random(rng, shape, "float64" if kind == "real" else "complex128")
    reset = rng.random(shape) < 0.2 if with_reset else None
    rest = shape[:axis] + shape[axis % len(shape) + 1 :]
    with linscan.use_engine(engine):
        for h0 in (None, random(rng, rest, b.dtype), 1.5):
            linscan.check_vjp(linscan.scan_vjp, a, b, h0, axis=axis, reverse=reverse, reset=reset)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_broadcast_arguments(rng, engine):
    b = random(rng, (3, 12, 10), "float64")
    with linscan.use_engine(engine):
        for a in (0.7, decays(rng, (12, 1), "float64"), decays(rng, (3, 1, 10), "complex128")):
            linscan.check_vjp(linscan.scan_vjp, a, b, 0.5, axis=1)
            linscan.check_vjp(linscan.scan_vjp, a, b[:1], None, axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_keep_their_dtype_and_size(rng, dtype):
    a, b = decays(rng, (4, 9), dtype), random(rng, (1, 9), dtype)
    h, pullback = linscan.scan_vjp(a, b)
    for g in (None, random(rng, h.shape, dtype)):
        da, db, dh0 = pullback(g)
        assert (da.dtype, da.shape, db.dtype, db.shape, dh0) == (a.dtype, a.shape, b.dtype, b.shape, None)
    exact = linscan.scan_vjp(oracles.wide(a), oracles.wide(b))[1](oracles.wide(g))
    for got, want in zip((da, db), exact, strict=False):
        assert_close(got, want, 4 * stable(dtype))


def test_half_precision_carries_its_state_in_float32():
    b = np.full(4096, 2.0**-11, np.float16)
    assert linscan.scan(np.float16(1), b)[-1] == 2.0


def test_result_dtype():
    f32 = np.ones(2, np.float32)
    assert linscan.scan(0.5, f32).dtype == np.float32
    assert linscan.scan(1j, f32).dtype == np.complex64
    assert linscan.scan(1, np.arange(3)).dtype == np.float64
    assert linscan.scan(f32, np.ones(2)).dtype == np.float64
    assert linscan.scan(f32, f32, np.float64(1)).dtype == np.float64


def test_errors_say_who_what_and_what_came():
    x = np.ones((2, 8, 4))
    with pytest.raises(ValueError, match=r"scan: a and b must broadcast; got \(2, 8, 4\) and \(2, 8, 3\)"):
        linscan.scan(x, x[..., :3])
    with pytest.raises(np.exceptions.AxisError, match=r"axis 3 is out of bounds"):
        linscan.scan(x, x, axis=3)
    with pytest.raises(TypeError, match=r"scan: axis must be an integer; got 1\.5"):
        linscan.scan(x, x, axis=1.5)
    with pytest.raises(ValueError, match=r"scan: h0 must broadcast to \(2, 4\); got \(3,\)"):
        linscan.scan(x, x, np.ones(3), axis=1)
    with pytest.raises(ValueError, match=r"scan: out must have shape \(2, 8, 4\) and dtype float64; got"):
        linscan.scan(x, x, out=np.ones((2, 8, 4), np.float32))
    with pytest.raises(TypeError, match=r"scan: reset must be boolean; got float64"):
        linscan.scan(x, x, reset=np.ones(4))
    with pytest.raises(ValueError, match=r"scan_vjp: dh must have shape \(2, 8, 4\); got \(8,\)"):
        linscan.scan_vjp(x, x)[1](np.ones(8))
    with pytest.raises(TypeError, match=r"scan: a has dtype object"):
        linscan.scan(np.array([None]), x)


def test_empty_arrays():
    for shape, axis in [((0,), 0), ((3, 0), 1), ((0, 5), 1), ((2, 0, 16), 1)]:
        h, pullback = linscan.scan_vjp(np.ones(shape), np.ones(shape), 2.0, axis=axis)
        assert h.shape == shape
        da, db, dh0 = pullback(None)
        assert (da.shape, db.shape, dh0) == (shape, shape, 0.0)


def test_the_error_bound_in_the_docstring_holds(rng):
    a, b = decays(rng, (1, 400), "float32"), random(rng, (1, 400), "float32")
    h, want = linscan.scan(a, b)[0], oracles.scan(a, b)[0]
    size, bound = np.abs(oracles.wide(b[0])), np.empty(400)
    total = oracles.scan(np.abs(a), np.abs(b))[0]
    bound[0] = size[0]
    for t in range(1, 400):  # bound[t] = sum_s |a[t] ... a[s+1]| (t - s + 1) |b[s]|, by its own recurrence
        bound[t] = abs(float(a[0, t])) * (bound[t - 1] + total[t - 1]) + size[t]
    assert (np.abs(h - want) <= 1.01 * eps("float32") * bound).all()  # 1 % for what is not of first order
