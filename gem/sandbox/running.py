"""Running programs: once, or piece by piece in a session."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from gem.sandbox.limits import Limits, Result
from gem.sandbox.messages import Order
from gem.sandbox.pool import Pool, find_pool
from gem.sandbox.starting import Sandbox, new_order

GRACE_SECONDS = 5.0
"""How long a sandbox may take to kill a program before it is killed as a whole."""

NEW_PROCESS = "(The earlier process ended; this one is new and knows none of its variables.)\n"
"""Stands first in the standard error of a session's first call after its process ended."""

DRAIN_SECONDS = 0.1
"""How long what a program wrote is read after its end: without isolation, others may go on writing."""

_CHUNK = 1 << 16


def run(
    program: str | Sequence[str], stdin: str | bytes = "", limits: Limits | None = None, backend: str = "auto"
) -> Result:
    r"""Run a program in a sandbox of its own.

    >>> run("print(input()[::-1])", stdin="abc").stdout  # doctest: +SKIP
    'cba\n'

    Args:
        program: Python code, or a command and its arguments.
        stdin: what it can read.
        limits: what it may use.
        backend: ``"bubblewrap"`` or ``"landlock"``; ``"auto"``: the first of them that works here; ``"plain"``: none,
            only limits.

    Raises:
        SandboxUnavailable: there is no such sandbox here.
        ValueError: there is no such backend, or a word of the command has a NUL or a surrogate in it.
    """
    limits = limits or Limits()
    pool = find_pool(backend)
    source = _file(stdin)
    try:
        order = new_order(limits, command=not isinstance(program, str))
        code = _file(program if isinstance(program, str) else _joined(program))  # which may be too long for a message
        try:
            process = _Process(pool, order, source, code)
        finally:
            os.close(code)
    finally:
        os.close(source)
    with process:
        return process.wait(time.monotonic(), limits)


class Session:
    """A Python process in a sandbox, which keeps the variables of one piece of code for the next.

    If the process ends, because its time is up, say, the next call starts another, and tells so in its output.

    Args:
        limits: what each call may use. Of memory, processes and files that is what all calls use together.
        backend: as of :func:`run`.

    Raises:
        SandboxUnavailable: there is no such sandbox here.
        ValueError: there is no such backend.
    """

    def __init__(self, limits: Limits | None = None, backend: str = "auto") -> None:
        self.limits = limits or Limits()
        self._pool = find_pool(backend)
        self._process: _Process | None = None
        self._channel: socket.socket | None = None
        self._lost = False

    def __enter__(self) -> Session:
        """Return the session, to be closed with the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def run(self, code: str, limits: Limits | None = None) -> Result:
        """Run a piece of code.

        Args:
            code: Python; what it prints is the output, and an error that it raises goes to standard error.
            limits: what this call may use, of time and output; None: that of the session.

        Returns:
            Its ``exit_code`` is 0, 1 if it raised, what it passed to ``exit`` (which does not end the session), or
            that of the process, if it ended it.
        """
        limits = limits or self.limits
        process, channel = self._start()
        started = time.monotonic()
        source = _file(code)
        try:
            with suppress(ConnectionError):  # it has ended between the calls, as its output will show
                socket.send_fds(channel, [str(limits.cpu_seconds).encode()], [source])
        finally:
            os.close(source)
        answered = process.read(started + limits.wall_seconds, limits.output_bytes, channel)
        answer = b""
        with suppress(ConnectionError):
            answer = channel.recv(16, socket.MSG_DONTWAIT) if answered else b""
        note = NEW_PROCESS if self._lost else ""
        self._lost = not answer.isdigit()
        exit_code = process.end(kill=not answered) if self._lost else int(answer)
        result = process.result(started, not answered, exit_code, note)
        if self._lost:
            self.close()
        return result

    def close(self) -> None:
        """End the process."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.close()
        self._process = self._channel = None

    def _start(self) -> tuple[_Process, socket.socket]:
        if self._process is None or self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            nothing = os.open(os.devnull, os.O_RDONLY)
            with theirs:
                order = new_order(self.limits, session=True)
                self._process = _Process(self._pool, order, nothing, theirs.fileno())
            os.close(nothing)
        return self._process, self._channel


