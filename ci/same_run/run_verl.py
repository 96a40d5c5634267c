"""The same run in verl's own V1 trainer: agent loop, replay buffer, advantages, worker; coupled sampling."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

import on_verl
from on_verl import ACTOR
from same_run import COPIES, GROUPS, LR, Row, Run, main
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.dataset.rl_dataset import collate_fn

SETTINGS = {
    "algorithm.norm_adv_by_std_in_grpo": False,
    "algorithm.rollout_correction.bypass_mode": False,
    f"{ACTOR}.loss_agg_mode": "token-mean",
    f"{ACTOR}.optim.lr": LR,
    f"{ACTOR}.optim.lr_scheduler_type": "constant",
    f"{ACTOR}.optim.betas": [0.9, 0.999],
    f"{ACTOR}.optim.weight_decay": 0,
    f"{ACTOR}.optim.clip_grad": 1.0,
    f"{ACTOR}.ppo_mini_batch_size": GROUPS,
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": GROUPS * COPIES,
    "data.train_batch_size": GROUPS,
}
"""What makes verl's objective that of the others; the advantages are GRPO's."""


def play(run: Run) -> None:
    harness = on_verl.VerlHarness()
    tokenizer, path, scenario = harness.tokenizer(), harness.model(), run.scenario
    sampler = run.sampler(path, tokenizer)
    on_verl.MAKE_ENV.append(scenario.make_env(tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        config = on_verl._config(scenario, tokenizer, str(path), "grpo", Path(folder), SETTINGS)
        trainer = on_verl.Trainer(config, sampler.respond)
        learner = on_verl.LearningActor(config.actor_rollout_ref, trainer.queue)
        trainer.actor_rollout_wg, trainer.ref_in_actor = learner, False
        rows = list(create_rl_dataset(config.data.train_files, config.data, trainer.tokenizer, None))
        batches = [collate_fn(rows[i : i + GROUPS]) for i in range(0, len(rows), GROUPS)]
        trainer.train_dataloader, trainer.train_dataloader_it = batches, None
        for step in range(run.steps):
            sampler.take(learner.actor.model().state_dict())
            trainer.global_steps = step + 1
            learned = [_row(row) for row in trainer.learn()[0]]
            ((gradient, before),) = learner.actor.updates
            learner.actor.updates.clear()
            run.record(learned, gradient, before, sampler)


def _row(row: dict[str, Any]) -> Row:
    mask = row["response_mask"].tolist()
    advantages = row["advantages"][row["response_mask"].bool()].tolist()
    return Row(row["input_ids"].tolist(), [0] * len(row["prompts"]) + mask, advantages)


if __name__ == "__main__":
    main(play)
