"""A worker process as a process vector environment sees it, and what it takes to bring an environment back."""

from __future__ import annotations

import contextlib
import pickle
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from gem.core import Env
from gem.faults import error_text
from gem.vector.outcome import StepOutcome
from gem.vector.process_messages import (
    FORK,
    NOT_SAVED,
    ORDER,
    Activity,
    Heartbeat,
    Job,
    Message,
    fingerprint,
    messages,
    packed,
)
from gem.vector.slot import AutoresetMode

_CHUNK = 1 << 18


class Past:
    """How an environment came into its state.

    Attributes:
        build: what built it, as a pickle; None for the function that the vector environment was given.
        saved: the state that was saved last; None for a new environment.
        calls: since then: methods, arguments, and fingerprints of what they returned.
    """

    def __init__(self) -> None:
        self.build: bytes | None = None
        self.saved: bytes | None = None
        self.calls: list[tuple[str, tuple[Any, ...], int]] = []

    def add(self, job: Job, outcome: StepOutcome | None, saved: bytes | None) -> None:
        """Go on by a job that was done.

        Args:
            job: what was done.
            outcome: what it returned; None if that cannot be read.
            saved: the state after it; None if it was not saved.
        """
        if saved is not None or outcome is None:
            self.saved, self.calls = saved or NOT_SAVED, []
            return
        if job.method != "step":  # a seeded reset, or another environment
            self.saved, self.calls = None, []
        if job.method == "assign_pickled":
            self.build = job.arguments[0]
        if job.method in ("reset", "step"):
            self.calls.append((job.method, job.arguments, fingerprint(outcome)))


class WorkerHandle:
    """A worker process, as its parent sees it.

    Attributes:
        number: by which the fork server knows it; another for each process.
        indices: of its environments.
        jobs: that it has not answered, by index.
        tries: how often an environment was replaced for the job that it has now, by index.
        late: what it did for too long, so that it was killed.
        posted: when it was sent jobs, on the monotonic clock.
        open: whether it has not closed its side of the socket.
        deaths: how often it ended, without having answered anything, by nobody's fault or by that of an environment
            from which nothing was expected.
    """

    def __init__(self, indices: range) -> None:
        self.indices = indices
        self.jobs: dict[int, Job] = {}
        self.tries: dict[int, int] = {}
        self.deaths = 0

    def begin(self, number: int, control: socket.socket) -> None:
        """Have a process started."""
        self.number = number
        self.late: Activity | None = None
        self.posted = 0.0
        self.open = True
        self._outgoing, self._incoming = bytearray(), bytearray()
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        with theirs, tempfile.TemporaryFile() as file:
            file.truncate(Heartbeat.SIZE)
            self.heartbeat = Heartbeat(file.fileno())
            self.heartbeat.end()
            with contextlib.suppress(ConnectionError):  # the fork server has ended: the next exchange tells
                socket.send_fds(control, [ORDER.pack(FORK, number)], [theirs.fileno(), file.fileno()])

    def post(self, jobs: list[Job]) -> bool:
        """Send jobs as far as that goes without waiting; return whether all is sent."""
        if jobs:
            self._outgoing += packed(jobs)
            self.posted = time.monotonic()
        try:
            while self._outgoing:
                del self._outgoing[: self.socket.send(memoryview(self._outgoing)[:_CHUNK].tobytes())]
        except (BlockingIOError, ConnectionError):  # the fork server tells of those that ended
            return False
        return True

    def receive(self) -> list[Message]:
        """Return the replies that are there."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while data := self.socket.recv(_CHUNK):
                self._incoming += data
            self.open = False
        return list(messages(self._incoming))

    def end(self) -> None:
        """Give back what belongs to a process that has ended."""
        self.socket.close()
        self.heartbeat.close()


def pickle_setup(env_fns: Sequence[Callable[[], Env]], mode: AutoresetMode, memory_limit: int | None) -> bytes:
    """Return what the fork server needs; see :func:`gem.vector.process_worker.serve`."""
    data = pickle_builds((env_fns, mode, memory_limit))
    main: dict[str, Any] = {}
    if b"__main__" in data:
        from multiprocessing import spawn

        names = ("init_main_from_name", "init_main_from_path")
        found = spawn.get_preparation_data("gem-vector")
        main = {name: found[name] for name in names if name in found}
    return pickle.dumps((main, data))


def pickle_builds(builds: Any) -> bytes:
    """Return functions that build environments, as a pickle.

    Raises:
        TypeError: they cannot be sent to another process.
    """
    try:
        return pickle.dumps(builds)
    except Exception as error:
        raise TypeError(
            f"the environments cannot be sent to other processes ({error_text(error)}): build and wrap them by "
            "functions and classes that can be imported, not by a lambda or a function inside another"
        ) from error
