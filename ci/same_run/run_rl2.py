"""The same run in RL2's own rollout, advantages and actor, with FSDP; coupled sampling, float32."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

import on_rl2
import rl2_update
from RL2.trainer import ppo
from same_run import LR, Row, Run, main
from two_processes import join_alone

ADVANTAGES = {"estimator": "reinforce", "norm_var": False}
SETTINGS = {"avg_level": "token", "lr": LR, "weight_decay": 0.0, "max_grad_norm": 1.0}
"""What makes RL2's objective that of the others."""


def play(run: Run) -> None:
    join_alone()
    harness = on_rl2.RL2Harness()
    tokenizer, path = harness.tokenizer(), harness.model()
    sampler = run.sampler(path, tokenizer)
    actor = None
    for step in range(run.steps):
        config, batch, cu_seqs = harness._batch(run.step(step), sampler, ADVANTAGES)
        actor = actor or rl2_update.actor(config.actor, str(path), SETTINGS)
        ppo.compute_advantages(config.adv, batch, cu_seqs, step + 1)
        actor.update(dict(batch), step + 1)
        ((gradient, before),) = actor.updates
        rows = on_rl2._rows(batch, "advantages")
        run.record([_row(*row) for row in rows], gradient, before, sampler)
        actor.updates.clear()
        sampler.take(actor.whole())


def _row(ids: list[int], mask: list[int], advantages: list[float]) -> Row:
    return Row(ids, [0, *mask], [value for value, one in zip(advantages, mask, strict=True) if one])


if __name__ == "__main__":
    main(play)
