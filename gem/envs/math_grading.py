"""Whether two values are the same, by math-verify. Runs in worker processes: it takes a second to import."""

from __future__ import annotations

import logging
import re
from typing import Any

_NAMED = re.compile(r"\\?[A-Za-z]\w*(_\{?\w+\}?)?'?(\([\w, ]+\))?\s*=(?P<value>[^=]+)")
"""A name, or a function of names, and a value for it: ``x = 3``, ``f(x) = 2x``."""


_NUMBER = re.compile(r"[-+]?\$?(\d[\d,]*)?\.?\d+")
_UNIT = re.compile(r"\\(text|mathrm|mbox)\{[^{}]*\}(\s*\^\s*\{?\d\}?)?")
_TEN_TO_THE = re.compile(r"((\\times|\\cdot|\*)\s*)?10\s*\^")
_TO_BE_WORKED_OUT = re.compile(r"[+*!^]|\S\s*-|\\(times|cdot|div|int|sum|prod|binom|log|ln|sin|cos|tan)\b")
_SEVERAL = re.compile(r"\d\s+\d")
_MIXED_NUMBER = re.compile(r"-?\d+\s+\d+/\d+")
_RELATION = re.compile(r"[<>≤≥≠]|\\(lt|le|leq|gt|ge|geq|ne|neq|approx)\b")


def load() -> None:
    """Import what grading needs, and use it once."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit: we have one
    is_same("1", ["2"])


def is_same(answer: str, golds: list[str]) -> bool:
    """Return whether an answer, in LaTeX or plain text, is the same value as any of the references."""
    return any(_is_same(answer, gold) for gold in golds)


def _is_same(answer: str, gold: str) -> bool:
    from math_verify import verify

    answer = answer.removesuffix(".")
    named = _NAMED.fullmatch(answer)
    if named and "=" not in gold:
        answer = named["value"].strip()
    if _is_no_value(answer, gold):
        return False
    expected, found = _parse(gold), _parse(answer)
    if not expected or not found:
        return False
    # no time limits of its own: they are signals, and whoever waits for this process has a limit
    return bool(verify(expected, found, strict=True, timeout_seconds=None))


def _is_no_value(answer: str, gold: str) -> bool:
    """Return whether an answer is of a form that the reference is not, and that math-verify would read too kindly."""
    if "=" in answer and "=" not in gold:  # it would take what is on the right
        return True
    if _RELATION.search(answer) and not _RELATION.search(gold):
        return True
    if _SEVERAL.search(answer) and not _SEVERAL.search(gold) and not _MIXED_NUMBER.fullmatch(answer):  # it would add
        return True
    # where a number is asked for, the question itself (17 * 23) is no answer to it
    return bool(
        _NUMBER.fullmatch(gold) and _TO_BE_WORKED_OUT.search(_TEN_TO_THE.sub("", _UNIT.sub("", answer.lstrip("+"))))
    )


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None)
