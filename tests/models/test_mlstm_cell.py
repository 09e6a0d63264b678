"""The matrix memory of xLSTM: the paper's equations step by step, its gradient, and gates of any size."""

import numpy as np
import pytest

import linscan
from linscan.models.attention.mlstm_cell import exponential_vjp, sigmoid_vjp
from tests.tolerances import assert_close, stable

H, T, K, V = 2, 7, 3, 4


@pytest.fixture
def given(rng):
    q, k = rng.standard_normal((2, 2, H, T, K))
    v, (i, f) = rng.standard_normal((2, H, T, V)), 2 * rng.standard_normal((2, 2, H, T))
    return q, k, v, i, f


def plain(q, k, v, i, f, C, n, reset):
    """The paper's equations as they stand, for one head."""
    out = []
    for t in range(len(q)):
        keep = 0 if reset[t] else 1 / (1 + np.exp(-f[t]))
        C, n = keep * C + np.exp(i[t]) * np.outer(k[t], v[t]), keep * n + np.exp(i[t]) * k[t]
        out.append(C.T @ q[t] / max(abs(n @ q[t]), np.sqrt(K)))
    return np.array(out), C, n


@pytest.mark.parametrize("packed", [False, True])
def test_outputs_and_states_are_those_of_the_paper(rng, given, packed):
    C, m = rng.standard_normal((2, H, K, V + 1)), rng.standard_normal((2, H))
    reset = np.isin(np.arange(T), [2, 3]) if packed else np.zeros(T, bool)
    (h, final), _ = exponential_vjp(*given, {"C": C, "m": m}, reset if packed else None)
    for at in np.ndindex(2, H):
        true = C[at] * np.exp(m[at])
        want, last, n = plain(*(x[at] for x in given), true[:, :V], true[:, V], reset)
        assert_close(h[at], want, 100 * stable(np.float64))
        got = final["C"][at] * np.exp(final["m"][at])
        assert_close(got, np.concatenate([last, n[:, None]], -1), 100 * stable(np.float64))


@pytest.mark.parametrize("cell", [exponential_vjp, sigmoid_vjp])
def test_gradients_from_a_state_with_normalisers_of_either_sign(rng, given, cell):
    C = rng.standard_normal((2, H, K, V + 1 if cell is exponential_vjp else V))
    state = {"C": C} | ({"m": rng.standard_normal((2, H))} if cell is exponential_vjp else {})

    def f_vjp(*arrays):
        (h, final), back = cell(*arrays[:5], dict(zip(state, arrays[5:], strict=True)), None)

        def pullback(*given):
            given = zip(given, (h, *final.values()), strict=True)
            dh, *dfinal = (np.zeros_like(x) if d is None else d for d, x in given)
            *grads, dstate = back(dh, dict(zip(final, dfinal, strict=True)))
            return *grads, *dstate.values()

        return (h, *final.values()), pullback

    if cell is exponential_vjp:
        den = linscan.linear_attention(given[0], given[1], np.ones_like(given[2][..., :1]), S0=C[..., -1:])[0]
        assert den.min() < 0 < den.max()
    linscan.check_vjp(f_vjp, *given, *state.values())


def test_gates_of_any_size_stay_finite(given):
    q, k, v, i, f = (x.astype(np.float32) for x in given)
    for size in (-1e4, -100, 100, 1e4):
        (h, final), back = exponential_vjp(q, k, v, i + np.float32(size), f, None, None)
        assert np.isfinite(h).all()
        for grad in back(np.ones_like(h), None)[:-1]:
            assert np.isfinite(grad).all()
        assert np.isfinite(final["C"]).all()
        if size < 0:
            assert np.abs(h).max() < 1e-16  # next to the 1 in the normaliser
