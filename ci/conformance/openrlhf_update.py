"""OpenRLHF's own actor in this process: its worker, model, DeepSpeed engine, loss and optimiser, without Ray.

With gloo between processes. OpenRLHF knows bfloat16 and float16 only; here its models are in float32, so that a
gradient can be compared exactly, and that is all that is replaced beside what a CPU needs (``ci/cpu/openrlhf``).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from deepspeed_updates import Updates
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray import launcher, ppo_actor
from openrlhf.utils import get_strategy, utils
from two_processes import join_alone

utils.convert_to_torch_dtype = {"fp32": torch.float32}.__getitem__


def start(args: Any) -> Any:
    """Return OpenRLHF's strategy."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    join_alone()
    args.ds.param_dtype = "fp32"
    return get_strategy(args)


def policy(strategy: Any) -> tuple[Any, Updates, list[Experience]]:
    """Return the actor with its model, the updates that it will make, and the micro-batches that it will learn from."""
    made = _without_init(ppo_actor.PolicyModelActor)
    path = strategy.args.actor.model_name_or_path
    made.init_model_from_pretrained(strategy, path, max_steps=100)
    batches: list[Experience] = []
    step = made.trainer.training_step

    def recorded(experience: Experience, *rest: Any) -> Any:
        batches.append(experience)
        return step(experience, *rest)

    made.trainer.training_step = recorded
    return made, Updates(made.actor.model, path), batches


def reference(strategy: Any) -> Any:
    """Return the actor with the reference policy."""
    made = _without_init(launcher.ReferenceModelActor)
    made.init_model_from_pretrained(strategy, strategy.args.actor.model_name_or_path)
    return made


def _without_init(actor_class: Any) -> Any:
    """Return one of a Ray actor's class, as it is below Ray; what is left out looks for addresses and ports."""
    cls = actor_class.__ray_metadata__.modified_class
    return cls.__new__(cls)
