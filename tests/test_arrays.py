"""Which arrays are taken, what dtype results have, and what is refused with which words."""

import sys
import types

import ml_dtypes
import numpy as np
import pytest

import linscan
from linscan import _arrays

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class DLPackOnly:
    """An array of another library: DLPack and nothing else."""

    def __init__(self, host, device=(1, 0)):
        self._host, self._device = host, device

    def __dlpack__(self, **options):
        return self._host.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._device


class InterfaceOnly:
    """An array that speaks `__array_interface__` and nothing else."""

    def __init__(self, host):
        self._host = host
        self.__array_interface__ = host.__array_interface__


class ArrayMethodOnly:
    def __init__(self, host):
        self._host = host

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._host, dtype)


# ---- taking arrays


@pytest.mark.parametrize("wrap", [DLPackOnly, InterfaceOnly])
def test_foreign_host_arrays_are_taken_without_a_copy(wrap):
    host = np.arange(6.0).reshape(2, 3)
    xp, x = _arrays.take("f", x=wrap(host))
    assert xp is np
    assert type(x) is np.ndarray
    assert np.shares_memory(x, host)


@pytest.mark.parametrize("wrap", [DLPackOnly, InterfaceOnly, ArrayMethodOnly, np.ndarray.tolist])
def test_foreign_host_arrays_give_numpy_results(wrap):
    host = np.array([1.0, 2.0, 3.0])
    h = linscan.scan(0.5, wrap(host))
    assert type(h) is np.ndarray
    np.testing.assert_array_equal(h, [1, 2.5, 4.25])


def test_numpy_arrays_and_subclasses():
    x = np.arange(3.0)
    assert _arrays.take("f", x=x)[1] is x
    matrix = _arrays.take("f", x=x.view(type("Sub", (np.ndarray,), {})))[1]
    assert type(matrix) is np.ndarray
    assert np.shares_memory(matrix, x)


def test_none_and_python_scalars_pass():
    assert _arrays.take("f", a=None, b=2, c=1.5, d=2j, e=True)[1:] == (None, 2, 1.5, 2j, True)


def test_dlpack_that_numpy_cannot_read_falls_back_on_the_owners_conversion():
    class Owner(DLPackOnly):
        def __array__(self, dtype=None, copy=None):
            return self._host

    half = np.ones(3, BFLOAT16)  # NumPy's DLPack has no bfloat16
    assert _arrays.take("f", x=Owner(half))[1].dtype == BFLOAT16
    with pytest.raises(TypeError, match="f: x could not be taken through DLPack"):
        _arrays.take("f", x=DLPackOnly(half))


@pytest.mark.parametrize("bad", ["text", object(), {1, 2}, {"a": 1}])
def test_what_is_no_array_is_refused(bad):
    with pytest.raises(TypeError, match=f"f: x must be an array; got {type(bad).__name__}"):
        _arrays.take("f", x=bad)


ROW, ROWS = np.ones(3), np.ones((3, 2))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("scan", (None, ROW)),
        ("scan_vjp", (0.5, None)),
        ("scan_step", (0.5, None, ROW)),
        ("lse_scan", (None, ROW)),
        ("softmax_average", (ROW, None)),
        ("lfilter", ([1.0], None, ROW)),
        ("allpole", (None, ROW)),
        ("dlsim", ((1.0, 1.0, 1.0, 0.0, 1.0), None)),
        ("ssm_kernel", (None, ROW, 4)),
        ("discretize_diag", (None, 0.1)),
        ("selective_scan", (ROWS, ROWS, None, ROWS, ROWS)),
        ("delta_rule", (ROWS, ROWS, ROWS, None)),
        ("grid_scan", (None,) * 6),
    ],
)
def test_none_is_no_array_where_one_is_needed(name, args):
    with pytest.raises(TypeError, match=rf"^{name}: \w+ must be an array; got None$"):
        getattr(linscan, name)(*args)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"scan: b makes no array: .* inhomogeneous shape"):
        linscan.scan(0.5, [[1.0, 2.0], [3.0]])


def test_masked_arrays_are_refused():
    with pytest.raises(TypeError, match="scan: b is a masked array; fill it or drop its mask first"):
        linscan.scan(0.5, np.ma.masked_array([1.0, 2.0], [False, True]))


# ---- result dtypes

