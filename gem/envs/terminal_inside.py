"""What :mod:`gem.envs.terminal_env` lets a sandbox run: a shell for the model, and the scripts of a task.

Its text is sent into the sandbox, so it imports nothing of this package. Folders travel as text, see :func:`pack`.

The Python process that runs this text shares its sandbox with what the model starts. So nothing of it may be open to
them: its memory and its handles are closed to other processes (:func:`close_to_others`), what they write goes to
handles that nothing else is read from, and before a folder is handed over all of them are killed (:func:`end_others`).
The check never runs in a sandbox in which something of the model has run.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import Any

FIXED_TIME = 1_735_689_600
"""Time of the files that a set-up makes, so that ``ls -l`` shows the same whenever it ran: 1 January 2025."""

STATE_BYTES = 1 << 20
"""What the folder and the variables of a shell may take."""

_DROPPED = (b"_", b"SHLVL", b"BASH_ENV")
"""Variables that are not those of the next shell: it sets the first two, and would run what the last one names."""

END_SECONDS = 10.0
"""How long killed processes may take to be gone."""

_SET_DUMPABLE = 4

ATTEMPTS = 20
"""How often a shell is tried to be started where too many processes run."""


def work_folder(name: str = "work") -> str:
    """Return the path of a folder for a task's files."""
    return os.path.join(os.environ["TMPDIR"], name)


def pack(folder: str, limit: int, since: float = float("inf")) -> str:
    """Return files, folders and links of a folder as text of ASCII characters.

    What cannot be read is left out, and so are pipes, sockets and devices.

    Args:
        folder: its path.
        limit: bytes of all files together.
        since: what was changed later than this is given :data:`FIXED_TIME`.

    Raises:
        ValueError: the files are larger.
    """
    entries, left = [], limit
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(folders + files):
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                content: str | None = None
                if stat.S_ISLNK(status.st_mode):
                    content = os.readlink(path)
                elif stat.S_ISREG(status.st_mode):
                    left -= status.st_size
                    if left < 0:
                        raise ValueError(f"the files of the work folder take more than {limit} bytes")
                    with open(path, "rb") as file:
                        content = base64.b64encode(file.read(status.st_size)).decode()
                elif not stat.S_ISDIR(status.st_mode):
                    continue
                when = FIXED_TIME if status.st_mtime >= since else int(status.st_mtime)
                entries.append((os.path.relpath(path, folder), status.st_mode, when, content))
    return base64.b64encode(zlib.compress(json.dumps(entries).encode(), 1)).decode()


def unpack(packed: str, folder: str) -> None:
    """Make a folder of what :func:`pack` returned.

    Nothing is written outside of it, and no link leads out of it, whoever made the text: a link to ``/proc/self/fd/3``
    would be whatever a program that compares two files has opened first. ``tarfile`` and its filter ``data`` are no
    help here: the filter changes the modes that a check may look at, and up to Python 3.11.12 it lets links out.

    Raises:
        ValueError: a path does not lie in a folder that comes before it in the text.
    """
    os.makedirs(folder)
    entries = json.loads(zlib.decompress(base64.b64decode(packed))) if packed else []
    links, folders = [], {""}
    for name, mode, when, content in entries:  # a folder comes before what is in it
        path = os.path.join(folder, name)
        parent, last = os.path.split(name)
        if parent not in folders or last in ("", ".", ".."):  # so no path leads through a link, either
            raise ValueError(f"{name!r} is no path within a folder")
        if stat.S_ISLNK(mode):
            links.append((path, content))
        elif stat.S_ISDIR(mode):
            os.mkdir(path)
            folders.add(name)
        else:
            with open(path, "xb") as file:
                file.write(base64.b64decode(content))
            os.chmod(path, stat.S_IMODE(mode) & 0o777)
            os.utime(path, (when, when))
    for path, target in links:  # after all files, so that none is written through one
        os.symlink(target, path)
    inside = {_identity(os.lstat(os.path.join(folder, name))) for name in ("", *(name for name, *_ in entries))}
    for path in [path for path, target in links if not _leads_inside(path, target, inside)]:
        os.unlink(path)
    for name, mode, when, _ in reversed(entries):
        if stat.S_ISDIR(mode):
            path = os.path.join(folder, name)
            os.utime(path, (when, when))
            os.chmod(path, stat.S_IMODE(mode) & 0o777)


