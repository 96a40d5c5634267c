"""From observations to token ids, with the tokenizer's own chat template.

A template renders a conversation; an episode needs the ids *between* two sampled answers. Rendering the
conversation anew each turn would encode the sampled text again, and get other ids than were sampled. So
the bridge is taken by difference: a dummy conversation whose answer is a marker is rendered with the
observation after it, and what follows the marker are the end of the answer's turn, the observation's
message and the generation prompt, whatever the template looks like.

For a conversation whose answers encode as they were sampled this gives the ids of a full render, unless
the template rewrites the past (drops earlier thinking, say): :func:`gem.rollout.render_differences` finds out.

The observation is the user's message. A tool's may be the tool's instead, in a template that has such messages after
an answer that is plain text: what the model wrote is never taken apart into ``tool_calls``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile
from typing import Any

from gem.core import Info
from gem.rollout.answers import Answer, AnswerParser
from gem.rollout.tokenizers import tokenizer_and_template
from gem.utils.control_tokens import beginnings, control_tokens, first_characters, special_ids

_QUESTION = "question"
_MARKER = "ANSWERMARKER"
_TOOL_MARKERS = ("TOOLMARKERONE", "TOOLMARKERTWO")


class ObservationRefused(ValueError):
    """A chat template raises an error for what an environment returned, as some do for markup of their own."""


class ChatRenderer:
    """Renders the observations of append-only episodes, and finds the answers in what a model sampled.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template, or a processor that has one.
        system: a system message before the first observation.
        tool_role: whether a tool's observation is a message of the role ``tool``, and not the user's.
        template_kwargs: arguments of the chat template, for example ``{"enable_thinking": False}``; ``chat_template``
            among them is another template than the tokenizer's own, or the name of one of its templates.
        allow_control_tokens: whether the text of a control token in an observation becomes that token. By default it
            becomes ordinary tokens, so that neither an environment nor a tool can forge a turn.

    Raises:
        TypeError: the tokenizer is one whose conversations cannot be rendered as text.
        ValueError: the tokenizer has no chat template, or one that does not show the answers, or refuses the system
            message; or ``tool_role`` is asked of a template that refuses a tool's message, leaves it out, or shows it
            as the model's answer.

    Attributes:
        end_ids: the token that ends an answer's turn, by the role of the message after it; None if the template ends
            it with plain text.
        end_id: that before a user's message.
        stop_ids: the tokens at which an engine should stop, since the template ends answers with them. A model's own
            end token may be another one: that of a base model, under a template for conversations, usually is.
        control_ids: the tokens that are control tokens: special ones, and others that the template writes.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        tool_role: bool = False,
        template_kwargs: dict[str, Any] | None = None,
        allow_control_tokens: bool = False,
    ) -> None:
        template_kwargs = dict(template_kwargs or {})
        self.tokenizer, template = tokenizer_and_template(tokenizer, template_kwargs.pop("chat_template", None))
        self.tool_role = tool_role
        self._before = [message("system", system)] if system is not None else []
        self._template_kwargs = {"chat_template": template, **template_kwargs}
        added = {i: str(token) for i, token in self.tokenizer.added_tokens_decoder.items()}
        special = special_ids(self.tokenizer)
        self._parser = AnswerParser(self.tokenizer, special, added, template)
        self._special = frozenset(special | added.keys())
        control = control_tokens(self.tokenizer, template)
        self.control_ids = frozenset(control)
        self._guard({} if allow_control_tokens else control)
        self._marker_ids = self.encode(_MARKER)
        self._check_template()
        if tool_role:
            self._check_tool_role()
        self._closings = {role: self._closing_before(role) for role in (["user", "tool"] if tool_role else ["user"])}
        self.end_ids = {role: closing.ids[-1] if closing.ids else None for role, closing in self._closings.items()}
        self.end_id = self.end_ids["user"]
        self._stops = {closing.stop for closing in self._closings.values() if closing.stop is not None}
        self.stop_ids = tuple(sorted(self._stops))

    def _guard(self, control: dict[int, str]) -> None:
        self._guarded_ids = frozenset(control)
        self._first_of_control = first_characters(control.values())
        self._spelled = beginnings(control.values())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        self._normalizes = backend is None or backend.normalizer is not None

    def first(self, observation: str) -> list[int]:
        """Return the ids of a conversation that begins with ``observation``, generation prompt included."""

        def rendered(text: str) -> str:
            return self._shown([*self._before, message("user", text)])

        return self._guarded(observation, rendered, self.encode)

    def bridge(
        self, response_ids: Sequence[int], observation: str, role: str = "user", first: str | None = None
    ) -> list[int]:
        """Return the ids between a sampled answer and the next.

        That is the end of the answer's turn (as far as it was not sampled), ``observation`` as a message of ``role``,
        and the generation prompt.

        Args:
            response_ids: the sampled answer.
            observation: what the environment returned.
            role: of the message.
            first: the episode's first observation. Some templates look for a word in it (``/no_think``) that decides
                on every generation prompt.

        Raises:
            ValueError: the role is ``tool``, and ``tool_role`` is off; or there is no such role.
        """
        closing = self._closing(role)
        return self._tail(observation, role, first)[closing.sampled(response_ids, self._stops) :]

    def end_of_turn(self, role: str = "user") -> list[int]:
        """Return the control tokens that end an answer before a message of a role; none if plain text ends it.

        Raises:
            ValueError: see :meth:`bridge`.
        """
        closing = self._closing(role)
        return [token for token in closing.ids if token in closing.control]

    def role_of(self, info: Info) -> str:
        """Return the role of the message with an observation, given the step's info: a tool's turn says so there."""
        return "tool" if self.tool_role and info.get("use_tool") else "user"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that is rendered already: no special tokens are added."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of sampled ids, without special tokens."""
        return self._parser.decode(list(ids))

    def parse(self, ids: Sequence[int], prompt_ids: Sequence[int]) -> Answer:
        """Return the answer in sampled ids: see :mod:`gem.rollout.answers`."""
        return self._parser.parse(list(ids), prompt_ids)

    def _shown(self, messages: list[dict[str, str]]) -> str:
        """Render a conversation with an observation in it, which the template may refuse.

        Raises:
            ObservationRefused: the template raises an error.
        """
        try:
            return self._render(messages)
        except Exception as error:
            raise ObservationRefused(f"the chat template refuses the observation ({_line(error)})") from error

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False, **self._template_kwargs
        )

    # Control tokens that an observation spells out

    def _guarded(self, observation: str, render: Callable[[str], str], encode: Callable[[str], list[int]]) -> list[int]:
        """Return the ids of a rendered observation, in which its own text is ordinary tokens only.

        Where the observation spells a control token, the rendered text is cut inside of it, and the parts are put into
        tokens one by one: no part spells a control token, and all ids around it are as they would have been.
        """
        if not self._may_spell_control(observation) or len(pieces := self._pieces(observation)) == 1:
            return encode(render(observation))
        mark = _unused("CUTMARKER", observation)
        first, *others = render(mark.join(pieces)).split(mark)
        return [*encode(first), *(token for ids in self._continued(others) for token in ids)]

    def _may_spell_control(self, text: str) -> bool:
        """Whether it is worth looking closer, without putting the text into tokens.

        A normalizer may make a control token of other characters, but not of other ASCII characters.
        """
        return bool(self._guarded_ids) and bool(
            self._first_of_control.search(text) or (self._normalizes and not text.isascii())
        )

    def _pieces(self, text: str) -> list[str]:
        """Cut a text after the first character of every control token that it spells, until no piece spells one.

        A control token of one character cannot be cut.
        """
        starts = (match.start() for match in self._spelled.finditer(text))
        pieces = [text[i:j] for i, j in pairwise([0, *(start + 1 for start in starts), None])]
        while not self._guarded_ids.isdisjoint(self.encode("\n".join(pieces))):  # a normalizer makes others
            cut = [part for piece in pieces for part in self._cut_where_encoded(piece)]
            if len(cut) == len(pieces):
                break
            pieces = cut
        return pieces

    def _cut_where_encoded(self, text: str) -> list[str]:
        """Cut a text after the first character of every control token that the tokenizer finds in it."""
        if not self.tokenizer.is_fast:
            return list(text) if not self._guarded_ids.isdisjoint(self.encode(text)) else [text]
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        found = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        cuts = [start + 1 for token, (start, _) in found if token in self._guarded_ids and start + 1 < len(text)]
        return [text[i:j] for i, j in pairwise([0, *cuts, None])]

    def _continued(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of texts that go on another: some tokenizers put a blank before a text of its own."""
        before = self.encode("\n")
        different = list(dict.fromkeys(texts))
        whole = self.tokenizer([f"\n{text}" for text in different], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        ids_of = {
            text: ids[len(before) :] if ids[: len(before)] == before else self.encode(text)
            for text, ids in zip(different, whole, strict=True)
        }
        return [ids_of[text] for text in texts]

    # What stands between two answers

    def _tail(self, observation: str, role: str, first: str | None = None) -> list[int]:
        """Return the ids after the answer in a conversation of two observations."""
        question = _QUESTION if first is None else first
        marker = _unused(_MARKER, question, observation)

        def rendered(text: str) -> str:
            turns = [message("user", question), message("assistant", marker), message(role, text)]
            return marker + self._shown([*self._before, *turns]).partition(marker)[2]

        return self._guarded(observation, rendered, partial(self._after_marker, marker=marker))

    def _after_marker(self, text: str, marker: str = _MARKER) -> list[int]:
        """Return the ids of what follows the marker with which a text begins."""
        ids, before = self.encode(text), self._marker_ids if marker == _MARKER else self.encode(marker)
        # The marker's ids may merge with what follows it where the template ends a turn with plain text.
        return ids[len(before) :] if ids[: len(before)] == before else self.encode(text[len(marker) :])

    def _closing(self, role: str) -> _Closing:
        if role not in self._closings:
            raise ValueError(f"observations are messages of the role {' or '.join(self._closings)} here, not {role!r}")
        return self._closings[role]

    def _closing_before(self, role: str) -> _Closing:
        """Return how the template ends an answer, if it is ended in the same way whatever the observation."""
        tails = zip(self._tail("a", role), self._tail("b", role), strict=False)
        constant = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], tails)]
        places = [i for i, token in enumerate(constant) if token in self._special]
        last = [token for token in self._end_of_conversation() if token in self._special]
        if not places:
            return _Closing([], frozenset(), last[0] if last else None)
        # The end is as long as the template ends the last answer of a conversation and any other alike: two tokens in
        # Command R7B. gpt-oss ends the last with a token of its own, and a GLM's end is the beginning of what follows.
        same = sum(1 for _ in takewhile(lambda pair: constant[pair[0]] == pair[1], zip(places, last, strict=False)))
        ids = constant[: places[max(same, 1) - 1] + 1]
        stop = last[0] if last and not same and role == "user" else ids[-1]
        return _Closing(ids, frozenset(ids) & self._special, stop)

    def _end_of_conversation(self) -> list[int]:
        """Return the ids after an answer that nothing follows."""
        turns = [message("user", _QUESTION), message("assistant", _MARKER)]
        text = self._render([*self._before, *turns], add_generation_prompt=False)
        return self._after_marker(_MARKER + text.partition(_MARKER)[2])

    # What is refused

    def _check_template(self) -> None:
        """Refuse a template that cannot render an episode, with what can be done about it."""
        turns = [message("user", _QUESTION), message("assistant", _MARKER), message("user", _QUESTION)]
        try:
            shown = self._render(turns)
        except Exception as error:  # noqa: BLE001 - templates raise what they like
            shown = self._shown_without_tools(turns, error)
        if _MARKER not in shown:
            raise ValueError("the chat template does not show the assistant's message")
        if self._before:
            self._check_system(turns)

    def _shown_without_tools(self, turns: list[dict[str, str]], error: Exception) -> str:
        """Render a conversation that has failed with an empty list of tools: some templates go through it unasked."""
        self._template_kwargs.setdefault("tools", [])
        try:
            return self._render(turns)
        except Exception:  # noqa: BLE001
            raise ValueError(f"the chat template fails on a plain conversation: {_line(error)}") from error

    def _check_system(self, turns: list[dict[str, str]]) -> None:
        advice = "Leave the system message out, and put its text into the first observation with a wrapper."
        try:
            shown = self._render([message("system", _MARKER + "SYSTEM"), *turns])
        except Exception as error:
            raise ValueError(f"the chat template refuses a system message ({_line(error)}). {advice}") from error
        if _MARKER + "SYSTEM" not in shown:
            raise ValueError(f"the chat template does not show a system message. {advice}")

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
            raise ValueError(f"the chat template shows a tool's message as if the model had written it. {advice}")

    def _tool_turns(self, role: str) -> list[dict[str, str]]:
        """Return a conversation with a tool's message in the middle, and one at the end, after plain answers."""
        asked = [message("user", _QUESTION), message("assistant", _MARKER)]
        middle, last = (message(role, marker) for marker in _TOOL_MARKERS)
        return [*self._before, *asked, middle, asked[1], *asked, last]


@dataclass(frozen=True)
class _Closing:
    """How a template ends an answer.

    Attributes:
        ids: from the answer to the last token of its end; empty if the template ends it with plain text.
        control: the special tokens among them.
        stop: the token at which an engine should stop.
    """

    ids: list[int]
    control: frozenset[int]
    stop: int | None

    def sampled(self, response_ids: Sequence[int], stops: Set[int]) -> int:
        """Return how many of the first ``ids`` need no place in the bridge, since the response ends with them.

        Args:
            response_ids: the answer.
            stops: tokens with which the template ends an answer anywhere: after one of them, nothing is missing.
        """
        last = response_ids[-1] if len(response_ids) else None
        if last in self.control:
            # A token may stand in the end more than once: it is the one before which most of the sampled tokens fit.
            places = [i + 1 for i, token in enumerate(self.ids) if token == last]
            return max(places, key=lambda n: _common_suffix(self.ids[:n], response_ids[-n:]))
        return len(self.ids) if last in stops else 0


def _common_suffix(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(a), reversed(b), strict=False)))


def _unused(word: str, *texts: str) -> str:
    """Return a word that is in none of the texts."""
    while any(word in text for text in texts):
        word += hashlib.sha256("".join([word, *texts]).encode()).hexdigest()  # which no text holds of itself
    return word


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def message(role: str, content: str) -> dict[str, str]:
    """Return a message of a conversation."""
    return {"role": role, "content": content}


def shared_renderer(
    tokenizer: Any,
    system: str | None = None,
    tool_role: bool = False,
    template_kwargs: dict[str, Any] | None = None,
    allow_control_tokens: bool = False,
) -> ChatRenderer:
    """Return the process's renderer of a tokenizer, made by the first call; arguments as in :class:`ChatRenderer`."""
    given = json.dumps(template_kwargs, sort_keys=True)
    return _shared_renderer(tokenizer, system, tool_role, given, allow_control_tokens)


@functools.lru_cache(maxsize=8)
def _shared_renderer(tokenizer: Any, system: Any, tool_role: bool, template_kwargs: str, control: bool) -> ChatRenderer:
    return ChatRenderer(tokenizer, system, tool_role, json.loads(template_kwargs), control)
