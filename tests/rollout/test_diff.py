"""Where two lists of episodes part."""

import copy

import numpy as np
import pytest

from gem.rollout import Episode, Turn
from gem.rollout.diff import TurnTokens, episode_differences
from gem.tasks import Task


def turn(prompt_ids, response_ids, **kwargs):
    defaults = {"logprobs": [-0.5] * len(response_ids), "finish_reason": "stop", "action": "left"}
    return Turn(prompt_ids, response_ids, **{**defaults, **kwargs})


def make():
    """Two turns; 92 is between what was sampled and the next prompt's 90."""
    first = turn([1, 2], [10, 11], observation="A wall.", info={"success": False, "score": [1, 0.5]})
    second = turn([1, 2, 10, 11, 92, 90], [20, 21], observation="Home.", reward=1.0, terminated=True)
    return Episode(Task("x", 0), "Go.", [first, second])


def found(change, tolerance=1e-6):
    """Return the differences of an episode and a changed one, in short."""
    changed = make()
    change(changed)
    return [
        (difference.turn, difference.what, difference.at)
        for difference in episode_differences([make()], [changed], tolerance)
    ]


def set_turn(index, **fields):
    return lambda episode: vars(episode.turns[index]).update(fields)


def test_equal_episodes_have_no_difference():
    assert episode_differences([make(), make()], [make(), make()]) == []
    assert episode_differences([], []) == []


def test_an_episode_is_equal_to_what_is_read_back_from_its_file():
    episode = make()
    episode.turns[0].info.update(array=np.arange(3), pair=(1, 2), nan=float("nan"), number=np.float64(0.5))
    assert episode_differences([episode], [Episode.from_json(episode.to_json())]) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_turn(0, prompt_ids=[1, 3]), (1, "prompt token", 1)),
        (set_turn(0, prompt_ids=[1, 3], logprobs=None), (1, "prompt token", 1)),  # it explains the log-probabilities
        (set_turn(0, prompt_ids=[1]), (1, "prompt token", 1)),
        (set_turn(1, prompt_ids=[1, 2, 10, 11, 92, 91]), (2, "prompt token", 5)),
        (set_turn(1, prompt_ids=[1, 2, 9, 11, 92, 90]), (2, "prompt token", 2)),
        (set_turn(1, prompt_ids=[1, 2, 10, 11, 92]), (2, "prompt token", 5)),
        (set_turn(0, response_ids=[10, 12]), (1, "sampled token", 3)),
        (set_turn(1, response_ids=[20]), (2, "sampled token", 7)),
        (set_turn(1, response_ids=[20, 21, 22]), (2, "sampled token", 8)),
        (set_turn(0, response_ids=[10, 11, 92]), (1, "mask", 4)),
        (set_turn(0, response_ids=[10]), (1, "mask", 3)),
        (set_turn(0, prompt_ids=[1], response_ids=[2, 10, 11]), (1, "mask", 1)),
        (set_turn(0, logprobs=[-0.5, -0.6]), (1, "log-probability", 3)),
        (set_turn(0, logprobs=[-0.5]), (1, "log-probability", 3)),
        (set_turn(1, logprobs=None), (2, "log-probability", 6)),
        (set_turn(1, action="right"), (2, "action", None)),
        (set_turn(0, reward=1e-3), (1, "reward", None)),
        (set_turn(0, observation="A wall"), (1, "observation", None)),
        (set_turn(0, info={}), (1, "info", None)),
        (set_turn(0, info={"success": 0, "score": [1, 0.5]}), (1, "info", None)),
        (set_turn(0, info={"success": False, "score": [1, 0.6]}), (1, "info", None)),
        (set_turn(1, finish_reason="length"), (2, "end", None)),
        (set_turn(1, terminated=False), (2, "end", None)),
        (set_turn(1, truncated=True), (2, "end", None)),
        (lambda episode: setattr(episode, "first_observation", "Go!"), (None, "first observation", None)),
        (lambda episode: setattr(episode, "truncation", "turns"), (None, "end", None)),
        (lambda episode: setattr(episode, "error", "gone"), (None, "end", None)),
        (lambda episode: episode.turns.pop(), (None, "end", None)),
        (lambda episode: setattr(episode, "task", Task("x", 1)), (None, "task", None)),
        (lambda episode: setattr(episode, "task", Task("x", 0, {"n": 1})), (None, "task", None)),
        (lambda episode: setattr(episode, "task", Task("x", 0, split="eval")), (None, "task", None)),
    ],
)
def test_each_kind_of_difference_is_found_where_it_is(change, expected):
    assert found(change) == [expected]
    changed = make()
    change(changed)
    (back,) = episode_differences([changed], [make()])
    assert (back.turn, back.what, back.at) == expected


def test_both_sides_are_given():
    changed = make()
    changed.turns[0].response_ids = [10, 12]
    changed.turns[0].info["success"] = True
    tokens, info = episode_differences([make()], [changed])
    assert tokens.a == TurnTokens([1, 2, 10, 11, 92, 90], range(2, 4))
    assert tokens.b == TurnTokens([1, 2, 10, 12], range(2, 4))
    assert (info.a, info.b) == ({"success": False}, {"success": True})


@pytest.mark.parametrize(("tolerance", "expected"), [(1e-6, ["log-probability", "reward", "info"]), (1e-2, [])])
def test_numbers_count_as_equal_within_the_tolerance(tolerance, expected):
    change = set_turn(0, logprobs=[-0.5, -0.505], reward=0.005, info={"success": False, "score": [1, 0.505]})
    assert [what for _, what, _ in found(change, tolerance)] == expected


def test_after_the_turn_in_which_episodes_part_only_the_end_is_compared():
    def change(episode):
        episode.turns[0].response_ids = [10, 12]
        episode.turns[0].action = "up"
        episode.turns[1].reward = 0.0
        episode.truncation = "turns"

    assert found(change) == [(1, "sampled token", 3), (1, "action", None), (None, "end", None)]


def test_other_rewards_and_log_probabilities_hide_no_later_difference():
    def change(episode):
        episode.turns[0].logprobs = [-1.0, -1.0]
        episode.turns[0].reward = 0.5
        episode.turns[1].reward = 0.5
        episode.turns[1].response_ids = [20, 22]

    assert found(change) == [(1, "log-probability", 2), (1, "reward", None), (2, "sampled token", 7)]


def test_episodes_of_different_tasks_are_compared_no_further():
    def change(episode):
        episode.task = Task("y", 0)
        episode.turns.clear()

    assert found(change) == [(None, "task", None)]


def test_a_turn_without_sampled_ids_is_compared_too():
    one, other = (Episode(Task("x", 0), "", [turn(ids, []), turn([1, 2, 3], [4])]) for ids in ([1, 2], [1, 2, 3]))
    (difference,) = episode_differences([one], [other])
    assert (difference.turn, difference.what, difference.at) == (1, "prompt token", 2)


def test_more_episodes_in_one_are_a_difference():
    (difference,) = episode_differences([make()] * 3, [make()])
    assert (difference.episode, difference.what, difference.a, difference.b) == (2, "episodes", 3, 1)


def test_differences_carry_the_number_of_their_episode():
    changed = copy.deepcopy([make() for _ in range(3)])
    changed[1].turns[0].reward = changed[2].turns[1].reward = 0.5
    differences = episode_differences([make() for _ in range(3)], changed)
    assert [(difference.episode, difference.turn) for difference in differences] == [(2, 1), (3, 2)]
