import asyncio
import os
import threading

import pytest

from gem.tools.event_loop import event_loop, run_async


async def double(number):
    await asyncio.sleep(0)
    return 2 * number


async def broken():
    raise KeyError("key")


def test_result_and_error_come_back():
    assert run_async(double(2)) == 4
    with pytest.raises(KeyError):
        run_async(broken())


def test_it_works_in_threads_and_in_a_thread_that_runs_an_event_loop():
    async def within():
        return run_async(double(3))

    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(run_async(double(n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [2 * n for n in range(8)]
    assert asyncio.run(within()) == 6


def test_all_coroutines_run_in_one_loop():
    async def where():
        return asyncio.get_running_loop()

    assert run_async(where()) is run_async(where()) is event_loop()


def test_waiting_in_the_loop_for_itself_is_refused():
    async def within():
        return run_async(double(1))

    with pytest.raises(RuntimeError, match="must await"):
        run_async(within())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_has_a_loop_of_its_own():
    run_async(double(1))
    child = os.fork()
    if child == 0:
        os._exit(0 if run_async(double(21)) == 42 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
