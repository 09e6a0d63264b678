"""Laws of `lfilter` and `sosfilt` and their gradients, on every engine that runs on the CPU."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, eps, filtered

ENGINES = ["reference", "cpu"]
FULL = ["float32", "float64", "complex64", "complex128"]
TAPS = [(3, 3), (2, 4), (4, 1), (2, 12)]


def denominator(rng, taps, dtype, scale=1.0):
    """A stable denominator with poles of modulus 0.2 to 0.8, in conjugate pairs if `dtype` is real."""
    count = taps - 1
    poles = rng.uniform(0.2, 0.8, count) * np.exp(1j * rng.uniform(-np.pi, np.pi, count))
    if dtype_of(dtype).kind != "c":
        half = poles[: count // 2]
        poles = np.concatenate([half, half.conj(), rng.uniform(-0.8, 0.8, count % 2)])
        return (scale * np.atleast_1d(np.poly(poles).real)).astype(dtype_of(dtype))
    return (scale * np.atleast_1d(np.poly(poles))).astype(dtype_of(dtype))


def sections(rng, count, dtype):
    """Stable second-order sections, without their fourth column of ones shared between different filters."""
    rows = [np.concatenate([random(rng, (3,), dtype), denominator(rng, 3, dtype)]) for _ in range(count)]
    sos = np.stack(rows)
    sos[:, 3] = 1
    return sos


def cascade(sos, x, zi=None):
    """The oracle of `sosfilt` on one row: one section after the other."""
    zf = []
    for s, row in enumerate(sos):
        x, state = oracles.lfilter(row[:3], row[3:], x, None if zi is None else zi[s])
        zf.append(state)
    return x, np.stack(zf)


def sos_tolerance(dtype, sos):
    return sum(filtered(dtype, row[3:]) for row in np.asarray(sos)) * 4  # a section may amplify what comes before it


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize(("n_b", "n_a"), TAPS)
@pytest.mark.filterwarnings("ignore:lfilter. feedback of order")
def test_lfilter_equals_the_loop(rng, engine, dtype, n_b, n_a):
    b, a = random(rng, (n_b,), dtype), denominator(rng, n_a, dtype, scale=1.5)
    order = max(n_b, n_a) - 1
    for length in (0, 1, 2, 7, 131):
        x, zi = random(rng, (3, length), dtype), random(rng, (3, order), dtype)
        with linscan.use_engine(engine):
            y, zf = linscan.lfilter(b, a, x, zi=zi)
            alone = linscan.lfilter(b, a, x)
        assert y.dtype == zf.dtype == dtype_of(dtype)
        for row in range(3):
            want, state = oracles.lfilter(b, a, x[row], zi[row])
            assert_close(y[row], want, filtered(dtype, a), f"y of length {length}")
            assert_close(zf[row], state, 2 * filtered(dtype, a), f"zf of length {length}")
            assert_close(alone[row], oracles.lfilter(b, a, x[row])[0], filtered(dtype, a), "y from rest")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_is_storage_around_float32(rng, engine, dtype):
    kind = dtype_of(dtype)
    b, a, x = (np.asarray(v).astype(kind) for v in ([0.5, 0.25], [1.0, -0.75], random(rng, (2, 50), "float64")))
    with linscan.use_engine(engine):
        y, zf = linscan.lfilter(b, a, x, zi=kind.type(0))
        cascaded = linscan.sosfilt(np.array([[0.5, 0.25, 0, 1, -0.75, 0]]).astype(kind), x)
    assert y.dtype == zf.dtype == cascaded.dtype == kind
    narrow = [np.float32(v) for v in (b, a, x)]
    np.testing.assert_array_equal(y, linscan.lfilter(*narrow).astype(kind))
    np.testing.assert_array_equal(cascaded, linscan.lfilter(*narrow).astype(kind))


@pytest.mark.parametrize("engine", ENGINES)
def test_order_zero_is_a_gain(rng, engine):
    x = random(rng, (2, 9), "float64")
    with linscan.use_engine(engine):
        y, zf = linscan.lfilter(3.0, 2.0, x, zi=np.zeros((2, 0)))
    assert_close(y, 1.5 * x, eps("float64"))
    assert zf.shape == (2, 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("count", [1, 4, 6])
def test_sosfilt_equals_the_loop(rng, engine, dtype, count):
    sos = sections(rng, count, dtype)
    for length in (0, 1, 2, 131):
        x, zi = random(rng, (length, 3), dtype), random(rng, (count, 2, 3), dtype)
        with linscan.use_engine(engine):
            y, zf = linscan.sosfilt(sos, x, axis=0, zi=zi)
        assert y.dtype == zf.dtype == dtype_of(dtype)
        for row in range(3):
            want, state = cascade(sos, x[:, row], zi[:, :, row])
            assert_close(y[:, row], want, sos_tolerance(dtype, sos))
            assert_close(zf[:, :, row], state, sos_tolerance(dtype, sos))


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    length=st.integers(1, 40),
    axis=st.integers(-4, 3),
    dtype=st.sampled_from(["float64", "complex64"]),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_any_axis_and_layout_as_scipy(shape, length, axis, dtype, layout, engine, seed):
    rng = np.random.default_rng(seed)
    axis %= len(shape)
    shape[axis] = length
    x = random(rng, tuple(shape), dtype)
    x = {"C": x, "F": np.asfortranarray(x), "strided": np.repeat(x, 2, -1)[..., ::2], "flipped": x[::-1].copy()[::-1]}[
        layout
    ]
    x.flags.writeable = False
    copy, kind = x.copy(), x.real.dtype
    b, a, sos = random(rng, (3,), kind), denominator(rng, 3, kind), sections(rng, 4, kind)
    state = random(rng, (*shape[:axis], 2, *shape[axis + 1 :]), dtype)
    states = random(rng, (4, *state.shape), dtype)
    for at in (axis, axis - len(shape)):
        with linscan.use_engine(engine):
            filtered_, filtered_zf = linscan.lfilter(b, a, x, at, state)
            cascaded, cascaded_zf = linscan.sosfilt(sos, x, at, states)
        want, want_zf = scipy.signal.lfilter(b, a, x, at, state)
        assert_close(filtered_, want, 2 * filtered(dtype, a))
        assert_close(filtered_zf, want_zf, 4 * filtered(dtype, a))
        want, want_zf = scipy.signal.sosfilt(sos, x, at, states)
        assert_close(cascaded, want, sos_tolerance(dtype, sos))
        assert_close(cascaded_zf, want_zf, sos_tolerance(dtype, sos))
        assert filtered_.flags.c_contiguous
        assert filtered_zf.flags.c_contiguous
    np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("dtype", FULL)
def test_agrees_with_scipy_on_designed_filters(rng, dtype):
    kind = np.dtype(dtype)
    real = kind.type(0).real.dtype
    x = random(rng, (5, 3000), dtype)
    b, a = (v.astype(real) for v in scipy.signal.butter(4, 0.2))
    sos = scipy.signal.butter(8, 0.05, output="sos").astype(real)
    assert_close(linscan.lfilter(b, a, x), scipy.signal.lfilter(b, a, x), filtered(dtype, a))
    assert_close(linscan.sosfilt(sos, x), scipy.signal.sosfilt(sos, x), sos_tolerance(dtype, sos))


@given(
    cuts=st.lists(st.integers(0, 150), max_size=6),
    dtype=st.sampled_from(["float32", "float64", "complex64"]),
    rows=st.sampled_from([1, 17]),
    single=st.booleans(),
)
@settings(max_examples=8)
@pytest.mark.filterwarnings("ignore:lfilter. feedback of order")
def test_pieces_have_the_bits_of_one_call(cuts, dtype, rows, single):
    rng = np.random.default_rng(1)
    edges = range(151) if single else [0, *sorted(cuts), 150]
    real = np.dtype(dtype).type(0).real.dtype
    x = random(rng, (rows, 150), dtype)
    sos = sections(rng, 5, real)
    short, long = (
        (random(rng, (3,), dtype), denominator(rng, 3, real)),
        (random(rng, (2,), real), denominator(rng, 12, real)),
    )
    cases = [
        (lambda x, z: linscan.lfilter(*short, x, zi=z), random(rng, (rows, 2), dtype)),
        (lambda x, z: linscan.lfilter(*long, x, zi=z), random(rng, (rows, 11), dtype)),
        (lambda x, z: linscan.sosfilt(sos, x, zi=z), random(rng, (5, rows, 2), dtype)),
    ]
    for run, zi in cases:
        whole, end = run(x, zi)
        parts = []
        for lo, hi in pairwise(edges):
            y, zi = run(x[:, lo:hi], zi)
            parts.append(y)
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
        np.testing.assert_array_equal(zi, end)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_bits_depend_on_neither_workers_nor_other_rows_nor_layout(rng, dtype):
    real = np.dtype(dtype).type(0).real.dtype
    b, a, sos = random(rng, (3,), real), denominator(rng, 3, real), sections(rng, 5, real)
    x = random(rng, (37, 3000), dtype)
    for run in (lambda x, **k: linscan.lfilter(b, a, x, **k), lambda x, **k: linscan.sosfilt(sos, x, **k)):
        y = run(x, workers=1)
        np.testing.assert_array_equal(run(x, workers=2), y)
        np.testing.assert_array_equal(run(x, workers=3), y)
        for rows in (slice(0, 1), slice(5, 7), slice(11, 37)):
            np.testing.assert_array_equal(run(x[rows]), y[rows])
        np.testing.assert_array_equal(run(x[4]), y[4])
        np.testing.assert_array_equal(run(np.ascontiguousarray(x.T), axis=0).T, y)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_filter_per_row_and_a_bank_on_one_signal(rng, engine):
    b, a = random(rng, (4, 1, 3), "float64"), np.stack([denominator(rng, 3, "float64", 2.0) for _ in range(5)])
    sos = np.stack([sections(rng, 4, "float64") for _ in range(4)])
    x, zi = random(rng, (9, 5), "float64"), random(rng, (4, 2, 5), "float64")
    with linscan.use_engine(engine):
        y, zf = linscan.lfilter(b, a, x, axis=0, zi=zi)
        bank = linscan.sosfilt(sos, x[:, 0])
    assert y.shape == (4, 9, 5)
    assert bank.shape == (4, 9)
    for i in range(4):
        assert_close(bank[i], cascade(sos[i], x[:, 0])[0], sos_tolerance("float64", sos[i]))
        for j in range(5):
            want, state = oracles.lfilter(b[i, 0], a[j], x[:, j], zi[i, :, j])
            assert_close(y[i, :, j], want, filtered("float64", a[j]))
            assert_close(zf[i, :, j], state, 2 * filtered("float64", a[j]))


def test_forms_of_the_initial_state(rng):
    b, a, x = random(rng, (3,), "float64"), denominator(rng, 3, "float64"), random(rng, (3, 5, 4), "float64")
    one = random(rng, (2,), "float64")
    full = np.broadcast_to(one[:, None], (3, 2, 4))
    want, want_zf = scipy.signal.lfilter(b, a, x, axis=1, zi=full)
    for zi in (one, full, full[:1], full[:, :, :1]):
        y, zf = linscan.lfilter(b, a, x, axis=1, zi=zi)
        assert_close(y, want, filtered("float64", a))
        assert_close(zf, want_zf, 2 * filtered("float64", a))
    np.testing.assert_array_equal(linscan.lfilter(b, a, x, zi=0)[0], linscan.lfilter(b, a, x))
    empty, zf = linscan.lfilter(b, a, x[:, :0], axis=1, zi=full)
    assert empty.shape == (3, 0, 4)
    np.testing.assert_array_equal(zf, full)
    sos = sections(rng, 4, "float64")
    for zi in (random(rng, (4, 2), "float64"), random(rng, (4, 1, 2, 1), "float64")):
        wide = np.broadcast_to(zi[:, None, :, None] if zi.ndim == 2 else zi, (4, 3, 2, 4))
        y, zf = linscan.sosfilt(sos, x, axis=1, zi=zi)
        want, want_zf = scipy.signal.sosfilt(sos, x, axis=1, zi=wide)
        assert_close(y, want, sos_tolerance("float64", sos))
        assert_close(zf, want_zf, sos_tolerance("float64", sos))


def test_dtypes_are_promoted_as_numpy_does(rng):
    f, d = np.ones(3, np.float32), np.ones(3)
    assert linscan.lfilter(f, f, f).dtype == np.float32
    assert linscan.lfilter(0.5, 1, f).dtype == np.float32
    assert linscan.lfilter(d, f, f).dtype == np.float64
    assert linscan.lfilter([0.5], [1.0], f).dtype == np.float64
    assert linscan.lfilter(f, f, np.ones(3, np.float16)).dtype == np.float32
    assert linscan.lfilter(1, 1, np.ones(3, int)).dtype == np.float64
    assert linscan.lfilter(f, f, f.astype("F")).dtype == np.complex64
    assert linscan.lfilter(f, f, f, zi=np.zeros(2))[0].dtype == np.float64


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_and_inf_stay_in_their_row_and_later(rng, engine):
    b, a, sos = random(rng, (3,), "float32"), denominator(rng, 3, "float32"), sections(rng, 5, "float32")
    x = random(rng, (18, 40), "float32")
    with linscan.use_engine(engine), np.errstate(invalid="ignore"):
        for run in (lambda x: linscan.lfilter(b, a, x), lambda x: linscan.sosfilt(sos, x)):
            clean = run(x)
            for bad in (np.nan, np.inf):
                dirty = x.copy()
                dirty[7, 30] = bad
                y = run(dirty)
                assert not np.isfinite(y[7, 30:]).any()
                y[7, 30:] = clean[7, 30:]
                np.testing.assert_array_equal(y, clean)


def test_unstable_filters_grow_as_the_loop_does(rng):
    x = random(rng, (60,), "float64")
    a = np.array([1.0, -1.2])
    assert_close(linscan.lfilter([1.0], a, x), oracles.lfilter([1.0], a, x)[0], 60 * eps("float64"))


def test_high_order_in_single_precision_warns(rng):
    b, a = (v.astype(np.float32) for v in scipy.signal.butter(7, 0.3))
    x = np.ones(4, np.float32)
    with pytest.warns(RuntimeWarning, match="lfilter: feedback of order 7 in single precision may be unstable"):
        linscan.lfilter(b, a, x)
    linscan.lfilter(b, a.astype(np.float64), x)
    linscan.lfilter(np.ones(20, np.float32), np.float32(1), x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linscan.lfilter([1.0], [0.0, 1.0], [1.0]), ValueError, r"lfilter: a\[0\] must not be 0"),
        (lambda: linscan.lfilter([], [1.0], [1.0]), ValueError, r"lfilter: b must hold at least one .*\(0,\)"),
        (lambda: linscan.lfilter([1.0], [1.0], 1.0), ValueError, "lfilter: x must be at least 1-D"),
        (lambda: linscan.lfilter([1.0], [1.0], [1.0], axis=1), np.exceptions.AxisError, "lfilter: axis 1"),
        (lambda: linscan.lfilter([1.0], [1.0], [1.0], axis=0.5), TypeError, "lfilter: axis must be an integer"),
        (
            lambda: linscan.lfilter([1.0, 1.0], [1.0], np.ones((2, 3)), zi=np.ones((3, 1))),
            ValueError,
            r"lfilter: zi must broadcast to \(2, 1\); got \(3, 1\)",
        ),
        (
            lambda: linscan.lfilter([1.0, 1.0], [1.0], np.ones((2, 3)), zi=np.ones((2, 2))),
            ValueError,
            r"lfilter: zi must have shape \(2, 1\), \(1,\) for all rows, or be a scalar; got \(2, 2\)",
        ),
        (
            lambda: linscan.lfilter(np.ones((3, 2)), [1.0], np.ones((2, 5))),
            ValueError,
            r"lfilter: b and a and x_without_axis must broadcast; got \(3,\) and \(\) and \(2,\)",
        ),
        (lambda: linscan.lfilter([1.0], [1.0], np.array(["a"])), TypeError, "lfilter: x has dtype"),
        (lambda: linscan.sosfilt(np.ones((2, 5)), [1.0]), ValueError, r"sosfilt: sos must have shape .*\(2, 5\)"),
        (lambda: linscan.sosfilt(2 * np.ones((1, 6)), [1.0]), ValueError, "must be all ones"),
        (
            lambda: linscan.sosfilt(np.ones((1, 6)), np.ones((3, 4)), zi=np.ones((1, 2, 2))),
            ValueError,
            r"sosfilt: zi must broadcast to \(1, 3, 2\); got",
        ),
    ],
)
def test_errors_say_what_was_needed(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(("n_b", "n_a"), [(3, 3), (1, 4), (4, 2), (1, 1), (3, 1)])
@pytest.mark.parametrize("length", [0, 1, 2, 12])
@pytest.mark.usefixtures("on_reference")
def test_lfilter_gradients(rng, dtype, n_b, n_a, length):
    b, a = random(rng, (n_b,), dtype), denominator(rng, n_a, dtype, scale=1.5)
    x, zi = random(rng, (length, 2), dtype), random(rng, (max(n_b, n_a) - 1, 2), dtype)
    linscan.check_vjp(lambda b, a, x, zi: linscan.lfilter_vjp(b, a, x, 0, zi), b, a, x, zi)
    if length:
        linscan.check_vjp(lambda b, a, x: _without_state(linscan.lfilter_vjp(b, a, x, 0)), b, a, x)


@pytest.fixture
def on_reference():
    """Gradients are the same array expressions on every engine, and here need no compilation."""
    with linscan.use_engine("reference"):
        yield


def test_gradients_on_the_cpu_engine(rng):
    b, x, zi = (random(rng, shape, "float64") for shape in ((3,), (2, 20), (2, 2)))
    a = denominator(rng, 3, "float64")
    linscan.check_vjp(lambda b, a, x, zi: linscan.lfilter_vjp(b, a, x, -1, zi), b, a, x, zi)


def _without_state(result):
    y, pullback = result
    return y, lambda dy: pullback(dy)[:-1]


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_gradients_of_broadcast_filters_and_states(rng, dtype):
    b, a = random(rng, (2, 1, 3), dtype), np.stack([denominator(rng, 3, dtype) for _ in range(3)])
    x = random(rng, (1, 7), dtype)
    for zi in (random(rng, (2, 1, 2), dtype), random(rng, (2,), dtype), random(rng, (), dtype)):
        linscan.check_vjp(lambda b, a, x, zi: linscan.lfilter_vjp(b, a, x, -1, zi), b, a, x, zi)


@pytest.mark.usefixtures("on_reference")
def test_gradients_of_mixed_real_and_complex(rng):
    b, a, z = random(rng, (2,), "float64"), denominator(rng, 3, "float64"), random(rng, (2,), "float64")
    x = random(rng, (2, 6), "complex128")
    linscan.check_vjp(lambda b, a, x, zi: linscan.lfilter_vjp(b, a, x, -1, zi), b, a, x, z)
    linscan.check_vjp(lambda b, a, x, zi: linscan.lfilter_vjp(b, a, x, -1, zi), b + 1j, a, x.real, z)


@pytest.mark.usefixtures("on_reference")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("lead", [(), (2, 1)])
def test_sosfilt_gradients(rng, dtype, lead):
    free = np.stack([np.delete(sections(rng, 3, dtype), 3, axis=1) for _ in range(int(np.prod(lead)))])
    free = free.reshape(*lead, 3, 5)
    rows = np.broadcast_shapes(lead, (2,))
    zi = random(rng, (3, *rows, 2), dtype)

    def vjp(free, x, zi):
        sos = np.insert(free, 3, 1, axis=-1)
        y, pullback = linscan.sosfilt_vjp(sos, x, -1, zi)

        def back(*grads):
            dsos, dx, dzi = pullback(*grads)
            assert not dsos[..., 3].any()
            return np.delete(dsos, 3, axis=-1), dx, dzi

        return y, back

    for length in (0, 1, 9):
        linscan.check_vjp(vjp, free, random(rng, (2, length), dtype), zi)
    linscan.check_vjp(vjp, free, random(rng, (2, 9), dtype), random(rng, (3, 2), dtype))


@pytest.mark.usefixtures("on_reference")
def test_gradients_keep_dtypes_and_shapes(rng):
    b, a, x = random(rng, (3,), "float32"), denominator(rng, 3, "float32"), random(rng, (2, 8), "float32")
    y, pullback = linscan.lfilter_vjp(b, a, x)
    grads = pullback(y)
    assert [g.dtype for g in grads[:3]] == [np.float32] * 3
    assert [g.shape for g in grads[:3]] == [(3,), (3,), (2, 8)]
    assert grads[3] is None
    assert not any(g.any() for g in pullback(None)[:3])
    with pytest.raises(ValueError, match=r"lfilter_vjp: dy must have shape \(2, 8\); got \(8,\)"):
        pullback(y[0])
