r"""Finding the answer in what a model wrote.

Each function takes any string whatsoever and is linear in its length.
"""

from __future__ import annotations

import re
from typing import Any

_CODE_BLOCK = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_OPEN, _CLOSE = "<answer>", "</answer>"
_BOXED = "\\boxed{"


def extract_last_boxed_answer(solution: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` holds, braces inside it balanced; None if there is none.

    >>> extract_last_boxed_answer(r"First \boxed{3}, then \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_last_boxed_answer(r"\boxed{3} and \boxed{4") is None
    True
    """
    _, found, rest = solution.rpartition(_BOXED)
    if not found:
        return None
    answer, closed, _ = rest.partition("}")
    if "{" not in answer:  # nearly always; what follows is for braces in the box
        return answer if closed else None
    end = _closing_brace(solution, len(solution) - len(rest))
    return None if end is None else solution[len(solution) - len(rest) : end]


def last_boxed_only_string(string: str) -> str | None:
    r"""Return the last ``\boxed{...}``, or else ``\fbox{...}``, name and braces included; None if there is none.

    >>> last_boxed_only_string(r"so \boxed{x_{1}} it is")
    '\\boxed{x_{1}}'
    """
    start = string.rfind("\\boxed")
    if start < 0:
        start = string.rfind("\\fbox")
    brace = string.find("{", start) if start >= 0 else -1
    end = _closing_brace(string, brace + 1) if brace >= 0 else None
    return None if end is None else string[start : end + 1]


def remove_boxed(s: str | None) -> str | None:
    r"""Return what ``\boxed{...}`` holds; None for anything else.

    >>> remove_boxed(r"\boxed{3}"), remove_boxed("3")
    ('3', None)
    """
    if s is None or not (s.startswith(_BOXED) and s.endswith("}")):
        return None
    return s[len(_BOXED) : -1]


def _closing_brace(text: str, start: int) -> int | None:
    """Return the index of the brace that closes the one before ``start``; None if there is none."""
    depth = 1
    for i in range(start, len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return i
    return None


def extract_code_from_model(model_response: str) -> str | None:
    r"""Return the last Markdown code block, stripped; None if there is none.

    >>> extract_code_from_model("Try this:\n```python\nprint(1)\n```")
    'print(1)'
    """
    blocks = _CODE_BLOCK.findall(model_response)
    return blocks[-1].strip() if blocks else None


def extract_last_tagged_answer(model_response: str) -> str | None:
    """Return what the last ``<answer>...</answer>`` holds, stripped; None if there is none.

    >>> extract_last_tagged_answer("<answer>4</answer> no: <answer> 5 </answer>")
    '5'
    """
    answer = None
    start = model_response.find(_OPEN)
    while start >= 0 and (end := model_response.find(_CLOSE, start)) >= 0:
        answer = model_response[start + len(_OPEN) : end]
        start = model_response.find(_OPEN, end)
    return None if answer is None else answer.strip()


def gold_answers(value: Any) -> list[str]:
    """Return the answers that a column holds: one, or a list of them, as text."""
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)]
