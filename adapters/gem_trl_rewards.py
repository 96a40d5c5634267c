"""Reward functions, in which episodes that are left out have no reward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


def gem_reward(
    turn_rewards: list[list[float]] | None = None,
    left_out: list[bool] | None = None,
    metrics: list[dict[str, float]] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """TRL's ``reward_funcs``: passes the returns of the episodes through; None for those that are left out.

    Logs the means of their metrics (:func:`gem.rollout.mean_metrics`): ``gem/success``, ``gem/turns``,
    ``gem/left_out`` and so on, and in mixed training ``gem/success/<env id>`` too.

    Raises:
        TypeError: the trainer has no :class:`gem_trl.GemRollout`.
    """
    if turn_rewards is None or left_out is None:
        raise TypeError("gem_reward has no episodes: the trainer needs rollout_func=GemRollout(tokenizer)")
    if log_metric is not None:
        for row in metrics or []:  # one by one: TRL takes the mean of all values of all ranks
            for name, value in row.items():
                log_metric(f"gem/{name}", value)
    return [None if out else float(sum(rewards)) for rewards, out in zip(turn_rewards, left_out, strict=True)]


def for_valid_episodes(reward_func: Any) -> Any:
    """Return a reward function that gives None for the episodes that are left out, as :func:`gem_reward` does.

    Else what it gives them would move the baseline of their group.

    Raises:
        ValueError: it is a model, which gives a number to every row.
    """
    if reward_func is gem_reward:
        return reward_func
    if isinstance(reward_func, torch.nn.Module):
        raise ValueError(
            f"{type(reward_func).__name__} is a reward model, and would score the episodes that are left out too: "
            "call it in a reward function, or use GemRollout(..., on_error='keep')"
        )

    def unless(left_out: list[bool], rewards: list[float | None]) -> list[float | None]:
        return [None if out else reward for out, reward in zip(left_out, rewards, strict=True)]

    @functools.wraps(reward_func)
    def for_valid(left_out: list[bool], **columns: Any) -> list[float | None]:
        return unless(left_out, reward_func(left_out=left_out, **columns))

    @functools.wraps(reward_func)
    async def for_valid_async(left_out: list[bool], **columns: Any) -> list[float | None]:
        return unless(left_out, await reward_func(left_out=left_out, **columns))

    asynchronous = any(map(inspect.iscoroutinefunction, (reward_func, type(reward_func).__call__)))
    return for_valid_async if asynchronous else for_valid
