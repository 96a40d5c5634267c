r"""Finding the answer in what a model wrote.

Each function takes any string whatsoever and is linear in its length.
"""

from __future__ import annotations

import re

_CODE_BLOCK = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_OPEN, _CLOSE = "<answer>", "</answer>"
_BOXED = "\\boxed{"


def extract_last_boxed_answer(text: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` holds, braces inside it balanced; None if there is none.

    >>> extract_last_boxed_answer(r"First \boxed{3}, then \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_last_boxed_answer(r"\boxed{3} and \boxed{4") is None
    True
    """
    _, found, rest = text.rpartition(_BOXED)
    if not found:
        return None
    answer, closed, _ = rest.partition("}")
    if "{" not in answer:  # nearly always; what follows is for braces in the box
        return answer if closed else None
    start = len(text) - len(rest)
    depth = 1
    for i in range(start, len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return text[start:i]
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
