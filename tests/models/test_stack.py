"""Laws of blocks and stacks that layers do not have: training, tokens, pooling, lengths."""

import numpy as np
import pytest

import linscan
from linscan import _trees
from linscan.models import LRU, S5, Block, Stack, Training
from tests.models.test_models import flat_vjp
from tests.tolerances import assert_close, eps, summed


def leaves(tree):
    return list(_trees.leaves(tree).values())


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_in_training(rng, norm, tied):
    model = Stack((Block(S5(4, 4), norm=norm, dropout=0.3, tied=tied),) * 2, 3, 2)
    params, u = model.init(rng, np.float64), rng.standard_normal((4, 6, 3))

    def f_vjp(*arrays):  # the same mask at every evaluation
        return flat_vjp(model, params, None, training=Training(np.random.default_rng(8)))(*arrays)

    linscan.check_vjp(f_vjp, u, *leaves(params), directions=1)
    kept = model.apply_vjp(params, u, training=Training(np.random.default_rng(8)))[0][0]
    other = model.apply_vjp(params, u, training=Training(np.random.default_rng(9)))[0][0]
    assert np.abs(kept - other).max() > 0.01


def test_running_statistics_approach_those_of_the_batch(rng):
    block = Block(LRU(3, 4), norm="batch")
    params, u = block.init(rng, np.float64), 2 + 3 * rng.standard_normal((8, 20, 3))
    (in_training, _), _ = block.apply_vjp(params, u, training=Training())
    assert np.abs(block.apply(params, u)[0] - in_training).max() > 0.1
    assert (params["norm"]["mean"] == 0).all()
    for n in range(1, 450):
        training = Training()
        block.apply_vjp(params, u, training=training)
        training.update()
        if n == 1:
            assert_close(params["norm"]["mean"], 0.05 * u.mean((0, 1)), 4 * eps("float64"))
            assert_close(params["norm"]["var"], 0.95 + 0.05 * u.var((0, 1)), 4 * eps("float64"))
    assert_close(block.apply(params, u)[0], in_training, 1e-7)  # 0.95**450 is 1e-10
    assert not training.statistics


def test_running_statistics_by_length(rng):
    block = Block(LRU(3, 4), norm="batch", buckets=(4, 8))
    params = block.init(rng, np.float64)
    batches = {n: n + rng.standard_normal((5, n, 3)) for n in (3, 7, 20)}  # 20 is longer than the last of the buckets
    wanted = {}
    for _ in range(450):
        for n, u in batches.items():
            training = Training()
            wanted[n] = block.apply_vjp(params, u, training=training)[0][0]
            if n != 20:
                training.update()
    assert_close(params["norm"]["mean"], np.stack([batches[n].mean((0, 1)) for n in (3, 7)]), 1e-7)
    for n in (3, 7):
        assert_close(block.apply(params, batches[n])[0], wanted[n], 1e-7)
    training.update()  # that of 20
    assert_close(params["norm"]["mean"][0], batches[3].mean((0, 1)), 1e-7)
    assert np.abs(params["norm"]["mean"][1] - batches[7].mean((0, 1))).min() > 0.1
    assert np.abs(params["norm"]["var"][1] - batches[7].var((0, 1))).max() > 1e-3


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("training", [None, Training()])
def test_gradients_of_statistics_by_length(rng, prenorm, training):
    model = Stack((Block(S5(4, 4), norm="batch", prenorm=prenorm, buckets=(2, 6, 9)),) * 2, 3, 2, pool="mean")
    params, u = model.init(rng, np.float64), rng.standard_normal((4, 6, 3))
    linscan.check_vjp(flat_vjp(model, params, None, training=training), u, *leaves(params), directions=1)


@pytest.mark.parametrize("pool", ["none", "mean", "last"])
@pytest.mark.parametrize("tokens", [False, True])
def test_heads_and_their_gradients(rng, pool, tokens):
    model = Stack((Block(LRU(4, 3, max_phase=2.0)),), 5, 2, tokens=tokens, pool=pool)
    params = model.init(rng, np.float64)
    u = rng.integers(0, 5, (3, 6)) if tokens else rng.standard_normal((3, 6, 5))
    lengths = np.array([6, 1, 4])
    y, _ = model.apply(params, u, lengths=lengths)
    each = Stack(model.blocks, 5, 2, tokens=tokens).apply(params, u)[0]
    want = {
        "none": each,
        "mean": np.stack([row[:n].mean(0) for row, n in zip(each, lengths, strict=True)]),
        "last": np.stack([row[n - 1] for row, n in zip(each, lengths, strict=True)]),
    }[pool]
    assert_close(y, want, summed("float64", 50))
    full = model.apply(params, u)[0]
    assert_close(full, model.apply(params, u, lengths=np.full(3, 6))[0], eps("float64"))
    f = flat_vjp(model, params, None, lengths=lengths)
    if not tokens:
        linscan.check_vjp(f, u, *leaves(params), directions=1)
        return

    def of_params(*arrays):
        out, back = f(u, *arrays)
        return out, lambda dy: back(dy)[1:]

    assert f(u, *leaves(params))[1](y)[0] is None
    linscan.check_vjp(of_params, *leaves(params), directions=1)


def test_stepping_tokens_equals_the_whole(rng):
    model = Stack((Block(LRU(4, 3)),) * 2, 5, 2, tokens=True)
    params, u = model.init(rng), rng.integers(0, 5, (3, 9))
    whole, state = model.apply(params, u)[0], 0
    for t in range(9):
        y, state = model.step(params, u[:, t], state)
        assert_close(y, whole[:, t], 100 * eps("float32"))


def test_errors_say_who_what_and_what_came(rng):
    block = Block(LRU(4, 3))
    with pytest.raises(ValueError, match=r"Block: gate must be one of 'glu', .*; got 'gul'"):
        Block(LRU(4, 3), gate="gul").init(rng)
    with pytest.raises(ValueError, match=r"Block: norm must be one of 'layer', .*; got 'lay'"):
        Block(LRU(4, 3), norm="lay").init(rng)
    with pytest.raises(ValueError, match="Stack: pool must be one of 'none', 'mean', 'last'; got 'max'"):
        Stack((block,), 3, 2, pool="max").init(rng)
    model = Stack((block,), 3, 2, pool="mean")
    params = model.init(rng)
    with pytest.raises(ValueError, match="Stack: a mean over time has no state"):
        model.apply(params, np.ones((5, 3)), 0)
    with pytest.raises(ValueError, match="Stack: a mean over time has no step"):
        model.step(params, np.ones(3), 0)
    with pytest.raises(ValueError, match="S5: states must be an even number for each of 3 blocks; got 8"):
        S5(4, 8, blocks=3).init(rng)
    with pytest.raises(ValueError, match="Block: buckets are of a batch norm; got norm='rms'"):
        Block(LRU(4, 3), norm="rms", buckets=(9,)).init(rng)
    block = Block(LRU(4, 3), norm="batch", buckets=(9,))
    params = block.init(rng)
    with pytest.raises(ValueError, match="Block: with statistics by length there is no state"):
        block.apply(params, np.ones((5, 4)), 0)
    with pytest.raises(ValueError, match="Block: with statistics by length there is no step"):
        block.step(params, np.ones(4), 0)
