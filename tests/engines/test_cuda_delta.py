"""The laws of `delta_rule` on tensor cores, and what only a GPU can get wrong: tiles, layouts, streams."""

from functools import partial

import numpy as np
import pytest

import linscan
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_device import a_graph_repeats, bits_repeat, on_gpu
from tests.engines.test_cuda_attention import EXACT, check
from tests.ops.test_delta_rule import unit
from tests.tolerances import assert_close, eps

pytestmark = pytest.mark.gpu
cupy = pytest.importorskip("cupy")

NAMES = ("q", "k", "v", "beta", "g", "S0", "w")


def problem(rng, dtype, length, keys, values, lead=(2,), decay=0.1):
    """Unit keys, beta in (0, 2), and log decays of this mean, if any."""
    q, v = random(rng, (*lead, length, keys), dtype), random(rng, (*lead, length, values), dtype)
    k = unit(random(rng, (*lead, length, keys), "float64")).astype(dtype_of(dtype))
    beta = rng.uniform(0, 2, (*lead, length)).astype("float32")
    g = None if decay is None else -rng.uniform(0, 2 * decay, (*lead, length)).astype("float32")
    return q, k, v, beta, g, random(rng, (*lead, keys, values), "float32")


check = partial(check, vjp=linscan.delta_rule_vjp, names=NAMES)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 128, 200])
def test_tails_of_every_tile(rng, dtype, length):
    check(problem(rng, dtype, length, 64, 64), dtype)


WIDTHS = [(2, 3), (33, 32), (64, 65), (80, 128), (128, 72), (200, 200), (256, 64), (130, 300)]


@pytest.mark.parametrize(("keys", "values"), WIDTHS)
def test_any_width(rng, keys, values):
    check(problem(rng, "bfloat16", 70, keys, values), "bfloat16", scale=keys**-0.5)


@pytest.mark.parametrize("decay", [None, 1e-3, 0.1, 1.0, 30.0])
def test_weak_and_strong_decays(rng, decay):
    check(problem(rng, "bfloat16", 300, 64, 64, decay=decay), "bfloat16")


def test_keys_that_resemble_each_other(rng):
    q, k, v, beta, g, S0 = problem(rng, "float16", 300, 64, 64, decay=1e-3)
    k = unit(0.3 * oracles.wide(k) + oracles.wide(k)[:, :1]).astype(k.dtype)
    check((q, k, v, 0 * beta + 2, g, S0), "float16")


def test_options(rng):
    q, k, v, beta, g, S0 = problem(rng, "bfloat16", 150, 24, 40, lead=(2, 3))
    reset = rng.random((2, 3, 150)) < 0.05
    check((q, k[:, :1], v, beta[0], g[:1], S0[:, :1]), "bfloat16", reverse=True)
    check((q[:, :, :75], k, v, beta, g[:, :, :75], S0), "bfloat16", n_householder=2)
    check((q, k, v, np.float32(0.5), None, None, None), "bfloat16")
    for with_reset in (reset, None):
        given = on_gpu(q, k, v, beta, g)
        o, _ = linscan.delta_rule(*given, reset=None if with_reset is None else cupy.asarray(reset))
        with linscan.use_engine("reference"):
            want, _ = linscan.delta_rule(*map(oracles.wide, (q, k, v, beta, g)), reset=with_reset)
        assert_close(cupy.asnumpy(o), want, 4 * eps("bfloat16"))


def test_steps_that_forget(rng):
    q, k, v, beta, g, S0 = problem(rng, "bfloat16", 200, 32, 32)
    g[:, [0, 5, 63, 64, 100]] = -np.inf
    check((q, k, v, beta, g, S0), "bfloat16")


@pytest.mark.parametrize("length", [16_448, 20_000])
def test_long_sequences_are_cut(rng, length):
    q, k, v, beta, g, S0 = problem(rng, "bfloat16", length, 32, 24, lead=(), decay=1e-5)
    check((q, k, v, 1e-3 * beta, g, S0), "bfloat16")  # states that outlast segments
    g[[0, 9000]] = -np.inf
    v[8999, 3] = np.nan
    o, S = linscan.delta_rule(*on_gpu(q, k, v, beta, g, S0))
    assert np.isnan(cupy.asnumpy(o[8999]).astype(float)).any()
    assert bool(cupy.isfinite(o[:8999].astype("f4")).all())
    assert bool(cupy.isfinite(o[9000:].astype("f4")).all())
    assert bool(cupy.isfinite(S).all())


def test_a_captured_graph_runs_again(rng):
    args = on_gpu(*problem(rng, "bfloat16", 20_000, 32, 24, lead=(), decay=1e-5))
    a_graph_repeats(linscan.delta_rule_vjp, args)


@pytest.mark.parametrize("rows", [3, 70, 70_000])
def test_bits_repeat_and_depend_on_nothing_else(rng, rows):
    length, keys, values = (300, 64, 128) if rows < 100 else (20, 8, 8)
    args = on_gpu(*problem(rng, "bfloat16", length, keys, values, lead=(rows,)))
    bits_repeat(linscan.delta_rule, linscan.delta_rule_vjp, args)


