"""An episode, exactly as it was sampled: turns of token ids, and the two forms of training data that trainers take.

An episode is *append-only* when every prompt is the previous prompt, what was sampled after it, and a *bridge*: the
tokens between two turns, which were not sampled. Such an episode is one sequence. Any other (a wrapper rewrote the
history) is one transition per turn.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gem.core import Info
from gem.files import append_lines, replace_file, whole_lines
from gem.rollout.engine import FinishReason
from gem.rollout.returns import discounted_returns
from gem.rollout.tokens import Logprobs, Tokens, bridge_between
from gem.tasks import Task

FORMAT_VERSION = 1

INVALID = frozenset({"error", "abort", "overlong"})
"""Values of ``Episode.truncation`` that are not the model's doing: the environment, the engine or the set-up failed."""

OnError = Literal["mask", "keep"]
"""What a trainer learns from invalid episodes.

``"mask"``: nothing. Such an episode moves neither the policy nor the baseline of its group or batch. ``"keep"``: it is
learned from like any other, with the rewards that it had until then.
"""


def check_on_error(value: str) -> OnError:
    """Return an option ``on_error`` of an adapter.

    Raises:
        ValueError: it is neither ``"mask"`` nor ``"keep"``.
    """
    for known in get_args(OnError):
        if value == known:
            return known
    raise ValueError(f"on_error is 'mask' or 'keep', got {value!r}")


@dataclass
class Turn:
    """One answer of the model, and what the environment returned for it.

    Ids and log-probabilities may be lists. Those of the runner and of a file are read-only views of what the episode
    stores once (:mod:`gem.rollout.tokens`): take ``list(turn.prompt_ids)`` where a list is needed.

    Attributes:
        prompt_ids: all that the model saw.
        response_ids: what it sampled, verbatim.
        logprobs: one log-probability per sampled id, or None.
        finish_reason: why sampling ended.
        action: what was passed to ``step``: the answer in ``response_ids``, without special tokens.
        observation: what ``step`` returned; empty if it was not called (abort) or failed.
        reward: the environment's reward for the action.
        terminated: whether the environment ended the task.
        truncated: whether a limit of the environment ended it.
        info: the environment's info.
        full_text: the whole text of ``response_ids`` where ``action`` is only a part of it, since the model also
            wrote thoughts or used other channels; None if the action is all.
    """

    prompt_ids: Tokens | list[int]
    response_ids: Tokens | list[int]
    logprobs: Logprobs | list[float] | None
    finish_reason: FinishReason
    action: str
    observation: str = ""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Info = field(default_factory=dict)
    full_text: str | None = None


_AFTER_PROMPT = tuple(field.name for field in fields(Turn) if field.name != "prompt_ids")


@dataclass
class TokenSequence:
    """An append-only episode as one row of training data.

    Attributes:
        prompt_ids: the first prompt, int64.
        completion_ids: all that follows, ending on the last sampled token; int64, length T.
        mask: 1 where a token was sampled, 0 on bridges; int64, length T.
        logprobs: float64, length T, 0 on bridges; None if the engine returned none.
        rewards: each turn's reward on its last sampled token, 0 elsewhere; float64, length T.
        turn_ends: index of each turn's last sampled token in the completion; int64, one entry per turn.
    """

    prompt_ids: np.ndarray
    completion_ids: np.ndarray
    mask: np.ndarray
    logprobs: np.ndarray | None
    rewards: np.ndarray
    turn_ends: np.ndarray


@dataclass
class Transition:
    """A turn as a row of training data, for trainers that learn from single turns.

    Attributes:
        prompt_ids: all that the model saw, int64.
        response_ids: what it sampled, int64.
        logprobs: float64, one entry per sampled id, or None.
        reward: the turn's reward.
        return_to_go: the discounted sum of this and the following turns' rewards.
        done: whether this is the episode's last turn.
    """

    prompt_ids: np.ndarray
    response_ids: np.ndarray
    logprobs: np.ndarray | None
    reward: float
    return_to_go: float
    done: bool


