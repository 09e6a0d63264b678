"""Norms, activations, gates, direct terms, products and AdamW on the CPU: as the reference, however arrays lie."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from scipy import special

from linscan.engines import pick, support, use_engine
from linscan.engines.cpu import dense as cpu_dense
from linscan.engines.cpu import dense_loops, rows
from linscan.engines.cpu.pool import set_workers
from linscan.ops.activation import KINDS
from tests.conftest import dtype_of, random
from tests.tolerances import assert_close, eps, summed

DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(0, 3), (3, 0), (1, 1), (7, 5), (40, 33)]
LAYOUTS = {
    "whole": lambda x: x,
    "half": lambda x: np.concatenate([x, x], 1)[:, : x.shape[1]],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "upside down": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "columns": lambda x: np.asfortranarray(x),
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles and blocks so small that these arrays have many, whole ones and others."""
    monkeypatch.setattr(rows, "_TILE", 64)
    monkeypatch.setattr(cpu_dense, "_ALONE", 0)


def on(engine, function, dtype, *args, **options):
    """What an engine makes of arguments that it must not change."""
    kept = [np.array(a) if isinstance(a, np.ndarray) else a for a in args]
    with use_engine(engine):
        result = pick(function, dtype_of(dtype))(*args, **options)
    for a, b in zip(args, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    return result if isinstance(result, tuple) else (result,)


def agree(function, dtype, *args, tolerance, **options):
    """Both engines give the same, in the same dtypes, and the CPU's bits do not depend on the threads."""
    got, want = (on(engine, function, dtype, *args, **options) for engine in ("cpu", "reference"))
    with set_workers(1):
        alone = on("cpu", function, dtype, *args, **options)
    for x, y, z in zip(got, want, alone, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype
            assert_close(x, y, tolerance)
            np.testing.assert_array_equal(x, z)


def arguments(rng, shape, dtype, layout):
    """Matrices of the dtype, and rows in the dtype of the arithmetic."""
    wide = np.float64 if dtype == "float64" else np.float32
    place = LAYOUTS[layout] if shape[0] else LAYOUTS["whole"]
    matrices = [place(random(rng, shape, dtype)) for _ in range(3)]
    if layout == "repeated":  # its variance is a rounding error
        matrices[0] = random(rng, shape, dtype)
    return matrices, [random(rng, shape[1:], wide) for _ in range(3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "layout"), [*((s, "whole") for s in SHAPES), *(((40, 33), x) for x in LAYOUTS)])
def test_norms_and_direct_terms_equal_the_reference(rng, dtype, shape, layout):
    (x, dy, beside), (scale, shift, mean) = arguments(rng, shape, dtype, layout)
    if not shape[1]:
        return  # a row without channels has no statistics
    r = rng.uniform(0.5, 2, shape[0]).astype(scale.dtype)
    var, tolerance = scale**2 + 1, summed(dtype, 40)
    for given in ((scale, shift), (None, None)):
        for centred in (True, False):
            agree("row_norm", dtype, x, *given, 1e-5, centred=centred, tolerance=tolerance)
        agree("batch_norm", dtype, x, *given, mean, var, 1e-5, tolerance=tolerance)
        agree("batch_norm", dtype, x, *given, None, None, 1e-5, tolerance=tolerance)
        for m in (None, r):
            agree("row_norm_pullback", dtype, dy, x, given[0], m, r, beside if m is None else None, tolerance=tolerance)
        for own in (True, False):
            options = {"own": own, "tolerance": tolerance}
            agree("batch_norm_pullback", dtype, dy, x, given[0], mean, var, 1e-5, beside if own else None, **options)
    agree("feedthrough", dtype, x, dy, scale, tolerance=tolerance)
    for around in (None, beside):
        agree("feedthrough_pullback", dtype, dy, x, scale, around, tolerance=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "layout"), [*((s, "whole") for s in SHAPES), *(((40, 33), x) for x in LAYOUTS)])
def test_gates_equal_the_reference(rng, dtype, shape, layout):
    (value, z, dy), (b, *_) = arguments(rng, shape, dtype, layout)
    for shift, around in ((None, None), (b, dy)):
        agree("gate", dtype, value, z, shift, around, tolerance=4 * eps(dtype))
    for shift in (None, b):
        made = []
        for engine in ("cpu", "reference"):
            for whole in (
                np.empty((shape[0], 2 * shape[1]), value.dtype),
                np.empty((2 * shape[1], shape[0]), value.dtype).T,
            ):
                halves = whole[:, : shape[1]], whole[:, shape[1] :]
                with use_engine(engine):
                    db = pick("gate_pullback", value.dtype)(dy, value, z, shift, *halves)
                made.append((whole, np.zeros(0) if db is None else db))
        for whole, db in made[:3]:
            assert_close(whole, made[3][0], 8 * eps(dtype))
            assert_close(db, made[3][1], summed(dtype, 40))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_and_their_slopes_are_within_four_roundings(rng, kind, dtype):
    far = {"float16": 6e4, "float32": 1e10, "float64": 1e100}[dtype]
    some = [0, -0.0, -1e3, 1e3, far, -far]
    x = np.concatenate([rng.uniform(-9, 9, 500), rng.standard_normal(200) * 1e-3, some]).astype(dtype).reshape(2, -1)
    dy, beside = (random(rng, x.shape, dtype) for _ in range(2))
    y, slope = formula(np.float64(x), kind)
    got = on("cpu", "activation", dtype, x, kind)[0]
    assert got.dtype == x.dtype
    # Where the formula has to round an argument first, which ours does too in gelu_tanh: as if x were off by an eps.
    unsure = np.abs(slope * x) if kind == "gelu_tanh" or dtype == "float64" else 0
    least = {"float16": 2.0**-24, "float32": 2 * np.exp(-87), "float64": 2 * np.exp(-700)}[dtype]
    np.testing.assert_array_less(np.abs(got - y), 4 * eps(dtype) * (np.abs(y) + unsure) + least)
    dx = on("cpu", "activation_pullback", dtype, dy, x, kind, None)[0]
    allowed = 4 * eps(dtype) * np.abs(np.float64(dy)) * (1 + np.abs(slope)) + least
    np.testing.assert_array_less(np.abs(dx - np.float64(dy) * slope), allowed)
    agree("activation_pullback", dtype, dy[:, ::2], x[:, ::2], kind, beside[:, ::2], tolerance=8 * eps(dtype))
    for odd in (x[:0], np.abs(x[:1, :1]).reshape(()), x.T, x[::-1, ::3]):
        agree("activation", dtype, odd, kind, tolerance=8 * eps(dtype))


def formula(x, kind):
    """The function and its slope."""
    share, twice = special.expit(x), special.expit(2 * x)
    density, below = np.exp(-x * x / 2) / np.sqrt(2 * np.pi), special.ndtr(x)
    root, near = 2 * np.sqrt(2 / np.pi), np.clip(x, -30, 30)
    rough = special.expit(root * (near + 0.044715 * near**3))
    steep = rough * special.expit(-root * (near + 0.044715 * near**3)) * root * (1 + 3 * 0.044715 * near**2)
    return {
        "identity": (x, np.ones_like(x)),
        "relu": (np.maximum(x, 0), np.float64(x > 0)),
        "gelu": (x * below, below + x * density),
        "gelu_tanh": (x * rough, rough + near * steep),
        "silu": (x * share, share + x * share * special.expit(-x)),
        "sigmoid": (share, share * special.expit(-x)),
        "tanh": (np.tanh(x), 4 * twice * special.expit(-2 * x)),
        "softplus": (np.logaddexp(x, 0), share),
    }[kind]


def test_results_too_large_for_16_bits_are_infinite_in_silence():
    x = np.full((9, 8), 300, np.float16)
    y = on("cpu", "feedthrough", "float16", x, x, np.full(8, 300, np.float32))[0]
    np.testing.assert_array_equal(y, np.full((9, 8), np.inf, np.float16))


def test_nan_stays_where_it_is_and_infinity_does_what_it_does():
    x = np.linspace(-3, 3, 70).astype(np.float32)
    x[[7, 33, 50]] = -np.inf, np.nan, np.inf
    for kind in KINDS:
        with np.errstate(all="ignore"):
            y, want = (on(engine, "activation", "float32", x, kind)[0] for engine in ("cpu", "reference"))
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
        assert np.isnan(y[33])
    x[[7, 50]] = 0
    y = on("cpu", "row_norm", "float32", x.reshape(10, 7), None, None, 1e-5, centred=True)[0]
    np.testing.assert_array_equal(
        np.isnan(y), np.isnan(x).reshape(10, 7).any(1, keepdims=True) & np.ones((10, 7), bool)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (65, 1, 17), (130, 19, 16), (300, 300, 3), (600, 8, 40)])
