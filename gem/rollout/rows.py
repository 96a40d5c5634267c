"""Tasks as rows of a trainer's data set; ``gem tasks`` writes files of them.

verl and Oat read tasks as they are (:func:`gem.tasks.load_tasks`). The other three have a data set of their own, whose
rows hold the task as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gem.files import replace_file
from gem.rollout.limits import Limits
from gem.rollout.returns import check_gamma
from gem.tasks import Task


def task_row(task: Task) -> dict[str, Any]:
    """Return a row for verl and Oat: the task's own fields."""
    return json.loads(task.to_json())


def trl_row(task: Task) -> dict[str, Any]:
    """Return a row for TRL: the task is inside the prompt, since ``rollout_func`` is given nothing else.

    >>> trl_row(Task("game:Hangman-v0", 3))["prompt"][0]["content"]
    'game:Hangman-v0#3'
    """
    shown = f"{task.env_id}#{task.seed}"  # for logs; the model sees the environment's observation instead
    return {"prompt": [{"role": "user", "content": shown, "task": task.to_json()}]}


def openrlhf_row(task: Task, gamma: float | None = None, max_turns: int | None = None) -> dict[str, Any]:
    """Return a row for OpenRLHF.

    Args:
        task: what is run.
        gamma: discount per turn; None for the executor's.
        max_turns: turns per episode; None for the executor's.

    Returns:
        ``prompt`` (a name for the task, different for each), ``label`` (the task and the options, as JSON) and
        ``datasource`` (the environment's id).

    Raises:
        ValueError: ``gamma`` or ``max_turns`` is out of range.
    """
    Limits(max_turns)
    options = {name: value for name, value in (("gamma", gamma), ("max_turns", max_turns)) if value is not None}
    check_gamma(options.get("gamma", 1.0))
    kwargs = f" {json.dumps(task.env_kwargs, sort_keys=True)}" if task.env_kwargs else ""
    return {
        "prompt": f"gem:{task.split}:{task.env_id}#{task.seed}{kwargs}",
        "label": json.dumps({**task_row(task), **options}, sort_keys=True),
        "datasource": task.env_id,
    }


def rl2_row(task: Task) -> dict[str, Any]:
    """Return a row for RL2, for either of its interfaces."""
    return {"extra_info": {"task": task.to_json()}}


ROWS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "trl": trl_row,
    "verl": task_row,
    "openrlhf": openrlhf_row,
    "oat": task_row,
    "rl2": rl2_row,
}
"""What makes a row, by trainer."""


def write_rows(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write rows as JSON lines; the file is replaced as a whole."""
    replace_file(Path(path), "".join(json.dumps(row) + "\n" for row in rows))
