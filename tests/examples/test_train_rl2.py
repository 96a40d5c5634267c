"""The example and RL2's real trainer, on the CPU: its rollout, packing, FSDP, losses and weight push."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("RL2") is None:
    pytest.skip("rl-square is not installed", allow_module_level=True)

import torch

from gem.rollout import read_episodes, read_jsonl, rebn, replay

SCRIPT = Path(__file__).parents[2] / "examples" / "train_rl2.py"
CPU_SHIMS = Path(__file__).parents[2] / "ci" / "cpu" / "rl2"

RECORDED = '''
"""RL2's trainer as the example runs it, with a look at what it learns from, and at the engine's weights."""

import os, runpy, sys

import rl2_cpu
import multiprocessing
import requests
import torch
import wandb
from RL2.utils.checkpointing import get_state_dict
from RL2.workers import actor, rollout

records = []
first = None
update, push = actor.Actor.update, rollout.Rollout.update
wandb.log = lambda *args, **kwargs: None


def recorded_update(self, tensor_dict, step):
    records.append({name: tensor.clone() for name, tensor in tensor_dict.items()})
    update(self, tensor_dict, step)


def engine(self):
    def ask(name):
        message = dict(name=name, truncate_size=10**6)
        return torch.tensor(requests.post(f"{self.worker_url}/get_weights_by_name", json=message).json())

    return {name: ask(name) for name in get_state_dict(self.of_actor)}


def recorded_push(self, of_actor, step):
    self.of_actor = of_actor
    before = engine(self)
    push(self, of_actor, step)
    after, own = engine(self), get_state_dict(of_actor)
    records[-1]["moved"] = max((after[name] - before[name]).abs().max().item() for name in own)
    records[-1]["difference"] = max((after[name] - own[name]).abs().max().item() for name in own)


actor.Actor.update, rollout.Rollout.update = recorded_update, recorded_push
try:
    runpy.run_module("RL2.trainer.ppo", run_name="__main__", alter_sys=True)
finally:
    for process in multiprocessing.active_children():
        process.kill()
torch.save(records, "records.pt")
'''


@pytest.fixture(scope="module")
def example(load_example):
    return load_example("train_rl2")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_example_trains(small_model, tmp_path, assert_trained):
    sizes = ["--steps", "2", "--batch-size", "32", "--validation", "8", "--lr", "1e-3", "--max-new-tokens", "16"]
    command = [sys.executable, str(SCRIPT), "--model", str(small_model), *sizes, "--out", str(tmp_path)]
    done = subprocess.run([*command, "--", "actor.clip=0.3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "actor.clip=0.3" in (tmp_path / "command.sh").read_text()
    assert_trained(tmp_path / "model", small_model)
    assert "Transformers stands in for sglang" in done.stdout
    assert "greedy evaluation: success" in done.stdout
    metrics = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    episodes = list(read_jsonl(tmp_path / "episodes.jsonl"))
    assert len(episodes) == 64
    assert [replay(episode) for episode in episodes] == [[]] * 64
    assert len(read_episodes(tmp_path / "episodes", "eval")) == 8
    of_rl2 = {(row["step"], name): value for row in rows(tmp_path / "rl2.jsonl") for name, value in row.items()}
    for metric in metrics:
        step = metric["step"]
        assert of_rl2[step, "gem/success/train"] == of_rl2[step, "scores/train"]
        assert of_rl2[step, "gem/success/train"] == pytest.approx(metric["success_rate"])
        assert of_rl2[step, "gem/left_out/train"] == metric["left_out"] == 0
        assert of_rl2[step, "actor/grad_norm"] > 0
    assert subprocess.run(["pgrep", "-f", "sglang_server.py"], check=False).returncode == 1  # nothing is left running


def test_a_trainer_that_fails_is_an_error_with_its_last_words(small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    command = [sys.executable, str(SCRIPT), "--model", str(model), "--steps", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "the trainer failed; all that it printed is in" in done.stderr
    assert "no file named" in (tmp_path / "out" / "rl2.log").read_text()


def test_the_engine_has_the_actors_weights_and_rebn_is_the_references(example, small_model, tmp_path):
    args = example.Args(model=str(small_model), steps=2, batch_size=32, validation=0, gamma=0.9, lr=1e-3)
    args.max_new_tokens = 16
    args.fill_in()
    keys = {**example.gem_keys(args, tmp_path), **example.algorithm_keys(args), **example.cpu_keys()}
    keys |= example.job_keys(args, str(small_model), tmp_path)
    (tmp_path / "recorded.py").write_text(RECORDED)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "recorded.py", *(f"{key}={example.word(value)}" for key, value in keys.items())],
        cwd=tmp_path,
        env={**os.environ, **world, "PYTHONPATH": str(CPU_SHIMS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = torch.load(tmp_path / "records.pt", weights_only=False)
    assert len(records) == 2
    for step, record in enumerate(records, start=1):
        played = {}
        episodes = read_episodes(tmp_path / "episodes", "train", step)
        for episode, advantages in zip(episodes, rebn([e.rewards for e in episodes], 0.9), strict=True):
            row = episode.as_sequence()
            lengths = [len(turn.response_ids) for turn in episode.turns]
            played[(*row.prompt_ids.tolist(), *row.completion_ids.tolist())] = np.repeat(advantages, lengths)
        for ids, actions, mask, got in zip(
            *(record[name] for name in ("states", "actions", "action_mask", "advantages")), strict=True
        ):
            length = int(mask.nonzero().max()) + 1
            expected = played[(*ids[:length].tolist(), int(actions[length - 1]))]
            np.testing.assert_allclose(got[mask.bool()].numpy(), expected, atol=1e-6)
        assert record["moved"] > 1e-4
        assert record["difference"] == 0