PROMOTIONS = [
    (("float16",), "float16"),
    (("bfloat16",), "bfloat16"),
    (("float16", "float32"), "float32"),
    (("bfloat16", "float32"), "float32"),
    (("bfloat16", "float16"), "float32"),
    (("bfloat16", "float64"), "float64"),
    (("bfloat16", "complex64"), "complex64"),
    (("bfloat16", "complex128"), "complex128"),
    (("float32", "float64"), "float64"),
    (("float32", "complex64"), "complex64"),
    (("float64", "complex64"), "complex128"),
    (("int32",), "float64"),
    (("uint8",), "float64"),
    (("bool",), "float64"),
    (("int8", "float32"), "float32"),
    (("int64", "float32"), "float64"),
    (("int64", "bfloat16"), "float64"),
    (("int64", "complex64"), "complex128"),
]


@pytest.mark.parametrize(("given", "expected"), PROMOTIONS)
def test_promotion(given, expected):
    arrays = {f"x{i}": np.ones(1, BFLOAT16 if d == "bfloat16" else d) for i, d in enumerate(given)}
    assert _arrays.result_dtype("f", **arrays).name == expected
    assert _arrays.result_dtype("f", **dict(reversed(arrays.items())), nothing=None).name == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("scalar", [True, 2, 0.5])
def test_python_scalars_are_weak(dtype, scalar):
    x = np.ones(2, BFLOAT16 if dtype == "bfloat16" else dtype)
    assert _arrays.result_dtype("f", x=x, s=scalar) == x.dtype


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "c8"), ("bfloat16", "c8"), ("float32", "c8"), ("float64", "c16"), ("int32", "c16")],
)
def test_a_complex_scalar_keeps_the_precision(dtype, expected):
    x = np.ones(2, BFLOAT16 if dtype == "bfloat16" else dtype)
    assert _arrays.result_dtype("f", x=x, s=2j) == np.dtype(expected)


def test_numpy_scalars_are_not_weak_and_scalars_alone_are_double():
    assert linscan.scan(np.float64(0.5), np.ones(2, np.float32)).dtype == np.float64
    assert linscan.scan(0.5, np.ones(2, np.float32)).dtype == np.float32
    assert _arrays.result_dtype("f", a=1, b=0.5) == np.float64
    assert _arrays.result_dtype("f", a=1, b=1j) == np.complex128


def test_the_result_dtype_does_not_depend_on_values():
    small, huge = np.float32([1.0]), np.float32([3e38])
    for decay in (0.5, 1e300, 10):
        assert _arrays.result_dtype("f", a=decay, b=small) == _arrays.result_dtype("f", a=decay, b=huge) == np.float32


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">c16", ">i4"])
def test_foreign_byte_order_gives_native_results(dtype):
    x = np.arange(4).astype(dtype)
    h = linscan.scan(0.5, x)
    assert h.dtype.isnative
    np.testing.assert_array_equal(h, linscan.scan(0.5, x.astype(x.dtype.newbyteorder("="))))
    step = linscan.scan_step(x, x, x)
    assert step.dtype.isnative
    np.testing.assert_array_equal(step, x * x + x)


