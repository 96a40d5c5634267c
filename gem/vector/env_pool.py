r"""A pool of environments that come and go, each awaited by its own coroutine, off the event loop and with a deadline.

A rollout waits for a model in one event loop, with thousands of episodes in it. So an environment whose step blocks or
computes runs in a thread or in another process, and the episode's coroutine awaits it. A pool has a fixed number of
slots, which environments share one after another; a slot that is free costs nothing.

>>> import asyncio
>>> from functools import partial
>>> import gem
>>> async def run_episode(pool):
...     async with await pool.open(partial(gem.make, "game:GuessTheNumber-v0-easy")) as env:
...         await env.reset(seed=7)
...         return await env.step("I try \\boxed{5}")
>>> async def main():
...     async with EnvPool("thread", 2, timeout=5) as pool:
...         return await asyncio.gather(*(run_episode(pool) for _ in range(3)))
>>> [reward for _, reward, _, _, _ in asyncio.run(main())]
[0.0, 0.0, 0.0]

The threads, the processes and the deadlines are those of a vector environment of that many slots (:mod:`gem.vector`).
Its slots hold an empty environment while they are free, and one that fails is not replaced: its episode is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakMethod

from gem.core import Env, Info, StepResult
from gem.faults import EnvironmentFailed
from gem.vector.backends import load_backend
from gem.vector.outcome import Kind, StepOutcome
from gem.vector.slot import AutoresetMode

CHECK_SECONDS = 0.25
"""How often deadlines are checked, at least."""


class _NoEnv(Env):
    """In a slot that is free."""

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        raise NotImplementedError

    def step(self, action: str) -> StepResult:
        raise NotImplementedError


class _State(enum.Enum):
    """What a slot of the pool does."""

    FREE = enum.auto()
    """It has no environment."""
    IDLE = enum.auto()
    """Its environment waits for a call."""
    CALLING = enum.auto()
    """Its environment is being built, reset, stepped or read."""
    CLOSING = enum.auto()
    """Its environment is being closed; the slot is free afterwards."""


@dataclass(eq=False)
class _PoolSlot:
    """A slot of the pool.

    Attributes:
        index: of the vector environment's slot that belongs to it.
        state: what it does.
        result: awaited by the caller while it is CALLING.
        closed: set where its environment is to be closed, as soon as its call has returned; done when that is done.
    """

    index: int
    state: _State = _State.FREE
    result: asyncio.Future[StepOutcome] | None = None
    closed: asyncio.Future[None] | None = None


class PooledEnv:
    """An environment of a pool; :meth:`EnvPool.open` builds it."""

    def __init__(self, pool: EnvPool, slot: _PoolSlot) -> None:
        self._pool, self._slot = pool, slot
        self._closed: asyncio.Future[None] | None = None

    async def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Reset the environment.

        Raises:
            EnvironmentFailed: it failed.
        """
        outcome = await self._call("reset", seed)
        return outcome.observation, outcome.info

    async def step(self, action: str) -> StepResult:
        """Step the environment.

        Raises:
            EnvironmentFailed: it failed.
            ResetNeeded: its episode has ended or not begun.
        """
        return (await self._call("step", action))[:5]

    async def get(self, name: str) -> Any:
        """Return an attribute of the environment.

        Raises:
            RuntimeError: it has none of that name.
        """
        return (await self._call("call", (name, (), {}))).observation

    @property
    def env(self) -> Env:
        """The environment itself.

        Raises:
            AttributeError: it is in another process.
        """
        return self._pool.env_in(self._slot)

    @property
    def is_busy(self) -> bool:
        """Whether a call is running, also one that nobody awaits any more because its episode was cancelled."""
        return self._slot.state is _State.CALLING

    def close_when_idle(self) -> None:
        """Have the environment closed when the call that is running has returned; does not wait for it."""
        if self._closed is None:
            self._closed = self._pool.close_when_idle(self._slot)

    async def close(self) -> None:
        """Close the environment, after the call that is running."""
        self.close_when_idle()
        assert self._closed is not None
        await asyncio.shield(self._closed)

    async def _call(self, method: str, argument: Any) -> StepOutcome:
        if self._closed is not None:
            raise RuntimeError("this environment is closed")
        return await self._pool.call(self._slot, method, argument)

    async def __aenter__(self) -> PooledEnv:
        """Return the environment, to be closed when the block ends."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the environment."""
        await self.close()


