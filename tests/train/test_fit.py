"""Laws of the trainer: it learns, resumes to the bit, and stops where it should."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from linscan import _trees
from linscan.models import LRU, Block, Layer, Stack
from linscan.train import AdamW, BadFile, Cosine, Diverged, Plateau, Settings, fit, load, save
from linscan.train import __main__ as command
from linscan.train.checkpoint import NAME, read_checkpoint
from linscan.train.data import InMemory, ahead
from linscan.train.evaluate import evaluate
from linscan.train.storage import decode, flatten
from linscan.train.tasks import Copy, ListOps, Parity

TASK = Copy(size=8, symbols=3, count=2, delay=2, evaluations=1)
MODEL = Stack((Block(LRU(8, 8), norm="batch", dropout=0.1),), TASK.inputs, TASK.outputs, tokens=True)
RUN = Settings(12, optimiser=AdamW(0.01), schedule=Cosine(12, 3), clip=1.0, accumulate=2, every=5)


def same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name, x in a.items():
        np.testing.assert_array_equal(x, b[name], name)


class Stopping(InMemory):
    """Data that presses Ctrl-C when a batch is asked for."""

    def __init__(self, task, at):
        self.task, self.at = task, at

    def __repr__(self):
        return repr(self.task)

    def batch(self, n, seed):
        if n == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return self.task.batch(n, seed)

    def tests(self):
        return self.task.tests()


def test_it_learns_to_copy():
    fitted = fit(MODEL, TASK, Settings(400, optimiser=AdamW(0.01), every=200), progress=False)
    assert fitted.stopped == "steps"
    assert [row["step"] for row in fitted.history] == [200, 400]
    assert fitted.history[-1]["test_accuracy"] == 1
    assert fitted.history[-1]["test_rows"] == 1


signals = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")


@signals
@pytest.mark.parametrize("at", [1, 9, 10, 21])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, at):
    resumes_to_the_same_bits(tmp_path, at, "cpu")


def resumes_to_the_same_bits(tmp_path, at, device):
    whole = fit(MODEL, TASK, RUN, folder=tmp_path / "whole", progress=False, device=device)
    first = fit(MODEL, Stopping(TASK, at), RUN, folder=tmp_path / "parts", progress=False, device=device)
    assert first.stopped == "interrupted"
    second = fit(MODEL, TASK, RUN, folder=tmp_path / "parts", resume=True, progress=False, device=device)
    same(second.params, whole.params)
    for row, want in zip(second.history, whole.history, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in want.items() if k != "seconds"}
    same(load(tmp_path / "parts" / "last.safetensors"), whole.params)
    again = fit(
        MODEL, TASK, RUN, folder=tmp_path / "parts", resume=True, progress=False, device=device
    )  # it is over: nothing moves
    same(again.params, whole.params)
    assert (tmp_path / "whole" / "log.csv").read_text().startswith("step,loss,test_loss,test_accuracy")
    assert (tmp_path / "whole" / "curve.png").read_bytes().startswith(b"\x89PNG")


@signals
def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    code = """
        import os, signal, sys
        from tests.train.test_fit import MODEL, RUN, TASK, Stopping
        from linscan.train import fit
        class Killing(Stopping):
            def batch(self, n, seed):
                if n == 16: os.kill(os.getpid(), signal.SIGKILL)
                return self.task.batch(n, seed)
        fit(MODEL, Killing(TASK, 16), RUN, folder=sys.argv[1], progress=False)
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "parts")], check=False, cwd=root)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "parts" / NAME).exists()
    whole = fit(MODEL, TASK, RUN, progress=False)
    resumed = fit(MODEL, TASK, RUN, folder=tmp_path / "parts", resume=True, progress=False)
    same(resumed.params, whole.params)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    fit(MODEL, TASK, RUN, folder=tmp_path, progress=False)
    path = tmp_path / NAME
    good = path.read_bytes()
    for bad, why in (
        (good[: len(good) // 2], "not a whole safetensors file"),
        (good[:-1] + bytes([good[-1] ^ 1]), "checksum"),
        (b"", "not a whole safetensors file"),
        (b"hello, I am a text", "not a whole safetensors file"),
        ((tmp_path / "last.safetensors").read_bytes(), "not a checkpoint of linscan"),
    ):
        path.write_bytes(bad)
        with pytest.raises(BadFile, match=why) as error:
            fit(MODEL, TASK, RUN, folder=tmp_path, resume=True, progress=False)
        assert str(path) in str(error.value)
    for place in range(0, int.from_bytes(good[:8], "little"), 97):  # a bit of the header
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(BadFile):
            read_checkpoint(path, json.loads(decode(good, "")[1]["linscan"])["who"])
    path.write_bytes(good)
    other = Stack((Block(LRU(8, 6), norm="batch", dropout=0.1),), TASK.inputs, TASK.outputs, tokens=True)
    for model, task, run in ((other, TASK, RUN), (MODEL, Parity(), RUN), (MODEL, TASK, Settings(13))):
        with pytest.raises(BadFile, match="of another run"):
            fit(model, task, run, folder=tmp_path, resume=True, progress=False)


def test_what_is_not_finite_stops_the_run_and_is_named(tmp_path):
    stops_and_is_named(tmp_path, "cpu")


def stops_and_is_named(tmp_path, device):
    class Poisoned(InMemory):
        def batch(self, n, seed):
            u = np.full((2, 3, 1), np.nan if n == 3 else 1.0)
            return {"u": u, "target": np.zeros((2, 3, 1))}

        def tests(self):
            return [self.batch(0, 0)]

        def __repr__(self):
            return "Poisoned"

    model = Stack((Block(LRU(4, 4)),), 1, 1)
    data = Poisoned({"u": np.zeros(1)}, {}, 1)
    run = Settings(10, loss="mse", optimiser=AdamW(0.01))
    with pytest.raises(Diverged, match=r"fit: step 4: the loss is nan, and the gradient of [\w.]+ is not finite"):
        fit(model, data, run, folder=tmp_path, progress=False, device=device)
    (tmp_path / "diverged.safetensors").rename(tmp_path / NAME)
    with pytest.raises(Diverged, match="fit: step 4"):  # the saved state is the one before the step, and whole
        fit(model, data, run, folder=tmp_path, resume=True, progress=False, device=device)
    assert all(np.isfinite(x).all() for x in flatten(load(tmp_path / NAME)["params"]).values())


def test_it_stops_early_and_keeps_the_best(tmp_path):
    run = Settings(100, optimiser=AdamW(0.0), every=2, patience=3)  # nothing is learnt
    still = Stack((Block(LRU(8, 8)),), TASK.inputs, TASK.outputs, tokens=True)
    fitted = fit(still, TASK, run, folder=tmp_path, progress=False)
    assert (fitted.stopped, len(fitted.history)) == ("patience", 4)
    same(load(tmp_path / "best.safetensors"), fitted.params)
    again = fit(still, TASK, run, folder=tmp_path, resume=True, progress=False)
    assert (again.stopped, len(again.history)) == ("patience", 4)


class Numbers(Layer):
    """A model whose output is its one parameter, for which steps can be done by hand."""

    def __init__(self, first=0.0):
        self.first = first

    def __repr__(self):
        return f"Numbers({self.first})"

    def init(self, rng, dtype=np.float32):
        return {"C": np.full((1, 1), self.first, dtype)}

    def apply_vjp(self, params, u, state=None, *, reset=None, training=None):
        return (u * params["C"], None), lambda dy, ds=None: ({"C": (dy * u).sum(0)}, None, None)


def numbers():
    u, target = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[2.0], [1.0], [0.0], [5.0]])
    return {"u": u, "target": target}


