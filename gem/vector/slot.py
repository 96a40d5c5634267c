"""Slot: the place of one environment in a vector environment, wherever it is stepped.

A slot knows what comes after an episode (autoreset) and after a failure (a fresh environment), and answers every call
with a :class:`StepOutcome`. Back ends differ only in where their slots are: in this thread, in others, in an event
loop, in other processes.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from gem.core import Env, Info, ResetNeeded, StepResult
from gem.faults import call_unforked, end_forked_child, error_message, error_text, fork_depth, is_from_user, type_name
from gem.step_results import checked_reset, checked_step

logger = logging.getLogger("gem.vector")

CRASH_LIMIT = 5
"""Failures of an environment, without a healthy step in between, after which it is given up."""

BUILD_SECONDS = 60.0
"""What building a fresh environment may take, beside the time of the call that does it."""


class Kind(Enum):
    """What a call of an environment came to."""

    STEP = 0
    """A healthy step."""
    NO_STEP = 1
    """A reset, or the answer to a call: neither a healthy step nor a failed one."""
    FAILURE = 2
    """The environment failed, and its episode has ended; a fresh one may have taken its place."""
    GIVEN_UP = 3
    """It failed again and again, and is not tried any more."""
    REFUSED = 4
    """The call was wrong, or cannot be answered: the caller is to get the exception."""


class StepOutcome(NamedTuple):
    """What a call of an environment returned, wherever it was made.

    Attributes:
        observation: a text; or what was asked for by a call.
        reward: of the step.
        terminated: whether the task ended.
        truncated: whether a limit, or a failure, ended the episode.
        info: a dict.
        kind: what the call came to.
        error: a text for a failure, and for one that was given up; an exception for what is refused.
    """

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Info
    kind: Kind = Kind.STEP
    error: Any = None


def as_outcome(result: StepResult | StepOutcome) -> StepOutcome:
    """Return what :meth:`Slot.plain_step` returned as an outcome."""
    return result if isinstance(result, StepOutcome) else StepOutcome(*result)


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


class CrashLoop(RuntimeError):
    """An environment failed :data:`CRASH_LIMIT` times without a healthy step in between, and is not tried again.

    Attributes:
        error: how it failed the last time.
        index: of the environment; None before the vector environment raises it.
        env_id: of the environment; empty if it has none.
    """

    def __init__(self, error: str, index: int | None = None, env_id: str = "") -> None:
        super().__init__(f"{name_environment(index, env_id)} failed {CRASH_LIMIT} times in a row: {error}")
        self.error, self.index, self.env_id = error, index, env_id

    def __reduce__(self) -> tuple[Any, ...]:
        return CrashLoop, (self.error, self.index, self.env_id), vars(self)


def name_environment(index: int | None, env_id: str) -> str:
    """Return how errors refer to an environment.

    >>> name_environment(3, "game:Sudoku-v0")
    'environment 3 (game:Sudoku-v0)'
    """
    return ("an environment" if index is None else f"environment {index}") + (f" ({env_id})" if env_id else "")


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
        if self.allow is not None:
            self.allow(0.0)

    def reset(self, seed: int | None = None) -> StepOutcome:
        """Begin an episode; the outcome has no reward and no end."""
        try:
            if self.env is None:
                self.build()
            return self.begun(*self._reset(seed))
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            return self.replace(self._described(error), begin=True)

    def step(self, action: Any) -> StepOutcome:
        """Step, and reset where the mode says so."""
        return as_outcome(self.plain_step(action))

    def plain_step(self, action: Any) -> StepResult | StepOutcome:
        """Do the same; return a healthy step as five values, since most are, and a class takes time to make."""
        last: StepResult | None = None
        depth = fork_depth()
        try:
            if self.ended:
                if self.mode is AutoresetMode.NEXT_STEP:
                    return self.begun(*self._reset(None))
                if self.env is None:
                    raise ResetNeeded
            result = self.env.step(action)
            end_forked_child(depth)  # as call_unforked does, for half the time
            last = checked_step(self.env, result)
            if last[2] or last[3]:
                if self.mode is AutoresetMode.SAME_STEP:
                    return self.after(last, *checked_reset(self.env, call_unforked(self.env.reset)))
                self.ended = True
            return last
        except BaseException as error:  # noqa: BLE001 (its own affair, SystemExit too)
            end_forked_child(depth)
            if isinstance(error, ResetNeeded) and not self.has_begun:
                return needs_reset(error)
            return self.replace(self._described(error), last)

    def _reset(self, seed: int | None) -> tuple[str, Info]:
        return checked_reset(self.env, call_unforked(self.env.reset, seed=self.next_seed(seed)))

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
        for _ in range(CRASH_LIMIT):
            try:
                if not self.renew(begin):
                    return self.failed(error, last, None)
                return self.failed(error, last, self._reset(None))
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
        """Return the state of the environment and of this slot.

        Raises:
            TypeError: the environment's state is not JSON data.
        """
        own = {"ended": self.ended, "_seed": self._seed, "_faults": self._faults, "_fresh": self._fresh}
        own["_begun"] = self._begun
        return {**own, "env": None if self.env is None else self.env.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_state` returned; the environment is built."""
        if state["env"] is None:
            self.env = None
        else:
            self.env.set_state(state["env"])
        vars(self).update({name: value for name, value in state.items() if name != "env"})

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


def answered(value: Any) -> StepOutcome:
    """Return the outcome of a call that is no step."""
    return StepOutcome(value, 0.0, False, False, {}, Kind.NO_STEP)


def refused(error: Exception) -> StepOutcome:
    """Return the outcome of a call that the caller is to get an exception for."""
    return StepOutcome("", 0.0, False, False, {}, Kind.REFUSED, error)


def needs_reset(error: ResetNeeded) -> StepOutcome:
    """Return the outcome of a step that was asked for where none was possible."""
    return refused(ResetNeeded(error_message(error)))


def given_up(error: str) -> StepOutcome:
    """Return the outcome of an environment of which no fresh one can be had."""
    return StepOutcome("", 0.0, False, True, {"error": error}, Kind.GIVEN_UP, error)
