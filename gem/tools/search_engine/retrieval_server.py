"""BM25 retrieval under the names of gem-llm, over :mod:`gem.tools.corpus`.

Dense retrieval, and the mosec server around it, are not supported: ``gem serve-search`` serves a corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gem.refusals import refuse
from gem.tools.corpus import open_corpus

Document = dict[str, str]
"""``title``, ``text``, and ``contents``: both, in lines."""

__getattr__ = refuse(
    __name__,
    ("DenseRetriever", "Encoder", "RetrievalWorker", "load_model", "pooling"),
    "retrieval_method='bm25' is; `gem serve-search --corpus FILE` serves it, and SearchTool(search_url=...) asks any "
    "server that answers in the form of gem.tools.search_protocol, also one with dense retrieval.",
)


@dataclass
class Config:
    """What a retriever is made of.

    Attributes:
        retrieval_method: ``"bm25"``; there is no other here.
        retrieval_topk: documents a query.
        index_path: without effect: the index is kept in the cache folder.
        corpus_path: of a file with one document per line, see :func:`gem.tools.corpus.open_corpus`.
        dataset_path: without effect, as are those that follow.
    """

    retrieval_method: str = "bm25"
    retrieval_topk: int = 10
    index_path: str = "./index/bm25"
    corpus_path: str = "./data/corpus.jsonl"
    dataset_path: str = "./data"
    data_split: str = "train"
    faiss_gpu: bool = True
    retrieval_model_path: str = "./model"
    retrieval_pooling_method: str = "mean"
    retrieval_query_max_length: int = 256
    retrieval_use_fp16: bool = False
    retrieval_batch_size: int = 128


@dataclass
class QueryRequest:
    """A query."""

    query: str
    topk: int | None = None
    return_scores: bool = False


@dataclass
class RetrievalResponse:
    """What was found: ``{"document", "score"}``, the best first."""

    result: list[dict[str, Any]]


class BaseRetriever:
    """A retriever. Subclasses write ``_search``, and ``_batch_search`` if they have something better than a loop.

    Args:
        config: what it is made of.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.retrieval_method = config.retrieval_method
        self.topk = config.retrieval_topk
        self.index_path = config.index_path
        self.corpus_path = config.corpus_path

    def _search(self, query: str, num: int | None = None, return_score: bool = False) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no _search")

    def _batch_search(self, query_list: Sequence[str], num: int | None = None, return_score: bool = False) -> Any:
        found = [self._search(query, num, True) for query in query_list]
        documents, scores = [each[0] for each in found], [each[1] for each in found]
        return (documents, scores) if return_score else documents

    def search(self, query: str, num: int | None = None, return_score: bool = False) -> Any:
        """Return the best documents for a query, and with ``return_score`` also their scores."""
        return self._search(query, num, return_score)

    def batch_search(self, query_list: str | Sequence[str], num: int | None = None, return_score: bool = False) -> Any:
        """Do the same for several queries, and return a list for each."""
        return self._batch_search([query_list] if isinstance(query_list, str) else query_list, num, return_score)


class BM25Retriever(BaseRetriever):
    """Searches a corpus by BM25.

    Raises:
        ImportError: bm25s is not installed.
        FileNotFoundError: there is no such corpus.
    """

    contain_doc = True
    max_process_num = 1

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.searcher = self.corpus = open_corpus(config.corpus_path)

    def _search(self, query: str, num: int | None = None, return_score: bool = False) -> Any:
        passages = self.searcher.search(query, self.topk if num is None else num)
        documents = [_document(passage.contents) for passage in passages]
        return (documents, [passage.score for passage in passages]) if return_score else documents


def get_retriever(config: Config) -> BaseRetriever:
    """Return the retriever of a configuration.

    Raises:
        NotImplementedError: it asks for dense retrieval.
    """
    return BM25Retriever(config) if config.retrieval_method == "bm25" else __getattr__("DenseRetriever")(config)


def read_jsonl(file_path: str) -> list[dict[str, Any]]:
    """Return the rows of a file with a JSON object a line."""
    with open(file_path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def load_corpus(corpus_path: str) -> list[dict[str, Any]]:
    """Return the rows of a corpus."""
    return read_jsonl(corpus_path)


def load_docs(corpus: Sequence[dict[str, Any]], doc_idxs: Iterable[int]) -> list[dict[str, Any]]:
    """Return some rows of a corpus."""
    return [corpus[int(index)] for index in doc_idxs]


def _document(contents: str) -> Document:
    title, _, text = contents.partition("\n")
    return {"title": title.strip('"'), "text": text, "contents": contents}
