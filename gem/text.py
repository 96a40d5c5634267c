"""Shortening of texts."""

from __future__ import annotations


def cut_middle(text: str, limit: int) -> str:
    r"""Return ``limit`` characters of a text at most, and a note in the place of what was left out.

    >>> cut_middle("a" * 30 + "z" * 30, 8)
    'aaaa\n[... 52 characters left out ...]\nzzzz'
    """
    if len(text) <= limit:
        return text
    tail = limit // 2
    head = limit - tail
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - tail :]}"
