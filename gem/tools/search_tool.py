"""SearchTool: look passages up, on a search server or in a corpus on this machine."""

from __future__ import annotations

import os
import re
import urllib.error
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

from gem.faults import error_message
from gem.text import cut_middle
from gem.tools.base_tool import BlockTool, ToolResult
from gem.tools.bounded_http import post
from gem.tools.corpus import SHIPPED, open_corpus
from gem.tools.search_protocol import CONTENT_TYPES, NEEDS_MSGPACK, Encoding, decode, encode, has_msgpack

TIMEOUT = 5
"""Seconds."""

MAX_CHARS = 8_000
"""Characters of the passages that the model is shown."""

LONGEST_ANSWER = 4 << 20
"""Bytes of a server's answer."""

_ERROR = "[SearchTool Error:"
_ERROR_CHARS = 300
_FAILURES = (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError)


class SearchTool(BlockTool):
    """Answers ``<search>query</search>`` with the best passages, in ``<information>...</information>``.

    They come from ``search_url``, else from ``corpus``, else from the server that the environment variable
    ``SEARCH_URL`` names, else from the small corpus that is shipped.

    Args:
        num_workers: accepted, as published.
        search_url: of a server, see :mod:`gem.tools.search_protocol`.
        topk: how many passages.
        timeout: seconds that the server has for its whole answer.
        corpus: path of a corpus, see :func:`gem.tools.corpus.open_corpus`.
        protocol: ``"msgpack"``: one query, in MessagePack; ``"json"``: a list of queries, in JSON; ``"auto"``: the
            first that the server understands.
        max_chars: of the passages together, at most; the middle of longer ones is left out.

    Raises:
        FileNotFoundError: there is no such corpus.
        ImportError: MessagePack is asked for, and no package for it is installed.
        ValueError: both a server and a corpus are given, or there is no such protocol.
    """

    tool_type = "search"
    marks = ((re.compile(r"<search>"), re.compile(r"</search>")),)

    def __init__(
        self,
        num_workers: int = 1,
        search_url: str | None = None,
        topk: int = 3,
        timeout: float = TIMEOUT,
        corpus: str | os.PathLike[str] | None = None,
        protocol: Literal["auto", "msgpack", "json"] = "auto",
        max_chars: int = MAX_CHARS,
    ) -> None:
        super().__init__(num_workers)
        if search_url is not None and corpus is not None:
            raise ValueError("pass search_url or corpus, not both")
        if protocol not in ("auto", "msgpack", "json"):
            raise ValueError(f"protocol must be auto, msgpack or json, got {protocol!r}")
        if protocol == "msgpack" and not has_msgpack():
            raise ImportError(NEEDS_MSGPACK)
        if corpus is not None and not Path(corpus).is_file():
            raise FileNotFoundError(f"there is no corpus {corpus}")
        self.search_url = search_url
        self.topk = topk
        self.timeout = timeout
        self.corpus = corpus
        self.protocol = protocol
        self.max_chars = max_chars

    def prepare(self) -> None:
        """Open the corpus, if it is on this machine.

        Raises:
            ImportError: the packages that search it are not installed.
        """
        if self._url() is None:
            open_corpus(self.corpus or SHIPPED)

    def instruction_string(self) -> str:
        """Return how to search."""
        return (
            "You can search for what you do not know. Write a query into <search>...</search> and stop: you will be "
            f"shown the {self.topk} best passages in <information>...</information>. You may think, in "
            "<think>...</think>, and search again. When you know the answer, give it in <answer>...</answer>, unless "
            "the task asks for another form."
        )

    def execute_action(self, action: str) -> ToolResult:
        """Search for the first query."""
        query, parsed_action, is_valid = self._parse_action(action)
        if not is_valid:
            return False, True, "", ""
        found = self._search(query)
        observation = f"\n\n<information>{cut_middle(found, self.max_chars)}</information>\n\n"
        return True, found.startswith(_ERROR), observation, parsed_action

    def _url(self) -> str | None:
        return self.search_url or (None if self.corpus else os.environ.get("SEARCH_URL"))

    def _search(self, query: str) -> str:
        url = self._url()
        if url is None:
            passages = open_corpus(self.corpus or SHIPPED).search(query, self.topk)
            return _listed([passage.contents for passage in passages])
        try:
            return _listed(self._ask(url, query))
        except _FAILURES as error:  # whatever the server answered
            return f"{_ERROR} {cut_middle(error_message(error), _ERROR_CHARS)}]"

    def _ask(self, url: str, query: str) -> list[str]:
        """Ask a server, and remember how if there was a choice."""
        if self.protocol != "auto":
            return self._ask_in(self.protocol, url, query)
        if has_msgpack():
            try:
                found = self._ask_in("msgpack", url, query)
            except urllib.error.HTTPError as error:
                if not 400 <= error.code < 500:
                    raise
            else:
                self.protocol = "msgpack"
                return found
        found = self._ask_in("json", url, query)
        self.protocol = "json"
        return found

    def _ask_in(self, encoding: Encoding, url: str, query: str) -> list[str]:
        what: dict[str, Any] = {"query": query} if encoding == "msgpack" else {"queries": [query]}
        body = encode({**what, "topk": self.topk, "return_scores": True}, encoding)
        answer = post(url, body, {"Content-Type": CONTENT_TYPES[encoding]}, self.timeout, LONGEST_ANSWER)
        hits = decode(answer)[0]["result"]
        if hits and isinstance(hits[0], list):
            hits = hits[0]
        return [hit.get("document", hit)["contents"] for hit in hits]


def _listed(passages: list[str]) -> str:
    lines = []
    for number, contents in enumerate(passages, start=1):
        title, _, text = contents.partition("\n")
        lines.append(f"Doc {number}(Title: {title}) {text}\n")
    return "".join(lines) or "No passage was found."
