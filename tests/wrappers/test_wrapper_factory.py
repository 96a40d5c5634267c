import pytest

import gem
from gem.wrappers.wrapper_factory import WRAPPER_FACTORY, get_wrapper_fns

EASY = "game:GuessTheNumber-v0-easy"


def test_published_names_are_there():
    assert {"concat", "concat_with_action", "concat_chat", "concat_chat_on_reset", "episode_tracking"} <= set(
        WRAPPER_FACTORY
    )


def test_wrappers_are_returned_innermost_first():
    vec = gem.make_vec(EASY, wrappers=get_wrapper_fns("concat_with_action, episode_tracking"))
    assert [type(env).__name__ for env in (vec.envs[0], vec.envs[0].env)] == [
        "EpisodeTrackingWrapper",
        "ObservationWrapper",
    ]


@pytest.mark.parametrize("names", ["", " ", ","])
def test_no_name_gives_no_wrapper(names):
    assert get_wrapper_fns(names) == []


def test_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no wrapper 'history'; there are python_tool, "):
        get_wrapper_fns("concat,history")


@pytest.mark.parametrize("name", ["concat_chat", "concat_chat_on_reset"])
def test_chat_form_without_a_tokenizer_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' needs a tokenizer"):
        get_wrapper_fns(name)


@pytest.mark.parametrize("name", ["concat_chat", "concat_chat_on_reset"])
def test_tokenizer_reaches_the_chat_forms(name):
    tokenizer = object()
    (wrap,) = get_wrapper_fns(name, tokenizer)
    assert wrap(gem.make(EASY)).tokenizer is tokenizer


def test_one_list_of_wrappers_serves_many_envs_apart():
    wrappers = get_wrapper_fns("concat")
    vec = gem.make_vec([EASY] * 2, wrappers)
    vec.reset(seed=3)
    for _ in range(2):
        vec.step({0: "\\boxed{0}"})
    observations = vec.step({0: "\\boxed{0}", 1: "\\boxed{0}"})[0]
    assert [text.count("0 is not between") for text in observations] == [3, 1]


@pytest.mark.parametrize(
    "name", ["python_tool", "python_tool_no_int_reward", "search_tool", "search_tool_no_int_reward"]
)
def test_using_a_tool_earns_nothing(name):
    (wrap,) = get_wrapper_fns(name)
    with wrap(gem.make("math:Sample")) as env:
        env.reset(seed=0)
        tool = name.partition("_")[0]
        calls = [f"<{tool}>{text}</{tool}>" for text in ("print(1)", "pass", "1 / 0", "print(42)", "the")]
        steps = [env.step(call) for call in calls]
    assert [step[-1]["use_tool"] for step in steps] == [True] * 5
    assert sum(step[1] for step in steps) == 0.0


@pytest.mark.parametrize("tool", ["python", "search"])
def test_the_published_bonus_is_paid_where_its_name_asks_for_it(tool):
    (wrap,) = get_wrapper_fns(f"{tool}_tool_int_reward")
    with wrap(gem.make(EASY)) as env:
        env.reset(seed=0)
        assert env.step(f"<{tool}>print(1)</{tool}>")[1] == pytest.approx(0.3)
