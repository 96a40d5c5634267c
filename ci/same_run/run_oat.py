"""The same run in Oat's own actor and learner, for groups of episodes of one turn; coupled sampling, float32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

import oat_update
import on_oat
from same_run import COPIES, GROUPS, LR, Row, Run, main

SETTINGS = {
    "critic_type": "drgrpo",
    "token_mean": True,
    "learning_rate": LR,
    "adam_beta_1": 0.9,
    "adam_beta_2": 0.999,
    "l2": 0.0,
    "max_norm": 1.0,
    "train_batch_size_per_device": GROUPS * COPIES,
    "use_fused_lm_head": False,
}
"""What makes Oat's objective that of the others; the learning rate is constant."""


def play(run: Run) -> None:
    harness = on_oat.OatHarness()
    tokenizer, path = harness.tokenizer(), harness.model()
    sampler = run.sampler(path, tokenizer)
    learner: Any = None
    for step in range(run.steps):
        args, received = harness._received(run.step(step), sampler, in_groups=True, **SETTINGS)
        if learner is None:
            learner = on_oat._learner(on_oat.GroupLearner, args)
            updates = oat_update.equip(learner, GROUPS * COPIES)
            advantages = _kept_advantages(learner)
        batch = on_oat._collated(learner, received, tokenizer)
        learner.learning_step(batch)
        ((gradient, before),) = updates
        run.record(_rows(batch, advantages.pop()), gradient, before, sampler)
        updates.clear()
        sampler.take(learner.model.model.module.state_dict())


def _kept_advantages(learner: Any) -> list[Any]:
    """Return where the advantages of each update will be."""
    kept: list[Any] = []
    compute = learner.compute_monte_carlo_advantages

    def recorded(*args: Any) -> Any:
        kept.append(compute(*args))
        return kept[-1]

    learner.compute_monte_carlo_advantages = recorded
    return kept


def _rows(batch: dict[str, Any], advantages: Any) -> list[Row]:
    rows = []
    for i, attended in enumerate(batch["attention_mask"].bool()):
        ids, first = batch["input_ids"][i][attended].tolist(), batch["prompt_ids_lens"][i]
        sampled = len(ids) - first
        rows.append(Row(ids, [0] * first + [1] * sampled, [float(advantages[i].flatten()[0])] * sampled))
    return rows


if __name__ == "__main__":
    main(play)
