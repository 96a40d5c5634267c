r"""What an answer to a data set of reasoning_gym must fulfil before its scorer sees it, and what it can earn.

Many scorers of reasoning_gym are hackable: text that answers nothing earns part of the reward, or all of it. Three
rules close that, and a data set that none of them can mend is refused (:data:`HACKABLE`):

* A score below 1 is worth 0, but for the data sets of :data:`PARTIAL_CREDIT`. Elsewhere it is paid for closeness
  (``00:00`` as a time), for cells that nearly all grids share, for what the question shows already (a Sudoku's clues),
  or for an answer that is one among several (``Yes No``).
* Where a scorer reads the first part of an answer and ignores the rest, an answer has the form of one answer.
* Where a scorer does not check what the question demands, it is checked here.

A new data set of a later release earns no partial credit until someone has looked at its scorer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

PARTIAL_CREDIT = {
    "advanced_geometry": 0.05,
    "binary_matrix": 0.0,
    "boxnet": 0.05,
    "knight_swap": 0.05,
    "n_queens": 0.0,
    "shortest_path": 0.0,
    "spiral_matrix": 0.0,
    "string_insertion": 0.0,
    "tower_of_hanoi": 0.05,
}
"""Data sets in which a score below 1 counts, if it is above this floor: what their scorer gives to junk.

It is paid for a solution that is longer than it must be, less exact, or in another notation; or (boxnet) for a part.
"""

HACKABLE = {
    "complex_arithmetic": "the answer 'nan' is always right",
    "game_of_life_halting": "any text is right where the answer is True",
    "propositional_logic": "the answer '(P ∨ Q)' is right for most questions",
}
"""Data sets whose scorer can be had without answering, and how."""

Rule = Callable[[str, dict[str, Any]], bool]
"""Takes an answer and the whole question, as reasoning_gym made it, and returns whether the answer can be right."""


def is_admissible(source: str, answer: str, entry: dict[str, Any]) -> bool:
    """Return whether an answer is one that the scorer of a data set grades as it should.

    >>> is_admissible("gsm_symbolic", "42", {}), is_admissible("gsm_symbolic", "42 or 43", {})
    (True, False)
    """
    rule = _RULES.get(source)
    return rule is None or rule(answer.strip(), entry)


def _written_as(pattern: str) -> Rule:
    return lambda answer, _: re.fullmatch(pattern, answer) is not None


def _is_reference(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is the reference, case aside: these scorers compare what stands at the same place."""
    return answer.casefold() == entry["answer"].strip().casefold()


def _is_reference_list(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is the same JSON: the scorer ignores rows and cells beyond those of the reference."""
    try:
        return bool(json.loads(answer) == json.loads(entry["answer"]))
    except (ValueError, RecursionError):
        return False


def _has_as_many_values(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is a list of numbers, as long as the reference: the scorer rewards a part of it."""
    number = r"\s*[-+]?\d+(\.\d+)?\s*"
    as_many = answer.count(",") == entry["answer"].count(",")
    return as_many and (not answer or re.fullmatch(f"{number}(,{number})*", answer) is not None)


def _is_near(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is the probability: the scorer pays in full for its first digit."""
    try:
        value, reference = (float(Fraction(text.replace(",", ""))) for text in (answer, entry["answer"]))
    except (ValueError, ZeroDivisionError, OverflowError):
        return False
    return math.isclose(value, reference, rel_tol=1e-3)


def _uses_the_numbers(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is arithmetic with the numbers of the question: the scorer takes any numbers."""
    if not re.fullmatch(r"[\d\s+\-*/()]+", answer) or re.search(r"\*\s*\*|/\s*/", answer):
        return False
    used = sorted(int(number) for number in re.findall(r"\d+", answer))
    return used == sorted(map(int, entry["metadata"]["numbers"]))


def _makes_24(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is 24 and uses the numbers: the scorer rounds 24.9 down, too."""
    if not _uses_the_numbers(answer, entry):
        return False
    from sympy import parse_expr  # where this runs, it evaluates arithmetic only

    try:
        return bool(parse_expr(answer) == 24)
    except (SyntaxError, TypeError, ValueError):
        return False


def _assigns_once(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is as many statements as the reference has, and nothing else: the scorer reads these only."""
    statement = r"\w+ is an? \w+"
    as_many = len(re.findall(statement, answer)) == len(re.findall(statement, entry["answer"]))
    return as_many and re.fullmatch(rf"{statement}((,\s*and|,|\s+and|;|\.)\s*{statement})*\.?", answer) is not None


def _is_sorted(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is the list of words, and no more: the scorer ignores what follows them."""
    return re.split(r",\s*", answer) == entry["metadata"]["sorted_words"]


def _is_one_interval(answer: str, entry: dict[str, Any]) -> bool:
    """Return whether it is of the reference's form: the scorer of days ignores what follows the first number."""
    forms = (r"\d+( days?)?", r"\d+ days?,\s*\d+:[\d:]+", r"\d+:[\d:]+(\.\d+)?")
    return any(re.fullmatch(form, answer) and re.fullmatch(form, entry["answer"]) for form in forms)


_COORDINATE = r"\s*[-+]?\d*\.?\d+\s*"

_RULES: dict[str, Rule] = {
    "advanced_geometry": _written_as(rf"\({_COORDINATE},{_COORDINATE}\)|{_COORDINATE},{_COORDINATE}|{_COORDINATE}°?"),
    "coin_flip": _is_near,
    "countdown": _uses_the_numbers,
    "emoji_mystery": _is_reference,
    "figlet_font": lambda answer, entry: _is_reference(answer.replace(" ", ""), entry),
    "fraction_simplification": _written_as(r"\$?\s*(\d+\s*/\s*\d+|\\[dt]?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\})\s*\$?"),
    "game_of_life": _is_reference_list,
    "gsm_symbolic": _written_as(r"[-+]?[$£€]?\s?\d[\d,]*(\.\d+)?"),
    "knights_knaves": _assigns_once,
    "letter_jumble": _is_reference,
    "polynomial_equations": _has_as_many_values,
    "puzzle24": _makes_24,
    "quantum_lock": _written_as(r"[A-Ca-c](\s*(→|->|,)?\s*[A-Ca-c])*"),
    "sokoban": _written_as(r"[LRUDlrud\s]+"),
    "spell_backward": _is_reference,
    "time_intervals": _is_one_interval,
    "word_sorting": _is_sorted,
}
