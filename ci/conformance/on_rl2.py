"""Run the conformance suite on the RL2 adapter, in rl-square's own rollout.

RL2's are the configuration, ``Rollout.rollout`` and ``__call__``, packing and advantages; without a GPU the shims of
``ci/cpu/rl2`` are needed to import them. The requests to sglang get scripted answers.
"""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

if not torch.cuda.is_available():
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cpu" / "rl2"))
    import rl2_cpu  # noqa: F401 - puts the shims in their places

import rl2_update
import wandb
from omegaconf import OmegaConf
from RL2.trainer import ppo
from RL2.workers import rollout
from two_processes import by_two, join_alone, rank

import gem_rl2
from gem.rollout.rows import rl2_row
from gem.testing.advantages import of_groups, of_turns
from gem.testing.conformance import ComputedAdvantages, Harness, main
from gem.testing.gradients import ComputedGradient, Objective, WeighedSequence
from gem.testing.records import Record
from gem.testing.scenarios import Scenario, ScriptedPolicy
from gem.testing.updates import AdamW, ComputedUpdates

RUNNING: list[tuple[ScriptedPolicy, Any]] = []
"""The policy of the scenario that is being run, and the tokenizer."""


async def scripted(url: str, states: list[int], sampling_params: dict[str, Any]) -> dict[str, Any]:
    """Answer as sglang does."""
    policy, tokenizer = RUNNING[-1]
    answer = policy.respond(states, sampling_params["max_new_tokens"], sampling_params["stop_token_ids"])
    return {
        "text": tokenizer.decode(answer.token_ids, skip_special_tokens=True),
        "meta_info": {
            "output_token_logprobs": [
                [p, token, None] for p, token in zip(answer.logprobs or [], answer.token_ids, strict=True)
            ],
            "completion_tokens": len(answer.token_ids),
            "finish_reason": {"type": answer.finish_reason},
        },
    }


rollout.async_generate = scripted
rollout.make_request = lambda *_: None  # there is no server whose memory could be freed
wandb.log = lambda *args, **kwargs: None


MOVED: dict[str, Any] = {"update_per_rollout": 2, "lr": 1e-3}
LOSSES: dict[str, dict[str, Any]] = {
    "avg_level=token": {},
    "avg_level=token, micro-batches": {},
    "avg_level=token, micro-batches, two processes": {},
    "ReBN, micro-batches": {},
    "the policy has moved, micro-batches": MOVED,
    "the policy has moved, KL k1": {**MOVED, "kl": {"coef": 0.1, "type": "loss", "loss_estimator": "k1"}},
    "the policy has moved, KL k2": {**MOVED, "kl": {"coef": 0.1, "type": "loss", "loss_estimator": "k2"}},
    "the policy has moved, KL k3, micro-batches": {
        **MOVED,
        "kl": {"coef": 0.1, "type": "loss", "loss_estimator": "k3"},
    },
}
"""For each loss the keys of RL2's actor; ``avg_level=sequence`` raises in 0.0.2."""

LR = 1e-2
OPTIMIZERS: dict[str, tuple[dict[str, Any], AdamW]] = {
    "the trainer's defaults": ({}, AdamW(LR, weight_decay=0.01)),
    "equal settings": ({"weight_decay": 0.0}, AdamW(LR)),
    "nothing clipped, two processes": ({"weight_decay": 0.0, "max_grad_norm": 1e6}, AdamW(LR, max_norm=1e6)),
    "weight decay": ({"weight_decay": 0.1}, AdamW(LR, weight_decay=0.1)),
}
"""For each setting the keys of RL2's actor, and what they mean. Betas and eps are torch's, and cannot be set. In two
processes each clips by the norm of its own part."""


