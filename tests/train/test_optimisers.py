"""Laws of the optimisers and of files of parameters."""

import json
import struct

import numpy as np
import pytest

from linscan.train import SGD, Adam, AdamW, BadFile, Group, load, save
from linscan.train.optimisers import global_norm
from linscan.train.packed import Packed
from tests.conftest import DTYPES, random
from tests.tolerances import assert_close


def by_hand(kind, x, gradients, rate, decay):
    """Each published algorithm on one number after another, in Python floats."""
    m = v = 0.0
    for n, g in enumerate(gradients, 1):
        if kind == "sgd":
            m = 0.9 * m + g
            x = x - rate * (m + decay * x)
            continue
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - rate * decay * x - rate * (m / (1 - 0.9**n)) / ((v / (1 - 0.999**n)) ** 0.5 + 1e-8)
    return x


@pytest.mark.parametrize(("kind", "optimiser"), [("adam", AdamW), ("adam", Adam), ("sgd", SGD)])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_steps_equal_the_published_algorithm(rng, kind, optimiser, dtype):
    x, gradients = random(rng, (3, 2), dtype), [random(rng, (3, 2), dtype) for _ in range(4)]
    flat = {"a.C": x.copy(), "a.log_dt": x.copy(), "norm.mean": x.copy()}
    chosen = optimiser(0.1, decay=0.05, groups=(Group(("log_dt",), 0.01),))
    moments = chosen.start(flat)
    for n, g in enumerate(gradients, 1):
        chosen.update(flat, dict.fromkeys(flat, g), moments, n, 0.5)
    for name, rate, decay in (("a.C", 0.05, 0.05), ("a.log_dt", 0.005, 0.0)):
        for part in (np.real, np.imag) if dtype == "complex128" else (np.real,):
            for at in np.ndindex(x.shape):
                want = by_hand(kind, part(x)[at], [part(g)[at] for g in gradients], rate, decay)
                assert_close(part(flat[name])[at], want, 1e-13)
    np.testing.assert_array_equal(flat["norm.mean"], x)  # running statistics are not trained


def test_the_norm_is_that_of_all_gradients_together(rng):
    grads = {"a": random(rng, (3,), "float64"), "b": random(rng, (2, 2), "complex128")}
    want = np.sqrt(sum((abs(g) ** 2).sum() for g in grads.values()))
    assert_close(global_norm(grads), want, 1e-15)


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "bool"])
def test_saved_arrays_come_back(tmp_path, rng, dtype):
    arrays = {"empty": (0, 3), "none": (), "some": (2, 3)}
    tree = {"a": {"b": {n: random(rng, s, dtype if dtype in DTYPES else "float64") for n, s in arrays.items()}}}
    if dtype not in DTYPES:
        tree["a"]["b"] = {n: (x > 0).astype(dtype) for n, x in tree["a"]["b"].items()}
    save(tmp_path / "x.safetensors", tree)
    back = load(tmp_path / "x.safetensors")
    for name, x in tree["a"]["b"].items():
        got = back["a"]["b"][name]
        assert (got.dtype, got.shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(got, x)
        assert got.flags.writeable
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_file_is_what_the_format_says(tmp_path):
    path = tmp_path / "x.safetensors"
    save(path, {"w": np.array([[1.0, 2.0]], np.float32), "z": np.array([3 + 4j], np.complex64)})
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    assert header["w"] == {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    assert header["z"] == {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]}
    assert header["__metadata__"]["complex"] == '["z"]'
    assert data[8 + size :] == struct.pack("<4f", 1, 2, 3, 4)


def test_files_that_are_no_parameters_are_refused(tmp_path):
    with pytest.raises(BadFile, match=r"missing\.safetensors: cannot be read: No such file"):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(TypeError, match=r"save: names must be strings without dots; got 'a\.b'"):
        save(tmp_path / "x", {"a.b": np.ones(1)})
    with pytest.raises(TypeError, match="save: x has dtype <U1, which safetensors does not have"):
        save(tmp_path / "x", {"x": np.array(["a"])})
    assert list(tmp_path.iterdir()) == []


def test_packed_arrays_are_views_of_a_few_rows(rng):
    shapes = {"a.w": (3, 2), "a.log_dt": (5,), "b.C": (2, 2), "b.w": (0, 3), "c.D": ()}
    kinds = {"b.C": "complex64", "c.D": "float64"}
    arrays = {name: random(rng, shape, kinds.get(name, "float32")) for name, shape in shapes.items()}
    packed = Packed(arrays, AdamW().kind)
    assert list(packed.rows) == ["a.w", "a.log_dt", "c.D"]  # a row for each treatment and precision
    assert list(packed.arrays) == list(arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(packed.arrays[name], x)
        assert (packed.arrays[name].shape, packed.arrays[name].dtype) == (x.shape, x.dtype)
        assert not x.size or packed.arrays[name].ctypes.data % 16 == packed.rows["a.w"].ctypes.data % 16
    for row in packed.rows.values():
        row *= 2
    for name, x in packed.split(packed.gather(packed.arrays)).items():
        np.testing.assert_array_equal(x, 2 * arrays[name])
    assert not np.shares_memory(packed.gather(arrays)["a.w"], packed.rows["a.w"])
