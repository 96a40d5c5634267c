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

import oat_update
from deepspeed_updates import Updates
from oat.algorithms.ppo import PPOLearner
from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
from oat.args import default_args_validation
from oat.learners import RLLearner
from oat.utils.ipc import PlasmaShmClient
from transformers import AutoModelForCausalLM
from two_processes import by_two, most_of_all, of_all, rank, world

import gem_oat
from gem.tasks import Task
from gem.testing.advantages import of_returns, of_turns
from gem.testing.conformance import ComputedAdvantages, Difference, Harness, main
from gem.testing.gradients import ComputedGradient, Objective, WeighedSequence
from gem.testing.records import Record, every_turn
from gem.testing.scenarios import Sampler, Scenario, ScriptedPolicy
from gem.testing.updates import AdamW, ComputedUpdates


class ScriptedLLM:
    """Answers as vLLM does."""

    def __init__(self, policy: Sampler) -> None:
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


MOVED: dict[str, Any] = {"num_ppo_epochs": 2, "learning_rate": 2e-4}
IN_GROUPS = {"in_groups": True, "train_batch_size_per_device": 2}
LOSSES: dict[str, dict[str, Any]] = {
    "critic_type=drgrpo, micro-batches": {},
    "critic_type=grpo, micro-batches": {"critic_type": "grpo"},
    "critic_type=drgrpo, micro-batches, two processes": {},
    "critic_type=grpo, micro-batches, two processes": {"critic_type": "grpo"},
    "critic_type=drgrpo, groups of one turn": {"in_groups": True, "train_batch_size_per_device": 8},
    "critic_type=drgrpo, groups of one turn, micro-batches": IN_GROUPS,
    "critic_type=grpo, groups of one turn, micro-batches": {**IN_GROUPS, "critic_type": "grpo"},
    "token_mean, micro-batches": {"token_mean": True},
    "token_mean, groups of one turn, micro-batches": {**IN_GROUPS, "token_mean": True},
    "token_mean, micro-batches, two processes": {"token_mean": True},
    "ReBN, micro-batches": {"whiten_adv": True},
    "the policy has moved, micro-batches": MOVED,
    "the policy has moved, groups of one turn, micro-batches": {**MOVED, **IN_GROUPS},
    "the policy has moved, KL k3, micro-batches": {**MOVED, "beta": 0.1},
    "the policy has moved, KL k3, groups of one turn, micro-batches": {
        **MOVED,
        **IN_GROUPS,
        "critic_type": "grpo",
        "beta": 0.1,
    },
}
"""For each loss the arguments of Oat. Learning from turns, it has one row in a micro-batch, always."""

LR, NOT_DECAYED = 1e-2, ("bias", "norm.weight")
EQUAL = {"adam_beta_1": 0.9, "adam_beta_2": 0.999, "l2": 0.0, "max_norm": 1.0}
OPTIMIZERS: dict[str, tuple[dict[str, Any], AdamW]] = {
    "the trainer's defaults": ({}, AdamW(LR, betas=(0.9, 0.95))),
    "equal settings": (EQUAL, AdamW(LR)),
    "equal settings, two processes": (EQUAL, AdamW(LR)),
    "weight decay": ({"l2": 0.1}, AdamW(LR, betas=(0.9, 0.95), weight_decay=0.1, not_decayed=NOT_DECAYED)),
}
"""For each setting the arguments of Oat, and what they mean."""


class GroupLearner(gem_oat.GemLearnerMixin, PPOLearner):
    """The same for groups of episodes of one turn."""


AnyLearner = Learner | GroupLearner


