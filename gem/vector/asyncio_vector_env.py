"""AsyncioVectorEnv: environments with ``async`` steps, thousands of them in one thread.

An event loop in a thread of its own runs them, each call in a task: servers are talked to while the caller does
something else. A step that takes longer than ``timeout`` is cancelled; one that does not heed that is abandoned.

Steps must ``await`` what they wait for: one that blocks the thread holds up all environments, as anywhere in asyncio.
Environments without ``async`` steps are stepped in the loop too, which is right for steps of microseconds only.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from gem.core import Env
from gem.faults import call_unforked, error_text, in_this_process
from gem.vector.outcome import CRASH_LIMIT, StepOutcome, given_up
from gem.vector.slot import AutoresetMode, Slot
from gem.vector.vector_env import LocalVectorEnv

CLOSE_SECONDS = 5.0
"""What closing waits for tasks that environments have left behind to heed their cancellation."""


class _AwaitedSlot(Slot):
    """A slot whose environment is awaited, if it is asynchronous.

    Attributes:
        late: why the running call was cancelled, if it was.
        closing: whether nobody waits for its call any more: what ends its task then is not the environment's doing.
    """

    late = ""
    closing = False

    async def _call_env(self, method: str, *args: Any) -> Any:
        if not getattr(self.env, "asynchronous", False):
            return call_unforked(getattr(self.env, method), *args)
        return await in_this_process(getattr(self.env, f"{method}_async"), *args)

    def _described(self, error: BaseException) -> str:
        if self.late and isinstance(error, asyncio.CancelledError):
            text, self.late = self.late, ""
            task: Any = asyncio.current_task()
            if hasattr(task, "uncancel"):  # since Python 3.11: what comes next in this task is not cancelled
                task.uncancel()
            return text
        return super()._described(error)

    def passes_on(self, error: BaseException) -> bool:
        """Return whether an exception is not the environment's own, but ends the task."""
        ends = self.closing and isinstance(error, (asyncio.CancelledError, GeneratorExit))
        return ends or super().passes_on(error)

    def successor(self) -> _AwaitedSlot:
        """Return a slot that goes on in the place of this one, which hangs."""
        slot = _AwaitedSlot(self._build, self.mode)
        slot.inherit(self._seed, self._faults)
        return slot


class _Call:
    """A call of a slot's method that is running.

    Attributes:
        since: when its time began, on the monotonic clock.
        tries: how many slots were abandoned in it.
    """

    __slots__ = ("begins", "since", "task", "tries")

    def __init__(self, begins: bool, tries: int = 0) -> None:
        self.begins, self.tries = begins, tries
        self.since = time.monotonic()
        self.task: asyncio.Task[None] | None = None

    def allow(self, seconds: float) -> None:
        """Let the time of the call begin again, so many seconds from now."""
        self.since = time.monotonic() + seconds