@pytest.mark.parametrize(
    "x",
    [
        np.ones(2, np.longdouble),
        np.ones(2, np.clongdouble),
        np.ones(2, object),
        np.array(["a", "b"]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", float)]),
        np.zeros(2, ml_dtypes.float8_e4m3fn),
    ],
    ids=lambda x: x.dtype.name,
)
def test_other_dtypes_are_refused_by_name(x):
    with pytest.raises(TypeError) as caught:
        linscan.scan(0.5, x)
    assert str(caught.value).startswith(f"scan: b has dtype {x.dtype}, which is not supported; use float16, bfloat16,")


def test_precision_helpers():
    f16, f32, f64, c64, c128 = map(np.dtype, ("f2", "f4", "f8", "c8", "c16"))
    assert [_arrays.accum_dtype(d) for d in (f16, BFLOAT16, f32, f64, c64, c128)] == [f32, f32, f32, f64, c64, c128]
    assert [_arrays.real_dtype(d) for d in (f32, c64, c128)] == [f32, f32, f64]
    assert [_arrays.complex_dtype(d) for d in (f16, BFLOAT16, f32, f64, c64)] == [c64, c64, c64, c128, c64]


# ---- axes, shapes, out


def test_axes():
    assert [_arrays.check_axis("f", axis, 3) for axis in (0, 2, -1, -3, np.int64(1))] == [0, 2, 2, 0, 1]
    for axis in (3, -4):
        with pytest.raises(np.exceptions.AxisError, match=f"f: axis {axis} is out of bounds for 3 dimension"):
            _arrays.check_axis("f", axis, 3)
    with pytest.raises(TypeError, match=r"f: axis must be an integer; got 1\.0"):
        _arrays.check_axis("f", 1.0, 3)
    with pytest.raises(np.exceptions.AxisError, match="scan: axis -1 is out of bounds for 0 dimension"):
        linscan.scan(0.5, 1.0)


def test_shapes_and_choices_are_quoted():
    with pytest.raises(ValueError, match=r"scan: a and b must broadcast; got \(2, 8, 4\) and \(2, 8, 3\)"):
        linscan.scan(np.ones((2, 8, 4)), np.ones((2, 8, 3)))
    with pytest.raises(ValueError, match=r"scan: h0 must broadcast to \(2,\); got \(3,\)"):
        linscan.scan(0.5, np.ones((2, 8)), h0=np.ones(3))
    with pytest.raises(ValueError, match="f: method must be one of 'zoh', 'foh'; got 'zho'"):
        _arrays.check_choice("f", "method", "zho", ("zoh", "foh"))


def test_out_must_fit():
    b = np.ones((2, 5))
    for out in (np.empty((2, 4)), np.empty((2, 5), np.float32)):
        with pytest.raises(ValueError, match=r"scan: out must have shape \(2, 5\) and dtype float64"):
            linscan.scan(0.5, b, out=out)
    with pytest.raises(TypeError, match="scan: out must be a numpy array; got list"):
        linscan.scan(0.5, b, out=[[0.0] * 5] * 2)
    out = np.empty((2, 5))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="scan: out is read-only"):
        linscan.scan(0.5, b, out=out)


# ---- gradients in their argument's shape


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), 24), ((4,), [6] * 4), ((3, 1), [[8]] * 3), ((1, 3, 4), [[[2] * 4] * 3]), ((2, 1, 1), [[[12]], [[12]]])],
)
def test_gradients_of_broadcast_arguments_are_summed(shape, expected):
    grad = _arrays.grad_like(np.ones((2, 3, 4)), np.ones(shape, np.float32))
    assert grad.shape == shape
    assert grad.dtype == np.float32
    np.testing.assert_array_equal(grad, expected)


def test_gradients_are_real_for_real_arguments_and_none_for_none():
    grad = np.array([1 + 2j])
    assert _arrays.grad_like(grad, None) is None
    assert _arrays.grad_like(grad, np.ones(1)).dtype == np.float64
    assert _arrays.grad_like(grad, np.ones(1, np.complex64)).dtype == np.complex64
    assert _arrays.grad_like(grad, np.ones(1, int)).dtype == np.float64
    assert _arrays.grad_like(grad, 0.5).shape == ()
    assert _arrays.grad_like(grad, 0.5) == 1


@pytest.mark.parametrize("integers", [False, True])
def test_gradients_of_lists_have_their_shape(integers):
    a, b = ([1, 1, 1], [1, 2, 3]) if integers else ([0.5, 0.5, 0.5], [1.0, 2.0, 3.0])
    h, pullback = linscan.scan_vjp(a, b)
    want = linscan.scan_vjp(np.array(a, float), np.array(b, float))[1](h)
    for got, exact in zip(pullback(h)[:2], want, strict=False):
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, exact)


def test_cotangents_have_their_outputs_shape():
    output = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(_arrays.cotangent("f", "dh", None, output), np.zeros((2, 3)))
    assert _arrays.cotangent("f", "dh", [[1, 2, 3]] * 2, output).dtype == np.float32
    for wrong in (np.ones(3), 1.0):
        with pytest.raises(ValueError, match=r"f: dh must have shape \(2, 3\); got "):
            _arrays.cotangent("f", "dh", wrong, output)


# ---- host and GPU: the rules, with a stand-in for CuPy


class FakeArray:
    """Enough of a cupy.ndarray for the rules: a class of its own, a dtype, a device."""

    def __init__(self, host, device=0):
        self.host, self.dtype, self.shape = np.asarray(host), np.asarray(host).dtype, np.shape(host)
        self.device = types.SimpleNamespace(id=device)
        self.data = types.SimpleNamespace(device_id=device)


class OnGPU:
    __cuda_array_interface__ = types.MappingProxyType(
        {"shape": (2,), "typestr": "<f8", "data": (0, False), "version": 3}
    )


