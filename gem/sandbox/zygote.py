"""The program that waits inside a sandbox, and forks a process for each run.

It is started by :mod:`gem.sandbox.starting`, and stands alone: nothing of this package can be seen from inside. It runs
no foreign code, keeps the few capabilities that it takes to make namespaces, and takes one order at a time from the
socket that it was started with. For each it makes, where there are namespaces,

* the *init*, the first process of a new process namespace, which does nothing, and
* the *program*, in that namespace, with mounts of its own: fresh file systems for /tmp and /proc. It gives up all
  capabilities before it runs.

When the program has ended, or its time is up, the init is killed, and with it the kernel kills whatever is left in its
namespace, and drops the file systems. So runs that share a sandbox, one after another, share nothing else: each has a
memory, processes and files of its own.

With ``readable``, Landlock confines a *supervisor* and the program (see :mod:`gem.sandbox.confining`), and the
supervisor kills all that the program leaves behind. With neither, the program's process group is killed.

A fork costs by what it copies, and what it copies is what this process has and touches. So it imports little.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import marshal
import math
import os
import resource
import select
import signal
import socket
import struct
import sys

TYPE_CHECKING = False  # that of typing takes a quarter of the memory of this process
if TYPE_CHECKING:
    from typing import NoReturn

    from gem.sandbox import confining, program
    from gem.sandbox.messages import Order, RunLimits, Settings
elif __name__ != "__main__":
    from gem.sandbox import program
else:
    import program  # stands beside this file, wherever that is

_NEW_MOUNTS, _NEW_PROCESSES = 0x20000, 0x20000000
_DETACH = 2
_NOSUID, _NODEV, _NOEXEC, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
_DUMPABLE, _SET_SECCOMP, _SECCOMP_FILTER, _NO_NEW_PRIVILEGES, _AMBIENT, _CLEAR_ALL = 4, 22, 2, 38, 47, 4
_SIGNAL_AT_END_OF_PARENT, _ADOPT = 1, 36
_LOOK_SECONDS = 0.05
_FILES = 16384
_OPEN_FILES = 64
"""A process's; the buffers of sockets are memory that belongs to none."""
_HOME = "/tmp/home"
_OTHERS = 3
"""Processes that are no program's: this one, the init, and bubblewrap's own."""
_CODE = 3
"""File descriptor of the program's code, or of the socket by which a session gets it."""
_SHARE_ALL = 0x100 | 0x200 | 0x400  # memory, folder and file descriptors

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.capset.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
_PAUSE = ctypes.cast(_libc.pause, ctypes.c_void_p)
# Private memory: what is shared would be the same in all runs, and in this process.
_STACK = ctypes.create_string_buffer(1 << 16)
_STACK_TOP = ctypes.addressof(_STACK) + len(_STACK) & ~0xF  # aligned as the processor's calls take it
_OWN_PROCESSES = os.open("/proc/self/ns/pid", os.O_RDONLY)
_filter_address = 0  # of the program of the system call filter


def serve(control: socket.socket, settings: Settings) -> None:
    """Take orders until the other side of the socket is gone."""
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1 << 16, 8)
        if not message:
            os._exit(0)
        order = marshal.loads(message)
        if order is not None:  # else it is to kill a run, which has just ended
            control.send(marshal.dumps(_run(control, settings, order, fds)))


def _run(control: socket.socket, settings: Settings, order: Order, fds: list[int]) -> int | None:
    """Run a program to its end; return its status as waitpid gives it, or None if it was killed."""
    folder = _HOME if settings["isolated"] else _new_folder(settings)
    init = _start_init() if settings["isolated"] else 0
    # Where there is an init, by the C library alone: what Python does for threads and locks is not needed, as there is
    # one thread, and takes long. (What it does for random numbers is: without namespaces, some are drawn here.)
    pid = _libc.fork() if init else os.fork()
    if pid == 0:
        _become(settings, order, fds, folder)
    if init:
        _enter(_OWN_PROCESSES)
    for fd in fds:
        os.close(fd)
    _wait(control, settings, order["limits"], pid, folder)
    return _end_run(settings, pid, init, folder)


