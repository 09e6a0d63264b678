"""Threads, forks, process pools, unwritable caches and missing compilers: right answers, no hang, no abort.

Everything here happens in fresh processes, most of them with an empty kernel cache, so that compiling, loading and
creating the thread pool all fall into the situation under test.
"""

import multiprocessing
import os
import textwrap

import numpy as np
import pytest

import linscan
from tests.subproc import run

# What every process below runs first. `check` compares with the plain loop, for arrays large enough to use the pool.
PRELUDE = """
    import os, sys, threading, traceback
    import numpy as np
    import linscan

    np.random  # NumPy imports it when it is first used; a fork during that is not ours to repair

    def loop(a, b):
        h, hs = np.zeros(b.shape[:-1], np.result_type(a, b)), []
        for t in range(b.shape[-1]):
            h = a[..., t] * h + b[..., t]
            hs.append(h)
        return np.stack(hs, -1)

    def check(seed, dtype="f4", shape=(64, 2500)):
        random = np.random.default_rng(seed)
        a = random.uniform(-0.9, 0.9, shape).astype(dtype)
        b = random.standard_normal(shape).astype(dtype)
        h = linscan.scan(a, b, workers=4)
        assert h.dtype == np.dtype(dtype)
        np.testing.assert_allclose(h, loop(a, b), rtol=0, atol=1e-5)
        return seed
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def empty_cache(tmp_path):
    return {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """A cache of this module's own: what one test compiles, the next one loads."""
    return {"NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


def _run(code, **env):
    return run(textwrap.dedent(PRELUDE) + textwrap.dedent(code), **env)


THREADS = """
    start, failed = threading.Barrier(8), []

    def work(i):
        start.wait()
        try:
            for k in range(4):
                check(10 * i + k, ("f4", "f8")[(i + k) % 2])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failed, failed
    print("done")
"""


def test_eight_threads_from_the_first_call_on(empty_cache):
    assert _run(THREADS, **empty_cache) == "done\n"
    assert _run(THREADS, **empty_cache) == "done\n"  # and again, loading from the cache


FORK = """
    def child_of(work):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@needs_fork
@pytest.mark.parametrize("warm", [True, False], ids=["pool and kernels in use", "nothing loaded"])
def test_child_and_grandchild(shared_cache, warm):
    code = f"""
        {textwrap.indent(textwrap.dedent(FORK), " " * 8).strip()}
        if {warm}:
            check(1)

        def child():
            check(2)
            assert child_of(lambda: check(3, "f8")) == 0
            check(4)

        assert child_of(child) == 0
        check(5)
        print("done")
    """
    assert _run(code, **shared_cache) == "done\n"


@needs_fork
def test_fork_while_another_thread_compiles(empty_cache):
    # The other thread compiles one kernel after another; children forked meanwhile must compile and run as well.
    code = f"""
        {textwrap.indent(textwrap.dedent(FORK), " " * 8).strip()}
        from linscan.engines.cpu.jit import jit
        stop, failed = threading.Event(), []

        def compile_until_told():
            try:
                while not stop.is_set():
                    def kernel(x):
                        total = x.dtype.type(0)
                        for i in range(x.shape[0]):
                            total += x[i]
                        return total
                    assert jit(kernel)(np.ones(8)) == 8
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=compile_until_told, daemon=True)
        thread.start()
        for i, dtype in enumerate(("f4", "f4", "f8", "f4", "f8", "f4")):  # two to compile, the others to load
            assert child_of(lambda: check(i, dtype)) == 0
        stop.set()
        thread.join()
        assert not failed, failed
        print("done")
    """
    assert _run(code, **empty_cache) == "done\n"


@needs_fork
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4])
def test_fork_during_the_first_call_of_another_thread(shared_cache, delay):
    # It imports the engine, and with it Numba; then it loads or compiles a kernel.
    code = f"""
        {textwrap.indent(textwrap.dedent(FORK), " " * 8).strip()}
        import time
        linscan.scan  # the public name is there, its engine is not
        thread = threading.Thread(target=check, args=(1,))
        thread.start()
        time.sleep({delay})
        assert child_of(lambda: check(2)) == 0
        thread.join()
        print("done")
    """
    assert _run(code, **shared_cache) == "done\n"


@needs_fork
def test_fork_while_other_threads_run_kernels(shared_cache):
    code = f"""
        {textwrap.indent(textwrap.dedent(FORK), " " * 8).strip()}
        check(0)
        stop, failed = threading.Event(), []

        def compute():
            try:
                while not stop.is_set():
                    check(1, shape=(64, 600))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=compute) for _ in range(3)]
        [t.start() for t in threads]
        for i in range(10):
            assert child_of(lambda: check(i)) == 0
        stop.set()
        [t.join() for t in threads]
        assert not failed, failed
        print("done")
    """
    assert _run(code, **shared_cache) == "done\n"


@pytest.mark.parametrize(
    ("kind", "method", "cache"),
    [
        ("Pool", "fork", "empty_cache"),
        ("ProcessPoolExecutor", "fork", "shared_cache"),
        ("ProcessPoolExecutor", "forkserver", "shared_cache"),
        ("Pool", "spawn", "shared_cache"),
    ],
)
def test_process_pools(kind, method, cache, tmp_path, request):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    code = """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        def work(seed):
            return check(seed, ("f4", "f8")[seed % 2])

        if __name__ == "__main__":
            context = multiprocessing.get_context(METHOD)
            if METHOD == "fork":
                check(0)  # the parent's thread pool is running when the children are forked
            if KIND == "Pool":
                with context.Pool(3) as pool:
                    print(pool.map(work, range(9)))
                    pool.close()
                    pool.join()
            else:
                with ProcessPoolExecutor(3, mp_context=context) as pool:
                    print(list(pool.map(work, range(9))))
    """
    script = tmp_path / "script.py"  # a spawned process imports the main module again, so there must be a file
    body = textwrap.dedent(PRELUDE) + textwrap.dedent(code).replace("METHOD", repr(method)).replace("KIND", repr(kind))
    script.write_text(body)
    launch = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, {str(script)!r}]).returncode)"
    assert run(launch, PYTHONWARNINGS="ignore", **request.getfixturevalue(cache)) == f"{list(range(9))}\n"


@pytest.mark.parametrize("dtype", ["e", "f", "D"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 30001), -1), ((3, 4001, 17), 1), ((200003,), 0)])
def test_bits_do_not_depend_on_workers(dtype, shape, axis):
    random = np.random.default_rng(7)
    a, b = (random.uniform(-1, 1, shape).astype(dtype) for _ in range(2))
    one = linscan.scan(a, b, axis=axis, workers=1)
    for workers in (2, 3, 7, None):
        assert linscan.scan(a, b, axis=axis, workers=workers).tobytes() == one.tobytes()
    with linscan.set_workers(5):
        assert linscan.scan(a, b, axis=axis).tobytes() == one.tobytes()
    h, pullback = linscan.scan_vjp(a, b, axis=axis, workers=1)
    expected = pullback(h)
    found = linscan.scan_vjp(a, b, axis=axis, workers=3)[1](h)
    assert all(x.tobytes() == y.tobytes() for x, y in zip(found[:2], expected[:2], strict=True))


def test_a_nested_call_from_a_pool_thread():
    code = """
        from linscan.engines.cpu.pool import parallel_for
        parallel_for(lambda lo, hi: [check(i) for i in range(lo, hi)], 8, workers=4)
        print("done")
    """
    assert _run(code) == "done\n"


# ---- the kernel cache


def test_no_writable_cache_directory(tmp_path):
    # Every place a cache could go to is a file or lies below one: nobody can write there, root included.
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "cache")
    code = """
        from linscan.engines.cpu.jit import cache_directory
        check(1)
        print(cache_directory())
        print(linscan.show_config(mode="dicts")["CPU"]["kernel cache"])
    """
    block_in_tree = """
        import numba.core.caching as caching
        caching.InTreeCacheLocator.ensure_cache_path = lambda self: (_ for _ in ()).throw(PermissionError("read-only"))
    """
    environment = {"NUMBA_CACHE_DIR": nowhere, "HOME": nowhere, "XDG_CACHE_HOME": nowhere}
    lines = run(textwrap.dedent(block_in_tree) + textwrap.dedent(PRELUDE) + textwrap.dedent(code), **environment)
    assert lines.splitlines() == [
        "None",
        "none: kernels are compiled anew in every process, as no cache directory is writable",
    ]


def test_a_cache_that_fills_up_or_is_damaged_costs_a_compilation_only(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    full = """
        import errno
        from linscan.engines.cpu import cache
        def fail(*args): raise OSError(errno.ENOSPC, "No space left on device")
        cache._Files._save_data = fail
        check(1)
        print("done")
    """
    assert _run(full, **cache) == "done\n"
    assert not list(tmp_path.rglob("*.nbc"))
    assert _run("print(check(1))", **cache) == "1\n"
    kernels, indexes = list(tmp_path.rglob("*.nbc")), list(tmp_path.rglob("*.nbi"))
    assert kernels
    assert indexes
    for file in kernels:
        file.write_bytes(file.read_bytes()[:100])
    assert _run("print(check(2))", **cache) == "2\n"
    assert all(file.stat().st_size > 100 for file in kernels), "a damaged kernel is written anew"
    for file in indexes:
        file.write_bytes(b"")
    assert _run("print(check(3))", **cache) == "3\n"
    assert all(file.stat().st_size > 0 for file in indexes), "a damaged index is written anew"


def test_processes_that_fill_the_cache_at_once_never_mix_their_kernels(tmp_path, monkeypatch):
    from linscan.engines.cpu.cache import _Files

    first, second = (_Files(str(tmp_path), "kernel", "stamp") for _ in range(2))
    with monkeypatch.context() as both:
        both.setattr(_Files, "_load_index", lambda self: {})  # each has read the index while it was empty
        first.save(("float32",), "code for float32")
        second.save(("float64",), "code for float64")
    assert len(list(tmp_path.glob("*.nbc"))) == 2, "two signatures, two files"
    assert second.load(("float64",)) == "code for float64"
    assert second.load(("float32",)) is None  # forgotten: it will be compiled again
    first.save(("float32",), "code for float32")
    assert first.load(("float32",)) == "code for float32"
    assert first.load(("float64",)) == "code for float64"
    assert _Files(str(tmp_path), "kernel", "another stamp").load(("float32",)) is None


# ---- without a compiler


def test_with_jit_disabled():
    code = """
        check(1, shape=(3, 50))
        check(2, "c16", shape=(3, 50))
        print(linscan.available()["cpu"].detail.split(" with ")[1])
    """
    assert _run(code, NUMBA_DISABLE_JIT="1") == "NUMBA_DISABLE_JIT=1: loops run as Python, slowly\n"


NO_NUMBA = """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("numba", "llvmlite"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Block())
"""


def test_without_numba():
    code = """
        check(1)
        h, pullback = linscan.scan_vjp(0.5, np.ones(4))
        assert pullback(h)[1].shape == (4,)
        print(linscan.available()["cpu"])
        print(linscan.show_config(mode="dicts")["CPU"]["kernel cache"])
    """
    out = run(textwrap.dedent(NO_NUMBA) + textwrap.dedent(PRELUDE) + textwrap.dedent(code))
    assert out.splitlines() == [
        "Status(ready=False, detail='Numba is not installed; pip install numba')",
        "none: the cpu engine cannot run",
    ]


def test_every_public_name_imports_without_numba():
    code = "import linscan; print(all([getattr(linscan, name) for name in linscan.__all__]))"
    assert run(textwrap.dedent(NO_NUMBA) + code) == "True\n"
