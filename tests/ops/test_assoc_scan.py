"""assoc_scan: every algorithm is the sequential fold, in order, with the work and depth its documentation gives.

The operators do not commute, and they are exact (strings, permutations, integers modulo a prime).
"""

from math import ceil, isqrt, log2
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import linscan
from linscan import assoc_scan, assoc_scan_vjp, check_vjp, scan, scan_trace, scan_vjp
from linscan.engines.reference.assoc_scan import ALGORITHMS, Line, lookback
from tests import oracles, tolerances

NAMES = tuple(ALGORITHMS)
every_algorithm = pytest.mark.parametrize("algorithm", NAMES)
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


class Operator(NamedTuple):
    """An operator on arrays, the same on single elements, and how to draw a line of elements and take it apart."""

    op: object
    single: object
    draw: object  # (rng, n) -> elems
    items: object  # elems -> list of single elements
    axis: int


P = 97


def affine(f, g):
    return g[0] * f[0], g[0] * f[1] + g[1]


OPERATORS = {
    "strings": Operator(
        op=np.add,
        single=lambda x, y: x + y,
        draw=lambda rng, n: np.array([chr(0x4E00 + i) for i in range(n)], dtype=object),
        items=list,
        axis=-1,
    ),
    "affine maps": Operator(
        op=lambda f, g: (g[0] * f[0] % P, (g[0] * f[1] + g[1]) % P),
        single=lambda f, g: (g[0] * f[0] % P, (g[0] * f[1] + g[1]) % P),
        draw=lambda rng, n: tuple(rng.integers(0, P, n) for _ in range(2)),
        items=lambda x: list(zip(*(part.tolist() for part in x), strict=True)),
        axis=0,
    ),
    "matrices": Operator(
        op=lambda a, b: {"m": b["m"] @ a["m"] % P},
        single=lambda a, b: b @ a % P,
        draw=lambda rng, n: {"m": rng.integers(0, P, (n, 2, 2))},
        items=lambda x: list(x["m"]),
        axis=-3,
    ),
    "permutations": Operator(
        op=lambda p, q: np.take_along_axis(q, p, axis=-1),
        single=lambda p, q: q[p],
        draw=lambda rng, n: rng.permuted(np.tile(np.arange(5, dtype=np.uint8), (n, 1)), axis=1),
        items=list,
        axis=-2,
    ),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def assert_same(items, expected):
    assert len(items) == len(expected)
    for t, (x, y) in enumerate(zip(items, expected, strict=True)):
        assert np.array_equal(x, y), f"differs at {t} of {len(items)}: {x} is not {y}"


@both_ways
@every_operator
@every_algorithm
def test_is_the_sequential_fold(algorithm, operator, reverse):
    rng = np.random.default_rng(1)
    for n in (*range(71), 127, 129, 257):
        elems = operator.draw(rng, n)
        y = assoc_scan(operator.op, elems, axis=operator.axis, reverse=reverse, algorithm=algorithm)
        order = slice(None, None, -1 if reverse else 1)
        expected = oracles.fold(operator.single, operator.items(elems)[order])[order]
        assert_same(operator.items(y), expected)


@every_algorithm
def test_keeps_the_order_of_every_prefix(algorithm):
    letters = np.array(list("time flies"), dtype=object)
    assert assoc_scan(np.add, letters, algorithm=algorithm)[-1] == "time flies"
    backwards = assoc_scan(np.add, letters, np.array("<", dtype=object), reverse=True, algorithm=algorithm)
    assert list(backwards[-3:]) == ["<sei", "<se", "<s"]


@both_ways
@every_algorithm
def test_splitting_and_carrying_changes_nothing(algorithm, reverse):
    letters = OPERATORS["strings"].draw(None, 23)
    whole = assoc_scan(np.add, letters, reverse=reverse, algorithm=algorithm)
    for k in range(24):
        first, second = (letters[k:], letters[:k]) if reverse else (letters[:k], letters[k:])
        first = assoc_scan(np.add, first, reverse=reverse, algorithm=algorithm)
        carry = first[[0 if reverse else -1]][0] if len(first) else ""
        second = assoc_scan(np.add, second, np.array(carry, dtype=object), reverse=reverse, algorithm=algorithm)
        parts = (second, first) if reverse else (first, second)
        assert_same(np.concatenate(parts), whole)


@both_ways
@every_algorithm
def test_splitting_maps_of_a_batch_and_carrying_their_state(algorithm, reverse):
    rng = np.random.default_rng(2)
    x = rng.integers(0, P, (3, 19)), rng.integers(0, P, (2, 3, 19))  # the decay is shared by the two
    op = OPERATORS["affine maps"].op
    whole = assoc_scan(op, x, reverse=reverse, algorithm=algorithm)
    cut = 8 if reverse else 11
    early, late = (x[0][..., :cut], x[1][..., :cut]), (x[0][..., cut:], x[1][..., cut:])
    parts = [late, early] if reverse else [early, late]
    first = assoc_scan(op, parts[0], reverse=reverse, algorithm=algorithm)
    end = 0 if reverse else -1
    second = assoc_scan(op, parts[1], tuple(y[..., end] for y in first), reverse=reverse, algorithm=algorithm)
    parts = [second, first] if reverse else [first, second]
    for i in range(2):
        assert np.array_equal(np.concatenate([part[i] for part in parts], axis=-1), whole[i])


@both_ways
@every_algorithm
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_any_axis_is_the_last_one_moved(algorithm, axis, reverse):
    rng = np.random.default_rng(3)
    x = {"a": rng.integers(0, P, (6, 7)), "rest": [rng.integers(0, P, (6, 7))]}

    def op(f, g):
        (b,), (d,) = f["rest"], g["rest"]
        return {"rest": [(g["a"] * b + d) % P], "a": g["a"] * f["a"] % P}

    y = assoc_scan(op, x, axis=axis, reverse=reverse, algorithm=algorithm)
    assert list(y) == ["a", "rest"]
    assert isinstance(y["rest"], list)
    moved = {"a": np.moveaxis(x["a"], axis, -1), "rest": [np.moveaxis(x["rest"][0], axis, -1)]}
    z = assoc_scan(op, moved, reverse=reverse, algorithm="sequential")
    assert np.array_equal(np.moveaxis(y["a"], axis, -1), z["a"])
    assert np.array_equal(np.moveaxis(y["rest"][0], axis, -1), z["rest"][0])
    assert y["a"].flags.c_contiguous


@every_algorithm
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@both_ways
def test_affine_maps_are_the_scan(algorithm, dtype, reverse):
    rng = np.random.default_rng(4)
    a = rng.uniform(-1, 1, (3, 501)).astype(dtype)
    b = rng.standard_normal((3, 501)).astype(dtype)
    if np.issubdtype(dtype, np.complexfloating):
        a, b = a * np.exp(1j * rng.uniform(0, 6, 501)).astype(dtype), b + dtype(1j)
    h0 = np.array([1, -2, 3], dtype)
    h = assoc_scan(affine, (a, b), (np.ones_like(h0), h0), reverse=reverse, algorithm=algorithm)[1]
    assert h.dtype == dtype
    tolerances.assert_close(h, scan(a, b, h0, reverse=reverse), tolerances.stable(dtype))


@every_algorithm
@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int64, np.float16, ml_dtypes.bfloat16, np.float32, np.complex128, ">f8", ">i4"]
)
def test_dtypes_stay(algorithm, dtype):
    x = np.array([0, 1, 0, 1, 1, 0, 1], dtype)
    y = assoc_scan(np.maximum, x, algorithm=algorithm)
    assert y.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(y, np.maximum.accumulate(x))


