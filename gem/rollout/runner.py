"""The runner: runs rollouts of tasks with an engine, any number at once, in one event loop.

One episode goes like this (:meth:`EpisodeRunner.run`):

1. The environment of the task is built where it is to run (:mod:`gem.rollout.execution`), and reset with its seed.
2. The renderer turns the first observation into the ids of a prompt.
3. The engine samples a turn. What was sampled stays as it is: it is never decoded and encoded again.
4. The text of the answer is the action of ``step``. Reward, flags and info belong to this turn.
5. The next prompt is the last prompt, what was sampled, and the *bridge*: the ids that the chat template puts between
   the end of an answer and the start of the next one, with the observation in them. (An environment whose observations
   are whole prompts gets a fresh prompt instead.)
6. It ends when the environment terminates or truncates it, or when a limit is reached.

A failure stays in its own episode: an environment that raises, hangs past its deadline or returns something else than
the contract allows ends that episode with ``truncation="error"``. If no token had been sampled yet, the episode is
started again in a new environment, up to ``Limits.retries`` times. A first observation that does not fit into the
context ends its episode as well (``"overlong"``), and so does an engine that gives up (``"abort"``). Such episodes are
not valid (:attr:`Episode.valid`), and adapters leave them out of what is learned.

What is wrong with the set-up (an unknown id, a wrong argument) is raised, since every episode would end with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import lru_cache, partial

import anyio
import anyio.to_thread

from gem.core import Env
from gem.faults import EnvironmentFailed, error_text, raised_at
from gem.rollout.engine import Engine
from gem.rollout.episode import Episode, OnError, Turn
from gem.rollout.execution import EnvExecution, RunningEnv
from gem.rollout.limits import Limits
from gem.rollout.rendering import ChatRenderer, ObservationRefused
from gem.rollout.tokens import Logprobs, Tokens
from gem.tasks import Task

logger = logging.getLogger("gem.rollout")

_Sample = Callable[[Tokens, int], Awaitable[Turn]]
"""Samples a turn after a prompt: at most so many tokens."""

_LONG_TEXT = 20_000
"""Characters from which on a text is put into tokens outside the event loop: megabytes take seconds."""


async def run_episode(
    task: Task,
    engine: Engine,
    renderer: ChatRenderer,
    limits: Limits | None = None,
    make_env: Callable[[Task], Env] = Task.make,
) -> Episode:
    """Run the episode of one task; see :func:`run_episodes`."""
    return (await run_episodes([task], engine, renderer, limits, make_env))[0]


async def run_episodes(
    tasks: Sequence[Task],
    engine: Engine,
    renderer: ChatRenderer,
    limits: Limits | None = None,
    make_env: Callable[[Task], Env] = Task.make,
    max_concurrent: int | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Run the episodes of tasks concurrently, each in an environment of its own.

    Args:
        tasks: one per episode.
        engine: samples the answers.
        renderer: turns observations into ids.
        limits: of turns, tokens and seconds.
        make_env: builds the environment of a task; wrappers go in here.
        max_concurrent: episodes that run at the same time; None for all.
        on_episode: called with each episode as it ends, for progress bars and logs.

    Returns:
        One episode per task, in the order of the tasks.

    Raises:
        ValueError, TypeError, ImportError: a task names an environment or arguments that do not exist.
    """
    runner = EpisodeRunner(renderer, limits, make_env)
    gate = asyncio.Semaphore(max_concurrent or max(1, len(tasks)))

    async def run(index: int, task: Task) -> Episode:
        async with gate:
            try:
                episode = await runner.run(task, engine, index)
            finally:
                engine.episode_ended()
        if on_episode is not None:
            on_episode(episode)
        return episode

    jobs = [asyncio.ensure_future(run(index, task)) for index, task in enumerate(tasks)]
    try:
        return await asyncio.gather(*jobs)
    except BaseException:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        raise
    finally:
        await runner.aclose()


