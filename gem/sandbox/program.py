"""What a process does once it is the program: streams, and running code as an interpreter would.

:mod:`gem.sandbox.zygote` imports it from the same folder, within a sandbox too. It imports little, for the same reason.
"""

from __future__ import annotations

import atexit
import contextlib
import linecache
import math
import os
import resource
import signal
import socket
import sys
import threading
import traceback
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def open_streams() -> None:
    """Put new streams in the place of this process's, for all programs: a file to read, and pipes to write to."""
    file = os.memfd_create("stdin")
    os.dup2(file, 0)
    os.close(file)
    os.dup2(2, 1)  # a pipe
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def execute(words: bytes) -> NoReturn:
    """Become another program; its words end with a zero byte each."""
    command = words.split(b"\0")[:-1]
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, command[0] + f": {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def serve_session(channel: socket.socket) -> NoReturn:
    """Run pieces of code, with the variables of the earlier ones, until the other side is gone."""
    names = new_main()
    number = 0
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 64, 1)
        if not message:
            os._exit(0)
        number += 1
        usage = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(usage.ru_utime + usage.ru_stime + float(message))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        code = run_code(read_all(fds[0]), f"call {number}", names)
        flush()
        channel.send(str(code).encode())


def read_all(fd: int) -> bytes:
    """Return what is in a file, and close it."""
    source = os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)
    return source


def new_main() -> dict[str, Any]:
    """Make the module in which the program runs; return its variables."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv[:] = ["main.py"]
    sys.path.insert(0, "")  # the folder of the run
    return module.__dict__


def run_code(source: bytes, name: str, names: dict[str, Any]) -> int:
    """Run code as an interpreter would, and return its exit code."""
    text = source.decode("utf-8", "replace")
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    try:
        exec(compile(source, name, "exec"), names)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 (an interpreter shows whatever it is)
        trace = error.__traceback__
        traceback.print_exception(type(error), error, trace.tb_next if trace else None)
        return 1
    return 0


def flush() -> None:
    """Write what the streams hold back."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # whatever the program put there
            stream.flush()


def end(code: int) -> NoReturn:
    """End as an interpreter would, without taking itself apart, which takes longer than most programs."""
    with contextlib.suppress(BaseException):
        if threading.active_count() > 1:
            threading._shutdown()  # type: ignore[attr-defined] # waits for threads
        atexit._run_exitfuncs()
    flush()
    os._exit(code)
