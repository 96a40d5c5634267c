"""``gem diff``: where do the episodes of two files differ?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from gem.cli.episodes import Limit, name_of, read_file, say_how_many_more
from gem.cli.printing import new_console, print_lines, say, stop

if TYPE_CHECKING:
    from gem.rollout.diff import Difference, TurnTokens


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A file or a folder of episodes, one JSON line each.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Show tokens as its text too: embedded, a folder or an id.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="How far two numbers may be apart.")] = 1e-6,
    limit: Limit = 20,
) -> None:
    """Show where the episodes of two files differ: the first with the first, the second with the second, ..."""
    from gem.rollout.diff import episode_differences

    episodes, others = read_file(a), read_file(b)
    text_of = _token_text(tokenizer)
    differences = episode_differences(episodes, others, tolerance)
    if not differences:
        say(f"{len(episodes)} of {len(episodes)} episodes are the same")
        return
    console = new_console()
    differing = [
        (number, list(found))
        for number, found in itertools.groupby(differences, attrgetter("episode"))
        if number <= min(len(episodes), len(others))
    ]
    for number, found in differing[:limit]:
        print_lines(console, name_of(number, episodes[number - 1]))
        for difference in found:
            _show(console, difference, text_of)
    say_how_many_more(len(differing) - limit)
    say(f"{len(differing)} of {min(len(episodes), len(others))} episodes differ")
    pairs = list(zip(episodes, others, strict=False))
    if sum(one.task != other.task for one, other in pairs) > len(pairs) / 2:
        say("most pairs are of different tasks: give both runs the same seed, and their episodes the same order")
    if len(episodes) != len(others):
        say(f"{a} has {len(episodes)} episodes, {b} has {len(others)}")
    raise typer.Exit(1)


def _token_text(tokenizer: str | None) -> Callable[[int], str]:
    """Return what shows a token: its id, and its text if there is a tokenizer."""
    if tokenizer is None:
        return str
    try:
        from transformers import AutoTokenizer
    except ImportError:
        stop("--tokenizer needs transformers: pip install transformers")
    from gem.models import resolve_model

    try:
        decode = AutoTokenizer.from_pretrained(resolve_model(tokenizer)).decode
    except (OSError, ValueError, ImportError) as error:
        stop(f"cannot load the tokenizer {tokenizer}: {' '.join(str(error).split())}")
    return lambda token: f"{token} {decode([token])!r}"


def _show(console: Console, difference: Difference, text_of: Callable[[int], str]) -> None:
    """Print a difference: what it is and where, and both sides around the first place that is not the same."""
    turn = "" if difference.turn is None else f"turn {difference.turn}: "
    at = "" if difference.at is None else f" at position {difference.at}"
    print_lines(console, f"  {turn}{difference.what}{at}")
    if difference.what in ("prompt token", "sampled token", "mask") and difference.at is not None:
        sides = [_tokens_around(tokens, difference.at, text_of) for tokens in (difference.a, difference.b)]
    else:
        sides = _texts_around(repr(difference.a), repr(difference.b))
    for name, side in zip("ab", sides, strict=True):
        console.print(Text(f"    {name}: ").append_text(side), soft_wrap=True)


def _tokens_around(tokens: TurnTokens, at: int, text_of: Callable[[int], str], width: int = 5) -> Text:
    def words(ids: list[int]) -> str:
        return "".join(f"{text_of(token)} " for token in ids)

    first, last = max(0, at - width), at + width + 1
    text = Text(f"{'... ' * (first > 0)}{words(tokens.ids[first:at])}")
    if at >= len(tokens.ids):
        return text.append("[nothing]", style="bold red")
    text.append(f"[{text_of(tokens.ids[at])}]", style="bold red")
    text.append(f" {words(tokens.ids[at + 1 : last])}{'... ' * (last < len(tokens.ids))}")
    return text.append("(sampled)" if at in tokens.sampled else "(not sampled)")


def _texts_around(a: str, b: str, width: int = 50) -> list[Text]:
    at = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    first, last = max(0, at - width), at + width
    if first < 10:
        first = 0  # the dots would not be shorter
    sides = []
    for text in (a, b):
        side = Text(f"{'...' * (first > 0)}{text[first:at]}").append(text[at:last], style="bold red")
        sides.append(side.append("..." * (last < len(text))))
    return sides
