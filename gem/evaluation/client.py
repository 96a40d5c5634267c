"""Requests to OpenAI-compatible servers, thousands at the same time, each bounded in time and length.

A request that the server cannot answer now is sent again; one that no server would answer ends the evaluation.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import resource
from dataclasses import dataclass
from typing import Any

import anyio

from gem.evaluation.agents import AgentFailed, ContextFull, Misconfigured
from gem.faults import error_message

try:
    import aiohttp
except ModuleNotFoundError:
    raise ImportError("a model behind a server needs aiohttp: install gem-adapters[eval]") from None

TRIES = 6
"""How often a request is sent that the server does not answer."""

FIRST_PAUSE = 0.5
"""Seconds before it is sent again; each further pause is twice as long, and none is exactly that long."""

LONGEST_PAUSE = 60.0
"""Seconds, at most, by which a server may delay the next request (``Retry-After``)."""

LONGEST_ANSWER = 8 << 20
"""Bytes."""

LONGEST_ERROR = 2_000
"""Bytes of the body of an error."""

_TEMPORARY = frozenset({408, 409, 425, 429})
"""HTTP errors after which a request is sent again, beside all from 500 on."""

_OF_THE_SET_UP = frozenset({*range(300, 400), 401, 402, 403, 404, 405})
"""HTTP statuses that every request would get; a redirection, which would take the key elsewhere, is one."""

_TOO_LONG = re.compile(r"context[ _](length|window|size)|too long|maximum context|too many tokens", re.IGNORECASE)


class ServerFailed(AgentFailed):
    """The server did not answer, or not what it should."""


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server.

    Attributes:
        url: up to ``/v1``.
        model: as the server names it; "" for the only one that it has.
        api_key: sent as a bearer token; "" for none.
        timeout: seconds for an answer.
    """

    url: str
    model: str = ""
    api_key: str = ""
    timeout: float = 300.0


class Client:
    """Sends requests to a server. It belongs to the event loop of its first request until it is closed.

    Args:
        server: which.
        connections: requests at the same time; no more than half as many as the process may open files.
    """

    def __init__(self, server: Server, connections: int = 64) -> None:
        self.server = server
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._connections = connections if files == resource.RLIM_INFINITY else max(1, min(connections, files // 2))
        self._session: aiohttp.ClientSession | None = None
        self._limiter: anyio.CapacityLimiter | None = None

    async def ask(self, path: str, body: dict[str, Any] | None, tries: int = TRIES) -> dict[str, Any]:
        """Return the answer to a request, which is sent again while the server cannot answer.

        Args:
            path: after the server's URL.
            body: of a POST request; None for GET.
            tries: how often it is sent.

        Raises:
            ServerFailed: it does not answer, or not this request.
            ContextFull: it says that the prompt is too long.
            Misconfigured: it says that the key or the model is wrong; the message has its reason.
        """
        url, pause = f"{self.server.url}{path}", FIRST_PAUSE
        for attempt in range(1, tries + 1):
            delay = 0.0
            try:
                status, headers, text = await self._send(url, body)
                if status < 300:
                    return _object(text)
                reason = f"{status} {' '.join(text.decode('utf-8', 'replace').split())[:300]}".strip()
                if status == 400 and _TOO_LONG.search(reason):
                    raise ContextFull(reason)
                if status in _OF_THE_SET_UP:
                    raise Misconfigured(f"{url}: {reason}")
                if status < 500 and status not in _TEMPORARY:  # of this request, such as a filter of contents
                    raise ServerFailed(f"{url}: {reason}")
                delay = _seconds(headers.get("Retry-After"))
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError, _Malformed) as error:
                reason = error_message(error) or f"no answer within {self.server.timeout:g} s"
            if attempt < tries:
                await asyncio.sleep(max(delay, pause * random.uniform(0.5, 1.5)))
                pause *= 2
        raise ServerFailed(f"{url} did not answer {tries} requests; the last: {reason}")

    async def aclose(self) -> None:
        """Close the connections."""
        session, self._session, self._limiter = self._session, None, None
        if session is not None:
            await session.close()

    async def _send(self, url: str, body: dict[str, Any] | None) -> tuple[int, Any, bytes]:
        """Return status, headers and content of an answer."""
        if self._session is None or self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._connections)
            self._session = _new_session(self.server)
        data = None if body is None else json.dumps({"model": self.server.model, **body}).encode()
        method = "GET" if body is None else "POST"
        async with (
            self._limiter,  # waiting for a connection is not the server's time
            self._session.request(method, url, data=data, allow_redirects=False) as response,
        ):
            longest = LONGEST_ANSWER if response.status < 300 else LONGEST_ERROR
            content = bytearray()
            async for part in response.content.iter_any():
                content += part
                if len(content) > longest:
                    if response.status >= 300:
                        break
                    raise _Malformed(f"the answer has more than {longest} bytes")
            return response.status, response.headers, bytes(content[:longest])


class _Malformed(Exception):
    """An answer is not what this protocol has."""


def _new_session(server: Server) -> aiohttp.ClientSession:
    """Return a session whose requests take no longer than they may, and whose answers grow no longer than they came."""
    key = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    return aiohttp.ClientSession(
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **key},
        timeout=aiohttp.ClientTimeout(total=server.timeout),
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=True,  # proxies
        auto_decompress=False,
    )


def _object(text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"the answer is no JSON ({error_message(error)})") from None
    if not isinstance(answer, dict):
        raise _Malformed("the answer is no JSON object")
    return answer


def _seconds(retry_after: str | None) -> float:
    """Return how long a server wants to be left alone; 0 if it does not say, or by a date."""
    try:
        seconds = float(retry_after or 0)
    except ValueError:
        return 0.0
    return min(seconds, LONGEST_PAUSE) if seconds > 0 else 0.0
