"""Several workers that share calls."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gem.workers.worker import CallTimeout, Worker


class WorkerPool:
    """Workers that share the calls of any number of threads; each is started when it is first needed.

    Args:
        size: how many calls may run at once; None: one per core, from 2 to 8.
        prepare: as in :class:`Worker`.
        variables: as in :class:`Worker`.
        fork: as in :class:`Worker`.
    """

    def __init__(
        self,
        size: int | None = None,
        prepare: Callable[[], object] | None = None,
        variables: Mapping[str, str] | None = None,
        fork: bool = False,
    ) -> None:
        self._size = size or min(8, max(2, os.cpu_count() or 2))
        self._new = partial(Worker, prepare, variables, fork)
        self._fill()

    def _fill(self) -> None:
        self._owner = os.getpid()
        self._free, self._free_for_slow = self._workers(), self._workers()

    def _workers(self) -> queue.LifoQueue[Worker]:
        free: queue.LifoQueue[Worker] = queue.LifoQueue()  # the one used last has all that it needs in its cache
        for _ in range(self._size):
            free.put(self._new())
        return free

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        timeout: float,
        before: tuple[Any, ...] | None = None,
        quick: float | None = None,
    ) -> Any:
        """Call a function in a free worker, waiting for one.

        Args:
            function: as for :meth:`Worker.call`, as are the errors.
            *args: as there.
            timeout: as there.
            before: as there.
            quick: seconds after which a call is given up, and made again in one of as many other workers, which such
                calls have for themselves: so slow ones do not keep the others waiting.
        """
        if self._owner != os.getpid():  # a fork: some may have been busy, in threads that are not here
            self._fill()
        if quick is not None:
            with contextlib.suppress(CallTimeout):
                return _call(self._free, function, *args, timeout=quick, before=before)
        free = self._free if quick is None else self._free_for_slow
        return _call(free, function, *args, timeout=timeout, before=before)


def _call(free: queue.LifoQueue[Worker], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    worker = free.get()
    try:
        return worker.call(function, *args, **kwargs)
    finally:
        free.put(worker)
