"""``gem eval`` and ``gem compare``."""

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("scipy")

from gem.cli import app
from gem.evaluation import read_evaluation

EASY = "game:GuessTheNumber-v1-easy"


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def folders(tmp_path):
    for model in ("random", "solver"):
        done = run(
            "eval",
            EASY,
            "env=game:TowerofHanoi-v1-easy,seeds=0:8",
            "--model",
            model,
            "--tasks",
            10,
            "--out",
            tmp_path / model,
        )
        assert done.exit_code == 0, done.output
    return tmp_path


def test_results_are_printed_and_written(folders):
    done = run("eval", EASY, "--model", "solver", "--tasks", 10, "--samples", 2, "--out", folders / "again")
    assert f"{EASY}     10        20  1.000 [0." in done.output
    assert "pass@2 1.000" in done.output
    assert "agent: solver; the episodes hold text, without token ids" in done.output
    summary = json.loads((folders / "again" / "summary.json").read_text())
    assert summary["environments"][EASY]["success"]["tasks"] == 10
    assert run("replay", folders / "again" / "episodes.jsonl").exit_code == 0


def test_a_person_plays_and_goes_on_later(tmp_path):
    arguments = ["eval", EASY, "--model", "human", "--tasks", 2, "--max-turns", 1, "--out", tmp_path / "me"]
    left = CliRunner().invoke(app, [str(each) for each in arguments], input="3\n")
    assert left.exit_code == 2
    assert "the game was left" in left.output
    done = CliRunner().invoke(app, [str(each) for each in [*arguments, "--resume"]], input="\n4\n")
    assert done.exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "me" / "episodes.jsonl").read_text().splitlines()]
    assert [row["turns"][0]["action"] for row in rows] == ["\\boxed{3}", "\\boxed{4}"]
    assert "agent: human" in done.output


def test_evaluations_are_compared(folders):
    done = run("compare", folders / "random", folders / "solver")
    assert done.exit_code == 0
    assert "better" in done.output
    assert "undecided" in run("compare", folders / "solver", folders / "solver").output
    assert "worse" in run("compare", folders / "solver", folders / "random", "--quantity", "return").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "game:Chess-v0", "--model", "random"], "there is no environment"),
        (["eval", EASY, "--model", "no_such:function"], "cannot import the function"),
        (["eval", EASY, "--model", "./no/such/folder"], "there is no model folder"),
        (["eval", "env=game:Wordle-v0,seeds=0:2", "--model", "random", "--tools", "python"], "--tools is for"),
        (["eval", "qa:Sample", "--model", "solver"], "no solver"),
        (["eval", "games-easy", "--model", "random", "--wrappers", "concat"], "--wrappers is for"),
        (["eval", EASY, "--model", "random", "--wrappers", "moon"], "there is no wrapper 'moon'"),
        (["eval", EASY, "--model", "random", "--token-budget", "5"], "random counts no tokens"),
        (["eval", EASY, "--model", "random", "--cost-budget", "5"], "needs the prices"),
        (["eval", EASY, "--model", "random", "--cost-budget", "5", "--prices", "2"], "two numbers"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) <= 2


def test_folders_that_hold_no_evaluation_and_quantities_that_are_none(tmp_path, folders):
    assert run("compare", tmp_path / "nowhere", folders / "solver").exit_code == 2
    assert "success or return" in run("compare", folders / "solver", folders / "random", "--quantity", "luck").output


def test_what_is_missing_is_said_and_the_exit_code_tells(tmp_path):
    done = run("eval", EASY, "--model", "operator:index", "--tasks", 2, "--retries", 0, "--out", tmp_path)
    assert done.exit_code == 1
    assert "2 of 2 episodes are missing: they failed; --resume runs them" in done.output


def test_wrappers_change_what_the_model_sees_and_replay(tmp_path):
    arguments = ["--model", "solver", "--tasks", 2, "--out", tmp_path, "--wrappers", "concat"]
    assert run("eval", EASY, *arguments).exit_code == 0
    episode = next(each for each in read_evaluation(tmp_path).episodes.values() if len(each.turns) > 2)
    assert episode.turns[-2].observation.startswith(episode.first_observation)
    assert run("replay", tmp_path / "episodes.jsonl").exit_code == 0
