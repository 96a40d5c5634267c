"""Episodes whose turns somebody else asks for, where a trainer calls ``reset`` and ``step`` from a loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gem.rollout.batching import Request
from gem.rollout.driver import Player
from gem.rollout.engine import Engine, Response
from gem.rollout.episode import Episode
from gem.tasks import Task


class SteppedEpisode:
    """Plays one task, and stops wherever tokens are wanted.

    .. code-block:: python

        stepped = SteppedEpisode(player, task)
        request = await stepped.start()
        while request is not None:
            request = await stepped.answer(await sample(request.prompt_ids, request.max_new_tokens))

    All calls are made in one event loop. Whoever gives up before the end calls :meth:`close`.

    Args:
        player: plays it.
        task: what to play.

    Attributes:
        episode: what has been played so far; after an answer, its last turn has its reward.
        request: what is asked for; None once the episode has ended.
    """

    def __init__(self, player: Player, task: Task) -> None:
        self.episode = Episode(task)
        self.request: Request | None = None
        self._job: asyncio.Future[Episode] | None = None
        self._player = player
        self._door = _Door()

    async def start(self) -> Request:
        """Reset the environment, and return the first request.

        Raises:
            ValueError, TypeError, ImportError: see :func:`gem.rollout.run_episodes`.
            RuntimeError: the context does not hold an empty message.
        """
        play = self._player.play(self.episode.task, self._door, episode=self.episode)
        self._job = asyncio.ensure_future(play)
        self._job.add_done_callback(lambda _: self._door.requests.put_nowait(None))
        request = await self._next()
        if request is None:
            raise RuntimeError(f"the episode ended before a token was asked for: {self.episode.error}")
        return request

    async def answer(self, response: Response) -> Request | None:
        """Give what was sampled for the last request; return the next request, or None once the episode has ended."""
        if not self._door.response.done():  # else the episode was closed meanwhile
            self._door.response.set_result(response)
        return await self._next()

    async def close(self) -> None:
        """Leave the episode where it is, and close its environment."""
        if self._job is None:
            return
        self._job.cancel()
        await asyncio.gather(self._job, return_exceptions=True)

    async def _next(self) -> Request | None:
        self.request = await self._door.requests.get()
        if self.request is None and self._job is not None:
            self._job.result()  # raises what the driver raised
        return self.request


class _Door(Engine):
    """An engine that hands the request out, and waits until an answer is handed in."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Request | None] = asyncio.Queue()
        self.response: asyncio.Future[Response]

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        self.response = asyncio.get_running_loop().create_future()
        self.requests.put_nowait(Request(episode, prompt_ids, max_new_tokens, self.response))
        return await self.response
