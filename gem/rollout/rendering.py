"""From observations to token ids, with the tokenizer's own chat template.

A template renders a conversation; an episode needs the ids *between* two sampled answers. Rendering the
conversation anew each turn would encode the sampled text again, and get other ids than were sampled. So
the bridge is taken by difference: a dummy conversation whose answer is a marker is rendered with the
observation after it, and what follows the marker are the end of the answer's turn, the observation's
message and the generation prompt, whatever the template looks like.

For a conversation whose answers encode as they were sampled this gives the ids of a full render, unless
the template rewrites the past (drops earlier thinking, say). :func:`render_differences` tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

_QUESTION = "question"
_MARKER = "ANSWERMARKER"

CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "plain": [("Guess a number.", "\\boxed{5}"), ("Higher.", "I say \\boxed{8}."), ("Lower.", "\\boxed{7}")],
    "line breaks": [("Rules:\n1. one\n\n2. two", "First.\n\nSecond."), ("a\tb  c", "x\ny"), ("End?", "Yes")],
    "outer blanks": [("  padded \n", "ok"), ("\nnext\n", "ok"), (" ", "ok")],
    "thinking": [
        ("Think.", "<think>\nfive\n</think>\n\n\\boxed{5}"),
        ("Higher.", "\\boxed{8}"),
        ("Yes.", "Bye"),
    ],
}
"""Conversations on which :func:`render_differences` tries a template: observation and answer, turn by turn."""


class ChatRenderer:
    """Renders the observations of append-only episodes.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        system: a system message before the first observation.
        **template_kwargs: go to the chat template, for example ``enable_thinking=False``.

    Raises:
        ValueError: the tokenizer has no chat template, or one that does not show the answers.
    """

    def __init__(self, tokenizer: Any, system: str | None = None, **template_kwargs: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
            raise ValueError(
                f"{name} has no chat template, so a conversation cannot be put into tokens. Use an instruction-tuned "
                "model, or set tokenizer.chat_template."
            )
        self.tokenizer = tokenizer
        self._before = [{"role": "system", "content": system}] if system is not None else []
        self._template_kwargs = template_kwargs
        self._special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
        self._head_ids: tuple[str, list[int]] = ("", [])
        tails = zip(self._tail("a"), self._tail("b"), strict=False)
        before_observation = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], tails)]
        ends = [i for i, token in enumerate(before_observation) if token in self._special]
        self._end_index = ends[0] if ends else None
        self.end_id = before_observation[ends[0]] if ends else None
        """The token that ends an answer's turn; None if the template ends it with plain text."""

    def first(self, observation: str) -> list[int]:
        """Return the ids of a conversation that begins with ``observation``, generation prompt included."""
        return self.encode(self._render([*self._before, {"role": "user", "content": observation}], True))

    def bridge(self, response_ids: list[int], observation: str) -> list[int]:
        """Return what stands between a sampled answer and the next.

        That is the end of the answer's turn (left out if it was sampled), ``observation`` as the user's
        message, and the generation prompt.
        """
        tail = self._tail(observation)
        if self._end_index is not None and response_ids and response_ids[-1] == self.end_id:
            return tail[self._end_index + 1 :]
        return tail

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that is rendered already: no special tokens are added."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """Return the text of sampled ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _render(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=generation_prompt, tokenize=False, **self._template_kwargs
        )

    def _tail(self, observation: str) -> list[int]:
        """Return the ids after the marker of the dummy conversation."""
        dummy = [
            *self._before,
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _MARKER},
        ]
        text = self._render([*dummy, {"role": "user", "content": observation}], True)
        cut = text.find(_MARKER) + len(_MARKER)  # the first marker: the observation may hold others
        if cut < len(_MARKER):
            raise ValueError("the chat template does not show the assistant's message")
        if self._head_ids[0] != text[:cut]:
            self._head_ids = (text[:cut], self.encode(text[:cut]))
        head = self._head_ids[1]
        ids = self.encode(text)
        # The marker's ids may merge with what follows it where the template ends a turn with plain text.
        return ids[len(head) :] if ids[: len(head)] == head else self.encode(text[cut:])


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
    conversations: dict[str, list[tuple[str, str]]] | None = None,
    system: str | None = None,
    **template_kwargs: Any,
) -> list[RenderDifference]:
    """Return where append-only ids differ from full renders, on clean turns; empty if nowhere.

    A clean turn is an answer whose ids are those that the full render has for it, and that ends with the
    template's end token.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        conversations: observation and answer, turn by turn, by name; :data:`CONVERSATIONS` by default.
        system: a system message before the first observation.
        **template_kwargs: go to the chat template.
    """
    renderer = ChatRenderer(tokenizer, system, **template_kwargs)
    end = [] if renderer.end_id is None else [renderer.end_id]
    found = []
    for name, conversation in (conversations or CONVERSATIONS).items():
        messages = list(renderer._before)
        ids: list[int] = []
        said = ""
        for turn, (observation, answer) in enumerate(conversation, start=1):
            messages.append({"role": "user", "content": observation})
            rendered = renderer.encode(renderer._render(messages, True))
            if turn == 1:
                ids = renderer.first(observation)
            else:
                bridge = renderer.bridge(end, observation)
                place = rendered[len(ids) : len(rendered) - len(bridge)]
                ids = [*ids, *_clean_response(renderer, said, end, place), *bridge]
            if ids != rendered:
                found.append(_difference(tokenizer, name, turn, ids, rendered))
                break
            said = answer
            messages.append({"role": "assistant", "content": answer})
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
