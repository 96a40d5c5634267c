"""A user's job with Oat, on the CPU here, and trainings with an environment that fails now and then."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("oat") is None:
    pytest.skip("oat is not installed", allow_module_level=True)

import torch

from gem.models import embedded_model
from gem.rollout import discounted_returns, group_advantages, mean_metrics, read_episodes, rebn

pytestmark = pytest.mark.slow

CPU = Path(__file__).parents[2] / "ci" / "cpu" / "oat"

JOB = """
import launchpad as lp
import mylab
import tyro
from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
from oat.args import default_args_validation
from oat.interface import get_program

from gem_oat import GemActor, GemArgs, GemLearnerMixin


class Actor(GemActor):
    make_env = staticmethod(mylab.make_env)


class Learner(GemLearnerMixin, PPOMultiTurnLearner):
    pass


if __name__ == "__main__":
    args = default_args_validation(tyro.cli(GemArgs))
    program, resources = get_program(args, learner_cls=Learner, actor_cls=Actor)
    lp.launch(program, launch_type=args.launch_type, local_resources=resources, terminal="current_terminal")
"""

ROWS = 32


def run(program, *words, folder):
    """Run a job on the CPU, and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(CPU / "run.py"), str(program), *map(str, words)],
        cwd=folder,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def logged(printed):
    """Return the metrics that Oat printed, row by row."""
    rows = []
    for block in re.findall(r"^\{\n(.*?)^\}", printed, flags=re.M | re.S):
        row = {name: float(value) for name, value in re.findall(r"'([\w/:.-]+)': ([-\d.e]+|nan)", block)}
        rows += [row] if "misc/global_step" in row else []
    return rows


