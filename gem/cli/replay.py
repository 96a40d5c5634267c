"""``gem replay``: do the environments still return what episodes recorded?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from gem.cli.episodes import EpisodesFile, Limit, name_of, read_file, say_how_many_more
from gem.cli.printing import new_console, print_lines, say, stop

if TYPE_CHECKING:
    from gem.rollout.episode import Episode


def replay(
    path: EpisodesFile,
    limit: Limit = 20,
    allow_unsandboxed: Annotated[
        bool, typer.Option(help="Run commands and programs in the file without a sandbox where it asks for that.")
    ] = False,
) -> None:
    """Replay recorded episodes: do their environments still return the same, bit for bit?"""
    from rich.console import Console
    from rich.progress import track

    from gem.tasks import ALLOW_UNSANDBOXED

    if allow_unsandboxed:
        os.environ[ALLOW_UNSANDBOXED] = "1"
    episodes = read_file(path)
    if not episodes:
        stop(f"{path} holds no episode")
    bar = Console(stderr=True)
    tracked = track(episodes, "Replaying", console=bar, transient=True, disable=not bar.is_terminal)
    failed = [(number, found) for number, episode in enumerate(tracked, start=1) if (found := _replay(episode))]
    console = new_console()
    for number, found in failed[:limit]:
        print_lines(console, f"✗ {name_of(number, episodes[number - 1])}")
        for line in found:
            print_lines(console, f"    {line}")
    say_how_many_more(len(failed) - limit)
    if failed:
        say(f"{len(failed)} of {len(episodes)} episodes are not reproduced")
        say("(the bare environment of a task is built: wrappers of a make_env are not)")
        raise typer.Exit(1)
    invalid = sum(not episode.valid for episode in episodes)
    say(
        f"{len(episodes)} of {len(episodes)} episodes are reproduced"
        + f"; {invalid} of them are invalid" * bool(invalid)
    )


def _replay(episode: Episode) -> list[str]:
    """Run an episode's actions in its environment again; return what differs from the record, or the error."""
    from gem.registry import find_spec
    from gem.rollout.replay import replay as replay_episode

    try:
        find_spec(episode.task.env_id)
    except ValueError as error:
        return [str(error)]
    try:
        return replay_episode(episode)
    except Exception as error:  # noqa: BLE001 (whatever the environment raises is the finding)
        return [f"{type(error).__name__}: {error}"]
