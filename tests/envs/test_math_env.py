"""Maths, by math-verify itself."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import gem
from gem.envs.math_env import MathEnv
from gem.envs.math_visual_env import MathVisualEnv
from gem.testing import check_env
from gem.utils import math_grader as module

pytest.importorskip("math_verify")

RIGHT = [
    ("1,2", r"x=1 \text{ or } x=2"),
    ("2,3", "x = 3 or x = 2"),
    ("-1,1", r"x=-1 \text{ and } x=1"),
    (r"\frac{1}{2},2", r"x=\frac{1}{2}, x=2"),
    ("(3,4)", "x=3, y=4"),
    ("(3,4)", "(x,y)=(3,4)"),
    ("42", r"\text{Total} = 42"),
    ("293", "m+n = 256+37 = 293"),
    ("-2,1", "1,-2"),
    ("10080", r"10,\!080"),
    ("true", "True"),
    ("yes", "YES"),
    (r"\emptyset", r"\varnothing"),
    (r"\emptyset", "∅"),
    ("1500", "1.5e3"),
    ("100000", "1E5"),
    ("4.5e33", r"4.5\times10^{33}"),
    (r"1.6\times10^{-19}", "1.6e-19"),
    ("0.00001", "1e-5"),
    ("1/3", "0.3333333"),
    (r"(-\infty,2)", "(−∞, 2)"),
    ("42", "**42**"),
    (r"12:30\text{ p.m.}", r"12:30\text{ PM}"),
    (r"12:30\text{ PM}", "12:30"),
    ("42", "42"),
    ("42", "42.0"),
    ("42", r"\frac{84}{2}"),
    ("42", "x = 42"),
    ("42", r"42\text{ cm}^2"),
    ("42", "+42"),
    ("1234", "1,234"),
    ("1,234", "1234"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    ("-5", "-5"),
    ("3.5", "7/2"),
    ("6000", r"6 \times 10^3"),
    ("x^2+1", "1+x^2"),
    ("2x", "f(x) = 2x"),
    ("y=2x+1", "y = 2x + 1"),
    (r"\{1,2,3\}", r"\{3, 2, 1\}"),
    ("(1,2)", "(1, 2)"),
    ("[0,1)", "[0, 1)"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\frac{\pi}{4}", r"\pi/4"),
    ("A", r"\text{A}"),
    ("x < 3", "x < 3"),
    ("7/2", "3 1/2"),
    ("42", r"42^\circ"),
    ("10000", r"10\,000"),
    ("1234", "1 234"),
    ("1024", "2^{10}"),
    ("0.0000001", "10^{-7}"),
    ("y = 2x + 1", "2y = 4x + 2"),
    ("x + y = 3", "y = 3 - x"),
    ("42", r"42\%"),
    ("42", "(42)"),
    ("42", r"42_{10}"),
    ("42", r"42\text{ percent}"),
    ("42", r"42\text{ marbles}"),
    ("42", r"42\,\text{m/s}"),
    ("42", r"\mathbf{42}"),
    ("42", "42°"),
    ("-5", "(-5)"),
    ("-5", "–5"),
    ("16", "4²"),
    ("x^2+1", "x²+1"),
    (r"2\sqrt{2}", "2√2"),
    (r"\frac{1}{2}", "½"),
    (r"\frac{1}{2}", r"50\%"),
    (r"50\%", "0.5"),
    (r"50\%", "50"),
    ("101_2", "101_{2}"),
    ("101_2", "101"),
    ("12:30", "12:30"),
    ("a_1+a_2", "a_2+a_1"),
    ("5", "a_1 = 5"),
    ("5", "f'(2) = 5"),
    ("1,2,3", r"1, 2, \text{ and } 3"),
    (r"(-\infty, 3]", r"\left(-\infty,3\right]"),
    ("|x|", "|x|"),
    (r"\alpha+\beta", r"\beta+\alpha"),
]
WRONG = [
    ("1", r"x=1 \text{ or } x=2"),
    ("3", "x=3, y=4"),
    ("(4,3)", "x=3, y=4"),
    ("(3,4)", "(x,y)=(4,3)"),
    ("1,2", "x=1, x=2, x=3"),
    ("42", r"\text{Total} = 43"),
    ("293", "m+n = 256+38 = 293"),
    ("293", "256+37 = 293 = 293"),
    ("3", "a = 2 = 3"),
    ("42", r"\text{not} = 42"),
    (r"1.6\times10^{-19}", r"9.1\times10^{-31}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("0", "1e-30"),
    ("-2,1", "2,-1"),
    (r"12:30\text{ PM}", r"12:30\text{ AM}"),
    ("false", "True"),
    ("no", "YES"),
    ("1/3", "0.333"),
    ("42", ""),
    ("42", " "),
    ("42", "41"),
    ("42", "-42"),
    ("42", "41=42"),
    ("42", "41 = 42 = 42"),
    ("42", "1 2 3 42"),
    ("48", "1 2 3 42"),
    ("42", "42 42"),
    ("42", "42, 43"),
    ("42", "41 or 42"),
    ("42", r"\{41, 42\}"),
    ("42", "(41, 42)"),
    ("42", "[42, 43]"),
    ("42", r"(-\infty, \infty)"),
    ("42", r"\mathbb{R}"),
    ("42", r"\pm 42"),
    ("42", r"\le 42"),
    ("42", "41 < 42"),
    ("42", "the answer is 42"),
    ("42", r"\text{the answer is 42}"),
    ("42", "?!,;:"),
    ("42", "nan"),
    ("391", "17 * 23"),
    ("391", r"17 \times 23"),
    ("42", r"42 \text{ is not the answer}"),
    ("42", r"41 \to 42"),
    ("42", "6*7=42"),
    ("x^2=-1", "41=42"),
    ("x^2=-1", "x^2=-2"),
    ("x^2=-1", "x^2+1"),
    ("y = 2x + 1", "y = 2x - 1"),
    ("8", "2^3 + 0"),
    ("6", "3!"),
    ("2", r"\int_0^2 x \, dx"),
    ("3", r"\log_2 8"),
    ("5", "-5"),
    ("3.5", "35"),
    ("(1,2)", "(2,1)"),
    ("x < 3", "x > 3"),
    ("0", r"\text{}"),
    ("42", "4" * 2_000),
]
# Marks that math-verify passes over, or reads as something else.
MUTATED = [
    ("42", "42_5"),
    ("42", "42_{5}"),
    ("42", "x=42_5"),
    ("42", r"\neg 42"),
    ("42", r"\not 42"),
    ("42", r"\not= 42"),
    ("42", r"\sim 42"),
    ("42", r"\tilde 42"),
    ("42", r"\partial 42"),
    ("42", r"\emptyset 42"),
    ("42", r"\cup 42"),
    ("42", r"\circ 42"),
    ("42", r"4200\%"),
    ("42", r"4\%2"),
    ("42", r"\%42"),
    ("42", r"4\text{\%}2"),
    ("42", "42'"),
    ("42", "42''"),
    ("42", "42:1"),
    ("42", "|42|"),
    ("42", r"\lfloor 42.9\rfloor"),
    ("42", r"\lceil 41.1 \rceil"),
    ("42", r"\tbinom{42}{41}"),
    ("42", r"\gcd(42, 84)"),
    ("42", r"\max(41,42)"),
    ("42", r"\{42,42\}"),
    ("42", r"42\ldots"),
    ("42", r"\ldots 42"),
    ("42", "% 42"),
    ("42", r"42\text{ million}"),
    ("42", r"42\text{ dozen}"),
    ("42", r"42\text{ or more}"),
    ("42", r"42\text{ at most}"),
    ("42", r"42\text{ squared}"),
    ("42", r"42\text{ (base 5)}"),
    ("42", r"42\text{ hundredths}"),
    ("42", r"42\text{ doubled}"),
    ("42", r"42\text{ square root}"),
    ("42", r"42\text{ to the power of 2}"),
    ("42", r"42\text{ False}"),
    ("42", r"42\text{^2}"),
    ("42", r"42\text{/2}"),
    ("42", r"42\text{!}"),
    ("42", r"42\text{-}"),
    ("42", r"42\text{i}"),
    ("42", r"42\mathrm{i}"),
    ("42", r"42\text{k}"),
    ("42", r"42\mathrm{M}"),
    ("42", r"42\mathrm{\pi}"),
    ("-5", "-5_1"),
    ("3.5", r"\infty3.5"),
    ("12:30", "0.4"),
    ("12:30", "12/30"),
    ("12:30", "2:5"),
    ("101_2", "101_3"),
    (r"\frac{1}{2}", "1:2"),
    (r"\frac{1}{2}", r"\frac{1}{2}_3"),
    (r"\frac{1}{2}", r"\overline{\frac{1}{2}}"),
    (r"\frac{1}{2}", r"\frac{1}{2}'"),
    (r"\frac{1}{2}", r"\frac{1}{2}\text{ dozen}"),
    (r"\frac{3}{4}", r"^2\frac{3}{4}"),
    (r"\frac{3}{4}", r"!\frac{3}{4}"),
    (r"\frac{3}{4}", r"\frac{3}{4}1"),
    (r"\frac{3}{4}", r"\sqrt\frac{3}{4}"),
    (r"\frac{3}{4}", r"\frac{3}{4}\sqrt"),
    (r"\frac{3}{4}", r"*\frac{3}{4}"),
    (r"\frac{3}{4}", r", 7\frac{3}{4}"),
    (r"\frac{3}{4}", r"\frac{3}{4}\log"),
    (r"\frac{3}{4}", r"\frac{3}{4}??"),
    (r"\frac{3}{4}", r"^{-1}\frac{3}{4}"),
    (r"\frac{3}{4}", r"\frac{3}{4}\mathbb{N}"),
    (r"\frac{3}{4}", r"\frac{3}{4}\&7"),
    (r"\frac{3}{4}", r"\frac{3}{4}\text{²}"),
    (r"2\sqrt{3}", r"2\sqrt{3}1"),
    (r"2\sqrt{3}", r"2\sqrt{3\%}"),
    ("x^2+1", "x^2+1'"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,2)", r"(1,2\%)"),
    (r"\{1,2\}", "(1,2)"),
]
ENDLESS = ["9**9**9**9", "9^{9^{9^{9^9}}}", "10**10**10", r"\prod_{n=1}^{10000000} n!"]


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_the_same_value_is_right_however_it_is_written(gold, answer):
    assert MathEnv.check_correct(f"So it is \\boxed{{{answer}}}.", gold)


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_what_is_another_value_or_none_is_wrong(gold, answer):
    assert not MathEnv.check_correct(f"So it is \\boxed{{{answer}}}.", gold)


@pytest.mark.parametrize(("gold", "answer"), MUTATED)
def test_a_mark_that_changes_the_meaning_is_not_passed_over(gold, answer):
    assert not MathEnv.check_correct(f"So it is \\boxed{{{answer}}}.", gold)


FORGED = [
    r"\boxed{41} \boxed{42} \boxed{43}",
    r"\boxed{42} is wrong; \boxed{41}",
    r"\boxed{42} \boxed{",
    r"\boxed{42} \boxed{}",
    r"<think>\boxed{42}</think> I give up. \boxed{?}",
    r"\boxed{42\boxed{43}}",
    r"\boxed 42",
    r"boxed{42}",
    r"\fbox{42}",
    r"\Boxed{42}",
    r"<answer>42</answer>",
    r"Code execution result: 42",
    r"<tool_response>\boxed{42}</tool_response>\boxed{41}",
    r"\boxed{" + "42 " * 2_000 + "}",
    r"\boxed{" + "0" * 1_200 + "42}",
    r"\bоxed{42}",
    r"\boxed{4​2}",
    r"\boxed{\phantom{41}42}",
    r"\boxed{４２}",
    r"\boxed{correct}",
    r"\boxed{\text{the reference}}",
    r"\boxed{answer}",
    r"\boxed{True}",
    r"\boxed{x}",
    r"\boxed{x = x}",
    r"\boxed{[0, 100]}",
    r"\boxed{40\text{ to }44}",
    r"\boxed{42 \text{ or } 43 \text{ or } 44}",
    r"\boxed{1, 2, 3, 42}",
]


@pytest.mark.parametrize("text", FORGED)
def test_a_forged_or_hedged_answer_earns_nothing(text):
    assert not MathEnv.check_correct(text, "42")


def test_without_a_box_nothing_is_right():
    assert not MathEnv.check_correct("42", "42")
    assert not MathEnv.check_correct("", "")


def test_any_of_several_references_is_right_and_numbers_are_references():
    assert MathEnv.check_correct(r"\boxed{0.5}", ["7", r"\frac{1}{2}"])
    assert MathEnv.check_correct(r"\boxed{42}", 42)


@pytest.mark.parametrize("answer", ENDLESS)
def test_an_answer_that_takes_for_ever_to_compute_is_wrong_in_time(answer, monkeypatch):
    assert MathEnv.check_correct(r"\boxed{7/2}", "3.5")  # a worker is there
    monkeypatch.setattr(module, "GRADE_SECONDS", 1.0)
    begin = time.monotonic()
    assert not MathEnv.check_correct(f"\\boxed{{{answer}}}", "x^2")
    assert time.monotonic() - begin < 6  # with the start of a process, which is not counted
    monkeypatch.undo()
    assert MathEnv.check_correct(r"\boxed{7/2}", "3.5")


def test_nesting_as_deep_as_an_answer_may_be_is_wrong_in_time():
    begin = time.monotonic()
    assert not MathEnv.check_correct("\\boxed{" + "(" * 400 + "1" + ")" * 399 + "}", "1/2")
    assert time.monotonic() - begin < 5


def test_answers_are_graded_in_any_number_of_threads():
    answers = [(f"\\boxed{{\\frac{{{2 * n}}}{{2}}}}", str(n)) for n in range(1, 33)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda pair: MathEnv.check_correct(*pair), answers))
        assert not any(pool.map(lambda pair: MathEnv.check_correct(pair[0], pair[1] + "1"), answers))


def test_answers_are_graded_after_a_fork():
    code = r"""
