"""What makes and grades the questions of reasoning_gym, in worker processes that do nothing else.

There the library may do what an environment may not: draw from global random generators, keep a search in the globals
of a module, depend on the order of a set (all workers hash alike), print, run code from its data, and compute without
an end.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import random
import tempfile
from contextlib import suppress
from typing import Any

Entry = dict[str, Any]

QUESTIONS = 2**43
"""More than the seeds of all splits of tasks, so that no two tasks have the same question's index."""

_BLOCK = 10
_PLANNED = ("acre", "gsm_symbolic", "list_functions")
"""Data sets that plan all their questions when they are made: each ten questions are a data set of their own."""


def load() -> None:
    """Import what the other functions need, which takes a second or two, and go where nothing can be written."""
    import reasoning_gym  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # and stay there when it is gone: what code from the data writes is refused


def find_fault(name: str, config: str) -> tuple[str, str] | None:
    """Return what is wrong with a data set's name or configuration: ``("TypeError" or "ValueError", message)``."""
    try:
        _dataset(name, config)
    except TypeError as error:
        return "TypeError", str(error)
    except (AssertionError, ValueError) as error:
        return "ValueError", str(error)
    return None


def make_entry(name: str, config: str, idx: int) -> Entry:
    """Return question ``idx``, its answer and metadata; it depends on nothing else."""
    import numpy

    seed = random.Random(idx).getrandbits(32)  # all that numpy takes
    random.seed(seed)
    numpy.random.seed(seed)
    if name in _PLANNED:
        return _dataset.__wrapped__(name, config, idx // _BLOCK, _BLOCK)[idx % _BLOCK]
    if name == "pool_matrix":
        return _dataset(name, config)[seed]
    if name == "word_ladder":
        return _make_ladder(_dataset(name, config), idx)
    return _dataset(name, config)[idx]


def score(name: str, config: str, answer: str, entry: Entry) -> float:
    """Return the scorer's number for an answer."""
    return float(_dataset(name, config).score_answer(answer, entry))


@functools.cache
def _dataset(name: str, config: str, seed: int = 0, size: int = 500) -> Any:
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec

    kwargs = json.loads(config)
    if name == "composite":
        kwargs["datasets"] = [DatasetSpec(**spec) for spec in kwargs["datasets"]]
    return reasoning_gym.create_dataset(name, seed=seed, size=size, **kwargs)


def _make_ladder(dataset: Any, idx: int) -> Entry:
    """Make a question of word_ladder: it refuses indices beyond its size, and some words have no ladder."""
    for seed in itertools.count(idx, QUESTIONS):
        dataset = copy.copy(dataset)
        dataset.seed, dataset.size = seed, 1
        with suppress(IndexError):
            return dataset[0]
    raise AssertionError("count() has no end")
