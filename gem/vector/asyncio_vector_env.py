"""AsyncioVectorEnv: environments with ``async`` steps, thousands of them in one thread.

An event loop in a thread of its own runs them, each environment in a task: servers are talked to while the caller does
something else. A step that takes longer than ``timeout`` is cancelled; one that does not heed that is abandoned.

Steps must ``await`` what they wait for: one that blocks the thread holds up all environments, as anywhere in asyncio.
Environments without ``async`` steps are stepped in the loop too, which is right for steps of microseconds only.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from gem import faults
from gem.core import Env
from gem.faults import Unforked, end_forked_child, error_text
from gem.step_results import checked_step
from gem.vector.outcome import CRASH_LIMIT, StepOutcome, as_outcome, given_up
from gem.vector.slot import AutoresetMode, Slot
from gem.vector.vector_env import LocalVectorEnv

STARTED_AT_ONCE = 64
"""Calls that are started before the event loop goes on with others."""

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

    def __init__(self, build: Callable[[], Env], mode: AutoresetMode) -> None:
        super().__init__(build, mode)
        self._depth = faults.forks

    def call_env(self, method: str, *args: Any) -> Any:
        end_forked_child(self._depth)
        env = self.env
        if not getattr(env, "asynchronous", False):
            return super().call_env(method, *args)
        return (env.step_async if method == "step" else env.reset_async)(*args)

    def _described(self, error: BaseException) -> str:
        end_forked_child(self._depth)
        if self.late and isinstance(error, asyncio.CancelledError):
            text = self.late
            self.take_back_cancellation()
            return text
        return super()._described(error)

    def take_back_cancellation(self) -> None:
        """Let what comes next in this task not be cancelled."""
        self.late = ""
        task: Any = asyncio.current_task()
        if hasattr(task, "uncancel"):  # since Python 3.11
            task.uncancel()

    def passes_on(self, error: BaseException) -> bool:
        """Return whether an exception is not the environment's own, or nobody waits for what comes after it."""
        return self.closing or super().passes_on(error)

    def successor(self) -> _AwaitedSlot:
        """Return a slot that goes on in the place of this one, which hangs."""
        slot = _AwaitedSlot(self._build, self.mode)
        slot.inherit(self._seed, self._faults)
        return slot


class _Worker:
    """A task that makes the calls of one slot, one after another.

    A task for every call would be simpler, but making tasks takes longer than most of what happens in a step.

    Attributes:
        index: of the environment.
        slot: whose environment is called.
        since: when the time of the running call began, on the monotonic clock; None if nothing is running.
        method: what is running: "step", "reset", or "replace" after a call that was abandoned.
        begins: whether the call was a reset.
        tries: how many slots were abandoned in the running call.
        abandoned: whether another worker has taken its place.
    """

    __slots__ = (
        *("index", "slot", "since", "method", "begins", "tries", "abandoned"),
        *("_loop", "_deliver", "_task", "_next"),
    )

    def __init__(
        self,
        index: int,
        slot: _AwaitedSlot,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[_Worker, StepOutcome], None],
    ) -> None:
        self.index, self.slot = index, slot
        self.since: float | None = None
        self.method, self.begins, self.tries, self.abandoned = "", False, 0, False
        self._loop, self._deliver = loop, deliver
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[Any] = loop.create_future()
        slot.allow = self._allow

    def start(self, now: float, method: str, argument: Any) -> None:
        """Let the task step or reset the slot, or replace its environment; the time of this begins now."""
        if self._task is None:
            self._task = self._loop.create_task(Unforked(self._work()))
        self.since, self.method = now, method
        self._next.set_result(argument)

    def cancel(self, error: str) -> None:
        """Cancel the running call, which is late."""
        assert self._task is not None, "a call is running"
        self.slot.late = error
        self._task.cancel()

    def _allow(self, seconds: float) -> None:
        self.since = time.monotonic() + seconds

    async def _work(self) -> None:
        slot = self.slot
        while not slot.closing:
            argument = await self._next
            del self._next  # which thousands of tasks need not hold while they wait for their steps
            try:
                if self.method == "reset":
                    outcome = await slot.reset_in_loop(argument)
                elif self.method == "replace":
                    outcome = await slot.replace_in_loop(argument, None, self.begins)
                elif slot.ended:
                    outcome = as_outcome(await slot.instead_of_step(argument))
                else:
                    # As Slot.plain_step does. It stands here because most calls are steps: for each, a coroutine more
                    # would be made, awaited, and looked at by the garbage collector.
                    try:
                        last = checked_step(slot.env, await slot.call_env("step", argument))
                    except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
                        outcome = await slot.after_failure(error)
                    else:
                        is_over = last[2] or last[3]
                        outcome = as_outcome(await slot.after_end(last)) if is_over else StepOutcome(*last)
            except GeneratorExit:  # the loop has ended, and left a call behind that did not heed its cancellation
                raise
            except BaseException as error:  # noqa: BLE001 (a slot has let it pass: the caller is to know)
                outcome = given_up(error_text(error))
            if slot.late:
                slot.take_back_cancellation()
            self._next = self._loop.create_future()
            self._deliver(self, outcome)
        if self.abandoned:
            slot.close()