class OatHarness(Harness):
    """Oat, multi-turn."""

    name = "Oat"
    version = version("oat-llm")
    differences = (Difference("one sample per turn, with its own prompt and reward", every_turn),)
    algorithms = ("reinforce", "rebn")
    losses = tuple(LOSSES)
    optimizers = tuple(OPTIMIZERS)

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

    @by_two
    def compute_gradient(self, scenario: Scenario, policy: ScriptedPolicy, loss: str) -> ComputedGradient:
        """Return the gradient of the last of Oat's updates from a batch."""
        learner, batch, updates = self._equipped(scenario, policy, LOSSES[loss])
        args = learner.args
        first = AutoModelForCausalLM.from_pretrained(args.pretrain, dtype=torch.float32)
        learner.ref_model = first if args.beta else None
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        sequences: list[WeighedSequence] = []
        batch_logps, aggregate = learner.get_batch_logps, learner.masked_aggregator
        learned, drgrpo = of_all(sum(map(bool, batch["loss_masks"]))), args.critic_type == "drgrpo"
        rows = zip(batch["action_logprobs"], batch["loss_masks"], strict=True)
        in_all = of_all(sum(len(logprobs) for logprobs, learn in rows if learn))

        def recorded_logps(input_ids: torch.Tensor, att_mask: torch.Tensor, **options: Any) -> Any:
            seen[:] = zip(input_ids, att_mask.bool(), strict=True)
            return batch_logps(input_ids=input_ids, att_mask=att_mask, **options)

        def recorded_aggregate(losses: torch.Tensor, mask: torch.Tensor, axis: int) -> torch.Tensor:
            if seen and not updates:  # the ratio is 1 still: a loss is an advantage, negative
                for (ids, attended), own, sampled in zip(seen, -losses.detach(), mask.bool(), strict=True):
                    tokens, length = int(sampled.sum()), int(attended.sum())
                    weight = 1 / (learned * (args.generate_max_length if drgrpo else tokens))
                    weight = 1 / in_all if args.token_mean else weight
                    row = ids[:length].tolist(), [0, *sampled[: length - 1].tolist()]
                    if any(own[sampled]):
                        sequences.append(WeighedSequence(*row, [weight] * tokens, own[sampled].tolist()))
                seen.clear()  # what is aggregated next is the KL term
            return aggregate(losses, mask, axis=axis)

        learner.get_batch_logps, learner.masked_aggregator = recorded_logps, recorded_aggregate
        learner.learning_step(batch)
        gradient, before = updates[-1]
        assert len(updates) == args.num_ppo_epochs
        why = f"1 / ({'generate_max_length' if drgrpo else 'tokens of the row'} x rows that are learned from)"
        why = "1 / tokens of the batch" if args.token_mean else why
        if args.num_ppo_epochs == 1:
            return ComputedGradient(gradient, before, sequences, why)
        objective = Objective(first, (args.cliprange,) * 2, reference=first, beta=args.beta)
        return ComputedGradient(gradient, before, sequences, why, objective)

    @by_two
    def compute_updates(self, scenario: Scenario, policy: ScriptedPolicy, optimizer: str) -> ComputedUpdates:
        """Return three updates of Oat's from a batch."""
        options, declared = OPTIMIZERS[optimizer]
        several = {"num_ppo_epochs": 3, "learning_rate": LR}
        learner, batch, updates = self._equipped(scenario, policy, {**several, **options})
        learner.learning_step(batch)
        return ComputedUpdates(updates, declared)

    def _equipped(
        self, scenario: Scenario, policy: ScriptedPolicy, options: dict[str, Any]
    ) -> tuple[AnyLearner, dict[str, Any], Updates]:
        """Return a learner with a model, the batch that it is to learn from, and the updates that it will make."""
        learner, batch = self._batch(scenario, policy, use_fused_lm_head=False, **options)
        return learner, batch, oat_update.equip(learner, len(batch["input_ids"]))

    def _batch(self, scenario: Scenario, policy: Sampler, **options: Any) -> tuple[AnyLearner, dict[str, Any]]:
        args, received = self._received(scenario, policy, **options)
        learner = _learner(GroupLearner if options.get("in_groups") else Learner, args)
        return learner, _collated(learner, received, self.tokenizer(scenario))

    def _received(
        self, scenario: Scenario, policy: Sampler, in_groups: bool = False, **options: Any
    ) -> tuple[gem_oat.GemArgs, Any]:
        """Run a scenario; return the arguments, and what the learner would receive from the actor."""
        tokenizer, model = self.tokenizer(scenario), str(self.model(scenario))
        share = len(scenario.rows) // world()

        class Actor(gem_oat.GemGroupActor if in_groups else gem_oat.GemActor):  # type: ignore[misc]
            make_env = staticmethod(scenario.make_env(tokenizer))

            def next_tasks(self) -> Iterator[Task]:
                if in_groups:
                    return iter(scenario.tasks)
                return iter(scenario.rows[rank() * share : (rank() + 1) * share])  # each once

            def filled(self, rows: list[Any], episodes: Any) -> list[Any]:
                self.args = copy(self.args)
                size = self.args.train_batch_size_per_device  # all tasks were run; Oat needs whole micro-batches
                most = most_of_all(sum(map(len, rows)))
                self.args.rollout_batch_size_per_device = max(1, math.ceil(most / size)) * size
                return super().filled(rows, episodes)

        with tempfile.TemporaryDirectory() as folder:
            tasks = Path(folder, "tasks.jsonl")
            tasks.write_text("".join(task.to_json() + "\n" for task in scenario.tasks))
            args = default_args_validation(
                gem_oat.GemArgs(
                    **{"critic_type": "drgrpo", "train_batch_size_per_device": 1, "beta": 0.0, **options},
                    pretrain=model,
                    tasks=str(tasks),
                    rollout_batch_size_per_device=len(scenario.rows) if in_groups else 10**6,
                    num_samples=scenario.copies if in_groups else 1,
                    generate_max_length=scenario.max_new_tokens,
                    max_model_len=scenario.max_context,
                    max_turns=scenario.max_turns,
                    tool_role=scenario.tool_role,
                    num_envs=share,
                    oracle="",
                    algo="PPO",
                    gpus=1,
                    tis_c=None,  # else the loss is also weighed by the ratio of the probabilities
                )
            )
            store = PlasmaShmClient(SimpleNamespace(get_shm_path=lambda: "here"))
            actor = Actor(None, {"model": model}, args)
            actor.init(0, folder)
            actor.ipc_client, actor.llm = store, ScriptedLLM(policy)
            return args, store.deserialize_ipc(actor.step())


def _learner(learner_class: type[AnyLearner], args: gem_oat.GemArgs) -> Any:
    """Return one of Oat's learners without a model; what makes models is left out."""
    learner = learner_class.__new__(learner_class)
    learner.args, learner.critic, learner.ref_model, learner.model = args, None, None, None
    learner.optimizer, learner.scheduler = None, None
    learner.pi_buffer, learner.query_step, learner.actor_info = [], 0, {}
    learner.ipc_server = SimpleNamespace(get_shm_path=lambda: "here")
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
    with patch.object(RLLearner, "_init"):  # which makes models
        super(gem_oat.GemLearnerMixin, learner)._init(args, [])
    return learner


def _collated(learner: Any, received: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the batch that a learner makes of what it has received."""
    learner.pi_buffer = []
    learner.process_feedback_data(received)
    data = learner.dataset_builder(learner.pi_buffer, tokenizer, learner.strategy)
    return data.collate_fn([data[i] for i in range(len(data))])


if __name__ == "__main__":
    main(OatHarness())
