"""Sandboxes that are started and wait for a program.

Starting one takes much longer than most programs do, so they are kept: a run leaves nothing behind in them.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from gem.sandbox.limits import SandboxUnavailable
from gem.sandbox.messages import Order
from gem.sandbox.starting import Sandbox, start_bubblewrap, start_landlock, start_plain

KEPT = max(4, 2 * (os.cpu_count() or 1))
"""Sandboxes of a kind that are kept when nobody uses them: with more than some a processor, many runs take longer."""


PATIENCE = 0.05
"""Seconds without any sandbox coming back, after which one more is started than are kept."""


class Pool:
    """Sandboxes of a kind.

    Args:
        start: starts one.
    """

    def __init__(self, start: Callable[[], Sandbox]) -> None:
        self._start = start
        self._started: set[Sandbox] = set()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def _forget(self) -> None:
        """Begin without sandboxes: in a fork, those that were started are the parent's, and end with it alone."""
        for sandbox in self._started:
            sandbox.control.close()
        self._changed = threading.Condition()
        self._line = threading.Semaphore(KEPT)  # of those who look whether one comes back; the others only wait
        self._free: list[Sandbox] = []
        self._started = set()
        self._last_back = 0.0

    def send(self, order: Order, fds: Sequence[int]) -> Sandbox:
        """Let a sandbox run a program, and return it: it is the caller's until it is given back.

        Raises:
            SandboxUnavailable: none could be started.
        """
        while True:
            sandbox = self._take(wait=not order["session"])
            new = sandbox is None
            if sandbox is None:
                sandbox = self._start()
                with self._changed:
                    self._started.add(sandbox)
            try:
                sandbox.send(order, fds)
                return sandbox
            except ConnectionError:  # it has ended while it waited
                self.end(sandbox)
                if new:
                    raise SandboxUnavailable("the sandbox ended as soon as it had started") from None

    def _take(self, wait: bool) -> Sandbox | None:
        """Return a sandbox that is free, or None if another is to be started.

        If as many are there as are kept, to wait for one is cheaper than to start one, as long as they come back.
        """
        with self._line if wait else nullcontext(), self._changed:
            while wait and not self._free and len(self._started) >= KEPT:
                if not self._changed.wait(PATIENCE) and time.monotonic() - self._last_back > PATIENCE:
                    break
            return self._free.pop() if self._free else None

    def give_back(self, sandbox: Sandbox) -> None:
        """Keep a sandbox, whose program has ended, for another."""
        with self._changed:
            self._last_back = time.monotonic()
            self._started.add(sandbox)
            if len(self._free) < KEPT:
                self._free.append(sandbox)
                self._changed.notify()
                return
        self.end(sandbox)

    def end(self, sandbox: Sandbox) -> None:
        """End a sandbox, and what runs in it."""
        with self._changed:
            self._started.discard(sandbox)
        sandbox.close()

    def close(self) -> None:
        """End those that wait."""
        with self._changed:
            free, self._free = self._free, []
        for sandbox in free:
            self.end(sandbox)


BACKENDS: dict[str, Callable[[], Sandbox]] = {
    "bubblewrap": start_bubblewrap,
    "landlock": start_landlock,
    "plain": start_plain,
}
"""What starts a sandbox, by name; "auto" tries all but "plain", in this order."""


def find_pool(backend: str, without: str = "backend='plain'") -> Pool:
    """Return the sandboxes of a backend.

    Args:
        backend: its name, or ``"auto"`` for the first that works here.
        without: how the caller's user chooses to have no sandbox; the error names it.

    Raises:
        SandboxUnavailable: it does not work here.
        ValueError: there is none of this name.
    """
    if backend == "auto":
        try:
            backend = find_backend()
        except SandboxUnavailable as error:
            raise SandboxUnavailable(f"{error}. Code runs without isolation with {without}.") from None
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "plain":
        _warn()
    return _pool(backend)


@functools.cache
def _pool(backend: str) -> Pool:
    return Pool(BACKENDS[backend])


@functools.cache
def _warn() -> None:
    text = "backend='plain' isolates nothing: the code can read and write files, and use the network, as you can"
    warnings.warn(text, stacklevel=4)


@functools.cache
def find_backend() -> str:
    """Return the name of the first sandbox that works here, by starting it.

    Raises:
        SandboxUnavailable: none does.
    """
    problems = []
    for name in BACKENDS:
        if name == "plain":
            continue
        try:
            sandbox = BACKENDS[name]()
        except SandboxUnavailable as error:
            problems.append(f"{name}: {error}")
            continue
        if problems:
            text = f"{'; '.join(problems)}. So {name} is used, which keeps less out: `gem doctor` tells what"
            warnings.warn(text, stacklevel=4)
        _pool(name).give_back(sandbox)
        return name
    raise SandboxUnavailable(f"no sandbox works here ({'; '.join(problems)}); docs/sandbox.md says what it takes")
