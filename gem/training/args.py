"""TrainingArgs: the flags that the examples of all trainers share."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gem.tasks import Task, json_or_text, load_tasks


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command line before ``--``, which are an example's, and after it, which are the trainer's.

    >>> split_words(["--steps", "3", "--", "beta=0.1"])
    (['--steps', '3'], ['beta=0.1'])
    """
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def options(words: Sequence[str]) -> dict[str, Any]:
    """Return options that are written ``name=value``; a value that is JSON counts as what it stands for.

    >>> options(["beta=0.1", "report_to=tensorboard"])
    {'beta': 0.1, 'report_to': 'tensorboard'}

    Raises:
        ValueError: a word is not ``name=value``.
    """
    read: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"an option of the trainer is written name=value, got {word!r}")
        read[name] = json_or_text(value)
    return read


@dataclass
class TrainingArgs:
    """The flags of an example; a trainer's own subclass adds ``algorithm`` and gives ``out`` a default."""

    env: str = "game:GuessTheNumber-v1-easy"
    """a registered environment; `gem envs` lists them. Several, separated by commas, get equal shares of the tasks"""
    env_arguments: str = ""
    """arguments of the environments, as JSON: '{"code_length": 3}'"""
    tools: str = ""
    """tools that the model can use, separated by commas: python, search"""
    model: str = "embedded"
    """embedded (tiny, comes with the package), smollm2 (pretrained, 135M parameters), a folder, or a hub id"""
    steps: int = 80
    """optimizer steps; each runs one batch of episodes and learns from it"""
    batch_size: int = 64
    """episodes per step"""
    group_size: int = 8
    """episodes that begin from the same seed; the batch size is a multiple of it"""
    lr: float | None = None
    """learning rate; by default 1e-3 for the embedded model, 1e-6 for any other"""
    max_turns: int | None = None
    """turns per episode; by default as many as the environment allows"""
    max_new_tokens: int | None = None
    """tokens per turn; by default 16 for the embedded model, 64 for any other"""
    gamma: float = 1.0
    """discount per turn"""
    seed: int = 0
    """of the tasks, of sampling, and of the trainer"""
    out: str = "out"
    """folder of the results"""

    @property
    def embedded(self) -> bool:
        """Whether the model is the tiny one that comes with the package."""
        return self.model == "embedded"

    @property
    def groups(self) -> int:
        """Groups a step."""
        return self.batch_size // self.group_size

    @property
    def task_seeds(self) -> range:
        """Every group of the run has a task of its own; another ``seed`` has other tasks."""
        first = self.seed * 1_000_000
        return range(first, first + self.steps * self.groups)

    @property
    def env_ids(self) -> list[str]:
        """The environments."""
        return [name for name in map(str.strip, self.env.split(",")) if name]

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment, as its tasks carry them.

        Raises:
            ValueError: ``env_arguments`` is no JSON object.
        """
        try:
            given = json.loads(self.env_arguments or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"--env-arguments is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise ValueError(f"--env-arguments is a JSON object, got {self.env_arguments}")
        return {**given, **({"tools": self.tools} if self.tools else {})}

    def task_source(self, seeds: range, split: str = "train") -> str:
        """Return as many tasks as there are seeds, as :func:`gem.tasks.load_tasks` reads them.

        >>> TrainingArgs(env="a:A-v0,b:B-v0").task_source(range(10, 15), "eval")
        'env=a:A-v0,seeds=10:13,split=eval;env=b:B-v0,seeds=10:12,split=eval'
        >>> TrainingArgs(env="a:A-v0", env_arguments='{"size": [6, 6]}').task_source(range(2))
        'env=a:A-v0,size=[6, 6],seeds=0:2,split=train'

        Args:
            seeds: their first and last are the tasks' of a single environment; of several, each has its share of them,
                from the first.
            split: of the tasks.
        """
        arguments = {**self.env_kwargs, **({"tools": self.tools.replace(",", "+")} if self.tools else {})}
        ids, own = self.env_ids, "".join(f",{name}={_word(value)}" for name, value in arguments.items())
        shares = [len(seeds[k :: len(ids)]) for k in range(len(ids))]
        return ";".join(
            f"env={env_id}{own},seeds={seeds.start}:{seeds.start + share},split={split}"
            for env_id, share in zip(ids, shares, strict=True)
            if share
        )

    def tasks(self, seeds: range, split: str = "train") -> list[Task]:
        """Return the tasks of :meth:`task_source`; where there are several environments, they take turns."""
        return load_tasks(self.task_source(seeds, split), split)

    def fill_in(self) -> None:
        """Set the defaults that depend on the model, and refuse what cannot work, before anything is loaded.

        Raises:
            ValueError: a value makes no sense, or there is no such environment or tool.
            ImportError, SandboxUnavailable: the environment or a tool needs what is not there.
        """
        from gem.envs.registration import make
        from gem.rollout.returns import check_gamma

        if self.group_size < 2 or self.batch_size % self.group_size:
            raise ValueError(
                f"--batch-size must be a multiple of --group-size, which is at least 2: got {self.batch_size} "
                f"and {self.group_size}"
            )
        self.lr = (1e-3 if self.embedded else 1e-6) if self.lr is None else self.lr
        self.max_new_tokens = (16 if self.embedded else 64) if self.max_new_tokens is None else self.max_new_tokens
        for name in ("steps", "batch_size", "group_size", "max_turns", "max_new_tokens", "lr"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
        check_gamma(self.gamma)
        if not self.env_ids:
            raise ValueError("--env names no environment")
        for env_id in self.env_ids:
            make(env_id, **self.env_kwargs).close()
        self.tasks(self.task_seeds)  # refuses seeds that tasks cannot have


def _word(value: Any) -> str:
    """Return a value as an expression of tasks has it: a text without commas as it is, all else as JSON."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w+]+", value) else json.dumps(value)
