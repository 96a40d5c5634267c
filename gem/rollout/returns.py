"""Returns and advantages, in numpy: the reference that what a trainer computes is tested against.

Plain and slow on purpose. "Per turn" means that time counts turns, not tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

_ROUNDING = 1e-6
"""A standard deviation of this part of the largest value is taken for rounding: a few units of float32, in which most
trainers keep rewards. Dividing by it would make advantages of size 1 out of nothing."""


def check_gamma(gamma: float) -> float:
    """Return a discount.

    Raises:
        ValueError: it is not from 0 to 1.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma, the discount per turn, is from 0 to 1, got {gamma}")
    return gamma


def discounted_returns(rewards: Sequence[float], gamma: float = 1.0) -> np.ndarray:
    """Return the discounted sum of each turn's and the following turns' rewards.

    >>> discounted_returns([0.0, 0.5, 1.0], gamma=0.5).tolist()
    [0.5, 1.0, 1.0]

    Args:
        rewards: one reward per turn, length T.
        gamma: discount per turn.

    Returns:
        float64, length T.
    """
    returns = np.zeros(len(rewards))
    following = 0.0
    for t in reversed(range(len(rewards))):
        following = returns[t] = rewards[t] + gamma * following
    return returns


def rebn(rewards: Sequence[Sequence[float]], gamma: float = 1.0, eps: float = 1e-8) -> list[np.ndarray]:
    """Return batch normalisation: each turn's return, normalised over every turn of the batch.

    The advantage of "GEM: A Gym for Agentic LLMs" (Liu et al., 2025): no group and no critic, credit per turn.

    >>> [a.round(6).tolist() for a in rebn([[0.0, 1.0], [0.0, -1.0]])]
    [[1.0, 1.0], [-1.0, -1.0]]

    Args:
        rewards: for each episode of the batch, one reward per turn.
        gamma: discount per turn.
        eps: added to the (population) standard deviation.

    Returns:
        For each episode, one advantage per turn, float64. Exactly 0 if all returns of the batch are equal but for
        rounding (a standard deviation of at most 1e-6 of the largest return).
    """
    returns = [discounted_returns(episode, gamma) for episode in rewards]
    ends = np.cumsum([len(episode) for episode in returns])[:-1]
    every = np.concatenate([np.zeros(0), *returns])
    return np.split(_normalised(every, eps, ddof=0), ends) if returns else []


