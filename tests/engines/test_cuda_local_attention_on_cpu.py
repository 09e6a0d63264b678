"""The device code of `local_attention`, compiled for the host and held to the plain loop (see on_host.py)."""

import numpy as np
import pytest

from linscan._arrays import accum_dtype
from linscan.engines.reference import local_attention as reference
from linscan.ops.local_attention_state import prepare
from tests import oracles
from tests.conftest import dtype_of, random
from tests.engines.on_host import Array, load, needs_compiler
from tests.tolerances import assert_close, averaged, eps

pytestmark = [pytest.mark.slow, needs_compiler]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    (module,) = load(tmp_path_factory.mktemp("device_code"), "local_attention")
    module._capability, module._most_shared = lambda _: 90, lambda _: 1 << 20
    return module


def check(engine, q, k, v, window, g=None, state=None, **options):
    """Outputs and sums of weights are those of the reference in double precision."""
    given = {"causal": True, "scale": None, "mask": None, "reset": None, "reverse": False, **options}
    dtype = q.dtype.name
    p = prepare("local_attention", q, k, v, window, g, state, **given)
    arrays = [x if x is None else np.asarray(x).view(Array) for x in p.arrays]
    o, total = engine.local_attention(*arrays, **p.options, workers=None)
    wide = [None if x is None else oracles.wide(x) for x in (q, k, v, g, state)]
    exact = prepare("local_attention", *wide[:3], window, *wide[3:], **given)
    want, sums = reference.local_attention(*exact.arrays, **exact.options, workers=None)
    loose = eps(dtype) if dtype in ("float16", "bfloat16") else 0  # weights are rounded to the dtype
    assert o.dtype == q.dtype
    assert total.dtype == accum_dtype(q.dtype)
    assert_close(o, want, averaged("float32" if loose else dtype, q.shape[-1], window) + 2 * loose, "o")
    seen = np.isfinite(sums)
    np.testing.assert_array_equal(seen, np.isfinite(total))
    assert_close(total[seen], sums[seen], averaged("float32" if loose else dtype, q.shape[-1], window), "total")
    do = random(np.random.default_rng(3), o.shape, dtype)
    given = np.asarray(do).view(Array)
    grads = engine.local_attention_pullback(*arrays, o, total, given, **p.options, workers=None)
    exact = reference.local_attention_pullback(
        *exact.arrays, want, sums, oracles.wide(do), **exact.options, workers=None
    )
    for name, x, y in zip("qkvg", grads, exact, strict=True):
        assert (x is None) == (y is None)
        if x is not None:  # a product of two weighted sums, and the difference dP - D
            tolerance = averaged("float32" if loose else dtype, q.shape[-1], window) + 4 * loose
            assert_close(x, y, 4 * tolerance, f"gradient of {name}")
    return o


def draw(rng, length, dtype, lead=(), width=5, value=3):
    q, k = (random(rng, (*lead, length, width), dtype) for _ in range(2))
    return q, k, random(rng, (*lead, length, value), dtype), -rng.random((*lead, length)).astype(dtype_of(dtype))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_windows_gates_masks_and_a_state(rng, engine, dtype):
    q, k, v, g = draw(rng, 90, dtype, lead=(2,))
    mask, reset = rng.random((2, 90)) < 0.8, rng.random(90) < 0.05
    check(engine, q, k, v, 20, g[0], reset=reset)
    check(engine, q[:1, :70], k[:1, :70], v[:1, :70], 500, g[:1, :70], causal=False, mask=mask[:1, :70])
    state = random(rng, (2, 29, 10), dtype)
    mask[:, 10:70] = False
    o = check(engine, q, k[:1], v, 30, g, state, mask=mask, reset=reset, reverse=True)
    assert not o[:, 49:80].any()  # backwards, what is masked lies from 20 to 79


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite_reaches_only_those_that_see_it(rng, engine, dtype):
    q, k, v, g = draw(rng, 70, dtype)
    options = {"window": 7, "causal": True, "scale": 1.0, "workers": None}
    numbers = [np.zeros(70, np.int32).view(Array)] * 2
    clean, _ = engine.local_attention(*(x.view(Array) for x in (q, k, v, g)), *numbers, **options)
    for which, bad in ((0, np.nan), (1, np.inf), (2, np.inf)):
        arrays = [x.copy().view(Array) for x in (q, k, v)]
        arrays[which][60, 1] = bad
        arrays += [g.view(Array), *numbers]
        o, total = engine.local_attention(*arrays, **options)
        grads = engine.local_attention_pullback(*arrays, o, total, np.ones_like(o), **options)
        for grad in grads:
            assert np.isfinite(grad[:54].astype(float)).all()
            assert np.isfinite(grad[67:].astype(float)).all()
        assert which or np.isnan(grads[3][55:61].astype(float)).all()  # between the query and the keys it sees
        touched = np.zeros(70, bool)
        touched[60 : 61 if which == 0 else 67] = True
        assert which == 1 or not np.isfinite(o[touched].astype(float)).any(0).all()
        assert_close(o[~touched], clean[~touched].astype(float), 4 * eps(dtype))


def test_shared_keys_of_any_layout_without_gates(rng, engine):
    q, v = random(rng, (2, 2, 70, 40), "bfloat16"), random(rng, (2, 1, 70, 24), "bfloat16")[..., ::3]
    k = random(rng, (70, 2, 40), "bfloat16").swapaxes(0, 1)
    check(engine, q, k, v, 33, causal=False)  # what is not dense is copied, and then aligned
