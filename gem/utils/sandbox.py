"""Running Python code that a model wrote, in a process of its own.

What holds: the time limit (the whole process group is killed), limits on memory and on the size of files, an
environment without this process's variables, a folder that is removed. What does not: **the code is not isolated.** It
has the rights of this process, and can read and write its files and use the network. ``sandbox_type="bwrap"`` runs it
in bubblewrap, without a network and with a read-only view of the system.
"""

from __future__ import annotations

import ast
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

DEFAULT_TIMEOUT = 10
"""Seconds."""

MEMORY_LIMIT = 4 << 30
"""Bytes of address space."""

OUTPUT_LIMIT = 4 << 20
"""Bytes of any file, the output included."""

SANDBOX_TYPES = ("none", "bwrap")

_LIMITS = f"""
import resource as r
r.setrlimit(r.RLIMIT_AS, ({MEMORY_LIMIT},) * 2)
r.setrlimit(r.RLIMIT_FSIZE, ({OUTPUT_LIMIT},) * 2)
r.setrlimit(r.RLIMIT_CORE, (0, 0))
"""

_RUN = f"""{_LIMITS}
import runpy, sys
sys.path.insert(0, ".")
sys.argv[:] = ["main.py"]
runpy.run_path("main.py", run_name="__main__")
"""

_SERVE = f"""{_LIMITS}
import ast, json, os, sys
calls, results = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0)
os.dup2(null, 1)
name, error, function = sys.argv[1], None, None
names = {{"__name__": "solution"}}
try:
    exec(compile(open("main.py", encoding="utf-8").read(), "main.py", "exec"), names)
    function = names[name] if name in names else getattr(names["Solution"](), name)
except BaseException as raised:
    error = repr(raised)
for line in calls:
    if function is not None:
        try:
            answer = {{"value": repr(function(*ast.literal_eval(line)))}}
        except BaseException as raised:
            answer = {{"error": repr(raised)}}
    else:
        answer = {{"error": error}}
    results.write(json.dumps(answer) + "\\n")
    results.flush()
"""


def run_python(
    code: str, sandbox_type: str = "none", stdin: str | None = None, timeout: float = DEFAULT_TIMEOUT
) -> tuple[bool, str, str]:
    r"""Run a program.

    >>> run_python("print(input()[::-1])", stdin="abc")
    (True, 'cba\n', '')

    Args:
        code: the program.
        sandbox_type: ``"none"``: without isolation; ``"bwrap"``: in bubblewrap.
        stdin: what it can read.
        timeout: seconds.

    Returns:
        Whether it ended by itself and without an error, what it wrote to stdout, and what to stderr.

    Raises:
        ValueError: there is no such kind of sandbox.
        FileNotFoundError: bubblewrap is not installed.
    """
    with _folder(code) as folder:
        command = _command(sandbox_type, folder, _RUN)
        streams = Path(folder, "stdin"), Path(folder, "stdout"), Path(folder, "stderr")
        streams[0].write_bytes((stdin or "").encode("utf-8", "surrogateescape"))
        with open(streams[0], "rb") as source, open(streams[1], "wb") as out, open(streams[2], "wb") as err:
            process = _start(command, folder, source, out, err)
        try:
            code_of_exit: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code_of_exit = None
        finally:
            _kill(process)
        stdout, stderr = (stream.read_bytes().decode("utf-8", "replace") for stream in streams[1:])
    if code_of_exit is None:
        return False, stdout, f"{stderr}\nExecution timed out after {timeout:g} seconds."
    if code_of_exit < 0:
        stderr += f"\nThe program was ended by {signal.Signals(-code_of_exit).name}."
    return code_of_exit == 0, stdout, stderr


def check_sandbox(sandbox_type: str) -> None:
    """Raise what :func:`run_python` would raise for a kind of sandbox, without running anything."""
    _command(sandbox_type, ".", "")


class FunctionProcess:
    """A process that defines functions and calls one of them.

    The code is not told what the function should return, so nothing that it does to its process can make a wrong
    result look right.

    Args:
        code: defines the function, or a class ``Solution`` with it as a method.
        name: of the function.
        sandbox_type: as for :func:`run_python`.
        timeout: seconds for all calls together.
    """

    def __init__(self, code: str, name: str, sandbox_type: str = "none", timeout: float = DEFAULT_TIMEOUT) -> None:
        self._folder = _folder(code)
        pipe = subprocess.PIPE
        command = [*_command(sandbox_type, self._folder.name, _SERVE), name]
        self._process = _start(command, self._folder.name, pipe, pipe, subprocess.DEVNULL)
        self._deadline = time.monotonic() + timeout
        self._received = b""

    def __enter__(self) -> FunctionProcess:
        """Return the process, to be ended with the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        _kill(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def call(self, *args: Any) -> Any:
        """Call the function and return its result; arguments and results are Python literals.

        Raises:
            RuntimeError: it is not defined, it raised, or its process ended.
            TimeoutError: the time is up.
            ValueError: the result is no literal.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{args!r}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError("the process ended") from None
        answer = json.loads(self._read_line())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        try:
            return ast.literal_eval(answer["value"])
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"the result is no literal: {answer['value'][:100]}") from error

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, self._deadline - time.monotonic())):
                    raise TimeoutError("the time is up")
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk or len(self._received) > OUTPUT_LIMIT:
                    raise RuntimeError("the process ended" if not chunk else "the result is too long")
                self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line


def _folder(code: str) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="gem-run-", ignore_cleanup_errors=True)
    Path(folder.name, "main.py").write_bytes(code.encode("utf-8", "replace"))
    return folder


def _command(sandbox_type: str, folder: str, program: str) -> list[str]:
    python = [sys.executable, "-s", "-B", "-X", "utf8", "-c", program]
    if sandbox_type == "none":
        return python
    if sandbox_type != "bwrap":
        raise ValueError(f"sandbox_type must be one of {', '.join(SANDBOX_TYPES)}, got {sandbox_type!r}")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise FileNotFoundError("sandbox_type='bwrap' needs bubblewrap: install the system's package 'bubblewrap'")
    roots = {Path("/usr"), Path("/lib"), Path("/lib64"), Path("/bin"), Path(sys.prefix), Path(sys.base_prefix)}
    views = [argument for root in sorted(roots) if root.exists() for argument in ("--ro-bind", str(root), str(root))]
    own = ["--bind", folder, folder, "--chdir", folder, "--proc", "/proc", "--dev", "/dev"]
    return [bwrap, "--unshare-all", "--die-with-parent", *views, *own, *python]


def _start(command: list[str], folder: str, stdin: Any, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    hashes = {"PYTHONHASHSEED": "0"}  # the same program writes the same
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**variables, **threads, **hashes},
        start_new_session=True,  # a group of its own, to be killed as a whole
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, unless they left its group."""
    with suppress(ProcessLookupError):  # it has ended, and its children too
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
