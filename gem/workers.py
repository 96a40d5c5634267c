"""Other Python processes that call functions for this one.

For what may hang, crash, or depend on the process: a worker is killed when its time is up, and the next call starts
another. A worker is a fresh interpreter (not a fork of this process, which does not go together with threads), it
serves one call at a time, and it ends with the process that started it.

With ``fork``, that interpreter only imports what calls need, and a fork of it serves them: it has one thread, and a
fork is there in milliseconds, where the imports take seconds. The fork has a socket of its own to this process, since
one in the middle of a message is no good to its successor.

A worker may have read what a model wrote. So what it answers is JSON of a limited length, never a pickle.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import math
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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

    def send_fd(self, fd: int) -> None:
        """Send a file descriptor, with a message of no bytes."""
        socket.send_fds(self._socket, [_LENGTH.pack(0)], [fd])

    def receive_with_fd(self) -> tuple[bytes, int | None]:
        """Receive a message, and the file descriptor that has come with it."""
        begin, fds, _, _ = socket.recv_fds(self._socket, _LENGTH.size, 1)
        if not begin:
            raise EOFError
        (length,) = _LENGTH.unpack(begin + self._take(_LENGTH.size - len(begin), None))
        return self._take(length, None), fds[0] if fds else None

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
        fork: call functions in a fork of that process. It is the fork that ends with a call that takes too long, so the
            next call need not wait until all is imported again.
    """

    def __init__(
        self,
        prepare: Callable[[], object] | None = None,
        variables: Mapping[str, str] | None = None,
        fork: bool = False,
    ) -> None:
        self._prepare = prepare
        self._fork = fork
        self._variables = dict(variables or {})
        self._forget()
        atexit.register(self.stop)

    def _forget(self) -> None:
        """Begin without a process: in a fork, the one that was started, its channel and the lock are the parent's."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: _Channel | None = None
        self._channel_of_fork: _Channel | None = None
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
                self._send(self._channel, loading, START_SECONDS)
                self._loaded.add(loading)
                self._close_fork()  # which has not what was loaded
            if not self._fork:
                answer, value = self._send(self._channel, job, timeout)
            else:
                if self._channel_of_fork is None:
                    self._start_fork()
                answer, value = self._send(self._channel_of_fork, job, timeout, timeout)
        if answer == "unloadable":
            raise CallNotSent(value)
        if answer == "raised":
            raise CallFailed(value)
        return value

    def _make_ready(self, prepare: Callable[[], object]) -> None:
        try:
            answer, value = self._send(self._channel, pickle.dumps((prepare, ())), START_SECONDS)
        except CallFailed as error:
            answer, value = "raised", error
        if answer != "returned":
            self.stop()
            raise NotReady(f"{prepare.__module__}.{getattr(prepare, '__qualname__', prepare)} failed: {value}")

    def _send(
        self, channel: _Channel | None, job: bytes, timeout: float, processor_seconds: float | None = None
    ) -> tuple[str, Any]:
        assert channel is not None, "the process was started"
        deadline = time.monotonic() + timeout
        try:
            channel.send(pickle.dumps((list(sys.path), job, processor_seconds)), deadline)
            kind, value = json.loads(channel.receive(deadline, ANSWER_LIMIT))
        except TimeoutError:
            self._end(channel)
            raise CallTimeout(f"it gave no answer in {timeout:g} s") from None
        except (EOFError, OSError):
            self._end(channel)
            raise CallFailed("the process ended, or answered too much") from None
        except (ValueError, TypeError, RecursionError):
            self._end(channel)
            raise CallFailed("the process answered what is no answer") from None
        return kind, value

    def _end(self, channel: _Channel) -> None:
        """End the process at the other side, whatever it does."""
        if channel is self._channel:
            self.stop()
        else:
            self._start_fork()  # which ends the one before

    def _start_fork(self) -> None:
        """Have the process end its fork, if there is one, and make another."""
        assert self._channel is not None, "the process was started"
        self._close_fork()
        ours, theirs = socket.socketpair()
        try:
            self._channel.send_fd(theirs.fileno())
            self._channel.receive(time.monotonic() + START_SECONDS)
        except (EOFError, OSError):
            ours.close()
            self.stop()
            raise CallFailed("the process ended") from None
        finally:
            theirs.close()
        self._channel_of_fork = _Channel(ours)

    def _close_fork(self) -> None:
        if self._channel_of_fork is not None:
            self._channel_of_fork.close()
        self._channel_of_fork = None

    def _start(self) -> bool:
        """Start the process unless it is there; return whether it was started."""
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._channel is not None:
            return False
        ours, theirs = socket.socketpair()
        self._channel = _Channel(ours)
        code = "import sys; sys.path[:] = eval(sys.argv[1]); from gem.workers import serve; serve(*eval(sys.argv[2]))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, repr(sys.path), repr((theirs.fileno(), self._fork))],
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
        self._close_fork()
        self._channel = self._process = None
        self._loaded.clear()


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


def serve(fd: int, fork: bool) -> None:
    """Answer calls, in the new process, until the other side is gone."""
    import resource  # which not every system has

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    channel = _Channel(socket.socket(fileno=fd))
    if fork:
        _serve_by_forks(channel)
    else:
        _serve(channel)


def _serve(channel: _Channel) -> None:
    for message in _received(channel):
        sys.path[:], job, seconds = pickle.loads(message)
        if seconds is not None:
            _limit_processor_time(seconds)
        channel.send(call_unforked(_answer, job))


def _serve_by_forks(channel: _Channel) -> None:
    """Load what calls need; for each socket that comes, end the fork that there is, and make one that serves there."""
    fork = 0
    while True:
        try:
            message, fd = channel.receive_with_fd()
        except (EOFError, OSError):
            message, fd = b"", None
        if fork:
            os.kill(fork, signal.SIGKILL)
            os.waitpid(fork, 0)
            fork = 0
        if fd is not None:
            fork = _fork_to_serve(fd, channel)
            channel.send(b"")
        elif message:
            sys.path[:], job, _ = pickle.loads(message)
            channel.send(call_unforked(_answer, job))
        else:
            os._exit(0)


def _fork_to_serve(fd: int, channel: _Channel) -> int:
    """Make a fork of this process that answers the calls from a file descriptor; return its number."""
    fork = os.fork()
    if fork == 0:
        try:
            channel.close()
            gc.freeze()  # a collection would touch, and so copy, all that there is
            _serve(_Channel(socket.socket(fileno=fd)))
        finally:
            os._exit(0)
    os.close(fd)
    return fork


def _limit_processor_time(seconds: float) -> None:
    """End this process if it computes for so long from now on, for when there is nobody left to end it."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _answer(job: bytes) -> bytes:
    """Call a function, and return the answer as JSON."""
    try:
        function, args = pickle.loads(job)
    except (ImportError, AttributeError) as error:
        answer = json.dumps(("unloadable", error_message(error)))
    except BaseException as error:  # noqa: BLE001 (an argument's own __setstate__ may raise anything)
        answer = json.dumps(("unloadable", error_text(error)))
    else:
        try:
            answer = json.dumps(("returned", function(*args)))
        except BaseException as error:  # noqa: BLE001 (whatever it raises is the caller's to know)
            answer = json.dumps(("raised", error_text(error)))
    return answer.encode()


def _received(channel: _Channel) -> Iterator[bytes]:
    """Yield the messages that come; end this process, whatever it computes, when the other side is gone."""
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def receive() -> None:
        while True:
            try:
                messages.put(channel.receive())
            except (EOFError, OSError):
                os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    while True:
        yield messages.get()
