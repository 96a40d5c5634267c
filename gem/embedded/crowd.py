"""Recorded play by a crowd of mixed skill: what the embedded model is warmed up on.

What a model is warmed up on decides whether it can learn. After random play alone, reinforcement learning
finds nothing to reinforce. So the model first sees players who use what they are told, until it can do so
too, and then a crowd that mostly plays badly: like a pretrained model, it then has the good behaviour in it
among others, and shows it some of the time. The most common opening is a bad one, so that greedy play is
no better than sampled play, and has as much to learn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import gem
from gem.core import Env

Message = dict[str, str]
Player = Callable[[Env, list[str], random.Random], str]
"""Chooses an action from the environment, the observations so far, and a random generator."""

MAX_TURNS = 5


@dataclass(frozen=True)
class Lesson:
    """Who plays what.

    Attributes:
        share: of the training.
        players: a player and its share of the guessing games.
        other_games: share of the games that are not guessing games; they are played at random.
    """

    share: float
    players: tuple[tuple[Player, float], ...]
    other_games: float = 0.0


def conversations(lesson: Lesson, count: int, seed: int) -> list[list[Message]]:
    """Return ``count`` episodes as conversations, the same for the same seed."""
    rng = random.Random(seed)
    return [_play(lesson, rng) for _ in range(count)]


def _play(lesson: Lesson, rng: random.Random) -> list[Message]:
    players, shares = zip(*lesson.players, strict=True)
    env_id, player = GUESSING, rng.choices(players, shares)[0]
    if rng.random() < lesson.other_games:
        env_id, player = rng.choice(OTHERS), any_legal
    with gem.make(env_id) as env:
        observation, _ = env.reset(seed=rng.getrandbits(40))
        observations, messages = [observation], [{"role": "user", "content": observation}]
        while True:
            action = player(env, observations, rng)
            messages.append({"role": "assistant", "content": action})
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated or len(observations) == MAX_TURNS:
                return messages
            observations.append(observation)
            messages.append({"role": "user", "content": observation})


def anywhere(env: Env, observations: list[str], rng: random.Random) -> str:
    """Guess any number of the range, whatever was said."""
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
LESSONS = (
    Lesson(0.75, ((inside, 1), (middle, 2)), other_games=0.2),
    Lesson(0.25, ((anywhere, 8), (lowest, 6), (inside, 3), (middle, 3)), other_games=0.3),
)
