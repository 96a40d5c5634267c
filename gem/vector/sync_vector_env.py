"""SyncVectorEnv: environments stepped one after another, in the caller's thread.

The fastest for environments whose steps take microseconds. ``send`` steps at once, and ``recv`` has it ready; there are
no deadlines, since nobody is there to keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gem.core import Env
from gem.vector.outcome import StepOutcome, as_outcome
from gem.vector.slot import AutoresetMode, Slot
from gem.vector.vector_env import Actions, LocalVectorEnv, VectorStep


class SyncVectorEnv(LocalVectorEnv):
    """Steps environments one after another, in this thread; arguments as in ``VectorEnv``."""

    def __init__(
        self,
        env_ids: Sequence[str],
        env_fns: Sequence[Callable[[], Env]],
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        super().__init__(env_ids, env_fns, autoreset_mode)
        self._slots = [Slot(build, self.autoreset_mode) for build in env_fns]
        self._outcomes: dict[int, StepOutcome] = {}
        for slot in self._slots:
            slot.build()

    def close(self) -> None:
        """Close all environments."""
        super().close()
        for slot in self._slots:
            slot.close()

    def step(self, actions: Actions) -> VectorStep:
        """Step all environments, or those that a dict from index to action names."""
        if isinstance(actions, dict | str) or len(actions) != self.num_envs or self._under_way or self._is_closed:
            return super().step(actions)
        steps = [slot.plain_step(action) for slot, action in zip(self._slots, actions, strict=True)]
        if self._failing or StepOutcome in map(type, steps):
            self._under_way.update(range(self.num_envs))
            self._arrived = dict(enumerate(map(as_outcome, steps)))
            return self._delivered(self._arrived)[1:]
        observations, rewards, terminated, truncated, infos = zip(*steps, strict=True)
        return (
            list(observations),
            np.array(rewards, dtype=np.float64),
            np.array(terminated, dtype=np.bool_),
            np.array(truncated, dtype=np.bool_),
            list(infos),
        )

    def start_calls(self, method: str, arguments: dict[int, Any]) -> None:
        """Start calls; see :meth:`VectorEnv.start_calls`."""
        slots = self._slots
        if method == "step":
            self._outcomes.update({index: slots[index].step(action) for index, action in arguments.items()})
        else:
            self._outcomes.update({index: getattr(slots[index], method)(value) for index, value in arguments.items()})

    def finished_calls(self, seconds: float | None) -> dict[int, StepOutcome]:
        """Return the outcomes of calls that have returned; see :meth:`VectorEnv.finished_calls`."""
        outcomes, self._outcomes = self._outcomes, {}
        return outcomes
