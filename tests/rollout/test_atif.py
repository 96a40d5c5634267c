"""Episodes as ATIF trajectories."""

import json
import sys

import numpy as np
import pytest

from gem.rollout import Episode, Turn
from gem.rollout.atif import to_atif, validate_atif
from gem.tasks import Task


def make():
    return Episode(
        Task("game:GuessTheNumber-v1-easy", 3, {"max_turns": 2}, "eval"),
        "Guess.",
        [
            Turn([1, 2], [10, 11], [-0.5, -0.25], "stop", "five", "Higher.", 0.25, info={"scores": [1, 2]}),
            Turn([1, 2, 10, 11, 90], [20], None, "length", "si", "Over.", -1.0, truncated=True),
        ],
        "turns",
    )


def aborted():
    return Episode(Task("x", 0), "Guess.", [Turn([1], [2], [-0.5], "abort", "f")], "abort")


def thinking():
    return Episode(Task("x", 0), "Guess.", [Turn([1], [2], [-0.5], "stop", "f", full_text="<think>f?</think>f")])


def failed():
    return Episode(Task("x", 0), "", [], "error", "ConnectionError: gone")


def from_atif(trajectory):
    """Return the episode again."""
    user, *steps = trajectory["steps"]
    turns = [
        Turn(
            prompt_ids=step["metrics"]["prompt_token_ids"],
            response_ids=step["metrics"]["completion_token_ids"],
            logprobs=step["metrics"].get("logprobs"),
            action=step["message"],
            observation=step["observation"]["results"][0]["content"] if "observation" in step else "",
            **step["extra"],
        )
        for step in steps
    ]
    extra = trajectory["extra"]
    return Episode(Task(**extra["task"]), user["message"], turns, extra["truncation"], extra["error"])


@pytest.mark.parametrize(
    "episode", [make(), aborted(), thinking(), failed()], ids=["two turns", "aborted", "thinking", "failed"]
)
def test_trajectory_is_valid_and_nothing_is_lost(episode):
    pytest.importorskip("atif")
    trajectory = json.loads(json.dumps(to_atif(episode)))
    validate_atif(trajectory)
    assert from_atif(trajectory) == episode


@pytest.mark.parametrize("episode", [make(), aborted()], ids=["two turns", "aborted"])
def test_the_models_of_atif_keep_what_was_sampled(episode):
    atif = pytest.importorskip("atif")
    trajectory = atif.Trajectory.model_validate(to_atif(episode))
    for step, turn in zip(trajectory.steps[1:], episode.turns, strict=True):
        assert step.source == "agent"
        assert step.metrics.prompt_token_ids == turn.prompt_ids
        assert step.metrics.completion_token_ids == turn.response_ids
        assert step.metrics.logprobs == turn.logprobs
    assert trajectory.to_json_dict()["steps"][1] == to_atif(episode)["steps"][1]


def test_totals_are_those_of_the_episode():
    metrics = to_atif(make())["final_metrics"]
    assert (metrics["total_prompt_tokens"], metrics["total_completion_tokens"], metrics["total_steps"]) == (7, 3, 3)
    assert metrics["extra"] == make().metrics()


def test_numpy_values_become_json_data():
    episode = make()
    episode.turns[0].info = {"board": np.arange(2), "score": np.float64(0.5)}
    assert to_atif(episode)["steps"][1]["extra"]["info"] == {"board": [0, 1], "score": 0.5}


def test_episode_is_left_as_it_was():
    episode = make()
    to_atif(episode)["steps"][1]["metrics"]["prompt_token_ids"].append(5)
    assert episode == make()


def test_info_that_is_no_json_data_is_an_error():
    episode = make()
    episode.turns[0].info = {"env": object()}
    with pytest.raises(TypeError, match="not JSON data"):
        to_atif(episode)


@pytest.mark.parametrize(
    "change",
    [
        lambda trajectory: trajectory.pop("agent"),
        lambda trajectory: trajectory["steps"][1].update(step_id=7),
        lambda trajectory: trajectory["steps"][0].update(metrics={}),
        lambda trajectory: trajectory["steps"][1].update(reward=1.0),
        lambda trajectory: trajectory["steps"][1]["extra"].update(reward=float("nan")),
    ],
)
def test_what_is_no_trajectory_is_refused(change):
    pytest.importorskip("atif")
    trajectory = to_atif(make())
    change(trajectory)
    with pytest.raises(ValueError):  # noqa: PT011 (pydantic's wording is its own affair)
        validate_atif(trajectory)


def test_validation_without_the_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "atif", None)
    with pytest.raises(ImportError, match="pip install atif"):
        validate_atif(to_atif(make()))
