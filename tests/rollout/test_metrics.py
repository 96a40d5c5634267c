import pytest

from gem.rollout import Episode, Turn, mean_metrics
from gem.tasks import Task


def episode(env_id="a", reward=1.0, turns=1, truncation=None):
    turn = Turn([1], [2, 3], None, "stop", "x", terminated=truncation is None)
    last = Turn([1], [2, 3], None, "stop", "x", reward=reward, terminated=truncation is None)
    return Episode(Task(env_id, 0), "hello", [turn] * (turns - 1) + [last], truncation)


def test_without_failures_they_are_the_means_of_the_episodes_metrics():
    episodes = [episode(), episode(reward=0.5, turns=3), episode(reward=0.0, truncation="turns")]
    rows = [episode.metrics() for episode in episodes]
    assert mean_metrics(iter(episodes)) == pytest.approx({n: sum(row[n] for row in rows) / 3 for n in rows[0]})


@pytest.mark.parametrize("truncation", ["error", "abort", "overlong"])
def test_a_failure_is_counted_and_changes_no_other_metric(truncation):
    valid = [episode(), episode(reward=0.0)]
    before, after = mean_metrics(valid), mean_metrics([*valid, episode(reward=-5.0, turns=9, truncation=truncation)])
    name = {"error": "environment_errors", "abort": "aborted", "overlong": "overlong"}[truncation]
    changed = {name, "left_out"}
    assert {n: after[n] for n in after if after[n] != before[n]} == pytest.approx(dict.fromkeys(changed, 1 / 3))


def test_where_all_failed_there_is_no_success_rate():
    metrics = mean_metrics([episode(truncation="error")] * 2)
    assert metrics == {"aborted": 0, "environment_errors": 1, "overlong": 0, "retries": 0, "left_out": 1}


def test_nothing_has_no_metrics():
    assert mean_metrics([]) == {}


def test_several_environment_ids_have_their_own():
    episodes = [episode("a"), episode("a", reward=0.0), episode("b", turns=3), episode("b", truncation="error")]
    metrics = mean_metrics(episodes)
    assert {name: value for name, value in metrics.items() if "/" in name} == {
        "return/a": 0.5,
        "success/a": 0.5,
        "turns/a": 1.0,
        "environment_errors/a": 0.0,
        "return/b": 1.0,
        "success/b": 1.0,
        "turns/b": 3.0,
        "environment_errors/b": 0.5,
    }
    assert not any("/" in name for name in mean_metrics(episodes[:2]))
