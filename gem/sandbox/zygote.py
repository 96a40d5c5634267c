"""The program that waits inside a sandbox, and forks a process for each run.

It is started by :mod:`gem.sandbox.starting`, and stands alone: nothing of this package can be seen from inside. Three
processes make a run:

* this one, which runs no foreign code, keeps the few rights that it takes to make namespaces, and takes one order at
  a time from the socket that it was started with;
* the *keeper*, the first process of a new process namespace with mounts of its own: fresh file systems for /tmp and
  /proc. It waits for the end of
* the *program*, which gives up all rights before it runs.

The last two are there before the order is, so that a run need not wait for them; each serves for one run. When the
program ends, the keeper ends; when time is up, the keeper is killed. Either way the kernel kills whatever is left in
the process namespace, and drops the file systems. So runs that share a sandbox, one after another, share nothing else:
each has a memory, processes and files of its own.

Without ``isolated`` there are no namespaces. With ``readable``, Landlock confines keeper and program (see
:mod:`gem.sandbox.confining`), and the keeper kills all that the program leaves behind; else, what is left in its group
of processes is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import linecache
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import traceback
import types
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from gem.sandbox import confining
elif __name__ == "__main__" and json.loads(sys.argv[1])["readable"]:
    import confining  # stands beside this file, but not where there are namespaces

_NEW_MOUNTS, _NEW_IPC, _NEW_PROCESSES = 0x20000, 0x08000000, 0x20000000
_NOSUID, _NODEV, _NOEXEC, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
_DUMPABLE, _SET_SECCOMP, _SECCOMP_FILTER, _NO_NEW_RIGHTS, _AMBIENT, _CLEAR_ALL = 4, 22, 2, 38, 47, 4
_SIGNAL_AT_END_OF_PARENT, _ADOPT = 1, 36
_LOOK_SECONDS = 0.05
_FILES = 16384
_HOME = "/tmp/home"
_OTHERS = 3
"""Processes that are no program's: this one, the keeper, and bubblewrap's own."""
_CODE = 3
"""Handle of the program's code, or of the socket by which a session gets it."""
_STATUS = struct.Struct("i")

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long] * 6


class _Prepared(NamedTuple):
    """A keeper, whose program waits for an order."""

    keeper: int
    channel: socket.socket
    folder: str


def serve(control: socket.socket, how: dict[str, Any]) -> None:
    """Take orders until the other side of the socket is gone."""
    prepared = _prepare(control, how)
    control.send(b"{}")
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1 << 16, 8)
        if not message:
            _end_run(prepared, how)
            os._exit(0)
        if message == b"null":  # to kill a run that has just ended
            continue
        status = _run(control, how, prepared, message, handles)
        control.send(json.dumps({"status": status}).encode())
        prepared = _prepare(control, how)  # while nobody waits for it


def _prepare(control: socket.socket, how: dict[str, Any]) -> _Prepared:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = _HOME if how["isolated"] else _new_folder(how)
    keeper = _fork_into_namespaces(how["clone"]) if how["isolated"] else os.fork()
    if keeper == 0:
        control.close()
        ours.close()
        _keep(how, theirs, folder)
    theirs.close()
    if not ours.recv(1):
        if not how["isolated"]:
            _remove(folder)
        os._exit(1)  # the keeper has told why
    return _Prepared(keeper, ours, folder)


def _run(
    control: socket.socket, how: dict[str, Any], prepared: _Prepared, message: bytes, handles: list[int]
) -> int | None:
    """Run a program to its end; return its status as waitpid gives it, or None if it was killed."""
    limits = json.loads(message)["limits"]
    try:
        socket.send_fds(prepared.channel, [message], handles)
    except ConnectionError:  # it was killed while it waited
        _end_run(prepared, how)
        return _run(control, how, _prepare(control, how), message, handles)
    for handle in handles:
        os.close(handle)
    ended = os.pidfd_open(prepared.keeper)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(ended, select.POLLIN)
    bounded = how["isolated"] or how["readable"]
    while not (events := poll.poll(_LOOK_SECONDS * 1000 if bounded else None)):
        if _uses_more_than(limits, prepared, how):
            break
    if any(handle == control.fileno() for handle, _ in events):  # an order to kill it, or nobody waits for it
        control.recv(64)
    os.close(ended)
    return _end_run(prepared, how)


def _end_run(prepared: _Prepared, how: dict[str, Any]) -> int | None:
    """Kill what is there of a run, and return the status of its program if it had ended."""
    if how["readable"]:
        os.kill(prepared.keeper, signal.SIGTERM)  # it kills all others, and itself last
    else:
        _kill(prepared.keeper, how["isolated"])
    os.waitpid(prepared.keeper, 0)
    with prepared.channel as channel:
        status = channel.recv(_STATUS.size)
    if not how["isolated"]:
        _remove(prepared.folder)
    return _STATUS.unpack(status)[0] if status else None


