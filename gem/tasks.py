"""A task: what a training row carries, in every trainer, to say which episode to play."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
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