async def run_turns(
    tasks: Iterator[Task],
    min_turns: int,
    engine: Engine,
    runner: EpisodeRunner,
    max_concurrent: int,
    on_error: OnError = "mask",
) -> list[Episode]:
    """Run episodes until they have a number of turns together, for trainers that learn from turns.

    Every episode that was started is run to its end, so that short ones are not preferred. At most ``2 * min_turns``
    are started: an environment that always fails would never reach the number.

    Args:
        tasks: one per episode, as many as are needed; not all may be taken.
        min_turns: turns of all episodes together, at least, unless the tasks come to an end, or too many fail.
        engine: samples the answers.
        runner: runs the episodes; it is closed afterwards.
        max_concurrent: episodes that run at the same time.
        on_error: with ``"mask"``, turns of invalid episodes are returned, and not counted.

    Returns:
        The episodes, in the order of the tasks.

    Raises:
        ValueError, TypeError, ImportError: see :func:`run_episodes`.
    """
    jobs: list[asyncio.Task[Episode]] = []
    running: set[asyncio.Task[Episode]] = set()
    turns = 0
    try:
        while True:
            while len(running) < max_concurrent and turns + len(running) < min_turns and len(jobs) < 2 * min_turns:
                task = next(tasks, None)
                if task is None:
                    break
                jobs.append(asyncio.ensure_future(runner.run(task, engine, len(jobs))))
                running.add(jobs[-1])
            if not running:
                return [job.result() for job in jobs]
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            ended = [job.result() for job in done]
            turns += sum(len(episode.turns) for episode in ended if episode.valid or on_error == "keep")
    finally:
        for job in running:
            job.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await runner.aclose()


def overlong_message(task: Task, prompt_length: int, limits: Limits) -> str:
    """Return the error of a task whose first prompt leaves no room for an answer."""
    return (
        f"the first observation of {task.env_id} (seed {task.seed}) takes {prompt_length} tokens, and the context "
        f"holds {limits.max_context}. Allow a longer context, or choose an environment with shorter instructions."
    )


