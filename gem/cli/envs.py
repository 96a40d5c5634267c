"""``gem envs``: a table of the environments."""

from __future__ import annotations

import fnmatch
import inspect
import math
from typing import Annotated, Any

import typer

from gem.cli.printing import new_console, stop
from gem.core import Env, EnvSpec
from gem.registry import all_specs


def envs(
    pattern: Annotated[str, typer.Argument(help="Part of an id; * and ? stand for any text.")] = "",
) -> None:
    """List the environments."""
    from rich import box
    from rich.table import Table

    specs = [spec for spec in all_specs().values() if fnmatch.fnmatch(spec.id.lower(), f"*{pattern.lower()}*")]
    if not specs:
        stop(f"no environment matches {pattern!r}; `gem envs` lists them all")
    table = Table("id", "turns", "rewards", "needs", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for spec in specs:
        table.add_row(spec.id, *_describe(spec))
    new_console().print(table)


def _describe(spec: EnvSpec) -> tuple[str, str, str]:
    """Return turns, rewards and needs, from the class alone: building some environments takes data."""
    from gem.envs.datasets import needs_hub

    try:
        entry = spec.load()
    except ImportError as error:
        return "", "", str(error)
    low, high = getattr(entry, "reward_range", Env.reward_range)
    rewards = f"{low:g} to {high:g}" if math.isfinite(low) and math.isfinite(high) else "any"
    return _turns(spec, entry), rewards, "a hub" if needs_hub(spec) else ""


def _turns(spec: EnvSpec, entry: Any) -> str:
    parameters = inspect.signature(entry.__init__ if inspect.isclass(entry) else entry).parameters
    if "max_turns" in parameters:
        turns = spec.kwargs.get("max_turns", parameters["max_turns"].default)
        return "varies" if turns is None else str(turns)
    turns = getattr(entry, "max_turns", None)
    return "" if turns is None else str(turns)
