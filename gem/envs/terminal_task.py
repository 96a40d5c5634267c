"""The tasks of a terminal: folders with an instruction, a check, and what else a task needs (docs/terminal.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gem.envs import terminal_inside

SHIPPED = "sample:"
"""``sample:log-errors`` is the folder ``data/terminal/log-errors`` of this package, ``sample:`` that of all."""

_TASKS = Path(__file__).with_name("data") / "terminal"


@dataclass(frozen=True)
class TerminalTask:
    """A folder with a task: ``instruction.md`` and ``check.sh``, and what else there may be.

    Attributes:
        folder: where it is.
        instruction: what the model is told.
        check: script that exits with 0 if the work folder is as it should be.
        setup: script that makes the work folder; "" if there is none.
        trial: script that runs what the model wrote, before the check; "" if there is none.
        solution: script that does the task; "" if there is none.
    """

    folder: Path
    instruction: str
    check: str
    setup: str = ""
    trial: str = ""
    solution: str = ""

    @classmethod
    def read(cls, folder: str | Path) -> TerminalTask:
        """Read a task.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: something is missing in it.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        texts = {}
        for name in ("instruction.md", "check.sh", "setup.sh", "trial.sh", "solution.sh"):
            path = folder / name
            try:
                text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not text in UTF-8") from None
            if not text and name in ("instruction.md", "check.sh"):
                state = "is empty" if path.is_file() else "is missing"
                raise ValueError(f"{folder} is no task: {name} {state} (docs/terminal.md says what a task is)")
            texts[path.stem] = text
        return cls(folder.resolve(), **texts)

    def files(self, limit: int) -> str:
        """Return what is in its ``files``, as the sandbox takes it."""
        return terminal_inside.pack(str(self.folder / "files"), limit, since=0)


def read_tasks(folder: str | Path) -> list[TerminalTask]:
    """Read the tasks of a folder: one a subfolder, by name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no task in it, or something is missing in one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"{folder} holds no tasks: each is a folder in it")
    return [TerminalTask.read(path) for path in folders]


def find_folder(name: Any) -> Path:
    """Return the folder that a name stands for, which may begin with :data:`SHIPPED`."""
    text = str(name)
    return _TASKS / text.removeprefix(SHIPPED) if text.startswith(SHIPPED) else Path(text)
