"""A command whose whole tree of processes ends with it, or with the process that started it.

A trainer starts servers, workers and daemons, some of them in sessions of their own, and leaves some behind. So it runs
below a *supervisor*: this file, as a program. On Linux a process below the supervisor that loses its parent becomes the
supervisor's child, so the supervisor finds all of them. It also reads a pipe whose other end closes with the process
that started it, however that ends, by SIGKILL too. On other systems the supervisor ends the command's process group.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO

END_SECONDS = 10.0
"""How long processes may take to end when they are asked to (SIGTERM), before they are killed."""

GIVE_UP_SECONDS = 60.0
"""What cannot be killed is left after so long."""

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_ADOPT = 36


class ProcessTree:
    """A command, and all that it starts. A context manager, at whose end nothing of it is left.

    Args:
        command: its words.
        env: environment variables; None: those of this process.
        stdout: a file for its standard output; None: that of this process.
        stderr: the same for its standard error.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdout: int | IO[bytes] | IO[str] | None = None,
        stderr: int | IO[bytes] | IO[str] | None = None,
    ) -> None:
        theirs, self._ours = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), str(theirs), *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[theirs],
                start_new_session=True,  # so that Ctrl-C reaches this process alone
            )
        except BaseException:
            os.close(self._ours)
            raise
        finally:
            os.close(theirs)

    def __enter__(self) -> ProcessTree:
        """Return the tree, to be ended with the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.end()

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the command's exit code (128 and the number of the signal that ended it); None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def end(self) -> int:
        """End what is left of it, and return the command's exit code."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1
        return self.process.wait()


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise ``SystemExit`` within the block, as Ctrl-C raises ``KeyboardInterrupt``.

    So what is to be cleaned up is, where a scheduler or a closed terminal ends the process.
    """

    def raise_exit(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, raise_exit) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervise(pipe: int, command: list[str]) -> int:
    """Run a command, wait for its end or that of the pipe, and end all that is left; return its exit code."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_ADOPT, 1, 0, 0, 0)
    wake, waker = os.pipe()
    for fd in (wake, waker):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(waker)
    for number in (*_SIGNALS, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None)
    os.set_inheritable(pipe, False)
    child = subprocess.Popen(command, start_new_session=True)  # kept: else Popen would take its exit code
    first = child.pid
    statuses: dict[int, int] = {}
    ended = False
    while first not in statuses and not ended:
        ready, _, _ = select.select([pipe, wake], [], [])
        ended = pipe in ready or any(byte != signal.SIGCHLD for byte in _read(wake))
        _reap(statuses)
    _end_all(first, statuses)
    status = statuses.get(first)
    if status is None:
        return 128 + signal.SIGKILL
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _read(fd: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, 1 << 12)
    return b""


def _reap(statuses: dict[int, int]) -> None:
    """Note the ends of this process's children."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            statuses[pid] = status


def _end_all(first: int, statuses: dict[int, int]) -> None:
    """End what is left of a command: ask all to end, then kill them, and at last give up."""
    begin = time.monotonic()
    asked: set[int] = set()
    while (seconds := time.monotonic() - begin) < GIVE_UP_SECONDS:
        _reap(statuses)
        left = set(_descendants() if sys.platform == "linux" else _group(first))
        if not left:
            return
        kill = seconds > END_SECONDS
        for pid in left if kill else left - asked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
        asked |= left
        time.sleep(0.05)


def _descendants() -> list[int]:
    """Return the processes below this one."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found = list(children.get(os.getpid(), ()))
    for pid in found:  # which grows meanwhile
        found += children.get(pid, ())
    return found


def _group(leader: int) -> list[int]:
    """Return the number by which ``kill`` reaches a group of processes, if there is one."""
    try:
        os.kill(-leader, 0)
    except (ProcessLookupError, PermissionError):
        return []
    return [-leader]


if __name__ == "__main__":
    sys.exit(_supervise(int(sys.argv[1]), sys.argv[2:]))
