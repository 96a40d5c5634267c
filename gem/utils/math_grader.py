r"""Grading of mathematical answers, for :class:`gem.envs.math_env.MathEnv` and under the names of gem-llm.

There is one grader, whichever function is asked: math-verify, and what :mod:`gem.utils.math_equality` adds to it. It
computes, and may compute for ever: so it runs in processes of its own, which are killed after :data:`GRADE_SECONDS`,
and an answer that takes longer is wrong. Answers that take more than :data:`QUICK_SECONDS` wait for one another, and
the others do not wait for them. There are no signal handlers, so answers may be graded in any thread.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

from gem.utils.math_equality import is_same, load
from gem.utils.parsing import extract_last_boxed_answer, gold_answers, last_boxed_only_string, remove_boxed
from gem.workers import CallFailed, WorkerPool

__all__ = [
    "TimeoutException",
    "answer_tag_reward_fn",
    "answer_tag_reward_fn_for_orz",
    "are_equal_under_sympy",
    "boxed_reward_fn",
    "extract_answer",
    "extract_boxed_answer",
    "grade",
    "grade_answer_mathd",
    "grade_answer_sympy",
    "is_latex_equal",
    "is_right",
    "is_value_equal",
    "last_boxed_only_string",
    "mathd_normalize_answer",
    "normalize_final_answer",
    "numeric_equal",
    "r1_distill_qwen_math_reward_fn",
    "remove_boxed",
    "run_with_timeout_signal",
    "split_tuple",
    "symbolic_equal",
    "timeout",
]

GRADE_SECONDS = 3.0
QUICK_SECONDS = 0.5
LONGEST = 1_000
"""Characters of an answer, beyond which none is right."""

logger = logging.getLogger(__name__)
_workers = WorkerPool(prepare=load, fork=True)

Graded = tuple[dict[str, bool], float]
"""Whether an answer was found (``{"formatted": ...}``), and the reward."""

_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:!]|\\quad|\\left|\\right|\$|\s+")


def is_right(answer: str, gold: Any) -> bool:
    r"""Return whether an answer, without its ``\boxed{}``, is the reference, or one of a list of them."""
    answer = answer.strip()
    golds = [] if gold is None else [each.strip() for each in gold_answers(gold)]
    if not answer or len(answer) > LONGEST:
        return False
    if answer in golds:
        return True
    try:
        return _workers.call(is_same, answer, golds, timeout=GRADE_SECONDS, quick=QUICK_SECONDS)
    except CallFailed:
        return False


def extract_answer(passage: str) -> str | None:
    r"""Return what the last ``\boxed{}`` of a text holds; None if there is none."""
    return extract_last_boxed_answer(passage)


extract_boxed_answer = extract_last_boxed_answer


def grade(model_answer: str, gt_answer: str, fast: bool = True) -> bool:
    r"""Return whether two answers are the same.

    Args:
        model_answer: without its ``\boxed{}``.
        gt_answer: the reference, with or without.
        fast: accepted, as published, and without effect.
    """
    gold = extract_answer(gt_answer) if "\\boxed" in gt_answer else gt_answer
    return gold is not None and is_right(model_answer, gold)


def grade_answer_sympy(given_answer: str, ground_truth: str) -> bool:
    """Return whether two answers are the same; so do those that follow, named as the parts of gem-llm's grader."""
    return grade(given_answer, ground_truth)


grade_answer_mathd = is_latex_equal = is_value_equal = grade_answer_sympy


def are_equal_under_sympy(ground_truth_normalized: str, given_normalized: str) -> bool:
    """Return whether two answers are the same."""
    return grade(given_normalized, ground_truth_normalized)


def symbolic_equal(a: str, b: str) -> bool:
    """Return whether two answers are the same."""
    return grade(a, b)


def numeric_equal(prediction: float, reference: float) -> bool:
    """Return whether two numbers differ by no more than 0.0001 of the reference."""
    return abs(prediction - reference) <= 1e-4 * abs(reference)


def mathd_normalize_answer(answer: str | None) -> str | None:
    r"""Return an answer without what does not change its value: spacing, dollar signs, ``\text``.

    >>> mathd_normalize_answer(r" \text{ Paris }\, ")
    'Paris'
    """
    return None if answer is None else _SPACING.sub("", _TEXT.sub(r"\1", answer))


def normalize_final_answer(final_answer: str) -> str:
    """Return an answer without what does not change its value."""
    return mathd_normalize_answer(final_answer) or ""


