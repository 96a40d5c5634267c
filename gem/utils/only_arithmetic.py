"""Text that a model wrote, where a library evaluates it: arithmetic is let through, and nothing else.

sympy turns text into Python and evaluates that; some scorers of reasoning_gym evaluate the text itself. Both are done
in worker processes, in which :func:`guard_sympy` and :func:`guard_module` replace what evaluates: the Python that is
about to be evaluated is parsed, every node of its syntax tree must be on the list below, and what is evaluated is
written anew from that tree. No name is looked up that is not listed here, no attribute, and no item of anything.
Numbers that would take more than :data:`MOST_BITS` are refused before they are computed: ``9**9**9**9`` cannot be
interrupted.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

FUNCTIONS = frozenset(
    (
        *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "acot", "asec", "acsc"),
        *("sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh"),
        *("exp", "log", "ln", "sqrt", "erf", "Abs", "factorial"),
    )
)
"""Functions that may be called, by sympy's names."""

MOST_BITS = 100_000
"""Of a number that an answer writes or computes, or that multiplies its variables."""

HIGHEST_POWER = 10_000
"""Above it, neither is anything raised to a power nor a factorial taken."""

CONSTANTS = frozenset(("pi", "E", "I", "oo"))

_NUMBERS = frozenset(("Integer", "Float", "Rational"))
_NUMBER_TYPES = (int, float, complex)
_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Call,
    ast.Constant,
    ast.Name,
    ast.Load,
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.UAdd, ast.USub),
)


class NoArithmetic(ValueError):
    """A text would run as Python, and is not arithmetic."""


def checked(code: str, local: Mapping[str, Any]) -> str:
    """Return Python that computes what ``code`` does, if that is arithmetic.

    >>> checked("Integer (2 )*sin (Symbol ('x' ))", {})
    "Integer(2) * sin(Symbol('x'))"
    >>> checked("open ('file')", {})
    Traceback (most recent call last):
        ...
    gem.utils.only_arithmetic.NoArithmetic: 'open' is no function of arithmetic

    Args:
        code: Python that sympy made of a text.
        local: names that the caller has defined.

    Raises:
        NoArithmetic: it is anything else.
        SyntaxError: it is no Python.
    """
    tree = ast.parse(code.strip(), mode="eval")
    named: set[int] = set()  # names that are called, and texts that name a symbol or a number
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            raise NoArithmetic(f"{type(node).__name__} is not arithmetic")
        if isinstance(node, ast.Call):
            named.update(map(id, _check_call(node)))
        elif isinstance(node, ast.Name) and id(node) not in named:
            if node.id not in CONSTANTS and node.id not in local:
                raise NoArithmetic(f"{node.id!r} is no constant of arithmetic")
        elif isinstance(node, ast.Constant) and id(node) not in named and type(node.value) not in _NUMBER_TYPES:
            raise NoArithmetic(f"{node.value!r:.60} is no number")
    _bits(tree.body)
    return ast.unparse(tree)


def _bits(node: ast.AST) -> float:
    """Return about how many bits the number takes that a tree computes, and never far too few.

    Raises:
        NoArithmetic: more than :data:`MOST_BITS`, or a power is above :data:`HIGHEST_POWER`.
    """
    if isinstance(node, ast.Constant):
        bits = _bits_of_constant(node.value)
    elif isinstance(node, ast.UnaryOp):
        bits = _bits(node.operand)
    elif isinstance(node, ast.BinOp):
        left, right = _bits(node.left), _bits(node.right)
        if isinstance(node.op, ast.Pow):
            bits = max(1.0, left) * _power(right)
        else:
            bits = max(left, right) + 1 if isinstance(node.op, (ast.Add, ast.Sub)) else left + right
    elif isinstance(node, ast.Call):
        bits = sum(map(_bits, node.args))
        if isinstance(node.func, ast.Name) and node.func.id == "factorial":
            bits *= _power(bits)
    else:
        bits = 2.0  # a name: a variable, or pi
    if bits > MOST_BITS:
        raise NoArithmetic("the numbers are too large")
    return bits


def _power(bits: float) -> float:
    if bits > math.log2(HIGHEST_POWER):
        raise NoArithmetic("the powers are too high")
    return 2.0**bits


def _bits_of_constant(value: Any) -> float:
    try:
        size = abs(complex(value))
    except OverflowError:  # of an integer that no float holds
        return float(value.bit_length())
    except ValueError:  # the name of a symbol
        return 2.0
    return math.log2(size + 1) if math.isfinite(size) else 3.4 * len(str(value))


def _check_call(call: ast.Call) -> list[ast.AST]:
    """Return the function's name, and texts among the arguments that may stand there."""
    function = call.func
    if not isinstance(function, ast.Name) or call.keywords:
        raise NoArithmetic("what is called must be a name, and takes no named arguments")
    if function.id == "Symbol":
        texts = [text for text in call.args if _is_text(text) and text.value.isidentifier()]  # type: ignore[attr-defined]
        if len(call.args) != 1 or not texts:
            raise NoArithmetic("a symbol has one name")
    elif function.id in _NUMBERS:
        texts = [text for text in call.args if _is_text(text) and _is_number(text.value)]  # type: ignore[attr-defined]
    elif function.id in FUNCTIONS:
        texts = []
    else:
        raise NoArithmetic(f"{function.id!r} is no function of arithmetic")
    return [function, *texts]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def guard_sympy() -> None:
    """Let sympy, in this process, evaluate nothing but arithmetic of any text."""
    from sympy.parsing import sympy_parser

    original = sympy_parser.stringify_expr
    if getattr(original, "guarded", False):
        return

    @functools.wraps(original)
    def stringify_expr(s: str, local_dict: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        return checked(original(s, local_dict, *args, **kwargs), local_dict)

    stringify_expr.guarded = True  # type: ignore[attr-defined]
    sympy_parser.stringify_expr = stringify_expr


def guard_module(module: ModuleType) -> None:
    """Let a module that evaluates text with ``eval`` read literals only: numbers, texts, and lists of them."""
    evaluate: Callable[[str], Any] = ast.literal_eval
    module.eval = evaluate  # type: ignore[attr-defined]
