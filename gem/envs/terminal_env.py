"""A terminal: a shell in the sandbox, and a task that ends with a check of the files.

Reward: 1 if the check passes at the end, else 0. The end is when the model says so, or at the last turn, or when its
commands have had all their time; the last two truncate the episode.

The check runs in a sandbox of its own, on a copy of the work folder. So nothing else that the model did can reach it:
no process, no variable, no program of its own. A task is a folder; docs/terminal.md says what is in it.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from gem.core import Env, Info, ResetNeeded, StepResult
from gem.envs import terminal_inside
from gem.envs.terminal_task import TerminalTask, find_folder, read_tasks
from gem.sandbox import Limits, Result, SandboxUnavailable, Session, run
from gem.text import cut_middle
from gem.tools.base_tool import find_block

DONE = "<done/>"

MAX_COMMAND = 100_000
"""Bytes of a command; the kernel takes a few more."""

_MARKS = (
    (re.compile(r"<bash>"), re.compile(r"</bash>")),
    (re.compile(r"```\n?(?:bash|sh|shell)\b"), re.compile(r"```")),
)
_INSIDE = Path(terminal_inside.__file__).read_text(encoding="utf-8")
_RUN_SCRIPT = f"{_INSIDE}\nsys.exit(run_script(json.load(sys.stdin)))"
_START_SECONDS = 30.0
_GRACE_SECONDS = 5.0

_RANDOM = (
    'basename "$PWD"',
    "ls",
    "ls -a ..",
    "find . -type f | sort | head -n 20",
    "head -n 3 *",
    "wc -l *",
    "echo $NUMBER",
    "export NUMBER={}",
    "echo {} > note.txt",
    "mkdir -p folder-{0} && cd folder-{0}",
    "cd ~",
)
"""Commands of random play, which write the same wherever they run."""


def find_command(text: str) -> tuple[str | None, bool]:
    """Return the first command of a text, and whether it says that the task is done.

    It does so behind the command, unless another one begins before; or anywhere, if there is no command.

    >>> find_command("I look. <bash>ls</bash> Then: <done/>")
    ('ls', True)
    """
    block = find_block(text, _MARKS)
    if block is None:
        return None, DONE in text
    following = find_block(text[block.end :], _MARKS)
    rest = text[block.end : None if following is None else block.end + following.start]
    return block.content.replace("\0", "").strip(), DONE in rest  # no shell takes NUL


class TerminalEnv(Env):
    """Run commands in a ```` ```bash ```` block or ``<bash>...</bash>``, the first of a text; end with ``<done/>``.

    Files, the working directory and exported variables stay from turn to turn, and processes in the background go on.
    What a command writes may differ from run to run (times, process numbers); what this environment says does not.
    The state is the list of the commands: an episode is restored by running them again.

    Args:
        task: a task's folder; ``sample:`` and a name for one that comes with this package.
        tasks: a folder of such folders, instead: the seed ``n`` plays task ``n % size``.
        max_turns: turns.
        command_timeout: seconds a command may take; then it is killed, and the episode goes on.
        episode_timeout: seconds that all commands of an episode may take together.
        check_timeout: seconds for the set-up, and for the check.
        max_chars: of a command's output, at most; the middle of a longer one is left out.
        memory_bytes: memory of all processes; one alone may take half of it. If they take more, the episode ends.
        processes: processes at once.
        file_bytes: of all files.
        backend: ``"bubblewrap"``, or ``"plain"``: no sandbox, what the model writes runs with all your rights. The
            sandboxes that work without bubblewrap let no program change a file's mode or time, as many do.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: something is missing in it, or in the arguments.
    """

    reward_range = (0.0, 1.0)
    blocking = True

    idx = -1
    number = 0
    turn = 0
    over = True

    def __init__(
        self,
        task: str | Path | None = None,
        tasks: str | Path | None = None,
        max_turns: int = 20,
        command_timeout: float = 10.0,
        episode_timeout: float = 120.0,
        check_timeout: float = 30.0,
        max_chars: int = 4_000,
        memory_bytes: int = 1 << 30,
        processes: int = 64,
        file_bytes: int = 32 << 20,
        backend: str = "bubblewrap",
    ) -> None:
        super().__init__()
        if (task is None) == (tasks is None):
            raise ValueError("name a task's folder (task=) or a folder of tasks (tasks=)")
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        if backend not in ("bubblewrap", "plain"):
            raise ValueError(f"a terminal's backend is bubblewrap or plain, got {backend!r}")
        self.commands: list[str] = []
        self.max_turns = max_turns
        self._tasks = read_tasks(find_folder(tasks)) if task is None else [TerminalTask.read(find_folder(task))]
        self._command_timeout = command_timeout
        self._episode_timeout = episode_timeout
        self._check_timeout = check_timeout
        self._max_chars = max_chars
        self._backend = backend
        self._limits = Limits(
            wall_seconds=_START_SECONDS,
            cpu_seconds=command_timeout + _GRACE_SECONDS,
            memory_bytes=memory_bytes,
            processes=processes,
            file_bytes=file_bytes,
        )
        self._original: str | None = None
        self._session: Session | None = None
        self._seconds = 0.0  # that the commands took
        self._lost = False  # whether the sandbox ended with a command

    @property
    def size(self) -> int:
        """How many tasks there are."""
        return len(self._tasks)

    @property
    def task(self) -> TerminalTask:
        """The episode's task."""
        return self._tasks[self.idx]

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin a task.

        Raises:
            SandboxUnavailable: no sandbox works here.
            RuntimeError: the task's set-up failed.
        """
        given, seeds = self._seed_episode(seed)
        self.close()
        if given is None:
            self.idx = seeds.next_question(self.size)
        else:
            self.idx = given % self.size
            seeds.begin_pass(self.idx)
        self.number = self.rng.randrange(1 << 31)
        self.turn, self.over, self.commands = 0, False, []
        try:
            self._original = self._set_up()
        except SandboxUnavailable as error:
            raise SandboxUnavailable(f"{error}. Commands run without isolation with backend='plain'.") from None
        return f"{self.task.instruction}\n\n{self._rules()}", {"task": self.task.folder.name}

    def step(self, action: str) -> StepResult:
        """Run the command that the text holds, and check the files if it was the last one."""
        if self.over:
            raise ResetNeeded
        if self.commands and self._session is None:
            self._restore()
        command, done = find_command(action)
        info: Info = {"success": False}
        if command is not None:
            text, info["exit_code"] = self._run(command)
        elif not done:
            text = f"There is no command. Write one into a ```bash block, or {DONE} if the task is done."
        else:
            text = ""
        self.turn += 1
        ended = self.turn == self.max_turns or self._seconds >= self._episode_timeout
        if self._lost:
            text += "\nThe sandbox has ended, and its files are lost. The episode is over."
            self.over = True
            self.close()
            return text.strip("\n"), 0.0, False, True, {**info, "reason": "sandbox"}
        if not (done or ended):
            return text, 0.0, False, False, info
        self.over = True
        info["success"], info["check"] = self._grade()
        self.close()
        if not done:
            text += "\nThat was the last turn." if self.turn == self.max_turns else "\nThe time is up."
        text += f"\nThe check {'passed' if info['success'] else 'failed'}."
        return text.strip("\n"), float(info["success"]), done, not done, info

    def sample_random_action(self) -> str:
        """Return a harmless command, or the end."""
        if self.over:
            raise ResetNeeded
        if self.action_rng.random() < 0.1:
            return DONE
        command = self.action_rng.choice(_RANDOM).format(self.action_rng.randrange(10))
        return f"```bash\n{command}\n```"

    def reference_action(self) -> str:
        """Return the task's solution, and the end.

        Raises:
            NotImplementedError: the task has no ``solution.sh``.
        """
        if not self.task.solution:
            raise NotImplementedError(f"{self.task.folder} has no solution.sh")
        return f"<bash>\n{self.task.solution}\n</bash>\n{DONE}"

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` returned; the commands are run again when the next one comes."""
        self.close()
        super().set_state(state)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps: the sandbox is made again, as after ``set_state``."""
        return {**vars(self), "_original": None, "_session": None, "_seconds": 0.0, "_lost": False}

    def close(self) -> None:
        """End the sandbox."""
        if self._session is not None:
            if self._backend == "plain":  # a sandbox ends with all its processes
                self._session.run(_call("end_background"))
            self._session.close()
        self._original, self._session, self._seconds, self._lost = None, None, 0.0, False

    def _rules(self) -> str:
        return (
            "You have a shell. Write commands into a ```bash block (the first one of your text is run), and you are "
            "told what they write. You begin in your home folder; files, the working directory and exported variables "
            f"stay from turn to turn. A command may take {self._command_timeout:g} seconds and cannot ask for input. "
            f"You have {self.max_turns} turns. When the task is done, write {DONE}: what is in your home folder then "
            "is checked, and nothing else."
        )

    def _run(self, command: str) -> tuple[str, int | None]:
        """Run a command; return what the model is told, and the exit code."""
        if len(command.encode("utf-8", "replace")) > MAX_COMMAND:
            return f"The command was not run: it is longer than {MAX_COMMAND} bytes.", None
        if self._session is None:
            self._session = self._start()
        self.commands.append(command)
        return self._send(command)

    def _restore(self) -> None:
        """Run the commands so far once more."""
        self._session = self._start()
        for command in self.commands:
            self._send(command)

    def _start(self) -> Session:
        """Start a shell in the work folder as the set-up made it."""
        if self._original is None:
            self._original = self._set_up()
        self._seconds = 0.0
        session = Session(self._limits, self._backend)
        start = _call("start", packed=self._original, memory_bytes=self._limits.memory_bytes // 2)
        result = session.run(f"{_INSIDE}\n{start}")
        if result.exit_code != 0:
            session.close()
            raise RuntimeError(f"the shell of {self.task.folder} did not start: {_last_line(result)}")
        return session

    def _send(self, command: str) -> tuple[str, int | None]:
        if self._lost or self._session is None:
            return "", None
        seconds = max(0.1, min(self._command_timeout, self._episode_timeout - self._seconds))
        limits = self._limits_of(seconds + _GRACE_SECONDS)
        result = self._session.run(_call("run", command=command, seconds=seconds), limits)
        self._seconds += result.seconds
        text = cut_middle(result.stdout.rstrip("\n"), self._max_chars)
        if result.truncated:
            text += f"\n[what came after the first {limits.output_bytes} bytes is lost]"
        try:
            end = json.loads(result.stderr)  # from what runs the commands: it is still there
            code, notes = end["exit_code"], list(map(str, end["notes"]))
        except (ValueError, TypeError, KeyError, RecursionError):  # it is not, or a command has written there
            self._lost = True
            return text, None
        if code:
            notes.append(f"exit code {code}")
        text += "".join(f"\n[{note}]" for note in notes)
        return text.strip("\n") or "[no output]", code

    def _set_up(self) -> str:
        """Return the work folder as the task wants it."""
        _warn_if_visible(self.task.folder, self._backend)
        files = self.task.files(self._limits.file_bytes)
        if not self.task.setup:
            return files
        result = self._run_script(self.task.setup, files, None, pack=True)
        if result.exit_code != 0:
            raise RuntimeError(
                f"the set-up of {self.task.folder} failed with exit code {result.exit_code}: {_last_line(result)}"
            )
        return result.stdout

    def _grade(self) -> tuple[bool, str]:
        """Return whether the check passes, and what it wrote."""
        if self._original is None:
            self._original = self._set_up()
        work = self._original
        if self._session is not None:
            limits = self._limits_of(self._check_timeout, self._packed_bytes)
            # Two calls: what others have written is in the output of the first, which nobody reads.
            ended = self._session.run(_call("end_background" if self._backend == "plain" else "end_others"), limits)
            if ended.exit_code != 0:
                return False, f"The work folder could not be read: {_last_line(ended)}"
            result = self._session.run(_call("hand_over", limit=self._limits.file_bytes), limits)
            if result.exit_code != 0 or result.truncated:
                return False, f"The work folder could not be read: {_last_line(result)}"
            work = result.stdout
        if self.task.trial:
            result = self._run_script(self.task.trial, work, self._original, pack=True)
            if result.exit_code is None or not result.stdout or result.truncated:
                return False, f"The trial did not end: {_last_line(result)}"
            work = result.stdout
        result = self._run_script(self.task.check, work, self._original)
        return result.exit_code == 0, cut_middle(result.stderr, self._max_chars)

    def _run_script(self, script: str, work: str, original: str | None, pack: bool = False) -> Result:
        """Run a script of the task in a sandbox of its own."""
        order = {
            "script": script,
            "work": work,
            "original": original,
            "seed": str(self.number),
            "pack": pack,
            "isolated": self._backend != "plain",
            "limit": self._limits.file_bytes,
        }
        limits = self._limits_of(self._check_timeout, self._packed_bytes)
        return run(_RUN_SCRIPT, json.dumps(order), limits, self._backend)

    @property
    def _packed_bytes(self) -> int:
        """What the work folder takes as text, if it cannot be compressed."""
        return 2 * self._limits.file_bytes + (1 << 20)

    def _limits_of(self, seconds: float, output_bytes: int = 1 << 20) -> Limits:
        file_bytes = 2 * self._limits.file_bytes + (
            1 << 20
        )  # for the check, which sees the work folder and the original
        return replace(
            self._limits,
            wall_seconds=seconds,
            cpu_seconds=seconds,
            output_bytes=output_bytes,
            file_bytes=file_bytes,
        )


def _call(name: str, **arguments: Any) -> str:
    """Return the program that calls a function of :data:`gem.envs.terminal_inside.CALLS`; the arguments are JSON."""
    return f"call({json.dumps([name, arguments])!r})"


def _last_line(result: Result) -> str:
    if result.timed_out:
        return "its time was up"
    return (result.stderr.strip().splitlines() or ["it said nothing"])[-1]


@functools.cache
def _warn_if_visible(folder: Path, backend: str) -> None:
    """Warn if a task stands where the sandbox shows the model its check: in the folder of this Python, say."""
    if backend != "plain" and run(["test", "-e", str(folder / "check.sh")], backend=backend).exit_code == 0:
        text = f"the model can read {folder} from within its sandbox, the check and the solution too: move it elsewhere"
        warnings.warn(text, stacklevel=2)
