"""From an id to an environment, or to several that are stepped together. The registry itself is :mod:`gem.registry`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gem.core import Env, EnvSpec
from gem.registry import ENV_REGISTRY, all_specs, find_spec, register, register_if_unknown
from gem.seeds import check_seed

if TYPE_CHECKING:
    from gem.vector.slot import AutoresetMode
    from gem.vector.vector_env import VectorEnv

__all__ = ["ENV_REGISTRY", "Build", "EnvSpec", "make", "make_vec", "print_envs", "register"]


def make(
    env_id: str,
    *,
    seed: int | None = None,
    tools: str | Sequence[str] | None = None,
    wrappers: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Env:
    """Build an environment.

    Args:
        env_id: a registered id.
        seed: seeds the first ``reset()`` that is called without one. An environment whose
            constructor takes a ``seed`` gets it there.
        tools: names of tools that the model can use, see :func:`gem.tools.make_tools`; the environment is wrapped in
            :class:`gem.tools.ToolEnvWrapper` then. One whose constructor takes ``tools`` gets them there.
        wrappers: names of wrappers, innermost first, around the tools: see
            :data:`gem.wrappers.wrapper_factory.WRAPPER_FACTORY`. One whose constructor takes ``wrappers`` gets them
            there.
        **kwargs: constructor arguments; they replace the registered ones.

    Raises:
        ValueError: the id is not registered, there is no such tool or wrapper, or a wrapper needs a tokenizer.
        TypeError: the environment takes no such argument.
        ImportError: the environment or a tool needs a package that is not installed.
        SandboxUnavailable: a tool needs a sandbox, and none works here.
    """
    spec = find_spec(env_id)
    build = spec.load()
    arguments = {**spec.kwargs, **kwargs}
    takes = inspect.signature(build.__init__ if inspect.isclass(build) else build).parameters
    if tools is not None and "tools" in takes:
        arguments["tools"], tools = tools, None
    if wrappers is not None and "wrappers" in takes:
        arguments["wrappers"], wrappers = wrappers, None
    seed = check_seed(seed)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if seed is not None and ("seed" in takes or takes_any):
        arguments["seed"] = seed
    if not takes_any:
        unknown = [name for name in arguments if name not in takes]
        if unknown:
            names = ", ".join(name for name in takes if name != "self") or "no arguments"
            raise TypeError(f"{env_id} takes no argument {unknown[0]!r}; it takes {names}")
    env = build(**arguments)
    env.spec = EnvSpec(spec.id, spec.entry_point, arguments)
    env.env_id, env.entry_point = env_id, spec.entry_point
    if seed is not None:
        env.unwrapped._first_seed = seed
        # A constructor that calls reset() has made them without the seed.
        env.unwrapped._rng = env.unwrapped._episode_seeds = None
    if tools:
        from gem.tools import ToolEnvWrapper, make_tools

        env = ToolEnvWrapper(env, make_tools(tools))
    if wrappers:
        from gem.wrappers.wrapper_factory import get_wrapper_fns

        for wrap in get_wrapper_fns(wrappers if isinstance(wrappers, str) else ",".join(wrappers)):
            env = wrap(env)
    return env


def make_vec(
    env_ids: str | Sequence[str],
    wrappers: Sequence[Callable[[Env], Env]] | None = None,
    vec_kwargs: Sequence[dict[str, Any]] | None = None,
    async_mode: bool = False,
    seed: int | None = 0,
    *,
    backend: str | None = None,
    autoreset_mode: AutoresetMode | str = "SameStep",
    timeout: float | None = None,
    workers: int | None = None,
    backend_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Build several environments that are stepped together.

    Args:
        env_ids: one id per environment (one id alone gives one environment).
        wrappers: applied to each environment, in order: functions of an environment, as
            :func:`gem.wrappers.wrapper_factory.get_wrapper_fns` returns them.
        vec_kwargs: constructor arguments of each environment.
        async_mode: step in threads, unless a ``backend`` is named.
        seed: environment ``i`` begins with seed ``seed + i``, unless its ``vec_kwargs`` have a ``seed``; None
            seeds from the operating system.
        backend: ``"sync"`` (the default), ``"thread"``, ``"asyncio"``, ``"process"``, ``"ray"``, or ``"auto"`` for what
            the environments declare.
        autoreset_mode: when the next episode begins; see :class:`gem.vector.AutoresetMode`.
        timeout: seconds that a step or a reset may take; not for ``"sync"``.
        workers: threads or processes, for ``"thread"`` and ``"process"``.
        backend_kwargs: further arguments of the back end's class in :mod:`gem.vector`.
        **kwargs: constructor arguments of all environments; one that has the name of an argument here goes into
            ``vec_kwargs``.

    Raises:
        ValueError: there is no such environment or back end, or ``vec_kwargs`` are too few or too many.
        TypeError: an argument is unknown.
    """
    from gem.vector.backends import choose_backend, load_backend

    ids = [env_ids] if isinstance(env_ids, str) else list(env_ids)
    if vec_kwargs is not None and len(vec_kwargs) != len(ids):
        raise ValueError(f"vec_kwargs has {len(vec_kwargs)} entries for {len(ids)} environments")
    options = {"autoreset_mode": autoreset_mode, **(backend_kwargs or {})}
    options |= {name: value for name, value in (("timeout", timeout), ("workers", workers)) if value is not None}
    first_seed = check_seed(seed)
    builds = []
    for index, env_id in enumerate(ids):
        own = dict(vec_kwargs[index]) if vec_kwargs is not None else {}
        own_seed = None if first_seed is None else first_seed + index
        arguments = {"seed": own_seed, **own, **kwargs}
        builds.append(Build(find_spec(env_id), arguments, tuple(wrappers or ())))
    name = backend or ("thread" if async_mode else "sync")
    if name == "auto":
        name = choose_backend(ids, builds, options.get("timeout") is not None)
    new = load_backend(name)
    if unknown := [option for option in options if option not in inspect.signature(new).parameters]:
        raise TypeError(f"the back end {name!r} takes no {unknown[0]}")
    return new(ids, builds, **options)


@dataclass(frozen=True)
class Build:
    """A function that builds an environment, here or in a process where nobody has registered it.

    Attributes:
        spec: of the environment.
        arguments: of :func:`make`.
        wrappers: to be applied, in order.
    """

    spec: EnvSpec
    arguments: dict[str, Any]
    wrappers: tuple[Callable[[Env], Env], ...] = ()

    @property
    def setup(self) -> tuple[Any, ...]:
        """What two functions have in common whose environments begin alike with the same seed."""
        arguments = {name: value for name, value in self.arguments.items() if name != "seed"}
        return self.spec.id, repr(arguments), self.wrappers

    def __call__(self) -> Env:
        """Build it; errors as in :func:`make`."""
        register_if_unknown(self.spec)
        env = make(self.spec.id, **self.arguments)
        for wrap in self.wrappers:
            env = wrap(env)
        return env


def print_envs() -> None:
    """Print every registered id with its entry point and arguments."""
    for spec in all_specs().values():
        print(f"{spec.id}: {spec.entry_point} {spec.kwargs}")
