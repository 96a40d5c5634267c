"""What a model wrote, where sympy or reasoning_gym evaluate it."""

import importlib
import sys

import pytest
from hostile_answers import CODE

from gem.utils.only_arithmetic import NoArithmetic, checked, guard_module, guard_sympy
from gem.workers import Worker

sympy = pytest.importorskip("sympy")

VALUES = {
    "2*x + 3": "2*x + 3",
    "x**2/2 - sin(x)*exp(-x) + C": "C + x**2/2 - exp(-x)*sin(x)",
    "(1 + 2)*3 - 4/2": "7",
    "-1.5e3": "-1500.00000000000",
    "5!": "120",
    "sqrt(2)*pi + E": "E + sqrt(2)*pi",
    "7 % 4 + 7 // 4": "4",
    "0.[3]": "1/3",
    "2**2010 - 2**2009 * 2": "0",
    "1000! / 999!": "1000",
    "x**999 / x**998": "x",
}


def parsed(text):
    """In a process in which sympy is guarded."""
    return str(sympy.parse_expr(text, local_dict={"C": sympy.Symbol("C")}))


def parsed_as_it_is(text):
    """The same, as math-verify has it."""
    return str(sympy.parse_expr(text, evaluate=False))


@pytest.fixture(scope="module")
def guarded():
    worker = Worker(prepare=guard_sympy)
    yield worker
    worker.stop()


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_arithmetic_has_the_value_that_sympy_gives_it(guarded, text, value):
    assert guarded.call(parsed, text, timeout=30) == value == parsed(text)


ENDLESS = [
    "9**9**9**9",
    "9**99999",
    "(2**9999)**9999",
    "99999!",
    "factorial(factorial(8))",
    "x**10**12",
    "2**(99999*x**0)",
    "1*" + "9" * 50_000,
]


@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: text[:20])
@pytest.mark.parametrize("parse", [parsed, parsed_as_it_is])
def test_what_would_compute_for_ever_is_not_begun(guarded, parse, text):
    with pytest.raises(Exception, match=r"NoArithmetic.* too |Exceeds the limit"):
        guarded.call(parse, text, timeout=10)


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("parse", [parsed, parsed_as_it_is])
def test_code_is_not_run(guarded, parse, code, tmp_path):
    path = tmp_path / "trace"
    with pytest.raises(Exception, match=r"NoArithmetic|Error"):
        guarded.call(parse, code.format(path=str(path)), timeout=30)
    assert not path.exists()


@pytest.mark.parametrize(
    "code",
    [
        *("a", "sin", "x.y", "x[0]", "[1]", "(1, 2)", "{1}", "1 < 2", "not 1", "1 and 2", "1 << 2", "1 @ 2"),
        *("'text'", "b'1'", "f'{1}'", "None", "True", "...", "1 if 1 else 2", "lambda: 1", "await x", "(x := 1)"),
        *("Symbol('a b')", "Symbol()", "Symbol('x', real=True)", "Integer('a')", "Float(*[1])", "Function('f')(1)"),
        *("sin(x=1)", "sin('1')"),
    ],
)
def test_what_is_not_on_the_list_is_refused(code):
    with pytest.raises((NoArithmetic, SyntaxError)):
        checked(code, {"x": None} if code == "(x := 1)" else {})


def test_a_module_reads_literals_only(tmp_path):
    pytest.importorskip("reasoning_gym")
    module = importlib.import_module("reasoning_gym.games.n_queens")
    before = dict(vars(module))
    try:
        guard_module(module)
        assert module.eval("[['Q', '_'], ['_', 'Q']]") == [["Q", "_"], ["_", "Q"]]
        for code in CODE:
            with pytest.raises((ValueError, SyntaxError)):
                module.eval(code.format(path=str(tmp_path / "trace")))
    finally:
        vars(module).clear()
        vars(module).update(before)
    assert not list(tmp_path.iterdir())
    assert "reasoning_gym.games.n_queens" in sys.modules