def test_products_equal_the_reference(rng, dtype, sizes):
    n, inner, width = sizes
    x, w, b = (random(rng, shape, dtype) for shape in ((n, inner), (inner, width), (width,)))
    dy = random(rng, (n, width), dtype)
    for shift in (None, b):
        agree("dense", dtype, x, w, shift, tolerance=summed(dtype, inner))
    agree("dense", dtype, np.asfortranarray(x), np.asfortranarray(w), b[::-1], tolerance=summed(dtype, inner))
    agree("dense", dtype, x[::-2], LAYOUTS["read-only"](w), b, tolerance=summed(dtype, inner))
    agree("dense_pullback", dtype, x, dy, True, tolerance=summed(dtype, n))
    agree("dense_pullback", dtype, np.asfortranarray(x), LAYOUTS["repeated"](dy), False, tolerance=summed(dtype, n))
    parts = [on("cpu", "dense", dtype, x[i : i + 1], w, b)[0] for i in range(n)]
    np.testing.assert_array_equal(np.concatenate(parts), on("cpu", "dense", dtype, x, w, b)[0])


def test_products_of_many_rows_are_summed_in_groups(rng, monkeypatch):
    x, dy = (
        random(rng, (3 * dense_loops.CHUNK + 5, 9), "float64"),
        random(rng, (3 * dense_loops.CHUNK + 5, 17), "float64"),
    )
    for groups in (1, 3, 16):
        monkeypatch.setattr(cpu_dense, "_GROUPS", groups)
        agree("dense_pullback", "float64", x, dy, True, tolerance=summed("float64", len(x)))


