"""Rollouts with a generate function that takes a batch.

:class:`GatheringEngine` calls it with whatever requests are waiting, in a thread, while the event loop goes on.

:class:`BatchedRollout` is for a function that only the caller's thread may call. Trainers such as TRL generate in
their main thread. There the runner's event loop runs in a thread of its own, and hands the caller a batch whenever
*every* running episode waits for tokens. So batches are as large as they can be, in the order of the tasks, and the
same in every run:

.. code-block:: python

    with BatchedRollout(tasks, renderer, limits) as rollout:
        while batch := rollout.next_batch():
            rollout.answer(batch, generate([list(request.prompt_ids) for request in batch]))
    episodes = rollout.episodes
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from gem.core import Env
from gem.rollout.engine import Engine, Response
from gem.rollout.episode import Episode
from gem.rollout.limits import Limits
from gem.rollout.rendering import ChatRenderer
from gem.rollout.runner import run_episodes
from gem.tasks import Task


@dataclass
class Request:
    """A generation request of one episode.

    Attributes:
        episode: the number of the task.
        prompt_ids: all that the model sees; to be taken as ``list(prompt_ids)``.
        max_new_tokens: tokens to sample, at most; longer answers are truncated.
    """

    episode: int
    prompt_ids: Sequence[int]
    max_new_tokens: int
    future: asyncio.Future[Response]


class BatchedRollout:
    """Runs the episodes of tasks; a context manager that returns batches of requests until every episode has ended.

    Args:
        tasks: one per episode; all run at the same time.
        renderer: turns observations into ids.
        limits: of turns, tokens and seconds.
        make_env: builds the environment of a task; wrappers go in here.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        renderer: ChatRenderer,
        limits: Limits | None = None,
        make_env: Callable[[Task], Env] = Task.make,
    ) -> None:
        self._batches: queue.SimpleQueue[list[Request]] = queue.SimpleQueue()
        engine = _Barrier(len(tasks), self._batches.put)
        self._run = partial(run_episodes, tasks, engine, renderer, limits, make_env)
        self._exit = ExitStack()

    def __enter__(self) -> BatchedRollout:
        """Start the episodes."""
        self._portal: BlockingPortal = self._exit.enter_context(start_blocking_portal())
        self._episodes: Future[list[Episode]] = self._portal.start_task_soon(self._run)
        self._episodes.add_done_callback(lambda _: self._batches.put([]))
        return self

    def next_batch(self) -> list[Request]:
        """Wait until every running episode waits for tokens, and return the requests; [] once all have ended.

        Raises:
            ValueError, TypeError, ImportError: see :func:`gem.rollout.run_episodes`.
        """
        if self._episodes.done():
            self._episodes.result()
            return []
        batch = self._batches.get()
        if not batch:
            self._episodes.result()  # raises what the runner raised
        return batch

    def answer(self, batch: Sequence[Request], responses: Sequence[Response]) -> None:
        """Return the response to each request."""
        self._portal.call(_set_results, batch, responses)

    @property
    def episodes(self) -> list[Episode]:
        """The episodes, in the order of the tasks, once ``next_batch`` has returned none."""
        return self._episodes.result(timeout=0)

    def __exit__(self, *exc: Any) -> None:
        """End: episodes that are still running are cancelled, and their environments closed."""
        self._episodes.cancel()
        self._exit.__exit__(*exc)


class GatheringEngine(Engine):
    """Answers the requests that are waiting as one batch; those that come meanwhile are the next batch.

    An episode whose environment is slow holds up no other.

    Args:
        generate: returns one response per request; called in a thread, one call at a time.
    """

    def __init__(self, generate: Callable[[list[Request]], Sequence[Response]]) -> None:
        self._generate = generate
        self._waiting: list[Request] = []
        self._serving: asyncio.Task[None] | None = None

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        """Wait for the batch that this request is in."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Request(episode, prompt_ids, max_new_tokens, future))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.ensure_future(self._serve())
        return await future

    async def _serve(self) -> None:
        await asyncio.sleep(0)  # so that requests made in this round of the loop are in this batch too
        while self._waiting:
            batch = [request for request in self._waiting if not request.future.done()]  # the others were cancelled
            self._waiting = []
            if not batch:
                return
            try:
                responses = await anyio.to_thread.run_sync(self._generate, batch)
                _set_results(batch, responses)
            except BaseException as error:
                for request in batch:
                    if not request.future.done():
                        request.future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            await asyncio.sleep(0)  # episodes that got an answer step their environments, and may request again


class _Barrier(Engine):
    """Collects requests until every running episode has one."""

    def __init__(self, running: int, hand_over: Callable[[list[Request]], None]) -> None:
        self._running = running
        self._hand_over = hand_over
        self._waiting: list[Request] = []

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Request(episode, prompt_ids, max_new_tokens, future))
        self._hand_over_if_complete()
        return await future

    def episode_ended(self) -> None:
        self._running -= 1
        self._hand_over_if_complete()

    def _hand_over_if_complete(self) -> None:
        if self._waiting and len(self._waiting) == self._running:
            batch, self._waiting = sorted(self._waiting, key=lambda request: request.episode), []
            self._hand_over(batch)


def _set_results(batch: Sequence[Request], responses: Sequence[Response]) -> None:
    for request, response in zip(batch, responses, strict=True):
        if not request.future.done():
            request.future.set_result(response)
