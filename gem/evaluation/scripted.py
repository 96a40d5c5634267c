"""Agents that need no model: random legal actions, and the scripted solvers of games."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

from gem.core import Env, EnvWrapper, StepResult
from gem.evaluation.agents import CHOSEN, MakeEnv, Message, TextAgent
from gem.rollout.limits import Limits
from gem.tasks import Task
from gem.testing.solvers import find_solver


class RandomAgent(TextAgent):
    """Random legal actions, those of ``sample_random_action``.

    Args:
        limits: as for :class:`TextAgent`.
        make_env: as for :class:`TextAgent`.
    """

    name = "random"

    def __init__(self, limits: Limits | None = None, make_env: MakeEnv = Task.make) -> None:
        super().__init__(limits, _ActingAtRandom.around(make_env))

    def begin(self, task: Task, number: int) -> Callable[[list[Message]], Any]:
        """Return what only says which sample this is: the environment chooses."""
        return lambda messages: f"sample {number}"


class SolverAgent(TextAgent):
    """The scripted solver of a game (:mod:`gem.testing.solvers`)."""

    name = "solver"

    def begin(self, task: Task, number: int) -> Callable[[list[Message]], Any]:
        """Return the solver.

        Raises:
            ValueError: the environment has none.
        """
        solver = find_solver(task.env_id)
        if solver is None:
            raise ValueError(f"there is no solver for {task.env_id}")
        moves: list[Generator[str, str, None]] = []

        def answer(messages: list[Message]) -> str:
            if moves:
                return moves[0].send(messages[-1]["content"])
            moves.append(solver(messages[-1]["content"]))
            return next(moves[0])

        return answer


class _ActingAtRandom(EnvWrapper):
    """Makes a random legal action in the place of the one that it is given, which seeds the first."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._seeded = False

    @classmethod
    def around(cls, make_env: MakeEnv) -> MakeEnv:
        return _Around(make_env)

    def step(self, action: str) -> StepResult:
        if not self._seeded:  # by the task alone, all samples of it would act alike
            self.env.unwrapped._action_rng = random.Random(action)
            self._seeded = True
        action = self.env.sample_random_action()
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, CHOSEN: action}


class _Around:
    """Builds an environment and wraps it; a class, so that it can be sent to another process."""

    def __init__(self, make_env: MakeEnv) -> None:
        self._make_env = make_env

    def __call__(self, task: Task) -> Env:
        return _ActingAtRandom(self._make_env(task))
