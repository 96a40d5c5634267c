"""Whether two values are the same, by math-verify. Runs in worker processes: it takes a second to import."""

from __future__ import annotations

import logging
import re
import unicodedata
from typing import Any

from gem.utils.only_arithmetic import guard_sympy

_NAMED = re.compile(r"(\\text\{\s*[A-Za-z][\w ]*\}|\\?[A-Za-z]\w*(_\{?\w+\}?)?'?(\([\w, ]+\))?)\s*=(?P<value>[^=]+)")
"""A name, or a function of names, and a value for it: ``x = 3``, ``f(x) = 2x``."""


_NUMBER = re.compile(r"[-+]?\$?(\d{1,3}(,\d{3})+|\d*)(\.\d+|(?<=\d))")
_UNIT = re.compile(r"\\(text|mathrm|mbox)\{[^{}]*\}(\s*\^\s*\{?\d\}?)?|\^\s*\{?\\circ\}?")
_POWER = re.compile(r"((\\times|\\cdot|\*)\s*)?\d+\s*\^\s*(\{\s*-?\d+\s*\}|-?\d)")
_TO_BE_WORKED_OUT = re.compile(r"[+*!^]|\S\s*-|\\(times|cdot|div|int|sum|prod|binom|log|ln|sin|cos|tan)(?![A-Za-z])")
_SEVERAL = re.compile(r"\d\s+\d")
_GROUPED = re.compile(r"-?\d{1,3}((,?\\[,! ]|\s|\{,\})\d{3})+")
_WITH_EXPONENT = re.compile(r"(?<![\w.\\])([-+]?(?:\d+\.?\d*|\.\d+))[eE]([-+]?)0*(\d+)(?![\w.])")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_ONE_NAMED = re.compile(r"\s*(?P<name>[A-Za-z](?:_\{?\w+\}?)?)\s*=\s*(?P<value>[^=,;]+?)\s*")
_NAMED_PAIR = re.compile(r"\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)\s*=\s*(?P<values>\([^=]+\))")
_BETWEEN_EQUATIONS = re.compile(r"[,;]|\\(?:text|mathrm|mbox)\{\s*,?\s*(?:or|and)\s*\}|\b(?:or|and)\b|\\quad")
_EMPHASIS = re.compile(r"(\*{1,2})([^*]+)\1")
_HALF_OF_DAY = re.compile(r"(?<![a-z])([ap])\.?m\.?(?![a-z])")
_LONG_WORD = re.compile(r"(?:\\(?:text|mathrm|mbox|textbf|textit)\{\s*)?([A-Za-z]{2,})\s*\}?")
_MIXED_NUMBER = re.compile(r"(-?)(\d+)\s+(\d+)/(\d+)")
_RELATION = re.compile(
    r"[<>≤≥≠→⇒]|\\(lt|le|leq|gt|ge|geq|ne|neq|not|neg|lnot|approx|to|rightarrow|longrightarrow|Rightarrow|implies|iff|mapsto)(?![A-Za-z])"
)
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|textit)\{([^{}]*)\}")
_TEXT_AND_DIGIT = re.compile(_TEXT.pattern + r"\s*\d")
_WORD = re.compile(r"[a-z]+")
_CHANGES_THE_VALUE = frozenset(
    (
        *("not", "no", "never", "is", "isn", "wrong", "except", "without", "minus"),
        *("negative", "plus", "times", "about", "approximately", "around", "nearly", "almost", "over"),
        *("under", "above", "below", "between", "more", "less", "than", "most", "least"),
        *("twice", "half", "third", "quarter", "dozen", "hundred", "thousand", "million", "billion"),
        *("trillion", "squared", "cubed", "factorial", "base", "mod", "modulo", "inverse", "root", "power"),
        *("tens", "tenths", "hundredths", "thousandths", "halves", "thirds", "quarters", "doubled", "tripled"),
        *("reciprocal", "opposite", "false", "incorrect", "untrue", "divided", "multiplied", "to", "point", "x"),
    )
)
"""Words that a unit has not: with one of them in its text, an answer is another value, or none."""

_JOINS = frozenset(("or", "and"))
_UNIT_TEXT = re.compile(r"[\s~]*\(?[A-Za-z][A-Za-z\s.,()/°]*(\^?[23²³])?\)?|[\s~]*\\?%|[\s~]*")
_FACTORS = frozenset(("i", "j", "e", "E", "k", "M", "x"))
"""Letters that are no units: they make another number of the one before them."""

