"""A call of a tool as a model writes it, and the result of an MCP server as text."""

from __future__ import annotations

import json
from typing import Any

FORM = '<tool_call>\n<tool_name>name</tool_name>\n<arguments>\n{"parameter": "value"}\n</arguments>\n</tool_call>'
"""How a call is written."""


def parse_call(call: str) -> tuple[str, dict[str, Any]]:
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
            raise ValueError(f"a call has this form:\n{FORM}")
        arguments = json.loads(text) if text.strip() else {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call needs the name of a tool, and arguments that are a JSON object")
    return name.strip(), arguments


def check_sendable(name: str, arguments: dict[str, Any]) -> None:
    r"""Refuse what JSON can say and the transports cannot send, as ``"\ud800"``: they would end the connection.

    Raises:
        ValueError: it cannot be sent.
    """
    from mcp import types

    params = {"name": name, "arguments": arguments}
    types.JSONRPCRequest(jsonrpc="2.0", id=0, method="tools/call", params=params).model_dump_json()


def result_text(result: dict[str, Any]) -> str:
    """Return what a model is shown of a result."""
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
