"""The example and Oat's real learner, on the CPU: DeepSpeed, its collector, losses and weight synchronisation."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("oat") is None:
    pytest.skip("oat is not installed", allow_module_level=True)

import torch

from gem.rollout import discounted_returns, read_episodes, read_jsonl, rebn, replay
from gem.testing.fault_injection import fault_task
from gem.training.process import run_trainer

SCRIPT = Path(__file__).parents[2] / "examples" / "train_oat.py"
CPU_SHIMS = Path(__file__).parents[2] / "ci" / "cpu" / "oat"

RECORDED = '''
"""Oat's program as the example runs it, with a learner that records what it learns from, and looks at the engine."""

import json, os, sys

import oat_cpu
import launchpad
import torch
import vllm
from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
from oat.args import default_args_validation
from oat.interface import get_program
from transformers import AutoModelForCausalLM

from gem.testing.fault_injection import fault_task
from gem_oat import GemActor, GemArgs, GemLearnerMixin

fault_task()  # registers the environment
arguments, out = json.load(open(sys.argv[1])), sys.argv[2]
records = []
engine_is_vllm = not hasattr(vllm, "IS_CPU_SHIM")


def weights_of_engine():
    llm = program.nodes["actor_0_0"].instance.llm
    if not engine_is_vllm:
        return dict(llm.model.named_parameters())
    llm.collective_rpc("save_weights", args=(out + ".engine",))
    return torch.load(out + ".engine")


def weights_of_learner(model):
    own = {name: p.detach() for name, p in model.named_parameters()}
    if not engine_is_vllm:
        return own
    fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    for name in list(own):  # vLLM keeps these as one
        for whole, parts in fused.items():
            if f".{parts[0]}." in name:
                names = [name.replace(parts[0], part) for part in parts]
                own[name.replace(parts[0], whole)] = torch.cat([own.pop(part) for part in names])
    return own


class Learner(GemLearnerMixin, PPOMultiTurnLearner):
    def learning_step(self, trajectory):
        info = super().learning_step(trajectory)
        kept = {name: trajectory[name] for name in ("advantages", "prompt_ids_lens", "input_ids", "attention_mask")}
        records.append({**kept, **{name: float(info[name]) for name in ("adv_min", "adv_max", "adv_mean")}})
        return info

    def sync_params_to_actors(self):
        super().sync_params_to_actors()
        own = weights_of_learner(self.model.model.module)
        engine = {name: p[: len(own[name])] for name, p in weights_of_engine().items() if name in own}  # vLLM pads
        assert own.keys() == engine.keys()
        records[-1]["difference"] = max((p - engine[name]).abs().max().item() for name, p in own.items())
        records[-1]["moved"] = max((engine[name] - first[name]).abs().max().item() for name in own)


if __name__ == "__main__":  # vLLM's processes import this file too
    args = default_args_validation(GemArgs(**arguments))
    program, resources = get_program(args, Learner, GemActor)
    first = weights_of_learner(AutoModelForCausalLM.from_pretrained(args.pretrain, dtype=torch.float32))
    launchpad.launch(program)
    torch.save(records, out)
    os._exit(0)
'''


@pytest.fixture(scope="module")
def example(load_example):
    return load_example("train_oat")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_example_trains(small_model, tmp_path, assert_trained):
    sizes = ["--steps", "2", "--batch-size", "32", "--validation", "8", "--lr", "1e-3", "--max-new-tokens", "16"]
    command = [sys.executable, str(SCRIPT), "--model", str(small_model), *sizes, "--out", str(tmp_path)]
    done = subprocess.run([*command, "--", "cliprange=0.3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads((tmp_path / "settings.json").read_text())["arguments"]["cliprange"] == 0.3
    assert_trained(tmp_path / "model", small_model)
    assert "transformers stands in for vLLM" in done.stdout
    assert "greedy evaluation: success" in done.stdout
    metrics = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    episodes = list(read_jsonl(tmp_path / "episodes.jsonl"))
    assert [replay(episode) for episode in episodes] == [[]] * len(episodes)
    of_oat = rows(tmp_path / "oat.jsonl")
    assert [(row["kind"], row["step"]) for row in of_oat] == [("eval", 0), ("train", 1), ("train", 2), ("eval", 3)]
    for row, metric in zip(of_oat[1:3], metrics, strict=True):
        assert row["gem/success"] == pytest.approx(metric["success_rate"])
        assert row["actor/mean_episode_return"] == pytest.approx(metric["mean_return"])
        assert row["train/policy_grad_norm"] > 0
        # In step 2 too: the engine has the weights that step 1 has made.
        assert abs(row["train/sampler_learner_prob_diff_max"]) < 1e-5
    assert {episode.task.split for episode in read_episodes(tmp_path / "episodes", "eval")} == {"eval"}


def record(example, args, model, folder, cpu_shims):
    """Run Oat as the example does, and return what the learner saw."""
    args.fill_in()
    arguments = example.oat_arguments(args, str(model), folder, False)
    (folder / "arguments.json").write_text(json.dumps(arguments))
    (folder / "recorded.py").write_text(RECORDED)
    variables = {"PYTHONPATH": os.pathsep.join(map(str, cpu_shims)), "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    words = [sys.executable, *(str(folder / name) for name in ("recorded.py", "arguments.json", "records.pt"))]
    run_trainer(words, variables, folder / "oat.log", lambda: None)
    return torch.load(folder / "records.pt", weights_only=False)


def test_vllm_has_the_learners_weights(example, small_model, tmp_path):
    args = example.Args(
        env=fault_task().env_id, model=str(small_model), steps=2, batch_size=16, validation=0, lr=1e-3, engine="vllm"
    )
    records = record(example, args, small_model, tmp_path, [CPU_SHIMS])
    assert len(records) == 2
    for seen in records:
        assert seen["difference"] <= 1e-6
        assert seen["moved"] > 1e-4


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_advantages_are_the_references_and_the_engine_has_the_learners_weights(example, small_model, tmp_path, gamma):
    # Rewards of 1, 2, 3, 4: where advantages hardly differ, Oat's deviation, of sums in float32, has few digits.
    args = example.Args(
        env=fault_task().env_id, model=str(small_model), steps=2, batch_size=16, validation=0, gamma=gamma, lr=1e-3
    )
    records = record(example, args, small_model, tmp_path, [CPU_SHIMS / "engine_hf", CPU_SHIMS])
    assert len(records) == 2

    returns: dict[tuple[int, ...], list[float]] = {}  # of every turn, by the tokens that Oat learns from
    for episode in read_episodes(tmp_path / "episodes", "train"):
        for turn, value in zip(episode.turns, discounted_returns(episode.rewards, gamma), strict=True):
            returns.setdefault((*turn.prompt_ids, *turn.response_ids), []).append(float(value))
    for seen in records:
        tokens = [
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(seen["input_ids"], seen["attention_mask"], strict=True)
        ]
        got = np.array([float(value) for value in seen["advantages"]])
        assert len(got) == 48
        for value, key in zip(got, tokens, strict=True):
            assert min(abs(value - expected) for expected in returns[key]) < 1e-5
        (normalised,) = rebn([list(np.append(got[:-1] - gamma * got[1:], got[-1]))], gamma)  # whose returns are these
        np.testing.assert_allclose(seen["adv_min"], normalised.min(), atol=1e-5)
        np.testing.assert_allclose(seen["adv_max"], normalised.max(), atol=1e-5)
        np.testing.assert_allclose(seen["adv_mean"], normalised.mean(), atol=1e-5)
        assert seen["difference"] == 0
        assert seen["moved"] > 1e-4
