"""The laws of `selective_scan` on the GPU, and what only a GPU can get wrong: chunks, layouts, streams."""

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import DTYPES, random
from tests.engines.on_device import poison, same
from tests.ops.test_selective_scan import OPTIONAL, loop, problem, tolerance
from tests.tolerances import assert_close, summed

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

NAMES = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "h0")


def on_gpu(args):
    return {k: None if v is None else cupy.asarray(v) for k, v in args.items()}


def check(args, dtype, reset=None, seed=0, **options):
    """Output, states and gradients: those of the reference engine in double precision on the host."""
    poison()
    on_card = None if reset is None else cupy.asarray(reset)
    y, every = linscan.selective_scan(**on_gpu(args), reset=on_card, states=True, **options)
    (again, h), pullback = linscan.selective_scan_vjp(**on_gpu(args), reset=on_card, **options)
    assert same(y, again)
    wide = {k: None if v is None else oracles.wide(v) for k, v in args.items()}
    wide |= {k: wide[k].real for k in ("dt", "z", "dt_bias") if wide[k] is not None}
    with linscan.use_engine("reference"):
        want_y, want_every = linscan.selective_scan(**wide, reset=reset, states=True, **options)
        (_, want_h), want_pullback = linscan.selective_scan_vjp(**wide, reset=reset, **options)
    for name, got, want in zip(("y", "states", "h"), (y, every, h), (want_y, want_every, want_h), strict=True):
        assert_close(got.get(), want, tolerance(dtype), name)
    rng = np.random.default_rng(seed)
    dy, dh = random(rng, y.shape, y.dtype), random(rng, h.shape, h.dtype)
    poison()
    grads = pullback(cupy.asarray(dy), cupy.asarray(dh))
    for name, got, want in zip(NAMES, grads, want_pullback(*map(oracles.wide, (dy, dh))), strict=True):
        assert (got is None) == (want is None), name
        if got is not None:
            assert_close(
                got.get(), want, 4 * tolerance(dtype) + summed(args["A"].dtype, dy.size), f"gradient of {name}"
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 64, 65, 200])
def test_tails_of_every_tile(rng, dtype, length):
    check(problem(rng, dtype, (2, length, 35), 16), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("states", [1, 2, 3, 5, 8, 17, 64, 128, 200])
def test_any_number_of_states(rng, dtype, states):
    check(problem(rng, dtype, (1, 40, 5), states), dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"])
@pytest.mark.parametrize("channels", [1, 6, 66, 300])
@pytest.mark.parametrize("without", [(), OPTIONAL, ("z",)])
def test_options(rng, dtype, channels, without):
    args = problem(rng, dtype, (2, 50, channels), 4, None if channels == 1 else 2, without)
    reset = rng.random((2, 50)) < 0.1
    check(args, dtype, reset, dt_softplus=True, reverse=True)
    check(args, dtype, real=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64", "float64"])
@pytest.mark.parametrize("length", [8192, 8193, 3 * 4096, 20001])
def test_long_rows_are_cut(rng, dtype, length):
    reset = np.zeros((1, length), bool)
    reset[0, [0, 3000, 9000 % length]] = True
    check(problem(rng, dtype, (1, length, 3), 4), dtype, reset, reverse=length % 2 == 0)


def test_growing_states_over_several_chunks(rng):
    args = problem(rng, "float64", (1, 9000, 3), 2, without=("h0",))
    args["A"] = np.abs(args["A"]) * 1e-2
    y, _ = linscan.selective_scan(**on_gpu(args))
    assert_close(y.get(), loop(args)[0], 9000 * tolerance("float64"))


@pytest.mark.parametrize("length", [100, 9000])
def test_what_is_forgotten_stays_where_it_was(rng, length):
    args = problem(rng, "float32", (2, length, 5), 3, without=("h0",))
    args["u"][1, 20, 2] = np.nan
    reset = np.zeros((2, length), bool)
    reset[:, 60] = True
    y, h = linscan.selective_scan(**on_gpu(args), reset=cupy.asarray(reset))
    bad = np.isnan(y.get())
    assert bad[1, 20:60, 2].all()
    assert bad.sum() == 40
    assert bool(cupy.isfinite(h).all())


@pytest.mark.parametrize("length", [300, 9000])
def test_bits_repeat_and_depend_on_nothing_else(rng, length):
    args = on_gpu(problem(rng, "float32", (3, length, 40), 16))
    (y, h), pullback = linscan.selective_scan_vjp(**args)
    grads = pullback(y, h)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        (again, _), back = linscan.selective_scan_vjp(**args)
        repeated = back(again, h)
    stream.synchronize()
    assert same(y, again)
    assert all(same(x, z) for x, z in zip(grads, repeated, strict=True))
    whole = ("A", "D", "dt_bias")
    one, last = linscan.selective_scan(**{k: v if k in whole else v[1] for k, v in args.items()})
    assert same(one, y[1])
    assert same(last, h[1])


def test_views_are_read_where_they_lie(rng):
    args = problem(rng, "float32", (2, 70, 6), 4)
    turned = on_gpu(args)
    turned["u"] = cupy.asarray(np.ascontiguousarray(args["u"].swapaxes(1, 2))).swapaxes(1, 2)
    turned["B"] = cupy.asarray(np.repeat(args["B"], 2, axis=-1))[..., ::2]
    turned["z"] = cupy.asarray(args["z"][:, ::-1].copy())[:, ::-1]
    assert same(linscan.selective_scan(**turned)[0], linscan.selective_scan(**on_gpu(args))[0])


def test_a_captured_graph_runs_again(rng):
    args = on_gpu(problem(rng, "float32", (2, 9000, 6), 4))
    want = linscan.selective_scan(**args)[0]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        linscan.selective_scan(**args)
        stream.begin_capture()
        y, _ = linscan.selective_scan(**args)
        graph = stream.end_capture()
        y.fill(0)
        graph.launch(stream)
    stream.synchronize()
    assert same(y, want)
