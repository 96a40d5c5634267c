"""MCPTool: the tools of MCP servers, on the official ``mcp`` package.

Each environment has a connection of its own to its servers, held from the first call in an episode to the episode's
end: a server may keep something between calls, and must not carry it from one episode into the next. So a server that
is a process is started once an episode; it ends with it.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import inspect
import json
import os
import re
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gem.faults import error_message, error_text, type_name
from gem.tools.base_tool import BlockTool, ToolResult
from gem.tools.event_loop import event_loop, run_async
from gem.utils.text import cut_middle

MAX_CHARS = 8_000
"""Characters of a result that the model is shown."""

CLOSE_SECONDS = 10.0
"""What a server is given to end."""

PING_SECONDS = 5.0
"""What a server is given to say that it is there."""

MOST_PAGES = 100
"""Pages of a server's list of tools."""

_FORM = '<tool_call>\n<tool_name>name</tool_name>\n<arguments>\n{"parameter": "value"}\n</arguments>\n</tool_call>'


class MCPTool(BlockTool):
    """Calls tools of MCP servers, over stdio, streamable HTTP or SSE.

    The model writes ``<tool_call><tool_name>name</tool_name><arguments>{...}</arguments></tool_call>``, or, as many
    models were taught, ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. It is answered in
    ``<tool_response>...</tool_response>``, also where the call failed or took too long. After a call that took too
    long, or lost the connection, the next one begins a new connection.

    With several servers, the tools have their server's name in front: ``weather_forecast``. One instance serves one
    thread at a time; a copy (``copy.copy``, pickle) has no connection yet.

    Args:
        config: the URL of a server; or ``{"mcpServers": {name: server}}``; or one server, which is
            ``{"command", "args", "env", "cwd"}`` or ``{"url", "headers", "transport"}``. ``transport`` is ``"stdio"``,
            ``"http"`` or ``"sse"``, and need not be given for the first two. ``"tools": {name: {"name": other}}``
            renames tools.
        auth: bearer token, where ``config`` is a URL.
        headers: of HTTP requests, where ``config`` is a URL.
        log_handler: is called with what a server logs.
        progress_handler: is called with a call's progress, total and message.
        sampling_handler: is called with the messages, parameters and context of what a server asks a model, and
            returns the answer.
        max_retries: how often to try to connect.
        delay_between_retries: seconds.
        execution_timeout: seconds to connect, and for a call.
        validate_on_init: connect once, to see whether there are tools.
        num_workers: accepted, as published.
        keep_connection: over episodes, for servers that keep nothing.
        max_chars: of a result, at most; the middle of a longer one is left out.

    Raises:
        ImportError: the package ``mcp`` is not installed.
        ValueError: the configuration cannot be understood, or the servers not be reached, or they have no tools.
    """

    tool_type = "mcp"
    per_episode = True
    marks = (
        (re.compile(r"<tool_call>\s*(?=<tool_name>)"), re.compile(r"</arguments>\s*</tool_call>")),
        (re.compile(r"<tool_call>\s*(?=\{)"), re.compile(r"</tool_call>")),
    )

    def __init__(
        self,
        config: str | dict[str, Any],
        auth: Any = None,
        headers: dict[str, str] | None = None,
        log_handler: Callable[..., Any] | None = None,
        progress_handler: Callable[..., Any] | None = None,
        sampling_handler: Callable[..., Any] | None = None,
        max_retries: int = 3,
        delay_between_retries: float = 1.0,
        execution_timeout: float = 30.0,
        validate_on_init: bool = True,
        num_workers: int = 1,
        keep_connection: bool = False,
        max_chars: int = MAX_CHARS,
    ) -> None:
        super().__init__(num_workers)
        try:
            import mcp  # noqa: F401
        except ModuleNotFoundError:
            raise ImportError("MCPTool needs the package mcp: install gem-adapters[mcp]") from None
        self.normalized_config = _normalized(config, auth, headers)
        self.max_retries = max(1, max_retries)
        self.delay_between_retries = delay_between_retries
        self.execution_timeout = execution_timeout
        self.keep_connection = keep_connection
        self.max_chars = max_chars
        self._handlers = _Handlers(log_handler, progress_handler, sampling_handler)
        self._tools: list[dict[str, Any]] | None = None
        self._connection: _Connection | None = None
        if validate_on_init:
            try:
                tools = self.get_available_tools()
            except ConnectionError as error:
                raise ValueError(f"{error}. Servers: {self._described()}") from error
            finally:
                self.close()
            if not tools:
                raise ValueError(f"the servers have no tools. Servers: {self._described()}")

    @classmethod
    def from_url(cls, url: str, auth: Any = None, headers: dict[str, str] | None = None, **kwargs: Any) -> MCPTool:
        """Build the tool for an HTTP server; arguments as for the class."""
        return cls(url, auth=auth, headers=headers, **kwargs)

    @classmethod
    def from_config_file(cls, config_path: str | os.PathLike[str], **kwargs: Any) -> MCPTool:
        """Build the tool from a JSON file with ``{"mcpServers": ...}``."""
        return cls(json.loads(Path(config_path).read_text(encoding="utf-8")), **kwargs)

    @classmethod
    def from_local_command(cls, server_params: dict[str, Any], name: str = "default", **kwargs: Any) -> MCPTool:
        """Build the tool for a server that a command starts: ``{"command", "args", "env"}``."""
        return cls({"mcpServers": {name: server_params}}, **kwargs)

    @classmethod
    def from_multi_server(cls, servers: dict[str, str], **kwargs: Any) -> MCPTool:
        """Build the tool for several HTTP servers, given as names and URLs."""
        return cls({"mcpServers": {name: {"url": url} for name, url in servers.items()}}, **kwargs)

    def reconfigure(
        self, new_config: str | dict[str, Any], auth: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        """Change the servers; arguments as for the class."""
        self.close()
        self.normalized_config = _normalized(new_config, auth, headers)
        self._tools = None

    def get_available_tools(self) -> list[dict[str, Any]]:
        """Return ``name``, ``description``, ``parameters`` (a JSON schema) and ``server`` of each tool.

        Raises:
            ConnectionError: a server cannot be reached.
        """
        if self._tools is None:
            self._tools = [offer.describe() for offer in run_async(self._connected()).offers.values()]
        return copy.deepcopy(self._tools)

    def instruction_string(self) -> str:
        """Return the list of tools, and how to call one.

        Raises:
            ConnectionError: a server cannot be reached.
        """
        tools = []
        for tool in sorted(self.get_available_tools(), key=lambda tool: tool["name"]):
            function = {key: tool[key] for key in ("name", "description", "parameters")}
            tools.append(json.dumps({"type": "function", "function": function}, ensure_ascii=False))
        listed = "\n".join(tools)
        return (
            f"You can use these tools:\n<tools>\n{listed}\n</tools>\n"
            "Call one tool at a time, and stop after the call: you will be shown its result in "
            "<tool_response>...</tool_response>. A call is the name of a tool and, as a JSON object, the arguments "
            f"that its schema asks for:\n{_FORM}"
        )

    def execute_action(self, action: str) -> ToolResult:
        """Execute the first call."""
        return run_async(self.execute_action_async(action))

    async def execute_action_async(self, action: str) -> ToolResult:
        """Execute the first call, in the tools' event loop."""
        block = self.find_block(action)
        if block is None:
            return False, True, "", ""
        try:
            name, arguments = _parsed(block.content)
            has_error, text = await self._call(name, arguments)
            response = f"[Tool execution error: {text}]" if has_error else text
        except (ValueError, RecursionError) as error:
            has_error, response = True, f"[Tool execution error: {error_message(error)}]"
        except Exception as error:  # noqa: BLE001 (whatever goes wrong at a server is the model's to know)
            has_error, response = True, f"[Tool execution failed: {_described_error(error)}]"
        observation = f"\n<tool_response>\n{cut_middle(response, self.max_chars)}\n</tool_response>\n"
        return True, has_error, observation, action[: block.end]

    def reset(self) -> None:
        """End the connection, so that the next episode finds the servers as this one did."""
        if not self.keep_connection:
            self.close()

    def close(self) -> None:
        """End the connection, and the servers that it started."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_ours:
            run_async(connection.close())

    def set_state(self, state: dict[str, Any]) -> None:
        """End the connection: what servers keep is not part of the state."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: all but the connection."""
        return {**vars(self), "_connection": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> MCPTool:
        """Return a copy with the same handlers, and not with copies of what their methods belong to."""
        return copy.copy(self)

    def __del__(self) -> None:
        """Let the servers end, without waiting for them."""
        connection = vars(self).get("_connection")
        if connection is not None and connection.is_ours:
            connection.close_soon()

    async def _connected(self) -> _Connection:
        connection = self._connection
        if connection is not None and connection.is_ours and connection.is_alive:
            return connection
        for attempt in range(self.max_retries):
            connection = _Connection(self.normalized_config["mcpServers"], self._handlers)
            try:
                await connection.open(self.execution_timeout)
            except Exception as error:  # noqa: BLE001 (whatever a transport raises)
                words = f" (a server wrote: {connection.last_words})" if connection.last_words else ""
                failure = f"cannot connect: {_described_error(error)}{words}"
                if attempt + 1 < self.max_retries:
                    await asyncio.sleep(self.delay_between_retries)
            else:
                self._connection = connection
                return connection
        raise ConnectionError(failure)

    async def _call(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        connection = await self._connected()
        offer = connection.offers.get(name)
        if offer is None:
            raise ValueError(f"there is no tool {name!r}; there are {', '.join(sorted(connection.offers))}")
        _check_sendable(offer.name, arguments)
        try:
            call = offer.session.call_tool(offer.name, arguments, progress_callback=self._handlers.on_progress)
            result = await asyncio.wait_for(call, self.execution_timeout)
        except Exception as error:
            late = isinstance(error, (asyncio.TimeoutError, TimeoutError))
            # Any other error may be about this call alone, and what the server keeps is not to be lost for that.
            if late or not await _answers(offer.session):
                self._connection = None
                connection.close_soon()
            if late:
                raise TimeoutError(f"no answer within {self.execution_timeout:g} seconds") from None
            raise
        data = result.model_dump(by_alias=True, mode="json")
        return bool(data.get("isError")), _result_text(data)

    def _described(self) -> str:
        servers = self.normalized_config["mcpServers"].items()
        return ", ".join(f"{name} ({server.get('url') or server.get('command')})" for name, server in servers)


class _Offer(NamedTuple):
    """A tool of a server: what the model calls it, what the server does, and how to reach it."""

    called: str
    name: str
    description: str
    parameters: dict[str, Any]
    server: str
    session: Any

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.called,
            "description": self.description,
            "parameters": self.parameters,
            "server": self.server,
        }


@dataclass(frozen=True)
class _Handlers:
    """What the user wants to be told, and asked, by servers; functions and coroutine functions both."""

    log: Callable[..., Any] | None
    progress: Callable[..., Any] | None
    sampling: Callable[..., Any] | None

    @property
    def on_progress(self) -> Callable[..., Any] | None:
        return None if self.progress is None else self._progress

    async def _progress(self, progress: float, total: float | None, message: str | None) -> None:
        assert self.progress is not None
        await _awaited(self.progress(progress, total, message))

    async def on_log(self, params: Any) -> None:
        if self.log is not None:
            await _awaited(self.log(params))

    @property
    def on_sampling(self) -> Callable[..., Any] | None:
        return None if self.sampling is None else self._sampling

    async def _sampling(self, context: Any, params: Any) -> Any:
        from mcp import types

        assert self.sampling is not None
        answer = await _awaited(self.sampling(params.messages, params, context))
        if not isinstance(answer, str):
            return answer
        content = types.TextContent(type="text", text=answer)
        return types.CreateMessageResult(role="assistant", content=content, model="gem")


class _Connection:
    """Sessions with all servers, opened, held and closed by one task of the tools' event loop.

    Args:
        servers: by name.
        handlers: of what they send.
    """

    def __init__(self, servers: Mapping[str, dict[str, Any]], handlers: _Handlers) -> None:
        self.offers: dict[str, _Offer] = {}
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
        return not self._task.done()

    async def open(self, timeout: float) -> None:
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
        self._stop.set()
        await self._ended()
        self._task.cancel()

    async def _ended(self) -> None:
        """Wait until the servers have ended, which they do one after another."""
        await asyncio.wait({self._task}, timeout=CLOSE_SECONDS * len(self._servers))

    def close_soon(self) -> None:
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
            offer = _Offer(called, tool["name"], tool.get("description") or "", tool["inputSchema"], name, session)
            twin = self.offers.setdefault(called, offer)
            if (twin.server, twin.name) != (offer.server, offer.name):
                raise ValueError(
                    f"{twin.name!r} of the server {twin.server!r} and {offer.name!r} of {offer.server!r} would both be "
                    f"called {called!r}: rename one of them"
                )


_opened: weakref.WeakSet[_Connection] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End what is open with the process: also what is ending already, which takes some servers seconds."""
    connections = [connection for connection in _opened if connection.is_ours and connection.is_alive]
    if connections:
        run_async(_all_closed(connections))


async def _all_closed(connections: list[_Connection]) -> None:
    await asyncio.gather(*(connection.close() for connection in connections))


def _normalized(config: Any, auth: Any, headers: dict[str, str] | None) -> dict[str, Any]:
    """Return ``{"mcpServers": ...}`` with a transport for each server."""
    if isinstance(config, str):
        token = getattr(auth, "token", auth)  # an object that holds one, secret perhaps
        token = token.get_secret_value() if hasattr(token, "get_secret_value") else token
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        config = {"url": config, "headers": {**(headers or {}), **bearer}}
    if not isinstance(config, dict):
        raise ValueError(f"config must be a URL or a dict, got {type(config).__name__}")
    servers = copy.deepcopy(config.get("mcpServers", {"default": config}))
    if not servers:
        raise ValueError("config names no servers")
    for name, server in servers.items():
        if not isinstance(server, dict) or not ("command" in server or "url" in server):
            raise ValueError(f"server {name!r} must have a command or a url, got {server!r:.200}")
        server.setdefault("transport", "stdio" if "command" in server else "http")
        if server["transport"] not in ("stdio", "http", "streamable-http", "sse"):
            raise ValueError(f"server {name!r}: transport must be stdio, http or sse, got {server['transport']!r}")
    return {"mcpServers": servers}


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


def _parsed(call: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of a call.

    Raises:
        ValueError, RecursionError: it cannot be understood.
    """
    call = call.strip()
    if call.startswith("{"):
        data = json.loads(call)
        name, arguments = data.get("name"), data.get("arguments") or {}
    else:
        name, _, rest = call.removeprefix("<tool_name>").partition("</tool_name>")
        opening, _, text = rest.partition("<arguments>")
        if opening.strip():
            raise ValueError(f"a call has this form:\n{_FORM}")
        arguments = json.loads(text) if text.strip() else {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call needs the name of a tool, and arguments that are a JSON object")
    return name.strip(), arguments


def _check_sendable(name: str, arguments: dict[str, Any]) -> None:
    r"""Refuse what JSON can say and the transports cannot send, as ``"\ud800"``: they would end the connection.

    Raises:
        ValueError: it cannot be sent.
    """
    from mcp import types

    params = {"name": name, "arguments": arguments}
    types.JSONRPCRequest(jsonrpc="2.0", id=0, method="tools/call", params=params).model_dump_json()


async def _answers(session: Any) -> bool:
    """Return whether a server is there, and knows the session: one that was started again does not."""
    try:
        await asyncio.wait_for(session.send_ping(), PING_SECONDS)
    except Exception:  # noqa: BLE001 (whatever a transport raises)
        return False
    return True


def _result_text(result: dict[str, Any]) -> str:
    text = "\n".join(map(_as_text, result["content"]))
    structured = result.get("structuredContent")
    if not text and structured is not None:  # servers should say it as text too, and need not
        text = json.dumps(structured, ensure_ascii=False)
    return text or "The tool returned nothing."


def _as_text(content: dict[str, Any]) -> str:
    """Return the text of a content, or what kind of thing it is, and where to find it."""
    about = content.get("resource") or content
    if "text" in about:
        return about["text"]
    return f"[{' '.join(filter(None, (content['type'], about.get('uri'), about.get('mimeType'))))}]"


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _innermost(error: BaseException) -> BaseException:
    """Return the error that a group of one, as task groups raise it, is about."""
    while inner := getattr(error, "exceptions", ()):
        error = inner[0]
    return error


def _described_error(error: BaseException) -> str:
    error = _innermost(error)
    return error_text(error) if error_message(error) else type_name(error)
