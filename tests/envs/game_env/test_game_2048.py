import pytest

import gem
from gem.envs.game_env.game_2048 import Game2048Env
from gem.testing.solvers import find_solver, solve

IDS = [f"game:Game2048-v0{variant}" for variant in ("-easy", "-random", "-hard", "-extreme-hard")]


def start(board=None, seed=1, **kwargs):
    env = Game2048Env(**{"target_tile": 64, "max_turns": 50, **kwargs})
    env.reset(seed=seed)
    if board is not None:
        env.board = [list(row) for row in board]
        env.init_max_tile_achieved = env.max_tile_achieved = max(map(max, board))
    return env


def move(env, answer):
    return env.step(f"\\boxed{{{answer}}}")


def grid(text, size=4):
    """The board that ends an observation, 0 for an empty cell."""
    return [[0 if word == "." else int(word) for word in line.split()] for line in text.splitlines()[-size:]]


def tiles(rows):
    return [tile for row in rows for tile in row if tile]


def new_tile(env, slid, text):
    """The tile that appeared; the rest of the board is as after the slide."""
    differences = [
        (a, b) for old, new in zip(slid, grid(text), strict=True) for a, b in zip(old, new, strict=True) if a != b
    ]
    assert len(differences) == 1
    assert differences[0][0] == 0
    return differences[0][1]


@pytest.mark.parametrize("env_id", IDS[:2])
def test_playing_from_the_text_alone_wins_with_return_one(env_id):
    env = gem.make(env_id)
    results = [solve(env, seed) for seed in range(30)]
    assert sum(result.success for result in results) >= 29
    for result in results:
        assert (result.return_ == pytest.approx(1.0, abs=1e-9)) == result.success


def test_512_can_be_won_in_400_turns():
    env = Game2048Env(target_tile=512, max_turns=400)
    for seed in range(2):
        result = solve(env, seed, find_solver("game:Game2048-v0"))
        assert (result.return_, result.success) == (pytest.approx(1.0, abs=1e-9), True)


@pytest.mark.parametrize("env_id", IDS)
def test_tiles_never_sum_up_to_more_than_four_for_each_of_the_start_and_the_turns(env_id):
    env = gem.make(env_id)
    for seed in range(10):
        turns = 0
        observation, _ = env.reset(seed=seed)
        while not env.over:
            assert sum(tiles(grid(observation))) <= 8 + 4 * turns
            observation, *_ = env.step(env.sample_random_action())
            turns += 1


def test_hard_targets_are_beyond_the_turns():
    for env_id in IDS[2:]:
        env = gem.make(env_id)
        env.reset(seed=1)
        assert 4 * env.max_turns + 4 < env.target_tile


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:Game2048-v0-random")
    sizes = set()
    for seed in range(40):
        env.reset(seed=seed)
        sizes.add((env.target_tile, env.max_turns))
    assert sizes == {(16, 20), (32, 30), (64, 50)}


def test_game_begins_with_two_tiles_of_2_or_seldom_4():
    env = start()
    seen = [tiles(grid(env.reset(seed=seed)[0])) for seed in range(1000)]
    assert {len(pair) for pair in seen} == {2}
    fours = sum(pair.count(4) for pair in seen) / 2000
    assert {tile for pair in seen for tile in pair} == {2, 4}
    assert 0.07 < fours < 0.13