class _Loop:
    """An event loop in a thread, and the calls of slots in it. Nothing here refers to the vector environment.

    Attributes:
        slots: of the environments.
        abandoned: how many coroutines did not heed their cancellation.
    """

    def __init__(self, slots: list[_AwaitedSlot], timeout: float | None) -> None:
        self.slots, self.timeout = slots, timeout
        self.abandoned = 0
        self._outcomes: deque[tuple[int, StepOutcome]] = deque()
        self._ready = threading.Event()
        self._calls: dict[int, _Call] = {}
        self._loop = asyncio.new_event_loop()
        if timeout is not None:
            self._loop.call_soon(self._look)
        self._thread = threading.Thread(target=self._loop.run_forever, name="gem-vector-loop", daemon=True)
        self._thread.start()

    def start(self, method: str, arguments: dict[int, Any]) -> None:
        """Call a method of slots with an argument each; from any thread."""
        self._loop.call_soon_threadsafe(self._start, method, arguments)

    def finished(self, seconds: float | None) -> list[tuple[int, StepOutcome]]:
        """Return what calls have come to, waiting at most so long for the first."""
        if not self._outcomes:
            self._ready.wait(seconds)
        self._ready.clear()
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def close(self) -> None:
        """Cancel what is running, and end the loop and its thread."""
        if threading.current_thread() is self._thread:  # the garbage collector came by there
            self._loop.stop()
            return
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        self._calls.clear()
        for slot in self.slots:
            slot.closing = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)

    def _start(self, method: str, arguments: dict[int, Any]) -> None:
        for index, argument in arguments.items():
            slot = self.slots[index]
            call = self._calls[index] = _Call(method == "reset")
            slot.allow = call.allow
            if method in ("step", "reset"):
                in_loop = slot.step_in_loop if method == "step" else slot.reset_in_loop
                call.task = self._loop.create_task(self._deliver(index, call, in_loop(argument)))
            else:
                self._done(index, call, getattr(slot, method)(argument))

    async def _deliver(self, index: int, call: _Call, coroutine: Any) -> None:
        try:
            outcome = await coroutine
        except asyncio.CancelledError:  # the vector environment is closed
            raise
        except BaseException as error:  # noqa: BLE001 (a slot has let it pass: the caller is to know)
            outcome = given_up(error_text(error))
        self._done(index, call, outcome)

    def _done(self, index: int, call: _Call, outcome: StepOutcome) -> None:
        if self._calls.get(index) is call:  # else it was abandoned
            del self._calls[index]
            self.slots[index].late = ""
            self._outcomes.append((index, outcome))
            self._ready.set()

    def _look(self) -> None:
        """Cancel what takes too long; abandon what goes on for as long again."""
        assert self.timeout is not None
        now = time.monotonic()
        due = now + self.timeout
        error = f"no answer within {self.timeout:g} s"
        for index, call in list(self._calls.items()):
            if now < call.since + self.timeout:
                due = min(due, call.since + self.timeout)
                continue
            call.since = now
            assert call.task is not None, "only coroutines can be late"
            if not self.slots[index].late:
                self.slots[index].late = error
                call.task.cancel()
            else:
                self._abandon(index, call, error)
        self._loop.call_later(max(0.0, due - now), self._look)

    def _abandon(self, index: int, call: _Call, error: str) -> None:
        """Go on in another slot, in the place of one whose coroutine does not heed that it was cancelled."""
        self.abandoned += 1
        self.slots[index].closing = True
        slot = self.slots[index] = self.slots[index].successor()
        again = self._calls[index] = _Call(call.begins, call.tries + 1)
        slot.allow = again.allow
        if again.tries < CRASH_LIMIT:
            again.task = self._loop.create_task(self._deliver(index, again, slot._replace(error, None, call.begins)))
        else:
            self._done(index, again, given_up(error))


class AsyncioVectorEnv(LocalVectorEnv):
    """Steps environments in an event loop.

    Args:
        env_ids: one id per environment, for people.
        env_fns: functions that build the environments, which have ``reset_async`` and ``step_async`` if they are
            ``asynchronous``.
        autoreset_mode: a mode, or its value.
        timeout: seconds that a step (with the reset that follows it) or a reset may take; None for no limit.
    """

    def __init__(
        self,
        env_ids: Sequence[str],
        env_fns: Sequence[Callable[[], Env]],
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        timeout: float | None = None,
    ) -> None:
        super().__init__(env_ids, env_fns, autoreset_mode)
        slots = [_AwaitedSlot(build, self.autoreset_mode) for build in env_fns]
        self._slots = slots
        for slot in slots:
            slot.build()
        self._loop = _Loop(slots, timeout)
        self._stop = weakref.finalize(self, self._loop.close)

    def close(self) -> None:
        """Close all environments; steps that are under way are cancelled."""
        super().close()
        if self._stop.alive:
            self._stop()
            for slot in self._slots:
                slot.close()

    def start_calls(self, method: str, arguments: dict[int, Any]) -> None:
        """Start calls; see :meth:`VectorEnv.start_calls`."""
        self._loop.start(method, arguments)

    def finished_calls(self, seconds: float | None) -> list[tuple[int, StepOutcome]]:
        """Return the outcomes of calls that have returned; see :meth:`VectorEnv.finished_calls`."""
        outcomes = self._loop.finished(seconds)
        self.restarts = self._loop.abandoned
        return outcomes
