"""Conformance: does a trainer learn from exactly what was played?

A scenario (:mod:`gem.testing.scenarios`) is played by the driver, which gives the records that are expected, and then
through a trainer's own code, down to the batch that it would learn from. What is read back from there must be the same
ids, mask, rewards and log-probabilities, or differ exactly as the adapter says that it does.

An adapter of a sixth trainer is held to it with one file:

.. code-block:: python

    from gem.testing.conformance import Harness, Record, main


    class Mine(Harness):
        name = "mine"

        def play(self, scenario, script):
            batch = ...  # your trainer's, with script.say(prompt_ids, max_new_tokens) for an engine
            return [Record(ids, mask, rewards, logprobs) for ids, mask, rewards, logprobs in batch]


    if __name__ == "__main__":
        main(Mine())
"""

from __future__ import annotations

import abc
import argparse
import asyncio
import json
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gem.rollout.driver import Limits, run_episodes
from gem.rollout.episode import Episode
from gem.rollout.rendering import ChatRenderer
from gem.rollout.returns import discounted_returns, group_advantages, rebn
from gem.testing.scenarios import Scenario, Script, scenarios

TOLERANCE = 1e-6
"""Of rewards and log-probabilities; ids and masks are equal or not."""


@dataclass(frozen=True)
class Record:
    """A sequence that a trainer learns from: a whole episode, or a turn of one.

    Attributes:
        ids: all tokens, from the first of the prompt to the last that was sampled; length T.
        mask: 1 where a token was sampled; length T.
        rewards: length T.
        logprobs: length T, 0 where no token was sampled; None if the trainer keeps none.
    """

    ids: list[int]
    mask: list[int]
    rewards: list[float]
    logprobs: list[float] | None


@dataclass(frozen=True)
class Difference:
    """What an adapter says of its trainer: how its records differ from the episodes.

    Attributes:
        why: in words, for the table.
        change: from the episodes to the records that are expected instead. None if the trainer refuses.
        refuses: the error that the trainer raises instead of learning.
        match: a regular expression that is found in the error's message.
        only: names of the scenarios; None for all.
    """

    why: str
    change: Callable[[list[Episode]], list[Record]] | None = None
    refuses: type[Exception] | None = None
    match: str = ""
    only: frozenset[str] | None = None


@dataclass
class Cell:
    """What became of a scenario, or of an algorithm's advantages.

    Attributes:
        name: of the scenario or algorithm.
        verdict: ``"equal"``; ``"declared"``, a difference that is exactly the declared one; or ``"broken"``.
        detail: what was declared, or where it broke.
        seconds: how long it took.
    """

    name: str
    verdict: str
    detail: str = ""
    seconds: float = 0.0


@dataclass
class Lowered:
    """What a trainer made of the rewards of the scenario ``two groups``.

    Attributes:
        advantages: for each sequence its ids, and an advantage a sampled token.
        expected: a reference: from the episodes, group after group, to an advantage a turn of each.
        tolerance: how exact the trainer's own numbers are.
        why: what the reference's parameters are, for the table.
    """

    advantages: list[tuple[list[int], list[float]]]
    expected: Callable[[list[Episode]], Sequence[Sequence[float] | np.ndarray]]
    why: str
    tolerance: float = 1e-5


class Harness(abc.ABC):
    """Plays scenarios through a trainer's own code.

    Attributes:
        name: of the trainer.
        version: of the trainer.
        differences: what its records do not have; the first that names a scenario counts.
        algorithms: names of the algorithms that :meth:`lower` knows.
    """

    name: ClassVar[str]
    version: str = ""
    differences: ClassVar[Sequence[Difference]] = ()
    algorithms: ClassVar[Sequence[str]] = ()

    @abc.abstractmethod
    def play(self, scenario: Scenario, script: Script) -> list[Record]:
        """Play a scenario, with ``script.say`` in place of the engine, and read back what the trainer would learn from.

        The order of the records does not matter.
        """

    def lower(self, scenario: Scenario, script: Script, algorithm: str) -> Lowered:
        """Play a scenario, and read back the trainer's advantages."""
        raise NotImplementedError

    def tokenizer(self) -> Any:
        """Return the tokenizer of the scenarios; the embedded model's by default."""
        from transformers import AutoTokenizer

        from gem.embedded import embedded_model

        return AutoTokenizer.from_pretrained(embedded_model())


def records_of(episode: Episode) -> list[Record]:
    """Return the one record of an append-only episode, or one a turn of any other."""
    if not episode.append_only:
        return turns_of(episode)
    row = episode.as_sequence()
    first = len(row.prompt_ids)
    return [
        Record(
            [*row.prompt_ids.tolist(), *row.completion_ids.tolist()],
            [0] * first + row.mask.tolist(),
            [0.0] * first + row.rewards.tolist(),
            None if row.logprobs is None else [0.0] * first + row.logprobs.tolist(),
        )
    ]


