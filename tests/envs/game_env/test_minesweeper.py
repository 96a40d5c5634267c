import random
import re

import pytest

import gem
from gem.envs.game_env.mine_logic import Deduction, can_be_solved, cells_of, masks, neighbours
from gem.envs.game_env.minesweeper import MinesweeperEnv
from gem.testing.solvers import solve as solve_by_proof

ALL = [f"game:Minesweeper-v0{variant}" for variant in ("-easy", "-hard", "-random")]


def board(text):
    """The board that ends an observation, row by row, without its header and the numbers of its rows."""
    lines = [line for line in text.splitlines() if re.fullmatch(r" *\d+( [.F0-8])+", line)]
    return [line.split()[1:] for line in lines[1:]]


def closed(rows, symbol="."):
    return [(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == symbol]


def around(rows, r, c):
    return [
        (i, j)
        for i in range(max(0, r - 1), min(len(rows), r + 2))
        for j in range(max(0, c - 1), min(len(rows[0]), c + 2))
        if (i, j) != (r, c)
    ]


def move(env, command, cell):
    return env.step(f"\\boxed{{{command} {cell[0]} {cell[1]}}}")


def mines(env):
    return {divmod(cell, env.cols) for cell in env.mines}


def started(seed=1, first=(0, 0), **kwargs):
    """An easy board after its first reveal."""
    env = gem.make("game:Minesweeper-v0-easy", **kwargs)
    env.reset(seed=seed)
    return env, board(move(env, "reveal", first)[0])


def deduce(rows, rng):
    """A cell that must be safe, or else any closed one, from the board alone."""
    known = set()
    for _ in range(3):
        for r, row in enumerate(rows):
            for c, cell in enumerate(row):
                if cell.isdigit():
                    unknown = [n for n in around(rows, r, c) if rows[n[0]][n[1]] == "."]
                    if int(cell) == len(unknown):
                        known.update(unknown)
                    elif len(safe := set(unknown) - known) and int(cell) == len(set(unknown) & known):
                        return min(safe)
    return rng.choice([cell for cell in closed(rows) if cell not in known])


def solve(env, seed, choose):
    """Reveal what ``choose`` says of the board to the end; return the rewards and the last step."""
    rows = board(env.reset(seed=seed)[0])
    rewards = []
    while True:
        step = move(env, "reveal", choose(rows))
        rewards.append(step[1])
        if step[2] or step[3]:
            return rewards, step
        rows = board(step[0])


@pytest.mark.parametrize("env_id", ALL)
def test_deducing_from_the_text_alone_wins_boards_with_return_one(env_id):
    env, rng = gem.make(env_id), random.Random(0)
    won = 0
    for seed in range(30):
        rewards, (_, reward, terminated, truncated, info) = solve(env, seed, lambda rows: deduce(rows, rng))
        assert (terminated, truncated) == (True, False)
        if info["success"]:
            won += 1
            assert sum(rewards) == pytest.approx(1.0)
        else:
            assert reward == 0
            assert sum(rewards) < 1
    assert won > 3


@pytest.mark.parametrize("env_id", ALL)
def test_proving_from_the_text_alone_always_wins_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(60):
        result = solve_by_proof(env, seed)
        assert (result.return_, result.success) == (pytest.approx(1.0, abs=1e-9), True)


@pytest.mark.parametrize("env_id", ALL)
def test_board_needs_no_guess_wherever_it_is_opened_first(env_id):
    env, rng = gem.make(env_id), random.Random(0)
    for seed in range(1000):
        env.reset(seed=seed)
        first = rng.randrange(env.rows), rng.randrange(env.cols)
        move(env, "reveal", first)
        counts = [
            sum(cell in mines(env) for cell in around([[0] * env.cols] * env.rows, r, c))
            for r in range(env.rows)
            for c in range(env.cols)
        ]
        laid = sum(1 << cell for cell in env.mines)
        assert can_be_solved(env.rows, env.cols, counts, laid, first[0] * env.cols + first[1])


@pytest.mark.parametrize(
    ("rows", "cols", "numbers", "num_mines", "safe", "mined"),
    [
        (1, 4, {1: 1, 0: 0}, 2, set(), {2, 3}),
        (2, 3, {3: 1, 4: 1, 5: 1}, 1, {0, 2}, {1}),
        (2, 4, {4: 1, 5: 2, 6: 2, 7: 1}, 2, {0, 3}, {1, 2}),
        (1, 5, {0: 1}, 1, {2, 3, 4}, {1}),
        (1, 5, {2: 1}, 3, set(), {0, 4}),
        (1, 5, {2: 1}, 1, {0, 4}, set()),
        (2, 2, {0: 1}, 1, set(), set()),
    ],
    ids=[
        "one number",
        "two numbers",
        "1-2-2-1",
        "all mines found",
        "mines are missing",
        "no mine is missing",
        "a guess",
    ],
)
def test_rules_prove_what_follows_from_the_numbers(rows, cols, numbers, num_mines, safe, mined):
    deduction = Deduction(rows, cols, num_mines)
    deduction.open(sum(1 << cell for cell in numbers), [numbers.get(cell, -1) for cell in range(rows * cols)])
    proven = set(cells_of(deduction.deduce()))
    assert proven <= safe
    assert bool(proven) == bool(safe)
    assert set(cells_of(deduction.mines)) <= mined
    if not safe:
        assert set(cells_of(deduction.mines)) == mined


def test_proofs_hold_whatever_the_mines_are():
    rng = random.Random(0)
    around_each = masks(4, 4)
    for _ in range(300):
        laid = rng.sample(range(16), 4)
        layout = sum(1 << cell for cell in laid)
        deduction = Deduction(4, 4, 4)
        for cell in rng.sample([cell for cell in range(16) if cell not in laid], 7):
            deduction.open(1 << cell, [(mask & layout).bit_count() for mask in around_each])
        assert deduction.deduce() & layout == 0
        assert deduction.mines & ~layout == 0


def test_instructions_promise_that_no_guess_is_needed_where_it_holds():
    sentence = "can be solved without guessing"
    for env_id in ALL:
        assert sentence in gem.make(env_id).reset(seed=1)[0]
    assert sentence not in MinesweeperEnv(5, 5, 16).reset(seed=1)[0]


def test_dense_board_that_needs_a_guess_can_still_be_played():
    env, rows = started(first=(0, 0), num_mines=16)
    assert len(mines(env)) == 16
    while cells := [cell for cell in closed(rows) if cell not in mines(env)]:
        step = move(env, "reveal", cells[0])
        rows = board(step[0])
    assert step[2]
    assert step[4]["success"]


def test_neighbours_are_the_cells_around():
    assert neighbours(3, 4)[5] == (0, 1, 2, 4, 6, 8, 9, 10)
    assert neighbours(3, 4)[0] == (1, 4, 5)
    assert cells_of(masks(3, 4)[11]) == [6, 7, 10]


@pytest.mark.parametrize("env_id", ALL)
def test_knowing_the_mines_always_wins_within_the_turns(env_id):
    env = gem.make(env_id)
    for seed in range(20):
        rewards, (_, _, terminated, _, info) = solve(
            env, seed, lambda rows: next(cell for cell in closed(rows) if cell not in mines(env))
        )
        assert sum(rewards) == pytest.approx(1.0)
        assert (terminated, info["success"]) == (True, True)


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:Minesweeper-v0-random")
    sizes = set()
    for seed in range(40):
        env.reset(seed=seed)
        sizes.add((env.rows, env.cols, env.num_mines, env.max_turns))
    assert sizes == {(n, n, n * n // 5, n * n) for n in (5, 6, 7, 8)}


@pytest.mark.parametrize("first", [(0, 0), (0, 4), (2, 2), (4, 1)])
def test_first_reveal_is_safe_with_all_around_it(first):
    for seed in range(20):
        env, rows = started(seed, first, num_mines=16)
        assert rows[first[0]][first[1]] == "0"
        assert len(mines(env)) == 16
        assert not mines(env) & {first, *around(rows, *first)}


@pytest.mark.parametrize("seed", range(5))
def test_open_cells_show_the_mines_around_and_the_others_nothing(seed):
    env, rows = started(seed, first=(2, 2))
    for r in range(5):
        for c in range(5):
            if rows[r][c] != ".":
                assert int(rows[r][c]) == len(mines(env) & set(around(rows, r, c)))
    assert mines(env) <= set(closed(rows))


@pytest.mark.parametrize("seed", range(5))
def test_cell_without_mines_around_opens_all_around_it(seed):
    _, rows = started(seed)
    for r, c in closed(rows, "0"):
        assert all(rows[i][j] != "." for i, j in around(rows, r, c))


def test_reveal_pays_the_share_of_safe_cells_it_opens():
    env, rows = started()
    opened = 25 - len(closed(rows))
    for cell in closed(rows):
        if cell not in mines(env) and cell in closed(rows):
            observation, reward, *_ = move(env, "reveal", cell)
            rows = board(observation)
            now = 25 - len(closed(rows))
            assert reward == pytest.approx((now - opened) / 20)
            opened = now
    assert opened == 20


def test_mine_ends_the_game_and_pays_nothing():
    env, _ = started()
    _, reward, terminated, truncated, info = move(env, "reveal", min(mines(env)))
    assert (reward, terminated, truncated, info["success"]) == (0, True, False, False)


def test_game_ends_when_all_safe_cells_are_open_though_no_mine_is_flagged():
    env, rows = started()
    steps = []
    while cells := [cell for cell in closed(rows) if cell not in mines(env)]:
        assert not any(step[2] for step in steps)
        steps.append(move(env, "reveal", cells[0]))
        rows = board(steps[-1][0])
    assert steps[-1][2:4] == (True, False)
    assert steps[-1][4]["success"]


def test_win_at_the_last_turn_is_no_truncation():
    env = gem.make("game:Minesweeper-v0-easy", num_mines=0, max_turns=1)
    env.reset(seed=1)
    assert move(env, "reveal", (0, 0))[1:4] == (1, True, False)


def test_revealing_a_flagged_mine_does_not_lose():
    env, _ = started()
    mine = min(mines(env))
    move(env, "flag", mine)
    observation, reward, terminated, truncated, info = move(env, "reveal", mine)
    assert (reward, terminated, truncated, info["move"]) == (0, False, False, "illegal")
    assert mine in closed(board(observation), "F")


def test_flagged_cell_may_be_revealed_once_the_flag_is_gone():
    env, rows = started()
    cell = next(cell for cell in closed(rows) if cell not in mines(env))
    for command, move_kind in (
        ("flag", "legal"),
        ("reveal", "illegal"),
        ("flag", "legal"),
        ("reveal", "legal"),
    ):
        step = move(env, command, cell)
        assert step[4]["move"] == move_kind
    assert cell not in closed(board(step[0]))


def test_flags_pay_nothing_and_stay_closed_when_the_cells_around_open():
    env = gem.make("game:Minesweeper-v0-easy", num_mines=0)
    env.reset(seed=1)
    assert move(env, "flag", (1, 1))[1:4] == (0, False, False)
    observation, reward, terminated, *_ = move(env, "reveal", (0, 0))
    assert closed(board(observation), "F") == [(1, 1)]
    assert (reward, terminated) == (24 / 25, False)


def test_random_action_never_reveals_a_flagged_cell():
    env, rows = started()
    first, *others = closed(rows)
    for cell in others:
        move(env, "flag", cell)
    reveals = {action for _ in range(50) if "reveal" in (action := env.sample_random_action())}
    assert reveals == {f"\\boxed{{reveal {first[0]} {first[1]}}}"}
    move(env, "flag", first)
    assert all("flag" in env.sample_random_action() for _ in range(50))


@pytest.mark.parametrize("answer", ["reveal 5 0", "reveal 0 5", "flag 9 9", "open 1 1"])
def test_move_off_the_board_or_of_no_known_command_is_illegal(answer):
    env, _ = started()
    assert env.step(f"\\boxed{{{answer}}}")[4]["move"] == "illegal"


@pytest.mark.parametrize("command", ["reveal", "flag"])
def test_open_cell_can_be_neither_revealed_nor_flagged(command):
    env, _ = started()
    assert move(env, command, (0, 0))[4]["move"] == "illegal"


@pytest.mark.parametrize("answer", ["Reveal 4 4", "REVEAL  4\t4", " reveal 4 4 "])
def test_command_may_have_any_case_and_blanks(answer):
    env = gem.make("game:Minesweeper-v0-easy")
    env.reset(seed=1)
    assert env.step(f"\\boxed{{{answer}}}")[4]["move"] == "legal"


@pytest.mark.parametrize("answer", ["reveal", "reveal 1", "1 1", "reveal -1 1", "reveal 1 1 1", "reveal (1, 1)"])
def test_what_is_no_command_is_a_format_error(answer):
    env, _ = started()
    assert env.step(f"\\boxed{{{answer}}}")[1:3] == (-0.1, True)


@pytest.mark.parametrize(("rows", "cols", "num_mines"), [(5, 5, 17), (3, 3, 1), (2, 5, 5), (5, 5, -1)])
def test_board_too_dense_for_a_safe_first_reveal_is_refused(rows, cols, num_mines):
    with pytest.raises(ValueError, match="room for 0 to"):
        MinesweeperEnv(rows, cols, num_mines)


def test_board_is_in_every_observation_also_after_illegal_moves():
    env = gem.make("game:Minesweeper-v0-easy")
    observation, _ = env.reset(seed=1)
    assert board(observation) == [["."] * 5] * 5
    _, rows = env.step("\\boxed{reveal 0 0}"), board(env.get_task_suffix())
    assert board(env.step("\\boxed{reveal 9 9}")[0]) == rows
