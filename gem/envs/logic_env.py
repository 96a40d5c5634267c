r"""Logic: does a statement follow from facts and rules? ``\boxed{True}`` or ``\boxed{False}``.

Reward: 1 for the right one of the two, else 0, so guessing earns about 0.5 and nothing else earns anything.
"""

from __future__ import annotations

from typing import Any

from gem.envs.qa_env import QaEnv


class LogicEnv(QaEnv):
    r"""Answer with ``\boxed{True}`` or ``\boxed{False}``. Arguments are those of :class:`gem.envs.qa_env.QaEnv`."""

    def __init__(
        self, dataset_name: str | None = "", split: str | None = None, dataset: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(dataset_name, split, dataset, **{"extract_boxed": True, **kwargs})

    def ask(self, idx: int) -> str:
        """Return facts, rules and the statement, and how to answer."""
        self.answer = self.row[self._answer_key]
        true, false = self._formatted("True"), self._formatted("False")
        question = str(self._rows[idx][self._question_key]).rstrip()
        return f"{question}\n\nDoes it follow? End with {true} or {false}."

    def random_answer(self) -> str:
        """Return either answer."""
        return self._formatted(self.action_rng.choice(["True", "False"]))
