"""Models, a training run and sampling on CuPy arrays give what they give on NumPy arrays."""

import numpy as np
import pytest

from linscan import _trees
from linscan.models import Training
from linscan.train import AdamW, Settings, fit, run
from linscan.train.graph import Replay, own_stream
from linscan.train.presets import LAYERS, stack
from linscan.train.sample import sample
from linscan.train.tasks import Copy
from tests.conftest import random
from tests.models.test_models import CAUSAL, MODELS, setup
from tests.tolerances import assert_close, stable, summed
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


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 256.0), ("bfloat16", None)])
def test_a_run_of_16_bits_learns_as_on_the_host(dtype, scale):
    task = Copy(size=4, symbols=3, count=2, delay=2, evaluations=1)
    settings = Settings(12, optimiser=AdamW(0.01), every=4, dtype=dtype, scale=scale)
    model = stack(task, "lru", "tiny", 6)
    card, host = (fit(model, task, settings, device=device, progress=False) for device in ("cuda", "cpu"))
    for one, two in zip(card.history, host.history, strict=True):
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=0.03)


def test_a_run_that_is_not_finite_stops_at_its_step(tmp_path):
    stops_and_is_named(tmp_path, "cuda")


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path):
    resumes_to_the_same_bits(tmp_path, 9, "cuda")


class Watched(Replay):
    """Notes how many graphs there were when it was closed, and the memory that was not given back."""

    def close(self):
        self.graphs = len(self._graphs)
        super().close()
        self.left = self._pool.total_bytes()


class Unseen(Watched):
    """Runs every step as it is."""

    def __call__(self, run, batch, training):
        self._seen.clear()
        return super().__call__(run, batch, training)


@pytest.mark.parametrize("name", ["s5-both", "lru"])
def test_a_graph_of_a_step_gives_its_bits(monkeypatch, name):
    made = []

    def replay(kind):
        made.append(kind())
        return made[-1]

    task = Copy(size=4, symbols=3, count=2, delay=2, evaluations=1)
    model = stack(task, name, "tiny", 6)
    runs = []
    for kind in (Watched, Unseen):
        monkeypatch.setattr(run, "Replay", lambda kind=kind: replay(kind))
        runs.append(fit(model, task, Settings(8, optimiser=AdamW(0.01), every=4), device="cuda", progress=False))
    assert [x.graphs for x in made] == [1, 0], made[0].refused
    assert [x.left for x in made] == [0, 0]
    for x, y in zip(leaves(runs[0].params), leaves(runs[1].params), strict=True):
        np.testing.assert_array_equal(x, y)
    for one, two in zip(*(fitted.history for fitted in runs), strict=True):
        assert one | {"seconds": 0} == two | {"seconds": 0}


def test_a_function_that_copies_from_the_host_or_draws_there_is_no_graph():
    import cupy

    def copies(batch, training):
        return batch["x"].sum() * cupy.asarray(np.arange(3.0)).sum(), {}

    def draws(batch, training):
        return batch["x"].sum() * training.rng.integers(1, 9), {}

    with own_stream(cupy):
        x = {"x": cupy.ones(5)}
        for run, why in ((copies, "copy from the host"), (draws, "drawn on the host")):
            replay = Replay()
            for seed in (0, 1, 2):
                training = Training(np.random.default_rng(seed))
                want = 15 if run is copies else 5 * np.random.default_rng(seed).integers(1, 9)
                assert replay(run, x, training)[0] == want
            assert why in replay.refused
            assert not replay._graphs


def test_products_are_those_of_the_host(rng):
    import cupy

    from linscan.engines.cuda.cublas import product

    for dtype in ("float32", "float64", "complex64", "complex128"):
        for x, y in (((3, 5), (5, 2)), ((1, 4, 7), (2, 7, 3)), ((4, 1), (1, 3)), ((2, 0), (0, 3)), ((0, 2), (2, 3))):
            a, b = (random(rng, shape, dtype) for shape in (x, y))
            assert_close(product(cupy.asarray(a), cupy.asarray(b)).get(), a @ b, summed(dtype, 8))
            turned = product(cupy.asarray(a.swapaxes(-1, -2).copy()).swapaxes(-1, -2), cupy.asarray(b)[..., ::-1])
            assert_close(turned.get(), a @ b[..., ::-1], summed(dtype, 8))


def test_samples_are_the_same():
    import cupy

    task = Copy(symbols=5)
    model = stack(task, "lru", "tiny", 6)
    params = model.init(np.random.default_rng(0), np.float64)
    one = sample(model, params, np.array([1, 2]), 20, np.random.default_rng(1))
    two = sample(model, on_card(cupy, params), np.array([1, 2]), 20, np.random.default_rng(1))
    np.testing.assert_array_equal(one, two)
