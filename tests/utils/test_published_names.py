"""What gem-llm has in ``gem.utils``, as far as it is a thin layer over what is tested elsewhere."""

import asyncio
import random
import threading
import time

import numpy as np
import pytest

import gem
from gem.refusals import refuse
from gem.utils import constants, debug, math_grader, parsing, qa_em, sandbox, seeding


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [("1/2", "0.5", True), (r"\frac{1}{2}", r"\boxed{0.5}", True), ("3", "4", False), ("3", "", False)],
)
def test_every_grader_says_the_same(answer, gold, same):
    assert math_grader.grade(answer, gold) is same
    names = ("grade_answer_mathd", "grade_answer_sympy", "is_latex_equal", "is_value_equal", "symbolic_equal")
    assert {getattr(math_grader, name)(answer, gold) for name in names} == {same}
    assert math_grader.are_equal_under_sympy(gold, answer) is same


def test_reward_functions():
    right = r"<think>...</think> <answer>\boxed{2}</answer>"
    for function in (
        math_grader.boxed_reward_fn,
        math_grader.answer_tag_reward_fn,
        math_grader.answer_tag_reward_fn_for_orz,
        math_grader.r1_distill_qwen_math_reward_fn,
    ):
        assert function(right, "2") == ({"formatted": True}, 1.0)
        assert function(right, [3, 2], correct_reward=5) == ({"formatted": True}, 5)
        assert function(right, 3, incorrect_reward=-1) == ({"formatted": True}, -1)
        assert function("nothing", "2") == ({"formatted": False}, 0.0)
    assert math_grader.answer_tag_reward_fn_for_orz("<answer> 2 </answer>", "2")[1] == 1.0
    assert math_grader.answer_tag_reward_fn("<answer> 2 </answer>", "2") == ({"formatted": False}, 0.0)
    assert math_grader.numeric_equal(100.0, 100.005)
    assert not math_grader.numeric_equal(100.0, 101.0)


def test_a_function_is_ended_after_its_time():
    start = time.monotonic()
    assert math_grader.run_with_timeout_signal(time.sleep, (5,), timeout_seconds=0.1) is None
    assert time.monotonic() - start < 2
    assert math_grader.run_with_timeout_signal(lambda a, b=0: a + b, (1,), {"b": 2}) == 3
    assert math_grader.run_with_timeout_signal(lambda: 1 / 0) is None
    with pytest.raises(math_grader.TimeoutException, match="too slow"), math_grader.timeout(0.1, "too slow"):
        time.sleep(5)


def test_a_time_limit_by_signals_needs_the_main_thread():
    errors = []

    def run():
        try:
            with math_grader.timeout(1):
                pass
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]


@pytest.mark.parametrize(
    ("text", "boxed", "inside"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} \boxed{2}", r"\boxed{2}", "2"),
        (r"\fbox{3}", r"\fbox{3}", None),
        (r"\boxed{3", None, None),
        (r"\boxed", None, None),
        ("3", None, None),
    ],
)
def test_boxes(text, boxed, inside):
    assert parsing.last_boxed_only_string(text) == boxed
    assert parsing.remove_boxed(boxed) == inside == parsing.extract_last_boxed_answer(solution=text)


def test_exact_match_as_published():
    assert qa_em.em_check("The Beatles!", "beatles")
    assert qa_em.em_check("-5", ["6", "5"])
    assert not qa_em.em_check("Rome", ["Paris"])


def test_seeds():
    generator, seed = seeding.np_random(7)
    assert (generator.random(), seed) == (seeding.np_random(7)[0].random(), 7)
    assert isinstance(generator, seeding.RandomNumberGenerator)
    saved = random.getstate(), np.random.get_state()
    try:
        drawn = []
        for _ in range(2):
            seeding.set_seed(2**40)
            drawn.append((random.random(), np.random.random()))
        assert drawn[0] == drawn[1]
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
    with pytest.raises(TypeError):
        seeding.np_random("7")


def test_programs():
    assert sandbox.subprocess_run("print(input())", [], "auto", "hello") == (True, "hello\n", "")
    assert not sandbox.subprocess_run("print(sqrt(4))", [])[0]  # run_python would import it
    with pytest.raises(ValueError, match="cmd_list must be empty"):
        sandbox.subprocess_run("print(1)", ["bwrap"])
    assert sandbox.check_forbidden_imports("import socket")
    assert sandbox.check_forbidden_imports("os.fork()")
    assert not sandbox.check_forbidden_imports("print(1)")


def guess(observation):
    return ["\\boxed{5}"] * len(observation) if isinstance(observation, list) else "\\boxed{5}"


def test_episodes_are_printed(capsys):
    debug.run_and_print_episode(gem.make("game:GuessTheNumber-v0-easy", seed=1), guess)
    printed = capsys.readouterr().out
    assert "Step 4" in printed
    assert "terminated: False truncated: True" in printed
    debug.run_and_print_episode(gem.make_vec(["game:GuessTheNumber-v0-easy"] * 2, seed=1), guess, max_steps=3)
    assert capsys.readouterr().out.count("2/2:") == 6  # observations and actions of three steps


def test_episodes_with_some_of_the_environments_are_printed(capsys):
    env = gem.make_vec(["game:GuessTheNumber-v0-easy"] * 3, seed=1)
    debug.run_and_print_episode_with_selective_step(env, guess, ignore_done=True, max_steps=5)
    assert "Step 5" in capsys.readouterr().out


def test_episodes_of_coroutines_are_printed(capsys):
    class Awaited:
        async def reset(self):
            return "begin", {}

        async def step(self, action):
            return "end", 1.0, True, False, {}

    asyncio.run(debug.run_and_print_episode_async(Awaited(), lambda observation: f"{observation}!"))
    assert "'begin!'" in capsys.readouterr().out


def test_refused_names_can_be_imported_and_say_why_they_cannot_be_used():
    from gem.envs.mcpmark import MCPMarkEnv
    from gem.envs.terminal.docker_env import ContainerConfig, DockerEnv, TaskConfig
    from gem.tools.search_engine.google_search_server import OnlineSearchEngine

    for name in (MCPMarkEnv, DockerEnv, OnlineSearchEngine):
        with pytest.raises(NotImplementedError, match=f"{name.__name__} is not supported"):
            name([TaskConfig("t", "/t", {})], ContainerConfig())
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        refuse("some.module", ["Name"], "Because.")("Other")


def test_lists_and_trees_of_leetcode():
    names = {}
    exec(constants.BASE_LEETCODE_IMPORTS, names)
    numbers, tree = names["list_node"]([1, 2]), names["tree_node"]([1, None, 2, 3])
    assert (numbers.val, numbers.next.val, numbers.next.next) == (1, 2, None)
    assert (tree.left, tree.right.val, tree.right.left.val, tree.right.right) == (None, 2, 3, None)
    assert names["is_same_list"](numbers, names["list_node"]([1, 2]))
    assert not names["is_same_list"](numbers, names["list_node"]([1]))
    assert names["is_same_tree"](tree, names["tree_node"]([1, None, 2, 3]))
    assert not names["is_same_tree"](tree, names["tree_node"]([1, 2, None, 3]))
    assert names["tree_node"]([]) is None
