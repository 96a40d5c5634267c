"""ChatRenderer on the chat templates of well-known models."""

import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers")
pytest.importorskip("jinja2")

from chat_templates import (
    ALL,
    CHATML,
    HOSTILE,
    LLAMA2,
    MISTRAL,
    MODELS,
    NO_TOOL_ROLE,
    NO_TOOLS,
    PLAIN_TEXT,
    SAME,
    SHIPPED,
    TOOLS_DIFFER,
    USER_TURN_ENDS_WITH_A_TOKEN,
    WITH_BLANKS_AS_UNDERSCORES,
    WITH_TOOLS,
    ZEPHYR,
    byte_level,
    metaspace,
    shipped,
    tokenizer_of,
    vocabulary,
)
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from gem.rollout import ChatRenderer, render_differences
from gem.rollout.full_render import CONVERSATIONS, TOOL_CONVERSATIONS
from gem.rollout.rendering import ObservationRefused

every_model = pytest.mark.parametrize("name", MODELS)
few_models = pytest.mark.parametrize("name", ["ChatML", "Zephyr", "llama3", "gemma", "phi3"])


prepend_schemes = pytest.mark.parametrize("prepend_scheme", ["first", "always"])


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def full_render(tokenizer, turns, observation, system=None, **template_kwargs):
    """Return the ids of a whole conversation: turns that are over, and an observation."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for said_before, answer in turns:
        messages.append({"role": "user", "content": said_before})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": observation})
    return encode(
        tokenizer,
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **template_kwargs),
    )


def is_append_only(tokenizer, conversation, sampled, system=None, **template_kwargs):
    """Whether the ids of an episode, each answer sampled as ``sampled(answer)``, are those of full renders."""
    renderer = ChatRenderer(tokenizer, system, template_kwargs=template_kwargs, allow_control_tokens=True)
    ids = renderer.first(conversation[0][0])
    for turn, (observation, _) in enumerate(conversation):
        if turn:
            response = sampled(conversation[turn - 1][1])
            ids = ids + response + renderer.bridge(response, observation)
        if ids != full_render(tokenizer, conversation[:turn], observation, system, **template_kwargs):
            return False
    return True


def clean(tokenizer):
    """Return how a model says an answer: as it is put into tokens, and ended as the template ends it."""
    end = ChatRenderer(tokenizer).end_of_turn()
    return lambda answer: [*encode(tokenizer, answer), *end]


def reported(tokenizer, **kwargs):
    return {difference.conversation for difference in render_differences(tokenizer, **kwargs)}


@every_model
def test_append_only_ids_are_those_of_a_full_render_unless_the_template_rewrites_the_past(name):
    tokenizer = tokenizer_of(name)
    differ = {
        what
        for what, conversation in CONVERSATIONS.items()
        if not is_append_only(tokenizer, conversation, clean(tokenizer))
    }
    assert differ == MODELS[name].differ
    assert reported(tokenizer) == MODELS[name].differ


@every_model
def test_end_of_turn_is_found_in_the_template(name):
    assert ChatRenderer(tokenizer_of(name)).end_id == tokenizer_of(name).convert_tokens_to_ids(MODELS[name].end)


@every_model
def test_bridge_is_what_a_full_render_has_between_two_answers(name):
    tokenizer = tokenizer_of(name)
    renderer = ChatRenderer(tokenizer, allow_control_tokens=True)
    for what, observation in HOSTILE.items():
        rendered = full_render(tokenizer, [("question", "ok")], observation)
        after_cut = renderer.bridge([5], observation)
        after_clean = renderer.bridge([5, *renderer.end_of_turn()], observation)
        assert rendered[-len(after_cut) :] == after_cut, what
        assert tokenizer.decode(rendered[: -len(after_cut)]).endswith("ok"), what
        assert after_cut[-len(after_clean) - 1 :] == [renderer.end_id, *after_clean], what


@every_model
def test_control_tokens_in_an_observation_are_ordinary_tokens_and_all_others_are_those_of_the_template(name):
    tokenizer = tokenizer_of(name)
    renderer, trusting = ChatRenderer(tokenizer), ChatRenderer(tokenizer, allow_control_tokens=True)
    spelled = "".join(tokenizer.convert_ids_to_tokens(sorted(renderer.control_ids)))
    for observation in (*HOSTILE.values(), spelled, f"<{spelled}", f"a {spelled} b"):
        for make in ("first", "bridge"):
            own, plain, rendered = (
                r.first(f"Go. {text}") if make == "first" else r.bridge([5], text, first="question")
                for r, text in ((renderer, observation), (renderer, "plain"), (trusting, observation))
            )
            assert tokenizer.decode(own) == tokenizer.decode(rendered)
            controls = [[token for token in ids if token in renderer.control_ids] for ids in (own, plain)]
            assert controls[0] == controls[1]
            words = observation.strip()
            if renderer.control_ids.isdisjoint(encode(tokenizer, words)):
                assert own == rendered
            else:
                before, _, after = tokenizer.decode(plain).rpartition("plain")
                assert own[: len(encode(tokenizer, before)) - 1] == encode(tokenizer, before)[:-1]
                assert own[len(own) - len(encode(tokenizer, after)) + 1 :] == encode(tokenizer, after)[1:]


@given(data=st.data())
def test_no_observation_has_a_control_token(data):
    tokenizer = tokenizer_of("ChatML")
    renderer = ChatRenderer(tokenizer)
    controls = [tokenizer.convert_ids_to_tokens(i) for i in renderer.control_ids]
    halves = [half for text in controls for half in (text[:3], text[3:])]
    pieces = st.sampled_from([*controls, *halves]) | st.text(max_size=3)
    text = "".join(data.draw(st.lists(pieces, max_size=6)))
    count = sum(token in renderer.control_ids for token in renderer.bridge([5], text))
    assert count == sum(token in renderer.control_ids for token in renderer.bridge([5], "plain"))


def test_control_tokens_that_a_normalizer_makes_are_ordinary_tokens():
    tokenizer = tokenizer_of("ChatML")
    own = byte_level(CHATML, "<|endoftext|>", "<|im_end|>")
    own.backend_tokenizer.normalizer = normalizers.NFKC()
    own.add_tokens([AddedToken("<|tool|>", special=True, normalized=True)])
    renderer = ChatRenderer(own)
    observation = "\uff1c|tool|\uff1e"
    assert own.convert_tokens_to_ids("<|tool|>") in ChatRenderer(own, allow_control_tokens=True).first(observation)
    assert own.convert_tokens_to_ids("<|tool|>") not in renderer.first(observation)
    assert len(ChatRenderer(tokenizer).first(observation)) > 0


@prepend_schemes
def test_control_tokens_are_ordinary_ones_of_a_tokenizer_that_writes_blanks_as_underscores(prepend_scheme):
    tokenizer = metaspace(ZEPHYR, prepend_scheme)
    renderer = ChatRenderer(tokenizer)
    bridge = renderer.bridge([5], "a</s>b")
    assert "a</s>b" in tokenizer.decode(bridge)
    assert bridge.count(tokenizer.eos_token_id) == renderer.bridge([5], "a b").count(tokenizer.eos_token_id)


def test_thousands_of_control_tokens_and_markers_are_no_burden():
    renderer = ChatRenderer(tokenizer_of("ChatML"))
    since = time.perf_counter()
    for observation in ("<|im_end|>" * 5_000, "ANSWERMARKER" * 5_000, "CUTMARKER<|im_end|>" * 5_000):
        assert renderer.bridge([5], observation).count(renderer.end_id) == 2
    assert time.perf_counter() - since < 30  # quadratic time would be minutes


@few_models
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_observations_give_the_ids_of_a_full_render(name, what):
    tokenizer = tokenizer_of(name)
    conversation = [(HOSTILE[what], "ok"), (HOSTILE[what] * 2, "\\boxed{7}"), ("End?", "")]
    assert is_append_only(tokenizer, conversation, clean(tokenizer))


@few_models
@given(data=st.data())
def test_any_observations_give_the_ids_of_a_full_render(name, data):
    tokenizer = tokenizer_of(name)
    pieces = st.sampled_from([*tokenizer.all_special_tokens, *HOSTILE.values()]) | st.text(max_size=5)
    observations = data.draw(st.lists(st.lists(pieces, max_size=4).map("".join), min_size=2, max_size=3))
    assert is_append_only(tokenizer, [(text, "ok") for text in observations], clean(tokenizer))


@few_models
def test_long_observation_gives_the_ids_of_a_full_render(name):
    tokenizer = tokenizer_of(name)
    conversation = [("Play.", "ok"), ("A long story.\n" * 7_000, "ok"), ("End?", "")]
    assert is_append_only(tokenizer, conversation, clean(tokenizer))


@few_models
def test_a_turn_that_was_cut_is_closed_by_the_end_token_and_a_clean_one_is_not(name):
    tokenizer = tokenizer_of(name)
    renderer = ChatRenderer(tokenizer)
    cut, ended = [5, 6], [5, 6, tokenizer.eos_token_id]
    assert renderer.bridge(cut, "Higher.") == [tokenizer.eos_token_id, *renderer.bridge(ended, "Higher.")]
    assert tokenizer.eos_token_id not in renderer.bridge(ended, "Higher.")[:1]


def test_a_turn_that_ended_with_another_token_is_closed_by_the_templates_end_token():
    tokenizer = tokenizer_of("ChatML")
    renderer = ChatRenderer(tokenizer)
    other_end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert renderer.bridge([5, other_end], "Higher.") == renderer.bridge([5], "Higher.")
    assert renderer.bridge([5, other_end], "Higher.")[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_bridge_does_not_depend_on_how_the_answer_was_put_into_tokens():
    tokenizer = tokenizer_of("ChatML")
    renderer = ChatRenderer(tokenizer)
    letters = [token for letter in "Higher" for token in encode(tokenizer, letter)]
    assert letters != encode(tokenizer, "Higher")
    assert renderer.bridge(letters, "Yes.") == renderer.bridge(encode(tokenizer, "Higher"), "Yes.")
    assert renderer.decode(letters) == "Higher"


def test_decode_drops_special_tokens_and_keeps_blanks_and_added_words():
    tokenizer = tokenizer_of("ChatML")
    text = "<think> a , b .\n</think> \\boxed{5} \n"
    ids = encode(tokenizer, f"<|im_start|>{text}<|im_end|><|endoftext|>")
    assert ChatRenderer(tokenizer).decode(ids) == text


def test_no_special_token_is_added_to_those_of_the_template():
    tokenizer = byte_level(shipped("llama3"), "<|begin_of_text|>", "<|eot_id|>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    assert tokenizer("x")["input_ids"][0] == bos
    renderer = ChatRenderer(tokenizer)
    assert renderer.first("Play.").count(bos) == 1
    assert bos not in renderer.bridge([5], "Higher.") + renderer.encode("x")


@prepend_schemes
@pytest.mark.parametrize("name", WITH_BLANKS_AS_UNDERSCORES)
def test_tokenizer_that_writes_blanks_as_underscores_gives_the_ids_of_a_full_render(name, prepend_scheme):
    template, before, said, differ = WITH_BLANKS_AS_UNDERSCORES[name]
    tokenizer = metaspace(template, prepend_scheme)
    assert reported(tokenizer) == differ

    def sampled(answer):
        return encode(tokenizer, before + said.format(answer))[len(encode(tokenizer, before)) :]

    for conversation in CONVERSATIONS.values():
        assert is_append_only(tokenizer, conversation, sampled)


@prepend_schemes
def test_blank_that_the_template_writes_before_the_end_token_goes_with_it(prepend_scheme):
    tokenizer = metaspace(LLAMA2, prepend_scheme)
    renderer = ChatRenderer(tokenizer)
    after_cut = renderer.bridge([5], "Higher.")
    assert tokenizer.convert_ids_to_tokens(after_cut)[:3] == ["▁", "</s>", "<s>"]
    assert renderer.bridge([5, tokenizer.eos_token_id], "Higher.") == after_cut[2:]


def test_template_that_ends_turns_with_plain_text_has_no_end_token():
    tokenizer = byte_level(PLAIN_TEXT)
    renderer = ChatRenderer(tokenizer)
    assert renderer.end_id is None
    assert tokenizer.decode(renderer.bridge([5], "Higher.")) == "\n\n### User:\nHigher.\n\n### Assistant:\n"
    assert renderer.bridge([5, tokenizer.eos_token_id], "</s>") == renderer.bridge([5], "</s>")


@prepend_schemes
def test_plain_text_after_an_answer_begins_without_a_blank(prepend_scheme):
    tokenizer = metaspace(PLAIN_TEXT, prepend_scheme)
    bridge = ChatRenderer(tokenizer).bridge([5], "Higher.")
    assert tokenizer.convert_ids_to_tokens(bridge)[:2] == ["\n", "\n"]
    assert full_render(tokenizer, [("question", "ok")], "Higher.")[-len(bridge) :] == bridge


def test_answer_whose_end_merges_with_the_plain_text_after_it_is_reported():
    tokenizer = byte_level(PLAIN_TEXT)
    assert len(encode(tokenizer, ".\n\n")) == 1
    conversations = {end: [("a", f"b{end}"), ("c", "d")] for end in ("", ".")}
    assert reported(tokenizer, conversations=conversations) == {"."}


def test_token_after_the_observation_is_not_the_end_of_the_answer():
    tokenizer = byte_level(USER_TURN_ENDS_WITH_A_TOKEN)
    renderer = ChatRenderer(tokenizer)
    assert renderer.end_id is None
    assert tokenizer.decode(renderer.bridge([5, tokenizer.eos_token_id], "A long observation.")) == (
        "\nA long observation.</s>"
    )


def test_end_of_an_answer_that_merges_with_the_template_is_told_apart():
    merged = Tokenizer(
        models.BPE({**{letter: i for i, letter in enumerate("ANSWERMK#questionb")}, "R#": 30}, [("R", "#")])
    )
    template = "{% for message in messages %}{{ message['content'] + '#' }}{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merged, chat_template=template)
    renderer = ChatRenderer(tokenizer)
    assert encode(tokenizer, "R#") == [30]
    assert tokenizer.convert_ids_to_tokens(renderer.bridge([0], "q")) == ["#", "q", "#"]


@pytest.mark.parametrize("name", ["ChatML", "Zephyr", "llama3", "qwen2_5", "phi3", "gemma3", "cohere"])
def test_system_message_stands_before_the_first_observation_only(name):
    tokenizer = tokenizer_of(name)
    for conversation in CONVERSATIONS.values():
        assert is_append_only(tokenizer, conversation, clean(tokenizer), system="You are a wizard.")
    renderer = ChatRenderer(tokenizer, system="You are a wizard.")
    assert "You are a wizard." in tokenizer.decode(renderer.first("Play."))
    assert "wizard" not in tokenizer.decode(renderer.bridge([5], "Higher."))
    assert reported(tokenizer, system="You are a wizard.") == SAME


def test_system_message_that_the_template_moves_to_the_last_turn_is_reported():
    tokenizer = metaspace(MISTRAL, "always")
    renderer = ChatRenderer(tokenizer, system="You are a wizard.")
    assert "[INST] You are a wizard." in tokenizer.decode(renderer.bridge([5], "Higher."))
    assert reported(tokenizer, system="You are a wizard.") == ALL


def test_empty_system_message_takes_the_place_of_the_templates_own():
    tokenizer = tokenizer_of("qwen2_5")
    assert "You are Qwen" in tokenizer.decode(ChatRenderer(tokenizer).first("Play."))
    assert "You are Qwen" not in tokenizer.decode(ChatRenderer(tokenizer, system="").first("Play."))


def test_template_arguments_reach_the_prompt_and_every_bridge():
    tokenizer = tokenizer_of("qwen3")
    renderer = ChatRenderer(tokenizer, template_kwargs={"enable_thinking": False})
    no_thinking = encode(tokenizer, "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert renderer.first("Play.")[-len(no_thinking) :] == no_thinking
    assert renderer.bridge([5], "Higher.")[-len(no_thinking) :] == no_thinking
    assert reported(tokenizer, template_kwargs={"enable_thinking": False}) == ALL  # past turns are shown without it


def with_tools(name):
    template, end, _, _ = WITH_TOOLS[name]
    return byte_level(template, end=end)


def prompts(tokenizer, conversation):
    """Yield an episode's prompts, its answers ended as the template ends them, and the full renders."""
    renderer = ChatRenderer(tokenizer, tool_role=True, allow_control_tokens=True)
    ids, messages = [], []
    for observation, answer, *others in conversation:
        role = others[0] if others else "user"
        if messages:
            response = [*encode(tokenizer, messages[-1]["content"]), *renderer.end_of_turn(role)]
            ids = ids + response + renderer.bridge(response, observation, role)
        else:
            ids = renderer.first(observation)
        messages.append({"role": role, "content": observation})
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        yield ids, encode(tokenizer, text)
        messages.append({"role": "assistant", "content": answer})