_KNOWN_COMMANDS = frozenset(
    (
        *("frac", "dfrac", "tfrac", "cfrac", "sqrt", "pi", "infty", "times", "cdot"),
        *("div", "pm", "mp", "circ", "degree"),
        *("textrm", "mathbf", "mathit", "boxed", "fbox", "displaystyle"),
        *("left", "right", "big", "bigl", "bigr", "Big", "Bigl", "Bigr", "quad"),
        *("qquad", "cup", "cap", "setminus", "in", "mid", "log", "ln", "sin"),
        *("cos", "tan", "sec", "csc", "cot", "arcsin", "arccos", "arctan", "exp"),
        *("begin", "end", "int", "sum", "prod", "binom", "lt", "le", "leq"),
        *("leqslant", "gt", "ge", "geq", "geqslant", "ne", "neq", "approx", "to"),
        *("rightarrow", "longrightarrow", "Rightarrow", "implies", "iff", "mapsto"),
    )
)
r"""LaTeX commands that math-verify reads as what they mean. It passes over others: ``\neg 42`` would be 42."""

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_NUMBER_BASE_TEN = re.compile(r"(?<=\d)\s*_\s*(\{\s*10\s*\}|10(?!\d))")
_SUBSCRIPT = re.compile(r"(?<=[\d)}\]])\s*_\s*(\{[^{}]*\}|.)")
_IN_BRACKETS = re.compile(r"^\(([-+]?[\d.]+)\)$")
_PERCENT = re.compile(r"\\?%")
_SET_OF_SEVERAL = re.compile(r"\\\{[^{}]*,")

_SPACING = re.compile(r"\\[,;:! ]|\\(quad|qquad|left|right|displaystyle)(?![A-Za-z])|~")
_DANGLING = re.compile(
    r"\s*([*/^_,;=!|&?#@.:](?!\d)|[,^_*/|=]|\\(times|cdot|div|cup|cap|circ|setminus|in)(?![A-Za-z]))"
    r"|.*([-+*/^_=|&,;@#?~:]|\\(times|cdot|div|cup|cap|setminus|in|pm|mp|sqrt|frac|log|ln|exp|sin|cos|tan)|(?<!\^)(?<!\^\{)\\circ)\s*",
    re.DOTALL,
)
_NO_MATHS = re.compile(
    r"[@#?&;|]|\\(frac|dfrac|tfrac)\{[^{}]*\}\{[^{}]*\}\s*\d|\\sqrt\{[^{}]*\}\s*\d|\\infty\s*\d|\\sqrt\s*\\d?frac"
)
_PERCENT_WITHIN = re.compile(r"%(?!\s*$)")
_PLAIN_WORD = re.compile(r"(?<![A-Za-z\\])[a-z]{2,}(?![A-Za-z])")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_IN_LATEX = (
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+"), lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}"),
    (re.compile(r"√\s*(\d+|[a-z]|\([^()]*\))"), lambda match: f"\\sqrt{{{match[1].strip('()')}}}"),
    (re.compile(r"[–−]"), lambda match: "-"),
    (re.compile("°"), lambda match: r"^{\circ}"),
    (re.compile("∞"), lambda match: r"\infty "),
    (re.compile(r"∅|\\varnothing(?![A-Za-z])"), lambda match: r"\emptyset"),
    (_WITH_EXPONENT, lambda match: f"{match[1]}\\times10^{{{match[2].strip('+')}{match[3]}}}"),
    (re.compile(r"(?<!\d)([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])"), lambda match: _fraction(match[1])),
)
_KNOWN_CHARACTERS = frozenset("×·÷π∞≤≥≠→⇒±∪∩∈€£¥θαβγλμ")


RELATIVE = 1e-5
"""By how much numbers may differ, relatively."""

_KINDS = ("1/3", r"\sqrt{2} + \pi", "x^2 + 1", "(1, 2]", r"\{1, 2\}", "x = 3", "50\\%", "1:2", r"\text{A}", r"\sin x")
"""Answers of all kinds, for what is made when it is first needed."""


