"""``gem bench``: steps per second."""

from __future__ import annotations

import itertools
from typing import Annotated

import typer

from gem.cli.lookup import build
from gem.cli.printing import new_console, stop


def bench(
    env_id: Annotated[str, typer.Argument(metavar="ID", help="The environment.")],
    sizes: Annotated[str, typer.Option(help="How many environments, separated by commas.")] = "1,16,256",
    backends: Annotated[str, typer.Option(help="sync, thread, asyncio, process, ray; by default what fits.")] = "",
    seconds: Annotated[float, typer.Option(min=0.03, help="Of each measurement.")] = 1.0,
) -> None:
    """Measure steps per second by back end and number of environments, with random legal actions."""
    from rich import box
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from gem.cli.throughput import throughput
    from gem.vector.backends import BACKENDS

    with build(env_id) as env:
        names = backends.split(",") if backends else ["sync", "thread", "process"] + ["asyncio"] * env.asynchronous
    if unknown := [name for name in names if name not in BACKENDS]:
        stop(f"there is no backend {unknown[0]!r}; there are {', '.join(BACKENDS)}")
    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        stop(f"--sizes takes whole numbers from 1, separated by commas, not {sizes!r}")
    table = Table("steps per second", *map(str, numbers), box=box.SIMPLE_HEAD)
    measurements = list(itertools.product(names, numbers))
    bar = Console(stderr=True)
    try:
        rates = [
            f"{throughput(env_id, name, size, seconds):,.0f}"
            for name, size in track(measurements, env_id, console=bar, transient=True, disable=not bar.is_terminal)
        ]
    except (ImportError, NotImplementedError, RuntimeError) as error:
        stop(str(error), code=1)
    for number, name in enumerate(names):
        table.add_row(name, *rates[number * len(numbers) : (number + 1) * len(numbers)])
    new_console().print(table)
