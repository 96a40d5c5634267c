"""``gem export``: episodes in a format that other programs read."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gem.cli.episodes import EpisodesFile, name_of, read_file
from gem.cli.printing import say, stop

if TYPE_CHECKING:
    from gem.rollout.episode import Episode


class ExportFormat(str, Enum):
    """What ``gem export`` writes."""

    atif = "atif"
    inspect = "inspect"


def export(
    path: EpisodesFile,
    out: Annotated[Path, typer.Option(help="The file to write; a log of Inspect ends in .eval or .json.")],
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="Agent Trajectory Interchange Format, or a log of Inspect.")
    ],
    validate: Annotated[bool, typer.Option(help="Check trajectories with the package atif.")] = True,
) -> None:
    """Write episodes in a format that other programs read."""
    from gem.files import replace_file
    from gem.rollout.inspect_log import write_inspect_log

    episodes = list(read_file(path))
    if out.exists() and out.samefile(path):
        stop(f"{out} is the file of the episodes; name another for --out")
    try:
        if format_ is ExportFormat.inspect:
            write_inspect_log(out, episodes)
        else:
            lines = [_exported(number, episode, validate) for number, episode in enumerate(episodes, start=1)]
            replace_file(out, "".join(lines))
    except OSError as error:
        stop(f"cannot write {out}: {error.strerror}")
    except (ValueError, ImportError) as error:
        stop(str(error))
    say(f"wrote {len(episodes)} trajectories to {out}")


def _exported(number: int, episode: Episode, validate: bool) -> str:
    from gem.rollout.atif import to_atif, validate_atif

    trajectory = to_atif(episode)
    try:
        if validate:
            validate_atif(trajectory)
    except ImportError as error:
        stop(f"{error}, or pass --no-validate", code=1)
    except ValueError as error:
        stop(f"{name_of(number, episode)}: {' '.join(str(error).split())}", code=1)
    return json.dumps(trajectory) + "\n"
