"""Resets without a seed: every question once a pass, and copies that part after the episode they share."""

import copy
import pickle

import pytest

import gem
from gem.envs.math_env import MathEnv
from gem.envs.qa_env import QaEnv
from gem.seeds import EpisodeSeeds, shuffled

ROWS = [{"problem": f"q{i}", "answer": str(i)} for i in range(20)]


def asked(env, resets):
    questions = []
    for _ in range(resets):
        env.reset()
        questions.append(env.idx)
    return questions


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000])
def test_an_order_holds_every_number_once_and_depends_on_the_key(size):
    orders = [[shuffled(i, size, key) for i in range(size)] for key in ("a", "a", "b")]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert orders[0] == orders[1]
    assert size <= 3 or orders[0] != orders[2]


def test_every_question_is_asked_once_a_pass_in_another_order_each_time():
    env = MathEnv(dataset=ROWS)
    passes = []
    for epoch in range(3):
        passes.append(asked(env, 20))
        assert env.epoch == epoch
    assert all(sorted(each) == list(range(20)) for each in passes)
    assert len({tuple(each) for each in passes}) == 3


@pytest.mark.parametrize("seed", [0, 3, 19, 25])
def test_the_question_of_a_seed_is_part_of_the_first_pass(seed):
    env = MathEnv(dataset=ROWS)
    env.reset(seed=seed)
    assert env.idx == seed % 20
    assert sorted([env.idx, *asked(env, 19)]) == list(range(20))
    first = MathEnv(dataset=ROWS, seed=seed)
    assert sorted(pass_ := asked(first, 20)) == list(range(20))
    assert pass_[0] == seed % 20
    assert pass_ == asked(MathEnv(dataset=ROWS, seed=seed), 20)


def test_in_order():
    for env in (MathEnv(dataset=ROWS, eval=True), MathEnv(dataset=ROWS, eval=True, seed=7)):
        assert asked(env, 45) == [*range(20), *range(20), *range(5)]
        assert env.epoch == 2
    env.reset(seed=18)
    assert asked(env, 3) == [19, 0, 1]
    env.reset(idx=4)
    assert asked(env, 2) == [5, 6]


def test_other_rows_begin_a_pass():
    env = QaEnv(dataset=ROWS, question_key="problem", seed=1)
    asked(env, 5)
    env.dataset = [{"problem": f"other {i}", "answer": str(i)} for i in range(4)]
    assert sorted(asked(env, 4)) == [0, 1, 2, 3]
    assert "other" in env.first_obs
    with pytest.raises(ValueError, match="no column 'problem'"):
        env.dataset = [{"question": "?"}]


def copied_by_state(env, make):
    other = make(seed=99)
    other.set_state(env.get_state())
    return other


COPIES = {
    "set_state": copied_by_state,
    "deepcopy": lambda env, make: copy.deepcopy(env),
    "spawn": lambda env, make: env.spawn(same_state=True),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("env_id", ["game:Sokoban-v0-easy", "math:Sample", "rg:chain_sum"])
def test_copies_share_the_episode_and_part_after_it(env_id, how):
    def make(seed):
        return gem.make(env_id, seed=seed)

    env = make(seed=1)
    env.reset()
    copies = [COPIES[how](env, make), COPIES[how](env, make)] if how != "set_state" else [copied_by_state(env, make)]
    action = env.sample_random_action()
    steps = [each.step(action)[:4] for each in (env, *copies)]
    assert steps == steps[:1] * len(steps)
    futures = [tuple(each.reset()[0] for _ in range(6)) for each in (env, *copies)]
    assert len(set(futures)) == len(futures)


@pytest.mark.parametrize("how", ["deepcopy", "spawn"])
def test_what_a_copy_goes_on_with_is_fixed_by_the_first_seed(how):
    futures = []
    for _ in range(2):
        env = gem.make("game:GuessTheNumber-v0")
        env.reset(seed=5)
        other = COPIES[how](env, None)
        futures.append([each.reset()[0] + str(each.game_number) for each in (env, other, env, other)])
    assert futures[0] == futures[1]


def test_pickle_moves_the_future():
    env = gem.make("math:Sample", seed=3)
    env.reset()
    moved = pickle.loads(pickle.dumps(env))
    assert asked(env, 30) == asked(moved, 30)


def test_a_copy_in_order_goes_on_in_order():
    env = MathEnv(dataset=ROWS, eval=True)
    asked(env, 3)
    assert asked(copy.deepcopy(env), 2) == asked(env, 2) == [3, 4]


def test_what_the_operating_system_gives_differs():
    assert EpisodeSeeds().draw() != EpisodeSeeds().draw()
