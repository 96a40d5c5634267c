"""Files that programs crash over: whole lines, whole files, and one run to a folder.

What is appended is there as whole lines, or not at all, whatever ends the program or fills the disk; a line that an
earlier program did not finish stays a line of its own. What is replaced is the old file or the new one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

LOCK = ".lock"
"""The file that a run of a folder holds."""

_appending = threading.Lock()
_held: dict[str, int] = {}


class FolderInUse(RuntimeError):
    """Another run writes into the folder."""


def append_lines(path: str | Path, lines: Iterable[str]) -> None:
    r"""Append lines to a file: all of them, or, if it fails, none.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.jsonl")
    >>> _ = path.write_text('{"step": 1}\n{"st')  # what a crash has left
    >>> append_lines(path, ['{"step": 2}'])
    >>> path.read_text()
    '{"step": 1}\n{"st\n{"step": 2}\n'

    Args:
        path: of the file; made if it is not there. Threads of one process may append to the same file; several
            processes need a file each.
        lines: text without line breaks.

    Raises:
        OSError: it cannot be written, for want of room, say; the file is as it was.
    """
    data = "".join(f"{line}\n" for line in lines).encode()
    with _appending, open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def replace_file(path: str | Path, content: str | bytes) -> None:
    """Write a file that is the old one until it is whole.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():  # a pipe, or /dev/stdout
        path.write_bytes(data)
        return
    path = path.resolve()  # what a link leads to, not the link
    new = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        new.write_bytes(data)
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def whole_lines(path: str | Path) -> Iterator[tuple[int, str | None]]:
    r"""Yield the number of each line of a JSON lines file, and the line; None in the place of one that is torn.

    Torn is what is not JSON in UTF-8: a last line that is being written, or a line that was never finished.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.jsonl")
    >>> _ = path.write_text('{"step": 1}\n{"st\n{"step": 2}\n{"ste')
    >>> list(whole_lines(path))
    [(1, '{"step": 1}'), (2, None), (3, '{"step": 2}'), (4, None)]

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.decode().rstrip("\n") if _is_json(line) else None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    return True


def hold_folder(folder: str | Path) -> None:
    """Keep other processes from writing a run into a folder, as long as this one runs.

    Args:
        folder: made if it is not there. A process may ask again for one that it holds.

    Raises:
        FolderInUse: another process holds it; the message names it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    key = os.path.realpath(folder)
    if key in _held:
        return
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
        os.close(handle)
        raise FolderInUse(f"{folder} is being written by another run ({holder}): choose another folder") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            os.close(handle)
            raise
        text = f"the file system of {folder} has no locks: a second run there would not be noticed"
        warnings.warn(text, stacklevel=2)
    os.truncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[key] = handle  # until the process ends, and the kernel lets go of it


def cache_folder() -> Path:
    """Return the folder for what is made once and used again: ``$GEM_HOME``, or ``~/.cache/gem``."""
    return Path(os.environ.get("GEM_HOME") or Path.home() / ".cache" / "gem")