def load() -> None:
    """Import what grading needs, and use it once: answers are graded in forks of this process."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit: we have one
    guard_sympy()
    for answer in _KINDS:
        is_same(answer, [r"\frac{2}{3}", "y = x + 1"])


def is_same(answer: str, golds: list[str]) -> bool:
    """Return whether an answer, in LaTeX or plain text, is the same value as any of the references."""
    return any(_is_same(answer, gold) for gold in golds)


def _is_same(answer: str, gold: str) -> bool:
    from math_verify import verify

    emphasised = _EMPHASIS.fullmatch(answer)
    answer = emphasised[2] if emphasised else answer
    if set(_HALF_OF_DAY.findall(answer.casefold())) ^ set(_HALF_OF_DAY.findall(gold.casefold())) == {"a", "p"}:
        return False
    if "=" in answer and "=" not in gold and (value := _named_values(answer) or _end_of_chain(answer)):
        return _is_same(value, gold)
    words = _LONG_WORD.fullmatch(answer), _LONG_WORD.fullmatch(gold)
    if all(words):
        return words[0][1].casefold() == words[1][1].casefold()  # type: ignore[index]
    answer, gold = _plain(answer), _in_latex(gold)
    if _is_no_value(answer, gold) or _has_marks_that_are_passed_over(answer, gold):
        return False
    if ":" in answer + gold:
        return _is_same_ratio(answer, gold)
    if "=" in answer:
        return _is_same_equation(answer, gold)
    expected, found = _parse(gold), _parse(answer)
    if not expected or not found:
        return False
    if _PERCENT.search(answer) and not _PERCENT.search(gold) and _is_above_one(expected[0]):
        return _is_same(_PERCENT.sub("", answer), gold)  # it is a unit: no number above 1 is a share of anything
    # no time limits of its own: they are signals, and whoever waits for this process has a limit
    return bool(verify(expected, found, strict=True, timeout_seconds=None)) and not _are_far_apart(expected, found)


def _named_values(answer: str) -> str | None:
    """Return the values that an answer gives to several names, or to one of them several times; None if it does not.

    ``x = 1 or x = 2`` has the values ``1, 2``; ``x = 3, y = 4`` and ``(x, y) = (3, 4)`` have ``(3, 4)``.
    """
    pair = _NAMED_PAIR.fullmatch(answer)
    if pair:
        return pair["values"]
    parts = [_ONE_NAMED.fullmatch(part) for part in _BETWEEN_EQUATIONS.split(answer)]
    if len(parts) < 2 or not all(parts):
        return None
    names, values = zip(*(part.group("name", "value") for part in parts if part), strict=True)
    if len(set(names)) == 1:
        return ",".join(values)
    return f"({','.join(values)})" if len(set(names)) == len(names) else None


def _are_far_apart(expected: list[Any], found: list[Any]) -> bool:
    """Return whether two numbers differ by more than :data:`RELATIVE`: math-verify rounds to decimal places.

    Of a number below 0.000001 nothing would be left.
    """
    numbers = expected[0], found[0]
    if not all(getattr(each, "is_number", False) and getattr(each, "is_finite", False) for each in numbers):
        return False
    one, other = numbers
    scale = max(abs(one.evalf()), abs(other.evalf()))
    return bool(abs((one - other).evalf()) > RELATIVE * scale)


def _plain(answer: str) -> str:
    """Write numbers in the way that math-verify reads."""
    answer = _in_latex(answer.removesuffix("."))
    answer = _IN_BRACKETS.sub(r"\1", _NUMBER_BASE_TEN.sub("", answer))
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
    added = _words(answer) - _words(gold)  # it would take them for a unit
    if added & _CHANGES_THE_VALUE or (added & _JOINS and "," not in gold):
        return True
    # where a number is asked for, the question itself (17 * 23) is no answer to it
    named = _NAMED.fullmatch(answer)
    value = named["value"].strip() if named else answer
    return bool(_NUMBER.fullmatch(gold) and _TO_BE_WORKED_OUT.search(_POWER.sub("", _UNIT.sub("", value.lstrip("+")))))


def _has_marks_that_are_passed_over(answer: str, gold: str) -> bool:
    """Return whether an answer has marks that the reference has not, and that math-verify does not read.

    They change what it means: another base, the derivative, the negation, the first digits only.
    """
    named = _NAMED.fullmatch(answer)
    whole = named["value"] if named else answer
    value = _SPACING.sub(" ", _TEXT.sub(" ", _UNIT.sub(" ", whole))).strip()
    return (
        _has_text_that_is_no_unit(whole, gold)
        or _has_unknown_commands(value, gold)
        or _has_other_subscripts(value, gold)
        or _has_strange_characters(value, gold)
        or _is_another_kind_of_list(value, gold)
    )


def _has_text_that_is_no_unit(value: str, gold: str) -> bool:
    known = _TEXT.findall(gold)
    texts = [text for text in _TEXT.findall(value) if text not in known]
    if any(not _UNIT_TEXT.fullmatch(text) or text.strip() in _FACTORS for text in texts) and not _TEXT.fullmatch(value):
        return True
    if "," not in gold and _TEXT_AND_DIGIT.search(value) and not _TEXT_AND_DIGIT.search(gold):
        return True
    plain = set(_PLAIN_WORD.findall(_TEXT.sub("", value)))
    return bool(plain & (_CHANGES_THE_VALUE | _JOINS) - set(_PLAIN_WORD.findall(gold))) and "," not in gold


def _has_unknown_commands(value: str, gold: str) -> bool:
    commands = set(_COMMAND.findall(value)) - _KNOWN_COMMANDS - set(_COMMAND.findall(gold))
    if not re.search(r"\d", gold):
        commands -= {"mathbb"}  # the set of all numbers, which has other names
    return bool(commands)


def _has_other_subscripts(value: str, gold: str) -> bool:
    subscripts = [_bare(each) for each in _SUBSCRIPT.findall(value)]
    return bool(subscripts) and subscripts != [_bare(each) for each in _SUBSCRIPT.findall(gold)]


def _has_strange_characters(value: str, gold: str) -> bool:
    strange = {character for character in value if not character.isascii()} - _KNOWN_CHARACTERS
    if not strange <= set(gold) or ("'" in value and "'" not in gold):
        return True
    if _PERCENT_WITHIN.search(value) and not _PERCENT_WITHIN.search(gold):
        return True
    if _DANGLING.fullmatch(value) or (_DANGLING.match(value) and _DANGLING.match(value)[1]):  # type: ignore[index]
        return True
    found = _NO_MATHS.search(value)
    return bool(found and found[0] not in gold)


def _is_another_kind_of_list(value: str, gold: str) -> bool:
    """Return whether it is a set where a pair or a single value is asked for, or the other way round."""
    is_set = "\\{" in value
    if is_set and (gold.startswith(("(", "\\left(")) or (_SET_OF_SEVERAL.search(value) and "," not in gold)):
        return True
    return "\\{" in gold and not is_set and value.startswith(("(", "\\left("))


def _is_same_ratio(answer: str, gold: str) -> bool:
    """Compare what stands between colons: of a ratio in lowest terms, a time, a score."""
    parts, gold_parts = answer.split(":"), gold.split(":")
    return len(parts) == len(gold_parts) and all(map(_is_same, parts, gold_parts))


def _is_above_one(value: Any) -> bool:
    return bool(getattr(value, "is_number", False) and abs(value) > 1)


def _words(text: str) -> set[str]:
    return {word for part in _TEXT.findall(text) for word in _WORD.findall(part.lower())}


def _bare(subscript: str) -> str:
    return subscript.strip("{} ")


def _in_latex(text: str) -> str:
    """Write in LaTeX what has characters of its own: superscripts, roots, minus signs, fractions."""
    for pattern, replacement in _IN_LATEX:
        text = pattern.sub(replacement, text)
    return text


def _fraction(character: str) -> str:
    whole, _, part = unicodedata.normalize("NFKC", character).partition("\u2044")
    return f"\\frac{{{whole}}}{{{part}}}"


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


def _end_of_chain(answer: str) -> str | None:
    """Return the last of what an answer says is equal, ``293`` of ``m + n = 256 + 37 = 293``; None if a number is not.

    The first must be no number: else it is the question with its answer.
    """
    first, *others, last = (side.strip() for side in answer.split("="))
    if not others or not last or not _LETTER.search(first):
        return None
    return last if all(_is_same_number(other, last) for other in others) else None


def _is_same_number(one: str, other: str) -> bool:
    sides = _parse(one), _parse(other)
    if not all(side and getattr(side[0], "is_number", False) for side in sides):
        return False
    return bool((sides[0][0] - sides[1][0]).equals(0))


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None)