def test_initial_promotes_like_any_argument():
    x = np.arange(3, dtype=np.float32)
    assert assoc_scan(np.add, x, 1).dtype == np.float32
    assert assoc_scan(np.add, x, np.float64(1)).dtype == np.float64
    assert assoc_scan(np.add, np.arange(3), 0.5).tolist() == [0.5, 1.5, 3.5]


@every_algorithm
def test_inputs_are_not_written(algorithm):
    base = np.arange(60.0).reshape(3, 20)
    base.flags.writeable = False
    for x in (base, base[:, ::-2], base.T[:, ::2], np.broadcast_to(base[:, :1], (3, 9))):
        before = x.copy()
        y = assoc_scan(np.add, x, 1.0, algorithm=algorithm)
        assert np.array_equal(y, np.cumsum(before, axis=-1) + 1)
        assert y.flags.c_contiguous
        assert np.array_equal(x, before)


@every_algorithm
def test_operators_may_return_their_arguments(algorithm):
    x = np.where(np.arange(49) % 7 == 0, 1, 0)
    y = assoc_scan(lambda p, q: p + q if q.any() else p, x, algorithm=algorithm)
    assert np.array_equal(y, np.cumsum(x))
    assert np.array_equal(assoc_scan(lambda p, q: q, x, algorithm=algorithm), x)
    assert np.array_equal(assoc_scan(lambda p, q: p, x, algorithm=algorithm), np.ones(49))
    _, pullback = assoc_scan_vjp(lambda p, q: (p, lambda d: (d, 0 * d)), x, algorithm=algorithm)
    assert pullback(np.ones(49))[0].tolist() == [49] + [0] * 48


