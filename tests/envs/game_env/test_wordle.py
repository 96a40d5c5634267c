import pytest

import gem
from gem.envs.game_env import words
from gem.envs.game_env.wordle import WordleEnv, mark
from gem.testing.solvers import solve
from gem.testing.solvers.wordle import solve as solver

ALL = [f"game:Wordle-v0{variant}" for variant in ("-easy", "-hard", "-random")]


def start(secret="these", **kwargs):
    """An episode with a secret of our choice."""
    env = WordleEnv(word_length=len(secret), **kwargs)
    env.reset(seed=1)
    env.secret_word = secret.upper()
    return env


def guess(env, word):
    return env.step(f"\\boxed{{{word}}}")


@pytest.mark.parametrize("env_id", ALL)
def test_solver_wins_every_game_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(60):
        result = solve(env, seed)
        assert result.success
        assert result.return_ == pytest.approx(1)
        assert result.return_ <= 1 + 1e-9


@pytest.mark.parametrize(("length", "turns", "every"), [(3, 15, 1), (4, 20, 20), (5, 25, 30)])
def test_solver_finds_words_well_within_the_turns(length, turns, every):
    for secret in words.common(length)[::every]:
        env = start(secret, max_turns=turns)
        player = solver(env.reset(seed=1)[0])
        env.secret_word = secret.upper()
        action = next(player)
        while not (step := env.step(action))[2]:
            action = player.send(step[0])
        assert step[4]["success"]
        assert env.turn_count <= turns - 5


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:Wordle-v0-random")
    sizes = set()
    for seed in range(60):
        env.reset(seed=seed)
        sizes.add((env.word_length, env.max_turns))
        assert len(env.secret_word) == env.word_length
    assert sizes == {(3, 15), (4, 20), (5, 25)}


def test_secret_is_a_common_word():
    env = WordleEnv()
    for seed in range(100):
        env.reset(seed=seed)
        assert env.secret_word.lower() in words.common(5)


@pytest.mark.parametrize(
    ("word", "secret", "marks"),
    [
        ("these", "these", "GGGGG"),
        ("crwth", "adieu", "XXXXX"),
        ("geese", "these", "XXGGG"),
        ("eerie", "these", "YXXXG"),
        ("these", "eerie", "XXYXG"),
        ("sassy", "glass", "YYXGX"),
        ("level", "elder", "YYXGX"),
        ("allow", "llama", "YGYXX"),
        ("aab", "baa", "YGY"),
        ("aba", "bab", "YYX"),
    ],
)
def test_letter_is_marked_no_more_often_than_it_is_in_the_word(word, secret, marks):
    assert mark(word, secret) == marks


def test_marks_agree_with_counts_of_letters():
    some = words.common(5)[::50]
    for secret in some:
        for word in some:
            marks = mark(word, secret)
            for i, letter in enumerate(word):
                assert (marks[i] == "G") == (letter == secret[i])
            for letter in set(word):
                marked = sum(m != "X" for m, other in zip(marks, word, strict=True) if other == letter)
                assert marked == min(word.count(letter), secret.count(letter))


def test_observation_shows_the_guess_with_a_mark_under_each_letter():
    text = guess(start(), "geese")[0]
    assert text.splitlines()[:2] == ["G E E S E", "X X G G G"]


@pytest.mark.parametrize("word", ["zzzzz", "abcde", "these" * 2, "the", "t", "a" * 10_000])
def test_guess_that_is_no_word_of_the_length_is_illegal_and_spends_a_turn(word):
    env = start(max_turns=2)
    assert guess(env, word)[1:] == (0, False, False, {"success": False, "move": "illegal"})
    assert guess(env, word)[3]


def test_any_letters_are_a_guess_where_words_need_not_be_real():
    assert guess(start(only_real_words=False), "zzzzz")[4]["move"] == "legal"
    assert "English word" in start().reset(seed=1)[0].split("a guess")[1]
    assert "any letters" in start(only_real_words=False).reset(seed=1)[0]


def test_rare_words_and_inflections_are_guesses():
    for word in ("walks", "aegis", "wrung"):
        assert word not in words.common(5)
        assert guess(start(), word)[4]["move"] == "legal"


def test_repeated_guess_is_illegal():
    env = start()
    guess(env, "geese")
    assert guess(env, " GEESE ")[1:] == (0, False, False, {"success": False, "move": "illegal"})


@pytest.mark.parametrize("word", ["THESE", "These", "t h e s e", " these\n"])
def test_case_and_blanks_do_not_matter(word):
    assert guess(start(), word)[1:] == (1, True, False, {"success": True, "move": "legal"})


@pytest.mark.parametrize("word", ["these!", "th3se", "th-se", "thésé", "ſhese", "12345", "{these}"])
def test_what_is_not_letters_is_a_format_error(word):
    assert guess(start(), word)[1:3] == (-0.1, True)


def test_green_position_pays_once():
    env = start()
    assert guess(env, "geese")[1] == pytest.approx(0.3)  # ..ESE
    assert guess(env, "where")[1] == pytest.approx(0.1)  # .H...
    assert guess(env, "whose")[1] == 0
    assert guess(env, "these")[1] == pytest.approx(0.6)


def test_return_of_a_player_that_never_names_the_word_is_a_half_at_most():
    env = start(only_real_words=False, max_turns=10)
    rewards = [guess(env, word)[1] for word in ("thesa", "zzzze", "xhese", "txese", "thexe", "thxse")]
    assert sum(rewards) == pytest.approx(0.5)


def test_sampled_actions_are_words_that_were_not_guessed():
    env = WordleEnv(word_length=3, max_turns=400)
    env.reset(seed=1)
    seen = set()
    while not env.over:
        action = env.sample_random_action()
        assert action not in seen
        seen.add(action)
        info = env.step(action)[4]
        assert info["move"] == "legal"
    assert info["success"]


@pytest.mark.parametrize("length", [0, 2, 10, -1])
def test_length_without_words_is_refused(length):
    with pytest.raises(ValueError, match="3 to 9"):
        WordleEnv(word_length=length)
