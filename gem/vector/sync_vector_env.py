"""SyncVectorEnv: environments stepped one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gem.core import Info
from gem.vector.vector_env import Actions, AutoresetMode, VectorEnv, VectorStep


class SyncVectorEnv(VectorEnv):
    """Steps environments one after another, in this thread."""

    def reset(self, seed: int | Sequence[int | None] | None = None) -> tuple[list[str], list[Info]]:
        """Reset all environments."""
        results = [env.reset(seed=s) for env, s in zip(self.envs, self._seeds(seed), strict=True)]
        self._ended = [False] * self.num_envs
        return [observation for observation, _ in results], [info for _, info in results]

    def step(self, actions: Actions) -> VectorStep:
        """Step all environments, or some."""
        chosen = self._by_index(actions)
        results = [self._step_one(index, action) for index, action in chosen.items()]
        observations, rewards, terminated, truncated, infos = zip(*results, strict=True) if results else ((),) * 5
        return (
            list(observations),
            np.array(rewards, dtype=np.float64),
            np.array(terminated, dtype=np.bool_),
            np.array(truncated, dtype=np.bool_),
            list(infos),
        )

    def _step_one(self, index: int, action: str) -> tuple[str, float, bool, bool, Info]:
        env = self.envs[index]
        if self._ended[index] and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._ended[index] = False
            observation, info = env.reset()
            return observation, 0.0, False, False, info
        observation, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        if ended and self.autoreset_mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": observation, "final_info": info}
            observation, info = env.reset()
            return observation, reward, terminated, truncated, {**info, **final}
        self._ended[index] = ended
        return observation, reward, terminated, truncated, info
