"""What acts in the episodes of an evaluation.

A :class:`TokenAgent` has an engine: its prompts and what it samples are token ids, exactly. A :class:`TextAgent` (all
others) is a function of messages, and its episodes hold text alone.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import hashlib
import importlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from gem.core import Env
from gem.faults import EnvironmentFailed
from gem.rollout.engine import Engine
from gem.rollout.episode import Episode, Turn
from gem.rollout.execution import EnvExecution
from gem.rollout.limits import Limits
from gem.rollout.rendering import ChatRenderer
from gem.rollout.runner import EpisodeRunner
from gem.tasks import Task

ANSWER_SECONDS = 300.0
"""What a function may take for an answer, by default; then the episode has failed."""

CHOSEN = "gem_chosen_action"
"""Name in an info of the action that a wrapper has taken instead of the agent's."""

MakeEnv = Callable[[Task], Env]
Message = dict[str, str]
"""``role`` (``user``, ``tool`` or ``assistant``) and ``content``."""


class AgentFailed(RuntimeError):
    """The agent could not answer, since its server is down, say: this is not a mistake of the model."""


class ContextFull(AgentFailed):
    """The conversation is longer than the model's context: the episode ends, as at any limit."""


class Misconfigured(ValueError):
    """Every episode would fail: an unknown model, say, or a wrong key."""


class Answer(NamedTuple):
    """A text, and the tokens that a server has counted for it.

    Attributes:
        text: the action.
        prompt_tokens: of the request.
        sampled_tokens: of the answer.
    """

    text: str
    prompt_tokens: int
    sampled_tokens: int


