"""Printing episodes, of one environment or of a vector of them, as they are played."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Awaitable, Callable
from pprint import pprint
from typing import Any

import numpy as np

Policy = Callable[[Any], Any]
"""From an observation to an action; of a vector environment, from all observations to all actions."""

_RULE = "=" * 30


def ppprint(x: Any) -> None:
    """Print a value; of a list or tuple, each element under its number."""
    if not isinstance(x, (list, tuple)):
        pprint(x)
        return
    for number, item in enumerate(x, start=1):
        print(f"----- {number}/{len(x)}:")
        pprint(item)
        print()


def run_and_print_episode(env: Any, policy: Policy, ignore_done: bool = False, max_steps: float = 1e9) -> None:
    """Play an episode, and print every step.

    Args:
        env: an environment, or a vector environment, which is played until all its episodes have ended at once.
        policy: chooses the actions.
        ignore_done: go on after the end, up to ``max_steps``.
        max_steps: steps, at most.
    """
    _finish(_play(env.reset, env.step, policy, ignore_done, max_steps))


def run_and_print_episode_with_selective_step(
    env: Any, policy: Policy, ignore_done: bool = False, max_steps: float = 1e9
) -> None:
    """Do the same with a vector environment, of which each step moves some, drawn at random; arguments as above."""
    observations: dict[int, Any] = {}

    def reset() -> Any:
        all_of_them, infos = env.reset()
        observations.update(enumerate(all_of_them))
        return all_of_them, infos

    def step(actions: Any) -> Any:
        stepped, *rest = env.step(actions)
        observations.update(zip(actions, stepped, strict=True))
        return stepped, *rest

    def some(_: Any) -> dict[int, Any]:
        actions = dict(enumerate(policy([observations[index] for index in sorted(observations)])))
        chosen = [index for index in actions if random.random() < 0.5] or [random.choice(list(actions))]
        return {index: actions[index] for index in chosen}

    _finish(_play(reset, step, some, ignore_done, max_steps))


async def run_and_print_episode_async(
    env: Any, policy: Policy, ignore_done: bool = False, max_steps: float = 1e9
) -> None:
    """Do the same with an environment whose ``reset`` and ``step`` are coroutines; arguments as above."""
    episode = _play(env.reset, env.step, policy, ignore_done, max_steps)
    result = None
    while True:
        try:
            waited_for = episode.send(result)
        except StopIteration:
            return
        result = await waited_for if isinstance(waited_for, Awaitable) else waited_for


def _finish(episode: Any) -> None:
    result = None
    while True:
        try:
            result = episode.send(result)
        except StopIteration:
            return


def _play(reset: Callable[[], Any], step: Callable[[Any], Any], policy: Policy, ignore_done: bool, most: float) -> Any:
    """Play and print an episode; yield what may have to be awaited, and be sent what comes of it."""
    start = time.time()
    observation, _ = yield reset()
    for number in itertools.count(1):
        action = policy(observation)
        following, reward, terminated, truncated, _ = yield step(action)
        print(f"{_RULE}\nStep {number}")
        for title, value in (("observation", observation), ("action", action), ("reward", reward)):
            print(f"---------- {title} ----------")
            ppprint(value)
        print(f"terminated: {terminated} truncated: {truncated}\n{_RULE}")
        observation = following
        if number >= most or (not ignore_done and np.all(np.logical_or(terminated, truncated))):
            break
    print(f"----TIME: {time.time() - start:.2f} seconds")
