"""Models, blocks and a training step keep to what NumPy and CuPy share, on a stand-in as strict as a GPU."""

import numpy as np
import pytest

import linscan
from linscan import _trees
from linscan.models import LRU, Block, Stack, Training
from linscan.ops.loss import cross_entropy_vjp
from linscan.train.evaluate import evaluate
from linscan.train.optimisers import SGD, AdamW, global_norm
from linscan.train.storage import flatten
from tests.models.test_models import CAUSAL, MODELS, setup
from tests.strict_cupy import ndarray, strict_cupy
from tests.tolerances import assert_close, summed


def leaves(tree):
    return [x for x in _trees.leaves(tree).values() if x is not None]


def on_device(cupy, tree):
    return None if tree is None else _trees.rebuild(tree, [cupy.asarray(x) for x in _trees.leaves(tree).values()])


def on_both(run, *trees):
    """What the call gives on the host and on the stand-in, whose sums over leading axes are in another order."""
    with linscan.use_engine("reference"):
        want = run(*trees)
    with strict_cupy() as cupy, linscan.use_engine("reference"):
        got = run(*(on_device(cupy, tree) for tree in trees))
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        assert isinstance(x, ndarray)
        assert x.dtype == y.dtype
        assert_close(x.get(), y, 8 * summed(y.dtype, 100))  # at most some dozens of rows


@pytest.mark.parametrize("name", MODELS)
def test_models_run_where_nothing_becomes_a_numpy_array(name):
    model, params, u, state = setup(name, (2,), np.float32)

    def run(params, u, state, reset):
        out = []
        for before, marks in ((None, None), (None, reset), (state, None)):
            (y, final), back = model.apply_vjp(params, u, before, reset=marks, training=Training())
            out += [y, *leaves(final), *leaves(back(y, final))]
        if name in CAUSAL:
            out += leaves(model.step(params, u[:, 0], state))
        return out

    on_both(run, params, u[:, :7], state, np.isin(np.arange(7), [0, 3]))


@pytest.mark.parametrize("optimiser", [AdamW(0.01), SGD(0.01)])
def test_a_training_step_runs_where_nothing_becomes_a_numpy_array(rng, optimiser):
    model = Stack((Block(LRU(8, 4), norm="batch", dropout=0.1),), 5, 5, tokens=True)

    def run(params, u, labels, mask):
        params = _trees.rebuild(params, [x.copy() for x in leaves(params)])
        flat, training = flatten(params), Training(np.random.default_rng(0))
        (y, _), back = model.apply_vjp(params, u, training=training)
        loss, back_loss = cross_entropy_vjp(y, labels, mask)
        grads = flatten(back(back_loss(np.float32(1))[0])[0])
        optimiser.update(flat, grads, optimiser.start(flat), 1, 0.5)
        training.update()
        return [loss, global_norm(grads), *flat.values()]

    tokens = rng.integers(0, 5, (3, 9))
    on_both(run, model.init(rng), tokens, (tokens + 1) % 5, tokens > 0)


@pytest.mark.parametrize("masked", [False, True])
def test_an_evaluation_runs_where_nothing_becomes_a_numpy_array(rng, masked):
    model = Stack((Block(LRU(8, 4)),), 5, 5, tokens=True)
    params, tokens = model.init(rng), rng.integers(0, 5, (3, 9))
    batch = {"u": tokens, "labels": (tokens + 1) % 5} | ({"mask": tokens > 0} if masked else {})
    with linscan.use_engine("reference"):
        want = evaluate(model, params, [batch], "cross_entropy")
    with strict_cupy() as cupy, linscan.use_engine("reference"):
        assert evaluate(model, on_device(cupy, params), [on_device(cupy, batch)], "cross_entropy") == want
