"""One worker, as the process that has started it sees it."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from gem.faults import error_message
from gem.workers.channel import Channel

START_SECONDS = 60.0
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
        self._channel: Channel | None = None
        self._channel_of_fork: Channel | None = None
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
        """Call ``prepare`` in the new process; stop it, and raise :class:`NotReady`, if that fails."""
        try:
            answer, value = self._send(self._channel, pickle.dumps((prepare, ())), START_SECONDS)
        except CallFailed as error:
            answer, value = "raised", error
        if answer != "returned":
            self.stop()
            raise NotReady(f"{prepare.__module__}.{getattr(prepare, '__qualname__', prepare)} failed: {value}")

    def _send(
        self, channel: Channel | None, job: bytes, timeout: float, processor_seconds: float | None = None
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

    def _end(self, channel: Channel) -> None:
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
        self._channel_of_fork = Channel(ours)

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
        self._channel = Channel(ours)
        code = "import sys; sys.path[:] = eval(sys.argv[1]); from gem.workers.serving import serve"
        code += "; serve(*eval(sys.argv[2]))"
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
