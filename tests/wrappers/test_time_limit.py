import json

import pytest

import gem
from gem.wrappers import TimeLimit

EASY = "game:GuessTheNumber-v0-easy"


def limited(limit):
    env = TimeLimit(gem.make(EASY), max_episode_steps=limit)
    env.reset(seed=1)
    return env


def guesses(env, right=False):
    return f"\\boxed{{{env.game_number if right else 1 + env.game_number % 10}}}"


def test_episode_is_truncated_at_the_limit_and_then_over():
    env = limited(2)
    assert env.step(guesses(env))[2:4] == (False, False)
    assert env.step(guesses(env))[2:4] == (False, True)
    with pytest.raises(gem.ResetNeeded):
        env.step(guesses(env))


def test_task_that_ends_at_the_limit_is_terminated_and_not_truncated():
    env = limited(1)
    assert env.step(guesses(env, right=True))[2:4] == (True, False)


def test_episode_that_ended_before_the_limit_is_over():
    env = limited(3)
    assert env.step(guesses(env, right=True))[2:4] == (True, False)
    with pytest.raises(gem.ResetNeeded):
        env.step(guesses(env))


def test_step_before_reset_is_refused():
    with pytest.raises(gem.ResetNeeded):
        TimeLimit(gem.make(EASY), 2).step("x")


def test_reset_counts_from_zero():
    env = limited(2)
    env.step(guesses(env))
    env.reset(seed=1)
    assert env.step(guesses(env))[3] is False


@pytest.mark.parametrize(("limit", "turns"), [(2, 2), (9, 4)])
def test_max_turns_is_the_smaller_limit(limit, turns):
    assert limited(limit).max_turns == turns


def test_max_turns_is_the_limit_where_the_env_has_none():
    assert TimeLimit(gem.make("game:GuessTheNumber-v0-random"), 3).max_turns == 3


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_refused(limit):
    with pytest.raises(ValueError, match="at least 1"):
        TimeLimit(gem.make(EASY), limit)


def test_state_holds_the_turns_elapsed():
    env = limited(2)
    env.step(guesses(env))
    other = TimeLimit(gem.make(EASY), 2)
    other.set_state(json.loads(json.dumps(env.get_state())))
    assert other.step(guesses(other))[3] is True
