"""What the attempts to escape aim at, and how one of them is run."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gem.sandbox.attempt import LIMITS, Attempt
from gem.sandbox.running import Session, run


def escaped(attempt: Attempt, targets: dict[str, Any], backend: str = "auto") -> bool:
    """Run an attempt, and return whether it got out."""
    limits = replace(LIMITS, wall_seconds=attempt.seconds)
    result = run(f"TARGETS = {targets!r}\n{_PRELUDE}\n{attempt.program}", "input", limits, backend)
    return "ESCAPED" in result.stdout or (attempt.check is not None and attempt.check(targets, result))


@contextmanager
def set_up_targets(backend: str = "auto") -> Iterator[dict[str, Any]]:
    """Prepare what the attempts aim at, and clean up after them."""
    token = secrets.token_hex(8)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gem-targets-")))
        folder.chmod(0o755)
        secret = folder / "secret"
        secret.write_text(token)
        (folder / "link").symlink_to(token)
        handle = os.open(secret, os.O_RDONLY)
        stack.callback(os.close, handle)
        os.set_inheritable(handle, True)
        os.environ[f"GEM_{token}"] = token
        stack.callback(os.environ.pop, f"GEM_{token}")
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in (str(folder / "socket"), f"\0gem-{token}"):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(address)
            server.listen()
        stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(str(folder / "datagrams"))
        victim = stack.enter_context(subprocess.Popen(["sleep", "600"], env={"GEM_SECRET": token}))
        stack.callback(victim.kill)
        victim.send_signal(signal.SIGSTOP)
        # Another run that is over, and one that goes on.
        left = f"/tmp/gem-left-{token}"
        stack.callback(Path(left).unlink, missing_ok=True)
        run(_LEAVE.format(path=left, abstract=f"left-{token}"), limits=LIMITS, backend=backend)
        other = stack.enter_context(Session(LIMITS, backend))
        stack.callback(Path(f"{left}-other").unlink, missing_ok=True)
        other.run(_LEAVE.format(path=f"{left}-other", abstract=f"other-{token}"))
        yield {
            "token": token,
            "folder": str(folder),
            "secret": str(secret),
            "home": os.path.expanduser("~"),
            "prefix": sys.prefix,
            "handle": handle,
            "port": tcp.getsockname()[1],
            "socket": str(folder / "socket"),
            "datagrams": str(folder / "datagrams"),
            "abstract": f"gem-{token}",
            "parent": os.getpid(),
            "victim": victim.pid,
            "left": left,
            "other_abstract": f"other-{token}",
            **asdict(LIMITS),
        }


_LEAVE = """
import os, socket, time
open({path!r}, "w").write("left")
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0" + {abstract!r})
listener.listen()
"""

_PRELUDE = """
import ctypes, glob, os, resource, signal, socket, stat, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == "aarch64"
def escaped_if(condition):
    if condition:
        print("ESCAPED", flush=True)
def read(path):
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b""
def works(function, *args):
    try:
        function(*args)
        return True
    except (OSError, ValueError):
        return False
def knows(data):
    return TARGETS["token"].encode() in data
def status_shows_rights(process):
    status = read(f"/proc/{process}/status")
    return b"CapEff:" in status and b"CapEff:\\t0000000000000000" not in status
def has_rights():
    rights = ctypes.create_string_buffer(24)
    return libc.capget(struct.pack("Ii", 0x20080522, 0), rights) == 0 and any(rights.raw)
def call(x86, arm_number, *args):
    return libc.syscall(ctypes.c_long(arm_number if arm else x86), *map(ctypes.c_long, args)) >= 0
def writes(path):
    return works(lambda: (open(path, "w").close(), os.remove(path)))
def connects(family, address):
    with socket.socket(family) as client:
        client.settimeout(1)
        return works(client.connect, address)
"""
