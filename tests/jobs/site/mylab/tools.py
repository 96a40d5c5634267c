"""A tool."""

from __future__ import annotations

import re

from gem.tools.base_tool import BlockTool, ToolResult


class Parity(BlockTool):
    r"""Says of a number in ``\boxed{}`` whether it is even: a call that the embedded model makes untaught."""

    tool_type = "parity"
    marks = ((re.compile(r"\\boxed\{"), re.compile(r"\}")),)

    def instruction_string(self) -> str:
        """Say so."""
        return "The first number is only looked at."

    def execute_action(self, action: str) -> ToolResult:
        """Look at the number."""
        block = self.find_block(action)
        if block is None:
            return False, True, "", action
        if not block.content.strip().isdigit():
            return True, True, "That is no number.", action[: block.end]
        answer = "even" if int(block.content) % 2 == 0 else "odd"
        return True, False, f"It is {answer}.", action[: block.end]