def test_what_is_not_finite_reaches_its_own_row_and_later_times(rng):
    given = problem(rng, "bfloat16", 200, 16, 72, lead=(8,))
    given[4][:, 150] = -np.inf

    def run(args):
        (o, S), pullback = linscan.delta_rule_vjp(*on_gpu(*args))
        flows = np.random.default_rng(3)
        cotangents = random(flows, o.shape, "bfloat16"), random(flows, S.shape, "float32")
        return [cupy.asnumpy(x) for x in (o, *pullback(*on_gpu(*cotangents))[:5], S)]

    clean = run(given)
    for which, x in enumerate(given[:5]):  # q[0], k[1], …
        x[which, 70] = np.nan if which % 2 else np.inf
    given[5][5, 0] = np.nan
    given[2][6, 70, 5] = np.inf
    found = run(given)
    np.testing.assert_array_equal(found[-1], clean[-1])
    for which, begin in enumerate((70, 70, 70, 70, 70, 0, 70, 200)):
        np.testing.assert_array_equal(found[0][which, :begin], clean[0][which, :begin])
        assert begin == 200 or not np.isfinite(found[0][which, begin].astype(float)).all()
        for x, y in zip(found[:-1], clean[:-1], strict=True):
            np.testing.assert_array_equal(x[which, 150:], y[which, 150:])


class TestFloat32:
    """At most one decay a step, in chunks, three products of tensor cores for one; gradients step after step."""

    @pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 200])
    def test_tails_of_every_tile(self, rng, length):
        check(problem(rng, "float32", length, 64, 64), "float32", EXACT, precision="tf32")

    @pytest.mark.parametrize(("keys", "values"), [(2, 3), (33, 32), (80, 128), (128, 72)])
    def test_any_width(self, rng, keys, values):
        check(
            problem(rng, "float32", 70, keys, values, lead=(1, 2)), "float32", EXACT, scale=keys**-0.5, precision="tf32"
        )

    @pytest.mark.parametrize("decay", [None, 1e-3, 0.1, 1.0, 30.0])
    def test_weak_and_strong_decays(self, rng, decay):
        gates = 8 if decay == 30.0 else 1  # dg is what is left of sums that are hundreds of times as large
        check(problem(rng, "float32", 1000, 64, 64, decay=decay), "float32", gates * EXACT, precision="tf32")

    def test_keys_that_resemble_each_other(self, rng):
        q, k, v, beta, _, S0 = problem(rng, "float32", 512, 64, 64)
        k = unit(3 * unit(oracles.wide(k[:, :1])) + 1.4 * oracles.wide(k)).astype("float32")
        beta, g = 0 * beta + 2, 0 * beta - np.float32(0.01)
        o, S = linscan.delta_rule(*on_gpu(q, k, v, beta, g, S0), precision="tf32")
        with linscan.use_engine("reference"):
            want, last = linscan.delta_rule(*map(oracles.wide, (q, k, v, beta, g, S0)))
        assert_close(o.get(), want, 5e-6)
        assert_close(S.get(), last, 5e-6)

    def test_steps_of_unlike_sizes(self, rng):
        """What is forgotten takes no digits from what comes after it, however large it was."""
        q, k, v, beta, g, _ = problem(rng, "float32", 200, 16, 24)
        v *= 10 ** rng.uniform(-8, 8, (2, 200, 1)).astype("float32")
        g[rng.random(g.shape) < 0.3] = -np.inf
        o, _ = linscan.delta_rule(*on_gpu(q, k, v, beta, g), precision="tf32")
        with linscan.use_engine("reference"):
            want, _ = linscan.delta_rule(*map(oracles.wide, (q, k, v, beta, g)))
        far = np.linalg.norm(o.get() - want, axis=-1) / np.linalg.norm(want, axis=-1)
        assert np.median(far) < 1e-6
        assert far.max() < 1e-4  # outputs that happen to be small

    def test_what_is_not_finite_stays_where_it_belongs(self, rng):
        q, k, v, beta, g, S0 = problem(rng, "float32", 300, 64, 64)
        q[0, 10, 3] = k[0, 70, 5] = v[1, 20, 2] = np.nan
        v[1, 100, 3], g[0, 150], g[1, 250] = np.inf, -np.inf, np.nan
        o, S = linscan.delta_rule(*on_gpu(q, k, v, beta, g, S0), precision="tf32")
        with linscan.use_engine("reference"):
            want, last = linscan.delta_rule(*map(oracles.wide, (q, k, v, beta, g, S0)))
        for got, exact in ((o.get(), want), (S.get(), last)):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
            fine = np.isfinite(exact)
            assert_close(np.where(fine, got, 0), np.where(fine, exact, 0), 4 * EXACT)

    def test_bits_repeat_and_depend_on_nothing_else(self, rng):
        args = on_gpu(*problem(rng, "float32", 200, 64, 128, lead=(3,)))
        ops = (partial(op, precision="tf32") for op in (linscan.delta_rule, linscan.delta_rule_vjp))
        bits_repeat(*ops, args)
