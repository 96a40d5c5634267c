"""Processes that call functions for this one."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from processes import descendants, runs

from gem.workers import CallFailed, CallNotSent, CallTimeout, NotReady, Worker, WorkerPool


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.stop()


def test_a_call_returns_what_the_function_does_from_another_process(worker):
    assert worker.call(divmod, 7, 2, timeout=20) == [3, 1]
    pid = worker.call(os.getpid, timeout=20)
    assert pid != os.getpid()
    assert worker.call(os.getpid, timeout=20) == pid


def test_what_a_function_raises_is_told(worker):
    with pytest.raises(CallFailed, match="ZeroDivisionError"):
        worker.call(divmod, 1, 0, timeout=20)
    assert worker.call(divmod, 7, 2, timeout=20) == [3, 1]


def test_a_call_that_hangs_is_killed_in_time_and_the_next_one_answered(worker):
    pid = worker.call(os.getpid, timeout=20)
    begin = time.monotonic()
    with pytest.raises(CallTimeout, match=r"no answer in 0.5 s"):
        worker.call(time.sleep, 60, timeout=0.5)
    assert time.monotonic() - begin < 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.call(divmod, 7, 2, timeout=20) == [3, 1]


def test_a_call_that_ends_its_process_is_told(worker):
    with pytest.raises(CallFailed, match="the process ended"):
        worker.call(os._exit, 3, timeout=20)
    with pytest.raises(CallFailed, match="SystemExit"):
        worker.call(sys.exit, 3, timeout=20)
    assert worker.call(divmod, 7, 2, timeout=20) == [3, 1]


DRIPS = """
import gc, time
from gem.workers.channel import Channel
(channel,) = (each for each in gc.get_objects() if isinstance(each, Channel))
channel._socket.send(b"\\0" * 6 + b"\\xff\\xff")  # an answer of 65,535 bytes
while True:
    channel._socket.send(b" ")
    time.sleep(0.05)
"""


def test_an_answer_that_drips_is_over_in_time_too(worker):
    worker.call(divmod, 7, 2, timeout=20)
    begin = time.monotonic()
    with pytest.raises(CallTimeout):
        worker.call(exec, DRIPS, {}, timeout=1)
    assert 0.9 < time.monotonic() - begin < 2


def test_a_call_that_is_not_taken_is_over_in_time_too(worker):
    pid = worker.call(os.getpid, timeout=20)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(CallTimeout):
        worker.call(len, "a" * 10_000_000, timeout=0.5)


def test_an_answer_is_data_and_of_limited_length(worker, monkeypatch):
    with pytest.raises(CallFailed, match="not JSON serializable"):
        worker.call(Path, timeout=20)
    monkeypatch.setattr("gem.workers.worker.ANSWER_LIMIT", 1000)
    with pytest.raises(CallFailed, match="answered too much"):
        worker.call(pow, 10, 1000, timeout=20)
    assert worker.call(divmod, 7, 2, timeout=20) == [3, 1]


def test_what_cannot_be_sent_is_told(worker):
    with pytest.raises(CallNotSent):
        worker.call(lambda: 1, timeout=20)
    with pytest.raises(CallNotSent):
        worker.call(len, threading.Lock(), timeout=20)


class Unspeakable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self):
        raise SystemExit(3)


class CannotBeLoaded:
    def __reduce__(self):
        return divmod, (1, 0)


def raise_unspeakable():
    raise Unspeakable


def raise_long():
    raise ValueError("a" * 10**7)


def fork_and_return():
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return "forked"


def test_what_a_function_raises_is_text_of_limited_length(worker):
    with pytest.raises(CallFailed, match=r"Unspeakable: \(its __str__ raised SystemExit\)"):
        worker.call(raise_unspeakable, timeout=20)
    with pytest.raises(CallFailed, match="ValueError: aaa") as raised:
        worker.call(raise_long, timeout=20)
    assert len(str(raised.value)) < 5000


def test_an_argument_that_cannot_be_loaded_is_told(worker):
    with pytest.raises(CallNotSent, match="ZeroDivisionError"):
        worker.call(len, CannotBeLoaded(), timeout=20)


def test_a_child_that_a_function_forks_gives_no_answer(worker):
    assert worker.call(fork_and_return, timeout=20) == "forked"
    assert worker.call(divmod, 7, 2, timeout=20) == [3, 1]


def test_a_call_that_takes_all_memory_costs_its_own_process_only(worker):
    with pytest.raises(CallFailed, match="MemoryError"):
        worker.call(bytearray, 64 << 30, timeout=20)


def test_preparing_does_not_count_towards_the_calls_time():
    worker = Worker(prepare=partial(time.sleep, 1.5))
    assert worker.call(divmod, 7, 2, timeout=1.0) == [3, 1]
    worker.stop()


def test_what_is_loaded_before_a_call_does_not_count_and_is_loaded_once():
    worker = Worker()
    try:
        for _ in range(2):
            begin = time.monotonic()
            pid = worker.call(os.getpid, timeout=0.5, before=(time.sleep, 1.0))
            took = time.monotonic() - begin
        assert took < 0.9
        with pytest.raises(CallTimeout):
            worker.call(time.sleep, 9, timeout=0.1)
        assert worker.call(os.getpid, timeout=0.5, before=(time.sleep, 1.0)) != pid
    finally:
        worker.stop()


def test_a_process_that_cannot_be_prepared_is_no_failed_call():
    worker = Worker(prepare=partial(divmod, 1, 0))
    for _ in range(2):
        with pytest.raises(NotReady, match="ZeroDivisionError"):
            worker.call(divmod, 7, 2, timeout=20)
    assert not issubclass(NotReady, CallFailed)


def test_variables_are_those_of_the_process():
    worker = Worker(variables={"PYTHONHASHSEED": "0"})
    assert worker.call(os.getenv, "PYTHONHASHSEED", timeout=20) == "0"
    worker.stop()


def test_a_pool_answers_any_number_of_threads():
    pool = WorkerPool(2)
    with ThreadPoolExecutor(8) as threads:
        pids = set(threads.map(lambda _: pool.call(os.getpid, timeout=20), range(40)))
        assert 1 <= len(pids) <= 2
        squares = threads.map(lambda n: pool.call(pow, n, 2, timeout=20), range(40))
        assert list(squares) == [n**2 for n in range(40)]


@pytest.mark.parametrize("workers", ["Worker()", "WorkerPool(1)"])
def test_a_fork_has_workers_of_its_own(workers):
    code = f"""