class RL2Harness(Harness):
    """RL2, rl-square 0.0.2."""

    name = "RL2"
    version = version("rl-square")
    algorithms = ("reinforce", "grpo", "rebn")
    losses = tuple(LOSSES)
    optimizers = tuple(OPTIMIZERS)

    def run(self, scenario: Scenario, policy: ScriptedPolicy) -> list[Record]:
        """Return the sequences that RL2 has packed."""
        _, tensor_dict, _ = self._batch(scenario, policy)
        return [
            Record(ids, [0, *mask], [0.0, *rewards], [0.0, *logprobs])
            for ids, mask, rewards, logprobs in _rows(tensor_dict, "rewards", "llm_logps")
        ]

    def compute_advantages(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> ComputedAdvantages:
        """Return RL2's advantages."""
        adv = {"estimator": "rebn" if algorithm == "rebn" else "reinforce", "norm_var": algorithm == "grpo"}
        config, tensor_dict, cu_seqs = self._batch(scenario, policy, adv)
        ppo.compute_advantages(config.adv, tensor_dict, cu_seqs, 1)
        advantages = [
            (ids, [value for value, one in zip(values, mask, strict=True) if one])
            for ids, mask, values in _rows(tensor_dict, "advantages")
        ]
        if algorithm == "rebn":
            return ComputedAdvantages(advantages, of_turns(), "over all turns of the batch, population deviation")
        eps = torch.finfo(torch.float32).eps
        if algorithm == "grpo":
            return ComputedAdvantages(
                advantages, of_groups(scenario.copies, True, eps), "over the group's sample deviation"
            )
        return ComputedAdvantages(advantages, of_groups(scenario.copies, False, eps), "the group's mean taken off")

    @by_two
    def compute_gradient(self, scenario: Scenario, policy: ScriptedPolicy, loss: str) -> ComputedGradient:
        """Return the gradient of the last of RL2's updates from a batch."""
        adv = {"estimator": "rebn"} if loss.startswith("ReBN") else {"estimator": "reinforce", "norm_var": True}
        actor, batches = self._learned(scenario, policy, adv, LOSSES[loss], "micro-batches" in loss)
        gradient, before = actor.updates[-1]
        sequences, rows = [], _rows(batches[-1], "advantages") if batches else []
        in_all = sum(sum(mask) for _, mask, _ in rows)
        for ids, mask, of_tokens in rows:
            advantages = [value for value, one in zip(of_tokens, mask, strict=True) if one]
            sequences.append(WeighedSequence(ids, [0, *mask], [1 / in_all] * len(advantages), advantages))
        why = "1 / tokens of the batch"
        if len(actor.updates) == 1:
            return ComputedGradient(gradient, before, sequences, why)
        kl, clip, first = actor.config.kl, actor.config.clip, actor.updates[0][1]
        objective = Objective(first, (clip, clip), reference=first, beta=kl.coef, kl=kl.loss_estimator)
        return ComputedGradient(gradient, before, sequences, why, objective)

    @by_two
    def compute_updates(self, scenario: Scenario, policy: ScriptedPolicy, optimizer: str) -> ComputedUpdates:
        """Return three updates of RL2's, from parts of a batch."""
        options, declared = OPTIMIZERS[optimizer]
        options = {"update_per_rollout": 3, "lr": LR, "max_grad_norm": 1.0, **options}
        actor, _ = self._learned(scenario, policy, {"estimator": "reinforce", "norm_var": True}, options)
        return ComputedUpdates(actor.updates, declared)

    def _learned(
        self,
        scenario: Scenario,
        policy: ScriptedPolicy,
        adv: dict[str, Any],
        options: dict[str, Any],
        split: bool = False,
    ) -> tuple[rl2_update.Actor, list[dict[str, torch.Tensor]]]:
        """Return an actor that has learned from a batch; and, on the first rank, the batch of each update."""
        join_alone()
        config, tensor_dict, cu_seqs = self._batch(scenario, policy, adv)
        leads = rank() == 0  # it has the batch, and shares it with the others
        longest = int(tensor_dict["eos_mask"].argmax(-1).max()) + 1 if leads else 0
        room = {"max_length_per_device": 2 * longest} if split else {}
        actor = rl2_update.actor(config.actor, str(self.model(scenario)), {**room, **options})
        parts = config.actor.update_per_rollout
        if parts > 1:  # as PPOTrainer.train does
            tensor_dict = actor.compute_logps(tensor_dict, 1)
        if leads:
            ppo.compute_advantages(config.adv, tensor_dict, cu_seqs, 1)
            tensor_dict["ref_logps"] = tensor_dict.get("old_logps", tensor_dict["llm_logps"])  # that of the sampling
        actor.update(dict(tensor_dict) if leads else None, 1)
        assert len(actor.updates) == parts
        assert not split or actor.minibatches[-1] > 1
        chunks = (
            [{name: torch.chunk(each, parts)[i] for name, each in tensor_dict.items()} for i in range(parts)]
            if leads
            else []
        )
        return actor, chunks

    def _batch(
        self, scenario: Scenario, policy: ScriptedPolicy, adv: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
        tokenizer = self.tokenizer(scenario)
        RUNNING.append((policy, tokenizer))
        config = OmegaConf.load(Path(ppo.__file__).with_name("config") / "ppo.yaml")
        gem = {"max_context": scenario.max_context, "tool_role": scenario.tool_role}
        rollout_keys = {"max_turns": scenario.max_turns or 10_000, "dynamic_filtering": False, "gem": gem}
        sampling = {"train_sampling_params": {"max_new_tokens": scenario.max_new_tokens}}
        config.merge_with({"rollout": {**rollout_keys, **sampling}, "adv": adv or {}})
        config.train_data.responses_per_prompt = scenario.copies
        worker = object.__new__(rollout.Rollout)  # the rest of it makes processes
        worker.config, worker.tokenizer, worker.router_url, worker.worker_url = config.rollout, tokenizer, "", ""
        for name in ("train_sampling_params", "test_sampling_params"):
            setattr(worker, name, OmegaConf.to_container(config.rollout[name], resolve=True))
        worker.device_mesh = {"tp": SimpleNamespace(get_local_rank=lambda: 0)}
        worker.env = gem_rl2.GemEnv(scenario.make_env(tokenizer))
        asyncio.set_event_loop(loop := asyncio.new_event_loop())
        try:
            return config, *worker([rl2_row(task) for task in scenario.rows], True, 1)
        finally:
            loop.close()


def _rows(tensor_dict: dict[str, torch.Tensor], *names: str) -> list[tuple[Any, ...]]:
    """Return ids, mask and more of every sequence that was not left out; RL2 has all but the ids shifted by one."""
    rows = []
    for i in tensor_dict["eos_mask"].any(-1).nonzero().flatten().tolist():
        length = int(tensor_dict["eos_mask"][i].argmax()) + 1
        ids = [*tensor_dict["states"][i, :length].tolist(), int(tensor_dict["actions"][i, length - 1])]
        rows.append((ids, *(tensor_dict[name][i, :length].tolist() for name in ("action_mask", *names))))
    return rows


if __name__ == "__main__":
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    main(RL2Harness())