@dataclass
class Episode:
    """A task, its turns, and how it ended.

    Attributes:
        task: which episode this is.
        first_observation: what ``reset`` returned.
        turns: at least one, unless the engine aborted the first.
        truncation: None if the task ended. ``"turns"`` and ``"context"`` are limits of the task. The others are
            :data:`INVALID`: ``"error"`` (the environment, a tool or a server failed), ``"abort"`` (the engine gave up,
            or sampled nothing) and ``"overlong"`` (the first observation does not fit into the context).
        error: what went wrong, if the environment failed or the first observation does not fit.
        retries: how many attempts failed before the first token was sampled, and were started again.
        counted: tokens of all prompts, and sampled tokens, as a server has counted them that returns no ids; else None.
        started: when it was started, in seconds since the epoch; 0 if unknown. Not part of comparisons.
        ended: when it ended.
    """

    task: Task
    first_observation: str = ""
    # Not in the repr, since asyncio.run takes that of whatever it has returned.
    turns: list[Turn] = field(default_factory=list, repr=False)
    truncation: str | None = None
    error: str | None = None
    retries: int = 0
    counted: list[int] | None = field(default=None, compare=False)
    started: float = field(default=0.0, compare=False)
    ended: float = field(default=0.0, compare=False)

    @property
    def valid(self) -> bool:
        """Whether no failure of the environment, the engine or the set-up ended the episode."""
        return self.truncation not in INVALID

    @property
    def rewards(self) -> list[float]:
        """One reward per turn."""
        return [turn.reward for turn in self.turns]

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(sum(self.rewards))

    @property
    def success(self) -> bool:
        """Whether the task was solved: ``info["success"]`` at the end, or else a terminated return of 1 or more."""
        if not self.turns:
            return False
        last = self.turns[-1]
        return bool(last.info.get("success", last.terminated and self.total_reward >= 1))

    @property
    def sampled_tokens(self) -> int:
        """How many tokens the model sampled."""
        return self.counted[1] if self.counted else sum(len(turn.response_ids) for turn in self.turns)

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompts of all turns have, each counted whole."""
        return self.counted[0] if self.counted else sum(len(turn.prompt_ids) for turn in self.turns)

    def metrics(self) -> dict[str, float]:
        """Return what there is to log of the episode, under the names that all adapters use.

        The means of these over a batch are its mean return, its success rate, the turns and sampled tokens per
        episode, the shares of its episodes that ended for each reason other than the end of the task, the retries
        per episode, and the share of invalid episodes (``left_out``).
        """
        return {
            "return": self.total_reward,
            "success": float(self.success),
            "turns": float(len(self.turns)),
            "sampled_tokens": float(self.sampled_tokens),
            "truncated_turns": float(self.truncation == "turns"),
            "truncated_context": float(self.truncation == "context"),
            "aborted": float(self.truncation == "abort"),
            "environment_errors": float(self.truncation == "error"),
            "overlong": float(self.truncation == "overlong"),
            "retries": float(self.retries),
            "left_out": float(not self.valid),
        }

    @property
    def append_only(self) -> bool:
        """Whether every prompt extends the previous one and what was sampled after it."""
        return all(bridge_after(*pair) is not None for pair in zip(self.turns, self.turns[1:], strict=False))

    def as_sequence(self) -> TokenSequence:
        """Return the episode as one row: prompt, completion, mask, log-probabilities, one reward per token.

        Raises:
            ValueError: the episode is not append-only, or has no turn.
        """
        if not self.turns:
            raise ValueError(f"the episode {self.task} has no turn ({self.truncation}): there is nothing to learn from")
        completion: list[int] = []
        mask: list[int] = []
        logprobs: list[float] = []
        ends: list[int] = []
        previous: Turn | None = None
        for turn in self.turns:
            bridge = [] if previous is None else bridge_after(previous, turn)
            if bridge is None:
                raise ValueError(
                    f"turn {len(ends) + 1} of {self.task.env_id} does not extend the turn before it, so the episode is "
                    "not one sequence. Take as_transitions() (one row per turn), or leave out the wrapper that "
                    "rewrites the history."
                )
            completion += bridge
            completion.extend(turn.response_ids)
            mask += [0] * len(bridge) + [1] * len(turn.response_ids)
            logprobs += [0.0] * len(bridge)
            logprobs.extend(turn.logprobs or ())
            ends.append(len(completion) - 1)
            previous = turn
        rewards = np.zeros(len(completion))
        rewards[ends] = self.rewards
        known = all(turn.logprobs is not None for turn in self.turns)
        return TokenSequence(
            prompt_ids=np.array(self.turns[0].prompt_ids, dtype=np.int64),
            completion_ids=np.array(completion, dtype=np.int64),
            mask=np.array(mask, dtype=np.int64),
            logprobs=np.array(logprobs, dtype=np.float64) if known else None,
            rewards=rewards,
            turn_ends=np.array(ends, dtype=np.int64),
        )

    def as_transitions(self, gamma: float = 1.0) -> list[Transition]:
        """Return the episode as one row per turn.

        Args:
            gamma: discount per turn.
        """
        returns = discounted_returns(self.rewards, gamma)
        return [
            Transition(
                prompt_ids=np.array(turn.prompt_ids, dtype=np.int64),
                response_ids=np.array(turn.response_ids, dtype=np.int64),
                logprobs=None if turn.logprobs is None else np.array(turn.logprobs, dtype=np.float64),
                reward=turn.reward,
                return_to_go=float(returns[i]),
                done=i == len(self.turns) - 1,
            )
            for i, turn in enumerate(self.turns)
        ]

    def to_json(self) -> str:
        """Return the episode as one JSON line; a prompt that extends the last is written as its bridge.

        Raises:
            TypeError: an info holds something that is not JSON data.
        """
        turns = []
        previous: Turn | None = None
        for turn in self.turns:
            row = {name: getattr(turn, name) for name in _AFTER_PROMPT}  # vars() would have it keep a dict for ever
            row["response_ids"] = list(turn.response_ids)
            row["logprobs"] = None if turn.logprobs is None else list(turn.logprobs)
            bridge = None if previous is None else bridge_after(previous, turn)
            prompt = {"prompt_ids": list(turn.prompt_ids)} if bridge is None else {"bridge_ids": bridge}
            turns.append({**prompt, **row})
            previous = turn
        data = {"version": FORMAT_VERSION, **vars(self), "task": asdict(self.task), "turns": turns}
        return json.dumps(data, default=plain_json)

    @classmethod
    def from_json(cls, line: str) -> Episode:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the line is no episode, or was written in another format.
        """
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not an episode ({type(error).__name__}: {error}): {line[:80]!r}") from None
        if not isinstance(data, dict) or data.pop("version", None) != FORMAT_VERSION:
            raise ValueError(f"not an episode of format {FORMAT_VERSION}: {line[:80]!r}")
        try:
            turns: list[Turn] = []
            seen = Tokens()
            for row in data.pop("turns"):
                prompt = seen.extended(row.pop("bridge_ids")) if "bridge_ids" in row else Tokens(row.pop("prompt_ids"))
                seen = prompt.extended(row.pop("response_ids"))
                row["logprobs"] = None if row["logprobs"] is None else Logprobs(row["logprobs"])
                turns.append(Turn(prompt_ids=prompt, response_ids=seen.part(len(prompt)), **row))
                _check_types(turns[-1], _TURN_TYPES)
            for name in ("run", "step", "task_index", "sample"):  # which recorder and evaluation add to a line
                data.pop(name, None)
            episode = cls(**{**data, "task": Task(**data["task"]), "turns": turns})
            _check_types(episode, _EPISODE_TYPES)
            if episode.counted is not None and [type(each) for each in episode.counted] != [int, int]:
                raise TypeError(f"counted is {episode.counted!r:.80}")
            return episode
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not an episode ({type(error).__name__}: {error}): {line[:80]!r}") from None


