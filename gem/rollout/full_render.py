"""Does a chat template render whole conversations as the bridges of an append-only episode do?

Some templates rewrite earlier turns, such as those that drop earlier thinking. What an episode appends is then not what
a full render has; :func:`render_differences` shows where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gem.rollout.rendering import ChatRenderer, message

Conversation = Sequence[tuple[str, str] | tuple[str, str, str]]
"""Observation and answer, turn by turn; and the observation's role, where it is not the user's."""

CONVERSATIONS: dict[str, Conversation] = {
    "plain": [("Guess a number.", "\\boxed{5}"), ("Higher.", "I say \\boxed{8}."), ("Lower.", "\\boxed{7}")],
    "line breaks": [("Rules:\n1. one\n\n2. two", "First.\n\nSecond."), ("a\tb  c", "x\ny"), ("End?", "Yes")],
    "outer blanks": [("  padded \n", "ok"), ("\nnext\n", "ok"), (" ", "ok")],
    "thinking": [
        ("Think.", "<think>\nfive\n</think>\n\n\\boxed{5}"),
        ("Higher.", "\\boxed{8}"),
        ("Yes.", "Bye"),
    ],
}
"""Conversations on which :func:`render_differences` tries a template."""

TOOL_CONVERSATIONS: dict[str, Conversation] = {
    "tools": [
        ("What is 6 * 7?", "<python>print(6 * 7)</python>"),
        ("Result:\n42\n", "<python>print('twice')</python>", "tool"),
        ('{"said": "twice"}', "\\boxed{42}", "tool"),
        ("Yes. Another?", "<search>another</search>"),
        ("Nothing.", "Bye", "tool"),
    ],
    "thinking and tools": [
        ("What is 6 * 7?", "<think>\nI compute.\n</think>\n\n<python>print(6 * 7)</python>"),
        ("42", "<think>\nI say so.\n</think>\n\n\\boxed{42}", "tool"),
        ("Noted.", "Bye", "tool"),
    ],
}
"""Conversations on which a template is tried as well, if tools have messages of their own."""


@dataclass(frozen=True)
class RenderDifference:
    """Where the ids of an append-only episode part from a full render.

    Attributes:
        conversation: the name of the conversation tried.
        turn: the turn (from 1) whose prompt differs.
        appended: text of the append-only ids, from shortly before the first difference.
        rendered: text of the full render's ids from there.
    """

    conversation: str
    turn: int
    appended: str
    rendered: str


def render_differences(
    tokenizer: Any,
    conversations: dict[str, Conversation] | None = None,
    system: str | None = None,
    tool_role: bool = False,
    template_kwargs: dict[str, Any] | None = None,
) -> list[RenderDifference]:
    """Return where append-only ids differ from full renders, on clean turns; empty if nowhere.

    A clean turn is an answer whose ids are those that the full render has for it, and that ends with the
    template's end token.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        conversations: by name; :data:`CONVERSATIONS` by default, and :data:`TOOL_CONVERSATIONS` with ``tool_role``. Try
            one that begins with an observation of the environment in use as well: some templates look for a word in it.
        system: a system message before the first observation.
        tool_role: whether tools have messages of their own.
        template_kwargs: arguments of the chat template.

    Raises:
        ValueError: see :class:`gem.rollout.ChatRenderer`; or a tool's message is tried, and ``tool_role`` is off.
    """
    renderer = ChatRenderer(tokenizer, system, tool_role, template_kwargs, allow_control_tokens=True)
    found = []
    for name, conversation in (conversations or CONVERSATIONS | (TOOL_CONVERSATIONS if tool_role else {})).items():
        messages = list(renderer._before)
        ids: list[int] = []
        answer_before = ""
        for turn, (observation, answer, *roles) in enumerate(conversation, start=1):
            role = roles[0] if roles else "user"
            messages.append(message(role, observation))
            rendered = renderer.encode(renderer._render(messages))
            if turn == 1:
                ids = renderer.first(observation)
            else:
                end = renderer.end_of_turn(role)
                bridge = renderer.bridge(end, observation, role, first=conversation[0][0])
                place = rendered[len(ids) : len(rendered) - len(bridge)]
                ids = [*ids, *_clean_response(renderer, answer_before, end, place), *bridge]
            if ids != rendered:
                found.append(_difference(renderer.tokenizer, name, turn, ids, rendered))
                break
            answer_before = answer
            messages.append(message("assistant", answer))
    return found


def _clean_response(renderer: ChatRenderer, answer: str, end: list[int], place: list[int]) -> list[int]:
    """Return the ids of a full render in the answer's place if they decode to it, else the answer encoded alone.

    Alone is not the same: many tokenizers put a blank before a text, which is not there after a prompt.
    """
    words = place[: len(place) - len(end)]
    if renderer.tokenizer.decode(words, clean_up_tokenization_spaces=False) != answer:
        words = renderer.encode(answer)
    return words + end


def _difference(tokenizer: Any, name: str, turn: int, ids: list[int], rendered: list[int]) -> RenderDifference:
    same = next(
        (i for i, (a, b) in enumerate(zip(ids, rendered, strict=False)) if a != b),
        min(len(ids), len(rendered)),
    )
    start = max(0, same - 8)
    return RenderDifference(
        name, turn, tokenizer.decode(ids[start : same + 24]), tokenizer.decode(rendered[start : same + 24])
    )