class Agent(abc.ABC):
    """Runs episodes, any number at once in one event loop.

    Attributes:
        name: for people.
        is_exact: whether its episodes hold the token ids that were sampled.
    """

    name = "agent"
    is_exact = False

    @abc.abstractmethod
    async def run_episode(self, task: Task, number: int) -> Episode:
        """Run an episode of a task.

        Args:
            task: which.
            number: of the episode in this evaluation, the same in every attempt: it seeds what is sampled.

        Raises:
            ValueError, TypeError, ImportError: the task names an environment or arguments that do not exist.
            Misconfigured: every episode would fail.
        """

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records of the agent, as JSON data."""
        return {"name": self.name, "exact_tokens": self.is_exact}

    async def aclose(self) -> None:
        """Release what the agent holds."""
        return None


class TokenAgent(Agent):
    """An engine that samples token ids.

    Args:
        name: for people.
        engine: samples the answers.
        renderer: turns observations into ids.
        limits: of turns, tokens and seconds.
        make_env: builds the environment of a task; wrappers go in here.
        settings: what else belongs into the manifest, as JSON data.
    """

    is_exact = True

    def __init__(
        self,
        name: str,
        engine: Engine,
        renderer: ChatRenderer,
        limits: Limits | None = None,
        make_env: MakeEnv = Task.make,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._engine = engine
        self._renderer = renderer
        self._limits = limits or Limits()
        self._settings = settings or {}
        self._runner = EpisodeRunner(renderer, self._limits, make_env)

    async def run_episode(self, task: Task, number: int) -> Episode:
        """Run an episode of a task."""
        episode = Episode(task)
        try:
            return await self._runner.run(task, self._engine, number, episode)
        except AgentFailed as failure:
            _end_by(failure, episode)
            return episode
        except (AttributeError, IndexError, KeyError, ArithmeticError) as error:  # of an answer in another form
            _end_by(AgentFailed(f"{type(error).__name__}: {error}"), episode)
            return episode
        finally:
            self._engine.episode_ended()

    def decode(self, token: int) -> str:
        """Return the text of a token, for people."""
        text: str = self._renderer.tokenizer.decode([token])
        return text

    def describe(self) -> dict[str, Any]:
        """Return name, settings and limits."""
        return {**super().describe(), **self._settings, "limits": dict(vars(self._limits))}

    async def aclose(self) -> None:
        """Close the engine, and end the threads and processes of environments."""
        await self._engine.aclose()
        await self._runner.aclose()


class TextAgent(Agent):
    """An agent that writes text. Subclasses implement :meth:`begin`.

    Attributes:
        answer_seconds: what an answer may take; None for any time.

    Args:
        limits: of turns and seconds.
        make_env: builds the environment of a task.
    """

    answer_seconds: float | None = None

    def __init__(self, limits: Limits | None = None, make_env: MakeEnv = Task.make) -> None:
        self._limits = limits or Limits()
        self._execution = EnvExecution(make_env, self._limits)
        self._threads: anyio.CapacityLimiter | None = None

    @abc.abstractmethod
    def begin(self, task: Task, number: int) -> Callable[[list[Message]], Any]:
        """Return the function, or coroutine function, that answers the messages of an episode.

        It returns a text, or an :class:`Answer`.
        """

    async def run_episode(self, task: Task, number: int) -> Episode:
        """Run an episode of a task."""
        episode = Episode(task)
        episode.started = time.time()
        for _ in range(self._limits.retries + 1):
            try:
                await self._attempt(episode, self.begin(task, number))
                break
            except AgentFailed as failure:
                _end_by(failure, episode)
                break
            except EnvironmentFailed as failure:
                episode.truncation, episode.error = "error", str(failure)
                if episode.turns:
                    break
                episode.retries += 1
        episode.ended = time.time()
        return episode

    async def _attempt(self, episode: Episode, answer: Callable[[list[Message]], Any]) -> None:
        env = await self._execution.open(episode.task)
        try:
            episode.first_observation = await env.reset(episode.task.reset_seed)
            episode.truncation = episode.error = None
            messages = [{"role": "user", "content": episode.first_observation}]
            while True:
                action, *counted = await self._answered(answer, messages)
                if counted:
                    episode.counted = [sum(both) for both in zip(episode.counted or (0, 0), counted, strict=True)]
                turn = Turn([], [], None, "stop", action)
                episode.turns.append(turn)
                turn.observation, turn.reward, turn.terminated, turn.truncated, turn.info = await env.step(action)
                turn.action = turn.info.pop(CHOSEN, action)
                if turn.terminated:
                    return
                if turn.truncated or len(episode.turns) == self._limits.max_turns:
                    episode.truncation = "turns"
                    return
                role = "tool" if turn.info.get("use_tool") else "user"
                messages.append({"role": "assistant", "content": action})
                messages.append({"role": role, "content": turn.observation})
        finally:
            await env.close()

    async def _answered(self, answer: Callable[[list[Message]], Any], messages: list[Message]) -> Answer | tuple[str]:
        """Return the answer; a function that is no coroutine function is called in a thread, since it may wait."""
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(self._limits.max_threads)
        shown = [dict(message) for message in messages]  # the function may change them
        if inspect.iscoroutinefunction(answer):
            text = await self._in_time(_awaited(answer, shown))
        else:
            async with self._threads:  # waiting for a thread is not the function's time
                text = await self._in_time(_called(answer, shown))
        found = text if isinstance(text, Answer) else (text,)
        if not isinstance(found[0], str):
            raise AgentFailed(f"the answer is no text: {found[0]!r:.80}")
        return found

    async def _in_time(self, answer: Coroutine[Any, Any, Any]) -> Any:
        """Return what a coroutine returns, run by a task of its own: it may cancel itself, or not end."""
        task = asyncio.ensure_future(answer)
        try:
            await asyncio.wait({task}, timeout=self.answer_seconds)
            if not task.done():
                raise AgentFailed(f"no answer within {self.answer_seconds:g} s")
            if task.cancelled():
                raise AgentFailed("CancelledError, which the function raised")
            return task.result()
        finally:
            task.cancel()

    def describe(self) -> dict[str, Any]:
        """Return name and limits."""
        return {**super().describe(), "limits": dict(vars(self._limits))}

    async def aclose(self) -> None:
        """End the threads and processes of environments."""
        await self._execution.aclose()


async def _awaited(function: Callable[[list[Message]], Any], messages: list[Message]) -> Any:
    """Return what a coroutine function returns.

    Raises:
        AgentFailed: whatever else it raises.
    """
    try:
        return await function(messages)
    except (AgentFailed, Misconfigured, KeyboardInterrupt, asyncio.CancelledError):
        raise
    except BaseException as error:  # SystemExit too, which would end the evaluation
        raise AgentFailed(f"{type(error).__name__}: {error}") from error


async def _called(function: Callable[[list[Message]], Any], messages: list[Message]) -> Any:
    """Return what a function returns, called in a thread that ends with this process whatever the function does.

    Raises:
        AgentFailed: whatever else it raises.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: Exception | None) -> None:
        if not done.done():
            done.set_result(value) if error is None else done.set_exception(error)

    def run() -> None:
        value: Any = None
        failure: Exception | None = None
        try:
            value = function(messages)
        except (AgentFailed, Misconfigured) as error:
            failure = error
        except BaseException as error:  # noqa: BLE001 (SystemExit and StopIteration too: a thread has no other way)
            failure = AgentFailed(f"{type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, daemon=True).start()
    return await done


def _end_by(failure: AgentFailed, episode: Episode) -> None:
    """Note why an episode has ended, of which no further turn could be had."""
    if not isinstance(failure, ContextFull):
        episode.truncation = "abort"
    else:
        episode.truncation = "context" if episode.turns else "overlong"
    episode.error = str(failure)


class FunctionAgent(TextAgent):
    """A function of the messages so far, which returns the answer; it may be a coroutine function.

    What it raises ends the episode as a failure that is not the model's, and the episode is run again.

    Attributes:
        answer_seconds: what an answer may take; None for any time.

    Args:
        name: for people.
        function: gets a list of ``{"role", "content"}``, the last one of the environment.
        limits: as for :class:`TextAgent`.
        make_env: as for :class:`TextAgent`.
        settings: what else belongs into the manifest, as JSON data; by default a fingerprint of the function's source.
    """

    answer_seconds: float | None = ANSWER_SECONDS

    def __init__(
        self,
        name: str,
        function: Callable[[list[Message]], Any],
        limits: Limits | None = None,
        make_env: MakeEnv = Task.make,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(limits, make_env)
        self.name = name
        self._function = function
        self._settings = settings if settings is not None else {"source": _fingerprint(function)}

    @classmethod
    def of(cls, path: str, limits: Limits | None = None, make_env: MakeEnv = Task.make) -> FunctionAgent:
        """Import a function, ``module:name``.

        Raises:
            ImportError: it cannot be imported.
        """
        module, _, name = path.partition(":")
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # as `python -m` has it
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ImportError(f"cannot import the function {path}: {error}") from error
        return cls(path, function, limits, make_env)

    def begin(self, task: Task, number: int) -> Callable[[list[Message]], Any]:
        """Return the function."""
        return self._function

    def describe(self) -> dict[str, Any]:
        """Return name, limits, and what tells the function from another of its name."""
        return {**super().describe(), **self._settings}


def _fingerprint(function: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except (OSError, TypeError):  # it has no source
        return ""
