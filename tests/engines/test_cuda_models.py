"""Models, a training run and sampling on CuPy arrays give what they give on NumPy arrays."""

import numpy as np
import pytest

from linscan import _trees
from linscan.models import Training
from linscan.train import AdamW, Settings, fit
from linscan.train.presets import LAYERS, stack
from linscan.train.sample import sample
from linscan.train.tasks import Copy
from tests.models.test_models import CAUSAL, MODELS, setup
from tests.tolerances import assert_close, stable
from tests.train.test_fit import resumes_to_the_same_bits, stops_and_is_named

pytestmark = pytest.mark.gpu


def leaves(tree):
    return [x for x in _trees.leaves(tree).values() if x is not None]


def on_card(cupy, tree):
    return None if tree is None else _trees.rebuild(tree, [cupy.asarray(x) for x in _trees.leaves(tree).values()])


@pytest.mark.parametrize("name", MODELS)
def test_models_on_the_card_equal_those_on_the_host(name):
    import cupy

    model, params, u, state = setup(name, (2,))

    def run(params, u, state, reset):
        out = []
        for before, marks in ((None, None), (None, reset), (state, None)):
            (y, final), back = model.apply_vjp(params, u, before, reset=marks, training=Training())
            out += [y, *leaves(final), *leaves(back(y, final))]
        if name in CAUSAL:
            out += leaves(model.step(params, u[:, 0], state))
        return out

    reset = np.isin(np.arange(u.shape[1]), [0, 3, 11])
    want = run(params, u, state, reset)
    got = run(*(on_card(cupy, tree) for tree in (params, u, state, reset)))
    for x, y in zip(got, want, strict=True):
        assert isinstance(x, cupy.ndarray)
        assert x.dtype == y.dtype
        assert_close(x.get(), y, 1e5 * stable(np.float64))


@pytest.mark.parametrize("name", LAYERS)
def test_a_run_on_the_card_learns_as_on_the_host(name):
    task = Copy(size=4, symbols=3, count=2, delay=2, evaluations=1)
    run = Settings(3, optimiser=AdamW(0.01), every=3, dtype="float64")
    model = stack(task, name, "tiny", 6)
    host, card = (fit(model, task, run, device=device, progress=False) for device in ("cpu", "cuda"))
    assert card.history[0]["loss"] == pytest.approx(host.history[0]["loss"], rel=1e-6)
    assert card.history[0]["test_loss"] == pytest.approx(host.history[0]["test_loss"], rel=1e-6)
    for x in leaves(card.params):
        assert isinstance(x, np.ndarray)


def test_a_run_that_is_not_finite_stops_at_its_step(tmp_path):
    stops_and_is_named(tmp_path, "cuda")


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path):
    resumes_to_the_same_bits(tmp_path, 9, "cuda")


def test_samples_are_the_same():
    import cupy

    task = Copy(symbols=5)
    model = stack(task, "lru", "tiny", 6)
    params = model.init(np.random.default_rng(0), np.float64)
    one = sample(model, params, np.array([1, 2]), 20, np.random.default_rng(1))
    two = sample(model, on_card(cupy, params), np.array([1, 2]), 20, np.random.default_rng(1))
    np.testing.assert_array_equal(one, two)
