"""A job with RL2 as a user would write it: a file with the environments, and RL2's own command; on the CPU here."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("RL2") is None:
    pytest.skip("rl-square is not installed", allow_module_level=True)

import torch

from gem.models import embedded_model
from gem.rollout import group_advantages, mean_metrics, read_episodes
from gem.tasks import Task

CPU = Path(__file__).parents[2] / "ci" / "cpu" / "rl2"

LAB = """
import mylab
from gem_rl2 import GemEnv

env = GemEnv(make_env=mylab.make_env)
reset, step, generate = env.reset, env.step, env.generate
"""

RECORDED = """
import rl2_cpu
import runpy
import torch
from RL2.workers import actor

update, batches = actor.Actor.update, []


def recorded(self, tensor_dict, step):
    batches.append({name: values.clone() for name, values in tensor_dict.items()})
    torch.save(batches, "batches.pt")
    return update(self, tensor_dict, step)


actor.Actor.update = recorded
runpy.run_module("RL2.trainer.ppo", run_name="__main__", alter_sys=True)
"""


def write_rows(out, *arguments):
    command = [sys.executable, "-m", "gem", "tasks", *arguments, "--format", "rl2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(folder, keys, program=CPU / "rl2_cpu.py"):
    """Run RL2's trainer with keys beside those of every job here; return what it printed."""
    keys = {
        "rollout.max_turns": 5,
        "+rollout.gem.episodes": folder / "episodes",
        "train_data.path": folder / "train.jsonl",
        "train_data.prompts_per_rollout": 4,
        "train_data.responses_per_prompt": 4,
        "test_data.path": folder / "test.jsonl",
        "rollout.train_sampling_params.max_new_tokens": 16,
        "rollout.server_args.dtype": "float32",
        "rollout.dynamic_filtering": "false",
        "actor.model_name": embedded_model(),
        "actor.max_length_per_device": 1024,
        "actor.gradient_checkpointing": "false",
        "actor.lr": 1e-4,
        "trainer.experiment_name": "lab",
        "trainer.save_dir": folder / "model",
        "trainer.use_wandb": "false",
        **keys,
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", str(program)]
    paths = [str(CPU), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*torchrun, *(f"{name}={value}" for name, value in keys.items())],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert subprocess.run(["pgrep", "-f", "sglang_server.py"], check=False).returncode == 1  # nothing is left running
    return done.stdout + done.stderr


def logged(printed):
    """Return what RL2 printed: by the step, the name and the value."""
    found = {}
    for step, line in re.findall(r"Step (\d+), (.*)", printed):
        for name, value in re.findall(r"([\w/:.-]+): ([-\d.e+na]+)", line):
            found.setdefault(int(step), {})[name] = float(value)
    return found


def check_log(found, folder, steps, split):
    """Compare the printed metrics, which have three digits, with what the episodes' files give."""
    suffix = "train" if split == "train" else "test"
    for step in steps:
        expected = mean_metrics(read_episodes(folder / "episodes", split, step))
        for name, value in expected.items():
            assert found[step][f"gem/{name}/{suffix}"] == pytest.approx(value, rel=6e-3, abs=1e-9), (step, name)
        assert found[step][f"scores/{suffix}"] == found[step][f"gem/success/{suffix}"]


def test_rows_of_several_environments_are_mixed(tmp_path):
    source = f"env=mylab:Near-v0,seeds=0:4;env=mylab:Flaky-v0,fails=member,attempts={tmp_path},seeds=0:2"
    assert "6 tasks" in write_rows(tmp_path / "train.jsonl", source)
    write_rows(tmp_path / "x.jsonl", "env=mylab:Near-v0,seeds=0:2", "env=mylab:Flaky-v0,seeds=0:1", "--split", "eval")
    lines = [json.loads(line) for name in ("train", "x") for line in (tmp_path / f"{name}.jsonl").open()]
    tasks = [Task.from_json(row["extra_info"]["task"]) for row in lines]
    assert [task.env_id[6:10] for task in tasks] == [
        "Near",
        "Flak",
        "Near",
        "Near",
        "Flak",
        "Near",
        "Near",
        "Flak",
        "Near",
    ]
    assert tasks[1].env_kwargs == {"fails": "member", "attempts": str(tmp_path)}
    with pytest.raises(AssertionError, match=r"gem: .*lenght"):
        write_rows(tmp_path / "y.jsonl", "env=mylab:Near-v0,seeds=0:4", "env=mylab:Near-v0,seeds=0:4,lenght=3")


@pytest.mark.slow
def test_a_job_with_wrapper_tool_kl_and_validation_that_resumes(tmp_path):
    flaky = f"env=mylab:Flaky-v0,fails=member,attempts={tmp_path / 'attempts'}"
    write_rows(tmp_path / "train.jsonl", f"env=mylab:Near-v0,seeds=0:8;{flaky},seeds=0:8")
    write_rows(
        tmp_path / "test.jsonl", "env=mylab:Near-v0,seeds=0:4", "env=mylab:Flaky-v0,seeds=0:4", "--split", "eval"
    )
    (tmp_path / "lab.py").write_text(LAB)
    keys = {
        "rollout.env_path": tmp_path / "lab.py",
        "adv.estimator": "rebn",
        "actor.kl.coef": 0.1,
        "actor.kl.type": "loss",
        "trainer.test_freq": 2,
        "trainer.save_freq": 2,
    }
    first = logged(train(tmp_path, keys))
    assert set(first) == {1, 2, 3, 4}
    episodes = read_episodes(tmp_path / "episodes", "train")
    assert len(episodes) == 64
    assert {turn.info.get("tool_type") for episode in episodes for turn in episode.turns} >= {"parity"}
    assert any(not episode.valid for episode in episodes)
    check_log(first, tmp_path, range(1, 5), "train")
    check_log(first, tmp_path, (2, 4), "eval")
    assert all(f"gem/success/mylab:{name}-v0/test" in first[4] for name in ("Near", "Flaky"))

    again = logged(train(tmp_path, {**keys, "trainer.load_ckpt_from": tmp_path / "model" / "step2"}))
    assert set(again) == {3, 4}
    assert len(read_episodes(tmp_path / "episodes", "train")) == 64
    check_log(again, tmp_path, (3, 4), "train")
    check_log(again, tmp_path, (4,), "eval")
    tasks = [sorted(e.task.to_json() for e in read_episodes(tmp_path / "episodes", "train", 3, run)) for run in (1, 2)]
    assert tasks[0] == tasks[1]  # the data go on where they stopped


@pytest.mark.slow
def test_ten_steps_in_which_one_of_eight_episodes_fails(tmp_path):
    write_rows(tmp_path / "train.jsonl", "env=mylab:Flaky-v0,fails=chance,seeds=0:40")
    write_rows(tmp_path / "test.jsonl", "env=mylab:Near-v0,seeds=0:4", "--split", "eval")
    (tmp_path / "lab.py").write_text(LAB)
    (tmp_path / "recorded.py").write_text(RECORDED)
    keys = {
        "rollout.env_path": tmp_path / "lab.py",
        "adv.norm_var": "true",
        "train_data.responses_per_prompt": 8,
        "actor.update_per_rollout": 2,
    }
    found = logged(train(tmp_path, keys, tmp_path / "recorded.py"))
    batches = torch.load(tmp_path / "batches.pt", weights_only=False)
    assert len(batches) == 10
    failed = 0
    for step, batch in enumerate(batches, start=1):
        episodes = read_episodes(tmp_path / "episodes", "train", step)
        failed += sum(not episode.valid for episode in episodes)
        assert found[step]["gem/left_out/train"] == pytest.approx(np.mean([not e.valid for e in episodes]), rel=6e-3)
        assert np.isfinite([found[step]["actor/loss"], found[step]["actor/grad_norm"]]).all()
        check_advantages(batch, episodes)
    assert 20 < failed < 70  # of 320; 40 are expected
    check_log(found, tmp_path, range(1, 11), "train")


def check_advantages(batch, episodes):
    """Compare the advantages with those of the groups without the episodes that failed."""
    groups = {}
    for episode in episodes:
        if episode.valid:
            groups.setdefault(episode.task.seed, []).append(episode)
    expected = {}
    for group in groups.values():
        returns = [episode.total_reward for episode in group]
        own = group_advantages(returns, len(group), eps=1.2e-7) if len(group) > 1 else [0.0]
        for episode, value in zip(group, own, strict=True):
            row = episode.as_sequence()
            ids = (*row.prompt_ids.tolist(), *row.completion_ids.tolist())
            expected.setdefault(ids, []).append(float(value))
    got = {}
    for i in batch["eos_mask"].any(-1).nonzero().flatten().tolist():
        length = int(batch["eos_mask"][i].argmax()) + 1
        ids = (*batch["states"][i, :length].tolist(), int(batch["actions"][i, length - 1]))
        (value,) = batch["advantages"][i][batch["action_mask"][i].bool()].unique().tolist()
        got.setdefault(ids, []).append(value)
    assert got.keys() == expected.keys()
    for ids, values in expected.items():
        np.testing.assert_allclose(sorted(got[ids]), sorted(values), atol=1e-5)
    left_out = ~batch["eos_mask"].any(-1)
    assert left_out.sum() == sum(not episode.valid for episode in episodes)
    assert not batch["advantages"][left_out].any()
