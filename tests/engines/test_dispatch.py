"""Where an op runs: what `pick`, `use_engine` and `available` decide, and in which words they refuse."""

import importlib
import inspect
import sys
import threading
import types

import numpy as np
import pytest

import linscan
from linscan import engines
from linscan.engines import probe, support
from tests.test_arrays import FakeArray


@pytest.fixture(autouse=True)
def _fresh_status():
    engines._forget()
    yield
    engines._forget()


# ---- the table


@pytest.mark.parametrize("op", support.SUPPORT)
def test_every_row_names_engines_that_have_the_function(op):
    row = support.SUPPORT[op]
    assert "reference" in row, "the reference engine is the fallback of every other"
    assert set(row) <= set(engines.NAMES)
    for engine, letters in row.items():
        assert letters
        assert set(letters) <= set(support.LETTERS)
        assert set(letters) <= set(row["reference"])
        if engine in ("reference", "cpu"):  # the others import CUDA libraries
            assert inspect.isfunction(engines._load(engine, op, on_gpu=False))


@pytest.mark.parametrize("op", support.SUPPORT)
def test_engines_of_an_op_take_the_same_arguments(op):
    for function in [op] + [f"{op}_pullback"] * hasattr(_module("reference", op), f"{op}_pullback"):
        signatures = [
            _parameters(engines._load(e, function, on_gpu=False))
            for e in ("reference", "cpu")
            if e in support.SUPPORT[op]
        ]
        (positional, keywords), *others = signatures
        for other_positional, other_keywords in others:
            assert other_positional == positional, function
            assert None in (keywords, other_keywords) or other_keywords == keywords, function


def _parameters(function):
    """Names of the positional parameters, and of those given by keyword (None: any)."""
    parameters = inspect.signature(function).parameters.values()
    keywords = None if any(p.kind is p.VAR_KEYWORD for p in parameters) else set()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return positional, keywords if keywords is None else {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def _module(engine, op):
    return importlib.import_module(f"linscan.engines.{engine}.{support.MODULE.get(op, op)}")


def test_the_table_in_markdown():
    lines = support.table().splitlines()
    assert lines[0] == "| op | reference | cpu | cuda | numba_cuda |"
    assert len(lines) == 2 + len(support.SUPPORT)
    assert lines[2 + list(support.SUPPORT).index("scan")].startswith("| `scan` | all | all |")
    assert {line.count("|") for line in lines} == {6}


# ---- pick


def _engine_of(function):
    return function.__module__.split(".")[2]


def test_numpy_arrays_run_on_the_cpu_engine_and_fall_back_on_the_reference(monkeypatch):
    x = np.ones(3)
    assert _engine_of(engines.pick("scan", x.dtype, x)) == "cpu"
    assert _engine_of(engines.pick("scan_pullback", x.dtype, x)) == "cpu"
    monkeypatch.setitem(support.SUPPORT, "scan", {"reference": support.ALL, "cpu": "f"})
    engines._forget()
    assert _engine_of(engines.pick("scan", x.dtype, x)) == "reference"
    assert _engine_of(engines.pick("scan", np.dtype(np.float32), x)) == "cpu"


def test_without_numba_everything_runs_on_the_reference(monkeypatch):
    monkeypatch.setattr(probe, "cpu", lambda: (False, "no compiler today"))
    assert _engine_of(engines.pick("scan", np.dtype(float), np.ones(3))) == "reference"
    with (
        pytest.raises(RuntimeError, match="engine 'cpu' cannot run here: no compiler today"),
        linscan.use_engine("cpu"),
    ):
        pass


# ---- use_engine


def test_use_engine_holds_for_its_block_and_its_thread():
    x = np.ones(3)

    def engine():
        return _engine_of(engines.pick("scan", x.dtype, x))

    with linscan.use_engine("reference"):
        assert engine() == "reference"
        with linscan.use_engine("cpu"):
            assert engine() == "cpu"
        assert engine() == "reference"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(engine()))
        thread.start()
        thread.join(30)
        assert seen == ["cpu"]
    with pytest.raises(KeyError), linscan.use_engine("reference"):
        raise KeyError
    assert engine() == "cpu"


def test_use_engine_lists_the_engines_there_are():
    message = "use_engine: name must be one of 'reference', 'cpu', 'cuda', 'numba_cuda'; got 'gpu'"
    with pytest.raises(ValueError, match=message), linscan.use_engine("gpu"):
        pass


def test_a_forced_engine_that_lacks_the_op_or_the_dtype_says_so(monkeypatch):
    monkeypatch.setitem(support.SUPPORT, "scan", {"reference": "fd", "cpu": "f"})
    with linscan.use_engine("cpu"), pytest.raises(ValueError, match="scan: engine 'cpu' runs float32; got float64"):
        linscan.scan(0.5, np.ones(3))
    monkeypatch.setitem(support.SUPPORT, "scan", {"reference": "fd"})
    with (
        linscan.use_engine("cpu"),
        pytest.raises(ValueError, match="scan: engine 'cpu' does not have it; it runs on reference"),
    ):
        linscan.scan(0.5, np.ones(3))