def rebn_of_mask(
    rewards: np.ndarray, mask: np.ndarray, gamma: float = 1.0, bounds: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`rebn` for a batch as trainers have it: a reward and a mask for each token.

    >>> advantages, returns = rebn_of_mask(np.array([[0.0, 1.0, 0.0, 2.0]]), np.array([[1, 1, 0, 1]]))
    >>> returns.tolist()
    [[3.0, 3.0, 0.0, 2.0]]

    Args:
        rewards: (N, T).
        mask: (N, T), 1 where a token was sampled. A run of such tokens is a turn; its reward is the sum of what lies on
            them, and on the inter-turn tokens before them.
        gamma: discount per turn.
        bounds: (B + 1,): the sequences of episode i are those from ``bounds[i]`` to ``bounds[i + 1]``; None where every
            sequence is an episode.

    Returns:
        Advantages and returns, (N, T) each, float64: each sampled token has those of its turn, all others 0.
    """
    bounds = range(len(mask) + 1) if bounds is None else bounds
    turns = [
        [(row, start, end) for row in range(first, last) for start, end in _runs(mask[row])]
        for first, last in itertools.pairwise(bounds)
    ]
    of_turns = [[_reward_of_turn(rewards[row], mask[row], start, end) for row, start, end in own] for own in turns]
    advantages, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for own, advantage, return_ in zip(
        turns, rebn(of_turns, gamma), [discounted_returns(row, gamma) for row in of_turns], strict=True
    ):
        for (row, start, end), a, g in zip(own, advantage, return_, strict=True):
            advantages[row, start:end], returns[row, start:end] = a, g
    return advantages, returns


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return first and end of every run of ones."""
    steps = np.diff(np.concatenate([[0], np.asarray(mask, dtype=bool).astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def _reward_of_turn(rewards: np.ndarray, mask: np.ndarray, start: int, end: int) -> float:
    before = np.flatnonzero(mask[:start])
    return float(np.sum(rewards[before[-1] + 1 if len(before) else 0 : end], dtype=np.float64))


def gae(
    rewards: Sequence[float],
    values: Sequence[float],
    gamma: float = 1.0,
    lam: float = 1.0,
    last_value: float = 0.0,
) -> np.ndarray:
    """Return generalised advantage estimates per turn (Schulman et al., 2016, equation 16).

    >>> gae([0.0, 1.0], [0.5, 0.5], gamma=1.0, lam=0.5).tolist()
    [0.25, 0.5]

    Args:
        rewards: one reward per turn, length T.
        values: the critic's value of each turn's prompt, length T.
        gamma: discount per turn.
        lam: 0 trusts the critic, 1 the returns.
        last_value: the value after the last turn: 0 if the task ended.

    Returns:
        float64, length T.

    Raises:
        ValueError: there is not a value a reward.
    """
    if len(rewards) != len(values):
        raise ValueError(f"{len(values)} values for {len(rewards)} rewards")
    advantages = np.zeros(len(rewards))
    following = 0.0
    next_value = last_value
    for t in reversed(range(len(rewards))):
        surprise = rewards[t] + gamma * next_value - values[t]
        following = advantages[t] = surprise + gamma * lam * following
        next_value = values[t]
    return advantages


def group_advantages(
    episode_returns: Sequence[float], group_size: int, scale: bool = True, eps: float = 1e-4, ddof: int = 1
) -> np.ndarray:
    """Return GRPO's advantages: the return of an episode against the others of its group.

    Shao et al., 2024 ("DeepSeekMath"); without scaling, Dr. GRPO (Liu et al., 2025).

    >>> group_advantages([1.0, 0.0, 1.0, 1.0], group_size=2, scale=False).tolist()
    [0.5, -0.5, 0.0, 0.0]

    Args:
        episode_returns: one return per episode; the episodes of a group stand together. Length B.
        group_size: episodes per group, at least 2; divides B.
        scale: divide by the group's standard deviation.
        eps: added to the standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population's.

    Returns:
        float64, length B. Exactly 0 in a group whose returns are equal but for rounding (a standard deviation of at
        most 1e-6 of the largest return).

    Raises:
        ValueError: B is not a multiple of the group size, or a group has fewer than two episodes.
    """
    if group_size < 2:
        raise ValueError(f"a group needs at least 2 episodes, got {group_size}")
    if len(episode_returns) % group_size:
        raise ValueError(f"{len(episode_returns)} episodes do not make groups of {group_size}")
    groups = np.asarray(episode_returns, dtype=np.float64).reshape(-1, group_size)
    if not len(groups):
        return np.zeros(0)
    return np.concatenate([_normalised(group, eps, ddof, scale) for group in groups])


def _normalised(values: np.ndarray, eps: float, ddof: int, scale: bool = True) -> np.ndarray:
    """Return values less their mean, over their standard deviation; 0 if they are equal but for rounding."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0:
        return np.zeros(len(values))
    # In units of the largest value, so that sums and squares of huge and tiny numbers stay within range.
    units = values / largest
    centred, std = units - units.mean(), float(units.std(ddof=ddof))
    if std <= _ROUNDING:
        return np.zeros(len(values))
    return centred / (std + eps / largest) if scale else centred * largest


def spread_over_tokens(
    values: Sequence[Sequence[float] | np.ndarray], turn_ends: Sequence[Sequence[int]], length: int
) -> np.ndarray:
    """Return an array in which every token has the value of its turn.

    >>> spread_over_tokens([[1.0, 2.0]], [[0, 2]], length=4).tolist()
    [[1.0, 2.0, 2.0, 0.0]]

    Args:
        values: for each of B episodes, one value per turn.
        turn_ends: for each, the index of every turn's last sampled token.
        length: T, tokens of the longest episode or more.

    Returns:
        float64, (B, T). The bridge before a turn has the turn's value, padding has 0: multiply by the mask.
    """
    spread = np.zeros((len(values), length))
    for row, (of_turns, ends) in enumerate(zip(values, turn_ends, strict=True)):
        start = 0
        for value, end in zip(of_turns, ends, strict=True):
            spread[row, start : end + 1] = value
            start = end + 1
    return spread
