"""Engine: what samples the tokens."""

from __future__ import annotations

import abc
from collections.abc import Container, Sequence
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort"]


class Response(NamedTuple):
    """What an engine sampled.

    Attributes:
        token_ids: the sampled ids, the end token included if it was sampled.
        logprobs: one log-probability per id, under the distribution that was sampled from; None if unknown.
        finish_reason: ``"stop"`` at an end token, ``"length"`` at the limit, ``"abort"`` if the engine gave up.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: FinishReason

    @classmethod
    def of_server(
        cls, token_ids: list[int], logprobs: list[float] | None, reason: str | None, stop_ids: Container[int]
    ) -> Response:
        """Return what an inference server (vLLM, SGLang) answered.

        Args:
            token_ids: what it sampled.
            logprobs: of these tokens; None if unknown.
            reason: why it ended, as the server names it. All but ``"stop"`` and ``"length"`` count as ``"abort"``, as
                does an answer without a token.
            stop_ids: tokens that end an answer, whatever the server calls it.
        """
        if not token_ids or reason not in ("stop", "length"):
            return cls(token_ids, logprobs, "abort")
        return cls(token_ids, logprobs, "stop" if token_ids[-1] in stop_ids or reason == "stop" else "length")


class Engine(abc.ABC):
    """Samples a continuation of a prompt, token in and token out. Each adapter supplies one."""

    @abc.abstractmethod
    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        """Sample at most ``max_new_tokens`` tokens, at least one unless the engine aborts.

        Args:
            prompt_ids: all that the model sees: a read-only view, to be taken as ``list(prompt_ids)``.
            max_new_tokens: the limit, at least 1.
            episode: the episode's number in this run, for engines that sort or route by it.
        """

    def episode_ended(self) -> None:
        """Called when one of the episodes of the run will request no more tokens."""
        return None

    async def aclose(self) -> None:
        """Release what the engine has opened in the running event loop; called by an evaluation, at its end."""
        return None
