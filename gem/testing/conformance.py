"""Conformance: does a trainer learn from exactly what was sampled?

A scenario (:mod:`gem.testing.scenarios`) is run by the rollout runner, whose episodes are what is expected, and then
through a trainer's own code, down to the batch that it would learn from. What is read back from there must be the same
ids, mask, rewards and log-probabilities, or differ exactly as the adapter says that it does.

The suite runs on an adapter of a sixth trainer with one file:

.. code-block:: python

    from gem.testing.conformance import Harness, main
    from gem.testing.records import Record


    class Mine(Harness):
        name = "mine"

        def run(self, scenario, policy):
            batch = ...  # your trainer's, with policy.respond(prompt_ids, max_new_tokens, stop_ids) for an engine
            return [Record(ids, mask, rewards, logprobs) for ids, mask, rewards, logprobs in batch]


    if __name__ == "__main__":
        main(Mine())
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gem.rollout.episode import Episode
from gem.rollout.limits import Limits
from gem.rollout.rendering import ChatRenderer
from gem.rollout.runner import run_episodes
from gem.testing.gradients import gradient_difference
from gem.testing.harness import ComputedAdvantages, Difference, Harness
from gem.testing.records import difference, records_of
from gem.testing.scenarios import Scenario, ScriptedPolicy, scenarios
from gem.testing.updates import update_difference

__all__ = ["ComputedAdvantages", "Difference", "Harness", "main", "run"]


@dataclass
class Cell:
    """What became of a scenario, of an algorithm's advantages, of a loss's gradient, or of an optimiser's updates.

    Attributes:
        name: of the scenario, algorithm, loss or optimiser.
        verdict: ``"equal"``; ``"declared"``, a difference that is exactly the declared one; or ``"broken"``.
        detail: what was declared, or where it broke.
        seconds: how long it took.
    """

    name: str
    verdict: str
    detail: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """The result of the suite for a trainer.

    Attributes:
        trainer: its name.
        version: its version.
        cells: one per scenario.
        advantages: one per algorithm.
        gradients: one per loss.
        updates: one per setting of the optimiser.
    """

    trainer: str
    version: str
    cells: list[Cell] = field(default_factory=list)
    advantages: list[Cell] = field(default_factory=list)
    gradients: list[Cell] = field(default_factory=list)
    updates: list[Cell] = field(default_factory=list)

    @property
    def conformant(self) -> bool:
        """Whether nothing is broken."""
        cells = [*self.cells, *self.advantages, *self.gradients, *self.updates]
        return all(cell.verdict != "broken" for cell in cells)


def prepare(scenario: Scenario, tokenizer: Any) -> tuple[list[Episode], ScriptedPolicy]:
    """Run a scenario with the rollout runner; return its episodes, and the policy for the trainer."""
    renderer = ChatRenderer(tokenizer, tool_role=scenario.tool_role)
    policy = ScriptedPolicy(scenario, tokenizer.eos_token_id, renderer.stop_ids)
    limits = Limits(scenario.max_turns, scenario.max_new_tokens, scenario.max_context)
    episodes = asyncio.run(run_episodes(scenario.rows, policy, renderer, limits, scenario.make_env(tokenizer)))
    return episodes, policy


def check_scenario(harness: Harness, scenario: Scenario, tokenizer: Any) -> Cell:
    """Run one scenario through a trainer, and compare what reaches its loss with the valid episodes."""
    since = time.perf_counter()
    tokenizer = scenario.tokenizer(tokenizer)
    episodes, policy = prepare(scenario, tokenizer)
    valid = [episode for episode in episodes if episode.valid]
    plain = [record for episode in valid for record in records_of(episode)]
    declared = next((d for d in harness.differences if d.only is None or scenario.name in d.only), None)
    try:
        got = [record for record in harness.run(scenario, policy) if any(record.mask)]  # the others weigh nothing
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this cell's
        refused = declared is not None and declared.refuses is not None and isinstance(error, declared.refuses)
        if refused and declared is not None and re.search(declared.match, str(error)):
            return Cell(scenario.name, "declared", declared.why, time.perf_counter() - since)
        return _failed(scenario.name, error, since)
    seconds = time.perf_counter() - since
    if declared is not None and declared.refuses is not None:
        return Cell(scenario.name, "broken", f"it was to be refused, and was not: {declared.why}", seconds)
    if policy.unknown:
        prompt = tokenizer.decode(policy.unknown[0][-40:])
        return Cell(scenario.name, "broken", f"the engine was asked for a prompt that ends {prompt!r}", seconds)
    expected = plain if declared is None or declared.change is None else declared.change(valid)
    wrong = difference(expected, got)
    if wrong:
        return Cell(scenario.name, "broken", wrong, seconds)
    if declared is not None and difference(plain, expected):
        return Cell(scenario.name, "declared", declared.why, seconds)
    return Cell(scenario.name, "equal", "", seconds)


ADVANTAGES_OF = {"two groups": "", "equal returns": ": equal returns", "a member that fails": ": a member that fails"}
"""The scenarios whose advantages are compared, and what is added to the algorithm's name for each."""


