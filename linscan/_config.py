"""What this installation runs on: versions, engines, threads, cache and GPU."""

import importlib.metadata
import platform
import sys
from typing import Any, Literal

from linscan import __version__
from linscan.engines import available

_LIBRARIES = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "numba": ("numba",),
    "llvmlite": ("llvmlite",),
    "ml_dtypes": ("ml_dtypes",),
    "cupy": ("cupy", "cupy-cuda12x", "cupy-cuda13x"),
    "numba-cuda": ("numba-cuda",),
}


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, dict[str, Any]] | None:
    """Print versions, engines, threads and the kernel cache, for a bug report; as `numpy.show_config`.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Print the configuration, or return it.

    Returns
    -------
    dict of str to dict, or None
        With ``mode="dicts"``: for each section, its entries.

    Raises
    ------
    ValueError
        If `mode` is neither.

    Notes
    -----
    Looking for engines imports Numba, and CuPy if it is installed.

    Examples
    --------
    >>> import linscan
    >>> sorted(linscan.show_config(mode="dicts"))
    ['CPU', 'Engines', 'Libraries', 'linscan']
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"show_config: mode must be one of 'stdout', 'dicts'; got {mode!r}")
    config = {"linscan": _versions(), "Libraries": _libraries(), "CPU": _cpu(), "Engines": _engines()}
    if mode == "dicts":
        return config
    width = max(len(name) for section in config.values() for name in section)
    for title, section in config.items():
        print(title)  # noqa: T201
        for name, value in section.items():
            print(f"  {name:{width}}  {value}")  # noqa: T201
    return None


def _versions() -> dict[str, Any]:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {"version": __version__, "python": f"{platform.python_version()} ({sys.executable})", "system": system}


def _libraries() -> dict[str, Any]:
    return {name: _installed(distributions) for name, distributions in _LIBRARIES.items()}


def _installed(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _cpu() -> dict[str, Any]:
    from linscan.engines.cpu import pool

    return {"cores": pool.cpu_count(), "workers": pool.resolve_workers(None), "kernel cache": _cache()}


def _cache() -> str:
    if not available()["cpu"].ready:
        return "none: the cpu engine cannot run"
    from linscan.engines.cpu.jit import cache_directory

    return cache_directory() or "none: kernels are compiled anew in every process, as no cache directory is writable"


def _engines() -> dict[str, Any]:
    return {name: f"{'ready' if ready else 'no'}: {detail}" for name, (ready, detail) in available().items()}
