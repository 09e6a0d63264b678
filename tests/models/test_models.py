"""Laws of every model: the gradient of the whole, and that applying, splitting, stepping and packing agree."""

from itertools import pairwise

import numpy as np
import pytest

import linscan
from linscan import _trees
from linscan.models import (
    GILRLSTM,
    GLA,
    LRU,
    MEGA,
    MLSTM,
    RWKV4,
    S4,
    S4D,
    S5,
    SLSTM,
    Bidirectional,
    Block,
    ChannelMix,
    DeltaNet,
    FeedForward,
    Hawk,
    Hyena,
    Mamba,
    RetNet,
    Stack,
    griffin,
    xlstm,
)
from tests.tolerances import assert_close, stable, transformed

D, T = 3, 23
MODELS = {
    **{f"S4D {kind}": S4D(D, 6, kind) for kind in ("lin", "legs", "real")},
    "S4D bilinear": S4D(D, 6, method="bilinear"),
    "LRU": LRU(D, 5, r_min=0.2, r_max=0.95, max_phase=2.0),
    "S5": S5(D, 8, blocks=2),
    "S5 bilinear": S5(D, 8, method="bilinear", C_init="complex_normal"),
    "S5 bidirectional": S5(D, 8, bidirectional=True, C_init="lecun_normal"),
    "S4": S4(D, 6),
    "S4 of rank two": S4(D, 4, "legt"),
    "Hawk": Hawk(D, 4, heads=2),
    "Hyena": Hyena(D, T, width=8),
    "Hyena of order 3": Hyena(D, T, order=3, features=5, width=8),
    "Hyena with a short window": Hyena(D, 5, width=8),
    "bidirectional S4D": Bidirectional(S4D(D, 4)),
    "Mamba": Mamba(D, 4),
    "Mamba with negative eigenvalues": Mamba(D, 3, rank=2, negative=True),
    "bidirectional Mamba": Bidirectional(Mamba(D, 2)),
    "RWKV-4": RWKV4(D, 0.3),
    "RWKV-4's channel mix": ChannelMix(D, 0.5),
    "GLA": GLA(D, 1, key=4, value=8),
    "GLA with filters": GLA(D, 2, key=3, value=8, taps=3),
    "RetNet": RetNet(D, 1, key=8, value=8),
    "DeltaNet": DeltaNet(D, 1, key=8, value=8),
    "DeltaNet with negative eigenvalues": DeltaNet(D, 1, 6, 6, negative=True, taps=0, activation="identity"),
    "Gated DeltaNet": DeltaNet(D, 2, key=8, value=8, gated=True),
    "DeltaProduct": DeltaNet(D, 1, key=4, value=8, n_householder=2, negative=True),
    "Gated DeltaProduct": DeltaNet(D, 2, 8, 8, n_householder=3, gated=True, negative=True),
    "GILR-LSTM": GILRLSTM(D),
    "MEGA": Stack((Block(MEGA(8, 5, 3, 4), norm="none", activation="identity", gate="none"),), D, 2),
    "mLSTM": MLSTM(D, 1, block=3),
    "mLSTM with a sigmoid gate": MLSTM(D, 1, "sigmoid", block=3),
    "sLSTM": SLSTM(D, 1),
    "xLSTM without mLSTM": Stack(xlstm(8, heads=1, pattern="s"), D, 2),
    "Griffin without Hawk": Stack(griffin(8, heads=2, window=5, pattern="a"), D, 2),
    "feed-forward layer": FeedForward(D, 5, "silu", gated=False),
    "block layer norm": Block(S4D(D, 4)),
    "block rms norm at the end": Block(LRU(D, 3, max_phase=2.0), norm="rms", prenorm=False, gate="half_glu1"),
    "block batch norm": Block(S5(D, 4), norm="batch", gate="half_glu2", activation="gelu_tanh"),
    "block without norm": Block(S4D(D, 4), norm="none", gate="linear", activation="silu"),
    "block without gate": Block(S4D(D, 4), gate="none"),
    "stack": Stack((Block(S4D(4, 4)), Block(LRU(4, 3, max_phase=2.0), norm="batch")), D, 2),
    "stack of RWKV-4": Stack(
        tuple(Block(m, activation="identity", gate="none") for m in (RWKV4(4), ChannelMix(4))), D, 2
    ),
    "stack norms at the end": Stack((Block(S4D(4, 4), prenorm=False),), D, 2),
}
CAUSAL = [name for name in MODELS if "bidirectional" not in name]