def check_advantages(harness: Harness, algorithm: str, tokenizer: Any, scenario: str = "two groups") -> Cell:
    """Compare a trainer's advantages with the reference.

    Those of the valid episodes must be the reference's for a batch without the others; those of others must be 0.
    """
    since = time.perf_counter()
    name = algorithm + ADVANTAGES_OF[scenario]
    chosen, episodes, policy = _prepared(scenario, tokenizer)
    try:
        computed = harness.compute_advantages(chosen, policy, algorithm)
    except Exception as error:  # noqa: BLE001 - as above
        return _failed(name, error, since)
    expected = _advantages_by_ids(episodes, computed.expected(episodes))
    worst, wrong = 0.0, ""
    for ids, got in computed.advantages:
        own = expected.get((tuple(ids), len(got)))
        if own is None:
            wrong = f"{len(got)} advantages for a sequence that was not sampled, or not with as many sampled tokens"
            break
        worst = max(worst, float(np.abs(np.subtract(own[1], got)).max(initial=0.0)))
    tokens = sum(len(got) for ids, got in computed.advantages if not wrong and expected[tuple(ids), len(got)][0])
    sampled = sum(episode.sampled_tokens for episode in episodes if episode.valid)
    if not wrong and tokens != sampled:
        wrong = f"advantages of {tokens} tokens, and {sampled} were sampled"
    if not wrong and not worst <= computed.tolerance:
        wrong = f"an advantage differs by {worst:.2g} ({computed.why})"
    detail = wrong or f"{computed.why}; differs by {worst:.1g} at most"
    return Cell(name, "broken" if wrong else "equal", detail, time.perf_counter() - since)


GRADIENTS_OF = {"two groups": "", "a member that fails": ": a member that fails"}
"""The scenarios whose gradients are compared, and what is added to the loss's name for each."""


def check_gradient(harness: Harness, loss: str, tokenizer: Any, scenario: str = "two groups") -> Cell:
    """Compare the gradient of a trainer's own loss with the sum over sampled tokens that the harness declares."""
    chosen, _, policy = _prepared(scenario, tokenizer)

    def compare() -> tuple[str, str, str]:
        computed = harness.compute_gradient(chosen, policy, loss)
        return computed.why, *gradient_difference(computed)

    return _compared(loss + GRADIENTS_OF[scenario], compare)


def check_updates(harness: Harness, optimizer: str, tokenizer: Any) -> Cell:
    """Compare a trainer's parameters after some updates with those of the optimiser that the harness declares."""
    chosen, _, policy = _prepared("two groups", tokenizer)

    def compare() -> tuple[str, str, str]:
        computed = harness.compute_updates(chosen, policy, optimizer)
        return str(computed.optimizer), *update_difference(computed)

    return _compared(optimizer, compare)