def test_accumulated_batches_make_the_step_of_one():
    from linscan.train import SGD

    x = numbers()
    run = {"loss": "mse", "optimiser": SGD(0.01), "dtype": "float64"}
    whole = fit(Numbers(), InMemory(x, x, 4), Settings(3, **run), progress=False)
    parts = fit(Numbers(), InMemory(x, x, 2), Settings(3, accumulate=2, **run), progress=False)
    np.testing.assert_allclose(parts.params["C"], whole.params["C"], rtol=1e-14)


def test_clipping_and_scaling():
    from linscan.train import SGD

    x, run = numbers(), {"loss": "mse", "dtype": "float64"}
    clipped = fit(Numbers(), InMemory(x, x, 4), Settings(1, optimiser=SGD(1.0), clip=0.5, **run), progress=False)
    np.testing.assert_allclose(clipped.params["C"], 0.5, rtol=1e-14)  # one step of norm 0.5 against the gradient
    plain = fit(Numbers(), InMemory(x, x, 4), Settings(3, optimiser=SGD(0.01), **run), progress=False)
    scaled = fit(Numbers(), InMemory(x, x, 4), Settings(3, optimiser=SGD(0.01), scale=1024.0, **run), progress=False)
    np.testing.assert_array_equal(scaled.params["C"], plain.params["C"])
    with np.errstate(over="ignore", invalid="ignore"):  # too large a scale: halved until gradients fit
        lost = Settings(20, optimiser=SGD(0.01), scale=2.0**515, **run)
        found = fit(Numbers(), InMemory(x, x, 4), lost, progress=False)
    assert np.isfinite(found.params["C"]).all()
    assert found.params["C"] > 0.5


