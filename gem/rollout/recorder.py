"""Episodes in a folder, as trainers leave them that run rollouts in many processes.

A folder holds the episodes of a training, which is one *run* or several: each resumption is a run of its own.
The main process begins it (:func:`begin_run`: a line in ``runs.jsonl``), and every process that writes episodes into
the same folder (:func:`append_episode`) finds it there. Run and step are in each file's name,
``<split>-<step>-run<run>-<process id>@<host>.jsonl``, and in each line.

A run that resumes from a checkpoint repeats the steps that its predecessor made after that checkpoint. Both have
written them; :func:`read_episodes` returns only those of the newer run, so that a step's numbers are those of one
training:

>>> import tempfile
>>> from gem.tasks import Task
>>> folder = tempfile.mkdtemp()
>>> for run, steps in enumerate([(1, 2, 3), (2,)], start=1):
...     _ = begin_run(folder, resume=run > 1)
...     for step in steps:  # the second run resumes after step 1
...         append_episode(folder, Episode(Task("game:Hangman-v0", seed=step), f"run {run}, step {step}"), step)
>>> [episode.first_observation for episode in read_episodes(folder, "train")]
['run 1, step 1', 'run 2, step 2']
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gem.files import append_lines, hold_folder, whole_lines
from gem.rollout.episode import Episode

RUNS = "runs.jsonl"
"""The file that lists a folder's runs."""

_FILE = re.compile(r"(?P<split>train|eval|test)(-(?P<step>\d+))?(-run(?P<run>\d+))?-\d+(@.+)?\.jsonl")


@dataclass(frozen=True)
class Run:
    """A run of a training, from its start or from a checkpoint.

    Attributes:
        number: from 1. Episodes that were written where no run had begun are of run 0.
        started: when it began, in seconds since the epoch.
        host: of the process that began it.
        pid: of that process.
    """

    number: int
    started: float
    host: str
    pid: int


@dataclass(frozen=True)
class _File:
    """A file of episodes, by its name."""

    path: Path
    split: str
    step: int | None
    run: int


_joined: dict[str, Run | None] = {}
"""For each folder, the run that this process writes into."""


def begin_run(folder: str | Path, resume: bool = False) -> Run:
    """Begin a run: what is written into the folder from now on is told from what earlier runs wrote.

    Call it once, in the main process, before any process writes an episode.

    Args:
        folder: where the episodes go; made if it is not there. All processes that write into it must see the same
            folder (on several machines: a shared file system).
        resume: whether the run continues the training whose episodes are there.

    Raises:
        ValueError: there are episodes, and the run does not resume.
        FolderInUse: a run of another process writes there.
    """
    folder = Path(folder)
    hold_folder(folder)
    if not resume and any(_files(folder)):
        raise ValueError(
            f"{folder} holds the episodes of an earlier run: choose another folder, delete this one, or resume that "
            "run (resume=True)"
        )
    runs = _runs(folder)
    run = Run(runs[-1].number + 1 if runs else 1, time.time(), socket.gethostname(), os.getpid())
    append_lines(folder / RUNS, [json.dumps(asdict(run))])
    _joined[_key(folder)] = run
    return run


def current_run(folder: str | Path) -> Run | None:
    """Return the run that this process's episodes in a folder belong to; None (run 0) if none has begun.

    It is the newest at the time of the process's first episode. The process stays in it, so that a worker that
    outlives its training cannot write into the next one; unless the *same* main process begins another run.
    """
    key = _key(folder)
    joined = _joined.get(key)
    runs = [run for run in _runs(Path(folder)) if joined is None or (run.host, run.pid) == (joined.host, joined.pid)]
    _joined[key] = run = runs[-1] if runs else joined
    return run


def append_episode(folder: str | Path, episode: Episode, step: int | None = None) -> None:
    """Append an episode, as a JSON line, to a file of the folder, for :func:`read_episodes`.

    There is a file for each split of tasks, training step, run (see :func:`begin_run`) and process.

    Args:
        folder: made if it is not there.
        episode: any.
        step: of the training, from 0; None where it is not known.

    Raises:
        ValueError: the step is negative.
        TypeError: the step is not an integer, or an info holds something that is not JSON data.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if step is not None and (step := operator.index(step)) < 0:
        raise ValueError(f"a step is 0 or more, or None where it is not known; got {step}")
    run = current_run(folder)
    parts = [episode.task.split, step, f"run{run.number}" if run else None, f"{os.getpid()}@{socket.gethostname()}"]
    name = "-".join(str(part) for part in parts if part is not None)
    head = json.dumps({"run": run.number if run else 0, "step": step})
    append_lines(folder / f"{name}.jsonl", [f"{head[:-1]}, {episode.to_json()[1:]}"])


def read_episodes(folder: str | Path, split: str, step: int | None = None, run: int | None = None) -> list[Episode]:
    """Read what :func:`append_episode` has written so far, step by step.

    Args:
        folder: where it was written.
        split: of the tasks.
        step: of the training; by default all, and those without.
        run: a run's number (:attr:`Run.number`): exactly what that run wrote. By default what holds now: for each
            step the episodes of the newest run that made it, and nothing that an older run did beyond the step from
            which a newer one went on.
    """
    files = [file for file in _files(Path(folder)) if file.run == run or run is None]
    if run is None:
        files = _newest(files)
    wanted = [file for file in files if file.split == split and (step is None or file.step == step)]
    wanted.sort(key=lambda file: (-1 if file.step is None else file.step, file.path.name))
    return [Episode.from_json(line) for file in wanted for line in _whole_lines(file.path)]


def _newest(files: list[_File]) -> list[_File]:
    """Leave out what newer runs have made again, or will make again."""
    kept: list[_File] = []
    made: set[tuple[str, int | None]] = set()  # by newer runs
    resumed = math.inf  # the step after which the newer runs went on
    for run in sorted({file.run for file in files}, reverse=True):
        own = [file for file in files if file.run == run]
        older = [file for file in own if (file.split, file.step) not in made]
        kept += [file for file in older if file.step is None or file.step <= resumed]
        made |= {(file.split, file.step) for file in own}
        # A run that resumes after step n may validate first, under n. It trains under n + 1.
        resumed = min([resumed, *(file.step - (file.split == "train") for file in own if file.step is not None)])
    return kept


def _files(folder: Path) -> Iterator[_File]:
    for path in folder.glob("*.jsonl"):
        if match := _FILE.fullmatch(path.name):
            step = None if match["step"] is None else int(match["step"])
            yield _File(path, match["split"], step, int(match["run"] or 0))


def _runs(folder: Path) -> list[Run]:
    try:
        return [Run(**json.loads(line)) for line in _whole_lines(folder / RUNS)]
    except FileNotFoundError:
        return []


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a file, without one that is being written, or that a crash has torn."""
    return [line for _, line in whole_lines(path) if line is not None]


def _key(folder: str | Path) -> str:
    return os.path.realpath(folder)
