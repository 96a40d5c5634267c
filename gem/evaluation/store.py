"""The folder of an evaluation: what was asked, and every episode as it ended.

``manifest.json`` says what is evaluated: the tasks' fingerprint, samples, the agent and its settings, versions.
``tasks.jsonl`` has the tasks. ``episodes.jsonl`` is only ever appended to, a line an attempt, when it has ended; so
whatever kills the process, no ended episode is lost, and at most those that were running are run again. The lines
are the kernel's at once; when they reach the disk is for the file system to say.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gem.files import append_lines, hold_folder, replace_file, whole_lines
from gem.rollout.episode import Episode
from gem.tasks import Task

MANIFEST, TASKS, EPISODES = "manifest.json", "tasks.jsonl", "episodes.jsonl"
FORMAT_VERSION = 1
PACKAGES = ("gem-adapters", "numpy", "torch", "transformers", "reasoning-gym", "math-verify")
"""Packages whose versions go into the manifest."""

Unit = tuple[int, int]
"""A task's index, and the number of a sample of it."""


@dataclass
class Evaluation:
    """Tasks, and the episodes of them.

    Attributes:
        manifest: what was evaluated.
        tasks: in order.
        samples: of each task.
        episodes: the valid episode of each unit that has one.
        failures: the failed attempts of each unit: what ended them was not the model's doing.
    """

    manifest: dict[str, Any]
    tasks: list[Task]
    samples: int
    episodes: dict[Unit, Episode] = field(default_factory=dict)
    failures: dict[Unit, list[Episode]] = field(default_factory=dict)
    _prompt_tokens: int = 0
    _sampled_tokens: int = 0

    @property
    def units(self) -> list[Unit]:
        """All units, sample by sample, so that an evaluation that is ended early has a sample of each task."""
        return [(task, sample) for sample in range(self.samples) for task in range(len(self.tasks))]

    @property
    def missing(self) -> list[Unit]:
        """The units without a valid episode."""
        return [unit for unit in self.units if unit not in self.episodes]

    @property
    def latest(self) -> list[Episode]:
        """The valid episode of each unit, or else its last failed attempt; units without any are left out."""
        attempts = {unit: episodes[-1] for unit, episodes in self.failures.items()} | self.episodes
        return [attempts[unit] for unit in self.units if unit in attempts]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts of all attempts: each turn's whole prompt, as servers count."""
        return self._prompt_tokens

    @property
    def sampled_tokens(self) -> int:
        """Sampled tokens of all attempts."""
        return self._sampled_tokens

    def add(self, unit: Unit, episode: Episode) -> None:
        """Take note of an attempt; a second valid episode of a unit does not count."""
        self._prompt_tokens += episode.prompt_tokens
        self._sampled_tokens += episode.sampled_tokens
        if episode.valid:
            self.episodes.setdefault(unit, episode)
        else:
            self.failures.setdefault(unit, []).append(episode)


class Store:
    """The folder of an evaluation that is under way.

    Args:
        folder: made if it is not there.
        tasks: what is evaluated.
        samples: of each task.
        agent: what :meth:`gem.evaluation.agents.Agent.describe` returned.
        resume: go on with the evaluation that is there.

    Raises:
        ValueError: there is an evaluation and ``resume`` is False, or it is of something else.
        FolderInUse: another process writes there.
    """

    def __init__(
        self, folder: str | Path, tasks: Sequence[Task], samples: int, agent: dict[str, Any], resume: bool
    ) -> None:
        self.folder = Path(folder)
        manifest = {
            "format": FORMAT_VERSION,
            "tasks": fingerprint(tasks),
            "samples": samples,
            "agent": json.loads(json.dumps(agent)),
            "versions": _versions(),
        }
        hold_folder(self.folder)
        path = self.folder / MANIFEST
        if not path.exists():
            if (self.folder / EPISODES).exists():
                raise ValueError(f"{self.folder / EPISODES} is there without {MANIFEST}: choose another folder")
            replace_file(self.folder / TASKS, "".join(f"{task.to_json()}\n" for task in tasks))
            replace_file(path, json.dumps(manifest, indent=2) + "\n")
        elif not resume:
            raise ValueError(f"{folder} holds an evaluation: choose another folder, delete it, or resume it")
        else:
            _check_same(_read_manifest(path), manifest, self.folder)
        self.evaluation = read_evaluation(self.folder)

    def add(self, unit: Unit, episode: Episode) -> None:
        """Write an attempt."""
        task, sample = unit
        append_lines(self.folder / EPISODES, [f'{{"task_index": {task}, "sample": {sample}, {episode.to_json()[1:]}'])
        self.evaluation.add(unit, episode)


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read an evaluation, one that is under way too.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is not what this package wrote.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder / MANIFEST)
    tasks = [Task.from_json(line) for line in (folder / TASKS).read_text(encoding="utf-8").splitlines()]
    evaluation = Evaluation(manifest, tasks, manifest["samples"])
    if (folder / EPISODES).exists():
        for _, line in whole_lines(folder / EPISODES):
            if line is not None:  # else it was being written when the process ended
                evaluation.add(_unit(line, folder), Episode.from_json(line))
    return evaluation


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT_VERSION or not isinstance(manifest["samples"], int):
            raise ValueError(f"format {manifest['format']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of an evaluation ({type(error).__name__}: {error})") from None
    return dict(manifest)


def _unit(line: str, folder: Path) -> Unit:
    row = json.loads(line)
    try:
        return int(row["task_index"]), int(row["sample"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / EPISODES} holds episodes of something else: {line[:80]!r}") from None


def fingerprint(tasks: Sequence[Task]) -> str:
    """Return what tells lists of tasks apart."""
    return hashlib.sha256("".join(f"{task.to_json()}\n" for task in tasks).encode()).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with another evaluation; other versions of packages are another one, too."""
    differing = [
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in old.items()
        for key in (sorted({*value, *new.get(name, {})}) if isinstance(value, dict) else [name])
        if (value.get(key) != new.get(name, {}).get(key) if isinstance(value, dict) else value != new.get(name))
    ]
    if differing:
        raise ValueError(f"{folder} holds another evaluation: {', '.join(differing)} differ")