def split_tuple(expr: str) -> list[str]:
    """Return the elements of a tuple or interval; a list of the text itself if it is none.

    >>> split_tuple("(1, 2]"), split_tuple("3")
    (['1', '2'], ['3'])
    """
    expr = expr.strip()
    is_tuple = len(expr) > 2 and expr[0] in "([" and expr[-1] in ")]" and not set(expr[1:-1]) & set("()[]")
    return [part.strip() for part in expr[1:-1].split(",")] if is_tuple else [expr]


def boxed_reward_fn(
    model_response: str,
    gt_answer: Any,
    fast: bool = False,
    correct_reward: float = 1.0,
    incorrect_reward: float = 0.0,
) -> Graded:
    r"""Grade the last ``\boxed{}`` of a text.

    Args:
        model_response: what the model wrote.
        gt_answer: the reference, as text or a number, or a list of them.
        fast: accepted, as published, and without effect.
        correct_reward: for the right answer.
        incorrect_reward: for any other, and for none.
    """
    return _graded(extract_answer(model_response), gt_answer, correct_reward, incorrect_reward)


def r1_distill_qwen_math_reward_fn(
    model_response: str,
    gt_answer: Any,
    fast: bool = False,
    correct_reward: float = 1.0,
    incorrect_reward: float = 0.0,
) -> Graded:
    """Grade what follows the one ``</think>`` of a text, as :func:`boxed_reward_fn` does; without it, pay nothing."""
    parts = model_response.split("</think>")
    if len(parts) != 2:
        return {"formatted": False}, 0.0
    return boxed_reward_fn(parts[1], gt_answer, fast, correct_reward, incorrect_reward)


def answer_tag_reward_fn(
    model_response: str,
    gt_answer: Any,
    fast: bool = False,
    correct_reward: float = 1.0,
    incorrect_reward: float = 0.0,
) -> Graded:
    """Grade the last ``<answer>``, which must follow the thought as ``</think> <answer>``; arguments as above."""
    if "</think> <answer>" not in model_response:
        return {"formatted": False}, incorrect_reward
    return answer_tag_reward_fn_for_orz(model_response, gt_answer, fast, correct_reward, incorrect_reward)


def answer_tag_reward_fn_for_orz(
    model_response: str,
    gt_answer: Any,
    fast: bool = False,
    correct_reward: float = 1.0,
    incorrect_reward: float = 0.0,
) -> Graded:
    r"""Grade the last ``<answer>``, or the ``\boxed{}`` in it; arguments as for :func:`boxed_reward_fn`."""
    if "<answer>" not in model_response or "</answer>" not in model_response:
        return {"formatted": False}, incorrect_reward
    answer: str | None = model_response.split("<answer>")[-1].replace("</answer>", "")
    if answer is not None and "\\boxed" in answer:
        answer = extract_answer(answer)
    formatted, reward = _graded(answer, gt_answer, correct_reward, incorrect_reward)
    return {**formatted, "formatted": True}, reward


def _graded(answer: str | None, gt_answer: Any, correct_reward: float, incorrect_reward: float) -> Graded:
    if answer is None:
        return {"formatted": False}, incorrect_reward
    correct = any(grade(answer, gold) for gold in gold_answers(gt_answer))
    return {"formatted": True}, correct_reward if correct else incorrect_reward


class TimeoutException(Exception):
    """A function took too long."""


class timeout:  # noqa: N801 (published)
    """Ends what runs in a ``with`` block by :class:`TimeoutException` after some seconds.

    It works in the main thread only, and interrupts Python code only, as signals do.

    Args:
        seconds: how long.
        error_message: of the exception.
    """

    def __init__(self, seconds: float = 1, error_message: str = "Timeout") -> None:
        self.seconds = seconds
        self.error_message = error_message

    def handle_timeout(self, signum: int, frame: FrameType | None) -> None:
        """Raise the exception; called by the signal."""
        raise TimeoutException(self.error_message)

    def __enter__(self) -> timeout:
        """Begin the time."""
        self._before = signal.signal(signal.SIGALRM, self.handle_timeout)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


def run_with_timeout_signal(
    func: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    timeout_seconds: float = 5,
) -> Any:
    """Return what a function returns; None, with a warning, if it raises or takes too long. See :class:`timeout`."""
    try:
        with timeout(timeout_seconds):
            return func(*args, **(kwargs or {}))
    except TimeoutException:
        logger.warning("the function took more than %g seconds", timeout_seconds)
    except Exception as error:  # noqa: BLE001 (as published: what it raises is logged, and there is no answer)
        logger.warning("the function raised %s: %s", type(error).__name__, error)
    return None
