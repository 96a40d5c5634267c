"""What the process that starts a sandbox and the program that waits in it send each other, for type checkers.

:mod:`gem.sandbox.zygote` gets :class:`Settings` first, and then an :class:`Order` for each run, by marshal,
with file descriptors: standard input, output and error, and the code (a command's words, or a session's
socket). It answers with the status of the program, or None if that was killed. None as an order kills the run.
"""

from __future__ import annotations

from typing import TypedDict


class RunLimits(TypedDict):
    """The fields of :class:`gem.sandbox.Limits`."""

    wall_seconds: float
    cpu_seconds: float
    memory_bytes: int
    processes: int
    file_bytes: int
    output_bytes: int


class Order(TypedDict):
    """A run.

    Attributes:
        session: whether the code comes piece by piece, over a socket.
        command: whether it is a command, and not Python.
        limits: of the run.
    """

    session: bool
    command: bool
    limits: RunLimits


class Settings(TypedDict):
    """What holds for all runs of a sandbox.

    Attributes:
        isolated: whether there are namespaces.
        root: whether it relies on being started by root, and not on a user namespace.
        readable: files and folders that can be read; empty where Landlock is not used.
        filter: the program of the system call filter; empty for none.
        users: the first number of users for runs, and how many there are.
        folders: where folders for runs are made, without namespaces.
        first: an order that is carried out at the start, to find out whether the sandbox works.
        below_tmp: folders of Python below /tmp, to be shown.
    """

    isolated: bool
    root: bool
    readable: list[str]
    filter: bytes
    users: tuple[int, int]
    folders: str
    first: Order
    below_tmp: list[str]
