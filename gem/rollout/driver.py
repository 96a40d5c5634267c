"""The driver: plays tasks against an engine, any number at once, in one event loop.

What an environment does stays in its own episode: one that raises, hangs past its deadline or returns
nonsense ends that episode (``truncation="error"``), and the others do not notice. If nothing had been
sampled yet, the episode is first begun again, up to ``Limits.retries`` times, in a new environment. A first
observation that does not fit into the context ends its episode as well (``"overlong"``), and so does an
engine that gives up (``"abort"``). Such episodes are not valid (:attr:`Episode.valid`), and adapters leave
them out of what is learned.

What is wrong with the *set-up* (an unknown id, a wrong argument) raises, since every episode would end so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import types
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from gem.core import Env, Info, StepResult, checked_reset, checked_step, observation_text
from gem.envs.registration import ENV_REGISTRY, EnvSpec
from gem.faults import call_unforked, error_message, error_text, excerpt, is_from_user
from gem.rollout.engine import Engine
from gem.rollout.episode import Episode, OnError, Turn, plain_json
from gem.rollout.rendering import ChatRenderer, ObservationRefused
from gem.rollout.tokens import Logprobs, Tokens
from gem.sandbox import SandboxUnavailable
from gem.tasks import Task
from gem.vector.places import EnvFailed, Place, Places

logger = logging.getLogger("gem.rollout")
T = TypeVar("T")

_SETUP_ERRORS = (TypeError, ValueError, ImportError, ModuleNotFoundError, SandboxUnavailable)
"""What building an environment raises when it was asked for wrongly. Exactly these: a subclass, such as the
JSONDecodeError of a server's bad answer, is a failure like any other."""


MAX_ELSEWHERE = 4096
"""Episodes at a time whose environments are in threads, or in other processes; a place that is free costs nothing."""

_PLAIN = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True)
class Limits:
    """What ends an episode from outside.

    Attributes:
        max_turns: turns an episode; None for as many as the environment allows.
        max_new_tokens: tokens sampled a turn, at most.
        max_context: tokens of prompt and answer together; None for no limit.
        max_completion: tokens of an append-only episode after its first prompt; None for no limit.
        step_timeout: seconds that a ``reset`` or a ``step`` of a blocking environment, or of one with coroutines of
            its own, may take; None for no limit.
        max_threads: blocking environments that may be stepped at the same time.
        retries: how often an episode is begun again whose environment fails before the first token is sampled.
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
        """Return how many tokens may be sampled after a prompt, of which the last part is completion already."""
        room = self.max_new_tokens
        if self.max_context is not None:
            room = min(room, self.max_context - prompt_length)
        if self.max_completion is not None:
            room = min(room, self.max_completion - completion_length)
        return room


async def run_episode(
    task: Task,
    engine: Engine,
    renderer: ChatRenderer,
    limits: Limits | None = None,
    make_env: Callable[[Task], Env] = Task.make,
) -> Episode:
    """Play one task; see :func:`run_episodes`."""
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
    """Play tasks, all at once, each in an environment of its own.

    Args:
        tasks: what to play.
        engine: samples the answers.
        renderer: turns observations into ids.
        limits: turns, tokens and seconds.
        make_env: builds a task's environment; wrappers go in here.
        max_concurrent: episodes played at the same time; None for all.
        on_episode: called with each episode as it ends, for progress bars and logs.

    Returns:
        An episode a task, in the order of the tasks.

    Raises:
        ValueError, TypeError, ImportError: a task names an environment or arguments that do not exist.
    """
    player = Player(renderer, limits, make_env)
    gate = asyncio.Semaphore(max_concurrent or max(1, len(tasks)))

    async def play(index: int, task: Task) -> Episode:
        async with gate:
            try:
                episode = await player.play(task, engine, index)
            finally:
                engine.episode_ended()
        if on_episode is not None:
            on_episode(episode)
        return episode

    jobs = [asyncio.ensure_future(play(index, task)) for index, task in enumerate(tasks)]
    try:
        return await asyncio.gather(*jobs)
    except BaseException:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        raise
    finally:
        await player.aclose()


async def run_turns(
    tasks: Iterator[Task],
    min_turns: int,
    engine: Engine,
    player: Player,
    max_concurrent: int,
    on_error: OnError = "mask",
) -> list[Episode]:
    """Play tasks until their episodes have a number of turns, for trainers that learn from turns.

    Every episode that was begun is played to its end, so that the short ones are not preferred. At most
    ``2 * min_turns`` are begun: an environment that always fails would have no end.

    Args:
        tasks: what to play, as many as are needed; not all may be taken.
        min_turns: turns of all episodes together, at least, unless the tasks come to an end, or too many fail.
        engine: samples the answers.
        player: plays the episodes; it is closed.
        max_concurrent: episodes played at the same time.
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
                jobs.append(asyncio.ensure_future(player.play(task, engine, len(jobs))))
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
        await player.aclose()


