"""What a call of an environment came to, wherever it was made."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from gem.core import Info, ResetNeeded, StepResult
from gem.faults import error_message

CRASH_LIMIT = 5
"""Failures of an environment, without a healthy step in between, after which it is given up."""


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