class _Output:
    """What a program writes to a pipe, as far as the limit goes."""

    def __init__(self) -> None:
        self.fd, self.theirs = os.pipe()
        os.set_blocking(self.fd, False)
        self.text = bytearray()
        self.truncated = False
        self.open = True

    def read(self, limit: int) -> bool:
        """Read what is there at once; return whether there was something."""
        try:
            chunk = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return False
        room = limit - len(self.text)
        self.truncated = self.truncated or len(chunk) > room
        self.text += chunk[: max(0, room)]
        self.open = bool(chunk)
        return self.open

    def take(self) -> str:
        text = self.text.decode("utf-8", "replace")
        self.text = bytearray()
        return text


class _Process:
    """A program that runs in a sandbox of a pool."""

    def __init__(self, pool: Pool, order: Order, stdin: int, code: int) -> None:
        self._pool = pool
        self._outputs = [_Output(), _Output()]
        fds = [stdin, *(output.theirs for output in self._outputs), code]
        self._sandbox: Sandbox | None = None
        try:
            self._sandbox = pool.send(order, fds)
        except BaseException:
            self.close()
            raise
        finally:
            for output in self._outputs:
                os.close(output.theirs)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def wait(self, started: float, limits: Limits) -> Result:
        """Wait for its end, and kill it when its time is up."""
        assert self._sandbox is not None
        ended = self.read(started + limits.wall_seconds, limits.output_bytes, self._sandbox.control, kill_flood=True)
        status = self.end(kill=not ended)
        for output in self._outputs:  # what is still in the pipes
            _drain(output, limits.output_bytes, time.monotonic() + DRAIN_SECONDS)
        flooded = any(output.truncated for output in self._outputs)  # even if it ended before it could be killed
        return self.result(started, not (ended or flooded), None if flooded else status)

    def read(self, deadline: float, limit: int, until: socket.socket, kill_flood: bool = False) -> bool:
        """Read what it writes until there is something in a socket; return whether that came before the deadline.

        With ``kill_flood``, more output than the limit is an end too.
        """
        poll = select.poll()
        poll.register(until, select.POLLIN)
        by_fd = {output.fd: output for output in self._outputs if output.open}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            events = poll.poll(left * 1000)
            for fd, _ in events:
                if fd in by_fd and not by_fd[fd].read(limit) and not by_fd[fd].open:
                    poll.unregister(fd)
            if kill_flood and any(output.truncated for output in self._outputs):
                return False
            if any(fd == until.fileno() for fd, _ in events):
                for output in self._outputs:
                    _drain(output, limit, deadline)
                return True
        return False

    def result(self, started: float, timed_out: bool, exit_code: int | None, note: str = "") -> Result:
        """Return what was read since the last time."""
        truncated = any(output.truncated for output in self._outputs)
        for output in self._outputs:
            output.truncated = False
        stdout, stderr = (output.take() for output in self._outputs)
        seconds = time.monotonic() - started
        return Result(exit_code, stdout, note + stderr, timed_out, truncated, seconds)

    def close(self) -> None:
        """Kill it, if it still runs, and give its sandbox back."""
        self.end(kill=True)
        for output in self._outputs:
            os.close(output.fd)
        self._outputs = []

    def end(self, kill: bool) -> int | None:
        """Wait for its end, or kill it; return its exit code, or None if it was killed."""
        if self._sandbox is None:
            return None
        sandbox, self._sandbox = self._sandbox, None
        try:
            if kill:
                sandbox.kill()
            status = sandbox.status(GRACE_SECONDS)
        except ConnectionError:
            self._pool.end(sandbox)
            return None
        except BaseException:  # an interrupt
            self._pool.end(sandbox)
            raise
        self._pool.give_back(sandbox)
        return None if status is None else os.waitstatus_to_exitcode(status)


def _drain(output: _Output, limit: int, deadline: float) -> None:
    """Read what is in a pipe; others may still write to it, so not for ever."""
    while output.open and output.read(limit) and time.monotonic() < deadline:
        pass


def _joined(command: Sequence[str]) -> bytes:
    words = [os.fsencode(word) for word in command]
    if not words or any(b"\0" in word for word in words):
        raise ValueError(f"a command has a word at least, and no NUL in any: {command!r:.80}")
    return b"".join(word + b"\0" for word in words)


def _file(content: str | bytes) -> int:
    """Return a file descriptor of a file in memory, which nobody can change."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    fd = os.memfd_create("gem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, _ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


_ADD_SEALS = 1033
_ALL_SEALS = 1 | 2 | 4 | 8  # no further seals, no shrinking, no growing, no writing
