"""The example and OpenRLHF's real trainer, on the CPU: Ray, DeepSpeed, vLLM. Minutes, not seconds."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("openrlhf")

import psutil

from gem.rollout import mean_metrics, read_episodes, read_jsonl, replay
from gem.rollout.rows import openrlhf_row
from gem.tasks import Task, make_tasks

SCRIPT = Path(__file__).parents[2] / "examples" / "train_openrlhf.py"

LOTTERY = '''
"""An agent file of one's own: an environment whose rewards depend on the seed alone."""

import gem
import gem_openrlhf


class Lottery(gem.Env):
    def reset(self, seed=None):
        super().reset(seed)
        self.turn = 0
        return "Say anything." + " And more." * self.rng.randint(0, 5), {}

    def step(self, action):
        self.turn += 1
        return "Go on." * self.rng.randint(1, 5), float(self.rng.randint(0, 99)), self.turn == 3, False, {}


gem.register("test:Lottery-v0", Lottery)


class AgentExecutor(gem_openrlhf.GemAgentExecutor):
    pass
'''


@pytest.fixture(scope="module")
def example(load_example):
    return load_example("train_openrlhf")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def left_running():
    found = []
    for process in psutil.process_iter():
        try:
            found += [process.pid] if "gem-ray-" in " ".join(process.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return found


def test_the_example_trains_and_nothing_is_left_running(small_model, tmp_path, assert_trained):
    sizes = ["--steps", "2", "--batch-size", "32", "--group-size", "4", "--validation", "8", "--lr", "1e-3"]
    command = [sys.executable, str(SCRIPT), "--model", str(small_model), *sizes, "--out", str(tmp_path)]
    command += ["--", "--actor.entropy_coef", "0.001"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr + done.stdout
    assert "--actor.entropy_coef" in (tmp_path / "command.sh").read_text()
    assert_trained(tmp_path / "model", small_model)
    assert "CPU shims take CUDA's place" in done.stdout
    assert "greedy evaluation after the training: success" in done.stdout

    metrics = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    episodes = list(read_jsonl(tmp_path / "episodes.jsonl"))
    assert len(episodes) == 64
    assert [replay(episode) for episode in episodes] == [[]] * 64
    assert all(turn.logprobs for episode in episodes for turn in episode.turns)

    of_openrlhf = rows(tmp_path / "openrlhf.jsonl")
    for step, row in enumerate(of_openrlhf[:2], start=1):
        assert (row["kind"], row["step"]) == ("train", step)
        assert row["gem/success"] == pytest.approx(metrics[step - 1]["success_rate"])
        assert row["rollout/reward_mean"] == pytest.approx(metrics[step - 1]["mean_return"], abs=1e-6)
        assert abs(row["vllm_kl"]) < 1e-2  # in step 2 too: the sampler has the weights that step 1 has made
        assert row["actor_grad_norm"] > 0
    (evaluation,) = of_openrlhf[2:]
    validated = read_episodes(tmp_path / "episodes", "eval", step=2)
    assert len(validated) == 8
    means = mean_metrics(validated)
    assert evaluation["eval_game:GuessTheNumber-v1-easy_pass1"] == pytest.approx(means["return"], abs=1e-6)
    assert evaluation["eval_game:GuessTheNumber-v1-easy_success"] == pytest.approx(means["success"])
    assert [len(read_episodes(tmp_path / "episodes", "train", step)) for step in (1, 2)] == [32, 32]
    assert left_running() == []


@pytest.mark.slow
def test_a_group_begins_from_one_state_and_evaluations_are_told_apart(example, small_model, tmp_path):
    (tmp_path / "agent.py").write_text(LOTTERY)
    args = example.Args(model=str(small_model), steps=2, batch_size=16, group_size=8, validation=4)
    args.fill_in()
    with tempfile.TemporaryDirectory(prefix="gem-ray-", ignore_cleanup_errors=True) as ray_folder:
        words, variables = example.command(args, str(small_model), tmp_path, ray_folder, on_gpu=False)
        words[words.index("--train.agent_func_path") + 1] = str(tmp_path / "agent.py")
        train = [openrlhf_row(Task("test:Lottery-v0", seed)) for seed in range(4)]
        evaluation = make_tasks("game:GuessTheNumber-v1-easy", range(3), split="eval")
        evaluation += make_tasks("game:Mastermind-v0-easy", range(2), split="eval")
        for name, data in (("train", train), ("eval", [openrlhf_row(task) for task in evaluation])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr[-5000:]
    spread = [float(value) for value in re.findall(r"'group_reward_std': ([-0-9.e]+)", done.stdout + done.stderr)]
    assert spread == [0.0, 0.0]
    played = read_episodes(tmp_path / "episodes", "train")
    assert len({(episode.task.seed, tuple(episode.rewards)) for episode in played}) == 4
    assert len({tuple(turn.action for turn in episode.turns) for episode in played}) > 4
    for env_id in ("game:GuessTheNumber-v1-easy", "game:Mastermind-v0-easy"):
        assert f"eval_{env_id}_pass1" in done.stdout + done.stderr
