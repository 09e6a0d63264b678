"""`import linscan` is cheap, and the public names are what they claim to be."""

import ast
from pathlib import Path

import pytest

import linscan
from tests.subproc import run


def _seconds(module):
    code = f"from time import perf_counter as now; start = now(); import {module}; print(now() - start)"
    return min(float(run(code)) for _ in range(3))


def test_import_takes_less_than_a_fifth_of_a_second():
    # On a machine so slow or busy that NumPy alone takes longer, NumPy is the yardstick.
    assert _seconds("linscan") < max(0.2, _seconds("numpy"))


def test_import_loads_no_heavy_library():
    loaded = run("import linscan, sys; print(*sys.modules)").split()
    assert not {"numba", "llvmlite", "cupy", "scipy", "matplotlib", "torch"} & set(loaded)


def test_public_names_load_neither_numba_nor_cupy():
    # A user of the reference engine or of closed-form operations never pays for a compiler.
    code = "import linscan, sys; [getattr(linscan, name) for name in linscan.__all__]; print(*sys.modules)"
    assert not {"numba", "llvmlite", "cupy", "scipy.signal"} & set(run(code).split())


def test_the_reference_engine_loads_no_numba():
    code = """
        import sys, numpy as np, linscan
        with linscan.use_engine("reference"):
            linscan.scan(0.5, np.ones(3))
        print(*sys.modules)
    """
    assert not {"numba", "llvmlite", "cupy"} & set(run(code).split())


def test_public_names():
    assert linscan.__all__ == sorted(linscan.__all__)
    assert set(linscan.__all__) <= set(dir(linscan))
    for name in linscan.__all__:
        assert getattr(linscan, name) is getattr(linscan, name)
        assert getattr(linscan, name).__doc__
    with pytest.raises(AttributeError, match="module 'linscan' has no attribute 'scam'"):
        linscan.scam  # noqa: B018


def test_the_type_checker_sees_the_same_names():
    tree = ast.parse(Path(linscan.__file__).read_text())
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    imports = {alias.asname or alias.name: node.module for node in guard.body for alias in node.names}
    assert imports == {name: f"linscan.{module}" for name, module in linscan._HOME.items()}


def test_it_is_marked_as_typed():
    assert (Path(linscan.__file__).parent / "py.typed").exists()
