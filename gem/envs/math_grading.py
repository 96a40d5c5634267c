"""Whether two values are the same, by math-verify. Runs in worker processes: it takes a second to import."""

from __future__ import annotations

import logging
import re
from typing import Any

from gem.envs.only_arithmetic import guard_sympy

_NAMED = re.compile(r"\\?[A-Za-z]\w*(_\{?\w+\}?)?'?(\([\w, ]+\))?\s*=(?P<value>[^=]+)")
"""A name, or a function of names, and a value for it: ``x = 3``, ``f(x) = 2x``."""


_NUMBER = re.compile(r"[-+]?\$?(\d[\d,]*)?\.?\d+")
_UNIT = re.compile(r"\\(text|mathrm|mbox)\{[^{}]*\}(\s*\^\s*\{?\d\}?)?|\^\s*\{?\\circ\}?")
_POWER = re.compile(r"((\\times|\\cdot|\*)\s*)?\d+\s*\^\s*(\{\s*-?\d+\s*\}|-?\d)")
_TO_BE_WORKED_OUT = re.compile(r"[+*!^]|\S\s*-|\\(times|cdot|div|int|sum|prod|binom|log|ln|sin|cos|tan)(?![A-Za-z])")
_SEVERAL = re.compile(r"\d\s+\d")
_GROUPED = re.compile(r"-?\d{1,3}((\\,|\\ |\s|\{,\})\d{3})+")
_MIXED_NUMBER = re.compile(r"(-?)(\d+)\s+(\d+)/(\d+)")
_RELATION = re.compile(
    r"[<>≤≥≠→⇒]|\\(lt|le|leq|gt|ge|geq|ne|neq|approx|to|rightarrow|longrightarrow|Rightarrow|implies|iff|mapsto)(?![A-Za-z])"
)
_DENIAL = re.compile(r"\\(text|mathrm|mbox)\{[^{}]*\b(not?|never|is|isn|wrong)\b")


def load() -> None:
    """Import what grading needs, and use it once."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit: we have one
    guard_sympy()
    is_same("1", ["2"])


def is_same(answer: str, golds: list[str]) -> bool:
    """Return whether an answer, in LaTeX or plain text, is the same value as any of the references."""
    return any(_is_same(answer, gold) for gold in golds)


def _is_same(answer: str, gold: str) -> bool:
    from math_verify import verify

    answer = _plain(answer)
    if _is_no_value(answer, gold):
        return False
    if "=" in answer:
        return _is_same_equation(answer, gold)
    expected, found = _parse(gold), _parse(answer)
    if not expected or not found:
        return False
    # no time limits of its own: they are signals, and whoever waits for this process has a limit
    return bool(verify(expected, found, strict=True, timeout_seconds=None))


def _plain(answer: str) -> str:
    """Write numbers in the way that math-verify reads."""
    answer = answer.removesuffix(".")
    if _GROUPED.fullmatch(answer):
        return re.sub(r"[^-\d]", "", answer)
    mixed = _MIXED_NUMBER.fullmatch(answer)
    if mixed:
        sign, whole, part, of = mixed.groups()
        return f"{sign}\\frac{{{int(whole) * int(of) + int(part)}}}{{{int(of)}}}"
    return answer


def _is_no_value(answer: str, gold: str) -> bool:
    """Return whether an answer is of a form that the reference is not, and that math-verify would read too kindly."""
    if _RELATION.search(answer) and not _RELATION.search(gold):
        return True
    if _SEVERAL.search(answer) and not _SEVERAL.search(gold):  # it would add them up
        return True
    if _DENIAL.search(answer) and not _DENIAL.search(gold):  # it would take the text for a unit
        return True
    # where a number is asked for, the question itself (17 * 23) is no answer to it
    named = _NAMED.fullmatch(answer)
    value = named["value"].strip() if named else answer
    return bool(_NUMBER.fullmatch(gold) and _TO_BE_WORKED_OUT.search(_POWER.sub("", _UNIT.sub("", value.lstrip("+")))))


def _is_same_equation(answer: str, gold: str) -> bool:
    """Compare an equation with a value that it gives to a name, or with an equation that says the same.

    math-verify would take what is on the right, or compare solutions, of which many equations have none.
    """
    from sympy import simplify

    named = _NAMED.fullmatch(answer)
    if "=" not in gold:
        return named is not None and _is_same(named["value"].strip(), gold)
    if answer.count("=") != 1 or gold.count("=") != 1:
        return answer.replace(" ", "") == gold.replace(" ", "")
    sides = [_parse(side) for side in (*answer.split("="), *gold.split("="))]
    if not all(sides):
        return False
    left, right, gold_left, gold_right = (side[0] for side in sides)
    try:
        ratio = simplify((left - right) / (gold_left - gold_right))
    except TypeError:  # sets, intervals: nothing to subtract
        return False
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None)
