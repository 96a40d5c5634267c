"""The example, run as a user runs it: the real script, TRL's real trainer, a model of a few thousand weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")

from transformers import AutoTokenizer

from gem.rollout import read_jsonl, replay

SCRIPT = Path(__file__).parents[2] / "examples" / "train_trl.py"


def run(*args):
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.fixture(scope="module")
def example(load_example):
    return load_example("train_trl")


@pytest.mark.parametrize("algorithm", ["grpo", "rebn"])
def test_it_trains_and_leaves_model_metrics_episodes_and_a_curve(small_model, tmp_path, algorithm, assert_trained):
    sizes = ("--steps", 3, "--batch-size", 8, "--group-size", 4)
    done = run("--model", small_model, "--algorithm", algorithm, *sizes, "--out", tmp_path, "--", "beta=0.1")
    assert done.returncode == 0, done.stderr
    assert_trained(tmp_path / "model", small_model)
    assert "success rate:" in done.stdout
    assert "no GPU was found" in done.stdout or "the GPU" in done.stdout
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert {"mean_return", "success_rate", "mean_turns", "sampled_tokens", "seconds"} <= set(metrics[0])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    episodes = list(read_jsonl(tmp_path / "episodes.jsonl"))
    assert len(episodes) == 16
    assert [replay(episode) for episode in episodes] == [[]] * 16


@pytest.mark.parametrize(("env", "tools"), [("qa:Sample", "search"), ("math:Sample", "python,search")])
def test_it_trains_with_tools_which_its_episodes_carry(small_model, tmp_path, env, tools):
    sizes = ("--steps", 1, "--batch-size", 4, "--group-size", 2, "--max-turns", 2)
    done = run("--model", small_model, "--env", env, "--tools", tools, *sizes, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    episodes = list(read_jsonl(tmp_path / "episodes.jsonl"))
    assert [episode.task.env_kwargs for episode in episodes] == [{"tools": tools.replace(",", "+")}] * 4
    assert all("<search>" in episode.first_observation for episode in episodes)
    assert [replay(episode) for episode in episodes] == [[]] * 4


def test_bad_arguments_are_one_line_without_a_traceback():
    done = run("--env", "game:GuesTheNumber-v1-easy")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no environment 'game:GuesTheNumber-v1-easy'. The nearest:")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("word", "message"), [("betta=0.1", "'betta'"), ("beta", "is written name=value")])
def test_options_that_trl_does_not_have_are_one_line(word, message):
    done = run("--", word)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr.splitlines()[-1]


def test_an_unknown_flag_names_the_nearest():
    done = run("--algoritm", "grpo")
    assert done.returncode == 2
    assert "--algorithm" in done.stdout + done.stderr


def test_a_model_folder_that_is_not_there_is_refused(example):
    with pytest.raises(FileNotFoundError, match="there is no model folder /no/such/model"):
        example.load(example.Args(model="/no/such/model"))


def test_a_model_without_a_chat_template_is_refused_with_what_to_do(example, small_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no chat template.*instruction-tuned model"):
        example.load(example.Args(model=str(tmp_path)))
