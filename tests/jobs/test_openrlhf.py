"""A user's job with OpenRLHF: mixed environments, some of which fail, a wrapper, a tool, KL, validation, resumed."""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openrlhf")

from gem.rollout import discounted_returns, group_advantages, mean_metrics, read_episodes

ON_CPU = Path(__file__).parents[2] / "ci" / "cpu" / "openrlhf" / "train_ppo_ray.py"
NEAR, FLAKY = "mylab:Near-v0", "mylab:Flaky-v0"
GAMMA, GROUPS, GROUP_SIZE, STEPS, SAVED = 0.9, 4, 4, 6, 4

AGENT = f'''
"""The agent file."""

import mylab
from gem_openrlhf import GemAgentExecutor
from spy import SpiedLabel


class AgentExecutor(GemAgentExecutor):
    def __init__(self):
        super().__init__(gamma={GAMMA}, make_env=mylab.make_env)

    async def execute(self, *args, **kwargs):
        output = await super().execute(*args, **kwargs)
        return output | {{"label": SpiedLabel(output["label"], output["label"].masked)}}
'''

SPY = '''
"""Writes down, in the process that trains, what each sampled token's advantage is."""

import json
import os
import sys

from gem_openrlhf_trainer import Label


class SpiedLabel(Label):
    def __new__(cls, text, masked=False):
        label = super().__new__(cls, text, masked)
        maker = sys.modules.get("openrlhf.trainer.ppo_utils.experience_maker")
        if maker and not hasattr(maker, "spied"):
            maker.spied = compute = maker.RemoteExperienceMaker.compute_advantages_and_returns
            maker.RemoteExperienceMaker.compute_advantages_and_returns = lambda *args: write(compute(*args))
        return label

    def __reduce__(self):
        return SpiedLabel, (str(self), self.masked)


def write(experiences):
    rows = [
        {
            "index": experience.index[i],
            "masked": label.masked,
            "reward": experience.rewards[i].item(),
            "advantages": experience.advantages[i][experience.action_mask[i].bool()].tolist(),
        }
        for experience in experiences
        for i, label in enumerate(experience.labels)
    ]
    with open(os.environ["SPIED"], "a") as file:
        file.write(json.dumps(sorted(rows, key=lambda row: row["index"])) + "\\n")
    return experiences
'''


def write_rows(out, *arguments):
    command = [sys.executable, "-m", "gem", "tasks", *arguments, "--format", "openrlhf", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)


def train(folder, model, *flags, **variables):
    """Run OpenRLHF's command; return what it prints."""
    rows = {"train": folder / "train.jsonl", "eval": folder / "eval.jsonl"}
    with tempfile.TemporaryDirectory(prefix="gem-ray-", ignore_cleanup_errors=True) as ray_folder:
        command = [
            *(sys.executable, str(ON_CPU), "--ray-folder", ray_folder),
            *("--train.agent_func_path", str(folder / "agent.py")),
            *("--data.prompt_dataset", str(rows["train"]), "--data.input_key", "prompt", "--data.label_key", "label"),
            *("--eval.dataset", str(rows["eval"]), "--eval.steps", "2", "--eval.n_samples_per_prompt", "1"),
            *("--algo.advantage.estimator", "group_norm", "--algo.advantage.is_correction_level", "token"),
            *("--algo.kl.use_loss", "--algo.kl.estimator", "k3", "--algo.kl.init_coef", "0.01"),
            *("--ref.num_nodes", "1", "--ref.num_gpus_per_node", "1"),
            *("--actor.model_name_or_path", str(model), "--actor.num_nodes", "1", "--actor.num_gpus_per_node", "1"),
            *("--vllm.num_engines", "2", "--vllm.tensor_parallel_size", "1"),
            *("--data.max_len", "512", "--rollout.max_new_tokens", "16"),
            *("--rollout.batch_size", str(GROUPS), "--rollout.n_samples_per_prompt", str(GROUP_SIZE)),
            *("--rollout.micro_batch_size", "8", "--train.batch_size", str(GROUPS * GROUP_SIZE)),
            *("--train.micro_batch_size", "2", "--actor.adam.lr", "1e-4", "--actor.lr_scheduler", "constant"),
            *("--ckpt.path", str(folder / "checkpoints"), "--ckpt.save_steps", str(SAVED), "--ckpt.load_enable"),
            *("--ckpt.output_dir", str(folder / "model"), "--ckpt.best_metric_key", f"eval_{NEAR}_success"),
        ]
        environment = {**os.environ, "GEM_EPISODES": str(folder / "episodes"), "SPIED": str(folder / "spied.jsonl")}
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
        done = subprocess.run(
            [*command, *flags], env={**environment, **variables}, capture_output=True, text=True, check=False
        )
    output = done.stdout + done.stderr
    (folder / f"output-{len(list(folder.glob('output-*')))}.log").write_text(output)
    assert done.returncode == 0, output[-5000:]
    return output


def logged(output, pattern):
    """Return the metrics that OpenRLHF has logged, by step."""
    found = re.findall(pattern, output)
    return {int(step): ast.literal_eval(re.sub(r"\bnan\b", "None", metrics)) for step, metrics in found}


