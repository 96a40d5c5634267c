"""HTTP requests whose answers are bounded in time and length, whatever the server does.

The timeout of the standard library, like that of most others, is for each piece of an answer: a server that sends a
byte per second is read for ever.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any


class _Deadline:
    """Shuts the connections of a request when its time is up."""

    def __init__(self, seconds: float) -> None:
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self.passed = False
        self.timer = threading.Timer(seconds, self._pass)
        self.timer.daemon = True

    def watch(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.append(connection)
        if self.passed:
            self._pass()

    def _pass(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it is closed
                    connection.shutdown(socket.SHUT_RDWR)


def post(url: str, body: bytes, headers: Mapping[str, str], timeout: float, longest: int) -> bytes:
    """Return what a server answers to a POST request.

    Args:
        url: http or https; proxies are taken from the environment.
        body: what is sent.
        headers: beside the usual ones.
        timeout: seconds for all of it, redirections included.
        longest: bytes of the answer.

    Raises:
        TimeoutError: the time is up.
        ValueError: the answer is longer, or the URL is no URL.
        urllib.error.URLError: the server cannot be reached, or answers with an error (HTTPError).
        http.client.HTTPException: it does not speak HTTP.
    """
    deadline = _Deadline(timeout)
    opener = urllib.request.build_opener(_handler("http", deadline), _handler("https", deadline))
    late = TimeoutError(f"the server did not answer within {timeout:g} s")
    deadline.timer.start()
    try:
        with opener.open(urllib.request.Request(url, body, dict(headers)), timeout=timeout) as response:
            answer: bytes = response.read(longest + 1)
    except Exception:  # a connection that was shut can fail in any way
        if deadline.passed:
            raise late from None
        raise
    finally:
        deadline.timer.cancel()
    if deadline.passed:
        raise late
    if len(answer) > longest:
        raise ValueError(f"the answer has more than {longest} bytes")
    return answer


def _handler(scheme: str, deadline: _Deadline) -> urllib.request.BaseHandler:
    """Return what opens URLs of a scheme, with connections that the deadline watches."""
    secure = scheme == "https"
    base: Any = http.client.HTTPSConnection if secure else http.client.HTTPConnection

    class Connection(base):
        def connect(self) -> None:
            super().connect()
            deadline.watch(self.sock)

    def open_url(self: Any, request: urllib.request.Request) -> http.client.HTTPResponse:
        answer: http.client.HTTPResponse = self.do_open(Connection, request)
        return answer

    handler: Any = urllib.request.HTTPSHandler if secure else urllib.request.HTTPHandler
    made: urllib.request.BaseHandler = type("Handler", (handler,), {f"{scheme}_open": open_url})()
    return made
