import re
import time

import pytest

import gem
from gem.envs.game_env import words
from gem.envs.game_env.crosswords import CrosswordsEnv
from gem.testing.solvers import solve

ALL = [f"game:Crosswords-v0{variant}" for variant in ("-easy", "-hard", "-random")]
CLUE = re.compile(r"^(\d+) (across|down), from row (\d+), column (\d+), (\d+) letters: (.+)$", re.MULTILINE)


def start(seed=1, **kwargs):
    env = CrosswordsEnv(**{"num_words": 3, "max_turns": 30, **kwargs})
    env.reset(seed=seed)
    return env


def move(env, row, col, letter):
    return env.step(f"\\boxed{{{row} {col} {letter}}}")


def board(text):
    """The rows of an observation."""
    return ["".join(line.split()[1:]) for line in re.findall(r"(?m)^ ?\d+  [A-Z_.].*$", text)]


def cells(env):
    return [(r, c, x) for r, row in enumerate(env.solution) for c, x in enumerate(row) if x != "."]


def runs(rows):
    """All words of two and more letters that can be read in a solution, with their start and direction."""
    found = set()
    for down, lines in ((False, rows), (True, ["".join(col) for col in zip(*rows, strict=True)])):
        for at, line in enumerate(lines):
            for match in re.finditer("[A-Z]{2,}", line):
                start = (match.start(), at) if down else (at, match.start())
                found.add((match[0].lower(), start, down))
    return found


def answers(text):
    """The words of the clues of an observation, with start and direction."""
    known = {clue.text: clue.word for hardcore in (False, True) for clue in words.clues(hardcore)}
    return {(known[c], (int(row), int(col)), name == "down") for _, name, row, col, _, c in CLUE.findall(text)}


@pytest.mark.parametrize("env_id", ALL)
def test_solver_wins_every_game_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(100):
        result = solve(env, seed)
        assert result.success
        assert result.return_ == pytest.approx(1)
        assert result.return_ <= 1 + 1e-9


@pytest.mark.parametrize("env_id", ALL)
def test_words_cross_are_connected_and_form_no_other_words(env_id):
    env = gem.make(env_id)
    for seed in range(300):
        text = env.reset(seed=seed)[0]
        assert answers(text) == runs(env.solution)
        assert len(answers(text)) == 3
        connected, todo = set(), [cells(env)[0][:2]]
        letters = {(r, c) for r, c, _ in cells(env)}
        while todo:
            r, c = todo.pop()
            connected.add((r, c))
            around = {(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)}
            todo += (around & letters) - connected
        assert connected == letters


@pytest.mark.parametrize("num_words", [1, 5, 20])
def test_crosswords_of_other_sizes_are_valid_too(num_words):
    env = CrosswordsEnv(num_words=num_words, max_turns=6 * num_words, hardcore=num_words == 1)
    for seed in range(20):
        text = env.reset(seed=seed)[0]
        assert answers(text) == runs(env.solution)
        assert len(answers(text)) == num_words
        assert env.cells <= env.max_turns * 3 // 4


@pytest.mark.parametrize("env_id", ALL)
def test_turns_are_enough_with_a_quarter_to_spare(env_id):
    env = gem.make(env_id)
    for seed in range(200):
        env.reset(seed=seed)
        assert len(cells(env)) == env.cells <= env.max_turns * 3 // 4


def test_random_variant_draws_hardcore_or_not_with_the_published_sizes():
    env = gem.make("game:Crosswords-v0-random")
    easy = {clue.word for clue in words.clues(False)}
    groups = set()
    for seed in range(30):
        text = env.reset(seed=seed)[0]
        assert (len(answers(text)), env.max_turns) == (3, 20)
        groups.add(len({word for word, _, _ in answers(text)} & easy))
    assert groups == {0, 3}


def test_clues_are_numbered_as_in_a_newspaper():
    env = CrosswordsEnv(num_words=8)
    for seed in range(50):
        clues = CLUE.findall(env.reset(seed=seed)[0])
        starts = sorted({(int(row), int(col)) for _, _, row, col, _, _ in clues})
        for number, _, row, col, _, _ in clues:
            assert int(number) == starts.index((int(row), int(col))) + 1


def test_clues_give_the_length():
    for number, _, row, col, length, text in CLUE.findall(start().reset(seed=1)[0]):
        assert (number, int(row) >= 0, int(col) >= 0) == (number, True, True)
        assert text in {clue.text for clue in words.clues(False) if len(clue.word) == int(length)}


