"""Is what an environment returned what :mod:`gem.core` asks for? Asked between an environment and all that runs it."""

from __future__ import annotations

from math import isfinite
from typing import Any

from gem.core import Info, StepResult
from gem.faults import excerpt, type_name


def checked_reset(env: object, result: Any) -> tuple[str, Info]:
    """Return what an environment's ``reset`` returned, as a plain ``str`` and ``dict``.

    Every vector environment and the rollout runner pass on nothing that was not checked here.

    Args:
        env: the environment, for the error's text.
        result: what ``reset`` returned.

    Raises:
        TypeError: it is not a text and a dict.
    """
    if type(result) is not tuple or len(result) != 2:
        result = _items(env, "reset", result, ("observation", "info"))
    observation, info = result
    if type(observation) is not str or type(info) is not dict:
        observation, info = _plain(env, "reset", observation, info)
    return observation, info


def checked_step(env: object, result: Any) -> StepResult:
    """Return what an environment's ``step`` returned, as values of plain types.

    A reward may be any number that ``float`` takes, numpy's included, and the flags may be numpy's, or 0 and 1.

    Args:
        env: the environment, for the error's text.
        result: what ``step`` returned.

    Raises:
        TypeError: it is not a text, a number, two flags and a dict.
        ValueError: the reward is infinite, or not a number.
    """
    # It runs at every step of every environment: what is usual is compared by type, and all else is left to functions.
    if type(result) is not tuple or len(result) != 5:
        result = _items(env, "step", result, ("observation", "reward", "terminated", "truncated", "info"))
    observation, reward, terminated, truncated, info = result
    if type(observation) is not str or type(info) is not dict:
        observation, info = _plain(env, "step", observation, info)
    if type(reward) is not float:
        reward = _number(env, reward)
    if not isfinite(reward):
        raise ValueError(f"{_call_of(env, 'step')} returned the reward {reward}")
    if type(terminated) is not bool:
        terminated = _flag(env, "terminated", terminated)
    if type(truncated) is not bool:
        truncated = _flag(env, "truncated", truncated)
    return observation, reward, terminated, truncated, info


def _items(env: object, method: str, result: Any, names: tuple[str, ...]) -> Any:
    if isinstance(result, tuple | list) and len(result) == len(names):
        return result
    raise TypeError(f"{_call_of(env, method)} returned {excerpt(result)}, not ({', '.join(names)})")


def _plain(env: object, method: str, observation: Any, info: Any) -> tuple[str, Info]:
    """Return a text and a dict without what subclasses add, which may raise later on."""
    if not isinstance(observation, str):
        what = f"{excerpt(observation)}, a {type_name(observation)}, as observation"
        raise TypeError(f"{_call_of(env, method)} returned {what}, not a str")
    if not isinstance(info, dict):
        raise TypeError(f"{_call_of(env, method)} returned {excerpt(info)}, a {type_name(info)}, as info, not a dict")
    return str.__str__(observation), dict(info)


def _number(env: object, reward: Any) -> float:
    try:
        if isinstance(reward, str | bytes | bytearray):  # float() would parse them
            raise TypeError
        return float(reward)
    except (TypeError, ValueError, OverflowError) as error:
        what = f"{excerpt(reward)}, a {type_name(reward)}, as reward"
        raise TypeError(f"{_call_of(env, 'step')} returned {what}, not a finite number") from error


def _flag(env: object, name: str, value: Any) -> bool:
    flag = value.item() if hasattr(value, "item") else value  # of numpy and of torch
    if isinstance(flag, int) and flag in (0, 1):
        return bool(flag)
    raise TypeError(f"{_call_of(env, 'step')} returned {excerpt(value)}, a {type_name(value)}, as {name}, not a bool")


def _call_of(env: object, method: str) -> str:
    return f"{type_name(env)}.{method}"
