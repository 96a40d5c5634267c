import time

import pytest

import gem
from gem.testing.hostile_text import JUNK, ODD
from gem.tools.python_code_tool import PythonCodeTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper


@pytest.mark.parametrize(
    "block",
    [
        "<python>print(6*7)</python>",
        "<python>\n  a = 6\n  print(a * 7)\n</python>",
        "```python\nprint(6*7)\n```",
        "```py\nprint(6*7)\n```",
        "```python3\nprint(6*7)\n```",
        "```python print(6*7)```",
    ],
)
def test_block_of_code_is_run(block):
    text = f"I compute.\n{block}"
    expected = (True, False, "Code execution result: 42\n", text)
    assert PythonCodeTool().execute_action(f"{text} So it is 42.") == expected
    assert PythonCodeTool().find_action(text) == text.index(block)


def test_first_complete_block_is_run():
    text = "```python\nprint(1)\n``` <python>print(2)</python>"
    assert PythonCodeTool().execute_action(text)[2:] == ("Code execution result: 1\n", "```python\nprint(1)\n```")


@pytest.mark.parametrize(
    "text", ["print(1)", "<python>print(1)", "```\nprint(1)\n```", "```pycon\n1\n```", "```python\n```"]
)
def test_text_without_a_block_of_code_is_no_call(text):
    assert PythonCodeTool().execute_action(text) == (False, True, "", text)
    assert PythonCodeTool().find_action(text) is None


def test_error_is_shown_with_the_programs_own_frames():
    valid, error, said, _ = PythonCodeTool().execute_action("<python>print('so')\ndef f(): return 1 / 0\nf()</python>")
    assert (valid, error) == (True, True)
    assert said.startswith('Code execution result: so\nTraceback (most recent call last):\n  File "main.py", line 3')
    assert said.endswith("ZeroDivisionError: division by zero\n")
    assert "runpy" not in said


def test_folder_of_the_program_which_differs_each_time_is_not_shown(monkeypatch):
    stderr = 'Traceback (most recent call last):\n  File "/tmp/gem-k3/main.py", line 1, in <module>\nKeyError: 1'
    monkeypatch.setattr("gem.tools.python_code_tool.run_python", lambda *_, **__: (False, "", stderr))
    said = PythonCodeTool().execute_action("<python>{}[1]</python>")[2]
    assert said == f"Code execution result: {stderr.replace('/tmp/gem-k3/', '')}\n"


def test_last_line_of_an_error_can_be_kept_alone():
    said = PythonCodeTool(keep_error_last_line=True).execute_action("<python>1/0</python>")[2]
    assert said == "Code execution result: ZeroDivisionError: division by zero\n"


def test_time_is_limited():
    begin = time.perf_counter()
    valid, error, said, _ = PythonCodeTool(timeout=0.5).execute_action(
        "<python>print(1, flush=True)\nwhile True: pass</python>"
    )
    assert time.perf_counter() - begin < 3
    assert (valid, error) == (True, True)
    assert said == "Code execution result: 1\nExecution timed out after 0.5 seconds.\n"


def test_long_output_is_cut_in_the_middle():
    said = PythonCodeTool(max_chars=100).execute_action("<python>print('a' * 10_000 + 'z')</python>")[2]
    assert len(said) < 200
    assert "[... 9901 characters left out ...]" in said
    assert said.endswith("z\n")


def test_nothing_that_a_model_writes_raises():
    tool = PythonCodeTool(timeout=2)
    for text in [*JUNK.values(), *ODD.values()]:
        assert isinstance(tool.execute_action(text)[2], str)
    for code in ["\x00", "\ud800", "import os; os.kill(0, 9)", "import sys; sys.exit(3)", "x" * 100_000]:
        assert tool.execute_action(f"<python>{code}</python>")[:2] == (True, True)


def test_unknown_sandbox_is_refused():
    with pytest.raises(ValueError, match="sandbox_type"):
        PythonCodeTool(sandbox_type="moon")


def test_code_helps_in_a_game():
    env = ToolEnvWrapper(gem.make("game:GuessTheNumber-v0-easy"), [PythonCodeTool()], tool_success_reward=0.5)
    env.reset(seed=1)
    observation, reward, _, _, info = env.step("<python>print((1 + 10) // 2)</python>")
    assert (observation, reward, info["tool_type"]) == ("Code execution result: 5\n", 0.5, "python_code")
    assert env.step(f"\\boxed{{{env.game_number}}}")[2]


def test_where_the_answer_is_a_block_of_code_no_such_block_is_a_call():
    env = gem.make("code:Sample", tools="python")
    asked, _ = env.reset(seed=0)
    assert "<python>...</python>, let it print" in asked
    assert "or a ```python block" not in asked
    said, reward, terminated, *_ = env.step("I try: <python>print(6 * 7)</python>")
    assert (said, reward, terminated) == ("Code execution result: 42\n", 0.0, False)
    assert env.step(env.unwrapped.reference_action())[1:4] == (1.0, True, False)


def test_the_tool_that_was_given_still_runs_blocks_elsewhere():
    tool = PythonCodeTool()
    ToolEnvWrapper(gem.make("code:Sample"), [tool])
    assert tool.execute_action("```python\nprint(1)\n```")[0]
    assert not tool.without_fences().execute_action("```python\nprint(1)\n```")[0]