def turns_of(episode: Episode, worth: Sequence[float] | None = None) -> list[Record]:
    """Return a record a turn.

    Args:
        episode: of any kind.
        worth: what each turn's last token has for a reward; by default the turn's own.
    """
    records = []
    for turn, reward in zip(episode.turns, episode.rewards if worth is None else worth, strict=True):
        before, sampled = len(turn.prompt_ids), len(turn.response_ids)
        logprobs = None if turn.logprobs is None else [0.0] * before + list(turn.logprobs)
        rewards = [0.0] * (before + sampled - 1) + [float(reward)]
        records.append(Record(turn.prompt_ids + turn.response_ids, [0] * before + [1] * sampled, rewards, logprobs))
    return records


# Changes that several trainers share


def one_scalar(episodes: list[Episode]) -> list[Record]:
    """Return the records of a trainer that keeps the sum of an episode's rewards, on its last token."""
    records = []
    for episode in episodes:
        (record,) = records_of(episode)
        records.append(replace(record, rewards=[0.0] * (len(record.ids) - 1) + [episode.total_reward]))
    return records


def every_turn(episodes: list[Episode]) -> list[Record]:
    """Return the records of a trainer that learns from turns."""
    return [record for episode in episodes for record in turns_of(episode)]


def every_turn_worth_its_return(episodes: list[Episode]) -> list[Record]:
    """Return the same, where a turn is worth its return-to-go."""
    return [
        record for episode in episodes for record in turns_of(episode, list(discounted_returns(episode.rewards, 1.0)))
    ]


# The kit


@dataclass
class Report:
    """What the kit found of a trainer.

    Attributes:
        trainer: its name.
        version: its version.
        cells: one a scenario.
        lowering: one an algorithm.
    """

    trainer: str
    version: str
    cells: list[Cell] = field(default_factory=list)
    lowering: list[Cell] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is broken."""
        return all(cell.verdict != "broken" for cell in [*self.cells, *self.lowering])


def prepare(scenario: Scenario, tokenizer: Any) -> tuple[list[Episode], Script]:
    """Play a scenario with the driver; return its episodes, and the script for the trainer."""
    script = Script(scenario, tokenizer.eos_token_id)
    limits = Limits(scenario.max_turns, scenario.max_new_tokens, scenario.max_context)
    renderer = ChatRenderer(tokenizer, tool_role=scenario.tool_role)
    episodes = asyncio.run(run_episodes(scenario.rows, script, renderer, limits, scenario.make_env(tokenizer)))
    return episodes, script


def check_scenario(harness: Harness, scenario: Scenario, tokenizer: Any) -> Cell:
    """Hold a trainer to one scenario."""
    since = time.perf_counter()
    episodes, script = prepare(scenario, tokenizer)
    plain = [record for episode in episodes for record in records_of(episode)]
    declared = next((d for d in harness.differences if d.only is None or scenario.name in d.only), None)
    try:
        got = harness.play(scenario, script)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this cell's
        refused = declared is not None and declared.refuses is not None and isinstance(error, declared.refuses)
        if refused and declared is not None and re.search(declared.match, str(error)):
            return Cell(scenario.name, "declared", declared.why, time.perf_counter() - since)
        return Cell(scenario.name, "broken", _last_lines(error), time.perf_counter() - since)
    seconds = time.perf_counter() - since
    if declared is not None and declared.refuses is not None:
        return Cell(scenario.name, "broken", f"it was to be refused, and was not: {declared.why}", seconds)
    if script.unknown:
        prompt = tokenizer.decode(script.unknown[0][-40:])
        return Cell(scenario.name, "broken", f"the engine was asked for a prompt that ends {prompt!r}", seconds)
    expected = plain if declared is None or declared.change is None else declared.change(episodes)
    wrong = difference(expected, got)
    if wrong:
        return Cell(scenario.name, "broken", wrong, seconds)
    if declared is not None and difference(plain, expected):
        return Cell(scenario.name, "declared", declared.why, seconds)
    return Cell(scenario.name, "equal", "", seconds)


def check_lowering(harness: Harness, algorithm: str, tokenizer: Any) -> Cell:
    """Hold a trainer's advantages to the reference."""
    since = time.perf_counter()
    scenario = next(s for s in scenarios(tokenizer) if s.name == "two groups")
    episodes, script = prepare(scenario, tokenizer)
    try:
        lowered = harness.lower(scenario, script, algorithm)
    except Exception as error:  # noqa: BLE001 - as above
        return Cell(algorithm, "broken", _last_lines(error), time.perf_counter() - since)
    expected: dict[tuple[tuple[int, ...], int], list[float]] = {}  # by the ids, and by how many were sampled
    for episode, of_turns in zip(episodes, lowered.expected(episodes), strict=True):
        lengths = [len(turn.response_ids) for turn in episode.turns]
        values = np.repeat(np.asarray(of_turns, dtype=float), lengths).tolist()
        start = 0
        for turn, length in zip(episode.turns, lengths, strict=True):  # a trainer of turns has these
            expected[tuple(turn.prompt_ids + turn.response_ids), length] = values[start : start + length]
            start += length
        (record,) = records_of(episode)
        expected[tuple(record.ids), len(values)] = values
    worst, wrong = 0.0, ""
    for ids, got in lowered.advantages:
        own = expected.get((tuple(ids), len(got)))
        if own is None:
            wrong = f"{len(got)} advantages for a sequence that was not played, or not with as many sampled tokens"
            break
        worst = max(worst, float(np.abs(np.subtract(own, got)).max()))
    tokens = sum(len(got) for _, got in lowered.advantages)
    if not wrong and tokens != sum(episode.sampled_tokens for episode in episodes):
        wrong = f"advantages of {tokens} tokens, and {sum(e.sampled_tokens for e in episodes)} were sampled"
    if not wrong and not worst <= lowered.tolerance:
        wrong = f"an advantage differs by {worst:.2g} ({lowered.why})"
    detail = wrong or f"{lowered.why}; differs by {worst:.1g} at most"
    return Cell(algorithm, "broken" if wrong else "equal", detail, time.perf_counter() - since)


