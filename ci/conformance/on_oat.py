"""Run the conformance suite on the Oat adapter, with Oat's own actor and learner.

Oat's are the actor's step, serialisation, the learner's returns, its data set and, for advantages, its learning step; a
policy stands in for vLLM and for the model. Without launchpad or a GPU the CPU shims of ``ci/cpu/oat`` are needed too.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from copy import copy
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

if not torch.cuda.is_available():
    cpu_shims = Path(__file__).resolve().parents[1] / "cpu" / "oat"
    sys.path[:0] = [str(cpu_shims / "engine_hf"), str(cpu_shims)]
    import oat_cpu  # noqa: F401 - installs the CPU shims

from oat.algorithms.ppo import PPOLearner
from oat.algorithms.ppo_multiturn import MultiTurnTransitionDataset, PPOMultiTurnLearner
from oat.args import default_args_validation
from oat.learners import RLLearner
from oat.utils.ipc import PlasmaShmClient
from transformers import AutoModelForCausalLM

import gem_oat
from gem.tasks import Task
from gem.testing.advantages import of_returns, of_turns
from gem.testing.conformance import ComputedAdvantages, Difference, Harness, main
from gem.testing.gradients import ComputedGradient, WeighedSequence, gradient_of
from gem.testing.records import Record, every_turn
from gem.testing.scenarios import Scenario, ScriptedPolicy


class ScriptedLLM:
    """Answers as vLLM does."""

    def __init__(self, policy: ScriptedPolicy) -> None:
        self.policy = policy

    def generate(self, prompts: list[dict[str, Any]], sampling_params: list[Any], use_tqdm: bool) -> list[Any]:
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            said = self.policy.respond(prompt["prompt_token_ids"], params.max_tokens, params.stop_token_ids)
            pairs = zip(said.token_ids, said.logprobs or [], strict=True)
            logprobs = [{token: SimpleNamespace(logprob=logprob)} for token, logprob in pairs]
            answer = SimpleNamespace(token_ids=said.token_ids, logprobs=logprobs, finish_reason=said.finish_reason)
            outputs.append(SimpleNamespace(outputs=[answer]))
        return outputs


class Learner(gem_oat.GemLearnerMixin, PPOMultiTurnLearner):
    """As a user writes it."""


class OatHarness(Harness):
    """Oat, multi-turn."""

    name = "Oat"
    version = version("oat-llm")
    differences = (Difference("one sample per turn, with its own prompt and reward", every_turn),)
    algorithms = ("reinforce", "rebn")
    losses = tuple(f"critic_type={kind}{size}" for kind in ("drgrpo", "grpo") for size in ("", ", 2 rows at a time"))

    def run(self, scenario: Scenario, policy: ScriptedPolicy) -> list[Record]:
        """Return the rows of the batch that the learner makes of what it deserialises."""
        _, batch = self._batch(scenario, policy)
        records = []
        for i, attended in enumerate(batch["attention_mask"]):
            ids, first = batch["input_ids"][i][attended.bool()].tolist(), batch["prompt_ids_lens"][i]
            sampled = len(ids) - first
            logprobs = [0.0] * first + list(batch["action_logprobs"][i])
            rewards = [0.0] * (len(ids) - 1) + [batch["rewards"][i]]
            learned = int(batch["loss_masks"][i])
            records.append(Record(ids, [0] * first + [learned] * sampled, rewards, logprobs))
        return records

    def compute_advantages(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> ComputedAdvantages:
        """Return the advantages by which Oat's loss weighs the tokens, where the policy has not moved."""
        learner, batch = self._batch(scenario, policy, whiten_adv=algorithm == "rebn")
        advantages: list[tuple[list[int], list[float]]] = []
        seen: list[list[int]] = []

        def batch_logps(input_ids: torch.Tensor, att_mask: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            seen[:] = [row[mask.bool()].tolist() for row, mask in zip(input_ids, att_mask, strict=True)]
            nothing = torch.zeros(input_ids.shape[0], input_ids.shape[1] - 1)
            return nothing, nothing

        def aggregate(losses: torch.Tensor, mask: torch.Tensor, axis: int) -> torch.Tensor:
            advantages.append((seen[0], (-losses[0][mask[0].bool()]).tolist()))
            return losses.sum(axis)

        learner.get_batch_logps, learner.masked_aggregator = batch_logps, aggregate
        learner.learning_step(batch)
        if algorithm == "rebn":
            return ComputedAdvantages(advantages, of_turns(), "over all turns of the batch, population deviation")
        return ComputedAdvantages(advantages, of_returns(), "each turn's return")

    def compute_gradient(self, scenario: Scenario, policy: ScriptedPolicy, loss: str) -> ComputedGradient:
        """Return the gradient of one of Oat's updates.

        DeepSpeed is not there: what it does, dividing each micro-batch's loss by their number, is done here.
        """
        kind, _, split = loss.removeprefix("critic_type=").partition(", ")
        size = 2 if split else 1
        learner, batch = self._batch(
            scenario, policy, critic_type=kind, train_batch_size_per_device=size, use_fused_lm_head=False
        )
        with patch.object(RLLearner, "_init"):  # which makes models
            PPOLearner._init(learner, learner.args, [])
        model = AutoModelForCausalLM.from_pretrained(self.model(scenario), dtype=torch.float32)
        before = AutoModelForCausalLM.from_pretrained(self.model(scenario), dtype=torch.float32)
        rows = len(batch["input_ids"])
        parts = math.ceil(rows / size)
        learner.model, learner.strategy.grad_acc_step = model, parts
        learner.strategy.backward = lambda loss, *_: (loss / parts).backward()
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        sequences: list[WeighedSequence] = []
        batch_logps, aggregate = learner.get_batch_logps, learner.masked_aggregator
        learned = sum(map(bool, batch["loss_masks"]))

        def recorded_logps(input_ids: torch.Tensor, att_mask: torch.Tensor, **options: Any) -> Any:
            seen[:] = zip(input_ids, att_mask.bool(), strict=True)
            return batch_logps(input_ids=input_ids, att_mask=att_mask, **options)

        def recorded_aggregate(losses: torch.Tensor, mask: torch.Tensor, axis: int) -> torch.Tensor:
            for (ids, attended), own, sampled in zip(seen, losses.detach(), mask.bool(), strict=True):
                tokens = int(sampled.sum())
                weight = 1 / (learned * (learner.args.generate_max_length if kind == "drgrpo" else tokens))
                factors = (-own[sampled] * weight).tolist()  # the ratio is 1, so a loss is an advantage, negative
                if any(factors):
                    length = int(attended.sum())
                    record = WeighedSequence(ids[:length].tolist(), [0, *sampled[: length - 1].tolist()], factors)
                    sequences.append(record)
            return aggregate(losses, mask, axis=axis)

        learner.get_batch_logps, learner.masked_aggregator = recorded_logps, recorded_aggregate
        learner.learning_step(batch)
        tokens = "generate_max_length" if kind == "drgrpo" else "tokens of the row"
        return ComputedGradient(gradient_of(model), before, sequences, f"1 / ({tokens} x rows that are learned from)")

    def _batch(self, scenario: Scenario, policy: ScriptedPolicy, **options: Any) -> tuple[Learner, dict[str, Any]]:
        tokenizer, model = self.tokenizer(scenario), str(self.model(scenario))

        class Actor(gem_oat.GemActor):
            make_env = staticmethod(scenario.make_env(tokenizer))

            def next_tasks(self) -> Iterator[Task]:
                return iter(scenario.rows)  # each once

            def filled(self, rows: list[Any], episodes: Any) -> list[Any]:
                self.args = copy(self.args)
                size = self.args.train_batch_size_per_device  # all tasks were run; Oat needs whole micro-batches
                self.args.rollout_batch_size_per_device = max(1, math.ceil(sum(map(len, rows)) / size)) * size
                return super().filled(rows, episodes)

        with tempfile.TemporaryDirectory() as folder:
            tasks = Path(folder, "tasks.jsonl")
            tasks.write_text("".join(task.to_json() + "\n" for task in scenario.tasks))
            args = default_args_validation(
                gem_oat.GemArgs(
                    **{"critic_type": "drgrpo", "train_batch_size_per_device": 1, **options},
                    pretrain=model,
                    tasks=str(tasks),
                    rollout_batch_size_per_device=10**6,
                    generate_max_length=scenario.max_new_tokens,
                    max_model_len=scenario.max_context,
                    max_turns=scenario.max_turns,
                    tool_role=scenario.tool_role,
                    num_envs=len(scenario.rows),
                    oracle="",
                    algo="PPO",
                    gpus=1,
                    beta=0.0,
                    tis_c=None,  # else the loss is also weighed by the ratio of the probabilities
                )
            )
            store = PlasmaShmClient(SimpleNamespace(get_shm_path=lambda: "here"))
            actor = Actor(None, {"model": model}, args)
            actor.init(0, folder)
            actor.ipc_client, actor.llm = store, ScriptedLLM(policy)
            received = store.deserialize_ipc(actor.step())
        learner = Learner.__new__(Learner)  # the rest of it makes models
        learner.args, learner.critic, learner.ref_model, learner.model = args, None, None, None
        learner.optimizer, learner.scheduler = None, None
        learner.pi_buffer, learner.query_step, learner.actor_info = [], 0, {}
        learner.strategy = SimpleNamespace(
            args=SimpleNamespace(dry_run=False),
            world_size=1,
            get_rank=lambda: 0,
            grad_acc_step=1,
            is_rank_0=lambda: False,
            backward=lambda *_: None,
            get_gradient_norm=lambda *_: 0.0,
            optimizer_step=lambda *_: None,
        )
        learner.process_feedback_data(received)
        data = MultiTurnTransitionDataset(learner.pi_buffer, tokenizer, learner.strategy)
        return learner, data.collate_fn([data[i] for i in range(len(data))])


if __name__ == "__main__":
    main(OatHarness())
