r"""Question answering: a short answer in ``<answer>...</answer>``.

Reward: 1 for an answer that is the same text as one of the references, else 0. Case, articles, quotation marks, and
the punctuation around an answer do not count; what can change the meaning does: signs, points in numbers, symbols.
So an empty answer is never right, ``35`` is not ``3.5``, ``5`` is not ``-5``, ``C`` is not ``C++``, and ``102`` is not
``10²``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any, Literal

from gem.envs.datasets import DatasetEnv
from gem.envs.question import attribute, check_keywords
from gem.utils.parsing import extract_last_boxed_answer, extract_last_tagged_answer, gold_answers
from gem.utils.qa_em import em_check

LONGEST = 2_000
"""Characters of an answer, beyond which none is right."""

_QUOTES = re.compile(r"(?<!\d)[\"'`´‘’“”«»]|[\"'`´‘’“”«»](?!\d)")  # 5'10 is not 510
_DASHES = re.compile(r"[‐‑‒–—−]")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_BETWEEN_WORDS = re.compile(
    r"(?<=[^\W\d])[-/](?=[^\W\d])|,(?!\d)|[;:?()\[\]{}](?=\s|$)|(?<!\d)!(?=\s|$)|(?<!\S)[;:!?()\[\]{}]"
)
_EMPHASIS = re.compile(r"(\*{1,3})([^*]+)\1")  # Markdown's, around all of the answer
_IN_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|emph)\{([^{}]*)\}")
_BETWEEN_INITIALS = re.compile(r"(?<=\b[^\W\d]\.)\s+(?=[^\W\d]\.)")
_ABBREVIATION = re.compile(r"\b[^\W\d]{1,3}(?:\.[^\W\d]{1,3})+\b")
_AFTER_LETTER = re.compile(r"(?<=\b[^\W\d])\.")
_ARTICLES = re.compile(r"\b(a|an|the)\b(?![-+#.])(?=\s*\w)")  # not the last word, as in "vitamin A"

# What NFKC would make other numbers of: 10² is not 102, 1½ not 11/2, and 10₂ not 102.
_SUPERSCRIPT = re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUBSCRIPT = re.compile(r"(?<=[\d)])[₀₁₂₃₄₅₆₇₈₉]+")
_FRACTION = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_AREA = re.compile(r"\b([kcmd]?m|ft|mi|in)\^([23])\b")


class QaEnv(DatasetEnv):
    r"""Answer a question with ``<answer>...</answer>``, or with ``\boxed{...}``.

    Args:
        dataset_name: what to load: see :func:`gem.envs.datasets.load_rows`.
        split: which split of it.
        dataset: rows to ask from instead.
        question_key: column of the question.
        answer_key: column of the answer, or of a list of answers that are all right.
        seed: question of the first ``reset()`` that is called without a seed.
        extract_boxed: ask for, and grade, ``\boxed{...}``.
        exact_match: ``"strict"``, as above; or ``"squad"``, as published for SQuAD (:mod:`gem.utils.qa_em`), so that
            figures compare with others'. It takes ``5`` for ``-5``.
        load_from_cache_file: accepted, as published, and without effect: no copy of the data set is made.
        eval: resets without a seed ask the questions in the order of the data set.
        **published: see :data:`gem.envs.question.WITHOUT_EFFECT`.

    Attributes:
        answer: of the question, or a list of answers that are all right; it may be set.

    Raises:
        ImportError: what loads the data set is not installed.
        ValueError: the data set has no such split or column.
    """

    blocking = False

    def __init__(
        self,
        dataset_name: str | None = "",
        split: str | None = None,
        dataset: Any = None,
        question_key: str = "question",
        answer_key: str = "answer",
        seed: int | None = None,
        extract_boxed: bool = False,
        load_from_cache_file: bool = True,
        eval: bool = False,
        *,
        exact_match: Literal["strict", "squad"] = "strict",
        **published: Any,
    ) -> None:
        check_keywords(self, published)
        super().__init__(dataset_name, split, dataset, [question_key, answer_key], seed, eval)
        self.answer: Any = None
        self._question_key = question_key
        self._answer_key = answer_key
        self._boxed = extract_boxed
        if exact_match not in ("strict", "squad"):
            raise ValueError(f'exact_match must be "strict" or "squad", got {exact_match!r}')
        self._squad = exact_match == "squad"

    question_key = attribute("_question_key", "Column of the question.")
    answer_key = attribute("_answer_key", "Column of the answer.")

    @property
    def extractor(self) -> Callable[[str], str | None]:
        """What finds the answer in a text."""
        return extract_last_boxed_answer if self._boxed else extract_last_tagged_answer

    def ask(self, idx: int) -> str:
        """Return the question, and how to answer it."""
        self.answer = self.row[self._answer_key]
        form = "\\boxed{...}" if self._boxed else "<answer>...</answer>"
        return _prompt(self.row[self._question_key], form)

    def grade(self, action: str) -> tuple[float, bool]:
        """Compare the answer with the references."""
        answer = self.extractor(action)
        check = check_squad if self._squad else self.check_correct
        correct = answer is not None and check(answer, self.answer)
        return float(correct), correct

    @staticmethod
    def check_correct(model_answer: str, gt_answer: Any) -> bool:
        """Return whether an answer is the same text as the reference, or as one of a list of them."""
        if len(model_answer) > LONGEST:
            return False
        answer = normalize(model_answer)
        return bool(answer) and answer in map(normalize, gold_answers(gt_answer))

    def random_answer(self) -> str:
        """Return the answer to another question."""
        return self._formatted(self._random_row()[self._answer_key])

    def reference_action(self) -> str:
        """Return the reference."""
        return self._formatted(self.answer)

    def _formatted(self, answers: Any) -> str:
        answer = gold_answers(answers)[0]
        return f"\\boxed{{{answer}}}" if self._boxed else f"<answer>{answer}</answer>"


def check_squad(model_answer: str, gt_answer: Any) -> bool:
    """Return whether an answer matches the reference, or one of a list of them, as published for SQuAD."""
    return (
        len(model_answer) <= LONGEST and bool(model_answer.strip()) and em_check(model_answer, gold_answers(gt_answer))
    )


def apply_prompt(example: dict[str, Any], question_key: str = "question") -> dict[str, Any]:
    """Return a row with what :meth:`QaEnv.ask` would ask; for code that maps a data set, which is not needed here."""
    return {**example, question_key: _prompt(example[question_key], "<answer>...</answer>")}


def _prompt(question: Any, form: str) -> str:
    return (
        "Answer the question. Think first, inside <think>...</think>; then give the answer alone, as short as it "
        f"can be, inside {form}.\n\nQuestion: {question}"
    )


def normalize(text: str) -> str:
    r"""Return a text without what does not change its meaning.

    >>> normalize("The Beatles."), normalize("U.S."), normalize("1,000"), normalize("A")
    ('beatles', 'us', '1000', 'a')
    >>> normalize("-5"), normalize("3.5"), normalize("C++"), normalize("New-York, USA"), normalize("10²")
    ('-5', '3.5', 'c++', 'new york usa', '10^2')
    >>> normalize("**Hamlet**"), normalize(r"\text{Tuesday}"), normalize("Ph.D."), normalize("J. K. Rowling")
    ('hamlet', 'tuesday', 'phd', 'jk rowling')
    """
    text = _IN_TEXT.sub(r"\1", text.strip())
    emphasised = _EMPHASIS.fullmatch(text)
    text = emphasised[2] if emphasised else text
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), _BETWEEN_INITIALS.sub("", text))
    text = _FRACTION.sub(lambda match: " ".join(filter(None, match.groups())), text)
    text = _SUBSCRIPT.sub(r"_\g<0>", _SUPERSCRIPT.sub(r"^\g<0>", text))
    text = _AREA.sub(r"\1\2", unicodedata.normalize("NFKC", text).replace("\u2044", "/").casefold())
    text = _QUOTES.sub("", _DASHES.sub("-", text))
    text = _BETWEEN_WORDS.sub(" ", _AFTER_LETTER.sub("", _GROUPED.sub("", text)))
    text = " ".join(word.rstrip(".") for word in text.split()).strip()
    if not any(character.isalnum() for character in text):
        return ""
    return " ".join(_ARTICLES.sub(" ", text).split()) or text
