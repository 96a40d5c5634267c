"""The package of a user who trains on environments, a wrapper and a tool of their own.

========================  ====================================================================================
``mylab:Near-v0``         guess a number; every turn pays by how near it is (:class:`mylab.envs.Near`)
``mylab:Flaky-v0``        the same, and one of eight episodes fails (:class:`mylab.envs.Flaky`)
``mylab:Near-v0-tool``    with the wrapper and the tool built in, for trainers without ``make_env``
:func:`make_env`          any task's environment with the wrapper and the tool around it, where there is ``make_env``
========================  ====================================================================================
"""

from __future__ import annotations

from typing import Any

from gem.core import Env
from gem.tasks import Task
from gem.tools import ToolEnvWrapper
from mylab.envs import Flaky, Near
from mylab.tools import Parity
from mylab.wrappers import TurnCost

__all__ = ["Flaky", "Near", "Parity", "TurnCost", "make_env", "near_with_tool"]


def make_env(task: Task) -> Env:
    """Build a task's environment; each turn costs, and the first number is the tool's."""
    return ToolEnvWrapper(TurnCost(task.make()), [Parity()], max_tool_uses=1)


def near_with_tool(**kwargs: Any) -> Env:
    """Build :class:`Near` as :func:`make_env` does."""
    return ToolEnvWrapper(TurnCost(Near(**kwargs)), [Parity()], max_tool_uses=1)
