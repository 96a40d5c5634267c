"""A wrapper."""

from __future__ import annotations

from gem.core import Env, EnvWrapper, StepResult


class TurnCost(EnvWrapper):
    """Every turn costs.

    Args:
        env: the environment to wrap.
        cost: of a turn.
    """

    def __init__(self, env: Env, cost: float = 0.05) -> None:
        super().__init__(env)
        self.cost = cost

    @property
    def reward_range(self) -> tuple[float, float]:  # type: ignore[override]
        """The inner environment's, less the cost of all turns."""
        low, high = self.env.reward_range
        return low - self.cost * (self.env.max_turns or 0), high

    def step(self, action: str) -> StepResult:
        """Step, and pay for it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward - self.cost, terminated, truncated, info