class _Loop:
    """An event loop in a thread, and the calls of slots in it. Nothing here refers to the vector environment.

    Attributes:
        abandoned: how many coroutines did not heed their cancellation.
    """

    def __init__(self, slots: list[_AwaitedSlot], timeout: float | None) -> None:
        self.timeout = timeout
        self.abandoned = 0
        self._slots = slots
        self._outcomes: dict[int, StepOutcome] = {}
        self._lock = threading.Lock()  # of the outcomes
        self._some = threading.Semaphore(0)  # released when there are some again
        self._loop = asyncio.new_event_loop()
        self._workers = [_Worker(index, slot, self._loop, self._deliver) for index, slot in enumerate(slots)]
        if timeout is not None:
            self._loop.call_soon(self._look)
        self._thread = threading.Thread(target=self._loop.run_forever, name="gem-vector-loop", daemon=True)
        self._thread.start()

    def start(self, method: str, arguments: dict[int, Any]) -> None:
        """Call a method of slots with an argument each; from any thread."""
        self._loop.call_soon_threadsafe(self._start, method, iter(arguments.copy().items()))

    def finished(self, seconds: float | None) -> dict[int, StepOutcome]:
        """Return what calls have come to, waiting at most so long for the first."""
        if not self._some.acquire(timeout=seconds):
            return {}
        with self._lock:
            outcomes, self._outcomes = self._outcomes, {}
        return outcomes

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
        for slot in self._slots:
            slot.closing = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)

    def _start(self, method: str, arguments: Iterator[tuple[int, Any]]) -> None:
        """Start some calls, and the others when the loop has come round.

        A call that is scheduled and has not begun holds objects of asyncio, which are released when it begins. With
        those of thousands of calls, Python's garbage collector would run again and again.
        """
        now = time.monotonic()
        index = None
        for index, argument in islice(arguments, STARTED_AT_ONCE):
            worker = self._workers[index]
            if worker.slot.closing:
                return
            worker.begins, worker.tries = method == "reset", 0
            if method in ("step", "reset"):
                worker.start(now, method, argument)
            else:
                self._deliver(worker, getattr(worker.slot, method)(argument))
        if index is not None:
            self._loop.call_soon(self._start, method, arguments)

    def _deliver(self, worker: _Worker, outcome: StepOutcome) -> None:
        if worker.abandoned:
            return
        worker.since = None
        with self._lock:
            self._outcomes[worker.index] = outcome
            is_first = len(self._outcomes) == 1
        if is_first:
            self._some.release()

    def _look(self) -> None:
        """Cancel what takes too long; abandon what goes on for as long again."""
        assert self.timeout is not None
        now = time.monotonic()
        due = now + self.timeout
        error = f"no answer within {self.timeout:g} s"
        for worker in list(self._workers):
            if worker.since is None:
                continue
            if now < worker.since + self.timeout:
                due = min(due, worker.since + self.timeout)
                continue
            worker.since = now
            if not worker.slot.late:
                worker.cancel(error)
            else:
                self._abandon(worker, error)
        self._loop.call_later(max(0.0, due - now), self._look)

    def _abandon(self, worker: _Worker, error: str) -> None:
        """Go on with another slot and task, in the place of those whose coroutine does not heed its cancellation."""
        self.abandoned += 1
        worker.abandoned = worker.slot.closing = True
        index = worker.index
        slot = self._slots[index] = worker.slot.successor()
        another = self._workers[index] = _Worker(index, slot, self._loop, self._deliver)
        another.begins, another.tries = worker.begins, worker.tries + 1
        if another.tries < CRASH_LIMIT:
            another.start(time.monotonic(), "replace", error)
        else:
            self._deliver(another, given_up(error))


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

    def finished_calls(self, seconds: float | None) -> dict[int, StepOutcome]:
        """Return the outcomes of calls that have returned; see :meth:`VectorEnv.finished_calls`."""
        outcomes = self._loop.finished(seconds)
        self.restarts = self._loop.abandoned
        return outcomes