@every_algorithm
def test_nan_reaches_only_later_times_of_its_own_row(algorithm):
    x = np.ones((3, 50))
    x[1, 20] = np.nan
    y = assoc_scan(np.add, x, algorithm=algorithm)
    assert np.array_equal(np.isnan(y), (np.arange(3)[:, None] == 1) & (np.arange(50) >= 20))


def test_products_of_long_spans_overflow_and_those_of_chunks_do_not():
    n = 4096
    a, b = np.full(n, 1.05, np.float32), np.zeros(n, np.float32)
    b[-1] = 1  # the loop is at rest until the last step
    with np.errstate(over="ignore", invalid="ignore"):
        h = {name: assoc_scan(affine, (a, b), algorithm=name)[1] for name in NAMES}
    assert np.isnan(h["hillis_steele"]).sum() == n // 2
    assert np.isnan(h["blelloch"]).sum() == 1
    for name in ("sequential", "chunked", "lookback"):
        assert np.array_equal(h[name], b)


@every_algorithm
def test_work_and_depth_are_what_is_documented(algorithm):
    for n in (*range(1, 200), 255, 256, 257, 1000, 1024):
        trace = scan_trace(n, algorithm)
        chunk = isqrt(n - 1) + 1
        chunks, doublings = ceil(n / chunk), ceil(log2(n))
        work, depth = {
            "sequential": (n - 1, n - 1),
            "hillis_steele": (n * doublings - 2**doublings + 1, doublings),
            "blelloch": (2 * n - 1 - n.bit_count() - (n.bit_length() - 1), 2 * (n.bit_length() - 1)),
            "chunked": (n - 2 + (chunks - 1) * chunk if n > 2 else n - 1, 2 * chunk + chunks - 3),
            "lookback": (2 * n + n**0.75, 2 * chunk + 2 * (2 * chunk) ** 0.5),
        }[algorithm]
        if algorithm == "lookback":
            assert trace.work <= work
        else:
            assert trace.work == work, n
        if algorithm in ("sequential", "hillis_steele"):
            assert trace.depth == depth, n
        elif n > 2:
            assert trace.depth <= depth, n
        if algorithm == "blelloch" and n > 2 and n.bit_count() == 1:
            assert trace.depth == 2 * log2(n) - 2
        if algorithm == "chunked" and n > 2 and n == chunk**2:
            assert trace.depth == depth


@every_algorithm
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 16, 37, 100])
def test_a_trace_can_be_replayed(algorithm, n):
    calls = []

    def op(x, y):
        calls.append(len(y))
        return x + y

    assoc_scan(op, np.zeros(n), algorithm=algorithm)
    trace = scan_trace(n, algorithm)
    assert trace.work == sum(calls)
    made = {(t, t): {0} for t in range(n)}  # span -> the levels after which it is there, for some make one twice
    for level, rows in enumerate(trace.levels, start=1):
        for first, left, right in rows.tolist():
            earlier, later = made[first, left], made[left + 1, right]
            assert max(min(earlier), min(later)) < level
            assert level - 1 in earlier | later
        for first, _, right in rows.tolist():
            made.setdefault((first, right), set()).add(level)
    assert all((0, t) in made for t in range(n))


