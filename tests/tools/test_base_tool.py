import re
import time

import pytest

import gem
from gem.text import cut_middle
from gem.tools.base_tool import BaseTool, find_block
from gem.tools.python_code_tool import PythonCodeTool
from gem.tools.search_tool import SearchTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper

TAG = [(re.compile("<a>"), re.compile("</a>"))]
TWO = [*TAG, (re.compile("<b>"), re.compile("</b>"))]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<a>x</a>", "x"),
        ("<a>x</a><a>y</a>", "x"),
        ("<a> </a><a>y</a>", "y"),
        ("<b>y</b><a>x</a>", "y"),
        ("<b><a>x</a>", "x"),
        ("<a>one\ntwo</a>", "one\ntwo"),
    ],
)
def test_first_complete_block_that_is_not_blank_is_found(text, content):
    assert find_block(text, TWO).content == content


@pytest.mark.parametrize("text", ["", "<a>x", "x</a>", "<a></a>", "</a><a>"])
def test_text_without_a_complete_block_has_none(text):
    assert find_block(text, TAG) is None


def test_place_of_a_block_includes_its_marks():
    text = "so <a>x</a> end"
    block = find_block(text, TAG)
    assert text[block.start : block.end] == "<a>x</a>"


@pytest.mark.parametrize("text", ["<a>" * 300_000, "<a></a>" * 100_000, "</a>" * 300_000])
def test_many_marks_take_no_time(text):
    begin = time.perf_counter()
    assert find_block(text, TWO) is None
    assert time.perf_counter() - begin < 2


def test_short_text_is_not_cut():
    assert cut_middle("abc", 3) == "abc"


@pytest.mark.parametrize("limit", [0, 1, 7, 100])
def test_long_text_keeps_its_ends_and_says_how_much_is_missing(limit):
    cut = cut_middle("a" * 500 + "z" * 500, limit)
    assert cut.count("a" if limit else "z") >= limit // 2
    assert f"[... {1000 - limit} characters left out ...]" in cut


def test_tool_without_methods_says_so():
    tool = BaseTool(num_workers=2)
    assert (tool.num_workers, tool.tool_type) == (2, "base")
    with pytest.raises(NotImplementedError, match="BaseTool has no instruction_string"):
        tool.instruction_string()
    with pytest.raises(NotImplementedError, match="BaseTool has no execute_action"):
        tool.execute_action("x")


class OwnTag(PythonCodeTool):
    """In the form of tools written for gem-llm: it executes what the marks do not tell of."""

    def execute_action(self, action):
        match = re.search(r"<code>(.*?)</code>", action, re.DOTALL)
        return (True, False, f"ran {match[1]}", action[: match.end()]) if match else (False, True, "", action)


class OwnParser(SearchTool):
    def _parse_action(self, action):
        match = re.search(r"\?\?(.*)", action)
        return (match[1], action[: match.end()], True) if match else ("", "", False)


class OwnMarks(SearchTool):
    marks = ((re.compile(r"<find>"), re.compile(r"</find>")),)


@pytest.mark.parametrize(
    ("tool", "call", "answer"),
    [
        (OwnTag(), "<code>1</code>", "ran 1"),
        (OwnParser(), "so ??Paris", "<information>Doc 1"),
        (OwnMarks(), "<find>Paris</find>", "<information>Doc 1"),
    ],
)
def test_a_subclass_that_looks_for_calls_itself_is_asked(tool, call, answer, capsys):
    env = ToolEnvWrapper(gem.make("game:GuessTheNumber-v0-easy"), [tool])
    env.reset(seed=0)
    observation, _, terminated, _, info = env.step(call, verbose=True)
    assert answer in observation
    assert info["use_tool"]
    assert not terminated
    assert "use 1 of this episode" in capsys.readouterr().out
    assert not env.step("\\boxed{3}")[4]["use_tool"]


def test_marks_of_its_own_say_that_there_is_no_call():
    assert OwnMarks().find_action("<search>Paris</search>") is None
    assert OwnTag().find_action("nothing") == len("nothing")
    assert OwnTag().find_action("and <python>1</python>") == 4