def write_jsonl(path: str | Path, episodes: Iterable[Episode], append: bool = False) -> None:
    """Write one line per episode: all of them, or, if that fails, none.

    Raises:
        OSError: the file cannot be written; it is as it was.
        TypeError: an info holds something that is not JSON data.
    """
    lines = [episode.to_json() for episode in episodes]
    if append:
        append_lines(path, lines)
    else:
        replace_file(path, "".join(f"{line}\n" for line in lines))


def read_jsonl(path: str | Path) -> Iterator[Episode]:
    """Read the episodes that :func:`write_jsonl` wrote; a line that a crash has torn is left out, with a warning.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is something else than an episode.
    """
    for number, line in whole_lines(path):
        if line is None:
            warnings.warn(f"{path}: line {number} is torn, and left out", stacklevel=2)
            continue
        try:
            yield Episode.from_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


_NONE = type(None)
_TURN_TYPES = {
    "finish_reason": (str,),
    "action": (str,),
    "observation": (str,),
    "reward": (int, float),
    "terminated": (bool,),
    "truncated": (bool,),
    "info": (dict,),
    "full_text": (str, _NONE),
}
_EPISODE_TYPES = {
    "first_observation": (str,),
    "truncation": (str, _NONE),
    "error": (str, _NONE),
    "retries": (int,),
    "counted": (list, _NONE),
    "started": (int, float),
    "ended": (int, float),
}


def _check_types(of: Turn | Episode, types: dict[str, tuple[type, ...]]) -> None:
    for name, allowed in types.items():
        value = getattr(of, name)
        if type(value) not in allowed or (isinstance(value, (int, float)) and not math.isfinite(value)):
            raise TypeError(f"{name} is {value!r:.80}")


def bridge_after(before: Turn, after: Turn) -> list[int] | None:
    """Return the tokens between two turns; None if the second prompt does not extend the first turn."""
    return bridge_between(before.prompt_ids, before.response_ids, after.prompt_ids)


def plain_json(value: Any) -> Any:
    """Turn a numpy value in an info into JSON data: the ``default`` of ``json.dumps``."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"info holds {value!r}, a {type(value).__name__}, which is not JSON data")
