"""Can this machine run an engine? One function per engine: whether, and one line that says with what, or why not."""

import importlib
import os
import warnings
from importlib.util import find_spec
from types import ModuleType

_INSTALL = "pip install 'linscan[cuda13]' (or [cuda12], as your driver needs)"


def reference() -> tuple[bool, str]:
    return True, "plain array code on NumPy or CuPy"


def cpu() -> tuple[bool, str]:
    try:
        numba = importlib.import_module("numba")
    except ImportError as error:
        return False, _missing("numba", "Numba", "pip install numba", error)
    if getattr(numba.config, "DISABLE_JIT", False):
        return True, f"Numba {numba.__version__} with NUMBA_DISABLE_JIT=1: loops run as Python, slowly"
    return True, f"Numba {numba.__version__} loops on a thread pool"


def cuda() -> tuple[bool, str]:
    if find_spec("linscan.engines.cuda") is None:
        return False, "this version of linscan has no cuda engine"
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return False, _missing("cupy", "CuPy", _INSTALL, error)
    reason = _no_device(cupy) or _no_compiler(cupy)
    if reason:
        return False, reason
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    name, capability = properties["name"].decode(), f"{properties['major']}.{properties['minor']}"
    toolkit = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    return True, f"CuPy {cupy.__version__}, CUDA {toolkit}, {name} (compute capability {capability})"


def numba_cuda() -> tuple[bool, str]:
    if find_spec("linscan.engines.numba_cuda") is None:
        return False, "this version of linscan has no numba_cuda engine"
    if simulated():
        return True, "Numba's CUDA simulator: kernels run as Python on NumPy arrays, slowly"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            numba_cuda = importlib.import_module("numba_cuda")
            nb_cuda = importlib.import_module("numba.cuda")
            importlib.import_module("numba.cuda.cudaimpl")  # what the first kernel needs, and newer NumPy may break
    except Exception as error:
        return False, _missing("numba_cuda", "numba-cuda", _INSTALL, error)
    if not nb_cuda.is_available():
        return False, f"numba-cuda {numba_cuda.__version__} finds no usable CUDA driver and GPU"
    name = nb_cuda.get_current_device().name
    name = name.decode() if isinstance(name, bytes) else name
    return True, f"numba-cuda {numba_cuda.__version__}, {name}"


def simulated() -> bool:
    """Whether NUMBA_ENABLE_CUDASIM asks for Numba's simulator of a GPU."""
    if not os.environ.get("NUMBA_ENABLE_CUDASIM", "0").strip("0"):
        return False
    return find_spec("numba") is not None and bool(importlib.import_module("numba").config.ENABLE_CUDASIM)


def _missing(module: str, title: str, install: str, error: Exception) -> str:
    """Not installed, or installed and broken: the second is told in the library's own words."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == module:
        return f"{title} is not installed; {install}"
    return f"{title} is installed but does not import: {_first_line(error)}"


def _no_device(cupy: ModuleType) -> str | None:
    """Why there is no GPU to run on, or None."""
    runtime = cupy.cuda.runtime
    try:
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if driver == 0:
            return f"CuPy {cupy.__version__} finds no NVIDIA driver"
        if driver // 1000 < needed // 1000:  # within a major version, older drivers run newer runtimes
            return (
                f"the NVIDIA driver supports CUDA {_version(driver)}; CuPy {cupy.__version__} needs {_version(needed)}"
            )
        if runtime.getDeviceCount() == 0:
            return "the NVIDIA driver sees no GPU"
    except Exception as error:  # CuPy's CUDARuntimeError: its text names the CUDA error
        return f"CuPy {cupy.__version__} cannot use a GPU: {_first_line(error)}"
    return None


def _no_compiler(cupy: ModuleType) -> str | None:
    """Why device code cannot be compiled, or None."""
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        return f"CuPy {cupy.__version__} finds no NVRTC, which compiles device code: {_first_line(error)}; {_INSTALL}"
    return None


def _version(code: int) -> str:
    return f"{code // 1000}.{code % 1000 // 10}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
