r"""Maths: a question, and an answer in ``\boxed{}``.

Reward: 1 for an answer that is the same as the reference, as math-verify sees it, else 0. What is not a value is no
answer: text, an equation whose sides differ (``41=42``), several values where one is asked for, or more than
:data:`LONGEST` characters.

How two answers are compared is in :mod:`gem.utils.math_grader`.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

from gem.envs.datasets import DatasetEnv
from gem.envs.question import attribute, check_keywords
from gem.utils.math_grader import boxed_reward_fn, is_right
from gem.utils.parsing import extract_last_boxed_answer, gold_answers

verify_fn = partial(boxed_reward_fn, fast=False, correct_reward=1, incorrect_reward=0)
"""Grades a text: a name of gem-llm's."""


class MathEnv(DatasetEnv):
    r"""Answer a question with ``\boxed{...}``.

    Args:
        dataset_name: what to load: see :func:`gem.envs.datasets.load_rows`.
        split: which split of it.
        dataset: rows to ask from instead.
        question_key: column of the question.
        answer_key: column of the answer, or of a list of answers that are all right.
        seed: question of the first ``reset()`` that is called without a seed.
        use_mp: accepted, as published, and without effect: answers are always graded in other processes.
        eval: resets without a seed ask the questions in the order of the data set.
        **published: see :data:`gem.envs.question.WITHOUT_EFFECT`.

    Attributes:
        answer: of the question, or a list of answers that are all right; it may be set.

    Raises:
        ImportError: math-verify is not installed, or what loads the data set is not.
        ValueError: the data set has no such split or column.
    """

    blocking = True

    def __init__(
        self,
        dataset_name: str | None = "",
        split: str | None = None,
        dataset: Any = None,
        question_key: str = "problem",
        answer_key: str = "answer",
        seed: int | None = None,
        use_mp: bool = True,
        eval: bool = False,
        **published: Any,
    ) -> None:
        check_keywords(self, published)
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError(
                "grading needs math-verify: install gem-adapters[math] (or math-verify[antlr4_9_3] beside a "
                "package that pins antlr 4.9.3, as omegaconf does)"
            )
        super().__init__(dataset_name, split, dataset, [question_key, answer_key], seed, eval)
        self.answer: Any = None
        self._use_mp = use_mp
        self._question_key = question_key
        self._answer_key = answer_key

    use_mp = property(lambda env: env._use_mp, doc="As it was given; it has no effect.")
    question_key = attribute("_question_key", "Column of the question.")
    answer_key = attribute("_answer_key", "Column of the answer.")

    def ask(self, idx: int) -> str:
        """Return the question, with a word on the form of the answer."""
        self.answer = self.row[self._answer_key]
        return f"{self.row[self._question_key].rstrip()}\n\nPut your final answer into \\boxed{{}}."

    def grade(self, action: str) -> tuple[float, bool]:
        """Compare the answer with the reference."""
        correct = self.check_correct(action, self.answer)
        return float(correct), correct

    @staticmethod
    def check_correct(model_answer: str, gt_answer: Any) -> bool:
        r"""Return whether the last ``\boxed{}`` of a text is the reference, or one of a list of them."""
        return is_right(extract_last_boxed_answer(model_answer) or "", gt_answer)

    def random_answer(self) -> str:
        """Return the answer to another question."""
        return _boxed(self._random_row()[self._answer_key])

    def reference_action(self) -> str:
        """Return the reference."""
        return _boxed(self.answer)


def _boxed(answers: Any) -> str:
    return f"\\boxed{{{gold_answers(answers)[0]}}}"
