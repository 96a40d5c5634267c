"""Before training: can the environments of these tasks be built and reset, and do their first prompts fit?

A wrong id or argument among good ones, or a prompt that is too long, would otherwise show in the middle of a run; an
environment that does not draw from its own generator would never show. No token is sampled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from anyio.from_thread import start_blocking_portal

from gem.core import Env
from gem.rollout.engine import Engine, Response
from gem.rollout.limits import Limits
from gem.rollout.rendering import ChatRenderer
from gem.rollout.runner import EpisodeRunner, overlong_message, run_episodes
from gem.seeds import IRREPRODUCIBLE
from gem.tasks import Task, check_sandboxed

logger = logging.getLogger("gem.rollout")
T = TypeVar("T")


class ContextTooSmall(ValueError):
    """No first observation of an environment leaves room for an answer.

    Args:
        task: that with the longest prompt.
        prompt_length: tokens of its first prompt.
        limits: what it does not fit into.
    """

    def __init__(self, task: Task, prompt_length: int, limits: Limits) -> None:
        super().__init__(task, prompt_length, limits)  # with which it is pickled
        self.task, self.prompt_length, self.limits = task, prompt_length, limits

    def __str__(self) -> str:
        return overlong_message(self.task, self.prompt_length, self.limits)


def check_tasks(
    tasks: Sequence[Task],
    renderer: ChatRenderer,
    limits: Limits | None = None,
    make_env: Callable[[Task], Env] = Task.make,
    begin: int = 64,
) -> None:
    """Check tasks before training; every adapter does so once.

    One environment is built for every distinct pair of id and arguments. Some are reset, and their first prompts
    measured. Environments that fail are logged: the failure may be gone when training begins. So are those that begin
    otherwise when they are reset with the same seed again.

    Args:
        tasks: of the whole training.
        renderer: turns observations into ids.
        limits: those of the training.
        make_env: builds the environment of a task.
        begin: environments to reset at most, spread evenly over the ids and arguments.

    Raises:
        ContextTooSmall: no task of an environment id that was tried fits.
        ValueError, TypeError, ImportError: see :func:`gem.rollout.run_episodes`.
        ValueError: a task is to run code without a sandbox: see :func:`gem.tasks.check_sandboxed`.
    """
    limits = limits or Limits()
    setups: dict[str, list[Task]] = {}
    for task in tasks:
        setups.setdefault(json.dumps([task.env_id, task.env_kwargs], sort_keys=True), []).append(task)
    for setup in setups.values():
        check_sandboxed(setup[0])  # which a make_env of the user's may not
    some = dict(_spread(list(setups.items()), begin))
    to_begin = [task for setup in some.values() for task in _spread(setup, max(1, begin // len(setups)))]
    to_build = [setup[0] for name, setup in setups.items() if name not in some]
    with start_blocking_portal() as portal:  # an event loop of its own: the caller may be in another one
        portal.call(_build, to_build, EpisodeRunner(renderer, limits, make_env))
        again = [setup[0] for setup in some.values()]
        prompts = portal.call(_first_prompts, [*to_begin, *again], renderer, limits, make_env)
    _warn_of_irreproducible(to_begin, again, prompts)
    measured = [(task, prompt.length) for task, prompt in zip(to_begin, prompts, strict=False) if prompt is not None]
    too_long = [(task, length) for task, length in measured if limits.room(length) < 1]
    fitting = {task.env_id for task, length in measured if limits.room(length) >= 1}
    for task, length in sorted(too_long, key=lambda pair: -pair[1]):
        if task.env_id not in fitting:
            raise ContextTooSmall(task, length, limits)
    if too_long:
        logger.warning(
            "%d of %d tasks that were tried are too long for the context of %d tokens: "
            "gem.rollout.drop_overlong leaves such tasks out",
            *(len(too_long), len(measured), limits.max_context),
        )


def drop_overlong(
    tasks: Sequence[Task],
    renderer: ChatRenderer,
    limits: Limits,
    make_env: Callable[[Task], Env] = Task.make,
) -> list[Task]:
    """Return the tasks whose first prompt leaves room for an answer, and print how many do not; all are reset.

    Tasks whose environment fails are kept, since the length of their prompt is unknown.

    Args:
        tasks: of the training.
        renderer: turns observations into ids.
        limits: those of the training.
        make_env: builds the environment of a task.

    Raises:
        ContextTooSmall: no task fits.
        ValueError, TypeError, ImportError: see :func:`gem.rollout.run_episodes`.
    """
    with start_blocking_portal() as portal:
        prompts = portal.call(_first_prompts, tasks, renderer, limits, make_env)
    too_long = {i: p.length for i, p in enumerate(prompts) if p is not None and limits.room(p.length) < 1}
    print(f"{len(too_long)} of {len(tasks)} tasks dropped: their first observation does not fit into the context")
    if len(too_long) == len(tasks) > 0:
        longest = max(too_long, key=too_long.__getitem__)
        raise ContextTooSmall(tasks[longest], too_long[longest], limits)
    return [task for i, task in enumerate(tasks) if i not in too_long]


def _spread(items: Sequence[T], count: int) -> Sequence[T]:
    """Return at most ``count`` of the items, evenly spread."""
    return items[:: max(1, -(-len(items) // count))]


async def _build(tasks: Sequence[Task], runner: EpisodeRunner) -> None:
    try:
        for task in tasks:
            await runner.check_setup(task)
    finally:
        await runner.aclose()


class _Prompt(NamedTuple):
    length: int  # tokens
    fingerprint: int


async def _first_prompts(
    tasks: Sequence[Task], renderer: ChatRenderer, limits: Limits, make_env: Callable[[Task], Env]
) -> list[_Prompt | None]:
    """Return the first prompt of each task; None if its environment failed."""
    engine = _NoEngine()
    limits = replace(limits, max_context=None, retries=0)
    episodes = await run_episodes(tasks, engine, renderer, limits, make_env, max_concurrent=limits.max_threads)
    return [None if e.truncation == "error" else engine.prompts[i] for i, e in enumerate(episodes)]


def _warn_of_irreproducible(tasks: Sequence[Task], again: Sequence[Task], prompts: Sequence[_Prompt | None]) -> None:
    """Compare the prompts of the tasks with those of the ones that were begun again, which follow them."""
    for task, second in zip(again, prompts[len(tasks) :], strict=True):
        first = prompts[next(i for i, each in enumerate(tasks) if each is task)]
        if first is not None and second is not None and first != second:
            logger.warning(IRREPRODUCIBLE, task.env_id)


class _NoEngine(Engine):
    """Records the prompts, and samples nothing."""

    def __init__(self) -> None:
        self.prompts: dict[int, _Prompt] = {}

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        self.prompts[episode] = _Prompt(len(prompt_ids), hash(tuple(prompt_ids)))
        return Response([], None, "abort")
