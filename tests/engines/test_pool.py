"""The thread pool: every item once, whatever the number of threads, and no way to hang."""

import threading
import time

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

import linscan
from linscan.engines.cpu import pool
from linscan.engines.cpu.pool import parallel_for, resolve_workers
from tests.subproc import run


@given(n=st.integers(0, 500), grain=st.integers(1, 600), workers=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_item_once_in_ranges_of_at_least_grain(n, grain, workers):
    ranges = []
    parallel_for(lambda lo, hi: ranges.append((lo, hi)), n, grain=grain, workers=workers)
    assert sorted(i for lo, hi in ranges for i in range(lo, hi)) == list(range(n))
    assert len(ranges) <= workers
    assert all(hi - lo >= min(grain, n) for lo, hi in ranges)


def test_threads_work_at_the_same_time():
    together = threading.Barrier(3, timeout=30)
    parallel_for(lambda lo, hi: together.wait(), 3, workers=3)  # BrokenBarrierError unless all three are in it at once


def test_nested_use_runs_inline():
    threads = {}

    def outer(lo, hi):
        def inner(i, j):
            time.sleep(0.01)  # long enough for a pool thread to take a range, if any were offered
            threads.setdefault(lo, set()).add(threading.get_ident())

        parallel_for(inner, 8, workers=4)
        assert threads[lo] == {threading.get_ident()}

    parallel_for(outer, 4, workers=4)
    assert len(threads) == 4


def test_an_exception_is_raised_after_all_ranges_have_ended():
    ended = []

    def body(lo, hi):
        if lo == 0:
            raise ZeroDivisionError("first range")
        time.sleep(0.05)
        ended.append(lo)

    for _ in range(5):
        ended.clear()
        with pytest.raises(ZeroDivisionError, match="first range"):
            parallel_for(body, 4, workers=4)
        seen = len(ended)
        time.sleep(0.1)
        assert len(ended) == seen
    done = []
    parallel_for(lambda lo, hi: done.append(hi - lo), 4, workers=4)
    assert sum(done) == 4


def test_the_caller_does_not_wait_for_a_pool_that_others_keep_busy():
    release = threading.Event()
    threads = pool._pool(2)._max_workers
    other = [pool._pool(2).submit(release.wait, 30) for _ in range(threads)]  # every pool thread
    try:
        done = []
        parallel_for(lambda lo, hi: done.append(hi - lo), 10, workers=3)
        assert sum(done) == 10

        def fail(lo, hi):
            done.append("failed")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            parallel_for(fail, 10, workers=3)
        assert done.count("failed") == 1, "ranges that nobody has begun are dropped"
    finally:
        release.set()
    assert all(f.result(30) for f in other)


def test_growing_the_pool_while_others_use_it():
    errors = []

    def use():
        try:
            for workers in range(1, 40):
                total = []
                parallel_for(lambda lo, hi, total=total: total.append(hi - lo), 80, workers=workers)
                assert sum(total) == 80
        except BaseException as error:
            errors.append(error)

    with pool._lock:
        pool._executor, pool._executor_size = None, 0
    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors


def test_works_while_the_interpreter_ends_and_where_no_thread_can_start():
    code = """
        import atexit
        from linscan.engines.cpu.pool import parallel_for

        def count():
            done = []
            parallel_for(lambda lo, hi: done.append(hi - lo), 10, workers=4)
            print(sum(done), flush=True)

        atexit.register(count)
        import threading
        start = threading.Thread.start
        def refuse(self): raise RuntimeError("can't start new thread")
        threading.Thread.start = refuse
        count()
        threading.Thread.start = start
        count()
    """
    assert run(code).split() == ["10", "10", "10"]


@pytest.mark.parametrize("workers", [1, 2, 1000, np.int64(3), -1, -pool.cpu_count()])
def test_set_workers_counts_as_scipy_fft_does(workers):
    with linscan.set_workers(workers):
        assert resolve_workers(None) == (workers if workers > 0 else pool.cpu_count() + 1 + workers)


@pytest.mark.parametrize(
    ("workers", "error"),
    [(0, ValueError), (-pool.cpu_count() - 1, ValueError), (1.5, TypeError), ("2", TypeError), (None, TypeError)],
)
def test_set_workers_refuses_what_scipy_fft_refuses(workers, error):
    with pytest.raises(error), scipy.fft.set_workers(workers if workers != -pool.cpu_count() - 1 else -(10**6)):
        pass
    with pytest.raises(error, match="set_workers: workers must"), linscan.set_workers(workers):
        pass


def test_set_workers_is_a_cap_that_ends_with_its_block_and_stays_in_its_thread():
    assert resolve_workers(None) == pool.cpu_count()
    with linscan.set_workers(3):
        assert resolve_workers(None) == 3
        assert resolve_workers(2) == 2
        with linscan.set_workers(1):
            assert resolve_workers(None) == 1
        seen = []
        thread = threading.Thread(target=lambda: seen.append(resolve_workers(None)))
        thread.start()
        thread.join(30)
        assert seen == [pool.cpu_count()]
    with pytest.raises(KeyError), linscan.set_workers(3):
        raise KeyError
    assert resolve_workers(None) == pool.cpu_count()


def test_set_workers_decides_how_many_threads_run():
    def threads():
        seen = set()

        def body(lo, hi):
            seen.add(threading.get_ident())
            time.sleep(0.02)

        parallel_for(body, 4)
        return seen

    with linscan.set_workers(1):
        assert threads() == {threading.get_ident()}
    with linscan.set_workers(4):
        assert len(threads()) > 1


@pytest.mark.parametrize("workers", [0, 1.5, "2", -1000])
@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_wrong_workers_argument_is_refused(workers, engine, length):
    x = np.ones(length)
    calls = {
        "scan": lambda: linscan.scan(0.5, x, workers=workers),
        "lfilter": lambda: linscan.lfilter([1.0], [1.0, 0.5], x, workers=workers),
        "sosfilt": lambda: linscan.sosfilt([[1.0, 0, 0, 1, 0, 0]], x, workers=workers),
        "allpole": lambda: linscan.allpole(0.5, x, workers=workers),
        "dlsim": lambda: linscan.dlsim((0.5, 1.0, 1.0, 0.0, 1.0), x, workers=workers),
        "short_conv": lambda: linscan.short_conv(x, np.ones(2), axis=-1, workers=workers),
        "fft_conv": lambda: linscan.fft_conv(x, np.ones(2), workers=workers),
        "ssm_kernel": lambda: linscan.ssm_kernel(x[:1], x[:1], length, workers=workers),
    }
    for name, call in calls.items():
        with linscan.use_engine(engine), pytest.raises((ValueError, TypeError), match=f"{name}: workers must"):
            call()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "900000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/box\n0::/\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/gone\n"}, None),
        ({}, None),
    ],
)
def test_a_container_s_quota_counts(files, cores, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert pool._quota(tmp_path) == cores


def test_cpu_count_obeys_the_quota(monkeypatch):
    monkeypatch.setattr(pool, "_quota", lambda: 1)
    assert pool.cpu_count() == 1
    monkeypatch.setattr(pool, "_quota", lambda: 10**6)
    assert 1 <= pool.cpu_count() < 10**6
