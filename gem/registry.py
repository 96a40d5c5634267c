"""The registry: what is known under an id such as ``game:GuessTheNumber-v0-easy``.

Registering imports nothing: an entry point is text, loaded by the first :func:`gem.make`. Other packages add
environments by an entry point in the group ``gem.envs``, whose name is the id and whose value the class:

.. code-block:: toml

    [project.entry-points."gem.envs"]
    "mylab:Maze-v0" = "mylab.maze:MazeEnv"
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from gem.core import Env, EnvSpec

ENTRY_POINT_GROUP = "gem.envs"

ENV_REGISTRY: dict[str, EnvSpec] = {}
_entry_points_read = False
_entry_points_lock = threading.Lock()


def register(env_id: str, entry_point: Callable[..., Env] | str, **kwargs: Any) -> None:
    """Add an environment.

    Args:
        env_id: ``family:Name-vN`` or ``family:Name-vN-variant``. N goes up whenever rules or rewards change.
        entry_point: the class, a function that returns an environment, or ``"module:Name"``.
        **kwargs: arguments that ``make`` passes on.

    Raises:
        ValueError: the id is taken.
    """
    if env_id in ENV_REGISTRY:
        raise ValueError(f"environment {env_id!r} is registered already, as {ENV_REGISTRY[env_id].entry_point}")
    ENV_REGISTRY[env_id] = EnvSpec(env_id, entry_point, kwargs)


def all_specs() -> dict[str, EnvSpec]:
    """Return every registered environment by id, those of other packages included (not imported)."""
    _read_entry_points()
    return dict(ENV_REGISTRY)


def find_spec(env_id: str) -> EnvSpec:
    """Return the environment registered under ``env_id``.

    Raises:
        ValueError: there is none; the message gives the nearest ids.
    """
    if env_id not in ENV_REGISTRY:
        _read_entry_points()
    if env_id not in ENV_REGISTRY:
        raise ValueError(_unknown(env_id))
    return ENV_REGISTRY[env_id]


def register_if_unknown(spec: EnvSpec) -> None:
    """Register an environment in a process that may not know it, since another process registered it."""
    try:
        find_spec(spec.id)
    except ValueError:
        ENV_REGISTRY[spec.id] = spec


def _unknown(env_id: str) -> str:
    import difflib

    by_lower = {known.lower(): known for known in ENV_REGISTRY}
    near = difflib.get_close_matches(str(env_id).lower(), by_lower, n=4, cutoff=0.5)
    hint = f"The nearest: {', '.join(by_lower[name] for name in near)}. " if near else ""
    own = ""
    if str(env_id).partition(":")[0] not in {known.partition(":")[0] for known in ENV_REGISTRY if _is_ours(known)}:
        own = f" A package of yours must be installed in {sys.prefix}, and again when its entry points change."
    return f"there is no environment {env_id!r}. {hint}`gem envs` lists them all.{own}"


def _is_ours(env_id: str) -> bool:
    return str(ENV_REGISTRY[env_id].entry_point).startswith("gem.")


def _read_entry_points() -> None:
    global _entry_points_read
    with _entry_points_lock:
        if _entry_points_read:
            return
        from importlib.metadata import entry_points

        for point in entry_points(group=ENTRY_POINT_GROUP):
            if point.name in ENV_REGISTRY:
                taken_by = ENV_REGISTRY[point.name].entry_point
                warnings.warn(f"{point.value} asks for the id {point.name!r}, which {taken_by} has", stacklevel=3)
            else:
                ENV_REGISTRY[point.name] = EnvSpec(point.name, point.value)
        _entry_points_read = True
