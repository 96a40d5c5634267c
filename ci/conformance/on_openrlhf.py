"""Run the conformance suite on the OpenRLHF adapter, in a training step of OpenRLHF's own trainer.

OpenRLHF's are the command's arguments, the data set, the sampling (``SamplesGenerator`` and the rollout actor), and the
trainer's step: experience, advantages, replay buffer and the actor's loop over its batches. Without Ray and a model
there are CPU shims: calls in this process for Ray, a policy for vLLM, zeros for the model's log-probabilities, and a
training step that only keeps the batch it is handed. Without a GPU those of ``ci/cpu/openrlhf`` are needed as well.
For gradients the actor is OpenRLHF's own, with its model, loss and DeepSpeed (:mod:`openrlhf_update`).
An episode that is left out is a row of one token with an advantage of 0 (:mod:`gem_openrlhf_trainer`).
"""

from __future__ import annotations

import logging
import runpy
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import DataLoader

if not torch.cuda.is_available():
    cpu_shims = Path(__file__).resolve().parents[1] / "cpu" / "openrlhf" / "sitecustomize.py"
    runpy.run_path(str(cpu_shims))  # installs them

import openrlhf_update
from deepspeed_updates import Updates
from openrlhf.datasets import PromptDataset
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils import NaiveReplayBuffer, samples_generator
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray import launcher, ppo_actor, vllm_engine
from openrlhf_advantages import REFERENCES
from openrlhf_ray import OtherRank, Remote
from two_processes import by_two, of_all, rank, world

import gem_openrlhf
from gem.rollout.rows import openrlhf_row
from gem.testing.conformance import ComputedAdvantages, Difference, Harness, main
from gem.testing.gradients import ComputedGradient, Objective, WeighedSequence
from gem.testing.records import Record, one_scalar
from gem.testing.scenarios import Sampler, Scenario, ScriptedPolicy
from gem.testing.updates import AdamW, ComputedUpdates

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import train_openrlhf

logging.disable(logging.INFO)  # OpenRLHF prints one sample per step


class ScriptedVLLM:
    """Answers as vLLM's asynchronous engine does."""

    output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: 0)

    def __init__(self, policy: Sampler) -> None:
        self.policy = policy

    async def generate(self, prompt: dict[str, list[int]], params: Any, request_id: str) -> AsyncIterator[Any]:
        said = self.policy.respond(prompt["prompt_token_ids"], params.max_tokens, params.stop_token_ids)
        pairs = zip(said.token_ids, said.logprobs or [], strict=True)
        logprobs = [{token: SimpleNamespace(logprob=logprob)} for token, logprob in pairs]
        yield SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=said.token_ids, logprobs=logprobs, finish_reason=said.finish_reason)]
        )