@pytest.fixture
def cupy(monkeypatch):
    module = types.ModuleType("cupy")
    module.ndarray = FakeArray
    module.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDevice=lambda: 0))
    module.asarray = lambda x: x if isinstance(x, FakeArray) else FakeArray(np.ones(2) if isinstance(x, OnGPU) else x)
    module.from_dlpack = lambda x: FakeArray(x._host)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_gpu_arrays_stay_on_the_gpu(cupy):
    x, y = FakeArray(np.ones(2)), FakeArray(np.ones(2))
    xp, a, b, c, d = _arrays.take("f", a=x, b=y, c=None, d=0.5)
    assert xp is cupy
    assert (a, b, c, d) == (x, y, None, 0.5)
    assert _arrays.namespace(1.0, x) is cupy
    assert _arrays.namespace(1.0, np.ones(2)) is np


@pytest.mark.parametrize("follower", [[1.0, 2.0], (1.0, 2.0), np.float32(2)])
def test_sequences_and_numpy_scalars_follow_the_arrays(cupy, follower):
    xp, _, b = _arrays.take("f", a=FakeArray(np.ones(2)), b=follower)
    assert xp is cupy
    assert isinstance(b, FakeArray)
    assert _arrays.result_dtype("f", b=b) == np.asarray(follower).dtype


@pytest.mark.parametrize("host", [np.ones(2), DLPackOnly(np.ones(2)), InterfaceOnly(np.ones(2))])
def test_host_and_gpu_arrays_do_not_mix(cupy, host):
    for arguments in ({"a": FakeArray(np.ones(2)), "b": host}, {"b": host, "a": FakeArray(np.ones(2))}):
        with pytest.raises(TypeError, match=r"f: all arrays must live in one place; a is on the GPU .* b on the host"):
            _arrays.take("f", **arguments)
    with pytest.raises(TypeError, match="scan: all arrays must live in one place"):
        linscan.scan(np.ones(2), FakeArray(np.ones(2)))


def test_arrays_of_two_gpus_do_not_mix(cupy):
    with pytest.raises(TypeError, match="f: all arrays must be on one device; a is on GPU 0, b on GPU 1"):
        _arrays.take("f", a=FakeArray(np.ones(2)), b=FakeArray(np.ones(2), device=1))
    with pytest.raises(TypeError, match="scan: all arrays must be on one device; a is on GPU 0, b on GPU 1"):
        linscan.scan(FakeArray(np.ones(2)), FakeArray(np.ones(2), device=1))


def test_arrays_lie_on_the_current_gpu(cupy):
    x = FakeArray(np.ones(2), device=1)
    for arguments in ({"a": x, "b": None}, {"a": x, "b": 0.5}, {"a": 2.0, "b": x}):
        with pytest.raises(TypeError, match=r"f: arrays must be on the current device, GPU 0; \w is on GPU 1: call"):
            _arrays.take("f", **arguments)
    cupy.cuda.runtime.getDevice = lambda: 1
    assert _arrays.take("f", a=x) == (cupy, x)


def test_plain_arrays_are_known_at_a_look(cupy):
    x, y = np.ones(2), FakeArray(np.ones(2))
    assert _arrays.plain(x, x) == (np, np.dtype(float))
    assert _arrays.plain(y, FakeArray(np.ones(3))) == (cupy, np.dtype(float))
    for other in (1.0, [1.0], None, np.ones(2, np.float32), np.ma.ones(2), y):
        assert _arrays.plain(x, other) is None
        assert _arrays.plain(other, x) is None
    assert _arrays.plain(y, FakeArray(np.ones(2), device=1)) is None
    for dtype in (np.int64, ">f8", np.longdouble):
        assert _arrays.plain(np.ones(2, dtype)) is None


@pytest.mark.parametrize("x", [OnGPU(), DLPackOnly(np.ones(2), device=(2, 0)), DLPackOnly(np.ones(2), device=(13, 0))])
def test_foreign_gpu_arrays_are_taken_by_cupy(cupy, x):
    xp, a = _arrays.take("f", a=x)
    assert xp is cupy
    assert isinstance(a, FakeArray)


@pytest.mark.parametrize("x", [OnGPU(), DLPackOnly(np.ones(2), device=(2, 0))])
def test_gpu_arrays_without_cupy_are_refused(monkeypatch, x):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail
    with pytest.raises(TypeError, match="f: a lives on a GPU, and taking it needs CuPy, which is not installed"):
        _arrays.take("f", a=x)
