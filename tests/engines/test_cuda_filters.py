"""The laws of `lfilter` and `sosfilt` on the GPU, and what only a GPU can get wrong: chunks, layouts, streams."""

import numpy as np
import pytest
import scipy.signal

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.engines.on_device import on_gpu, poison, same
from tests.ops.test_filters import cascade, denominator, sections, sos_tolerance
from tests.tolerances import assert_close, filtered

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

FULL = ["float32", "float64", "complex64", "complex128"]
LENGTHS = [1, 2, 31, 33, 256, 257, 511, 512, 513, 8193]


def both(y, zf):
    """One vector: a state that happens to be small carries the roundings of the larger ones before it."""
    return np.concatenate([np.ravel(cupy.asnumpy(v)) for v in (y, zf)])


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("n_b", "n_a"), [(3, 3), (1, 2), (2, 6), (4, 1)])
@pytest.mark.parametrize("axis", [0, 1])
def test_lfilter_equals_the_loop(rng, dtype, length, n_b, n_a, axis):
    if length > 600 and (axis == 0 or n_b != 2):
        pytest.skip("the loop is slow")
    b, a, order = random(rng, (n_b,), dtype), denominator(rng, n_a, dtype, scale=1.5), max(n_b, n_a) - 1
    x, zi = random(rng, (3, length), dtype), random(rng, (3, order), dtype)
    if axis == 0:
        x, zi = np.ascontiguousarray(x.T), zi.T
    poison()
    y, zf = linscan.lfilter(*on_gpu(b, a, x), axis=axis, zi=cupy.asarray(zi))
    assert y.dtype == zf.dtype == dtype_of(dtype)
    x, zi, y, zf = (np.moveaxis(cupy.asnumpy(v), axis, -1) for v in (x, zi, y, zf))
    for row in range(3):
        want = oracles.lfilter(b, a, x[row], zi[row])
        assert_close(both(y[row], zf[row]), both(*want), filtered(dtype, a))


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("count", [1, 4, 5, 9])
@pytest.mark.parametrize("axis", [0, 1])
def test_sosfilt_equals_the_loop(rng, dtype, count, axis):
    sos = sections(rng, count, dtype)
    for length in (1, 300, 515):
        x, zi = random(rng, (2, length), dtype), random(rng, (count, 2, 2), dtype)
        if axis == 0:
            x, zi = x.T, zi.swapaxes(1, 2)
        poison()
        y, zf = linscan.sosfilt(*on_gpu(sos, x), axis=axis, zi=cupy.asarray(zi))
        zi, zf = (np.moveaxis(cupy.asnumpy(v), 1 + axis, -1) for v in (zi, zf))
        x, y = (np.moveaxis(cupy.asnumpy(v), axis, -1) for v in (x, y))
        for row in range(2):
            want = cascade(sos, x[row], zi[:, row])
            assert_close(both(y[row], zf[:, row]), both(*want), sos_tolerance(dtype, sos))


@pytest.mark.parametrize("dtype", DTYPES)
def test_axes_layouts_and_real_filters_of_complex_signals(rng, dtype):
    kind = dtype_of(dtype)
    real = np.dtype(f"f{kind.itemsize // 2}") if kind.kind == "c" else kind
    b, a = random(rng, (2,), real), denominator(rng, 3, real)
    sos = np.concatenate([b, np.zeros(1, real), a])[None]
    base = random(rng, (3, 5, 2, 600), kind)
    for axis in range(4):
        for view in (base, base[::-1, :, ::-1, ::2], base[..., ::-1], base.swapaxes(0, 3), base[:, :1]):
            x = np.moveaxis(view, 3, axis) if view.shape[3] > 5 else view
            got = linscan.lfilter(*on_gpu(b, a), _as_view(x, base), axis=axis)
            want = linscan.lfilter(oracles.wide(b), oracles.wide(a), oracles.wide(x), axis=axis)
            assert_close(cupy.asnumpy(got), want, 2 * filtered(dtype, a), f"axis {axis}")
            cascaded = linscan.sosfilt(*on_gpu(sos), _as_view(x, base), axis=axis)
            assert_close(cupy.asnumpy(cascaded), want, 4 * filtered(dtype, a), f"axis {axis}")


