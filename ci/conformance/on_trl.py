"""Run the conformance suite on the TRL adapter, in TRL's own ``GRPOTrainer``.

Everything is TRL's but the sampling of tokens (``_generate_single_turn``); the model is untrained, and not asked.
"""

from __future__ import annotations

import tempfile
from typing import Any, TypeVar

import torch
import trl
from trl import GRPOConfig, GRPOTrainer
from two_processes import by_two, of_all, world

from gem.rollout import Response
from gem.testing.advantages import of_groups, of_turns
from gem.testing.conformance import ComputedAdvantages, Difference, Harness, main
from gem.testing.gradients import ComputedGradient, Objective, WeighedSequence, gradient_of
from gem.testing.records import Record, one_scalar
from gem.testing.scenarios import Scenario, ScriptedPolicy
from gem.testing.updates import AdamW, ComputedUpdates
from gem_trl import GemGRPOTrainer, GemRollout, gem_reward, task_dataset

T = TypeVar("T", bound="Scripted")


class Scripted(GRPOTrainer):
    """TRL's trainer, with a policy for an engine."""

    policy: ScriptedPolicy
    max_tokens: int

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        stop_ids = self.generation_config.eos_token_id
        answers: list[Response] = [self.policy.respond(ids, self.max_tokens, stop_ids) for ids in prompt_ids]
        return [list(a.token_ids) for a in answers], [list(a.logprobs or []) for a in answers]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.scalars = super()._calculate_rewards(*args, **kwargs)
        return self.scalars


class ScriptedPerTurn(Scripted, GemGRPOTrainer):
    """The same, with ReBN."""


class Recorded(Scripted):
    """The same, with what it learns kept: of each update the gradient, the policy before it, and the micro-batches."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.updates: list[tuple[dict[str, torch.Tensor], Any]] = []
        self.micro_batches: list[dict[str, Any]] = []
        self.learned: list[list[dict[str, Any]]] = []

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.micro_batches.append(inputs)
        return super()._compute_loss(model, inputs)

    def _clip_grad_norm(self, model: Any) -> Any:
        model = self.accelerator.unwrap_model(model)
        before = type(model)(model.config)  # a copy's forward would be bound to the original
        before.load_state_dict(model.state_dict())
        self.updates.append((gradient_of(model), before))
        self.learned.append(self.micro_batches)
        self.micro_batches = []
        return super()._clip_grad_norm(model)


class RecordedPerTurn(Recorded, GemGRPOTrainer):
    """The same, with ReBN."""


MOVED: dict[str, Any] = {"num_iterations": 2, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
LOSSES: dict[str, dict[str, Any]] = {
    **{f"loss_type={name}": {"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo")},
    **{
        f"loss_type={name}, micro-batches": {"loss_type": name, "micro_batches": 2}
        for name in ("grpo", "bnpo", "dr_grpo", "dapo")
    },
    "loss_type=bnpo, two processes": {"loss_type": "bnpo"},
    "loss_type=dapo, micro-batches, two processes": {"loss_type": "dapo", "micro_batches": 2},
    "ReBN, micro-batches": {"micro_batches": 2},
    "the policy has moved, micro-batches": {"micro_batches": 2, **MOVED},
    "the policy has moved, KL k3, micro-batches": {
        "beta": 0.1,
        "use_bias_correction_kl": False,
        "micro_batches": 2,
        **MOVED,
    },
    "the policy has moved, KL k3 times the ratio": {"beta": 0.1, **MOVED},
}
"""For each loss the arguments of TRL's configuration, and the number of micro-batches."""

LR = 1e-2
EQUAL = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}
OPTIMIZERS: dict[str, tuple[dict[str, Any], AdamW]] = {
    "the trainer's defaults": ({}, AdamW(LR)),
    "equal settings": (EQUAL, AdamW(LR)),
    "equal settings, two processes": (EQUAL, AdamW(LR)),
    "weight decay": ({"weight_decay": 0.1}, AdamW(LR, weight_decay=0.1, not_decayed=("norm", "bias"))),
}
"""For each setting the arguments of TRL's configuration, and what they mean."""


