r"""The data sets of reasoning_gym (https://github.com/open-thought/reasoning-gym), one question an episode.

A question is made when it is asked, from its index alone; nothing is made beforehand and nothing is kept but the
question. The answer is the last ``\boxed{...}``; the data set's own scorer grades it, from 0 to 1.

Some scorers pay for text that answers nothing:

* a consolation, up to :data:`CONSOLATION`, for any text. A score that is no better than what junk earns is worth 0
  here, unless ``raw_scores=True`` asks for the scorer's own numbers.
* the full price: :data:`PAY_FOR_JUNK`. They are refused unless ``pay_for_junk=True`` asks for them.

Some scorers evaluate the answer as Python: :data:`EVALUATING`. They are shown arithmetic only, and an answer with
anything else in it is wrong.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from gem.envs.question import QuestionEnv
from gem.utils.parsing import extract_last_boxed_answer

CONSOLATION = {
    "advanced_geometry": 0.05,
    "boxnet": 0.05,
    "codeio": 0.05,
    "color_cube_rotation": 0.01,
    "countdown": 0.05,
    "emoji_mystery": 0.01,
    "figlet_font": 0.1,
    "fraction_simplification": 0.01,
    "graph_color": 0.01,
    "group_anagrams": 0.01,
    "jugs": 0.01,
    "knight_swap": 0.05,
    "palindrome_generation": 0.05,
    "power_function": 0.01,
    "propositional_logic": 0.25,
    "puzzle24": 0.01,
    "rubiks_cube": 0.01,
    "rush_hour": 0.01,
    "sentence_reordering": 0.05,
    "tsumego": 0.01,
}
"""What the data set's scorer gives to text that answers nothing."""

PAY_FOR_JUNK = {
    "complex_arithmetic": "the answer 'nan' is always right",
    "game_of_life_halting": "any text is right where the answer is True",
}
"""Data sets whose scorer can be had without answering, and how."""

EVALUATING = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
"""Data sets whose scorer evaluates the answer as Python."""

_FUNCTIONS = "sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt|erf|Abs"
_NO_ARITHMETIC = re.compile(
    rf"__|\.\s*[^\W\d]|[\])'\"]\s*\(|(?<!\w)(?!(?:{_FUNCTIONS})\s*\()\w*[^\W\d]\w*\s*\(|lambda|:=|@"
)

_LONGEST = 20_000
"""Characters of an answer, beyond which none is right: what a scorer computes is not bound."""

_BLOCK = 10
_PLANNED = ("acre", "gsm_symbolic", "list_functions")
"""Data sets that plan all their questions when they are made: each ten questions are a data set of their own."""

_GLOBAL = ("codeio", "list_functions", "pool_matrix")
"""Data sets that draw from global random generators."""

_MIXTURE = [
    {"name": name, "weight": 1.0, "config": {}}
    for name in ("chain_sum", "leg_counting", "letter_jumble", "propositional_logic", "simple_equations", "syllogism")
]
"""What ``rg:composite`` is made of unless it is told."""

_QUESTIONS = 2**43
"""More than the seeds of all splits, so that no two tasks have the same index."""

_making = threading.Lock()
"""Questions are made one at a time: some generators keep their search in globals of their module."""