def _as_view(x, base):
    """The GPU's view of a copy of `base` that is laid out as the view `x` of it is."""
    moved = cupy.asarray(base)
    offset = x.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return cupy.ndarray(x.shape, x.dtype, moved.data + offset, x.strides)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_filter_for_each_row(rng, axis):
    x = random(rng, (5, 700), "float64")
    b, a = random(rng, (5, 2), "float64"), np.stack([denominator(rng, 3, "float64") for _ in range(5)])
    y = linscan.lfilter(*on_gpu(b, a, x if axis else x.T), axis=axis)
    y = cupy.asnumpy(y if axis else y.T)
    for row in range(5):
        assert_close(y[row], oracles.lfilter(b[row], a[row], x[row])[0], filtered("float64", a[row]))
    bank = linscan.lfilter(*on_gpu(b, a[0], x[0]))  # one denominator, five numerators, one signal
    assert_close(cupy.asnumpy(bank[3]), oracles.lfilter(b[3], a[0], x[0])[0], filtered("float64", a[0]))


@pytest.mark.parametrize(("cutoff", "order"), [(0.2, 4), (0.004, 2), (0.002, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_poles_near_the_unit_circle(rng, cutoff, order, dtype):
    if dtype == "float32" and order == 4 and cutoff < 0.01:
        pytest.skip("float32 coefficients of this filter are unstable")
    b, a = (v.astype(dtype) for v in scipy.signal.butter(order, cutoff))
    sos = scipy.signal.butter(order, cutoff, output="sos").astype(dtype)
    x = random(rng, (2, 20_001), dtype)
    wide = x.astype(np.longdouble)
    want = scipy.signal.lfilter(b.astype(np.longdouble), a.astype(np.longdouble), wide)
    loop = linscan.lfilter(b, a, x)
    y = cupy.asnumpy(linscan.lfilter(*on_gpu(b, a, x)))
    # At most as far off as the plain loop in the same precision, within a factor for the other order of its roundings.
    assert_close(y, want, 4 * np.linalg.norm(loop - want) / np.linalg.norm(want))
    want = scipy.signal.sosfilt(sos.astype(np.longdouble), wide)
    loop = linscan.sosfilt(sos, x)
    y = cupy.asnumpy(linscan.sosfilt(*on_gpu(sos, x)))
    assert_close(y, want, 4 * np.linalg.norm(loop - want) / np.linalg.norm(want))


@pytest.mark.parametrize("radius", [1.0, 1.0005, 1.05, 3.0])
def test_unstable_filters_do_what_the_loop_does(rng, radius):
    b, a, x = np.float32([1, 0.5]), np.float32(np.poly([radius, -radius])), random(rng, (3, 5000), "float32")
    want, y = linscan.lfilter(b, a, x), cupy.asnumpy(linscan.lfilter(*on_gpu(b, a, x)))
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(y), finite)
    scale = np.maximum.accumulate(np.abs(np.where(finite, want, 0)), axis=-1)
    assert_close((y / scale)[finite], (want / scale)[finite], 1e-3)


def test_not_a_number_reaches_only_what_follows(rng):
    x = random(rng, (4, 3000), "float64")
    broken = x.copy()
    broken[1, 1234] = np.nan
    broken[2, 5] = np.inf
    for b, a in (([1.0, 0.3], [1.0, -0.5, 0.2]), ([1.0, 2.0, 3.0], [1.0])):
        clean, got = (cupy.asnumpy(linscan.lfilter(*on_gpu(np.array(b), np.array(a), v))) for v in (x, broken))
        want = linscan.lfilter(b, a, broken)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        assert same(got[[0, 3]], clean[[0, 3]])
        assert same(got[1, :1234], clean[1, :1234])


def test_bits_depend_on_nothing_but_the_row(rng):
    b, a = (v.astype("f") for v in scipy.signal.butter(4, 0.2))
    sos = scipy.signal.butter(8, 0.2, output="sos").astype("f")
    x = random(rng, (70, 3001), "float32")
    for f in (
        lambda v, **o: linscan.lfilter(*on_gpu(b, a), v, **o),
        lambda v, **o: linscan.sosfilt(*on_gpu(sos), v, **o),
    ):
        y = f(cupy.asarray(x))
        assert same(y, f(cupy.asarray(x)))
        assert same(y[41], f(cupy.asarray(x[41])))
        assert same(y[41:42], f(cupy.asarray(x[41:42])))
        assert same(y.T, f(cupy.asarray(np.ascontiguousarray(x.T)), axis=0))
        assert same(y[::-1], f(cupy.asarray(x)[::-1]))


@pytest.mark.parametrize("at", [1, 255, 256, 300, 4000])
def test_splitting_and_carrying_the_state(rng, at):
    sos, x = sections(rng, 3, "float64"), random(rng, (2, 5000), "float64")
    b, a, zero = random(rng, (3,), "float64"), denominator(rng, 5, "float64"), np.zeros((2, 4))
    sos, b, a, x, zero = on_gpu(sos, b, a, x, zero)
    whole, last = linscan.lfilter(b, a, x, zi=zero)
    head, zf = linscan.lfilter(b, a, x[:, :at], zi=zero)
    tail, zf = linscan.lfilter(b, a, x[:, at:], zi=zf)
    assert_close(both(cupy.concatenate([head, tail], 1), zf), both(whole, last), filtered("float64", a.get()))
    whole, last = linscan.sosfilt(sos, x, zi=0)
    head, zf = linscan.sosfilt(sos, x[:, :at], zi=0)
    tail, zf = linscan.sosfilt(sos, x[:, at:], zi=zf)
    assert_close(both(cupy.concatenate([head, tail], 1), zf), both(whole, last), sos_tolerance("float64", sos.get()))


@pytest.mark.filterwarnings("ignore:lfilter. feedback of order")
@pytest.mark.parametrize(("n_b", "n_a"), [(9, 17), (40, 1), (3, 21)])
def test_high_orders(rng, n_b, n_a):
    b, a, x = random(rng, (n_b,), "float64"), denominator(rng, n_a, "float64"), random(rng, (2, 600), "float64")
    y, zf = linscan.lfilter(*on_gpu(b, a, x), zi=0)
    for row in range(2):
        want = oracles.lfilter(b, a, x[row])
        assert_close(both(y[row], zf[row]), both(*want), filtered("float64", a))


def test_many_rows_empty_axes_and_a_gain(rng):
    x = random(rng, (70_000, 3), "float32")
    y = linscan.lfilter(*on_gpu(np.float32([1.0]), np.float32([1, -0.5]), x))
    want = np.stack([x[:, 0], x[:, 1] + 0.5 * x[:, 0], x[:, 2] + 0.5 * x[:, 1] + 0.25 * x[:, 0]], axis=1)
    assert_close(cupy.asnumpy(y), want, 1e-6)
    y, zf = linscan.lfilter(*on_gpu(np.ones(2), np.array([1.0, -0.5]), np.zeros((3, 0))), zi=cupy.full((3, 1), 7.0))
    assert y.shape == (3, 0)
    assert (cupy.asnumpy(zf) == 7).all()
    y = linscan.lfilter(*on_gpu(np.array([3.0]), np.array([2.0]), np.ones((2, 4))))
    assert (cupy.asnumpy(y) == 1.5).all()


def test_another_stream_and_a_captured_graph(rng):
    b, a, x = on_gpu(np.float32([1, 0.5]), np.float32([1, -0.9, 0.5]), random(rng, (8, 4000), "float32"))
    want = cupy.asnumpy(linscan.lfilter(b, a, x))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        late = cupy.zeros_like(x)
        late[...] = x
        y = linscan.lfilter(b, a, late)
    stream.synchronize()
    assert same(y, want)
    with stream:
        stream.begin_capture()
        y = linscan.lfilter(b, a, late)
        graph = stream.end_capture()
        trash = [cupy.full(late.shape, cupy.nan, "f") for _ in range(4)]
        late *= 2
        graph.launch(stream)
    stream.synchronize()
    assert all(bool(cupy.isnan(v).all()) for v in trash)  # the graph wrote nothing it does not own
    assert_close(cupy.asnumpy(y), 2 * want, 1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients(rng, axis):
    b, a = random(rng, (2,), "float64"), denominator(rng, 3, "float64")
    x, dy = random(rng, (400, 600), "float64")[:3], random(rng, (3, 600), "float64")
    x, dy = (x, dy) if axis else (x.T, dy.T)
    _, pullback = linscan.lfilter_vjp(*on_gpu(b, a, x), axis=axis)
    _, wanted = linscan.lfilter_vjp(b, a, x, axis=axis)
    for got, want in zip(pullback(cupy.asarray(dy))[:3], wanted(dy)[:3], strict=True):
        assert_close(cupy.asnumpy(got), want, 1e-11)
    sos = sections(rng, 2, "float64")
    _, pullback = linscan.sosfilt_vjp(*on_gpu(sos, x), axis=axis)
    _, wanted = linscan.sosfilt_vjp(sos, x, axis=axis)
    for got, want in zip(pullback(cupy.asarray(dy))[:2], wanted(dy)[:2], strict=True):
        assert_close(cupy.asnumpy(got), want, 1e-11)
