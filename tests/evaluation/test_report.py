"""The page holds every episode, asks nobody, and takes no text for HTML."""

import base64
import gzip
import json
import re

import pytest

pytest.importorskip("scipy")

from typer.testing import CliRunner

from gem.cli import app
from gem.evaluation import FunctionAgent, RandomAgent, evaluate
from gem.evaluation import report as module
from gem.evaluation.report import write_report, write_view
from gem.rollout import Episode, Turn, write_jsonl
from gem.tasks import Task, make_tasks

EASY = "game:GuessTheNumber-v1-easy"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> $title ${index}"


def tasks(n):
    return make_tasks(EASY, range(n), split="eval")


def chunks(page):
    packed = re.findall(r'<script id="chunk-(\d+)" type="text/plain">([^<]*)</script>', page)
    assert [int(number) for number, _ in packed] == list(range(len(packed)))
    return [each for _, text in packed for each in json.loads(gzip.decompress(base64.b64decode(text)))]


def index(page):
    return json.loads(re.search(r'<script id="index" type="application/json">(.*?)</script>', page)[1])


def test_the_page_holds_every_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    evaluation = evaluate(tasks(10), RandomAgent(), tmp_path / "a", samples=2)
    other = evaluate(tasks(10), FunctionAgent("five", lambda messages: "\\boxed{5}"), tmp_path / "b")
    write_report(tmp_path / "report.html", evaluation, {"b": other})
    page = (tmp_path / "report.html").read_text()
    rows, columns = chunks(page), index(page)
    played = [evaluation.episodes[unit] for unit in evaluation.units]
    assert [row["first"] for row in rows] == [episode.first_observation for episode in played]
    assert [[turn["text"] for turn in row["turns"]] for row in rows] == [[t.action for t in e.turns] for e in played]
    assert columns["seed"] == [episode.task.seed for episode in played]
    assert (columns["chunk"], columns["samples"], columns["envs"]) == (7, 2, [EASY])
    assert "Compared with b" in page
    assert page.count("<circle") == 1
    assert not re.search(r"src=|href=|url\(|https?://|@import", page)


def test_no_address_and_no_text_becomes_code(tmp_path):
    turn = Turn([1, 2], [3], [-0.5], "stop", HOSTILE, HOSTILE, 1.0, True, False, {"success": True})
    episodes = [Episode(Task(f"x:{HOSTILE}", 1), HOSTILE, [turn], error=HOSTILE)]
    write_view(tmp_path / "view.html", HOSTILE, episodes, decode=lambda token: HOSTILE)
    page = (tmp_path / "view.html").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "default-src 'none'" in page
    (row,) = chunks(page)
    assert row["first"] == row["error"] == row["turns"][0]["text"] == row["turns"][0]["tokens"][0] == HOSTILE
    assert index(page)["envs"] == [f"x:{HOSTILE}"]


def test_failures_are_there_too(tmp_path):
    def answer(messages):
        raise ConnectionError("down")

    evaluation = evaluate(tasks(1), FunctionAgent("f", answer), tmp_path, retries=0)
    write_report(tmp_path / "report.html", evaluation)
    page = (tmp_path / "report.html").read_text()
    assert index(page)["outcomes"] == ["failed (abort)"]
    assert "down" in chunks(page)[0]["error"]


def test_the_command_shows_evaluations_and_files(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(each) for each in arguments])

    assert run("eval", EASY, "--model", "solver", "--tasks", 4, "--out", tmp_path / "a").exit_code == 0
    assert (tmp_path / "a" / "report.html").exists()
    done = run("view", tmp_path / "a", "--against", tmp_path / "a", "--out", tmp_path / "other.html")
    assert done.output.strip() == str(tmp_path / "other.html")
    assert "undecided" in (tmp_path / "other.html").read_text()
    write_jsonl(tmp_path / "some.jsonl", [Episode(Task(EASY, 0), "begin", [])])
    assert run("view", tmp_path / "some.jsonl").exit_code == 0
    assert chunks((tmp_path / "some.html").read_text())[0]["first"] == "begin"
    assert run("view", tmp_path / "no.jsonl").exit_code == 2
    assert run("view", tmp_path / "some.jsonl", "--against", tmp_path / "a").exit_code == 2
