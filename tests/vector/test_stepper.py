"""The stepper does for coroutines what a task does."""

import asyncio
import contextvars

import anyio
import pytest

from gem.vector.stepper import Stepper


class Calling(Stepper):
    """Calls a function after each coroutine."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def ended(self, result, failure):
        return self.after(result, failure)


def run(coroutine, cancel_after=None):
    """Run a coroutine in a stepper; return what it returned, or raise what it raised."""

    async def main():
        ended = asyncio.get_running_loop().create_future()

        def after(result, failure):
            if failure is None:
                ended.set_result(result)
            else:
                ended.set_exception(RuntimeError(f"ended by {type(failure).__name__}: {failure}"))

        stepper = Calling(after)
        asyncio.get_running_loop().call_soon(stepper.run, coroutine)
        if cancel_after is not None:
            await asyncio.sleep(cancel_after)
            stepper.cancel()
        try:
            return await asyncio.wait_for(ended, 10)
        finally:
            stepper.close()
            await asyncio.sleep(0)

    return asyncio.run(main())


async def value(delay=0.0):
    await asyncio.sleep(delay)
    return 7


async def fails():
    await asyncio.sleep(0)
    raise KeyError("x")


def test_it_returns_and_raises_what_the_coroutine_does():
    assert run(value()) == 7
    assert run(value(0.01)) == 7
    with pytest.raises(RuntimeError, match="ended by KeyError"):
        run(fails())


@pytest.mark.parametrize("delay", [0.0, 60.0])
def test_timeouts_work_in_it(delay):
    async def with_wait_for():
        try:
            return await asyncio.wait_for(value(delay), 0.05)
        except asyncio.TimeoutError:
            return await value() + 1

    async def with_anyio():
        with anyio.move_on_after(0.05) as scope:
            await value(delay)
        return await value() + scope.cancelled_caught

    async def with_timeout():
        try:
            async with asyncio.timeout(0.05):
                return await value(delay)
        except TimeoutError:
            return await value() + 1

    bodies = [with_wait_for, with_anyio, *([with_timeout] if hasattr(asyncio, "timeout") else [])]
    assert [run(body()) for body in bodies] == [8 if delay else 7] * len(bodies)


@pytest.mark.skipif(not hasattr(asyncio, "TaskGroup"), reason="Python 3.10 has no task groups")
def test_task_groups_work_in_it():
    async def both():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(value(0.01)) for _ in range(2)]
        return sum(task.result() for task in tasks)

    async def one_fails():
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await asyncio.sleep(60)
        except Exception as group:  # noqa: BLE001 (of a kind that Python 3.10 does not have)
            raised = [type(error) for error in group.exceptions]
        return await value(), raised

    async def with_anyio():
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(fails)
                await anyio.sleep(60)
        except Exception as group:  # noqa: BLE001 (of a kind that Python 3.10 does not have)
            raised = [type(error) for error in group.exceptions]
        return await value(), raised

    assert [run(both()), run(one_fails()), run(with_anyio())] == [14, (7, [KeyError]), (7, [KeyError])]


def test_a_cancelled_coroutine_can_clean_up_and_may_go_on():
    async def cleans_up():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            return "clean"

    assert run(cleans_up(), cancel_after=0.01) == "clean"
    with pytest.raises(RuntimeError, match="ended by CancelledError"):
        run(asyncio.sleep(60), cancel_after=0.01)


def test_a_coroutine_that_cancels_its_own_task_is_cancelled_where_it_waits_next():
    async def gives_up():
        asyncio.current_task().cancel("enough")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            return error.args

    assert run(gives_up()) == ("enough",)


def test_the_next_coroutine_knows_nothing_of_a_cancellation_before_it():
    requests = []

    async def cancelled():
        asyncio.current_task().cancel()
        await asyncio.sleep(60)

    async def next_one():
        requests.append(asyncio.current_task().cancelling())
        await asyncio.sleep(0)

    async def main():
        stepper = Calling(lambda result, failure: None)
        for coroutine in (cancelled(), next_one()):
            asyncio.get_running_loop().call_soon(stepper.run, coroutine)
            await asyncio.sleep(0.01)
        stepper.close()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert requests == [0]


def test_a_coroutine_that_never_suspends_is_cancelled_between_two_steps():
    async def busy():
        try:
            while True:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            return "stopped"

    assert run(busy(), cancel_after=0.01) == "stopped"


def test_context_variables_stay_in_their_coroutine():
    variable = contextvars.ContextVar("variable", default=0)

    async def sets(number):
        token = variable.set(number)
        await asyncio.sleep(0.01)
        seen = variable.get()
        variable.reset(token)
        return seen

    async def main():
        seen = []
        steppers = [Calling(lambda result, _: seen.append(result)) for _ in range(3)]
        for number, stepper in enumerate(steppers):
            asyncio.get_running_loop().call_soon(stepper.run, sets(number + 1))
        await asyncio.sleep(0.1)
        for stepper in steppers:
            stepper.close()
        return sorted(seen), variable.get()

    assert asyncio.run(main()) == ([1, 2, 3], 0)


def test_one_that_is_closed_leaves_its_coroutine_where_it_is():
    seen = []

    async def step():
        await asyncio.sleep(0.01)
        seen.append("went on")

    async def main():
        stepper = Calling(lambda *_: seen.append("finished"))
        loop = asyncio.get_running_loop()
        loop.call_soon(stepper.run, step())
        loop.call_soon(stepper.close)
        loop.call_soon(stepper.run, step())
        await asyncio.sleep(0.05)

    asyncio.run(main())
    assert seen == []


def test_it_goes_on_with_the_coroutine_that_comes_after():
    seen = []

    def after(result, failure):
        seen.append(result)
        return value(0.01 if len(seen) == 1 else 0.0) if len(seen) < 3 else None

    async def main():
        stepper = Calling(after)
        asyncio.get_running_loop().call_soon(stepper.run, value())
        await asyncio.sleep(0.1)
        stepper.close()

    asyncio.run(main())
    assert seen == [7, 7, 7]