def test_a_forced_engine_refuses_arrays_of_the_other_side(monkeypatch, cupy):
    monkeypatch.setitem(support.SUPPORT, "scan", {"reference": "d", "cpu": "d", "cuda": "d"})
    with linscan.use_engine("cpu"), pytest.raises(TypeError, match="scan: engine 'cpu' takes NumPy arrays; got CuPy"):
        engines.pick("scan", np.dtype(float), FakeArray(np.ones(3)))
    with linscan.use_engine("cuda"), pytest.raises(TypeError, match="engine 'cuda' takes CuPy arrays; got NumPy"):
        engines.pick("scan", np.dtype(float), np.ones(3))


# ---- available


def test_available_says_with_what():
    status = linscan.available()
    assert list(status) == ["reference", "cpu", "cuda", "numba_cuda"]
    assert status["reference"].ready
    assert status["cpu"].ready
    assert status["cpu"].detail == f"Numba {importlib.import_module('numba').__version__} loops on a thread pool"
    assert all(detail and "\n" not in detail for _, detail in status.values())


@pytest.mark.parametrize(("engine", "title", "module"), [("cpu", "Numba", "numba"), ("cuda", "CuPy", "cupy")])
def test_missing_and_broken_libraries_are_told_apart(monkeypatch, engine, title, module):
    monkeypatch.setattr(probe, "find_spec", lambda name: object())
    real = importlib.import_module

    def refuse(error):
        def import_module(name):
            if name == module:
                raise error
            return real(name)

        monkeypatch.setattr(probe, "importlib", types.SimpleNamespace(import_module=import_module))
        engines._forget()
        return engines.available()[engine]

    ready, detail = refuse(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert not ready
    assert detail.startswith(f"{title} is not installed; pip install ")
    ready, detail = refuse(ImportError("\nneeds NumPy 2.4 or less\nand so on"))
    assert not ready
    assert detail == f"{title} is installed but does not import: needs NumPy 2.4 or less"


@pytest.fixture
def cupy(monkeypatch):
    """A stand-in for CuPy 14.1 with CUDA 12.9, a driver for 13.0 and one GPU."""
    module = types.ModuleType("cupy")
    module.__version__ = "14.1.0"
    module.ndarray = FakeArray
    runtime = types.SimpleNamespace(
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 12090,
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        getDeviceProperties=lambda i: {"name": b"Some GPU", "major": 8, "minor": 6},
    )
    module.cuda = types.SimpleNamespace(runtime=runtime, nvrtc=types.SimpleNamespace(getVersion=lambda: (12, 9)))
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(probe, "find_spec", lambda name: object())
    return module


def _raise(message):
    def function(*args):
        raise RuntimeError(message)

    return function


def test_a_usable_gpu(cupy):
    assert linscan.available()["cuda"] == (True, "CuPy 14.1.0, CUDA 12.9, Some GPU (compute capability 8.6)")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"driverGetVersion": lambda: 0}, "CuPy 14.1.0 finds no NVIDIA driver"),
        ({"driverGetVersion": lambda: 11080}, "the NVIDIA driver supports CUDA 11.8; CuPy 14.1.0 needs 12.9"),
        ({"getDeviceCount": lambda: 0}, "the NVIDIA driver sees no GPU"),
        (
            {"getDeviceCount": _raise("cudaErrorNoDevice: no CUDA-capable device is detected")},
            "CuPy 14.1.0 cannot use a GPU: cudaErrorNoDevice: no CUDA-capable device is detected",
        ),
        ({"driverGetVersion": lambda: 12020}, None),  # an older minor version of the same major runs
    ],
)
def test_why_a_gpu_cannot_be_used(cupy, broken, reason):
    vars(cupy.cuda.runtime).update(broken)
    ready, detail = linscan.available()["cuda"]
    assert ready is (reason is None)
    if reason is not None:
        assert detail == reason
        with (
            pytest.raises(RuntimeError, match="use_engine: engine 'cuda' cannot run here: "),
            linscan.use_engine("cuda"),
        ):
            pass


def test_no_device_compiler(cupy):
    cupy.cuda.nvrtc.getVersion = _raise("libnvrtc.so.12: cannot open shared object file")
    ready, detail = linscan.available()["cuda"]
    assert not ready
    assert detail.startswith("CuPy 14.1.0 finds no NVRTC, which compiles device code: libnvrtc.so.12: cannot open")


# ---- show_config and python -m linscan info


def test_show_config_as_dicts_and_as_text(capsys):
    config = linscan.show_config(mode="dicts")
    assert config["linscan"]["version"] == linscan.__version__
    assert config["Libraries"]["numpy"] == np.__version__
    assert config["CPU"]["workers"] >= 1
    assert config["Engines"]["reference"] == "ready: plain array code on NumPy or CuPy"
    assert linscan.show_config() is None
    text = capsys.readouterr().out
    for section in config.values():
        for name, value in section.items():
            assert f"  {name} " in text
            assert str(value) in text
    with pytest.raises(ValueError, match="show_config: mode must be one of 'stdout', 'dicts'; got 'json'"):
        linscan.show_config(mode="json")


def test_command_line(capsys):
    from linscan.__main__ import main

    assert main(["info"]) == 0
    assert f"version       {linscan.__version__}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["inform"])
    assert caught.value.code == 2
    assert "invalid choice: 'inform'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"linscan {linscan.__version__}\n"
