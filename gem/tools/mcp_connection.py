"""The connection of an :class:`gem.tools.MCPTool` to its servers, in the tools' event loop."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from gem.faults import error_message, error_text, type_name
from gem.tools.event_loop import event_loop, run_async

CLOSE_SECONDS = 10.0
"""What a server is given to end."""

PING_SECONDS = 5.0
"""What a server is given to answer a ping."""

MOST_PAGES = 100
"""Pages of a server's list of tools."""


class Offer(NamedTuple):
    """A tool of a server: what the model calls it, what the server does, and how to reach it."""

    called: str
    name: str
    description: str
    parameters: dict[str, Any]
    server: str
    session: Any

    def describe(self) -> dict[str, Any]:
        """Return it as :meth:`gem.tools.MCPTool.get_available_tools` does."""
        return {
            "name": self.called,
            "description": self.description,
            "parameters": self.parameters,
            "server": self.server,
        }


@dataclass(frozen=True)
class Handlers:
    """What the user wants to be told, and asked, by servers; functions and coroutine functions both."""

    log: Callable[..., Any] | None
    progress: Callable[..., Any] | None
    sampling: Callable[..., Any] | None

    @property
    def on_progress(self) -> Callable[..., Any] | None:
        """What the session calls with the progress of a call; None if nobody wants to know."""
        return None if self.progress is None else self._progress

    async def _progress(self, progress: float, total: float | None, message: str | None) -> None:
        assert self.progress is not None
        await _awaited(self.progress(progress, total, message))

    async def on_log(self, params: Any) -> None:
        """Pass on what a server logs."""
        if self.log is not None:
            await _awaited(self.log(params))

    @property
    def on_sampling(self) -> Callable[..., Any] | None:
        """What the session calls where a server asks a model; None if that is not offered."""
        return None if self.sampling is None else self._sampling

    async def _sampling(self, context: Any, params: Any) -> Any:
        from mcp import types

        assert self.sampling is not None
        answer = await _awaited(self.sampling(params.messages, params, context))
        if not isinstance(answer, str):
            return answer
        content = types.TextContent(type="text", text=answer)
        return types.CreateMessageResult(role="assistant", content=content, model="gem")


class Connection:
    """Sessions with all servers, opened, held and closed by one task of the tools' event loop.

    Args:
        servers: by name.
        handlers: of what they send.
    """

    def __init__(self, servers: Mapping[str, dict[str, Any]], handlers: Handlers) -> None:
        self.offers: dict[str, Offer] = {}
        self._servers = servers
        self._handlers = handlers
        self._process = os.getpid()
        self._stop = asyncio.Event()
        self.last_words = ""
        """What the servers wrote to stderr last, once they have ended."""

    @property
    def is_ours(self) -> bool:
        """Whether it was made in this process, and not before a fork."""
        return self._process == os.getpid()

    @property
    def is_alive(self) -> bool:
        """Whether the connection is open, or about to be."""
        return not self._task.done()

    async def open(self, timeout: float) -> None:
        """Connect to all servers.

        Raises:
            Exception: whatever a transport raises.
            TimeoutError: the time was up.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(ready))
        _opened.add(self)
        try:
            await asyncio.wait_for(ready, timeout)
        except BaseException as error:  # the episode may have been cancelled
            self._task.cancel()
            await self._ended()
            if isinstance(error, (asyncio.TimeoutError, TimeoutError)) and ready.cancelled():
                raise TimeoutError(f"no answer within {timeout:g} seconds") from None
            raise

    async def close(self) -> None:
        """End all sessions, and the servers that were started for them."""
        self._stop.set()
        await self._ended()
        self._task.cancel()

    async def _ended(self) -> None:
        """Wait until the servers have ended, which they do one after another."""
        await asyncio.wait({self._task}, timeout=CLOSE_SECONDS * len(self._servers))

    def close_soon(self) -> None:
        """Have the connection closed, without waiting for it."""
        event_loop().call_soon_threadsafe(self._stop.set)

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
            try:
                async with AsyncExitStack() as stack:
                    for name, server in self._servers.items():
                        await self._join(stack, name, server, stderr)
                    ready.set_result(None)
                    await self._stop.wait()
            except BaseException as error:
                if not ready.done():
                    ready.set_exception(_innermost(error))
                if not isinstance(error, Exception):
                    raise
            finally:
                stderr.seek(0)
                self.last_words = stderr.read().strip()[-500:]

    async def _join(self, stack: AsyncExitStack, name: str, server: dict[str, Any], stderr: Any) -> None:
        from mcp import ClientSession

        streams = await stack.enter_async_context(_transport(server, stderr))
        handlers = {"logging_callback": self._handlers.on_log, "sampling_callback": self._handlers.on_sampling}
        session = await stack.enter_async_context(ClientSession(streams[0], streams[1], **handlers))
        await session.initialize()
        prefix = f"{name}_" if len(self._servers) > 1 else ""
        async for tool in _tools(session):
            renamed = server.get("tools", {}).get(tool["name"], {}).get("name")
            called = renamed or prefix + tool["name"]
            offer = Offer(called, tool["name"], tool.get("description") or "", tool["inputSchema"], name, session)
            twin = self.offers.setdefault(called, offer)
            if (twin.server, twin.name) != (offer.server, offer.name):
                raise ValueError(
                    f"{twin.name!r} of the server {twin.server!r} and {offer.name!r} of {offer.server!r} would both be "
                    f"called {called!r}: rename one of them"
                )


_opened: weakref.WeakSet[Connection] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End what is open with the process: also what is ending already, which takes some servers seconds."""
    connections = [connection for connection in _opened if connection.is_ours and connection.is_alive]
    if connections:
        run_async(_all_closed(connections))