class TRLHarness(Harness):
    """TRL."""

    name = "TRL"
    version = trl.__version__
    differences = (
        Difference(
            "a sequence cannot have two prompts: refused",
            refuses=ValueError,
            match="leave out the wrapper that rewrites the history",
            only=frozenset({"a rewritten history"}),
        ),
        Difference("the episode's rewards are one scalar", one_scalar),
    )
    algorithms = ("grpo", "dr. grpo", "rebn")
    losses = tuple(LOSSES)
    optimizers = tuple(OPTIMIZERS)

    def run(self, scenario: Scenario, policy: ScriptedPolicy) -> list[Record]:
        """Return what TRL computes its loss from."""
        trainer, output = self._batch(scenario, policy, Scripted)
        records = []
        for i, (ids, sampled, logprobs) in enumerate(self._rows(output)):
            first = len(ids) - len(sampled)
            rewards = [0.0] * (len(ids) - 1) + [float(trainer.scalars[i, 0])]
            records.append(Record(ids, [0] * first + sampled, rewards, [0.0] * first + logprobs))
        return records

    def compute_advantages(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> ComputedAdvantages:
        """Return TRL's advantages."""
        scale = "none" if algorithm == "dr. grpo" else "group"
        trainer_class = ScriptedPerTurn if algorithm == "rebn" else Scripted
        _, output = self._batch(scenario, policy, trainer_class, scale_rewards=scale)
        advantages = []
        for i, (ids, sampled, _) in enumerate(self._rows(output)):
            if not any(sampled):  # left out: none of its tokens is in the loss
                continue
            own = output["advantages"][i]
            of_tokens = own.tolist()[: len(sampled)] if own.ndim else [float(own)] * len(sampled)
            advantages.append((ids, [value for value, one in zip(of_tokens, sampled, strict=True) if one]))
        if algorithm == "rebn":
            return ComputedAdvantages(advantages, of_turns(), "over all turns of the batch, population deviation")
        how = "the group's mean taken off" if scale == "none" else "over the group's sample deviation + 1e-4"
        return ComputedAdvantages(advantages, of_groups(scenario.copies, scale == "group", 1e-4), how)

    @by_two
    def compute_gradient(self, scenario: Scenario, policy: ScriptedPolicy, loss: str) -> ComputedGradient:
        """Return the gradient of the last of TRL's updates from a batch."""
        trainer_class = RecordedPerTurn if loss.startswith("ReBN") else Recorded
        trainer = self._trained(scenario, policy, trainer_class, LOSSES[loss])
        (gradient, model), micro_batches = trainer.updates[-1], trainer.learned[-1]
        parts = trainer.args.gradient_accumulation_steps
        assert len(micro_batches) == parts
        masks = [batch["completion_mask"] * batch["tool_mask"] for batch in micro_batches]
        in_all, longest = of_all(sum(float(mask.sum()) for mask in masks)), trainer.max_completion_length
        parts *= world()
        weights = {  # of a token of a row of `own` sampled tokens, in a micro-batch of `rows` rows and `tokens` of them
            "grpo": (lambda own, rows, tokens: 1 / (own * rows * parts), "1 / (tokens of the row x rows)"),
            "bnpo": (lambda own, rows, tokens: 1 / (tokens * parts), "1 / (tokens of the micro-batch x micro-batches)"),
            "dr_grpo": (lambda own, rows, tokens: 1 / (rows * parts * longest), "1 / (rows x max_completion_length)"),
            "dapo": (lambda own, rows, tokens: 1 / in_all, "1 / tokens of the batch"),
        }
        weight, why = weights[trainer.args.loss_type]
        sequences = []
        for batch, mask in zip(micro_batches, masks, strict=True):
            for i in range(len(mask)):
                prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
                length, own = int(batch["completion_mask"][i].sum()), int(mask[i].sum())
                if own:
                    weights_of_tokens = [weight(own, len(mask), float(mask.sum()))] * own
                    advantages = batch["advantages"][i].expand(mask.shape[1])[mask[i].bool()].tolist()
                    ids = prompt + batch["completion_ids"][i, :length].tolist()
                    sampled = [0] * len(prompt) + mask[i, :length].tolist()
                    sequences.append(WeighedSequence(ids, sampled, weights_of_tokens, advantages))
        if len(trainer.updates) == 1:
            return ComputedGradient(gradient, model, sequences, why)
        first, bounds = trainer.updates[0][1], (trainer.epsilon_low, trainer.epsilon_high)
        kl_times_ratio = trainer.args.use_bias_correction_kl
        objective = Objective(first, bounds, reference=first, beta=trainer.beta, kl_times_ratio=kl_times_ratio)
        return ComputedGradient(gradient, model, sequences, why, objective)

    @by_two
    def compute_updates(self, scenario: Scenario, policy: ScriptedPolicy, optimizer: str) -> ComputedUpdates:
        """Return three updates of TRL's from a batch."""
        options, declared = OPTIMIZERS[optimizer]
        options = {"num_iterations": 3, "learning_rate": LR, "lr_scheduler_type": "constant", **options}
        return ComputedUpdates(self._trained(scenario, policy, Recorded, options).updates, declared)

    def _trained(
        self, scenario: Scenario, policy: ScriptedPolicy, trainer_class: type[Recorded], options: dict[str, Any]
    ) -> Recorded:
        """Return a trainer that has learned from one batch."""
        options = {"num_iterations": 1, "max_grad_norm": 1.0, **options}
        trainer = self._trainer(scenario, policy, trainer_class, max_steps=options["num_iterations"], **options)
        trainer.train()
        assert len(trainer.updates) == options["num_iterations"]
        return trainer

    def _rows(self, output: dict[str, Any]) -> list[tuple[list[int], list[int], list[float]]]:
        """Return each row's ids, and mask and log-probabilities of its completion, without padding."""
        rows = []
        for i in range(len(output["prompt_ids"])):
            prompt = output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist()
            length = int(output["completion_mask"][i].sum())
            completion, mask, logprobs = (
                output[name][i, :length].tolist()
                for name in ("completion_ids", "tool_mask", "sampling_per_token_logps")
            )
            rows.append((prompt + completion, mask, logprobs))
        return rows

    def _batch(
        self, scenario: Scenario, policy: ScriptedPolicy, trainer_class: type[Scripted], **options: Any
    ) -> tuple[Scripted, dict[str, Any]]:
        trainer = self._trainer(scenario, policy, trainer_class, **options)
        trainer.model.train()
        rows = next(iter(trainer.get_train_dataloader()))
        return trainer, trainer._generate_and_score_completions(rows)

    def _trainer(
        self,
        scenario: Scenario,
        policy: ScriptedPolicy,
        trainer_class: type[T],
        micro_batches: int = 1,
        rows: int | None = None,
        **options: Any,
    ) -> T:
        tokenizer = self.tokenizer(scenario)
        with tempfile.TemporaryDirectory() as folder:
            config = GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=(rows or len(scenario.rows)) // micro_batches // world(),
                gradient_accumulation_steps=micro_batches,
                num_generations=scenario.copies,
                max_completion_length=scenario.max_new_tokens,
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
                **options,
            )
            trainer = trainer_class(
                model=str(self.model(scenario)),
                processing_class=tokenizer,
                args=config,
                train_dataset=task_dataset(list(scenario.tasks)),
                rollout_func=GemRollout(
                    tokenizer,
                    max_turns=scenario.max_turns,
                    max_context=scenario.max_context,
                    tool_role=scenario.tool_role,
                    make_env=scenario.make_env(tokenizer),
                ),
                reward_funcs=gem_reward,
            )
            trainer.policy, trainer.max_tokens = policy, scenario.max_new_tokens
            return trainer


if __name__ == "__main__":
    main(TRLHarness())
