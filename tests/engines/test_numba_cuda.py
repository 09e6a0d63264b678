"""The laws of `scan` and `short_conv` on the engine written in Numba: on a GPU, or under Numba's simulator of one.

The simulator has to be asked for before Numba is imported, so it runs this file again in a process of its own. There an
op sees NumPy arrays, and sizes are small: a simulated thread is a thread of the host.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import random
from tests.ops.test_scan import decays
from tests.tolerances import assert_close, stable, summed

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
law = (lambda test: test) if SIMULATED else pytest.mark.gpu
FAR = (7, 5) if SIMULATED else (67, 5)  # so many tiles, and steps, that a row has three groups of tiles
DTYPES = ["float32", "complex128"] if SIMULATED else ["float32", "float64", "complex64", "complex128"]


@pytest.mark.skipif(SIMULATED, reason="this is the simulated run")
def test_the_laws_hold_under_the_simulator():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    result = subprocess.run(
        command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, cwd=root, capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 skipped" in result.stdout


@pytest.fixture
def xp():
    """The library whose arrays the engine takes here."""
    status = linscan.available()["numba_cuda"]
    if not status.ready:
        pytest.skip(status.detail)
    return np if SIMULATED else pytest.importorskip("cupy")


@pytest.fixture
def cuda(xp):
    from numba import cuda

    return cuda


def sizes(*lengths):
    """Lengths around those of a tile, which the simulator cuts shorter."""
    tile = 16 if SIMULATED else 512
    return [tile * n + step for n, step in lengths]


def host(x):
    return x if isinstance(x, np.ndarray) else x.copy_to_host() if hasattr(x, "copy_to_host") else x.get()


def given(rng, shape, axis, dtype, with_rest):
    a, b = decays(rng, shape, dtype), random(rng, shape, dtype)
    h0 = random(rng, shape[:axis] + shape[axis + 1 :], dtype) if with_rest else None
    return a, b, h0, rng.random(shape) < 0.1 if with_rest else None


def on(xp, *arrays):
    return tuple(None if x is None else xp.asarray(x) for x in arrays)


@law
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", sizes((0, 1), (1, -1), (1, 0), (1, 1), FAR))
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_equals_the_loop(rng, xp, dtype, length, reverse):
    for shape, axis in [((1, length), 1), ((length, 2), 0)]:
        a, b, h0, reset = given(rng, shape, axis, dtype, with_rest=reverse)
        da, db, dh0, dreset = on(xp, a, b, h0, reset)
        with linscan.use_engine("numba_cuda"):
            h = linscan.scan(da, db, dh0, axis=axis, reverse=reverse, reset=dreset)
        assert isinstance(h, xp.ndarray)
        assert_close(host(h), oracles.scan(a, b, h0, axis, reverse, reset), stable(dtype))


@law
@pytest.mark.parametrize(("dtype", "reverse", "with_rest"), [
    ("float64", False, False), ("float64", True, True), ("complex128", False, True), ("complex128", True, False),
])  # fmt: skip
def test_scan_gradients_equal_the_reference(rng, xp, dtype, reverse, with_rest):
    for shape, axis in [((2, sizes((1, 7))[0]), 1), ((sizes(FAR)[0], 1, 1), 0)]:
        a, b, h0, reset = given(rng, shape, axis, dtype, with_rest)
        dh = random(rng, shape, dtype)
        with linscan.use_engine("reference"):
            want = linscan.scan_vjp(a, b, h0, axis=axis, reverse=reverse, reset=reset)[1](dh)
        arrays = on(xp, a, b, h0)
        with linscan.use_engine("numba_cuda"):
            _, pullback = linscan.scan_vjp(*arrays, axis=axis, reverse=reverse, reset=on(xp, reset)[0])
            got = pullback(xp.asarray(dh))
        for x, y in zip(got, want, strict=True):
            if y is not None:
                assert_close(host(x), y, 4 * stable(dtype))


@law
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # simulated arithmetic is NumPy's
def test_scan_where_composites_mislead(xp):
    length, tile = sizes(FAR, (1, 0))
    a = np.where(np.arange(length) < tile, 0.5, 3.0).astype(np.float32)
    with linscan.use_engine("numba_cuda"):
        fixed = linscan.scan(*on(xp, a, 1 - a), 1.0)  # h = (h + 1) / 2, and from the second tile on 3 h - 2, stay at 1
        b = np.zeros((1, length))
        b[0, 5] = np.inf  # the loop keeps it; the product of the decays after it is 0, and 0 inf would be NaN
        kept = host(linscan.scan(xp.full((1, length), 1e-200), xp.asarray(b)))[0]
        b = np.ones((1, length))
        b[0, 5] = np.nan
        reset = np.zeros((1, length), bool)
        reset[0, length - 4] = True
        broken = host(linscan.scan(xp.full((1, length), 0.5), xp.asarray(b), reset=xp.asarray(reset)))[0]
    assert bool((fixed == 1).all())
    assert np.isinf(kept[5:]).all()
    assert np.isfinite(broken[:5]).all()
    assert np.isnan(broken[5:-4]).all()
    assert broken[-4:].tolist() == [1, 1.5, 1.75, 1.875]


@law
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("reverse", [False, True])
def test_resets_at_the_edges_of_tiles_cut_everything_off(rng, xp, reverse):
    length, tile = sizes(FAR, (1, 0))
    b, reset = random(rng, (2, length), "float64"), np.zeros((2, length), bool)
    for row, edge in enumerate([0, -1]):  # the first steps of tiles, and the last ones
        starts = tile * np.array([1, 2, 3, 6]) + edge
        reset[row, starts] = True
        b[row, starts[[0, 2]] - 1] = np.nan, np.inf
    a = np.full_like(b, 0.75)
    want = oracles.scan(a, b, None, 1, False, reset)
    if reverse:
        b, want, reset = b[:, ::-1], want[:, ::-1], reset[:, ::-1]
    with linscan.use_engine("numba_cuda"):
        h = linscan.scan(*on(xp, a, b), reverse=reverse, reset=on(xp, reset)[0])
    assert np.isnan(want).sum() == 2
    assert np.isinf(want).sum() == 2
    np.testing.assert_allclose(host(h), want, rtol=0, atol=stable("float64") * 8)


@law
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_neither_on_timing_nor_on_other_rows(rng, xp, dtype):
    rows = 2 if SIMULATED else 100
    a, b = on(xp, decays(rng, (rows, sizes(FAR)[0]), dtype), random(rng, (rows, sizes(FAR)[0]), dtype))
    with linscan.use_engine("numba_cuda"):
        h = host(linscan.scan(a, b))
        for again in range(0 if SIMULATED else 10):
            assert host(linscan.scan(a, b)).tobytes() == h.tobytes(), again
        assert host(linscan.scan(a[1:2], b[1:2])).tobytes() == h[1:2].tobytes()


@law
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axis", "dilation", "reverse", "rest"), [
    (-1, 1, False, False), (-2, 1, False, True), (-1, 2, True, True), (-2, 3, True, False), (0, 1, False, True),
])  # fmt: skip
def test_short_conv_and_its_gradients_equal_the_reference(rng, xp, dtype, axis, dilation, reverse, rest):
    shape, taps = ((1, 7, 2), 3) if SIMULATED else ((2, 300, 3), 4)
    u, axis_ = random(rng, shape, dtype), axis % 3
    others = shape[:axis_] + shape[axis_ + 1 :]
    w, bias = random(rng, (others[-1], taps), dtype), random(rng, others[-1:], dtype) if rest else None
    past = (*shape[:axis_], (taps - 1) * dilation, *shape[axis_ + 1 :])
    state = random(rng, past, dtype) if rest else None
    reset = rng.random(shape) < 0.2 if rest else None
    dy = random(rng, shape, dtype)
    options = {"axis": axis, "dilation": dilation, "reverse": reverse}
    with linscan.use_engine("reference"):
        want, pullback = linscan.short_conv_vjp(u, w, bias, state, reset=reset, **options)
        want_grads = pullback(dy)
    with linscan.use_engine("numba_cuda"):
        got, pullback = linscan.short_conv_vjp(*on(xp, u, w, bias, state), reset=on(xp, reset)[0], **options)
        grads = pullback(xp.asarray(dy))
    for x, y in zip((got, *grads) if state is None else (*got, *grads), (want, *want_grads) if state is None
                    else (*want, *want_grads), strict=True):  # fmt: skip
        assert (x is None) == (y is None)
        if y is not None:
            assert_close(host(x), y, summed(dtype, shape[axis]))


@law
def test_a_filter_of_one_tap_has_no_state(rng, xp):
    u = random(rng, (5, 2), "float64")
    with linscan.use_engine("numba_cuda"):
        y, pullback = linscan.short_conv_vjp(xp.asarray(u), xp.asarray([2.0]))
        du, dw, _, _ = pullback(xp.asarray(u))
    assert host(y).tolist() == (2 * u).tolist()
    assert host(du).tolist() == (2 * u).tolist()
    assert_close(host(dw), np.array([(u * u).sum()]), summed("float64", 10))


@law
def test_numba_arrays_are_answered_with_numba_arrays(rng, cuda):
    a, b = decays(rng, (2, 40), "float32"), random(rng, (2, 40), "float32")
    da, db = cuda.to_device(a), cuda.to_device(b)
    out = cuda.device_array((2, 40), np.float32)
    assert linscan.scan(da, db, out=out) is out
    h, pullback = linscan.scan_vjp(0.5, db)
    grads = pullback(h)
    y, state = linscan.short_conv(db, cuda.to_device(np.ones(2, np.float32)), state=0, axis=-1)
    kind = type(db)
    assert [type(x) for x in (h, grads[1], y, state)] == [kind] * 4
    assert_close(out.copy_to_host(), oracles.scan(a, b), stable("float32"))
    assert_close(h.copy_to_host(), oracles.scan(np.full_like(b, 0.5), b), stable("float32"))
    assert_close(state.copy_to_host(), b[:, -1:], 0)
    assert_close(da.copy_to_host(), a, 0)
    half, _ = linscan.short_conv(cuda.to_device(b.astype(np.float16)), [1.0, 0.0], state=0, axis=-1)
    assert type(half) is kind  # by another engine: this one does not have the dtype
    assert_close(half.copy_to_host(), b.astype(np.float16), 0)


@law
def test_what_it_cannot_do_is_said(xp):
    with linscan.use_engine("numba_cuda"):
        with pytest.raises(ValueError, match="scan: engine 'numba_cuda' runs float32, float64, complex64, complex128"):
            linscan.scan(xp.ones(3, np.float16), xp.ones(3, np.float16))
        with pytest.raises(ValueError, match="fft_conv: engine 'numba_cuda' does not have it"):
            linscan.fft_conv(xp.ones(3), xp.ones(3))
        assert linscan.scan(xp.ones((2, 0)), xp.ones((2, 0))).shape == (2, 0)
