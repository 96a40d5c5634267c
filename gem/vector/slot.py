"""Slot: the place of one environment in a vector environment, wherever it is stepped.

A slot knows what comes after an episode (autoreset) and after a failure (a fresh environment), and answers every call
with a :class:`StepOutcome`. Back ends differ only in where their slots are: in this thread, in others, in an event
loop, in other processes.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, TypeVar

from gem import faults
from gem.core import Env, Info, ResetNeeded, StepResult
from gem.faults import call_unforked, end_forked_child, error_text, is_from_user, type_name
from gem.step_results import checked_reset, checked_step
from gem.vector.outcome import CRASH_LIMIT, Kind, StepOutcome, answered, as_outcome, given_up, needs_reset, refused

logger = logging.getLogger("gem.vector")
T = TypeVar("T")

BUILD_SECONDS = 60.0
"""What building a fresh environment may take, beside the time of the call that does it."""


class AutoresetMode(Enum):
    """When an environment whose episode has ended begins the next.

    * ``NEXT_STEP``: the next ``step`` ignores its action, resets, and returns reward 0.
    * ``SAME_STEP``: at once. The observation and info returned are the new episode's; the old one's last
      are in ``info["final_obs"]`` and ``info["final_info"]``.
    * ``DISABLED``: never; the caller resets.
    * ``ONCE``: never, and an environment that fails is not replaced either; the caller assigns another.

    A mode is also known by Gymnasium's name for it, which has the first three:

    >>> AutoresetMode("next_step")
    <AutoresetMode.NEXT_STEP: 'NextStep'>
    """

    NEXT_STEP = "NextStep"
    SAME_STEP = "SameStep"
    DISABLED = "Disabled"
    ONCE = "Once"

    @classmethod
    def _missing_(cls, value: object) -> AutoresetMode | None:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


class Slot:
    """An environment, and what comes after its ends and its failures.

    Args:
        build: builds an environment.
        mode: when the next episode begins.

    Attributes:
        env: the environment; None before :meth:`build`, and in the place of one that failed until the next is needed.
        ended: whether its episode has ended, and the next has not begun.
        allow: called with the seconds that the running call may take beside its own time, by which whoever keeps
            deadlines spares the building of environments.
    """

    allow: Callable[[float], object] | None = None

    def __init__(self, build: Callable[[], Env], mode: AutoresetMode) -> None:
        self._build = build
        self.mode = mode
        self.env: Any = None
        self.ended = False
        self._seed: int | None = None
        self._faults = 0
        self._fresh = False
        self._pass: Any = None  # of an environment that has failed, if it asked questions in order
        self._begun = False  # whether an episode has, so that ResetNeeded would be wrong

    def successor(self) -> Slot:
        """Return a slot without an environment that goes on in the place of this one, which hangs."""
        slot = Slot(self._build, self.mode)
        slot.inherit(self._seed, self._faults)
        return slot

    def inherit(self, seed: int | None, faults: int) -> None:
        """Go on in the place of another: take over its last seed, and the number of its failures."""
        self._seed, self._faults = seed, faults

    def build(self) -> None:
        """Build the environment.

        Raises:
            Exception: whatever its constructor raises.
        """
        if self.allow is not None:
            self.allow(BUILD_SECONDS)
        self.env = call_unforked(self._build)
        if self._pass is not None:  # the questions go on where the environment failed
            self.env.unwrapped._episode_seeds, self._pass = self._pass, None
            self._fresh = False
        if self.allow is not None:
            self.allow(0.0)

    def reset(self, seed: int | None = None) -> StepOutcome:
        """Begin an episode; the outcome has no reward and no end."""
        return _run(self.reset_in_loop(seed))

    def step(self, action: Any) -> StepOutcome:
        """Step, and reset where the mode says so."""
        return as_outcome(self.plain_step(action))

    def plain_step(self, action: Any) -> StepResult | StepOutcome:
        """Do the same; return a healthy step as five values, since most are, and a class takes time to make."""
        if self.ended:
            return _run(self.instead_of_step(action))
        depth = faults.forks
        try:
            result = self.env.step(action)
            if faults.forks != depth:  # as call_unforked does, for a quarter of the time
                end_forked_child(depth)
            last = checked_step(self.env, result)
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            end_forked_child(depth)
            return _run(self.after_failure(error))
        if not (last[2] or last[3]):
            return last
        if self.mode is not AutoresetMode.SAME_STEP:
            return _run(self.after_end(last))
        last = *last[:4], dict(last[4])  # an environment may go on using its own
        try:  # as after_end does, without its coroutines: many games end every few steps of a microsecond each
            return self.after(last, *checked_reset(self.env, call_unforked(self.env.reset)))
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            return _run(self.replace_in_loop(self._described(error), last))

    async def reset_in_loop(self, seed: int | None = None) -> StepOutcome:
        """Begin an episode, as :meth:`reset` does, in an event loop."""
        try:
            if self.env is None:
                self.build()
            return self.begun(*await self._reset(seed))
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            return await self.replace_in_loop(self._described(error), begin=True)

    async def instead_of_step(self, action: Any) -> StepResult | StepOutcome:
        """Begin the next episode where the mode says so, in the place of a step of one that has ended."""
        try:
            if self.mode is AutoresetMode.NEXT_STEP:
                return self.begun(*await self._reset(None))
            if self.env is None:
                raise ResetNeeded
            last = checked_step(self.env, await self.call_env("step", action))  # which raises ResetNeeded
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            return await self.after_failure(error)
        return await self.after_end(last) if last[2] or last[3] else last

    async def after_end(self, last: StepResult) -> StepResult | StepOutcome:
        """Go on after the step that ended an episode."""
        if self.mode is not AutoresetMode.SAME_STEP:
            self.ended = True
            return last
        last = *last[:4], dict(last[4])  # an environment may go on using its own
        try:
            return self.after(last, *checked_reset(self.env, await self.call_env("reset")))
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            return await self.replace_in_loop(self._described(error), last)

    async def after_failure(self, error: BaseException) -> StepOutcome:
        """Go on after a step that raised."""
        if isinstance(error, ResetNeeded) and not self.has_begun:
            return needs_reset(error)
        return await self.replace_in_loop(self._described(error))

    async def _reset(self, seed: int | None) -> tuple[str, Info]:
        return checked_reset(self.env, await self.call_env("reset", self.next_seed(seed)))

    async def call_env(self, method: str, *args: Any) -> Any:
        """Call a method of the environment; here, without waiting for anything."""
        return call_unforked(getattr(self.env, method), *args)

    def _described(self, error: BaseException) -> str:
        """Return the text of what the environment raised; raise what is not its own affair."""
        if self.passes_on(error):
            raise error
        return error_text(error)

    def replace(self, error: str, last: StepResult | None = None, begin: bool = False) -> StepOutcome:
        """Put a fresh environment in the place of one that failed.

        Args:
            error: what happened.
            last: the healthy step after which it happened, if there is one to deliver.
            begin: whether to begin an episode in any mode.

        Returns:
            An outcome that ends the episode, with the error in its info.
        """
        return _run(self.replace_in_loop(error, last, begin))

    async def replace_in_loop(self, error: str, last: StepResult | None = None, begin: bool = False) -> StepOutcome:
        """Put a fresh environment in the place of one that failed, as :meth:`replace` does, in an event loop."""
        for _ in range(CRASH_LIMIT):
            try:
                if not self.renew(begin):
                    return self.failed(error, last, None)
                return self.failed(error, last, await self._reset(None))
            except BaseException as another:  # noqa: BLE001 (its own affair, SystemExit too)
                error = self._described(another)
        return given_up(error)

    def assign(self, build: Callable[[], Env]) -> StepOutcome:
        """Put another environment into this slot; what building it raises is in the outcome."""
        self.close()
        self._build = build
        self.env, self.ended, self._fresh, self._begun = None, False, False, False
        self.inherit(None, 0)
        try:
            self.build()
        except BaseException as error:  # noqa: BLE001 (the caller is told)
            text = self._described(error)
            return refused(error if isinstance(error, Exception) else RuntimeError(text))
        return answered("")

    def call(self, what: tuple[str, tuple[Any, ...], dict[str, Any]]) -> StepOutcome:
        """Return an attribute of the environment, or what it returns if it is a method, in the observation's place."""
        name, args, kwargs = what
        try:
            value = getattr(self.env, name)
            value = call_unforked(value, *args, **kwargs) if callable(value) else value
        except BaseException as error:  # noqa: BLE001 (the caller is told)
            return refused(RuntimeError(self._described(error)))
        return answered(value)

    def get_state(self) -> dict[str, Any]:
        """Return the state of the environment and of this slot, and the seeds of the episodes to come.

        Raises:
            TypeError: the environment's state is not JSON data.
        """
        own = {"ended": self.ended, "_seed": self._seed, "_faults": self._faults, "_fresh": self._fresh}
        own["_begun"] = self._begun
        if self.env is None:
            return {**own, "env": None, "seeds": None}
        return {**own, "env": self.env.get_state(), "seeds": getattr(self.env.unwrapped, "_episode_seeds", None)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_state` returned; the environment is built."""
        if state["env"] is None:
            self.env = None
        else:
            self.env.set_state(state["env"])
            self.env.unwrapped._episode_seeds = state["seeds"]
        vars(self).update({name: value for name, value in state.items() if name not in ("env", "seeds")})

    def close(self) -> None:
        """Close the environment, which remains to be looked at."""
        if self.env is None:
            return
        try:
            call_unforked(self.env.close)
        except BaseException as error:  # noqa: BLE001 (the others are to be closed all the same)
            logger.warning("closing %s: %s", type_name(self.env), self._described(error))

    def renew(self, begin: bool) -> bool:
        """Build a fresh environment in the place of one that failed, if one is needed; return whether to reset it."""
        self.close()
        seeds = getattr(getattr(self.env, "unwrapped", None), "_episode_seeds", None)
        self._pass = seeds if seeds is not None and seeds.is_in_order else None
        self.env = None
        self._faults += 1
        self._fresh = True
        if self.mode is AutoresetMode.ONCE:
            return False
        if begin or self.mode is not AutoresetMode.DISABLED:
            self.build()
        return begin or self.mode is AutoresetMode.SAME_STEP

    def next_seed(self, seed: int | None) -> int | None:
        """Return the seed for a reset: a fresh environment must not begin with the episodes of the first one again."""
        if seed is not None:
            self._seed = seed
        elif self._fresh:
            first = self._seed if self._seed is not None else getattr(self.env.unwrapped, "_first_seed", None)
            if first is not None:
                seed = random.Random(f"{first} after {self._faults} failures").getrandbits(32)
        self._fresh = False
        return seed

    def passes_on(self, error: BaseException) -> bool:
        """Return whether an exception is not the environment's own, but ends the caller."""
        return is_from_user(error)

    @property
    def has_begun(self) -> bool:
        """Whether an episode is under way: then it is wrong of the environment to raise ``ResetNeeded``."""
        return self._begun and not self.ended

    def begun(self, observation: str, info: Info) -> StepOutcome:
        """Return the outcome of a reset."""
        self.ended, self._begun = False, True
        return StepOutcome(observation, 0.0, False, False, info, Kind.NO_STEP)

    def after(self, last: StepResult, observation: str, info: Info) -> StepResult:
        """Return the step that ended an episode, after which the next has begun."""
        final, reward, terminated, truncated, final_info = last
        return observation, reward, terminated, truncated, {**info, "final_obs": final, "final_info": final_info}

    def failed(self, error: str, last: StepResult | None, begun: tuple[str, Info] | None) -> StepOutcome:
        """Return the outcome of a failure, after which a fresh environment has begun an episode, or not."""
        final, reward, terminated, truncated, info = last or ("", 0.0, False, True, {"error": error})
        self.ended = begun is None
        self._begun = self._begun or begun is not None
        if begun is None:
            observation, new = final, {**info, "error": error}
        else:
            observation, new = begun[0], {**begun[1], "final_obs": final, "final_info": info, "error": error}
        return StepOutcome(observation, reward, terminated, truncated, new, Kind.FAILURE, error)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("an environment was awaited where nothing can be")