def setup(name, lead=(2,), dtype=np.float64):
    """A model with moved parameters (so that none sits at a special value), an input and a final state."""
    rng = np.random.default_rng(5)
    model = MODELS[name]
    params = model.init(rng, dtype)
    moved = [x + np.asarray(0.1 * rng.standard_normal(x.shape), dtype) for x in _trees.leaves(params).values()]
    params = _trees.rebuild(params, moved)
    u = rng.standard_normal((*lead, T, D)).astype(dtype)
    state = model.apply(params, u, 0)[1] if name in CAUSAL else None
    return model, params, u, state


def flat_vjp(model, like, state_like, **options):
    """`apply_vjp` as `check_vjp` wants it: arrays in, arrays out."""

    def f_vjp(u, *arrays):
        count = len(_trees.leaves(like))
        params = _trees.rebuild(like, arrays[:count])
        state = state_like if state_like is None or state_like == 0 else _trees.rebuild(state_like[0], arrays[count:])
        (y, final), back = model.apply_vjp(params, u, state, **options)
        finals = [] if final is None else list(_trees.leaves(final).values())

        def pullback(dy, *dfinals):
            empty = all(d is None for d in dfinals)
            dparams, du, dstate = back(dy, None if empty else _trees.rebuild(final, map(filled, dfinals, finals)))
            assert _trees.leaves(dparams).keys() == _trees.leaves(like).keys()
            grads = list(_trees.leaves(dparams).values())
            return du, *grads, *([] if len(arrays) == count else _trees.leaves(dstate).values())

        return (y, *finals), pullback

    return f_vjp


def filled(d, like):
    return np.zeros_like(like) if d is None else d


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", ["whole", "from zero", "from a state", "packed"])
def test_gradients_of_everything(name, way):
    model, params, u, state = setup(name)
    if name not in CAUSAL and way.startswith("from"):
        with pytest.raises(ValueError, match="has no state"):
            model.apply(params, u, 0)
        return
    u = u[:, :7]  # long powers of an eigenvalue bend more than finite differences can follow
    reset = np.isin(np.arange(7), [0, 2, 3, 6]) if way == "packed" else None
    given = {"whole": None, "from zero": 0, "from a state": (state,), "packed": None}[way]
    arrays = [*_trees.leaves(params).values(), *(_trees.leaves(state).values() if way == "from a state" else [])]
    linscan.check_vjp(flat_vjp(model, params, given, reset=reset), u, *arrays, directions=2)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_applying_splitting_and_stepping_agree(name, dtype):
    model, params, u, state = setup(name, (2, 1), dtype)
    whole, none = model.apply(params, u)
    assert none is None
    assert whole.dtype == dtype
    want, final = model.apply(params, u, state)
    tolerance = 4 * stable(dtype) + transformed(dtype, T)
    assert_close(model.apply(params, u, 0)[0], whole, tolerance)
    for cuts in ((0, T), (1, 8), (5, 5), (22, 23)):
        parts, carried = [], state
        for lo, hi in zip((0, *cuts), (*cuts, T), strict=True):
            y, carried = model.apply(params, u[..., lo:hi, :], carried)
            parts.append(y)
        assert_close(np.concatenate(parts, -2), want, tolerance)
        same_tree(carried, final, tolerance)
    carried, parts = state, []
    for t in range(T):
        y, carried = model.step(params, u[..., t, :], carried)
        assert y.dtype == dtype
        parts.append(y)
    assert_close(np.stack(parts, -2), want, tolerance)
    same_tree(carried, final, tolerance)
    assert_close(model.step(params, u[..., 0, :], 0)[0], whole[..., 0, :], tolerance)


def same_tree(got, want, tolerance):
    for path, x in _trees.leaves(want).items():
        assert_close(_trees.leaves(got)[path], x, tolerance, path)


