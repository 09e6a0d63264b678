"""Nested dictionaries of arrays as safetensors files, written whole or not at all.

The format: 8 bytes that say how long a JSON header is, the header (name to dtype, shape and place), the arrays. Written
here with NumPy alone; any safetensors library reads it. Complex arrays, which not every reader of the format knows, are
stored as real ones with a last axis of 2 and listed in the metadata.
"""

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from linscan import _arrays

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPES = {code: name for name, code in _NAMES.items()}


class BadFile(Exception):
    """A file that is not what it should be; the message names it and says why."""


def save(path: str | os.PathLike[str], params: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write a nested dict of arrays as a safetensors file; names along a path are joined by dots.

    Parameters
    ----------
    path : path
        Replaced in one move when all of it is on disk: whoever reads sees the old file or the new one.
    params : dict
        Nested dicts of NumPy or CuPy arrays. Names must not contain dots.
    metadata : dict of str, optional
        Stored in the header.

    Raises
    ------
    TypeError
        For a dtype the format does not have, or a name that is no string or has a dot.

    See Also
    --------
    load : back.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from linscan.train import load, save
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "params.safetensors"
    >>> save(path, {"layer": {"C": np.array([1 + 2j])}})
    >>> load(path)
    {'layer': {'C': array([1.+2.j])}}
    """
    write(Path(path), encode(params, metadata))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote, or any safetensors file, as a nested dict of NumPy arrays.

    Raises
    ------
    BadFile
        If the file is missing, is no safetensors file, is cut short, or has a dtype NumPy lacks.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror}") from error
    return decode(data, str(path))[0]


def write(path: Path, data: bytes) -> None:
    """Put `data` on disk beside `path`, then move it there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def dtype_of(name: str) -> np.dtype:
    """The dtype of this name; NumPy knows "bfloat16" once ml_dtypes is imported."""
    if name == "bfloat16":
        importlib.import_module("ml_dtypes")
    return np.dtype(name)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The arrays by their names along the path, joined by dots."""
    flat: dict[str, Any] = {}
    for name, node in tree.items():
        if not isinstance(name, str) or "." in name:
            raise TypeError(f"save: names must be strings without dots; got {name!r}")
        flat |= flatten(node, f"{prefix}{name}.") if isinstance(node, dict) else {prefix + name: node}
    return flat


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The tree that `flatten` made flat."""
    tree: dict[str, Any] = {}
    for path, x in flat.items():
        *above, name = path.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[name] = x
    return tree


def encode(params: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of the file."""
    header: dict[str, Any] = {}
    parts, place, pairs = [], 0, []
    for name, given in flatten(params).items():
        x = np.asarray(_arrays.to_host(given), order="C")
        if x.dtype.kind == "c":
            pairs.append(name)
            x = x.view(_arrays.real_dtype(x.dtype)).reshape(*x.shape, 2) if x.ndim else np.stack([x.real, x.imag])
        if x.dtype.name not in _NAMES:
            raise TypeError(f"save: {name} has dtype {x.dtype}, which safetensors does not have")
        data = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
        spot = [place, place + len(data)]
        header[name] = {"dtype": _NAMES[x.dtype.name], "shape": list(x.shape), "data_offsets": spot}
        parts.append(data)
        place += len(data)
    body = b"".join(parts)
    own = {"format": "linscan", "complex": json.dumps(pairs), "sha256": hashlib.sha256(body).hexdigest()}
    header["__metadata__"] = own | (metadata or {})
    header["__metadata__"]["header_sha256"] = _digest(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def decode(data: bytes, path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree and the metadata; BadFile names `path`."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size].decode())
        metadata = header.get("__metadata__", {})
        own = metadata.pop("header_sha256", None)
        if own is not None and own != _digest(header):
            raise ValueError("its header is not the one that was written (checksum)")
        header.pop("__metadata__", None)
        pairs = set(json.loads(metadata.get("complex", "[]")))
        body = memoryview(data)[8 + size :]
        if metadata.get("sha256", hashlib.sha256(body).hexdigest()) != hashlib.sha256(body).hexdigest():
            raise ValueError("its arrays are not those that were written (checksum)")
        flat = {name: _array(body, entry, name in pairs) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{path}: not a whole safetensors file: {error}") from error
    return nested(flat), metadata


def _digest(header: dict[str, Any]) -> str:
    """Of the header without this digest."""
    return hashlib.sha256(json.dumps(header).encode()).hexdigest()


def _array(data: memoryview, entry: dict[str, Any], pair: bool) -> np.ndarray:
    first, last = entry["data_offsets"]
    dtype, shape = dtype_of(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if last > len(data) or last - first != dtype.itemsize * int(np.prod(shape)):
        raise ValueError(f"it should hold {last} bytes of arrays, and has {len(data)}")
    x = np.frombuffer(data[first:last], dtype).reshape(shape).copy()
    return x.view(_arrays.complex_dtype(x.dtype)).reshape(shape[:-1]) if pair else x
