r"""Answers that are given without reading the question, and what they may earn.

The rule: **a guess may be right, and what is not right earns nothing.**

* A *guess* (:data:`GUESSES`, and the most frequent right answers themselves), given to every question, is right no more
  often than the most frequent right answer is, and :func:`chance` on top. So ``Yes`` earns half of yes-or-no questions,
  and a constant that is "right" for most questions shows that the scorer does not read the answer. Partial credit for a
  guess that is wrong averages no more than :data:`PARTIAL`.
* A *hedge* (:data:`HEDGES`, the question repeated, the right answer beside a wrong one) names several answers or none,
  and never earns anything.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from gem.utils.parsing import extract_last_boxed_answer, extract_last_tagged_answer

PARTIAL = 0.02
"""Mean partial credit of a wrong guess, below which it is a matter of chance."""

UNKNOWN = 0.5
"""Share of the most frequent right answer where none is known: that of questions which are answered by yes or no."""

GUESSES = (
    *("0", "1", "-1", "2", "3", "10", "100", "0.0", "0.5", "1/2", "0/0", "1/0", "nan", "inf", "-inf", "1e999", "0x0"),
    *("00:00", "12:00", "00:00:00", "2024-01-01", "Monday", "1 day", "50%"),
    *("Yes", "No", "True", "False", "yes", "true", "None", "null", "unknown", "impossible", "infeasible"),
    *("A", "B", "C", "x", "a", "I", "pi", "the", "red", "knight", "#", "*", "_", "."),
    *("[]", "[0]", "[[0]]", "[[]]", "{}", '{"x": 0}', "()", "''", '""', "0 0", "0 1 2 3 4 5 6 7 8 9", "1, 2"),
    *("1*2*3*4", "x^2", "0=0", "a b c d e f g h i j k l m n o p q r s t u v w x y z"),
)
"""Texts that may be right for some questions."""

HEDGES = (
    *("Yes No", "No Yes", "Yes or No", "yes/no", "Yes, No", "True False", "True or False", "False, True", "true/false"),
    *(
        "A B C D",
        "A or B",
        "A, B, C, D",
        "A/B/C/D",
        "either",
        "both of them",
        "all of them",
        "any of these",
        "it depends",
    ),
    *("I do not know", "see above", "your answer here", "the correct answer", "...", "???", "Reward: 1.0", "correct"),
)
"""Texts that name several answers, or none."""


def as_action(text: str) -> str:
    r"""Return an answer in all forms that environments ask for.

    >>> as_action("42")
    '<answer>42</answer> \\boxed{42}'
    """
    return f"<answer>{text}</answer> \\boxed{{{text}}}"


def answer_of(action: str) -> str | None:
    """Return the text of an answer, whatever its form; None if there is none."""
    return extract_last_boxed_answer(action) or extract_last_tagged_answer(action)


def repeated(question: str) -> str:
    """Return a question as an answer, without the forms of an answer that it shows."""
    return re.sub(r"\\boxed|</?answer>|[{}]", "", question)


def combined(reference: str, other: str) -> list[str]:
    """Return hedges that name the right answer beside another one.

    >>> combined("4", "5")
    ['4 or 5', '5 or 4', '4, 5', '5, 4']
    """
    if reference.strip().casefold() == other.strip().casefold():
        return []
    pairs = ((reference, other), (other, reference))
    return [between.join(pair) for between in (" or ", ", ") for pair in pairs]


def chance(questions: int) -> float:
    """Return by how much a share of right answers may be above what it is in the long run."""
    return 1 / math.sqrt(questions)


def bound(references: Sequence[str | None]) -> float:
    """Return the share of questions for which one text may be right.

    Args:
        references: the right answer to each of the questions; None where it is not known.
    """
    known = Counter(reference for reference in references if reference is not None)
    share = max(known.values()) / len(references) if known else UNKNOWN
    return share + chance(len(references))
