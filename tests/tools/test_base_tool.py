import re
import time

import pytest

from gem.tools.base_tool import BaseTool, find_block
from gem.utils.text import cut_middle

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
