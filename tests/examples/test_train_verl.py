"""The example and verl's real trainer, on the CPU: Ray, FSDP, the replay buffer, validation. Minutes, not seconds."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("verl")

import psutil
import torch

from gem.rollout import mean_metrics, read_episodes, read_jsonl, rebn, replay
from gem.tasks import make_tasks
from gem.testing.fault_injection import fault_task

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_verl.py"
SIZES = ["--steps", "2", "--batch-size", "32", "--group-size", "4", "--validation", "8"]


@pytest.fixture
def variables(tmp_path):
    """Return an environment in which verl's processes record what ReBN is computed from."""
    records = tmp_path / "records"
    records.mkdir()
    return {
        **os.environ,
        "GEM_RECORDS": str(records),
        "VERL_USE_EXTERNAL_MODULES": "verl_plugin",
        "PYTHONPATH": str(ROOT / "tests" / "adapters"),
    }


@pytest.fixture(scope="module")
def example(load_example):
    return load_example("train_verl")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_rebn(tmp_path, folder, step, mode):
    """Compare the advantages that verl learned from with the reference, on the valid episodes of that step."""
    record = torch.load(tmp_path / "records" / f"{step}.pt")
    learned = []
    for mask, advantages in zip(record["mask"], record["advantages"], strict=True):
        if mask.any():  # else it fills the batch
            sampled = mask.bool()
            learned.append((tuple(mask[: int(mask.nonzero().max()) + 1].tolist()), advantages[sampled].tolist()))
            assert not advantages[~sampled].any()
    episodes = [episode for episode in read_episodes(folder, "train", step) if episode.valid]
    expected = []
    for episode, values in zip(episodes, rebn([e.rewards for e in episodes], record["gamma"]), strict=True):
        each = [[value] * len(turn.response_ids) for value, turn in zip(values, episode.turns, strict=True)]
        if mode == "concat":
            expected.append((tuple(episode.as_sequence().mask.tolist()), [value for turn in each for value in turn]))
        else:
            expected += [((1,) * len(turn), turn) for turn in each]
    assert len(learned) == len(expected)
    for (mask, got), (expected_mask, wanted) in zip(sorted(learned), sorted(expected), strict=True):
        assert mask == expected_mask
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert len({round(value, 3) for _, values in learned for value in values}) > 1


def test_the_example_trains_and_nothing_is_left_running(small_model, tmp_path, variables, assert_trained):
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), "--model", str(small_model), *SIZES, "--lr", "1e-3", "--out", str(out)]
    command += ["--", "actor_rollout_ref.actor.clip_ratio=0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "actor_rollout_ref.actor.clip_ratio=0.3" in (out / "command.sh").read_text()
    assert_trained(out / "model", small_model)
    assert "transformers generates instead of vLLM" in done.stdout
    assert "greedy validation: success" in done.stdout

    metrics = rows(out / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    episodes = list(read_jsonl(out / "episodes.jsonl"))
    assert len(episodes) == 64
    assert [replay(episode) for episode in episodes] == [[]] * 64
    assert all(turn.logprobs for episode in episodes for turn in episode.turns)

    of_verl = {row["step"]: row["data"] for row in rows(out / "verl.jsonl")}
    env_id = "game:GuessTheNumber-v1-easy"
    for step in (1, 2):
        assert of_verl[step]["gem/success"] == pytest.approx(metrics[step - 1]["success_rate"])
        assert of_verl[step]["gem/return"] == pytest.approx(metrics[step - 1]["mean_return"])
        assert of_verl[step]["critic/score/mean"] == pytest.approx(metrics[step - 1]["mean_return"], abs=1e-5)
        # In step 2 too: the rollout has the weights that step 1 has made.
        assert of_verl[step]["training/rollout_probs_diff_max"] <= 1e-5
        assert of_verl[step]["actor/grad_norm"] > 0
        check_rebn(tmp_path, out / "episodes", step, "concat")
    for step in (0, 2):
        assert f"val-aux/{env_id}/environment_errors/mean@1" in of_verl[step]
        validated = read_episodes(out / "episodes", "eval", step)
        assert {episode.task.split for episode in validated} == {"eval"}
        success = mean_metrics(validated)["success"]
        assert of_verl[step][f"val-core/{env_id}/acc/mean@1"] == pytest.approx(success)
    (ray_folder,) = re.findall(r"_temp_dir=(\S+)", (out / "command.sh").read_text())
    running = [process.info for process in psutil.process_iter(["pid", "cmdline"])]  # None: it has just ended
    assert [info["pid"] for info in running if ray_folder in " ".join(info["cmdline"] or ())] == []


def test_turns_as_samples_and_environments_that_misbehave(example, small_model, tmp_path, variables):
    out = tmp_path / "out"
    out.mkdir()
    tasks = make_tasks("game:GuessTheNumber-v1-easy", range(32))
    for first in (0, 16):
        for i, how in enumerate(["raises", "hangs", "floods"]):
            tasks[first + 5 * i] = fault_task(how)
    (tmp_path / "tasks.jsonl").write_text("\n".join(task.to_json() for task in tasks))

    args = example.Args(model=str(small_model), steps=2, batch_size=16, group_size=4, validation=0)
    args.fill_in()
    with tempfile.TemporaryDirectory(prefix="gem-ray-", ignore_cleanup_errors=True) as ray_folder:
        words = example.command(args, str(small_model), out, ray_folder, on_gpu=False)
        yaml = (out / "gem.yaml").read_text().replace("mode: concat", "mode: turn")
        (out / "gem.yaml").write_text(yaml + "  step_timeout: 1.0\n")
        words += [f"data.train_files={tmp_path / 'tasks.jsonl'}", "data.train_batch_size=16", "algorithm.gamma=0.9"]
        words += ["actor_rollout_ref.rollout.n=1", "actor_rollout_ref.actor.ppo_mini_batch_size=16"]
        here = {"VERL_USE_EXTERNAL_MODULES": "verl_plugin", "PYTHONPATH": variables["PYTHONPATH"]}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in here.items():
                patch.setenv(name, value)
            environment = {**variables, **example.environment(out, on_gpu=False)}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    of_verl = {row["step"]: row["data"] for row in rows(out / "verl.jsonl")}
    for step in (1, 2):
        episodes = read_episodes(out / "episodes", "train", step)
        assert len(episodes) == 16
        means = {f"gem/{name}": value for name, value in mean_metrics(episodes).items()}
        assert {name: value for name, value in of_verl[step].items() if name.startswith("gem/")} == pytest.approx(means)
        assert means["gem/environment_errors"] == means["gem/left_out"] == pytest.approx(2 / 16)
        assert means["gem/truncated_context"] == pytest.approx(1 / 14)  # of the valid ones
        check_rebn(tmp_path, out / "episodes", step, "turn")