@signals
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_runs_of_16_bits_learn_and_resume_to_the_same_bits(tmp_path, dtype):
    settings = Settings(400, optimiser=AdamW(0.01), every=200, scale=256.0, dtype=dtype)
    assert fit(MODEL, TASK, settings, progress=False).history[-1]["test_accuracy"] > 0.95
    short = replace(RUN, dtype=dtype, scale=256.0)
    whole = fit(MODEL, TASK, short, folder=tmp_path / "whole", progress=False)
    fit(MODEL, Stopping(TASK, 9), short, folder=tmp_path / "parts", progress=False)
    same(fit(MODEL, TASK, short, folder=tmp_path / "parts", resume=True, progress=False).params, whole.params)


def test_steps_too_small_for_16_bits_add_up():
    from linscan.train import SGD

    x = {"u": np.ones((1, 1)), "target": np.full((1, 1), 2.0)}
    run = Settings(100, loss="mse", optimiser=SGD(1e-4, momentum=0.0), dtype="bfloat16", scale=16.0)
    fitted = fit(Numbers(1.0), InMemory(x, x, 1), run, progress=False)
    np.testing.assert_allclose(fitted.params["C"], 1 + (1 - 0.9998**100), rtol=1e-3)  # half a unit of bfloat16 is 4e-3


def test_plateau_lowers_the_rate():
    memory, plateau = {}, Plateau(patience=2, down=0.1)
    factors = []
    for loss in (3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0):
        plateau.judge(loss, memory)
        factors.append(plateau.factor(5, memory))
    np.testing.assert_allclose(factors, [1, 1, 1, 0.1, 0.1, 0.1, 0.01])
    assert json.loads(json.dumps(memory)) == memory
    cosine = Cosine(10, warmup=2, least=0.5)
    np.testing.assert_allclose([cosine.factor(n, {}) for n in (1, 2, 6, 10, 99)], [0.5, 1, 0.75, 0.5, 0.5])


def test_a_run_lowers_its_rate_where_nothing_is_learnt_any_more(tmp_path):
    run = Settings(8, optimiser=AdamW(0.0), schedule=Plateau(patience=1, down=0.5), every=2)
    still = Stack((Block(LRU(8, 8)),), TASK.inputs, TASK.outputs, tokens=True)
    fitted = fit(still, TASK, run, folder=tmp_path, progress=False)
    assert [row["factor"] for row in fitted.history] == [1, 0.5, 0.25, 0.125]


def test_data_in_memory_is_shuffled_in_every_epoch_and_cut_to_its_lengths():
    data = InMemory({"u": np.arange(40).reshape(10, 4), "lengths": np.repeat([2, 4], 5)}, {"u": np.arange(3)}, 4)
    epochs = [[data.batch(3 * e + i, seed=2) for i in range(3)] for e in range(2)]
    orders = [np.concatenate([b["u"][:, 0] for b in epoch]) // 4 for epoch in epochs]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert (orders[0] != orders[1]).any()
    assert all(b["u"].shape[1] == b["lengths"].max() for epoch in epochs for b in epoch)
    assert [len(b["u"]) for b in epochs[0]] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([b["u"] for b in data.tests()]), np.arange(3))


