r"""VectorEnv: several environments that are stepped together, or each at its own pace.

With a barrier, ``step`` waits for all the environments that it is given. Without one, ``send`` starts steps and
``recv`` returns those that are ready, so that a slow environment holds up nobody:

>>> import gem
>>> with gem.make_vec(["game:GuessTheNumber-v0-easy"] * 3, seed=7) as vec:
...     observations, infos = vec.reset()
...     vec.send({0: "I try \\boxed{5}", 2: "I try \\boxed{5}"})
...     ready = vec.recv(min_count=2)
>>> ready.indices, ready.rewards
([0, 2], array([0., 0.]))

Every back end does the same, for environments that keep the contract of :mod:`gem.core`; they differ in where the
environments are (``docs/vector.md``).
"""

from __future__ import annotations

import abc
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gem.core import Env, Info, ResetNeeded
from gem.seeds import IRREPRODUCIBLE, check_seed
from gem.vector.outcome import CRASH_LIMIT, CrashLoop, Kind, StepOutcome, name_environment
from gem.vector.slot import AutoresetMode

__all__ = ["Actions", "AutoresetMode", "CrashLoop", "Ready", "VectorEnv", "VectorStep"]

ArrayType = np.ndarray
Actions = Sequence[str] | dict[int, str]
VectorStep = tuple[list[str], np.ndarray, np.ndarray, np.ndarray, list[Info]]


class Ready(NamedTuple):
    """What :meth:`VectorEnv.recv` returns: one entry for each step that is ready, in the order in which they became so.

    Attributes:
        indices: of the environments.
        observations: texts.
        rewards: float64, of shape (number of steps,), as the next two.
        terminated: bool.
        truncated: bool.
        infos: dicts.
    """

    indices: list[int]
    observations: list[str]
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    infos: list[Info]


