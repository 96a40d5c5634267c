"""ThreadVectorEnv: environments that are stepped in threads.

For steps that wait: for a tool, a server, a subprocess. A thread cannot be killed, so one whose step takes longer than
``timeout`` is abandoned: another thread takes its place, a fresh environment that of its environment, and if the step
ever ends, the thread closes the old environment and ends.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gem.core import Env
from gem.vector.outcome import CRASH_LIMIT, StepOutcome, given_up
from gem.vector.slot import AutoresetMode, Slot
from gem.vector.vector_env import LocalVectorEnv

MAX_THREADS = 1024
CLOSE_SECONDS = 5.0
"""What closing waits for the steps that are under way, where there is no timeout."""

_INSTANT = 1e-4
"""Seconds that are not worth waiting; Python 3.10 waits for ever if they are less than a microsecond."""


_Result = tuple[int, StepOutcome]
"""An index, and what a call of that environment came to."""


class _Job:
    """A call of a slot's method.

    Attributes:
        started: when it began, on the monotonic clock; None before.
        thread: that does it; None before.
        ended: is acquired once: by the thread, when the call has returned, or by who abandons the thread.
        replaced: how many slots were tried before this one, since an outcome was last delivered.
        drop: whether nobody needs the environment any more when the call has returned.
    """

    __slots__ = ("arguments", "drop", "ended", "index", "method", "replaced", "slot", "started", "thread")

    def __init__(self, index: int, slot: Slot, method: str, arguments: tuple[Any, ...], replaced: int = 0) -> None:
        self.index, self.slot, self.method, self.arguments = index, slot, method, arguments
        self.replaced = replaced
        self.started: float | None = None
        self.thread: threading.Thread | None = None
        self.ended = threading.Lock()
        self.drop = False

    def allow(self, seconds: float) -> None:
        """Let the time of the call begin again, so many seconds from now."""
        self.started = time.monotonic() + seconds


def _work(jobs: queue.SimpleQueue[_Job | None], deliver: Callable[[_Result], object]) -> None:
    """Do jobs, in a thread, until there is None."""
    thread = threading.current_thread()
    while (job := jobs.get()) is not None:
        slot = job.slot
        job.thread = thread
        slot.allow = job.allow
        job.started = time.monotonic()
        outcome = getattr(slot, job.method)(*job.arguments)
        if not job.ended.acquire(blocking=False):
            slot.close()
            return
        if job.drop:
            slot.close()
            slot.env = None
        deliver((job.index, outcome))


class ThreadVectorEnv(LocalVectorEnv):
    """Steps environments in threads.

    Args:
        env_ids: one id per environment, for people.
        env_fns: functions that build the environments.
        autoreset_mode: a mode, or its value.
        timeout: seconds that a step (with the reset that follows it) or a reset may take; None for no limit.
        workers: threads, which is how many environments can be stepped at the same time; None for one per environment,
            up to 1,024.
        on_ready: called in one of the threads whenever a step is ready.
    """

    def __init__(
        self,
        env_ids: Sequence[str],
        env_fns: Sequence[Callable[[], Env]],
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        timeout: float | None = None,
        workers: int | None = None,
        on_ready: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(env_ids, env_fns, autoreset_mode)
        self.timeout = timeout
        self._slots = [Slot(build, self.autoreset_mode) for build in env_fns]
        for slot in self._slots:
            slot.build()
        self._todo: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        self._deliver = self._done.put if on_ready is None else partial(_put_and_tell, self._done, on_ready)
        self._jobs: dict[int, _Job] = {}
        self._threads: list[threading.Thread] = []
        self._next_look = 0.0
        for _ in range(workers or min(self.num_envs, MAX_THREADS)):
            self._add_thread()
        self._stop = weakref.finalize(self, _stop, self._todo, self._threads)

    def close(self) -> None:
        """Close all environments, once the steps under way have ended; those that take too long are abandoned."""
        super().close()
        if not self._stop.alive:
            return
        self._stop()
        deadline = time.monotonic() + (CLOSE_SECONDS if self.timeout is None else self.timeout)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hanging = {id(job.slot) for job in self._jobs.values() if job.started and job.ended.acquire(blocking=False)}
        for slot in self._slots:
            if id(slot) not in hanging:
                slot.close()

    def close_after_call(self, index: int) -> None:
        """Have the thread close the environment as soon as the call that is running has returned."""
        self._jobs[index].drop = True

    def _add_thread(self) -> None:
        thread = threading.Thread(target=_work, args=(self._todo, self._deliver), name="gem-vector", daemon=True)
        self._threads.append(thread)
        thread.start()

    def start_calls(self, method: str, arguments: dict[int, Any]) -> None:
        """Start calls; see :meth:`VectorEnv.start_calls`."""
        for index, argument in arguments.items():
            job = self._jobs[index] = _Job(index, self._slots[index], method, (argument,))
            self._todo.put(job)

    def finished_calls(self, seconds: float | None) -> dict[int, StepOutcome]:
        """Return the outcomes of calls that have returned; see :meth:`VectorEnv.finished_calls`."""
        end = None if seconds is None else time.monotonic() + seconds
        outcomes: list[_Result] = []
        while not outcomes:
            outcomes = self._abandon_late()
            left = None if end is None else max(0.0, end - time.monotonic())
            waits = [limit for limit in (left, self._until_next_look()) if limit is not None]
            wait = min(waits, default=None)
            worth_waiting = not outcomes and (wait is None or wait > _INSTANT)
            with contextlib.suppress(queue.Empty):
                outcomes.append(self._done.get(worth_waiting, wait))
            outcomes += [self._done.get() for _ in range(self._done.qsize())]
            if left == 0.0:
                break
        for index, _ in outcomes:
            del self._jobs[index]
        return dict(outcomes)

    def _until_next_look(self) -> float | None:
        return None if self.timeout is None else max(0.0, self._next_look - time.monotonic())

    def _abandon_late(self) -> list[_Result]:
        """Abandon the threads whose calls take too long; return the outcomes of environments that are given up."""
        now = time.monotonic()
        if self.timeout is None or now < self._next_look:
            return []
        outcomes = []
        self._next_look = now + self.timeout
        for job in list(self._jobs.values()):
            if job.started is None or job.thread is None:
                continue
            if now < job.started + self.timeout:
                self._next_look = min(self._next_look, job.started + self.timeout)
            elif job.ended.acquire(blocking=False):
                self.restarts += 1
                self._threads.remove(job.thread)
                self._add_thread()
                error = f"no answer within {self.timeout:g} s"
                slot = self._slots[job.index] = job.slot.successor()
                again = _Job(job.index, slot, "replace", (error, None, job.method == "reset"), job.replaced + 1)
                if again.replaced < CRASH_LIMIT:
                    self._jobs[job.index] = again
                    self._todo.put(again)
                else:
                    outcomes.append((job.index, given_up(error)))
        return outcomes


def _put_and_tell(done: queue.SimpleQueue[_Result], tell: Callable[[], object], result: _Result) -> None:
    done.put(result)
    tell()


def _stop(todo: queue.SimpleQueue[_Job | None], threads: list[threading.Thread]) -> None:
    """Let threads end: steps that none has begun are dropped; environments that were to be closed still are."""
    closing = []
    with contextlib.suppress(queue.Empty):
        while True:
            job = todo.get_nowait()
            if job is not None and job.method == "assign":
                closing.append(job)
    for job in closing:
        todo.put(job)
    for _ in threads:
        todo.put(None)
