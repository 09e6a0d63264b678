"""Laws of the ordinary layers between recurrences: products over channels, look-ups, norms, gates, dropout."""

import numpy as np
import pytest
from scipy import stats

import linscan
from linscan.ops import activation, dense, norm
from linscan.ops.dropout import dropout_vjp
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, eps, summed

KINDS = ["identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "softplus"]
ENGINES = ["reference", "cpu"]
PAIRS = [("float64", "float64"), ("float64", "complex128"), ("complex128", "float64"), ("complex128", "complex128")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 0, 5), (2, 3, 5)])
@pytest.mark.parametrize("real", [False, True])
def test_dense_equals_the_sum(rng, dtype, shape, real):
    u, w, b = random(rng, shape, dtype), random(rng, (5, 4), dtype), random(rng, (4,), dtype)
    y = dense.dense(u, w, b, real=real)
    want = oracles.dense(u, w, b)
    assert y.dtype == (dtype_of(dtype) if not real else np.asarray(np.real(u)).dtype)
    assert_close(y, want.real if real else want, summed(dtype, 6))


@pytest.mark.parametrize("kinds", PAIRS)
@pytest.mark.parametrize("real", [False, True])
def test_dense_of_mixed_kinds_and_its_gradient(rng, kinds, real):
    u, w = random(rng, (2, 7, 5), kinds[0]), random(rng, (5, 3), kinds[1])
    want = oracles.dense(u, w, np.zeros(3))
    assert_close(dense.dense(u, w, real=real), want.real if real else want, summed("float64", 6))
    for b in (None, random(rng, (3,), "float64"), random(rng, (3,), kinds[1])):
        linscan.check_vjp(dense.dense_vjp, u, w, b, real=real)


def test_dense_promotes_and_says_what_is_wrong(rng):
    u, w = np.ones((2, 3), np.float32), np.ones((3, 4))
    assert dense.dense(u, w).dtype == np.float64
    assert dense.dense(u, w.astype(np.complex64)).dtype == np.complex64
    with pytest.raises(ValueError, match=r"dense: u and w must have shapes \(..., I\) and \(I, J\); got \(2, 3\)"):
        dense.dense(u, w.T)
    with pytest.raises(ValueError, match=r"dense: b must have shape \(4,\); got \(3,\)"):
        dense.dense(u, w, np.ones(3))


def test_embedding_takes_rows_and_sums_their_gradients(rng, monkeypatch):
    table, tokens = random(rng, (5, 3), "float64"), rng.integers(0, 5, (2, 7))
    for elements in (1 << 22, 10):  # in one group, and in groups of two tokens
        monkeypatch.setattr(dense, "_ELEMENTS", elements)
        y, pullback = dense.embedding_vjp(tokens, table)
        np.testing.assert_array_equal(y, np.stack([[table[v] for v in row] for row in tokens]))
        none, grad = pullback(np.ones_like(y))
        assert none is None
        assert_close(grad, np.bincount(tokens.ravel(), minlength=5)[:, None] * np.ones(3), eps("float64"))
        linscan.check_vjp(lambda t: with_one_gradient(dense.embedding_vjp(tokens, t)), table)
    with pytest.raises(ValueError, match=r"embedding: tokens must lie in 0 … 4; got 0 … 5"):
        dense.embedding([0, 5], table)
    with pytest.raises(TypeError, match="embedding: tokens must be integers; got float64"):
        dense.embedding([0.0], table)


