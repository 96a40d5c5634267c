"""``gem serve-search``: a search server for SearchTool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gem.cli.printing import stop


def serve_search(
    corpus: Annotated[
        Path | None, typer.Argument(help="JSON lines; without it, the small corpus of the package.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve a corpus to SearchTool, and to clients of the protocols of gem-llm or Search-R1."""
    from gem.tools.corpus import SHIPPED
    from gem.tools.search_server import serve

    try:
        serve(corpus or SHIPPED, host, port)
    except (ImportError, OSError, ValueError) as error:
        stop(str(error))
