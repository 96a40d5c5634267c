"""An extension of griffe: what docstrings have of Sphinx's markup, as Markdown."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")
_CODE_BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n\n((?:\1 {4}.*\n|\n)+)", re.MULTILINE)
_DOCTEST = re.compile(r"^( *)>>> .*\n(?:\1(?=\S).*\n)*", re.MULTILINE)
_TABLE = re.compile(r"^( *)=+  =+\n(?:.*\n)*?\1=+  =+\n", re.MULTILINE)


def as_markdown(text: str) -> str:
    """Return a docstring with code for roles, and fences around code blocks, doctests and tables.

    >>> print(as_markdown("See :class:`gem.Env`."))
    See `gem.Env`.
    """
    text = _ROLE.sub(r"`\1`", text + "\n")
    text = _CODE_BLOCK.sub(_code_block, text)
    text = _DOCTEST.sub(lambda found: _fenced("pycon", found[0]), text)
    return _TABLE.sub(lambda found: _fenced("text", found[0].replace("`", "")), text).rstrip("\n")


def _code_block(found: re.Match[str]) -> str:
    return textwrap.indent(_fenced(found[2], textwrap.dedent(found[3])), found[1]) + "\n"


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


class Docstrings(griffe.Extension):
    """Changes every docstring."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
