r"""Maths: a question, and an answer in ``\boxed{}``.

Reward: 1 for an answer that is the same as the reference, as math-verify sees it, else 0. What is not a value is no
answer: text, an equation whose sides differ (``41=42``), several values where one is asked for, or more than
:data:`LONGEST` characters.

math-verify computes, and may compute for ever: it runs in processes of its own, which are killed after
:data:`GRADE_SECONDS`, and an answer that takes longer is wrong. Answers that take more than :data:`QUICK_SECONDS` wait
for one another, and the others do not wait for them. There are no signal handlers, so environments may be stepped in
any thread.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from gem.envs.datasets import DatasetEnv, gold_answers
from gem.envs.math_grading import is_same, load
from gem.envs.question import attribute, check_keywords
from gem.utils.parsing import extract_last_boxed_answer
from gem.workers import CallFailed, WorkerPool

GRADE_SECONDS = 3.0
QUICK_SECONDS = 0.5
LONGEST = 1_000

_workers = WorkerPool(prepare=load, fork=True)


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
        self._question_key = question_key
        self._answer_key = answer_key

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
        answer = (extract_last_boxed_answer(model_answer) or "").strip()
        golds = [gold.strip() for gold in gold_answers(gt_answer)]
        if not answer or len(answer) > LONGEST:
            return False
        if answer in golds:
            return True
        try:
            return _workers.call(is_same, answer, golds, timeout=GRADE_SECONDS, quick=QUICK_SECONDS)
        except CallFailed:
            return False

    def random_answer(self) -> str:
        """Return the answer to another question."""
        return _boxed(self._random_row()[self._answer_key])

    def reference_action(self) -> str:
        """Return the reference."""
        return _boxed(self.answer)


def _boxed(answers: Any) -> str:
    return f"\\boxed{{{gold_answers(answers)[0]}}}"
