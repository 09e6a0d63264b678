"""Fixtures and marks shared by all tests."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "linscan", max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("linscan")

DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


def dtype_of(name: str) -> np.dtype:
    """The NumPy dtype of a name, bfloat16 included."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: object) -> np.ndarray:
    """Standard normal numbers, complex if `dtype` is."""
    dtype = dtype_of(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    x = rng.standard_normal(shape)
    if dtype.kind == "c":
        x = (x + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    return np.asarray(x).astype(dtype)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out scripts, and, where CuPy is missing, the files whose every test needs it."""
    if collection_path.name.startswith(("sanitize_", "on_device")):
        return True
    if collection_path.suffix != ".py" or importlib.util.find_spec("cupy") is not None:
        return None
    text = collection_path.read_text(encoding="utf-8")
    return re.search(r"^pytestmark = \[?pytest\.mark\.gpu\b", text, re.MULTILINE) is not None or None


def _has_gpu() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    from linscan.engines import probe

    return probe.cuda()[0]  # not `available`: it also imports what the other engines need, warnings and all


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the `gpu` tests where no GPU can run them."""
    if not any("gpu" in item.keywords for item in items) or _has_gpu():
        return
    config.hook.pytest_deselected(items=[item for item in items if "gpu" in item.keywords])
    items[:] = [item for item in items if "gpu" not in item.keywords]
