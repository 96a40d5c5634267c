"""Terminals in Docker containers are not supported; :mod:`gem.envs.terminal_env` runs a terminal in a sandbox."""

from __future__ import annotations

from dataclasses import dataclass

from gem.refusals import refuse

REASON = (
    "Tasks in a shell are gem.make('terminal:...'), or gem.envs.terminal_env.TerminalEnv(task='folder'), in a sandbox "
    "that needs no Docker; docs/terminal.md says what a task's folder holds."
)

__getattr__ = refuse(__name__, ["DockerEnv"], REASON)


@dataclass
class TaskConfig:
    """A task of terminal-bench."""

    task_name: str
    task_path: str
    test_weights: dict[str, float]
    max_test_timeout_sec: float = 300.0
    max_retry: int = 5


@dataclass
class ContainerConfig:
    """How a container is run: without building its image anew, and for how many seconds."""

    no_rebuild: bool = False
    timeout: int = 600
