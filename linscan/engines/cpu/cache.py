"""Compiled kernels on disk: Numba's function cache, made safe for processes that fill it at the same time.

Numba numbers a kernel's files by what its index lists. Two processes that compile two signatures at once pick the same
number, and each may then load code the other compiled for other types. Here a file's name follows from its signature,
and its contents are on disk before the index mentions them; at worst, a kernel is compiled twice.
"""

import hashlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.runtime import rtsys


class KernelCache(FunctionCache):
    """One kernel's cache. RuntimeError where no directory is writable.

    Numba's stamp covers the file a kernel is defined in; `folder` adds the code that is inlined from files beside it.
    """

    def __init__(self, kernel: Any, folder: Path) -> None:
        super().__init__(kernel)
        stamp = self._impl.locator.get_source_stamp(), _digest(folder)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Numba would first set up everything a compilation needs, scipy.linalg included: most of the time of a first
        # call. Compiled code needs nothing of it but the runtime; a compilation sets the rest up itself.
        rtsys.initialize(target_context)
        return self._load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk costs another compilation, not the answer
            super().save_overload(sig, data)


class _Files(IndexDataCacheFile):
    def save(self, key: Any, data: Any) -> None:
        name = self._data_name(int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16))
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})

    def load(self, key: Any) -> Any:
        try:
            return super().load(key)
        except Exception:  # whatever unpickling a damaged file raises: compile again
            return None

    def _load_index(self) -> dict[Any, str]:
        try:
            return super()._load_index()
        except Exception:  # a damaged index lists nothing
            return {}


@cache
def _digest(folder: Path) -> bytes:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))).digest()