def with_one_gradient(result):
    return result[0], lambda dy: result[1](dy)[1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_activations_equal_their_formula_in_every_dtype(rng, kind, engine):
    x = np.concatenate([rng.standard_normal(50), [-1000, -40, -6, 0, 6, 40, 1000]])
    with np.errstate(over="ignore", invalid="ignore"):
        want = {
            "identity": x,
            "relu": np.where(x > 0, x, 0),
            "gelu": x * stats.norm.cdf(x),
            "gelu_tanh": x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
            "silu": np.array([v / (1 + np.exp(-v)) if v > -700 else 0 for v in x]),
            "sigmoid": np.array([1 / (1 + np.exp(-v)) if v > -700 else 0 for v in x]),
            "tanh": np.tanh(x),
            "softplus": np.array([np.log1p(np.exp(v)) if v < 30 else v for v in x]),
        }[kind]
    for dtype in ("float16", "float32", "float64"):
        with linscan.use_engine(engine):
            y = activation.activation(x.astype(dtype), kind)
        assert y.dtype == dtype
        assert_close(y[:50], want[:50], 4 * eps(dtype))
        assert np.isfinite(y).all()
        np.testing.assert_allclose(y[50:], want[50:], rtol=4 * eps(dtype) + 1e-12, atol=eps(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_activations_and_gates(rng, kind):
    x = random(rng, (3, 8), "float64")
    linscan.check_vjp(activation.activation_vjp, x, kind=kind)
    linscan.check_vjp(activation.glu_vjp, x, None)
    linscan.check_vjp(activation.glu_vjp, x, random(rng, (3, 4), "float64"))
    assert_close(activation.glu(x), x[:, :4] / (1 + np.exp(-x[:, 4:])), 4 * eps("float64"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_gates_equal_their_formula(rng, dtype):
    value, z, around = (random(rng, (2, 3, 5), dtype) for _ in range(3))
    b = random(rng, (5,), dtype)
    wide = [np.asarray(x, np.float64) for x in (value, z, b, around)]
    y = activation.gate_vjp(value, z, b, around)[0]
    assert y.dtype == dtype_of(dtype)
    assert_close(y, wide[0] / (1 + np.exp(-wide[1] - wide[2])) + wide[3], 4 * eps(dtype))
    assert_close(
        activation.glu_vjp(np.concatenate([value, z], -1), around)[0],
        wide[0] / (1 + np.exp(-wide[1])) + wide[3],
        4 * eps(dtype),
    )


def test_gradients_of_gates(rng):
    value, z, around = (random(rng, (2, 3, 4), "float64") for _ in range(3))
    for b in (random(rng, (4,), "float64"), None):
        for beside in (around, None):
            linscan.check_vjp(activation.gate_vjp, value, z, b, beside)
    with pytest.raises(ValueError, match=r"gate: b must have shape \(4,\); got \(3,\)"):
        activation.gate_vjp(value, z, np.ones(3))
    with pytest.raises(ValueError, match=r"glu: around must have shape \(2, 3, 2\); got \(2, 3, 4\)"):
        activation.glu_vjp(value, around)


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 4)])
def test_what_flows_around_is_added(rng, shape):
    x, dy, around = (random(rng, shape, "float64") for _ in range(3))
    D = random(rng, (4,), "float64")
    for op in (
        lambda: norm.layer_norm_vjp(x, D),
        lambda: norm.rms_norm_vjp(x),
        lambda: norm.batch_norm_vjp(x, D, None, D, D * D),
        lambda: norm.batch_statistics_norm_vjp(x, D, None),
        lambda: activation.activation_vjp(x, "silu"),
    ):
        pullback = op()[1]
        alone, both = (p if isinstance(p, tuple) else (p,) for p in (pullback(dy), pullback(dy, around)))
        changed = [i for i, (x1, x2) in enumerate(zip(alone, both, strict=True)) if not np.array_equal(x1, x2)]
        assert len(changed) == (x.size > 0)
        for i in changed:
            assert_close(both[i], alone[i] + around, 4 * eps("float64"))


def test_activations_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"activation: kind must be one of 'identity', 'relu'.*; got 'gelo'"):
        activation.activation(np.ones(2), "gelo")
    with pytest.raises(TypeError, match="activation: x must be real; got complex128"):
        activation.activation(np.ones(2) + 0j, "gelu")
    with pytest.raises(ValueError, match=r"glu: x must have an even last axis; got \(3,\)"):
        activation.glu(np.ones(3))
    assert_close(activation.softplus(activation.softplus_inverse(np.array([1e-4, 2.0]))), [1e-4, 2.0], 1e-11)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_norms_equal_the_loop(rng, dtype):
    x = random(rng, (3, 4, 6), dtype)
    scale, shift = random(rng, (6,), dtype), random(rng, (6,), dtype)
    want = oracles.normal_rows(x, 1e-5, True) * np.float64(scale) + np.float64(shift)
    assert_close(norm.layer_norm(x, scale, shift), want, summed(dtype, 6))
    assert_close(norm.rms_norm(x, scale), oracles.normal_rows(x, 1e-5, False) * np.float64(scale), summed(dtype, 6))
    assert norm.layer_norm(x, scale, shift).dtype == dtype_of(dtype)
    columns = np.moveaxis(np.asarray(x, np.float64), -1, 0).reshape(1, 6, 12)
    want = np.moveaxis(oracles.normal_rows(columns, 1e-5, True).reshape(6, 3, 4), 0, -1) * np.float64(scale)
    (y, mean, var), _ = norm.batch_statistics_norm_vjp(x, scale, None)
    assert_close(y, want, summed(dtype, 12))
    assert_close(norm.batch_norm(x, scale, None, mean, var), want, summed(dtype, 12))


def test_gradients_of_norms(rng):
    x, scale, shift = random(rng, (2, 5, 4), "float64"), random(rng, (4,), "float64"), random(rng, (4,), "float64")
    mean, var = random(rng, (4,), "float64"), rng.uniform(0.5, 2, 4)
    for given in ((scale, shift), (None, None), (scale, None)):
        linscan.check_vjp(norm.layer_norm_vjp, x, *given)
        linscan.check_vjp(norm.batch_norm_vjp, x, *given, mean, var)
        linscan.check_vjp(of_batch_statistics, x, *given)
    linscan.check_vjp(norm.rms_norm_vjp, x, scale)
    linscan.check_vjp(norm.rms_norm_vjp, x, None)


def of_batch_statistics(x, scale=None, shift=None):
    (y, _, _), pullback = norm.batch_statistics_norm_vjp(x, scale, shift)
    return y, pullback


def test_norms_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"layer_norm: scale must have shape \(3,\); got \(2,\)"):
        norm.layer_norm(np.ones((2, 3)), np.ones(2))
    with pytest.raises(TypeError, match="rms_norm: arguments must be real; got complex128"):
        norm.rms_norm(np.ones((2, 3)) + 0j)


@pytest.mark.parametrize("tied", [False, True])
def test_dropout_keeps_the_mean_and_its_mask(tied):
    x = np.ones((40, 50, 30), np.float32)
    y, pullback = dropout_vjp(x, 0.25, np.random.default_rng(1), tied=tied)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    independent = 40 * 30 * (1 if tied else 50)
    assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / independent)  # five standard deviations
    assert (y == y[:, :1]).all() == tied
    np.testing.assert_array_equal(pullback(x), y)
    again, _ = dropout_vjp(x, 0.25, np.random.default_rng(1), tied=tied)
    np.testing.assert_array_equal(again, y)
    for off in (dropout_vjp(x, 0.25, None), dropout_vjp(x, 0.0, np.random.default_rng(1))):
        assert off[0] is x
    with pytest.raises(ValueError, match=r"dropout: rate must be in \[0, 1\); got 1"):
        dropout_vjp(x, 1, None)
