"""PythonCodeTool: run Python code that the model writes."""

from __future__ import annotations

import copy
import re
import textwrap

from gem.text import cut_middle
from gem.tools.base_tool import Block, BlockTool, ToolResult, find_block
from gem.utils.sandbox import check_sandbox, check_sandbox_type, run_python

MAX_CHARS = 4_000
"""Characters of a program's output that the model is shown."""

WITHOUT = "ToolEnvWrapper(env, [PythonCodeTool(sandbox_type='none')]) in place of tools='python'"
"""How a user chooses to have no sandbox: ``make`` builds tools by their names alone."""

_PROGRAM = re.compile(r'File "(?:[^"\n]*/)?main\.py"')
_TRACEBACK = "Traceback (most recent call last):\n"


class PythonCodeTool(BlockTool):
    """Runs the first block of Python code in a text: ``<python>...</python>``, or a fence of ``python`` or ``py``.

    Where the answer to the task is a fence itself (``Env.answers_in_code``), it runs ``<python>...</python>`` only.

    Each program runs in a sandbox of its own, see :mod:`gem.sandbox`. Nothing is kept between programs.

    Args:
        timeout: seconds.
        sandbox_type: how the program is isolated, as for :func:`gem.utils.sandbox.run_python`.
        keep_error_last_line: show only the last line of what a program writes to stderr.
        max_chars: of the output, at most; the middle of a longer one is left out.

    Raises:
        ValueError: there is no such kind of sandbox.
    """

    tool_type = "python_code"
    marks = (
        (re.compile(r"<python>"), re.compile(r"</python>")),
        (re.compile(r"```\n?(?:python3?|py)\b"), re.compile(r"```")),
    )

    def __init__(
        self,
        timeout: float = 5,
        sandbox_type: str = "auto",
        keep_error_last_line: bool = False,
        max_chars: int = MAX_CHARS,
    ) -> None:
        super().__init__()
        check_sandbox_type(sandbox_type)
        self.timeout = timeout
        self.sandbox_type = sandbox_type
        self.keep_error_last_line = keep_error_last_line
        self.max_chars = max_chars
        self.runs_fences = True

    def without_fences(self) -> PythonCodeTool:
        """Return the same tool for tasks whose answers are fences."""
        tool = copy.copy(self)
        tool.runs_fences = False
        return tool

    def find_block(self, action: str) -> Block | None:
        """Return the first call."""
        return find_block(action, self.marks if self.runs_fences else self.marks[:1])

    def prepare(self) -> None:
        """Start the sandbox.

        Raises:
            SandboxUnavailable: it does not work here.
        """
        check_sandbox(self.sandbox_type, WITHOUT)

    def instruction_string(self) -> str:
        """Return how to run code."""
        form = "<python>...</python> or a ```python block" if self.runs_fences else "<python>...</python>"
        end = "with no code beside it" if self.runs_fences else "which is not run as a trial"
        return (
            "You can run Python code while you think. Write a complete program, with its imports, into "
            f"{form}, let it print what you want to know, and stop: you will be "
            f'told what it wrote, after "Code execution result: ". It may take {self.timeout:g} seconds, and each '
            f"program starts afresh. Give your final answer in the form that the task asks for, {end}."
        )

    def execute_action(self, action: str) -> ToolResult:
        """Run the first block."""
        code, parsed_action, is_valid = self._parse_action(action)
        if not is_valid:
            return False, True, "", parsed_action
        success, stdout, stderr = run_python(code, self.sandbox_type, timeout=self.timeout)
        stderr = _own_frames(stderr.strip())
        if self.keep_error_last_line:
            stderr = stderr.rpartition("\n")[2]
        output = "\n".join(filter(None, (stdout.rstrip("\n"), stderr))).lstrip(" \n")
        return True, not success, f"Code execution result: {cut_middle(output, self.max_chars)}\n", parsed_action

    def _parse_action(self, action: str) -> tuple[str, str, bool]:
        """Return the first program, the text up to its end, and whether there is one."""
        block = self.find_block(action)
        if block is None:
            return "", action, False
        return textwrap.dedent(block.content).strip(), action[: block.end], True


def _own_frames(stderr: str) -> str:
    """Name the program without its folder, which differs each time; leave what ran it out of the last traceback."""
    stderr = _PROGRAM.sub('File "main.py"', stderr)
    start = stderr.rfind(_TRACEBACK)
    program = stderr.find('  File "main.py"', start)
    return stderr if min(start, program) < 0 else stderr[: start + len(_TRACEBACK)] + stderr[program:]
