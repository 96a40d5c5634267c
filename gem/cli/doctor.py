"""``gem doctor``: what the sandbox of this machine stops."""

from __future__ import annotations

import typer

from gem.cli.printing import say, stop


def doctor() -> None:
    """Try out what the sandbox keeps from code that a model writes, on this machine."""
    from gem.sandbox import describe

    found = describe()
    if not found.backend:
        stop(found.problem, code=1)
    say(f"sandbox: {found.backend}")
    for name in found.keeps_out:
        say(f"  ✓ keeps out: {name}")
    for name in found.lets_through:
        say(f"  ✗ lets through: {name}")
    if found.lets_through:
        raise typer.Exit(1)
