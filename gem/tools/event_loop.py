"""The event loop in which tools await: one for the process, in a thread of its own.

Steps run in any thread, with or without an event loop in it; a connection belongs to one loop. So all that tools await
runs in this one, where a thousand episodes can hold their connections, and a step waits for it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_starting.release)


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop; it is started when it is first needed, and again in a fork."""
    with _starting:
        return _loop_of(os.getpid())


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the loop, and wait for its result; what it raises is raised here.

    Raises:
        RuntimeError: this is called in the loop itself, which cannot wait for itself.
    """
    loop = event_loop()
    if asyncio._get_running_loop() is loop:
        coroutine.close()
        raise RuntimeError("a tool's coroutine must await, and not call another tool's execute_action")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # whoever waited was interrupted
        raise


@lru_cache(maxsize=1)
def _loop_of(process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="gem-tools", daemon=True).start()
    return loop
