"""A job with verl as a user would write it: ``python -m verl.trainer.main_ppo`` with keys; on the CPU here."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("verl")

import torch

from gem.models import embedded_model
from gem.rollout import mean_metrics, read_episodes, rebn

ROOT = Path(__file__).parents[2]
CPU = ROOT / "ci" / "cpu" / "verl"
NEAR, FLAKY = "mylab:Near-v0", "mylab:Flaky-v0"

LOOP = """
- name: gem
  _target_: gem_verl.GemAgentLoop
  max_new_tokens: 16
  episodes: {folder}/episodes
  make_env: {{_target_: hydra.utils.get_method, path: mylab.make_env}}
"""


def train(folder, *keys, modules=()):
    """Run verl's trainer; return what it has logged, by step."""
    (folder / "gem.yaml").write_text(LOOP.format(folder=folder))
    groups, group_size = 4, 4
    every_job = [
        "data.custom_cls.path=pkg://gem_verl",
        "data.custom_cls.name=GemTaskDataset",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder / 'gem.yaml'}",
        "trainer.v1.sampler.custom_sampler.path=pkg://gem_verl",
        "trainer.v1.sampler.custom_sampler.name=GemReplayBuffer",
        "+trainer.v1.sampler.sampler_kwargs.poll_interval=0.1",
        f"data.train_batch_size={groups}",
        "data.max_prompt_length=256",
        "data.max_response_length=512",
        f"actor_rollout_ref.model.path={embedded_model()}",
        f"actor_rollout_ref.rollout.n={group_size}",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={groups}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.actor.optim.lr=1e-4",
        "trainer.logger=[console,file]",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        f"hydra.run.dir={folder / 'hydra'}",
    ]
    shims = ["cpu_platform", "hf_rollout", "sdpa_critic", "resident_reference"]
    (folder / "verl.jsonl").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gem-ray-", ignore_cleanup_errors=True) as ray_folder:
        cpu = [line for line in (CPU / "keys.txt").read_text().splitlines() if "#" not in line]
        cpu.append(f"+ray_kwargs.ray_init._temp_dir={ray_folder}")
        variables = {
            "VERL_PLATFORM": "cpu",
            "VERL_ENGINE_DEVICE": "cuda",
            "VERL_USE_EXTERNAL_MODULES": ",".join([*shims, *modules]),
            "VERL_FILE_LOGGER_PATH": str(folder / "verl.jsonl"),
            "PYTHONPATH": os.pathsep.join([str(CPU), str(ROOT / "tests" / "adapters"), os.environ["PYTHONPATH"]]),
            "OMP_NUM_THREADS": "1",
            "GEM_RECORDS": str(folder / "records"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "verl.trainer.main_ppo", *cpu, *every_job, *keys],
            env={**os.environ, **variables},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    (folder / "verl.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    rows = [json.loads(line) for line in (folder / "verl.jsonl").read_text().splitlines()]
    return {row["step"]: row["data"] for row in rows}


def check_log(logged, folder, steps):
    """Compare what verl has logged of training steps with the episodes in the files."""
    for step in steps:
        episodes = read_episodes(folder / "episodes", "train", step)
        got = {name: value for name, value in logged[step].items() if name.startswith("gem/")}
        assert got == pytest.approx({f"gem/{name}": value for name, value in mean_metrics(episodes).items()})
        assert np.isfinite([logged[step]["actor/pg_loss"], logged[step]["actor/grad_norm"]]).all()
        returns = [episode.total_reward for episode in episodes if episode.valid]
        assert logged[step]["critic/score/max"] == pytest.approx(max(returns), abs=1e-5)


def check_validation(logged, folder, step):
    """Compare verl's validation with the episodes in the files: of each environment, as verl has them."""
    episodes = read_episodes(folder / "episodes", "eval", step)
    for env_id in (NEAR, FLAKY):
        own = [episode for episode in episodes if episode.task.env_id == env_id]
        means = mean_metrics(own)
        row = {name: logged[step].get(f"val-aux/{env_id}/{name}/mean@1") for name in means if name != "success"}
        assert row == pytest.approx({name: value for name, value in means.items() if name != "success"})
        assert logged[step][f"val-aux/{env_id}/acc_success_only/mean@1"] == pytest.approx(means["success"])
        solved = sum(episode.success for episode in own if episode.valid)
        assert logged[step][f"val-core/{env_id}/acc/mean@1"] == pytest.approx(solved / len(own))


@pytest.mark.slow
def test_a_job_with_wrapper_tool_kl_and_validation_that_resumes(tmp_path):
    flaky = f"env={FLAKY},fails=every,attempts={tmp_path / 'attempts'}"
    keys = [
        f"data.train_files='env={NEAR},seeds=0:16;{flaky},seeds=0:16'",
        f"data.val_files='env={NEAR},seeds=0:8;{flaky},seeds=0:8'",
        "algorithm.adv_estimator=grpo",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.kl_loss_coef=0.1",
        "trainer.test_freq=2",
        "trainer.save_freq=2",
        "trainer.total_epochs=4",
    ]
    first = train(tmp_path, *keys, "trainer.total_training_steps=3")
    assert set(first) == {0, 1, 2, 3}
    episodes = read_episodes(tmp_path / "episodes", "train")
    assert len(episodes) == 48
    assert {turn.info.get("tool_type") for episode in episodes for turn in episode.turns} >= {"parity"}
    assert any(not episode.valid for episode in episodes)
    check_log(first, tmp_path, (1, 2, 3))
    for step in (0, 2, 3):
        check_validation(first, tmp_path, step)
    assert all(f"gem/environment_errors/{env_id}" in first[1] for env_id in (NEAR, FLAKY))
    assert first[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-6)  # the reference is the model itself
    assert first[3]["actor/kl_loss"] > 1e-6

    before = read_episodes(tmp_path / "episodes", "train", 3)
    checkpoint = tmp_path / "checkpoints" / "global_step_2"
    resumed = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}"]
    again = train(tmp_path, *keys, *resumed, "trainer.total_training_steps=4")
    assert set(again) == {2, 3, 4}
    check_log(again, tmp_path, (3, 4))
    check_validation(again, tmp_path, 4)
    assert len(read_episodes(tmp_path / "episodes", "train")) == 64
    after = read_episodes(tmp_path / "episodes", "train", 3)
    tasks = [sorted(episode.task.to_json() for episode in run) for run in (before, after)]
    assert tasks[0] == tasks[1]  # the data go on where the checkpoint was made
    assert before != after


@pytest.mark.slow
def test_ten_steps_in_which_one_of_eight_episodes_fails(tmp_path):
    (tmp_path / "records").mkdir()
    logged = train(
        tmp_path,
        f"data.train_files='env={FLAKY},fails=chance,seeds=0:40'",
        f"data.val_files='env={NEAR},seeds=0:4;env={FLAKY},seeds=0:4'",
        "algorithm.adv_estimator=gem_rebn",
        "critic.enable=False",
        "trainer.test_freq=10",
        "trainer.save_freq=-1",
        "trainer.total_epochs=1",
        modules=["verl_plugin"],
    )
    assert set(logged) == set(range(11))
    check_log(logged, tmp_path, range(1, 11))
    failed = 0
    for step in range(1, 11):
        episodes = read_episodes(tmp_path / "episodes", "train", step)
        valid = [episode for episode in episodes if episode.valid]
        failed += len(episodes) - len(valid)
        assert logged[step]["gem/left_out"] == pytest.approx(1 - len(valid) / len(episodes))
        check_advantages(torch.load(tmp_path / "records" / f"{step}.pt"), valid)
    assert 6 < failed < 50  # of 160; 20 are expected


def check_advantages(record, episodes):
    """Compare the advantages that verl learned from with those of a batch of these episodes alone."""
    expected = []
    for episode, values in zip(episodes, rebn([e.rewards for e in episodes], record["gamma"]), strict=True):
        row = [float(value) for value, turn in zip(values, episode.turns, strict=True) for _ in turn.response_ids]
        expected.append((episode.as_sequence().mask.tolist(), row))
    got = [
        (mask[: int(mask.nonzero().max()) + 1].tolist(), advantages[mask.bool()].tolist())
        for mask, advantages in zip(record["mask"], record["advantages"], strict=True)
        if mask.any()  # else it fills the batch
    ]
    assert [mask for mask, _ in sorted(got)] == [mask for mask, _ in sorted(expected)]
    for (_, own), (_, wanted) in zip(sorted(got), sorted(expected), strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-5)
