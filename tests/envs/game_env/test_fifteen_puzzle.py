import pytest

import gem
from gem.envs.game_env.fifteen_puzzle import FifteenPuzzleEnv
from gem.testing.solvers import solve

VARIANTS = ("-easy", "-hard", "-random")
ALL = [f"game:FifteenPuzzle-{version}{variant}" for version in ("v0", "v1") for variant in VARIANTS]


def start(tiles=None, **kwargs):
    env = FifteenPuzzleEnv(**kwargs)
    env.reset(seed=1)
    if tiles is not None:
        env.tiles = list(tiles)
    return env


def move(env, answer):
    return env.step(f"\\boxed{{{answer}}}")


def board(text):
    """The tiles of the board that ends an observation, row by row, 0 for the gap."""
    return [0 if word == "__" else int(word) for line in text.splitlines()[1:] for word in line.split()]


def is_solvable(tiles, size):
    """Whether the parity of the tiles' order agrees with the gap's row."""
    order = [tile for tile in tiles if tile]
    inversions = sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])
    rows_below = size - 1 - tiles.index(0) // size
    return inversions % 2 == 0 if size % 2 else (inversions + rows_below) % 2 == 0


@pytest.mark.parametrize("env_id", ALL)
def test_solving_from_the_text_alone_wins_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(25):
        result = solve(env, seed)
        assert (result.return_, result.success) == (pytest.approx(1.0, abs=1e-9), True)
        assert result.turns <= env.max_turns


@pytest.mark.parametrize("env_id", ALL[:3])
def test_start_boards_are_permutations_that_can_be_solved_and_are_not(env_id):
    env = gem.make(env_id)
    for seed in range(1000):
        tiles = board(env.reset(seed=seed)[0])
        assert sorted(tiles) == list(range(env.num_rows**2))
        assert is_solvable(tiles, env.num_rows)
        assert tiles != [*range(1, env.num_rows**2), 0]


def test_two_by_two_starts_from_every_board_that_can_be_solved():
    env = gem.make("game:FifteenPuzzle-v0-easy")
    assert len({tuple(board(env.reset(seed=seed)[0])) for seed in range(300)}) == 11


@pytest.mark.parametrize("size", [3, 4])
def test_larger_boards_differ_and_are_well_mixed(size):
    env = FifteenPuzzleEnv(20 if size == 3 else 50, size)
    starts = [tuple(board(env.reset(seed=seed)[0])) for seed in range(200)]
    assert len(set(starts)) > 180
    in_place = [sum(tile == i + 1 for i, tile in enumerate(tiles)) / size**2 for tiles in starts]
    assert sum(in_place) / len(in_place) < 0.4


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_board_can_be_solved_in_the_turns_however_few(turns):
    for seed in range(50):
        env = FifteenPuzzleEnv(turns, 3)
        env.env_id = "game:FifteenPuzzle-v0"
        assert solve(env, seed).success


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:FifteenPuzzle-v0-random")
    sizes = set()
    for seed in range(40):
        env.reset(seed=seed)
        sizes.add((env.num_rows, env.max_turns))
    assert sizes == {(2, 10), (3, 20), (4, 50)}


@pytest.mark.parametrize(
    ("answer", "tiles"),
    [
        ("up", [1, 2, 3, 4, 8, 5, 6, 0, 7]),
        ("down", [1, 0, 3, 4, 2, 5, 6, 8, 7]),
        ("left", [1, 2, 3, 4, 5, 0, 6, 8, 7]),
        ("right", [1, 2, 3, 0, 4, 5, 6, 8, 7]),
        (" UP ", [1, 2, 3, 4, 8, 5, 6, 0, 7]),
    ],
)
def test_the_tile_moves_in_the_direction_into_the_gap(answer, tiles):
    text, reward, terminated, truncated, info = move(start([1, 2, 3, 4, 0, 5, 6, 8, 7], num_rows=3), answer)
    assert board(text) == tiles
    assert (reward, terminated, truncated, info["move"]) == (0, False, False, "legal")


@pytest.mark.parametrize(
    ("gap", "answers"), [(0, ("down", "right")), (2, ("down", "left")), (6, ("up", "right")), (8, ("up", "left"))]
)
def test_move_from_beyond_the_edge_is_illegal_and_moves_nothing(gap, answers):
    tiles = [8, 7, 6, 5, 4, 3, 2, 1]
    tiles.insert(gap, 0)
    for answer in answers:
        env = start(tiles, num_rows=3)
        text, reward, terminated, _, info = move(env, answer)
        assert (reward, terminated, info["move"]) == (0, False, "illegal")
        assert board(text) == tiles
        assert f"\\boxed{{{answer}}}" not in {env.sample_random_action() for _ in range(30)}


@pytest.mark.parametrize("answer", ["u", "north", "up up", "1", "up, left"])
def test_what_is_no_direction_is_a_format_error(answer):
    assert move(start(), answer)[1:3] == (-0.1, True)


@pytest.mark.parametrize("shaped", [True, False])
def test_solution_at_the_last_turn_wins(shaped):
    env = start([1, 2, 0, 3], num_rows=2, max_turns=1, shaped=shaped)
    assert move(env, "left")[1:4] == (1, True, False)


@pytest.mark.parametrize(("answer", "share"), [("up", 5 / 9), ("right", 4 / 9), ("left", 4 / 9)])
def test_last_turn_of_v0_pays_the_share_of_cells_in_place(answer, share):
    env = start([1, 2, 3, 4, 0, 6, 8, 7, 5], num_rows=3, max_turns=1)
    assert move(env, answer)[1:4] == (pytest.approx(share), False, True)


def test_gap_counts_as_a_cell_in_place_also_after_an_illegal_move():
    env = start([2, 1, 3, 0], num_rows=2, max_turns=1)
    assert move(env, "up")[1:4] == (0.5, False, True)


def test_last_turn_of_v1_pays_nothing():
    env = start([2, 1, 3, 0], num_rows=2, max_turns=1, shaped=False)
    assert move(env, "up")[1:4] == (0, False, True)


@pytest.mark.parametrize("kwargs", [{"num_rows": 1}, {"num_rows": 0}, {"max_turns": 0}])
def test_impossible_sizes_are_refused(kwargs):
    with pytest.raises(ValueError, match="must be at least"):
        FifteenPuzzleEnv(**kwargs)
