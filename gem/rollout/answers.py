r"""From what a model sampled to what the environment gets: the answer, without thoughts and other channels.

A model writes more than its answer. Reasoning stands between two tags (``<think>``, ``[THINK]``,
``<|START_THINKING|>`` ...) or in a channel of its own (gpt-oss), and calls of tools have a markup that differs from
one template to the next. Most of these tags are control tokens, which vanish when ids are decoded without special
tokens: thought and answer would be one text, and a call that was only considered would be executed. So the ids are
decoded with the control tokens in sight, and taken apart here:

* Thoughts are left out. A thought that was not finished leaves no answer.
* Of gpt-oss's channels only ``final`` is the answer.
* A tool call in a template's own markup becomes ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``, which is
  what :class:`gem.tools.mcp_tool.MCPTool` takes.

The sampled ids are not touched: all of this is about the text that the environment is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence, Set
from typing import Any, NamedTuple

# A control token that was sampled stands in the text between these two noncharacters, so that it differs from the
# same text in ordinary tokens.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_NONCHARACTERS = re.compile(f"[{_BEGIN}{_END}]")

THOUGHTS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, GLM, Nemotron, Kimi
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|channel>", "<channel|>"),  # Gemma 4
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
)
"""Tags around thoughts: the first pair in any text, the others where they are tokens of the tokenizer."""

_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
_CALLS = (
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
)

MARKUP = frozenset({tag for pair in THOUGHTS[1:] for tag in pair} | {*_HARMONY, *_CALLS})
"""The control tokens that this module knows the meaning of."""


class Answer(NamedTuple):
    """What a response says.

    Attributes:
        action: the text for the environment.
        full_text: all of the text, control tokens included, where the action is only a part of it; else None.
    """

    action: str
    full_text: str | None = None


class AnswerParser:
    """Takes responses apart, for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        special: ids of its special tokens.
        added: all tokens that were added to its vocabulary: text by id.
        template: its chat template.
    """

    def __init__(self, tokenizer: Any, special: Set[int], added: dict[int, str], template: str) -> None:
        self._tokenizer = tokenizer
        self._markup = {i: text for i, text in added.items() if text in MARKUP}
        self._shown = {**{i: added.get(i, "") for i in special}, **self._markup}
        self._openings = [opening for opening, _ in THOUGHTS if opening in template]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def parse(self, ids: Sequence[int], prompt_ids: Sequence[int]) -> Answer:
        """Return the answer in a response.

        Args:
            ids: the response.
            prompt_ids: the prompt before it, which may have begun a thought already.
        """
        text = self.decode(ids)
        thinks = self._begins_thought(prompt_ids)
        if not thinks and "<think>" not in text and self._markup.keys().isdisjoint(ids):
            return Answer(text)
        shown = self._with_control_tokens(ids)
        action = answer_in(shown, thinks)
        return Answer(text) if action == text else Answer(action, _NONCHARACTERS.sub("", shown))

    def _begins_thought(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt ends with the beginning of a thought: the generation prompt of DeepSeek-R1 does."""
        if not self._openings:
            return False
        end = self._tokenizer.decode(list(prompt_ids[-8:]), clean_up_tokenization_spaces=False).rstrip()
        return end.endswith(tuple(self._openings)) or end.endswith("<|channel>thought")

    def _with_control_tokens(self, ids: Sequence[int]) -> str:
        pieces: list[str] = []
        run: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in self._shown:
                run.append(token)
                continue
            pieces.append(_NONCHARACTERS.sub("\ufffd", self.decode(run)))
            run = []
            if token is not None:
                pieces.append(_control(self._shown[token]))
        return "".join(pieces)


def answer_in(text: str, thinks: bool = False) -> str:
    r"""Return the answer in a text whose control tokens are marked; the time is linear in its length.

    >>> answer_in("<think>five? six?</think>\n\n\\boxed{5}")
    '\\boxed{5}'
    >>> answer_in("five? six?</think>\\boxed{5}", thinks=True)
    '\\boxed{5}'

    Args:
        text: as the model wrote it.
        thinks: whether a thought had begun before it.
    """
    if _CHANNEL in text:
        return _final_channel(text)
    text = _without_thoughts(text, thinks)
    for pattern in _CALL_PATTERNS:
        text = pattern.sub(_as_tool_call, text)
    text = _LISTED_CALLS.sub(_as_tool_calls, text)
    return _MARKED.sub("", text)


