"""How kernels are compiled: one decorator, safe from any thread and around a fork, cached on disk where that can be."""

import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.ma  # Numba imports it at the first call of a kernel; in here no fork comes in between
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from linscan.engines import fork
from linscan.engines.cpu.cache import KernelCache

# "contract" alone lets LLVM fuse a*h + b into one rounding. Reassociation would change what a recurrence computes.
# Nobody calls a kernel from C, and a wrapper for that would be a tenth of the compilation.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"contract"},
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
}


def jit(function: Callable[..., Any], *, sums: bool = False) -> Callable[..., Any]:
    """Compile `function` at its first call for each set of argument types, or load it where it was compiled before.

    With `sums`, its terms are added several at a time, by vector instructions: another order, the same in every call.
    """
    options = _OPTIONS | ({"fastmath": {"contract", "reassoc"}} if sums else {})
    with global_compiler_lock:  # the first decoration sets Numba up; see `fork`
        kernel = numba.njit(**options)(function)
    if kernel is function:  # with NUMBA_DISABLE_JIT=1 kernels run as Python, as quietly as compiled ones
        return np.errstate(all="ignore")(function)
    with suppress(RuntimeError):  # no cache directory is writable
        kernel._cache = KernelCache(function, Path(__file__).parent)
    return kernel


def cache_directory() -> str | None:
    """Where compiled kernels are kept; None if nowhere is writable, or nothing is compiled."""
    stats = getattr(jit(zero), "stats", None)
    return None if stats is None else stats.cache_path


fork.hold(global_compiler_lock)


# Subnormal numbers cost up to 17 times a normal operation, and a decaying state ends in them. Kernels switch
# flush-to-zero on at entry and restore the thread's mode at exit.

_X86_FLUSH = 0x8040  # MXCSR: flush results to zero (bit 15), denormals are zero (bit 6)
_ARM_FLUSH = 1 << 24  # FPCR: FZ


_MACHINE = platform.machine().lower()
_IS_X86 = _MACHINE in ("x86_64", "amd64")
_IS_ARM = _MACHINE in ("aarch64", "arm64")


def _read_mode(builder: Any) -> Any:
    i32, i64 = ir.IntType(32), ir.IntType(64)
    if _IS_X86:
        slot = cgutils.alloca_once(builder, i32)
        fn = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()]), "llvm.x86.sse.stmxcsr"
        )
        builder.call(fn, [builder.bitcast(slot, ir.IntType(8).as_pointer())])
        return builder.zext(builder.load(slot), i64)
    if _IS_ARM:
        return builder.asm(ir.FunctionType(i64, []), "mrs $0, fpcr", "=r", [], side_effect=True)
    return ir.Constant(i64, 0)


def _write_mode(builder: Any, mode: Any) -> None:
    i32, i64 = ir.IntType(32), ir.IntType(64)
    if _IS_X86:
        slot = cgutils.alloca_once(builder, i32)
        builder.store(builder.trunc(mode, i32), slot)
        fn = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()]), "llvm.x86.sse.ldmxcsr"
        )
        builder.call(fn, [builder.bitcast(slot, ir.IntType(8).as_pointer())])
    elif _IS_ARM:
        builder.asm(ir.FunctionType(ir.VoidType(), [i64]), "msr fpcr, $0", "r", [mode], side_effect=True)


if getattr(numba.config, "DISABLE_JIT", False):

    def flush_subnormals() -> int:
        """Nothing to switch where kernels run as Python."""
        return 0

    def restore_subnormals(mode: int) -> None:
        """Nothing to restore where kernels run as Python."""

else:

    @intrinsic
    def flush_subnormals(typingctx: Any) -> Any:
        """Switch flush-to-zero on in this thread; returns the mode to restore."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            mode = _read_mode(builder)
            flush = _X86_FLUSH if _IS_X86 else _ARM_FLUSH
            _write_mode(builder, builder.or_(mode, ir.Constant(ir.IntType(64), flush)))
            return mode

        return types.int64(), codegen

    @intrinsic
    def restore_subnormals(typingctx: Any, mode: Any) -> Any:
        """Put the thread's floating-point mode back."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _write_mode(builder, args[0])
            return context.get_dummy_value()

        return types.void(types.int64), codegen


def zero(dtype: np.dtype) -> Any:
    """A scalar zero of `dtype`, to give a kernel a typed constant."""
    return dtype.type(0)
