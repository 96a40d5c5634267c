"""From observations to token ids, with the tokenizer's own chat template.

A template renders a conversation; an episode needs the ids *between* two sampled answers. Rendering the
conversation anew each turn would encode the sampled text again, and get other ids than were sampled. So
the bridge is taken by difference: a dummy conversation whose answer is a marker is rendered with the
observation after it, and what follows the marker are the end of the answer's turn, the observation's
message and the generation prompt, whatever the template looks like.

For a conversation whose answers encode as they were sampled this gives the ids of a full render, unless
the template rewrites the past (drops earlier thinking, say). :func:`render_differences` tells.

The observation is the user's message. A tool's may be the tool's instead, in a template that has such messages after
an answer that is plain text: what the model said is never taken apart into ``tool_calls``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from gem.core import Info

_QUESTION = "question"
_MARKER = "ANSWERMARKER"
_TOOL_MARKERS = ("TOOLMARKERONE", "TOOLMARKERTWO")

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


class ChatRenderer:
    """Renders the observations of append-only episodes.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        system: a system message before the first observation.
        tool_role: whether a tool's observation is a message of the role ``tool``, and not the user's.
        **template_kwargs: go to the chat template, for example ``enable_thinking=False``.

    Raises:
        ValueError: the tokenizer has no chat template, or one that does not show the answers; or ``tool_role`` is
            asked of a template that refuses a tool's message, leaves it out, or shows it as the model's answer.

    Attributes:
        end_ids: the token that ends an answer's turn, by the role of the message after it; None if the template ends
            it with plain text.
        end_id: that before a user's message.
    """

    def __init__(
        self, tokenizer: Any, system: str | None = None, tool_role: bool = False, **template_kwargs: Any
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
            raise ValueError(
                f"{name} has no chat template, so a conversation cannot be put into tokens. Use an instruction-tuned "
                "model, or set tokenizer.chat_template."
            )
        self.tokenizer = tokenizer
        self.tool_role = tool_role
        self._before = [{"role": "system", "content": system}] if system is not None else []
        self._template_kwargs = template_kwargs
        self._special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
        self._heads: dict[str, tuple[str, list[int]]] = {}
        self._ends = {"user": self._end_before("user")}
        if tool_role:
            self._check_tool_role()
            self._ends["tool"] = self._end_before("tool")
        self.end_ids = {role: None if end is None else end[1] for role, end in self._ends.items()}
        self.end_id = self.end_ids["user"]

    def first(self, observation: str) -> list[int]:
        """Return the ids of a conversation that begins with ``observation``, generation prompt included."""
        return self.encode(self._render([*self._before, _message("user", observation)]))

    def bridge(self, response_ids: list[int], observation: str, role: str = "user") -> list[int]:
        """Return what stands between a sampled answer and the next.

        That is the end of the answer's turn (left out if it was sampled), ``observation`` as a message of ``role``,
        and the generation prompt.

        Raises:
            ValueError: the role is ``tool``, and ``tool_role`` is off; or there is no such role.
        """
        if role not in self._ends:
            raise ValueError(f"observations are messages of the role {' or '.join(self._ends)} here, not {role!r}")
        tail, end = self._tail(observation, role), self._ends[role]
        if end is not None and response_ids and response_ids[-1] == end[1]:
            return tail[end[0] + 1 :]
        return tail

    def role_of(self, info: Info) -> str:
        """Return the role of the message with an observation, given the step's info: a tool's turn says so there."""
        return "tool" if self.tool_role and info.get("use_tool") else "user"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that is rendered already: no special tokens are added."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """Return the text of sampled ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _render(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **self._template_kwargs
        )

    def _tail(self, observation: str, role: str) -> list[int]:
        """Return the ids after the marker of the dummy conversation."""
        dummy = [*self._before, _message("user", _QUESTION), _message("assistant", _MARKER)]
        text = self._render([*dummy, _message(role, observation)])
        cut = text.find(_MARKER) + len(_MARKER)  # the first marker: the observation may hold others
        if cut < len(_MARKER):
            raise ValueError("the chat template does not show the assistant's message")
        head = self._heads.get(role)
        if head is None or head[0] != text[:cut]:
            head = self._heads[role] = (text[:cut], self.encode(text[:cut]))
        ids, before = self.encode(text), head[1]
        # The marker's ids may merge with what follows it where the template ends a turn with plain text.
        return ids[len(before) :] if ids[: len(before)] == before else self.encode(text[cut:])

    def _end_before(self, role: str) -> tuple[int, int] | None:
        """Return place and id of the first special token after an answer, if it is there whatever the observation."""
        tails = zip(self._tail("a", role), self._tail("b", role), strict=False)
        before_observation = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], tails)]
        return next(((i, token) for i, token in enumerate(before_observation) if token in self._special), None)

    def _check_tool_role(self) -> None:
        """Refuse a template whose messages of tools would not be what they are to be, before an episode has one."""
        advice = "Leave tool_role off: a tool's observation is then the user's message."
        try:
            shown = self._render(self._tool_turns("tool"))
        except Exception as error:
            raise ValueError(
                f"the chat template refuses a tool's message after an answer that is plain text ({error}). Some "
                f"templates want tool_calls or a tool_call_id with it, which an answer in text does not have. {advice}"
            ) from error
        if not all(marker in shown for marker in _TOOL_MARKERS):
            raise ValueError(f"the chat template leaves a tool's message out. {advice}")
        try:
            as_answers = self._render(self._tool_turns("assistant"))
        except Exception:  # noqa: BLE001 - then it tells them apart
            return
        if shown.split(_TOOL_MARKERS[1])[0] == as_answers.split(_TOOL_MARKERS[1])[0]:
            raise ValueError(f"the chat template shows a tool's message as if the model had said it. {advice}")

    def _tool_turns(self, role: str) -> list[dict[str, str]]:
        """Return a conversation with a tool's message in the middle, and one at the end, after plain answers."""
        asked = [_message("user", _QUESTION), _message("assistant", _MARKER)]
        middle, last = (_message(role, marker) for marker in _TOOL_MARKERS)
        return [*self._before, *asked, middle, asked[1], *asked, last]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


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
    **template_kwargs: Any,
) -> list[RenderDifference]:
    """Return where append-only ids differ from full renders, on clean turns; empty if nowhere.

    A clean turn is an answer whose ids are those that the full render has for it, and that ends with the
    template's end token.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        conversations: by name; :data:`CONVERSATIONS` by default, and :data:`TOOL_CONVERSATIONS` with ``tool_role``.
        system: a system message before the first observation.
        tool_role: whether tools have messages of their own.
        **template_kwargs: go to the chat template.

    Raises:
        ValueError: see :class:`ChatRenderer`; or a tool's message is tried, and ``tool_role`` is off.
    """
    renderer = ChatRenderer(tokenizer, system, tool_role, **template_kwargs)
    found = []
    for name, conversation in (conversations or CONVERSATIONS | (TOOL_CONVERSATIONS if tool_role else {})).items():
        messages = list(renderer._before)
        ids: list[int] = []
        said = ""
        for turn, (observation, answer, *roles) in enumerate(conversation, start=1):
            role = roles[0] if roles else "user"
            messages.append(_message(role, observation))
            rendered = renderer.encode(renderer._render(messages))
            if turn == 1:
                ids = renderer.first(observation)
            else:
                end = [] if (end_id := renderer.end_ids.get(role)) is None else [end_id]
                bridge = renderer.bridge(end, observation, role)
                place = rendered[len(ids) : len(rendered) - len(bridge)]
                ids = [*ids, *_clean_response(renderer, said, end, place), *bridge]
            if ids != rendered:
                found.append(_difference(tokenizer, name, turn, ids, rendered))
                break
            said = answer
            messages.append(_message("assistant", answer))
    return found


def _clean_response(renderer: ChatRenderer, answer: str, end: list[int], place: list[int]) -> list[int]:
    """Return the ids of a full render in the answer's place if they say ``answer``, else the answer encoded alone.

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