@pytest.mark.slow
def test_a_job_is_trained_validated_and_resumed_while_one_of_eight_episodes_fails(small_model, tmp_path):
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "spy.py").write_text(SPY)
    half = GROUPS * STEPS // 2
    measured = ["--model", str(small_model), "--max-context", "512"]
    flaky = f"env={FLAKY},fails=chance"
    write_rows(tmp_path / "train.jsonl", *measured, f"env={NEAR},seeds=0:{half};{flaky},seeds=0:{half}")
    validation = ["--split", "eval", f"env={NEAR},seeds=0:6", f"{flaky},seeds=0:6"]
    write_rows(tmp_path / "eval.jsonl", *measured, *validation)

    first = train(tmp_path, small_model, "--train.num_episodes", "1")
    # The checkpoint is of step 4: steps 5 and 6 are made again, and a second pass through the rows follows.
    second = train(tmp_path, small_model, "--train.num_episodes", "2", GEM_RESUME=str(SAVED))

    steps = logged(first, r"Global step (\d+): (\{.*\})"), logged(second, r"Global step (\d+): (\{.*\})")
    assert list(steps[0]) == [1, 2, 3, 4, 5, 6]
    assert list(steps[1]) == [5, 6, 7, 8, 9, 10, 11, 12]
    spied = [json.loads(line) for line in (tmp_path / "spied.jsonl").read_text().splitlines()]
    assert len(spied) == 14

    # What is logged is what the episodes say.
    lines = iter(spied)
    failed = 0
    for run, of_run in enumerate(steps, start=1):
        for step, metrics in of_run.items():
            episodes = read_episodes(tmp_path / "episodes", "train", step, run)
            assert len(episodes) == GROUPS * GROUP_SIZE
            for name, mean in mean_metrics(episodes).items():
                assert metrics[f"gem/{name}"] == pytest.approx(mean, abs=1e-5), (step, name)
            returns = [discounted_returns(e.rewards, GAMMA)[0] for e in episodes]
            assert metrics["rollout/reward_mean"] == pytest.approx(np.mean(returns), abs=1e-5)
            assert None not in metrics.values()
            rows = next(lines)
            assert sum(row["masked"] for row in rows) == sum(not e.valid for e in episodes)
            assert sorted(row["reward"] for row in rows) == pytest.approx(sorted(returns), abs=1e-5)
            advantages_are_those_of_the_valid(rows)
            failed += sum(not e.valid for e in episodes)
    assert failed > 2
    played = read_episodes(tmp_path / "episodes", "train")
    assert {e.task.env_id for e in played if e.valid} == {NEAR, FLAKY}
    assert len(played) == 12 * GROUPS * GROUP_SIZE  # of the steps that were made twice only the second time
    assert any(turn.info.get("tool_type") == "parity" for e in played for turn in e.turns)
    assert steps[1][12]["kl"] > 0  # the reference stays where it was

    found = logged(first, r"global_step (\d+), eval_metrics: (\{.*\})")
    found |= logged(second, r"global_step (\d+), eval_metrics: (\{.*\})")
    for step, of_step in found.items():
        episodes = read_episodes(tmp_path / "episodes", "eval", step)
        assert len(episodes) == 12
        for env_id in (NEAR, FLAKY):
            means = mean_metrics([e for e in episodes if e.task.env_id == env_id])
            assert of_step[f"eval_{env_id}_success"] == pytest.approx(means["success"], abs=1e-5)
            returns = [discounted_returns(e.rewards, GAMMA)[0] for e in episodes if e.task.env_id == env_id]
            assert of_step[f"eval_{env_id}_pass1"] == pytest.approx(np.mean(returns), abs=1e-5)
    assert set(found) == {2, 4, 6, 8, 10, 12}


@pytest.mark.slow
def test_an_asynchronous_job_with_a_critic_leaves_failures_out_too(small_model, tmp_path):
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "spy.py").write_text(SPY)
    write_rows(tmp_path / "train.jsonl", f"env={FLAKY},seeds=0:16,fails=every")
    write_rows(tmp_path / "eval.jsonl", f"env={NEAR},seeds=0:4", "--split", "eval")
    flags = ["--train.async_enable", "--algo.advantage.estimator", "gae", "--vllm.num_engines", "1"]
    output = train(
        tmp_path,
        small_model,
        *flags,
        "--critic.num_nodes",
        "1",
        "--critic.num_gpus_per_node",
        "1",
        "--ckpt.save_steps",
        "-1",
    )
    steps = logged(output, r"Global step (\d+): (\{.*\})")
    assert list(steps) == [1, 2, 3, 4]
    assert all(None not in metrics.values() for metrics in steps.values())
    episodes = read_episodes(tmp_path / "episodes", "train")
    failed = sum(not e.valid for e in episodes)
    assert (len(episodes), failed) == (64, 8)
    assert sum(metrics["gem/left_out"] for metrics in steps.values()) * 16 == pytest.approx(failed, abs=1e-3)
    spied = [row for line in (tmp_path / "spied.jsonl").read_text().splitlines() for row in json.loads(line)]
    assert [row["advantages"] for row in spied if row["masked"]] == [[0.0]] * failed
    evaluations = logged(output, r"Eval at step (\d+): (\{.*\})")
    assert list(evaluations) == [2]  # by then the trainer may have gone on, so the episodes may be of another step
    means = mean_metrics(read_episodes(tmp_path / "episodes", "eval"))
    assert evaluations[2][f"eval_{NEAR}_success"] == pytest.approx(means["success"], abs=1e-5)


def advantages_are_those_of_the_valid(rows):
    for first in range(0, len(rows), GROUP_SIZE):
        group = rows[first : first + GROUP_SIZE]
        valid = [row for row in group if not row["masked"]]
        expected = [0.0] if len(valid) < 2 else group_advantages([r["reward"] for r in valid], len(valid), eps=1e-9)
        for row, advantage in zip(valid, expected, strict=False):
            assert row["advantages"] == pytest.approx([advantage] * len(row["advantages"]), abs=1e-5), row
        assert all(row["advantages"] == [0.0] for row in group if row["masked"])
