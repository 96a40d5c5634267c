"""What a vector environment is."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np

from gem.core import Env, Info, check_seed

Actions = Sequence[str] | dict[int, str]
VectorStep = tuple[list[str], np.ndarray, np.ndarray, np.ndarray, list[Info]]


class AutoresetMode(Enum):
    """When an environment whose episode has ended begins the next.

    * ``NEXT_STEP``: the next ``step`` ignores its action, resets, and returns reward 0.
    * ``SAME_STEP``: at once. The observation and info returned are the new episode's; the old one's last
      are in ``info["final_obs"]`` and ``info["final_info"]``.
    * ``DISABLED``: never; the caller resets.
    """

    NEXT_STEP = "NextStep"
    SAME_STEP = "SameStep"
    DISABLED = "Disabled"


class VectorEnv(abc.ABC):
    """Several environments that are stepped together.

    Args:
        env_ids: an id an environment, for people.
        env_fns: functions that build the environments.
        autoreset_mode: a mode, or its value.

    Attributes:
        envs: the environments.
        num_envs: how many they are.
    """

    def __init__(
        self,
        env_ids: Sequence[str],
        env_fns: Sequence[Callable[[], Env]],
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        self.env_ids = list(env_ids)
        self.envs = [build() for build in env_fns]
        self.num_envs = len(self.envs)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self._ended = [False] * self.num_envs

    @abc.abstractmethod
    def reset(self, seed: int | Sequence[int | None] | None = None) -> tuple[list[str], list[Info]]:
        """Reset all environments.

        Args:
            seed: an integer seeds environment ``i`` with ``seed + i``; a sequence has a seed an environment.

        Returns:
            An observation and an info an environment.
        """

    @abc.abstractmethod
    def step(self, actions: Actions) -> VectorStep:
        """Step all environments, or those that a dict from index to action names.

        Returns:
            Observations (list), rewards (float64), terminated and truncated (bool), infos (list): one entry
            an action, in the order of the actions.
        """

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            env.close()

    def __enter__(self) -> VectorEnv:
        """Return the vector environment, to be closed when the block ends."""
        return self

    def __exit__(self, *exc: Any) -> None:
        """Close all environments."""
        self.close()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            first = check_seed(seed)
            assert first is not None
            return range(first, first + self.num_envs)
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments")
        return seed

    def _by_index(self, actions: Actions) -> dict[int, str]:
        if isinstance(actions, dict):
            if unknown := [index for index in actions if index not in range(self.num_envs)]:
                raise ValueError(f"there is no environment {unknown[0]!r} among {self.num_envs}")
            return actions
        if isinstance(actions, str) or len(actions) != self.num_envs:
            raise ValueError(f"step takes {self.num_envs} actions, or a dict from index to action")
        return dict(enumerate(actions))
