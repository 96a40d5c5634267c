"""Run the episodes of an evaluation, and keep every one.

An episode that ended by a failure of the environment, a server or the set-up is no result of the model: it is run
again, after a pause, and on resumption once more. One that has reached its end is never run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from gem.evaluation.agents import Agent, Misconfigured
from gem.evaluation.budget import Budget
from gem.evaluation.store import Evaluation, Store, Unit
from gem.rollout.episode import Episode
from gem.tasks import Task, check_sandboxed

FIRST_PAUSE = 0.5
"""Seconds before a failed episode is run again; each further pause is twice as long."""

LONGEST_PAUSE = 30.0

OnEpisode = Callable[[Evaluation, Episode], None]


def evaluate(
    tasks: Sequence[Task],
    agent: Agent,
    out: str | Path,
    samples: int = 1,
    concurrency: int = 64,
    retries: int = 2,
    resume: bool = False,
    budget: Budget | None = None,
    on_episode: OnEpisode | None = None,
) -> Evaluation:
    """Run episodes of every task with an agent, some at the same time.

    Args:
        tasks: of the ``eval`` or ``test`` split, usually.
        agent: acts in them; it is closed at the end.
        out: folder for the episodes, see :mod:`gem.evaluation.store`.
        samples: episodes of each task.
        concurrency: episodes at the same time.
        retries: how often an episode that a failure has ended is run again.
        resume: go on with the evaluation in ``out``, if there is one.
        budget: begin no further episode when it is spent, failed attempts included; those that are running go on to
            their end.
        on_episode: called with each attempt as it ends.

    Returns:
        The evaluation, which may have units without a valid episode: see :attr:`Evaluation.missing`.

    Raises:
        ValueError: a number is out of range, a task is to run code without a sandbox, or ``out`` holds another
            evaluation, or this one and ``resume`` is False.
        Misconfigured: every episode would fail, or there is a budget and the agent counts no tokens.
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
    store = Store(out, tasks, samples, agent.describe(), resume)
    asyncio.run(_run_all(store, agent, concurrency, retries, budget, on_episode))
    return store.evaluation


async def _run_all(
    store: Store, agent: Agent, concurrency: int, retries: int, budget: Budget | None, on_episode: OnEpisode | None
) -> None:
    waiting = iter(store.evaluation.missing)

    async def work() -> None:
        for unit in waiting:
            if budget is not None and budget.is_spent(store.evaluation):
                return
            await _run_unit(store, agent, unit, retries, budget, on_episode)

    workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await agent.aclose()


async def _run_unit(
    store: Store, agent: Agent, unit: Unit, retries: int, budget: Budget | None, on_episode: OnEpisode | None
) -> None:
    evaluation = store.evaluation
    task, sample = unit
    pause = FIRST_PAUSE
    for attempt in range(retries + 1):
        if attempt:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        episode = await agent.run_episode(evaluation.tasks[task], task * evaluation.samples + sample)
        store.add(unit, episode)
        if budget is not None and episode.turns and not agent.is_exact and episode.counted is None:
            raise Misconfigured(f"{agent.name} counts no tokens, so a budget cannot be kept")
        if on_episode is not None:
            on_episode(evaluation, episode)
        if episode.valid:
            return
