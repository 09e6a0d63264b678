"""The laws of `newton_scan` on the GPU: the loop's results and gradients, whatever the row's neighbours do."""

import numpy as np
import pytest

import linscan
from linscan.ops.gated_cells import CELLS
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_device import on_gpu, poison, same
from tests.ops.test_rnn_scan import arguments, made
from tests.tolerances import assert_close, residual

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

NAMES = sorted(CELLS)


def check(name, args, dtype, *, diagonal=True, reset=None, reverse=False, tolerance=None, **options):
    cell, tolerance = made(name, diagonal), residual(dtype) if tolerance is None else tolerance
    device = None if reset is None else cupy.asarray(reset)
    poison()
    (h, state, info), pullback = linscan.newton_scan_vjp(cell, *on_gpu(*args), reset=device, reverse=reverse, **options)
    assert bool(info.converged.all())
    assert h.dtype == state.dtype == dtype_of(dtype)
    wide = [None if x is None else oracles.wide(x) for x in args]
    with linscan.use_engine("reference"):
        want, back = linscan.rnn_scan_vjp(cell, *wide, reset=reset, reverse=reverse)
    assert_close(cupy.asnumpy(h), want[0], tolerance, "h")
    finite = np.isfinite(want[1])
    assert_close(cupy.asnumpy(state)[finite], want[1][finite], tolerance, "state")
    rng = np.random.default_rng(3)
    given = random(rng, h.shape, dtype), random(rng, state.shape, dtype)
    poison()
    grads = pullback(*on_gpu(*given))
    for what, x, y in zip(("x", "R", "b", "w", "h0"), grads, back(*map(oracles.wide, given)), strict=True):
        assert (x is None) == (y is None), what
        if x is not None:
            assert_close(cupy.asnumpy(x), y, 4 * tolerance, f"gradient of {what}")
    return info


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in NAMES), ("para_gru", "float64"), ("slstm", "float64")]
)
def test_equals_the_loop(rng, name, dtype):
    for length in (1, 65, 300):
        args = list(arguments(rng, name, (3, 2, length, 9), dtype, diagonal=True, lead=(2,)))
        args[1] *= np.array(0.3 if name == "almost_linear" else 1, dtype)  # it grows where w + R is above 1
        check(name, args, dtype, reset=rng.random((3, 2, length)) < 0.02 if length % 2 else None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_and_direction(rng, dtype):
    args = arguments(rng, "para_gru", (2, 300, 40), dtype)
    check("para_gru", args, dtype, reverse=True, reset=np.arange(300) == 100)
    x, R, *_ = args
    check("para_gru", (x, R, None, None, None), dtype)


def test_array_code_for_what_has_no_kernel(rng):
    args = arguments(rng, "elman", (2, 50, 4), "float64")
    check("elman", args, "float64", diagonal=False)
    check("elman", args, "float64", diagonal=False, jacobian="quasi", iterations=60)
    check("para_gru", arguments(rng, "para_gru", (2, 50, 4), "float64"), "float64", damping=1.0)


def test_long_sequences(rng):
    args = arguments(rng, "para_gru", (1, 20_000, 33), "float32")
    check("para_gru", args, "float32")


def test_bits_repeat_and_depend_on_no_other_row(rng):
    x, R, b, w, h0 = on_gpu(*arguments(rng, "para_lstm", (9, 3000, 20), "float32"))
    (h, state, info), pullback = linscan.newton_scan_vjp("para_lstm", x, R, b, w, h0)
    grads = pullback(h, state)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        (again, _, _), back = linscan.newton_scan_vjp("para_lstm", x, R, b, w, h0)
        repeated = back(h, state)
    stream.synchronize()
    assert same(again, h)
    assert all(same(one, two) for one, two in zip(grads, repeated, strict=True))
    one, last, own = linscan.newton_scan("para_lstm", x[4], R, b, w, h0[4])
    assert same(one, h[4])
    assert same(last, state[4])
    assert int(own.iterations) == int(info.iterations[4])


def test_rows_that_do_not_converge_end_in_the_loop(rng):
    x, R, *_ = on_gpu(*arguments(rng, "para_gru", (4, 500, 6), "float32", state=False))
    clean, _, _ = linscan.newton_scan("para_gru", x, R)
    bad = x.copy()
    bad[2, 100, 1, 3] = cupy.nan
    h, _, info = linscan.newton_scan("para_gru", bad, R)
    np.testing.assert_array_equal(cupy.asnumpy(info.converged), [True, True, False, True])
    assert same(h[[0, 1, 3]], clean[[0, 1, 3]])
    assert same(h[2], linscan.rnn_scan("para_gru", bad[2], R)[0])


@pytest.mark.parametrize("length", [500, 20_000])
def test_slow_cells_need_corrections(rng, length):
    """In one block, and in several that share a channel's time."""
    x, R, _, w, _ = on_gpu(*arguments(rng, "leaky", (3, length, 11), "float32", diagonal=True, state=False))
    cell, w = made("leaky", True), cupy.full_like(w, 0.01)
    loop, _ = linscan.rnn_scan(cell, x, R, None, w)
    h, _, info = linscan.newton_scan(cell, x, R, None, w, iterations=0)
    assert not bool(info.converged.any())
    assert same(h, loop)
    poison()
    h, _, info = linscan.newton_scan(cell, x, R, None, w)
    assert bool(info.converged.all())
    assert 1 <= int(info.iterations.max()) <= 6
    assert_close(cupy.asnumpy(h), cupy.asnumpy(loop), 100 * residual("float32"))  # 100 steps are remembered, not 10
    one, _, own = linscan.newton_scan(cell, x[1], R, None, w)
    assert same(one, h[1])
    assert int(own.iterations) == int(info.iterations[1])


def test_a_captured_graph_decides_anew(rng):
    x, R, *_ = on_gpu(*arguments(rng, "para_gru", (3, 700, 12), "float32", state=False))
    fine, _, _ = linscan.newton_scan("para_gru", x, R)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        h, _, info = linscan.newton_scan("para_gru", x, R)
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        assert bool(info.converged.all())
        assert same(h, fine)
        x[1, 300] = cupy.nan
        graph.launch(stream)
        stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(info.converged), [True, False, True])
    assert same(h[1], linscan.rnn_scan("para_gru", x[1], R)[0])
    assert same(h[::2], fine[::2])


def test_error_of_the_target_size(rng):
    x, R, *_ = arguments(rng, "para_gru", (2, 8192, 16), "float32", state=False)
    h, _, info = linscan.newton_scan("para_gru", *on_gpu(x, R))
    want, _ = linscan.rnn_scan("para_gru", oracles.wide(x), oracles.wide(R))
    assert float(abs(cupy.asnumpy(h) - want).max()) <= 1e-5
    assert int(info.iterations.max()) <= 6
