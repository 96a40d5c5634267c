"""MCPTool: the tools of MCP servers, on the official ``mcp`` package.

Each environment has a connection of its own to its servers, held from the first call in an episode to the episode's
end: a server may keep something between calls, and must not carry it from one episode into the next. So a server that
is a process is started once an episode; it ends with it.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gem.faults import error_message
from gem.text import cut_middle
from gem.tools.base_tool import BlockTool, ToolResult
from gem.tools.event_loop import run_async
from gem.tools.mcp_calls import FORM, check_sendable, parse_call, result_text
from gem.tools.mcp_config import describe, normalized
from gem.tools.mcp_connection import Connection, Handlers, answers, describe_error

MAX_CHARS = 8_000
"""Characters of a result that the model is shown."""


def is_timeout_error(error: BaseException) -> bool:
    """Return whether an error says that something took too long."""
    return isinstance(error, (TimeoutError, asyncio.TimeoutError)) or "timed out" in str(error).lower()


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
        self.raw_config, self.normalized_config = config, normalized(config, auth, headers)
        self.max_retries = max(1, max_retries)
        self.delay_between_retries = delay_between_retries
        self.execution_timeout = execution_timeout
        self.keep_connection = keep_connection
        self.max_chars = max_chars
        self._handlers = Handlers(log_handler, progress_handler, sampling_handler)
        self._tools: list[dict[str, Any]] | None = None
        self._connection: Connection | None = None
        if validate_on_init:
            try:
                tools = self.get_available_tools()
            except ConnectionError as error:
                raise ValueError(f"{error}. Servers: {describe(self.normalized_config)}") from error
            finally:
                self.close()
            if not tools:
                raise ValueError(f"the servers have no tools. Servers: {describe(self.normalized_config)}")

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
        self.raw_config, self.normalized_config = new_config, normalized(new_config, auth, headers)
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
            f"that its schema asks for:\n{FORM}"
        )

    def execute_action(self, action: str) -> ToolResult:
        """Execute the first call in an action; see :meth:`execute_action_async`."""
        return run_async(self.execute_action_async(action))

    async def execute_action_async(self, action: str) -> ToolResult:
        """Execute the first call in an action at its MCP server; what follows it is left to the environment."""
        block = self.find_block(action)
        if block is None:
            return False, True, "", ""
        try:
            name, arguments = parse_call(block.content)
            has_error, text = await self._call(name, arguments)
            response = f"[Tool execution error: {text}]" if has_error else text
        except (ValueError, RecursionError) as error:
            has_error, response = True, f"[Tool execution error: {error_message(error)}]"
        except Exception as error:  # noqa: BLE001 (whatever goes wrong at a server is the model's to know)
            has_error, response = True, f"[Tool execution failed: {describe_error(error)}]"
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

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is not None and connection.is_ours and connection.is_alive:
            return connection
        for attempt in range(self.max_retries):
            connection = Connection(self.normalized_config["mcpServers"], self._handlers)
            try:
                await connection.open(self.execution_timeout)
            except Exception as error:  # noqa: BLE001 (whatever a transport raises)
                words = f" (a server wrote: {connection.last_words})" if connection.last_words else ""
                failure = f"cannot connect: {describe_error(error)}{words}"
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
        check_sendable(offer.name, arguments)
        try:
            call = offer.session.call_tool(offer.name, arguments, progress_callback=self._handlers.on_progress)
            result = await asyncio.wait_for(call, self.execution_timeout)
        except Exception as error:
            late = isinstance(error, (asyncio.TimeoutError, TimeoutError))
            # Any other error may be about this call alone, and what the server keeps is not to be lost for that.
            if late or not await answers(offer.session):
                self._connection = None
                connection.close_soon()
            if late:
                raise TimeoutError(f"no answer within {self.execution_timeout:g} seconds") from None
            raise
        data = result.model_dump(by_alias=True, mode="json")
        return bool(data.get("isError")), result_text(data)
