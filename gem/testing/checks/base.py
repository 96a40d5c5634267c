"""What the checks of an environment share: how they are registered, what they test, and how they fail."""

from __future__ import annotations

import itertools
import math
import numbers
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NoReturn

from gem.core import Env, ResetNeeded
from gem.faults import error_text
from gem.testing.recording import Recording, Turn, random_action, record
from gem.testing.solvers import Solver

EPISODES = 200
"""Episodes of random actions."""

PLAY_SECONDS = 2.5
"""Time for them, after which there are fewer."""

ENDLESS = 1_000
"""Turns after which an episode is taken to have no end."""


class CheckFailed(AssertionError):
    """How an environment breaks the contract: one line per check."""


@dataclass(frozen=True)
class Check:
    """A check of an environment.

    Attributes:
        name: its function's, without the underscore.
        promise: what it tests, as a sentence about an environment that passes.
        function: raises :class:`CheckFailed`, or returns a note on a check that was passed.
        prerequisite: whether no other check makes sense if this one fails.
    """

    name: str
    promise: str
    function: Callable[[Subject], str | None]
    prerequisite: bool


_registered: list[Check] = []

_CheckFunction = Callable[["Subject"], "str | None"]


def check(promise: str, prerequisite: bool = False) -> Callable[[_CheckFunction], _CheckFunction]:
    """Register a function as a check; arguments as in :class:`Check`."""

    def register(function: _CheckFunction) -> _CheckFunction:
        _registered.append(Check(function.__name__.lstrip("_"), promise, function, prerequisite))
        return function

    return register


def checks_of(module: ModuleType) -> list[Check]:
    """Return the checks that a module has registered, in their order."""
    return [each for each in _registered if each.function.__module__ == module.__name__]


@dataclass(frozen=True)
class RandomPlay:
    """Episodes of random actions.

    Attributes:
        rewards: of each episode.
        reports_success: whether an info had ``success``.
        error: what a further episode raised.
    """

    rewards: list[list[Any]]
    reports_success: bool
    error: Exception | None


@dataclass(frozen=True)
class Subject:
    """The environment under test.

    Attributes:
        make: builds it.
        seeds: of the episodes to play.
        solver: plays it well; None if there is none.
        win_share: share of its episodes that the solver is to win.
        thorough: whether checks that stop when their time is over go on until they have seen all.
    """

    make: Callable[[], Env]
    seeds: tuple[int, ...]
    solver: Solver | None = None
    win_share: float = 1.0
    thorough: bool = False

    def deadline(self, seconds: float) -> float:
        """Return when, by ``time.monotonic()``, a check that may take so long is to stop."""
        return math.inf if self.thorough else time.monotonic() + seconds

    @cached_property
    def recordings(self) -> list[Recording]:
        """One episode per seed."""
        return [record(self.make, seed) for seed in self.seeds]

    @cached_property
    def random_play(self) -> RandomPlay:
        """Up to :data:`EPISODES` episodes, as many as there is time for."""
        end = self.deadline(PLAY_SECONDS)
        episodes: list[list[Any]] = []
        reports_success = False
        try:
            with self.make() as env:
                for seed in range(EPISODES):
                    if time.monotonic() > end:
                        break
                    env.reset(seed=seed)
                    turns = list(random_turns(env))
                    episodes.append([turn.reward for turn in turns])
                    reports_success |= any("success" in turn.info for turn in turns if isinstance(turn.info, dict))
        except Exception as error:  # noqa: BLE001 (whatever the environment raises is the finding)
            return RandomPlay(episodes, reports_success, error)
        return RandomPlay(episodes, reports_success, None)

    @property
    def few(self) -> list[Recording]:
        """Episodes for checks that play each of them many times."""
        return self.recordings[:3]


def fail(seen: str, advice: str) -> NoReturn:
    """Fail a check: what was seen, and what to do about it."""
    raise CheckFailed(f"{seen}. {advice}.")


def require(holds: bool, seen: str, advice: str) -> None:
    """Fail a check unless a condition holds; see :func:`fail`."""
    if not holds:
        fail(seen, advice)


def require_same(then: Sequence[str], now: Sequence[str], where: str, advice: str) -> None:
    """Fail a check unless two episodes have the same results, as lines of text."""
    for index, (a, b) in enumerate(itertools.zip_longest(then, now, fillvalue="(nothing)")):
        if a != b:
            fail(f"{where}, result {index} was {_excerpt(a, b)} and is now {_excerpt(b, a)}", advice)


def _excerpt(text: str, other: str) -> str:
    """Return ``text`` around the first character in which it differs from ``other``."""
    pairs = zip(text, other, strict=False)
    first = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = max(0, first - 30)
    return f"{'...' * (start > 0)}{text[start : first + 50]}{'...' * (first + 50 < len(text))}"


def require_replays(recordings: Sequence[Recording], replays: Sequence[Sequence[str]], where: str, advice: str) -> None:
    """Fail a check unless every recording was replayed with the same results."""
    for recording, lines in zip(recordings, replays, strict=True):
        require_same(recording.lines, lines, f"{where}, seed {recording.seed}", advice)


def random_turns(env: Env) -> Iterator[Turn]:
    """Step with random actions until the episode ends."""
    for _ in range(ENDLESS):
        turn = Turn(*env.step(random_action(env)))
        yield turn
        if turn.ended:
            return


def describe_error(error: BaseException) -> str:
    """Return what was raised, and where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {error_text(error)[:200]} ({frame.filename}:{frame.lineno})"


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def needs_reset(env: Env) -> bool:
    """Return whether ``step`` raises ``ResetNeeded``."""
    try:
        env.step("\\boxed{1}")
    except ResetNeeded:
        return True
    return False


USE_RNG = "Draw everything from self.rng, which super().reset(seed) makes; keep no state outside of it"
CALL_SUPER_RESET = "Call super().reset(seed) first"
RAISE_RESET_NEEDED = "Raise gem.ResetNeeded in it"
SAVE_ALL = (
    "Keep what changes in public attributes that are JSON data (a wrapper names them in state_attributes), or "
    "override get_state and set_state"
)
