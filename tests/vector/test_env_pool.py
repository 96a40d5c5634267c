"""Environments that come and go, each awaited alone."""

import asyncio
import threading
from functools import partial

import pytest
import vector_envs
from processes import descendants
from vector_envs import Told, Unbuildable

import gem
from gem.faults import EnvironmentFailed
from gem.vector.env_pool import EnvPool


@pytest.fixture(params=["thread", "process"])
def run(request):
    """Run a coroutine function with a pool."""
    others, threads = descendants(), threading.enumerate()  # those of other tests

    def runs(body, size=2, **kwargs):
        async def main():
            async with EnvPool(request.param, size, **kwargs) as pool:
                return await asyncio.wait_for(body(pool), 30)

        return asyncio.run(main())

    runs.backend = request.param
    yield runs
    vector_envs.hold.set()
    for thread in threading.enumerate():
        if thread not in threads and thread.name.startswith("gem-vector"):
            thread.join(10)
    vector_envs.hold.clear()
    assert descendants() == others


async def episode(pool, seed, actions=("x",) * 5):
    async with await pool.open(Told) as env:
        said = [await env.reset(seed=seed)]
        return [*said, *[await env.step(action) for action in actions]]


def expected(seed):
    env = Told()
    return [env.reset(seed=seed), *[env.step("x") for _ in range(5)]]


def test_any_number_of_episodes_takes_turns_in_the_places(run):
    async def body(pool):
        return await asyncio.gather(*(episode(pool, seed) for seed in range(9)))

    assert run(body, size=2) == [expected(seed) for seed in range(9)]


@pytest.mark.parametrize(
    ("action", "error"), [("raise", "ValueError: told to"), ("hang", "no answer within 0.3 s"), ("exit", "its process")]
)
def test_a_failure_is_its_own_environments(run, action, error):
    if action == "exit" and run.backend == "thread":
        pytest.skip("would end this process")

    async def body(pool):
        fails = episode(pool, 7, ("x", action))
        return await asyncio.gather(episode(pool, 0), fails, episode(pool, 1), return_exceptions=True)

    first, failed, second = run(body, timeout=0.3)
    assert [first, second] == [expected(0), expected(1)]
    assert isinstance(failed, EnvironmentFailed)
    assert str(failed).startswith(error)


def test_what_building_raises_is_raised_and_the_slot_is_free_again(run):
    async def body(pool):
        for _ in range(3):
            with pytest.raises(ValueError, match="no data"):
                await pool.open(Unbuildable)
        return await episode(pool, 3)

    assert run(body, size=1) == expected(3)


def test_a_step_without_reset_raises(run):
    async def body(pool):
        async with await pool.open(Told) as env:
            with pytest.raises(gem.ResetNeeded):
                await env.step("x")

    run(body)


def test_a_cancelled_episode_frees_its_slot_when_its_step_ends(run):
    async def body(pool):
        task = asyncio.ensure_future(episode(pool, 0, ("sleep",)))
        await asyncio.sleep(0.15)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await episode(pool, 3)

    assert run(body, size=1) == expected(3)


def test_a_closed_environment_takes_no_call(run):
    async def body(pool):
        env = await pool.open(Told)
        await env.close()
        with pytest.raises(RuntimeError, match="is closed"):
            await env.step("x")
        await env.close()

    run(body)


def test_a_process_that_dies_brings_back_the_environments_that_came_later(run):
    if run.backend == "thread":
        pytest.skip("would end this process")

    async def body(pool):
        async with await pool.open(partial(Told, 9)) as env, await pool.open(Told) as other:
            said = [await env.reset(seed=4), await env.step("x")]
            await other.reset(seed=1)
            with pytest.raises(EnvironmentFailed, match="ended with code 7"):
                await other.step("exit")
            return [*said, *[await env.step("x") for _ in range(4)]]

    env = Told(9)
    assert run(body, workers=1) == [env.reset(seed=4), *[env.step("x") for _ in range(5)]]


def test_what_cannot_be_sent_to_a_process_is_refused(run):
    if run.backend == "thread":
        pytest.skip("threads take anything")

    async def body(pool):
        with pytest.raises(TypeError, match="not by a lambda"):
            await pool.open(lambda: Told())
        return await episode(pool, 2)

    assert run(body, size=1) == expected(2)


def test_closing_waits_for_nobody_and_is_quiet_where_steps_are_running(run):
    """As after Ctrl-C, or an engine that failed: episodes are cancelled, their environments given up, all is closed."""
    noise = []

    async def body(pool):
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
        env = await pool.open(Told)
        await env.reset(seed=0)
        stepping = asyncio.ensure_future(env.step("sleep"))
        await asyncio.sleep(0.05)
        stepping.cancel()
        env.close_when_idle()
        await pool.aclose()
        await asyncio.sleep(0.4)  # the step ends
        await env.close()

    run(body)
    assert noise == []


def test_closed_places_take_no_call_and_can_be_left(run):
    async def body(pool):
        env = await pool.open(Told)
        await pool.aclose()
        with pytest.raises(RuntimeError, match="is closed"):
            await env.reset()
        await env.close()

    run(body)


def test_other_back_ends_are_refused():
    async def main():
        EnvPool("sync", 2)

    with pytest.raises(ValueError, match="of threads or processes, not 'sync'"):
        asyncio.run(main())
