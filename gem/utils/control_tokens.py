"""Control tokens, and texts that spell them.

A *control token* is one that a chat template writes and a model obeys: ``<|im_end|>``, ``[INST]``. A tokenizer makes it
of its text wherever that text stands, so whoever can write into a prompt can forge a turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

WORD_JOINER = "\u2060"
"""A character that shows nothing, and at which no line is broken."""

_NOTHING = re.compile(r"(?!)")


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of a tokenizer's special tokens: those that it has a name for, and those that were added as such.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """
    return {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}


def control_tokens(tokenizer: Any, template: str) -> dict[int, str]:
    """Return a tokenizer's control tokens: its special tokens, and the added ones that the template writes.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: its chat template.

    Returns:
        The text of each, by id. One of a single character cannot be told from ordinary text, and is left out.
    """
    special = special_ids(tokenizer)
    return {
        i: str(token)
        for i, token in tokenizer.added_tokens_decoder.items()
        if len(str(token).strip()) > 1 and (i in special or str(token) in template)
    }


def first_characters(texts: Iterable[str]) -> re.Pattern[str]:
    """Return what matches the first character of any of some texts, in either case."""
    firsts = {case for text in texts for case in (text[0], text[0].lower(), text[0].upper())}
    return re.compile("|".join(map(re.escape, sorted(firsts)))) if firsts else _NOTHING


def beginnings(texts: Iterable[str]) -> re.Pattern[str]:
    """Return what matches, with length 0, where one of some texts begins, also inside of another.

    >>> [match.start() for match in beginnings(["<s>", "<<"]).finditer("<<s> <")]
    [0, 1]
    """
    texts = sorted(texts)
    if not texts:
        return _NOTHING
    # The first character is looked for first, since some tokenizers have thousands of control tokens.
    return re.compile(f"(?={first_characters(texts).pattern})(?={'|'.join(map(re.escape, texts))})")


def broken_up(text: str, control: re.Pattern[str]) -> str:
    """Return a text with a word joiner inside of every control token that it spells: it looks the same, and is none.

    Args:
        text: any text.
        control: :func:`beginnings` of the control tokens' texts.
    """
    cuts = [match.start() + 1 for match in control.finditer(text)]
    return WORD_JOINER.join(text[i:j] for i, j in zip([0, *cuts], [*cuts, None], strict=True))
