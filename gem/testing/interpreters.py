"""Other Python processes, in which strings hash otherwise: to find what depends on the process.

They are started once, and play everything that is sent to them, one environment after another: so what they find is
also what depends on the environments that were played before.
"""

from __future__ import annotations

import atexit
import functools
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

HASH_SEEDS = ("1", "2")
"""``PYTHONHASHSEED`` of the processes: two, since a small set may keep its order in one."""

JOB_SECONDS = 120.0


class CannotLeaveProcess(Exception):
    """A function, or what it is to be called with, cannot be sent to another process."""


class Interpreter:
    """A Python process that calls what it is sent, until this process ends.

    Args:
        hash_seed: its ``PYTHONHASHSEED``.
    """

    def __init__(self, hash_seed: str) -> None:
        self._hash_seed = hash_seed
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        atexit.register(self.stop)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function there and return its result.

        Raises:
            CannotLeaveProcess: the function or an argument cannot be sent, or not be imported there.
            RuntimeError: it raised, took longer than :data:`JOB_SECONDS`, or ended the process.
        """
        try:
            job = pickle.dumps((function, args))
        except Exception as error:  # an object's own __reduce__ may raise anything
            raise CannotLeaveProcess(str(error)) from error
        with self._lock:
            answer, value = self._send(job)
        if answer == "unloadable":
            raise CannotLeaveProcess(value)
        if answer == "raised":
            raise RuntimeError(f"the other process failed: {value}")
        return value

    def _send(self, job: bytes) -> tuple[str, Any]:
        pipe = self._start()
        try:
            pipe.send((list(sys.path), job))
            if not pipe.poll(JOB_SECONDS):
                self.stop()
                return "raised", f"it gave no answer in {JOB_SECONDS:.0f} s"
            return pipe.recv()
        except (EOFError, OSError):
            self.stop()
            return "raised", "it ended"

    def _start(self) -> Connection:
        if self._pipe is not None and self._process is not None and self._process.poll() is None:
            return self._pipe
        self.stop()
        self._pipe, theirs = Pipe()
        code = "import sys; sys.path[:] = eval(sys.argv[1]); "
        code += "from gem.testing.interpreters import _serve; _serve(int(sys.argv[2]))"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, repr(sys.path), str(theirs.fileno())],
            env={**os.environ, "PYTHONHASHSEED": self._hash_seed},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()  # else the end of the process would not be noticed
        return self._pipe

    def stop(self) -> None:
        """End the process; the next call starts another."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None


@functools.cache
def interpreters() -> tuple[Interpreter, ...]:
    """Return the processes, which all checks share: one for each of :data:`HASH_SEEDS`."""
    return tuple(Interpreter(hash_seed) for hash_seed in HASH_SEEDS)


def _serve(handle: int) -> None:
    """Answer jobs, in the new process, until the other side of the pipe is gone."""
    pipe = Connection(handle)
    while True:
        try:
            path, job = pipe.recv()
        except EOFError:
            return
        sys.path[:] = path
        try:
            function, args = pickle.loads(job)
        except (ImportError, AttributeError) as error:
            pipe.send(("unloadable", str(error)))
            continue
        try:
            answer = ("returned", function(*args))
        except BaseException as error:  # noqa: BLE001 (whatever it raises is the finding)
            answer = ("raised", "".join(traceback.format_exception_only(type(error), error)).strip())
        pipe.send(answer)
