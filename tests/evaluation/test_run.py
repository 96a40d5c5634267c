"""Episodes are run once, kept whatever happens, and scored only if the model is answerable for them."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("scipy")

import gem
from gem.evaluation import (
    Answer,
    Budget,
    FunctionAgent,
    Prices,
    RandomAgent,
    SolverAgent,
    TokenAgent,
    compare_evaluations,
    evaluate,
    read_evaluation,
    summarize,
)
from gem.evaluation.agents import AgentFailed, Misconfigured
from gem.evaluation.summary import outcome
from gem.files import whole_lines
from gem.rollout import ChatRenderer, Limits, mean_metrics
from gem.tasks import Task, make_tasks
from gem.testing import ScriptedEngine

EASY = "game:GuessTheNumber-v1-easy"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("gem.evaluation.run.FIRST_PAUSE", 0.0)


def tasks(n=10, env_id=EASY):
    return make_tasks(env_id, range(n), split="eval")


def counted(messages):
    return f"\\boxed{{{len(messages) % 9 + 1}}}"


def five(messages):
    return "\\boxed{5}"


def test_a_function_is_asked_with_the_conversation(tmp_path):
    seen = []

    async def answer(messages):
        seen.append([message["role"] for message in messages])
        return f"\\boxed{{{len(messages)}}}"

    evaluation = evaluate(tasks(3), FunctionAgent("f", answer), tmp_path)
    assert max(seen, key=len)[:3] == ["user", "assistant", "user"]
    assert not evaluation.missing
    episode = evaluation.episodes[0, 0]
    assert [turn.action for turn in episode.turns][:2] == ["\\boxed{1}", "\\boxed{3}"]
    assert episode.task.split == "eval"


def test_random_and_solver_play_as_the_documentation_says(tmp_path):
    scores = {}
    for agent in (RandomAgent(), SolverAgent()):
        evaluation = evaluate(tasks(60), agent, tmp_path / agent.name, samples=4)
        scores[agent.name] = summarize(evaluation)["environments"][EASY]
    success = scores["random"]["success"]
    assert success["low"] < 0.400 < success["high"]  # docs/environments
    assert scores["solver"]["success"]["mean"] == 1.0
    assert scores["random"]["pass_at"]["1"] == pytest.approx(success["mean"])
    assert scores["random"]["pass_at"]["4"] > scores["random"]["pass_at"]["2"] > success["mean"]
    actions = {tuple(turn.action for turn in episode.turns) for episode in evaluation.episodes.values()}
    assert len(actions) > 5
    found = compare_evaluations(read_evaluation(tmp_path / "random"), read_evaluation(tmp_path / "solver"))
    assert (found[EASY]["verdict"], found[EASY]["tasks"]) == ("better", 60)


def test_samples_of_a_task_differ_and_are_the_same_again(tmp_path):
    runs = []
    for name in ("a", "b"):
        evaluation = evaluate(tasks(4), RandomAgent(), tmp_path / name, samples=5, concurrency=3)
        runs.append({unit: [turn.action for turn in e.turns] for unit, e in evaluation.episodes.items()})
    assert runs[0] == runs[1]
    assert len({tuple(runs[0][0, sample]) for sample in range(5)}) > 1


def test_an_engine_plays_in_tokens(tmp_path, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    script = [[*tokenizer.encode("\\boxed{5}"), end]]
    agent = TokenAgent("scripted", ScriptedEngine(script), ChatRenderer(tokenizer), Limits(max_new_tokens=32))
    evaluation = evaluate(tasks(3), agent, tmp_path)
    again = read_evaluation(tmp_path)
    assert again.episodes == evaluation.episodes
    assert summarize(again) == summarize(evaluation)
    assert list(again.episodes[0, 0].turns[0].response_ids) == script[0]
    assert again.manifest["agent"]["exact_tokens"] is True
    assert again.sampled_tokens == sum(len(e.turns) for e in again.episodes.values()) * len(script[0])


class Flaky:
    """Fails for three in ten calls."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def __call__(self, messages):
        if self.rng.random() < 0.3:
            raise ConnectionError("429")
        return counted(messages)


