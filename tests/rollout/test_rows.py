"""Tasks as rows of the trainers' data sets, and the command that writes them."""

import json

import pytest
from typer.testing import CliRunner

from gem.cli import app
from gem.rollout.rows import ROWS, openrlhf_row
from gem.tasks import Task, load_tasks, make_tasks

ENV = "game:Mastermind-v0-easy"


@pytest.fixture
def run(tmp_path):
    out = tmp_path / "rows.jsonl"

    def invoke(*arguments):
        result = CliRunner().invoke(app, ["tasks", *arguments, "--out", str(out)])
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else None
        return result, rows

    return invoke


def task_of(trainer, row):
    found = {
        "trl": lambda: row["prompt"][-1]["task"],
        "verl": lambda: json.dumps(row),
        "openrlhf": lambda: row["label"],
        "oat": lambda: json.dumps(row),
        "rl2": lambda: row["extra_info"]["task"],
    }
    return Task.from_json(found[trainer]())


@pytest.mark.parametrize("trainer", ROWS)
def test_a_row_holds_its_task(run, trainer):
    result, rows = run(f"env={ENV},seeds=3:6,code_length=2", "--format", trainer)
    assert result.exit_code == 0
    assert [task_of(trainer, row) for row in rows] == make_tasks(ENV, range(3, 6), {"code_length": 2})
    assert "3 tasks of game:Mastermind-v0-easy" in result.stdout
    result, rows = run(f"env={ENV},seeds=0:1", "--format", trainer, "--split", "eval")
    assert [task_of(trainer, row).split for row in rows] == ["eval"]


@pytest.mark.parametrize("trainer", ["verl", "oat"])
def test_verl_and_oat_read_the_file_as_tasks(run, tmp_path, trainer):
    run(f"env={ENV},seeds=0:4", "--format", trainer)
    assert load_tasks(tmp_path / "rows.jsonl") == make_tasks(ENV, range(4))


def test_openrlhfs_rows_have_options_and_names_of_their_own(run):
    _, rows = run(f"env={ENV},seeds=0:2", "--format", "openrlhf", "--gamma", "0.9", "--max-turns", "4")
    labels = [json.loads(row["label"]) for row in rows]
    assert [(label["gamma"], label["max_turns"]) for label in labels] == [(0.9, 4)] * 2
    assert {row["datasource"] for row in rows} == {ENV}
    tasks = [Task(ENV, 1), Task(ENV, 2), Task(ENV, 1, split="eval"), Task(ENV, 1, {"code_length": 3})]
    assert len({openrlhf_row(task)["prompt"] for task in tasks}) == 4


def test_several_sources_are_mixed(run):
    more = "env=game:Hangman-v0-easy,seeds=7:9"
    result, rows = run(f"env={ENV},seeds=0:2", more, "--format", "trl")
    tasks = [task_of("trl", row) for row in rows]
    assert sorted(map(str, tasks)) == sorted(map(str, [*make_tasks(ENV, range(2)), *load_tasks(more)]))
    assert "4 tasks of game:Hangman-v0-easy, game:Mastermind-v0-easy" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["env=game:Mastermynd-v0,seeds=0:2"], "The nearest"),
        ([f"env={ENV},seeds=0-2"], "seeds=<first>:<end>"),
        ([f"env={ENV},seeds=0:2", "--split", "dev"], "split must be one of"),
        ([f"env={ENV},seeds=0:2,colour=1"], "colour"),
        ([f"env={ENV},seeds=0:2,split=eval"], "'train' is wanted"),
        (["nowhere.jsonl"], "nowhere.jsonl"),
        ([f"env={ENV},seeds=0:2", "--max-turns", "0"], "max_turns must be positive"),
        ([f"env={ENV},seeds=0:2", "--gamma", "2"], "from 0 to 1"),
    ],
)
def test_rows_that_cannot_be_run_are_not_written(run, arguments, message):
    result, rows = run(*arguments, "--format", "openrlhf")
    assert result.exit_code == 2
    assert message in result.stderr
    assert rows is None


def test_options_of_openrlhfs_rows_are_refused_elsewhere(run):
    result, rows = run(f"env={ENV},seeds=0:2", "--format", "rl2", "--gamma", "0.9")
    assert result.exit_code == 2
    assert "for OpenRLHF only" in result.stderr
    assert rows is None


def test_prompts_are_measured_where_the_model_is_named(run, small_model):
    arguments = [f"env={ENV},seeds=0:3", "--format", "openrlhf", "--model", str(small_model)]
    assert run(*arguments, "--max-context", "1024")[0].exit_code == 0
    result, _ = run(*arguments, "--max-context", "20")
    assert result.exit_code == 2
    assert "the context holds 20" in result.stderr
