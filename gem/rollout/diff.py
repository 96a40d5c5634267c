"""Where do two lists of episodes part?"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gem.rollout.episode import Episode, Turn, bridge_after, plain_json

_PARTING = {"prompt token", "sampled token", "mask", "action", "observation"}
"""After one of these the two episodes are on different ways: what follows is a consequence."""


@dataclass
class TurnTokens:
    """What a turn's model saw and sampled, and the bridge after it.

    Attributes:
        ids: the prompt, the sampled ids, and what the next turn's prompt adds if it extends both.
        sampled: positions of the sampled ids.
    """

    ids: list[int]
    sampled: range


@dataclass
class Difference:
    """One thing that is not the same in two episodes.

    Attributes:
        episode: number of the episode, from 1.
        turn: number of the turn, from 1; None where it is the episode as a whole.
        what: ``"task"``, ``"first observation"``, ``"prompt token"``, ``"sampled token"``, ``"mask"`` (the same token,
            sampled in one only), ``"log-probability"``, ``"action"``, ``"reward"``, ``"observation"``, ``"info"``,
            ``"end"``, or ``"episodes"`` if there are more of them in one.
        a: what the first has there: :class:`TurnTokens` for tokens and masks, a dict of the entries that are not the
            same for a task, an info and an end, how many for episodes, else the value itself.
        b: what the second has there.
        at: the token's position, from 0 at the prompt's start; None where it is about no token.
    """

    episode: int
    turn: int | None
    what: str
    a: Any
    b: Any
    at: int | None = None


def episode_differences(a: Sequence[Episode], b: Sequence[Episode], tolerance: float = 1e-6) -> list[Difference]:
    """Compare the first episode with the first, the second with the second, and so on.

    Each kind of difference is given once an episode, where it comes first. Turns are compared up to the first in which
    tokens, masks, actions or observations differ, and episodes of different tasks no further.

    >>> from gem.tasks import Task
    >>> one = Episode(Task("x", 0), "Go.", [Turn([1, 2], [3, 4], None, "stop", "a b")])
    >>> other = Episode(Task("x", 0), "Go.", [Turn([1, 2], [3, 5], None, "stop", "a c")])
    >>> [(d.turn, d.what, d.at) for d in episode_differences([one], [other])]
    [(1, 'sampled token', 3), (1, 'action', None)]
    >>> episode_differences([one], [one])
    []

    Args:
        a: some episodes.
        b: some others.
        tolerance: how far two log-probabilities, rewards or numbers in an info may be apart and count as equal.

    Raises:
        TypeError: an info holds something that is not JSON data.
    """
    differences: list[Difference] = []
    for number, (one, other) in enumerate(zip(a, b, strict=False), start=1):
        seen = set()
        for difference in _compare(number, one, other, tolerance):
            if difference.what not in seen:
                differences.append(difference)
            seen.add(difference.what)
    if len(a) != len(b):
        differences.append(Difference(min(len(a), len(b)) + 1, None, "episodes", len(a), len(b)))
    return differences


def _compare(number: int, a: Episode, b: Episode, tolerance: float) -> Iterator[Difference]:
    tasks = _unequal(asdict(a.task), asdict(b.task), 0)
    if tasks:
        yield Difference(number, None, "task", *tasks)
        return
    if a.first_observation != b.first_observation:
        yield Difference(number, None, "first observation", a.first_observation, b.first_observation)
    for index in range(min(len(a.turns), len(b.turns))):
        found = list(_compare_turns(number, index, a, b, tolerance))
        yield from found
        if any(difference.what in _PARTING for difference in found):
            break
    ends = _unequal(_end(a), _end(b), 0)
    if ends:
        yield Difference(number, None, "end", *ends)


def _compare_turns(number: int, index: int, a: Episode, b: Episode, tolerance: float) -> Iterator[Difference]:
    one, other = a.turns[index], b.turns[index]

    def difference(what: str, of_a: Any, of_b: Any, at: int | None = None) -> Difference:
        return Difference(number, index + 1, what, of_a, of_b, at)

    same_prompts = _same_prompts(a.turns, b.turns, index)
    if not same_prompts or one.response_ids != other.response_ids:
        yield difference(*_first_token(_tokens(a, index), _tokens(b, index)))
    if same_prompts:  # else the log-probabilities are those of other tokens
        at = _first_logprob(one, other, tolerance)
        if at is not None:
            position = at + len(one.prompt_ids)
            yield difference("log-probability", _logprob(one, at), _logprob(other, at), position)
    if one.action != other.action:
        yield difference("action", one.action, other.action)
    if not _same(one.reward, other.reward, tolerance):
        yield difference("reward", one.reward, other.reward)
    if one.observation != other.observation:
        yield difference("observation", one.observation, other.observation)
    infos = _unequal(one.info, other.info, tolerance)
    if infos:
        yield difference("info", *infos)
    ends = _unequal(_turn_end(one), _turn_end(other), 0)
    if ends:
        yield difference("end", *ends)


def _same_prompts(a: Sequence[Turn], b: Sequence[Turn], index: int) -> bool:
    """Whether two turns have the same prompt, if the turns before them have the same tokens."""
    if index:  # usually it is enough to compare what the prompts have since
        of_a, of_b = (bridge_after(turns[index - 1], turns[index]) for turns in (a, b))
        if of_a is not None and of_b is not None:
            return of_a == of_b
    return a[index].prompt_ids == b[index].prompt_ids


def _tokens(episode: Episode, index: int) -> TurnTokens:
    turn = episode.turns[index]
    ids = [*turn.prompt_ids, *turn.response_ids]
    sampled = range(len(turn.prompt_ids), len(ids))
    if index + 1 < len(episode.turns):
        ids += bridge_after(turn, episode.turns[index + 1]) or []
    return TurnTokens(ids, sampled)


def _first_token(a: TurnTokens, b: TurnTokens) -> tuple[str, TurnTokens, TurnTokens, int]:
    """Return the first difference of two turns whose prompts or sampled ids are not the same."""
    at = 0
    while (_token(a, at), _part(a, at)) == (_token(b, at), _part(b, at)):
        at += 1
    if _token(a, at) == _token(b, at) and (at in a.sampled) != (at in b.sampled):
        return "mask", a, b, at
    in_prompt = at < max(a.sampled.start, b.sampled.start)
    return "prompt token" if in_prompt else "sampled token", a, b, at


def _token(tokens: TurnTokens, at: int) -> int | None:
    return tokens.ids[at] if at < len(tokens.ids) else None


def _part(tokens: TurnTokens, at: int) -> str:
    if at < tokens.sampled.start:
        return "prompt"
    return "sampled" if at in tokens.sampled else "bridge"


def _first_logprob(a: Turn, b: Turn, tolerance: float) -> int | None:
    """Return the first position of the same sampled ids at which the log-probabilities are not the same."""
    for at, (one, other) in enumerate(zip(a.response_ids, b.response_ids, strict=False)):
        if one != other:
            return None
        if not _same(_logprob(a, at), _logprob(b, at), tolerance):
            return at
    return None


def _logprob(turn: Turn, at: int) -> float | None:
    return turn.logprobs[at] if turn.logprobs is not None and at < len(turn.logprobs) else None


def _turn_end(turn: Turn) -> dict[str, Any]:
    return {"finish_reason": turn.finish_reason, "terminated": turn.terminated, "truncated": turn.truncated}


def _end(episode: Episode) -> dict[str, Any]:
    return {"turns": len(episode.turns), "truncation": episode.truncation, "error": episode.error}


def _unequal(a: dict[str, Any], b: dict[str, Any], tolerance: float) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the entries that are not the same; None if all are."""
    a, b = (json.loads(json.dumps(data, default=plain_json)) for data in (a, b))  # as they are after a file
    same = {key for key in a.keys() & b.keys() if _same(a[key], b[key], tolerance)}
    first, second = ({key: value for key, value in data.items() if key not in same} for data in (a, b))
    return (first, second) if first or second else None


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):  # to Python, True is 1
        return a is b
    if isinstance(a, numbers.Integral) and isinstance(b, numbers.Integral):
        return a == b  # as floats, long integers would overflow
    if isinstance(a, numbers.Real) and isinstance(b, numbers.Real):
        both_nan = math.isnan(a) and math.isnan(b)
        return both_nan or math.isclose(a, b, rel_tol=0, abs_tol=tolerance)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return bool(a == b)