class EpisodeRunner:
    """Runs single episodes, for trainers that request one at a time; else see :func:`run_episodes`.

    Episodes of the same runner in the same event loop share its threads and processes.

    Args:
        renderer: turns observations into ids.
        limits: of turns, tokens and seconds.
        make_env: builds the environment of a task; wrappers go in here.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        limits: Limits | None = None,
        make_env: Callable[[Task], Env] = Task.make,
    ) -> None:
        self.renderer = renderer
        self.limits = limits or Limits()
        self._execution = EnvExecution(make_env, self.limits)

    async def aclose(self) -> None:
        """End the threads and processes of environments; they are started again with the next episode."""
        await self._execution.aclose()

    async def check_setup(self, task: Task) -> None:
        """Build the environment of a task and close it. One that fails is logged.

        Raises:
            ValueError, TypeError, ImportError: see :func:`run_episodes`.
        """
        try:
            env = await self._execution.open(task)
        except EnvironmentFailed as failure:
            _log_failure(task, failure)
        else:
            await env.close()

    async def run(self, task: Task, engine: Engine, number: int = 0, episode: Episode | None = None) -> Episode:
        """Run the episode of a task.

        Args:
            task: which episode.
            engine: samples the answers.
            number: passed to the engine with every request of this episode.
            episode: of this task, without turns; it is filled turn by turn, for those who read it meanwhile.

        Raises:
            ValueError, TypeError, ImportError: see :func:`run_episodes`.
        """
        episode = Episode(task) if episode is None else episode
        episode.started = time.time()
        sample = partial(self._sample, episode, engine, number)
        try:
            await self._run_with_retries(sample, episode)
            if episode.truncation in ("error", "overlong") and not episode.turns:
                await self._sample_one_token(sample)
        finally:
            episode.ended = time.time()
        return episode

    async def _run_with_retries(self, sample: _Sample, episode: Episode) -> None:
        """Run an episode; start it again while its environment fails before the first token is sampled.

        Later than that it is not repeated: the tokens were sampled, and a second try would be another sample.
        """
        while True:
            try:
                return await self._run_once(sample, episode)
            except EnvironmentFailed as failure:
                _log_failure(episode.task, failure)
                if episode.turns or episode.retries == self.limits.retries:
                    episode.truncation, episode.error = "error", str(failure)
                    return
            episode.retries += 1
            logger.warning("starting %s again (%d of %d)", episode.task, episode.retries, self.limits.retries)

    async def _run_once(self, sample: _Sample, episode: Episode) -> None:
        """Run an episode in a new environment.

        Raises:
            EnvironmentFailed: the environment failed.
        """
        env = await self._execution.open(episode.task)
        try:
            episode.first_observation = await env.reset(episode.task.reset_seed)
            await self._run_turns(sample, episode, env)
        finally:
            await env.close()

    async def _run_turns(self, sample: _Sample, episode: Episode, env: RunningEnv) -> None:
        prompt_ids = await self._fresh_prompt(env, episode.first_observation)
        prompt_length = len(prompt_ids)  # what follows is completion
        while True:
            room = self.limits.room(len(prompt_ids), len(prompt_ids) - prompt_length)
            if room < 1:
                episode.truncation = "context" if episode.turns else "overlong"
                if not episode.turns:
                    episode.error = overlong_message(episode.task, len(prompt_ids), self.limits)
                    logger.warning("%s", episode.error)
                return
            turn = await sample(prompt_ids, room)
            if turn.finish_reason == "abort":
                episode.truncation = "abort"
                return
            result = await env.step(turn.action)
            turn.observation, turn.reward, turn.terminated, turn.truncated, turn.info = result
            if turn.terminated:
                return
            if turn.truncated or len(episode.turns) == self.limits.max_turns:
                episode.truncation = "turns"
                return
            if env.observation_form == "message":
                bridge = await self._bridge(episode, turn)
                prompt_ids = prompt_ids.extended(turn.response_ids).extended(bridge)
            else:  # the observation is all that the next prompt has: nothing of this one is left in it
                prompt_ids = await self._fresh_prompt(env, turn.observation)
                prompt_length = len(prompt_ids)

    async def _fresh_prompt(self, env: RunningEnv, text: str) -> Tokens:
        render = self.renderer.encode if env.observation_form == "prompt" else self.renderer.first
        return Tokens(await _render(render, text))

    async def _bridge(self, episode: Episode, turn: Turn) -> list[int]:
        role, first = self.renderer.role_of(turn.info), episode.first_observation
        return await _render(partial(self.renderer.bridge, turn.response_ids, role=role, first=first), turn.observation)

    async def _sample(
        self, episode: Episode, engine: Engine, number: int, prompt_ids: Tokens, max_new_tokens: int
    ) -> Turn:
        """Have the engine sample a turn, and add it to the episode unless it is empty."""
        token_ids, logprobs, finish_reason = await engine.generate(prompt_ids, max_new_tokens, episode=number)
        ids = [int(token) for token in token_ids]
        if logprobs is not None and len(logprobs) != len(ids):
            raise RuntimeError(f"{type(engine).__name__} returned {len(logprobs)} logprobs for {len(ids)} tokens")
        if not ids:  # whatever the reason, there is nothing to pass to the environment, or to learn from
            finish_reason = "abort"
        if len(ids) > max_new_tokens:  # a batch is generated with one limit for all
            ids, finish_reason = ids[:max_new_tokens], "length"
        answer = self.renderer.parse(ids, prompt_ids)
        turn = Turn(
            prompt_ids,
            prompt_ids.extended(ids).part(len(prompt_ids)),
            None if logprobs is None else Logprobs(logprobs[: len(ids)]),
            finish_reason,
            answer.action,
            full_text=answer.full_text,
        )
        if ids:
            episode.turns.append(turn)
        return turn

    async def _sample_one_token(self, sample: _Sample) -> None:
        """Have one token sampled after an empty message, for an episode that failed before its first turn.

        Most trainers need a row for every episode, if only to mask it.
        """
        try:
            prompt_ids = Tokens(await _render(self.renderer.first, ""))
        except EnvironmentFailed:  # the template refuses an empty message: then there is no row
            return
        if self.limits.room(len(prompt_ids)) > 0:
            await sample(prompt_ids, 1)


@lru_cache(maxsize=32)
def shared_runner(renderer: ChatRenderer, limits: Limits, make_env: Callable[[Task], Env] = Task.make) -> EpisodeRunner:
    """Return the runner for these arguments, the same one every time, so that all episodes share its threads."""
    return EpisodeRunner(renderer, limits, make_env)


async def _render(render: Callable[[str], list[int]], text: str) -> list[int]:
    try:
        if len(text) < _LONG_TEXT:
            return render(text)
        return await anyio.to_thread.run_sync(render, text)
    except ObservationRefused as error:
        raise EnvironmentFailed(error_text(error)) from error


def _log_failure(task: Task, failure: EnvironmentFailed) -> None:
    where = raised_at(failure)
    logger.warning("environment error in %s: %s%s", task, failure, f" ({where})" if failure.__cause__ and where else "")
