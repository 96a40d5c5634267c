"""A search server over a corpus: what :class:`gem.tools.search_tool.SearchTool` and other clients can ask.

It answers both forms of :mod:`gem.tools.search_protocol`, in the encoding of the request, at any path.
"""

from __future__ import annotations

import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gem.tools.corpus import SHIPPED, Corpus, open_corpus
from gem.tools.search_protocol import CONTENT_TYPES, Encoding, decode, encode

LONGEST_BODY = 1 << 20
"""Bytes of a request."""

MOST_PASSAGES = 100
"""Passages a query."""

MOST_QUERIES = 1_000
"""Queries a request."""

MOST_SECONDS = 5.0
"""For the queries of a request together; what is asked after them is refused."""

DEFAULT_TOPK = 3


_BAD_REQUEST = (ValueError, LookupError, TypeError, AttributeError, OverflowError, ImportError, RecursionError)


class SearchServer(ThreadingHTTPServer):
    """Serves a corpus, a thread a connection; ``serve_forever`` and ``shutdown`` as in the standard library.

    Args:
        corpus: path, see :func:`gem.tools.corpus.open_corpus`.
        host: to listen on.
        port: 0 for one that is free.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, corpus: str | os.PathLike[str] = SHIPPED, host: str = "127.0.0.1", port: int = 8000) -> None:
        self.corpus: Corpus = open_corpus(corpus)
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """What to give to :class:`gem.tools.search_tool.SearchTool`."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/retrieve"


def serve(corpus: str | os.PathLike[str] = SHIPPED, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a corpus until interrupted; arguments as for :class:`SearchServer`."""
    with SearchServer(corpus, host, port) as server:
        print(f"{len(server.corpus)} passages at {server.url}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # of each read
    wbufsize = 1 << 16  # headers and body leave together, or the body waits for the headers' acknowledgement
    server: SearchServer

    def do_GET(self) -> None:
        self._send(200, {"passages": len(self.server.corpus)}, "json")

    def do_POST(self) -> None:
        text = self.headers.get("Content-Length", "0").strip()
        if not (text.isascii() and text.isdecimal()):
            self.close_connection = True
            return self._send(400, {"detail": f"Content-Length is a number, not {text!r:.40}"}, "json")
        length = int(text) if len(text) < 20 else LONGEST_BODY + 1
        if length > LONGEST_BODY:
            self.close_connection = True
            return self._send(413, {"detail": f"a request has {LONGEST_BODY} bytes at most"}, "json")
        encoding: Encoding = "json"
        try:
            request, encoding = decode(self.rfile.read(length))
            answer = {"result": _answer(self.server.corpus, request)}
        except TimeoutError as error:
            return self._send(503, {"detail": str(error)}, encoding)
        except _BAD_REQUEST as error:
            return self._send(400, {"detail": f"{type(error).__name__}: {error}"[:300]}, encoding)
        self._send(200, answer, encoding)

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def _send(self, status: int, data: Any, encoding: Encoding) -> None:
        body = encode(data, encoding)
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPES[encoding])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _answer(corpus: Corpus, request: Any) -> list[Any]:
    topk = max(1, min(MOST_PASSAGES, int(request.get("topk") or DEFAULT_TOPK)))
    with_scores = bool(request.get("return_scores", False))
    end = time.monotonic() + MOST_SECONDS

    def hits(query: Any) -> list[dict[str, Any]]:
        if not isinstance(query, str):
            raise TypeError(f"a query is text, not {query!r:.40}")
        if time.monotonic() > end:
            raise TimeoutError(f"the queries take more than {MOST_SECONDS:g} s: ask in several requests")
        documents = [({"id": p.id, "contents": p.contents}, p.score) for p in corpus.search(query, topk)]
        return [{"document": d, "score": score} if with_scores else d for d, score in documents]

    if "queries" not in request:
        return hits(request["query"])
    queries = request["queries"]
    if not isinstance(queries, list) or len(queries) > MOST_QUERIES:
        raise ValueError(f"queries are a list of {MOST_QUERIES} at most")
    return [hits(query) for query in queries]