def test_data_on_disk_are_read_by_the_batch(tmp_path):
    u = np.random.default_rng(0).standard_normal((30, 8, 1)).astype("float32")
    np.save(tmp_path / "u.npy", u)
    disk = np.load(tmp_path / "u.npy", mmap_mode="r")
    model, run = Stack((Block(LRU(4, 4)),), 1, 1), Settings(9, loss="mse", optimiser=AdamW(0.01), every=9)
    stored, held = (InMemory({"u": x, "target": x}, {"u": x[:3], "target": x[:3]}, 7) for x in (disk, u))
    assert isinstance(stored.train["u"], np.memmap)  # nothing was read by taking it
    assert type(stored.batch(0, seed=0)["u"]) is np.ndarray
    same(*(fit(model, data, run, progress=False).params for data in (stored, held)))


def test_batches_of_like_lengths():
    lengths = np.random.default_rng(0).integers(1, 60, 103)
    u = np.repeat(np.arange(103)[:, None], 60, 1)
    train, test = ({"u": u[part], "lengths": lengths[part]} for part in (slice(0, 93), slice(93, 103)))
    data = InMemory(train, test, 4, bucket=8)
    epochs = [[data.batch(24 * e + i, seed=2) for i in range(24)] for e in range(2)]
    for epoch in epochs:
        assert sorted(n for b in epoch for n in b["u"][:, 0]) == list(range(93))
        for b in epoch:
            assert b["u"].shape[1] == min(60, -(-b["lengths"].max() // 8) * 8)
        mixed = [b for b in epoch if len(set(-(-b["lengths"] // 8))) > 1]
        assert len(mixed) <= 7  # those between two buckets
    firsts = [[b["u"].shape[1] for b in epoch] for epoch in epochs]
    assert firsts[0] != sorted(firsts[0])
    assert firsts[0] != firsts[1]
    assert {tuple(sorted(b["u"][:, 0])) for b in epochs[0]} != {tuple(sorted(b["u"][:, 0])) for b in epochs[1]}
    for n in (30, 5, 47):  # in any order, by anyone
        again = InMemory(train, test, 4, bucket=8).batch(n, seed=2)
        np.testing.assert_array_equal(again["u"], data.batch(n, seed=2)["u"])
    rounded = [-(-b["lengths"].max() // 8) for b in data.tests()]
    assert rounded == sorted(rounded)
    assert sorted(n for b in data.tests() for n in b["u"][:, 0]) == list(range(93, 103))


@signals
def test_a_run_over_buckets_resumes_and_ends_with_the_final_test(tmp_path):
    class Kept(Stopping):
        def finals(self):
            return self.task.finals()

    task = ListOps(size=4, counts=(30, 8, 6), least=3, most=40, bucket=8)
    blocks = (Block(LRU(4, 4), norm="batch", buckets=(8, 16, 24, 32, 40)),)
    model = Stack(blocks, task.inputs, task.outputs, tokens=True, pool=task.pool)
    run = Settings(17, optimiser=AdamW(0.1), every=4)
    whole = fit(model, task, run, folder=tmp_path / "whole", progress=False)
    first = fit(model, Kept(task, 10), run, folder=tmp_path / "parts", progress=False)
    assert (first.stopped, first.final) == ("interrupted", {})
    second = fit(model, task, run, folder=tmp_path / "parts", resume=True, progress=False)
    same(second.params, whole.params)
    losses = [row["test_loss"] for row in whole.history]
    assert losses[-1] > min(losses)  # so that the best are not the last
    best = load(tmp_path / "whole" / "best.safetensors")
    assert whole.final == second.final == evaluate(model, best, task.finals(), "cross_entropy")
    assert whole.final != evaluate(model, whole.params, task.finals(), "cross_entropy")


def test_a_run_begins_with_the_parameters_of_a_file(tmp_path):
    task = ListOps(size=4, counts=(30, 8, 6), least=3, most=40, bucket=8)

    def model(channels, **options):
        block = Block(LRU(channels, 4), norm="batch", **options)
        return Stack((block,), task.inputs, task.outputs, tokens=True, pool=task.pool)

    first = fit(model(4), task, Settings(9, optimiser=AdamW(0.01)), folder=tmp_path, progress=False)
    path = str(tmp_path / "last.safetensors")
    rest = Settings(40, optimiser=AdamW(0.0, groups=()), start=path)
    second = fit(model(4, buckets=(8, 16, 24, 32, 40)), task, rest, progress=False)
    lengths = [task.batch(n, 0)["u"].shape[1] for n in range(40)]
    before, after = flatten(first.params), flatten(second.params)
    for name, x in before.items():
        if not name.endswith((".mean", ".var")):
            np.testing.assert_array_equal(after[name], x, name)  # the rate is 0
            continue
        for length, row in zip((8, 16, 24, 32, 40), after[name], strict=True):
            assert (row != x).any() == (length in lengths), (name, length)
    assert len(set(lengths)) < 5  # so that a row was left as it was
    with pytest.raises(BadFile, match=r"of another model: encoder.table must have shape \(17, 5\); got \(17, 4\)"):
        fit(model(5), task, rest, progress=False)


def test_the_thread_that_prepares_batches_ends_and_hands_over_errors():
    before = threading.active_count()
    items = ahead(lambda n: n * n, 2, 100)
    assert [next(items) for _ in range(3)] == [4, 9, 16]
    items.close()
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda n: 1 // (n - 3), 0, 9))
    assert list(ahead(lambda n: n, 3, 3)) == []
    time.sleep(0.05)
    assert threading.active_count() == before


def test_the_command_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--size", "tiny"]
    assert command.main(["copy", "--steps", "2", *out]) == 0
    text = capsys.readouterr().out
    assert "stopped by: steps" in text
    assert command.main(["copy", "--steps", "2", *out]) == 2
    assert "holds a run: --resume goes on with it" in capsys.readouterr().err
    assert command.main(["copy", "--steps", "2", "--resume", *out]) == 0
    assert command.main(["copy", "--steps", "3", "--resume", *out]) == 2
    assert "of another run" in capsys.readouterr().err
    assert command.main(["copy", "--steps", "1", "--force", *out]) == 0
    save(tmp_path / "run" / NAME, {"x": np.ones(2)})
    assert command.main(["copy", "--steps", "1", "--resume", *out]) == 2
    assert "not a checkpoint of linscan" in capsys.readouterr().err


def test_every_task_trains_a_step_with_its_preset():
    from linscan.train.presets import PRESETS, settings, stack

    for name, preset in PRESETS.items():
        if name in ("digits", "listops", "speech", "text"):  # they have data to fetch or to draw first
            continue
        task = replace(preset.task(), size=2, evaluations=1)
        run = replace(settings(preset, 1, 0), every=1)
        fitted = fit(stack(task, preset.model, "tiny", preset.length), task, run, progress=False)
        assert np.isfinite(fitted.history[0]["test_loss"]), name
        assert len(_trees.leaves(fitted.params)) > 5


def test_every_layer_trains_and_saves(tmp_path):
    from linscan.train.presets import LAYERS, stack

    run = Settings(2, optimiser=AdamW(0.01), every=1)
    for name in LAYERS:
        fitted = fit(stack(TASK, name, "tiny", 6), TASK, run, folder=tmp_path / name, progress=False)
        same(load(tmp_path / name / "last.safetensors"), fitted.params)
        assert fitted.history[1]["loss"] != fitted.history[0]["loss"], name
        half = replace(run, dtype="bfloat16", scale=16.0)
        fitted_half = fit(stack(TASK, name, "tiny", 6), TASK, half, progress=False)
        np.testing.assert_allclose(fitted_half.history[1]["loss"], fitted.history[1]["loss"], rtol=0.02, err_msg=name)
