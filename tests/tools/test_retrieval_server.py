import json

import pytest

from gem.tools.search_engine.retrieval_server import (
    Config,
    DenseRetriever,
    get_retriever,
    load_corpus,
    load_docs,
)


@pytest.fixture
def corpus(tmp_path):
    rows = [
        {"contents": f'"{title}"\n{text}'} for title, text in (("Paris", "A city in France."), ("Rome", "In Italy."))
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_bm25(corpus):
    retriever = get_retriever(Config(corpus_path=corpus, retrieval_topk=1))
    documents, scores = retriever.search("France", return_score=True)
    assert documents == [{"title": "Paris", "text": "A city in France.", "contents": '"Paris"\nA city in France.'}]
    assert scores[0] > 0
    found = retriever.batch_search(["Italy", "nowhere"], num=2)
    assert [[each["title"] for each in one] for one in found] == [["Rome"], []]


def test_rows(corpus):
    rows = load_corpus(corpus)
    assert load_docs(rows, [1, 0]) == rows[::-1]


def test_dense_retrieval_is_refused():
    for make in (DenseRetriever, get_retriever):
        with pytest.raises(NotImplementedError, match="gem serve-search"):
            make(Config(retrieval_method="e5"))