class EnvironmentFailed(Exception):
    """An environment raised, hung or answered nonsense; ends its episode."""


_Ask = Callable[[Tokens, int], Awaitable[Turn]]
"""Has at most so many tokens sampled after a prompt."""


def overlong(task: Task, prompt_length: int, limits: Limits) -> str:
    """Return what to say of a task whose first prompt leaves no room for an answer."""
    return (
        f"the first observation of {task.env_id} (seed {task.seed}) takes {prompt_length} tokens, and the context "
        f"holds {limits.max_context}. Allow a longer context, or choose an environment with shorter instructions."
    )


class Player:
    """Plays single episodes, for trainers that ask for one at a time; else see :func:`run_episodes`.

    The episodes that one player plays, in one event loop, share its threads.

    Args:
        renderer: turns observations into ids.
        limits: turns, tokens and seconds.
        make_env: builds a task's environment; wrappers go in here.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        limits: Limits | None = None,
        make_env: Callable[[Task], Env] = Task.make,
    ) -> None:
        self.renderer = renderer
        self.limits = limits = limits or Limits()
        self.make_env = make_env
        self._places: dict[tuple[str, asyncio.AbstractEventLoop], Places] = {}

    async def aclose(self) -> None:
        """End the threads and processes of environments; they come back if the player plays again."""
        while self._places:
            (_, loop), places = self._places.popitem()
            if loop is asyncio.get_running_loop():
                await places.aclose()
            else:
                places.close()

    async def build(self, task: Task) -> None:
        """Build a task's environment and close it, to see what is wrong with the set-up. One that fails is logged.

        Raises:
            ValueError, TypeError, ImportError: see :func:`run_episodes`.
        """
        try:
            _, close = await self._make(task)
        except EnvironmentFailed as failure:
            logger.warning("environment error in %s: %s", task, failure)
        else:
            await close()

    async def play(self, task: Task, engine: Engine, number: int = 0, episode: Episode | None = None) -> Episode:
        """Play a task.

        Args:
            task: what to play.
            engine: samples the answers.
            number: the episode's number, which the engine is told.
            episode: of this task, without turns; it is filled, for those who look at it meanwhile.

        Raises:
            ValueError, TypeError, ImportError: see :func:`run_episodes`.
        """
        episode = Episode(task) if episode is None else episode
        episode.started = time.time()
        ask = partial(self._answer, episode, engine, number)
        try:
            await self._attempts(ask, episode)
            if episode.truncation in ("error", "overlong") and not episode.turns:
                await self._ask_for_one_token(ask)
        finally:
            episode.ended = time.time()
        return episode

    async def _attempts(self, ask: _Ask, episode: Episode) -> None:
        """Play an episode; begin again while its environment fails before the first token is sampled."""
        while True:
            try:
                return await self._attempt(ask, episode)
            except EnvironmentFailed as failure:
                logger.warning("environment error in %s: %s", episode.task, failure)
                if episode.turns or episode.retries == self.limits.retries:
                    episode.truncation, episode.error = "error", str(failure)
                    return
            episode.retries += 1
            logger.warning("beginning %s again (%d of %d)", episode.task, episode.retries, self.limits.retries)

    async def _attempt(self, ask: _Ask, episode: Episode) -> None:
        """Play an episode in a new environment.

        Raises:
            EnvironmentFailed: the environment failed.
        """
        env, close = await self._make(episode.task)
        try:
            seed = episode.task.reset_seed
            episode.first_observation = await self._call(env, _checked_reset, "reset", seed=seed)
            await self._play_turns(ask, episode, env)
        finally:
            await close()

    async def _ask_for_one_token(self, ask: _Ask) -> None:
        """Have a token sampled on an empty message: most trainers need a row an episode, if only to leave it out."""
        try:
            prompt_ids = Tokens(await _rendered(self.renderer.first, ""))
        except EnvironmentFailed:  # the template refuses an empty message: then there is no row
            return
        if self.limits.room(len(prompt_ids)) > 0:
            await ask(prompt_ids, 1)

    async def _play_turns(self, ask: _Ask, episode: Episode, env: Any) -> None:
        prompt_ids = await self._first_prompt(env, episode.first_observation)
        before = len(prompt_ids)  # tokens that are not completion
        while True:
            room = self.limits.room(len(prompt_ids), len(prompt_ids) - before)
            if room < 1:
                episode.truncation = "context" if episode.turns else "overlong"
                if not episode.turns:
                    episode.error = overlong(episode.task, len(prompt_ids), self.limits)
                    logger.warning("%s", episode.error)
                return
            turn = await ask(prompt_ids, room)
            if turn.finish_reason == "abort":
                episode.truncation = "abort"
                return
            result = await self._call(env, _checked_step, "step", turn.action)
            text, turn.reward, turn.terminated, turn.truncated, turn.info = result
            turn.observation = text
            if turn.terminated:
                return
            if turn.truncated or len(episode.turns) == self.limits.max_turns:
                episode.truncation = "turns"
                return
            if _form(env) == "message":
                role = self.renderer.role_of(turn.info)
                bridge_to = partial(self.renderer.bridge, turn.response_ids, role=role, first=episode.first_observation)
                bridge = await _rendered(bridge_to, text)
                prompt_ids = prompt_ids.extended(turn.response_ids).extended(bridge)
            else:
                prompt_ids = await self._first_prompt(env, text)
                before = len(prompt_ids)

    async def _answer(
        self, episode: Episode, engine: Engine, number: int, prompt_ids: Tokens, max_new_tokens: int
    ) -> Turn:
        token_ids, logprobs, finish_reason = await engine.generate(prompt_ids, max_new_tokens, episode=number)
        ids = [int(token) for token in token_ids]
        if logprobs is not None and len(logprobs) != len(ids):
            raise RuntimeError(f"{type(engine).__name__} gave {len(logprobs)} logprobs for {len(ids)} tokens")
        if not ids:  # whatever the reason, there is nothing to give to the environment, or to learn from
            finish_reason = "abort"
        if len(ids) > max_new_tokens:  # a batch is generated with the limit of one for all
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

    async def _first_prompt(self, env: Env, text: str) -> Tokens:
        render = self.renderer.encode if _form(env) == "prompt" else self.renderer.first
        return Tokens(await _rendered(render, text))

    async def _make(self, task: Task) -> tuple[Any, Callable[[], Awaitable[None]]]:
        """Return an environment, and what closes it."""
        spec = ENV_REGISTRY.get(task.env_id)
        kind = None if spec is None else spec.load()
        build = partial(self.make_env, task)
        if spec is not None and getattr(kind, "cpu_bound", False):
            place, form = await self._open("process", partial(_build_registered, spec, self.make_env, task))
            return _Elsewhere(place, form), partial(_leave, place)
        if not getattr(kind, "blocking", True):
            env = _guarded(build, _SETUP_ERRORS)
            if not _blocks(env):
                return env, partial(_close, env, task)
            build = partial(_itself, env)
        place, form = await self._open("thread", build)
        try:
            return _Elsewhere(place, form) if _blocks(place.env) else place.env, partial(_leave, place)
        except EnvironmentFailed:
            place.leave()
            raise

    async def _open(self, backend: str, build: Callable[[], Env]) -> tuple[Place, str]:
        """Build an environment where it holds up nobody; return its place, and the form of its observations."""
        try:
            place = await self._places_of(backend).open(build)
            try:
                return place, await place.get("observation_form")
            except BaseException:
                place.leave()
                raise
        except Exception as error:
            if type(error) in _SETUP_ERRORS:
                raise
            raise _failed(error) from error

    def _places_of(self, backend: str) -> Places:
        loop = asyncio.get_running_loop()
        if (backend, loop) not in self._places:
            for key in [key for key in self._places if key[1].is_closed()]:
                self._places.pop(key).close()
            options = {"workers": self.limits.max_threads} if backend == "thread" else {}
            places = Places(backend, MAX_ELSEWHERE, timeout=self.limits.step_timeout, **options)
            self._places[backend, loop] = places
        return self._places[backend, loop]

    async def _call(self, env: Any, check: Callable[[Any, Any], T], method: str, *args: Any, **kwargs: Any) -> T:
        """Call an environment's method, or await the coroutine that does the same, and check what it returns."""
        if not _guarded(lambda: env.asynchronous):
            return _guarded(lambda: check(env, getattr(env, method)(*args, **kwargs)))
        if isinstance(env, _Elsewhere):  # where the deadline is kept
            try:
                result = await getattr(env, f"{method}_async")(*args, **kwargs)
            except Exception as error:
                raise _failed(error) from error
        else:
            result = await self._awaited(lambda: getattr(env, f"{method}_async")(*args, **kwargs))
        return _guarded(lambda: check(env, result))

    async def _awaited(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await an environment's coroutine; one that is not back by the deadline is cancelled, and left alone."""
        job = asyncio.ensure_future(_contained(function))
        job.add_done_callback(lambda job: job.cancelled() or job.exception())  # also when nobody asks for it any more
        try:
            await asyncio.wait([job], timeout=self.limits.step_timeout)
        finally:
            job.cancel()  # which does nothing to one that has ended
        if not job.done():
            raise EnvironmentFailed(f"no answer within {self.limits.step_timeout} s")
        return _guarded(job.result)


@lru_cache(maxsize=32)
def shared_player(renderer: ChatRenderer, limits: Limits, make_env: Callable[[Task], Env] = Task.make) -> Player:
    """Return the player for these arguments, the same one every time, so that all episodes share its threads."""
    return Player(renderer, limits, make_env)


def _build_registered(spec: EnvSpec, make_env: Callable[[Task], Env], task: Task) -> Env:
    """Build an environment in a process that may not know it yet."""
    ENV_REGISTRY.setdefault(task.env_id, spec)
    return make_env(task)


class _Elsewhere:
    """An environment in a thread or another process, as the driver sees it."""

    asynchronous = True

    def __init__(self, place: Place, observation_form: str) -> None:
        self.reset_async, self.step_async = place.reset, place.step
        self.observation_form = observation_form


def _itself(env: Env) -> Env:
    return env


def _failed(error: BaseException) -> EnvironmentFailed:
    return EnvironmentFailed(error_message(error) if isinstance(error, EnvFailed) else error_text(error))


def _form(env: Any) -> str:
    """Return the form of an environment's observations."""
    form = _guarded(lambda: env.observation_form)
    if type(form) is str:
        return form
    raise EnvironmentFailed(f"its observation_form is {excerpt(form)}, not a str")


def _blocks(env: Any) -> bool:
    """Return whether an environment would hold up the event loop."""
    return _guarded(lambda: bool(env.blocking and not env.asynchronous))


async def _contained(function: Callable[[], Awaitable[T]]) -> T:
    """Await what a function returns; raise :class:`EnvironmentFailed` for what it raises.

    No task of asyncio may end with it: SystemExit would end the event loop, and asyncio computes an exception's repr.
    """
    try:
        return await _unforked(function)
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        if is_from_user(error):
            raise
        raise _failed(error) from error


@types.coroutine
def _unforked(function: Callable[[], Awaitable[T]]) -> Generator[Any, Any, T]:
    """Await what a function returns, in this process only: a forked child would go on with the event loop."""
    steps: Any = call_unforked(function).__await__()
    send: Any = steps.__next__
    value: tuple[Any, ...] = ()
    while True:
        try:
            awaited = call_unforked(send, *value)
        except StopIteration as end:
            return end.value
        try:
            send, value = steps.send, ((yield awaited),)
        except BaseException as error:  # noqa: BLE001 (it belongs into the coroutine)
            send, value = steps.throw, (error,)


_LONG_TEXT = 20_000
"""Characters from which on a text is put into tokens outside the event loop: megabytes take seconds."""


async def _rendered(render: Callable[[str], list[int]], text: str) -> list[int]:
    try:
        if len(text) < _LONG_TEXT:
            return render(text)
        return await anyio.to_thread.run_sync(render, text)
    except ObservationRefused as error:
        raise _failed(error) from error


async def _leave(place: Place) -> None:
    """Have an environment closed, and wait for that unless it is busy: that is, when the episode was cancelled."""
    if place.is_busy:
        place.leave()
    else:
        await place.close()


async def _close(env: Env, task: Task) -> None:
    try:
        _guarded(lambda: env.close())
    except EnvironmentFailed as failure:
        logger.warning("closing the environment of %s: %s", task, failure)


def _guarded(function: Callable[[], T], set_up: tuple[type[Exception], ...] = ()) -> T:
    """Call what belongs to an environment: whatever it raises is the affair of its own episode."""
    try:
        return call_unforked(function)
    except EnvironmentFailed:
        raise
    except BaseException as error:  # SystemExit and CancelledError too
        if is_from_user(error) or type(error) in set_up:
            raise
        raise _failed(error) from error


def _checked_reset(env: Env, result: Any) -> str:
    observation, info = checked_reset(env, result)
    return _seen(env, observation, _json(info))


def _checked_step(env: Env, result: Any) -> StepResult:
    observation, reward, terminated, truncated, info = checked_step(env, result)
    info = _json(info)
    return _seen(env, observation, info), reward, terminated, truncated, info


def _json(info: Info) -> Info:
    """Return an info as an episode's JSON line gives it back."""
    if all(type(key) is str and type(value) in _PLAIN for key, value in info.items()):
        return dict(info)  # a round trip would give the same, for more than the rest of the turn costs
    return json.loads(json.dumps(info, default=plain_json))


def _seen(env: Env, observation: str, info: Info) -> str:
    text = observation_text(env, observation, info)
    text.encode()  # a lone surrogate has no tokens
    return text
