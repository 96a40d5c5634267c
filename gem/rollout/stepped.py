"""Episodes that the caller drives turn by turn, for a trainer that calls ``reset`` and ``step`` from its own loop.

The runner runs the episode as always, with an *externally driven engine*: an engine that does not sample, but hands its
generation requests to the caller, and waits until the caller returns what was sampled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gem.rollout.batching import Request
from gem.rollout.engine import Engine, Response
from gem.rollout.episode import Episode
from gem.rollout.runner import EpisodeRunner
from gem.tasks import Task


class SteppedEpisode:
    """Runs the episode of one task, and stops wherever tokens are needed.

    .. code-block:: python

        stepped = SteppedEpisode(runner, task)
        request = await stepped.start()
        while request is not None:
            request = await stepped.answer(await sample(request.prompt_ids, request.max_new_tokens))

    All calls are made in one event loop. A caller that stops before the end calls :meth:`close`.

    Args:
        runner: runs it.
        task: which episode.

    Attributes:
        episode: as far as it has come; after an answer, its last turn has its reward.
        request: the generation request that waits for an answer; None once the episode has ended.
    """

    def __init__(self, runner: EpisodeRunner, task: Task) -> None:
        self.episode = Episode(task)
        self.request: Request | None = None
        self._job: asyncio.Future[Episode] | None = None
        self._runner = runner
        self._engine = _ExternallyDrivenEngine()

    async def start(self) -> Request:
        """Reset the environment, and return the first request.

        Raises:
            ValueError, TypeError, ImportError: see :func:`gem.rollout.run_episodes`.
            RuntimeError: the context does not hold an empty message.
        """
        run = self._runner.run(self.episode.task, self._engine, episode=self.episode)
        self._job = asyncio.ensure_future(run)
        self._job.add_done_callback(lambda _: self._engine.requests.put_nowait(None))
        request = await self._next()
        if request is None:
            raise RuntimeError(f"the episode ended before a token was requested: {self.episode.error}")
        return request

    async def answer(self, response: Response) -> Request | None:
        """Pass on what was sampled for the last request; return the next one, or None once the episode has ended."""
        if not self._engine.response.done():  # else the episode was closed meanwhile
            self._engine.response.set_result(response)
        return await self._next()

    async def close(self) -> None:
        """Stop the episode where it is, and close its environment."""
        if self._job is None:
            return
        self._job.cancel()
        await asyncio.gather(self._job, return_exceptions=True)

    async def _next(self) -> Request | None:
        self.request = await self._engine.requests.get()
        if self.request is None and self._job is not None:
            self._job.result()  # raises what the runner raised
        return self.request


class _ExternallyDrivenEngine(Engine):
    def __init__(self) -> None:
        self.requests: asyncio.Queue[Request | None] = asyncio.Queue()
        self.response: asyncio.Future[Response]

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        self.response = asyncio.get_running_loop().create_future()
        self.requests.put_nowait(Request(episode, prompt_ids, max_new_tokens, self.response))
        return await self.response
