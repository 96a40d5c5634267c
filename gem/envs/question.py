"""Environments that ask one question and grade one answer.

A question has an index. ``reset(seed)`` asks question ``seed % size``, so the seeds ``range(size)`` ask each
question once and a task's seed says which question it is; ``reset()`` goes on with one that is drawn at random.
"""

from __future__ import annotations

import abc

from gem.core import Env, Info, ResetNeeded, StepResult, check_seed
from gem.utils.constants import TERMINAL_STATE


class QuestionEnv(Env):
    """An episode of one turn.

    Subclasses write :attr:`size`, :meth:`ask`, :meth:`grade`, :meth:`random_answer` and :meth:`reference_action`.

    Attributes:
        idx: index of the question; -1 before the first ``reset``.
    """

    max_turns = 1
    reward_range = (0.0, 1.0)

    idx = -1
    over = True

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many questions there are."""

    @abc.abstractmethod
    def ask(self, idx: int) -> str:
        """Return question ``idx`` as the player sees it, and keep what grading needs."""

    @abc.abstractmethod
    def grade(self, action: str) -> tuple[float, bool]:
        """Return the reward of an answer, and whether it is right."""

    @abc.abstractmethod
    def random_answer(self) -> str:
        """Return the text of an answer of the right form, drawn from ``self.action_rng``."""

    def reference_action(self) -> str:
        """Return the text of an answer that is known to be right.

        Raises:
            NotImplementedError: none is known.
        """
        raise NotImplementedError(f"{type(self).__name__} knows no right answer")

    def reset(self, seed: int | None = None, idx: int | None = None) -> tuple[str, Info]:
        """Ask a question.

        Args:
            seed: asks question ``seed % size``; None asks one that is drawn at random.
            idx: asks this question instead, whatever the seed.

        Raises:
            IndexError: there is no question ``idx``.
        """
        super().reset(seed)
        if idx is None:
            first = check_seed(self._first_seed if seed is None and self.idx < 0 else seed)
            idx = self.rng.randrange(self.size) if first is None else first % self.size
        elif not 0 <= idx < self.size:
            raise IndexError(f"there are questions 0 to {self.size - 1}, not {idx}")
        self.idx, self.over = idx, False
        return self.ask(idx), {}

    def step(self, action: str) -> StepResult:
        """Grade the answer."""
        if self.over:
            raise ResetNeeded
        reward, correct = self.grade(action)
        self.over = True
        return TERMINAL_STATE, reward, True, False, {"success": correct, "correct": correct}

    def sample_random_action(self) -> str:
        """Return a random answer."""
        if self.over:
            raise ResetNeeded
        return self.random_answer()