def _new_folder(how: dict[str, Any]) -> str:
    from tempfile import mkdtemp  # which brings much along: a process is forked faster the less it holds

    kind = "landlock" if how["readable"] else "plain"
    return os.path.realpath(mkdtemp(prefix=f"gem-{kind}-", dir=how["folders"]))


def _remove(folder: str) -> None:
    from shutil import rmtree
    from subprocess import DEVNULL, run

    try:
        rmtree(folder)
    except (OSError, RecursionError):  # the program has made folders that cannot be read, or are very deep
        for command in (["chmod", "-R", "u+rwx", folder], ["rm", "-rf", folder]):
            run(command, stderr=DEVNULL, check=False)


def _kill(keeper: int, isolated: bool) -> None:
    """Kill a keeper that nobody has waited for, so that its number is its own, and its group."""
    if not isolated:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no group yet, or all of it has ended
            os.killpg(keeper, signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)


def _uses_more_than(limits: dict[str, Any], prepared: _Prepared, how: dict[str, Any]) -> bool:
    """Return whether the processes of a run, together, go beyond what the kernel can limit for each alone."""
    if how["readable"]:
        processes, tasks = confining.below(prepared.keeper, limits["processes"])
        if tasks > limits["processes"] or confining.fills(prepared.folder, limits["file_bytes"]):
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


def _fork_into_namespaces(clone: int) -> int:
    """Fork a process into namespaces of its own.

    That is the system call alone, without what os.fork does for threads and locks: there is one thread, and the keeper
    forks the program by os.fork. (unshare and os.fork would do, but a process can unshare its processes only once.)
    """
    process: int = _libc.syscall(clone, _NEW_MOUNTS | _NEW_IPC | _NEW_PROCESSES | signal.SIGCHLD, 0, 0, 0, 0)
    if process < 0:
        _fail("clone")
    return process


def _keep(how: dict[str, Any], channel: socket.socket, folder: str) -> NoReturn:
    """Be the keeper: start the program, and tell its status when it ends."""
    if how["isolated"]:
        _mount(b"none", b"/", b"", _PRIVATE | _RECURSIVE, b"")
        # Only processes: without /proc/sys and the like, some of which even a process without rights can write if the
        # user is root outside.
        _mount(b"proc", b"/proc", b"proc", _NOSUID | _NODEV | _NOEXEC, b"subset=pid")
    else:
        os.setsid()
    if how["readable"]:
        _control_process(_ADOPT, 1)  # what the program leaves behind
        _control_process(_SIGNAL_AT_END_OF_PARENT, signal.SIGTERM)
        confining.confine_keeper(folder, how["readable"])
    process = os.fork()
    if process == 0:
        _become(how, channel, folder)
    if how["readable"]:
        if (status := confining.wait_and_kill(process)) is not None:
            channel.send(_STATUS.pack(status))
        os._exit(0)
    while True:
        ended, status = os.wait()  # also of what the program left behind
        if ended == process:
            channel.send(_STATUS.pack(status))
            os._exit(0)


def _mount(source: bytes, target: bytes, kind: bytes, flags: int, options: bytes) -> None:
    if _libc.mount(source, target, kind, ctypes.c_ulong(flags), options) != 0:
        _fail(f"mount of {target.decode()}")


def _become(how: dict[str, Any], channel: socket.socket, folder: str) -> NoReturn:
    """Be the program: wait for the order, give up all rights, then run it."""
    if how["readable"]:  # before the order, so that a run need not wait for it
        _control_process(_SIGNAL_AT_END_OF_PARENT, signal.SIGKILL)
        confining.confine_program(folder, how["readable"])
        _give_up_rights(how)
    channel.send(b"r")
    message, handles, _, _ = socket.recv_fds(channel, 1 << 16, 8)
    if not message:
        os._exit(0)
    order = json.loads(message)
    if how["isolated"]:
        _mount_tmp(order["limits"]["file_bytes"], how["below_tmp"])
    for target, handle in enumerate(handles):  # which are above the targets, so that none is overwritten too early
        os.dup2(handle, target)
    os.closerange(len(handles), 1 << 12)
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR="/tmp" if how["isolated"] else folder)
    _set_limits(order, how)
    if how["isolated"]:
        _give_up_rights(how)
    _open_streams()
    if "command" in order:
        _execute(order["command"])
    if order["session"]:
        _serve_session(socket.socket(fileno=_CODE))
    source = _read_all(_CODE)
    with open("main.py", "wb") as file:
        file.write(source)
    _end(_run_code(source, "main.py", _new_main()))


