"""BaseTool: what a tool is.

A tool finds its call in the model's text, executes it, and answers with text. Nothing else is required; what a tool
may define beside it is for tools that keep something during an episode, or that wait:

* ``per_episode = True``: each environment plays with a copy of its own, on which ``reset``, ``close``, ``get_state``
  and ``set_state`` are called with the environment's. Other tools are shared by all environments, and left alone.
* ``async def execute_action_async(action)``: is awaited instead of calling ``execute_action``, in the event loop of
  :mod:`gem.tools.event_loop`, which all tools share. So a tool may hold connections there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

ToolResult = tuple[bool, bool, str, str]
"""``(is_valid, has_error, observation, parsed_action)``."""

Marks = Sequence[tuple[re.Pattern[str], re.Pattern[str]]]
"""What begins a block and what ends it, for each of its forms."""


class BaseTool:
    """A tool. Subclasses write ``instruction_string`` and ``execute_action``.

    Args:
        num_workers: accepted, as published; how many calls run at once is the rollout's to say.

    Attributes:
        tool_type: a name for ``info["tool_type"]``.
        per_episode: whether an environment needs an instance of its own.
    """

    tool_type = "base"
    per_episode = False

    def __init__(self, num_workers: int = 1) -> None:
        self.num_workers = num_workers

    def prepare(self) -> None:
        """Make ready what every call needs, or raise what says what is missing.

        It is called for each environment that is built with the tool, so that a package that is not installed stops a
        run before its first episode, whereas what ``execute_action`` raises is shown to the model.
        """
        return None

    def instruction_string(self) -> str:
        """Return what tells the model how to call the tool; it follows the first observation."""
        raise NotImplementedError(f"{type(self).__name__} has no instruction_string")

    def find_action(self, action: str) -> int | None:
        """Return the index in ``action`` at which a call of this tool begins; None if there is none.

        Of several tools, the one whose call comes first is used. A tool that cannot tell without executing is asked
        last: this is the default.
        """
        return len(action)

    def execute_action(self, action: str) -> ToolResult:
        """Execute the first call in the model's text.

        Returns:
            ``(is_valid, has_error, observation, parsed_action)``: whether there is a call, whether it failed, what
            the model is to see, and the text up to the end of the call.
        """
        raise NotImplementedError(f"{type(self).__name__} has no execute_action")

    def reset(self) -> None:
        """Begin an episode."""
        return None

    def close(self) -> None:
        """Release what the tool holds. Calling it again does nothing."""
        return None

    def get_state(self) -> dict[str, Any]:
        """Return the state within the episode, as JSON data."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put the tool into a state that ``get_state`` returned."""
        return None


class Block(NamedTuple):
    """A part of a text between two marks: where the first begins and the last ends, and what is between them."""

    start: int
    end: int
    content: str


class BlockTool(BaseTool):
    """A tool whose call is a block between two marks, as ``<search>query</search>`` is.

    A subclass that looks for other marks defines ``marks``. One that overrides ``execute_action`` or ``_parse_action``
    alone, as is usual in code written for gem-llm, is asked whether a text holds a call by executing it.

    Attributes:
        marks: as for :func:`find_block`.
    """

    marks: ClassVar[Marks]

    def find_block(self, action: str) -> Block | None:
        """Return the first call."""
        return find_block(action, self.marks)

    def find_action(self, action: str) -> int | None:
        """Return where the first call begins."""
        block = self.find_block(action)
        if block is not None:
            return block.start
        changed = {"execute_action", "_parse_action"} & vars(self).keys()
        return None if _marks_tell(type(self)) and not changed else super().find_action(action)

    def _parse_action(self, action: str) -> tuple[str, str, bool]:
        """Return what the first call holds, the text up to its end, and whether there is one."""
        block = self.find_block(action)
        return ("", action, False) if block is None else (block.content.strip(), action[: block.end], True)


def _marks_tell(tool: type) -> bool:
    """Return whether no class that overrides what executes a call has left the marks as they were."""

    def definer(name: str) -> int:
        return next(i for i, each in enumerate(tool.__mro__) if name in vars(each))

    return definer("marks") <= min(definer("execute_action"), definer("_parse_action"))


def find_block(text: str, marks: Marks) -> Block | None:
    """Return the first block that is complete and not blank, of any of several forms; None if there is none.

    The time is linear in the length of the text.

    >>> find_block("so <a> x </a>", [(re.compile("<a>"), re.compile("</a>"))])
    Block(start=3, end=13, content=' x ')

    Args:
        text: what to look in.
        marks: a pattern for the beginning and one for the end, for each form.
    """
    blocks = [block for opening, closing in marks if (block := _first(text, opening, closing))]
    return min(blocks, default=None)


def _first(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> Block | None:
    position = 0
    while begin := opening.search(text, position):
        end = closing.search(text, begin.end())
        if end is None:
            return None  # nor for any later beginning
        content = text[begin.end() : end.start()]
        if content.strip():
            return Block(begin.start(), end.end(), content)
        position = end.end()
    return None
