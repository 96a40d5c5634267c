"""What confines a program where there are no namespaces: Landlock, and a supervisor.

:mod:`gem.sandbox.zygote` imports it from the same folder. sandlock applies Landlock twice: to the supervisor, and once
more to the program. It keeps each from files, and from the signals, memory and sockets of all processes that are not in
the same Landlock domain, or in one within it. So the program cannot touch the supervisor; and the supervisor, by a
signal to all processes that it can reach, ends the program and all its descendants, wherever they are.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from typing import NoReturn

_FILES = 16384
_WAITED_FOR = {signal.SIGCHLD, signal.SIGTERM}


def check() -> None:
    """End this process if it cannot confine another, saying why."""
    from sandlock import landlock_abi_version, min_landlock_abi

    version, least = landlock_abi_version(), min_landlock_abi()
    if version < least:
        have = f"version {version}" if version > 0 else "none"
        sys.exit(f"it takes Landlock of version {least} (Linux 6.12), and there is {have}")
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        sys.exit("it takes a /proc that lists the children of processes")


def confine_supervisor(folder: str, readable: list[str]) -> None:
    """Confine this process, which starts a program and kills what the program leaves behind (the *supervisor*).

    It is confined for ever, with all that it starts, by Landlock: the kernel's way to restrict access to files.

    Args:
        folder: what can be written to.
        readable: files and folders that can be read, and programs that can be started.
    """
    _confine(folder, readable)
    with contextlib.suppress(PermissionError):  # as it must be: the supervisor will signal all that it can
        os.kill(os.getppid(), 0)
        sys.exit("Landlock does not hold back signals here")
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)


def confine_program(folder: str, readable: list[str]) -> None:
    """Put Landlock on this process once more: the supervisor can reach it then, and it cannot reach the supervisor."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)
    _confine(folder, readable)


def wait_and_kill(program: int) -> int | None:
    """Wait until a program ends, or this process is told to end it, and then kill whatever is left of it.

    Returns:
        The status of the program; None if it was killed.
    """
    status = None
    while status is None and signal.sigwait(_WAITED_FOR) != signal.SIGTERM:
        while ended := os.waitpid(-1, os.WNOHANG):  # also of what the program left behind
            if ended[0] == program:
                status = ended[1]
            if ended[0] in (0, program):
                break
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # at one stroke: nobody can start another meanwhile
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    return status


def end_as(status: int | None) -> NoReturn:
    """End this process as a child ended: with its exit code, or by the same signal.

    Args:
        status: of the child, as ``waitpid`` gives it; None if this process was told to kill it.
    """
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(1 if status is None else os.waitstatus_to_exitcode(status) & 0xFF)


def below(process: int, most: int) -> tuple[list[int], int]:
    """Return the processes that descend from one, and how many they are with their threads, if no more than ``most``.

    If there are more, some of them are enough: it must not take long to see that.
    """
    found, tasks = [process], -1  # itself, which does not count
    for at in found:
        with contextlib.suppress(OSError):  # it has ended
            threads = os.listdir(f"/proc/{at}/task")
            tasks += len(threads)
            for thread in threads if tasks <= most else ():
                with open(f"/proc/{at}/task/{thread}/children", encoding="ascii") as file:
                    found += [int(child) for child in file.read().split()]
    return found[1:], tasks


def fills(folder: str, limit: int) -> bool:
    """Return whether the files in a folder, together, take more bytes than a limit, or are too many, or hidden."""
    total, count, folders = 0, 0, [folder]
    while folders and count <= _FILES:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    total += min(status.st_size, 512 * status.st_blocks)
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:  # it was removed
            continue
        except OSError:  # the program has closed it to this process, or put it too deep
            return True
    return total > limit or count > _FILES


def _confine(folder: str, readable: list[str]) -> None:
    from sandlock import Sandbox, confine

    confine(Sandbox(fs_readable=readable, fs_writable=[folder, os.devnull]))
