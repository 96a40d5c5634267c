"""AsyncioVectorEnv: environments with ``async`` steps, thousands of them in one thread.

An event loop runs them: in the caller's thread while it waits in ``recv``, and in a thread of its own while the caller
does something else, so that servers are talked to meanwhile. A step that takes longer than ``timeout`` is cancelled;
one that does not heed that is abandoned.

Steps must ``await`` what they wait for: one that blocks the thread holds up all environments, as anywhere in asyncio.
Environments without ``async`` steps are stepped in the loop too, which is right for steps of microseconds only.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from gem.core import Env, ResetNeeded, StepResult
from gem.faults import call_unforked, error_text
from gem.step_results import checked_reset, checked_step
from gem.vector.slot import CRASH_LIMIT, AutoresetMode, Slot, StepOutcome, as_outcome, given_up, needs_reset
from gem.vector.stepper import Stepper
from gem.vector.vector_env import LocalVectorEnv

CLOSE_SECONDS = 5.0
"""What closing waits for tasks that environments have left behind to heed their cancellation."""
AWAY_SECONDS = 0.002
"""How long the caller is elsewhere before the loop goes on in its own thread."""


class _Place(Stepper):
    """Where one environment is stepped: what :class:`~gem.vector.slot.Slot` does, with coroutines.

    Attributes:
        slot: of the environment.
        since: when the time of the call under way began, on the monotonic clock; None if nothing is under way.
        late: why it was cancelled, if it was.
        tries: how many environments failed in it.
    """

    __slots__ = ("_begin", "_deliver", "_doing", "_error", "_index", "_last", "late", "since", "slot", "tries")

    def __init__(self, index: int, slot: Slot, deliver: Callable[[int, StepOutcome], None]) -> None:
        super().__init__()
        self.slot = slot
        self.since: float | None = None
        self.late = ""
        self.tries = 0
        self._index, self._deliver = index, deliver
        self._doing = ""
        self._begin = False
        self._last: StepResult | None = None
        self._error = ""
        slot.allow = self.allow

    def allow(self, seconds: float) -> None:
        """Let the time of the running call begin again, so many seconds from now."""
        self.since = time.monotonic() + seconds

    def call(self, method: str, argument: Any) -> None:
        """Call a method of the slot, or the environment's coroutine in its place."""
        self._begin = method == "reset"
        try:
            if method in ("call", "assign") or not self._has_coroutines():
                self._done(getattr(self.slot, method)(argument))
                return
            coroutine: Coroutine[Any, Any, Any] | None = self._coroutine_for(method, argument)
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            coroutine = self._after_failure(error)
        self._run(coroutine)

    def _has_coroutines(self) -> bool:
        if self._begin and self.slot.env is None:
            self.slot.build()
        return getattr(self.slot.env, "asynchronous", False)

    def _coroutine_for(self, method: str, argument: Any) -> Coroutine[Any, Any, Any]:
        slot = self.slot
        if method == "step" and not (slot.ended and slot.mode is AutoresetMode.NEXT_STEP):
            self._doing = "step"
            return call_unforked(slot.env.step_async, argument)
        self._doing = "reset"
        seed = slot.next_seed(argument if method == "reset" else None)
        return call_unforked(slot.env.reset_async, seed=seed)

    def ended(self, result: Any, failure: BaseException | None) -> Coroutine[Any, Any, Any] | None:
        """Go on after a coroutine of the environment; see :class:`~gem.vector.stepper.Stepper`."""
        slot = self.slot
        try:
            if failure is not None:
                if self.late and isinstance(failure, asyncio.CancelledError):
                    return self.replace(self.late)
                raise failure
            if self._doing == "step":
                last = checked_step(slot.env, result)
                if not (last[2] or last[3]):
                    return self._done(as_outcome(last))
                if slot.mode is AutoresetMode.SAME_STEP:
                    self._doing, self._last = "reset after", last
                    return call_unforked(slot.env.reset_async, seed=None)
                slot.ended = True
                return self._done(as_outcome(last))
            observation, info = checked_reset(slot.env, result)
            if self._doing == "reset":
                return self._done(slot.begun(observation, info))
            if self._doing == "reset after" and self._last is not None:
                return self._done(as_outcome(slot.after(self._last, observation, info)))
            return self._done(slot.failed(self._error, self._last, (observation, info)))
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            return self._after_failure(error)

    def _after_failure(self, error: BaseException) -> Coroutine[Any, Any, Any] | None:
        if isinstance(error, ResetNeeded) and self._doing == "step" and not self.slot.has_begun:
            return self._done(needs_reset(error))
        if self.slot.passes_on(error):
            raise error
        return self.replace(error_text(error))

    def replace(self, error: str) -> Coroutine[Any, Any, Any] | None:
        """Put a fresh environment in the place of one that failed; return the coroutine that resets it, if any."""
        slot = self.slot
        while self.tries < CRASH_LIMIT:
            self.tries += 1
            self._doing, self._error, self.late = "reset fresh", error, ""
            try:
                if not slot.renew(self._begin):
                    return self._done(slot.failed(error, self._last, None))
                seed = slot.next_seed(None)
                if getattr(slot.env, "asynchronous", False):
                    return call_unforked(slot.env.reset_async, seed=seed)
                begun = checked_reset(slot.env, call_unforked(slot.env.reset, seed=seed))
                return self._done(slot.failed(error, self._last, begun))
            except BaseException as another:
                if slot.passes_on(another):
                    raise
                error = error_text(another)
        return self._done(given_up(error))

    def go_on(self, other: _Place, error: str) -> None:
        """Go on in the place of another, whose coroutine does not heed that it was cancelled."""
        self.tries, self._begin, self._last = other.tries, other._begin, other._last
        self._run(self.replace(error))

    def _run(self, coroutine: Coroutine[Any, Any, Any] | None) -> None:
        if coroutine is not None:
            self.run(coroutine)

    def _done(self, outcome: StepOutcome) -> Coroutine[Any, Any, Any] | None:
        self.since, self.late, self.tries, self._last = None, "", 0, None
        self._deliver(self._index, outcome)
        return None