every_template_with_tools = pytest.mark.parametrize("name", WITH_TOOLS)


@every_template_with_tools
@pytest.mark.parametrize("what", TOOL_CONVERSATIONS)
def test_tools_messages_give_the_ids_of_a_full_render(name, what):
    for ids, rendered in prompts(with_tools(name), TOOL_CONVERSATIONS[what]):
        assert ids == rendered


@every_template_with_tools
def test_hostile_tools_give_the_ids_of_a_full_render(name):
    turns = [(text, "ok", "tool") for text in HOSTILE.values()]
    for ids, rendered in prompts(with_tools(name), [("Begin.", "ok"), *turns, ("End?", "")]):
        assert ids == rendered


def test_a_tools_message_is_in_the_templates_own_form():
    def shown(name, observation):
        tokenizer = with_tools(name)
        return tokenizer.decode(ChatRenderer(tokenizer, tool_role=True).bridge([5], observation, "tool"))

    assert shown("Qwen3", "42") == (
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown("Llama 3.1", 'a "b"') == (
        '<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"a \\"b\\""<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@every_template_with_tools
def test_an_answer_before_a_tools_message_is_closed_by_the_token_that_the_template_has_there(name):
    tokenizer = with_tools(name)
    renderer = ChatRenderer(tokenizer, tool_role=True)
    of_user, of_tool = tokenizer.convert_tokens_to_ids(list(WITH_TOOLS[name][1:3]))
    assert (renderer.end_id, renderer.end_ids) == (of_user, {"user": of_user, "tool": of_tool})
    for role, end, other in (("user", of_user, of_tool), ("tool", of_tool, of_user)):
        cut = renderer.bridge([5], "42", role)
        assert cut[0] == end
        assert renderer.bridge([5, end], "42", role) == cut[1:]
        assert renderer.bridge([5, other], "42", role) == cut[1:]  # it was ended, if in another way
    assert set(renderer.stop_ids) == {of_user, of_tool}


@every_template_with_tools
def test_users_messages_are_the_same_with_a_tool_role(name):
    tokenizer = with_tools(name)
    without, renderer = ChatRenderer(tokenizer), ChatRenderer(tokenizer, tool_role=True)
    for observation in HOSTILE.values():
        renderer.bridge([5], observation, "tool")
        assert renderer.first(observation) == without.first(observation)
        assert renderer.bridge([5], observation) == without.bridge([5], observation)


@pytest.mark.parametrize("name", NO_TOOLS)
def test_template_that_cannot_show_a_tools_message_is_refused_if_it_is_to(name):
    template, said = NO_TOOLS[name]
    ChatRenderer(byte_level(template))
    with pytest.raises(ValueError, match=said):
        ChatRenderer(byte_level(template), tool_role=True)


@every_model
def test_tool_role_of_a_shipped_template_is_refused_or_is_that_of_a_full_render(name):
    tokenizer = tokenizer_of(name)
    if name in NO_TOOL_ROLE:
        with pytest.raises(ValueError, match=r"the chat template .* Leave tool_role off"):
            ChatRenderer(tokenizer, tool_role=True)
        return
    differ = {
        what
        for what, conversation in TOOL_CONVERSATIONS.items()
        if any(ids != rendered for ids, rendered in prompts(tokenizer, conversation))
    }
    assert reported(tokenizer, tool_role=True) == MODELS[name].differ | differ
    as_others = frozenset(TOOL_CONVERSATIONS) if MODELS[name].differ == ALL else SAME
    assert differ == TOOLS_DIFFER.get(name, as_others)


def test_turns_of_tools_have_the_users_role_unless_the_renderer_is_told_otherwise():
    tokenizer = with_tools("Qwen3")
    without, renderer = ChatRenderer(tokenizer), ChatRenderer(tokenizer, tool_role=True)
    assert [without.role_of(info) for info in ({"use_tool": True}, {"use_tool": False}, {})] == ["user"] * 3
    assert [renderer.role_of(info) for info in ({"use_tool": True}, {"use_tool": False}, {})] == [
        "tool",
        "user",
        "user",
    ]
    with pytest.raises(ValueError, match="role user here, not 'tool'"):
        without.bridge([5], "42", "tool")
    with pytest.raises(ValueError, match="role user or tool here, not 'ipython'"):
        renderer.bridge([5], "42", "ipython")


@every_template_with_tools
def test_turns_of_tools_are_tried_if_they_have_a_role(name):
    assert reported(with_tools(name), tool_role=True) == reported(with_tools(name)) == WITH_TOOLS[name][3]


def test_template_that_rewrites_past_tools_messages_is_reported():
    count = "message['content'] + (messages | length | string if message['role'] == 'tool' else '')"
    tokenizer = byte_level(CHATML.replace("message['content']", count), end="<|im_end|>")
    assert reported(tokenizer) == SAME
    assert reported(tokenizer, tool_role=True) == set(TOOL_CONVERSATIONS)
    mine = {"mine": [("a", "b"), ("c", "d", "tool"), ("e", "f")], "others": [("a", "b"), ("c", "d")]}
    assert reported(tokenizer, conversations=mine, tool_role=True) == {"mine"}
    with pytest.raises(ValueError, match="role user here, not 'tool'"):
        render_differences(tokenizer, mine)


def test_difference_shows_both_texts_at_the_turn():
    (difference,) = render_differences(tokenizer_of("qwen3"), {"mine": CONVERSATIONS["thinking"]})
    assert (difference.conversation, difference.turn) == ("mine", 2)
    assert "<think>\nfive" in difference.appended
    assert "assistant\n\\boxed{5}<|im_end|>" in difference.rendered
    assert "think" not in difference.rendered


@pytest.mark.parametrize(("name", "differ"), [("gemma", {"padded"}), ("ChatML", SAME)])
def test_template_that_strips_answers_is_reported(name, differ):
    assert reported(tokenizer_of(name), conversations={"padded": [("a", " b \n"), ("c", "d")]}) == differ


TWO_TOKENS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|TURN|><|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{{ '<|RESPONSE|>' + message['content'] + '<|END_RESPONSE|>' }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|END_TURN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|TURN|><|assistant|><|RESPONSE|>' }}{% endif %}"
)
"""Ends an answer with two tokens, as Command R7B's does."""


def test_an_end_of_two_tokens_is_completed_and_not_doubled():
    tokenizer = byte_level(TWO_TOKENS, "<BOS>", "<|END_TURN|>", specials=["<|user|>", "<|assistant|>"])
    first, second = tokenizer.convert_tokens_to_ids(["<|END_RESPONSE|>", "<|END_TURN|>"])
    renderer = ChatRenderer(tokenizer)
    cut = renderer.bridge([5], "Higher.")
    assert cut[:2] == [first, second]
    assert second not in cut[2 : cut.index(renderer.control_ids and tokenizer.convert_tokens_to_ids("<|user|>"))]
    assert renderer.bridge([5, first], "Higher.") == cut[1:]
    assert renderer.bridge([5, first, second], "Higher.") == cut[2:]
    assert renderer.bridge([5, second], "Higher.") == cut[2:]
    assert renderer.end_of_turn() == [first, second]
    assert renderer.stop_ids == (second,)
    assert reported(tokenizer) == SAME


@pytest.mark.parametrize("name", ["cohere2", "cohere2_training"])
def test_the_shipped_template_that_ends_with_two_tokens(name):
    tokenizer = tokenizer_of(name)
    both = tokenizer.convert_tokens_to_ids(["<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"])
    renderer = ChatRenderer(tokenizer)
    assert renderer.bridge([5], "Higher.") == both + renderer.bridge([5, *both], "Higher.")
    assert both[0] not in renderer.bridge([5, *both], "Higher.")
    assert renderer.stop_ids == (both[1],)


def test_the_end_of_the_last_answer_is_the_end_of_an_answer_before_others_too():
    tokenizer = tokenizer_of("gptoss")
    last, inner = tokenizer.convert_tokens_to_ids(["<|return|>", "<|end|>"])
    renderer = ChatRenderer(tokenizer)
    cut = renderer.bridge([5], "Higher.")
    assert cut[0] == inner
    assert renderer.bridge([5, last], "Higher.") == renderer.bridge([5, inner], "Higher.") == cut[1:]
    assert renderer.stop_ids == (last,)  # at <|end|> an answer may go on in another channel


@every_model
def test_engines_are_to_stop_at_the_templates_end(name):
    tokenizer = tokenizer_of(name)
    end = {"gptoss": "<|return|>", "gptoss_training": "<|return|>"}.get(name, MODELS[name].end)
    assert ChatRenderer(tokenizer).stop_ids == (tokenizer.convert_tokens_to_ids(end),)


def test_a_base_models_end_token_is_not_the_templates():
    tokenizer = byte_level(CHATML, end="<|endoftext|>")
    assert ChatRenderer(tokenizer).stop_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert ChatRenderer(byte_level(PLAIN_TEXT)).stop_ids == ()


NO_THINK = (
    "{% set ns = namespace(think=true) %}{% for message in messages %}"
    "{% if '/no_think' in message['content'] %}{% set ns.think = false %}{% endif %}{% endfor %}"
    + CHATML.replace(
        "{{ '<|im_start|>assistant\\n' }}",
        "{{ '<|im_start|>assistant\\n<think>' }}{{ '' if ns.think else '</think>' }}",
    )
)
"""Looks for a word in the messages, as Nemotron Nano's does."""


def test_a_word_in_the_first_observation_decides_on_every_bridge():
    tokenizer = byte_level(NO_THINK, end="<|im_end|>")
    renderer = ChatRenderer(tokenizer)
    assert tokenizer.decode(renderer.bridge([5], "Higher.", first="Play. /no_think")).endswith("<think></think>")
    assert tokenizer.decode(renderer.bridge([5], "Higher.", first="Play.")).endswith("<think>")
    conversation = [("Play. /no_think", "5"), ("Higher.", "6")]
    rendered = full_render(tokenizer, conversation[:1], "Higher.")
    bridge = renderer.bridge([5], "Higher.", first="Play. /no_think")
    assert rendered[-len(bridge) :] == bridge


class Processor:
    """Has a tokenizer and a template, as transformers' processors do."""

    def __init__(self, tokenizer):
        self.tokenizer, self.chat_template = tokenizer, tokenizer.chat_template
        self.name_or_path = "mine"


def test_a_processor_is_as_good_as_its_tokenizer():
    tokenizer = tokenizer_of("ChatML")
    bare = byte_level(CHATML, "<|endoftext|>", "<|im_end|>")
    processor = Processor(bare)
    bare.chat_template = None  # where the processor alone has it
    assert ChatRenderer(processor).first("Play.") == ChatRenderer(tokenizer).first("Play.")
    assert ChatRenderer(processor).parse(encode(bare, "<think>x</think>y"), []).action == "y"
    assert render_differences(processor) == []


def test_a_template_that_goes_through_tools_is_given_none():
    template = "{% for tool in tools %}{{ tool.name }}{% endfor %}" + CHATML
    tokenizer = byte_level(template, end="<|im_end|>")
    assert ChatRenderer(tokenizer).first("Play.") == ChatRenderer(byte_level(CHATML, end="<|im_end|>")).first("Play.")
    assert reported(tokenizer) == SAME


def test_a_template_that_fails_says_why():
    with pytest.raises(ValueError, match="fails on a plain conversation: TemplateError: only images"):
        ChatRenderer(byte_level("{{ raise_exception('only images') }}"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            CHATML.replace(
                "{{", "{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{", 1
            ),
            "refuses a system message .*no system",
        ),
        (
            CHATML.replace("in messages %}", "in messages if message['role'] != 'system' %}"),
            "does not show a system message",
        ),
    ],
    ids=["raises", "leaves it out"],
)
def test_a_template_without_a_system_role_is_refused_a_system_message(template, said):
    ChatRenderer(byte_level(template))
    with pytest.raises(ValueError, match=said + r".*\. Leave the system message out"):
        ChatRenderer(byte_level(template), system="You are a wizard.")


def test_of_named_templates_the_default_is_taken():
    tokenizer = tokenizer_of("ChatML")
    named = byte_level(CHATML, "<|endoftext|>", "<|im_end|>")
    named.chat_template = {"default": CHATML, "rag": PLAIN_TEXT}
    assert ChatRenderer(named).first("Play.") == ChatRenderer(tokenizer).first("Play.")
    named.chat_template = {"rag": PLAIN_TEXT, "tool_use": CHATML}
    with pytest.raises(ValueError, match=r"chat templates rag, tool_use, and none is the default"):
        ChatRenderer(named)


def test_a_template_among_the_arguments_is_taken_for_everything():
    llama = tokenizer_of("ChatML").chat_template.replace("<|im_end|>", "<|eot|>")
    own = byte_level(CHATML, "<|endoftext|>")
    own.add_tokens([AddedToken("<|eot|>", special=False)])
    renderer = ChatRenderer(own, template_kwargs={"chat_template": llama})
    end = own.convert_tokens_to_ids("<|eot|>")
    assert renderer.end_id == end
    assert renderer.stop_ids == (end,)
    assert end in renderer.control_ids
    assert end not in ChatRenderer(own).control_ids
    assert own.decode(renderer.first("Play.")) == own.apply_chat_template(
        [{"role": "user", "content": "Play."}], chat_template=llama, tokenize=False, add_generation_prompt=True
    )
    own.chat_template = {"default": CHATML, "other": llama}
    by_name = ChatRenderer(own, template_kwargs={"chat_template": "other"})
    assert by_name.first("Play.") == renderer.first("Play.")


def test_a_tokenizer_that_renders_without_a_template_is_refused_with_what_to_do():
    class MistralCommonBackend:
        name_or_path = "mistral"

        def added_tokens_decoder(self):
            return {}

    with pytest.raises(TypeError, match=r"MistralCommonBackend renders .* without a chat template.*tokenizer\.json"):
        ChatRenderer(MistralCommonBackend())


def test_an_observation_that_a_template_refuses_is_told_from_a_wrong_set_up():
    refusing = CHATML.replace(
        "{{", "{% if 'tool_response' in message['content'] %}{{ raise_exception('no query') }}{% endif %}{{", 1
    )
    renderer = ChatRenderer(byte_level(refusing))
    for render in (renderer.first, lambda text: renderer.bridge([5], text)):
        with pytest.raises(ObservationRefused, match="no query"):
            render("<tool_response>")


def test_tokenizer_without_a_chat_template_is_refused_with_what_to_do():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(vocabulary()), name_or_path="base-model")
    with pytest.raises(ValueError, match=r"base-model has no chat template.*tokenizer\.chat_template"):
        ChatRenderer(tokenizer)


@pytest.mark.parametrize(
    "template",
    ["{{ messages[-1]['content'] }}", CHATML.replace("message['content']", "message['content'] | lower")],
    ids=["last message only", "lower case"],
)
def test_template_that_does_not_show_the_answers_is_refused(template):
    with pytest.raises(ValueError, match="does not show the assistant's message"):
        ChatRenderer(byte_level(template))


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_template_for_messages_in_parts_is_refused(name):
    with pytest.raises(ValueError, match="does not show the assistant's message"):
        ChatRenderer(byte_level(shipped(name)))


def test_most_of_the_shipped_templates_are_there():
    pytest.importorskip("trl")
    folder = Path(find_spec("trl").submodule_search_locations[0], "chat_templates")
    assert len({path.stem for path in folder.glob("*.jinja")} & set(SHIPPED)) >= 12
