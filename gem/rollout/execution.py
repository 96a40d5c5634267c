"""Where the environment of an episode runs: decided in one place, behind one interface.

A runner is one event loop with thousands of episodes in it, so no environment may hold up the loop. What an environment
declares (class attributes of :class:`gem.core.Env`) decides:

===================  =======================================================================================
it declares          it runs
===================  =======================================================================================
``cpu_bound``        in a process of a pool, so that it does not compute in the trainer's process
``asynchronous``     in the event loop: its coroutines are awaited, with a deadline
``blocking``         in a thread of a pool, with a deadline
nothing of these     inline: its methods are called in the event loop, since they take microseconds
===================  =======================================================================================

An environment whose class cannot be asked beforehand, because a function builds it, is built in a thread; it may turn
out not to block, and runs in the event loop then.

Whatever an environment does wrong ends as :class:`gem.faults.EnvironmentFailed`, in its own episode. Only mistakes of
the set-up, such as an unknown argument, are raised as they are: every episode would end with them.
"""

from __future__ import annotations

import abc
import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from gem.core import Env, EnvSpec, Info, StepResult, observation_text
from gem.faults import EnvironmentFailed, Unforked, call_unforked, error_text, excerpt, is_from_user
from gem.registry import find_spec, register_if_unknown
from gem.rollout.episode import plain_json
from gem.rollout.limits import Limits
from gem.sandbox import SandboxUnavailable
from gem.step_results import checked_reset, checked_step
from gem.tasks import Task
from gem.vector.env_pool import EnvPool, PooledEnv

logger = logging.getLogger("gem.rollout")
T = TypeVar("T")

POOL_SIZE = 4096
"""Episodes at a time whose environments are in threads, or in processes; a slot that is free costs nothing."""

_SETUP_ERRORS = (TypeError, ValueError, ImportError, ModuleNotFoundError, SandboxUnavailable)
"""What building an environment raises when it was asked for wrongly. Exactly these: a subclass, such as the
JSONDecodeError of a server's bad answer, is a failure like any other."""

_PLAIN = frozenset({str, int, float, bool, type(None)})


class RunningEnv(abc.ABC):
    """The environment of an episode, wherever it runs. All methods raise ``EnvironmentFailed`` if it fails.

    Attributes:
        observation_form: of the environment, see :class:`gem.core.Env`.
    """

    observation_form: str

    async def reset(self, seed: int) -> str:
        """Reset it, and return the text of the first observation."""
        observation, info = await self._reset(seed)
        return _run_guarded(lambda: _checked_text(self, observation, _as_json(info)))

    async def step(self, action: str) -> StepResult:
        """Step it; the result has the whole text of the observation, and an info that is JSON data."""
        observation, reward, terminated, truncated, info = await self._step(action)
        info = _run_guarded(lambda: _as_json(info))
        return _run_guarded(lambda: _checked_text(self, observation, info)), reward, terminated, truncated, info

    @abc.abstractmethod
    async def close(self) -> None:
        """Close it. One that fails in doing so is logged."""

    @abc.abstractmethod
    async def _reset(self, seed: int) -> tuple[str, Info]: ...

    @abc.abstractmethod
    async def _step(self, action: str) -> StepResult: ...


class EnvExecution:
    """Builds the environments of episodes where they are to run, and holds the threads and processes for that.

    Args:
        make_env: builds the environment of a task.
        limits: of seconds and threads.
    """

    def __init__(self, make_env: Callable[[Task], Env], limits: Limits) -> None:
        self._make_env = make_env
        self._limits = limits
        self._pools: dict[tuple[str, asyncio.AbstractEventLoop], EnvPool] = {}

    async def open(self, task: Task) -> RunningEnv:
        """Build the environment of a task.

        Raises:
            EnvironmentFailed: it cannot be built this time.
            ValueError, TypeError, ImportError, SandboxUnavailable: it was asked for wrongly.
        """
        spec = _spec_of(task)
        declared = None if spec is None else spec.load()
        if spec is not None and getattr(declared, "cpu_bound", False):
            return await self._open_in_pool("process", partial(_build_in_process, spec, self._make_env, task))
        build = partial(self._make_env, task)
        if not getattr(declared, "blocking", True):
            env = _run_guarded(build, _SETUP_ERRORS)
            if not _blocks(env):
                return _InLoop(env, self._limits.step_timeout, partial(_close, env, task))
            build = partial(_return, env)  # a wrapper or a tool blocks
        pooled = await self._open_in_pool("thread", build)
        try:
            if not _blocks(pooled.pooled.env):
                return _InLoop(pooled.pooled.env, self._limits.step_timeout, pooled.close)
        except EnvironmentFailed:
            pooled.pooled.close_when_idle()
            raise
        return pooled

    async def aclose(self) -> None:
        """End the threads and processes; they are started again if :meth:`open` is called again."""
        while self._pools:
            (_, loop), pool = self._pools.popitem()
            if loop is asyncio.get_running_loop():
                await pool.aclose()
            else:
                pool.close()

    async def _open_in_pool(self, backend: str, build: Callable[[], Env]) -> _InPool:
        try:
            pooled = await self._pool(backend).open(build)
            try:
                return _InPool(pooled, await pooled.get("observation_form"))
            except BaseException:
                pooled.close_when_idle()
                raise
        except Exception as error:
            if type(error) in (*_SETUP_ERRORS, EnvironmentFailed):
                raise
            raise _failure(error) from error

    def _pool(self, backend: str) -> EnvPool:
        """Return the pool of this event loop; trainers run one loop after another, and those that ended are let go."""
        loop = asyncio.get_running_loop()
        if (backend, loop) not in self._pools:
            for key in [key for key in self._pools if key[1].is_closed()]:
                self._pools.pop(key).close()
            options = {"workers": self._limits.max_threads} if backend == "thread" else {}
            self._pools[backend, loop] = EnvPool(backend, POOL_SIZE, timeout=self._limits.step_timeout, **options)
        return self._pools[backend, loop]


