"""Exact match of short answers as published for SQuAD: without case, articles and *all* punctuation.

So "5" matches "-5", and the empty answer matches "a". :class:`gem.envs.qa_env.QaEnv` is stricter.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(s: str) -> str:
    """Return a text in lower case, without punctuation and articles, its words one blank apart.

    >>> normalize_answer("The  U.S.!")
    'us'
    """
    return " ".join(_ARTICLES.sub(" ", s.lower().translate(_PUNCTUATION)).split())


def em_check(prediction: str, golden_answers: str | Iterable[str]) -> bool:
    """Return whether a prediction matches an answer, or one of several."""
    golds = [golden_answers] if isinstance(golden_answers, str) else golden_answers
    return normalize_answer(prediction) in map(normalize_answer, golds)