@pytest.mark.parametrize("dtype", support.dtypes("adamw", "cpu"))
@pytest.mark.parametrize("layout", ["whole", "columns"])
def test_adamw_moves_as_the_reference_does(rng, dtype, layout):
    place = LAYOUTS[layout]
    x, m = (place(random(rng, (9, 31), dtype)) for _ in range(2))
    v = place(np.square(random(rng, (9, 31), dtype)))
    g, share = random(rng, (31, 9), dtype).T, np.asarray(0.5, dtype)
    moved = {}
    for engine in ("cpu", "reference"):
        state = [a.copy("K") for a in (x, m, v)]
        with use_engine(engine):
            run = pick("adamw", g.dtype)
            run(state[0], g, *state[1:], share, rate=0.1, decay=0.3, betas=(0.9, 0.99), eps=1e-8, step=3)
        moved[engine] = state
    for a, b in zip(*moved.values(), strict=True):
        assert_close(a, b, 4 * eps(dtype))


def test_without_a_compiler_there_are_the_same_results():
    code = """
        import numpy as np
        from linscan.engines import pick, use_engine
        x = np.random.default_rng(0).standard_normal((70, 9)).astype(np.float32)
        tall, w = np.tile(x, (20, 4)), np.tile(x[:36], 3)
        jobs = ("activation", x, "gelu"), ("gate", x, x, x[0], x), ("dense", tall, w, None)
        for name, *args in jobs:
            found = []
            for engine in ("cpu", "reference"):
                with use_engine(engine):
                    found.append(pick(name, x.dtype)(*args))
            assert np.abs(found[0] - found[1]).max() < 1e-5, name
    """
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True, timeout=100)