class _InLoop(RunningEnv):
    """In the event loop: its methods are called, or its coroutines awaited."""

    def __init__(self, env: Env, timeout: float | None, close: Callable[[], Awaitable[None]]) -> None:
        self._env, self._timeout, self._close = env, timeout, close
        self.observation_form = _form_of(env)
        self._asynchronous = _run_guarded(lambda: env.asynchronous)

    async def close(self) -> None:
        """Close it."""
        await self._close()

    async def _reset(self, seed: int) -> tuple[str, Info]:
        env: Any = self._env
        if not self._asynchronous:
            return _run_guarded(lambda: checked_reset(env, env.reset(seed=seed)))
        result = await self._await(lambda: env.reset_async(seed=seed))
        return _run_guarded(lambda: checked_reset(env, result))

    async def _step(self, action: str) -> StepResult:
        env: Any = self._env
        if not self._asynchronous:
            return _run_guarded(lambda: checked_step(env, env.step(action)))
        result = await self._await(lambda: env.step_async(action))
        return _run_guarded(lambda: checked_step(env, result))

    async def _await(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await an environment's coroutine; one that has not returned by the deadline is cancelled and abandoned."""
        job = asyncio.ensure_future(_contained(function))
        job.add_done_callback(lambda job: job.cancelled() or job.exception())  # also when nobody awaits it any more
        try:
            await asyncio.wait([job], timeout=self._timeout)
        finally:
            job.cancel()  # which does nothing to one that has ended
        if not job.done():
            raise EnvironmentFailed(f"no answer within {self._timeout} s")
        return _run_guarded(job.result)


class _InPool(RunningEnv):
    """In a thread or another process, where the deadline is kept."""

    def __init__(self, pooled: PooledEnv, observation_form: Any) -> None:
        self.pooled = pooled
        self.observation_form = _checked_form(observation_form)

    async def _reset(self, seed: int) -> tuple[str, Info]:
        return await self._awaited(self.pooled.reset(seed))

    async def _step(self, action: str) -> StepResult:
        return await self._awaited(self.pooled.step(action))

    async def _awaited(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except EnvironmentFailed:
            raise
        except Exception as error:
            raise _failure(error) from error

    async def close(self) -> None:
        """Close it, and wait for that unless it is busy: that is, when the episode was cancelled."""
        if self.pooled.is_busy:
            self.pooled.close_when_idle()
        else:
            await self.pooled.close()


def _spec_of(task: Task) -> EnvSpec | None:
    """Return the registered environment of a task; None for an id that only ``make_env`` knows."""
    try:
        return find_spec(task.env_id)
    except ValueError:
        return None


def _build_in_process(spec: EnvSpec, make_env: Callable[[Task], Env], task: Task) -> Env:
    register_if_unknown(spec)
    return make_env(task)


def _return(env: Env) -> Env:
    return env


async def _close(env: Env, task: Task) -> None:
    try:
        _run_guarded(lambda: env.close())
    except EnvironmentFailed as failure:
        logger.warning("closing the environment of %s: %s", task, failure)


def _blocks(env: Any) -> bool:
    """Return whether an environment would hold up the event loop."""
    return _run_guarded(lambda: bool(env.blocking and not env.asynchronous))


def _form_of(env: Any) -> str:
    return _checked_form(_run_guarded(lambda: env.observation_form))


def _checked_form(form: Any) -> str:
    if type(form) is str:
        return form
    raise EnvironmentFailed(f"its observation_form is {excerpt(form)}, not a str")


def _checked_text(env: Any, observation: str, info: Info) -> str:
    text = observation_text(env, observation, info)
    text.encode()  # a lone surrogate has no tokens
    return text


def _as_json(info: Info) -> Info:
    """Return an info as an episode's JSON line gives it back."""
    if all(type(key) is str and type(value) in _PLAIN for key, value in info.items()):
        return dict(info)  # a round trip would give the same, for more than the rest of the turn costs
    return json.loads(json.dumps(info, default=plain_json))


def _failure(error: BaseException) -> EnvironmentFailed:
    return error if isinstance(error, EnvironmentFailed) else EnvironmentFailed(error_text(error))


def _run_guarded(function: Callable[[], T], setup_errors: tuple[type[Exception], ...] = ()) -> T:
    """Call what belongs to an environment; whatever it raises is its own failure, unless it is a set-up error."""
    try:
        return call_unforked(function)
    except EnvironmentFailed:
        raise
    except BaseException as error:  # SystemExit and CancelledError too
        if is_from_user(error) or type(error) in setup_errors:
            raise
        raise _failure(error) from error


async def _contained(function: Callable[[], Awaitable[T]]) -> T:
    """Await what a function returns; raise :class:`EnvironmentFailed` in the place of what the environment raises.

    The environment's own exception must not leave the task: SystemExit would end the event loop, and asyncio calls
    ``repr`` on exceptions, which may raise or never return. Cancellation is passed on.
    """
    try:
        return await Unforked(call_unforked(function))
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        if is_from_user(error):
            raise
        raise _failure(error) from error
