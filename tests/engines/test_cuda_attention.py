"""The laws of `linear_attention` on tensor cores, and what only a GPU can get wrong: tiles, layouts, streams."""

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_device import bits_repeat, on_gpu, poison, same
from tests.tolerances import assert_close, eps

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

NAMES = ("q", "k", "v", "g", "S0")


KINDS = ["a step", "a channel"]  # what has a decay of its own


def problem(rng, dtype, length, keys, values, lead=(2,), decay=0.1, kind="a step"):
    q, k = (random(rng, (*lead, length, keys), dtype) for _ in range(2))
    g = -rng.uniform(0, 2 * decay, (*lead, length, keys)).astype("float32")
    g = g[..., 0] if kind == "a step" else g
    return q, k, random(rng, (*lead, length, values), dtype), g, random(rng, (*lead, keys, values), "float32")


# What the numbers that products take in are wrong by at most: 16-bit ones, those of float32 arrays.
EXACT, TF32 = 5e-6 / 4, 2.0**-11


def check(args, dtype, unit=None, *, vjp=linscan.linear_attention_vjp, names=NAMES, **options):
    """Output, final state and gradients: those of the reference engine in double precision on the host."""
    unit = eps(dtype) if unit is None else unit
    poison()
    (o, S), pullback = vjp(*on_gpu(*args), **options)
    assert o.dtype == dtype_of(dtype)
    wide = [None if x is None else oracles.wide(x) for x in args]
    with linscan.use_engine("reference"):
        (want_o, want_S), want = vjp(*wide, **options)
    # What products take in is rounded: the arguments, scores under their decays, the states, and what is written.
    assert_close(cupy.asnumpy(o), want_o, 4 * unit, "o")
    assert_close(cupy.asnumpy(S), want_S, 2 * unit, "S")
    rng = np.random.default_rng(3)
    do, dS = random(rng, o.shape, dtype), random(rng, S.shape, "float32")
    poison()
    grads = pullback(*on_gpu(do, dS))
    for name, got, exact in zip(names, grads, want(*map(oracles.wide, (do, dS))), strict=True):
        assert (got is None) == (exact is None), name
        if got is not None:
            assert_close(cupy.asnumpy(got), exact, (16 if name == "g" else 4) * unit, f"gradient of {name}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("length", "dtype"),
    [*((n, "bfloat16") for n in (1, 15, 17, 63, 64, 65, 128, 200)), (65, "float16"), (200, "float16")],
)
def test_tails_of_every_tile(rng, dtype, length, kind):
    check(problem(rng, dtype, length, 64, 64, kind=kind), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keys", "values"), [(16, 7), (80, 65), (128, 128), (256, 256)])
def test_any_width(rng, keys, values, kind):
    check(problem(rng, "bfloat16", 70, keys, values, lead=(), kind=kind), "bfloat16", scale=keys**-0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [1e-3, 0.1, 1.0, 30.0])
def test_weak_and_strong_decays(rng, decay, kind):
    check(problem(rng, "bfloat16", 300, 64, 64, decay=decay, kind=kind), "bfloat16")


def test_channels_that_forget(rng):
    q, k, v, g, S0 = problem(rng, "bfloat16", 200, 64, 64, kind="a channel")
    g[rng.random(g.shape) < 0.05] = -np.inf
    g[:, [0, 40, 64, 127]] = -np.inf
    check((q, k, v, g, S0), "bfloat16")


def test_options(rng):
    q, k, v, g, S0 = problem(rng, "bfloat16", 150, 24, 40, lead=(2, 3))
    reset = rng.random((2, 3, 150)) < 0.05
    check((q, k, v, None, None), "bfloat16")
    check((q, k[:, :1], v, g[:1], S0[:, :1]), "bfloat16", reverse=True)
    by_channel = -rng.uniform(0, 0.2, (1, 3, 150, 24)).astype("float32")
    check((q, k[:, :1], v, by_channel, S0[:, :1]), "bfloat16", reverse=True)
    for decays in (g, by_channel, None):
        o, _ = linscan.linear_attention(*on_gpu(q, k, v, decays), reset=cupy.asarray(reset))
        with linscan.use_engine("reference"):
            wide = [None if x is None else oracles.wide(x) for x in (q, k, v, decays)]
            want, _ = linscan.linear_attention(*wide, reset=reset)
        assert_close(cupy.asnumpy(o), want, 4 * eps("bfloat16"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [8192, 8193, 20_000])
def test_long_sequences_are_cut(rng, length, kind):
    q, k, v, g, S0 = problem(rng, "bfloat16", length, 64, 64, lead=(), kind=kind)
    g[[0, 5000]] = -np.inf
    check((q, k, v, g, S0), "bfloat16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [200, 9000])
def test_a_captured_graph_runs_again(rng, length, kind):
    q, k, v, g, S0 = on_gpu(*problem(rng, "bfloat16", length, 64, 64, lead=(2,), kind=kind))
    q = q[:1].copy()  # both heads' queries: gradients are summed

    def both():
        (o, S), pullback = linscan.linear_attention_vjp(q, k, v, g, S0)
        return o, S, *pullback(o, S)

    with cupy.cuda.Stream(non_blocking=True) as stream:
        both()
        stream.synchronize()
        stream.begin_capture()
        again = both()
        graph = stream.end_capture()
        k *= 2
        want = both()
        graph.launch()
        stream.synchronize()
    assert all(same(x, y) for x, y in zip(again, want, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_than_a_grid_has_in_y(rng, kind):
    args = problem(rng, "bfloat16", 2, 8, 8, lead=(70_000,), kind=kind)
    check(args, "bfloat16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [500, 9000])
def test_bits_repeat_and_depend_on_nothing_else(rng, length, kind):
    args = on_gpu(*problem(rng, "bfloat16", length, 64, 128, lead=(3,), kind=kind))
    bits_repeat(linscan.linear_attention, linscan.linear_attention_vjp, args)


@pytest.mark.parametrize(("precision", "unit"), [("exact", EXACT), ("tf32", TF32)])
class TestFloat32:
    """One decay a step: three products of tensor cores for one, or a single one of rounded numbers."""

    @pytest.mark.parametrize(("length", "keys", "values"), [(1, 64, 64), (63, 16, 7), (65, 80, 65), (200, 128, 128)])
    def test_any_size(self, rng, length, keys, values, precision, unit):
        check(problem(rng, "float32", length, keys, values), "float32", unit, precision=precision, scale=keys**-0.5)

    @pytest.mark.parametrize("decay", [None, 1e-3, 0.1, 1.0, 30.0])
    def test_weak_and_strong_decays(self, rng, decay, precision, unit):
        q, k, v, g, S0 = problem(rng, "float32", 1000, 64, 64, decay=decay or 0)
        gates = 8 if decay == 30.0 else 1  # dg is what is left of sums that are hundreds of times as large
        check((q, k, v, g if decay else None, S0), "float32", gates * unit, precision=precision)

    def test_long_sequences_are_cut(self, rng, precision, unit):
        q, k, v, g, S0 = problem(rng, "float32", 20_000, 64, 64, lead=())
        g[[0, 5000]] = -np.inf
        check((q, k, v, g, S0), "float32", unit, precision=precision)

    def test_what_is_not_finite_stays_where_it_belongs(self, rng, precision, unit):
        q, k, v, g, S0 = problem(rng, "float32", 300, 64, 64)
        q[0, 10, 3] = k[0, 70, 5] = v[1, 20, 2] = np.nan
        v[1, 100, 3], g[0, 150], g[1, 250] = np.inf, -np.inf, np.nan
        o, S = linscan.linear_attention(*on_gpu(q, k, v, g, S0), precision=precision)
        with linscan.use_engine("reference"):
            want, last = linscan.linear_attention(*map(oracles.wide, (q, k, v, g, S0)))
        for got, exact in ((o.get(), want), (S.get(), last)):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
            fine = np.isfinite(exact)
            assert_close(np.where(fine, got, 0), np.where(fine, exact, 0), 4 * unit)
