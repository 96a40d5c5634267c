"""ScriptedEngine: an engine that says what a script says, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gem.rollout.engine import Engine, Response

Script = Callable[[int, Sequence[int]], Response | Sequence[int]]


class ScriptedEngine(Engine):
    """Answers from a script instead of a model.

    >>> import asyncio
    >>> engine = ScriptedEngine([[11, 12], [13]])
    >>> asyncio.run(engine.generate([1, 2], max_new_tokens=8))
    Response(token_ids=[11, 12], logprobs=None, finish_reason='stop')

    Args:
        script: the answers of every episode, turn by turn (the last is repeated); or a function of the
            episode's number and the prompt. An answer is a :class:`~gem.rollout.Response`, or ids. Ids
            over the limit are cut, as by a real engine, and the answer then ends with ``"length"``.

    Attributes:
        prompts: every prompt that was seen, by episode.
    """

    def __init__(self, script: Sequence[Response | Sequence[int]] | Script) -> None:
        self._script = script
        self.prompts: dict[int, list[list[int]]] = {}

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        """Return the script's next answer."""
        seen = self.prompts.setdefault(episode, [])
        seen.append(list(prompt_ids))
        if callable(self._script):
            answer = self._script(episode, prompt_ids)
        else:
            answer = self._script[min(len(seen), len(self._script)) - 1]
        if not isinstance(answer, Response):
            answer = Response(list(answer), None, "stop")
        if len(answer.token_ids) <= max_new_tokens:
            return answer
        logprobs = None if answer.logprobs is None else answer.logprobs[:max_new_tokens]
        return Response(answer.token_ids[:max_new_tokens], logprobs, "length")
