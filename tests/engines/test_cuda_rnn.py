"""The laws of `rnn_scan` on the GPU, and what only a GPU can get wrong: tiles, clusters, layouts, streams."""

import numpy as np
import pytest

import linscan
from linscan.ops.cells import AlmostLinear, Cell
from linscan.ops.gated_cells import CELLS
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_device import on_gpu, poison, same
from tests.ops.test_rnn_scan import arguments, made
from tests.tolerances import assert_close, contracting

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

NAMES = sorted(CELLS)


def check(cell, args, dtype, *, reset=None, reverse=False):
    """Outputs, final state and gradients: those of the plain loop in double precision on the host."""
    poison()
    device = None if reset is None else cupy.asarray(reset)
    with linscan.use_engine("cuda"):
        (h, state), pullback = linscan.rnn_scan_vjp(cell, *on_gpu(*args), reset=device, reverse=reverse)
        poison()
        alone, _ = linscan.rnn_scan(cell, *on_gpu(*args), reset=device, reverse=reverse)
    assert h.dtype == state.dtype == dtype_of(dtype)
    assert same(alone, h)
    wide = [None if x is None else oracles.wide(x) for x in args]
    with linscan.use_engine("reference"):
        want, back = linscan.rnn_scan_vjp(cell, *wide, reset=reset, reverse=reverse)
    assert_close(cupy.asnumpy(h), want[0], contracting(dtype), "h")
    finite = np.isfinite(want[1])
    assert_close(cupy.asnumpy(state)[finite], want[1][finite], contracting(dtype), "state")
    rng = np.random.default_rng(3)
    dh, dstate = random(rng, h.shape, dtype), random(rng, state.shape, dtype)
    poison()
    grads = pullback(*on_gpu(dh, dstate))
    for name, x, y in zip(("x", "R", "b", "w", "h0"), grads, back(oracles.wide(dh), oracles.wide(dstate)), strict=True):
        assert (x is None) == (y is None), name
        if x is not None:
            assert_close(cupy.asnumpy(x), y, 4 * contracting(dtype), f"gradient of {name}")


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in NAMES), *((name, "float64") for name in ("gru", "leaky", "slstm"))]
    + [("almost_linear", "float16"), ("lstm", "bfloat16")],
)
def test_equals_the_loop(rng, name, dtype, diagonal):
    args = arguments(rng, name, (3, 2, 19, 13), dtype, diagonal=diagonal, lead=(2,))
    check(made(name, diagonal), args, dtype, reset=rng.random((3, 2, 19)) < 0.1)


@pytest.mark.parametrize(
    ("dtype", "d"), [*(("float32", d) for d in (1, 17, 64, 96, 256)), *(("float64", d) for d in (16, 64, 128, 200))]
)
def test_any_width_of_a_head(rng, d, dtype):
    check("lstm", arguments(rng, "lstm", (5, 2, 7, d), dtype, lead=(2,)), dtype)


@pytest.mark.parametrize("name", ["elman", "gru", "slstm"])
@pytest.mark.parametrize("d", [65, 256])
def test_wide_heads_of_other_cells(rng, name, d):
    check(name, arguments(rng, name, (3, 9, d), "float32"), "float32", reset=np.arange(9) == 4, reverse=True)


def test_wider_heads_and_users_cells_run_as_array_code(rng):
    class Decay(Cell):
        def step(self, x, y, s, w):
            return (s + x + y) / 2

    args = on_gpu(*arguments(rng, "elman", (2, 5, 260), "float64"))
    h, _ = linscan.rnn_scan("elman", *args)
    want = oracles.rnn("elman", *(None if a is None else cupy.asnumpy(a) for a in args))
    assert_close(cupy.asnumpy(h), want[0], contracting("float64"))
    x, R = on_gpu(np.ones((3, 1, 1)), np.full((1, 1, 1), 0.5))
    np.testing.assert_allclose(cupy.asnumpy(linscan.rnn_scan(Decay(), x, R)[0])[:, 0], [0.5, 0.875, 1.15625])


def test_units_without_a_ReLU(rng):
    for relu in (0, 2, 5, None):
        check(AlmostLinear(relu), arguments(rng, "almost_linear", (3, 8, 5), "float64"), "float64")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "para_lstm"])
