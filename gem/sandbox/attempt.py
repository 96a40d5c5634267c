"""What an attempt to get out of a sandbox is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gem.sandbox.limits import Limits, Result

LIMITS = Limits(cpu_seconds=5.0, memory_bytes=1 << 28, processes=16, output_bytes=1 << 16, file_bytes=8 << 20)


@dataclass(frozen=True)
class Attempt:
    """A way to get out.

    Attributes:
        name: what it tries, which should be impossible.
        program: Python code; see ``_PRELUDE`` for what it can use.
        check: takes the stage and the result, and returns whether it got out; None: if it printed ESCAPED.
        plain: whether it can be run without a sandbox, too, and do no harm.
        seconds: when it is killed.
    """

    name: str
    program: str
    check: Callable[[dict[str, Any], Result], bool] | None = None
    plain: bool = True
    seconds: float = 5.0
