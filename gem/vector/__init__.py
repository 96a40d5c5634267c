"""Vector environments: several environments that are stepped together, or each at its own pace.

:func:`gem.make_vec` builds them. The classes are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gem.vector.asyncio_vector_env import AsyncioVectorEnv
    from gem.vector.collecting import collect
    from gem.vector.env_pool import EnvPool
    from gem.vector.outcome import CrashLoop
    from gem.vector.process_vector_env import ProcessVectorEnv
    from gem.vector.ray_vector_env import RayVectorEnv
    from gem.vector.slot import AutoresetMode
    from gem.vector.sync_vector_env import SyncVectorEnv
    from gem.vector.thread_vector_env import ThreadVectorEnv
    from gem.vector.vector_env import Ready, VectorEnv

__all__ = [
    "AsyncioVectorEnv",
    "AutoresetMode",
    "CrashLoop",
    "EnvPool",
    "ProcessVectorEnv",
    "RayVectorEnv",
    "Ready",
    "SyncVectorEnv",
    "ThreadVectorEnv",
    "VectorEnv",
    "collect",
]

_MODULES = {
    "AsyncioVectorEnv": "asyncio_vector_env",
    "AutoresetMode": "slot",
    "CrashLoop": "outcome",
    "EnvPool": "env_pool",
    "ProcessVectorEnv": "process_vector_env",
    "RayVectorEnv": "ray_vector_env",
    "Ready": "vector_env",
    "SyncVectorEnv": "sync_vector_env",
    "ThreadVectorEnv": "thread_vector_env",
    "VectorEnv": "vector_env",
    "collect": "collecting",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