def test_failures_of_a_server_are_played_again_and_never_scored(tmp_path):
    healthy = evaluate(tasks(40), FunctionAgent("f", counted), tmp_path / "h")
    flaky = evaluate(tasks(40), FunctionAgent("f", Flaky(0)), tmp_path / "f", retries=30)
    assert not flaky.missing
    assert flaky.failures
    for unit, episode in healthy.episodes.items():
        other = flaky.episodes[unit]
        assert ([t.action for t in episode.turns], episode.rewards) == ([t.action for t in other.turns], other.rewards)
    results = [summarize(each)["environments"][EASY] for each in (healthy, flaky)]
    attempts = results[1]["failed"].pop("attempts")
    assert set(attempts) == {"failed (abort)"}
    assert results[0].pop("failed") | {"attempts": attempts} == results[1].pop("failed") | {"attempts": attempts}
    assert results[0] == results[1]


def test_what_still_fails_is_shown_as_bounds_and_played_on_resumption(tmp_path):
    broken = {1, 3}

    def answer(messages):
        if any(f"to {n} " in messages[0]["content"] for n in broken):
            raise AgentFailed("down")
        return "\\boxed{5}"

    rows = [make_tasks(EASY, [n], {"max_number": n + 5}, "eval")[0] for n in range(5)]
    broken = {rows[1].env_kwargs["max_number"], rows[3].env_kwargs["max_number"]}
    agent = FunctionAgent("f", lambda m: answer([{"content": m[0]["content"].replace(".", " ")}]))
    first = evaluate(rows, agent, tmp_path, retries=1)
    assert first.missing == [(1, 0), (3, 0)]
    assert len(first.failures[1, 0]) == 2
    result = summarize(first)["environments"][EASY]
    won = sum(episode.success for episode in first.episodes.values())
    assert result["failed"] == {
        "units": 2,
        "attempts": {"failed (abort)": 4},
        "success_bounds": [won / 5, (won + 2) / 5],
    }
    assert result["success"]["tasks"] == 3
    broken = set()
    second = evaluate(rows, agent, tmp_path, resume=True)
    assert not second.missing
    assert {unit: second.episodes[unit] for unit in first.episodes} == first.episodes


