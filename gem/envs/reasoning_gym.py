r"""The data sets of reasoning_gym (https://github.com/open-thought/reasoning-gym), one question per episode.

A question is made when it is asked, from its index alone; nothing is made beforehand. The latest questions are kept,
since a group of episodes asks the same one, and some take seconds to make. The library itself runs in worker processes
(:mod:`gem.envs.reasoning_gym_worker`), and is never imported here. The answer is the last ``\boxed{...}``; the data
set's own scorer grades it, from 0 to 1.

Many scorers pay for text that answers nothing: :mod:`gem.envs.reasoning_gym_rules` writes down what is not graded, what
partial credit counts, and which data sets are refused. ``raw_scores=True`` asks for the scorer's own numbers, and
``allow_hackable=True`` for the data sets that are refused.

Scorers that evaluate the answer as Python get to evaluate arithmetic and literals only
(:mod:`gem.utils.only_arithmetic`). An answer that keeps a scorer busy for :data:`SCORE_SECONDS` is wrong.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from gem.envs.question import WITHOUT_EFFECT, QuestionEnv
from gem.envs.reasoning_gym_rules import HACKABLE, PARTIAL_CREDIT
from gem.envs.reasoning_gym_worker import QUESTIONS, Entry, find_fault, load, make_entry, score
from gem.seeds import check_seed
from gem.utils.only_arithmetic import FUNCTIONS
from gem.utils.parsing import extract_last_boxed_answer
from gem.workers import CallFailed, WorkerPool

_INTEGRALS = ("intermediate_integration", "simple_integration")

_LONGEST = 20_000
"""Characters of an answer, beyond which none is right: what a scorer computes is not bound."""

_MIXTURE: list[dict[str, Any]] = [
    {"name": name, "weight": 1.0, "config": {}}
    for name in ("chain_sum", "leg_counting", "letter_jumble", "knights_knaves", "simple_equations", "syllogism")
]
"""What ``rg:composite`` is made of unless it is told."""

MAKE_SECONDS = 60.0
"""What making a question may take."""

SCORE_SECONDS = 3.0
"""What grading an answer may take."""

QUICK_SECONDS = 0.5
"""Grading that takes longer is done where it keeps no other answers waiting."""

_workers = WorkerPool(prepare=load, variables={"PYTHONHASHSEED": "0"}, fork=True)


class Questions(Sequence[Entry]):
    """The questions of an environment, each made when it is asked for; without end if the environment's are.

    Args:
        env: whose questions.
    """

    def __init__(self, env: ReasoningGymEnv) -> None:
        self._env = env

    def __len__(self) -> int:
        """Return how many there are."""
        return self._env.size

    def __getitem__(self, index: Any) -> Any:
        """Return a question, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} questions")
        return dict(self._env._make(index % len(self)))


