import json
from types import SimpleNamespace

import pytest

from gem.rollout import Episode, Turn, read_jsonl
from gem.tasks import Task
from gem.training.log import WINDOW, TrainingLog

pytest.importorskip("matplotlib")


def episode(reward=0.0, turns=1, tokens=2, truncation=None, seed=0, env_id="x"):
    """An episode that is solved if its reward is 1."""
    played = [Turn([1], [5] * tokens, None, "stop", "a") for _ in range(turns)]
    played[-1].reward, played[-1].terminated = reward, truncation is None
    return Episode(Task(env_id, seed), "", played, truncation)


def training(folder, steps, solved=None, title="Guessing"):
    """Record steps of an episode each, solved from the middle on or as ``solved`` says."""
    with TrainingLog(folder, steps, title) as log:
        for step, won in enumerate(solved or [step >= steps / 2 for step in range(steps)]):
            log.record([episode(float(won), seed=step)])
    return log


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_folder_is_made_and_holds_three_files_beside_its_lock(tmp_path):
    training(tmp_path / "a" / "b", 2)
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {
        ".lock",
        "metrics.jsonl",
        "episodes.jsonl",
        "curve.png",
    }


def test_metrics_are_means_and_sums_over_a_steps_episodes(tmp_path):
    with TrainingLog(tmp_path, 1, "x") as log:
        metrics = log.record(
            [
                episode(1.0, turns=1, tokens=5),
                episode(0.75, turns=2, tokens=3),
                episode(-0.5, turns=3, tokens=1, truncation="error"),
                episode(0.0, turns=1, tokens=1, truncation="overlong"),
                episode(0.0, turns=2, tokens=1, truncation="turns"),
            ]
        )
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line.pop("seconds") == metrics.seconds
    assert line == {
        "step": 1,
        "mean_return": pytest.approx(1.75 / 3),
        "success_rate": pytest.approx(1 / 3),
        "mean_turns": pytest.approx(5 / 3),
        "sampled_tokens": 17,
        "environment_errors": 1,
        "left_out": 2,
        "by_env": {},
    }


def test_several_environments_have_metrics_of_their_own(tmp_path):
    with TrainingLog(tmp_path, 1, "x") as log:
        log.record([episode(1.0, env_id="a"), episode(truncation="error", env_id="a"), episode(turns=3, env_id="b")])
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["success_rate"] == 0.5
    of_a = {"mean_return": 1, "success_rate": 1, "mean_turns": 1, "environment_errors": 1, "left_out": 1}
    of_b = {"mean_return": 0, "success_rate": 0, "mean_turns": 3, "environment_errors": 0, "left_out": 0}
    assert line["by_env"] == {"a": of_a, "b": of_b}


def test_a_step_in_which_all_failed_has_no_means_and_stops_nothing(tmp_path):
    with TrainingLog(tmp_path, 3, "x") as log:
        assert log.record([episode(truncation="error")] * 4).success_rate is None
        log.record([episode(1.0)])
        log.record([episode(1.0)])
    assert lines(tmp_path / "metrics.jsonl")[0]["mean_return"] is None
    assert "4 episodes failed, and are not in it" in log.summary()
    assert "1.000 in the last 1" in log.summary()


def test_steps_are_counted_from_1_and_written_as_they_end(tmp_path):
    with TrainingLog(tmp_path, 3, "x") as log:
        for step in (1, 2, 3):
            assert log.record([episode()]).step == step
            assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == list(range(1, step + 1))


