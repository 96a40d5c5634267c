import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gem.envs.game_env import words
from gem.envs.game_env.crosswords import CrosswordsEnv
from gem.envs.game_env.hangman import HangmanEnv
from gem.envs.game_env.word_search import WordSearchEnv
from gem.envs.game_env.wordle import WordleEnv

DATA = Path(words.__file__).with_name("data")
CLASSES = (WordleEnv, HangmanEnv, CrosswordsEnv, WordSearchEnv)


@pytest.mark.parametrize("length", words.COMMON_LENGTHS)
def test_common_words_are_sorted_lower_case_words_of_their_length(length):
    found = words.common(length)
    assert len(found) > 200
    assert list(found) == sorted(set(found))
    assert all(word.isascii() and word.isalpha() and word.islower() and len(word) == length for word in found)


@pytest.mark.parametrize("length", words.ACCEPTED_LENGTHS)
def test_accepted_words_contain_the_common_ones_and_many_more(length):
    found = words.accepted(length)
    assert list(found) == sorted(set(found))
    assert set(found) > set(words.common(length))
    assert len(found) > 2 * len(words.common(length))
    assert all(word.isascii() and word.isalpha() and word.islower() and len(word) == length for word in found)


def test_common_words_are_base_forms_and_no_names():
    everyday = {"house", "water", "think", "green", "seven", "queen", "apple"}
    assert everyday <= set(words.common(5))
    assert not {"walks", "trees", "paris", "james", "henry"} & set(words.common(5))


@pytest.mark.parametrize("word", ["walks", "trees", "colour", "color", "qi", "zzzzz", "walk s", "", "HOUSE", "a" * 50])
def test_is_word_takes_inflections_and_both_spellings_and_nothing_else(word):
    assert words.is_word(word) == (word in {"walks", "trees", "colour", "color"})


def test_no_list_has_rude_words():
    rude = {"fuck", "shit", "cunt", "nigger", "whore", "slut", "bitch", "faggot", "rape", "bitches", "fucks", "fucked"}
    for length in words.ACCEPTED_LENGTHS:
        assert not rude & {*words.common(length), *words.accepted(length)}
    assert not rude & {clue.word for hardcore in (False, True) for clue in words.clues(hardcore)}


def test_no_two_words_have_the_same_clue():
    clues = words.clues(False) + words.clues(True)
    assert len({clue.text for clue in clues}) == len({clue.word for clue in clues}) == len(clues) > 2000


@pytest.mark.parametrize("hardcore", [False, True])
def test_clues_are_short_and_do_not_hold_the_word(hardcore):
    for word, text in words.clues(hardcore):
        assert 3 <= len(word) <= 9
        assert word in words.common(len(word)) or len(word) == 3
        assert 12 <= len(text) <= 90
        assert text.isascii()
        assert text.isprintable()
        assert word not in text.lower()
        assert not any(other.startswith(word[: max(4, len(word) - 3)]) for other in text.lower().split())


def test_data_comes_with_its_licences_and_is_small():
    assert "Kevin Atkinson" in (DATA / "LICENSE-SCOWL.txt").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in (DATA / "LICENSE-WordNet.txt").read_text()
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 1_000_000


def test_words_are_read_once_for_all_threads(monkeypatch):
    opened, read_text = [], Path.read_text

    def slowly(path, **kwargs):
        opened.append(path.name)
        time.sleep(0.05)
        return read_text(path, **kwargs)

    for function in (words.common, words._read):
        function.cache_clear()
    monkeypatch.setattr(Path, "read_text", slowly)
    barrier = threading.Barrier(4)

    def ask(_):
        barrier.wait()
        return words.common(8)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(ask, range(4))
    assert opened == ["8.txt"]
    assert all(other is first for other in others)


def test_first_words_come_within_50_milliseconds():
    code = (
        "import time; from gem.envs.game_env.wordle import WordleEnv; since = time.perf_counter();"
        "env = WordleEnv(); env.reset(seed=1); env.step('\\\\boxed{crane}'); print(time.perf_counter() - since)"
    )
    runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3))
    assert min(float(run.stdout) for run in runs) < 0.05


@pytest.mark.parametrize("cls", CLASSES)
def test_a_thousand_environments_share_the_words(cls):
    tracemalloc.start()
    try:
        envs = [cls() for _ in range(1000)]
        made, _ = tracemalloc.get_traced_memory()
        for seed, env in enumerate(envs):
            env.reset(seed=seed)
        dealt, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made < 1_000_000
    assert dealt < (8_000_000 if cls is WordleEnv else 16_000_000)


@pytest.mark.parametrize("cls", CLASSES)
def test_constructor_deals_no_game_and_reads_no_words(cls, monkeypatch):
    def fail(*args):
        raise AssertionError("words were asked for")

    for name in ("common", "accepted", "clues"):
        monkeypatch.setattr(words, name, fail)
    env = cls()
    assert env._rng is None
    with pytest.raises(AssertionError, match="asked for"):
        env.reset(seed=1)