@pytest.mark.parametrize("seed", range(20))
def test_look_back_does_not_depend_on_which_block_is_awake_when(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 300))
    letters = OPERATORS["strings"].draw(rng, n)
    line = Line([letters.copy()], [0])
    share = rng.uniform(0.05, 0.9)
    looked = []

    def op(x, y):
        return Line([x.arrays[0] + y.arrays[0]], [0])

    def awake(block, tick):
        looked.append(block)
        return rng.uniform() < share

    lookback(op, line, awake)
    assert_same(line.arrays[0], oracles.fold(lambda x, y: x + y, list(letters)))
    assert len(set(looked)) == ceil(n / (isqrt(n - 1) + 1))  # every block has been asked


def rotation_vjp(p, q):
    """Complex numbers under multiplication, as the two components of a dict."""

    def pullback(d):
        return {"z": d["z"] * q["z"].conj()}, {"z": d["z"] * p["z"].conj()}

    return {"z": p["z"] * q["z"]}, pullback


def affine_vjp(f, g):
    def pullback(d):
        dearlier = d[0] * g[0].conj() + 0 * d[1], d[1] * g[0].conj()
        dlater = d[0] * f[0].conj() + d[1] * f[1].conj(), d[1]
        return dearlier, dlater

    return affine(f, g), pullback


def flat_vjp(a, b, a0=None, b0=None, **options):
    """assoc_scan_vjp of the affine maps with two outputs and four arguments, as `check_vjp` wants it."""
    initial = None if a0 is None else (a0, b0)
    y, pullback = assoc_scan_vjp(affine_vjp, (a, b), initial, **options)

    def flat(*dy):
        (da, db), first = pullback(dy)
        return da, db, *(first or (None, None))

    return y, flat


@both_ways
@every_algorithm
@pytest.mark.parametrize("kind", ["float64", "complex128"])
def test_gradient(algorithm, kind, reverse):
    rng = np.random.default_rng(6)
    a, b, a0, b0 = (rng.standard_normal(shape) for shape in ((5, 2), (5, 2), (1,), ()))
    if kind == "complex128":
        a, b, a0, b0 = (x + 1j * rng.standard_normal(np.shape(x)) for x in (a, b, a0, b0))
    check_vjp(flat_vjp, a, b, None, None, axis=0, reverse=reverse, algorithm=algorithm)
    check_vjp(flat_vjp, a, b, a0, b0, axis=0, reverse=reverse, algorithm=algorithm)


@both_ways
def test_gradient_of_the_affine_operator_is_that_of_the_scan(reverse):
    rng = np.random.default_rng(7)
    a, b, h0, dh = rng.uniform(0.5, 1, (2, 30)), *rng.standard_normal((2, 2, 30)), np.array([1.0, 2.0])
    h0, dh = dh, h0
    (_, h), pullback = assoc_scan_vjp(affine_vjp, (a, b), (np.ones(2), h0), reverse=reverse)
    expected, expected_pullback = scan_vjp(a, b, h0, reverse=reverse)
    (da, db), (_, dh0) = pullback((None, dh))
    for got, want in zip((h, da, db, dh0), (expected, *expected_pullback(dh)), strict=True):
        tolerances.assert_close(got, want, tolerances.stable(np.float64))


