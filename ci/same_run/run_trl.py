"""The same run in TRL's own ``GRPOTrainer.train``: generation, advantages, loss and optimiser.

Its generation is transformers', in batches; a logits processor has it sample as coupled sampling does.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

import numpy as np
import on_trl
import torch
from same_run import COPIES, GROUPS, LR, Row, Run, main
from transformers import LogitsProcessor, LogitsProcessorList
from trl import GRPOTrainer

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


class Coupled(LogitsProcessor):
    """Has transformers take the token that coupled sampling would, in a batch of prompts padded on the left.

    Args:
        sampler: which one.
        prompts: of the batch.
    """

    def __init__(self, sampler: CoupledSampler, prompts: list[list[int]]) -> None:
        self._sampler, self._prompts = sampler, prompts
        self._noise = [sampler.noise.of(prompt) for prompt in prompts]
        self._margins: list[list[float]] = [[] for _ in prompts]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chances = torch.log_softmax(scores.double(), -1).numpy()
        noisy = chances + np.stack([noise.gumbel(size=chances.shape[1]) for noise in self._noise])
        second, first = np.argsort(noisy)[:, -2:].T
        for i, (prompt, margins) in enumerate(zip(self._prompts, self._margins, strict=True)):
            margins.append(float(noisy[i, first[i]] - noisy[i, second[i]]))
            sampled = input_ids[i, len(input_ids[i]) - len(margins) + 1 :].tolist()
            self._sampler.margins[(*prompt, *sampled, int(first[i]))] = list(margins)
        return torch.full_like(scores, -torch.inf).scatter(1, torch.tensor(first)[:, None], 0.0)


class Recorded(on_trl.Recorded):
    """TRL's trainer, with its own generation, whose updates are written."""

    run: Run
    policy: CoupledSampler

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int
    ) -> Any:
        processor = LogitsProcessorList([Coupled(self.policy, prompt_ids)])
        self.model.generate = functools.partial(type(self.model).generate, self.model, logits_processor=processor)
        try:
            return GRPOTrainer._generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations)
        finally:
            del self.model.generate

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