def test_splitting_changes_no_bit(rng, name, reverse):
    x, R, b, w, h0 = on_gpu(*arguments(rng, name, (2, 3, 40, 24), "float32"))
    h, state = linscan.rnn_scan(name, x, R, b, w, h0, reverse=reverse)
    pieces = [x[:, :, :17], x[:, :, 17:]][:: -1 if reverse else 1]
    first, middle = linscan.rnn_scan(name, pieces[0], R, b, w, h0, reverse=reverse)
    second, end = linscan.rnn_scan(name, pieces[1], R, b, w, middle, reverse=reverse)
    both = cupy.concatenate([first, second][:: -1 if reverse else 1], axis=2)
    assert same(both, h)
    assert same(end, state)


@pytest.mark.parametrize("name", ["lstm", "para_gru"])
def test_layouts_and_broadcast_arguments(rng, name):
    args = arguments(rng, name, (4, 3, 20, 10), "float32", lead=(3,))
    x, R, b, w, h0 = on_gpu(*args)
    h, state = linscan.rnn_scan(name, x, R, b, w, h0)
    time_first = cupy.ascontiguousarray(cupy.moveaxis(x, 2, 0))
    again, end = linscan.rnn_scan(name, cupy.moveaxis(time_first, 0, 2), R, b, w, h0)
    assert same(again, h)
    assert same(end, state)
    again, _ = linscan.rnn_scan(name, cupy.repeat(x, 2, axis=-1)[..., ::2], R, b[:1], w, h0)
    want, _ = linscan.rnn_scan(name, x, R, cupy.broadcast_to(b[:1], b.shape), w, h0)
    assert same(again, want)
    shared = x[:, :1], R, b, w, None
    check(name, tuple(None if a is None else cupy.asnumpy(a) for a in shared), "float32")


@pytest.mark.parametrize("d", [33, 128, 256])
def test_bits_repeat_and_depend_on_no_other_row(rng, d):
    args = on_gpu(*arguments(rng, "lstm", (300, 2, 30, d), "float32", lead=(2,)))
    x, R, b, w, h0 = args
    (h, state), pullback = linscan.rnn_scan_vjp("lstm", *args)
    grads = pullback(h, state)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        again, back = linscan.rnn_scan_vjp("lstm", *args)
        repeated = back(h, state)
    stream.synchronize()
    assert same(again[0], h)
    for one, two in zip(grads, repeated, strict=True):
        assert one is None or same(one, two)
    alone = linscan.rnn_scan("lstm", x[7:8, 1], R[1], b[1], w, h0[7:8, 1])
    assert same(alone[0], h[7:8, 1])
    assert same(alone[1], state[7:8, 1])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_row(rng, name):
    x, R, b, w, _ = arguments(rng, name, (5, 8, 5), "float64")
    reset = cupy.asarray(np.arange(8) == 6)
    clean, _ = linscan.rnn_scan(name, *on_gpu(x, R, b, w), reset=reset)
    for bad in (np.nan, np.inf, -1e4):
        other = x.copy()
        other[1, 4, -1, 2] = bad
        h, _ = linscan.rnn_scan(name, *on_gpu(other, R, b, w), reset=reset)
        assert same(h[[0, 2, 3, 4]], clean[[0, 2, 3, 4]])
        assert same(h[1, 6:], clean[1, 6:])
        assert same(h[1, :4], clean[1, :4])
        assert bool(cupy.isnan(h[1, 4, 2])) or not np.isnan(bad)
        assert bad != -1e4 or bool(cupy.isfinite(h).all())


def test_many_rows_and_many_steps(rng):
    x, R = on_gpu(random(rng, (70_000, 2, 1, 3), "float32"), random(rng, (1, 3, 3), "float32") / 4)
    h, _ = linscan.rnn_scan("elman", x, R)
    want, _ = linscan.rnn_scan("elman", x[-5:], R)
    assert same(h[-5:], want)
    x = random(rng, (5000, 1, 8), "float32")
    check("elman", (x, random(rng, (1, 8, 8), "float32") / 8, None, None, None), "float32")