class ReasoningGymEnv(QuestionEnv):
    r"""A data set of reasoning_gym.

    Args:
        name: of the data set.
        size: how many questions: those from number ``seed`` on. ``reset(seed=n)`` asks the ``n % size``-th of them, and
            resets without a seed ask each once before they ask one again. None for no end, from number 0 on.
        seed: question of the first ``reset()`` that is called without a seed.
        raw_scores: pay whatever the scorer gives, also to junk.
        allow_hackable: allow a data set of :data:`~gem.envs.reasoning_gym_rules.HACKABLE`.
        **config: the data set's own configuration, such as ``max_words`` for ``letter_counting``. Those of
            :data:`gem.envs.question.WITHOUT_EFFECT` have no effect.

    Raises:
        ImportError: reasoning_gym is not installed.
        TypeError: the data set has no such configuration.
        ValueError: there is no such data set, its scorer is hackable, or a configuration's value is out of range.
    """

    blocking = True  # it waits for a worker

    def __init__(
        self,
        name: str,
        size: int | None = None,
        seed: int | None = None,
        raw_scores: bool = False,
        allow_hackable: bool = False,
        **config: Any,
    ) -> None:
        super().__init__()
        if size is not None and not 1 <= size <= QUESTIONS:
            raise ValueError(f"size must be at least 1, got {size}")
        config = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
        if name == "composite":
            config.setdefault("datasets", _MIXTURE)
        for used in (name, *(part["name"] for part in config.get("datasets", ()))):
            if used in HACKABLE and not allow_hackable:
                why = HACKABLE[used]
                raise ValueError(
                    f"the scorer of rg:{used} is hackable: {why}. allow_hackable=True makes rg:{name} all the same"
                )
        self._name = name
        self._size = size or QUESTIONS
        self._begin = (check_seed(seed) or 0) if size else 0
        self._config = json.dumps(config, sort_keys=True)  # text, to share a data set among environments
        self._raw_scores = raw_scores
        self._entry: Entry = {}
        self._first_seed = seed
        _refuse_faults(name, self._config)

    @property
    def size(self) -> int:
        """How many questions there are; practically without end unless it was limited."""
        return self._size

    @property
    def name(self) -> str:
        """Of the data set."""
        return self._name

    @property
    def data(self) -> Entry:
        """The question: ``question``, ``answer``, and what the scorer needs."""
        return dict(self._entry)

    def ask(self, idx: int) -> str:
        """Make the question."""
        self._entry = self._make(idx)
        return f"{self._entry['question'].rstrip()}\n\nPut your final answer into \\boxed{{}}."

    def grade(self, action: str) -> tuple[float, bool]:
        """Ask the data set's scorer."""
        answer = extract_last_boxed_answer(action)
        if answer is None or not answer.strip() or len(answer) > _LONGEST:
            return 0.0, False
        reward = self._score(answer)
        correct = reward >= 1.0
        counts = correct or self._raw_scores or reward > PARTIAL_CREDIT.get(self._entry["source"], 1.0)
        return (reward if counts else 0.0), correct

    @property
    def ds(self) -> Questions:
        """The questions, by index."""
        return Questions(self)

    @property
    def reward_fn(self) -> Callable[..., float]:
        """A function of ``answer`` and ``entry`` (of :attr:`ds`; by default the present one): the scorer's number."""
        return lambda answer, entry=None: self._score(answer or "", entry)

    def _score(self, answer: str, entry: Entry | None = None) -> float:
        """Return the scorer's number; text at which it raises, or computes for ever, is no answer."""
        try:
            arguments = (self._name, self._config, answer, (entry or self._entry)["pickled"], self._raw_scores)
            # A worker that has not had this data set yet loads it first, which is not the answer's fault.
            loading = (find_fault, self._name, self._config)
            return _workers.call(score, *arguments, timeout=SCORE_SECONDS, before=loading, quick=QUICK_SECONDS)
        except CallFailed:
            return 0.0

    def _make(self, idx: int) -> Entry:
        return _question(self._name, self._config, self._begin + idx)

    def random_answer(self) -> str:
        """Return the answer to another question."""
        entry = self._make(self.action_rng.randrange(self._size))
        return f"\\boxed{{{entry['answer'] or '0'}}}"

    def reference_action(self) -> str:
        """Return the question's own answer, or the example of one where several are right.

        Raises:
            NotImplementedError: there is none, its braces do not balance, or it is no arithmetic (an integral that
                reasoning_gym could not solve).
        """
        answer = self._entry["answer"]
        action = f"\\boxed{{{answer}}}"
        if answer is None or extract_last_boxed_answer(action) != answer or self._is_no_arithmetic(answer):
            return super().reference_action()
        return action

    def _is_no_arithmetic(self, answer: str) -> bool:
        return self._entry["source"] in _INTEGRALS and not FUNCTIONS.issuperset(re.findall(r"(\w+)\s*\(", answer))

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore, and make the question again.

        Raises:
            ValueError: it is of another data set.
        """
        super().set_state(state)
        self._entry = {}
        if self.idx >= 0:
            self._check_question(self.ask(self.idx))


@functools.lru_cache(maxsize=128)
def _question(name: str, config: str, idx: int) -> Entry:
    """Make a question; nobody changes what is returned."""
    return _workers.call(make_entry, name, config, idx, timeout=MAKE_SECONDS, before=(find_fault, name, config))


@functools.cache
def _refuse_faults(name: str, config: str) -> None:
    """Raise what is wrong with a data set's name or configuration, if anything is."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ImportError(f"rg:{name} needs reasoning_gym: install gem-adapters[rg]")
    described = (find_fault, name, config)
    fault = _workers.call(*described, timeout=MAKE_SECONDS, before=described)  # before: it stays loaded
    if fault is not None:
        kind = {"TypeError": TypeError, "ValueError": ValueError}[fault[0]]
        raise kind(f"rg:{name}: {fault[1]}")
