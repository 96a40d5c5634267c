import pytest

import gem
from gem.envs.game_env.tower_of_hanoi import TowerofHanoiEnv

ALL = [f"game:TowerofHanoi-v0{variant}" for variant in ("-easy", "-hard", "-random")]


def start(**kwargs):
    env = TowerofHanoiEnv(**kwargs)
    env.reset(seed=1)
    return env


def move(env, answer):
    return env.step(f"\\boxed{{{answer}}}")


def moves(env, answers):
    for answer in answers.split(", "):
        step = move(env, answer)
    return step


def towers(text):
    """The towers that end an observation, each from bottom to top."""
    return {line[0]: [int(disk) for disk in line[2:].split()] for line in text.splitlines()[-3:]}


def next_move(position, disk, target):
    """The next move that brings the disks from ``disk`` down to the target; None when they are there."""
    if disk == 0:
        return None
    here = next(name for name, disks in position.items() if disk in disks)
    if here == target:
        return next_move(position, disk - 1, target)
    spare = ({"A", "B", "C"} - {here, target}).pop()
    return next_move(position, disk - 1, spare) or f"{here} {target}"


@pytest.mark.parametrize("env_id", ALL)
def test_solving_from_the_text_alone_wins_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(6):
        position = towers(env.reset(seed=seed)[0])
        disks = len(position["A"])
        total, done = 0.0, False
        while not done:
            text, reward, terminated, truncated, info = move(env, next_move(position, disks, "C"))
            total, done, position = total + reward, terminated or truncated, towers(text)
        assert (total, terminated, truncated, info["success"]) == (1.0, True, False, True)


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:TowerofHanoi-v0-random")
    sizes = set()
    for seed in range(40):
        env.reset(seed=seed)
        sizes.add((env.num_disks, env.max_turns))
    assert sizes == {(3, 10), (4, 20), (5, 35)}


def test_board_is_in_every_observation():
    env = start(num_disks=3)
    assert towers(env.reset(seed=1)[0]) == {"A": [3, 2, 1], "B": [], "C": []}
    assert towers(move(env, "A C")[0]) == {"A": [3, 2], "B": [], "C": [1]}
    assert towers(move(env, "B C")[0]) == {"A": [3, 2], "B": [], "C": [1]}


@pytest.mark.parametrize(
    ("before", "answer"),
    [("A B", "A A"), ("A B", "B B"), ("A B", "C A"), ("A B", "C C"), ("A B", "A B")],
    ids=["onto itself", "onto itself, one disk", "empty tower", "empty onto itself", "onto a smaller disk"],
)
def test_move_against_the_rules_is_illegal_and_moves_nothing(before, answer):
    env = start(num_disks=3)
    position = towers(move(env, before)[0])
    text, reward, terminated, truncated, info = move(env, answer)
    assert (reward, terminated, truncated, info["move"]) == (0, False, False, "illegal")
    assert towers(text) == position


@pytest.mark.parametrize("answer", ["A C", "a c", "A,C", "A, C", "AC", " A  C "])
def test_move_may_be_written_in_several_ways(answer):
    env = start(num_disks=3)
    assert towers(move(env, answer)[0])["C"] == [1]


@pytest.mark.parametrize("answer", ["A", "A D", "A B C", "A to C", "1 3"])
def test_what_is_no_pair_of_towers_is_a_format_error(answer):
    assert move(start(num_disks=3), answer)[1:3] == (-0.1, True)


def test_all_disks_on_b_are_no_solution():
    assert moves(start(num_disks=2), "A C, A B, C B")[1:3] == (0, False)


def test_solution_at_the_last_turn_wins():
    assert moves(start(num_disks=2, max_turns=3), "A B, A C, B C")[1:4] == (1, True, False)


@pytest.mark.parametrize("last", ["B B", "A B"])
def test_last_turn_pays_the_share_of_disks_on_c_legal_or_not(last):
    env = start(num_disks=4, max_turns=2)
    assert moves(env, f"A C, {last}")[1:4] == (0.25, False, True)


def test_earlier_turns_pay_nothing():
    assert moves(start(num_disks=4, max_turns=3), "A C, A B")[1:4] == (0, False, False)


@pytest.mark.parametrize("last", ["A B", "B B"])
def test_last_turn_of_v1_pays_nothing(last):
    env = start(num_disks=4, max_turns=2, shaped=False)
    assert moves(env, f"A C, {last}")[1:4] == (0, False, True)


def test_solution_of_v1_pays_one():
    env = gem.make("game:TowerofHanoi-v1-easy")
    env.reset(seed=1)
    assert moves(env, "A C, A B, C B, A C, B A, B C, A C")[1:4] == (1, True, False)
