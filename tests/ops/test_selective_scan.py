"""Laws of `selective_scan`, `selective_step` and `selective_scan_vjp`, on every engine that runs on the CPU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linscan
from tests import oracles
from tests.conftest import DTYPES, dtype_of, random
from tests.tolerances import assert_close, eps, stable, summed

ENGINES = ["reference", "cpu"]
OPTIONAL = ("D", "z", "dt_bias", "h0")


def problem(rng, dtype, shape=(2, 33, 11), states=5, groups=None, without=(), turn=20):
    """Arguments of `selective_scan`, for decays of about 0.1 to 1; real ones for what must be real."""
    kind = dtype_of(dtype)
    real = np.zeros(0, kind).real.dtype if kind.kind == "c" else kind
    *lead, length, channels = shape
    eigenvalues = -rng.uniform(0.2, 4, (channels, states))
    if kind.kind == "c":
        eigenvalues = eigenvalues + 1j * rng.uniform(-turn, turn, (channels, states))
    vectors = (*lead, length, states) if groups is None else (*lead, length, groups, states)
    args = {
        "u": random(rng, shape, kind),
        "dt": rng.uniform(0.01, 0.5, shape).astype(real),
        "A": eigenvalues.astype(kind),
        "B": random(rng, vectors, kind),
        "C": random(rng, vectors, kind),
        "D": random(rng, (channels,), kind),
        "z": random(rng, shape, real),
        "dt_bias": rng.uniform(0, 0.1, channels).astype(real),
        "h0": random(rng, (*lead, channels, states), kind),
    }
    return args | dict.fromkeys(without)


def loop(args, reset=None, **options):
    """The oracle over one or no leading axis: y and all states."""
    if args["u"].ndim == 2:
        B, C = (args[x] if args[x].ndim == 3 else args[x][:, None] for x in "BC")
        return oracles.selective_scan(**args | {"B": B, "C": C}, reset=reset, **options)
    rows = [row_of(args, i) for i in range(len(args["u"]))]
    resets = [None] * len(rows) if reset is None else reset
    results = [loop(row, r, **options) for row, r in zip(rows, resets, strict=True)]
    return tuple(np.stack(x) for x in zip(*results, strict=True))


def row_of(args, i):
    whole = ("A", "D", "dt_bias")
    return {k: v if v is None or k in whole else v[i] for k, v in args.items()}


def steps_of(args, times):
    """The arguments at some times, without the state."""
    timed = ("u", "dt", "B", "C", "z")
    axis = args["u"].ndim - 2
    index = (slice(None),) * axis + (times,)
    return {k: v[index] if k in timed and v is not None else v for k, v in args.items() if k != "h0"}


def tolerance(dtype):
    # Each output sums a few states; Δ and its exponent are rounded once each before a decay is made of them. A gradient
    # takes two more products and a sum over channels, or over time.
    return 2 * stable(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_loop(rng, engine, dtype):
    for length in (0, 1, 2, 7, 65, 130):
        args = problem(rng, dtype, (2, length, 11))
        with linscan.use_engine(engine):
            y, h = linscan.selective_scan(**args)
        want, every = loop(args)
        assert y.dtype == (args["dt"].dtype if length else y.dtype)
        assert h.dtype == args["A"].dtype if dtype not in ("float16", "bfloat16") else np.float32
        assert_close(y, want, tolerance(dtype))
        assert_close(h, every[:, -1] if length else args["h0"], tolerance(dtype))


@given(
    channels=st.sampled_from([1, 2, 6, 18, 40, 70]),
    length=st.integers(1, 40),
    states=st.integers(1, 5),
    groups=st.sampled_from([None, 1, 2]),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    flags=st.tuples(*[st.booleans()] * 4),
    without=st.sets(st.sampled_from(OPTIONAL)),
    layout=st.sampled_from(["C", "F", "strided", "flipped"]),
    engine=st.sampled_from(ENGINES),
    seed=st.integers(0, 99),
)
def test_any_shape_layout_option_and_direction(
    channels, length, states, groups, dtype, flags, without, layout, engine, seed
):
    rng = np.random.default_rng(seed)
    dt_softplus, reverse, real, with_reset = flags
    groups = None if groups is not None and channels % groups else groups
    args = problem(rng, dtype, (2, length, channels), states, groups, without)
    args = {k: None if v is None else laid_out(v, layout) for k, v in args.items()}
    reset = rng.random((2, length)) < 0.2 if with_reset else None
    options = {"dt_softplus": dt_softplus, "reverse": reverse, "real": real}
    with linscan.use_engine(engine):
        y, h = linscan.selective_scan(**args, reset=reset, states=True, **options)
    want, every = loop(args, reset, **options)
    assert y.dtype == (args["dt"].dtype if real else args["u"].dtype)
    assert_close(y, want, tolerance(dtype))
    assert_close(h, every, tolerance(dtype))


def laid_out(x, layout):
    """The same numbers, read-only, in another memory layout."""
    if layout == "F":
        x = np.asfortranarray(x)
    elif layout == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "flipped":
        x = x[::-1].copy()[::-1]
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("engine", ENGINES)
def test_leading_axes_broadcast(rng, engine):
    args = problem(rng, "float64", (20, 4), 3)
    args["u"] = random(rng, (3, 1, 20, 4), "float64")
    args["dt"] = args["dt"][:, :1]
    args["B"], args["C"] = random(rng, (2, 20, 3), "float64"), random(rng, (1, 20, 3), "float64")
    args["h0"] = random(rng, (3, 1, 4, 3), "float64")
    reset = rng.random((2, 20)) < 0.2
    with linscan.use_engine(engine):
        y, h = linscan.selective_scan(**args, reset=reset)
    assert y.shape == (3, 2, 20, 4)
    assert h.shape == (3, 2, 4, 3)
    one = args | {k: args[k][2, 0] for k in ("u", "h0")} | {"B": args["B"][1], "C": args["C"][0]}
    want, every = loop(one | {"dt": np.repeat(args["dt"], 4, axis=1)}, reset[1])
    assert_close(y[2, 1], want, tolerance("float64"))
    assert_close(h[2, 1], every[-1], tolerance("float64"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "complex128"])
@pytest.mark.parametrize("cut", [0, 1, 32, 100])
def test_splitting_and_stepping_equal_scanning(rng, engine, dtype, cut):
    args = problem(rng, dtype, (2, 100, 5), 3)
    with linscan.use_engine(engine):
        y, h = linscan.selective_scan(**args, dt_softplus=True)
        y1, h1 = linscan.selective_scan(**steps_of(args, slice(0, cut)), h0=args["h0"], dt_softplus=True)
        y2, h2 = linscan.selective_scan(**steps_of(args, slice(cut, None)), h0=h1, dt_softplus=True)
        np.testing.assert_array_equal(np.concatenate([y1, y2], 1), y)
        np.testing.assert_array_equal(h2, h)
        step = args["h0"]
        for t in range(100 if cut == 1 else 3):
            yt, step = linscan.selective_step(**steps_of(args, t), h=step, dt_softplus=True)
            np.testing.assert_array_equal(yt, y[:, t])


def test_steps_take_numbers_groups_and_no_state(rng):
    args = problem(rng, "float64", (1, 4), 3, groups=2, without=("z", "h0"))
    y, h = linscan.selective_scan(**args)
    one = steps_of(args, 0)
    y1, h1 = linscan.selective_step(**one)
    np.testing.assert_array_equal(y1, y[0])
    np.testing.assert_array_equal(h1, h)
    y2, _ = linscan.selective_step(**one | {"dt": 0.1})
    np.testing.assert_array_equal(y2, linscan.selective_step(**one | {"dt": np.full(4, 0.1)})[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_reversing_is_flipping(rng, engine):
    args = problem(rng, "float32")
    flipped = steps_of(args, slice(None, None, -1)) | {"h0": args["h0"]}
    reset = rng.random((2, 33)) < 0.1
    with linscan.use_engine(engine):
        y, h = linscan.selective_scan(**args, reverse=True, reset=reset)
        want, want_h = linscan.selective_scan(**flipped, reset=reset[:, ::-1])
    np.testing.assert_array_equal(y[:, ::-1], want)
    np.testing.assert_array_equal(h, want_h)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_packed_sequences_are_separate_calls(rng, engine, dtype):
    """Nothing that is not finite in one sequence reaches the next, forwards or backwards."""
    args = problem(rng, dtype, (40, 5), 3, without=("h0",))
    args["B"][:9] = np.inf
    args["A"][0] = 30  # grows beyond all bounds in the first sequence and in the second
    reset = np.zeros(40, bool)
    reset[[9, 30]] = True
    dy = random(rng, (40, 5), args["dt"].dtype)
    dy[30:] = np.nan
    parts = [slice(0, 9), slice(9, 30), slice(30, 40)]
    with linscan.use_engine(engine), np.errstate(all="ignore"):
        (y, h), pullback = linscan.selective_scan_vjp(**args, reset=reset)
        grads = pullback(dy, None)
        alone = [linscan.selective_scan_vjp(**steps_of(args, part)) for part in parts]
        for part, ((want, _), back) in zip(parts[1:], alone[1:], strict=True):
            np.testing.assert_array_equal(y[part], want)
            want_grads = back(dy[part], None)
            for i in (0, 1, 3, 4, 6):
                np.testing.assert_array_equal(grads[i][part], want_grads[i])
        np.testing.assert_array_equal(h, alone[-1][0][1])


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_are_repeated_vectors(rng, engine):
    args = problem(rng, "float64", (2, 20, 12), 3, groups=3)
    with linscan.use_engine(engine):
        y, _ = linscan.selective_scan(**args)
        for g in range(3):
            part = slice(4 * g, 4 * g + 4)
            one = {k: v[..., part] for k, v in args.items() if k in ("u", "dt", "D", "z", "dt_bias")}
            one |= {"A": args["A"][part], "h0": args["h0"][:, part], "B": args["B"][:, :, g], "C": args["C"][:, :, g]}
            np.testing.assert_array_equal(linscan.selective_scan(**one)[0], y[..., part])


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_bits_depend_neither_on_workers_nor_on_other_rows(rng, dtype):
    args = problem(rng, dtype, (3, 100, 70), 4)
    dy, dh = random(rng, (3, 100, 70), args["dt"].dtype), random(rng, (3, 70, 4), dtype)
    outputs, pullback = linscan.selective_scan_vjp(**args, dt_softplus=True, workers=1)
    grads = pullback(dy, dh)
    for workers in (2, 3, 7):
        others, pullback = linscan.selective_scan_vjp(**args, dt_softplus=True, workers=workers)
        for x, y in zip((*others, *pullback(dy, dh)), (*outputs, *grads), strict=True):
            np.testing.assert_array_equal(x, y)
    (y, h), pullback = linscan.selective_scan_vjp(**row_of(args, 1), dt_softplus=True)
    np.testing.assert_array_equal(y, outputs[0][1])
    np.testing.assert_array_equal(h, outputs[1][1])
    alone = pullback(dy[1], dh[1])
    for i in (0, 1, 3, 4, 6, 8):
        np.testing.assert_array_equal(alone[i], grads[i][1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("which", ["u", "dt", "B", "C", "z", "h0"])
def test_nan_reaches_only_its_row_and_later_times(rng, engine, which):
    args = problem(rng, "float32", (2, 40, 20), 3)
    clean, _ = loop(args)
    bad = args[which].copy()
    bad[(1, 17, 2) if which in ("u", "dt", "z") else (1, 17) if which != "h0" else (1, 2)] = np.nan
    with linscan.use_engine(engine):
        y, h = linscan.selective_scan(**args | {which: bad})
    channels = slice(None) if which in "BC" else 2
    times = slice(17, 18) if which in "zC" else slice(0 if which == "h0" else 17, None)
    assert np.isnan(y[1, times, channels]).all()
    assert np.isnan(h[1, channels]).all() == (which not in "zC")
    y[1, times, channels] = clean[1, times, channels]
    assert_close(y, clean, tolerance("float32"))


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_leaves_the_gradients_of_other_times_alone(rng, engine):
    args = problem(rng, "float32", (70, 70), 3)  # a block of channels that is full, and one that is not
    args["dt"][5, 50] = np.nan
    with linscan.use_engine(engine):
        (y, h), pullback = linscan.selective_scan_vjp(**args, workers=1)
        grads = pullback(np.ones_like(y), np.ones_like(h))
    assert np.isnan(grads[3][:6]).all()
    assert np.isfinite(grads[3][6:]).all()
    assert np.isfinite(grads[4][:5]).all()
    assert np.isfinite(np.delete(grads[0], 50, axis=1)).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@np.errstate(all="ignore")
def test_the_error_of_a_decay(engine, dtype):
    """The bound of the docstring, from growth that overflows to decay that vanishes; a state of 1, and no input."""
    x = np.concatenate([np.linspace(-120, 95, 4001), [0.0, -1e-3, -1e-9, 1e-9, -750, -1e30, -np.inf, 750, np.nan]])
    A = x.astype(dtype)[:, None]
    with linscan.use_engine(engine):
        _, h = linscan.selective_step(np.zeros(len(x), dtype), 1.0, A, np.zeros(1), np.zeros(1), h=np.ones_like(A))
        want = np.exp(A.astype(np.float64))
        bound = (2 + np.abs(A)) * eps(dtype) * want
    small = want < np.finfo(dtype).tiny
    assert (np.abs(h[small]) <= np.finfo(dtype).tiny).all()
    huge = want > 0.7 * np.finfo(dtype).max
    assert (h[huge] > 0.7 * np.finfo(dtype).max).all()
    there = ~(small | huge | np.isnan(want))
    assert np.isnan(h[-1]).all()
    assert (np.abs(h - want) <= bound)[there].all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@np.errstate(all="ignore")
def test_softplus_and_gate_are_stable(engine, dtype):
    x = np.concatenate([np.linspace(-90, 90, 2001), [0.0, -1e-8, 1e-8, -1e4, 1e4, -np.inf]])
    x = x.astype(dtype)
    one, wide = np.ones(len(x), dtype), x.astype(np.float64)
    vectors = np.ones(1, dtype)
    options = {"A": np.zeros((1, 1), dtype), "B": vectors, "C": vectors}
    with linscan.use_engine(engine):
        y, _ = linscan.selective_step(one, x, **options, dt_softplus=True)
        gated, _ = linscan.selective_step(one[:-1], one[:-1], **options, z=x[:-1])
        timed = options | {"B": vectors[None], "C": vectors[None]}
        _, pullback = linscan.selective_scan_vjp(one[None], x[None], **timed, dt_softplus=True)
        slope = pullback(one[None], None)[1][0]
        want = np.logaddexp(0, wide)
        share = np.exp(np.minimum(wide, 0)) / (1 + np.exp(-np.abs(wide)))
    tiny = np.finfo(dtype).tiny
    for got, exact in ((y, want), (gated, (wide * share)[:-1]), (slope, share)):
        fine = share[: len(exact)] > 4 * tiny
        np.testing.assert_allclose(got[fine], exact[fine], rtol=8 * eps(dtype))
        assert (np.abs(got[~fine]) <= 1000 * tiny).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_of_no_length_change_nothing(rng, engine):
    args = problem(rng, "float64", without=("dt_bias", "z", "D"))
    with linscan.use_engine(engine):
        y, h = linscan.selective_scan(**args | {"dt": np.zeros((33, 1))})
    np.testing.assert_array_equal(h, args["h0"])
    assert_close(y, np.einsum("btn,bdn->btd", args["C"], args["h0"]), summed("float64", 5))


CASES = {
    "all": (),
    "none": OPTIONAL,
    "no gate": ("z",),
    "no skip and state": ("D", "h0"),
    "no bias": ("dt_bias",),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["float64", "complex128"])
@pytest.mark.parametrize("case", CASES)
def test_gradients(rng, engine, kind, case):
    groups = 2 if case in ("all", "no gate") else None
    args = problem(rng, kind, (2, 9, 4), 2, groups, CASES[case], turn=2)
    softplus, reverse = case != "no bias", case == "no gate"
    reset = rng.random((2, 9)) < 0.2 if case != "all" else None
    options = {"dt_softplus": softplus, "reverse": reverse, "reset": reset, "real": case != "none"}
    with linscan.use_engine(engine):
        linscan.check_vjp(linscan.selective_scan_vjp, *args.values(), directions=2, **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_of_real_inputs_to_complex_states_and_of_broadcast_arguments(rng, engine):
    args = problem(rng, "complex128", (2, 9, 4), 2, turn=2)
    args |= {k: args[k].real.copy() for k in ("u", "B", "D")}
    args |= {"dt": args["dt"][:1, :, :1], "C": args["C"][0], "h0": args["h0"][0], "A": args["A"][:1]}
    with linscan.use_engine(engine):
        linscan.check_vjp(linscan.selective_scan_vjp, *args.values(), directions=2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_keep_their_dtype_and_agree_with_wide_ones(rng, engine, dtype):
    args = problem(rng, dtype, (2, 150, 18), 5)
    wide = {k: oracles.wide(v) for k, v in args.items()}
    dy, dh = random(rng, (2, 150, 18), args["dt"].dtype), random(rng, (2, 18, 5), args["A"].dtype)
    with linscan.use_engine(engine):
        (_, h), pullback = linscan.selective_scan_vjp(**args, dt_softplus=True)
        grads = pullback(dy, dh.astype(h.dtype))
    with linscan.use_engine("reference"):
        _, pullback = linscan.selective_scan_vjp(**wide, dt_softplus=True)
    for name, got, want in zip(args, grads, pullback(dy, dh), strict=True):
        assert got.dtype == args[name].dtype
        assert got.shape == args[name].shape
        assert_close(got, want, 3 * tolerance(dtype), name)


def test_single_parameters_leave_half_precision_sequences(rng):
    args = problem(rng, "float16")
    args |= {k: args[k].astype(np.float32) for k in ("A", "D", "dt_bias", "h0")}
    y, h = linscan.selective_scan(**args)
    assert (y.dtype, h.dtype) == (np.float16, np.float32)
    assert linscan.selective_scan(**args | {"A": args["A"].astype(np.float64)})[0].dtype == np.float64
    assert linscan.selective_scan(**args | {"u": args["u"].astype(np.float32)})[0].dtype == np.float32
    assert linscan.selective_scan(**args | {"A": args["A"] + 0j}, real=False)[0].dtype == np.complex64


def test_arguments_are_not_written(rng):
    args = problem(rng, "float32", (2, 70, 20), 4)
    copies = {k: v.copy() for k, v in args.items()}
    (y, h), pullback = linscan.selective_scan_vjp(**args, dt_softplus=True)
    pullback(y, h)
    for k, v in args.items():
        np.testing.assert_array_equal(v, copies[k])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 7, 4), (2, 7, 0)])
def test_empty_arrays(rng, engine, shape):
    args = problem(rng, "float64", shape, 3)
    with linscan.use_engine(engine):
        (y, h), pullback = linscan.selective_scan_vjp(**args)
        grads = pullback(None, np.ones_like(h))
    assert y.shape == shape
    for x, g in zip(args.values(), grads, strict=True):
        assert g.shape == x.shape
    if shape[-2] == 0:
        np.testing.assert_array_equal(h, args["h0"])
        np.testing.assert_array_equal(grads[-1], 1)


def test_errors_say_who_what_and_what_came(rng):
    args = problem(rng, "float64", (2, 7, 4), 3)

    def scan(**changed):
        return linscan.selective_scan(**args | changed)

    with pytest.raises(
        ValueError, match=r"selective_scan: u and dt and z must broadcast; got \(2, 7, 4\) and \(3, 4\)"
    ):
        scan(dt=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"selective_scan: A must broadcast to \(4, 3\); got \(5, 3\)"):
        scan(A=np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"selective_scan: A and B and C must broadcast; got \(2,\) and \(3,\)"):
        scan(A=np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"selective_scan: B must broadcast to \(2, 7, 1, 3\); got \(8, 1, 3\)"):
        scan(B=np.ones((8, 3)))
    with pytest.raises(ValueError, match="the groups of B and C must divide the channels; got 3 and 4"):
        scan(B=np.ones((1, 7, 3, 3)))
    with pytest.raises(ValueError, match=r"selective_scan: C must be \(…, T, N\) or \(…, T, G, N\); got \(3,\)"):
        scan(C=np.ones(3))
    with pytest.raises(ValueError, match=r"selective_scan: h0 must broadcast to \(2, 4, 3\); got \(2, 4, 2\)"):
        scan(h0=np.ones((2, 4, 2)))
    with pytest.raises(ValueError, match=r"selective_scan: u and dt need axes of time and channels"):
        scan(u=1.0, dt=1.0, z=None)
    with pytest.raises(TypeError, match="selective_scan: dt must be real; got complex128"):
        scan(dt=args["dt"] + 0j)
    with pytest.raises(TypeError, match="selective_scan: reset must be boolean; got float64"):
        scan(reset=np.ones(7))
    with pytest.raises(ValueError, match=r"selective_scan_vjp: dy must have shape \(2, 7, 4\); got \(7,\)"):
        linscan.selective_scan_vjp(**args)[1](np.ones(7), None)
