"""Gated and attention-like layers are their papers' equations, written out step by step."""

import numpy as np
import pytest

from linscan import _trees
from linscan.models import GLA, RWKV4, ChannelMix, DeltaNet, Mamba, RetNet
from tests.tolerances import assert_close, eps

T, D = 9, 8


def silu(x):
    return x * sigmoid(x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def setup(layer):
    """Parameters moved from where they start, an input and the output."""
    rng = np.random.default_rng(4)
    params = layer.init(rng, np.float64)
    moved = [x + 0.2 * rng.standard_normal(x.shape) for x in _trees.leaves(params).values()]
    params, u = _trees.rebuild(params, moved), rng.standard_normal((T, D))
    return params, u, layer.apply(params, u)[0]


def filtered(x, w, b=0.0):
    past = np.concatenate([np.zeros((w.shape[1] - 1, x.shape[1])), x])
    return np.stack([sum(w[:, j] * past[t + w.shape[1] - 1 - j] for j in range(w.shape[1])) for t in range(T)]) + b


def close(got, want):
    assert_close(got, want, 1000 * eps("float64"))  # norms of a few channels divide by what may be small


@pytest.mark.parametrize("negative", [False, True])
def test_mamba(negative):
    p, u, y = setup(Mamba(D, 3, rank=2, negative=negative))
    xz = u @ p["W_in"]["w"]
    x, z = silu(filtered(xz[:, : 2 * D], p["conv"]["w"], p["conv"]["b"])), xz[:, 2 * D :]
    low, B, C = np.split(x @ p["W_x"]["w"], [2, 5], -1)
    dt = np.log1p(np.exp(low @ p["W_dt"]["w"] + p["dt_bias"]))
    h, rows = np.zeros((2 * D, 3)), []
    for t in range(T):
        a = np.exp(-dt[t][:, None] * np.exp(p["A_log"]))
        h = (2 * a - 1 if negative else a) * h + (dt[t] * x[t])[:, None] * B[t]
        rows.append((h @ C[t] + p["D"] * x[t]) * silu(z[t]))
    close(y, np.stack(rows) @ p["W_out"]["w"])


def mixed(u, mu):
    return mu * u + (1 - mu) * np.concatenate([np.zeros((1, D)), u[:-1]])


def test_rwkv4():
    p, u, y = setup(RWKV4(D, 0.5))
    k, v, r = (mixed(u, p[f"mix_{name}"]) @ p[f"W_{name}"]["w"] for name in "kvr")
    w, rows = -np.exp(p["time_decay"]), []
    for t in range(T):
        weights = np.array([np.exp((t - 1 - s) * w + k[s]) for s in range(t)] + [np.exp(p["time_first"] + k[t])])
        rows.append((weights * v[: t + 1]).sum(0) / weights.sum(0))
    close(y, (sigmoid(r) * np.stack(rows)) @ p["W_o"]["w"])
    p, u, y = setup(ChannelMix(D, 0.5))
    k, r = (mixed(u, p[f"mix_{name}"]) @ p[f"W_{name}"]["w"] for name in "kr")
    close(y, sigmoid(r) * (np.maximum(k, 0) ** 2 @ p["W_v"]["w"]))


def test_rwkv4_does_not_overflow():
    layer = RWKV4(D)
    p, u, _ = setup(layer)
    p["W_k"]["w"] = 1e4 * np.eye(D)
    y, state = layer.apply(p, u, 0)
    assert np.isfinite(y).all()
    assert np.abs(state["log_sum"]).max() > 1e3


def out(p, o, u):
    """What becomes of the heads' outputs (T, H, V)."""
    n = o / np.sqrt((o * o).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    n = n.reshape(T, -1)
    return (n * silu(u @ p["W_g"]["w"]) if "W_g" in p else n) @ p["W_out"]["w"]


@pytest.mark.parametrize("taps", [0, 3])
def test_gla(taps):
    p, u, y = setup(GLA(D, 2, key=3, value=5, taps=taps))
    x = u @ p["W_in"]["w"]
    x = silu(filtered(x, p["conv"]["w"])) if taps else x
    q, k, v = (part.reshape(T, 2, -1) for part in np.split(x, [6, 12], -1))
    g = sigmoid(u @ p["W_a"]["w"] @ p["W_b"]["w"] + p["W_b"]["b"]).reshape(T, 2, 3) ** (1 / 16)
    S, rows = np.zeros((2, 3, 5)), []
    for t in range(T):
        S = g[t][..., None] * S + k[t][..., None] * v[t][:, None]
        rows.append(np.einsum("hk,hkv->hv", q[t], S) / np.sqrt(3))
    close(y, out(p, np.stack(rows), u))


def test_retnet():
    p, u, y = setup(RetNet(D, 2, key=4, value=3))
    q, k, v = (part.reshape(T, 2, -1) for part in np.split(u @ p["W_in"]["w"], [8, 16], -1))
    turn = np.exp(1j * np.arange(T)[:, None, None] * 10000.0 ** -np.array([0, 0.5]))
    q, k = ((x[..., :2] + 1j * x[..., 2:]) * turn for x in (q, k))  # pairs as complex numbers
    o = np.zeros((T, 2, 3))
    for t in range(T):
        for s in range(t + 1):
            decay = (1 - 2.0 ** (-5 - np.arange(2))) ** (t - s)
            o[t] += (decay * (q[t] * k[s].conj()).sum(-1).real)[:, None] * v[s] / 2
    close(y, out(p, o, u))


@pytest.mark.parametrize(
    ("options", "n"), [({}, 1), ({"negative": True, "taps": 0, "activation": "identity"}, 1), ({"gated": True}, 2)]
)
def test_deltanet(options, n):
    p, u, y = setup(DeltaNet(D, 2, 3, 5, n_householder=n, **options))
    x = u @ p["W_in"]["w"]
    x = silu(filtered(x, p["conv"]["w"])) if "conv" in p else x
    q, k, v = (
        part.reshape(T, -1, 2, width) for part, width in zip(np.split(x, [6, 6 + 6 * n], -1), (3, 3, 5), strict=True)
    )
    q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    beta = (1 + ("negative" in options)) * sigmoid(u @ p["W_beta"]["w"]).reshape(T, n, 2)
    alpha = np.ones((T, 2))
    if "gated" in options:
        alpha = np.exp(-np.exp(p["A_log"]) * np.log1p(np.exp(u @ p["W_a"]["w"] + p["dt_bias"])))
    S, rows = np.zeros((2, 3, 5)), []
    for t in range(T):
        S = alpha[t][:, None, None] * S
        for j in range(n):
            S = S + np.einsum("h,hk,hv->hkv", beta[t, j], k[t, j], v[t, j] - np.einsum("hk,hkv->hv", k[t, j], S))
        rows.append(np.einsum("hk,hkv->hv", q[t, 0], S) / np.sqrt(3))
    close(y, out(p, np.stack(rows), u))


def test_errors_say_who_what_and_what_came(rng):
    with pytest.raises(ValueError, match="GLA: channels must be a multiple of 8 where key is not given; got 12"):
        GLA(12).init(rng)
    with pytest.raises(ValueError, match="DeltaNet: channels must be a multiple of 4 where value is not given; got 6"):
        DeltaNet(6, key=4).init(rng)
    with pytest.raises(ValueError, match="DeltaNet: n_householder must be at least 1; got 0"):
        DeltaNet(8, n_householder=0).init(rng)
    with pytest.raises(ValueError, match="RetNet: the width of keys must be even; got 3"):
        RetNet(6, 2).init(rng)


def test_gates_of_the_delta_rule_start_wide():
    plain, wide = (_trees.leaves(DeltaNet(8, spread=n).init(np.random.default_rng(0))) for n in (1.0, 8.0))
    assert plain.keys() == wide.keys()
    for name, x in plain.items():
        np.testing.assert_array_equal(wide[name], 8 * x if "W_beta" in name else x)
