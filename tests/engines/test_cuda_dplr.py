"""The laws of `dplr_attention`, and of the delta rule by its kernels, on tensor cores: see test_cuda_delta.py."""

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import random
from tests.engines.on_device import a_graph_repeats, bits_repeat, on_gpu
from tests.engines.test_cuda_delta import check
from tests.engines.test_cuda_delta import problem as scalar_problem
from tests.ops.test_delta_rule import unit

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

NAMES = ("q", "k", "v", "a", "b", "g", "S0")
KINDS = ["decays", "key", "both", "dplr"]  # by channel; a key to write along, with a decay a step; and both of these


def problem(rng, kind, dtype, length, keys, values, lead=(2,), decay=0.1):
    """Arguments of the delta rule, or of `dplr_attention`, log decays of this mean."""
    q, k, v, beta, g, S0 = scalar_problem(rng, dtype, length, keys, values, lead, decay)
    w = unit(oracles.wide(k) + random(rng, k.shape, "float64") / keys**0.5).astype(k.dtype)
    if kind != "key" and decay is not None:
        g = -rng.uniform(0, 2 * decay, (*lead, length, keys)).astype("float32")
    if kind == "dplr":
        a, b = (-oracles.wide(k)).astype(k.dtype), (oracles.wide(k) * beta[..., None] / 2).astype(k.dtype)
        return q, random(rng, q.shape, dtype), v, a, b, g, S0
    return (q, k, v, beta, g, S0) if kind == "decays" else (q, k, v, beta / 2, g, S0, w)


def hold(kind, args, dtype, **options):
    if kind == "dplr":
        check(args, dtype, vjp=linscan.dplr_attention_vjp, names=NAMES, **options)
    else:
        check(args, dtype, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("length", "dtype"), [*((n, "bfloat16") for n in (1, 15, 17, 64, 65, 200)), (65, "float16"), (200, "float16")]
)
def test_tails_of_every_tile(rng, kind, length, dtype):
    hold(kind, problem(rng, kind, dtype, length, 64, 64), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keys", "values"), [(2, 3), (33, 200), (80, 128), (128, 72)])
def test_any_width(rng, kind, keys, values):
    hold(kind, problem(rng, kind, "bfloat16", 70, keys, values), "bfloat16", scale=keys**-0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [None, 1e-3, 0.1, 1.0, 30.0])
def test_weak_and_strong_decays(rng, kind, decay):
    hold(kind, problem(rng, kind, "bfloat16", 300, 64, 64, decay=decay), "bfloat16")


def test_keys_that_resemble_each_other(rng):
    q, k, v, beta, g, S0 = problem(rng, "decays", "float16", 300, 64, 64, decay=1e-3)
    k = unit(0.3 * oracles.wide(k) + oracles.wide(k)[:, :1]).astype(k.dtype)
    check((q, k, v, 0 * beta + 2, g, S0), "float16")


def test_options(rng):
    q, k, v, beta, g, S0, w = problem(rng, "both", "bfloat16", 150, 24, 40, lead=(2, 3))
    reset = rng.random((2, 3, 150)) < 0.05
    check((q, k[:, :1], v, beta[0], g[:1], S0[:, :1], w), "bfloat16", reverse=True)
    check((q[:, :, :75], k, v, beta, g[:, :, :75], S0, w), "bfloat16", n_householder=2)
    for given in ((q, k, v, beta, g), (q, k, v, beta, g, None, w)):
        (o, _), back = linscan.delta_rule_vjp(*on_gpu(*given), reset=cupy.asarray(reset))
        with linscan.use_engine("reference"):
            wide = [None if x is None else oracles.wide(x) for x in given]
            (want, _), exact = linscan.delta_rule_vjp(*wide, reset=reset)
        do = random(rng, o.shape, "bfloat16")
        for got, one in zip((o, *back(cupy.asarray(do))), (want, *exact(oracles.wide(do))), strict=True):
            assert (got is None) == (one is None)
            if got is not None:
                distance = np.linalg.norm(oracles.wide(cupy.asnumpy(got)) - one) / np.linalg.norm(one)
                assert distance < 0.06


@pytest.mark.parametrize("kind", ["decays", "key", "dplr"])
def test_steps_that_forget(rng, kind):
    args = problem(rng, kind, "bfloat16", 200, 32, 32)
    args[-2 if kind != "key" else 4][:, [0, 5, 63, 64, 100]] = -np.inf
    hold(kind, args, "bfloat16")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [3, 70_000])
def test_bits_repeat_and_depend_on_nothing_else(rng, kind, rows):
    function, vjp = linscan.delta_rule, linscan.delta_rule_vjp
    if kind == "dplr":
        function, vjp = linscan.dplr_attention, linscan.dplr_attention_vjp
    length, keys, values = (300, 128, 128) if rows < 100 else (20, 8, 8)
    args = on_gpu(*problem(rng, kind, "bfloat16", length, keys, values, lead=(rows,)))
    bits_repeat(function, vjp, args)


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_graph_runs_again(rng, kind):
    vjp = linscan.dplr_attention_vjp if kind == "dplr" else linscan.delta_rule_vjp
    args = on_gpu(*problem(rng, kind, "bfloat16", 200, 64, 64))
    a_graph_repeats(vjp, args)


def test_what_is_not_finite_reaches_its_own_row_and_later_times(rng):
    given = problem(rng, "dplr", "bfloat16", 200, 16, 72, lead=(8,))
    a, g, S0 = given[3], *given[5:]
    g[:, 150], a[:, 150] = -np.inf, 0

    def run(args):
        (o, S), pullback = linscan.dplr_attention_vjp(*on_gpu(*args))
        flows = np.random.default_rng(3)
        cotangents = random(flows, o.shape, "bfloat16"), random(flows, S.shape, "float32")
        return [cupy.asnumpy(x) for x in (o, *pullback(*on_gpu(*cotangents))[:6], S)]

    clean = run(given)
    for which, x in enumerate(given[:6]):
        x[which, 70] = np.nan if which % 2 else np.inf
    S0[6, 0] = np.nan
    found = run(given)
    np.testing.assert_array_equal(found[-1], clean[-1])
    for which, begin in enumerate((70, 70, 70, 70, 70, 70, 0, 200)):
        np.testing.assert_array_equal(found[0][which, :begin], clean[0][which, :begin])
        assert begin == 200 or not np.isfinite(found[0][which, begin].astype(float)).all()
        for x, y in zip(found[:-1], clean[:-1], strict=True):
            np.testing.assert_array_equal(x[which, 151:], y[which, 151:])
