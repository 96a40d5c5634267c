"""A turn of an episode, as both of RL2's interfaces take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gem.rollout import ChatRenderer, Episode, Request, Response
from gem.rollout.tokens import bridge_between


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of ids, control tokens included."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def stopping_params(params: dict[str, Any], renderer: ChatRenderer) -> dict[str, Any]:
    """Return sampling parameters with which sglang also stops where the chat template ends an answer."""
    own = params.get("stop_token_ids") or ()
    return {**params, "stop_token_ids": sorted({*own, *renderer.stop_ids})}


def response_of(answer: dict[str, Any], renderer: ChatRenderer) -> Response:
    """Return what sglang sampled.

    Raises:
        RuntimeError: it has refused the request.
    """
    meta = answer.get("meta_info")
    if meta is None:
        raise RuntimeError(f"sglang sampled no token, but answered {answer}")
    sampled = meta.get("output_token_logprobs") or []
    ids, logprobs = [token for _, token, _ in sampled], [logprob for logprob, _, _ in sampled]
    return Response.of_server(ids, logprobs, meta["finish_reason"]["type"], renderer.stop_ids)


def bridge_after_turn(episode: Episode, following: Request) -> list[int] | None:
    """Return the ids between the last answer and the next request; None if the history was rewritten."""
    turn = episode.turns[-1]
    return bridge_between(turn.prompt_ids, turn.response_ids, following.prompt_ids)


def next_state(before: str, text: str, extends: bool) -> str:
    """Return the text by which RL2 finds out whether its sequence goes on: whether it starts with the text before."""
    if extends:
        return before + text
    return f" {text}" if text.startswith(before) else text


def reward_and_end(episode: Episode, response: Response, following: Request | None) -> dict[str, Any]:
    """Return what both interfaces want to know of the last turn."""
    done = following is None
    return {
        "next_state": "",
        "reward": episode.turns[-1].reward if response.token_ids else 0.0,
        "score": float(done and episode.success),
        "done": done,
    }