def _control(text: str) -> str:
    return f"{_BEGIN}{text}{_END}"


_MARKED = re.compile(f"{_BEGIN}[^{_END}]*{_END}")
_TAGS = [THOUGHTS[0], *((_control(opening), _control(closing)) for opening, closing in THOUGHTS[1:])]
_OPENING = re.compile("|".join(re.escape(opening) for opening, _ in _TAGS))
_CLOSING = re.compile("|".join(re.escape(closing) for _, closing in _TAGS))


def _without_thoughts(text: str, thinks: bool) -> str:
    """Leave out what stands between the tags of thoughts. One that does not end goes on to the end of the text."""
    kept: list[str] = []
    position = 0
    while thinks or (opening := _OPENING.search(text, position)):
        if not thinks:
            assert opening is not None
            kept.append(text[position : opening.start()])
            position = opening.end()
        thinks = False
        closing = _CLOSING.search(text, position)
        if closing is None:
            position = len(text)
            break
        position = closing.end()
    rest = text[position:]
    return "".join([*kept, rest.lstrip() if position else rest])


# gpt-oss ("harmony"): a response is a row of messages, each with a header that names its channel and recipient.

_CHANNEL, _MESSAGE, _START = (_control(tag) for tag in ("<|channel|>", "<|message|>", "<|start|>"))
_MESSAGE_END = re.compile("|".join(re.escape(_control(tag)) for tag in ("<|end|>", "<|return|>", "<|call|>")))
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+)")


def _final_channel(text: str) -> str:
    answers = []
    for message in text.split(_START):
        header, found, body = message.partition(_MESSAGE)
        if not found:
            continue
        body = _MARKED.sub("", _MESSAGE_END.split(body, maxsplit=1)[0])
        channel = header.partition(_CHANNEL)[2].split(maxsplit=1)
        if recipient := _RECIPIENT.search(header):
            answers.append(_tool_call(recipient[1], body))
        elif channel and _MARKED.sub("", channel[0]) == "final":
            answers.append(body)
    return "".join(answers)


# Calls of tools in other templates

_CALL_PATTERNS = (
    re.compile(  # Mistral: [TOOL_CALLS]name[CALL_ID]id[ARGS]{...}
        rf"{re.escape(_control('[TOOL_CALLS]'))}(?P<name>[\w.-]+)(?:{re.escape(_control('[CALL_ID]'))}\w*)?"
        rf"{re.escape(_control('[ARGS]'))}(?P<arguments>[^{_BEGIN}]*)"
    ),
    re.compile(  # Kimi: <|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}<|tool_call_end|>
        rf"{re.escape(_control('<|tool_call_begin|>'))}\s*(?:functions\.)?(?P<name>[\w.-]+):\d+\s*"
        rf"{re.escape(_control('<|tool_call_argument_begin|>'))}(?P<arguments>[^{_BEGIN}]*)"
        rf"{re.escape(_control('<|tool_call_end|>'))}"
    ),
)
_LISTED_CALLS = re.compile(  # Command R7B: <|START_ACTION|>[{"tool_name": ..., "parameters": ...}]<|END_ACTION|>
    rf"(?:{re.escape(_control('<|START_ACTION|>'))}|{re.escape(_control('[TOOL_CALLS]'))})(?P<calls>[^{_BEGIN}]*)"
    rf"(?:{re.escape(_control('<|END_ACTION|>'))})?"
)


def _tool_call(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": {json.dumps(name)}, "arguments": {arguments.strip() or "{}"}}}</tool_call>'


def _as_tool_call(call: re.Match[str]) -> str:
    return _tool_call(call["name"], call["arguments"])


def _as_tool_calls(listed: re.Match[str]) -> str:
    """Return calls that a template lists as JSON, one by one; the text as it is if it is not such a list."""
    try:
        calls = json.loads(listed["calls"])
        return "\n".join(_calls(calls if isinstance(calls, list) else [calls]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return listed["calls"]


def _calls(calls: Iterable[dict[str, Any]]) -> Iterable[str]:
    for call in calls:
        name = call["tool_name"] if "tool_name" in call else call["name"]
        arguments = call.get("parameters", call.get("arguments", {}))
        yield _tool_call(str(name), json.dumps(arguments))