def test_seconds_are_those_of_the_step(tmp_path, monkeypatch):
    clock = iter([100.0, 102.5, 103.0])
    monkeypatch.setattr("gem.training.log.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with TrainingLog(tmp_path, 2, "x") as log:
        assert [log.record([episode()]).seconds for _ in range(2)] == [2.5, 0.5]


def test_episodes_are_those_of_the_first_and_the_last_step(tmp_path):
    with TrainingLog(tmp_path, 4, "x") as log:
        for step in range(4):
            log.record([episode(seed=2 * step), episode(seed=2 * step + 1)])
            assert [e.task.seed for e in read_jsonl(tmp_path / "episodes.jsonl")][:2] == [0, 1]
    assert [e.task.seed for e in read_jsonl(tmp_path / "episodes.jsonl")] == [0, 1, 6, 7]


def test_episodes_of_the_only_step_are_written_once(tmp_path):
    training(tmp_path, 1)
    assert len(list(read_jsonl(tmp_path / "episodes.jsonl"))) == 1


@pytest.mark.parametrize("steps", [1, 2, 3 * WINDOW])
def test_curve_is_a_png_image(tmp_path, steps):
    from matplotlib.image import imread

    training(tmp_path, steps)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(tmp_path / "curve.png")
    assert image.std() > 0.01  # something is drawn


def test_curve_smooths_over_a_window_of_past_steps(tmp_path, monkeypatch):
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    training(tmp_path, 2 * WINDOW, title="Guessing numbers")
    (axes,) = pyplot.gcf().axes
    monkeypatch.undo()
    pyplot.close("all")
    smooth, success, *_ = (line.get_ydata() for line in axes.lines)
    assert axes.get_title() == "Guessing numbers"
    assert list(success) == [0.0] * WINDOW + [1.0] * WINDOW
    assert smooth[WINDOW - 1] == 0
    assert smooth[WINDOW] == pytest.approx(1 / WINDOW)
    assert smooth[-1] == 1


def test_second_run_replaces_the_files_of_the_first(tmp_path):
    training(tmp_path, 3)
    (tmp_path / "mine.txt").write_text("kept")
    first_curve = (tmp_path / "curve.png").read_bytes()
    training(tmp_path, 2, title="Second")
    assert len(lines(tmp_path / "metrics.jsonl")) == 2
    assert len(list(read_jsonl(tmp_path / "episodes.jsonl"))) == 2
    assert (tmp_path / "curve.png").read_bytes() != first_curve
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_second_run_that_records_nothing_leaves_nothing_of_the_first(tmp_path):
    training(tmp_path, 2)
    with TrainingLog(tmp_path, 2, "x"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_exception_in_training_passes_and_leaves_the_files_of_what_there_was(tmp_path):
    def train():
        with TrainingLog(tmp_path, 9, "x") as log:
            log.record([episode()])
            log.record([episode()])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert len(lines(tmp_path / "metrics.jsonl")) == 2
    assert len(list(read_jsonl(tmp_path / "episodes.jsonl"))) == 1
    assert (tmp_path / "curve.png").exists()


def test_progress_bar_counts_steps_and_shows_recent_success(tmp_path, capsys):
    training(tmp_path, 2 * WINDOW)
    shown = capsys.readouterr().out
    assert "20/20" in shown
    assert "success 1.00" in shown


def test_summary_compares_the_first_steps_with_the_last(tmp_path):
    log = training(tmp_path, 2 * WINDOW)
    assert log.summary().startswith(
        "success rate: 0.000 in the first 10 steps, 1.000 in the last 10 (+1.000)\n20 steps"
    )
    assert str(tmp_path) in log.summary()


def test_summary_of_a_short_run_compares_its_halves(tmp_path):
    log = training(tmp_path, 4, [True, True, False, True])
    assert "1.000 in the first 2 steps, 0.500 in the last 2 (-0.500)" in log.summary()


def test_summary_of_a_single_step_is_no_change(tmp_path):
    assert "1.000 in the first 1 steps, 1.000 in the last 1 (+0.000)" in training(tmp_path, 1, [True]).summary()


def test_summary_tells_sampled_tokens_a_second(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 4.0])
    monkeypatch.setattr("gem.training.log.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with TrainingLog(tmp_path, 2, "x") as log:
        log.record([episode(tokens=30)])
        log.record([episode(tokens=10)])
    assert "2 steps in 4 s, 10 sampled tokens per second" in log.summary()
