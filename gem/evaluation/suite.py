"""Suites: YAML files that name the tasks of an evaluation.

.. code-block:: yaml

    description: Two games and a data set.
    tasks:
      - env: game:GuessTheNumber-v1-easy
        count: 50                # seeds 0 to 49
      - env: qa:Sample
        count: all               # every question of the data set
        kwargs: {tools: search}  # arguments of the environment

Those of this package (:func:`shipped`) are named without a path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gem.registry import find_spec
from gem.tasks import Task, make_tasks

_SHIPPED = Path(__file__).with_name("suites")
MOST_TASKS = 1_000_000
"""Of an entry."""

MOST_CHARACTERS = 100_000
"""Of an entry."""

_KEYS = frozenset({"env", "count", "kwargs", "seeds"})


def shipped() -> dict[str, Path]:
    """Return the suites of this package, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}


def load_suite(name: str | Path, split: str = "eval") -> list[Task]:
    """Return the tasks of a suite.

    Args:
        name: a file, or the name of one of :func:`shipped`.
        split: of the tasks.

    Raises:
        FileNotFoundError: there is no such file or suite.
        ImportError: PyYAML is not installed, or what an environment needs whose questions are to be counted.
        ValueError: the file is no suite, or names an environment that does not exist.
        ConnectionError: the questions of a hub's data set are to be counted, and it cannot be reached.
    """
    path = shipped().get(str(name), Path(name))
    try:
        import yaml
    except ModuleNotFoundError:
        raise ImportError("reading a suite needs PyYAML: install gem-adapters[eval]") from None
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError(f"{path} has aliases, which can stand for any size: write the values")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    rows = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} has no list of tasks")
    tasks: list[Task] = []
    for number, row in enumerate(rows, start=1):
        try:
            if len(str(row)) > MOST_CHARACTERS:
                raise ValueError(f"it has more than {MOST_CHARACTERS} characters")
            tasks += _tasks(row, split)
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"entry {number} of {path}: {error}") from None
    return tasks


def _tasks(row: Any, split: str) -> list[Task]:
    if not isinstance(row, dict) or "env" not in row:
        raise ValueError(f"an entry has an env, got {row!r:.80}")
    if unknown := row.keys() - _KEYS:
        raise ValueError(f"{sorted(unknown)[0]!r} is not one of {', '.join(sorted(_KEYS))}")
    kwargs = row.get("kwargs") or {}
    find_spec(row["env"])
    if "seeds" in row and not (isinstance(row["seeds"], list) and row["seeds"]):
        raise ValueError(f"seeds is a list of numbers, got {row['seeds']!r}")
    if "seeds" in row:
        return make_tasks(row["env"], row["seeds"], kwargs, split)
    count = row.get("count", 100)
    if count == "all":
        with Task(row["env"], 0, kwargs, split).make() as env:
            count = getattr(env.unwrapped, "size", None)
        if count is None:
            raise ValueError(f"{row['env']} is no data set: its count is a number")
    if not isinstance(count, int) or not 1 <= count <= MOST_TASKS:
        raise ValueError(f"count is a number from 1 to {MOST_TASKS}, or all, got {count!r}")
    return make_tasks(row["env"], range(count), kwargs, split)
