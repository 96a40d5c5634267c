"""Episodes as logs of Inspect, written and read by its own package."""

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai.log import read_eval_log

from gem.rollout.episode import Episode, Turn
from gem.rollout.inspect_log import write_inspect_log
from gem.tasks import Task

WON = Episode(
    Task("game:X-v0", 3, split="eval"),
    "Go.",
    [
        Turn([1, 2], [3], [-0.5], "stop", "left", "A wall.", reward=0.25),
        Turn(
            [1, 2, 3, 4], [5, 6], [-0.1, -0.2], "stop", "right", "Out.", 0.75, terminated=True, info={"success": True}
        ),
    ],
    started=1_700_000_000.0,
)
FAILED = Episode(Task("game:X-v0", 4, split="eval"), "Go.", [], truncation="error", error="RuntimeError: no")


@pytest.mark.parametrize("name", ["a.eval", "a.json"])
def test_a_log_holds_what_the_episodes_hold(tmp_path, name):
    write_inspect_log(tmp_path / name, [WON, WON, FAILED], model="gem/embedded")
    log = read_eval_log(str(tmp_path / name))
    assert (log.status, log.eval.model, log.eval.created[:10]) == ("success", "gem/embedded", "2023-11-14")
    assert (log.results.total_samples, log.results.completed_samples) == (3, 2)
    assert {score.name: score.metrics["mean"].value for score in log.results.scores} == {"success": 1.0, "return": 1.0}
    samples = {(each.id, each.epoch): each for each in log.samples}
    first, again = samples["game:X-v0/eval/3", 1], samples["game:X-v0/eval/3", 2]
    failed = samples["game:X-v0/eval/4", 1]
    assert [message.text for message in first.messages] == ["Go.", "left", "A wall.", "right", "Out."]
    agent = first.messages[3].metadata
    assert (agent["prompt_token_ids"], agent["completion_token_ids"], agent["logprobs"]) == (
        [1, 2, 3, 4],
        [5, 6],
        [-0.1, -0.2],
    )
    assert (agent["reward"], agent["info"]) == (0.75, {"success": True})
    assert {key: score.value for key, score in again.scores.items()} == {"success": 1.0, "return": 1.0}
    assert failed.scores is None
    assert failed.error.message == "RuntimeError: no"


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.eval or \.json"):
        write_inspect_log(tmp_path / "a.txt", [WON])
