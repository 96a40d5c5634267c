"""What an evaluation may cost, in tokens or in money."""

from __future__ import annotations

from dataclasses import dataclass

from gem.evaluation.store import Evaluation

MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in any currency.

    >>> Prices(prompt=0.5, sampled=2.0).cost(prompt_tokens=2_000_000, sampled_tokens=100_000)
    1.2

    Attributes:
        prompt: of prompts. Discounts for cached prompts are not considered: the cost is an upper bound.
        sampled: of what is sampled.
    """

    prompt: float
    sampled: float

    def cost(self, prompt_tokens: int, sampled_tokens: int) -> float:
        """Return what so many tokens cost."""
        return (self.prompt * prompt_tokens + self.sampled * sampled_tokens) / MILLION


@dataclass(frozen=True)
class Budget:
    """What an evaluation may use, failed attempts included, before it begins no further episode.

    Attributes:
        tokens: sampled tokens; None for any number.
        cost: in the currency of the prices; None for any cost.
        prices: of tokens; needed for ``cost``.
    """

    tokens: int | None = None
    cost: float | None = None
    prices: Prices | None = None

    def __post_init__(self) -> None:
        if self.cost is not None and self.prices is None:
            raise ValueError("a budget in money needs the prices of tokens")

    def is_spent(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation has used as much or more."""
        if self.tokens is not None and evaluation.sampled_tokens >= self.tokens:
            return True
        if self.cost is None or self.prices is None:
            return False
        return self.prices.cost(evaluation.prompt_tokens, evaluation.sampled_tokens) >= self.cost
