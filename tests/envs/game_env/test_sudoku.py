import re

import pytest

import gem
from gem.envs.game_env.sudoku import SudokuEnv
from gem.testing.solvers import solve

ALL = [f"game:Sudoku-v0{variant}" for variant in ("-easy", "-hard", "-random")]


def start(seed=1, **kwargs):
    env = SudokuEnv(**{"scale": 4, "clues": 10, "max_turns": 15, **kwargs})
    env.reset(seed=seed)
    return env


def move(env, *numbers):
    return env.step(f"\\boxed{{{' '.join(map(str, numbers))}}}")


def grid(text):
    """The grid that ends an observation, row by row, 0 for an empty cell."""
    rows = [re.findall(r"[.\d]", line.split("|", 1)[1]) for line in text.splitlines() if re.match(r"\d \|", line)]
    return [[0 if symbol == "." else int(symbol) for symbol in row] for row in rows]


def empty(env):
    """Row, column and right digit of every empty cell."""
    return [
        (cell // env.scale + 1, cell % env.scale + 1, env.solution[cell]) for cell, d in enumerate(env.cells) if d == 0
    ]


def count_solutions(rows, most=2):
    """Count the solutions up to ``most``, by an exhaustive search that knows only the rules."""
    scale = len(rows)
    side = int(scale**0.5)
    best = None
    for r in range(scale):
        for c in range(scale):
            if rows[r][c]:
                continue
            near = set(rows[r]) | {row[c] for row in rows}
            top, left = r // side * side, c // side * side
            near |= {rows[i][j] for i in range(top, top + side) for j in range(left, left + side)}
            fits = [digit for digit in range(1, scale + 1) if digit not in near]
            if best is None or len(fits) < len(best[2]):
                best = r, c, fits
    if best is None:
        return 1
    r, c, fits = best
    found = 0
    for digit in fits:
        rows[r][c] = digit
        found += count_solutions(rows, most - found)
        rows[r][c] = 0
        if found >= most:
            break
    return found


def wrong_but_possible(env):
    """A move off the solution that repeats no digit at sight; None if there is none. For 4x4."""
    for row, col, right in empty(env):
        near = {
            digit
            for cell, digit in enumerate(env.cells)
            if (r := cell // 4) == row - 1
            or (c := cell % 4) == col - 1
            or (r // 2, c // 2) == ((row - 1) // 2, (col - 1) // 2)
        }
        for digit in {1, 2, 3, 4} - near - {right}:
            return row, col, digit
    return None


@pytest.mark.parametrize("env_id", ALL)
def test_solving_from_the_text_alone_wins_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(25):
        result = solve(env, seed)
        assert (result.return_, result.success) == (pytest.approx(1.0, abs=1e-9), True)


@pytest.mark.parametrize(("scale", "clues", "seeds"), [(4, 10, 1000), (4, 12, 300), (9, 50, 1000), (9, 51, 20)])
def test_puzzle_has_one_solution(scale, clues, seeds):
    env = SudokuEnv(clues=clues, max_turns=100, scale=scale)
    for seed in range(seeds):
        rows = grid(env.reset(seed=seed)[0])
        assert sum(digit == 0 for row in rows for digit in row) == clues == env.init_num_empty
        assert count_solutions(rows) == 1


def test_full_grid_keeps_the_rules():
    for scale, side in ((4, 2), (9, 3)):
        env = SudokuEnv(clues=1, scale=scale)
        digits = set(range(1, scale + 1))
        for seed in range(100):
            env.reset(seed=seed)
            rows = env.full_grid
            assert all(set(row) == digits for row in rows)
            assert all(set(column) == digits for column in zip(*rows, strict=True))
            for r in range(0, scale, side):
                for c in range(0, scale, side):
                    assert {rows[i][j] for i in range(r, r + side) for j in range(c, c + side)} == digits


def test_grids_are_not_renamings_of_one():
    def shape(solution):
        names = {}
        return tuple(names.setdefault(digit, len(names)) for digit in solution)

    assert len({shape(start(seed, clues=1, scale=9).solution) for seed in range(50)}) == 50


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:Sudoku-v0-random")
    sizes = set()
    for seed in range(40):
        env.reset(seed=seed)
        sizes.add((env.scale, env.clues, env.max_turns, env.init_num_empty))
    assert sizes == {(4, 10, 15, 10), (9, 50, 50, 50)}


@pytest.mark.parametrize(("scale", "clues", "boxes"), [(4, 10, "four 2x2 boxes"), (9, 50, "nine 3x3 boxes")])
def test_instructions_name_the_boxes_and_the_empty_cells(scale, clues, boxes):
    observation, _ = SudokuEnv(clues, 50, scale).reset(seed=1)
    assert boxes in observation
    assert f"{clues} empty cells" in observation


def test_right_digit_pays_its_share_and_fills_the_cell():
    env = start()
    row, col, digit = empty(env)[0]
    text, reward, terminated, truncated, info = move(env, row, col, digit)
    assert (reward, terminated, truncated, info["move"]) == (pytest.approx(1 / 10), False, False, "legal")
    assert grid(text)[row - 1][col - 1] == digit


def test_digit_off_the_solution_that_breaks_no_rule_is_legal_pays_nothing_and_is_not_entered():
    seen = 0
    for seed in range(30):
        env = start(seed)
        rows, wrong = grid(env.get_task_suffix()), wrong_but_possible(env)
        if wrong is None:
            continue
        seen += 1
        text, reward, terminated, truncated, info = move(env, *wrong)
        assert (reward, terminated, truncated, info["move"]) == (0, False, False, "legal")
        assert "not the digit" in text
        assert grid(text) == rows
    assert seen > 5


@pytest.mark.parametrize("unit", ["row", "column", "box"])
def test_digit_that_repeats_in_a_unit_is_illegal(unit):
    env = start(scale=9, clues=50)
    env.cells = [0] * 81
    env.solution[40] = 5  # row 5, column 5
    env.cells[{"row": 36, "column": 4, "box": 30}[unit]] = 7
    text, reward, terminated, truncated, info = move(env, 5, 5, 7)
    assert (reward, terminated, truncated, info["move"]) == (0, False, False, "illegal")
    assert f"same {unit}" in text


def test_filled_cell_is_illegal_given_or_filled_later():
    env = start()
    row, col, digit = empty(env)[0]
    move(env, row, col, digit)
    assert move(env, row, col, digit)[1:] == (0, False, False, {"success": False, "move": "illegal"})
    given = next(cell for cell, value in enumerate(env.cells) if value)
    assert move(env, given // 4 + 1, given % 4 + 1, env.cells[given])[4]["move"] == "illegal"


@pytest.mark.parametrize("answer", ["0 1 1", "1 0 1", "5 1 1", "1 5 1", "1 1 0", "1 1 5", "-1 1 1", "1 1 -2"])
def test_number_out_of_range_is_illegal_and_no_format_error(answer):
    env = start()
    env.cells = [0] * 16
    assert env.step(f"\\boxed{{{answer}}}")[1:] == (0, False, False, {"success": False, "move": "illegal"})


@pytest.mark.parametrize("form", ["{} {} {}", " {}  {}\t{} ", "{},{},{}", "{}, {}, {}", "{} , {} {}"])
def test_numbers_may_stand_between_blanks_and_commas(form):
    env = start()
    assert env.step("\\boxed{" + form.format(*empty(env)[0]) + "}")[1] > 0


@pytest.mark.parametrize("answer", ["1", "1 2", "1 2 3 4", "1 2 x", "123", "1,,2,3", "(1, 2, 3)", "1.0 2 3"])
def test_what_is_no_three_numbers_is_a_format_error(answer):
    assert start().step(f"\\boxed{{{answer}}}")[1:3] == (-0.1, True)


def test_last_cell_at_the_last_turn_wins():
    env = start(max_turns=10)
    steps = [move(env, *cell) for cell in empty(env)]
    assert sum(step[1] for step in steps) == pytest.approx(1.0)
    assert steps[-1][2:4] == (True, False)
    assert steps[-1][4]["success"]


def test_random_moves_fill_some_cells_and_never_break_a_rule():
    env = start(scale=9, clues=50, max_turns=50)
    steps = []
    while not env.over:
        steps.append(env.step(env.sample_random_action()))
    assert {step[4]["move"] for step in steps} == {"legal"}
    assert 0 < sum(step[1] for step in steps) <= 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": 9, "clues": 0}, "1 to 51"),
        ({"scale": 9, "clues": 52}, "1 to 51"),
        ({"scale": 4, "clues": 0}, "1 to 12"),
        ({"scale": 4, "clues": 13}, "1 to 12"),
        ({"scale": 6}, "4 or 9"),
        ({"n": 4}, "4 or 9"),
        ({"max_turns": 0}, "at least 1"),
    ],
)
def test_sizes_without_a_puzzle_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SudokuEnv(**kwargs)


def test_random_legal_moves_do_not_fill_a_hard_grid():
    env = gem.make("game:Sudoku-v0-hard")
    for seed in range(60):
        env.reset(seed=seed)
        while not env.over:
            info = env.step(env.sample_random_action())[4]
        assert not info["success"]


def test_the_size_of_a_box_stands_for_the_scale():
    env = SudokuEnv(n=2, clues=10)
    env.reset(seed=1)
    assert env.scale == 4
    assert env.board == tuple(tuple(row) for row in grid(env.shown_state))
