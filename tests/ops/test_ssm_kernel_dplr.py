"""Laws of `ssm_kernel_dplr` and `ssm_kernel_dplr_vjp`, on every engine that runs on the CPU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from linscan.engines.reference import ssm_kernel_dplr as reference
from linscan.ops import dplr_powers, ssm_kernel_dplr
from tests import oracles
from tests.conftest import random
from tests.tolerances import assert_close, eps, matrix

ENGINES = ["reference", "cpu"]
LENGTHS = [0, 1, 2, 3, 7, 8, 63, 64, 65, 200]


def model(rng, states, rank, dtype="complex128", other=False, lead=()):
    """Lambda, P, Q, B, C, dt of random stable models; Q only if `other`."""
    Lambda = -rng.uniform(1, 2, (*lead, states)).astype(dtype)
    if Lambda.dtype.kind == "c":
        Lambda += 1j * rng.uniform(0, 9, Lambda.shape).astype(Lambda.real.dtype)
    P, B, C = (random(rng, (*lead, *s, states), dtype) / 3 for s in ((rank,), (), ()))
    Q = (P + random(rng, P.shape, dtype) / 9).astype(dtype) if other else None
    return Lambda, P.astype(dtype), Q, B.astype(dtype), C.astype(dtype), rng.uniform(0.05, 0.2, lead)


def full(Lambda, P, Q, B, C, dt, pairs):
    return oracles.dplr_bilinear(*(oracles.wide(x) for x in (Lambda, P, P if Q is None else Q, B, C)), float(dt), pairs)


def want_of(arrays, length, pairs):
    k = oracles.ssm_kernel_dense(*full(*arrays, pairs), length)[:, 0, 0]
    return k.real if pairs else k


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_powers_of_the_full_matrix(rng, engine, pairs, rank, length):
    for other in (False, True):
        arrays = model(rng, 4, rank, other=other)
        want = want_of(arrays, length, pairs)
        with linscan.use_engine(engine):
            k = linscan.ssm_kernel_dplr(*arrays, length, pairs=pairs)
            assert_close(k, want, 200 * eps("float64"))
            A_bar, _, C = full(*arrays, pairs)
            truncated = (C - C @ np.linalg.matrix_power(A_bar, length))[0, :4]
            k = linscan.ssm_kernel_dplr(*arrays[:4], truncated, arrays[5], length, pairs=pairs, truncated=True)
            assert_close(k, want, matrix("float64"))


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("length", [20, 21])
def test_equals_the_dense_kernel(rng, pairs, length):
    arrays = model(rng, 5, 2)
    k = linscan.ssm_kernel_dplr(*arrays, length, pairs=pairs)
    A, B, C = full(*arrays, pairs)
    dense = linscan.ssm_kernel_dense(A, B[:, 0], C[0], length)
    assert_close(k, dense, 200 * eps("float64"))


@given(
    lead=st.sampled_from([(), (3,), (2, 2), (0,)]),
    states=st.integers(0, 5),
    rank=st.integers(0, 3),
    length=st.integers(0, 40),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    pairs=st.booleans(),
    shared=st.booleans(),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_shape_and_dtype(lead, states, rank, length, dtype, pairs, shared, engine, seed):
    rng = np.random.default_rng(seed)
    arrays = list(model(rng, states, rank, dtype, lead=lead))
    arrays[5] = arrays[5].astype(np.float32 if dtype in ("float32", "complex64") else np.float64)
    if shared:  # one model, as many channels as there are output vectors
        arrays[:4] = model(rng, states, rank, dtype)[:4]
    arrays = [None if x is None else x[..., ::-1].copy()[..., ::-1] if x.ndim else x for x in arrays]
    for x in arrays:
        if x is not None and x.ndim:
            x.flags.writeable = False
    with linscan.use_engine(engine):
        k = linscan.ssm_kernel_dplr(*arrays, length, pairs=pairs)
    assert k.shape == (*lead, length)
    assert k.dtype.kind == ("f" if pairs or dtype.startswith("float") else "c")
    for at in np.ndindex(lead):
        one = [
            None if x is None else x[at] if x.ndim >= len(lead) + own else x
            for x, own in zip(arrays, own_axes(shared), strict=True)
        ]
        assert_close(k[at], want_of(one, length, pairs), matrix(dtype))


def own_axes(shared):
    return [9, 9, 9, 9, 1, 0] if shared else [1, 2, 2, 1, 1, 0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("measure", "length"), [("legs", 256), ("legs", 255), ("legt", 256), ("fout", 256), ("fourier2", 999)]
)
def test_hippo_in_single_precision(engine, measure, length):
    """With fout an eigenvalue of the diagonal part is zero: on the unit circle its term would be infinite."""
    Lambda, P, B, _ = linscan.nplr(measure, 32)
    C = np.random.default_rng(1).standard_normal(32).view(complex)
    arrays = [Lambda, P, None, B, C, np.float64(0.01)]
    want = want_of(arrays, length, True)
    with linscan.use_engine(engine):
        assert_close(linscan.ssm_kernel_dplr(*arrays, length), want, 1e4 * eps("float64"))
        singles = [None if x is None else x.astype(np.complex64) for x in arrays[:5]]
        k = linscan.ssm_kernel_dplr(*singles, np.float32(0.01), length)
    assert k.dtype == np.float32
    assert_close(k, want_of([*singles, np.float32(0.01)], length, True), matrix("float32"))


def test_pairs_are_the_model_with_its_conjugates(rng):
    Lambda, P, _, B, C, dt = model(rng, 4, 2)
    k = linscan.ssm_kernel_dplr(Lambda, P, None, B, C, dt, 50)
    both = [np.concatenate((x, x.conj()), axis=-1) for x in (Lambda, P, B, C)]
    whole = linscan.ssm_kernel_dplr(*both[:2], None, *both[2:], dt, 50, pairs=False)
    assert whole.dtype == np.complex128
    assert_close(whole, k, 200 * eps("float64"))


def test_without_a_low_rank_part_it_is_ssm_kernel(rng):
    Lambda, P, _, B, C, dt = model(rng, 4, 1)
    a_bar, w = linscan.discretize_diag(Lambda, dt, "bilinear")
    want = linscan.ssm_kernel(a_bar, 2 * C * w * B, 90)
    assert_close(linscan.ssm_kernel_dplr(Lambda, 0 * P, None, B, C, dt, 90), want, 200 * eps("float64"))


@pytest.mark.parametrize("length", [500, 501])
def test_bits_depend_neither_on_workers_nor_on_other_channels(rng, length):
    arrays = model(rng, 9, 1, lead=(5,))
    g = random(rng, (5, length), "float64")
    results = []
    for workers in (1, 2, 7):
        k, pullback = linscan.ssm_kernel_dplr_vjp(*arrays, length, workers=workers)
        results.append((k, *(d for d in pullback(g) if d is not None)))
    for x, *others in zip(*results, strict=True):
        for y in others:
            np.testing.assert_array_equal(x, y)
    last = [None if x is None else x[-1:] for x in arrays]
    np.testing.assert_array_equal(linscan.ssm_kernel_dplr(*last, length), results[0][0][-1:])


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_of_channels_and_of_nodes_change_nothing(rng, monkeypatch, engine):
    with linscan.use_engine(engine):
        check_groups(rng, monkeypatch)


def check_groups(rng, monkeypatch):
    arrays = model(rng, 3, 2, lead=(5,))
    k, pullback = linscan.ssm_kernel_dplr_vjp(*arrays, 33)
    grads = pullback(k)
    monkeypatch.setattr(ssm_kernel_dplr, "_ELEMENTS", 2 * 2 * 9 * 17)
    monkeypatch.setattr(dplr_powers, "_ELEMENTS", 3 * 6 * 6 * 6)
    monkeypatch.setattr(reference, "_ELEMENTS", 3 * 7)
    k2, pullback = linscan.ssm_kernel_dplr_vjp(*arrays, 33)
    assert_close(k2, k, 20 * eps("float64"))
    for x, y in zip(grads, pullback(k), strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert_close(x, y, 200 * eps("float64"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("length", [1, 6, 7, 70])
@pytest.mark.parametrize("other", [False, True])
def test_gradients(rng, engine, pairs, rank, length, other):
    arrays = model(rng, 3, rank, other=other)
    with linscan.use_engine(engine):
        for truncated in (False, True):
            options = {"length": length, "pairs": pairs, "truncated": truncated}
            linscan.check_vjp(linscan.ssm_kernel_dplr_vjp, *arrays, **options)


def test_gradients_of_real_and_broadcast_arguments(rng):
    real = model(rng, 3, 1, "float64")
    linscan.check_vjp(linscan.ssm_kernel_dplr_vjp, *real, length=9, pairs=False)
    linscan.check_vjp(linscan.ssm_kernel_dplr_vjp, *real, length=9)
    Lambda, P, Q, B, _, _ = model(rng, 3, 2, other=True)
    C, dt = random(rng, (2, 1, 3), "float64"), rng.uniform(0.05, 0.2, (3,))
    linscan.check_vjp(linscan.ssm_kernel_dplr_vjp, Lambda, P, Q, B, C, dt, length=8)
    linscan.check_vjp(linscan.ssm_kernel_dplr_vjp, Lambda, P, None, B, C, dt[0], length=0)


def test_gradients_keep_their_dtype_and_size(rng):
    arrays = list(model(rng, 3, 2, "complex64", other=True, lead=(2,)))
    arrays[5] = arrays[5].astype(np.float32)
    k, pullback = linscan.ssm_kernel_dplr_vjp(*arrays, 12)
    g = random(rng, k.shape, "float32")
    for cotangent in (None, g):
        for x, d in zip(arrays, pullback(cotangent), strict=True):
            assert (d.dtype, d.shape) == (x.dtype, x.shape)
    exact = linscan.ssm_kernel_dplr_vjp(*map(oracles.wide, arrays), 12)[1](oracles.wide(g))
    for got, want in zip(pullback(g), exact, strict=True):
        assert_close(got, want, matrix("float32"))


def test_errors_say_who_what_and_what_came(rng):
    Lambda, P, Q, B, C, dt = model(rng, 3, 2, other=True)
    with pytest.raises(
        ValueError, match=r"ssm_kernel_dplr: Lambda, P, Q, B, C must have shapes .*; got \(3,\), \(3,\)"
    ):
        linscan.ssm_kernel_dplr(Lambda, P[0], Q, B, C, dt, 5)
    with pytest.raises(ValueError, match=r"got \(3,\), \(2, 3\), \(1, 3\), \(3,\), \(3,\)"):
        linscan.ssm_kernel_dplr(Lambda, P, Q[:1], B, C, dt, 5)
    with pytest.raises(ValueError, match=r"got \(3,\), \(2, 3\), \(2, 3\), \(2,\), \(3,\)"):
        linscan.ssm_kernel_dplr(Lambda, P, Q, B[:2], C, dt, 5)
    with pytest.raises(ValueError, match=r"got \(2,\), \(2, 3\), \(2, 3\), \(3,\), \(3,\)"):
        linscan.ssm_kernel_dplr(Lambda[:2], P, Q, B, C, dt, 5)
    with pytest.raises(ValueError, match=r"must broadcast; got .* and \(3,\) and \(2,\)"):
        linscan.ssm_kernel_dplr(Lambda, P, Q, B, np.ones((3, 3)), np.ones(2), 5)
    with pytest.raises(TypeError, match=r"ssm_kernel_dplr: dt must be real; got complex128"):
        linscan.ssm_kernel_dplr(Lambda, P, Q, B, C, 1j, 5)
    with pytest.raises(ValueError, match=r"ssm_kernel_dplr: length must be at least 0; got -1"):
        linscan.ssm_kernel_dplr(Lambda, P, Q, B, C, dt, -1)
    with pytest.raises(ValueError, match=r"ssm_kernel_dplr_vjp: dk must have shape \(5,\); got \(4,\)"):
        linscan.ssm_kernel_dplr_vjp(Lambda, P, Q, B, C, dt, 5)[1](np.ones(4))
