import math
import re

import pytest

import gem
from gem.envs.game_env.guess_the_number import GuessTheNumberEnv

EASY = "game:GuessTheNumber-v0-easy"
ALL = [f"game:GuessTheNumber-{version}{variant}" for version in ("v0", "v1") for variant in ("", "-easy", "-random")]


def start(env_id=EASY, seed=1, **kwargs):
    env = gem.make(env_id, **kwargs)
    env.reset(seed=seed)
    return env


def guess(env, n):
    return env.step(f"I say \\boxed{{{n}}}")


def solve(env, seed):
    """Halve the interval, knowing only the text; return the rewards and the last step."""
    text, _ = env.reset(seed=seed)
    low, high = map(int, re.search(r"from (\d+) to (\d+)", text).groups())
    rewards = []
    while True:
        middle = (low + high) // 2
        step = guess(env, middle)
        rewards.append(step[1])
        if step[2] or step[3]:
            return rewards, step
        if "higher than" in step[0]:
            low = middle + 1
        else:
            high = middle - 1


@pytest.mark.parametrize("env_id", ALL)
def test_halving_the_interval_from_the_text_alone_wins_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(50):
        rewards, (_, _, terminated, truncated, info) = solve(env, seed)
        assert sum(rewards) == 1.0
        assert (terminated, truncated, info["success"]) == (True, False, True)


@pytest.mark.parametrize(("env_id", "low", "high", "turns"), [(EASY, 1, 10, 4), ("game:GuessTheNumber-v0", 1, 50, 7)])
def test_instructions_tell_the_range_and_the_turns(env_id, low, high, turns):
    observation, _ = gem.make(env_id).reset(seed=1)
    assert f"from {low} to {high}" in observation
    assert f"{turns} turns" in observation


def test_every_number_of_the_range_is_drawn():
    env = gem.make(EASY)
    secrets = set()
    for seed in range(100):
        env.reset(seed=seed)
        secrets.add(env.game_number)
    assert secrets == set(range(1, 11))


def test_random_variant_draws_the_published_ranges_and_turns():
    env = gem.make("game:GuessTheNumber-v0-random")
    lows, widths = set(), set()
    for seed in range(600):
        env.reset(seed=seed)
        width = env.max_number - env.min_number
        assert env.min_number <= env.game_number <= env.max_number
        assert env.max_turns == math.ceil(math.sqrt(width)) + 1
        lows.add(env.min_number)
        widths.add(width)
    assert lows == set(range(1, 11))
    assert (min(widths), max(widths)) == (5, 50)


def test_hint_says_where_the_number_is():
    env = start(max_number=50, max_turns=60)
    for n in set(range(1, 51)) - {env.game_number}:
        assert ("higher than" if env.game_number > n else "lower than") + f" {n}." in guess(env, n)[0]


@pytest.mark.parametrize("n", [0, 11, -3, 10**17])
def test_number_outside_the_range_is_illegal_but_no_format_error(n):
    assert guess(start(), n)[1:4] == (0, False, False)


def test_zero_in_a_box_is_a_guess():
    env = start(min_number=0, max_number=1)
    _, reward, _, _, info = guess(env, 0)
    assert info["move"] == "legal"
    assert reward == (1.0 if env.game_number == 0 else 0.0)


def test_number_with_blanks_around_is_a_guess():
    env = start()
    assert guess(env, f" {env.game_number} ")[4]["success"]


@pytest.mark.parametrize("answer", ["", "five", "5.0", "5 6", "+-5", "1" * 19, "٥"])
def test_what_is_no_whole_number_is_a_format_error(answer):
    assert guess(start(), answer)[1:3] == (-0.1, True)


def test_repeated_guess_is_illegal():
    env = start()
    n = 1 + env.game_number % 10
    guess(env, n)
    _, reward, terminated, _, info = guess(env, n)
    assert (reward, terminated, info["move"]) == (0, False, "illegal")


@pytest.mark.parametrize("seed", range(5))
def test_last_turn_pays_for_being_near_in_v0_and_nothing_in_v1(seed):
    for env_id, shaped in ((EASY, True), ("game:GuessTheNumber-v1-easy", False)):
        for n in range(1, 11):
            env = start(env_id, seed, max_turns=1)
            if n == env.game_number:
                continue
            _, reward, terminated, truncated, info = guess(env, n)
            assert reward == (1 - abs(n - env.game_number) / 9 if shaped else 0)
            assert (terminated, truncated, info["success"]) == (False, True, False)


def test_last_turn_outside_the_range_pays_nothing():
    assert guess(start(max_turns=1), 11)[1:4] == (0, False, True)


def test_earlier_turns_pay_nothing():
    env = start(max_turns=2)
    assert guess(env, 1 + env.game_number % 10)[1:4] == (0, False, False)


def test_right_guess_at_the_last_turn_wins():
    env = start(max_turns=1)
    assert guess(env, env.game_number)[1:4] == (1, True, False)


@pytest.mark.parametrize(("low", "high"), [(5, 5), (6, 5)])
def test_empty_range_is_refused(low, high):
    with pytest.raises(ValueError, match="below max_number"):
        GuessTheNumberEnv(low, high)