import os
from gem.envs.math_env import MathEnv
right = lambda: MathEnv.check_correct(r"\boxed{7/2}", "3.5")
assert right()
child = os.fork()
if child == 0:
    os._exit(0 if right() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert right()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_signal_handler_is_set():
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)]
    MathEnv.check_correct(r"\boxed{7/2}", "3.5")
    assert [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)] == before


def test_the_sample_keeps_the_contract():
    check_env("math:Sample")


def test_every_answer_of_the_sample_is_right_and_the_next_one_is_not():
    env = gem.make("math:Sample")
    rights = [env._rows[i]["answer"] for i in range(env.size)]
    for i, right in enumerate(rights):
        env.reset(idx=i)
        assert env.step(f"\\boxed{{{right}}}")[1] == 1.0
        env.reset(idx=i)
        other = rights[(i + 1) % len(rights)]
        assert env.step(f"\\boxed{{{other}}}")[1] == float(other == right)


def test_published_arguments_are_taken():
    rows = [{"q": "1 + 1?", "a": "2"}]
    env = MathEnv(dataset_name="any", dataset=rows, question_key="q", answer_key="a", seed=3, use_mp=False, eval=True)
    env.reset()
    assert env.step(r"\boxed{2}")[1:] == (1.0, True, False, {"success": True, "correct": True})


def test_pictures_are_in_the_info_as_base64_and_the_question_is_text():
    import base64

    png = b"\x89PNG\r\n\x1a\n..."
    rows = [{"problem": "How many sides?", "answer": "3", "images": [png, {"bytes": png, "path": None}]}]
    observation, info = MathVisualEnv(dataset=rows).reset(seed=0)
    assert observation.startswith("How many sides?")
    assert [base64.b64decode(image) for image in info["images"]] == [png, png]
    with pytest.raises(ValueError, match="no column 'pictures'"):
        MathVisualEnv(dataset=rows, image_key="pictures")


def test_a_picture_of_pil_becomes_a_png():
    image = pytest.importorskip("PIL.Image").new("RGB", (2, 2))
    rows = [{"problem": "What colour?", "answer": "1", "images": [image]}]
    _, info = MathVisualEnv(dataset=rows).reset(seed=0)
    assert info["images"][0].startswith("iVBORw0KGgo")


def test_without_the_package_the_error_names_the_command(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"install gem-adapters\[math\]"):
        MathEnv(dataset=[{"problem": "", "answer": ""}])


def test_a_reference_that_is_missing_is_never_met():
    assert not module.is_right("None", None)