def _mount_tmp(size: int, shown: list[str]) -> None:
    """Mount an empty /tmp with a home in it, and show again what of this Python stands below it."""
    handles = [os.open(folder, os.O_PATH) for folder in shown]
    options = f"size={size},nr_inodes={_FILES},mode=1777"
    _mount(b"tmpfs", b"/tmp", b"tmpfs", _NOSUID | _NODEV, options.encode())
    for folder, handle in zip(shown, handles, strict=True):
        os.makedirs(folder, 0o755, exist_ok=True)  # it may stand in one before it
        _mount(f"/proc/self/fd/{handle}".encode(), folder.encode(), b"", _BIND, b"")  # as it was: to be read only
        os.close(handle)
    os.makedirs(_HOME, exist_ok=True)
    os.chmod(_HOME, 0o777)


def _set_limits(order: dict[str, Any], how: dict[str, Any]) -> None:
    limits = order["limits"]
    seconds = math.ceil(limits["cpu_seconds"])
    others = 0 if how["root"] else _OTHERS  # if this process is root, the user of a run is its own
    values = {
        resource.RLIMIT_AS: (limits["memory_bytes"],) * 2,
        resource.RLIMIT_CPU: (seconds, resource.RLIM_INFINITY if order["session"] else seconds + 1),
        resource.RLIMIT_FSIZE: (limits["file_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (256, 256),
        resource.RLIMIT_CORE: (0, 0),
    }
    if how["isolated"]:  # without isolation, all other processes of the user would count
        values[resource.RLIMIT_NPROC] = (limits["processes"] + others,) * 2
    for kind, (soft, hard) in values.items():
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            soft, hard = (highest if value == resource.RLIM_INFINITY else min(value, highest) for value in (soft, hard))
        resource.setrlimit(kind, (soft, hard))


def _give_up_rights(how: dict[str, Any]) -> None:
    if how["root"]:  # a user who owns nothing, not even the program of another run
        first, count = how["users"]
        user = first + int.from_bytes(os.urandom(4), "little") % count
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        _control_process(_DUMPABLE, 1)  # or /proc/self would be closed to the program itself
    _control_process(_AMBIENT, _CLEAR_ALL)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if _libc.capset(header, nothing) != 0:
        _fail("capset")
    _control_process(_NO_NEW_RIGHTS, 1)
    instructions = ctypes.create_string_buffer(bytes.fromhex(how["filter"]))
    program = struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(instructions))
    _control_process(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.c_char_p(program))


def _control_process(what: int, value: int, argument: Any = None) -> None:
    rest = ctypes.c_ulong(0), ctypes.c_ulong(0)
    if _libc.prctl(what, ctypes.c_ulong(value), argument or ctypes.c_ulong(0), *rest) != 0:
        _fail(f"prctl {what}")


def _fail(what: str) -> NoReturn:
    raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _open_streams() -> None:
    """Put new streams in the place of this process's, which know its handles and not the program's."""
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]


def _execute(command: list[str]) -> NoReturn:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode("utf-8", "surrogateescape"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _serve_session(channel: socket.socket) -> NoReturn:
    """Run pieces of code, with the variables of the earlier ones, until the other side is gone."""
    names = _new_main()
    number = 0
    while True:
        message, handles, _, _ = socket.recv_fds(channel, 64, 1)
        if not message:
            os._exit(0)
        number += 1
        usage = resource.getrusage(resource.RUSAGE_SELF)
        seconds = math.ceil(usage.ru_utime + usage.ru_stime + float(message))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        code = _run_code(_read_all(handles[0]), f"call {number}", names)
        _flush()
        channel.send(str(code).encode())


def _read_all(handle: int) -> bytes:
    with os.fdopen(handle, "rb") as file:
        return file.read()


def _new_main() -> dict[str, Any]:
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv[:] = ["main.py"]
    sys.path.insert(0, "")  # the folder of the run
    return module.__dict__


def _run_code(source: bytes, name: str, names: dict[str, Any]) -> int:
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


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # whatever the program put there
            stream.flush()


def _end(code: int) -> NoReturn:
    """End as an interpreter would, without taking itself apart, which takes longer than most programs."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined] # waits for threads
        atexit._run_exitfuncs()
    _flush()
    os._exit(code)


if __name__ == "__main__":
    # The socket came as standard input. It is moved, so that 0 to 2 are nothing to the program, and handles that are
    # received are above those of the program.
    _control = socket.socket(fileno=os.dup(0))
    _nothing = os.open(os.devnull, os.O_RDWR)
    for _target in (0, 1):
        os.dup2(_nothing, _target)
    if _nothing > 2:
        os.close(_nothing)
    while _control.fileno() <= _CODE:
        _control = socket.socket(fileno=os.dup(_control.detach()))
    os.umask(0o022)
    del sys.path[0]  # the folder of this file
    gc.freeze()  # so that a fork does not copy what it only counts
    for _signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_signal, signal.SIG_DFL)
    _how = json.loads(sys.argv[1])
    if _how["readable"]:
        confining.check()
    serve(_control, _how)
