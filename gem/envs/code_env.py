r"""Programming: a problem, and a program in a Markdown code block that is run against tests.

Reward: 1 if every test passes, 0 if one fails, -0.1 without a code block. The expected results never enter the process
that runs the program, so there is nothing in it to find: a program that ends early, prints a lot, or raises, fails.

The program runs in a sandbox, see :mod:`gem.sandbox`.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from gem.envs.datasets import DatasetEnv
from gem.envs.question import attribute, check_keywords
from gem.seeds import EpisodeSeeds
from gem.utils.parsing import extract_code_from_model
from gem.utils.sandbox import FunctionProcess, as_literal, check_sandbox, run_python

NO_CODE = -0.1


@dataclass(frozen=True)
class CodeTest:
    """A test: a program reads ``given`` and writes ``expected``, or a function of ``given`` returns it.

    Attributes:
        given: text, or a list of arguments.
        expected: text, or a value.
        function: name of the function; "" where the whole program is run.
    """

    given: Any
    expected: Any
    function: str = ""


def read_tests(value: Any) -> list[CodeTest]:
    """Return the tests that a column holds, in any of the usual forms, as data or as JSON text.

    * ``{"inputs": [...], "outputs": [...]}``: text, or lists of lines; with ``"fn_name"``, arguments and values;
    * a list of ``{"input": ..., "output": ...}``; with ``"fn_name"``, values as JSON text, one argument per line.

    Raises:
        ValueError: it is in another form.
    """
    if isinstance(value, str):
        value = _read_json(value or "null")
    if not value:
        return []
    if isinstance(value, Mapping):
        function = value.get("fn_name") or ""
        pairs = zip(value["inputs"], value["outputs"], strict=True)
        return [
            CodeTest(given, expected, function) if function else CodeTest(_text(given), _text(expected))
            for given, expected in pairs
        ]
    return [_read_row(each["input"], each["output"], each.get("fn_name") or "") for each in value]


def _read_row(given: Any, expected: Any, function: str) -> CodeTest:
    """Read a test of a list of them; the values of a function's are JSON text, one argument per line."""
    if not function:
        return CodeTest(_text(given), _text(expected))
    if isinstance(given, str):
        given = [_read_json(line) for line in given.splitlines() if line.strip()]
    return CodeTest(given, _read_json(expected) if isinstance(expected, str) else expected, function)


def _read_json(text: str) -> Any:
    return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int:
    return int(digits) if len(digits) < 4000 else int(Decimal(digits))  # Python's own reading ends at 4,300 digits


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value))


class CodeEnv(DatasetEnv):
    r"""Answer a problem with a program in a Markdown code block; the last one counts.

    Problems without tests are passed over: the one after them is asked.

    Args:
        dataset_name: what to load: see :func:`gem.envs.datasets.load_rows`.
        split: which split of it.
        dataset: rows to ask from instead.
        question_key: column of the problem.
        test_key: column of the tests: see :func:`read_tests`.
        seed: question of the first ``reset()`` that is called without a seed.
        max_workers: tests that run at once.
        max_tests: tests that are run: those of the longest input.
        verbose: accepted, as published, and without effect.
        sandbox_type: what the program runs in: see :func:`gem.utils.sandbox.run_python`.
        timeout: seconds per test.
        solution_key: column of a program that passes, where there is one.
        eval: resets without a seed ask the questions in the order of the data set.
        **published: see :data:`gem.envs.question.WITHOUT_EFFECT`.

    Raises:
        ImportError: what loads the data set is not installed.
        ValueError: the data set has no such split or column.
    """

    blocking = True
    answers_in_code = True
    reward_range = (NO_CODE, 1.0)

    def __init__(
        self,
        dataset_name: str | None = "",
        split: str | None = None,
        dataset: Any = None,
        question_key: str = "problem",
        test_key: str = "tests",
        seed: int | None = None,
        max_workers: int = 5,
        max_tests: int = 12,
        verbose: bool = False,
        sandbox_type: str = "auto",
        timeout: float = 10.0,
        solution_key: str = "solution",
        eval: bool = False,
        **published: Any,
    ) -> None:
        check_keywords(self, published)
        super().__init__(dataset_name, split, dataset, [question_key, test_key], seed, eval)
        self.changed_tests: Any = None  # in the place of those of the data set; None for those
        self._tests: Any = None  # a copy of the question's, once it was looked at
        self._question_key, self._test_key, self._solution_key = question_key, test_key, solution_key
        self._max_workers, self._verbose = max_workers, verbose
        self._max_tests = max_tests
        self._timeout = timeout
        self._sandbox_type = sandbox_type
        check_sandbox(sandbox_type)

    dataset_name = property(lambda env: env._name, doc="The data set's name.")
    question_key = attribute("_question_key", "Column of the problem.")
    test_key = attribute("_test_key", "Column of the tests.")
    max_tests = attribute("_max_tests", "Tests that are run.")
    max_workers = attribute("_max_workers", "Tests that run at once.")
    timeout = attribute("_timeout", "Seconds per test.")

    verbose = property(lambda env: env._verbose, doc="As it was given; it has no effect.")

    @property
    def sandbox_type(self) -> str:
        """What programs run in; it cannot be set, so that no saved state can switch the sandbox off."""
        return self._sandbox_type

    @property
    def tests(self) -> Any:
        """The problem's tests, in a form of :func:`read_tests`; they may be set, and changed."""
        if self.changed_tests is not None:
            return self.changed_tests
        if self._tests is None:
            tests = self._asked_row[self._test_key]
            self._tests = _read_json(tests) if isinstance(tests, str) else copy.deepcopy(tests)
        return self._tests

    @tests.setter
    def tests(self, tests: Any) -> None:
        self.changed_tests = _read_json(tests) if isinstance(tests, str) else tests

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` returned.

        Raises:
            ValueError: it is of another data set.
        """
        super().set_state(state)
        if self.idx >= 0:
            changed = self.changed_tests
            self._check_question(self.ask(self.idx))
            self.changed_tests = changed

    def _next_question(self, seeds: EpisodeSeeds) -> int:
        for _ in range(self.size):
            idx = super()._next_question(seeds)
            if read_tests(self._rows[idx][self._test_key]):
                return idx
        raise ValueError("the data set has no tests")

    def ask(self, idx: int) -> str:
        """Return the problem, and how to answer."""
        for candidate in (*range(idx, self.size), *range(idx)):
            tests = read_tests(self._rows[candidate][self._test_key])
            if tests:
                break
        else:
            raise ValueError("the data set has no tests")
        self.idx, self.changed_tests, self._tests = candidate, None, None
        self._asked_row = self._rows[candidate]
        if tests[0].function:
            form = f"the function `{tests[0].function}`"
        else:
            form = "a program that reads standard input and writes standard output"
        problem = str(self._asked_row[self._question_key]).rstrip()
        return f"{problem}\n\nAnswer with {form}, in Python, in a ```python code block."

    def grade(self, action: str) -> tuple[float, bool]:
        """Run the program against the tests."""
        code = extract_code_from_model(action)
        if not code:
            return NO_CODE, False
        correct = self._check_correct(code)
        return float(correct), correct

    def _check_correct(self, model_code: str) -> bool:
        """Return whether a program passes the tests; a name that gem-llm's subclasses use."""
        code, tests = model_code, read_tests(self.tests)
        tests = sorted(tests, key=lambda test: len(as_literal(test.given)), reverse=True)[: self._max_tests]
        if tests[0].function:
            return self._functions_pass(code, tests)
        passes = partial(self._program_passes, code)
        if not passes(tests[0]):  # most programs that fail fail here, and the other tests need not run
            return False
        with ThreadPoolExecutor(self._max_workers) as pool:
            return all(pool.map(passes, tests[1:]))

    def _program_passes(self, code: str, test: CodeTest) -> bool:
        ended_well, output, _ = run_python(code, self._sandbox_type, test.given, self._timeout)
        return ended_well and same_output(output, test.expected)

    def _functions_pass(self, code: str, tests: list[CodeTest]) -> bool:
        timeout = self._timeout
        with FunctionProcess(code, tests[0].function, self._sandbox_type, timeout) as function:
            try:
                return all(same_result(function.call(*test.given), test.expected) for test in tests)
            except (RuntimeError, TimeoutError):  # RecursionError, of a value of many levels, is a RuntimeError
                return False

    def random_answer(self) -> str:
        """Return a program that prints a number."""
        return f"```python\nprint({self.action_rng.randrange(100)})\n```"

    def reference_action(self) -> str:
        """Return the solution, where the data has one."""
        solution = self._asked_row.get(self._solution_key)
        return super().reference_action() if solution is None else f"```python\n{solution}\n```"