class EnvPool:
    """A number of slots for environments, in threads or processes. It belongs to one event loop.

    Args:
        backend: ``"thread"`` or ``"process"``. (Environments with asynchronous steps are awaited without a pool, and
            those whose steps take microseconds are called without one.)
        size: how many environments there can be at a time.
        **backend_kwargs: of the back end: ``timeout``, ``workers`` and so on.

    Raises:
        ValueError: the back end is another.
    """

    def __init__(self, backend: str, size: int, **backend_kwargs: Any) -> None:
        if backend not in ("thread", "process"):
            raise ValueError(f"a pool is of threads or processes, not {backend!r}")
        self._loop = asyncio.get_running_loop()
        self._collect_scheduled = False
        self._closed = False
        if backend == "thread":
            # Weakly, so that the threads do not keep a pool alive that nobody uses any more.
            backend_kwargs["on_ready"] = partial(_call_if_alive, WeakMethod(self._schedule_collect))
        new: Callable[..., Any] = load_backend(backend)
        self._vec = new([""] * size, [_NoEnv] * size, AutoresetMode.ONCE, **backend_kwargs)
        if backend == "process":
            self._loop.add_reader(self._vec.fileno(), self._collect)
        self._slots = [_PoolSlot(index) for index in range(size)]
        self._free = list(self._slots)
        self._room = asyncio.Semaphore(size)
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, build: Callable[[], Env]) -> PooledEnv:
        """Wait for a free slot, and build an environment in it.

        Args:
            build: builds it; for processes, ``pickle`` must take it.

        Raises:
            Exception: whatever ``build`` raises.
        """
        await self._room.acquire()
        slot = self._free.pop()
        slot.state = _State.IDLE
        env = PooledEnv(self, slot)
        try:
            await self.call(slot, "assign", build)
        except BaseException:
            env.close_when_idle()
            raise
        return env

    async def call(self, slot: _PoolSlot, method: str, argument: Any) -> StepOutcome:
        """Call the environment in a slot and await the result; for :class:`PooledEnv`."""
        if self._closed:
            raise RuntimeError("this environment is closed")
        if slot.state is not _State.IDLE:
            raise RuntimeError("this environment is being called already")
        result = self._start(slot, method, argument)  # which raises if the argument cannot be sent to a process
        slot.state = _State.CALLING
        outcome = await result
        if outcome.kind is Kind.REFUSED:
            raise outcome.error
        if outcome.kind in (Kind.FAILURE, Kind.GIVEN_UP):
            raise EnvironmentFailed(outcome.error)
        return outcome

    def close_when_idle(self, slot: _PoolSlot) -> asyncio.Future[None]:
        """Have a slot's environment closed when nothing runs in it; return what is done afterwards."""
        slot.closed = closed = self._loop.create_future()
        if self._closed:
            closed.set_result(None)
        elif slot.state is _State.IDLE:
            self._close_env(slot)
        else:
            self._vec.close_after_call(slot.index)  # by the thread, for the event loop may end before the call does
            self._collect()
        return closed

    def env_in(self, slot: _PoolSlot) -> Env:
        """Return a slot's environment, which must be in this process."""
        return self._vec.envs[slot.index]

    async def aclose(self) -> None:
        """Close all environments, and end threads and processes; calls that are running are cancelled."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if hasattr(self._vec, "fileno"):
            self._loop.remove_reader(self._vec.fileno())
        for slot in self._slots:
            if slot.result is not None:
                slot.result.cancel()
        try:
            await asyncio.to_thread(self.close)
        finally:
            for slot in self._slots:
                if slot.closed is not None and not slot.closed.done():
                    slot.closed.set_result(None)

    def close(self) -> None:
        """Close all environments, and end threads and processes; for when the event loop has ended."""
        self._vec.close()

    async def __aenter__(self) -> EnvPool:
        """Return the pool, to be closed when the block ends."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the pool."""
        await self.aclose()

    def _start(self, slot: _PoolSlot, method: str, argument: Any) -> asyncio.Future[StepOutcome]:
        self._vec.start_calls(method, {slot.index: argument})
        slot.result = self._loop.create_future()
        if self._timer is None and self._vec.timeout is not None:
            self._check_deadlines_later()
        return slot.result

    def _close_env(self, slot: _PoolSlot) -> None:
        slot.state = _State.CLOSING
        self._start(slot, "assign", _NoEnv)

    def _schedule_collect(self) -> None:
        """Collect results in the event loop; called in the threads that have them."""
        if not self._collect_scheduled:
            self._collect_scheduled = True
            with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody waits
                self._loop.call_soon_threadsafe(self._collect)

    def _check_deadlines_later(self) -> None:
        self._timer = self._loop.call_later(min(CHECK_SECONDS, self._vec.timeout), self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._timer = None
        self._collect()  # the vector environment gives up late calls when it is asked for results
        if any(slot.state in (_State.CALLING, _State.CLOSING) for slot in self._slots):
            self._check_deadlines_later()

    def _collect(self) -> None:
        """Hand out the results that there are, and go on with what was to follow them."""
        self._collect_scheduled = False
        if self._closed:  # a call that has returned meanwhile: its environment is closed with all others
            return
        for index, outcome in self._vec.finished_calls(0.0).items():
            slot = self._slots[index]
            assert slot.result is not None
            if not slot.result.done():  # else whoever awaited it was cancelled
                slot.result.set_result(outcome)
            slot.result = None
            if slot.state is _State.CLOSING:
                slot.state = _State.FREE
                self._free.append(slot)
                self._room.release()
                closed, slot.closed = slot.closed, None
                assert closed is not None
                closed.set_result(None)
            elif slot.closed is not None:
                self._close_env(slot)
            else:
                slot.state = _State.IDLE


def _call_if_alive(method: WeakMethod[Callable[[], None]]) -> None:
    if (call := method()) is not None:
        call()
