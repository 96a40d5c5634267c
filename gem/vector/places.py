r"""Places: environments that come and go, each stepped by its own coroutine, off the event loop and with a deadline.

For drivers of episodes, which wait for a model in an event loop: thousands of episodes take turns in a number of places
in threads or processes.

>>> import asyncio
>>> from functools import partial
>>> import gem
>>> async def episode(places):
...     async with await places.open(partial(gem.make, "game:GuessTheNumber-v0-easy")) as env:
...         await env.reset(seed=7)
...         return await env.step("I try \\boxed{5}")
>>> async def main():
...     async with Places("thread", 2, timeout=5) as places:
...         return await asyncio.gather(*(episode(places) for _ in range(3)))
>>> [reward for _, reward, _, _, _ in asyncio.run(main())]
[0.0, 0.0, 0.0]
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakMethod

from gem.core import Env, Info, StepResult
from gem.vector.backends import load_backend
from gem.vector.slot import AutoresetMode, CrashLoop, Row
from gem.vector.thread_vector_env import ThreadVectorEnv

LOOK_SECONDS = 0.25
"""How often deadlines are looked after, at least."""


class EnvFailed(RuntimeError):
    """An environment raised, took too long, or ended its process. Its place can be closed."""


class _Vacant(Env):
    """In a place that is free."""

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        raise NotImplementedError

    def step(self, action: str) -> StepResult:
        raise NotImplementedError


class Place:
    """An environment in a place; :meth:`Places.open` makes it."""

    def __init__(self, places: Places, index: int) -> None:
        self._places, self._index = places, index
        self._left: asyncio.Future[None] | None = None

    async def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Reset the environment.

        Raises:
            EnvFailed: it failed.
        """
        observation, _, _, _, info, _ = await self._call("reset", seed)
        return observation, info

    async def step(self, action: str) -> StepResult:
        """Step the environment.

        Raises:
            EnvFailed: it failed.
            ResetNeeded: its episode has ended or not begun.
        """
        observation, reward, terminated, truncated, info, _ = await self._call("step", action)
        return observation, reward, terminated, truncated, info

    async def get(self, name: str) -> Any:
        """Return an attribute of the environment.

        Raises:
            RuntimeError: it has none of that name.
        """
        return (await self._call("call", (name, (), {})))[0]

    @property
    def env(self) -> Env:
        """The environment itself.

        Raises:
            AttributeError: it is in another process.
        """
        return self._places._vec.envs[self._index]

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way, also one for which nobody waits any more."""
        return self._index in self._places._calls

    def leave(self) -> None:
        """Have the environment closed, and the place left, when what is under way (after a cancellation) has ended."""
        if self._left is None:
            self._left = self._places._leave(self._index)

    async def close(self) -> None:
        """Close the environment and leave the place; what is under way ends before."""
        self.leave()
        assert self._left is not None
        await asyncio.shield(self._left)

    async def _call(self, method: str, argument: Any) -> Row:
        if self._left is not None:
            raise RuntimeError("this environment is closed")
        return await self._places._call(self._index, method, argument)

    async def __aenter__(self) -> Place:
        """Return the place, to be closed when the block ends."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the place."""
        await self.close()


