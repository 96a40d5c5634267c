"""A task: what a training row carries, in every trainer, to say which episode to play."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gem.core import Env, check_seed

SPLITS = ("train", "eval", "test")
_SEEDS_A_SPLIT = 2**40


@dataclass(frozen=True)
class Task:
    """One episode to play: an environment, its arguments, a seed and a split.

    The splits share no episode, whatever seeds they use: what :attr:`reset_seed` gives to the
    environment is the seed itself in ``train``, and lies in a range of its own in every other split.

    >>> Task("game:GuessTheNumber-v0-easy", seed=7).reset_seed
    7
    >>> Task("game:GuessTheNumber-v0-easy", seed=7, split="eval").reset_seed
    1099511627783

    Args:
        env_id: a registered environment.
        seed: an integer from 0 to 2**40 - 1.
        env_kwargs: constructor arguments beside the registered ones; JSON data.
        split: ``"train"``, ``"eval"`` or ``"test"``.

    Raises:
        TypeError: the seed is not an integer.
        ValueError: the seed is out of range, or there is no such split.
    """

    env_id: str
    seed: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    split: str = "train"

    def __post_init__(self) -> None:
        seed = check_seed(self.seed)
        if seed is None or seed >= _SEEDS_A_SPLIT:
            raise ValueError(f"a task's seed is an integer from 0 to 2**40 - 1, got {self.seed!r}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        object.__setattr__(self, "seed", seed)

    @property
    def reset_seed(self) -> int:
        """The seed that the environment's ``reset`` is given: different in every split."""
        return self.seed + SPLITS.index(self.split) * _SEEDS_A_SPLIT

    def make(self) -> Env:
        """Build the task's environment. It is not reset yet: pass it ``reset_seed``."""
        from gem.envs.registration import make

        return make(self.env_id, **self.env_kwargs)

    def to_json(self) -> str:
        """Return the task as one JSON line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: it is not a task.
        """
        try:
            return cls(**json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"not a task: {text!r} ({error})") from None


def make_tasks(
    env_id: str, seeds: Iterable[int], env_kwargs: dict[str, Any] | None = None, split: str = "train"
) -> list[Task]:
    """Return a task a seed.

    >>> [task.seed for task in make_tasks("game:Mastermind-v0-easy", range(3))]
    [0, 1, 2]
    """
    return [Task(env_id, seed, env_kwargs or {}, split) for seed in seeds]


def load_tasks(source: str | Path, split: str = "train") -> list[Task]:
    """Read tasks from an expression or a file, as configurations of trainers name them.

    An expression is ``env=<id>,seeds=<first>:<end>``; anything after it is an argument of the environment:

    >>> load_tasks("env=game:Mastermind-v0,seeds=0:2,code_length=3")[1]
    Task(env_id='game:Mastermind-v0', seed=1, env_kwargs={'code_length': 3}, split='train')

    A file is ``.jsonl`` (:meth:`Task.to_json`, a line a task) or ``.parquet`` (columns ``env_id`` and ``seed``, and
    if need be ``env_kwargs``, as JSON text, and ``split``).

    Args:
        source: the expression, or the file's path.
        split: of the tasks that name none themselves.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no task, or says otherwise than expected: a source for ``train`` has training tasks only,
            a source for ``eval`` or ``test`` none, so the splits share no episode.
    """
    source = str(source)
    rows = _rows_of_expression(source) if source.startswith("env=") else _rows_of_file(Path(source))
    tasks = []
    for number, row in enumerate(rows, start=1):
        try:
            task = Task(**{"split": split, **row})
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {number} of {source} is no task: {error}") from None
        if (task.split == "train") != (split == "train"):
            raise ValueError(f"row {number} of {source} is of the split {task.split!r}, where {split!r} is wanted")
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{source} holds no task")
    return tasks


_EXPRESSION = "env=<id>,seeds=<first>:<end>[,split=<split>][,<argument>=<value> ...]"


def _rows_of_expression(expression: str) -> Iterator[dict[str, Any]]:
    pairs = [part.partition("=") for part in expression.split(",")]
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    seeds = fields.pop("seeds", "").partition(":")
    try:
        first, end = int(seeds[0]), int(seeds[2])
    except ValueError:
        raise ValueError(f"cannot read the tasks {expression!r}: expected {_EXPRESSION}") from None
    env_id = fields.pop("env")
    split = {"split": fields.pop("split")} if "split" in fields else {}
    env_kwargs = {key: _value(text) for key, text in fields.items()}
    for seed in range(first, end):
        yield {"env_id": env_id, "seed": seed, "env_kwargs": env_kwargs, **split}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _rows_of_file(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"cannot read tasks from {str(path)!r}: expected a .jsonl or .parquet file, or {_EXPRESSION}")
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())
        return
    try:
        from pyarrow import parquet
    except ImportError:
        raise ImportError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    for row in parquet.read_table(path).to_pylist():
        if isinstance(row.get("env_kwargs"), str):
            row["env_kwargs"] = json.loads(row["env_kwargs"])
        yield {key: value for key, value in row.items() if value is not None}