@pytest.mark.parametrize("name", MODELS)
def test_packed_sequences_equal_separate_calls(name):
    model, params, u, state = setup(name)
    tolerance = 4 * stable(np.float64) + transformed(np.float64, T)
    for edges in ([0, T], [0, 1, 9, T], [0, 7, 22, T]):
        reset = np.isin(np.arange(T), edges[1:])
        parts = [model.apply(params, u[:, lo:hi])[0] for lo, hi in pairwise(edges)]
        assert_close(model.apply(params, u, reset=reset)[0], np.concatenate(parts, 1), tolerance)
        if name in CAUSAL:
            y, final = model.apply(params, u, state, reset=np.isin(np.arange(T), edges))  # the state is forgotten too
            assert_close(y, np.concatenate(parts, 1), tolerance)
            same_tree(final, model.apply(params, u[:, edges[-2] :], 0)[1], tolerance)
            carried = model.apply(params, u, state, reset=reset)[0][:, : edges[1]]
            assert_close(carried, model.apply(params, u[:, : edges[1]], state)[0], tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_single_precision_is_close_to_double_and_keeps_its_kind(name):
    model, params, u, _ = setup(name)
    single = _trees.rebuild(
        params, [x.astype(np.complex64 if x.dtype.kind == "c" else np.float32) for x in _trees.leaves(params).values()]
    )
    (y, _), pullback = model.apply_vjp(single, u.astype(np.float32))
    (want, _), exact = model.apply_vjp(params, u)
    assert_close(y, want, 100 * stable(np.float32))
    grads, truth = pullback(y), exact(want)
    assert (y.dtype, grads[1].dtype) == (np.float32, np.float32)
    for path, x in _trees.leaves(truth[0]).items():
        assert _trees.leaves(grads[0])[path].dtype == _trees.leaves(single)[path].dtype
        assert_close(_trees.leaves(grads[0])[path], x, 400 * stable(np.float32), path)


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_the_same_parameters_and_types(name):
    first, again = (_trees.leaves(MODELS[name].init(np.random.default_rng(3))) for _ in range(2))
    assert first.keys() == again.keys()
    for path, x in first.items():
        np.testing.assert_array_equal(x, again[path])
        assert x.dtype in (np.float32, np.complex64)
        assert x.flags.writeable
        assert x.flags.c_contiguous


@pytest.mark.parametrize("kind", ["lin", "inv", "inv2", "quad", "legs", "real", "dss"])
def test_s4d_starts_from_every_initialisation(kind):
    layer = S4D(D, 6, kind)
    params = layer.init(np.random.default_rng(3), np.float64)
    eigenvalues, weights = linscan.diagonal_init(kind, 6)
    got = -np.exp(params["A_real"]) + 1j * params.get("A_imag", 0)
    assert_close(got, np.tile(eigenvalues, (D, 1)), 4 * stable(np.float64))
    assert_close(params["B"], np.tile(weights, (D, 1)), stable(np.float64))
    a, w = linscan.discretize_diag(eigenvalues, np.exp(params["log_dt"])[:, None])
    powers = (params["C"] * weights * w)[..., None] * a[..., None] ** np.arange(9)
    impulse = np.eye(9, 1)[:, [0, 0, 0]]
    want = (1 if kind == "real" else 2) * powers.sum(1).real.T + impulse * params["D"]
    assert_close(layer.apply(params, impulse)[0], want, 10 * stable(np.float64))


@pytest.mark.parametrize("measure", ["legs", "legt"])
def test_s4_is_the_bilinear_model_of_its_hippo_matrix(measure):
    layer = S4(1, 8, measure)
    params = layer.init(np.random.default_rng(3), np.float64)
    A, B = linscan.hippo(measure, 8)
    _, _, _, V = linscan.nplr(measure, 8)
    if measure == "legt":  # its normal part has no real part, and a layer starts with one of 1e-4
        A = A - 1e-4 * np.eye(8)
    a, b = linscan.discretize(A, B, np.exp(params["log_dt"][0]), "bilinear")
    c = 2 * (params["C"] @ V.conj().T).real
    want = linscan.ssm_kernel_dense(a, b[:, 0], c[0], 12)[:, None] + np.eye(12, 1) * params["D"]
    assert_close(layer.apply(params, np.eye(12, 1))[0], want, 1e4 * stable(np.float64))


def test_errors_say_who_what_and_what_came(rng):
    u = np.ones((2, 5, D))
    with pytest.raises(ValueError, match=r"S4: reset must have shape \(5,\), the same for every row; got \(2, 5\)"):
        S4(D, 4).apply(S4(D, 4).init(rng), u, reset=np.zeros((2, 5), bool))
    with pytest.raises(ValueError, match="Hawk: heads must divide the width, 3; got 2"):
        Hawk(D, heads=2).init(rng)
    with pytest.raises(ValueError, match="Hyena: order must be at least 2 and features odd; got 1 and 3"):
        Hyena(D, 5, order=1).init(rng)
