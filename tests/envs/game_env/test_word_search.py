import re
import statistics
import time

import pytest

import gem
from gem.envs.game_env import words
from gem.envs.game_env.word_search import WordSearchEnv
from gem.testing.solvers import solve

ALL = [f"game:WordSearch-v0{variant}" for variant in ("-easy", "-hard", "-random")]


def start(seed=1, **kwargs):
    env = WordSearchEnv(**kwargs)
    env.reset(seed=seed)
    return env


def move(env, numbers):
    return env.step(f"\\boxed{{{' '.join(map(str, numbers))}}}")


def grid(text):
    """The letters of an observation, row by row."""
    return ["".join(re.findall("[A-Z]", line)) for line in re.findall(r"(?m)^ ?\d+ [ \[][A-Z].*$", text)]


def listed(text):
    line = next((line for line in text.splitlines() if line.startswith("Words to find: ")), None)
    return [] if line is None else line.removeprefix("Words to find: ").split(", ")


def occurrences(word, rows):
    """How often a word can be read across or down."""
    lines = [*rows, *("".join(col) for col in zip(*rows, strict=True))]
    return sum(line[i:].startswith(word) for line in lines for i in range(len(line)))


@pytest.mark.parametrize("env_id", ALL)
def test_solver_wins_every_game_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(100):
        result = solve(env, seed)
        assert (result.success, result.turns) == (True, 5)
        assert result.return_ == pytest.approx(1)


@pytest.mark.parametrize("hardcore", [False, True])
def test_each_listed_word_is_in_the_grid_exactly_once(hardcore):
    env = WordSearchEnv(hardcore=hardcore)
    for seed in range(300):
        text = env.reset(seed=seed)[0]
        rows = grid(text)
        assert {len(row) for row in rows} == {len(rows)}
        assert len(set(listed(text))) == 5
        assert [occurrences(word, rows) for word in listed(text)] == [1] * 5


def test_twenty_short_words_find_their_places():
    env = WordSearchEnv(num_words=20)
    for seed in range(20):
        text = env.reset(seed=seed)[0]
        assert [occurrences(word, grid(text)) for word in listed(text)] == [1] * 20


def test_hardcore_has_longer_words_and_larger_grids():
    sizes = {}
    for hardcore in (False, True):
        texts = [WordSearchEnv(hardcore=hardcore).reset(seed=seed)[0] for seed in range(50)]
        lengths = {len(word) for text in texts for word in listed(text)}
        sizes[hardcore] = (min(lengths), max(lengths), max(len(grid(text)) for text in texts))
        assert all(word.lower() in words.common(len(word)) for text in texts for word in listed(text))
    assert sizes == {False: (3, 6, 9), True: (7, 12, 18)}


def test_random_variant_draws_hardcore_or_not_with_the_published_sizes():
    env = gem.make("game:WordSearch-v0-random")
    longest = set()
    for seed in range(30):
        text = env.reset(seed=seed)[0]
        assert (len(listed(text)), env.max_turns) == (5, 20)
        longest.add(max(map(len, listed(text))) > 6)
    assert longest == {False, True}


def test_words_go_across_and_down():
    env = WordSearchEnv()
    across = {place[0] == place[2] for seed in range(10) for place in (env.reset(seed=seed), env.places)[1]}
    assert across == {True, False}


def test_found_word_pays_its_share_is_marked_and_leaves_the_list():
    env = start()
    word, place = env.words[2], env.places[2]
    text, reward, terminated, truncated, info = move(env, place)
    assert (reward, terminated, truncated) == (0.2, False, False)
    assert info == {"success": False, "move": "legal"}
    assert word in text.splitlines()[0]
    assert word not in listed(text)
    assert len(listed(text)) == 4
    assert "".join(re.findall(r"\[([A-Z])\]", text)) == word
    assert grid(text) == env.grid


def test_marks_of_words_that_cross_stay_together():
    for seed in range(100):
        env = start(seed)
        cells = {}
        for place, word in zip(env.places, env.words, strict=True):
            row, col, last_row, _ = place
            for i in range(len(word)):
                cells[(row + i, col) if last_row > row else (row, col + i)] = word[i]
            text = move(env, place)[0]
            assert text.count("[") == text.count("]") == len(cells)
            assert grid(text) == env.grid


def test_ends_may_be_given_in_either_order():
    env = start()
    place = env.places[0]
    assert move(env, place[2:] + place[:2])[1] == 0.2


def test_same_letters_again_are_illegal_in_either_order():
    env = start()
    place = env.places[0]
    move(env, place)
    for again in (place, place[2:] + place[:2]):
        assert move(env, again)[1:] == (0, False, False, {"success": False, "move": "illegal"})


def test_part_of_a_word_and_more_than_a_word_pay_nothing():
    env = start(seed=3)
    row, col, last_row, last_col = next(place for place in env.places if place[0] == place[2] and place[1] > 0)
    for line in ([row, col, row, last_col - 1], [row, col - 1, row, last_col], [row, col, last_row, col]):
        assert move(env, line)[1:] == (0, False, False, {"success": False, "move": "legal"})


def test_wrong_line_a_second_time_is_illegal():
    env = start()
    line = next([0, c, 0, c] for c in range(3))
    assert move(env, line)[4]["move"] == "legal"
    assert move(env, line)[4]["move"] == "illegal"


@pytest.mark.parametrize("numbers", [(0, 0, 1, 1), (2, 1, 0, 4), (0, 0, 0, 99), (99, 0, 99, 2), (0, 0, 10**17, 0)])
def test_oblique_line_and_line_outside_are_illegal(numbers):
    assert move(start(), numbers)[1:] == (0, False, False, {"success": False, "move": "illegal"})


@pytest.mark.parametrize("answer", ["0 0 0", "0 0 0 0 0", "0,0,0,3", "-1 0 0 3", "a b c d", "[0 0 0 3]", "0.5 0 0 3"])
def test_what_is_not_four_numbers_is_a_format_error(answer):
    assert start().step(f"\\boxed{{{answer}}}")[1:3] == (-0.1, True)


def test_every_observation_shows_grid_and_words():
    env = start()
    for numbers in ((0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 1, 1), (99, 0, 99, 1), (1, 1, 1, 1)):
        text = move(env, numbers)[0]
        assert grid(text) == env.grid
        assert listed(text) == env.words


def test_sampled_actions_are_legal_even_when_all_lines_but_the_words_were_tried():
    env = WordSearchEnv(num_words=2, max_turns=10_000)
    env.reset(seed=1)
    n = len(env.grid)
    lines = {
        line
        for at in range(n)
        for a in range(n)
        for b in range(a, n)
        for line in ((at, a, at, b), (a, at, b, at))
        if list(line) not in env.places
    }
    env.attempts = [list(line) for line in sorted(lines)]
    assert env.step(env.sample_random_action())[4]["move"] == "legal"
    assert env.step(env.sample_random_action())[4] == {"success": True, "move": "legal"}


def test_reset_of_the_hard_variant_takes_less_than_a_millisecond():
    env = gem.make("game:WordSearch-v0-hard")
    env.reset(seed=0)
    seconds = []
    for seed in range(100):
        since = time.perf_counter()
        env.reset(seed=seed)
        seconds.append(time.perf_counter() - since)
    assert statistics.median(seconds) < 0.001


@pytest.mark.parametrize("num_words", [0, -1, 21])
def test_number_of_words_without_sense_is_refused(num_words):
    with pytest.raises(ValueError, match="num_words"):
        WordSearchEnv(num_words=num_words)
