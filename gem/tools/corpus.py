"""A corpus of passages on this machine, searched by BM25.

The index is built once, kept in a cache folder, and memory-mapped, and so are the passages: all tools of a process
share one, and all processes the pages of one. Building it takes the whole corpus into memory.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from gem.files import cache_folder

SHIPPED = Path(__file__).parent / "data" / "corpus.jsonl"
"""A small corpus of general knowledge, on which the questions of the shipped data sets can be answered."""

LONGEST_QUERY = 2_000
"""Characters of a query that are looked at."""

_TOKEN = r"(?u)\b\w+\b"
_opening = threading.Lock()


class Passage(NamedTuple):
    """A passage that was found: its place in the corpus (from 0), its title and text in lines, and its BM25 score."""

    id: int
    contents: str
    score: float


class Corpus:
    """An index and its passages; see :func:`open_corpus`.

    Args:
        path: of the passages.
        folder: of the index.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        import bm25s
        import numpy as np

        self._index = bm25s.BM25.load(folder, mmap=True)
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        with open(path, "rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        """Return how many passages there are."""
        return len(self._offsets)

    def search(self, query: str, topk: int) -> list[Passage]:
        """Return the passages that have words in common with a query, the best first, ``topk`` at most."""
        import numpy as np

        words = [word for word in _tokens([query[:LONGEST_QUERY]])[0] if word in self._index.vocab_dict]
        if not words or topk < 1:
            return []
        scores = self._index.get_scores(words)
        best = np.argpartition(-scores, topk)[:topk] if topk < len(scores) else np.arange(len(scores))
        ranked = sorted((-float(scores[i]), int(i)) for i in best if scores[i] > 0)
        return [Passage(i, self._contents(i), -score) for score, i in ranked]

    def _contents(self, index: int) -> str:
        start = int(self._offsets[index])
        end = self._lines.find(b"\n", start)
        return _contents(json.loads(self._lines[start : end if end >= 0 else len(self._lines)]))


def open_corpus(path: str | os.PathLike[str] = SHIPPED) -> Corpus:
    r"""Return a corpus, the same one every time; its index is built if there is none.

    Args:
        path: a file with a JSON object a line: ``{"contents": "title\ntext"}``, or ``{"title": ..., "text": ...}``.

    Raises:
        ImportError: bm25s is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it holds no passages, or something else.
    """
    try:
        import bm25s
    except ModuleNotFoundError:
        message = "searching a corpus needs bm25s: install gem-adapters[search]"
        raise ImportError(message) from None
    path = Path(path).resolve()
    status = path.stat()
    with _opening:
        return _opened(path, status.st_size, status.st_mtime_ns, bm25s.__version__)


@lru_cache(maxsize=16)
def _opened(path: Path, size: int, changed: int, version: str) -> Corpus:
    key = hashlib.sha256(f"{path}\n{size}\n{changed}\n{version}".encode()).hexdigest()[:32]
    folder = cache_folder() / "search" / key
    if not folder.is_dir():
        _build(path, folder)
    return Corpus(path, folder)


def _build(path: Path, folder: Path) -> None:
    """Build the index beside its place, and move it there, so that no other process sees a part of it."""
    import bm25s
    import numpy as np

    offsets, texts, position = [], [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                offsets.append(position)
                try:
                    texts.append(_contents(json.loads(line)))
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f'{path}, line {number}: a passage is {{"contents": "title\\ntext"}} or '
                        f'{{"title": ..., "text": ...}} ({type(error).__name__}: {error})'
                    ) from None
            position += len(line)
    tokens = _tokens(texts)
    if not any(tokens):
        raise ValueError(f"{path} holds no passages")
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix="building-"))
    try:
        index.save(building, show_progress=False)
        np.save(building / "offsets.npy", np.array(offsets, dtype=np.int64))
        building.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _tokens(texts: list[str]) -> list[list[str]]:
    import bm25s

    return bm25s.tokenize(texts, token_pattern=_TOKEN, stopwords="en", return_ids=False, show_progress=False)


def _contents(row: dict[str, Any]) -> str:
    contents = row["contents"] if "contents" in row else f"{row['title']}\n{row['text']}"
    if not isinstance(contents, str):
        raise TypeError(f"contents must be text, got {contents!r:.40}")
    return contents
