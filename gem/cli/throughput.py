"""Throughput of an environment by back end and number of environments, for ``gem bench``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from gem.core import Env
from gem.envs.registration import make, make_vec

_SAMPLES = 256
_ROUNDS = 3


def throughput(env_id: str, backend: str, size: int, seconds: float = 1.0, **backend_kwargs: Any) -> float:
    """Return steps per second, with ``send`` and ``recv``: the best of three rounds.

    Args:
        env_id: of the environments.
        backend: a back end's name.
        size: how many environments.
        seconds: of the three rounds together.
        **backend_kwargs: of the back end.

    Raises:
        NotImplementedError: the environment samples no actions.
        ValueError: there is no such environment or back end.
    """
    actions = itertools.cycle(sample_actions(lambda: make(env_id, seed=0)))
    with make_vec([env_id] * size, backend=backend, backend_kwargs=backend_kwargs) as vec:
        vec.reset(seed=0)
        vec.send({index: next(actions) for index in range(size)})
        best = 0.0
        for _ in range(_ROUNDS):
            steps = 0
            begin = time.perf_counter()
            while (took := time.perf_counter() - begin) < seconds / _ROUNDS:
                ready = vec.recv()
                steps += len(ready.indices)
                vec.send({index: next(actions) for index in ready.indices})
            best = max(best, steps / took)
        return best


def sample_actions(build: Callable[[], Env]) -> list[str]:
    """Return legal actions as an environment samples them in random play."""
    actions: list[str] = []
    with build() as env:
        env.reset(seed=0)
        while len(actions) < _SAMPLES:
            actions.append(env.sample_random_action())
            _, _, terminated, truncated, _ = env.step(actions[-1])
            if terminated or truncated:
                env.reset()
    return actions
