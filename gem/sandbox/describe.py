"""What the sandbox of this machine keeps out, found out by trying."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from dataclasses import dataclass, replace
from tempfile import NamedTemporaryFile

from gem.sandbox.limits import Limits, SandboxUnavailable
from gem.sandbox.pool import find_backend
from gem.sandbox.running import run

# What code in a sandbox should not be able to do: each is an expression that is true if it can. They do no harm where
# there is no sandbox.
_TRIES = {
    "files of this user": "reads({file!r})",
    "their names, if they are guessed": "os.path.exists({file!r})",
    "writing outside of /tmp": "writes('/usr/gem-sandbox') or writes('/gem-sandbox')",
    "environment variables": "{variable!r} in os.environ",
    "other processes": "os.path.exists('/proc/{process}/stat') and signals({process})",
    "network": "connects({port})",
    "new namespaces": "libc.unshare(0x10000000) == 0",
    "mounts": "may_mount()",
    "tracing": "libc.ptrace(0, 0, 0, 0) == 0",
    "more memory than the limit": "allocates()",
    "more processes than the limit, for a moment": "forks()",
    "more bytes in files than the limit, for a moment": "fills()",
}
_PROGRAM = """
import ctypes, errno, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)
def reads(path):
    try:
        open(path).close()
        return True
    except OSError:
        return False
def writes(path):
    try:
        open(path, "w").close()
        os.remove(path)
        return True
    except OSError:
        return False
def may_mount():
    libc.mount(b"none", b"/", b"no-such-file-system", 0, None)
    return ctypes.get_errno() != errno.EPERM
def signals(process):
    try:
        os.kill(process, 0)
        return True
    except OSError:
        return False
def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False
def allocates():
    try:
        return bool(bytearray(LIMIT))
    except MemoryError:
        return False
def fills():
    try:
        for name in ("one", "two", "three"):
            with open(name, "wb") as file:
                file.write(bytes(FILES // 2))
        return True
    except OSError:
        return False
def forks():
    try:
        for _ in range(PROCESSES):
            if os.fork() == 0:
                time.sleep(9)
                os._exit(0)
        return True
    except OSError:
        return False
"""


@dataclass(frozen=True)
class Description:
    """What the sandbox of this machine does.

    Attributes:
        backend: its name; "" if there is none.
        problem: why there is none.
        keeps_out: what it was seen to keep out.
        lets_through: what it was seen to let through.
    """

    backend: str
    problem: str = ""
    keeps_out: tuple[str, ...] = ()
    lets_through: tuple[str, ...] = ()


def describe(backend: str = "auto") -> Description:
    """Try out what the sandbox keeps out.

    Args:
        backend: as of :func:`gem.sandbox.run`.
    """
    limits = replace(Limits(), memory_bytes=1 << 28, processes=8, file_bytes=1 << 20)
    try:
        name = find_backend() if backend == "auto" else backend
        with closing(socket.create_server(("127.0.0.1", 0))) as server, NamedTemporaryFile() as file:
            facts = {
                "file": file.name,
                "variable": next(iter(os.environ.keys() - {"PATH", "LANG", "HOME", "PWD", "TMPDIR"}), "none"),
                "process": os.getpid(),
                "port": server.getsockname()[1],
            }
            numbers = f"LIMIT, PROCESSES, FILES = {limits.memory_bytes}, {limits.processes}, {limits.file_bytes}\n"
            done = {}
            for what, code in _TRIES.items():
                result = run(f"{numbers}{_PROGRAM}\nprint({code.format(**facts)})", limits=limits, backend=name)
                if result.exit_code:
                    return Description("", f"a program in the sandbox failed: {result.stderr.strip() or result}")
                done[what] = (
                    result.exit_code is None or result.stdout == "True\n"
                )  # None: it could, until it was killed
    except SandboxUnavailable as error:
        return Description("", str(error))
    return Description(
        name,
        keeps_out=tuple(name for name in _TRIES if not done[name]),
        lets_through=tuple(name for name in _TRIES if done[name]),
    )
