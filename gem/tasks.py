"""A task: what a row of training data contains, in every trainer, to say which episode to run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gem.core import Env
from gem.seeds import check_seed

SPLITS = ("train", "eval", "test")

ALLOW_UNSANDBOXED = "GEM_ALLOW_UNSANDBOXED"
"""Environment variable; 1 lets tasks run code without a sandbox."""

_SANDBOX_ARGUMENTS = ("sandbox_type", "backend")
_NO_SANDBOX = ("none", "plain")
_SEEDS_A_SPLIT = 2**40


@dataclass(frozen=True)
class Task:
    """One episode to run: an environment, its arguments, a seed and a split.

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
        TypeError: the seed is not an integer, the id no text, or the arguments no dict.
        ValueError: the seed is out of range, or there is no such split.
    """

    env_id: str
    seed: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    split: str = "train"

    def __post_init__(self) -> None:
        if not (isinstance(self.env_id, str) and isinstance(self.env_kwargs, dict)):
            raise TypeError(
                f"a task has an id and a dict of arguments, got {self.env_id!r:.80}, {self.env_kwargs!r:.80}"
            )
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
        """Build the task's environment. It is not reset yet: pass it ``reset_seed``.

        Raises:
            ValueError: the task is to run code without a sandbox: see :func:`check_sandboxed`.
        """
        from gem.envs.registration import make

        check_sandboxed(self)
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
    """Return one task per seed.

    >>> [task.seed for task in make_tasks("game:Mastermind-v0-easy", range(3))]
    [0, 1, 2]
    """
    return [Task(env_id, seed, env_kwargs or {}, split) for seed in seeds]


def load_tasks(source: str | Path | Sequence[str | Path], split: str = "train") -> list[Task]:
    """Read tasks from expressions and files, as configurations of trainers name them.

    An expression is ``env=<id>,seeds=<first>:<end>``; anything after it is an argument of the environment:

    >>> load_tasks("env=game:Mastermind-v0,seeds=0:2,code_length=3")[1]
    Task(env_id='game:Mastermind-v0', seed=1, env_kwargs={'code_length': 3}, split='train')

    Lists are JSON, as in ``tools=["python","search"]``; quote that on a command line.

    A file is ``.jsonl`` (:meth:`Task.to_json`, one line per task) or ``.parquet`` (columns ``env_id`` and ``seed``, and
    if need be ``env_kwargs``, as JSON text, and ``split``).

    Several sources, in a list or joined by ``;``, are mixed evenly and always in the same way: any stretch of the
    result has each source's share of it, as far as that is possible. So each batch of a trainer that takes its tasks
    in order is mixed as the whole is.

    >>> [task.env_id for task in load_tasks("env=a:A-v0,seeds=0:4;env=b:B-v0,seeds=0:2")]
    ['a:A-v0', 'b:B-v0', 'a:A-v0', 'a:A-v0', 'b:B-v0', 'a:A-v0']

    On a command line, quote what holds a ``;``.

    Args:
        source: an expression, a file's path, or several.
        split: of the tasks that name none themselves.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a source holds no task, or cannot be read, or has tasks of the wrong split: see
            :func:`check_split`.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    parts = [part for one in sources for part in (_BETWEEN_SOURCES.split(one) if isinstance(one, str) else [str(one)])]
    parts = [part for part in map(str.strip, parts) if part]
    if not parts:
        raise ValueError(f"{source!r} names no tasks: expected a .jsonl or .parquet file, or {_EXPRESSION}")
    return _mixed([_load_one(part, split) for part in parts])


def check_split(tasks: Iterable[Task], split: str) -> None:
    """Refuse tasks of the wrong split: what is trained on is not evaluated on, and the other way round.

    Args:
        tasks: what is to be used.
        split: for what: ``train`` takes training tasks only; ``eval`` and ``test`` take tasks of
            either of the two. So training and evaluation share no episode.

    Raises:
        ValueError: a task is of the other kind.
    """
    for number, task in enumerate(tasks, start=1):
        if (task.split == "train") != (split == "train"):
            raise ValueError(
                f"task {number}, {task.env_id} with seed {task.seed}, is of the split {task.split!r}, where {split!r} "
                "is wanted"
            )


def check_sandboxed(task: Task) -> None:
    """Refuse a task whose arguments switch the sandbox off.

    Tasks and recorded episodes come in files, often other people's, and what runs without a sandbox runs with all
    rights of whoever loads the file. Whoever means it sets the variable :data:`ALLOW_UNSANDBOXED` to 1; an
    environment that is made by hand, with :func:`gem.make`, is not asked.

    Raises:
        ValueError: they do, and the variable is not set.
    """
    if os.environ.get(ALLOW_UNSANDBOXED) == "1":
        return
    for name, value in _arguments(task.env_kwargs):
        if name in _SANDBOX_ARGUMENTS and str(value).strip().lower() in _NO_SANDBOX:
            raise ValueError(
                f"the task {task.env_id} with seed {task.seed} asks for {name}={value!r}, which runs code without a "
                f"sandbox, with all your rights; if you trust where it comes from, set {ALLOW_UNSANDBOXED}=1"
            )


