"""A user's associative operator, given as device code, compiled into a scan kernel."""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import cupy
import numpy as np

from linscan._arrays import Array, dtype_name
from linscan.engines.cuda._load import OPTIONS, text
from linscan.engines.cuda.assoc_tiles import Operands, launch

_MARK = "// THE OPERATOR\n"
_LARGEST = 64  # arrays of an operator
_TYPES = {
    **{"bool": "bool", "int8": "signed char", "int16": "short", "int32": "int", "int64": "i64"},
    **{"uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64"},
    **{"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"},
    **{"complex64": "complex64", "complex128": "complex128"},
}


def assoc_scan(
    code: str, names: Sequence[str], y: Sequence[Array], first: Sequence[Array] | None, axis: int, reverse: bool
) -> None:
    """Scan the arrays `y`, of one shape and C-contiguous, in place by the operator of `code`; see the op's docstring.

    `names` are those of the numbers in an Element; `first`, without the time axis, comes before the first step.
    """
    if not y[0].size:
        return
    types = tuple(_type(x.dtype) for x in y)
    what = code, tuple(names), types, max(x.dtype.itemsize for x in y), first is not None
    firsts = tuple(first) if first is not None else (None,) * len(y)
    launch(
        partial(_compiled, *what), what, Operands(tuple(y), tuple(y), firsts, None), axis, reverse, 16 * (1 + len(y))
    )


def _type(dtype: np.dtype) -> str:
    name = dtype_name(dtype)
    if name not in _TYPES:
        raise TypeError(f"assoc_scan: cuda takes arrays of {', '.join(_TYPES)}; got {dtype}")
    return _TYPES[name]


@cache
def _compiled(
    code: str, names: tuple[str, ...], types: tuple[str, ...], widest: int, starts: bool, sizes: tuple[Any, ...]
) -> Any:
    count, macros = len(names), list(sizes)
    for group, title in enumerate(("INPUTS(X)", "OUTPUTS(X)", "FIRSTS(X)")):
        fields = [f"X({group * count + i}, {t}, {n})" for i, (t, n) in enumerate(zip(types, names, strict=True))]
        macros.append((title, " ".join(fields)))
    macros += [
        ("OPERANDS", 3 * count + 1),
        ("RESET_OPERAND", 3 * count),
        ("HAS_FIRST", int(starts)),
        ("WIDEST", widest),
    ]
    # Lines are counted anew, so that the compiler's messages name those of the user.
    source = text("assoc_scan.cu", "float32", *macros).replace(
        _MARK, f'#line 1 "cuda"\n{code}\n#line 1 "assoc_scan.cu"\n'
    )
    run = cupy.RawKernel(source, "scan", OPTIONS)
    try:
        run.compile()
    except cupy.cuda.compiler.CompileException as error:
        raise ValueError(f"assoc_scan: cuda does not compile:\n{_said(str(error))}") from None
    return run


def _said(message: str) -> str:
    """The lines of the compiler's message that speak of errors, and the ones they quote; all of it where none does."""
    lines = message.splitlines()
    shown = [i for i, line in enumerate(lines) if "error" in line]
    return "\n".join(line for i, line in enumerate(lines) if any(at <= i <= at + 2 for at in shown)) or message
