"""A hook of mkdocs: what links and includes in the repository, and has to be changed on the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_INCLUDE = re.compile(r"^include (\S+)$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page with the files that it includes, and without links that lead out of the site."""
    return for_site(_INCLUDE.sub(_included, markdown), posixpath.dirname(page.file.src_uri))


def for_site(markdown: str, folder: str = "") -> str:
    """Return the text of a page in a folder of ``docs/``, in which links to other files of the repository are paths.

    >>> for_site("See [the shims](../ci/cpu/verl/README.md), [`gem.x`](../gem/x.py) or [verl](verl.md).")
    'See the shims (`ci/cpu/verl/README.md`), `gem.x` or [verl](verl.md).'
    """

    def change(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        if path.startswith("docs/"):
            return link[0]
        return link[1] if link[1].startswith("`") else f"{link[1]} (`{path}`)"

    return _LINK.sub(change, markdown)


def _included(line: re.Match[str]) -> str:
    """Return a file of the root folder, with its links as a page of ``docs/`` has them."""
    text = (ROOT / line[1]).read_text(encoding="utf-8")
    return _LINK.sub(lambda link: f"[{link[1]}]({posixpath.relpath(link[2], 'docs')})", text)