class _Stage:
    """An event loop, the environments in it, and the two threads that take turns in running it.

    Attributes:
        slots: of the environments.
        outcomes: that are ready.
        abandoned: how many coroutines did not heed their cancellation.
    """

    def __init__(self, slots: list[Slot], timeout: float | None) -> None:
        self.slots = slots
        self.timeout = timeout
        self.outcomes: list[tuple[int, StepOutcome]] = []
        self.abandoned = 0
        self.loop = asyncio.new_event_loop()
        self._places: list[_Place] = []
        self._turn = threading.Lock()  # whoever has it runs the loop
        self._away_since: float | None = time.monotonic()
        self._awaited = False
        self._ready = threading.Event()
        self._closed = False
        if timeout is not None:
            self.loop.call_soon(self._look)
        self._thread = threading.Thread(target=self._run_while_away, name="gem-vector-loop", daemon=True)
        self._thread.start()

    def start(self, method: str, arguments: dict[int, Any]) -> None:
        """Call a method of slots with an argument each; where the loop runs."""
        if not self._places:
            self._places = [_Place(index, slot, self._deliver) for index, slot in enumerate(self.slots)]
        now = time.monotonic()
        for index, argument in arguments.items():
            place = self._places[index]
            place.since = now
            place.call(method, argument)

    def wait(self, seconds: float | None) -> None:
        """Run the loop until an outcome is ready, or the time is up."""
        if asyncio._get_running_loop() is not None:  # this thread is taken: the other one must do it
            self._away_since, self._awaited = 0.0, True
            self._ready.wait(seconds)
        else:
            self._take_turn()
            try:
                self._awaited = True
                if not self.outcomes:
                    timer = None if seconds is None else self.loop.call_later(seconds, self.loop.stop)
                    self.loop.run_forever()
                    if timer is not None:
                        timer.cancel()
            finally:
                self._turn.release()
                self._away_since = time.monotonic()
        self._awaited = False
        self._ready.clear()

    def close(self) -> None:
        """Cancel what is under way, and end the loop and its thread."""
        self._closed = True
        self._take_turn()
        self._thread.join()
        for place in self._places:
            place.close()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if asyncio._get_running_loop() is None:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=CLOSE_SECONDS) if tasks else asyncio.sleep(0))
        self.loop.close()

    def _take_turn(self) -> None:
        self._away_since = None
        while not self._turn.acquire(timeout=AWAY_SECONDS):
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        if threading.current_thread() is self._thread:
            self.loop.stop()

    def _run_while_away(self) -> None:
        while not self._closed:
            time.sleep(AWAY_SECONDS)
            since = self._away_since
            if since is None or time.monotonic() - since < AWAY_SECONDS or not self._turn.acquire(blocking=False):
                continue
            try:
                if self._away_since is not None:
                    self.loop.run_forever()
            finally:
                self._turn.release()

    def _deliver(self, index: int, outcome: StepOutcome) -> None:
        self.outcomes.append((index, outcome))
        if self._awaited:
            self._awaited = False
            self._ready.set()
            self.loop.stop()

    def _look(self) -> None:
        """Cancel what takes too long; abandon what goes on for as long again."""
        assert self.timeout is not None
        now = time.monotonic()
        due = now + self.timeout
        error = f"no answer within {self.timeout:g} s"
        for index, place in enumerate(self._places):
            if place.since is None:
                continue
            if now < place.since + self.timeout:
                due = min(due, place.since + self.timeout)
                continue
            place.since = now
            if not place.late:
                place.late = error
                place.cancel()
                continue
            self.abandoned += 1
            place.close()
            self.slots[index] = place.slot.successor()
            self._places[index] = _Place(index, self.slots[index], self._deliver)
            self._places[index].go_on(place, error)
        self.loop.call_later(max(0.0, due - now), self._look)


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
        self._slots = [Slot(build, self.autoreset_mode) for build in env_fns]
        for slot in self._slots:
            slot.build()
        self._stage = _Stage(self._slots, timeout)
        self._stop = weakref.finalize(self, self._stage.close)

    def close(self) -> None:
        """Close all environments; steps that are under way are cancelled."""
        super().close()
        if self._stop.alive:
            self._stop()
            for slot in self._slots:
                slot.close()

    def start_calls(self, method: str, arguments: dict[int, Any]) -> None:
        """Start calls; see :meth:`VectorEnv.start_calls`."""
        self._stage.loop.call_soon_threadsafe(self._stage.start, method, arguments)

    def finished_calls(self, seconds: float | None) -> list[tuple[int, StepOutcome]]:
        """Return the outcomes of calls that have returned; see :meth:`VectorEnv.finished_calls`."""
        stage = self._stage
        if not stage.outcomes:
            stage.wait(seconds)
        count = len(stage.outcomes)
        outcomes = stage.outcomes[:count]
        del stage.outcomes[:count]
        self.restarts = stage.abandoned
        return outcomes
