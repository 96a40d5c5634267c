import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem.utils.parsing import extract_code_from_model, extract_last_boxed_answer, extract_last_tagged_answer

EXTRACTORS = [extract_last_boxed_answer, extract_code_from_model, extract_last_tagged_answer]
FRAGMENTS = st.sampled_from(
    [
        "\\boxed{",
        "\\boxed",
        "{",
        "}",
        "\\",
        "<answer>",
        "</answer>",
        "```",
        "```python\n",
        "\n",
        " ",
        "x",
        "é",
        "\ud800",
    ]
)
HOSTILE = st.lists(FRAGMENTS, max_size=12).map("".join) | st.text()
PLAIN = st.text(st.characters(exclude_characters="{}\\<>`"))


@given(HOSTILE)
def test_any_text_gives_a_part_of_it_or_none(text):
    for extract in EXTRACTORS:
        answer = extract(text)
        assert answer is None or answer in text


@given(PLAIN, PLAIN, PLAIN)
def test_last_of_two_boxes_is_taken(before, first, last):
    assert extract_last_boxed_answer(f"{before}\\boxed{{{first}}}{before}\\boxed{{{last}}}{before}") == last


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no box", None),
        (r"\boxed{}", ""),
        (r"\boxed{ 5 }", " 5 "),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a\boxed{b}c}", "b"),
        (r"\boxed{3} then \boxed 4", "3"),
        (r"\boxed{3} then \boxed{4", None),
        (r"\boxed{3}}}", "3"),
        ("\\boxed{1\n2}", "1\n2"),
    ],
)
def test_boxed_answer(text, answer):
    assert extract_last_boxed_answer(text) == answer


@given(PLAIN, PLAIN, PLAIN)
def test_last_code_block_is_taken_whatever_its_language(text, first, last):
    blocks = f"{text}\n```python\n{first}```\n{text}\n```c++\n{last}```{text}"
    assert extract_code_from_model(blocks) == last.strip()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", None),
        ("```python\nx = 1", None),
        ("```x = 1```", None),
        ("```\nx = 1\n```", "x = 1"),
        ("```python title=a.py\nx = 1\n```", "x = 1"),
        ("```python\r\nx = 1\r\n```", "x = 1"),
        ("```python\nif x:\n    y()\n```", "if x:\n    y()"),
    ],
)
def test_code_block(text, code):
    assert extract_code_from_model(text) == code


@given(st.lists(st.sampled_from(["<answer>", "</answer>", "a", "b", "\n", " "]), max_size=10).map("".join))
def test_tagged_answer_is_what_pairing_tags_from_the_left_gives(text):
    pairs = re.findall("<answer>(.*?)</answer>", text, re.DOTALL)
    assert extract_last_tagged_answer(text) == (pairs[-1].strip() if pairs else None)


@pytest.mark.parametrize("extract", EXTRACTORS)
@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "}",
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "```",
        "`",
        "```\n",
        "```a",
        "````\n",
        "\\",
        "\n",
    ],
)
def test_a_megabyte_of_one_piece_takes_linear_time(extract, piece):
    text = piece * (10**6 // len(piece))
    begin = time.process_time()
    extract("\\boxed{<answer>```python\n" + text)
    assert time.process_time() - begin < 2  # quadratic time would be minutes


def balanced(text):
    """The rule, a character at a time."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i, character in enumerate(text[start + 6 :], start + 6):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[start + 7 : i]
    return None


def test_every_arrangement_of_boxes_and_braces_is_read_by_the_rule():
    for length in range(6):
        for parts in itertools.product(["a", "{", "}", "\\boxed{", " "], repeat=length):
            text = "".join(parts)
            assert extract_last_boxed_answer(text) == balanced(text), text
