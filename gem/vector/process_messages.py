"""What a process vector environment, its fork server and its workers send each other.

A worker imports everything here by name: an environment may replace the attributes of modules.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from pickle import HIGHEST_PROTOCOL, dumps
from time import monotonic
from typing import Any, NamedTuple

from gem.vector.outcome import StepOutcome

NOT_SAVED = b""
"""In the place of a state that cannot be saved."""
FORK, KILL = 0, 1
"""Orders to the fork server."""
ORDER = struct.Struct("qq")
"""An order and the number of a worker; or, from the fork server, number and status of a worker that has ended."""

_HEADER = struct.Struct("!qqq")
"""Of a message: the number of its environment, and the lengths of a pickle and of a saved state (-1 for none)."""


class Job(NamedTuple):
    """A call of a slot's method, for the environment of a number."""

    env: int
    method: str
    arguments: tuple[Any, ...]


class Activity(NamedTuple):
    """What a worker does.

    Attributes:
        env: which environment it is busy with, or was last; -1 before the first.
        busy: whether it still is.
        since: when that began, on the monotonic clock.
    """

    env: int
    busy: bool
    since: float


class Heartbeat:
    """Shared memory in which a worker writes what it does, for its parent.

    Args:
        file descriptor: of a file.
    """

    SIZE = 4096
    _activity = struct.Struct("q?d")
    _reason = struct.Struct("4000s")

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, self.SIZE)
        self._env, self._busy = -1, False

    def begin(self, env: int) -> None:
        """Write that the worker is busy with an environment from now on."""
        self._env, self._busy = env, True
        self.allow(0.0)

    def end(self) -> None:
        """Write that the worker is not busy any more."""
        self._busy = False
        self.allow(0.0)

    def allow(self, seconds: float) -> None:
        """Let the time of what the worker does begin again, so many seconds from now."""
        self._activity.pack_into(self._memory, 0, self._env, self._busy, monotonic() + seconds)

    def blame(self, reason: str) -> None:
        """Write that the worker has to end because of the environment that it was busy with last."""
        self._busy = True
        self.allow(0.0)
        self._reason.pack_into(self._memory, self._activity.size, reason.encode())

    def read(self) -> Activity:
        """Return what the worker does."""
        return Activity(*self._activity.unpack_from(self._memory, 0))

    def reason(self) -> str:
        """Return why the worker had to end; empty if it wrote no reason."""
        (text,) = self._reason.unpack_from(self._memory, self._activity.size)
        return text.rstrip(b"\0").decode(errors="ignore")

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


class Message(NamedTuple):
    """What goes through a socket: jobs for no particular environment, or the reply to one job.

    Attributes:
        env: the number of the environment; -1 for none.
        data: a pickle, of jobs or of an outcome.
        saved: the state after the job; None if it was not saved.
    """

    env: int
    data: bytes
    saved: bytes | None


def packed(content: Any, env: int = -1, saved: bytes | None = None) -> bytes:
    """Return a message as bytes; see :class:`Message`."""
    data = dumps(content, HIGHEST_PROTOCOL)
    return _HEADER.pack(env, len(data), -1 if saved is None else len(saved)) + data + (saved or b"")


def messages(buffer: bytearray) -> Iterator[Message]:
    """Take the messages out of a buffer that are there as a whole."""
    while len(buffer) >= _HEADER.size:
        env, length, more = _HEADER.unpack_from(buffer)
        middle = _HEADER.size + length
        end = middle + max(0, more)
        if len(buffer) < end:
            return
        message = Message(env, bytes(buffer[_HEADER.size : middle]), None if more < 0 else bytes(buffer[middle:end]))
        del buffer[:end]
        yield message


def fingerprint(outcome: StepOutcome) -> int:
    """Return a number that another outcome is unlikely to have."""
    return zlib.crc32(repr(outcome[:4]).encode())
