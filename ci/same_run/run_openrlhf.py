"""The same run in OpenRLHF's own trainer: samples, experience, actor, DeepSpeed; coupled sampling, float32."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

import on_openrlhf
import openrlhf_update
from same_run import COPIES, GROUPS, LR, Row, Run, main

SETTINGS = (
    *("--actor.loss_agg_mode", "token-mean"),
    *("--algo.advantage.is_correction_level", "off"),
    *("--algo.kl.init_coef", "0"),
    *("--actor.adam.lr", str(LR), "--actor.lr_scheduler", "constant"),
    *("--actor.adam.betas", "0.9", "0.999", "--actor.adam.weight_decay", "0", "--actor.max_norm", "1"),
    *("--rollout.batch_size", str(GROUPS)),
    *("--train.batch_size", str(GROUPS * COPIES), "--train.micro_batch_size", str(GROUPS * COPIES)),
)
"""What makes OpenRLHF's objective that of the others, with the advantages of ``dr_grpo``."""


def play(run: Run) -> None:
    harness = on_openrlhf.OpenRLHFHarness()
    tokenizer, path, scenario = harness.tokenizer(), harness.model(), run.scenario
    sampler = run.sampler(path, tokenizer)
    strategy = openrlhf_update.start(on_openrlhf.arguments(scenario, "dr_grpo", str(path), SETTINGS))
    learner, updates, batches = openrlhf_update.policy(strategy)
    for _ in on_openrlhf.training_steps(scenario, sampler, strategy, tokenizer, learner):
        ((gradient, before),) = updates
        run.record([_row(*row) for row in on_openrlhf.rows_of(batches)], gradient, before, sampler)
        updates.clear()
        batches.clear()
        sampler.take(learner.actor.model.module.state_dict())


def _row(ids: list[int], mask: on_openrlhf.torch.Tensor, advantages: on_openrlhf.torch.Tensor) -> Row:
    return Row(ids, [0, *mask.int().tolist()], advantages[mask.bool()].tolist())


if __name__ == "__main__":
    main(play)
