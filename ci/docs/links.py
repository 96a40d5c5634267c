"""A hook of mkdocs: what links and includes in the repository, and has to be changed on the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)\s]+)\)")
_INCLUDE = re.compile(r"^include (\S+)$", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)(docs/)?([^)\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with the files that it includes, and without links that lead out of the site.

    >>> on_page_markdown("See [the shims](../ci/cpu/verl/README.md), or [`gem.x`](../gem/x.py).")
    'See the shims (`ci/cpu/verl/README.md`), or `gem.x`.'
    """
    return _OUTSIDE.sub(_as_path, _INCLUDE.sub(_included, markdown))


def _as_path(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
    return text if text.startswith("`") or text == path else f"{text} (`{path}`)"


def _included(line: re.Match[str]) -> str:
    """Return a file of the root folder, with its links as a page of ``docs/`` has them."""
    text = (ROOT / line[1]).read_text(encoding="utf-8")
    return _LINK.sub(lambda link: f"]({link[2]})" if link[1] else f"](../{link[2]})", text)
