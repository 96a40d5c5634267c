"""References of advantages, which leave out the episodes that are not valid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gem.rollout.episode import Episode
from gem.rollout.returns import discounted_returns, group_advantages, rebn


def of_groups(size: int, scale: bool, eps: float, ddof: int = 1) -> Callable[[list[Episode]], list[list[float]]]:
    """Return :func:`gem.rollout.group_advantages` of the valid episodes: every turn has its episode's advantage."""

    def expected(episodes: list[Episode]) -> list[list[float]]:
        found: list[list[float]] = []
        for first in range(0, len(episodes), size):
            group = episodes[first : first + size]
            returns = [e.total_reward for e in group if e.valid]
            own = iter(group_advantages(returns, len(returns), scale, eps, ddof) if len(returns) > 1 else [0.0])
            found += [[float(next(own))] * len(e.turns) if e.valid else [] for e in group]
        return found

    return expected


def of_turns(gamma: float = 1.0) -> Callable[[list[Episode]], list[np.ndarray]]:
    """Return :func:`gem.rollout.rebn` of the valid episodes as a reference."""

    def expected(episodes: list[Episode]) -> list[np.ndarray]:
        own = iter(rebn([e.rewards for e in episodes if e.valid], gamma))
        return [next(own) if e.valid else np.zeros(0) for e in episodes]

    return expected


def of_returns(gamma: float = 1.0) -> Callable[[list[Episode]], list[np.ndarray]]:
    """Return each turn's discounted return as a reference."""
    return lambda episodes: [discounted_returns(e.rewards, gamma) for e in episodes]