@pytest.mark.parametrize(
    ("row", "left", "right"),
    [
        ([2, 2, 2, 2], [4, 4, 0, 0], [0, 0, 4, 4]),
        ([2, 2, 4, 0], [4, 4, 0, 0], [0, 0, 4, 4]),
        ([4, 2, 2, 0], [4, 4, 0, 0], [0, 0, 4, 4]),
        ([2, 2, 2, 0], [4, 2, 0, 0], [0, 0, 2, 4]),
        ([2, 0, 0, 2], [4, 0, 0, 0], [0, 0, 0, 4]),
        ([0, 8, 0, 4], [8, 4, 0, 0], [0, 0, 8, 4]),
        ([4, 0, 2, 4], [4, 2, 4, 0], [0, 4, 2, 4]),
    ],
)
def test_tiles_slide_to_the_end_and_merge_once(row, left, right):
    empty = [0] * 4
    rows = [row, empty, empty, empty]
    columns = [list(column) for column in zip(*rows, strict=True)]
    for answer, board, slid in (
        ("left", rows, [left, empty, empty, empty]),
        ("right", rows, [right, empty, empty, empty]),
        ("up", columns, [list(c) for c in zip(left, empty, empty, empty, strict=True)]),
        ("down", columns, [list(c) for c in zip(right, empty, empty, empty, strict=True)]),
    ):
        env = start(board)
        text, _, terminated, truncated, info = move(env, answer)
        assert new_tile(env, slid, text) in (2, 4)
        assert (terminated, truncated, info["move"]) == (False, False, "legal")


def test_move_that_changes_nothing_is_illegal_and_adds_no_tile():
    board = [[2, 4, 0, 0], [8, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    for answer in ("left", "up"):
        env = start(board)
        text, reward, terminated, truncated, info = move(env, answer)
        assert (reward, terminated, truncated, info["move"]) == (0, False, False, "illegal")
        assert grid(text) == board
        assert {env.sample_random_action() for _ in range(40)} == {"\\boxed{right}", "\\boxed{down}"}


def test_growth_of_the_largest_tile_pays_its_share_of_the_doublings_once():
    env = start([[2, 2, 0, 0], [8, 8, 0, 0], [0] * 4, [0] * 4])
    env.init_max_tile_achieved = 2
    env.max_tile_achieved = 8
    assert move(env, "left")[1] == pytest.approx(1 / 5)
    assert move(env, "right")[1] == 0
    env.board = [[8, 8, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert move(env, "left")[1] == 0


def test_target_wins_also_at_the_last_turn():
    env = start([[32, 32, 0, 0], [0] * 4, [0] * 4, [0] * 4], max_turns=1)
    _, reward, terminated, truncated, info = move(env, "left")
    assert (reward, terminated, truncated, info["success"]) == (1, True, False, True)


def test_full_board_without_equal_neighbours_loses():
    rest = [[16, 32, 8, 32], [32, 16, 32, 16], [8, 32, 16, 8]]
    env = start([[2, 2, 16, 64], *rest], target_tile=2048)
    assert move(env, "left")[1:] == (0, True, False, {"success": False, "move": "legal"})


def test_full_board_with_equal_neighbours_goes_on():
    rest = [[16, 32, 64, 32], [32, 16, 32, 16], [8, 32, 16, 8]]
    env = start([[2, 2, 16, 64], *rest], target_tile=2048)
    assert move(env, "left")[2:4] == (False, False)


@pytest.mark.parametrize("answer", ["Left", " RIGHT ", "up\t"])
def test_direction_may_have_any_case_and_blanks(answer):
    env = start([[0, 0, 0, 0], [0, 2, 4, 0], [0, 8, 16, 0], [0, 0, 0, 0]])
    assert move(env, answer)[4]["move"] == "legal"


@pytest.mark.parametrize("answer", ["l", "north", "left right", "0"])
def test_what_is_no_direction_is_a_format_error(answer):
    assert move(start(), answer)[1:3] == (-0.1, True)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_board_may_have_another_size(size):
    env = start(board_size=size, target_tile=16)
    assert len(grid(env.get_task_suffix(), size)) == size
    while not env.over:
        env.step(env.sample_random_action())


@pytest.mark.parametrize(
    "kwargs", [{"target_tile": 48}, {"target_tile": 4}, {"board_size": 2, "target_tile": 64}, {"board_size": 1}]
)
def test_target_or_size_without_a_game_is_refused(kwargs):
    with pytest.raises(ValueError, match=r"target_tile|board_size"):
        Game2048Env(**kwargs)