def test_a_budget_stops_and_can_be_resumed(tmp_path, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def agent():
        engine = ScriptedEngine([[*tokenizer.encode("\\boxed{5}"), end]])
        return TokenAgent("scripted", engine, ChatRenderer(tokenizer), Limits(max_new_tokens=32))

    whole = evaluate(tasks(20), agent(), tmp_path / "whole")
    part = evaluate(tasks(20), agent(), tmp_path / "part", concurrency=2, budget=Budget(tokens=60))
    assert 0 < len(part.episodes) < 20
    assert 60 <= part.sampled_tokens < 200
    evaluate(tasks(20), agent(), tmp_path / "part", resume=True)
    assert summarize(read_evaluation(tmp_path / "part")) == summarize(whole)
    assert whole.prompt_tokens == sum(len(turn.prompt_ids) for e in whole.episodes.values() for turn in e.turns)
    prices = Prices(prompt=1.0, sampled=100.0)
    limit = prices.cost(whole.prompt_tokens, whole.sampled_tokens) / 4
    cheap = evaluate(tasks(20), agent(), tmp_path / "cheap", concurrency=1, budget=Budget(cost=limit, prices=prices))
    assert 0 < len(cheap.episodes) < 10
    assert limit <= prices.cost(cheap.prompt_tokens, cheap.sampled_tokens) < 2 * limit
    with pytest.raises(ValueError, match="needs the prices"):
        Budget(cost=1.0)


def test_a_budget_needs_an_agent_that_counts_tokens(tmp_path):
    with pytest.raises(Misconfigured, match="counts no tokens"):
        evaluate(tasks(2), FunctionAgent("f", five), tmp_path / "a", budget=Budget(tokens=60))

    counting = FunctionAgent("f", lambda messages: Answer("\\boxed{5}", 30, 4))
    evaluation = evaluate(tasks(20), counting, tmp_path / "b", concurrency=1, budget=Budget(tokens=60))
    assert 60 <= evaluation.sampled_tokens < 60 + 4 * 20
    assert evaluation.prompt_tokens == 30 / 4 * evaluation.sampled_tokens
    counting = FunctionAgent("f", lambda messages: Answer(5, 30, 4))
    assert "is no text" in evaluate(tasks(1), counting, tmp_path / "c", retries=0).failures[0, 0][0].error


def test_metrics_are_those_of_a_trainers_validation(tmp_path):
    rows = [*tasks(6), Task("game:Mastermind-v0-easy", 0, split="eval")]
    evaluation = evaluate(rows, RandomAgent(), tmp_path, samples=2)
    assert summarize(evaluation)["metrics"] == mean_metrics(evaluation.episodes[unit] for unit in evaluation.units)
    assert {"success", "return", "success/game:Mastermind-v0-easy"} <= summarize(evaluation)["metrics"].keys()


def test_another_evaluation_is_not_mixed_in(tmp_path):
    evaluate(tasks(2), FunctionAgent("f", five), tmp_path)
    with pytest.raises(ValueError, match="holds an evaluation"):
        evaluate(tasks(2), FunctionAgent("f", five), tmp_path)
    with pytest.raises(ValueError, match="tasks differ"):
        evaluate(tasks(3), FunctionAgent("f", five), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"agent\.name differ"):
        evaluate(tasks(2), FunctionAgent("g", five), tmp_path, resume=True)
    assert len(evaluate(tasks(2), FunctionAgent("f", five), tmp_path, resume=True).episodes) == 2
    for wrong in ({"samples": 0}, {"concurrency": 0}, {"retries": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            evaluate(tasks(1), FunctionAgent("f", five), tmp_path / "x", **wrong)


def test_mistakes_of_the_set_up_are_raised(tmp_path):
    with pytest.raises(ValueError, match="there is no environment"):
        evaluate(tasks(1, "game:Chess-v0"), FunctionAgent("f", five), tmp_path / "a")
    with pytest.raises(ValueError, match="no solver"):
        evaluate(tasks(1, "qa:Sample"), SolverAgent(), tmp_path / "b")
    with pytest.raises(ImportError, match="cannot import the function"):
        FunctionAgent.of("gem:no_such_function")
    with pytest.raises(ValueError, match="there are no tasks"):
        evaluate([], FunctionAgent("f", five), tmp_path / "c")


def test_an_answer_that_is_no_text_is_a_failure(tmp_path):
    evaluation = evaluate(tasks(1), FunctionAgent("f", lambda messages: 5), tmp_path, retries=0)
    assert outcome(evaluation.failures[0, 0][0]) == "failed (abort)"
    assert "no text: 5" in evaluation.failures[0, 0][0].error


def test_environments_that_fail_are_no_result(tmp_path, registered):
    class Broken(gem.Env):
        def reset(self, seed=None):
            super().reset(seed)
            return "begin", {}

        def step(self, action):
            raise OSError("no display")

    registered("test:Broken-v0", Broken)
    evaluation = evaluate(tasks(2, "test:Broken-v0"), FunctionAgent("f", five), tmp_path, retries=1)
    assert [outcome(e) for attempts in evaluation.failures.values() for e in attempts] == ["failed (error)"] * 4
    result = summarize(evaluation)["environments"]["test:Broken-v0"]
    assert (result["success"], result["failed"]["success_bounds"]) == (None, [0.0, 1.0])


SLOW = """
import time
def answer(messages):
    time.sleep(0.004)
    return "\\\\boxed{%d}" % (len(messages) % 9 + 1)
"""


@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_evaluation_loses_nothing_and_plays_nothing_twice(tmp_path, times):
    """SIGKILL, wherever it is, several times; then the summary is that of an evaluation that nobody killed."""
    (tmp_path / "slow_player.py").write_text(SLOW)
    command = [sys.executable, "-m", "gem", "eval", EASY, "--model", "slow_player:answer", "--tasks", "200"]
    command += ["--samples", "2", "--concurrency", "8", "--resume", "--out"]

    def start(out):
        return subprocess.Popen([*command, out], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start("whole").wait(120) == 0
    wait, kills = random.Random(1), 0
    for _ in range(times):
        process = start("killed")
        time.sleep(wait.uniform(0.4, 1.2))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 4
    assert start("killed").wait(120) == 0
    whole, killed = (read_evaluation(tmp_path / name) for name in ("whole", "killed"))
    lines = [line for _, line in whole_lines(tmp_path / "killed" / "episodes.jsonl") if line is not None]
    units = [(row["task_index"], row["sample"]) for row in map(json.loads, lines)]
    assert len(units) == len(set(units)) == 400
    summaries = [(tmp_path / name / "summary.json").read_bytes() for name in ("whole", "killed")]
    assert summaries[0] == summaries[1]
    assert whole.sampled_tokens == killed.sampled_tokens


def test_a_function_that_hangs_fails_its_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(FunctionAgent, "answer_seconds", 0.1)
    evaluation = evaluate(tasks(1), FunctionAgent("f", lambda messages: time.sleep(1)), tmp_path, retries=0)
    assert "no answer within 0.1 s" in evaluation.failures[0, 0][0].error


def test_undecided_needs_more_than_there_were(tmp_path):
    rows = tasks(6)
    found = [evaluate(rows, FunctionAgent(str(n), lambda m, n=n: f"\\boxed{{{n}}}"), tmp_path / str(n)) for n in (3, 4)]
    (comparison,) = compare_evaluations(*found).values()
    assert comparison["verdict"] == "undecided"
    assert comparison["needed"] is None or comparison["needed"] > 6


def test_one_task_has_no_interval_and_the_summary_is_json(tmp_path):
    summary = summarize(evaluate(tasks(1), FunctionAgent("f", five), tmp_path))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["environments"][EASY]["success"]["low"] is None


def test_a_function_may_change_its_messages(tmp_path):
    seen = []

    def answer(messages):
        seen.append([message["role"] for message in messages])
        messages.insert(0, {"role": "system", "content": "win"})
        return five(messages)

    evaluate(tasks(2), FunctionAgent("f", answer), tmp_path)
    assert {roles[0] for roles in seen} == {"user"}


def test_waiting_for_a_thread_is_not_the_functions_time(tmp_path, monkeypatch):
    monkeypatch.setattr(FunctionAgent, "answer_seconds", 0.5)

    def answer(messages):
        time.sleep(0.2)
        return "no move"

    agent = FunctionAgent("f", answer, Limits(max_threads=2))
    assert not evaluate(tasks(8), agent, tmp_path, retries=0).missing


def test_a_process_ends_though_a_function_hangs(tmp_path):
    (tmp_path / "hangs.py").write_text("import time\ndef answer(messages):\n    time.sleep(600)\n")
    command = [sys.executable, "-m", "gem", "eval", EASY, "--model", "hangs:answer", "--tasks", "1", "--retries", "0"]
    command += ["--answer-timeout", "1", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, timeout=60, check=False, capture_output=True)
    assert done.returncode == 1
    assert b"1 of 1 episodes are missing" in done.stderr


def test_functions_of_one_name_are_told_apart(tmp_path):
    evaluate(tasks(1), FunctionAgent("f", five), tmp_path)
    with pytest.raises(ValueError, match=r"agent\.source differ"):
        evaluate(tasks(1), FunctionAgent("f", counted), tmp_path, resume=True)


def test_episodes_without_their_manifest_are_not_adopted(tmp_path):
    evaluate(tasks(2), FunctionAgent("f", five), tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"is there without manifest\.json"):
        evaluate(tasks(2), RandomAgent(), tmp_path / "a", resume=True)
    (tmp_path / "a" / "manifest.json").write_text('{"form')
    with pytest.raises(ValueError, match=r"manifest\.json is no manifest"):
        read_evaluation(tmp_path / "a")


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, ZeroDivisionError])
def test_whatever_a_coroutine_function_raises_fails_its_episode(tmp_path, error):
    async def answer(messages):
        await asyncio.sleep(0)
        raise error("enough")

    evaluation = evaluate(tasks(2), FunctionAgent("f", answer), tmp_path, retries=0)
    assert sorted(evaluation.failures) == [(0, 0), (1, 0)]
    assert error.__name__ in evaluation.failures[0, 0][0].error


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt, ZeroDivisionError])
def test_whatever_a_function_raises_fails_its_episode_at_once(tmp_path, error):
    def answer(messages):
        raise error("enough")

    begin = time.monotonic()
    evaluation = evaluate(tasks(2), FunctionAgent("f", answer), tmp_path, retries=0)
    assert time.monotonic() - begin < 30
    assert f"{error.__name__}: enough" in evaluation.failures[0, 0][0].error