class Places:
    """Places for environments, in an event loop. One that fails is not replaced: its place can be left.

    Args:
        backend: ``"thread"`` or ``"process"``. (Environments with async steps are awaited as they are; steps of
            microseconds are just called.)
        size: how many environments there can be at a time.
        **backend_kwargs: of the back end: ``timeout``, ``workers`` and so on.

    Raises:
        ValueError: the back end is another.
    """

    def __init__(self, backend: str, size: int, **backend_kwargs: Any) -> None:
        if backend not in ("thread", "process"):
            raise ValueError(f"places are in threads or processes, not {backend!r}")
        self._loop = asyncio.get_running_loop()
        self._told = False
        self._closed = False
        if backend == "thread":
            backend_kwargs["on_ready"] = partial(_call_if_alive, WeakMethod(self._tell))  # threads keep no places
        new: Callable[..., Any] = load_backend(backend)
        self._vec = new([""] * size, [_Vacant] * size, AutoresetMode.ONCE, **backend_kwargs)
        if backend == "process":
            self._loop.add_reader(self._vec.fileno(), self._collect)
        self._calls: dict[int, asyncio.Future[Row]] = {}
        self._leaving: dict[int, asyncio.Future[None]] = {}  # environments that are to be closed
        self._vacating: set[int] = set()  # ... and are being closed
        self._free = list(range(size))
        self._room = asyncio.Semaphore(size)
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, build: Callable[[], Env]) -> Place:
        """Wait for a place, and build an environment in it.

        Args:
            build: builds it; for processes, ``pickle`` must take it.

        Raises:
            Exception: whatever ``build`` raises.
        """
        await self._room.acquire()
        place = Place(self, index := self._free.pop())
        try:
            await self._call(index, "assign", build)
        except BaseException:
            place.leave()
            raise
        return place

    async def aclose(self) -> None:
        """Close all environments that are there, and end threads and processes; calls under way are cancelled."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if hasattr(self._vec, "fileno"):
            self._loop.remove_reader(self._vec.fileno())
        for call in self._calls.values():
            call.cancel()
        try:
            await asyncio.to_thread(self.close)
        finally:
            for left in self._leaving.values():
                left.set_result(None)

    def close(self) -> None:
        """Close all environments, and end threads and processes; for when the event loop has ended."""
        self._vec.close()

    async def __aenter__(self) -> Places:
        """Return the places, to be closed when the block ends."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close all places."""
        await self.aclose()

    async def _call(self, index: int, method: str, argument: Any) -> Row:
        if self._closed:
            raise RuntimeError("this environment is closed")
        if index in self._calls:
            raise RuntimeError("this environment is being called already")
        row = await self._begin(index, method, argument)
        fault = row[5]
        if isinstance(fault, CrashLoop):
            raise EnvFailed(fault.error)
        if isinstance(fault, Exception):
            raise fault
        if fault:
            raise EnvFailed(fault)
        return row

    def _begin(self, index: int, method: str, argument: Any) -> asyncio.Future[Row]:
        self._vec._start(method, {index: argument})
        future = self._calls[index] = self._loop.create_future()
        if self._timer is None and self._vec.timeout is not None:
            self._timer = self._loop.call_later(min(LOOK_SECONDS, self._vec.timeout), self._look)
        return future

    def _leave(self, index: int) -> asyncio.Future[None]:
        """Let a place be left, as soon as nothing is under way in it."""
        left: asyncio.Future[None] = self._loop.create_future()
        if self._closed:
            left.set_result(None)
            return left
        self._leaving[index] = left
        if index in self._calls and isinstance(self._vec, ThreadVectorEnv):  # for the loop may end before the call does
            self._vec.drop_afterwards(index)
            self._collect()
        elif index not in self._calls:
            self._vacate(index)
        return left

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody waits
                self._loop.call_soon_threadsafe(self._collect)

    def _look(self) -> None:
        self._timer = None
        self._collect()
        if self._calls:
            self._timer = self._loop.call_later(min(LOOK_SECONDS, self._vec.timeout), self._look)

    def _collect(self) -> None:
        self._told = False
        if self._closed:  # a step that has ended meanwhile: its environment is closed with all others
            return
        for index, row in self._vec._wait(0.0):
            call = self._calls.pop(index)
            if not call.done():  # else whoever waited for it was cancelled
                call.set_result(row)
            if index in self._vacating:
                self._vacating.discard(index)
                self._free.append(index)
                self._room.release()
                self._leaving.pop(index).set_result(None)
            elif index in self._leaving:
                self._vacate(index)

    def _vacate(self, index: int) -> None:
        self._vacating.add(index)
        self._begin(index, "assign", _Vacant)


def _call_if_alive(method: WeakMethod[Callable[[], None]]) -> None:
    if (call := method()) is not None:
        call()