import os
from gem.workers import Worker, WorkerPool
workers = {workers}
first = workers.call(os.getpid, timeout=20)
child = os.fork()
if child == 0:
    os._exit(0 if workers.call(os.getpid, timeout=20) != first else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert workers.call(os.getpid, timeout=20) == first
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_fork_does_not_wait_for_calls_of_its_parents_threads():
    code = """
import os, threading, time
from gem.workers import WorkerPool
pool = WorkerPool(1)
pool.call(os.getpid, timeout=20)
threading.Thread(target=pool.call, args=(time.sleep, 3), kwargs={"timeout": 20}).start()
time.sleep(0.3)
child = os.fork()
if child == 0:
    begin = time.monotonic()
    pool.call(os.getpid, timeout=20)
    os._exit(0 if time.monotonic() - begin < 2.5 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("fork", [False, True])
def test_a_worker_ends_with_its_parent_even_while_it_computes(fork):
    code = f"""
import os, threading, time
from gem.workers import Worker
worker = Worker(fork={fork})
print(worker.call(os.getpid, timeout=20), flush=True)
threading.Thread(target=worker.call, args=(time.sleep, 60), kwargs={{"timeout": 60}}, daemon=True).start()
time.sleep(0.3)
os._exit(0)
"""
    pid = int(subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True).stdout)
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or " Z " in stat.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("it goes on without its parent")


def test_a_call_in_a_fork_that_takes_too_long_ends_the_fork_only():
    worker = Worker(fork=True)
    try:
        assert worker.call(divmod, 7, 2, timeout=20) == [3, 1]
        parent = worker.call(os.getppid, timeout=20)
        for code in ("while True: pass", "import time; time.sleep(60)"):
            begin = time.monotonic()
            with pytest.raises(CallTimeout, match=r"0.3 s"):
                worker.call(exec, code, {}, timeout=0.3)
            assert time.monotonic() - begin < 1
        with pytest.raises(CallFailed, match="the process ended"):
            worker.call(os._exit, 3, timeout=20)
        assert worker.call(os.getppid, timeout=20) == parent
        assert worker.call(os.getpid, timeout=20) != parent
        (fork,) = descendants(parent)
    finally:
        worker.stop()
    deadline = time.monotonic() + 2
    while runs(fork) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(fork)


def test_slow_calls_keep_no_others_waiting():
    pool = WorkerPool(2, fork=True)
    pool.call(divmod, 7, 2, timeout=20)
    with ThreadPoolExecutor(9) as threads:
        slow = [threads.submit(pool.call, time.sleep, 2, timeout=3, quick=0.2) for _ in range(8)]
        time.sleep(0.1)
        begin = time.monotonic()
        assert threads.submit(pool.call, divmod, 7, 2, timeout=3, quick=0.2).result() == [3, 1]
        assert time.monotonic() - begin < 4  # of 8 seconds, for two at once
        assert [each.result() for each in slow] == [None] * 8


def test_a_call_that_is_too_slow_is_told_in_a_pool_too():
    with pytest.raises(CallTimeout, match=r"0.5 s"):
        WorkerPool(1, fork=True).call(time.sleep, 9, timeout=0.5, quick=0.1)