def _arguments(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the names and values in JSON data, at any depth."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from value.items()
            left.extend(value.values())
        elif isinstance(value, (list, tuple)):
            left.extend(value)


def _mixed(sources: Sequence[Sequence[Task]]) -> list[Task]:
    """Spread the tasks of each source evenly over the whole."""
    places = [((2 * i + 1) / (2 * len(tasks)), k, i) for k, tasks in enumerate(sources) for i in range(len(tasks))]
    return [sources[k][i] for _, k, i in sorted(places)]


def _load_one(source: str, split: str) -> list[Task]:
    rows = _rows_of_expression(source) if source.startswith("env=") else _rows_of_file(Path(source))
    tasks = []
    for number, row in enumerate(rows, start=1):
        try:
            tasks.append(Task(**{"split": split, **row}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {number} of {source} is no task: {error}") from None
    if not tasks:
        raise ValueError(f"{source} holds no task")
    try:
        check_split(tasks, split)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return tasks


_EXPRESSION = "env=<id>,seeds=<first>:<end>[,split=<split>][,<argument>=<value> ...]"
_NAME = re.compile(r"\s*(\w+)\s*=\s*")
_END = re.compile(r"\s*(,|$)")
_BETWEEN_SOURCES = re.compile(r';(?=(?:[^"]*"[^"]*")*[^"]*$)')  # outside of JSON text


def _rows_of_expression(expression: str) -> Iterator[dict[str, Any]]:
    try:
        fields = _fields(expression)
        env_id, (first, end) = fields.pop("env"), _seeds(fields.pop("seeds"))
        if not env_id:
            raise ValueError("the id is empty")
    except KeyError as missing:
        raise _unreadable(expression, f"it has no {missing.args[0]}=") from None
    except ValueError as error:
        raise _unreadable(expression, str(error)) from None
    split = {"split": fields.pop("split")} if "split" in fields else {}
    for seed in range(first, end):
        yield {"env_id": env_id, "seed": seed, "env_kwargs": fields, **split}


def _seeds(text: Any) -> tuple[int, int]:
    match = re.fullmatch(r"(-?\d+)\s*:\s*(-?\d+)", str(text))
    if match is None:
        raise ValueError(f"seeds={text} is no range")
    return int(match[1]), int(match[2])


def _unreadable(expression: str, why: str) -> ValueError:
    return ValueError(f"cannot read the tasks {expression!r}: {why}; expected {_EXPRESSION}, with lists as JSON")


def _fields(expression: str) -> dict[str, Any]:
    """Return the names and values of an expression; a value that is JSON counts as what it stands for.

    >>> _fields('env=game:Sokoban-v0,dim_room=[6,6],tools=["python","search"],mode=easy,n=3')["tools"]
    ['python', 'search']
    """
    fields: dict[str, Any] = {}
    at = 0
    while True:
        name = _NAME.match(expression, at)
        if name is None:
            raise ValueError(f"{expression[at:][:40]!r} is no <argument>=<value>")
        if name[1] in fields:
            raise ValueError(f"{name[1]} stands twice")
        at = name.end()
        if expression[at : at + 1] in ("[", "{", '"'):
            fields[name[1]], at = json.JSONDecoder().raw_decode(expression, at)
        else:
            end = expression.find(",", at) % (len(expression) + 1)  # that of the text where there is none
            fields[name[1]], at = json_or_text(expression[at:end].strip()), end
        after = _END.match(expression, at)
        if after is None:
            raise ValueError(f"{expression[at:][:40]!r} follows the value of {name[1]}")
        if not after[1]:
            return fields
        at = after.end()


def json_or_text(text: str) -> Any:
    """Return what a text is in JSON, or the text itself if it is not JSON.

    >>> json_or_text("0.5"), json_or_text("easy")
    (0.5, 'easy')
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _rows_of_file(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"cannot read tasks from {str(path)!r}: expected a .jsonl or .parquet file, or {_EXPRESSION}")
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(line, number, path)
        return
    try:
        from pyarrow import parquet
    except ImportError:
        raise ImportError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    for row in parquet.read_table(path).to_pylist():
        if isinstance(row.get("env_kwargs"), str):
            row["env_kwargs"] = json.loads(row["env_kwargs"])
        yield {key: value for key, value in row.items() if value is not None}


def _row(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} of {path} is no task: {error}") from None
