"""Episodes: their views, and their JSON lines."""

import json
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gem.rollout import INVALID, Episode, Turn, check_on_error, read_jsonl, write_jsonl
from gem.tasks import SPLITS, Task

TASK = Task("game:GuessTheNumber-v1-easy", seed=3)


def turn(prompt_ids, response_ids, reward=0.0, logprobs=None, finish_reason="stop", **kwargs):
    return Turn(prompt_ids, response_ids, logprobs, finish_reason, "", reward=reward, **kwargs)


def three_turns():
    """A clean turn, a turn that was cut (92 is the end token that was not sampled), and a clean turn."""
    return Episode(
        TASK,
        "Guess.",
        [
            turn([1, 2], [10, 11], 0.25, [-0.5, -0.25]),
            turn([1, 2, 10, 11, 90], [20], -0.5, [-1.0], "length"),
            turn([1, 2, 10, 11, 90, 20, 92, 91], [30, 31, 32], 1.0, [-2.0, -3.0, -4.0], terminated=True),
        ],
    )


def rewritten():
    """The second prompt does not hold the first answer."""
    return Episode(TASK, "", [turn([1, 2], [10, 11], 0.25), turn([1, 2, 12, 90], [20], 1.0)])


def without_logprobs(episode, *numbers):
    for number in numbers:
        episode.turns[number].logprobs = None
    return episode


# As a sequence


def test_sequence_is_the_first_prompt_and_all_that_follows():
    sequence = three_turns().as_sequence()
    assert sequence.prompt_ids.tolist() == [1, 2]
    assert sequence.completion_ids.tolist() == [10, 11, 90, 20, 92, 91, 30, 31, 32]


def test_mask_is_1_on_sampled_tokens_and_0_on_bridges_and_on_an_end_token_that_was_not_sampled():
    assert three_turns().as_sequence().mask.tolist() == [1, 1, 0, 1, 0, 0, 1, 1, 1]


def test_rewards_sit_on_the_last_sampled_token_of_their_turn():
    sequence = three_turns().as_sequence()
    assert sequence.rewards.tolist() == [0, 0.25, 0, -0.5, 0, 0, 0, 0, 1.0]
    assert sequence.turn_ends.tolist() == [1, 3, 8]


def test_logprobs_are_0_on_bridges():
    assert three_turns().as_sequence().logprobs.tolist() == [-0.5, -0.25, 0, -1, 0, 0, -2, -3, -4]


@pytest.mark.parametrize("missing", [(0,), (2,), (0, 1, 2)])
def test_sequence_has_no_logprobs_where_a_turn_has_none(missing):
    assert without_logprobs(three_turns(), *missing).as_sequence().logprobs is None


def test_sequence_ends_on_the_last_sampled_token_of_a_turn_that_was_cut():
    episode = three_turns()
    del episode.turns[2:]
    sequence = episode.as_sequence()
    assert sequence.completion_ids.tolist() == [10, 11, 90, 20]
    assert sequence.mask[-1] == 1


def test_turn_that_follows_without_a_bridge_is_all_sampled():
    sequence = Episode(TASK, "", [turn([1], [2], 0.5), turn([1, 2], [3], 1.0)]).as_sequence()
    assert sequence.mask.tolist() == [1, 1]
    assert sequence.rewards.tolist() == [0.5, 1.0]


def test_arrays_have_the_types_that_are_promised():
    sequence = three_turns().as_sequence()
    for name in ("prompt_ids", "completion_ids", "mask", "turn_ends"):
        assert getattr(sequence, name).dtype == np.int64, name
    assert sequence.rewards.dtype == sequence.logprobs.dtype == np.float64


def test_views_share_nothing_with_the_episode():
    episode = three_turns()
    sequence, (transition, *_) = episode.as_sequence(), episode.as_transitions()
    for array in (sequence.prompt_ids, sequence.completion_ids, transition.prompt_ids, transition.response_ids):
        array[:] = 0
    assert episode == three_turns()


def test_rewritten_history_is_no_sequence_and_the_error_says_what_to_take():
    assert not rewritten().append_only
    with pytest.raises(ValueError, match=r"turn 2 of game:GuessTheNumber-v1-easy.*as_transitions\(\)"):
        rewritten().as_sequence()


def test_prompt_shorter_than_what_was_seen_is_not_append_only():
    episode = Episode(TASK, "", [turn([1, 2], [10, 11]), turn([1, 2, 10], [20])])
    assert not episode.append_only


def test_append_only_episode_is_append_only():
    assert three_turns().append_only


def test_episode_without_turns_is_no_sequence():
    with pytest.raises(ValueError, match=r"no turn \(abort\)"):
        Episode(TASK, truncation="abort").as_sequence()
    assert Episode(TASK, truncation="abort").as_transitions() == []


# As transitions


