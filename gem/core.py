"""What an environment is.

An environment is a text game for a language model: ``reset`` gives the first observation, ``step``
takes what the model wrote and gives the next observation and a reward. Four invariants hold for
every environment here, and :func:`gem.testing.check_env` tests them on any other:

* **Nothing is random but through** ``self.rng``, which ``reset(seed)`` makes. Same constructor
  arguments and seed: same episode, in any process, thread or order. The first seed that an environment is given fixes
  the episodes of all its later resets without one, too.
* **Public attributes are the state.** They hold plain JSON data, so ``get_state``, ``set_state`` and
  ``spawn`` work without a line of code in the environment. What is not state (a cache, a handle, a
  constructor argument) has a name that begins with an underscore. The state is that of the episode: whoever is put
  into it plays the same episode to its end, and then begins the next of its own. So environments that shared an episode
  part after it, be they copied by ``set_state``, by ``spawn(same_state=True)`` or by ``copy.deepcopy``.
* **Text never raises.** Any string is an action; a bad one costs reward, not an exception.
* **An episode that has ended stays ended** until ``reset``: a further ``step`` raises
  :class:`ResetNeeded`.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import importlib
import inspect
import json
import operator
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from gem.seeds import EpisodeSeeds, check_seed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")
Info = dict[str, Any]
StepResult = tuple[str, float, bool, bool, Info]

_IDENTITY = frozenset({"spec", "env_id", "entry_point", "env"})
"""Attributes that say which environment this is, not what state it is in."""


class ResetNeeded(RuntimeError):
    """``step`` was called on an episode that has ended, or has not begun."""

    def __init__(self, message: str = "the episode has ended or not begun: call reset() first") -> None:
        super().__init__(message)


def observation_text(env: Env, observation: str, info: Info) -> str:
    """Return all that the agent must see: the observation between ``info["prefix"]`` and ``info["suffix"]``.

    The environments of this package put nothing there; others do. Where a wrapper shows the history (its
    ``observation_form`` is not ``"message"``), the observation has both already, and is returned as it is.
    """
    if env.observation_form != "message":
        return observation
    return f"{info.get('prefix', '')}{observation}{info.get('suffix', '')}"


@dataclass(frozen=True)
class EnvSpec:
    """How to build an environment: its id, its class (or a function), and the arguments.

    ``make(spec.id, **spec.kwargs)`` builds the same environment again.
    """

    id: str
    entry_point: Callable[..., Env] | str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Callable[..., Env]:
        """Import the entry point.

        Raises:
            ImportError: it cannot be imported.
        """
        if not isinstance(self.entry_point, str):
            return self.entry_point
        module_name, _, name = self.entry_point.partition(":")
        try:
            return operator.attrgetter(name)(importlib.import_module(module_name))
        except Exception as error:  # a module may raise anything while it is imported
            raise ImportError(f"cannot load {self.id} from {self.entry_point}: {error}") from error


class Env(abc.ABC):
    """A text environment. Subclasses write ``reset`` and ``step``.

    Class attributes describe the environment to people and to the rollout runner; all have defaults.

    Attributes:
        env_id: the id under which :func:`gem.make` built it; None for one built by hand.
        spec: what :func:`gem.make` built it from; None for one built by hand.
        entry_point: the class or function that :func:`gem.make` called, as it was registered.
        max_turns: turns until the environment itself ends an episode; None where it does not, or
            before ``reset`` where it is drawn by the seed.
        reward_range: lowest and highest value of any reward, and of the sum of an episode's rewards.
        blocking: whether ``step`` may wait (a tool, a server) or compute for more than about a
            millisecond. Rollouts run blocking environments in threads, the others in the event loop.
        cpu_bound: whether ``step`` computes for milliseconds, or may take its process down. Vector environments step
            such environments in other processes.
        asynchronous: whether there are coroutines ``reset_async(seed=None)`` and ``step_async(action)`` beside
            ``reset`` and ``step``, which do the same. Vector environments run thousands of them in one thread. A
            wrapper that has both declares it anew: it does not follow from the inner environment.
        answers_in_code: whether an answer is a Markdown code block, so that tools take no such block for a call.
        observation_form: what an observation is. ``"message"``: what is new, to be appended to the
            conversation. ``"history"``: everything so far, as one message. ``"prompt"``: everything so
            far, rendered as a prompt already. Wrappers that rewrite the history change it.
    """

    env_id: str | None = None
    spec: EnvSpec | None = None
    entry_point: Any = None
    max_turns: int | None = None
    reward_range: tuple[float, float] = (float("-inf"), float("inf"))
    blocking: bool = True
    cpu_bound: bool = False
    asynchronous: bool = False
    answers_in_code: bool = False
    observation_form: Literal["message", "history", "prompt"] = "message"

    _rng: random.Random | None = None
    _episode_seeds: EpisodeSeeds | None = None
    _first_seed: int | None = None
    _action_rng: random.Random | None = None
    _drawn_seed: int | None = None
    _init: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember the constructor's arguments, from which ``spawn`` builds another environment."""
        self = super().__new__(cls)
        self._init = (args, kwargs)
        return self

    def __init__(self) -> None:  # object's own would let unknown arguments pass, since __new__ takes any
        return None

    @abc.abstractmethod
    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin an episode.

        Subclasses call ``super().reset(seed)`` first, and then draw the episode from ``self.rng``.

        Args:
            seed: a non-negative integer fixes the episode, and those of later resets without a seed. None draws
                another episode (the first time, that of the seed given to :func:`gem.make`, or else of one from the
                operating system).

        Returns:
            The first observation (task and instructions) and an info dict.
        """
        self._seed_episode(seed)
        return "", {}

    def _seed_episode(self, seed: int | None) -> tuple[int | None, EpisodeSeeds]:
        """Make ``rng`` for an episode.

        Returns:
            The seed that ``reset`` or ``make`` was given, None if it was drawn; and what later ones are drawn from.
        """
        seeds = self._episode_seeds
        seed = check_seed(seed) if seed is not None else self._first_seed if seeds is None else None
        if seed is not None or seeds is None:
            seeds = self._episode_seeds = EpisodeSeeds(seed)
        self._drawn_seed = seeds.draw() if seed is None else seed
        self._rng = self._action_rng = None  # made where they are used: seeding one takes longer than most steps
        return seed, seeds

    @abc.abstractmethod
    def step(self, action: str) -> StepResult:
        """Take the model's text as an action.

        Returns:
            ``(observation, reward, terminated, truncated, info)``: ``terminated`` when the task
            ended, ``truncated`` when a limit ended it; never both. ``info["success"]`` says whether
            the task was solved, where the environment knows.

        Raises:
            ResetNeeded: the episode has ended or not begun.
        """

    def sample_random_action(self) -> str:
        """Return a random legal action for the current state, without touching ``rng``."""
        raise NotImplementedError(f"{type(self).__name__} samples no actions")

    def close(self) -> None:
        """Release what the environment holds. Calling it again does nothing."""
        return None

    def __enter__(self) -> Env:
        """Return the environment, to be closed when the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the environment."""
        self.close()

    @property
    def rng(self) -> random.Random:
        """The environment's own random generator."""
        if self._rng is None:
            self._rng = random.Random(self._first_seed if self._drawn_seed is None else self._drawn_seed)
        return self._rng

    @rng.setter
    def rng(self, generator: Any) -> None:
        self._rng = generator

    @property
    def action_rng(self) -> random.Random:
        """What ``sample_random_action`` draws from: seeded like ``rng``, and apart from it."""
        if self._action_rng is None:
            seed = self._drawn_seed
            self._action_rng = random.Random(None if seed is None else f"actions of {seed}")
        return self._action_rng

    @property
    def shown_state(self) -> str:
        """The text of the present state (a board), with which observations end; "" where there is none.

        Wrappers that show the history show it once, at the end.
        """
        return ""

    @property
    def unwrapped(self) -> Env:
        """The environment below all wrappers."""
        return self

    def get_state(self) -> dict[str, Any]:
        """Return the state as JSON data: every public attribute, and the random generator's state.

        Raises:
            TypeError: an attribute is not JSON data.
        """
        state = {k: v for k, v in vars(self).items() if _is_state(k)}
        for name, value in state.items():
            if not _is_json(value):
                raise TypeError(
                    f"{type(self).__name__}.{name} is not JSON data: {value!r:.80}. Keep lists, dicts with text keys, "
                    "text, numbers and None in public attributes, begin the names of others with an underscore, or "
                    "override get_state and set_state."
                )
        rng = None if self._rng is None and self._drawn_seed is None else self.rng.getstate()
        return json.loads(json.dumps({**state, "rng": rng, "action_seed": self._drawn_seed}))

    def set_state(self, state: dict[str, Any]) -> None:
        """Put the environment into a state that ``get_state`` returned, here or in another process.

        The episode is continued; what ``reset()`` without a seed begins after it is still this environment's own.
        """
        state = json.loads(json.dumps(state))  # a copy: the caller's dict must not change with the episode
        rng = state.pop("rng")
        self._action_rng, self._drawn_seed = None, state.pop("action_seed")
        for name in [k for k in vars(self) if _is_state(k) and k not in state]:
            delattr(self, name)
        vars(self).update(state)
        self._rng = None
        if rng is not None:
            version, numbers, gauss = rng
            self._rng = random.Random()
            self._rng.setstate((version, tuple(numbers), gauss))

    def spawn(self, same_state: bool = False, **overrides: Any) -> Env:
        """Build another environment from the same constructor arguments.

        Args:
            same_state: also put it into this one's state, with later episodes of its own, which this one's seed fixes.
            **overrides: constructor arguments to change.
        """
        env = type(self)(**{**self._arguments(), **overrides})
        env.env_id = self.env_id
        if self.spec is not None:
            env.spec = dataclasses.replace(self.spec, kwargs={**self.spec.kwargs, **overrides})
        if same_state:
            env._first_seed, env._episode_seeds = self._first_seed, copy.deepcopy(self._episode_seeds)
            env.set_state(self.get_state())
        return env

    def _remember(self, **changes: Any) -> None:
        """Let ``spawn`` build with other arguments than the constructor was given, since they were set later."""
        self._init = ((), {**self._arguments(), **changes})

    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments, all by name."""
        args, kwargs = self._init
        named = inspect.signature(type(self).__init__).bind(self, *args, **kwargs)
        arguments = dict(named.arguments)
        arguments.pop(next(iter(arguments)))  # self
        for name, parameter in named.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        return arguments


def _is_state(name: str) -> bool:
    return not name.startswith("_") and name not in _IDENTITY


def _is_json(value: Any) -> bool:
    """Return whether JSON gives the value back as it was: a tuple would become a list."""
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


class _Delegated:
    """A class attribute that reads the wrapped environment's, until the wrapper sets its own."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: Any, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.env, self.name)


