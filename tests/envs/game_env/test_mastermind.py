import itertools
import re

import pytest

import gem
from gem.envs.game_env.mastermind import MastermindEnv
from gem.testing.solvers import find_solver
from gem.testing.solvers import solve as play_solver

ALL = [f"game:Mastermind-v0{variant}" for variant in ("-easy", "-hard", "-random")]


def start(seed=1, code=None, **kwargs):
    env = MastermindEnv(**{"code_length": 4, "num_numbers": 6, **kwargs})
    env.reset(seed=seed)
    if code is not None:
        env.game_code = list(code)
    return env


def guess(env, *digits):
    return env.step(f"\\boxed{{{' '.join(map(str, digits))}}}")


def pegs(guess, code):
    black = sum(g == c for g, c in zip(guess, code, strict=True))
    return black, sum(min(guess.count(d), code.count(d)) for d in set(guess)) - black


def solve(env, seed):
    """Guess any code that fits all answers, knowing only the text; return the rewards and the last step."""
    text, _ = env.reset(seed=seed)
    length, numbers = map(int, re.search(r"code of (\d+) digits from 1 to (\d+)", text).groups())
    codes = list(itertools.permutations(range(1, numbers + 1), length))
    rewards = []
    while True:
        tried = codes[len(codes) // 2]
        step = guess(env, *tried)
        rewards.append(step[1])
        if step[2] or step[3]:
            return rewards, step
        answer = tuple(map(int, re.search(r"(\d+) black, (\d+) white", step[0]).groups()))
        codes = [code for code in codes if pegs(tried, code) == answer]


@pytest.mark.parametrize("env_id", ALL)
def test_guessing_what_fits_the_answers_wins_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(12):
        rewards, (_, _, terminated, truncated, info) = solve(env, seed)
        assert sum(rewards) == pytest.approx(1.0)
        assert (terminated, truncated, info["success"]) == (True, False, True)


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:Mastermind-v0-random")
    sizes = set()
    for seed in range(40):
        env.reset(seed=seed)
        sizes.add((env.code_length, env.num_numbers, env.max_turns))
        assert len(env.game_code) == env.code_length
    assert sizes == {(2, 4, 10), (4, 6, 20), (4, 8, 30)}


def test_code_has_different_digits_unless_duplicates_are_allowed():
    for seed in range(30):
        assert len(set(start(seed).game_code)) == 4
    assert min(len(set(start(seed, duplicate_numbers=True).game_code)) for seed in range(30)) < 4


@pytest.mark.parametrize(
    ("code", "tried", "black", "white"),
    [
        ([1, 2, 3, 4], [1, 2, 4, 3], 2, 2),
        ([1, 2, 3, 4], [4, 3, 2, 1], 0, 4),
        ([1, 2, 3, 4], [5, 6, 5, 6], 0, 0),
        ([1, 1, 2, 2], [1, 2, 1, 1], 1, 2),
        ([1, 1, 1, 2], [2, 2, 2, 1], 0, 2),
        ([1, 2, 3, 3], [3, 3, 3, 3], 2, 0),
    ],
)
def test_pegs_count_each_digit_once(code, tried, black, white):
    env = start(code=code, duplicate_numbers=True)
    assert f"{black} black, {white} white" in guess(env, *tried)[0]


def test_reward_is_the_gain_in_the_best_number_of_black_pegs():
    env = start(code=[1, 2, 3, 4])
    tries = [(1, 5, 6, 2), (6, 2, 5, 1), (1, 2, 3, 5), (1, 6, 5, 4), (1, 2, 3, 4)]
    assert [guess(env, *tried)[1] for tried in tries] == [0.25, 0, 0.5, 0, 0.25]


def test_right_code_at_the_last_turn_wins():
    env = start(code=[1, 2, 3, 4], max_turns=1)
    assert guess(env, 1, 2, 3, 4)[1:4] == (1, True, False)


def test_wrong_code_at_the_last_turn_is_paid_for_its_pegs_and_truncated():
    env = start(code=[1, 2, 3, 4], max_turns=1)
    assert guess(env, 1, 2, 5, 6)[1:4] == (0.5, False, True)


@pytest.mark.parametrize("digits", [(1, 2, 3), (1, 2, 3, 4, 5), (0, 1, 2, 3), (1, 2, 3, 7), (1234,), (0,)])
def test_guess_that_no_code_can_be_is_illegal(digits):
    _, reward, terminated, _, info = guess(start(), *digits)
    assert (reward, terminated, info["move"]) == (0, False, "illegal")


def test_guess_with_a_digit_twice_is_illegal_unless_duplicates_are_allowed():
    assert guess(start(), 1, 1, 2, 3)[4]["move"] == "illegal"
    assert guess(start(duplicate_numbers=True), 1, 1, 2, 3)[4]["move"] == "legal"


def test_repeated_guess_is_illegal():
    env = start(code=[1, 2, 3, 4])
    guess(env, 1, 2, 5, 6)
    assert guess(env, 1, 2, 5, 6)[4]["move"] == "illegal"


@pytest.mark.parametrize("answer", [" 1 2 3 4 ", "1  2\t3\n4", "01 2 3 4"])
def test_digits_may_have_any_blanks_between_and_around(answer):
    env = start(code=[1, 2, 3, 4])
    assert guess(env, answer)[4]["success"]


@pytest.mark.parametrize("answer", ["1,2,3,4", "one two", "1 2 3 x", "-1 2 3 4", "1" * 19])
def test_what_is_no_row_of_numbers_is_a_format_error(answer):
    assert guess(start(), answer)[1:3] == (-0.1, True)


def test_code_longer_than_its_digits_allow_is_refused():
    with pytest.raises(ValueError, match="no code of 4 different digits"):
        MastermindEnv(code_length=4, num_numbers=3)
    start(num_numbers=3, duplicate_numbers=True)


@pytest.mark.parametrize("env_id", ALL)
def test_solver_wins_every_episode_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(40):
        result = play_solver(env, seed)
        assert (result.return_, result.success) == (pytest.approx(1.0, abs=1e-9), True)


def test_solver_wins_with_digits_that_appear_twice():
    env = MastermindEnv(4, 4, duplicate_numbers=True, max_turns=20)
    for seed in range(20):
        assert play_solver(env, seed, find_solver("game:Mastermind-v0")).success
