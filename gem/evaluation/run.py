"""Play the tasks of an evaluation, and keep every episode.

An episode that ended by a failure of the environment, a server or the set-up says nothing about the model: it is played
again, after a pause, and on resumption once more. One that was played to its end is never played again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from gem.evaluation.players import Player
from gem.evaluation.store import Evaluation, Store, Unit
from gem.rollout.episode import Episode
from gem.tasks import Task, check_sandboxed

FIRST_PAUSE = 0.5
"""Seconds before a failed episode is played again; each further pause is twice as long."""

LONGEST_PAUSE = 30.0

OnEpisode = Callable[[Evaluation, Episode], None]


def evaluate(
    tasks: Sequence[Task],
    player: Player,
    out: str | Path,
    samples: int = 1,
    concurrency: int = 64,
    retries: int = 2,
    resume: bool = False,
    token_budget: int | None = None,
    on_episode: OnEpisode | None = None,
) -> Evaluation:
    """Play every task with a player, some at the same time.

    Args:
        tasks: of the ``eval`` or ``test`` split, usually.
        player: who plays; it is closed at the end.
        out: folder for the episodes, see :mod:`gem.evaluation.store`.
        samples: episodes of each task.
        concurrency: episodes at the same time.
        retries: how often an episode is played again that ended by a failure.
        resume: go on with the evaluation in ``out``, if there is one.
        token_budget: begin no further episode when so many tokens were sampled, failed attempts included; those that
            are running are played to their end.
        on_episode: called with each attempt as it ends.

    Returns:
        The evaluation, which may have units without a valid episode: see :attr:`Evaluation.missing`.

    Raises:
        ValueError: a number is out of range, a task is to run code without a sandbox, or ``out`` holds another
            evaluation, or this one and ``resume`` is False.
        ValueError, TypeError, ImportError: see :func:`gem.rollout.run_episodes`.
        FolderInUse: another process writes into ``out``.
    """
    for name, value, least in (("samples", samples, 1), ("concurrency", concurrency, 1), ("retries", retries, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not tasks:
        raise ValueError("there are no tasks")
    for task in tasks:
        check_sandboxed(task)
    store = Store(out, tasks, samples, player.describe(), resume)
    asyncio.run(_play_all(store, player, concurrency, retries, token_budget, on_episode))
    return store.evaluation


async def _play_all(
    store: Store, player: Player, concurrency: int, retries: int, budget: int | None, on_episode: OnEpisode | None
) -> None:
    waiting = iter(store.evaluation.missing)

    async def work() -> None:
        for unit in waiting:
            if budget is not None and store.evaluation.sampled_tokens >= budget:
                return
            await _play_unit(store, player, unit, retries, on_episode)

    workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await player.aclose()


async def _play_unit(store: Store, player: Player, unit: Unit, retries: int, on_episode: OnEpisode | None) -> None:
    evaluation = store.evaluation
    task, sample = unit
    pause = FIRST_PAUSE
    for attempt in range(retries + 1):
        if attempt:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        episode = await player.play(evaluation.tasks[task], task * evaluation.samples + sample)
        store.add(unit, episode)
        if on_episode is not None:
            on_episode(evaluation, episode)
        if episode.valid:
            return
