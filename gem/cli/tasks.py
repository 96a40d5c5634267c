"""``gem tasks``: write tasks as rows of a trainer's data set."""

from __future__ import annotations

import enum
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gem.cli.printing import say, stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from gem.tasks import Task


class Trainer(str, enum.Enum):
    """The trainers that rows can be written for."""

    TRL = "trl"
    VERL = "verl"
    OPENRLHF = "openrlhf"
    OAT = "oat"
    RL2 = "rl2"


def tasks(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="TASKS...", help="env=<id>,seeds=<first>:<end>[,<argument>=<value> ...], or a file."),
    ],
    out: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    trainer: Annotated[Trainer, typer.Option("--format", help="The trainer that is to read it.")],
    split: Annotated[str, typer.Option(help="train, eval or test; splits share no episode.")] = "train",
    gamma: Annotated[float | None, typer.Option(help="Discount per turn; for OpenRLHF only.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="Turns per episode; for OpenRLHF only.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name or folder of the model: the first prompts are measured with its tokenizer.")
    ] = None,
    max_context: Annotated[int | None, typer.Option(help="Tokens of an episode, into which they must fit.")] = None,
) -> None:
    """Write the rows of a training or an evaluation, one for each task; the environments are tried first."""
    from gem.rollout.rows import write_rows
    from gem.sandbox import SandboxUnavailable
    from gem.tasks import load_tasks

    row = _row_of(trainer, gamma, max_turns)
    try:
        loaded = load_tasks(sources, split)
        rows = [row(task) for task in loaded]
        _try(loaded, model, max_context)
        write_rows(rows, out)
    except (ValueError, TypeError, ImportError, OSError, SandboxUnavailable) as error:
        stop(str(error))
    say(f"{len(rows)} tasks of {', '.join(sorted({task.env_id for task in loaded}))} in {out}")


def _row_of(trainer: Trainer, gamma: float | None, max_turns: int | None) -> Callable[[Task], dict[str, Any]]:
    from gem.rollout.rows import ROWS, openrlhf_row

    if trainer is Trainer.OPENRLHF:
        return partial(openrlhf_row, gamma=gamma, max_turns=max_turns)
    if gamma is not None or max_turns is not None:
        stop("--gamma and --max-turns are for OpenRLHF only: the other trainers have options for them")
    return ROWS[trainer.value]


def _try(loaded: list[Task], model: str | None, max_context: int | None) -> None:
    """Build each environment, or measure first prompts; errors as in :func:`gem.rollout.check_tasks`."""
    if model is None:
        for task in {json.dumps([task.env_id, task.env_kwargs], sort_keys=True): task for task in loaded}.values():
            task.make().close()
        return
    from transformers import AutoTokenizer

    from gem.rollout import ChatRenderer, Limits, check_tasks

    check_tasks(loaded, ChatRenderer(AutoTokenizer.from_pretrained(model)), Limits(max_context=max_context))
