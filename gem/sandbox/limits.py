"""What a run may use, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

_MOST = {"seconds": 1 << 31, "bytes": 1 << 62, "processes": 1 << 22}
"""What the kernel takes."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        wall_seconds: time; the program and all that it started are killed at its end.
        cpu_seconds: processor time of each process, in whole seconds (rounded up).
        memory_bytes: address space of each process; in a sandbox, also the memory of all its processes together, which
            is looked at every 50 ms.
        processes: processes and threads at once, the program itself included. With Landlock they are counted every
            50 ms, and more end the program.
        output_bytes: of standard output, and of standard error. A program that writes more is killed; what a session's
            call writes after them is read and thrown away.
        file_bytes: of all files together, which live in memory; with Landlock they are on the disk, each is limited,
            and all together are looked at every 50 ms. Without a sandbox, it is of each file.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 1 << 30
    processes: int = 32
    output_bytes: int = 1 << 20
    file_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (0 < value < _MOST[field.name.rpartition("_")[2]]):
                raise ValueError(f"{field.name} must be more than 0 and have an end, got {value!r}")


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        exit_code: as a shell sees it, or minus the number of the signal that ended it; None if it was killed: its
            time was up, it wrote too much, or all its processes together took too much.
        stdout: what it wrote there, as far as ``output_bytes`` go.
        stderr: the same of standard error.
        timed_out: whether its time was up.
        truncated: whether it wrote more than ``output_bytes``.
        seconds: wall time from its start to the result.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool
    seconds: float


class SandboxUnavailable(RuntimeError):
    """There is no such sandbox here; the text says what to do."""
