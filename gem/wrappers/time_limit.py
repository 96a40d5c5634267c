"""TimeLimit: truncate an episode after a number of turns."""

from __future__ import annotations

from gem.core import Env, EnvWrapper, Info, ResetNeeded, StepResult


class TimeLimit(EnvWrapper):
    """Truncates an episode after ``max_episode_steps`` turns, unless the task ends first.

    Args:
        env: the environment to wrap.
        max_episode_steps: turns; at least 1.
    """

    state_attributes = ("elapsed", "over")

    def __init__(self, env: Env, max_episode_steps: int) -> None:
        super().__init__(env)
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
        self._limit = max_episode_steps
        self.elapsed = 0
        self.over = True

    @property
    def max_turns(self) -> int:  # type: ignore[override]
        """Turns until the episode ends: the smaller of both limits."""
        return min(self._limit, self.env.max_turns or self._limit)

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin an episode, and count its turns."""
        result = self.env.reset(seed=seed)
        self.elapsed = 0
        self.over = False
        return result

    def step(self, action: str) -> StepResult:
        """Step, and truncate at the limit."""
        if self.over:
            raise ResetNeeded
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.elapsed += 1
        truncated = truncated or (self.elapsed >= self._limit and not terminated)
        self.over = terminated or truncated
        return observation, reward, terminated, truncated, info
