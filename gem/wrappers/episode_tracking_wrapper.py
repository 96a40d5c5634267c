"""EpisodeTrackingWrapper: turns and rewards of the running and the previous episode, in ``info``."""

from __future__ import annotations

from gem.core import Env, EnvWrapper, Info, StepResult


class EpisodeTrackingWrapper(EnvWrapper):
    """Adds ``step_counter`` and ``cumulative_rewards`` to ``info``; it goes outermost.

    ``reset`` also adds the previous episode's, as ``prev_ep_step_counter`` and ``prev_ep_cumulative_rewards``: the
    only thing in an episode that its seed does not fix.
    """

    state_attributes = ("step_counter", "cumulative_rewards")

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.step_counter = 0
        self.cumulative_rewards = 0.0

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin an episode at zero."""
        observation, info = self.env.reset(seed=seed)
        previous = {
            "prev_ep_step_counter": self.step_counter,
            "prev_ep_cumulative_rewards": self.cumulative_rewards,
        }
        self.step_counter = 0
        self.cumulative_rewards = 0.0
        return observation, {**info, **previous, **self._totals()}

    def step(self, action: str) -> StepResult:
        """Step, and add to the totals."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.step_counter += 1
        self.cumulative_rewards += float(reward)
        return observation, reward, terminated, truncated, {**info, **self._totals()}

    def _totals(self) -> Info:
        return {"step_counter": self.step_counter, "cumulative_rewards": self.cumulative_rewards}
