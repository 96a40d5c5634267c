"""Environments of one question, by the smallest of them."""

import pytest

import gem
from gem.envs.question import QuestionEnv
from gem.testing import check_env
from gem.utils.constants import TERMINAL_STATE


class Square(QuestionEnv):
    size = 10

    def __init__(self, seed=None):
        super().__init__()
        self._first_seed = seed

    def ask(self, idx):
        return f"What is the square of {idx}?"

    def grade(self, action):
        right = action.strip() == str(self.idx**2)
        return float(right), right

    def random_answer(self):
        return str(self.action_rng.randrange(100))

    def reference_action(self):
        return str(self.idx**2)


def test_it_keeps_the_contract():
    assert "reference" in check_env(Square)


def test_seeds_ask_each_question_once_and_then_begin_again():
    env = Square()
    asked = []
    for seed in range(12):
        env.reset(seed=seed)
        asked.append(env.idx)
    assert asked == [*range(10), 0, 1]


def test_an_index_asks_that_question_whatever_the_seed():
    env = Square()
    assert env.reset(seed=3, idx=7)[0] == "What is the square of 7?"
    assert env.reset(idx=2)[0] == "What is the square of 2?"
    for idx in (-1, 10):
        with pytest.raises(IndexError, match="questions 0 to 9"):
            env.reset(idx=idx)


def test_resets_without_a_seed_go_on_at_random_and_are_fixed_by_the_first():
    def sequence(env, seed):
        env.reset(seed=seed)
        return [env.reset()[0] for _ in range(12)]

    env = Square()
    assert sequence(env, 1) == sequence(Square(), 1) != sequence(env, 2)
    assert len(set(sequence(env, 1))) > 3


def test_the_constructors_seed_is_the_first_question():
    env = Square(seed=4)
    assert env.reset()[0] == "What is the square of 4?"
    env.reset()
    assert Square(seed=4).reset()[0] == "What is the square of 4?"


def test_one_answer_ends_the_episode():
    env = Square()
    with pytest.raises(gem.ResetNeeded):
        env.step("0")
    env.reset(seed=3)
    assert env.step(" 9 ") == (TERMINAL_STATE, 1.0, True, False, {"success": True, "correct": True})
    with pytest.raises(gem.ResetNeeded):
        env.step("9")
    with pytest.raises(gem.ResetNeeded):
        env.sample_random_action()
    env.reset(seed=3)
    assert env.step("10")[1:4] == (0.0, True, False)
