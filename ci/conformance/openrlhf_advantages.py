"""OpenRLHF's advantages, as references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gem.rollout import Episode
from gem.testing.advantages import of_groups

Reference = Callable[[list[Episode]], Sequence[Sequence[float]]]


def whitened(baseline: Reference | None = None) -> Reference:
    """Return OpenRLHF's normalisation over all tokens: an episode counts as often as it has sampled tokens.

    Args:
        baseline: the advantages that are normalised, an entry per turn; by default the episodes' returns.
    """

    def expected(episodes: list[Episode]) -> list[list[float]]:
        rows = [[e.total_reward] * len(e.turns) for e in episodes] if baseline is None else baseline(episodes)
        values = [row[0] if e.valid else 0.0 for row, e in zip(rows, episodes, strict=True)]
        tokens = np.repeat(values, [e.sampled_tokens if e.valid else 0 for e in episodes])
        deviation = np.sqrt(max(tokens.var(), 1e-8))
        return [
            [float((value - tokens.mean()) / deviation)] * len(e.turns)
            for value, e in zip(values, episodes, strict=True)
        ]

    return expected


def of_others(size: int) -> Reference:
    """Return the return less the mean of the others in the group."""

    def expected(episodes: list[Episode]) -> list[list[float]]:
        found = []
        for i, episode in enumerate(episodes):
            group = episodes[i // size * size :][:size]
            others = [e.total_reward for e in group if e.valid and e is not episode]
            found.append([episode.total_reward - float(np.mean(others))] * len(episode.turns))
        return found

    return expected


REFERENCES: dict[str, Callable[[int], tuple[Reference, str]]] = {
    "reinforce": lambda _: (whitened(), "against those of all tokens, over their population deviation"),
    "grpo": lambda size: (of_groups(size, True, 1e-9), "over the group's sample deviation + 1e-9"),
    "rloo": lambda size: (of_others(size), "against the mean of the group's others"),
    "reinforce_baseline": lambda size: (
        whitened(of_groups(size, False, 0.0)),
        "against the group's mean, over the population deviation of all tokens",
    ),
    "dr_grpo": lambda size: (of_groups(size, False, 0.0), "against the group's mean"),
    "flash_reinforce": lambda _: (lambda es: of_groups(len(es), False, 0.0)(es), "against the batch's mean"),
}
"""For each algorithm: from the size of the groups to the advantages, and what they are."""