def difference(expected: Sequence[Record], got: Sequence[Record]) -> str:
    """Return where records differ, in words; empty if nowhere. Their order does not matter."""
    if len(expected) != len(got):
        return f"{len(got)} sequences, expected {len(expected)}"
    own = [replace(record, ids=[int(i) for i in record.ids]) for record in got]
    for i, (a, b) in enumerate(zip(sorted(expected, key=_order), sorted(own, key=_order), strict=True)):
        for name in ("ids", "mask", "rewards", "logprobs"):
            left, right = getattr(a, name), getattr(b, name)
            if (left is None) != (right is None):
                return f"sequence {i}: {'no' if right is None else 'unexpected'} {name}"
            if left is None:
                continue
            if len(left) != len(right):
                return f"sequence {i}: {len(right)} {name}, expected {len(left)}"
            apart = np.flatnonzero(~(np.abs(np.subtract(left, right)) <= (0 if name in ("ids", "mask") else TOLERANCE)))
            if apart.size:
                at = int(apart[0])
                return f"sequence {i}, token {at} of {len(left)}: {name} {right[at]}, expected {left[at]}"
    return ""


def _order(record: Record) -> tuple[Any, ...]:
    return record.ids, record.mask, record.rewards, record.logprobs or []


def _last_lines(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"


def run(harness: Harness, only: Sequence[str] = (), say: Callable[[str], object] = print) -> Report:
    """Hold a trainer to all scenarios and algorithms.

    Args:
        harness: of the trainer.
        only: names of scenarios and algorithms; empty for all.
        say: is told of every cell.
    """
    tokenizer = harness.tokenizer()
    report = Report(harness.name, harness.version)
    marks = {"equal": "=", "declared": "~", "broken": "X"}
    for scenario in scenarios(tokenizer):
        if not only or scenario.name in only:
            report.cells.append(cell := check_scenario(harness, scenario, tokenizer))
            say(f"{marks[cell.verdict]} {scenario.name} ({cell.seconds:.1f} s) {cell.detail}".rstrip())
    for algorithm in harness.algorithms:
        if not only or algorithm in only:
            report.lowering.append(cell := check_lowering(harness, algorithm, tokenizer))
            say(f"{marks[cell.verdict]} advantages of {algorithm} ({cell.seconds:.1f} s) {cell.detail}".rstrip())
    return report


def main(harness: Harness) -> None:
    """Run the kit from a command line; exits with 1 if anything is broken."""
    parser = argparse.ArgumentParser(description=f"Hold {harness.name} to the conformance kit.")
    parser.add_argument("--out", type=Path, help="write the report here, as JSON")
    parser.add_argument("--only", nargs="*", default=[], help="names of scenarios or algorithms")
    args = parser.parse_args()
    report = run(harness, args.only, lambda line: print(line, flush=True))
    if args.out is not None:
        args.out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    raise SystemExit(0 if report.holds else 1)


# References of advantages


def of_groups(size: int, scale: bool, eps: float, ddof: int = 1) -> Callable[[list[Episode]], list[list[float]]]:
    """Return :func:`gem.rollout.group_advantages` as a reference: every turn has its episode's advantage."""

    def expected(episodes: list[Episode]) -> list[list[float]]:
        values = group_advantages([e.total_reward for e in episodes], size, scale, eps, ddof)
        return [[float(value)] * len(e.turns) for value, e in zip(values, episodes, strict=True)]

    return expected


def of_turns(gamma: float = 1.0) -> Callable[[list[Episode]], list[np.ndarray]]:
    """Return :func:`gem.rollout.rebn` as a reference."""
    return lambda episodes: rebn([e.rewards for e in episodes], gamma)


def of_returns(gamma: float = 1.0) -> Callable[[list[Episode]], list[np.ndarray]]:
    """Return each turn's discounted return as a reference."""
    return lambda episodes: [discounted_returns(e.rewards, gamma) for e in episodes]
