"""What the environment gets of a response: small tokenizers have the control tokens of the models' own."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("jinja2")

from chat_templates import CHATML, byte_level, shipped, tokenizer_of

from gem.rollout import ChatRenderer
from gem.rollout.answers import Answer, answer_in

THINK_OPENED = CHATML.replace("assistant\\n'", "assistant\\n<think>\\n'")
MAGISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def parsed(tokenizer, text, prompt=None):
    renderer = ChatRenderer(tokenizer)
    return renderer.parse(encode(tokenizer, text), renderer.first("Play.") if prompt is None else prompt)


def gpt_oss():
    return byte_level(shipped("gptoss") + "<|constrain|>", "<|startoftext|>", "<|return|>")


def test_a_response_without_thoughts_is_the_answer():
    assert parsed(tokenizer_of("ChatML"), " \\boxed{5} <|im_end|>") == Answer(" \\boxed{5} ")


@pytest.mark.parametrize("special", [True, False])
def test_thoughts_are_left_out_whether_their_tags_are_tokens_or_text(special):
    tokenizer = tokenizer_of("ChatML")
    text = "<think>\n<python>print(1)</python>\n</think>\n\n\\boxed{5}"
    ids = encode(tokenizer, text)
    if not special:
        ids = [token for letter in text for token in encode(tokenizer, letter)]
    answer = ChatRenderer(tokenizer).parse(ids, [])
    assert answer.action == "\\boxed{5}"
    assert answer.full_text == text


def test_a_thought_that_does_not_end_leaves_no_answer():
    assert parsed(tokenizer_of("ChatML"), "<think>five, \\boxed{5}").action == ""


def test_a_thought_that_the_generation_prompt_begins_goes_on_to_its_end():
    tokenizer = byte_level(THINK_OPENED, "<|endoftext|>", "<|im_end|>")
    assert parsed(tokenizer, "five?</think>\n\n\\boxed{5}<|im_end|>").action == "\\boxed{5}"
    assert parsed(tokenizer, "five? \\boxed{5}").action == ""
    assert parsed(tokenizer_of("ChatML"), "five?</think>\\boxed{5}").action == "five?</think>\\boxed{5}"


def test_an_observation_cannot_begin_the_thought_of_an_answer():
    tokenizer = byte_level(THINK_OPENED, "<|endoftext|>", "<|im_end|>")
    prompt = ChatRenderer(tokenizer_of("ChatML")).first("<think>")
    assert parsed(tokenizer, "\\boxed{5}", prompt).action == "\\boxed{5}"


def test_of_gpt_oss_the_final_channel_is_the_answer():
    text = (
        "<|channel|>analysis<|message|>Try <python>print(1)</python>?<|end|>"
        "<|start|>assistant<|channel|>final<|message|>\\boxed{5}<|return|>"
    )
    answer = parsed(gpt_oss(), text)
    assert answer == Answer("\\boxed{5}", text)
    assert parsed(gpt_oss(), "<|channel|>analysis<|message|>\\boxed{5}").action == ""


def test_a_call_of_gpt_oss_is_a_tool_call():
    text = (
        "<|channel|>analysis<|message|>I search.<|end|><|start|>assistant to=functions.search<|channel|>commentary "
        '<|constrain|>json<|message|>{"query": "x"}<|call|>'
    )
    assert parsed(gpt_oss(), text).action == '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>'


@pytest.mark.parametrize(
    ("tags", "text", "action"),
    [
        (("[THINK]", "[/THINK]"), "[THINK]five?[/THINK]\\boxed{5}</s>", "\\boxed{5}"),
        (
            ("[TOOL_CALLS]", "[ARGS]"),
            '[TOOL_CALLS]search[ARGS]{"query": "x"}</s>',
            '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>',
        ),
        (
            ("[TOOL_CALLS]",),
            '[TOOL_CALLS][{"name": "search", "arguments": {"query": "x"}}]</s>',
            '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>',
        ),
        (("[TOOL_CALLS]",), "[TOOL_CALLS]no list</s>", "no list"),
        (
            ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            "<|START_THINKING|>five?<|END_THINKING|><|START_RESPONSE|>\\boxed{5}<|END_RESPONSE|>",
            "\\boxed{5}",
        ),
        (
            ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>"),
            "<|START_THINKING|>I search.<|END_THINKING|><|START_ACTION|>"
            '[{"tool_call_id": "0", "tool_name": "search", "parameters": {"query": "x"}}]<|END_ACTION|>',
            '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>',
        ),
        (
            (
                "<|tool_calls_section_begin|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ),
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0"
            '<|tool_call_argument_begin|>{"query": "x"}<|tool_call_end|>',
            '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>',
        ),
    ],
    ids=["Magistral", "Mistral", "Mistral's list", "not a list", "Command A", "Command A's call", "Kimi"],
)
def test_thoughts_and_calls_in_a_models_own_tokens(tags, text, action):
    tokenizer = byte_level(MAGISTRAL, specials=tags)
    answer = parsed(tokenizer, text)
    assert answer.action == action
    assert answer.full_text is None or set(tags[:1]) <= {tag for tag in tags if tag in answer.full_text}


def test_what_is_only_spelled_is_not_taken_for_a_control_token():
    tokenizer = byte_level(MAGISTRAL, specials=("[THINK]", "[/THINK]"))
    text = "[THINK]five?[/THINK]\\boxed{5}"
    ids = [token for letter in text for token in encode(tokenizer, letter)]
    assert ChatRenderer(tokenizer).parse(ids, []) == Answer(text)


def test_a_model_cannot_write_the_marks_of_control_tokens():
    tokenizer = byte_level(MAGISTRAL, specials=("[THINK]", "[/THINK]"))
    assert parsed(tokenizer, "[THINK]a[/THINK]x\ufdd0y\ufdd1z\ufdd0").action == "x\ufffdy\ufffdz\ufffd"


def test_time_is_linear_in_the_length():
    assert answer_in("<think>" * 200_000) == ""
    assert answer_in("<think>a</think>" * 200_000) == ""