def _leads_inside(path: str, target: str, inside: set[tuple[int, int]]) -> bool:
    """Return whether a link leads to one of the files ``inside``, or to where one could be made beside them.

    The kernel follows the links, not ``realpath``, which takes what is too long for it to be no link.
    """
    try:
        return _identity(os.stat(path)) in inside
    except OSError:  # there is nothing there, yet
        beside, last = os.path.split(os.path.join(os.path.dirname(path), target))
    try:
        return last not in ("", ".", "..") and _identity(os.stat(beside)) in inside
    except OSError:
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def close_to_others() -> None:
    """Close this process's memory and handles to the other processes of its user.

    Raises:
        OSError: the system does not.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def end_others() -> None:
    """Kill all other processes of this sandbox, and return when they are gone: none holds a handle any more.

    Outside of a sandbox that has process numbers of its own, this kills all that the user has running.

    Raises:
        TimeoutError: they are not gone.
    """
    deadline = time.monotonic() + END_SECONDS
    own = {"1", str(os.getpid())}  # 1 is the first process of the sandbox, which runs nothing
    while True:
        with contextlib.suppress(ProcessLookupError):  # there is no other
            os.kill(-1, signal.SIGKILL)  # at once: none can fork meanwhile
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if own.issuperset(name for name in os.listdir("/proc") if name.isdecimal()):
            return
        if time.monotonic() > deadline:
            raise TimeoutError("processes in the background do not end")
        time.sleep(0.002)


def find_program(name: str) -> str:
    """Return the path of a program.

    Raises:
        FileNotFoundError: there is none of this name.
    """
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"a terminal needs {name}, which is not there")
    return path


def run_script(order: dict[str, Any]) -> int:
    """Run a script in the work folder, show what it writes on standard error, and return its exit code.

    The folder is written to standard output afterwards, if the order says so.
    """
    close_to_others()
    work, original = work_folder(), work_folder("original")
    unpack(order["work"], work)
    if order["original"] is not None:
        unpack(order["original"], original)
    script = os.path.join(os.environ["TMPDIR"], "script.sh")
    with open(script, "w", encoding="utf-8") as file:
        file.write(order["script"])
    started = time.time() - 1  # files get the time of the last tick
    # The home is not the work folder: what stands in that is the model's, and programs read their settings from home.
    # For the same reason Python is not to import from there.
    variables = {"GEM_SEED": order["seed"], "GEM_ORIGINAL": original, "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
    process = subprocess.run(
        [find_program("bash"), "--noprofile", "--norc", script],
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        cwd=work,
        env={**shell_variables(os.environ["HOME"]), **variables},
    )
    if order["pack"]:
        if order["isolated"]:
            end_others()
        sys.stdout.write(pack(work, order["limit"], started if order["original"] is None else float("inf")))
    return exit_code(process.returncode)


def shell_variables(home: str) -> dict[str, str]:
    """Return the variables that a shell begins with."""
    names = ("PATH", "LANG", "TMPDIR")
    return {**{name: os.environ[name] for name in names if name in os.environ}, "HOME": home, "TERM": "dumb"}


def exit_code(status: int) -> int:
    """Return the exit code as a shell sees it."""
    return status if status >= 0 else 128 - status


class Shell:
    """Runs commands, each in a bash of its own, which begins with the folder and the variables of the one before.

    Args:
        packed: what is in the work folder.
        memory_bytes: address space of each process.
    """

    def __init__(self, packed: str, memory_bytes: int) -> None:
        close_to_others()
        self.work = os.fsencode(work_folder())
        unpack(packed, work_folder())
        self.bash = find_program("bash")
        self.state = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (made now, while there is room)
        # A shell's last act is to write its variables and, if that worked, its folder.
        state, env = self.state.fileno(), find_program("env")
        self.line = (
            f"ulimit -v {memory_bytes >> 10}; "
            f'trap \'{env} -0 >&{state} && printf "\\0%s\\0" "$PWD" >&{state}\' EXIT; '
            'REPLY=$1; set --; eval "$REPLY"'
        )
        self.groups: list[int] = []
        self.begin()

    def begin(self) -> None:
        """Go back to the work folder and the first variables."""
        self.folder = self.work
        self.variables = {os.fsencode(k): os.fsencode(v) for k, v in shell_variables(work_folder()).items()}

    def run(self, command: str, seconds: float) -> None:
        """Run a command, and say on standard error how it ended; what it writes goes to standard output.

        Processes that it leaves in the background go on.
        """
        notes: list[str] = []
        if not os.path.isdir(self.folder):
            with contextlib.suppress(OSError):
                os.makedirs(self.work, exist_ok=True)
            self.folder = self.work if os.path.isdir(self.work) else b"/"
            notes.append(f"The working directory was gone: {'~' if self.folder == self.work else '/'} is in its place.")
        code = self._run(command.encode("utf-8", "replace"), seconds, notes)
        json.dump({"exit_code": code, "notes": notes}, sys.stderr)

    def _run(self, command: bytes, seconds: float, notes: list[str]) -> int | None:
        try:
            process = self._start(command, notes)
        except OSError as error:  # too many processes, too large variables, or a folder that cannot be entered
            notes.append(f"The shell could not be started ({error.strerror}): the next one begins in ~, as the first.")
            self.begin()
            return 126
        self.groups = [*filter(_exists, self.groups), process.pid]
        code: int | None = None
        try:
            code = exit_code(process.wait(seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            notes.append(f"The command was killed: it took longer than {seconds:g} seconds.")
        if not self._keep():  # it was killed, say, or the shell replaced by another program
            notes.append("The working directory and the variables are those from before the command.")
        return code

    def _start(self, command: bytes, notes: list[str]) -> subprocess.Popen[bytes]:
        self.state.seek(0)
        self.state.truncate()
        crowded = _crowded()
        for attempt in range(ATTEMPTS):
            if crowded:
                self.end_background()
                time.sleep(0.05)  # they take a moment to be gone
            try:
                process = subprocess.Popen(
                    ["bash", "--noprofile", "--norc", "-c", self.line, "bash", command],
                    executable=self.bash,
                    stdin=subprocess.DEVNULL,
                    stdout=1,
                    stderr=1,
                    cwd=self.folder,
                    env=self.variables,
                    pass_fds=[self.state.fileno()],
                    start_new_session=True,
                )
                break
            except BlockingIOError:  # there are as many processes as there may be
                crowded = True
                if attempt == ATTEMPTS - 1:
                    raise
        if crowded:
            notes.append("Too many processes ran in the background: they were ended.")
        return process

    def _keep(self) -> bool:
        """Take the folder and the variables that a command ended with, if it came so far; return whether it did."""
        self.state.seek(0)
        content = self.state.read(STATE_BYTES)
        variables, mark, folder = content.rpartition(b"\0\0")
        if not mark or not folder.endswith(b"\0"):
            return False
        self.folder = folder[:-1]
        self.variables = {
            name: value
            for name, mark, value in (pair.partition(b"=") for pair in variables.split(b"\0"))
            if name and mark and name not in _DROPPED
        }
        return True

    def end_background(self) -> None:
        """End what the commands have left running."""
        for group in filter(_exists, self.groups):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.groups = []


def _exists(group: int) -> bool:
    """Return whether a group has processes; its number cannot be another's as long as it has."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _crowded() -> bool:
    """Return whether half of the processes that there may be are there."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    return 0 < limit < 2 * sum(name.isdecimal() for name in os.listdir("/proc"))


_shell: Shell | None = None


def start(packed: str, memory_bytes: int) -> None:
    """Make the shell; arguments as in :class:`Shell`."""
    global _shell
    _shell = Shell(packed, memory_bytes)


def hand_over(limit: int) -> None:
    """Write the work folder to standard output; see :func:`pack`."""
    print(pack(work_folder(), limit), end="")


CALLS: dict[str, Callable[..., None]] = {
    "start": start,
    "run": lambda **arguments: _started().run(**arguments),
    "end_background": lambda: _started().end_background(),
    "end_others": end_others,
    "hand_over": hand_over,
}
"""What can be called from outside, by name."""


def call(order: str) -> None:
    """Call one of :data:`CALLS`: its name and its arguments, as JSON."""
    name, arguments = json.loads(order)
    CALLS[name](**arguments)


def _started() -> Shell:
    assert _shell is not None, "the shell is started first"
    return _shell
