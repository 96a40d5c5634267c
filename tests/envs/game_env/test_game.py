"""What holds for every game."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gem
from gem.registry import all_specs
from gem.utils.constants import LanguageGameReward

GAMES = sorted(env_id for env_id in all_specs() if env_id.startswith("game:"))
ILLEGAL = {
    "Crosswords": "99 99 a",
    "GuessTheNumber": "0",
    "Hangman": "ab",
    "Mastermind": "9 9",
    "Minesweeper": "reveal 99 0",
    "Sudoku": "0 1 1",
    "TowerofHanoi": "A A",
    "WordSearch": "0 0 1 1",
    "Wordle": "ab",
}
"""What is illegal in every position; the games of directions have nothing that is, and tests of their own."""


def name_of(env_id):
    return env_id.split(":")[1].split("-")[0]


FAMILIES = [env_id for env_id in GAMES if env_id.endswith("-easy")]
ANSWERS = st.text() | st.from_regex(
    r"[-+ ]*[0-9]{1,30}( [0-9]{1,25}){0,5}|(reveal|flag) -?[0-9]+ [0-9]+|[A-Da-d],? ?[A-D]|[0-9]+ [0-9]+ [a-z]"
    r"|up|down|left|right|[a-z]{1,8}"
)
TEXTS = st.text() | st.builds("{} \\boxed{{{}}}".format, st.text(max_size=5), ANSWERS)


WITH_ILLEGAL = [env_id for env_id in GAMES if name_of(env_id) in ILLEGAL]


def finish(env):
    """Play random actions to the end of the episode; return the steps."""
    steps = []
    while not env.over:
        steps.append(env.step(env.sample_random_action()))
    return steps


def play(env, seed):
    """Play an episode of random actions; return its transcript."""
    return [env.reset(seed=seed), *finish(env)]


def illegal_move(env):
    """A move of the right form that the rules forbid, whatever the position."""
    return f"\\boxed{{{ILLEGAL[name_of(env.env_id)]}}}"


@pytest.mark.parametrize("env_id", GAMES)
def test_same_seed_gives_the_same_episode_whatever_was_played_before(env_id):
    a, b = gem.make(env_id), gem.make(env_id)
    play(a, seed=1)
    transcripts = [play(env, seed=7) for env in (a, b)]
    assert transcripts[0] == transcripts[1]


@pytest.mark.parametrize("env_id", FAMILIES)
def test_seeds_give_different_episodes(env_id):
    assert len({json.dumps(play(gem.make(env_id), seed)) for seed in range(8)}) > 4


@pytest.mark.parametrize("env_id", FAMILIES)
def test_episodes_in_threads_are_those_played_alone(env_id):
    alone = [play(gem.make(env_id), seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda seed: play(gem.make(env_id), seed), range(16))) == alone


@pytest.mark.parametrize("env_id", GAMES)
def test_global_random_state_is_neither_read_nor_written(env_id):
    random.seed(0)
    before = random.getstate()
    first = play(gem.make(env_id), seed=7)
    assert random.getstate() == before
    random.seed(1)
    assert play(gem.make(env_id), seed=7) == first


@pytest.mark.parametrize("env_id", GAMES)
def test_random_actions_are_legal_to_the_end(env_id):
    env = gem.make(env_id)
    for seed in range(10):
        assert {step[4]["move"] for step in play(env, seed)[1:]} == {"legal"}


@pytest.mark.parametrize("env_id", GAMES)
def test_unparseable_text_costs_a_tenth_and_ends_the_episode(env_id):
    for text in ("", "I give up", "\\boxed{}", "\\boxed{what?}", "\\boxed{1", "answer: 1"):
        env = gem.make(env_id)
        env.reset(seed=1)
        _, reward, terminated, truncated, info = env.step(text)
        assert (reward, terminated, truncated) == (LanguageGameReward.format_error_reward, True, False)
        assert reward == -0.1
        assert info == {"success": False, "move": "unparseable"}


@pytest.mark.parametrize("env_id", WITH_ILLEGAL)
def test_illegal_move_pays_nothing_and_spends_a_turn(env_id):
    env = gem.make(env_id, max_turns=3) if "random" not in env_id else gem.make(env_id)
    env.reset(seed=1)
    limit = env.max_turns
    for _ in range(limit - 1):
        _, reward, terminated, truncated, info = env.step(illegal_move(env))
        assert (reward, terminated, truncated) == (0, False, False)
        assert info == {"success": False, "move": "illegal"}
    assert env.step(illegal_move(env))[1:4] == (0, False, True)


@pytest.mark.parametrize("env_id", [i for i in FAMILIES if i in WITH_ILLEGAL])
def test_unparseable_text_at_the_last_turn_terminates_and_does_not_truncate(env_id):
    env = gem.make(env_id, max_turns=2)
    env.reset(seed=1)
    env.step(illegal_move(env))
    assert env.step("I give up")[1:4] == (-0.1, True, False)


@pytest.mark.parametrize("env_id", [i for i in FAMILIES if i in WITH_ILLEGAL])
def test_last_box_counts_and_blanks_in_it_do_not(env_id):
    a, b = gem.make(env_id), gem.make(env_id)
    a.reset(seed=1)
    b.reset(seed=1)
    action = a.sample_random_action()
    padded = action.replace("{", "{ \n").replace("}", "\t }")
    assert b.step(f"first {illegal_move(b)}, no: {padded}. Done.") == a.step(action)


@pytest.mark.parametrize("env_id", FAMILIES)
@given(actions=st.lists(TEXTS, max_size=6))
def test_any_text_gives_a_result_within_the_promised_ranges(env_id, actions):
    env = gem.make(env_id)
    env.reset(seed=1)
    steps = [env.step(action) for action in actions if not env.over] + finish(env)
    low, high = env.reward_range
    for observation, reward, terminated, truncated, info in steps:
        assert isinstance(observation, str)
        assert low <= reward <= high
        assert not (terminated and truncated)
        assert set(info) == {"success", "move"}
    assert low <= sum(step[1] for step in steps) <= high + 1e-9
    assert len(steps) <= env.max_turns


@pytest.mark.parametrize("env_id", [i for i in FAMILIES if i in WITH_ILLEGAL])
def test_step_before_reset_and_after_the_end_is_refused(env_id):
    env = gem.make(env_id)
    with pytest.raises(gem.ResetNeeded):
        env.step(illegal_move(env))
    play(env, seed=1)
    with pytest.raises(gem.ResetNeeded, match="reset"):
        env.step(illegal_move(env))
    env.reset()
    env.step(env.sample_random_action())


@pytest.mark.parametrize("env_id", GAMES)
def test_state_saved_anywhere_in_an_episode_resumes_it(env_id):
    env = gem.make(env_id)
    env.reset(seed=3)
    while not env.over:
        action = env.sample_random_action()
        resumed = gem.make(env_id)
        resumed.set_state(json.loads(json.dumps(env.get_state())))
        assert resumed.step(action) == env.step(action)


@pytest.mark.parametrize("env_id", GAMES)
def test_info_of_reset_is_empty_as_the_observation_says_all(env_id):
    observation, info = gem.make(env_id).reset(seed=1)
    assert info == {}
    assert "\\boxed{" in observation


@pytest.mark.parametrize("env_id", FAMILIES)
def test_unknown_constructor_argument_is_refused(env_id):
    env = gem.make(env_id)
    with pytest.raises(TypeError):
        type(env)(colour="red")


@pytest.mark.parametrize("env_id", [env_id for env_id in GAMES if env_id.endswith("-random")])
def test_random_variant_tells_the_turns_it_drew(env_id):
    env = gem.make(env_id)
    drawn = set()
    for seed in range(30):
        observation, _ = env.reset(seed=seed)
        assert f" {env.max_turns} turns" in observation
        drawn.add(env.max_turns)
    assert len(drawn) > 1 or name_of(env_id) in ("Crosswords", "WordSearch")  # they have 20 turns, as published
