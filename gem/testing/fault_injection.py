"""An environment for testing adapters: it takes any answer, pays a reward in every turn, and fails if asked to."""

from __future__ import annotations

import threading
import time

from gem.core import Env, Info, StepResult
from gem.registry import ENV_REGISTRY, register
from gem.tasks import Task

FAULT_INJECTING = "test:FaultInjecting-v0"

RELEASE = threading.Event()
"""Lets go of what hangs: set it at the end of a test, and no thread outlives the test."""

WAYS = ("well", "raises", "hangs", "floods", "works")


class FaultInjectingEnv(Env):
    """Takes any answer, and pays 1 for the first, 2 for the second and so on.

    Args:
        how: what it does in its second turn: ``well``, nothing special; ``raises`` an OSError; ``hangs`` until
            :data:`RELEASE` is set, a minute at most; ``floods``, answers with a megabyte; ``works`` for a second.
        length: turns.
    """

    def __init__(self, how: str = "well", length: int = 4) -> None:
        super().__init__()
        if how not in WAYS:
            raise ValueError(f"how must be one of {', '.join(WAYS)}, got {how!r}")
        self.how, self.length, self.turn = how, length, 0

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin."""
        super().reset(seed)
        self.turn = 0
        return "begin", {}

    def step(self, action: str) -> StepResult:
        """Take any answer."""
        self.turn += 1
        observation = "on"
        if self.turn == 2:
            if self.how == "raises":
                raise OSError("the disk is full")
            if self.how == "hangs":
                RELEASE.wait(60)
            if self.how == "works":
                time.sleep(1)
            if self.how == "floods":
                observation = "a very long story " * 60_000
        return observation, float(self.turn), self.turn == self.length, False, {}


def fault_task(how: str = "well", seed: int = 0, length: int = 4) -> Task:
    """Return a task for :class:`FaultInjectingEnv`, which is registered if it is not yet."""
    if FAULT_INJECTING not in ENV_REGISTRY:
        register(FAULT_INJECTING, FaultInjectingEnv)
    return Task(FAULT_INJECTING, seed, {"how": how, "length": length})