class VectorEnv(abc.ABC):
    """Several environments.

    An environment that raises, returns what :func:`gem.core.checked_step` refuses, takes longer than ``timeout`` (on
    the back ends that have it) or ends its process ends its own episode: ``truncated``, with the reason in
    ``info["error"]``. A fresh one takes its place, and the others go on. One that does so
    :data:`~gem.vector.outcome.CRASH_LIMIT` times without a healthy step in between is reported by :class:`CrashLoop`,
    which ``step``, ``recv`` or ``reset`` raise; what the others have done can still be received.

    A vector environment belongs to one thread.

    Args:
        env_ids: one id per environment, for people.
        env_fns: functions that build the environments.
        autoreset_mode: a mode, or its value.

    Attributes:
        num_envs: how many they are.
        faults: an environment's failures so far, by index.
        restarts: threads that were abandoned, or processes that were started again.
    """

    def __init__(
        self,
        env_ids: Sequence[str],
        env_fns: Sequence[Callable[[], Env]],
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        self.env_ids = list(env_ids)
        self.env_fns = list(env_fns)
        self.num_envs = len(self.env_fns)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.faults = [0] * self.num_envs
        self.restarts = 0
        self._is_closed = False
        self._warned = False  # of an environment that begins otherwise with the same seed
        self._under_way: set[int] = set()
        self._arrived: dict[int, StepOutcome] = {}
        self._failing: dict[int, int] = {}  # failures since the last healthy step, of those that have any

    @property
    def envs(self) -> list[Any]:
        """The environments.

        Raises:
            AttributeError: they are in other processes; see :meth:`call`.
        """
        raise AttributeError("the environments are in other processes: use call(name, ...) to ask them")

    def reset(
        self, seed: int | Sequence[int | None] | None = None, only: Iterable[int] | None = None
    ) -> tuple[list[str], list[Info]]:
        """Reset all environments, or some.

        Args:
            seed: an integer seeds environment ``i`` with ``seed + i``; a sequence has one seed per environment that is
                reset. None goes on with the environment's own generator.
            only: indices of the environments to reset.

        Returns:
            One observation and one info for each environment that is reset.

        Raises:
            ValueError: an environment is under way; see :meth:`recv`.
            CrashLoop: an environment cannot be reset.
        """
        seeds = self._seeds(seed, only)
        ready = self._run("reset", seeds)
        if not self._warned and len(set(seeds.values())) < len(seeds):
            self._compare(seeds, ready.observations)
        return ready.observations, ready.infos

    def step(self, actions: Actions) -> VectorStep:
        """Step all environments, or those that a dict from index to action names, and wait for them.

        Returns:
            Observations (list), rewards (float64), terminated and truncated (bool), infos (list): one entry
            an action, in the order of the actions.

        Raises:
            ValueError: the actions do not fit the environments, or one of those is under way.
            ResetNeeded: an environment was not reset.
            CrashLoop: an environment fails again and again.
        """
        return self._run("step", self._by_index(actions))[1:]

    def send(self, actions: Actions) -> None:
        """Start steps, without waiting; arguments and errors as in :meth:`step`."""
        self._submit("step", self._by_index(actions))

    def send_reset(self, seed: int | Sequence[int | None] | None = None, only: Iterable[int] | None = None) -> None:
        """Start resets, without waiting: :meth:`recv` returns them with reward 0; arguments as in :meth:`reset`."""
        self._submit("reset", self._seeds(seed, only))

    def recv(self, min_count: int = 1, timeout: float | None = None) -> Ready:
        """Return the steps and resets that are ready.

        Args:
            min_count: wait for so many, or for all that are under way if they are fewer.
            timeout: seconds after which to return what there is; None waits.

        Raises:
            ValueError: nothing is under way.
            ResetNeeded, CrashLoop: see :meth:`step`; the others can be received by the next call.
        """
        if not self._under_way:
            self._check_open()
            raise ValueError("nothing is under way: send actions first")
        wanted = min(min_count, len(self._under_way))
        deadline = None if timeout is None else time.monotonic() + timeout
        while len(self._arrived) < wanted:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._arrived.update(self.finished_calls(left))
            if left == 0.0:
                break
        return self._delivered(self._arrived)

    def call(self, name: str, *args: Any, only: Iterable[int] | None = None, **kwargs: Any) -> list[Any]:
        """Return an attribute of each environment, or what it returns if it is a method, wherever they are.

        Args:
            name: of the attribute or method.
            *args: of the method.
            only: indices of the environments to ask; None for all.
            **kwargs: of the method.

        Raises:
            RuntimeError: an environment raised.
        """
        indices = range(self.num_envs) if only is None else only
        ready = self._run("call", dict.fromkeys(self._known(indices), (name, args, kwargs)))
        if errors := [info["error"] for info in ready.infos if info]:
            raise RuntimeError(errors[0])
        return ready.observations

    def assign(self, builds: dict[int, Callable[[], Env]]) -> None:
        """Put other environments into some places; the old ones are closed.

        Args:
            builds: by index, functions that build the environments.

        Raises:
            Exception: what one of them raises.
            TypeError: one cannot be sent to where its environment is to be.
        """
        self._run("assign", dict(zip(self._known(builds), builds.values(), strict=True)))

    def close(self) -> None:
        """Close all environments. What is under way is lost. Calling it again does nothing.

        From then on everything else raises a RuntimeError.
        """
        self._is_closed = True
        self._under_way.clear()
        self._arrived.clear()

    def __enter__(self) -> VectorEnv:
        """Return the vector environment, to be closed when the block ends."""
        return self

    def __exit__(self, *exc: Any) -> None:
        """Close all environments."""
        self.close()

    @abc.abstractmethod
    def start_calls(self, method: str, arguments: dict[int, Any]) -> None:
        """Start calling a method of environments' slots, each with an argument; for what builds on a back end.

        Args:
            method: ``"reset"``, ``"step"``, ``"call"`` or ``"assign"``, as in :class:`gem.vector.slot.Slot`.
            arguments: by index; none of these slots is being called.
        """

    @abc.abstractmethod
    def finished_calls(self, seconds: float | None) -> dict[int, StepOutcome]:
        """Return the outcomes of calls that have returned, by index, waiting at most so long for the first of them.

        Calls that are past their deadline are given up here.
        """

    def close_after_call(self, index: int) -> None:  # noqa: B027 (most back ends need not do anything)
        """Note that an environment is to be closed when the call that is running has returned.

        The caller closes it then. A back end whose calls may outlive the caller does it itself.
        """

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this vector environment has been closed: make another")

    def _submit(self, method: str, arguments: dict[int, Any]) -> None:
        self._check_open()
        if not self._under_way.isdisjoint(arguments):
            busy = min(self._under_way.intersection(arguments))
            raise ValueError(f"environment {busy} is under way: receive its step first")
        self.start_calls(method, arguments)
        self._under_way.update(arguments)

    def _run(self, method: str, arguments: dict[int, Any]) -> Ready:
        self._submit(method, arguments)
        missing = set(arguments)
        while missing:
            outcomes = self.finished_calls(None)
            self._arrived.update(outcomes)
            missing.difference_update(outcomes)
        return self._delivered(arguments)

    def _delivered(self, indices: Iterable[int]) -> Ready:
        """Return what has arrived, as columns; what must be raised is raised, and the others stay."""
        indices = list(indices)
        outcomes = [self._arrived[index] for index in indices]
        columns = zip(*outcomes, strict=True) if outcomes else ((),) * 7
        observations, rewards, terminated, truncated, infos, _, errors = columns
        if any(errors) or self._failing:
            self._count(indices, outcomes)
        if len(indices) == len(self._arrived):
            self._arrived = {}
        else:
            for index in indices:
                del self._arrived[index]
        self._under_way.difference_update(indices)
        return Ready(
            indices,
            list(observations),
            np.array(rewards, dtype=np.float64),
            np.array(terminated, dtype=np.bool_),
            np.array(truncated, dtype=np.bool_),
            list(infos),
        )

    def _compare(self, seeds: dict[int, int | None], observations: Sequence[str]) -> None:
        """Warn if environments that are built alike begin otherwise with the same seed."""
        begun: dict[Any, str] = {}
        for (index, seed), observation in zip(seeds.items(), observations, strict=True):
            build = self.env_fns[index]
            setup = seed, getattr(build, "setup", build)
            if seed is not None and begun.setdefault(setup, observation) != observation:
                self._warned = True
                warnings.warn(IRREPRODUCIBLE % name_environment(index, self.env_ids[index]), stacklevel=3)
                return

    def _count(self, indices: Sequence[int], outcomes: Sequence[StepOutcome]) -> None:
        """Count failures, and raise what the caller must be told."""
        for index, outcome in zip(indices, outcomes, strict=True):
            if outcome.kind is Kind.STEP:
                self._failing.pop(index, None)
            elif outcome.kind is not Kind.NO_STEP:
                error = self._error_of(index, outcome)
                self._arrived[index] = outcome._replace(kind=Kind.NO_STEP, error=None)  # counted, once
                if error is not None:
                    self._failing.pop(index, None)
                    del self._arrived[index]
                    self._under_way.discard(index)
                    raise error

    def _error_of(self, index: int, outcome: StepOutcome) -> Exception | None:
        """Return what to raise for an outcome that is no step; None if a failure is only counted."""
        if outcome.kind is Kind.REFUSED:
            if isinstance(outcome.error, ResetNeeded):
                return ResetNeeded(f"{name_environment(index, self.env_ids[index])}: {outcome.error}")
            return outcome.error
        self.faults[index] += 1
        self._failing[index] = self._failing.get(index, 0) + 1
        if outcome.kind is Kind.GIVEN_UP or self._failing[index] >= CRASH_LIMIT:
            return CrashLoop(outcome.error, index, self.env_ids[index])
        return None

    def _seeds(
        self, seed: int | Sequence[int | None] | None, only: Iterable[int] | None = None
    ) -> dict[int, int | None]:
        indices = range(self.num_envs) if only is None else self._known(only)
        if seed is None:
            return dict.fromkeys(indices)
        if isinstance(seed, int | np.integer):
            first = check_seed(seed)
            assert first is not None
            return {index: first + index for index in indices}
        if len(seed) != len(indices):
            raise ValueError(f"{len(seed)} seeds for {len(indices)} environments")
        return dict(zip(indices, map(check_seed, seed), strict=True))

    def _by_index(self, actions: Actions) -> dict[int, str]:
        if isinstance(actions, dict):
            self._known(actions)
            return actions
        if isinstance(actions, str) or len(actions) != self.num_envs:
            raise ValueError(f"step takes {self.num_envs} actions, or a dict from index to action")
        return dict(enumerate(actions))

    def _known(self, indices: Iterable[int]) -> list[int]:
        indices = list(indices)
        if indices and (min(indices) < 0 or max(indices) >= self.num_envs):
            unknown = next(index for index in indices if not 0 <= index < self.num_envs)
            raise ValueError(f"there is no environment {unknown!r} among {self.num_envs}")
        return indices


Env.register(VectorEnv)  # type: ignore[type-abstract]  # as in gem-llm; its methods return lists and arrays


class LocalVectorEnv(VectorEnv):
    """A vector environment whose environments are in this process."""

    _slots: list[Any]

    @property
    def envs(self) -> list[Any]:
        """The environments."""
        return [slot.env for slot in self._slots]