def test_transitions_hold_the_turns_ids_logprobs_and_rewards():
    transitions = three_turns().as_transitions()
    assert [t.prompt_ids.tolist() for t in transitions] == [turn.prompt_ids for turn in three_turns().turns]
    assert [t.response_ids.tolist() for t in transitions] == [[10, 11], [20], [30, 31, 32]]
    assert [t.logprobs.tolist() for t in transitions] == [[-0.5, -0.25], [-1], [-2, -3, -4]]
    assert [t.reward for t in transitions] == [0.25, -0.5, 1.0]
    assert [t.done for t in transitions] == [False, False, True]


@pytest.mark.parametrize(("gamma", "returns"), [(1.0, [0.75, 0.5, 1.0]), (0.5, [0.25, 0, 1]), (0.0, [0.25, -0.5, 1])])
def test_return_to_go_discounts_following_rewards_a_turn(gamma, returns):
    assert [t.return_to_go for t in three_turns().as_transitions(gamma)] == returns


def test_transition_has_no_logprobs_where_its_turn_has_none():
    first, second, _ = without_logprobs(three_turns(), 0).as_transitions()
    assert first.logprobs is None
    assert second.logprobs.tolist() == [-1]


def test_rewritten_history_has_transitions():
    first, second = rewritten().as_transitions(gamma=0.5)
    assert (first.prompt_ids.tolist(), second.prompt_ids.tolist()) == ([1, 2], [1, 2, 12, 90])
    assert (first.return_to_go, second.return_to_go) == (0.75, 1.0)


# Sums


def test_total_reward_is_the_sum_and_sampled_tokens_are_counted():
    assert three_turns().total_reward == 0.75
    assert three_turns().sampled_tokens == 6
    assert isinstance(Episode(TASK).total_reward, float)


@pytest.mark.parametrize(
    ("info", "terminated", "rewards", "success"),
    [
        ({"success": True}, False, [0.0], True),
        ({"success": False}, True, [1.0], False),
        ({}, True, [1.0], True),
        ({}, True, [0.5, 0.5], True),
        ({}, True, [0.99], False),
        ({}, False, [1.0], False),
    ],
)
def test_success_is_what_info_says_or_else_a_terminated_return_of_1(info, terminated, rewards, success):
    turns = [turn([1], [2], reward) for reward in rewards]
    turns[-1].info, turns[-1].terminated = info, terminated
    assert Episode(TASK, "", turns).success is success


def test_success_is_that_of_the_last_turn():
    turns = [turn([1], [2], info={"success": True}), turn([1], [2], info={"success": False})]
    assert Episode(TASK, "", turns).success is False


def test_episode_without_turns_is_no_success():
    assert Episode(TASK, truncation="abort").success is False


# Whose failure


@pytest.mark.parametrize(
    ("truncation", "valid"),
    [(None, True), ("turns", True), ("context", True), ("error", False), ("abort", False), ("overlong", False)],
)
def test_an_episode_is_invalid_where_a_failure_that_is_not_the_models_ended_it(truncation, valid):
    episode = Episode(TASK, truncation=truncation, retries=2)
    assert episode.valid is valid
    metrics = episode.metrics()
    assert metrics["left_out"] == 1 - valid
    assert metrics["overlong"] == (truncation == "overlong")
    assert metrics["retries"] == 2


def test_the_option_on_error_has_two_values():
    assert [check_on_error(value) for value in ("mask", "keep")] == ["mask", "keep"]
    with pytest.raises(ValueError, match="on_error is 'mask' or 'keep', got 'skip'"):
        check_on_error("skip")


# As JSON

