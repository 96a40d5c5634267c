"""RayVectorEnv: environments as Ray actors, on one machine or many; for those who run a trainer on a Ray cluster.

Where an actor runs, and that it is started again when its process or its machine is lost, is Ray's own doing. Needs the
extra ``ray``.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gem.core import Env
from gem.faults import error_text
from gem.vector.outcome import CRASH_LIMIT, StepOutcome, given_up
from gem.vector.slot import BUILD_SECONDS, AutoresetMode, Slot
from gem.vector.vector_env import VectorEnv

CLOSE_SECONDS = 5.0
"""What closing waits for environments to close."""


class _Actor:
    """An environment, in a process that Ray looks after."""

    def __init__(self, build: Callable[[], Env], mode: AutoresetMode) -> None:
        self._slot = Slot(build, mode)

    def build(self) -> None:
        """Build the environment."""
        self._slot.build()

    def do(self, method: str, argument: Any) -> StepOutcome:
        """Call a method of the slot."""
        return getattr(self._slot, method)(argument)

    def replace(self, error: str, begin: bool, seed: int | None, faults: int) -> StepOutcome:
        """Go on in the place of an actor that was lost."""
        self._slot.inherit(seed, faults)
        return self._slot.replace(error, None, begin)

    def close(self) -> None:
        """Close the environment."""
        self._slot.close()


class RayVectorEnv(VectorEnv):
    """Steps environments in Ray actors, one per environment.

    Args:
        env_ids: one id per environment, for people.
        env_fns: functions that build the environments, which Ray sends to the actors.
        autoreset_mode: a mode, or its value.
        timeout: seconds that a step (with the reset that follows it) or a reset may take; None for no limit.
        actor_options: of the actors, for Ray: ``num_cpus``, ``resources``, ``scheduling_strategy``, ``runtime_env``...

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: an environment cannot be built.
    """

    def __init__(
        self,
        env_ids: Sequence[str],
        env_fns: Sequence[Callable[[], Env]],
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        timeout: float | None = None,
        actor_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(env_ids, env_fns, autoreset_mode)
        self.timeout = timeout
        ray = self._ray = _import_ray()
        options = {"max_restarts": -1, **(actor_options or {})}
        new = ray.remote(_Actor).options(**options).remote
        self._actors = [new(build, self.autoreset_mode) for build in self.env_fns]
        self._stop = weakref.finalize(self, _kill, ray, self._actors)
        self._under: dict[Any, tuple[int, str, float]] = {}  # by the reference of a call: whose, what, since when
        self._late: set[int] = set()
        self._replaced: dict[int, int] = {}
        self._seeds_given: dict[int, int] = {}
        try:
            ray.get([actor.build.remote() for actor in self._actors])
        except ray.exceptions.RayError as error:
            self._stop()
            raise RuntimeError(f"an environment cannot be built: {_cause(error)}") from error

    def close(self) -> None:
        """Close all environments, and end their actors."""
        super().close()
        if self._stop.alive:
            closing = [actor.close.remote() for actor in self._actors]
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
            self._stop()

    def start_calls(self, method: str, arguments: dict[int, Any]) -> None:
        """Start calls; see :meth:`VectorEnv.start_calls`."""
        for index, argument in arguments.items():
            if method == "reset" and argument is not None:
                self._seeds_given[index] = argument
            call = self._actors[index].do.remote(method, argument)
            self._under[call] = index, method, time.monotonic()

    def finished_calls(self, seconds: float | None) -> dict[int, StepOutcome]:
        """Return the outcomes of calls that have returned; see :meth:`VectorEnv.finished_calls`."""
        end = None if seconds is None else time.monotonic() + seconds
        outcomes: dict[int, StepOutcome] = {}
        while not outcomes:
            left = None if end is None else max(0.0, end - time.monotonic())
            waits = [limit for limit in (left, self._kill_late()) if limit is not None]
            calls = list(self._under)
            if self._ray.wait(calls, timeout=min(waits, default=None))[0]:
                ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
                found = (self._outcome(call, *self._under.pop(call)) for call in ready)
                outcomes = dict(outcome for outcome in found if outcome is not None)
            if left == 0.0:
                break
        return outcomes

    def _outcome(self, call: Any, index: int, method: str, since: float) -> tuple[int, StepOutcome] | None:
        """Return the outcome of a call that has ended; None if the environment is being replaced."""
        try:
            outcome = self._ray.get(call)
        except self._ray.exceptions.RayError as failure:
            error = _cause(failure)
            if index in self._late:
                error = f"no answer within {self.timeout:g} s"
            self._late.discard(index)
            self.restarts += 1
            replaced = self._replaced[index] = self._replaced.get(index, 0) + 1
            if replaced < CRASH_LIMIT:
                seed, faults = self._seeds_given.get(index), self.faults[index] + replaced - 1
                actor = self._actors[index].replace.options(max_task_retries=CRASH_LIMIT)
                call = actor.remote(error, method == "reset", seed, faults)
                self._under[call] = index, method, time.monotonic() + BUILD_SECONDS
                return None
            outcome = given_up(error)
        self._replaced.pop(index, None)
        return index, outcome

    def _kill_late(self) -> float | None:
        """Kill the actors whose step takes too long, for Ray to start again; return the seconds until the next can."""
        if self.timeout is None:
            return None
        now = time.monotonic()
        due = now + self.timeout
        for index, _, since in self._under.values():
            if now < since + self.timeout:
                due = min(due, since + self.timeout)
            elif index not in self._late:
                self._late.add(index)
                self._ray.kill(self._actors[index], no_restart=False)
        return due - now


def _cause(error: Exception) -> str:
    return " ".join(error_text(getattr(error, "cause", None) or error).split())


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("the back end ray needs Ray: install gem-adapters[ray]") from error
    return ray


def _kill(ray: Any, actors: Sequence[Any]) -> None:
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)
