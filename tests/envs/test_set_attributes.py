"""Attributes of question environments that code for gem-llm sets are honoured, or cannot be set."""

import pytest

import gem
from gem.envs.code_env import CodeEnv
from gem.envs.logic_env import LogicEnv
from gem.envs.math_env import MathEnv
from gem.envs.qa_env import QaEnv

DOUBLE = "```python\nprint(2 * int(input()))\n```"
TESTS = {"inputs": ["1"], "outputs": ["2"]}


def test_the_answer_of_maths():
    env = MathEnv(dataset=[{"problem": "1 + 1", "answer": "2"}], use_mp=False)
    env.reset()
    env.answer = "777"
    other = env.spawn(same_state=True)
    assert env.step("\\boxed{777}")[1] == other.step("\\boxed{777}")[1] == 1.0
    env.reset()
    assert env.answer == "2"


@pytest.mark.parametrize("make", [QaEnv, LogicEnv])
def test_the_answer_of_a_question(make):
    env = make(dataset=[{"question": "?", "answer": "True"}])
    env.reset()
    env.answer = ["False", "No"]
    form = "\\boxed{%s}" if make is LogicEnv else "<answer>%s</answer>"
    assert env.extractor(form % "no") == "no"
    assert env.step(form % "no")[1] == 1.0


def test_the_tests_of_code():
    env = CodeEnv(dataset=[{"problem": "Double.", "tests": TESTS, "statement": "Twice."}], sandbox_type="plain")
    env.reset()
    assert env.tests == TESTS
    assert env.step(DOUBLE)[1] == 1.0
    env.reset()
    env.tests = {"inputs": ["1"], "outputs": ["3"]}
    assert env._check_correct("print(3)")
    assert env.step(DOUBLE)[1] == 0.0
    env.question_key = "statement"
    assert env.reset()[0].startswith("Twice.")
    assert env.step(DOUBLE)[1] == 1.0


def test_the_sandbox_cannot_be_switched_off_by_an_attribute_or_a_state():
    env = CodeEnv(dataset=[{"problem": "Double.", "tests": TESTS}])
    with pytest.raises(AttributeError):
        env.sandbox_type = "none"
    env.reset()
    assert "sandbox_type" not in env.get_state()


def test_code_takes_arguments_in_the_published_order():
    env = CodeEnv("", None, [{"text": "Double.", "checks": TESTS}], "text", "checks", 3, 2, 1, False, "plain")
    assert (env.seed, env.max_workers, env.max_tests, env.sandbox_type) == (3, 2, 1, "plain")
    assert env.reset()[0].startswith("Double.")


def test_columns_can_be_changed():
    env = MathEnv(dataset=[{"problem": "1 + 1", "answer": "2", "other": "1 + 2", "sum": "3"}])
    env.question_key, env.answer_key = "other", "sum"
    assert env.reset()[0].startswith("1 + 2")
    assert env.answer == "3"


@pytest.mark.parametrize("env_id", ["math:Sample", "qa:Sample", "code:Sample", "logic:Sample", "rg:leg_counting"])
def test_published_arguments_that_need_no_effect(env_id):
    gem.make(env_id, verbose=True, max_turns=1, use_mp=False, load_from_cache_file=False)
    with pytest.raises(TypeError, match="unheard_of"):
        gem.make(env_id, unheard_of=1)


def test_a_limited_reasoning_gym_asks_each_question_once():
    env = gem.make("rg:leg_counting", size=7, seed=3)
    asked = [env.reset()[0] for _ in range(7)]
    assert len(set(asked)) == 7
    assert asked[0] == env.reset(seed=10)[0] == gem.make("rg:leg_counting").reset(seed=3 + 3)[0]
    assert set(asked) == {gem.make("rg:leg_counting").reset(seed=3 + n)[0] for n in range(7)}
    assert (env.name, env.seed, env.data["question"] in env.first_obs) == ("leg_counting", 3, True)
    with pytest.raises(ValueError, match="size"):
        gem.make("rg:leg_counting", size=0)
