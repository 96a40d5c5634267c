"""Files of episodes that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gem.cli.printing import say, stop, warn

if TYPE_CHECKING:
    from gem.rollout.episode import Episode

EpisodesFile = Annotated[
    Path, typer.Argument(metavar="EPISODES", help="A file of episodes, one JSON line each, or a folder.")
]
Limit = Annotated[int, typer.Option(min=1, help="How many episodes to show at most.")]


def read_file(path: Path) -> list[Episode]:
    """Return the episodes of a file, or of all files of a folder, by name; or end the command.

    A line that a crash has torn is reported, and left out.
    """
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if not files:
            stop(f"{path} has no file of episodes (*.jsonl)")
        return [episode for file in files for episode in read_file(file)]
    from gem.files import whole_lines

    episodes, torn = [], []
    try:
        for number, line in whole_lines(path):
            if line is None:
                torn.append(number)
            else:
                episodes.append(_episode(line, path, number))
    except OSError as error:
        stop(f"cannot read {path}: {error.strerror}")
    if torn and not episodes:
        stop(f"{path}, line {torn[0]} is no episode: it is not JSON in UTF-8")
    if torn:
        warn(f"{path}: {_lines(torn)} torn, and left out")
    return episodes


def name_of(number: int, episode: Episode) -> str:
    """Return how output refers to an episode."""
    task = episode.task
    return f"episode {number}: {task.env_id}, {task.split} seed {task.seed}"


def say_how_many_more(number: int) -> None:
    """Say how many episodes are not shown, if there are any."""
    if number > 0:
        say(f"... and {number} more episodes; --limit shows more")


def _episode(line: str, path: Path, number: int) -> Episode:
    from gem.rollout.episode import Episode

    try:
        return Episode.from_json(line)
    except ValueError as error:
        stop(f"{path}, line {number} is no episode: {error}")


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
    return f"line {shown} is" if len(numbers) == 1 else f"lines {shown} are"
