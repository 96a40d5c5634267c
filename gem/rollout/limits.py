"""What ends an episode from outside: turns, tokens and seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What ends an episode from outside.

    Attributes:
        max_turns: turns per episode; None for as many as the environment allows.
        max_new_tokens: tokens sampled per turn, at most.
        max_context: tokens of prompt and answer together; None for no limit.
        max_completion: tokens of an append-only episode after its first prompt; None for no limit.
        step_timeout: seconds that a ``reset`` or a ``step`` may take, of an environment that does not run inline (see
            :mod:`gem.rollout.execution`); None for no limit.
        max_threads: blocking environments that may be stepped at the same time.
        retries: how often an episode is started again whose environment fails before the first token is sampled.

    Raises:
        ValueError: a limit is not positive, or ``retries`` is negative.
    """

    max_turns: int | None = None
    max_new_tokens: int = 256
    max_context: int | None = None
    max_completion: int | None = None
    step_timeout: float | None = None
    max_threads: int = 64
    retries: int = 2

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"Limits.retries must not be negative, got {self.retries}")
        for name, value in vars(self).items():
            if value is not None and value <= 0 and name != "retries":
                raise ValueError(f"Limits.{name} must be positive, got {value}")

    def room(self, prompt_length: int, completion_length: int = 0) -> int:
        """Return how many tokens may be sampled after a prompt.

        Args:
            prompt_length: tokens of the prompt.
            completion_length: how many of them, at its end, count as completion already.
        """
        room = self.max_new_tokens
        if self.max_context is not None:
            room = min(room, self.max_context - prompt_length)
        if self.max_completion is not None:
            room = min(room, self.max_completion - completion_length)
        return room
