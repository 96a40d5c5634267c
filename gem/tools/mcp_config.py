"""Which MCP servers there are: the forms of a configuration, and one form of it."""

from __future__ import annotations

import copy
from typing import Any


def normalized(config: Any, auth: Any, headers: dict[str, str] | None) -> dict[str, Any]:
    """Return ``{"mcpServers": ...}`` with a transport for each server; arguments as for :class:`gem.tools.MCPTool`.

    Raises:
        ValueError: the configuration cannot be understood.
    """
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


def describe(config: dict[str, Any]) -> str:
    """Return the names of the servers, and where they are."""
    servers = config["mcpServers"].items()
    return ", ".join(f"{name} ({server.get('url') or server.get('command')})" for name, server in servers)
