"""What makes and grades the questions of reasoning_gym, in worker processes that do nothing else.

There the library may do what an environment may not: draw from global random generators, keep a search in the globals
of a module, depend on the order of a set (all workers hash alike), print, run code from its data, and compute without
an end. What it may not do there either is evaluate what a model wrote, but for arithmetic and literals
(:mod:`gem.utils.only_arithmetic`).
"""

from __future__ import annotations

import base64
import copy
import functools
import importlib
import itertools
import json
import os
import pickle
import random
import tempfile
from contextlib import suppress
from typing import Any

from gem.envs.reasoning_gym_rules import is_admissible
from gem.utils.only_arithmetic import guard_module, guard_sympy

Entry = dict[str, Any]
"""Of a question: ``question``, ``answer`` (the right one, an example of one, or None), ``source`` (the name of its data
set), and all that the data set made, ``pickled`` for :func:`score`."""

_EVALUATING = (
    "algorithmic.binary_matrix",
    "algorithmic.spiral_matrix",
    "algorithmic.string_insertion",
    "games.n_queens",
)
"""Modules whose scorers evaluate an answer that is a list, written as in Python."""

QUESTIONS = 2**43
"""More than the seeds of all splits of tasks, so that no two tasks have the same question's index."""

_BLOCK = 10
_PLANNED = ("acre", "gsm_symbolic", "list_functions")
"""Data sets that plan all their questions when they are made: each ten questions are a data set of their own."""


def load() -> None:
    """Import what the other functions need, which takes a second or two, and go where nothing can be written."""
    import reasoning_gym  # noqa: F401

    guard_sympy()
    for name in _EVALUATING:
        guard_module(importlib.import_module(f"reasoning_gym.{name}"))
    _stop_early(importlib.import_module("reasoning_gym.cognition.number_sequences").PatternRule)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # and stay there when it is gone: what code from the data writes is refused


def _stop_early(rule: Any) -> None:
    """Let number_sequence drop a rule at the first term of more than 64 bits.

    It drops every sequence with a term above 1,000, but only when all terms are there: squares of squares have millions
    of digits by then, and one question in hundreds takes minutes. What is asked stays the same.
    """
    apply = rule.apply

    def bounded(self: Any, sequence: list[int], position: int) -> int:
        term = apply(self, sequence, position)
        if abs(term) >> 64:
            raise OverflowError("the term is too large")  # which the data set expects
        return term

    rule.apply = bounded


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
    """Return question ``idx``; it depends on nothing else."""
    made = _make(name, config, idx)
    metadata = made["metadata"]
    answer = made["answer"]
    if answer is None:
        examples = (metadata.get(key) for key in ("example_correct_answer", "example_answer"))
        answer = next((example for example in examples if example), None)
    return {
        "question": made["question"],
        "answer": answer,
        "source": metadata["source_dataset"] if name == "composite" else name,
        "pickled": base64.b64encode(pickle.dumps(made)).decode(),
    }


def _make(name: str, config: str, idx: int) -> dict[str, Any]:
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


def score(name: str, config: str, answer: str, pickled: str, raw: bool = False) -> float:
    """Return the scorer's number for an answer to a question; unless ``raw``, 0 for what it must not grade."""
    entry = pickle.loads(base64.b64decode(pickled))
    source = entry["metadata"]["source_dataset"] if name == "composite" else name
    if not raw and not is_admissible(source, answer, entry):
        return 0.0
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