RELATIVE, ABSOLUTE = 1e-5, 1e-8
"""By how much numbers with a point or an exponent may differ: those of numpy's ``allclose``, as in APPS."""

_BLANKS = re.compile(r"(\s+)")  # which count, too
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def same_output(output: str, expected: str) -> bool:
    """Return whether a program has written what it should: line by line, without blanks at ends of lines.

    Where a number with a point or an exponent is expected, it may differ by :data:`RELATIVE` and :data:`ABSOLUTE`.

    >>> same_output("0.333333 ok ", "0.33333333 ok"), same_output("12", "12.5")
    (True, False)
    """
    found, wanted = ([line.rstrip() for line in text.strip().splitlines()] for text in (output, expected))
    return len(found) == len(wanted) and all(map(_same_line, found, wanted))


def _same_line(line: str, expected: str) -> bool:
    if line == expected:
        return True
    words, expected_words = _BLANKS.split(line), _BLANKS.split(expected)
    return len(words) == len(expected_words) and all(map(_same_word, words, expected_words))


def _same_word(word: str, expected: str) -> bool:
    if word == expected:
        return True
    if max(len(word), len(expected)) > 50 or not (_NUMBER.fullmatch(word) and _NUMBER.fullmatch(expected)):
        return False
    if any(character in expected for character in ".eE"):
        return _close(float(word), float(expected))
    return any(character in word for character in ".eE") and float(word) == float(expected)


def _close(value: float, expected: float) -> bool:
    return abs(value - expected) <= ABSOLUTE + RELATIVE * abs(expected) < math.inf


def same_result(value: Any, expected: Any) -> bool:
    """Return whether a function has returned what it should; some data sets put a value into a list of one.

    They are compared as in JSON, which has no tuples, with floats as in :func:`same_output`.

    >>> same_result((0.1 + 0.2, 1), [0.3, 1]), same_result(True, 1)
    (True, False)
    """
    value, expected = _listed(value), _listed(expected)
    if _same(value, expected):
        return True
    return isinstance(expected, list) and len(expected) == 1 and _same(value, expected[0])


def _same(value: Any, expected: Any) -> bool:
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(_same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(_same(each, expected[key]) for key, each in value.items())
    if type(value) is bool or type(expected) is bool:
        return type(value) is type(expected) and value == expected
    if value == expected:
        return True
    if type(expected) is not float or type(value) not in (int, float):
        return False
    try:
        return (math.isnan(value) and math.isnan(expected)) or _close(float(value), float(expected))
    except OverflowError:  # of an integer beyond all floats
        return False


def _listed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_listed(each) for each in value]
    return {str(key): _listed(each) for key, each in value.items()} if isinstance(value, dict) else value
