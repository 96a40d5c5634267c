"""``gem view``: episodes as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gem.cli.printing import say, stop

if TYPE_CHECKING:
    from gem.evaluation.report import Decode


def view(
    source: Annotated[Path, typer.Argument(help="Folder of an evaluation, or a .jsonl file of episodes.")],
    against: Annotated[list[Path] | None, typer.Option(help="Evaluations to compare it with.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the folder, or beside.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Shows tokens as text.")] = None,
) -> None:
    """Write a page with the results of an evaluation, or with any episodes, a trainer's too, turn by turn.

    It is one file, which asks no server: open it in a browser.
    """
    from gem.evaluation import read_evaluation
    from gem.evaluation.report import write_report, write_view
    from gem.rollout import read_jsonl

    try:
        decode = None if tokenizer is None else _decoder(tokenizer)
        if source.is_dir():
            page = out or source / "report.html"
            others = {str(folder): read_evaluation(folder) for folder in against or ()}
            write_report(page, read_evaluation(source), others, decode)
        else:
            if against:
                raise ValueError("--against is for the folder of an evaluation")
            page = out or source.with_suffix(".html")
            write_view(page, source.name, list(read_jsonl(source)), decode)
    except (ValueError, KeyError, ImportError, OSError) as error:
        stop(str(error))
    say(str(page))


def _decoder(name: str) -> Decode:
    from transformers import AutoTokenizer

    from gem.models.resolve import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    return lambda token: str(tokenizer.decode([token]))
