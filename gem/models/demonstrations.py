"""Synthetic demonstrations of mixed skill, on which the embedded model is trained before reinforcement learning.

They decide whether the model can learn. After random demonstrations alone, reinforcement learning finds nothing to
reinforce. So the curriculum has two parts: first policies that use the hints, until the model can do so too, and then a
mixture in which most policies are bad. Like a pretrained model, it then has the good behaviour among others, and shows
it some of the time. The most common first guess is a bad one, so that greedy decoding is no better than sampling, and
has as much to learn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import gem
from gem.core import Env

Message = dict[str, str]
Policy = Callable[[Env, list[str], random.Random], str]
"""Chooses an action from the environment, the observations so far, and a random generator."""

MAX_TURNS = 5


@dataclass(frozen=True)
class CurriculumPart:
    """A part of the curriculum: demonstrations by a mixture of policies.

    Attributes:
        share: of the training.
        policies: each with its share of the guessing games.
        other_games: share of the games that are not guessing games; their demonstrations are random.
    """

    share: float
    policies: tuple[tuple[Policy, float], ...]
    other_games: float = 0.0


def conversations(part: CurriculumPart, count: int, seed: int) -> list[list[Message]]:
    """Return ``count`` episodes as conversations, the same for the same seed."""
    rng = random.Random(seed)
    return [_demonstrate(part, rng) for _ in range(count)]


def _demonstrate(part: CurriculumPart, rng: random.Random) -> list[Message]:
    policies, shares = zip(*part.policies, strict=True)
    env_id, policy = GUESSING, rng.choices(policies, shares)[0]
    if rng.random() < part.other_games:
        env_id, policy = rng.choice(OTHERS), any_legal
    with gem.make(env_id) as env:
        observation, _ = env.reset(seed=rng.getrandbits(40))
        observations, messages = [observation], [{"role": "user", "content": observation}]
        while True:
            action = policy(env, observations, rng)
            messages.append({"role": "assistant", "content": action})
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated or len(observations) == MAX_TURNS:
                return messages
            observations.append(observation)
            messages.append({"role": "user", "content": observation})


def anywhere(env: Env, observations: list[str], rng: random.Random) -> str:
    """Guess any number of the range, whatever the observations were."""
    return _boxed(rng.randint(*_interval(observations[:1])))


def inside(env: Env, observations: list[str], rng: random.Random) -> str:
    """Guess a number that is still possible."""
    return _boxed(rng.randint(*_interval(observations)))


def middle(env: Env, observations: list[str], rng: random.Random) -> str:
    """Guess the middle of what is still possible."""
    return _boxed(sum(_interval(observations)) // 2)


def lowest(env: Env, observations: list[str], rng: random.Random) -> str:
    """Guess the lowest number that is still possible."""
    return _boxed(_interval(observations)[0])


def any_legal(env: Env, observations: list[str], rng: random.Random) -> str:
    """Make any legal move."""
    return env.sample_random_action()


def _interval(observations: list[str]) -> tuple[int, int]:
    low, high = map(int, re.findall(r"from (\d+) to (\d+)", observations[0])[0])
    for observation in observations[1:]:
        for word, number in re.findall(r"(higher|lower) than (\d+)", observation):
            low, high = (max(low, int(number) + 1), high) if word == "higher" else (low, min(high, int(number) - 1))
    return low, high


def _boxed(number: int) -> str:
    return f"\\boxed{{{number}}}"


GUESSING = "game:GuessTheNumber-v1-easy"
OTHERS = (
    "game:GuessTheNumber-v1-random",
    "game:Mastermind-v0-easy",
    "game:Minesweeper-v0-easy",
    "game:TowerofHanoi-v0-easy",
)
CURRICULUM = (
    CurriculumPart(0.75, ((inside, 1), (middle, 2)), other_games=0.2),
    CurriculumPart(0.25, ((anywhere, 8), (lowest, 6), (inside, 3), (middle, 3)), other_games=0.3),
)
