"""What commands print, and how they end with an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console


def printable(text: str) -> str:
    r"""Escape what a terminal would take for a command, or not show: texts come from files and environments.

    >>> print(printable("\x1b[2J naïve 日本"))
    \x1b[2J naïve 日本
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def new_console() -> Console:
    """Return a console that prints text as it is."""
    return Console(markup=False, emoji=False, highlight=False)


def print_lines(console: Console, text: str) -> None:
    """Print text of any length, without cutting its lines."""
    console.print(printable(text), soft_wrap=True)


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with their columns aligned, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        say("  ".join(cells))


def say(text: str) -> None:
    """Print a line."""
    typer.echo(printable(text))


def warn(message: str) -> None:
    """Print a line on stderr."""
    typer.echo(printable(f"gem: {message}"), err=True)


def stop(message: str, code: int = 2) -> NoReturn:
    """End the command with an error.

    Raises:
        typer.Exit: always.
    """
    warn(message)
    raise typer.Exit(code)
