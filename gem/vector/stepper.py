"""Stepper: runs one coroutine after another in an event loop.

It does what an :class:`asyncio.Task` does, for environments of which there are thousands: to make a task, or to wake
one that waits for its next order, takes longer than all else that a vector environment does for a step. Libraries still
find a task: while a coroutine runs, :func:`asyncio.current_task` is one that hands its cancellation on to it, so that
timeouts, task groups and cancel scopes work as they do elsewhere.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio.tasks import _enter_task, _leave_task  # which asyncio documents for those who run coroutines
from collections.abc import Coroutine
from typing import Any

from gem.faults import call_unforked, excerpt


class _Task(asyncio.Task):
    """A task that does nothing itself, and stands for what a stepper runs."""

    __slots__ = ("_requests", "_stepper")

    _requests: int
    _stepper: Stepper

    def cancel(self, msg: Any = None) -> bool:
        """Cancel what the stepper runs; this task, where that is nothing."""
        if self._stepper._coroutine is None:
            return super().cancel()
        self._requests += 1
        self._stepper.cancel(msg)
        return True

    def cancelling(self) -> int:
        """Return how many cancellations were asked for, and not taken back."""
        return self._requests

    def uncancel(self) -> int:
        """Take a cancellation back."""
        self._requests = max(0, self._requests - 1)
        if self._requests == 0:
            self._stepper._cancelled = None
        return self._requests

    @property
    def _fut_waiter(self) -> Any:  # which anyio looks at
        return self._stepper._waits_for


class Stepper:
    """Runs one coroutine at a time, in an event loop. It is made where the loop runs.

    Subclasses say in :meth:`ended` what comes after a coroutine.
    """

    __slots__ = ("_cancelled", "_closed", "_context", "_coroutine", "_loop", "_task", "_waits_for")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._task = _Task(_for_ever(), loop=self._loop)
        self._task._stepper, self._task._requests = self, 0
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._waits_for: Any = None
        self._cancelled: asyncio.CancelledError | None = None
        self._closed = False

    def ended(self, result: Any, failure: BaseException | None) -> Coroutine[Any, Any, Any] | None:
        """Take what a coroutine returned, or raised; return another to go on with, or None."""
        raise NotImplementedError

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine: at once until it waits, and then in the event loop; for callbacks, not for other tasks."""
        if self._closed:
            coroutine.close()
            return
        self._coroutine = coroutine
        self._task._requests = 0
        self._context.run(self._resume)

    def cancel(self, message: Any = None) -> None:
        """Raise :class:`asyncio.CancelledError` in the running coroutine, where it waits."""
        if self._waits_for is None:
            self._cancelled = asyncio.CancelledError(*([] if message is None else [message]))
        else:
            self._waits_for.cancel(message)

    def close(self) -> None:
        """Run no coroutine any more, nor go on with the running one."""
        self._closed = True
        self._coroutine = None
        self._task.cancel()

    def _resume(self, _: Any = None) -> None:
        self._waits_for = None
        error: BaseException | None = None
        _enter_task(self._loop, self._task)
        try:
            while (coroutine := self._coroutine) is not None:
                if error is None:
                    error, self._cancelled = self._cancelled, None
                try:
                    if error is None:
                        future = call_unforked(coroutine.send, None)
                    else:
                        future = call_unforked(coroutine.throw, error)
                except StopIteration as end:
                    self._coroutine, error = self.ended(end.value, None), None
                except BaseException as failure:  # noqa: BLE001 (it is told)
                    self._coroutine, error = self.ended(None, failure), None
                else:
                    error = self._wait_for(future)
                    if error is None:
                        return
        finally:
            _leave_task(self._loop, self._task)

    def _wait_for(self, future: Any) -> RuntimeError | None:
        """Go on when a future is done; return what to raise in the coroutine if it awaits anything else."""
        if future is None:  # a bare yield, as in asyncio.sleep(0)
            self._loop.call_soon(self._resume, context=self._context)
            return None
        if getattr(future, "_asyncio_future_blocking", None) is None:
            return RuntimeError(f"the coroutine awaits {excerpt(future)}, which is no future of asyncio")
        if future.get_loop() is not self._loop:
            return RuntimeError(f"the coroutine awaits {excerpt(future)}, which is attached to another event loop")
        future._asyncio_future_blocking = False
        future.add_done_callback(self._resume, context=self._context)
        self._waits_for = future
        if self._cancelled is not None:  # it was cancelled while it ran
            future.cancel(*self._cancelled.args)
            self._cancelled = None
        return None


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()