def check_numbers(row, prefix, episodes):
    """What was logged can be recomputed from the episodes' files."""
    expected = {f"{prefix}{name}": value for name, value in mean_metrics(episodes).items()}
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_a_job_of_ones_own_resumes_and_its_numbers_are_those_of_its_episodes(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    flaky = f"env=mylab:Flaky-v0,fails=every,attempts={tmp_path / 'attempts'},seeds=100:164"
    sizes = {"rollout_batch_size": ROWS, "rollout_batch_size_per_device": ROWS, "pi_buffer_maxlen_per_device": ROWS}
    options = {
        "pretrain": embedded_model(),
        "tasks": f"env=mylab:Near-v0,seeds=0:64;{flaky}",
        "eval_tasks": "env=mylab:Near-v0,seeds=0:4;env=mylab:Near-v0,turns=2,seeds=4:8",
        "episodes": tmp_path / "episodes",
        "num_envs": 8,
        **sizes,
        "train_batch_size": ROWS,
        "eval_batch_size": 8,
        "eval_steps": 2,
        "generate_max_length": 16,
        "eval_generate_max_length": 16,
        "max_model_len": 1024,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "beta": 0.05,
        "gpus": 1,
        "zero_stage": 0,
        "save_steps": 2,
        "save_path": tmp_path / "oat",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--whiten_adv", "--collocate", "--no-bf16", "--no-flash_attn", "--save_ckpt"]
    folder = tmp_path / "episodes"

    first = logged(run("job.py", *words, "--training_steps", 3, folder=tmp_path))
    (checkpoints,) = (tmp_path / "oat").glob("*/checkpoints")
    resume = ["--resume_dir", checkpoints, "--resume_tag", "step_00002", "--training_steps", 5]
    second = logged(run("job.py", *words, *resume, folder=tmp_path))

    # Oat logs an evaluation before the training, every step, and at last once more.
    steps = {(1, step): row for step, row in enumerate(first[1:4], 1)}
    steps |= {(2, step): row for step, row in enumerate(second[1:4], 3)}
    for (number, step), row in steps.items():
        episodes = read_episodes(folder, "train", step, run=number)
        check_numbers(row, "gem/", episodes)
        assert row["misc/lr"] == pytest.approx(1e-3)
        assert abs(row["train/sampler_learner_prob_diff_max"]) < 1e-5  # the engine has the learner's weights
        assert any(turn.info.get("use_tool") for episode in episodes for turn in episode.turns)
        valid = sum(len(episode.turns) for episode in episodes if episode.valid)
        assert valid >= ROWS
        assert row["actor/num_transitions"] == valid
    assert {"gem/success/mylab:Near-v0", "gem/success/mylab:Flaky-v0"} <= set(steps[1, 1])
    assert sum(row["gem/left_out"] for row in steps.values()) > 0
    # The policy is still that of the reference at first, and no more when it is resumed.
    assert steps[1, 1]["train/kl3"] == pytest.approx(0, abs=1e-6)
    assert all(row["train/kl3"] > 1e-6 for (_, step), row in steps.items() if step > 1)

    evaluations = {(1, 0): first[0], (1, 2): first[2], (2, 2): second[0], (2, 4): second[2]}
    for (number, step), row in evaluations.items():
        episodes = read_episodes(folder, "eval", step, run=number)
        assert len(episodes) == 8
        assert {episode.task.split for episode in episodes} == {"eval"}
        check_numbers(row, "eval/gem/", episodes)
        assert row["eval/score"] == pytest.approx(row["eval/gem/success"])
    actions = [[t.action for e in read_episodes(folder, "eval", 2, run=n) for t in e.turns] for n in (1, 2)]
    assert actions[0] == actions[1]  # greedily, with the same weights

    # After the resumption the tasks go on, as they did in the first run.
    seeds = [[e.task.seed for e in read_episodes(folder, "train", 3, run=n)] for n in (1, 2)]
    both = min(map(len, seeds))
    assert seeds[0][:both] == seeds[1][:both]
    assert not set(seeds[1]) & {e.task.seed for step in (1, 2) for e in read_episodes(folder, "train", step)}


RECORDED = """
import json, sys

import launchpad
import torch
from oat.algorithms.ppo import PPOLearner
from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
from oat.args import default_args_validation
from oat.interface import get_program

from gem_oat import GemActor, GemArgs, GemGroupActor, GemLearnerMixin

settings, records = json.load(open(sys.argv[1])), []


class Learner(GemLearnerMixin, PPOLearner if settings["in_groups"] else PPOMultiTurnLearner):
    def learning_step(self, trajectory):
        rows = zip(trajectory["input_ids"], trajectory["attention_mask"], strict=True)
        ids = [ids[mask.bool()].tolist() for ids, mask in rows]
        records.append({"ids": ids, "valid": trajectory["loss_masks"]})
        info = super().learning_step(trajectory)
        torch.save(records, "records.pt")
        return info

    def _turns(self, trajectory):
        turns = super()._turns(trajectory)
        records[-1] |= {"returns": trajectory["returns"], "advantages": turns["advantages"]}
        return turns

    def compute_monte_carlo_advantages(self, *args):
        advantages = super().compute_monte_carlo_advantages(*args)
        records[-1]["advantages"] = advantages.tolist()
        return advantages


args = default_args_validation(GemArgs(**settings["arguments"]))
program, _ = get_program(args, Learner, GemGroupActor if settings["in_groups"] else GemActor)
launchpad.launch(program)
"""


def records_of_failing(folder, load_example, algorithm, **options):
    """Train for ten steps as the example does; one of eight episodes fails, at random. Return what was learned from."""
    example = load_example("train_oat")
    args = example.Args(
        env="mylab:Flaky-v0", algorithm=algorithm, model=str(embedded_model()), steps=10, batch_size=32, validation=0
    )
    args.fill_in()
    arguments = example.oat_arguments(args, str(embedded_model()), folder, False) | options
    (folder / "settings.json").write_text(json.dumps({"in_groups": algorithm == "grpo", "arguments": arguments}))
    (folder / "recorded.py").write_text(RECORDED)
    run("recorded.py", "settings.json", folder=folder)
    records = torch.load(folder / "records.pt", weights_only=False)
    assert len(records) == 10
    episodes = [read_episodes(folder / "episodes", "train", step) for step in range(1, 11)]
    left_out = sum(not episode.valid for of_step in episodes for episode in of_step)
    assert 10 < left_out < 80  # of about 320
    return zip(records, episodes, strict=True)


def test_turns_of_failed_episodes_are_not_learned_from_and_the_others_stand_as_without_them(tmp_path, load_example):
    for seen, episodes in records_of_failing(tmp_path, load_example, "rebn"):
        returns = {}
        for episode in episodes:
            for turn, value in zip(episode.turns, discounted_returns(episode.rewards), strict=True):
                if episode.valid:
                    returns.setdefault((*turn.prompt_ids, *turn.response_ids), []).append(float(value))
        assert len(seen["ids"]) == 96
        assert all(seen["valid"])
        for ids, value in zip(seen["ids"], seen["returns"], strict=True):
            assert min(abs(value - known) for known in returns[tuple(ids)]) < 1e-5
        np.testing.assert_allclose(seen["advantages"], np.ravel(rebn([[v] for v in seen["returns"]])), atol=1e-5)


def test_members_that_fail_do_not_move_their_groups(tmp_path, load_example):
    tasks = {"tasks": "env=mylab:Flaky-v0,fails_in=1,seeds=0:1000"}
    for seen, episodes in records_of_failing(tmp_path, load_example, "grpo", **tasks):
        assert len(seen["advantages"]) == len(episodes) == 32
        assert seen["valid"] == [episode.valid for episode in episodes]
        for start in range(0, 32, 8):
            group = range(start, start + 8)
            valid = [i for i in group if episodes[i].valid]
            expected = group_advantages([episodes[i].total_reward for i in valid], len(valid), eps=1e-8)
            np.testing.assert_allclose([seen["advantages"][i] for i in valid], expected, atol=1e-5)
            assert not any(seen["advantages"][i] for i in group if i not in valid)
