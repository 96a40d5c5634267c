"""Are rewards paid for what answers the task, and for nothing else?"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence

from gem.core import Env
from gem.testing.checks.base import (
    EPISODES,
    PLAY_SECONDS,
    Subject,
    check,
    is_number,
    require,
)
from gem.testing.constant_answers import GUESSES, HEDGES, PARTIAL, answer_of, as_action, bound, combined, repeated
from gem.testing.hostile_text import JUNK
from gem.testing.recording import (
    Turn,
)
from gem.testing.solvers import SolverResult, solve

SOLVED = 10
"""Episodes that a reference solver plays, unless they take longer than :data:`PLAY_SECONDS`."""

CONSTANT_SECONDS = 1.0
"""Time for constant answers, half of it for asking the questions; a slow environment gets fewer questions, except in a
thorough check."""

FEW = 50
"""Questions of which fewer tell little: with some luck a constant earns a part of one."""

QUESTIONS = 100
"""Questions that constant answers are given to."""


@check("Text that is no answer to anything is never paid.")
def _junk(subject: Subject) -> None:
    paid = []
    with subject.make() as env:
        for seed, (name, text) in zip(itertools.cycle(subject.seeds), JUNK.items()):
            env.reset(seed=seed)
            turn = Turn(*env.step(text))
            if is_number(turn.reward) and turn.reward > 0:
                paid.append(f"{name}: {turn.reward}")
    require(not paid, "; ".join(paid), "Pay only for what answers the task")


@check("An answer given without reading the question earns what guessing does (:mod:`gem.testing.constant_answers`).")
def _constant_answers(subject: Subject) -> str:
    with subject.make() as env:
        if env.max_turns != 1:  # of a game, only what names no move
            return _try_hedges(env, subject.seeds[0])
        references = _references(env, subject.deadline(CONSTANT_SECONDS / 2))
        common = [text for text, _ in Counter(filter(None, references)).most_common(3)]
        end = subject.deadline(CONSTANT_SECONDS / 2)
        earned: dict[str, list[float]] = {text: [] for text in (*GUESSES, *common)}
        for seed, reference in enumerate(references):
            if seed and time.monotonic() > end:
                break
            for text, rewards in earned.items():
                rewards.append(_reward(env, seed, text))
            other = next((each for each in references if each and each != reference), None)
            both = combined(reference, other) if reference and other else []
            _require_no_reward(env, seed, [*HEDGES, repeated(env.reset(seed=seed)[0]), *both], reference or "")
        high = env.reward_range[1]
    for text, rewards in earned.items():
        _require_no_more_than_guessing(text, rewards, high, references)
    return f"{len(earned)} texts, {len(rewards)} questions"


def _require_no_more_than_guessing(
    text: str, rewards: Sequence[float], high: float, references: Sequence[str | None]
) -> None:
    asked = len(rewards)
    right = sum(reward >= high for reward in rewards)
    partial = sum(reward for reward in rewards if reward < high)
    limit = bound(references[:asked])
    seen = f"{text[:60]!r} is right for {right} of {asked} questions; guessing explains {limit:.0%}"
    require(right <= limit * asked, seen, "Do not pay for what is not the answer")
    seen = f"{text[:60]!r}, wrong, earns {partial:.2f} for {asked} questions"
    require(partial <= PARTIAL * max(asked, FEW), seen, "Pay no partial credit for what a constant has, too")


def _try_hedges(env: Env, seed: int) -> str:
    _require_no_reward(env, seed, HEDGES, "")
    return f"{len(HEDGES)} texts, the first turn only"


def _references(env: Env, end: float) -> list[str | None]:
    """Return the right answer to each of the questions that there is time for, None where it is not known."""
    answers: list[str | None] = []
    while len(answers) < QUESTIONS and (not answers or time.monotonic() < end):
        env.reset(seed=len(answers))
        answers.append(None)
        with contextlib.suppress(AttributeError, NotImplementedError):
            answers[-1] = answer_of(env.reference_action())  # type: ignore[attr-defined]
    return answers


def _reward(env: Env, seed: int, text: str) -> float:
    env.reset(seed=seed)
    reward = Turn(*env.step(as_action(text))).reward
    return float(reward) if is_number(reward) else 0.0


def _require_no_reward(env: Env, seed: int, texts: Sequence[str], reference: str) -> None:
    for text in texts:
        reward = 0.0 if text == reference else _reward(env, seed, text)
        require(reward <= 0, f"seed {seed}: {text[:80]!r} earned {reward}", "Pay for one answer, and for nothing else")


@check("Rewards, and their sum over an episode, lie within ``reward_range``.")
def _reward_range(subject: Subject) -> None:
    with subject.make() as env:
        episodes = list(subject.random_play.rewards)
        for seed in subject.seeds:
            env.reset(seed=seed)
            episodes.append([Turn(*env.step("")).reward])
        low, high = env.reward_range
    require(low <= high, f"reward_range is {low, high}", "Put the lower bound first")
    for episode in episodes:
        rewards = [reward for reward in episode if is_number(reward)]
        for value in (*rewards, sum(rewards)):
            within = low - 1e-9 <= value <= high + 1e-9
            seen = f"a reward or return of {value} is not within {low} to {high}"
            require(within, seen, "Correct the reward, or reward_range")


@check("Hundreds of episodes of random actions raise nothing.")
def _random_play(subject: Subject) -> str:
    play = subject.random_play
    if play.error is not None:
        raise play.error
    played = len(play.rewards)
    note = f"{played} episodes" + (f", all that {PLAY_SECONDS:.0f} s had room for" if played < EPISODES else "")
    if not play.reports_success:
        note += '; none has info["success"], so a return of 1 or more that terminates counts as solved'
    return note


@check("A reference solver wins from the observations alone, and a win pays the highest return.")
def _solver(subject: Subject) -> str:
    if subject.solver is None:
        return "there is no solver"
    end = subject.deadline(PLAY_SECONDS)
    results: list[SolverResult] = []
    with subject.make() as env:
        high = env.reward_range[1]
        while len(results) < SOLVED and (not results or time.monotonic() < end):
            results.append(solve(env, len(results), subject.solver))
    for seed, result in enumerate(results):
        paid = not result.success or math.isclose(result.return_, high)
        require(paid, f"the win of seed {seed} returned {result.return_}, not {high}", "Pay a win in full")
    wins = sum(result.success for result in results)
    expected = subject.win_share if subject.win_share == 1.0 else subject.win_share / 2  # few are played
    seen = f"the solver won {wins} of {len(results)}, where {subject.win_share:.0%} were expected"
    require(wins >= int(expected * len(results)), seen, "Show all that the player needs to know")
    return f"won {wins} of {len(results)}"


@check("What the environment knows to be the right answer is graded as right, and pays the highest reward.")
def _reference(subject: Subject) -> str:
    known = 0
    with subject.make() as env:
        reference = getattr(env, "reference_action", None)
        if reference is None:
            return "there is none"
        for seed in subject.seeds:
            env.reset(seed=seed)
            with contextlib.suppress(NotImplementedError):
                action = reference()
                known += 1
                turn = Turn(*env.step(action))
                right = turn.reward == env.reward_range[1] and turn.info.get("success", True)
                seen = f"seed {seed}: the reference {action[:80]!r} earned {turn.reward}"
                require(right, seen, "Grade the reference as right")
    return f"known for {known} of {len(subject.seeds)}"
