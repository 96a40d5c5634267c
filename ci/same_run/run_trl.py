"""The same run in TRL's own ``GRPOTrainer.train``: rollouts, advantages, loss and optimiser; coupled sampling."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

import on_trl
import torch
from same_run import COPIES, GROUPS, LR, Row, Run, main

from gem.testing.coupled_sampling import CoupledSampler

SETTINGS = {
    "scale_rewards": "none",
    "loss_type": "dapo",
    "beta": 0.0,
    "learning_rate": LR,
    "lr_scheduler_type": "constant",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "shuffle_dataset": False,
}
"""What makes TRL's objective that of the others."""


class Recorded(on_trl.Recorded):
    """TRL's trainer, whose updates are written."""

    run: Run
    policy: CoupledSampler

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int
    ) -> Any:
        self.policy.take(self.model.state_dict())
        return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        (batch,), (gradient, before) = self.learned.pop(), self.updates.pop()
        self.run.record(_rows(batch), gradient, before, self.policy)
        return norm


def _rows(batch: dict[str, torch.Tensor]) -> list[Row]:
    rows = []
    for i, mask in enumerate(batch["completion_mask"] * batch["tool_mask"]):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        length = int(batch["completion_mask"][i].sum())
        advantages = batch["advantages"][i].expand(len(mask))[mask.bool()].tolist()
        ids = prompt + batch["completion_ids"][i, :length].tolist()
        rows.append(Row(ids, [0] * len(prompt) + mask[:length].tolist(), advantages))
    return rows


def play(run: Run) -> None:
    harness = on_trl.TRLHarness()
    sampler = run.sampler(harness.model(), harness.tokenizer())
    options = {**SETTINGS, "max_steps": run.steps, "rows": GROUPS * COPIES}
    trainer = harness._trainer(run.scenario, sampler, Recorded, **options)
    trainer.run = run
    trainer.train()


if __name__ == "__main__":
    main(play)