class EnvWrapper(Env):
    """An environment around another. What it does not define, the inner environment answers.

    Args:
        env: the environment to wrap.
    """

    env_id: Any = _Delegated()
    spec: Any = _Delegated()
    entry_point: Any = _Delegated()
    max_turns: Any = _Delegated()
    reward_range: Any = _Delegated()
    blocking: Any = _Delegated()
    cpu_bound: Any = _Delegated()
    answers_in_code: Any = _Delegated()
    observation_form: Any = _Delegated()
    rng: Any = _Delegated()
    action_rng: Any = _Delegated()
    state_attributes: ClassVar[tuple[str, ...]] = ()
    """Names of the wrapper's own attributes that are state."""

    def __init__(self, env: Env) -> None:
        super().__init__()
        self.env = env

    def __getattr__(self, name: str) -> Any:
        """Look ``name`` up in the inner environment, at the time of asking (private names excepted)."""
        if name.startswith("_") or name == "env":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin an episode of the inner environment."""
        return self.env.reset(seed=seed)

    def step(self, action: str) -> StepResult:
        """Step the inner environment."""
        return self.env.step(action)

    def sample_random_action(self) -> str:
        """Return a random legal action of the inner environment."""
        return self.env.sample_random_action()

    def close(self) -> None:
        """Close the inner environment."""
        self.env.close()

    @property
    def shown_state(self) -> str:
        """The inner environment's."""
        return self.env.shown_state

    @property
    def unwrapped(self) -> Env:
        """The environment below all wrappers."""
        return self.env.unwrapped

    def get_state(self) -> dict[str, Any]:
        """Return the wrapper's own state and, under ``"env"``, the inner environment's."""
        own = {name: getattr(self, name) for name in self.state_attributes}
        return {**json.loads(json.dumps(own)), "env": self.env.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` returned."""
        for name in self.state_attributes:
            setattr(self, name, json.loads(json.dumps(state[name])))
        self.env.set_state(state["env"])

    def spawn(self, same_state: bool = False, **overrides: Any) -> Env:
        """Spawn the inner environment (with ``overrides``) and wrap it in the same way."""
        first = next(name for name in inspect.signature(type(self).__init__).parameters if name != "self")
        wrapper = type(self)(**{**self._arguments(), first: self.env.spawn(same_state, **overrides)})
        if same_state:
            wrapper.set_state(self.get_state())
        return wrapper
