import pytest

import gem
from gem.envs.game_env import words
from gem.envs.game_env.hangman import HangmanEnv
from gem.testing.solvers import solve
from gem.testing.solvers.hangman import wins

ALL = [f"game:Hangman-v0{variant}" for variant in ("-easy", "-hard", "-random")]


def start(secret="letter", **kwargs):
    """An episode with a secret of our choice."""
    env = HangmanEnv(word_length=len(secret), **kwargs)
    env.reset(seed=1)
    env.secret_word = secret.upper()
    return env


def guess(env, text):
    return env.step(f"\\boxed{{{text}}}")


def guess_all(env, texts):
    return [guess(env, text) for text in texts]


def board(text):
    return next(line for line in text.splitlines() if line.startswith("Word: "))


@pytest.mark.parametrize("env_id", ALL)
def test_solver_wins_every_game_with_return_one(env_id):
    env = gem.make(env_id)
    for seed in range(60):
        result = solve(env, seed)
        assert result.success
        assert result.return_ == pytest.approx(1)
        assert result.return_ <= 1 + 1e-9


@pytest.mark.parametrize(("length", "turns", "step"), [(3, 10, 1), (5, 15, 10), (7, 20, 20)])
def test_words_can_be_found_within_the_turns(length, turns, step):
    secrets = words.common(length)
    assert all(wins(secret, secrets, turns) for secret in secrets[::step])


def test_random_variant_draws_the_published_sizes():
    env = gem.make("game:Hangman-v0-random")
    sizes = set()
    for seed in range(60):
        env.reset(seed=seed)
        sizes.add((env.word_length, env.max_turns))
        assert len(env.secret_word) == env.word_length
    assert sizes == {(3, 10), (5, 15), (7, 20)}


def test_hardcore_draws_from_the_larger_list_and_says_so():
    secrets = set()
    env = HangmanEnv(hardcore=True)
    for seed in range(50):
        text = env.reset(seed=seed)[0]
        assert "rare" in text
        secrets.add(env.secret_word.lower())
    assert secrets <= set(words.accepted(5))
    assert len(secrets - set(words.common(5))) > 10


def test_solver_plays_hardcore_too():
    from gem.testing.solvers.hangman import solve as solver

    env = HangmanEnv(word_length=8, hardcore=True, max_turns=26)
    assert solve(env, 1, solver).success


def test_examples_of_the_instructions_are_a_letter_and_a_word():
    text = HangmanEnv(word_length=7).reset(seed=1)[0]
    letter, word = (part.split("}")[0] for part in text.split("\\boxed{")[1:])
    assert f"\\boxed{{{letter}}} guesses the letter {letter}, " in text
    assert f"\\boxed{{{word}}} the word {word}" in text
    assert (len(letter), len(word)) == (1, 7)


def test_letter_is_shown_wherever_it_is_and_pays_for_each_place():
    env = start("letter")
    text, reward, *_ = guess(env, "t")
    assert board(text) == "Word: _ _ T T _ _"
    assert reward == pytest.approx(0.5 * 2 / 6)
    text, reward, *_ = guess(env, "E")
    assert board(text) == "Word: _ E T T E _"
    assert reward == pytest.approx(0.5 * 2 / 6)


def test_letters_alone_win_with_return_one():
    steps = guess_all(start("letter"), "tlxer")
    assert [step[2] for step in steps] == [False] * 4 + [True]
    assert steps[-1][4] == {"success": True, "move": "legal"}
    assert sum(step[1] for step in steps) == pytest.approx(1)
    assert board(steps[-1][0]) == "Word: L E T T E R"


@pytest.mark.parametrize("before", ["", "t", "te", "tel", "xyz", "tlx"])
def test_word_wins_with_return_one_whatever_was_shown(before):
    steps = guess_all(start("letter"), [*before, "letter"])
    assert steps[-1][2:] == (True, False, {"success": True, "move": "legal"})
    assert sum(step[1] for step in steps) == pytest.approx(1)


def test_last_letter_at_the_last_turn_wins():
    steps = guess_all(start("letter", max_turns=4), "tler")
    assert steps[-1][2:4] == (True, False)


def test_wrong_letter_and_wrong_word_are_legal_and_pay_nothing():
    env = start("letter")
    for text in ("x", "better"):
        assert guess(env, text)[1:] == (0, False, False, {"success": False, "move": "legal"})


@pytest.mark.parametrize("text", ["t", "x", "better"])
def test_guess_made_before_is_illegal(text):
    env = start("letter")
    guess(env, text)
    assert guess(env, text.upper())[1:] == (0, False, False, {"success": False, "move": "illegal"})


@pytest.mark.parametrize("text", ["le", "lette", "letters", "a" * 10_000])
def test_word_of_another_length_is_illegal(text):
    env = start("letter")
    assert guess(env, text)[1:] == (0, False, False, {"success": False, "move": "illegal"})


@pytest.mark.parametrize("text", ["1", "?", "_", "l_tter", "é", "letter.", "{t}"])
def test_what_is_not_letters_is_a_format_error(text):
    assert guess(start("letter"), text)[1:3] == (-0.1, True)


def test_every_observation_shows_the_word_and_what_was_wrong():
    env = start("letter")
    assert board(env.reset(seed=1)[0]) == "Word: _ _ _ _ _ _"
    env.secret_word = "LETTER"
    guess_all(env, ["x", "better", "e"])
    text = guess(env, "x")[0]
    assert text.splitlines()[-2:] == ["Word: _ E _ _ E _", "Wrong guesses: x, better"]


def test_secret_is_not_in_an_observation_before_the_win():
    env = HangmanEnv(word_length=7)
    for seed in range(20):
        texts = [env.reset(seed=seed)[0]]
        while not env.over:
            texts.append(env.step(env.sample_random_action())[0])
        example = texts[0].split("the word ")[-1].split(".")[0]
        assert env.secret_word.lower() == example or not any(
            env.secret_word.lower() in text.lower() for text in texts[:-1]
        )


@pytest.mark.parametrize("length", [0, 2, 10, -1])
def test_length_without_words_is_refused(length):
    with pytest.raises(ValueError, match="3 to 9"):
        HangmanEnv(word_length=length)
