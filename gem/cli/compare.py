"""``gem compare``: is one evaluation better than another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gem.cli.printing import say, say_table, stop


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation, with which the others are compared.")],
    others: Annotated[list[Path], typer.Argument(help="Folders of other evaluations.")],
    quantity: Annotated[str, typer.Option(help="success or return.")] = "success",
) -> None:
    """Compare evaluations of the same tasks, task by task, and say where nothing is decided.

    A difference is the other's mean minus the first's, with an interval of 95%; p is adjusted for the number of
    environments (Holm). "needs" is how many tasks would show a difference of this size, four times in five.
    """
    from gem.evaluation import compare_evaluations, read_evaluation
    from gem.evaluation.summary import QUANTITIES

    if quantity not in QUANTITIES:
        stop(f"--quantity is {' or '.join(QUANTITIES)}, got {quantity!r}")
    try:
        base = read_evaluation(first)
        for folder in others:
            say(f"{folder} compared with {first}, {quantity}:")
            _print(compare_evaluations(base, read_evaluation(folder), quantity))
    except (ValueError, KeyError, ImportError, OSError) as error:
        stop(str(error))


def _print(found: dict[str, dict[str, Any]]) -> None:
    from gem.evaluation.summary import comparison_rows

    say_table(comparison_rows(found))
