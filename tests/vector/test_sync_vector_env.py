import numpy as np
import pytest

import gem
from gem.vector.sync_vector_env import SyncVectorEnv
from gem.vector.vector_env import AutoresetMode

EASY = "game:GuessTheNumber-v0-easy"
JUNK = "no move"


def vector(n=3, mode=AutoresetMode.SAME_STEP):
    return SyncVectorEnv([EASY] * n, [lambda: gem.make(EASY)] * n, mode)


def guess(n):
    return f"\\boxed{{{n}}}"


def wrong(env):
    return guess(1 if env.game_number != 1 else 2)


def state_after(seed, resets=0):
    env = gem.make(EASY)
    env.reset(seed=seed)
    for _ in range(resets):
        env.reset()
    return env.get_state()


def test_step_returns_one_entry_an_env_with_gym_dtypes():
    vec = vector()
    observations, infos = vec.reset(seed=1)
    assert [len(observations), len(infos)] == [3, 3]
    observations, rewards, terminated, truncated, infos = vec.step([wrong(env) for env in vec.envs])
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    assert (rewards.shape, terminated.shape, truncated.shape) == ((3,), (3,), (3,))
    assert all("My number is" in observation for observation in observations)
    assert [info["move"] for info in infos] == ["legal"] * 3


def test_integer_seed_is_counted_up_and_a_sequence_is_taken_as_it_is():
    vec = vector()
    for seed in (5, np.int64(5), [5, 6, 7], np.array([5, 6, 7])):
        vec.reset(seed=seed)
        assert [env.get_state() for env in vec.envs] == [state_after(s) for s in (5, 6, 7)]


def test_reset_without_a_seed_goes_on_with_each_envs_generator():
    vec = vector(2)
    vec.reset(seed=5)
    vec.reset()
    assert [env.get_state() for env in vec.envs] == [state_after(5, resets=1), state_after(6, resets=1)]


def test_same_step_begins_the_next_episode_at_once_and_keeps_the_last_ones_end():
    vec = vector(2)
    vec.reset(seed=5)
    actions = [guess(vec.envs[0].game_number), wrong(vec.envs[1])]
    observations, rewards, terminated, truncated, infos = vec.step(actions)
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == (
        [1, 0],
        [True, False],
        [False, False],
    )
    assert observations[0].startswith("Guess The Number.")
    assert "You win" in infos[0]["final_obs"]
    assert infos[0]["final_info"] == {"success": True, "move": "legal"}
    assert "success" not in infos[0]
    assert "final_obs" not in infos[1]
    assert vec.envs[0].get_state() == state_after(5, resets=1)


def test_same_step_also_begins_anew_after_a_truncation():
    vec = SyncVectorEnv([EASY], [lambda: gem.make(EASY, max_turns=1)])
    vec.reset(seed=5)
    observations, _, terminated, truncated, infos = vec.step([wrong(vec.envs[0])])
    assert (terminated.tolist(), truncated.tolist()) == ([False], [True])
    assert observations[0].startswith("Guess The Number.")
    assert "last turn" in infos[0]["final_obs"]


def test_next_step_ignores_the_action_after_an_end_and_resets():
    vec = vector(2, AutoresetMode.NEXT_STEP)
    vec.reset(seed=5)
    observations, rewards, terminated, _, infos = vec.step([JUNK, wrong(vec.envs[1])])
    assert (rewards.tolist(), terminated.tolist()) == ([-0.1, 0], [True, False])
    assert "not a move" in observations[0]
    assert "final_obs" not in infos[0]
    observations, rewards, terminated, truncated, _ = vec.step([JUNK, guess(vec.envs[1].game_number)])
    assert observations[0].startswith("Guess The Number.")
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == (
        [0, 1],
        [False, True],
        [False, False],
    )
    assert vec.envs[0].get_state() == state_after(5, resets=1)
    assert vec.step({0: JUNK})[1].tolist() == [-0.1]


def test_next_step_does_not_reset_again_after_a_reset_of_all():
    vec = vector(1, AutoresetMode.NEXT_STEP)
    vec.reset(seed=5)
    vec.step([JUNK])
    vec.reset(seed=6)
    assert vec.step([JUNK])[1].tolist() == [-0.1]


def test_disabled_leaves_resetting_to_the_caller():
    vec = vector(2, "Disabled")
    vec.reset(seed=5)
    assert vec.step([JUNK, wrong(vec.envs[1])])[2].tolist() == [True, False]
    with pytest.raises(gem.ResetNeeded):
        vec.step([JUNK, JUNK])
    vec.envs[0].reset(seed=9)
    assert vec.step({0: wrong(vec.envs[0])})[2].tolist() == [False]


def test_dict_steps_the_named_envs_only_and_answers_in_its_order():
    vec = vector(4)
    vec.reset(seed=5)
    observations, rewards, terminated, _, infos = vec.step({3: guess(vec.envs[3].game_number), 1: wrong(vec.envs[1])})
    assert (rewards.tolist(), terminated.tolist()) == ([1, 0], [True, False])
    assert "final_obs" in infos[0]
    assert "My number is" in observations[1]
    assert [env.turn_count for env in vec.envs] == [0, 1, 0, 0]


def test_empty_dict_steps_nothing():
    vec = vector()
    vec.reset(seed=5)
    observations, rewards, terminated, truncated, infos = vec.step({})
    assert (observations, infos) == ([], [])
    assert (rewards.shape, terminated.shape, truncated.dtype) == ((0,), (0,), np.bool_)


@pytest.mark.parametrize("actions", [[], [JUNK] * 2, JUNK, "abc", {3: JUNK}, {0: JUNK, -1: JUNK}])
def test_actions_that_do_not_fit_the_envs_are_refused_before_any_step(actions):
    vec = vector(3)
    vec.reset(seed=5)
    with pytest.raises(ValueError, match=r"3 actions|no environment"):
        vec.step(actions)
    assert [env.turn_count for env in vec.envs] == [0, 0, 0]


def test_number_of_seeds_must_be_the_number_of_envs():
    with pytest.raises(ValueError, match="2 seeds for 3 environments"):
        vector(3).reset(seed=[1, 2])


@pytest.mark.parametrize("seed", [True, -1])
def test_bad_seeds_are_refused(seed):
    with pytest.raises((TypeError, ValueError), match="non-negative"):
        vector(3).reset(seed=seed)


def test_unknown_autoreset_mode_is_refused():
    with pytest.raises(ValueError, match="Sometimes"):
        vector(1, "Sometimes")


def test_closing_closes_every_env():
    closed = []

    class Closing(gem.core.EnvWrapper):
        def close(self):
            closed.append(self)

    with SyncVectorEnv([EASY] * 2, [lambda: Closing(gem.make(EASY))] * 2) as vec:
        pass
    assert closed == vec.envs
