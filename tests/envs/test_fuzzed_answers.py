"""Answers made at random run nothing where they are evaluated; see tests/fuzz_answers.py for the long form."""

import pytest
from fuzz_answers import fuzz, try_out, watch

from gem.workers import Worker

pytest.importorskip("reasoning_gym")
pytest.importorskip("math_verify")


def watch_without_a_guard():
    """As it would be without the guard: what is to be seen is seen."""
    watch()
    from sympy.parsing import sympy_parser

    sympy_parser.stringify_expr = sympy_parser.stringify_expr.__wrapped__


def test_no_answer_runs_anything():
    tried, _, found = fuzz(seed=0, seconds=60, answers=400)
    assert found == []
    assert tried > 20


def test_the_witnesses_see_what_runs():
    worker = Worker(prepare=watch_without_a_guard)
    try:
        seen = worker.call(try_out, "countdown", "(lambda: open)()('CANARY', 'w')", timeout=20)
    finally:
        worker.stop()
    assert "the canary file was made" in seen
    assert any(event.startswith("open ") for event in seen)
