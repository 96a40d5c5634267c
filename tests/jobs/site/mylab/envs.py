"""A guessing game, well and unwell."""

from __future__ import annotations

import os
import random
import re
import threading
from collections import Counter

import gem
from gem.core import Info, StepResult

ONE_OF = 8
"""One of so many episodes of :class:`Flaky` fails."""


class Near(gem.Env):
    """Guess a number from 1 to 10; the embedded model knows how to answer.

    Args:
        turns: of an episode.
    """

    blocking = False
    reward_range = (-1.0, 5.0)

    def __init__(self, turns: int = 3) -> None:
        super().__init__()
        self.turns = turns
        self.max_turns = turns
        self.over = True

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Draw a number."""
        super().reset(seed)
        self.number = self.rng.randint(1, 10)
        self.turn = 0
        self.over = False
        return f"Guess my number, from 1 to 10, in {self.turns} turns. Put it into \\boxed{{}}, as in \\boxed{{1}}.", {}

    def step(self, action: str) -> StepResult:
        """Pay 1 for the number, less for what is far from it, and -0.1 for what is none."""
        if self.over:
            raise gem.ResetNeeded
        self.turn += 1
        boxes = re.findall(r"\\boxed\{\s*(\d{1,2})\s*\}", action)
        if not boxes:
            observation, reward = "That is no number.", -0.1
        else:
            distance = abs(int(boxes[-1]) - self.number)
            reward = max(0.0, 1 - distance / 10)
            observation = "higher" if int(boxes[-1]) < self.number else "lower"
        solved = reward == 1
        truncated = not solved and self.turn == self.turns
        self.over = solved or truncated
        return observation, reward, solved, truncated, {"success": solved}

    def sample_random_action(self) -> str:
        """Return any number."""
        return f"\\boxed{{{self.action_rng.randint(1, 10)}}}"


class Flaky(Near):
    """One of :data:`ONE_OF` episodes loses its server: ``ConnectionError`` in ``reset`` or in a turn.

    Args:
        turns: of an episode.
        fails: which episodes fail:
            ``"chance"``, any, at random, whatever the seed;
            ``"seed"``, all of some seeds, so whole groups, always the same ones;
            ``"member"``, at most one of each :data:`ONE_OF` episodes that begin from a seed, so one member of a group;
            ``"every"``, every eighth that is begun, whatever its seed.
        fails_in: the turn, from 1, or 0 for ``reset`` (which the runner begins again: ``"seed"`` fails then as well,
            the others mostly do not, and are counted as ``retries``).
        attempts: a folder in which attempts are counted over all processes, for ``"member"`` and ``"every"``; else
            each process has its own count.
    """

    blocking = True

    def __init__(self, turns: int = 3, fails: str = "chance", fails_in: int = 2, attempts: str | None = None) -> None:
        super().__init__(turns)
        if fails not in ("chance", "seed", "member", "every"):
            raise ValueError(f"fails is chance, seed, member or every, got {fails!r}")
        self.fails, self.fails_in, self.attempts = fails, fails_in, attempts

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Decide whether the episode fails."""
        result = super().reset(seed)
        self.sick = self._is_sick(0 if seed is None else seed)
        self._serve(0)
        return result

    def step(self, action: str) -> StepResult:
        """Step, if the server is there."""
        self._serve(self.turn + 1)
        return super().step(action)

    def _serve(self, turn: int) -> None:
        if self.sick and turn == self.fails_in:
            raise ConnectionError("the game's server is gone")

    def _is_sick(self, seed: int) -> bool:
        if self.fails == "chance":
            return random.SystemRandom().randrange(ONE_OF) == 0
        if self.fails == "seed":
            return fails_always(seed)
        if self.fails == "member":
            return (count(f"seed-{seed}", self.attempts) + 3 * seed) % ONE_OF == 0
        return count("all", self.attempts) % ONE_OF == ONE_OF - 1


def fails_always(seed: int) -> bool:
    """Return whether all episodes of a seed fail, with ``fails="seed"``."""
    return random.Random(seed).randrange(ONE_OF) == 0


_counts: Counter[str] = Counter()
_counting = threading.Lock()


def count(name: str, folder: str | None) -> int:
    """Return how often this was called with a name: in this process, or with the folder in all."""
    if folder is None:
        with _counting:
            _counts[name] += 1
            return _counts[name] - 1
    os.makedirs(folder, exist_ok=True)
    number = 0
    while True:
        try:
            os.close(os.open(os.path.join(folder, f"{name}-{number}"), os.O_CREAT | os.O_EXCL))
            return number
        except FileExistsError:
            number += 1