def _compared(name: str, compare: Callable[[], tuple[str, str, str]]) -> Cell:
    """Return the cell of a comparison, which returns what was declared, what is wrong ("" if nothing), and figures."""
    since = time.perf_counter()
    try:
        declared, wrong, figures = compare()
    except Exception as error:  # noqa: BLE001 - as above
        return _failed(name, error, since)
    verdict = "broken" if wrong else "equal"
    return Cell(name, verdict, f"{declared}: {wrong or figures}", time.perf_counter() - since)


def _advantages_by_ids(
    episodes: Sequence[Episode], of_turns: Sequence[Sequence[float] | np.ndarray]
) -> dict[tuple[tuple[int, ...], int], tuple[bool, list[float]]]:
    """Return whether an episode is valid and an advantage for each sampled token, by all ids and how many were sampled.

    The same of every turn on its own: a trainer that learns from turns has these sequences.
    """
    found: dict[tuple[tuple[int, ...], int], tuple[bool, list[float]]] = {}
    for episode, own in sorted(zip(episodes, of_turns, strict=True), key=lambda pair: pair[0].valid):  # these win
        lengths = [len(turn.response_ids) for turn in episode.turns]
        values = [0.0] * sum(lengths)
        if episode.valid:
            values = np.repeat(np.asarray(own, dtype=float), lengths).tolist()
        start = 0
        for turn, length in zip(episode.turns, lengths, strict=True):
            found[(*turn.prompt_ids, *turn.response_ids), length] = episode.valid, values[start : start + length]
            start += length
        if episode.turns:
            (record,) = records_of(episode)
            found[tuple(record.ids), len(values)] = episode.valid, values
    return found


def _prepared(name: str, tokenizer: Any) -> tuple[Scenario, list[Episode], ScriptedPolicy]:
    """Return a scenario by its name, and what :func:`prepare` returns for it."""
    scenario = next(each for each in scenarios(tokenizer) if each.name == name)
    return scenario, *prepare(scenario, tokenizer)


def _failed(name: str, error: BaseException, since: float) -> Cell:
    """Return the cell of what raised in the trainer's code."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    detail = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
    return Cell(name, "broken", detail, time.perf_counter() - since)


def run(harness: Harness, only: Sequence[str] = (), say: Callable[[str], object] = print) -> Report:
    """Run all scenarios, algorithms, losses and optimisers on a trainer.

    Args:
        harness: of the trainer.
        only: names of them; empty for all.
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
        for batch, suffix in ADVANTAGES_OF.items():
            if not only or algorithm in only or algorithm + suffix in only:
                report.advantages.append(cell := check_advantages(harness, algorithm, tokenizer, batch))
                say(f"{marks[cell.verdict]} advantages of {cell.name} ({cell.seconds:.1f} s) {cell.detail}".rstrip())
    for loss in harness.losses:
        for batch, suffix in GRADIENTS_OF.items():
            if not only or loss in only or loss + suffix in only:
                report.gradients.append(cell := check_gradient(harness, loss, tokenizer, batch))
                say(f"{marks[cell.verdict]} gradient of {cell.name} ({cell.seconds:.1f} s) {cell.detail}".rstrip())
    for optimizer in harness.optimizers:
        if not only or optimizer in only:
            report.updates.append(cell := check_updates(harness, optimizer, tokenizer))
            say(f"{marks[cell.verdict]} updates with {cell.name} ({cell.seconds:.1f} s) {cell.detail}".rstrip())
    return report


def main(harness: Harness) -> None:
    """Run the suite from a command line; exits with 1 if anything is broken."""
    parser = argparse.ArgumentParser(description=f"Run the conformance suite on {harness.name}.")
    parser.add_argument("--out", type=Path, help="write the report here, as JSON")
    parser.add_argument("--only", nargs="*", default=[], help="names of scenarios, algorithms, losses or optimisers")
    args = parser.parse_args()
    report = run(harness, args.only, lambda line: print(line, flush=True))
    if args.out is not None:
        args.out.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    raise SystemExit(0 if report.conformant else 1)