def test_board_hides_the_letters():
    env = start()
    text = env.reset(seed=1)[0]
    assert board(text) == [re.sub("[A-Z]", "_", row) for row in env.solution]


def test_right_letter_is_written_down_and_pays_its_share():
    env = start()
    row, col, letter = cells(env)[0]
    text, reward, terminated, truncated, info = move(env, row, col, letter.lower())
    assert reward == 1 / len(cells(env))
    assert (terminated, truncated, info) == (False, False, {"success": False, "move": "legal"})
    assert board(text)[row][col] == letter
    assert sum(line.count("_") for line in board(text)) == len(cells(env)) - 1


def test_wrong_letter_is_legal_pays_nothing_and_is_not_written_down():
    env = start()
    row, col, letter = cells(env)[0]
    text, *rest = move(env, row, col, "A" if letter != "A" else "B")
    assert rest == [0, False, False, {"success": False, "move": "legal"}]
    assert "wrong" in text
    assert board(text)[row][col] == "_"
    assert move(env, row, col, letter)[1] > 0


def test_filled_cell_is_illegal_even_with_its_letter():
    env = start()
    row, col, letter = cells(env)[0]
    move(env, row, col, letter)
    for again in (letter, "Q"):
        text, *rest = move(env, row, col, again)
        assert rest == [0, False, False, {"success": False, "move": "illegal"}]
        assert board(text)[row][col] == letter


def test_cell_without_letter_and_cell_outside_are_illegal():
    env = start()
    dot = next((r, c) for r, row in enumerate(env.solution) for c, x in enumerate(row) if x == ".")
    for row, col in (dot, (99, 0), (0, 99), (10**17, 10**17)):
        assert move(env, row, col, "A")[1:] == (0, False, False, {"success": False, "move": "illegal"})


@pytest.mark.parametrize("answer", ["0 0", "0 0 ab", "0 0 1", "A 0 0", "-1 0 a", "0,0,a", "[0 0 A]", "0 0 é"])
def test_what_is_not_a_cell_and_a_letter_is_a_format_error(answer):
    assert start().step(f"\\boxed{{{answer}}}")[1:3] == (-0.1, True)


def test_observations_show_the_board_and_the_clues_of_words_that_are_not_complete():
    env = start()
    word, (row, col), down = min(answers(env.reset(seed=1)[0]))
    for i, letter in enumerate(word):
        text = move(env, row + i * down, col + i * (not down), letter)[0]
        left = {found for found, _, _ in answers(text)}
        assert (word in left) == (i < len(word) - 1)
        assert len(board(text)) == len(env.solution)
    assert len(left) == 2


def test_win_at_the_last_turn_terminates():
    env = start()
    env.max_turns = env.cells
    for row, col, letter in cells(env):
        step = move(env, row, col, letter)
    assert step[2:] == (True, False, {"success": True, "move": "legal"})


def test_trying_the_alphabet_on_every_cell_earns_little_and_never_wins():
    env = gem.make("game:Crosswords-v0-easy")
    returns = []
    for seed in range(50):
        env.reset(seed=seed)
        tries = ((r, c, x, y) for r, c, x in cells(env) for y in "ETAOINSRHLDCUMFPGWYBVKXJQZ")
        total, done = 0.0, set()
        for row, col, _, letter in tries:
            if not env.over and (row, col) not in done:
                _, reward, _, _, info = move(env, row, col, letter)
                total += reward
                done |= {(row, col)} if reward else set()
        assert not info["success"]
        returns.append(total)
    assert sum(returns) / len(returns) < 0.3


def test_crossword_of_too_few_turns_is_dealt_and_cannot_be_completed():
    env = start(max_turns=2)
    steps = [move(env, row, col, letter) for row, col, letter in cells(env)[:2]]
    assert [step[2:4] for step in steps] == [(False, False), (False, True)]


@pytest.mark.parametrize("kwargs", [{"num_words": 0}, {"num_words": 21}])
def test_sizes_without_sense_are_refused(kwargs):
    with pytest.raises(ValueError, match="words"):
        CrosswordsEnv(**kwargs)


def test_resets_take_milliseconds():
    env = gem.make("game:Crosswords-v0-hard")
    env.reset(seed=0)
    worst = []
    for seed in range(200):
        seconds = []
        for _ in range(2):  # the quicker of two, as another process may have had the machine
            since = time.perf_counter()
            env.reset(seed=seed)
            seconds.append(time.perf_counter() - since)
        worst.append(min(seconds))
    assert max(worst) < 0.005