async def _all_closed(connections: list[Connection]) -> None:
    await asyncio.gather(*(connection.close() for connection in connections))


def _transport(server: dict[str, Any], stderr: Any) -> AbstractAsyncContextManager[Any]:
    if server["transport"] == "stdio":
        from mcp.client.stdio import StdioServerParameters, stdio_client

        process = {key: server[key] for key in ("command", "args", "env", "cwd") if key in server}
        return stdio_client(StdioServerParameters(**process), errlog=stderr)
    if server["transport"] == "sse":
        from mcp.client.sse import sse_client

        return sse_client(server["url"], headers=server.get("headers"))
    return _streamable_http(server["url"], server.get("headers"))


@asynccontextmanager
async def _streamable_http(url: str, headers: dict[str, str] | None) -> AsyncIterator[Any]:
    from mcp.client import streamable_http as http

    async with (
        http.create_mcp_http_client(headers=headers) as client,
        http.streamable_http_client(url, http_client=client) as streams,
    ):
        yield streams


async def _tools(session: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield a server's tools, as they are on the wire: the names of attributes changed with mcp 2."""
    from mcp import types

    position: dict[str, Any] = {}
    for _ in range(MOST_PAGES):
        page = (await session.list_tools(**position)).model_dump(by_alias=True, mode="json")
        for tool in page["tools"]:
            yield tool
        cursor = page.get("nextCursor")
        if not cursor:
            return
        old = "cursor" in inspect.signature(session.list_tools).parameters
        position = {"cursor": cursor} if old else {"params": types.PaginatedRequestParams(cursor=cursor)}


async def answers(session: Any) -> bool:
    """Return whether a server is there, and knows the session: one that was started again does not."""
    try:
        await asyncio.wait_for(session.send_ping(), PING_SECONDS)
    except Exception:  # noqa: BLE001 (whatever a transport raises)
        return False
    return True


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _innermost(error: BaseException) -> BaseException:
    """Return the error that a group of one, as task groups raise it, is about."""
    while inner := getattr(error, "exceptions", ()):
        error = inner[0]
    return error


def describe_error(error: BaseException) -> str:
    """Return the message of an error, with its type; its type alone if it has no message."""
    error = _innermost(error)
    return error_text(error) if error_message(error) else type_name(error)
