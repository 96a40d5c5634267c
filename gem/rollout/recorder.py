"""Episodes in a folder, as trainers leave them that play in many processes."""

from __future__ import annotations

import os
from pathlib import Path

from gem.rollout.episode import Episode


def append_episode(folder: str | Path, episode: Episode, step: int | None = None) -> None:
    """Append an episode to the file of its split, of the training step, and of this process.

    Args:
        folder: made if it is not there.
        episode: what was played.
        step: of the training; None where the trainer does not tell.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join(str(part) for part in (episode.task.split, step, os.getpid()) if part is not None)
    with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(episode.to_json() + "\n")


def read_episodes(folder: str | Path, split: str, step: int | None = None) -> list[Episode]:
    """Read what :func:`append_episode` has written so far.

    Args:
        folder: where it was written.
        split: of the tasks.
        step: of the training; None where the trainer did not tell.
    """
    pattern = f"{split}-{step}-*.jsonl" if step is not None else f"{split}-*.jsonl"
    episodes = []
    for path in sorted(Path(folder).glob(pattern)):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        episodes += [Episode.from_json(line) for line in lines if line.endswith("\n")]  # the last may be half written
    return episodes
