"""Environments that ask one question and grade one answer.

A question has an index. ``reset(seed)`` asks question ``seed % size``, so the seeds ``range(size)`` ask each
question once and a task's seed says which question it is. Resets without a seed go on from there, and ask every
question once, in an order drawn at random, before they ask one again in another order.
"""

from __future__ import annotations

import abc
from typing import Any

from gem.core import Env, Info, ResetNeeded, StepResult
from gem.seeds import EpisodeSeeds, check_seed
from gem.utils.constants import TERMINAL_STATE

WITHOUT_EFFECT = frozenset({"verbose", "max_turns", "use_mp", "load_from_cache_file"})
"""Arguments that gem-llm's environments of one turn take, and that need no effect here."""


def check_keywords(env: Env, keywords: dict[str, Any]) -> None:
    """Refuse arguments that are unknown.

    Args:
        env: what was given them.
        keywords: by name; those of :data:`WITHOUT_EFFECT` pass.

    Raises:
        TypeError: one is unknown.
    """
    if unknown := sorted(keywords.keys() - WITHOUT_EFFECT):
        raise TypeError(f"{type(env).__name__} takes no argument {unknown[0]!r}")


def attribute(name: str, meaning: str) -> Any:
    """Return a public attribute that reads and sets the attribute ``name``, which is no part of the state.

    The constructor's argument is ``name`` without its underscore: copies are built with what was set.
    """

    def set_it(env: Env, value: Any) -> None:
        setattr(env, name, value)
        env._remember(**{name.removeprefix("_"): value})

    return property(lambda env: getattr(env, name), set_it, doc=meaning)


class QuestionEnv(Env):
    """An episode of one turn.

    Subclasses write :attr:`size`, :meth:`ask`, :meth:`grade`, :meth:`random_answer` and :meth:`reference_action`.

    Attributes:
        idx: index of the question; -1 before the first ``reset``.
        first_obs: the question, as ``reset`` returned it.
    """

    max_turns = 1
    reward_range = (0.0, 1.0)

    idx = -1
    over = True
    first_obs = ""
    _in_order = False  # whether resets without a seed ask the questions in their order
    _asked = -1  # what idx was after the last reset

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many questions there are."""

    @property
    def epoch(self) -> int:
        """How often resets without a seed have asked every question, since the last seed."""
        return 0 if self._episode_seeds is None else self._episode_seeds.epoch

    @property
    def seed(self) -> int | None:
        """The seed that the constructor was given; one that is set counts for the first reset."""
        return self._first_seed

    @seed.setter
    def seed(self, seed: int | None) -> None:
        self._first_seed = check_seed(seed)

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
            seed: asks question ``seed % size``; None asks the next of those that this pass has not asked yet, or
                question ``self.idx`` if that was set since the last reset.
            idx: asks this question instead, whatever the seed.

        Raises:
            IndexError: there is no question ``idx``.
        """
        given, seeds = self._seed_episode(seed)
        if idx is None and seed is None and self.idx != self._asked:
            idx = self.idx
        if idx is not None and not 0 <= idx < self.size:
            raise IndexError(f"there are questions 0 to {self.size - 1}, not {idx}")
        if idx is None and given is not None and (seed is not None or not self._in_order):
            idx = given % self.size
        if idx is None:
            idx = self._next_question(seeds)
        else:
            seeds.begin_pass(idx, self._in_order)
        self.idx, self.over = idx, False
        self.first_obs = self.ask(idx)
        self._asked = self.idx
        return self.first_obs, {}

    def _next_question(self, seeds: EpisodeSeeds) -> int:
        """Return the index of the next question of a pass."""
        return seeds.next_question(self.size, self._in_order)

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` returned."""
        super().set_state(state)
        self._asked = self.idx

    def _check_question(self, question: str) -> None:
        """Refuse a state of another data set, by the question that is asked here.

        Raises:
            ValueError: it is not the question of the state.
        """
        if question != self.first_obs:
            raise ValueError(f"the state is of another data set: its question {self.idx} is {self.first_obs[:60]!r}")

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
