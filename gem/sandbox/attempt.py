"""What an attempt to get out of a sandbox is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gem.sandbox.limits import Limits, Result

LIMITS = Limits(cpu_seconds=5.0, memory_bytes=1 << 28, processes=16, output_bytes=1 << 16, file_bytes=8 << 20)


@dataclass(frozen=True)
class Attempt:
    """A way to get out.

    Attributes:
        name: what it tries, which should be impossible.
        program: Python code; see ``_PRELUDE`` for what it can use.
        check: takes the targets and the result, and returns whether it got out; None: if it printed ESCAPED.
        plain: whether it can be run without a sandbox, too, and do no harm.
        seconds: when it is killed.
    """

    name: str
    program: str
    check: Callable[[dict[str, Any], Result], bool] | None = None
    plain: bool = True
    seconds: float = 5.0


def victim_goes_on(targets: dict[str, Any], result: Result) -> bool:
    """Return whether the process of the targets, which was stopped, was made to go on."""
    return b") T " not in read_bytes(f"/proc/{targets['victim']}/stat")


def goes_on(targets: dict[str, Any], result: Result) -> bool:
    """Return whether a process that the run has named ``sleep 60.<token>`` is still there; if so, end it."""
    mark = f"60.{int(targets['token'][:6], 16)}".encode()
    time.sleep(0.05)
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if mark in read_bytes(f"{path}/cmdline")]
    for process in found:
        os.kill(process, 9)
    return bool(found)


def read_bytes(path: str) -> bytes:
    """Return what a file holds; nothing if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