class ReasoningGymEnv(QuestionEnv):
    r"""A data set of reasoning_gym.

    Args:
        name: of the data set.
        size: accepted, as published, and without effect: questions are made on demand, without end.
        seed: question of the first ``reset()`` that is called without a seed.
        raw_scores: pay the scorer's consolation for junk too.
        pay_for_junk: allow a data set of :data:`PAY_FOR_JUNK`.
        **config: the data set's own configuration, such as ``max_words`` for ``letter_counting``.

    Raises:
        ImportError: reasoning_gym is not installed.
        TypeError: the data set has no such configuration.
        ValueError: there is no such data set, it pays for junk, or a configuration's value is out of range.
    """

    blocking = True  # some generators take tens of milliseconds

    def __init__(
        self,
        name: str,
        size: int | None = None,
        seed: int | None = None,
        raw_scores: bool = False,
        pay_for_junk: bool = False,
        **config: Any,
    ) -> None:
        super().__init__()
        if name in PAY_FOR_JUNK and not pay_for_junk:
            raise ValueError(f"rg:{name} pays for junk: {PAY_FOR_JUNK[name]}. pay_for_junk=True makes it all the same")
        if name == "composite":
            config.setdefault("datasets", _MIXTURE)
        self._name = name
        self._config = json.dumps(config, sort_keys=True)  # text, to share a data set among environments
        self._raw_scores = raw_scores
        self._entry: dict[str, Any] = {}
        self._first_seed = seed
        _dataset(name, self._config)  # refuses what it does not know

    @property
    def size(self) -> int:
        """Practically without end."""
        return _QUESTIONS

    def ask(self, idx: int) -> str:
        """Make the question."""
        self._entry = _make_entry(self._name, self._config, idx)
        return f"{self._entry['question'].rstrip()}\n\nPut your final answer into \\boxed{{}}."

    def grade(self, action: str) -> tuple[float, bool]:
        """Ask the data set's scorer."""
        answer = extract_last_boxed_answer(action)
        if answer is None or not answer.strip() or len(answer) > _LONGEST:
            return 0.0, False
        if self._is_code(answer):
            return 0.0, False
        score = self._score(answer)
        floor = 0.0 if self._raw_scores else CONSOLATION.get(self._source, 0.0)
        return (score if score > floor else 0.0), score >= 1.0

    @property
    def _source(self) -> str:
        """The data set that the question is from."""
        return self._entry["metadata"]["source_dataset"] if self._name == "composite" else self._name

    def _is_code(self, answer: str) -> bool:
        return self._source in EVALUATING and bool(_NO_ARITHMETIC.search(answer))

    def _score(self, answer: str) -> float:
        try:
            return float(_dataset(self._name, self._config).score_answer(answer, self._entry))
        except Exception:  # noqa: BLE001 (some scorers raise at what they cannot read: it is no answer)
            return 0.0

    def random_answer(self) -> str:
        """Return the answer to another question."""
        entry = _make_entry(self._name, self._config, self.action_rng.randrange(_QUESTIONS))
        return f"\\boxed{{{_right_answer(entry) or '0'}}}"

    def reference_action(self) -> str:
        """Return the question's own answer, or the example of one where several are right.

        Raises:
            NotImplementedError: there is none, its braces do not balance, or it repeats the question (an integral
                that reasoning_gym could not solve).
        """
        answer = _right_answer(self._entry)
        action = f"\\boxed{{{answer}}}"
        if answer is None or extract_last_boxed_answer(action) != answer or self._is_code(answer):
            return super().reference_action()
        return action

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore, and make the question again."""
        super().set_state(state)
        self._entry = _make_entry(self._name, self._config, self.idx) if self.idx >= 0 else {}


def _right_answer(entry: dict[str, Any]) -> str | None:
    if entry["answer"] is not None:
        return entry["answer"]
    examples = (entry["metadata"].get(key) for key in ("example_correct_answer", "example_answer"))
    return next((example for example in examples if example), None)


@functools.lru_cache(maxsize=256)
def _dataset(name: str, config: str, seed: int = 0, size: int = 500) -> Any:
    """Return the data set, one for all environments of the process."""
    try:
        import reasoning_gym
        from reasoning_gym.composite import DatasetSpec
    except ImportError as error:
        raise ImportError(f"rg:{name} needs reasoning_gym ({error}): pip install 'gem-adapters[rg]'") from error
    kwargs = json.loads(config)
    if name == "composite":
        kwargs["datasets"] = [DatasetSpec(**spec) for spec in kwargs["datasets"]]
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **kwargs)
    except AssertionError as error:
        raise ValueError(f"rg:{name}: {error}") from error


def _make_entry(name: str, config: str, idx: int) -> dict[str, Any]:
    """Make question ``idx``, which depends on nothing else."""
    seed = random.Random(idx).getrandbits(32)  # all that numpy takes
    with _making, _global_random_state(seed) if name in _GLOBAL else nullcontext():
        if name in _PLANNED:
            return _dataset.__wrapped__(name, config, idx // _BLOCK, _BLOCK)[idx % _BLOCK]
        if name == "pool_matrix":
            return _dataset(name, config)[seed]
        if name == "word_ladder":
            return _ladder(_dataset(name, config), idx)
        return _dataset(name, config)[idx]


def _ladder(dataset: Any, idx: int) -> dict[str, Any]:
    """Make a question of word_ladder: it refuses indices beyond its size, and some words have no ladder."""
    for seed in itertools.count(idx, _QUESTIONS):
        dataset = copy.copy(dataset)
        dataset.seed, dataset.size = seed, 1
        with suppress(IndexError):
            return dataset[0]
    raise AssertionError("count() has no end")


@contextmanager
def _global_random_state(seed: int) -> Iterator[None]:
    """Seed the global generators, and put them back into the state that they were in."""
    import numpy as np

    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
