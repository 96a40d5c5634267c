import json
import os
import sys
import threading
from pathlib import Path

import pytest

import gem.envs

pytest.importorskip("bm25s", reason="searching a corpus needs bm25s: install gem-adapters[search]")

from gem.tools.corpus import SHIPPED, open_corpus

ROWS = [
    {"title": "Cats", "text": "A cat purrs.\nIt hunts mice."},
    {"contents": "Dogs\nA dog barks."},
    {"id": 7, "title": "C++", "text": "C is older."},
]


@pytest.fixture
def write(tmp_path):
    def write(rows, name="corpus.jsonl"):
        path = tmp_path / name
        path.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return path

    return write


def test_passages_with_words_of_the_query_are_found_the_best_first(write):
    corpus = open_corpus(write([*ROWS, {"title": "Mice", "text": "mice mice mice"}]))
    assert len(corpus) == 4
    found = corpus.search("Which animal hunts MICE?", 5)
    assert [passage.contents.split("\n")[0] for passage in found] == ["Cats", "Mice"]
    assert found[0].contents == "Cats\nA cat purrs.\nIt hunts mice."
    assert found[0].id == 0
    assert found[0].score > found[1].score > 0


def test_no_more_than_topk_passages_are_found(write):
    corpus = open_corpus(write([{"title": str(i), "text": "word " * (i + 1)} for i in range(50)]))
    few, all_of_them = corpus.search("word", 3), corpus.search("word", 99)
    assert len(all_of_them) == 50
    assert few == all_of_them[:3]
    assert corpus.search("word", 0) == []


@pytest.mark.parametrize("query", ["", "?!", "the of a", "zebra", "\x00", "\ud800", "zebra " * 10**6 + "cat"])
def test_query_without_words_of_the_corpus_finds_nothing(write, query):
    assert open_corpus(write(ROWS)).search(query, 3) == []


def test_words_of_one_character_count(write):
    assert open_corpus(write(ROWS)).search("c", 3)[0].contents == "C++\nC is older."


def test_index_is_built_once_and_shared(write, gem_home, monkeypatch):
    path = write(ROWS)
    corpora = []
    threads = [threading.Thread(target=lambda: corpora.append(open_corpus(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(corpus is corpora[0] for corpus in corpora)
    (index,) = (gem_home / "search").iterdir()
    monkeypatch.chdir(path.parent)
    assert open_corpus("corpus.jsonl") is corpora[0]
    assert {file.name for file in index.iterdir()} >= {"offsets.npy", "vocab.index.json"}


def test_changed_corpus_is_indexed_anew(write):
    assert open_corpus(write(ROWS)).search("zebra", 1) == []
    path = write([*ROWS, {"title": "Zebra", "text": "striped"}])
    os.utime(path, (1, 1))
    assert open_corpus(path).search("zebra", 1)[0].contents == "Zebra\nstriped"


@pytest.mark.parametrize("line", ["{", "[]", '"text"', '{"title": "x"}', '{"contents": 3}'])
def test_line_that_is_no_passage_is_named(write, line):
    with pytest.raises(ValueError, match=r"corpus.jsonl, line 3: a passage is"):
        open_corpus(write([ROWS[0], line]))


@pytest.mark.parametrize("rows", [[], [""], [{"contents": "?"}]])
def test_corpus_without_passages_is_refused(write, rows, gem_home):
    with pytest.raises(ValueError, match="holds no passages"):
        open_corpus(write(rows))


def test_missing_corpus_is_an_error():
    with pytest.raises(FileNotFoundError):
        open_corpus("no-such-file.jsonl")


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"install gem-adapters\[search\]"):
        open_corpus()


def test_shipped_corpus_answers_the_shipped_questions():
    corpus = open_corpus(SHIPPED)
    questions = Path(gem.envs.__file__).parent / "data" / "qa.jsonl"
    for row in map(json.loads, questions.read_text().splitlines()):
        best = corpus.search(row["question"], 1)[0].contents.lower()
        assert any(answer.lower() in best for answer in row["answer"]), row