def test_gradient_of_nothing_and_of_no_time():
    y, pullback = assoc_scan_vjp(rotation_vjp, {"z": np.array([1.0, 2.0, 3.0])})
    assert pullback(None)[0]["z"].tolist() == [0, 0, 0]
    assert pullback(None)[1] is None
    y, pullback = assoc_scan_vjp(rotation_vjp, {"z": np.ones((2, 0))}, {"z": 2.0})
    delems, dinitial = pullback(y)
    assert delems["z"].shape == (2, 0)
    assert dinitial["z"] == 0
    y, pullback = assoc_scan_vjp(rotation_vjp, {"z": np.array([2, 3])}, {"z": 5})
    delems, dinitial = pullback({"z": np.array([0.0, 1.0])})
    assert (delems["z"].tolist(), dinitial["z"]) == ([15, 10], 6)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (ValueError, f"algorithm must be one of {', '.join(map(repr, NAMES))}; got 'kogge'", {"algorithm": "kogge"}),
        (
            ValueError,
            r"equally long along axis -1; elems\[0\] has shape \(2, 4\), elems\[1\] has shape \(2, 5\)",
            {"elems": (np.ones((2, 4)), np.ones((2, 5)))},
        ),
        (
            ValueError,
            r"initial must have the structure of elems, elems\[0\], elems\[1\]; got initial",
            {"elems": (np.ones(3), np.ones(3)), "initial": 1.0},
        ),
        (
            ValueError,
            r"initial must broadcast to \(2,\); got \(3,\)",
            {"elems": np.ones((2, 4)), "initial": np.ones(3)},
        ),
        (
            ValueError,
            r"op must keep shapes and dtypes; elems went in as int64 \(1,\), came out as float64 \(1,\)",
            {"elems": np.arange(3), "op": lambda x, y: x / (y + 1)},
        ),
        (
            ValueError,
            r"op must keep shapes and dtypes; elems went in as float64 \(1,\), came out as float64 \(\)",
            {"op": lambda x, y: np.sum(x + y)},
        ),
        (ValueError, "the result of op must have the structure of elems", {"op": lambda x, y: (x, y)}),
        (TypeError, "elems must be an array, or a tuple, list or dict of arrays; got elems.0.: int", {"elems": [1, 2]}),
        (TypeError, "elems must be an array, or a tuple, list or dict of arrays; got none", {"elems": ()}),
        (
            TypeError,
            "initial must hold something for every array",
            {"elems": (np.ones(3),) * 2, "initial": (1.0, None)},
        ),
        (np.exceptions.AxisError, "axis 1 is out of bounds for 1 dimension", {"axis": 1}),
    ],
)
def test_errors_say_what_was_needed_and_what_came(error, text, arguments):
    arguments = {"op": np.add, "elems": np.ones(3), **arguments}
    with pytest.raises(error, match="assoc_scan: .*" + text):
        assoc_scan(arguments.pop("op"), arguments.pop("elems"), **arguments)


def test_errors_of_the_pullback_and_the_trace():
    _, pullback = assoc_scan_vjp(rotation_vjp, {"z": np.ones(3)})
    with pytest.raises(ValueError, match=r"dy must have the structure of y, y\['z'\]; got dy$"):
        pullback(np.ones(3))
    with pytest.raises(ValueError, match=r"dy\['z'\] must have shape \(3,\); got \(2,\)"):
        pullback({"z": np.ones(2)})
    with pytest.raises(TypeError, match="elems has dtype object"):
        assoc_scan_vjp(rotation_vjp, np.array(["a"], dtype=object))
    with pytest.raises(ValueError, match="algorithm must be one of"):
        scan_trace(4, "kogge")
    with pytest.raises(ValueError, match="scan_trace: length must be at least 0; got -1"):
        scan_trace(-1, "blelloch")
    with pytest.raises(TypeError, match=r"scan_trace: length must be an integer; got 2\.5"):
        scan_trace(2.5, "blelloch")


def test_is_public():
    assert {"assoc_scan", "assoc_scan_vjp", "scan_trace"} <= set(linscan.__all__)


def test_device_code_is_checked_where_it_does_not_run():
    x, y = np.arange(4.0), np.arange(8.0).reshape(2, 4)
    assert linscan.assoc_scan(np.add, x, cuda="whatever a GPU would compile").tolist() == [0, 1, 3, 6]
    with pytest.raises(TypeError, match="assoc_scan: cuda must be a string of device code; got function"):
        linscan.assoc_scan(np.add, x, cuda=lambda: None)
    with pytest.raises(
        ValueError, match=r"with cuda all arrays must be of one shape; elems\[1\] has \(2, 4\), the first \(4,\)"
    ):
        linscan.assoc_scan(np.add, (x, y), cuda="")