IDS = st.lists(st.integers(0, 2**31), max_size=4)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=8) | st.sampled_from(["\ud800", "a\udfffb", "a\nb\u2028\x00"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)


@st.composite
def any_turn(draw, before):
    response = draw(IDS.filter(bool))
    start = before.prompt_ids + before.response_ids if before and draw(st.booleans()) else []
    return Turn(
        prompt_ids=start + draw(IDS),
        response_ids=response,
        logprobs=draw(st.none() | st.lists(FLOATS, min_size=len(response), max_size=len(response))),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        action=draw(TEXT),
        observation=draw(TEXT),
        reward=draw(FLOATS),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        info=draw(st.dictionaries(TEXT, JSON, max_size=3)),
        full_text=draw(st.none() | TEXT),
    )


@st.composite
def any_episode(draw):
    task = Task(draw(TEXT), draw(st.integers(0, 2**40 - 1)), draw(st.just({}) | st.just({"a": [1]})), SPLITS[0])
    turns = []
    for _ in range(draw(st.integers(0, 3))):
        turns.append(draw(any_turn(turns[-1] if turns else None)))
    truncation = draw(st.sampled_from([None, "turns", "context", *sorted(INVALID)]))
    return Episode(task, draw(TEXT), turns, truncation, draw(st.none() | TEXT), draw(st.integers(0, 2)))


@given(any_episode())
@example(Episode(TASK, "a\nb\u2028\x00\ud800🎲", [turn([1], [2], 0.1 + 0.2, [-1e-300])], "error", "\udfff"))
def test_episode_survives_json_as_one_line(episode):
    line = episode.to_json()
    assert line.isascii()
    assert "\n" not in line
    assert Episode.from_json(line) == episode


@given(st.lists(FLOATS, min_size=1))
def test_floats_survive_json_to_the_last_bit(floats):
    episode = Episode(TASK, "", [turn([1], [2] * len(floats), floats[0], floats)])
    (read,) = Episode.from_json(episode.to_json()).turns
    assert [value.hex() for value in read.logprobs] == [value.hex() for value in floats]
    assert read.reward.hex() == floats[0].hex()


def test_every_split_and_argument_of_a_task_survives_json():
    for split in SPLITS:
        episode = Episode(Task("x", 2**40 - 1, {"max_number": 9, "nested": {"a": [None, 0.1]}}, split))
        assert Episode.from_json(episode.to_json()).task == episode.task


def test_numpy_values_in_an_info_are_written_as_plain_numbers():
    info = {
        "score": np.float32(0.5),
        "count": np.int64(7),
        "won": np.bool_(True),
        "board": np.arange(4).reshape(2, 2),
        "inner": [{"x": np.float64(0.1)}],
    }
    (read,) = Episode.from_json(Episode(TASK, "", [turn([1], [2], info=info)]).to_json()).turns
    assert read.info == {"score": 0.5, "count": 7, "won": True, "board": [[0, 1], [2, 3]], "inner": [{"x": 0.1}]}


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", 1j])
def test_info_that_is_no_json_data_is_refused_by_name(value):
    with pytest.raises(TypeError, match=f"{type(value).__name__}, which is not JSON data"):
        Episode(TASK, "", [turn([1], [2], info={"a": value})]).to_json()


def test_prompt_that_extends_the_last_is_written_as_its_bridge():
    first, second, third = json.loads(three_turns().to_json())["turns"]
    assert first["prompt_ids"] == [1, 2]
    assert second["bridge_ids"] == [90]
    assert third["bridge_ids"] == [92, 91]
    assert "prompt_ids" not in {**second, **third}


def test_prompt_that_does_not_extend_the_last_is_written_whole():
    first, second = json.loads(rewritten().to_json())["turns"]
    assert "bridge_ids" not in {**first, **second}
    assert second["prompt_ids"] == [1, 2, 12, 90]
    assert Episode.from_json(rewritten().to_json()) == rewritten()


def test_writing_leaves_the_episode_as_it_was():
    episode = three_turns()
    episode.to_json()
    assert episode == three_turns()


def test_line_of_a_thousand_turns_is_short_and_quick():
    turns, prompt = [], list(range(100))
    for _ in range(1000):
        turns.append(turn(prompt, [5] * 10))
        prompt = prompt + [5] * 10 + [6] * 10
    episode = Episode(TASK, "", turns)
    start = time.perf_counter()
    line = episode.to_json()
    assert Episode.from_json(line) == episode
    assert time.perf_counter() - start < 5
    assert len(line) < 300 * 1000  # 10 million ids are in its prompts


@pytest.mark.parametrize(
    "line", ["{}", "[]", "null", '{"version": 2}', '{"version": "1"}', '{"task": {}, "turns": []}']
)
def test_line_of_another_format_is_refused(line):
    with pytest.raises(ValueError, match="not an episode of format 1"):
        Episode.from_json(line)


def test_line_from_before_there_were_retries_and_full_texts_is_read():
    data = json.loads(three_turns().to_json())
    del data["retries"]
    for row in data["turns"]:
        del row["full_text"]
    assert Episode.from_json(json.dumps(data)) == three_turns()


def test_line_that_was_cut_off_is_refused():
    with pytest.raises(ValueError, match="char"):
        Episode.from_json(three_turns().to_json()[:-1])


def test_files_hold_a_line_an_episode_in_order(tmp_path):
    episodes = [three_turns(), rewritten(), Episode(TASK, "é\n\u2028\r\x85", truncation="abort")]
    write_jsonl(tmp_path / "a.jsonl", episodes)
    assert list(read_jsonl(tmp_path / "a.jsonl")) == episodes
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 3


def test_files_are_replaced_unless_appended_to(tmp_path):
    path = str(tmp_path / "a.jsonl")
    write_jsonl(path, [three_turns()])
    write_jsonl(path, [rewritten()])
    assert list(read_jsonl(path)) == [rewritten()]
    write_jsonl(path, iter([three_turns()]), append=True)
    assert list(read_jsonl(path)) == [rewritten(), three_turns()]