class Model(torch.nn.Module):
    """Is a model that finds everything certain."""

    def forward(self, sequences: torch.Tensor, action_mask: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(action_mask.shape)


class ActorTrainer(ppo_actor.ActorPPOTrainer):
    """OpenRLHF's trainer of the actor, whose step keeps the batch."""

    def __init__(self, strategy: Any) -> None:  # the rest of it is about the model and vLLM
        self.strategy, self.args, self.dataloader_pin_memory = strategy, strategy.args, False
        self.max_epochs = self.args.train.max_epochs
        self.replay_buffer = NaiveReplayBuffer(self.args.train.micro_batch_size)
        self.batches: list[Experience] = []

    def training_step(self, experience: Experience, *_: Any) -> dict[str, Any]:
        self.batches.append(experience)
        return {"metrics": {"policy_loss": 0.0}, "weights": {"policy_loss": "token"}, "num_action_tokens": 1} | {
            "num_samples": len(experience.sequences)
        }


SPLIT = ("--train.micro_batch_size", "2")
MOVED = ("--train.max_epochs", "2", "--actor.adam.lr", "3e-4")
KL = ("--algo.kl.use_loss", "--algo.kl.init_coef", "0.1", "--algo.kl.estimator")
LOSSES: dict[str, tuple[str, ...]] = {
    "loss_agg_mode=token-mean": (),
    "loss_agg_mode=seq-mean-token-mean": ("--actor.loss_agg_mode", "seq-mean-token-mean"),
    "loss_agg_mode=token-mean, micro-batches": SPLIT,
    "loss_agg_mode=seq-mean-token-mean, micro-batches": ("--actor.loss_agg_mode", "seq-mean-token-mean", *SPLIT),
    "loss_agg_mode=token-mean, micro-batches, two processes": SPLIT,
    "loss_agg_mode=seq-mean-token-mean, micro-batches, two processes": (
        *("--actor.loss_agg_mode", "seq-mean-token-mean"),
        *SPLIT,
    ),
    "policy_loss_type=gspo, micro-batches": ("--actor.policy_loss_type", "gspo", *SPLIT),
    "the policy has moved, micro-batches": (*MOVED, *SPLIT),
    "the policy has moved, dual_clip": (*MOVED, "--actor.dual_clip", "1.5"),
    "the policy has moved, KL k2": (*MOVED, *KL, "k2"),
    "the policy has moved, KL k3, micro-batches": (*MOVED, *KL, "k3", *SPLIT),
}
"""For each loss the flags of OpenRLHF's command."""

LR, NOT_DECAYED = 1e-2, ("bias", "norm.weight")
EQUAL = (
    *("--actor.adam.betas", "0.9", "0.999", "--actor.adam.eps", "1e-8"),
    *("--actor.adam.weight_decay", "0", "--actor.max_norm", "1"),
)
OPTIMIZERS: dict[str, tuple[tuple[str, ...], AdamW]] = {
    "the trainer's defaults": ((), AdamW(LR, betas=(0.9, 0.95))),
    "equal settings": (EQUAL, AdamW(LR)),
    "equal settings, two processes": ((*EQUAL, *SPLIT), AdamW(LR)),
    "weight decay": (
        ("--actor.adam.weight_decay", "0.1"),
        AdamW(LR, betas=(0.9, 0.95), weight_decay=0.1, not_decayed=NOT_DECAYED),
    ),
}
"""For each setting the flags of OpenRLHF's command, and what they mean."""


class OpenRLHFHarness(Harness):
    """OpenRLHF."""

    name = "OpenRLHF"
    version = version("openrlhf")
    differences = (
        Difference(
            "the adapter refuses it: an episode is one sequence",
            refuses=ValueError,
            match="leave out the wrapper that rewrites the history",
            only=frozenset({"a rewritten history"}),
        ),
        Difference("one scalar per episode, on its last sampled token", one_scalar),
    )
    algorithms = ("reinforce", "grpo", "rloo", "reinforce_baseline", "dr_grpo", "flash_reinforce")
    losses = tuple(LOSSES)
    optimizers = tuple(OPTIMIZERS)

    def run(self, scenario: Scenario, policy: ScriptedPolicy) -> list[Record]:
        """Return what the actor learns from; a reward is by how much the returns fall behind it."""
        return [
            Record(ids, [0, *mask], [0.0, *(-np.diff([*returns, 0.0])).tolist()], [0.0, *logprobs])
            for ids, mask, logprobs, returns, _ in self._step(scenario, policy, "reinforce")
        ]

    def compute_advantages(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> ComputedAdvantages:
        """Return the advantages of what was sampled."""
        advantages = [
            (ids, [value for value, sampled in zip(values, mask, strict=True) if sampled])
            for ids, mask, _, _, values in self._step(scenario, policy, algorithm)
            if any(mask)
        ]
        return ComputedAdvantages(advantages, *REFERENCES[algorithm](scenario.copies))

    @by_two
    def compute_gradient(self, scenario: Scenario, policy: ScriptedPolicy, loss: str) -> ComputedGradient:
        """Return the gradient of the last of OpenRLHF's updates from a batch."""
        learner, other, updates, batches = self._learned(scenario, policy, LOSSES[loss])
        args, epochs = learner.strategy.args, len(updates)
        gradient, model = updates[-1]
        rows = rows_of(batches[: len(batches) // epochs])
        in_all, count = of_all(sum(int(mask.sum()) for _, mask, _ in rows)), of_all(len(rows))
        by_token = learner.trainer.actor_loss_fn.token_level_loss
        sequences = []
        for ids, mask, advantages in rows:
            own = int(mask.sum())
            weight = 1 / in_all if by_token else 1 / (own * count)
            values = advantages[mask.bool()].tolist()
            sequences.append(WeighedSequence(ids, [0, *mask.int().tolist()], [weight] * own, values))
        why = "1 / tokens of the batch" if by_token else "1 / (tokens of the row x rows)"
        if epochs == 1:
            return ComputedGradient(gradient, model, sequences, why)
        kl = {} if other is None else {"reference": updates[0][1], "beta": args.algo.kl.init_coef}
        objective = Objective(
            updates[0][1], args.actor.eps_clip_low_high, args.actor.dual_clip, **kl, kl=args.algo.kl.estimator
        )
        return ComputedGradient(gradient, model, sequences, why, objective)

    @by_two
    def compute_updates(self, scenario: Scenario, policy: ScriptedPolicy, optimizer: str) -> ComputedUpdates:
        """Return three updates of OpenRLHF's from a batch."""
        options, declared = OPTIMIZERS[optimizer]
        several = ("--train.max_epochs", "3", "--actor.adam.lr", str(LR))
        return ComputedUpdates(self._learned(scenario, policy, (*several, *options))[2], declared)

    def _learned(
        self, scenario: Scenario, policy: ScriptedPolicy, options: Sequence[str]
    ) -> tuple[Any, Any, Updates, list[Experience]]:
        """Take a training step; return actor, reference policy's actor, updates and the micro-batches learned from."""
        no_correction = ("--algo.advantage.is_correction_level", "off")  # else tokens are left out by the engine's word
        args = arguments(scenario, "grpo", str(self.model(scenario)), (*no_correction, *options))
        strategy = openrlhf_update.start(args)
        learner, updates, batches = openrlhf_update.policy(strategy)
        other = openrlhf_update.reference(strategy) if args.algo.kl.use_loss else None
        next(training_steps(scenario, policy, strategy, self.tokenizer(scenario), learner, other))
        assert len(updates) == args.train.max_epochs
        return learner, other, updates, batches

    def _step(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> list[tuple[list[Any], ...]]:
        """Take a training step; return ids, mask, log-probabilities, returns and advantages of what is learned from."""
        args = arguments(scenario, algorithm, str(self.model(scenario)))
        tokenizer = self.tokenizer(scenario)
        found = []
        for batch in _learned_batches(scenario, policy, args, tokenizer):
            for i, length in enumerate(batch.attention_mask.sum(1).tolist()):
                others = (batch.action_mask, batch.rollout_log_probs, batch.returns, batch.advantages)  # of ids[1:]
                row = [values[i, : length - 1].tolist() for values in others]
                if batch.labels[i].masked and not any(row[-1]):
                    row[0] = [0] * len(row[0])
                found.append((batch.sequences[i, :length].tolist(), *row))
        return found


def _learned_batches(scenario: Scenario, policy: ScriptedPolicy, args: Any, tokenizer: Any) -> list[Experience]:
    """Take a training step; return the micro-batches that the actor learns from."""
    strategy = SimpleNamespace(
        args=args,
        is_rank_0=lambda: False,
        all_reduce=lambda value: value,
        ring_attn_group=None,
        accumulated_gradient=1,
    )
    actor = _without_init(ppo_actor.PolicyModelActor, strategy=strategy, actor=Model(), trainer=ActorTrainer(strategy))
    next(training_steps(scenario, policy, strategy, tokenizer, actor))
    return actor.trainer.batches


def training_steps(
    scenario: Scenario, policy: Sampler, strategy: Any, tokenizer: Any, learner: Any, reference: Any = None
) -> Iterator[int]:
    """Take training steps with OpenRLHF's actors: one that learns, and one for the reference policy.

    Yields:
        The number of each step, once it is done.
    """
    args = strategy.args
    rollout = _without_init(
        vllm_engine.RolloutRayActor,
        executor=gem_openrlhf.GemAgentExecutor(tool_role=scenario.tool_role, make_env=scenario.make_env(tokenizer)),
        llm=ScriptedVLLM(policy),
        _mm_pad_token_ids=set(),
    )
    groups = [_group(each) for each in (learner, reference)]
    rows = PromptDataset(
        [openrlhf_row(task, max_turns=scenario.max_turns) for task in scenario.tasks], tokenizer, strategy
    )
    loader = DataLoader(rows, collate_fn=rows.collate_fn)
    generator = samples_generator.SamplesGenerator(strategy, loader, None, tokenizer, [Remote(rollout)])
    group, reference_group = groups
    trainer = ppo_trainer.BasePPOTrainer(strategy, group, None, None, reference_group, None, tokenizer)
    limits = {"max_len": args.data.max_len, "max_new_tokens": args.rollout.max_new_tokens}
    for step in range(1, len(rows) // args.rollout.batch_size + 1):
        samples, *_ = generator.generate_samples(**limits)
        trainer.train_step(samples, step)
        yield step


def rows_of(batches: Sequence[Experience]) -> list[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Return ids, mask and advantages of every row; the latter two are of ``ids[1:]``."""
    return [
        (batch.sequences[i, :length].tolist(), batch.action_mask[i, : length - 1], batch.advantages[i, : length - 1])
        for batch in batches
        for i, length in enumerate(batch.attention_mask.sum(1).tolist())
    ]


def _group(actor: Any) -> Any:
    """Return OpenRLHF's group of one actor, or None if there is none."""
    if actor is None:
        return None
    group = launcher.RayActorGroup.__new__(launcher.RayActorGroup)
    handles = [Remote(actor if each == rank() else OtherRank(actor)) for each in range(world())]
    group.duplicate_actors, group._actor_handlers = 1, handles
    return group


def _without_init(actor_class: Any, /, **attributes: Any) -> Any:
    """Return one of a Ray actor's class, as it is below Ray, with these attributes."""
    cls = actor_class.__ray_metadata__.modified_class
    made = cls.__new__(cls)
    vars(made).update(attributes)
    return made


class _ParsedError(Exception):
    """Has the arguments."""


def arguments(scenario: Scenario, algorithm: str, model: str, options: Sequence[str] = ()) -> Any:
    """Return what OpenRLHF's command makes of the example's flags, with the limits of a scenario.

    Its parser is in its main block, so that is run up to where the arguments are used.
    """
    size = len(scenario.rows)
    args = train_openrlhf.Args(
        steps=1,
        batch_size=size,
        group_size=scenario.copies,
        max_new_tokens=scenario.max_new_tokens,
        validation=0,
    )
    args.fill_in()

    def stop(parsed: Any) -> None:
        raise _ParsedError(parsed)

    with tempfile.TemporaryDirectory() as folder:
        flags = [
            *train_openrlhf.gem_flags(args, Path(folder)),
            *train_openrlhf.algorithm_flags(args, model),
            *train_openrlhf.job_flags(args, model, Path(folder)),
            *("--algo.advantage.estimator", {"grpo": "group_norm"}.get(algorithm, algorithm)),
            *("--data.max_len", str(scenario.max_context)),
            *("--rollout.micro_batch_size", "2"),  # several, so that there is something to put together
            *("--reward.clip_range", "-1000000", "1000000"),  # by default -10 to 10
            *("--ds.attn_implementation", "sdpa", "--ds.zero_stage", "0"),
            *options,
        ]
        with (
            patch.object(sys, "argv", ["train_ppo_ray", *flags]),
            patch("ray.is_initialized", return_value=True),
            patch("openrlhf.utils.get_strategy", stop),
        ):
            try:
                runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
            except _ParsedError as parsed:
                return parsed.args[0]
    raise AssertionError("openrlhf.cli.train_ppo_ray has not asked for a strategy")


if __name__ == "__main__":
    main(OpenRLHFHarness())
