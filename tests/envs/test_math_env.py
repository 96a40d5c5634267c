"""Maths, by math-verify itself."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import gem
from gem.envs import math_env as module
from gem.envs.math_env import MathEnv
from gem.envs.math_visual_env import MathVisualEnv
from gem.testing import check_env

pytest.importorskip("math_verify")

RIGHT = [
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
]
WRONG = [
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
ENDLESS = ["9**9**9**9", "9^{9^{9^{9^9}}}", "10**10**10", r"\prod_{n=1}^{10000000} n!"]


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_the_same_value_is_right_however_it_is_written(gold, answer):
    assert MathEnv.check_correct(f"So it is \\boxed{{{answer}}}.", gold)


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_what_is_another_value_or_none_is_wrong(gold, answer):
    assert not MathEnv.check_correct(f"So it is \\boxed{{{answer}}}.", gold)


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
    assert time.monotonic() - begin < 3
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
    with pytest.raises(ImportError, match=r"pip install 'gem-adapters\[math\]'"):
        MathEnv(dataset=[{"problem": "", "answer": ""}])
