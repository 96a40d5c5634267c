"""Other Python processes that call functions for this one.

For what may hang, crash, or depend on the process: a worker is killed when its time is up, and the next call starts
another. A worker is a fresh interpreter (not a fork, which does not go together with threads), it serves one call at
a time, and it ends with the process that started it.

A worker may have read what a model wrote. So what it answers is JSON of a limited length, never a pickle.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gem.faults import call_unforked, error_message, error_text

START_SECONDS = 60.0
MEMORY_LIMIT = 4 << 30
"""Bytes of address space that a worker may take."""

ANSWER_LIMIT = 64 << 20
"""Bytes of an answer."""


class CallNotSent(Exception):
    """A function, or what it is to be called with, cannot be sent to another process, or not be imported there."""


class CallFailed(RuntimeError):
    """A function raised in another process, or ended it."""


class CallTimeout(CallFailed):
    """A function took longer than it was given; its process was killed."""


class NotReady(RuntimeError):
    """A process could not be prepared for calls: no call was made, so nothing is known about any."""


_LENGTH = struct.Struct(">Q")


class _Channel:
    """Messages to and from another process, over a socket. Each is whole within its time, however slowly it drips.

    Both methods raise ``TimeoutError``, and ``OSError`` or ``EOFError`` if the other side is gone or sends too much.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.close = end.close

    def send(self, data: bytes, deadline: float | None = None) -> None:
        """Send a message; ``deadline`` is in ``time.monotonic()``'s seconds, None: none."""
        self._set_timeout(deadline)
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, deadline: float | None = None, limit: float = float("inf")) -> bytes:
        """Receive a message of ``limit`` bytes at most."""
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, deadline))
        if length > limit:
            raise OSError(f"a message of {length} bytes, where {limit} are allowed")
        return self._take(length, deadline)

    def _take(self, length: int, deadline: float | None) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._set_timeout(deadline)
            part = self._socket.recv(min(length - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _set_timeout(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


class Worker:
    """A Python process that calls what it is sent.

    Args:
        prepare: is called there first: it may import what the calls need, which counts as starting the process.
        variables: environment variables, beside this process's own.
    """

    def __init__(self, prepare: Callable[[], object] | None = None, variables: Mapping[str, str] | None = None) -> None:
        self._prepare = prepare
        self._variables = dict(variables or {})
        self._forget()
        atexit.register(self.stop)

    def _forget(self) -> None:
        """Begin without a process: in a fork, the one that was started, its channel and the lock are the parent's."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: _Channel | None = None
        self._loaded: set[bytes] = set()
        self._owner = os.getpid()

    def call(
        self, function: Callable[..., Any], *args: Any, timeout: float, before: tuple[Any, ...] | None = None
    ) -> Any:
        """Call a function there, and return its result, as JSON has it.

        Args:
            function: importable by its name.
            *args: its arguments, which pickle takes.
            timeout: seconds for the call; what a new process takes to import what it needs first is not counted.
            before: a function and its arguments, called once in the life of a process before calls that need what it
                loads there: what it takes is not counted either.

        Raises:
            CallNotSent: the function or an argument cannot be sent, or not be imported there.
            CallTimeout: the time was up.
            CallFailed: it raised, returned what JSON has not, or ended the process.
            NotReady: ``prepare`` raised, or took longer than :data:`START_SECONDS`.
        """
        try:
            job = pickle.dumps((function, args))
            loading = None if before is None else pickle.dumps((before[0], before[1:]))
        except Exception as error:  # an object's own __reduce__ may raise anything
            raise CallNotSent(error_message(error)) from error
        if self._owner != os.getpid():
            self._forget()
        with self._lock:
            if self._start() and self._prepare:
                self._make_ready(self._prepare)
            if loading is not None and loading not in self._loaded:
                self._send(loading, START_SECONDS)
                self._loaded.add(loading)
            answer, value = self._send(job, timeout)
        if answer == "unloadable":
            raise CallNotSent(value)
        if answer == "raised":
            raise CallFailed(value)
        return value

    def _make_ready(self, prepare: Callable[[], object]) -> None:
        try:
            answer, value = self._send(pickle.dumps((prepare, ())), START_SECONDS)
        except CallFailed as error:
            answer, value = "raised", error
        if answer != "returned":
            self.stop()
            raise NotReady(f"{prepare.__module__}.{getattr(prepare, '__qualname__', prepare)} failed: {value}")

    def _send(self, job: bytes, timeout: float) -> tuple[str, Any]:
        assert self._channel is not None, "the process was started"
        deadline = time.monotonic() + timeout
        try:
            self._channel.send(pickle.dumps((list(sys.path), job)), deadline)
            answer = self._channel.receive(deadline, ANSWER_LIMIT)
        except TimeoutError:
            self.stop()
            raise CallTimeout(f"it gave no answer in {timeout:g} s") from None
        except (EOFError, OSError):
            self.stop()
            raise CallFailed("the process ended, or answered too much") from None
        try:
            kind, value = json.loads(answer)
        except (ValueError, TypeError, RecursionError):
            self.stop()
            raise CallFailed("the process answered what is no answer") from None
        return kind, value

    def _start(self) -> bool:
        """Start the process unless it is there; return whether it was started."""
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._channel is not None:
            return False
        ours, theirs = socket.socketpair()
        self._channel = _Channel(ours)
        code = "import sys; sys.path[:] = eval(sys.argv[1]); from gem.workers import serve; serve(int(sys.argv[2]))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, repr(sys.path), str(theirs.fileno())],
            env={**os.environ, **self._variables},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()  # else the end of the process would not be noticed
        return True

    def stop(self) -> None:
        """End the process; the next call starts another."""
        if self._owner != os.getpid():
            return
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._channel is not None:
            self._channel.close()
        self._channel = self._process = None
        self._loaded.clear()


class WorkerPool:
    """Workers that share the calls of any number of threads; each is started when it is first needed.

    Args:
        size: how many calls may run at once; None: one a core, from 2 to 8.
        prepare: as in :class:`Worker`.
        variables: as in :class:`Worker`.
    """

    def __init__(
        self,
        size: int | None = None,
        prepare: Callable[[], object] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._size = size or min(8, max(2, os.cpu_count() or 2))
        self._new = partial(Worker, prepare, variables)
        self._fill()

    def _fill(self) -> None:
        self._owner = os.getpid()
        self._free: queue.LifoQueue[Worker] = queue.LifoQueue()  # the one used last has all that it needs in its cache
        for _ in range(self._size):
            self._free.put(self._new())

    def call(
        self, function: Callable[..., Any], *args: Any, timeout: float, before: tuple[Any, ...] | None = None
    ) -> Any:
        """Call a function in a free worker, waiting for one; arguments and errors as in :meth:`Worker.call`."""
        if self._owner != os.getpid():  # a fork: some may have been busy, in threads that are not here
            self._fill()
        worker = self._free.get()
        try:
            return worker.call(function, *args, timeout=timeout, before=before)
        finally:
            self._free.put(worker)


def serve(handle: int) -> None:
    """Answer calls, in the new process, until the other side is gone."""
    import resource  # which not every system has

    channel = _Channel(socket.socket(fileno=handle))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(channel, jobs), daemon=True).start()
    while True:
        path, job = jobs.get()
        sys.path[:] = path
        channel.send(call_unforked(_answer, job).encode())


def _answer(job: bytes) -> str:
    """Call a function, and return the answer as JSON."""
    try:
        function, args = pickle.loads(job)
    except (ImportError, AttributeError) as error:
        return json.dumps(("unloadable", error_message(error)))
    except BaseException as error:  # noqa: BLE001 (an argument's own __setstate__ may raise anything)
        return json.dumps(("unloadable", error_text(error)))
    try:
        return json.dumps(("returned", function(*args)))
    except BaseException as error:  # noqa: BLE001 (whatever it raises is the caller's to know)
        return json.dumps(("raised", error_text(error)))


def _receive(channel: _Channel, jobs: queue.SimpleQueue[Any]) -> None:
    """Take calls as they come; end the process, whatever it computes, when the other side is gone."""
    while True:
        try:
            jobs.put(pickle.loads(channel.receive()))
        except (EOFError, OSError):
            os._exit(0)
