"""The device code of `selective_scan`, compiled for the host and held to the plain loop.

The launcher runs too, with NumPy in the place of CuPy (see on_host.py).
"""

import numpy as np
import pytest

from linscan._arrays import accum_dtype, real_dtype
from linscan.engines.reference import selective_scan as reference
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_host import Array, load, needs_compiler
from tests.tolerances import assert_close, stable, summed

pytestmark = [pytest.mark.slow, needs_compiler]

NAMES = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "h0")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    (module,) = load(tmp_path_factory.mktemp("device_code"), "selective_scan")
    return module


def problem(rng, dtype, length, channels, states, groups, turn=3.0):
    """Rows of all nine arrays, in the forms the engine takes."""
    kind = dtype_of(dtype)
    compute, real = accum_dtype(kind), real_dtype(kind)
    A = -rng.uniform(0.2, 4, (channels, states)) * (1 if kind.kind != "c" else 1 + turn * 1j)
    shape, vectors = (2, length, channels), (2, length, groups, states)
    arrays = (
        *(random(rng, shape, kind), rng.uniform(0.01, 0.5, shape).astype(real), A.astype(compute)),
        *(random(rng, vectors, kind), random(rng, vectors, kind), random(rng, (channels,), compute)),
        *(random(rng, shape, real), rng.uniform(0, 0.1, channels).astype(real_dtype(compute))),
        random(rng, (2, channels, states), compute),
    )
    return dict(zip(NAMES, (x.view(Array) for x in arrays), strict=True))


def check(engine, args, **options):
    """Output, states and all gradients are those of the plain loop in double precision."""
    options = {"dt_softplus": False, "reverse": False, "reset": None, "real": True, "workers": None} | options
    wide = {k: None if v is None else oracles.wide(v) for k, v in args.items()}
    if wide["u"].dtype.kind == "c":
        wide |= {k: wide[k].real for k in ("dt", "z", "dt_bias") if wide[k] is not None}
    y, last, kept = engine.selective_scan(**args, keep="some", **options)
    _, _, every = engine.selective_scan(**args, keep="all", **options)
    want_y, want_last, want_every = reference.selective_scan(**wide, keep="all", **options)
    tolerance = 8 * summed(y.dtype, args["A"].shape[1]) + 4 * stable(args["A"].dtype)
    for name, got, want in zip("yhs", (y, last, every), (want_y, want_last, want_every), strict=True):
        assert_close(got, want, tolerance, name)
    rng = np.random.default_rng(7)
    dy, dh = random(rng, y.shape, y.dtype).view(Array), random(rng, last.shape, last.dtype).view(Array)
    got = engine.selective_scan_pullback(*args.values(), kept, dy, dh, **options)
    _, _, wide_kept = reference.selective_scan(**wide, keep="some", **options)
    want = reference.selective_scan_pullback(*wide.values(), wide_kept, *map(oracles.wide, (dy, dh)), **options)
    for name, g, w in zip(NAMES, got, want, strict=True):
        assert (g is None) == (w is None), name
        if g is not None:
            assert_close(g, w, 2 * tolerance + 8 * summed(args["A"].dtype, y.size), f"gradient of {name}")


@pytest.mark.parametrize(("dtype", "states", "channels", "groups", "length"), [
    ("float32", 16, 35, 1, 72), ("bfloat16", 8, 6, 2, 33), ("complex64", 1, 5, 1, 1), ("complex128", 40, 3, 1, 33),
])  # fmt: skip
def test_the_plain_loop(rng, engine, dtype, states, channels, groups, length):
    check(engine, problem(rng, dtype, length, channels, states, groups))


def test_options(rng, engine):
    args = problem(rng, "complex128", 45, 5, 3, 1)
    reset = (rng.random((2, 45)) < 0.1).view(Array)
    check(engine, args, reset=reset, reverse=True, dt_softplus=True)
    check(engine, args | dict.fromkeys(("D", "z", "dt_bias", "h0")), real=False)
    args = problem(rng, "float32", 33, 5, 3, 1)
    check(engine, args | {"u": args["u"][:, ::-1], "z": args["z"][:1].repeat(2, 0).view(Array)})


@pytest.mark.parametrize(("dtype", "states"), [("float64", 3), ("float32", 16)])
def test_chunks_of_time(rng, engine, monkeypatch, dtype, states):
    monkeypatch.setattr(engine, "_WHOLE", 50)
    monkeypatch.setattr(engine, "_CHUNK", 32)
    args = problem(rng, dtype, 100, 5, states, 1)
    reset = (rng.random((2, 100)) < 0.02).view(Array)
    check(engine, args, reset=reset, reverse=True)
    check(engine, args | {"A": -args["A"] * 0.2, "dt": args["dt"] * 0.5}, reset=reset)  # states grow: chunks are walked


def test_what_is_forgotten_stays_where_it_was(rng, engine, monkeypatch):
    args = problem(rng, "float32", 100, 5, 3, 1)
    args["u"][1, 20, 2] = np.nan
    reset = np.zeros((2, 100), bool).view(Array)
    reset[:, 60] = True
    options = {"dt_softplus": False, "reverse": False, "reset": reset, "real": True, "workers": None}
    for whole in (200, 50):
        monkeypatch.setattr(engine, "_WHOLE", whole)
        monkeypatch.setattr(engine, "_CHUNK", 32)
        y, last, _ = engine.selective_scan(**args, keep="last", **options)
        bad = np.isnan(y)
        assert bad[1, 20:60, 2].all()
        assert bad.sum() == 40
        assert np.isfinite(last).all()
