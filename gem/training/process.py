"""Running a trainer that is a command of its own: what it prints in a file, nothing of it left behind."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gem.files import whole_lines
from gem.training.process_tree import ProcessTree, ended_by_signals

TAIL = 40
"""Lines of the output that an error shows."""


PACKAGES = {"trl": "trl", "verl": "verl", "openrlhf": "openrlhf", "oat": "oat", "rl2": "RL2"}
"""The trainers, as ``ci/venv.py`` names them, and the packages that they are imported as."""


class TrainerFailed(RuntimeError):
    """The trainer ended with an error."""


def require_trainer(trainer: str) -> None:
    """End an example that was started with a Python that does not have its trainer, but another one perhaps.

    Args:
        trainer: as in :data:`PACKAGES`.

    Raises:
        SystemExit: with one line that says what to do.
    """
    found = [name for name, package in PACKAGES.items() if find_spec(package) is not None]
    if trainer not in found:
        raise SystemExit(
            f"error: {sys.executable} has {', '.join(found) or 'no trainer'}, and not {trainer}. In this folder: "
            f"python ci/venv.py {trainer}, then .venvs/{trainer}/bin/python {sys.argv[0]}"
        )


def run_trainer(
    command: Sequence[str],
    variables: Mapping[str, str],
    output: str | Path,
    poll: Callable[[], object],
    interval: float = 0.3,
) -> None:
    """Run a command until it ends, and end all that it has started.

    That is done too if this process is ended by a signal, or killed: see :mod:`gem.training.process_tree`. The command
    goes into ``command.sh`` beside ``output``, for a user to copy from.

    Args:
        command: the words of the command line.
        variables: environment variables beside those of this process.
        output: the file for what the command prints.
        poll: called every ``interval`` seconds and once at the end, to look at what there is so far.
        interval: seconds.

    Raises:
        TrainerFailed: the command failed; the message has the end of its output.
    """
    output = Path(output)
    shown = [f"{name}={shlex.quote(value)}" for name, value in variables.items()] + [shlex.quote(w) for w in command]
    output.with_name("command.sh").write_text(" \\\n    ".join(shown) + "\n")
    with (
        ended_by_signals(),
        open(output, "wb") as file,
        ProcessTree(command, {**os.environ, **variables}, file, subprocess.STDOUT) as tree,
    ):
        while tree.wait(interval) is None:
            poll()
    poll()
    if tree.end() != 0:
        last = output.read_text(errors="replace").splitlines()[-TAIL:]
        raise TrainerFailed("\n".join([*last, f"the trainer failed; all that it printed is in {output}"]))


def read_rows(path: str | Path) -> list[Any]:
    """Return the rows of a file of JSON lines that is still being written; [] if it is not there yet.

    The last line may be half written, and is left out then.
    """
    if not Path(path).exists():
        return []
    return [json.loads(line) for _, line in whole_lines(path) if line is not None]
