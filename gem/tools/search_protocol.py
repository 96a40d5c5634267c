r"""What search servers are asked, and answer: in MessagePack or in JSON.

Two forms are spoken. One query: ``{"query", "topk", "return_scores"}``, answered by ``{"result": [hit, ...]}``. Several
(``POST /retrieve`` in JSON): ``{"queries", "topk", "return_scores"}``, answered by a list of hits for each. A hit is
``{"document": {"contents": "title\ntext"}, "score": ...}``, or the document alone if no scores were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

Encoding = Literal["msgpack", "json"]

CONTENT_TYPES: dict[Encoding, str] = {"msgpack": "application/msgpack", "json": "application/json"}

NEEDS_MSGPACK = "the server speaks MessagePack: install gem-adapters[search]"


def has_msgpack() -> bool:
    """Return whether a package for MessagePack is installed."""
    return _msgpack() is not None


def encode(data: Any, encoding: Encoding) -> bytes:
    """Return data as bytes.

    Raises:
        ImportError: no package for MessagePack is installed.
    """
    if encoding == "json":
        return json.dumps(data).encode()
    functions = _msgpack()
    if functions is None:
        raise ImportError(NEEDS_MSGPACK)
    return functions[0](data)


def decode(body: bytes) -> tuple[Any, Encoding]:
    """Return what bytes say, and their encoding: JSON begins with a brace, with which MessagePack begins no map.

    Raises:
        ImportError: they are in MessagePack, and no package for it is installed.
        ValueError: they are neither.
    """
    if body.lstrip()[:1] == b"{":
        return json.loads(body), "json"
    functions = _msgpack()
    if functions is None:
        raise ImportError(NEEDS_MSGPACK)
    try:
        return functions[1](body), "msgpack"
    except Exception as error:  # each package has its own
        raise ValueError(f"neither JSON nor MessagePack: {body[:60]!r}") from error


def _msgpack() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None:
    try:
        import msgpack
    except ModuleNotFoundError:
        try:
            import msgspec
        except ModuleNotFoundError:
            return None
        return msgspec.msgpack.encode, msgspec.msgpack.decode
    return msgpack.packb, msgpack.unpackb