def _wait(control: socket.socket, settings: Settings, limits: RunLimits, pid: int, folder: str) -> None:
    """Wait until a program ends, is to be killed, or takes too much."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(ended, select.POLLIN)
    bounded = settings["isolated"] or settings["readable"]
    while not (events := poll.poll(_LOOK_SECONDS * 1000 if bounded else None)):
        if _uses_more_than(limits, pid, folder, settings):
            break
    if any(fd == control.fileno() for fd, _ in events):  # an order to kill it, or nobody waits for it
        control.recv(64)
    os.close(ended)


def _end_run(settings: Settings, pid: int, init: int, folder: str) -> int | None:
    """Kill what is there of a run, and return the status of its program if it had ended."""
    had_ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    # Nobody has waited for it yet, so that its number is its own, and its group's.
    if init:
        os.kill(init, signal.SIGKILL)
    elif settings["readable"]:
        os.kill(pid, signal.SIGTERM)  # the supervisor kills all others, and itself last
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no group yet, or all of it has ended
            os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if init:
        os.waitpid(init, 0)  # which ends when all others in its namespace have
    else:
        _remove(folder)
    return status if had_ended else None


def _new_folder(settings: Settings) -> str:
    from tempfile import mkdtemp  # which brings much along: a process is forked faster the less it holds

    kind = "landlock" if settings["readable"] else "plain"
    return os.path.realpath(mkdtemp(prefix=f"gem-{kind}-", dir=settings["folders"]))


def _remove(folder: str) -> None:
    from shutil import rmtree
    from subprocess import DEVNULL, run

    try:
        rmtree(folder)
    except (OSError, RecursionError):  # the program has made folders that cannot be read, or are very deep
        for command in (["chmod", "-R", "u+rwx", folder], ["rm", "-rf", folder]):
            run(command, stderr=DEVNULL, check=False)


def _uses_more_than(limits: RunLimits, pid: int, folder: str, settings: Settings) -> bool:
    """Return whether the processes of a run, together, go beyond what the kernel can limit for each alone."""
    if settings["readable"]:
        processes, tasks = confining.below(pid, limits["processes"])
        if tasks > limits["processes"] or confining.fills(folder, limits["file_bytes"]):
            return True
    else:
        processes = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        if len(processes) > limits["processes"] + _OTHERS:  # the kernel limits it, but not where root is the user
            return True
    own = _pages(os.getpid())  # which a fork shares
    return resource.getpagesize() * sum(max(0, _pages(at) - own) for at in processes) > limits["memory_bytes"]


def _pages(process: int) -> int:
    try:
        with open(f"/proc/{process}/statm", "rb") as file:
            return int(file.read().split()[1])
    except (OSError, IndexError):  # it has ended
        return 0


def _start_init() -> int:
    """Start the first process of a new process namespace, and let the next fork be into that.

    All that it is there for is that the kernel kills all others with it. So it is no copy of this process, which would
    cost more than many a program: it stands in this process's memory, on a stack of its own, in ``pause`` of the C
    library. The kernel reaps its children, whose ends it ignores.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    init: int = _libc.clone(_PAUSE, _STACK_TOP, _SHARE_ALL | _NEW_PROCESSES | signal.SIGCHLD, None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if init < 0:
        _fail("clone")
    fd = os.pidfd_open(init)
    _enter(fd)
    os.close(fd)
    return init


def _enter(fd: int) -> None:
    if _libc.setns(fd, _NEW_PROCESSES) != 0:
        _fail("setns")


def _become(settings: Settings, order: Order, fds: list[int], folder: str) -> NoReturn:
    """Be the program: give up all capabilities, then run it."""
    if settings["isolated"]:
        _mount_own_files(order["limits"]["file_bytes"], settings["below_tmp"])
    else:
        os.setsid()
        os.environ.update(HOME=folder, TMPDIR=folder)
    if settings["readable"]:
        _supervise(settings, folder)
    for target, fd in enumerate(fds):  # which are above the targets, so that none is overwritten too early
        os.dup2(fd, target)
    os.closerange(len(fds), 1 << 12)
    os.chdir(folder)
    _set_limits(order, settings)
    if settings["isolated"]:
        _drop_capabilities(settings)
    if order["command"]:
        program.execute(program.read_all(_CODE))
    if order["session"]:
        program.serve_session(socket.socket(fileno=_CODE))
    source = program.read_all(_CODE)
    file = os.open("main.py", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(file, source)
    os.close(file)
    program.end(program.run_code(source, "main.py", program.new_main()))


def _supervise(settings: Settings, folder: str) -> None:
    """Be the supervisor: start the program, and end as it ends. In the program, return."""
    _control_process(_ADOPT, 1)  # what the program leaves behind
    _control_process(_SIGNAL_AT_END_OF_PARENT, signal.SIGTERM)
    confining.confine_supervisor(folder, settings["readable"])
    pid = os.fork()
    if pid:
        os.closerange(3, 1 << 12)
        confining.end_as(confining.wait_and_kill(pid))
    _control_process(_SIGNAL_AT_END_OF_PARENT, signal.SIGKILL)
    confining.confine_program(folder, settings["readable"])
    _drop_capabilities(settings)


def _mount_own_files(size: int, below_tmp: list[str]) -> None:
    if _libc.unshare(_NEW_MOUNTS) != 0:
        _fail("unshare")
    # Only processes: without /proc/sys and the like, some of which even a process without capabilities can write if the
    # user is root outside.
    _mount(b"proc", b"/proc", b"proc", _NOSUID | _NODEV | _NOEXEC, b"subset=pid")
    _mount_tmp(size, below_tmp)


def _hide_own_files() -> None:
    """Take this program's files away, once for all runs: their table of mounts would name the folder outside."""
    for file in (b"/gem/zygote.py", b"/gem/program.py"):
        if _libc.umount2(file, _DETACH) != 0:
            _fail(f"umount of {file.decode()}")
    # What a run mounts is for its own namespace alone.
    _mount(b"none", b"/", b"", _PRIVATE | _RECURSIVE, b"")


def _mount(source: bytes, target: bytes, kind: bytes, flags: int, options: bytes) -> None:
    if _libc.mount(source, target, kind, flags, options) != 0:
        _fail(f"mount of {target.decode()}")


def _mount_tmp(size: int, shown: list[str]) -> None:
    """Mount an empty /tmp with a home in it, and show again what of this Python stands below it."""
    fds = [os.open(folder, os.O_PATH) for folder in shown]
    options = f"size={size},nr_inodes={_FILES},mode=1777"
    _mount(b"tmpfs", b"/tmp", b"tmpfs", _NOSUID | _NODEV, options.encode())
    for folder, fd in zip(shown, fds, strict=True):
        os.makedirs(folder, 0o755, exist_ok=True)  # it may stand in one before it
        # As it was, with what is mounted in it: to be read only.
        _mount(f"/proc/self/fd/{fd}".encode(), folder.encode(), b"", _BIND | _RECURSIVE, b"")
        os.close(fd)
    if not os.path.isdir(_HOME):  # it is if this Python stands in it
        os.mkdir(_HOME)
    os.chmod(_HOME, 0o777)


def _set_limits(order: Order, settings: Settings) -> None:
    limits = order["limits"]
    seconds = math.ceil(limits["cpu_seconds"])
    others = 0 if settings["root"] else _OTHERS  # if this process is root, the user of a run is its own
    values = {
        resource.RLIMIT_AS: (limits["memory_bytes"],) * 2,
        resource.RLIMIT_CPU: (seconds, resource.RLIM_INFINITY if order["session"] else seconds + 1),
        resource.RLIMIT_FSIZE: (limits["file_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (_OPEN_FILES, _OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
    }
    if settings["isolated"]:  # without isolation, all other processes of the user would count
        values[resource.RLIMIT_NPROC] = (limits["processes"] + others,) * 2
    for kind, (soft, hard) in values.items():
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            soft, hard = (highest if value == resource.RLIM_INFINITY else min(value, highest) for value in (soft, hard))
        resource.setrlimit(kind, (soft, hard))


def _drop_capabilities(settings: Settings) -> None:
    if settings["root"]:  # a user who owns nothing, not even the program of another run
        first, count = settings["users"]
        user = first + int.from_bytes(os.urandom(4), "little") % count
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        _control_process(_DUMPABLE, 1)  # or /proc/self would be closed to the program itself
    _control_process(_AMBIENT, _CLEAR_ALL)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if _libc.capset(header, nothing) != 0:
        _fail("capset")
    _control_process(_NO_NEW_PRIVILEGES, 1)
    _control_process(_SET_SECCOMP, _SECCOMP_FILTER, _filter_address)


def _control_process(what: int, value: int, argument: int = 0) -> None:
    if _libc.prctl(what, value, argument, 0, 0) != 0:
        _fail(f"prctl {what}")


def _fail(what: str) -> NoReturn:
    raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    # The socket came as standard input. It is moved, so that 0 to 2 are nothing to the program, and handles that are
    # received are above those of the program.
    _control = socket.socket(fileno=os.dup(0))
    while _control.fileno() <= _CODE:
        _control = socket.socket(fileno=os.dup(_control.detach()))
    program.open_streams()
    _nothing = os.open(os.devnull, os.O_RDWR)
    for _target in (0, 1):
        os.dup2(_nothing, _target)
    if _nothing > 2:
        os.close(_nothing)
    os.umask(0o022)
    os.environ.pop("LD_BIND_NOW", None)
    _settings: Settings = marshal.loads(_control.recv(1 << 20))
    if _settings["readable"]:
        # It stands beside this file too, but not where there are namespaces.
        import confining  # type: ignore[import-not-found,no-redef]

        confining.check()
    del sys.path[0], sys.modules["program"]  # the folder of this file, and a name that is the programs' to use
    for _signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_signal, signal.SIG_DFL)
    if _settings["isolated"]:
        _hide_own_files()
    _instructions = ctypes.create_string_buffer(_settings["filter"])
    _filter = struct.pack("HxxxxxxP", len(_instructions) // 8, ctypes.addressof(_instructions))
    _filter_buffer = ctypes.create_string_buffer(_filter)
    _filter_address = ctypes.addressof(_filter_buffer)
    # What Python makes when it is first needed (types of syntax trees, say) is made once; there is less to copy, and
    # nothing that a fork only counts.
    program.run_code(b"pass", "main.py", {})
    gc.collect()
    _libc.malloc_trim(0)
    gc.freeze()
    _first = [os.open(os.devnull, os.O_RDWR), os.open(os.devnull, os.O_RDWR), os.dup(2), os.open(os.devnull, os.O_RDWR)]
    if _run(_control, _settings, _settings["first"], _first) != 0:
        os._exit(1)  # the program has told why
    _control.send(b"ready")
    serve(_control, _settings)
