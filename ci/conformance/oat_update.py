"""What Oat's learner learns with, in this process: its model, DeepSpeed and optimiser, in float32, over gloo."""

from __future__ import annotations

import os
from typing import Any

import torch
from deepspeed_updates import Updates
from oat.model import LLM
from oat.utils.deepspeed import get_strategy
from transformers import get_scheduler
from two_processes import join_alone, world


def equip(learner: Any, rows: int) -> Updates:
    """Give a learner its strategy, model, optimiser and scheduler, as Oat's ``LearnerBase._init`` does.

    Args:
        learner: Oat's, with its arguments.
        rows: that it will learn from, in one update.

    Returns:
        The updates that it will make.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    join_alone()
    args = learner.args
    args.train_batch_size, args.bf16, args.zero_stage = rows * world(), False, 0
    args, strategy = get_strategy(args)
    strategy.setup_distributed()
    model = LLM(args.pretrain, bf16=False, ds_config=strategy.get_ds_train_config(is_wrapped=True))
    betas = args.adam_beta_1, args.adam_beta_2
    optimizer = strategy.create_optimizer(model, lr=args.learning_rate, betas=betas, weight_decay=args.l2)
    scheduler = get_scheduler("constant", optimizer)
    learner.model, learner.optimizer, learner.scheduler = strategy.prepare((model, optimizer, scheduler))
    learner.strategy = strategy
    return Updates(learner.model.model, args.pretrain)
