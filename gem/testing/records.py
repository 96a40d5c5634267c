"""What a trainer learns from, as the conformance suite compares it: records, from episodes and from a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gem.rollout.episode import Episode
from gem.rollout.returns import discounted_returns

TOLERANCE = 1e-6
"""Of rewards and log-probabilities; ids and masks are equal or not."""


@dataclass(frozen=True)
class Record:
    """A sequence that a trainer learns from: a whole episode, or a turn of one.

    Attributes:
        ids: all tokens, from the first of the prompt to the last that was sampled; length T.
        mask: 1 where a token was sampled; length T.
        rewards: length T.
        logprobs: length T, 0 where no token was sampled; None if the trainer keeps none.
    """

    ids: list[int]
    mask: list[int]
    rewards: list[float]
    logprobs: list[float] | None


def records_of(episode: Episode) -> list[Record]:
    """Return the one record of an append-only episode, or one a turn of any other."""
    if not episode.append_only:
        return turns_of(episode)
    row = episode.as_sequence()
    first = len(row.prompt_ids)
    return [
        Record(
            [*row.prompt_ids.tolist(), *row.completion_ids.tolist()],
            [0] * first + row.mask.tolist(),
            [0.0] * first + row.rewards.tolist(),
            None if row.logprobs is None else [0.0] * first + row.logprobs.tolist(),
        )
    ]


def turns_of(episode: Episode, rewards: Sequence[float] | None = None) -> list[Record]:
    """Return one record per turn.

    Args:
        episode: of any kind.
        rewards: what each turn's last token has for a reward; by default the turn's own.
    """
    records = []
    for turn, reward in zip(episode.turns, episode.rewards if rewards is None else rewards, strict=True):
        before, sampled = len(turn.prompt_ids), len(turn.response_ids)
        logprobs = None if turn.logprobs is None else [0.0] * before + list(turn.logprobs)
        rewards = [0.0] * (before + sampled - 1) + [float(reward)]
        records.append(Record([*turn.prompt_ids, *turn.response_ids], [0] * before + [1] * sampled, rewards, logprobs))
    return records


def one_scalar(episodes: list[Episode]) -> list[Record]:
    """Return the records of a trainer that keeps the sum of an episode's rewards, on its last token."""
    records = []
    for episode in episodes:
        (record,) = records_of(episode)
        records.append(replace(record, rewards=[0.0] * (len(record.ids) - 1) + [episode.total_reward]))
    return records


def every_turn(episodes: list[Episode]) -> list[Record]:
    """Return the records of a trainer that learns from turns."""
    return [record for episode in episodes for record in turns_of(episode)]


def every_turn_with_its_return(episodes: list[Episode]) -> list[Record]:
    """Return the same, with each turn's return-to-go for its reward."""
    return [
        record for episode in episodes for record in turns_of(episode, list(discounted_returns(episode.rewards, 1.0)))
    ]


def difference(expected: Sequence[Record], got: Sequence[Record]) -> str:
    """Return where records differ, in words; empty if nowhere. Their order does not matter."""
    if len(expected) != len(got):
        return f"{len(got)} sequences, expected {len(expected)}"
    own = [replace(record, ids=[int(i) for i in record.ids]) for record in got]
    for i, (a, b) in enumerate(zip(sorted(expected, key=_order), sorted(own, key=_order), strict=True)):
        for name in ("ids", "mask", "rewards", "logprobs"):
            left, right = getattr(a, name), getattr(b, name)
            if (left is None) != (right is None):
                return f"sequence {i}: {'no' if right is None else 'unexpected'} {name}"
            if left is None:
                continue
            if len(left) != len(right):
                return f"sequence {i}: {len(right)} {name}, expected {len(left)}"
            apart = np.flatnonzero(~(np.abs(np.subtract(left, right)) <= (0 if name in ("ids", "mask") else TOLERANCE)))
            if apart.size:
                at = int(apart[0])
                return f"sequence {i}, token {at} of {len(left)}: {name} {right[at]}, expected {left[at]}"
    return ""


def _order(record: Record) -> tuple[Any, ...]:
    return record.ids, record.mask, record.rewards, record.logprobs or []
