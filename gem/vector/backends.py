"""Where environments are stepped: the back ends by name, and which is right for an environment."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from gem.core import Env
from gem.vector.vector_env import VectorEnv

BACKENDS = {
    "sync": "gem.vector.sync_vector_env:SyncVectorEnv",
    "thread": "gem.vector.thread_vector_env:ThreadVectorEnv",
    "asyncio": "gem.vector.asyncio_vector_env:AsyncioVectorEnv",
    "process": "gem.vector.process_vector_env:ProcessVectorEnv",
    "ray": "gem.vector.ray_vector_env:RayVectorEnv",
}
"""For each name, the module and the class."""


def load_backend(name: str) -> Callable[..., VectorEnv]:
    """Return the class of a back end.

    Raises:
        ValueError: there is none of this name.
        ImportError: it needs a package that is not installed.
    """
    if name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; there are auto, {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def choose_backend(env_ids: Sequence[str], env_fns: Sequence[Callable[[], Env]], deadline: bool = False) -> str:
    """Return the name of the back end for what environments declare: the one that the most demanding needs.

    ``process`` if one is ``cpu_bound``; ``thread`` if one is ``blocking`` and has no async steps; ``asyncio`` if one
    has; else ``sync``.

    Args:
        env_ids: one id per environment; one of each is built, asked, and closed.
        env_fns: build the environments.
        deadline: whether steps have a timeout, which ``sync`` cannot keep.
    """
    first = dict(zip(reversed(env_ids), reversed(env_fns), strict=True))
    found = set()
    for build in first.values():
        env: Any = build()
        asynchronous = getattr(env, "asynchronous", False)
        blocks = "thread" if getattr(env, "blocking", True) else "sync"
        found.add("process" if getattr(env, "cpu_bound", False) else "asyncio" if asynchronous else blocks)
        env.close()
    needed = next((name for name in ("process", "thread", "asyncio") if name in found), "sync")
    return "thread" if needed == "sync" and deadline else needed
