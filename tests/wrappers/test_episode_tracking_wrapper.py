import json

import pytest

import gem
from gem.wrappers import EpisodeTrackingWrapper


@pytest.fixture
def env():
    return EpisodeTrackingWrapper(gem.make("game:Mastermind-v0-easy"))


def guess(*digits):
    return f"\\boxed{{{' '.join(map(str, digits))}}}"


def half_right(env):
    """A guess with its first digit right."""
    first, second = env.game_code
    return guess(first, next(digit for digit in range(1, 7) if digit not in (first, second)))


def totals(info):
    return info["step_counter"], info["cumulative_rewards"]


def test_info_counts_turns_and_adds_up_rewards(env):
    assert totals(env.reset(seed=1)[1]) == (0, 0.0)
    assert totals(env.step(half_right(env))[4]) == (1, 0.5)
    assert totals(env.step(half_right(env))[4]) == (2, 0.5)
    assert totals(env.step(guess(*env.game_code))[4]) == (3, 1.0)


def test_info_of_the_env_is_kept(env):
    env.reset(seed=1)
    assert env.step(guess(*env.game_code))[4] == {
        "success": True,
        "move": "legal",
        "step_counter": 1,
        "cumulative_rewards": 1.0,
    }


def test_reset_tells_the_previous_episodes_totals_and_begins_at_zero(env):
    env.reset(seed=1)
    env.step(half_right(env))
    _, info = env.reset()
    assert (info["prev_ep_step_counter"], info["prev_ep_cumulative_rewards"]) == (1, 0.5)
    assert totals(info) == (0, 0.0)


def test_totals_are_part_of_the_state(env):
    env.reset(seed=1)
    env.step(half_right(env))
    other = env.spawn()
    other.set_state(json.loads(json.dumps(env.get_state())))
    assert totals(other.step(guess(*env.game_code))[4]) == (2, 1.0)
